//! What operators change: VMs, relationships, settings.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_catalog::{DesiredPower, Vm as VmRow};
use lifeboat_hypervisor::{
    Backing, DiskBus, DiskSettings, Firmware, HypervisorError, PowerState, StopMode, VmDefinition,
    VmSettings,
};
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{
    Effect, Operation, Primary, PrimaryGuest, Record, ReplicaPhase, Role,
};
use lifeboat_model::settings::{ReplicationSettings, SettingsChange};
use lifeboat_model::{DiskId, DiskSize, LineageId, RelationshipId, Sequence, VmId};
use lifeboat_peer::{
    ChangeSettings, Introduction, LinkError, NewReplica, PeerDisk, Refusal, RefusalCode, Removal,
};
use lifeboat_sys::host;

use crate::adoption::first_lineage;
use crate::answers::refusal;
use crate::api::{Accepted, EnableReplication, NewVm, NewVmDisk, Rejection, Severity, StopHow};
use crate::jobs::not_saved;
use crate::ledger::document;
use crate::operations::split_point;
use crate::rejection::{failed, invalid, not_replicated, rejection_of_link, rejection_of_refused};
use crate::relation::{PeerPlace, Relation, Saved};
use crate::service::{Service, with_causes};
use crate::vm::{Core, DisksPlace, Facts, Task, Vm, VmArc};

/// Each disk with the path of its image.
type DiskImages = Vec<(DiskId, PathBuf)>;

type DiskSizes = Vec<(DiskId, DiskSize)>;

impl Service {
    /// Makes a VM of the embedded driver, with new disks or on images that exist.
    pub(crate) fn make_vm(&self, new: &NewVm) -> Result<VmArc, Rejection> {
        if self.all_vms().iter().any(|vm| vm.name() == new.name) {
            return Err(Rejection {
                code: ReturnCode::InvalidParameter,
                what: format!("this host has a VM named {:?} already", new.name),
                remedy: "choose another name".to_owned(),
            });
        }
        let id = match new.id {
            Some(id) if self.find(id).is_some() => {
                return Err(Rejection {
                    code: ReturnCode::InvalidParameter,
                    what: format!("this host has VM {id} already"),
                    remedy: "see `lifeboat vm list`".to_owned(),
                });
            }
            Some(id) => id,
            None => VmId::from_bytes(random_id()?),
        };
        let folder = self.inner.config.state.join("vms").join(id.to_string());
        let (images, sizes) = self.make_images(&folder, &new.disks)?;
        let definition = VmDefinition::try_from(VmSettings {
            format: lifeboat_hypervisor::FORMAT,
            vm: id,
            name: new.name.clone(),
            memory_mib: u64::from(new.memory_mib),
            processors: new.processors,
            firmware: Firmware::Bios,
            adapters: Vec::new(),
            disks: sizes
                .into_iter()
                .map(|(id, size)| DiskSettings {
                    id,
                    size,
                    bus: DiskBus::Virtio,
                })
                .collect(),
        })
        .map_err(|error| invalid(with_causes(&error)))?;
        let place = DisksPlace::Images(images);
        let now = self.now();
        self.inner
            .hypervisor
            .define(&definition, &self.backings(&place))
            .map_err(|error| failed(format!("define the VM: {}", with_causes(&error))))?;
        let row = VmRow {
            id,
            name: new.name.clone(),
            driver: "volume".to_owned(),
            definition: document(&definition),
            disks: document(&place),
            desired_power: DesiredPower::Off,
            created_at: now,
            updated_at: now,
        };
        if let Err(error) = self.inner.ledger.add_vm(&row) {
            let _ = self.inner.hypervisor.undefine(id);
            return Err(not_saved("the VM", &error));
        }
        let vm = Arc::new(Vm::new(
            id,
            Core {
                definition,
                place,
                desired: DesiredPower::Off,
                created_at: now,
                relation: None,
                jobs: Vec::new(),
                test_of: None,
                test: None,
                facts: Facts::default(),
                statistics: None,
            },
        ));
        self.insert(Arc::clone(&vm));
        let message = format!("{}: the VM was defined", new.name);
        self.report(Some(id), Severity::Info, "vm_defined", &message);
        Ok(vm)
    }

