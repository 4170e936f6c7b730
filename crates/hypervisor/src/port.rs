//! The port to whatever runs VMs.
//!
//! A driver runs VMs on disks that it is told, and shows their disks in one way only:
//! as NBD exports, frozen at one instant with a bitmap of what has changed. Whoever drives it
//! never learns what kind of hypervisor it is, only whether an export is one of this process.
//!
//! What a crash of this process leaves, for every driver: the guest's disks as the guest wrote
//! them, and tracking that is either unbroken or [`Tracking::Unknown`] with the reason; never
//! tracking that misses a change.

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_model::{Consistency, DiskId, DiskSize, Sequence, Timestamp, VmId};
use lifeboat_nbd::{LocalExport, NbdUri};
use lifeboat_sys::disk::GuestDisk;

use crate::definition::VmDefinition;
use crate::error::HypervisorError;

/// Whether a VM runs (`EnabledState` of the contract: 2 and 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    Running,
    Off,
}

/// How a VM is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// The guest is asked, and given time, to write out what it holds.
    ShutDown,
    /// At once, as by pulling the plug.
    PowerOff,
}

/// What a VM's disk stands on.
#[derive(Debug, Clone)]
pub enum Backing {
    /// A raw image; its length is the disk's size.
    Raw { path: PathBuf },
    /// A disk of this process. `image` is the file that QEMU would open instead.
    Device {
        device: Arc<dyn GuestDisk>,
        image: PathBuf,
    },
}

/// What is known of changes since an earlier moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// Nobody asked for it.
    Off,
    /// Every change since these moments is marked, by the moment that each map begins with,
    /// oldest first. A map is there from its [`Hypervisor::freeze`] (or
    /// [`start_tracking`](Hypervisor::start_tracking)) to its [`Hypervisor::received`].
    Since { moments: Vec<Sequence> },
    /// Changes may have been missed: the disks must be compared. The reason is for people.
    Unknown { why: String },
}

/// Ascending ranges of bytes, by disk.
pub type DiskRanges = Vec<(DiskId, Vec<Range<u64>>)>;

/// Where one disk can be read.
#[derive(Debug, Clone)]
pub struct DiskSource {
    pub disk: DiskId,
    pub size: DiskSize,
    pub uri: NbdUri,
    /// The bitmap that marks every change since the oldest moment tracked, as the name in
    /// `qemu:dirty-bitmap:NAME`; absent when that is not known.
    pub bitmap: Option<String>,
    /// The same export, where this process serves it and reading without a socket pays.
    pub local: Option<LocalExport>,
}

/// All disks of a VM at one instant, readable until it is dropped. Dropping it forgets no
/// change: that is what [`Hypervisor::received`] is for.
pub trait FrozenView: Send + Debug {
    fn captured_at(&self) -> Timestamp;

    /// What was reached, which may be less than what was asked for.
    fn consistency(&self) -> Consistency;

    fn sources(&self) -> &[DiskSource];
}

/// Moves the contents of a running VM's disks to where they shall stand from now on.
pub trait DiskMover {
    /// Copies everything, or again what the guest has changed since the copy before. The guest
    /// runs meanwhile.
    ///
    /// # Errors
    /// The guest goes on with what its disks stood on.
    fn copy(&mut self, changed: Option<&[(DiskId, Range<u64>)]>) -> std::io::Result<()>;

    /// Copies the rest while the guest waits, makes it durable, and answers what each disk
    /// stands on from now on: one backing for each disk, of the same size, which the driver can
    /// open at once and nobody else holds.
    ///
    /// # Errors
    /// The guest goes on with what its disks stood on.
    fn finish(
        &mut self,
        changed: &[(DiskId, Range<u64>)],
    ) -> std::io::Result<Vec<(DiskId, Backing)>>;
}

/// A driver. Methods may block; each is idempotent unless it says otherwise.
pub trait Hypervisor: Send + Sync + Debug {
    /// Makes a VM known, or gives a known one that is off another definition or other disks. It
    /// is off. What was tracked of disks whose backing stays the same is kept.
    ///
    /// # Errors
    /// A disk that cannot be opened or is in use; nothing is changed then.
    fn define(
        &self,
        definition: &VmDefinition,
        disks: &[(DiskId, Backing)],
    ) -> Result<(), HypervisorError>;

