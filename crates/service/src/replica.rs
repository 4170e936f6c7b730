//! The replica's store in the hands of the service: received, applied, made points of.

use std::path::Path;
use std::sync::Arc;

use lifeboat_model::contract::{PointKind, ReturnCode};
use lifeboat_model::relationship::{ApplyTrouble, Event, ReplicaPhase, Role};
use lifeboat_model::retention::{
    ExistingPoint, PointDecision, PointUsage, RetentionFloor, RetentionPolicy,
};
use lifeboat_model::{Consistency, DiskId, Sequence, Timestamp};
use lifeboat_store::{BoundaryPin, FailoverDisk, Heads, Store, StoreError};

use crate::api::Severity;
use crate::relation::Relation;
use crate::service::{Service, with_causes};
use crate::vm::{Task, Vm, VmArc};

/// An open store, and what of it is in use by VMs.
#[derive(Debug)]
pub(crate) struct ReplicaStore {
    pub(crate) store: Store,
    /// The disks of a failed-over VM.
    pub(crate) failover_disks: Vec<(DiskId, Arc<FailoverDisk>)>,
    /// Keeps the boundary that a test failover reads.
    pub(crate) test_pin: Option<BoundaryPin>,
}

/// Who holds a store, for others that want it.
fn holder(service: &Service) -> String {
    format!(
        "lifeboat serve on {} (process {})",
        service.inner.config.host,
        std::process::id()
    )
}

impl Service {
    /// Opens a store and puts it in the VM's hands.
    pub(crate) fn open_store(&self, vm: &Vm, folder: &Path) -> Result<(), StoreError> {
        let disk = Arc::clone(&self.inner.disk);
        let store = Store::open(disk, folder, &holder(self))?;
        self.hold_store(vm, store);
        Ok(())
    }

    pub(crate) fn store_holder(&self) -> String {
        holder(self)
    }

    pub(crate) fn hold_store(&self, vm: &Vm, store: Store) {
        let mut held = vm.store();
        *held = Some(ReplicaStore {
            store,
            failover_disks: Vec::new(),
            test_pin: None,
        });
        if let Some(replica) = held.as_ref() {
            self.note_store(vm, replica);
        }
    }

    /// Notes what a store holds, so that nobody has to wait for it to know.
    pub(crate) fn note_store(&self, vm: &Vm, replica: &ReplicaStore) {
        crate::service::lock(&vm.store_facts).has_failed = replica.store.has_failed();
        match replica.store.status() {
            Ok(status) => {
                crate::service::lock(&vm.store_facts).status = Some(status);
            }
            Err(error) => {
                tracing::warn!(vm = %vm.id, "measure the store: {}", with_causes(&error));
            }
        }
    }

    /// Applies what was received, makes points that are due, and lets go what has expired.
    pub(crate) fn apply_received(&self, vm: &VmArc) {
        loop {
            let phase = match vm.core().relation() {
                Some(relation) => match &relation.record().role {
                    // What waits is kept where nothing is taken in.
                    Role::Replica(replica) if replica.receives() => replica.phase.clone(),
                    Role::Replica(_) | Role::Primary(_) => return,
                },
                None => return,
            };
            if !self.open_if_failed(vm) {
                self.tell(vm, Event::ApplyFailed(ApplyTrouble::Io));
                return;
            }
            let applied = self.apply_one(vm);
            let applied = match applied {
                Ok(false) => self.make_planned_point(vm).map(|()| false),
                Ok(true) | Err(_) => applied,
            };
            match applied {
                Ok(true) => {}
                Ok(false) => {
                    if let ReplicaPhase::Critical(_) = phase {
                        self.tell(vm, Event::ApplyMended);
                    }
                    self.note_success(vm);
                    return;
                }
                Err(error) => {
                    let what = format!("apply changes: {}", with_causes(&error));
                    self.note_trouble(vm, ReturnCode::Failed, what);
                    self.reopen_if_needed(vm, &error);
                    self.tell(vm, Event::ApplyFailed(trouble_of(&error)));
                    return;
                }
            }
        }
    }

