//! Failing over, reverting, committing: the store does it, the VM gets its disks.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use lifeboat_hypervisor::{Backing, DiskMover, PowerState};
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::Event;
use lifeboat_model::{DiskId, LineageId, Sequence};
use lifeboat_peer::{TakeOver, TakeOverState};
use lifeboat_store::{FailoverTarget, LiveCommit, StartedDisk, StoreError};
use lifeboat_sys::disk::GuestDisk;

use crate::api::Severity;
use crate::relation::Relation;
use crate::replica::{ReplicaStore, store_code};
use crate::service::{Service, with_causes};
use crate::vm::{Vm, VmArc};

/// A step of a failover or its end went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FailoverTrouble {
    #[error("the replica's store is not open; see `lifeboat health`")]
    NoStore,
    #[error(
        "the store has failed half way, and is opened again when no guest runs on its disks: stop the VM"
    )]
    GuestOnDisks,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("give the VM its disks")]
    Disks {
        #[from]
        source: lifeboat_hypervisor::HypervisorError,
    },
}

impl Service {
    pub(crate) fn fail_over_store(&self, vm: &VmArc, point: Option<Sequence>, lineage: LineageId) {
        vm.meter.begin("failing over", 0);
        let outcome = self.run_failover(vm, point, lineage);
        vm.meter.end();
        match outcome {
            Ok(lineage) => {
                self.note_success(vm);
                self.tell(vm, Event::FailedOver { lineage });
            }
            Err(trouble) => {
                self.note_failover_trouble(vm, "fail over", &trouble);
                self.tell(vm, Event::FailOverFailed);
                self.apply_soon(vm);
            }
        }
    }

    fn run_failover(
        &self,
        vm: &VmArc,
        point: Option<Sequence>,
        lineage: LineageId,
    ) -> Result<lifeboat_model::Lineage, FailoverTrouble> {
        self.mend_store(vm)?;
        let mut held = vm.store();
        let replica = held.as_mut().ok_or(FailoverTrouble::NoStore)?;
        let started = match replica.store.started_failover() {
            // Done before a restart.
            Some(started) => started,
            None => {
                let target = point.map_or(FailoverTarget::Newest, FailoverTarget::Point);
                let now = self.now();
                replica
                    .store
                    .start_failover(target, lineage, now, &mut |bytes| vm.meter.set(bytes))?
            }
        };
        self.give_failover_disks(vm, replica)?;
        self.note_store(vm, replica);
        Ok(started.lineage)
    }

    /// Defines the VM on the overlays of its failover.
    pub(crate) fn give_failover_disks(
        &self,
        vm: &Vm,
        replica: &mut ReplicaStore,
    ) -> Result<(), FailoverTrouble> {
        let Some(started) = replica.store.started_failover() else {
            return Ok(());
        };
        let mut disks = Vec::new();
        let mut backings = Vec::new();
        for disk in &started.disks {
            let device = Arc::new(replica.store.failover_disk(&disk.id)?);
            disks.push((disk.id.clone(), Arc::clone(&device)));
            let device: Arc<dyn GuestDisk> = device;
            let image = disk.image.clone();
            backings.push((disk.id.clone(), Backing::Device { device, image }));
        }
        let definition = vm.core().definition.clone();
        self.inner.hypervisor.define(&definition, &backings)?;
        replica.failover_disks = disks;
        Ok(())
    }

    pub(crate) fn revert_store(&self, vm: &VmArc) {
        vm.meter.begin("reverting the failover", 0);
        let outcome = self.run_revert(vm);
        vm.meter.end();
        match outcome {
            Ok(()) => {
                self.note_success(vm);
                self.tell(vm, Event::Reverted);
                self.apply_soon(vm);
            }
            Err(trouble) => self.note_failover_trouble(vm, "revert the failover", &trouble),
        }
    }