    fn make_images(
        &self,
        folder: &std::path::Path,
        disks: &[NewVmDisk],
    ) -> Result<(DiskImages, DiskSizes), Rejection> {
        let mut images = Vec::new();
        let mut sizes = Vec::new();
        for disk in disks {
            let path = match &disk.image {
                Some(image) if image.is_absolute() => image.clone(),
                Some(image) => {
                    return Err(invalid(format!(
                        "{} must be an absolute path",
                        image.display()
                    )));
                }
                None => {
                    let size = disk.size.ok_or_else(|| {
                        invalid(format!("disk {} needs a size or an image", disk.id))
                    })?;
                    self.make_image(folder, &disk.id, size)?
                }
            };
            let length = std::fs::metadata(&path)
                .map_err(|error| invalid(format!("look at {}: {error}", path.display())))?
                .len();
            let size = DiskSize::try_from(length)
                .map_err(|error| invalid(format!("{}: {error}", path.display())))?;
            if let Some(asked) = disk.size.filter(|asked| *asked != size) {
                return Err(invalid(format!(
                    "{} has {size} bytes and {asked} were asked for; leave the size out",
                    path.display()
                )));
            }
            images.push((disk.id.clone(), path));
            sizes.push((disk.id.clone(), size));
        }
        Ok((images, sizes))
    }

    fn make_image(
        &self,
        folder: &std::path::Path,
        id: &DiskId,
        size: DiskSize,
    ) -> Result<PathBuf, Rejection> {
        std::fs::create_dir_all(folder)
            .map_err(|error| failed(format!("make {}: {error}", folder.display())))?;
        let path = folder.join(format!("{id}.raw"));
        let made = self.inner.disk.create(&path).and_then(|file| {
            file.set_len(size.bytes())?;
            file.sync()?;
            self.inner.disk.sync_dir(folder)
        });
        made.map_err(|error| failed(format!("make {}: {error}", path.display())))?;
        Ok(path)
    }

    /// What the driver is told of a VM's own disks.
    pub(crate) fn backings(&self, place: &DisksPlace) -> Vec<(DiskId, Backing)> {
        match place {
            DisksPlace::Images(images) => images
                .iter()
                .map(|(id, path)| (id.clone(), Backing::Raw { path: path.clone() }))
                .collect(),
            DisksPlace::Store(_) | DisksPlace::Test { .. } => Vec::new(),
        }
    }

    pub(crate) fn forget_vm(&self, vm: &VmArc) -> Result<(), Rejection> {
        {
            let core = vm.core();
            if core.relation().is_some() || core.test_of.is_some() {
                return Err(Rejection {
                    code: ReturnCode::InvalidState,
                    what: "the VM is replicated, or a test failover".to_owned(),
                    remedy: "remove replication first, or end the test".to_owned(),
                });
            }
        }
        match self.inner.hypervisor.undefine(vm.id) {
            Ok(()) | Err(HypervisorError::Unknown { .. }) => {}
            Err(error) => return Err(failed(with_causes(&error))),
        }
        self.inner
            .ledger
            .remove_vm(vm.id)
            .map_err(|error| not_saved("the removal", &error))?;
        self.close_vm(vm);
        self.remove(vm.id);
        let message = format!("{}: the VM was undefined; its disks stay", vm.name());
        self.report(Some(vm.id), Severity::Info, "vm_undefined", &message);
        Ok(())
    }

    pub(crate) fn start_vm(&self, vm: &VmArc) -> Result<Accepted, Rejection> {
        {
            let core = vm.core();
            if let Some(relation) = core.relation() {
                relation
                    .record()
                    .may_start_vm()
                    .map_err(|refused| rejection_of_refused(&refused))?;
            }
        }
        self.save_power(vm, DesiredPower::Running)?;
        self.inner
            .hypervisor
            .start(vm.id)
            .map_err(|error| failed(format!("start the VM: {}", with_causes(&error))))?;
        vm.tell_changed();
        let message = format!("{}: the VM runs", vm.name());
        self.report(Some(vm.id), Severity::Info, "vm_started", &message);
        Ok(Accepted::Completed)
    }