    /// Applies the oldest delta that waits; answers whether there was one.
    fn apply_one(&self, vm: &VmArc) -> Result<bool, StoreError> {
        let mut held = vm.store();
        let Some(replica) = held.as_mut() else {
            return Ok(false);
        };
        let began = self.inner.clock.monotonic();
        let applied = replica.store.apply_next(&mut |_| {})?;
        let Some(applied) = applied else {
            return Ok(false);
        };
        let took = self.inner.clock.monotonic().saturating_sub(began);
        crate::service::lock(&vm.store_facts).measure(applied.changed_bytes, took);
        let now = self.now();
        let is_consistent = matches!(replica.store.heads(), Heads::Consistent(_));
        let (planned, consistency) = self.kind_of(vm, applied.sequence, applied.consistency);
        if is_consistent {
            let relation = vm.core().relation.clone();
            if let Some(relation) = relation {
                self.keep_points(
                    vm,
                    replica,
                    &relation,
                    point_kind(planned, consistency),
                    now,
                )?;
            }
        }
        self.note_store(vm, replica);
        drop(held);
        if is_consistent {
            self.note_applied(vm, &applied, now);
        }
        Ok(true)
    }

    /// Makes the point of a planned failover, if a daemon died after its last moment was applied
    /// and before the point was made: no other moment follows that would make one.
    fn make_planned_point(&self, vm: &Vm) -> Result<(), StoreError> {
        let Some(relation) = vm.core().relation.clone() else {
            return Ok(());
        };
        let mut held = vm.store();
        let Some(replica) = held.as_mut() else {
            return Ok(());
        };
        let applied = replica.store.applied();
        let is_missing = relation.saved.planned_moment == Some(applied)
            && matches!(replica.store.heads(), Heads::Consistent(_))
            && replica
                .store
                .points()
                .iter()
                .all(|point| point.sequence != applied);
        if is_missing {
            let kind = PointKind::PlannedFailover;
            self.keep_points(vm, replica, &relation, kind, self.now())?;
            self.note_store(vm, replica);
        }
        Ok(())
    }

    fn kind_of(
        &self,
        vm: &Vm,
        sequence: Sequence,
        consistency: Consistency,
    ) -> (bool, Consistency) {
        let core = vm.core();
        let planned = core
            .relation()
            .is_some_and(|relation| relation.saved.planned_moment == Some(sequence));
        (planned, consistency)
    }

    fn note_applied(&self, vm: &VmArc, applied: &lifeboat_store::AppliedDelta, now: Timestamp) {
        let event = {
            let core = vm.core();
            let phase = core.relation().map(|relation| &relation.record().role);
            match phase {
                Some(Role::Replica(replica)) => match replica.phase {
                    ReplicaPhase::WaitingInitial => Event::InitialComplete,
                    ReplicaPhase::Resyncing => Event::ResyncEnded,
                    _ => Event::ApplyMended,
                },
                Some(Role::Primary(_)) | None => return,
            }
        };
        let (captured, consistency) = (applied.captured_at, applied.consistency);
        let stepped = self.step_with(vm, event, |relation| {
            let last = &mut relation.saved.last;
            last.applied_at = Some(now);
            last.captured_at = Some(captured);
            if consistency == Consistency::Application {
                last.application_consistent_at = Some(captured);
            }
        });
        if let Err(error) = stepped {
            self.report_unsaved(vm, &error);
        }
    }

    /// Opens a point if one is due, and removes those that have expired.
    fn keep_points(
        &self,
        vm: &Vm,
        replica: &mut ReplicaStore,
        relation: &Relation,
        kind: PointKind,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        // Without an entry the floor is not known, and nothing goes.
        let Some(floor) = self.floor_of(relation) else {
            return Ok(());
        };
        let policy = retention(relation, floor);
        let existing = existing_points(replica);
        match policy.decide(&existing, kind, now) {
            PointDecision::Open => {
                replica.store.make_point(now, kind)?;
            }
            PointDecision::NoneKept | PointDecision::TooSoon => {}
            PointDecision::Full => {
                let message = format!(
                    "{}: no recovery point was made, because there are as many as the store can have and none of them may go",
                    vm.name()
                );
                self.report(Some(vm.id), Severity::Warning, "points_full", &message);
            }
        }
        for expired in policy.expired(&existing_points(replica), now) {
            replica.store.remove_point(expired)?;
        }
        Ok(())
    }

