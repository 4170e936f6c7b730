//! Capture: the disks of a frozen view, read over NBD, become one delta stream.
//!
//! Whoever froze the view says where each disk is exported and which bitmap tells what
//! has changed; [`capture()`] reads exactly that and writes it as a stream. The view may
//! be any NBD server's: nothing here knows who runs the VM.
//!
//! Promised: a block that the bitmap marks is in the stream, as data or as zeroes,
//! whatever the server says of its allocation; a bitmap that the server does not have is
//! an error and never means "nothing has changed"; any failure fails the whole capture.
//! Memory is a few MiB per disk, whatever the size of the disks and the number of changes.
//!
//! Not here: freezing and releasing the view, drawing the sequence number, and trying
//! again. What a failed capture has written is cut and must be thrown away.

mod capture;
mod connect;
mod error;
mod frames;
mod survey;

pub use capture::{
    CapturePlan, Captured, DEFAULT_DEADLINE, DEFAULT_DEPTH, Progress, Source, capture,
};
pub use error::CaptureError;