    pub(crate) fn stop_vm(&self, vm: &VmArc, how: StopHow) -> Result<Accepted, Rejection> {
        // Saved first, so that no start of this service undoes it; and stopped whatever becomes of
        // that, because somebody may have to be kept from writing on.
        let saved = self.save_power(vm, DesiredPower::Off);
        let mode = match how {
            StopHow::ShutDown => StopMode::ShutDown,
            StopHow::PowerOff => StopMode::PowerOff,
        };
        match self.inner.hypervisor.stop(vm.id, mode) {
            Ok(()) | Err(HypervisorError::Unknown { .. }) => {}
            Err(error) => {
                return Err(failed(format!("stop the VM: {}", with_causes(&error))));
            }
        }
        vm.tell_changed();
        let message = format!("{}: the VM is off", vm.name());
        self.report(Some(vm.id), Severity::Info, "vm_stopped", &message);
        saved.map_err(|rejection| {
            vm.core().facts.unsaved_stop = self.inner.ledger.is_stopped();
            let what = format!(
                "the VM is off, but starts again with the service, unless the catalog takes changes before: {}",
                rejection.what
            );
            Rejection { what, ..rejection }
        })?;
        Ok(Accepted::Completed)
    }

    /// What an operator has stopped stays off from now on.
    pub(crate) fn save_unsaved_stop(&self, vm: &VmArc) {
        if std::mem::take(&mut vm.core().facts.unsaved_stop)
            && let Err(rejection) = self.save_power(vm, DesiredPower::Off)
        {
            tracing::warn!(vm = %vm.id, "{}", rejection.what);
            vm.core().facts.unsaved_stop = true;
        }
    }

    fn save_power(&self, vm: &VmArc, power: DesiredPower) -> Result<(), Rejection> {
        let mut core = vm.core();
        if core.desired == power {
            return Ok(());
        }
        self.inner
            .ledger
            .save_power(vm.id, power, self.now())
            .map_err(|error| not_saved("whether the VM shall run", &error))?;
        core.desired = power;
        Ok(())
    }

    /// Who answers at an address. Its certificate must prove the name, or the address where no
    /// name is given; and the name by which it introduces itself must be one that it proves.
    pub(crate) fn introduction_of(
        &self,
        point: &str,
        name: Option<&str>,
    ) -> Result<Introduction, Rejection> {
        let unreached = |error: LinkError| rejection_of_link("reach the host", &error);
        split_point(point)?;
        let address = point
            .parse()
            .map_err(|error: lifeboat_peer::InvalidPeerAddress| invalid(error.to_string()))?;
        let links = &self.inner.links;
        let introduction = links
            .to(&address, name)
            .and_then(|link| link.introduce())
            .map_err(unreached)?;
        links
            .to(&address, Some(&introduction.host))
            .and_then(|link| link.introduce())
            .map_err(unreached)
    }

