//! What can go wrong with a hypervisor.

use std::io;
use std::path::PathBuf;

use lifeboat_model::{Consistency, DiskId, VmId};
use lifeboat_nbd::{BindError, ExportSetError, InvalidUri};
use lifeboat_volume::{FreezeError, ImageError, MoveError, TrackerError, VolumeError};

/// A driver could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// Refused: nothing has changed.
    #[error("VM {vm} is not defined on this host")]
    Unknown { vm: VmId },
    /// Refused: nothing has changed.
    #[error("VM {vm} is running: stop it first")]
    Running { vm: VmId },
    /// Refused: nothing has changed.
    #[error("VM {vm} is busy: {what}; wait until that has ended")]
    Busy { vm: VmId, what: &'static str },
    /// Refused: nothing has changed.
    #[error("VMs of this kind have no {what}")]
    Unsupported { what: &'static str },
    /// Refused: nothing has changed.
    #[error("define VM {vm}: the disks given are not the disks of the definition")]
    OtherDisks { vm: VmId },
    #[error("use the image of disk {disk} of VM {vm}")]
    Image {
        vm: VmId,
        disk: DiskId,
        source: ImageError,
    },
    #[error("look at {} of disk {disk} of VM {vm}", path.display())]
    Examine {
        vm: VmId,
        disk: DiskId,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "disk {disk} of VM {vm} has {found} bytes, and had {expected} when it was defined: define the VM again"
    )]
    Size {
        vm: VmId,
        disk: DiskId,
        expected: u64,
        found: u64,
    },
    #[error("use the disks of VM {vm}")]
    Volume { vm: VmId, source: VolumeError },
    #[error("track the changes of VM {vm}")]
    Tracking { vm: VmId, source: TrackerError },
    #[error("freeze VM {vm}, {consistency:?} consistent")]
    Freeze {
        vm: VmId,
        consistency: Consistency,
        source: FreezeError,
    },
    #[error("move the disks of VM {vm}")]
    Move { vm: VmId, source: MoveError },
    #[error("offer or withdraw disk {disk} of VM {vm}")]
    Offer {
        vm: VmId,
        disk: DiskId,
        source: ExportSetError,
    },
    #[error("serve the disks of VM {vm}")]
    Serve { vm: VmId, source: BindError },
    #[error("serve captures on {}", path.display())]
    ServeCaptures { path: PathBuf, source: BindError },
    #[error("name a socket in {}: choose a folder with a shorter path", folder.display())]
    Socket { folder: PathBuf, source: InvalidUri },
    #[error("use the folder {}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
}
