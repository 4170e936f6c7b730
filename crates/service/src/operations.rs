//! The service as front doors use it.

use std::time::Duration;

use lifeboat_catalog::{Activity, JobId as RowId, NewAuditRow};
use lifeboat_model::authorization::AuthorizationTable;
use lifeboat_model::contract::{FailoverType, JobType, PointKind, ReturnCode};
use lifeboat_model::relationship::{
    CancelHow, Event, FailoverChoice, Operation, PrimaryGuest, Refused, Role, VmPower,
};
use lifeboat_model::service_settings::{ReplicationServiceSettings, ServiceSettingsChange};
use lifeboat_model::{LineageId, Sequence, UtcOffset};
use lifeboat_peer::LinkError;
use lifeboat_sys::host;

use crate::api::{
    Accepted, AccessRole, AuditView, AuthorizationEntryView, Caller, CheckView, EventView,
    HealthView, HostView, JobFilter, JobId, JobView, JobWhich, NewVm, Operations, PointView,
    Rejection, RelationshipIndex, RelationshipView, ReverseReplication, Severity, StatisticsView,
    Urgency, VmDiskView, VmOperation, VmRef, VmView,
};
use crate::jobs::{Goal, not_saved};
use crate::ledger::{SERVICE_SETTINGS, document};
use crate::relation::{PeerPlace, Relation};
use crate::service::{Service, lock, with_causes};
use crate::vm::{Core, DisksPlace, StepError, VmArc};

impl Service {
    pub(crate) fn service_settings(&self) -> ReplicationServiceSettings {
        let saved = self.inner.ledger.setting(SERVICE_SETTINGS);
        saved
            .ok()
            .flatten()
            .unwrap_or_else(|| ReplicationServiceSettings::with_defaults(UtcOffset::UTC))
    }

    fn resolve(&self, vm: &VmRef) -> Result<VmArc, Rejection> {
        let found = match vm {
            VmRef::Id(id) => self.find(*id),
            VmRef::Name(name) => self.all_vms().into_iter().find(|vm| vm.name() == *name),
        };
        found.ok_or_else(|| {
            let named = match vm {
                VmRef::Id(id) => id.to_string(),
                VmRef::Name(name) => format!("{name:?}"),
            };
            Rejection {
                code: ReturnCode::FileNotFound,
                what: format!("this host has no VM {named}"),
                remedy: "see `lifeboat vm list`".to_owned(),
            }
        })
    }

    /// Writes who did what, and passes the outcome on.
    fn audited<T>(
        &self,
        caller: &Caller,
        operation: &str,
        target: &str,
        outcome: Result<T, Rejection>,
    ) -> Result<T, Rejection> {
        let told = match &outcome {
            Ok(_) => "accepted".to_owned(),
            Err(rejection) => format!("{}: {}", rejection.code.number(), rejection.what),
        };
        let row = NewAuditRow {
            at: self.now(),
            caller: caller.name.clone(),
            role: role_name(caller.role).to_owned(),
            operation: operation.to_owned(),
            target: target.to_owned(),
            arguments: document(&()),
            outcome: told.chars().take(1000).collect(),
        };
        if let Err(error) = self.inner.ledger.add_audit(&row) {
            tracing::error!("write the audit: {}", with_causes(&error));
        }
        outcome
    }

    fn view_vm(&self, vm: &VmArc) -> VmView {
        let health = self.health_value(vm);
        let running = self.power(vm) == VmPower::Running;
        let uris = self.inner.hypervisor.guest_disks(vm.id).unwrap_or_default();
        let activity = vm.meter.view();
        let core = vm.core();
        let record = core.relation().map(Relation::record);
        let mode = match (record, core.test_of) {
            (Some(record), _) => record.mode(),
            (None, Some(_)) => lifeboat_model::contract::ReplicationMode::TestReplica,
            (None, None) => lifeboat_model::contract::ReplicationMode::None,
        };
        let disks = core
            .definition
            .settings()
            .disks
            .iter()
            .map(|disk| VmDiskView {
                id: disk.id.clone(),
                size: disk.size,
                replicated: core
                    .relation()
                    .is_some_and(|relation| relation.settings.included_disks().includes(&disk.id)),
                uri: uris
                    .iter()
                    .find(|source| source.disk == disk.id && running)
                    .map(|source| source.uri.to_string()),
                path: path_of(&core, &disk.id),
            })
            .collect();
        let relationships = core
            .relation()
            .map(|relation| self.view_relation(relation, health, activity))
            .into_iter()
            .collect();
        VmView {
            id: vm.id,
            name: core.definition.name().to_owned(),
            driver: "volume".to_owned(),
            running,
            replication_mode: mode,
            replication_state: record.map_or(
                lifeboat_model::contract::ReplicationState::Disabled,
                |record| record.state(),
            ),
            replication_health: health,
            failed_over_replication_type: failover_type(core.relation()),
            disks,
            test_replica: core.test,
            test_of: core.test_of,
            relationships,
        }
    }