    /// The floor of the entry under which the peer is let in.
    fn floor_of(&self, relation: &Relation) -> Option<RetentionFloor> {
        self.entry_for(&relation.peer.host)
            .map(|entry| entry.retention_floor)
    }

    /// A store that failed half way is opened again, which brings it into order.
    pub(crate) fn reopen_if_needed(&self, vm: &Vm, error: &StoreError) {
        if let StoreError::Refused(_) = error {
            return;
        }
        if self.give_up_store(vm) {
            self.open_if_failed(vm);
        }
    }

    /// Closes a store that failed. Readers keep it from being opened again; it goes on as it is
    /// while there are any.
    fn give_up_store(&self, vm: &Vm) -> bool {
        let mut held = vm.store();
        let in_use = held.as_ref().is_some_and(|replica| {
            !replica.failover_disks.is_empty() || replica.test_pin.is_some()
        });
        if in_use {
            return false;
        }
        *held = None;
        drop(held);
        vm.core().facts.store_failed = true;
        true
    }

    /// Opens a store that failed and could not be opened then: its disk was full, or is mended
    /// now. Answers whether the store is open.
    pub(crate) fn open_if_failed(&self, vm: &Vm) -> bool {
        vm.give_up_broken_store();
        let must_be_opened = {
            let held = vm.store();
            held.as_ref()
                .is_some_and(|replica| replica.store.has_failed())
        };
        if must_be_opened && !self.give_up_store(vm) {
            let what = "the replica's store has failed half way, and is opened again when nothing reads it: end the test failover, or stop the VM";
            self.note_trouble(vm, ReturnCode::InUse, what.to_owned());
            return false;
        }
        let (folder, has_failed) = {
            let core = vm.core();
            let relation = core.relation();
            let folder = relation.and_then(|relation| relation.storage.clone());
            (folder, core.facts.store_failed)
        };
        let mut held = vm.store();
        if held.is_some() || !has_failed {
            return held.is_some();
        }
        let Some(folder) = folder else { return false };
        let disk = Arc::clone(&self.inner.disk);
        match Store::open(disk, &folder, &holder(self)) {
            Ok(store) => {
                let replica = ReplicaStore {
                    store,
                    failover_disks: Vec::new(),
                    test_pin: None,
                };
                // It may hold more than was known when it failed.
                self.note_store(vm, &replica);
                *held = Some(replica);
                drop(held);
                vm.core().facts.store_failed = false;
                true
            }
            Err(error) => {
                drop(held);
                let what = format!("open the store: {}", with_causes(&error));
                self.note_trouble(vm, store_code(&error), what);
                false
            }
        }
    }

    /// Has the worker apply what waits.
    pub(crate) fn apply_soon(&self, vm: &VmArc) {
        self.work_on(vm, [Task::Apply]);
    }
}

fn retention(relation: &Relation, floor: RetentionFloor) -> RetentionPolicy {
    RetentionPolicy {
        history: relation.settings.recovery_history(),
        spacing: relation.settings.point_spacing(),
        floor,
        promises: relation.saved.promises.clone(),
    }
}

pub(crate) fn existing_points(replica: &ReplicaStore) -> Vec<ExistingPoint> {
    let points = replica.store.points().into_iter();
    points
        .map(|point| ExistingPoint {
            sequence: point.sequence,
            kind: point.kind,
            opened_at: point.opened_at,
            usage: if point.users > 0 {
                PointUsage::InUse
            } else {
                PointUsage::Free
            },
        })
        .collect()
}

fn point_kind(planned: bool, consistency: Consistency) -> PointKind {
    match (planned, consistency) {
        (true, _) => PointKind::PlannedFailover,
        (false, Consistency::Application) => PointKind::ApplicationConsistent,
        (false, Consistency::Crash) => PointKind::Standard,
    }
}

fn trouble_of(error: &StoreError) -> ApplyTrouble {
    match error {
        StoreError::DiskFull { .. } => ApplyTrouble::DiskFull,
        StoreError::Damaged { .. } | StoreError::Delta { .. } => ApplyTrouble::Damaged,
        _ => ApplyTrouble::Io,
    }
}

/// What a store's failure is to whoever asked.
pub(crate) fn store_code(error: &StoreError) -> ReturnCode {
    match error {
        StoreError::Refused(_) => ReturnCode::InvalidState,
        _ => ReturnCode::Failed,
    }
}
