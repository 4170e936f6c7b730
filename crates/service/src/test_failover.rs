//! A test failover: a VM of its own over a moment of the replica, while replication goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_catalog::{DesiredPower, Vm as VmRow};
use lifeboat_hypervisor::{Backing, HypervisorError, PowerState, StopMode};
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::Operation;
use lifeboat_model::{DiskId, Sequence, VmId};
use lifeboat_store::{BoundaryPin, StoreError};
use lifeboat_sys::disk::GuestDisk;
use lifeboat_sys::host;

use crate::api::{Accepted, Rejection, Severity};
use crate::jobs::not_saved;
use crate::ledger::document;
use crate::rejection::{failed, rejection_of_refused};
use crate::replica::{ReplicaStore, store_code};
use crate::service::{Service, with_causes};
use crate::vm::{Core, DisksPlace, Facts, Vm, VmArc};

/// A test could not be set up or taken up again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestTrouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("define the test VM")]
    Define {
        #[from]
        source: HypervisorError,
    },
}

impl Service {
    pub(crate) fn start_test(
        &self,
        vm: &VmArc,
        point: Option<Sequence>,
    ) -> Result<Accepted, Rejection> {
        {
            let core = vm.core();
            let relation = core
                .relation()
                .ok_or_else(crate::rejection::not_replicated)?;
            relation
                .record()
                .refuse_unless(Operation::TestReplicaSystem)
                .map_err(|refused| rejection_of_refused(&refused))?;
            if core.test.is_some() {
                return Err(Rejection {
                    code: ReturnCode::InUse,
                    what: "a test failover of this replica is there already".to_owned(),
                    remedy: "end it first: `lifeboat failover test-end`".to_owned(),
                });
            }
        }
        let id = VmId::from_bytes(
            host::random_bytes()
                .map_err(|error| failed(format!("draw an id for the test VM: {error}")))?,
        );
        let folder = self.inner.config.state.join("tests").join(id.to_string());
        self.make_test(vm, id, &folder, point).map_err(|trouble| {
            self.remove_test_files(&folder);
            let code = match &trouble {
                TestTrouble::Store(error) => store_code(error),
                TestTrouble::Folder { .. } | TestTrouble::Define { .. } => ReturnCode::Failed,
            };
            Rejection {
                code,
                what: format!("test a failover: {}", with_causes(&trouble)),
                remedy: String::new(),
            }
        })?;
        Ok(Accepted::Completed)
    }

