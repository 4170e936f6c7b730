//! Starting: rows become VMs, stores are opened, what was under way goes on.

use std::sync::Arc;

use lifeboat_catalog::{Activity, DesiredPower};
use lifeboat_model::relationship::{Event, Primary, ReplicaPhase, Role};
use lifeboat_store::Store;

use crate::api::Severity;
use crate::config::OnBoot;
use crate::ledger::relation_of;
use crate::service::{Service, StartError, with_causes};
use crate::vm::{Core, DisksPlace, Facts, Task, Vm, VmArc};

impl Service {
    /// Takes up everything that the catalog knows.
    pub(crate) fn boot(&self) -> Result<(), StartError> {
        let state = &self.inner.config.state;
        for folder in ["vms", "send", "tests"] {
            let path = state.join(folder);
            std::fs::create_dir_all(&path).map_err(|source| StartError::Folder { path, source })?;
        }
        self.load_vms()?;
        self.remove_unknown_tests();
        let newest = self.inner.ledger.newest_event();
        self.inner
            .news
            .tell(newest.map_err(|source| StartError::Catalog { source })?);
        let (tests, others): (Vec<_>, Vec<_>) = self
            .all_vms()
            .into_iter()
            .partition(|vm| matches!(vm.core().place, DisksPlace::Test { .. }));
        for vm in &others {
            self.open_vm(vm);
        }
        for test in &tests {
            self.open_test(test, &others);
        }
        for vm in &others {
            self.go_on(vm);
        }
        let jobs = self
            .inner
            .ledger
            .jobs(None, Activity::Unfinished, usize::MAX)
            .map_err(|source| StartError::Catalog { source })?;
        self.take_up_jobs(jobs);
        for vm in others.iter().chain(&tests) {
            self.start_if_desired(vm);
        }
        Ok(())
    }

    fn load_vms(&self) -> Result<(), StartError> {
        let catalog = |source| StartError::Catalog { source };
        let (rows, relations) = self
            .inner
            .ledger
            .catalog()
            .read(|reader| Ok((reader.vms()?, reader.relationships()?)))
            .map_err(catalog)?;
        for row in rows {
            let vm = row.id;
            let bad = |what| move |source| StartError::Row { what, vm, source };
            let relation = relations.iter().find(|relation| relation.row.vm == vm);
            let relation = relation
                .map(relation_of)
                .transpose()
                .map_err(bad("the relationship"))?;
            let statistics = match &relation {
                Some(relation) => self
                    .inner
                    .ledger
                    .statistics(relation.record().relationship)
                    .map_err(catalog)?,
                None => None,
            };
            self.insert(Arc::new(Vm::new(
                vm,
                Core {
                    definition: row.definition.to().map_err(bad("the definition"))?,
                    place: row.disks.to().map_err(bad("the disks"))?,
                    desired: row.desired_power,
                    created_at: row.created_at,
                    relation,
                    jobs: Vec::new(),
                    test_of: None,
                    test: None,
                    facts: Facts::default(),
                    statistics,
                },
            )));
        }
        Ok(())
    }

