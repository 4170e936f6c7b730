//! Why a view could not be captured.

use lifeboat_model::{DiskId, InvalidDiskSize};
use lifeboat_nbd::{ConnectError, InvalidContextName, NbdUri, RequestError};
use lifeboat_stream::{EncodeError, ManifestError};

/// Why a view could not be captured. What was written of the stream is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("describe the disks of the capture")]
    Plan { source: ManifestError },
    #[error(
        "capture disk {disk} by bitmap {bitmap:?}: an initial stream carries whole disks, leave the bitmap out"
    )]
    InitialByBitmap { disk: DiskId, bitmap: String },
    #[error("ask for the bitmap of disk {disk}")]
    BitmapName {
        disk: DiskId,
        source: InvalidContextName,
    },
    #[error("open disk {disk} at {uri}")]
    Connect {
        disk: DiskId,
        uri: Box<NbdUri>,
        source: Box<ConnectError>,
    },
    #[error(
        "find bitmap {bitmap:?} of disk {disk}: {uri} does not offer it, so what has changed is not known; export the view with this bitmap, or capture the whole disk"
    )]
    BitmapMissing {
        disk: DiskId,
        uri: Box<NbdUri>,
        bitmap: String,
    },
    #[error("take the size of disk {disk} from {uri}")]
    Size {
        disk: DiskId,
        uri: Box<NbdUri>,
        source: InvalidDiskSize,
    },
    #[error("list what has changed on disk {disk}")]
    Changes { disk: DiskId, source: RequestError },
    #[error("ask what is allocated on disk {disk}")]
    Allocation { disk: DiskId, source: RequestError },
    #[error("read disk {disk}")]
    Read { disk: DiskId, source: RequestError },
    #[error("encode the captured disks")]
    Encode { source: EncodeError },
}
