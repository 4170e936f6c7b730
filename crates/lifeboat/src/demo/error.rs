//! Why the demo could not be shown to its end.

use std::io;
use std::path::PathBuf;

use lifeboat_capture::CaptureError;
use lifeboat_model::{DiskId, Sequence};
use lifeboat_nbd::{BindError, ConnectError, ExportSetError, InvalidUri, RequestError};
use lifeboat_store::StoreError;
use lifeboat_volume::{FreezeError, ReleaseError, VolumeError};

/// The demo failed, or proved something wrong.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{} is not empty; the demo needs a new or empty folder", path.display())]
    FolderNotEmpty { path: PathBuf },

    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("ask the system for {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },

    #[error("name the socket in {}; choose a --dir with a shorter path", folder.display())]
    Socket { folder: PathBuf, source: InvalidUri },

    #[error("open or close the VM's disks")]
    Volume { source: VolumeError },

    #[error("freeze the VM at moment {sequence}")]
    Freeze {
        sequence: Sequence,
        source: FreezeError,
    },

    #[error("release the frozen view of moment {sequence}")]
    Release {
        sequence: Sequence,
        source: ReleaseError,
    },

    #[error("serve disks over NBD")]
    Bind { source: BindError },

    #[error("offer or withdraw disk {disk}")]
    Export {
        disk: DiskId,
        source: ExportSetError,
    },

    #[error("connect to disk {disk}")]
    Connect { disk: DiskId, source: ConnectError },

    #[error("let the guest use disk {disk}")]
    Request { disk: DiskId, source: RequestError },

    #[error("let the guest use {path} on disk {disk}")]
    FileSystem {
        disk: DiskId,
        path: String,
        source: io::Error,
    },

    #[error("capture moment {sequence}")]
    Capture {
        sequence: Sequence,
        source: CaptureError,
    },

    #[error("send moment {sequence} to the replica")]
    Send {
        sequence: Sequence,
        source: io::Error,
    },

    #[error("the replica's receipt for moment {sequence} does not match what was sent")]
    Receipt { sequence: Sequence },

    #[error(transparent)]
    Store(#[from] StoreError),

    #[error("the process that was to be killed ended by itself: {status}")]
    Child { status: std::process::ExitStatus },

    #[error("the guest ended before its time")]
    GuestEnded,

    #[error("interrupted")]
    Interrupted,

    #[error("{wrong_bytes} bytes are not what the guest wrote; first: {first}; everything is kept in {}", folder.display())]
    Wrong {
        wrong_bytes: u64,
        /// What was compared, and where it differs.
        first: String,
        folder: PathBuf,
    },
}