    /// Removes what is left of tests that were never finished making: nobody could end them.
    fn remove_unknown_tests(&self) {
        // A test's folder has the id of its VM.
        let known: Vec<String> = self.all_vms().iter().map(|vm| vm.id.to_string()).collect();
        let folder = self.inner.config.state.join("tests");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!("look into {}: {error}", folder.display());
                return;
            }
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if !known.iter().any(|id| name == id.as_str()) {
                self.remove_test_files(&entry.path());
            }
        }
    }

    /// Opens a VM's disks or its store. What cannot be opened is told, and shown with the VM.
    fn open_vm(&self, vm: &VmArc) {
        let place = vm.core().place.clone();
        let outcome = match &place {
            DisksPlace::Images(_) => {
                let definition = vm.core().definition.clone();
                self.inner
                    .hypervisor
                    .define(&definition, &self.backings(&place))
                    .map_err(|error| with_causes(&error))
            }
            DisksPlace::Store(folder) => self.open_stored(vm, folder),
            DisksPlace::Test { .. } => Ok(()),
        };
        if let Err(why) = outcome {
            let message = format!("{}: its disks cannot be opened: {why}", vm.name());
            self.report(Some(vm.id), Severity::Error, "disks_unavailable", &message);
            self.note_trouble(
                vm,
                lifeboat_model::contract::ReturnCode::FileNotFound,
                message,
            );
        }
    }

    fn open_stored(&self, vm: &VmArc, folder: &std::path::Path) -> Result<(), String> {
        let is_adopting = vm
            .core()
            .relation()
            .is_some_and(|relation| relation.saved.adopting.is_some());
        if is_adopting {
            return self.finish_adoption(vm).map_err(|refusal| refusal.message);
        }
        let disk = Arc::clone(&self.inner.disk);
        let store =
            Store::open(disk, folder, &self.store_holder()).map_err(|error| with_causes(&error))?;
        self.hold_store(vm, store);
        self.note_beside_store(vm);
        self.reconcile(vm).map_err(|error| with_causes(&error))
    }

    /// The store's journal is the truth for the phase of a failover: the record follows it.
    fn reconcile(&self, vm: &VmArc) -> Result<(), crate::failover::FailoverTrouble> {
        let role = vm.store().as_ref().map(|replica| replica.store.role());
        match role {
            Some(lifeboat_store::Role::FailedOver) => {
                let mut held = vm.store();
                if let Some(replica) = held.as_mut() {
                    self.give_failover_disks(vm, replica)?;
                }
                Ok(())
            }
            Some(lifeboat_store::Role::Committed) => self.give_committed_disks_again(vm),
            Some(lifeboat_store::Role::Replica) | None => Ok(()),
        }
    }

    fn give_committed_disks_again(
        &self,
        vm: &VmArc,
    ) -> Result<(), crate::failover::FailoverTrouble> {
        // Maps that are lost or doubtful stay so: they are never begun anew where the VM may
        // have written meanwhile.
        self.define_committed_disks(vm)?;
        if vm.core().relation().is_none() {
            self.inner.hypervisor.stop_tracking(vm.id)?;
        }
        Ok(())
    }

    fn open_test(&self, test: &VmArc, others: &[VmArc]) {
        let place = test.core().place.clone();
        let DisksPlace::Test {
            folder,
            store,
            boundary,
        } = place
        else {
            return;
        };
        let of = others
            .iter()
            .find(|vm| matches!(&vm.core().place, DisksPlace::Store(folder) if *folder == store));
        let outcome = match of {
            Some(vm) => {
                test.core().test_of = Some(vm.id);
                self.take_up_test(vm, test, &folder, boundary)
                    .map_err(|error| with_causes(&error))
            }
            None => Err("its replica is gone".to_owned()),
        };
        if let Err(why) = outcome {
            let message = format!("{}: the test failover is lost: {why}", test.name());
            self.report(
                Some(test.id),
                Severity::Warning,
                "test_failover_lost",
                &message,
            );
            self.remove_test_files(&folder);
            if let Err(error) = self.inner.ledger.remove_vm(test.id) {
                tracing::error!("remove the test VM: {}", with_causes(&error));
            }
            self.remove(test.id);
            if let Some(vm) = of {
                vm.core().test = None;
            }
        }
    }

    /// Goes on with what the record says was under way.
    pub(crate) fn go_on(&self, vm: &VmArc) {
        let role = vm
            .core()
            .relation()
            .map(|relation| relation.record().role.clone());
        match role {
            None => return,
            Some(Role::Primary(primary)) => {
                let effects = resumed(vm);
                if let Some(event) = primary.interrupted() {
                    self.tell(vm, event);
                }
                self.work_on(vm, effects);
            }
            Some(Role::Replica(_)) => {
                // What the store has done already is not done again.
                self.follow_store(vm);
                self.work_on(vm, [Task::Apply]);
                self.work_on(vm, resumed(vm));
            }
        }
        self.set_alarm(vm);
    }

    /// Where the store has gone further than the record, or not as far, the record is led on.
    fn follow_store(&self, vm: &VmArc) {
        let (role, started) = {
            let held = vm.store();
            let Some(replica) = held.as_ref() else { return };
            (
                replica.store.role(),
                replica
                    .store
                    .started_failover()
                    .map(|started| started.lineage),
            )
        };
        let phase = match vm
            .core()
            .relation()
            .map(|relation| relation.record().role.clone())
        {
            Some(Role::Replica(replica)) => replica.phase,
            Some(Role::Primary(_)) | None => return,
        };
        let event = match (&phase, role, started) {
            (ReplicaPhase::FailingOver(_), lifeboat_store::Role::FailedOver, Some(lineage)) => {
                Some(Event::FailedOver { lineage })
            }
            (ReplicaPhase::Reverting { .. }, lifeboat_store::Role::Replica, _) => {
                Some(Event::Reverted)
            }
            (ReplicaPhase::Committing { .. }, lifeboat_store::Role::Committed, _) => {
                Some(Event::Committed)
            }
            (ReplicaPhase::FailedOver { .. }, lifeboat_store::Role::Committed, _)
            | (ReplicaPhase::FailedOver { .. }, lifeboat_store::Role::Replica, _) => {
                let message = format!(
                    "{}: the store says {role:?} and the catalog says failed over; the store is believed",
                    vm.name()
                );
                self.report(Some(vm.id), Severity::Warning, "catalog_behind", &message);
                self.lead_from_failed_over(vm, role);
                None
            }
            _ => None,
        };
        if let Some(event) = event {
            self.tell(vm, event);
        }
    }

    /// The catalog was restored from before a commit or a revert.
    fn lead_from_failed_over(&self, vm: &VmArc, role: lifeboat_store::Role) {
        match role {
            lifeboat_store::Role::Committed => {
                self.tell(vm, Event::Commit);
                self.tell(vm, Event::Committed);
            }
            lifeboat_store::Role::Replica => {
                let vm_power = lifeboat_model::relationship::VmPower::Off;
                self.tell(vm, Event::Revert { vm: vm_power });
                self.tell(vm, Event::Reverted);
            }
            lifeboat_store::Role::FailedOver => {}
        }
    }

    /// Starts a VM that ran when the last daemon ended, after its peer was asked.
    fn start_if_desired(&self, vm: &VmArc) {
        let (desired, may_have_been_taken_over) = {
            let core = vm.core();
            let taken = core.relation().is_some_and(|relation| {
                matches!(
                    relation.record().role,
                    Role::Primary(
                        Primary::Replicating { .. }
                            | Primary::Preparing { .. }
                            | Primary::Suspended { .. }
                            | Primary::Critical { .. }
                            | Primary::ResyncRequired { .. }
                            | Primary::Resyncing(_)
                            | Primary::ResyncSuspended(_)
                    )
                )
            });
            (core.desired, taken)
        };
        if desired != DesiredPower::Running {
            return;
        }
        if !may_have_been_taken_over {
            self.start_again(vm);
            return;
        }
        match self.inner.config.on_boot {
            OnBoot::StartAnyway => self.start_again(vm),
            OnBoot::Hold => self.hold(vm, "the configuration says so"),
            OnBoot::AskPeer { timeout } => {
                let (service, asked) = (self.clone(), Arc::clone(vm));
                let spawned = std::thread::Builder::new()
                    .name("ask-peer".to_owned())
                    .spawn(move || service.start_after_asking(&asked, timeout));
                if let Err(error) = spawned {
                    self.hold(vm, &format!("its peer cannot be asked: {error}"));
                }
            }
        }
    }

    fn start_after_asking(&self, vm: &VmArc, timeout: std::time::Duration) {
        let deadline = self.inner.clock.monotonic() + timeout;
        loop {
            self.open_session(vm);
            let (reached, wanted) = {
                let core = vm.core();
                (
                    core.facts.failures == 0,
                    core.desired == DesiredPower::Running,
                )
            };
            if !wanted {
                return;
            }
            if reached {
                self.start_again(vm);
                return;
            }
            let now = self.inner.clock.monotonic();
            if now >= deadline {
                self.hold(
                    vm,
                    "its peer, which may have taken over, does not answer; start it by hand if you know that it has not",
                );
                return;
            }
            let pause = std::time::Duration::from_secs(1).min(deadline - now);
            vm.wait_until(pause, |core| core.desired != DesiredPower::Running);
        }
    }

    fn start_again(&self, vm: &VmArc) {
        let refused = {
            let core = vm.core();
            core.relation()
                .and_then(|relation| relation.record().may_start_vm().err())
        };
        if let Some(refused) = refused {
            self.hold(vm, &refused.to_string());
            return;
        }
        if let Err(error) = self.inner.hypervisor.start(vm.id) {
            let message = format!("{}: start the VM: {}", vm.name(), with_causes(&error));
            self.report(Some(vm.id), Severity::Error, "vm_not_started", &message);
        }
        vm.tell_changed();
    }

    fn hold(&self, vm: &VmArc, why: &str) {
        let message = format!("{}: the VM is not started: {why}", vm.name());
        self.report(Some(vm.id), Severity::Warning, "vm_held", &message);
    }
}

/// What the record says was under way.
fn resumed(vm: &Vm) -> Vec<Task> {
    let core = vm.core();
    let effects = core.relation().map(|relation| relation.record().resume());
    let effects = effects.unwrap_or_default().into_iter();
    effects.map(Task::Effect).collect()
}