    fn view_relation(
        &self,
        relation: &Relation,
        health: lifeboat_model::contract::ReplicationHealth,
        activity: Option<crate::api::Activity>,
    ) -> RelationshipView {
        let record = relation.record();
        let last = relation.saved.last;
        let ours = self.inner.config.host.clone();
        let theirs = relation.peer.host.clone();
        let (primary, recovery, point) = if relation.is_primary() {
            (ours, theirs, relation.peer.address.clone())
        } else {
            (theirs, ours, self.inner.config.peer_address.clone())
        };
        let last_type = match (last.replicated_at, last.planned) {
            (None, _) => FailoverType::None,
            (Some(_), true) => FailoverType::Planned,
            (Some(_), false) => FailoverType::Regular,
        };
        RelationshipView {
            instance_id: format!("Microsoft:{}\\HVR\\0", guid(record.vm)),
            id: record.relationship,
            index: RelationshipIndex::Primary,
            replication_mode: record.mode(),
            replication_state: record.state(),
            replication_health: health,
            failed_over_replication_type: failover_type(Some(relation)),
            last_replication_type: last_type,
            last_replication_time: last.replicated_at,
            last_apply_time: last.applied_at,
            last_application_consistent_replication_time: last.application_consistent_at,
            last_sequence: relation
                .last_receipt()
                .map(|receipt| receipt.sequence)
                .or_else(|| (!relation.is_primary()).then_some(record.drawn)),
            lineage: record.lineage,
            primary_host_system: primary,
            recovery_host_system: recovery,
            recovery_connection_point: point,
            storage_location: relation.storage.clone(),
            trust_group: (!relation.trust_group.is_empty()).then(|| relation.trust_group.clone()),
            settings: relation.settings.clone(),
            activity,
        }
    }

