//! The embedded driver: the disks of a VM are served over NBD to whoever runs its guest.
//!
//! A VM is running while its disks are served, on a unix socket of its own. Captures and copies
//! of present disks use one more socket for all VMs, with exports `<vm>/<disk>@frozen` and
//! `<vm>/<disk>`. Sockets are for this user alone.
//!
//! A VM that is off has no thread and no open file but the mappings of its dirty maps. Its images
//! are opened for a freeze, and for each read of a present disk.
//!
//! Definitions live in memory: whoever drives this defines its VMs again after a start. What is
//! on disk is the tracking of changes, by VM; see [`lifeboat_volume::Tracker`].

mod disks;
mod machine;
mod moving;
mod present;
mod quiesce;
mod view;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_model::{Consistency, DiskId, Sequence, VmId};
use lifeboat_nbd::{ExportSet, ListenAddress, NbdUri, Server, ServerOptions};
use lifeboat_sys::disk::DiskPort;
use lifeboat_sys::host::BootId;

use self::machine::Machine;
pub use self::quiesce::QuiesceHook;
use crate::definition::VmDefinition;
use crate::error::HypervisorError;
use crate::port::{
    Backing, DiskMover, DiskRanges, DiskSource, FrozenView, Hypervisor, PowerState, StopMode,
    Tracking,
};

/// The name of the socket for captures.
const CAPTURES: &str = "captures.sock";

/// Captures of all VMs at once, each with a few connections.
const MAX_CAPTURES: usize = 1024;

/// The most bytes of requests under way, of each connection of a capture.
const CAPTURE_BYTES: usize = 16 << 20;

/// Where a [`VolumeDriver`] keeps its things, and what it may use.
#[derive(Debug, Clone)]
pub struct VolumeDriverOptions {
    /// What must outlive a reboot: a folder of dirty maps for each VM, on a file system that
    /// overwrites in place (ext4, XFS).
    pub state_folder: PathBuf,
    /// For sockets; best on a tmpfs, with a short path.
    pub socket_folder: PathBuf,
    /// Old blocks of views are kept in unlinked files here.
    pub scratch_folder: PathBuf,
    /// The most bytes of old blocks of one view.
    pub scratch_limit: u64,
    /// How long clients may take to end when a VM is shut down.
    pub shutdown_grace: Duration,
    /// Absent when views are never more than crash consistent.
    pub quiesce: Option<QuiesceHook>,
    /// The boot that this host is in.
    pub boot: BootId,
}

/// VMs whose disks are served over NBD. Dropping it stops them.
#[derive(Debug)]
pub struct VolumeDriver {
    host: Arc<Host>,
    slots: Mutex<HashMap<VmId, Slot>>,
    _captures: Server,
}

/// The place of one VM, which is empty while it is not defined.
type Slot = Arc<Mutex<Option<Machine>>>;

/// What all VMs share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) port: Arc<dyn DiskPort>,
    pub(crate) options: VolumeDriverOptions,
    /// Of the socket for captures.
    pub(crate) exports: ExportSet,
}

impl Host {
    pub(crate) fn capture_uri(&self, export: &str) -> Result<NbdUri, HypervisorError> {
        self.uri(CAPTURES, export)
    }

    pub(crate) fn guest_socket(&self, vm: VmId) -> PathBuf {
        self.options.socket_folder.join(guest_socket_name(vm))
    }

    pub(crate) fn guest_uri(&self, vm: VmId, disk: &DiskId) -> Result<NbdUri, HypervisorError> {
        self.uri(&guest_socket_name(vm), disk.as_str())
    }

    fn uri(&self, socket: &str, export: &str) -> Result<NbdUri, HypervisorError> {
        let folder = &self.options.socket_folder;
        NbdUri::unix(folder.join(socket), export).map_err(|source| HypervisorError::Socket {
            folder: folder.clone(),
            source,
        })
    }
}

fn guest_socket_name(vm: VmId) -> String {
    format!("{vm}.sock")
}

impl VolumeDriver {
    /// Begins to serve captures. No VM is defined yet. Folders that are missing are made, for
    /// this user alone.
    ///
    /// # Errors
    /// When a folder or the socket cannot be used, as when another driver uses it.
    pub fn new(
        port: Arc<dyn DiskPort>,
        options: VolumeDriverOptions,
    ) -> Result<Self, HypervisorError> {
        for folder in [
            &options.state_folder,
            &options.socket_folder,
            &options.scratch_folder,
        ] {
            make_folder(port.as_ref(), folder)?;
        }
        let exports = ExportSet::new();
        let host = Arc::new(Host {
            port,
            options,
            exports: exports.clone(),
        });
        // Longer than the name of any other socket, so a path that is too long is found now.
        host.guest_uri(VmId::from_bytes([0; 16]), &longest_disk_id())?;
        let path = host.options.socket_folder.join(CAPTURES);
        let limits = ServerOptions {
            max_connections: MAX_CAPTURES,
            max_in_flight_bytes: CAPTURE_BYTES,
            ..ServerOptions::default()
        };
        let captures = Server::bind(&ListenAddress::Unix(path.clone()), exports, limits)
            .map_err(|source| HypervisorError::ServeCaptures { path, source })?;
        Ok(Self {
            host,
            slots: Mutex::default(),
            _captures: captures,
        })
    }

    fn slot(&self, vm: VmId) -> Result<Slot, HypervisorError> {
        let slots = lock(&self.slots);
        slots
            .get(&vm)
            .cloned()
            .ok_or(HypervisorError::Unknown { vm })
    }