    fn make_test(
        &self,
        vm: &VmArc,
        id: VmId,
        folder: &Path,
        point: Option<Sequence>,
    ) -> Result<(), TestTrouble> {
        std::fs::create_dir_all(folder).map_err(|source| TestTrouble::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let now = self.now();
        let mut held = vm.store();
        let Some(replica) = held.as_mut() else {
            return Err(TestTrouble::Store(lifeboat_store::Refused::Reopen.into()));
        };
        let pin = match point {
            None => replica.store.pin_newest(now)?,
            Some(point) => replica.store.pin_point(point)?,
        };
        let boundary = pin.boundary();
        let disks = Self::test_disks(replica, &pin, folder)?;
        let definition = {
            let definition = vm.core().definition.clone();
            let name = self.free_name(&format!("{} - Test", definition.name()));
            crate::manage::renamed(&definition, id, &name)
        };
        let root = vm
            .core()
            .relation()
            .and_then(|relation| relation.storage.clone());
        let place = DisksPlace::Test {
            folder: folder.to_owned(),
            store: root.unwrap_or_default(),
            boundary,
        };
        self.inner.hypervisor.define(&definition, &disks)?;
        replica.test_pin = Some(pin);
        drop(held);
        let row = VmRow {
            id,
            name: definition.name().to_owned(),
            driver: "volume".to_owned(),
            definition: document(&definition),
            disks: document(&place),
            desired_power: DesiredPower::Off,
            created_at: now,
            updated_at: now,
        };
        if let Err(error) = self.inner.ledger.add_vm(&row) {
            // Without its row nobody would end it after a restart.
            let _ = self.inner.hypervisor.undefine(id);
            if let Some(replica) = vm.store().as_mut() {
                replica.test_pin = None;
            }
            return Err(TestTrouble::Folder {
                path: folder.to_owned(),
                source: std::io::Error::other(with_causes(&error)),
            });
        }
        let test = Arc::new(Vm::new(
            id,
            Core {
                definition,
                place,
                desired: DesiredPower::Off,
                created_at: now,
                relation: None,
                jobs: Vec::new(),
                test_of: Some(vm.id),
                test: None,
                facts: Facts::default(),
                statistics: None,
            },
        ));
        self.insert(test);
        self.note_tested(vm, id, now);
        Ok(())
    }

    fn note_tested(&self, vm: &VmArc, test: VmId, now: lifeboat_model::Timestamp) {
        {
            let mut core = vm.core();
            core.test = Some(test);
            if let Some(relation) = core.relation.as_mut() {
                let mut next = relation.clone();
                next.saved.last.tested_at = Some(now);
                match self.inner.ledger.save_relation(&next) {
                    Ok(version) => {
                        next.version = version;
                        *relation = next;
                    }
                    Err(error) => {
                        tracing::warn!("note the test failover: {}", with_causes(&error));
                    }
                }
            }
        }
        let message = format!("{}: a test failover was made", vm.name());
        self.report(Some(vm.id), Severity::Info, "test_failover", &message);
    }

    /// The test's disks: new overlays over the boundary, or those that are there.
    fn test_disks(
        replica: &ReplicaStore,
        pin: &BoundaryPin,
        folder: &Path,
    ) -> Result<Vec<(DiskId, Backing)>, TestTrouble> {
        let mut disks = Vec::new();
        for (id, _) in replica.store.disks() {
            let scratch = replica.store.scratch_disk(pin, &id, folder)?;
            let image = scratch.path().to_owned();
            let device: Arc<dyn GuestDisk> = Arc::new(scratch);
            disks.push((id, Backing::Device { device, image }));
        }
        Ok(disks)
    }

    /// Takes a test up again after a restart, before anything is applied.
    pub(crate) fn take_up_test(
        &self,
        vm: &VmArc,
        test: &VmArc,
        folder: &Path,
        boundary: u64,
    ) -> Result<(), TestTrouble> {
        let mut held = vm.store();
        let Some(replica) = held.as_mut() else {
            return Err(TestTrouble::Store(lifeboat_store::Refused::Reopen.into()));
        };
        let pin = replica.store.pin_boundary(boundary)?;
        let disks = Self::test_disks(replica, &pin, folder)?;
        let definition = test.core().definition.clone();
        self.inner.hypervisor.define(&definition, &disks)?;
        replica.test_pin = Some(pin);
        drop(held);
        vm.core().test = Some(test.id);
        Ok(())
    }

    pub(crate) fn end_test(&self, vm: &VmArc) -> Result<Accepted, Rejection> {
        let Some(test) = vm.core().test else {
            return Err(Rejection {
                code: ReturnCode::InvalidState,
                what: "there is no test failover of this VM".to_owned(),
                remedy: String::new(),
            });
        };
        let hypervisor = &self.inner.hypervisor;
        if let Ok(PowerState::Running) = hypervisor.power_state(test) {
            hypervisor
                .stop(test, StopMode::PowerOff)
                .map_err(|error| failed(format!("stop the test VM: {}", with_causes(&error))))?;
        }
        match hypervisor.undefine(test) {
            Ok(()) | Err(HypervisorError::Unknown { .. }) => {}
            Err(error) => {
                return Err(failed(format!(
                    "remove the test VM: {}",
                    with_causes(&error)
                )));
            }
        }
        self.inner
            .ledger
            .remove_vm(test)
            .map_err(|error| not_saved("the end of the test", &error))?;
        if let Some(replica) = vm.store().as_mut() {
            replica.test_pin = None;
        }
        let folder = self.find(test).map(|test| test.core().place.clone());
        if let Some(DisksPlace::Test { folder, .. }) = folder {
            self.remove_test_files(&folder);
        }
        self.remove(test);
        vm.core().test = None;
        vm.tell_changed();
        let message = format!("{}: the test failover was ended", vm.name());
        self.report(Some(vm.id), Severity::Info, "test_failover_ended", &message);
        Ok(Accepted::Completed)
    }

    pub(crate) fn remove_test_files(&self, folder: &Path) {
        if let Err(error) = std::fs::remove_dir_all(folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("remove {}: {error}", folder.display());
        }
    }
}
