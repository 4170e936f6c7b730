//! What is asked of one VM, each request to the part that does it.

use lifeboat_catalog::CatalogError;
use lifeboat_model::contract::{
    FailoverType, InitialReplicationType, JobType, PointKind, ReplicationState, ReturnCode,
};
use lifeboat_model::relationship::{
    CancelHow, Event, FailoverChoice, Operation, PrimaryGuest, Role,
};
use lifeboat_model::{LineageId, Sequence};
use lifeboat_store::{Store, StoreError, Verification, Verifier, VerifyProgress};
use lifeboat_sys::host;

use crate::activity::Meter;
use crate::api::{Accepted, Caller, Rejection, ReverseReplication, Urgency, VmOperation};
use crate::jobs::{Goal, not_saved};
use crate::ledger::document;
use crate::operations::split_point;
use crate::rejection::{
    failed, invalid, no_point, not_here, not_replicated, rejection_of_refused, rejection_of_step,
    store_rejection, unsupported,
};
use crate::relation::{PeerPlace, Relation};
use crate::service::{Service, with_causes};
use crate::vm::VmArc;

impl Service {
    pub(crate) fn run_operation(
        &self,
        caller: &Caller,
        vm: &VmArc,
        operation: VmOperation,
    ) -> Result<Accepted, Rejection> {
        let is_stop = matches!(operation, VmOperation::StopVm { .. });
        if !is_stop && self.inner.ledger.is_stopped() && !self.mend_catalog() {
            // Nothing is begun, here or at the peer, that could not be saved.
            return Err(not_saved("what is asked for", &CatalogError::Stopped));
        }
        let needs_store = matches!(
            operation,
            VmOperation::TestFailover { .. }
                | VmOperation::MakePoint
                | VmOperation::RemovePoint { .. }
                | VmOperation::VerifyPoint { .. }
        );
        if needs_store {
            // One that has failed half way is opened again; if it cannot be, the operation says so.
            self.open_if_failed(vm);
        }
        match operation {
            VmOperation::StartVm => self.start_vm(vm),
            VmOperation::StopVm { how } => self.stop_vm(vm, how),
            VmOperation::EnableReplication(enable) => self.enable(vm, &enable),
            VmOperation::StartReplication { kind, at } => {
                if kind == InitialReplicationType::Export {
                    return Err(unsupported(
                        "exporting the initial copy to media is not offered",
                        "use the network, or a seeded replica",
                    ));
                }
                let job = JobType::StartInbandInitialReplication;
                let goal = Goal::InitialReplication;
                self.start_job(caller, vm, job, goal, Event::Start { kind, at })
            }
            VmOperation::CancelInitialReplication => self.at_once(vm, Event::CancelInitial),
            VmOperation::Suspend => self.at_once(vm, Event::Suspend),
            VmOperation::Resume => {
                let accepted = self.at_once(vm, Event::Resume)?;
                self.apply_soon(vm);
                Ok(accepted)
            }
            VmOperation::Resynchronize { at } => {
                let job = JobType::Resynchronizing;
                let goal = Goal::Resynchronize;
                self.start_job(caller, vm, job, goal, Event::Resynchronize { at })
            }
            VmOperation::CancelResynchronize => self.at_once(vm, Event::CancelResynchronize),
            VmOperation::PreparePlannedFailover => {
                let vm_power = self.power(vm);
                let job = JobType::InitiateSyncedReplication;
                self.start_job(
                    caller,
                    vm,
                    job,
                    Goal::Prepare,
                    Event::Prepare { vm: vm_power },
                )
            }
            VmOperation::CancelPlannedFailover { how } => {
                let how = match how {
                    Urgency::Checked => CancelHow::Asking,
                    Urgency::Forced => CancelHow::Forced {
                        lineage: random_lineage()?,
                    },
                };
                let job = JobType::CancelSyncedReplication;
                let event = Event::CancelPrepared { how };
                self.start_job(caller, vm, job, Goal::CancelPrepared, event)
            }
            VmOperation::InitiateFailover { point, how } => {
                let choice = self.choose_failover(vm, point, how)?;
                let job = JobType::InitiateFailover;
                self.remember_tip(vm)?;
                self.start_job(caller, vm, job, Goal::FailOver, Event::FailOver(choice))
            }
            VmOperation::RevertFailover => {
                let event = Event::Revert { vm: self.power(vm) };
                self.start_job(caller, vm, JobType::RevertFailover, Goal::Revert, event)
            }
            VmOperation::CommitFailover => {
                self.refuse_test(vm, Operation::CommitFailover)?;
                self.start_job(
                    caller,
                    vm,
                    JobType::CommitFailover,
                    Goal::Commit,
                    Event::Commit,
                )
            }
            VmOperation::NameSurvivor(survivor) => self.name_survivor(vm, survivor),
            VmOperation::ReverseReplication(reverse) => self.reverse(caller, vm, &reverse),
            VmOperation::TestFailover { point } => {
                let accepted = self.start_test(vm, point)?;
                self.count_test(vm);
                Ok(accepted)
            }
            VmOperation::EndTestFailover => self.end_test(vm),
            VmOperation::ModifySettings(change) => self.change_settings_of(vm, change),
            VmOperation::RemoveReplication => self.remove_relation(vm),
            VmOperation::ResetStatistics => {
                self.refuse_unreplicated(vm)?;
                self.reset_counters(vm);
                Ok(Accepted::Completed)
            }
            VmOperation::MakePoint => self.make_point(vm),
            VmOperation::RemovePoint { point } => self.remove_point(vm, point),
            VmOperation::VerifyPoint { point } => self.verify(caller, vm, point),
            VmOperation::ReplicateNow => self.replicate_now(caller, vm),
        }
    }