    /// Forgets a VM that is off, and what was tracked; its disks stay.
    ///
    /// # Errors
    /// [`HypervisorError::Running`].
    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Lets go of a VM that is off, and of its disks; what was tracked stays on disk, and is
    /// taken up when the VM is defined again.
    ///
    /// # Errors
    /// [`HypervisorError::Running`].
    fn release(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// # Errors
    /// [`HypervisorError::Unknown`] for a VM that is not defined, here as in all that follow.
    fn power_state(&self, vm: VmId) -> Result<PowerState, HypervisorError>;

    /// Lets the guest run, or use its disks.
    ///
    /// # Errors
    /// When it cannot be started; it is off then.
    fn start(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Returns when the VM is off and all its disks are durable.
    ///
    /// # Errors
    /// When it could not be stopped, or a disk could not be made durable: then tracking is
    /// unknown from now on.
    fn stop(&self, vm: VmId, mode: StopMode) -> Result<(), HypervisorError>;

    /// Where the guest's disks are served while it runs: what a client of the VM connects to.
    ///
    /// # Errors
    /// As [`power_state`](Self::power_state).
    fn guest_disks(&self, vm: VmId) -> Result<Vec<DiskSource>, HypervisorError>;

    fn tracking(&self, vm: VmId) -> Result<Tracking, HypervisorError>;

    /// Marks every change from now on, in a map that begins with `moment`; whatever was
    /// tracked before is dropped. Durable on return. If `moment` is tracked already, only what
    /// came before it is dropped.
    ///
    /// # Errors
    /// When the map cannot be made; what was tracked before stays then.
    fn start_tracking(&self, vm: VmId, moment: Sequence) -> Result<(), HypervisorError>;

    /// Drops all maps.
    fn stop_tracking(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Where the disks can be read as they are at the moment of each read, read-only, running or
    /// off: for a copy of whole disks, during which changes are tracked.
    ///
    /// # Errors
    /// As [`power_state`](Self::power_state).
    fn present_disks(&self, vm: VmId) -> Result<Vec<DiskSource>, HypervisorError>;

    /// Freezes all disks at one instant, running or off; a map that begins with `moment` is
    /// durable before, if changes are tracked or were missed. The bitmaps of the view mark every
    /// change since the oldest moment. Not idempotent: a moment names one instant.
    ///
    /// # Errors
    /// When a view exists already, the disks are being moved, the moment does not lie after all
    /// that are tracked, or the view cannot be made; no change is forgotten then.
    fn freeze(
        &self,
        vm: VmId,
        moment: Sequence,
        consistency: Consistency,
    ) -> Result<Box<dyn FrozenView>, HypervisorError>;

    /// `moment` is safe at the replica: maps that begin before it are dropped, except for what
    /// may hold changes after it. What was [`Tracking::Unknown`] is known again from a moment
    /// that was frozen since. Durable on return.
    ///
    /// # Errors
    /// When it lies after the newest moment tracked; nothing is dropped then.
    fn received(&self, vm: VmId, moment: Sequence) -> Result<(), HypervisorError>;

    /// Bytes changed since the oldest moment tracked, in whole blocks: what no receipt covers. 0 when
    /// nothing is tracked.
    fn dirty_bytes(&self, vm: VmId) -> Result<u64, HypervisorError>;

    /// What all maps together mark of each disk, in ascending ranges of bytes; `None` when that
    /// is unknown.
    fn changed_ranges(&self, vm: VmId) -> Result<Option<DiskRanges>, HypervisorError>;

    /// Lets the disks stand on something else. The guest of a running VM goes on; it waits only
    /// for the last changes. What is tracked stays valid. A crash after
    /// [`DiskMover::finish`] leaves tracking unknown when the VM is defined with its new disks.
    ///
    /// # Errors
    /// When a view exists or the disks are being moved already, or a step fails: the disks stand
    /// on what they stood on. That a move cannot be noted is no error; tracking is unknown then.
    fn move_disks(&self, vm: VmId, mover: &mut dyn DiskMover) -> Result<(), HypervisorError>;

    /// A picture of the VM's screen as PNG, at most `width` wide.
    ///
    /// # Errors
    /// [`HypervisorError::Unsupported`] where the driver's VMs have none.
    fn screenshot(&self, vm: VmId, width: u32) -> Result<Vec<u8>, HypervisorError>;
}