    /// `CreateReplicationRelationship`: the replica is made first, then the relationship saved.
    /// Whoever crashes between, asking again finds the replica and takes it up.
    pub(crate) fn enable(
        &self,
        vm: &VmArc,
        enable: &EnableReplication,
    ) -> Result<Accepted, Rejection> {
        {
            let core = vm.core();
            if core.relation().is_some() {
                return Err(Rejection {
                    code: ReturnCode::InvalidState,
                    what: "the VM is replicated already".to_owned(),
                    remedy: "remove that relationship first".to_owned(),
                });
            }
            if core.test_of.is_some() {
                return Err(invalid(
                    "the VM of a test failover is not replicated".to_owned(),
                ));
            }
        }
        let (host_name, port) = split_point(&enable.recovery_connection_point)?;
        let change = SettingsChange {
            recovery_connection_point: Some(host_name),
            recovery_server_port_number: Some(port),
            ..enable.settings.clone()
        };
        let settings =
            ReplicationSettings::new(change).map_err(|error| invalid(with_causes(&error)))?;
        let definition = vm.core().definition.clone();
        let all: Vec<DiskId> = definition
            .settings()
            .disks
            .iter()
            .map(|disk| disk.id.clone())
            .collect();
        settings
            .check_disks(&all)
            .map_err(|error| invalid(with_causes(&error)))?;
        let address = settings.recovery_connection_point().to_string();
        let introduction = self.introduction_of(&address, enable.recovery_host_name.as_deref())?;
        let peer = PeerPlace {
            host: introduction.host,
            address,
        };
        if let Some(relationship) = enable.kept_replica {
            return self.take_up_replica(vm, settings, peer, relationship);
        }
        let record = Record {
            vm: vm.id,
            relationship: RelationshipId::from_bytes(random_id()?),
            lineage: first_lineage(LineageId::from_bytes(random_id()?)),
            ancestors: Vec::new(),
            drawn: Sequence::ZERO,
            role: Role::Primary(Primary::Ready { start: None }),
            forwards: None,
        };
        let disks = definition
            .settings()
            .disks
            .iter()
            .filter(|disk| settings.included_disks().includes(&disk.id))
            .map(|disk| PeerDisk {
                id: disk.id.clone(),
                size: disk.size,
            })
            .collect();
        let message = NewReplica {
            vm: vm.id,
            vm_name: definition.name().to_owned(),
            relationship: record.relationship,
            lineage: record.lineage,
            disks,
            definition: serde_json::to_value(&definition)
                .map_err(|error| failed(format!("write the definition: {error}")))?,
            settings: serde_json::to_value(&settings)
                .map_err(|error| failed(format!("write the settings: {error}")))?,
            caller_address: self.inner.config.peer_address.clone(),
            extended: false,
        };
        self.link(&peer)
            .and_then(|link| link.make_replica(message))
            .map_err(|error| rejection_of_link("make a replica there", &error))?;
        let excluded: Vec<String> = all
            .iter()
            .filter(|id| !settings.included_disks().includes(id))
            .map(ToString::to_string)
            .collect();
        let to = peer.host.clone();
        self.begin_relation(vm, record, settings, peer)?;
        let name = vm.name();
        let mut message = format!("{name}: replication to {to} is enabled");
        if !excluded.is_empty() {
            message.push_str(&format!(
                "; not replicated, as the settings say: disks {}",
                excluded.join(", ")
            ));
        }
        self.report(Some(vm.id), Severity::Info, "replication_enabled", &message);
        Ok(Accepted::Completed)
    }

    /// Saves a new relationship of a VM that runs here, and adopts it.
    pub(crate) fn begin_relation(
        &self,
        vm: &VmArc,
        record: Record,
        settings: ReplicationSettings,
        peer: PeerPlace,
    ) -> Result<(), Rejection> {
        let mut relation = Relation {
            saved: Saved::new(record),
            version: lifeboat_catalog::RecordVersion::FIRST,
            settings,
            peer,
            storage: None,
            trust_group: String::new(),
        };
        relation.version = self
            .inner
            .ledger
            .add_relation(vm.id, &relation)
            .map_err(|error| not_saved("the relationship", &error))?;
        vm.core().relation = Some(relation);
        vm.tell_changed();
        Ok(())
    }

    pub(crate) fn change_settings_of(
        &self,
        vm: &VmArc,
        change: SettingsChange,
    ) -> Result<Accepted, Rejection> {
        let (relation, definition) = {
            let core = vm.core();
            let relation = core.relation.clone().ok_or_else(not_replicated)?;
            (relation, core.definition.clone())
        };
        relation
            .record()
            .refuse_unless(Operation::ModifyReplicationSettings)
            .map_err(|refused| rejection_of_refused(&refused))?;
        if !relation.is_primary() {
            return Err(Rejection {
                code: ReturnCode::InvalidState,
                what: "the settings belong to the primary".to_owned(),
                remedy: "change them on the host where the VM runs".to_owned(),
            });
        }
        let settings = relation
            .settings
            .changed(change)
            .map_err(|error| invalid(with_causes(&error)))?;
        if settings.included_disks() != relation.settings.included_disks() {
            return Err(Rejection {
                code: ReturnCode::NotSupported,
                what: "the set of replicated disks cannot be changed while replication is enabled"
                    .to_owned(),
                remedy: "remove replication and enable it with the other disks".to_owned(),
            });
        }
        let message = ChangeSettings {
            relationship: relation.record().relationship,
            settings: serde_json::to_value(&settings)
                .map_err(|error| failed(format!("write the settings: {error}")))?,
            definition: serde_json::to_value(&definition)
                .map_err(|error| failed(format!("write the definition: {error}")))?,
        };
        self.link(&relation.peer)
            .and_then(|link| link.change_settings(message))
            .map_err(|error| rejection_of_link("tell the replica the settings", &error))?;
        self.adopt_settings(vm, settings)?;
        self.set_alarm(vm);
        Ok(Accepted::Completed)
    }