    fn run_revert(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        self.mend_store(vm)?;
        let mut held = vm.store();
        let replica = held.as_mut().ok_or(FailoverTrouble::NoStore)?;
        self.take_disks_away(vm, replica)?;
        if replica.store.started_failover().is_some() {
            replica.store.revert_failover()?;
        }
        self.note_store(vm, replica);
        Ok(())
    }

    /// The VM, which is off, lets go of its disks.
    fn take_disks_away(&self, vm: &Vm, replica: &mut ReplicaStore) -> Result<(), FailoverTrouble> {
        self.forget_disks(vm)?;
        replica.failover_disks.clear();
        Ok(())
    }

    fn forget_disks(&self, vm: &Vm) -> Result<(), FailoverTrouble> {
        match self.inner.hypervisor.undefine(vm.id) {
            Ok(()) | Err(lifeboat_hypervisor::HypervisorError::Unknown { .. }) => Ok(()),
            Err(source) => Err(source.into()),
        }
    }

    fn runs(&self, vm: &Vm) -> bool {
        let power = self.inner.hypervisor.power_state(vm.id);
        matches!(power, Ok(PowerState::Running))
    }

    /// Opens a store again that has failed half way, that could not be opened before, or whose
    /// commit was left by its guest. The VM, which must be off, gets the disks of its failover
    /// from it.
    pub(crate) fn mend_store(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        vm.give_up_broken_store();
        let runs = self.runs(vm);
        let is_whole = {
            let held = vm.store();
            held.as_ref().is_some_and(|replica| {
                // The guest of a commit that has begun may be off before its end.
                let is_left = replica.store.is_committing() && !runs;
                !replica.store.has_failed() && !is_left
            })
        };
        if is_whole {
            return Ok(());
        }
        if runs {
            return Err(FailoverTrouble::GuestOnDisks);
        }
        self.forget_disks(vm)?;
        self.open_again(vm)?;
        let mut held = vm.store();
        let replica = held.as_mut().ok_or(FailoverTrouble::NoStore)?;
        self.give_failover_disks(vm, replica)
    }

    pub(crate) fn commit_store(&self, vm: &VmArc) {
        if !is_committing(vm) {
            // It is over since this was asked for, and the VM may run.
            return;
        }
        vm.meter.begin("committing the failover", 0);
        let run = || self.mend_store(vm).and_then(|()| self.run_commit(vm));
        let mut outcome = run();
        // A store that cannot be opened may be past the point of no return, too.
        let is_begun = vm
            .store()
            .as_ref()
            .is_none_or(|replica| replica.store.started_failover().is_none());
        if let (Err(trouble), true) = (&outcome, is_begun) {
            // Past the point of no return: opening the store completes it. What fails again is
            // tried again when it is due.
            tracing::warn!(vm = %vm.id, "commit the failover: {}", with_causes(trouble));
            outcome = run();
        }
        vm.meter.end();
        match outcome {
            Ok(()) => {
                self.note_success(vm);
                self.tell(vm, Event::Committed);
                self.empty_trash(vm);
            }
            Err(trouble) => {
                self.note_failover_trouble(vm, "commit the failover", &trouble);
                if !is_begun {
                    self.tell(vm, Event::CommitFailed);
                }
            }
        }
    }

    fn run_commit(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        let running = self.runs(vm);
        let is_committed = vm
            .store()
            .as_ref()
            .is_some_and(|replica| replica.store.role() == lifeboat_store::Role::Committed);
        if is_committed {
            // Committed before a restart: the VM may have written since, and what it wrote may
            // be unknown. Tracking that begins now would claim to know.
            return match running {
                true => Ok(()),
                false => self.define_committed_disks(vm),
            };
        }
        if running {
            self.commit_running(vm)?;
        } else {
            let mut held = vm.store();
            let replica = held.as_mut().ok_or(FailoverTrouble::NoStore)?;
            self.take_disks_away(vm, replica)?;
            match replica.store.commit(&mut |bytes| vm.meter.set(bytes)) {
                Ok(_) => {}
                Err(error) => {
                    if replica.store.started_failover().is_some() {
                        self.give_failover_disks(vm, replica)?;
                    }
                    return Err(error.into());
                }
            }
            self.note_store(vm, replica);
            drop(held);
            self.give_committed_disks(vm)?;
        }
        Ok(())
    }

