//! What can go wrong with a volume and its views.

use std::io;
use std::path::PathBuf;

use lifeboat_model::{DiskId, DiskSize, InvalidDiskSize, Sequence};
use lifeboat_nbd::ExportSetError;

/// A volume could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("create the disk image {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("open a volume without disks: name at least one")]
    NoDisks,
    #[error("open a volume with disk {disk} twice: names must differ")]
    DuplicateDisk { disk: DiskId },
    #[error("open {path} of disk {disk}")]
    Open {
        disk: DiskId,
        path: PathBuf,
        source: io::Error,
    },
    #[error("open {path} of disk {disk}: another program uses the image, stop it first")]
    InUse { disk: DiskId, path: PathBuf },
    #[error("take the size of disk {disk} from {path}")]
    Size {
        disk: DiskId,
        path: PathBuf,
        source: InvalidDiskSize,
    },
    #[error("take the size of disk {disk}")]
    DeviceSize {
        disk: DiskId,
        source: InvalidDiskSize,
    },
    #[error("offer or withdraw disk {disk}")]
    Export {
        disk: DiskId,
        source: ExportSetError,
    },
    #[error("make disk {disk} durable")]
    Sync { disk: DiskId, source: io::Error },
}

/// A volume could not be frozen. It goes on as before, and no change is forgotten.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("freeze the volume: it has a frozen view already, release that first")]
    AlreadyFrozen,
    #[error("freeze the volume: its disks are being moved, wait until that has ended")]
    Moving,
    #[error("make a scratch file in {folder} for the old blocks of disk {disk}")]
    Scratch {
        disk: DiskId,
        folder: PathBuf,
        source: io::Error,
    },
    #[error("offer the frozen view of disk {disk}")]
    Export {
        disk: DiskId,
        source: ExportSetError,
    },
}

/// A view was released, but not all of its readers have gone.
#[derive(Debug, thiserror::Error)]
#[error("withdraw the frozen view of disk {disk}; it is released nevertheless")]
pub struct ReleaseError {
    pub disk: DiskId,
    pub source: ExportSetError,
}

/// Disks could not be moved. They stand on what they stood on.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("move the disks: they have a frozen view, release that first")]
    Frozen,
    #[error("move the disks: they are being moved already")]
    Moving,
    #[error("copy the disks, pass {pass}")]
    Copy { pass: u32, source: io::Error },
    #[error("copy the last changes while the guest waits")]
    Finish { source: io::Error },
    #[error("move the disks: what they shall stand on is not given once for each of them")]
    WrongDisks,
    #[error("move disk {disk} of {size} bytes to something of {moved} bytes: sizes must be equal")]
    Size {
        disk: DiskId,
        size: DiskSize,
        moved: u64,
    },
}

/// A tracker could not do what it was asked; what it knew before holds.
#[derive(Debug, thiserror::Error)]
pub enum TrackerError {
    #[error("use the folder of maps {}", folder.display())]
    Folder { folder: PathBuf, source: io::Error },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write {}", path.display())]
    Save { path: PathBuf, source: io::Error },
    #[error("make the map {}", path.display())]
    Map { path: PathBuf, source: io::Error },
    #[error("make the maps since moment {moment} durable")]
    Sync { moment: Sequence, source: io::Error },
    #[error(
        "track changes since moment {moment}: moment {newest} came before, and none comes twice"
    )]
    OldMoment { moment: Sequence, newest: Sequence },
    #[error("forget what came before moment {moment}: the newest moment is {newest}")]
    FutureMoment { moment: Sequence, newest: Sequence },
}

/// Why a frozen view cannot be read any more.
#[derive(Debug, thiserror::Error)]
pub enum BreakReason {
    #[error("the old blocks would take more than the {limit} bytes allowed")]
    ScratchFull { limit: u64 },
    #[error("keep old blocks of disk {disk} in its scratch file")]
    Scratch { disk: DiskId, source: io::Error },
    #[error("read old blocks of disk {disk} at {offset}")]
    OldBlocks {
        disk: DiskId,
        offset: u64,
        source: io::Error,
    },
}
