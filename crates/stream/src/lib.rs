//! The delta stream: the one form in which a VM's changes travel, are spooled and
//! stand on export media.
//!
//! A stream carries one frozen moment of all disks of one VM: an [`Encoder`] writes it, a
//! [`Decoder`] reads it in order, [`copy_verified`] passes it on, and [`scan()`] lists
//! where its payloads lie in a file. Every byte is covered by a checksum; readers refuse
//! damage, cuts, and whatever the format does not allow, and need a few MiB of memory whatever the
//! input claims. The bytes are described in `docs/delta-stream.md`.
//!
//! The id in the [`Footer`] is BLAKE3 over all that the stream says, every byte of data included. It
//! proves that two streams say the same; it does not prove who wrote them.
//!
//! Nothing here opens a file or a socket, or reads a clock.

mod copy;
mod decode;
mod encode;
mod footer;
mod frame;
mod header;
mod identity;
mod manifest;
mod payload;
mod reading;
mod rules;
mod scan;
mod zero;

pub use copy::{CopyError, Summary, copy_rest, copy_verified, verify};
pub use decode::{Decoder, Frame};
pub use encode::{Compression, EncodeError, Encoder, Layout, Options};
pub use footer::Footer;
pub use frame::{
    BlobKind, FrameError, MAX_BLOB_BYTES, MAX_DATA_LEN, SHARE_ALIGNMENT, SHARE_MIN_LEN,
};
pub use header::{Base, Header, HeaderError, InvalidHeader, Kind, VERSION};
pub use manifest::{Disk, Manifest, ManifestError};
pub use payload::{Encoding, PayloadDecoder, PayloadError, PayloadRef};
pub use reading::{DecodeError, Ending, Limits};
pub use rules::RuleError;
pub use scan::{Entry, Scan, scan};
pub use zero::is_zero;