    fn adopt_settings(&self, vm: &VmArc, settings: ReplicationSettings) -> Result<(), Rejection> {
        let mut core = vm.core();
        let relation = core.relation.as_mut().ok_or_else(not_replicated)?;
        let mut next = relation.clone();
        next.saved.promises = next.saved.promises.after_change(
            next.saved.record.drawn,
            next.settings.recovery_history(),
            settings.recovery_history(),
        );
        next.settings = settings;
        next.version = self
            .inner
            .ledger
            .save_relation(&next)
            .map_err(|error| not_saved("the settings", &error))?;
        *relation = next;
        drop(core);
        self.note_soon(vm);
        Ok(())
    }

    /// Settings that the primary sends to its replica. What was promised to points stays.
    pub(crate) fn take_settings(
        &self,
        vm: &VmArc,
        settings: ReplicationSettings,
        definition: &VmDefinition,
    ) -> Result<(), Refusal> {
        if definition.vm() != vm.id {
            return Err(refusal(
                RefusalCode::Invalid,
                "the definition is of another VM",
            ));
        }
        self.adopt_settings(vm, settings)
            .map_err(|rejection| refusal(RefusalCode::Failed, &rejection.what))
    }

    /// `RemoveReplicationRelationship`: on this side only.
    pub(crate) fn remove_relation(&self, vm: &VmArc) -> Result<Accepted, Rejection> {
        let relation = vm.core().relation.clone().ok_or_else(not_replicated)?;
        relation
            .record()
            .refuse_unless(Operation::RemoveReplicationRelationship)
            .map_err(|refused| rejection_of_refused(&refused))?;
        if vm.core().test.is_some() {
            return Err(Rejection {
                code: ReturnCode::InUse,
                what: "a test failover of this replica is there".to_owned(),
                remedy: "end it first: `lifeboat failover test-end`".to_owned(),
            });
        }
        self.work_on(vm, [Task::Effect(Effect::StopWork)]);
        vm.wait_until(Duration::from_secs(30), |_| vm.is_idle());
        match &relation.record().role {
            Role::Primary(_) => self.remove_as_primary(vm, &relation)?,
            Role::Replica(replica) => self.remove_as_replica(vm, &replica.phase)?,
        }
        self.inner
            .ledger
            .remove_relation(relation.record().relationship)
            .map_err(|error| not_saved("the removal", &error))?;
        {
            let mut core = vm.core();
            core.relation = None;
            core.statistics = None;
            self.update_jobs(vm, &mut core);
        }
        self.inner.scheduler.set(vm.id, None);
        self.note_soon(vm);
        vm.tell_changed();
        let message = format!("{}: replication was removed on this host", vm.name());
        self.report(Some(vm.id), Severity::Info, "replication_removed", &message);
        Ok(Accepted::Completed)
    }