    /// Commits while the guest writes on.
    fn commit_running(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        // What the guest writes from here on is known, whichever file takes it.
        self.track_from_here(vm)?;
        let live = {
            let mut held = vm.store();
            let replica = held.as_mut().ok_or(FailoverTrouble::NoStore)?;
            let disks = replica.failover_disks.clone();
            replica.store.begin_live_commit(&disks)?
        };
        let mut mover = CommitMover {
            vm,
            live: Some(live),
            trouble: None,
        };
        let moved = self.inner.hypervisor.move_disks(vm.id, &mut mover);
        if let Some(error) = mover.trouble.take() {
            return Err(error.into());
        }
        moved?;
        let mut held = vm.store();
        if let Some(replica) = held.as_mut() {
            replica.failover_disks.clear();
            self.note_store(vm, replica);
        }
        Ok(())
    }

    /// Defines the VM on the heads that it has not used yet, and tracks what it writes from now
    /// on.
    fn give_committed_disks(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        self.define_committed_disks(vm)?;
        self.track_from_here(vm)
    }

    /// Defines the VM on the heads. What is known of their changes stays as it is.
    pub(crate) fn define_committed_disks(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        let backings: Vec<(DiskId, Backing)> = {
            let held = vm.store();
            let replica = held.as_ref().ok_or(FailoverTrouble::NoStore)?;
            let raw = |disk: StartedDisk| (disk.id, Backing::Raw { path: disk.head });
            replica
                .store
                .committed_disks()?
                .into_iter()
                .map(raw)
                .collect()
        };
        let definition = vm.core().definition.clone();
        self.inner.hypervisor.define(&definition, &backings)?;
        Ok(())
    }

    /// Tracks from a moment that nobody has drawn, unless something is tracked already.
    fn track_from_here(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        if let lifeboat_hypervisor::Tracking::Since { .. } =
            self.inner.hypervisor.tracking(vm.id)?
        {
            return Ok(());
        }
        let moment = {
            let core = vm.core();
            let drawn = core
                .relation()
                .map_or(Sequence::ZERO, |relation| relation.record().drawn);
            let known = crate::service::lock(&vm.store_facts)
                .status
                .as_ref()
                .map_or(Sequence::ZERO, |status| status.tip);
            drawn.max(known)
        };
        self.inner.hypervisor.start_tracking(vm.id, moment)?;
        Ok(())
    }

    fn open_again(&self, vm: &VmArc) -> Result<(), FailoverTrouble> {
        let folder = vm
            .core()
            .relation()
            .and_then(|relation| relation.storage.clone())
            .ok_or(FailoverTrouble::NoStore)?;
        *vm.store() = None;
        vm.core().facts.store_failed = true;
        self.open_store(vm, &folder)?;
        vm.core().facts.store_failed = false;
        Ok(())
    }

    fn empty_trash(&self, vm: &Vm) {
        let held = vm.store();
        if let Some(replica) = held.as_ref()
            && let Err(error) = replica.store.empty_trash()
        {
            // Opening the store does it again.
            tracing::warn!(vm = %vm.id, "free the segments: {}", with_causes(&error));
        }
    }

    fn note_failover_trouble(&self, vm: &VmArc, doing: &str, trouble: &FailoverTrouble) {
        let code = match trouble {
            FailoverTrouble::Store(error) => store_code(error),
            FailoverTrouble::NoStore => ReturnCode::NotAvailable,
            FailoverTrouble::GuestOnDisks => ReturnCode::InvalidState,
            FailoverTrouble::Disks { .. } => ReturnCode::Failed,
        };
        if let Some(replica) = vm.store().as_ref() {
            self.note_store(vm, replica);
        }
        let what = format!("{doing}: {}", with_causes(trouble));
        self.report(
            Some(vm.id),
            Severity::Error,
            "failover_failed",
            &format!("{}: {what}", vm.name()),
        );
        self.note_trouble(vm, code, what);
    }