    fn with<T>(
        &self,
        vm: VmId,
        act: impl FnOnce(&mut Machine) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let slot = self.slot(vm)?;
        let mut machine = lock(&slot);
        act(machine.as_mut().ok_or(HypervisorError::Unknown { vm })?)
    }

    /// Lets an empty slot go, unless somebody is about to use it.
    fn tidy(&self, vm: VmId, slot: &Slot) {
        let mut slots = lock(&self.slots);
        // One is the table's, one is the caller's; more can come only through the table.
        if Arc::strong_count(slot) == 2 && lock(slot).is_none() {
            slots.remove(&vm);
        }
    }
}

impl VolumeDriver {
    /// Takes out a VM whose disks nobody uses.
    fn take_out(
        &self,
        vm: VmId,
        end: impl FnOnce(Machine) -> Result<(), HypervisorError>,
    ) -> Result<(), HypervisorError> {
        let slot = self.slot(vm)?;
        let ended = {
            let mut place = lock(&slot);
            let machine = place.take().ok_or(HypervisorError::Unknown { vm })?;
            match machine.refuse_unless_idle() {
                Ok(()) => end(machine),
                Err(error) => {
                    *place = Some(machine);
                    Err(error)
                }
            }
        };
        self.tidy(vm, &slot);
        ended
    }
}

impl Hypervisor for VolumeDriver {
    fn define(
        &self,
        definition: &VmDefinition,
        disks: &[(DiskId, Backing)],
    ) -> Result<(), HypervisorError> {
        let vm = definition.vm();
        let slot = Arc::clone(lock(&self.slots).entry(vm).or_default());
        let defined = {
            let mut place = lock(&slot);
            match Machine::define(&self.host, place.as_ref(), definition, disks) {
                Ok(machine) => {
                    *place = Some(machine);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        };
        if defined.is_err() {
            self.tidy(vm, &slot);
        }
        defined
    }

    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.take_out(vm, Machine::undefine)
    }

    fn release(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.take_out(vm, |machine| {
            machine.release();
            Ok(())
        })
    }

    fn power_state(&self, vm: VmId) -> Result<PowerState, HypervisorError> {
        self.with(vm, |machine| Ok(machine.power_state()))
    }

    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, Machine::start)
    }

    fn stop(&self, vm: VmId, mode: StopMode) -> Result<(), HypervisorError> {
        self.with(vm, |machine| machine.stop(mode))
    }

    fn guest_disks(&self, vm: VmId) -> Result<Vec<DiskSource>, HypervisorError> {
        self.with(vm, |machine| machine.guest_disks())
    }

    fn tracking(&self, vm: VmId) -> Result<Tracking, HypervisorError> {
        self.with(vm, Machine::tracking)
    }

    fn start_tracking(&self, vm: VmId, moment: Sequence) -> Result<(), HypervisorError> {
        self.with(vm, |machine| machine.start_tracking(moment))
    }

    fn stop_tracking(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, Machine::stop_tracking)
    }

    fn present_disks(&self, vm: VmId) -> Result<Vec<DiskSource>, HypervisorError> {
        self.with(vm, |machine| machine.present_disks())
    }

    fn freeze(
        &self,
        vm: VmId,
        moment: Sequence,
        consistency: Consistency,
    ) -> Result<Box<dyn FrozenView>, HypervisorError> {
        let slot = self.slot(vm)?;
        let mut place = lock(&slot);
        let machine = place.as_mut().ok_or(HypervisorError::Unknown { vm })?;
        let frozen = machine.freeze(moment, consistency)?;
        Ok(Box::new(frozen.kept_in(&slot)))
    }

    fn received(&self, vm: VmId, moment: Sequence) -> Result<(), HypervisorError> {
        self.with(vm, |machine| machine.received(moment))
    }

    fn dirty_bytes(&self, vm: VmId) -> Result<u64, HypervisorError> {
        self.with(vm, Machine::dirty_bytes)
    }

    fn changed_ranges(&self, vm: VmId) -> Result<Option<DiskRanges>, HypervisorError> {
        self.with(vm, Machine::changed_ranges)
    }

    fn move_disks(&self, vm: VmId, mover: &mut dyn DiskMover) -> Result<(), HypervisorError> {
        moving::move_disks(&self.slot(vm)?, vm, self.host.port.as_ref(), mover)
    }

    /// A volume has no screen: whoever runs the guest has it.
    fn screenshot(&self, vm: VmId, _width: u32) -> Result<Vec<u8>, HypervisorError> {
        self.with(vm, |_| Err(HypervisorError::Unsupported { what: "screen" }))
    }
}

impl Drop for VolumeDriver {
    fn drop(&mut self) {
        let slots: Vec<Slot> = lock(&self.slots).drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            if let Some(machine) = lock(&slot).as_mut() {
                // Nobody is left to hear of it; tracking says what could not be done.
                let _ = machine.stop(StopMode::PowerOff);
            }
        }
    }
}

fn make_folder(port: &dyn DiskPort, folder: &Path) -> Result<(), HypervisorError> {
    let failed = |source| HypervisorError::Folder {
        folder: folder.to_owned(),
        source,
    };
    if port.kind(folder).map_err(failed)?.is_none() {
        port.create_dir(folder).map_err(failed)?;
        let parent = folder.parent().unwrap_or(Path::new("."));
        port.sync_dir(parent).map_err(failed)?;
    }
    Ok(())
}

fn longest_disk_id() -> DiskId {
    let name = "a".repeat(DiskId::MAX_LEN);
    name.parse().expect("BUG: a name of letters is refused")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