    fn remove_as_primary(&self, vm: &VmArc, relation: &Relation) -> Result<(), Rejection> {
        if let Err(error) = self.inner.hypervisor.stop_tracking(vm.id) {
            tracing::warn!(vm = %vm.id, "stop tracking: {}", with_causes(&error));
        }
        let folder = self.send_folder(vm);
        if let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("remove {}: {error}", folder.display());
        }
        // The peer may be gone for good; nothing here depends on it.
        let told = self.link(&relation.peer).and_then(|link| {
            link.remove(Removal {
                relationship: relation.record().relationship,
            })
        });
        if let Err(error) = told {
            tracing::info!(vm = %vm.id, "tell the replica: {}", with_causes(&error));
        }
        Ok(())
    }

    /// The replica becomes an ordinary VM that is off: its newest state, without points.
    fn remove_as_replica(&self, vm: &VmArc, phase: &ReplicaPhase) -> Result<(), Rejection> {
        match phase {
            ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. } => {
                return Err(Rejection {
                    code: ReturnCode::InvalidState,
                    what: "the VM is failed over".to_owned(),
                    remedy: "commit or revert the failover first".to_owned(),
                });
            }
            // Its disks are the VM's already.
            ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => return Ok(()),
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_) => {}
        }
        // A removal that failed half way has left the store so.
        self.mend_store(vm)
            .map_err(|error| failed(with_causes(&error)))?;
        {
            let mut held = vm.store();
            let Some(replica) = held.as_mut() else {
                return Err(failed("the replica's store is not open".to_owned()));
            };
            if replica.store.applied() == Sequence::ZERO {
                // Nothing ever came; there is no VM to keep.
                drop(held);
                return self.forget_empty_replica(vm);
            }
            // A removal that was interrupted may have got so far already.
            if replica.store.role() != lifeboat_store::Role::Committed {
                replica.store.flatten().map_err(|error| Rejection {
                    code: crate::replica::store_code(&error),
                    what: format!("keep the VM without its points: {}", with_causes(&error)),
                    remedy: String::new(),
                })?;
            }
        }
        self.define_committed_disks(vm)
            .and_then(|()| Ok(self.inner.hypervisor.stop_tracking(vm.id)?))
            .map_err(|error| failed(with_causes(&error)))
    }

    fn forget_empty_replica(&self, vm: &VmArc) -> Result<(), Rejection> {
        self.close_vm(vm);
        Ok(())
    }

    /// Closes what is open of a VM: disks made durable, store sealed.
    pub(crate) fn close_vm(&self, vm: &VmArc) {
        if let Ok(PowerState::Running) = self.inner.hypervisor.power_state(vm.id)
            && let Err(error) = self.inner.hypervisor.stop(vm.id, StopMode::ShutDown)
        {
            tracing::error!(vm = %vm.id, "stop the VM: {}", with_causes(&error));
        }
        let place = vm.core().place.clone();
        // A VM on a store's overlays lets go of them before the store is closed.
        if let DisksPlace::Store(_) | DisksPlace::Test { .. } = place {
            match self.inner.hypervisor.release(vm.id) {
                Ok(()) | Err(HypervisorError::Unknown { .. }) => {}
                Err(error) => {
                    tracing::warn!(vm = %vm.id, "let go of the disks: {}", with_causes(&error));
                }
            }
        }
        let held = vm.store().take();
        if let Some(mut replica) = held {
            replica.failover_disks.clear();
            // What a test reads is merged away unless it is held until the store is sealed.
            if replica.store.role() == lifeboat_store::Role::Replica
                && let Err(error) = replica.store.seal()
            {
                tracing::warn!(vm = %vm.id, "seal the store: {}", with_causes(&error));
            }
            replica.test_pin = None;
        }
    }

    /// Whether the primary's guest runs, as far as its host says.
    pub(crate) fn ask_primary(&self, relation: &Relation) -> Result<PrimaryGuest, LinkError> {
        let status = self
            .link(&relation.peer)?
            .guest_status(relation.record().relationship)?;
        Ok(if status.running {
            PrimaryGuest::Running
        } else if status.preparing {
            PrimaryGuest::Preparing
        } else {
            PrimaryGuest::Off
        })
    }
}

pub(crate) fn random_id() -> Result<[u8; 16], Rejection> {
    host::random_bytes().map_err(|error| failed(format!("draw an id: {error}")))
}

/// The same definition with these disks only: what a replica holds of a VM.
pub(crate) fn with_disks(
    definition: &VmDefinition,
    replicated: &[PeerDisk],
) -> Result<VmDefinition, Refusal> {
    let is_replicated = |disk: &DiskSettings| replicated.iter().any(|one| one.id == disk.id);
    let settings = VmSettings {
        disks: definition
            .settings()
            .disks
            .iter()
            .filter(|disk| is_replicated(disk))
            .cloned()
            .collect(),
        ..definition.settings().clone()
    };
    VmDefinition::try_from(settings).map_err(|error| {
        refusal(
            RefusalCode::Invalid,
            &format!("define the VM with its replicated disks: {error}"),
        )
    })
}

/// The same definition for another VM, or under another name.
pub(crate) fn renamed(definition: &VmDefinition, vm: VmId, name: &str) -> VmDefinition {
    let settings = VmSettings {
        vm,
        name: name.to_owned(),
        ..definition.settings().clone()
    };
    // Only a name that has become too long is refused; then it stays as it was.
    VmDefinition::try_from(settings).unwrap_or_else(|_| {
        let settings = VmSettings {
            vm,
            ..definition.settings().clone()
        };
        VmDefinition::try_from(settings).expect("BUG: another id makes no definition wrong")
    })
}
