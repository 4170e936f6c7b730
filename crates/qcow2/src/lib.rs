//! The qcow2 images that Lifeboat writes and reads.
//!
//! Three kinds, each for one purpose:
//! - [`seal`] turns a *segment* of preimages into an image whose backing file is the next
//!   newer segment, so that stock tools open any point;
//! - [`write_wrapper`] makes the image `disk.qcow2`, through which QEMU uses a raw head;
//! - an [`Overlay`] takes what a guest writes since a failover.
//!
//! Everything goes through the disk port: nothing is opened here but the file given, and
//! no name inside an image is ever followed. Images are taken for hostile: whatever their
//! bytes, the answer is an error or a result within the bounds of the file, memory stays
//! bounded and every loop ends.
//!
//! Does not lock images; see [`ImageGuard`](lifeboat_sys::disk::ImageGuard).

mod create;
mod geometry;
mod header;
mod overlay;
mod refcount_area;
mod sealed;
mod wrapper;

pub use create::{Below, CreateError, create_overlay};
pub use header::{Backing, BackingFormat, HeaderError, InvalidName};
pub use overlay::{
    ExtentState, Extents, FlushError, MapError, OpenError, Overlay, OverlayExtent, ReadBelow,
    ReadError, Unwritable, WriteError,
};
pub use sealed::{
    Layout, SEGMENT_CLUSTER, SUB_BLOCK, Seal, SealError, SealedCluster, SealedInfo, seal,
};
pub use wrapper::{WrapperError, verify_wrapper, write_wrapper};