    /// Tells the primary what became of the failover. It may be gone for good, so this is not
    /// insisted on: it learns it at first contact.
    pub(crate) fn announce_take_over(&self, vm: &VmArc) {
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        let Some((lineage, state)) = take_over_of(&relation) else {
            return;
        };
        let record = relation.record();
        let mut ancestors = record.ancestors.clone();
        if lineage.id != record.lineage.id {
            ancestors.push(record.lineage);
        }
        let news = TakeOver {
            relationship: record.relationship,
            lineage,
            ancestors,
            state,
        };
        let said = self
            .link(&relation.peer)
            .and_then(|link| link.take_over(news));
        if let Err(error) = said {
            tracing::info!(vm = %vm.id, "tell the other host: {}", with_causes(&error));
        }
    }
}

fn is_committing(vm: &Vm) -> bool {
    use lifeboat_model::relationship::{ReplicaPhase, Role};
    let core = vm.core();
    let role = core.relation().map(|relation| &relation.record().role);
    match role {
        Some(Role::Replica(replica)) => matches!(replica.phase, ReplicaPhase::Committing { .. }),
        Some(Role::Primary(_)) | None => false,
    }
}

/// What this side says to the other of whose history it writes or follows.
fn take_over_of(relation: &Relation) -> Option<(lifeboat_model::Lineage, TakeOverState)> {
    use lifeboat_model::relationship::{ReplicaPhase, Role};
    let record = relation.record();
    let replica = match &record.role {
        // It has gone on alone, or an operator has named it the survivor.
        Role::Primary(_) => return Some((record.lineage, TakeOverState::Committed)),
        Role::Replica(replica) => replica,
    };
    match &replica.phase {
        ReplicaPhase::FailedOver { lineage, .. }
        | ReplicaPhase::Reverting { lineage, .. }
        | ReplicaPhase::Committing { lineage, .. } => Some((*lineage, TakeOverState::FailedOver)),
        ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => {
            Some((record.lineage, TakeOverState::Committed))
        }
        ReplicaPhase::Replicating
        | ReplicaPhase::Suspended
        | ReplicaPhase::Critical(_)
        | ReplicaPhase::Resyncing => Some((record.lineage, TakeOverState::Reverted)),
        ReplicaPhase::WaitingInitial | ReplicaPhase::FailingOver(_) => None,
    }
}

/// Moves a running VM from its overlays to the heads.
struct CommitMover<'a> {
    vm: &'a Vm,
    live: Option<LiveCommit>,
    trouble: Option<StoreError>,
}

impl CommitMover<'_> {
    fn failed(&mut self, error: StoreError) -> io::Error {
        let text = with_causes(&error);
        self.trouble.get_or_insert(error);
        io::Error::other(text)
    }
}

impl DiskMover for CommitMover<'_> {
    fn copy(&mut self, changed: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
        let outcome = match &self.live {
            Some(live) => live.copy(changed),
            None => return Err(io::Error::other("the commit is finished")),
        };
        outcome.map_err(|error| self.failed(error))
    }

    fn finish(&mut self, changed: &[(DiskId, Range<u64>)]) -> io::Result<Vec<(DiskId, Backing)>> {
        let Some(live) = self.live.take() else {
            return Err(io::Error::other("the commit is finished"));
        };
        let outcome = {
            let mut held = self.vm.store();
            match held.as_mut() {
                Some(replica) => replica
                    .store
                    .finish_live_commit(&live, changed)
                    .and_then(|_| replica.store.committed_disks()),
                None => return Err(io::Error::other("the store was closed")),
            }
        };
        let disks = outcome.map_err(|error| self.failed(error))?;
        let raw = |disk: StartedDisk| (disk.id, Backing::Raw { path: disk.head });
        Ok(disks.into_iter().map(raw).collect())
    }
}