    /// An event whose effects nobody waits for.
    fn at_once(&self, vm: &VmArc, event: Event) -> Result<Accepted, Rejection> {
        self.step(vm, event).map_err(rejection_of_step)?;
        Ok(Accepted::Completed)
    }

    pub(crate) fn refuse_unreplicated(&self, vm: &VmArc) -> Result<(), Rejection> {
        match vm.core().relation() {
            Some(_) => Ok(()),
            None => Err(not_replicated()),
        }
    }

    /// Commit, reversal and removal overwrite what a test reads.
    fn refuse_test(&self, vm: &VmArc, operation: Operation) -> Result<(), Rejection> {
        if vm.core().test.is_none() {
            return Ok(());
        }
        Err(Rejection {
            code: ReturnCode::InUse,
            what: format!(
                "cannot {}: a test failover reads the replica",
                operation.wish()
            ),
            remedy: "end it first: `lifeboat failover test-end`".to_owned(),
        })
    }

    /// What is failed over to, after the primary was asked whether the VM runs there.
    fn choose_failover(
        &self,
        vm: &VmArc,
        point: Option<Sequence>,
        how: Urgency,
    ) -> Result<FailoverChoice, Rejection> {
        let relation = vm.core().relation.clone().ok_or_else(not_replicated)?;
        relation
            .record()
            .refuse_unless(Operation::InitiateFailover)
            .map_err(|refused| rejection_of_refused(&refused))?;
        let Role::Replica(replica) = &relation.record().role else {
            return Err(not_replicated());
        };
        let kind = match point {
            None if replica.prepared.is_some() => FailoverType::Planned,
            None => FailoverType::Regular,
            Some(point) => self.point_kind_of(vm, point)?.failover_type(),
        };
        let primary = match how {
            Urgency::Forced => PrimaryGuest::Overruled,
            Urgency::Checked => self.ask_primary(&relation).unwrap_or(PrimaryGuest::Unknown),
        };
        Ok(FailoverChoice {
            point,
            kind,
            lineage: random_lineage()?,
            primary,
        })
    }

    fn point_kind_of(&self, vm: &VmArc, point: Sequence) -> Result<PointKind, Rejection> {
        let status = vm.store_facts().status;
        let points = status.map(|status| status.points).unwrap_or_default();
        points
            .iter()
            .find(|known| known.sequence == point)
            .map(|known| known.kind)
            .ok_or_else(|| no_point(point))
    }

    /// What the replica had received when it failed over: a reversal needs to know.
    fn remember_tip(&self, vm: &VmArc) -> Result<(), Rejection> {
        let tip = vm.store().as_ref().map(|replica| replica.store.tip());
        self.label(vm, |saved| saved.tip_at_failover = tip)
            .map_err(|refusal| failed(refusal.message))
    }

    fn reverse(
        &self,
        caller: &Caller,
        vm: &VmArc,
        reverse: &ReverseReplication,
    ) -> Result<Accepted, Rejection> {
        self.refuse_test(vm, Operation::ReverseReplicationRelationship)?;
        let relation = vm.core().relation.clone().ok_or_else(not_replicated)?;
        relation
            .record()
            .refuse_unless(Operation::ReverseReplicationRelationship)
            .map_err(|refused| rejection_of_refused(&refused))?;
        self.prepare_reverse(vm, relation, reverse)?;
        let is_committed = {
            let core = vm.core();
            core.relation()
                .is_some_and(|relation| relation.record().state() == ReplicationState::Committed)
        };
        let goal = Goal::Reverse {
            asked: is_committed,
        };
        self.start_job(
            caller,
            vm,
            JobType::ReverseReplication,
            goal,
            Event::Reverse,
        )
    }