    fn run_operation(
        &self,
        caller: &Caller,
        vm: &VmArc,
        operation: VmOperation,
    ) -> Result<Accepted, Rejection> {
        match operation {
            VmOperation::StartVm => self.start_vm(vm),
            VmOperation::StopVm { how } => self.stop_vm(vm, how),
            VmOperation::EnableReplication(enable) => self.enable(vm, &enable),
            VmOperation::StartReplication { kind, at } => {
                if kind == lifeboat_model::contract::InitialReplicationType::Export {
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
            VmOperation::ReplicateNow => {
                self.refuse_unreplicated(vm)?;
                vm.core().facts.wanted = true;
                self.set_alarm(vm);
                Ok(Accepted::Completed)
            }
        }
    }

    /// An event whose effects nobody waits for.
    fn at_once(&self, vm: &VmArc, event: Event) -> Result<Accepted, Rejection> {
        self.step(vm, event).map_err(rejection_of_step)?;
        Ok(Accepted::Completed)
    }

    fn refuse_unreplicated(&self, vm: &VmArc) -> Result<(), Rejection> {
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
            Urgency::Checked => match self.ask_primary(&relation) {
                Ok(VmPower::Running) => PrimaryGuest::Running,
                Ok(VmPower::Off) => PrimaryGuest::Off,
                Err(_) => PrimaryGuest::Unknown,
            },
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
            core.relation().is_some_and(|relation| {
                relation.record().state() == lifeboat_model::contract::ReplicationState::Committed
            })
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
        self.run_as_job(caller, vm, job, move |_, vm| {
            let held = vm.store();
            let replica = held.as_ref().ok_or_else(|| {
                let rejection = not_here();
                (rejection.code, rejection.what)
            })?;
            let verified = match point {
                Some(point) => replica.store.verify_point(point, &mut |_| {}),
                None => replica.store.verify(&mut |_| {}),
            };
            let verified = verified.map_err(|error| {
                let rejection = store_rejection("verify", &error);
                (rejection.code, rejection.what)
            })?;
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

    fn change_entries(
        &self,
        change: impl FnOnce(AuthorizationTable) -> Result<AuthorizationEntryView, Rejection>,
    ) -> Result<(), Rejection> {
        let entries = self
            .inner
            .ledger
            .entries()
            .map_err(|error| not_saved("the entry", &error))?;
        let table =
            AuthorizationTable::try_from(entries).map_err(|error| failed(with_causes(&error)))?;
        let entry = change(table)?;
        self.inner
            .ledger
            .save_entry(&entry)
            .map_err(|error| not_saved("the entry", &error))
    }
}

impl Operations for Service {
    fn host(&self, _caller: &Caller) -> Result<HostView, Rejection> {
        let standing = lock(&self.inner.standing).clone();
        let vms = self.all_vms();
        Ok(HostView {
            host: self.inner.config.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: standing.listeners,
            settings: self.service_settings(),
            jobs_running: vms.iter().map(|vm| vm.core().jobs.len()).sum(),
            vms: vms.len(),
            certificate_expires_at: standing.certificate_expires_at,
        })
    }

    fn modify_service_settings(
        &self,
        caller: &Caller,
        change: ServiceSettingsChange,
    ) -> Result<(), Rejection> {
        let outcome = self
            .service_settings()
            .changed(change)
            .map_err(|error| invalid(with_causes(&error)))
            .and_then(|settings| {
                self.inner
                    .ledger
                    .save_setting(SERVICE_SETTINGS, &settings)
                    .map_err(|error| not_saved("the settings", &error))
            });
        self.audited(caller, "modify_service_settings", "", outcome)
    }

    fn vms(&self, _caller: &Caller) -> Result<Vec<VmView>, Rejection> {
        let mut vms: Vec<VmView> = self.all_vms().iter().map(|vm| self.view_vm(vm)).collect();
        vms.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(vms)
    }

    fn vm(&self, _caller: &Caller, vm: &VmRef) -> Result<VmView, Rejection> {
        Ok(self.view_vm(&self.resolve(vm)?))
    }

    fn define_vm(&self, caller: &Caller, vm: NewVm) -> Result<VmView, Rejection> {
        let outcome = self.make_vm(&vm).map(|vm| self.view_vm(&vm));
        self.audited(caller, "define_vm", &vm.name, outcome)
    }

    fn undefine_vm(&self, caller: &Caller, vm: &VmRef) -> Result<(), Rejection> {
        let vm = self.resolve(vm)?;
        let outcome = self.forget_vm(&vm);
        self.audited(caller, "undefine_vm", &vm.name(), outcome)
    }

    fn request(
        &self,
        caller: &Caller,
        vm: &VmRef,
        operation: VmOperation,
    ) -> Result<Accepted, Rejection> {
        let vm = self.resolve(vm)?;
        let name = operation_name(&operation);
        let outcome = self.run_operation(caller, &vm, operation);
        self.audited(caller, name, &vm.name(), outcome)
    }

    fn points(&self, _caller: &Caller, vm: &VmRef) -> Result<Vec<PointView>, Rejection> {
        let vm = self.resolve(vm)?;
        let lineage = vm
            .core()
            .relation()
            .map(|relation| relation.record().lineage.id);
        let status = vm.store_facts().status;
        let points = status.map(|status| status.points).unwrap_or_default();
        Ok(points
            .into_iter()
            .map(|point| PointView {
                sequence: point.sequence,
                kind: point.kind,
                captured_at: point.captured_at,
                opened_at: point.opened_at,
                abandoned: lineage.is_some_and(|lineage| lineage != point.lineage),
                sealed: point.sealed,
                in_use: point.users > 0,
            })
            .collect())
    }

    fn health(&self, _caller: &Caller, vm: &VmRef) -> Result<HealthView, Rejection> {
        Ok(self.health_of(&self.resolve(vm)?))
    }

    fn check(&self, _caller: &Caller, vm: &VmRef) -> Result<CheckView, Rejection> {
        Ok(self.check_vm(&self.resolve(vm)?))
    }

    fn statistics(&self, _caller: &Caller, vm: &VmRef) -> Result<StatisticsView, Rejection> {
        let vm = self.resolve(vm)?;
        self.refuse_unreplicated(&vm)?;
        let statistics = self.statistics_of(&vm);
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        Ok(StatisticsView {
            start_statistic_time: statistics.start(),
            end_statistic_time: statistics.end(),
            replication_success_count: statistics.success_count(),
            replication_size: statistics.size(),
            max_replication_size: statistics.max_size(),
            replication_latency: seconds(statistics.latency()),
            replication_miss_count: statistics.miss_count(),
            max_replication_latency: seconds(statistics.max_latency()),
            network_failure_count: statistics.network_failure_count(),
            replication_failure_count: statistics.replication_failure_count(),
            pending_replication_size: self.inner.hypervisor.dirty_bytes(vm.id).unwrap_or(0),
            application_consistent_snapshot_failure_count: statistics
                .application_consistent_failure_count(),
            replication_health: self.health_value(&vm),
            last_test_failover_time: statistics.last_test_failover(),
        })
    }

    fn jobs(&self, _caller: &Caller, filter: &JobFilter) -> Result<Vec<JobView>, Rejection> {
        let activity = match filter.which {
            JobWhich::All => Activity::Any,
            JobWhich::Running => Activity::Unfinished,
        };
        let rows = self
            .inner
            .ledger
            .jobs(filter.vm, activity, 1000)
            .map_err(|error| not_read("the jobs", &error))?;
        Ok(rows.iter().map(|row| self.view_job(row)).collect())
    }

    fn job(&self, _caller: &Caller, job: JobId) -> Result<JobView, Rejection> {
        let row = self
            .inner
            .ledger
            .job(RowId::from_bytes(job.0))
            .map_err(|error| not_read("the job", &error))?;
        row.map(|row| self.view_job(&row)).ok_or_else(|| Rejection {
            code: ReturnCode::FileNotFound,
            what: "there is no such job".to_owned(),
            remedy: "ended jobs are kept for a day; see `lifeboat job list`".to_owned(),
        })
    }

    fn cancel_job(&self, caller: &Caller, job: JobId) -> Result<(), Rejection> {
        let found = self.all_vms().into_iter().find_map(|vm| {
            let goal = vm
                .core()
                .jobs
                .iter()
                .find(|active| *active.row.id.as_bytes() == job.0)
                .map(|active| active.goal);
            goal.map(|goal| (vm, goal))
        });
        let outcome = match found {
            None => Err(Rejection {
                code: ReturnCode::InvalidState,
                what: "the job does not run".to_owned(),
                remedy: "see `lifeboat job show`".to_owned(),
            }),
            Some((vm, goal)) => {
                let event = match goal {
                    Goal::InitialReplication => Some(Event::CancelInitial),
                    Goal::Resynchronize => Some(Event::CancelResynchronize),
                    Goal::Prepare => Some(Event::CancelPrepared {
                        how: CancelHow::Asking,
                    }),
                    Goal::CancelPrepared
                    | Goal::FailOver
                    | Goal::Revert
                    | Goal::Commit
                    | Goal::Reverse { .. }
                    | Goal::Thread => None,
                };
                match event {
                    Some(event) => self.step(&vm, event).map_err(rejection_of_step),
                    None => Err(unsupported(
                        "this kind of job cannot be cancelled",
                        "wait for its end: `lifeboat job wait`",
                    )),
                }
            }
        };
        self.audited(caller, "cancel_job", &hex(&job.0), outcome)
    }

    fn events(
        &self,
        _caller: &Caller,
        since: u64,
        limit: usize,
    ) -> Result<Vec<EventView>, Rejection> {
        let events = self
            .inner
            .ledger
            .events(since, limit)
            .map_err(|error| not_read("the events", &error))?;
        Ok(events
            .into_iter()
            .map(|event| EventView {
                id: event.id.number(),
                at: event.event.at,
                severity: match event.event.severity {
                    lifeboat_catalog::Severity::Information => Severity::Info,
                    lifeboat_catalog::Severity::Warning => Severity::Warning,
                    lifeboat_catalog::Severity::Error => Severity::Error,
                },
                vm: event.event.vm,
                kind: event.event.kind,
                message: event.event.message,
            })
            .collect())
    }

    fn wait_for_events(&self, since: u64, patience: Duration) -> u64 {
        self.inner.news.wait(since, patience)
    }

    fn audit(&self, _caller: &Caller, limit: usize) -> Result<Vec<AuditView>, Rejection> {
        let rows = self
            .inner
            .ledger
            .audit(limit)
            .map_err(|error| not_read("the audit", &error))?;
        Ok(rows
            .into_iter()
            .map(|row| AuditView {
                id: row.number,
                at: row.row.at,
                caller: row.row.caller,
                role: row.row.role,
                operation: row.row.operation,
                target: row.row.target,
                outcome: row.row.outcome,
            })
            .collect())
    }

    fn authorization_entries(
        &self,
        _caller: &Caller,
    ) -> Result<Vec<AuthorizationEntryView>, Rejection> {
        self.inner
            .ledger
            .entries()
            .map_err(|error| not_read("the entries", &error))
    }

    fn add_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection> {
        let target = entry.allowed_primary_host_system.to_string();
        let outcome = self.change_entries(|table| {
            table
                .with_added(entry.clone())
                .map_err(|error| invalid(with_causes(&error)))?;
            Ok(entry)
        });
        self.audited(caller, "add_authorization_entry", &target, outcome)
    }

    fn modify_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection> {
        let target = entry.allowed_primary_host_system.to_string();
        let outcome = self.change_entries(|table| {
            table
                .with_changed(entry.clone())
                .map_err(|error| invalid(with_causes(&error)))?;
            Ok(entry)
        });
        self.audited(caller, "modify_authorization_entry", &target, outcome)
    }

    fn remove_authorization_entry(
        &self,
        caller: &Caller,
        allowed_primary_host_system: &str,
    ) -> Result<(), Rejection> {
        let outcome = match self.inner.ledger.remove_entry(allowed_primary_host_system) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Rejection {
                code: ReturnCode::FileNotFound,
                what: format!("there is no entry for {allowed_primary_host_system}"),
                remedy: "see `lifeboat authorization list`".to_owned(),
            }),
            Err(error) => Err(not_saved("the removal", &error)),
        };
        let target = allowed_primary_host_system;
        self.audited(caller, "remove_authorization_entry", target, outcome)
    }

    fn test_connection(
        &self,
        _caller: &Caller,
        recovery_connection_point: &str,
    ) -> Result<String, Rejection> {
        let introduction = self.introduction_of(recovery_connection_point, None)?;
        match introduction.refusal {
            Some(refusal) => Err(Rejection {
                code: ReturnCode::AccessDenied,
                what: refusal,
                remedy: "mend that on the other host".to_owned(),
            }),
            None => Ok(format!(
                "{} ({}) would take replicas of this host's VMs",
                introduction.host, introduction.software
            )),
        }
    }
}

fn path_of(core: &Core, disk: &lifeboat_model::DiskId) -> std::path::PathBuf {
    match &core.place {
        DisksPlace::Images(images) => images
            .iter()
            .find(|(id, _)| id == disk)
            .map(|(_, path)| path.clone())
            .unwrap_or_default(),
        DisksPlace::Store(folder) => folder.join("disks").join(disk.as_str()).join("head.raw"),
        DisksPlace::Test { folder, .. } => folder.join(format!("{disk}.qcow2")),
    }
}

fn failover_type(relation: Option<&Relation>) -> FailoverType {
    match relation.map(|relation| &relation.record().role) {
        Some(Role::Replica(replica)) => replica.failover_type(),
        Some(Role::Primary(_)) | None => FailoverType::None,
    }
}

/// A VM's id as the schema writes it.
fn guid(vm: lifeboat_model::VmId) -> String {
    let hex = vm.to_string().to_uppercase();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn split_point(point: &str) -> Result<(String, u64), Rejection> {
    let wrong = || invalid(format!("{point:?} is not HOST:PORT"));
    let (host, port) = point.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_| wrong())?;
    Ok((host.to_owned(), port))
}

fn random_lineage() -> Result<LineageId, Rejection> {
    host::random_bytes()
        .map(LineageId::from_bytes)
        .map_err(|error| failed(format!("draw a lineage: {error}")))
}

const fn role_name(role: AccessRole) -> &'static str {
    match role {
        AccessRole::Viewer => "viewer",
        AccessRole::Operator => "operator",
        AccessRole::Administrator => "administrator",
    }
}

const fn operation_name(operation: &VmOperation) -> &'static str {
    match operation {
        VmOperation::StartVm => "start_vm",
        VmOperation::StopVm { .. } => "stop_vm",
        VmOperation::EnableReplication(_) => "create_replication_relationship",
        VmOperation::StartReplication { .. } => "start_replication",
        VmOperation::CancelInitialReplication => "cancel_initial_replication",
        VmOperation::Suspend => "suspend",
        VmOperation::Resume => "resume",
        VmOperation::Resynchronize { .. } => "resynchronize",
        VmOperation::CancelResynchronize => "cancel_resynchronize",
        VmOperation::PreparePlannedFailover => "prepare_planned_failover",
        VmOperation::CancelPlannedFailover { .. } => "cancel_planned_failover",
        VmOperation::InitiateFailover { .. } => "initiate_failover",
        VmOperation::RevertFailover => "revert_failover",
        VmOperation::CommitFailover => "commit_failover",
        VmOperation::ReverseReplication(_) => "reverse_replication_relationship",
        VmOperation::TestFailover { .. } => "test_replica_system",
        VmOperation::EndTestFailover => "end_test_failover",
        VmOperation::ModifySettings(_) => "modify_replication_settings",
        VmOperation::RemoveReplication => "remove_replication_relationship",
        VmOperation::ResetStatistics => "reset_replication_statistics",
        VmOperation::MakePoint => "make_point",
        VmOperation::RemovePoint { .. } => "remove_point",
        VmOperation::VerifyPoint { .. } => "verify_point",
        VmOperation::ReplicateNow => "replicate_now",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn rejection_of_refused(refused: &Refused) -> Rejection {
    Rejection {
        code: refused.return_code(),
        what: refused.to_string(),
        remedy: refused.remedy().to_owned(),
    }
}

pub(crate) fn rejection_of_step(error: StepError) -> Rejection {
    match error {
        StepError::Refused(refused) => rejection_of_refused(&refused),
        StepError::NoRelation => not_replicated(),
        StepError::Save { source } => not_saved("what follows", &source),
    }
}

pub(crate) fn rejection_of_link(doing: &str, error: &LinkError) -> Rejection {
    let (code, remedy) = match error {
        LinkError::Refused(refusal) => (
            crate::work::return_code(refusal.code),
            "mend that on the other host, then try again",
        ),
        LinkError::NotTrusted { .. } => (
            ReturnCode::AccessDenied,
            "see `lifeboat certificate show` on both hosts",
        ),
        LinkError::TimedOut { .. } => (ReturnCode::Timeout, "try again"),
        _ => (
            ReturnCode::NotAvailable,
            "look at the network, and at the daemon on the other host",
        ),
    };
    Rejection {
        code,
        what: format!("{doing}: {}", with_causes(error)),
        remedy: remedy.to_owned(),
    }
}

fn store_rejection(doing: &str, error: &lifeboat_store::StoreError) -> Rejection {
    Rejection {
        code: crate::replica::store_code(error),
        what: format!("{doing}: {}", with_causes(error)),
        remedy: String::new(),
    }
}

pub(crate) fn not_replicated() -> Rejection {
    Rejection {
        code: ReturnCode::InvalidState,
        what: "the VM is not replicated".to_owned(),
        remedy: "enable it: `lifeboat replication enable`".to_owned(),
    }
}

fn not_here() -> Rejection {
    Rejection {
        code: ReturnCode::InvalidState,
        what: "recovery points are kept on the replica's host, and this one has no store of the VM"
            .to_owned(),
        remedy: "ask the host that has the replica: use --host".to_owned(),
    }
}

fn no_point(point: Sequence) -> Rejection {
    Rejection {
        code: ReturnCode::InvalidParameter,
        what: format!("there is no recovery point {point}"),
        remedy: "see `lifeboat point list`".to_owned(),
    }
}

fn unsupported(what: &str, remedy: &str) -> Rejection {
    Rejection {
        code: ReturnCode::NotSupported,
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn not_read(what: &str, error: &lifeboat_catalog::CatalogError) -> Rejection {
    failed(format!("read {what}: {}", with_causes(error)))
}

pub(crate) fn failed(what: String) -> Rejection {
    Rejection {
        code: ReturnCode::Failed,
        what,
        remedy: String::new(),
    }
}

pub(crate) fn invalid(what: String) -> Rejection {
    Rejection {
        code: ReturnCode::InvalidParameter,
        what,
        remedy: String::new(),
    }
}