    /// The settings of the new direction: the old ones, towards the old primary.
    fn prepare_reverse(
        &self,
        vm: &VmArc,
        mut relation: Relation,
        reverse: &ReverseReplication,
    ) -> Result<(), Rejection> {
        let mut change = reverse.settings.clone();
        let point = reverse
            .recovery_connection_point
            .clone()
            .unwrap_or_else(|| relation.peer.address.clone());
        let (host, port) = split_point(&point)?;
        change.recovery_connection_point = Some(host);
        change.recovery_server_port_number = Some(port);
        relation.settings = relation
            .settings
            .changed(change)
            .map_err(|error| invalid(with_causes(&error)))?;
        relation.peer = PeerPlace {
            address: point,
            ..relation.peer
        };
        let mut core = vm.core();
        let known = core.relation.as_mut().ok_or_else(not_replicated)?;
        relation.version = self
            .inner
            .ledger
            .save_relation(&Relation {
                version: known.version,
                ..relation.clone()
            })
            .map_err(|error| not_saved("the settings", &error))?;
        *known = relation;
        drop(core);
        self.note_soon(vm);
        Ok(())
    }

    fn make_point(&self, vm: &VmArc) -> Result<Accepted, Rejection> {
        self.refuse_unreplicated(vm)?;
        let now = self.now();
        let mut held = vm.store();
        let replica = held.as_mut().ok_or_else(not_here)?;
        replica
            .store
            .make_point(now, PointKind::Standard)
            .map_err(|error| store_rejection("make a recovery point", &error))?;
        self.note_store(vm, replica);
        Ok(Accepted::Completed)
    }

    fn remove_point(&self, vm: &VmArc, point: Sequence) -> Result<Accepted, Rejection> {
        self.refuse_unreplicated(vm)?;
        let mut held = vm.store();
        let replica = held.as_mut().ok_or_else(not_here)?;
        replica
            .store
            .remove_point(point)
            .map_err(|error| store_rejection("remove a recovery point", &error))?;
        self.note_store(vm, replica);
        drop(held);
        // It is not made again.
        let forget = |saved: &mut crate::relation::Saved| {
            saved.planned_moment = saved.planned_moment.filter(|moment| *moment != point);
        };
        self.label(vm, forget)
            .map_err(|refusal| failed(refusal.message))?;
        Ok(Accepted::Completed)
    }

    fn verify(
        &self,
        caller: &Caller,
        vm: &VmArc,
        point: Option<Sequence>,
    ) -> Result<Accepted, Rejection> {
        self.refuse_unreplicated(vm)?;
        let job = JobType::ConsistencyChecker;
        self.run_as_job(caller, vm, job, move |vm, meter| {
            let verified = verify_in_parts(vm, point, meter)
                .map_err(|rejection| (rejection.code, rejection.what))?;
            match verified.findings.first() {
                None => Ok(document(&verified)),
                Some(finding) => Err((
                    ReturnCode::Failed,
                    format!(
                        "{} findings; the first: {} {}",
                        verified.findings.len(),
                        finding.path.display(),
                        finding.what
                    ),
                )),
            }
        })
    }
}

/// Verifies a recovery point, or the whole store. The store is let go while a part is read: what
/// travels meanwhile is received and applied.
fn verify_in_parts(
    vm: &VmArc,
    point: Option<Sequence>,
    meter: &Meter,
) -> Result<Verification, Rejection> {
    let mut verifier = match point {
        Some(point) => Verifier::of_point(point),
        None => Verifier::of_everything(),
    };
    meter.begin("verifying", 0);
    loop {
        let unread = ask_store(vm, |store| verifier.next(store))?;
        let VerifyProgress { done, total } = verifier.progress();
        meter.report(done, total);
        let Some(unread) = unread else {
            return ask_store(vm, |store| verifier.finish(store));
        };
        let checked = unread
            .read()
            .map_err(|error| store_rejection("verify", &error))?;
        ask_store(vm, |store| verifier.take_in(store, checked))?;
    }
}

fn ask_store<T>(
    vm: &VmArc,
    ask: impl FnOnce(&Store) -> Result<T, StoreError>,
) -> Result<T, Rejection> {
    let held = vm.store();
    let replica = held.as_ref().ok_or_else(not_here)?;
    ask(&replica.store).map_err(|error| store_rejection("verify", &error))
}

pub(crate) fn random_lineage() -> Result<LineageId, Rejection> {
    host::random_bytes()
        .map(LineageId::from_bytes)
        .map_err(|error| failed(format!("draw a lineage: {error}")))
}
