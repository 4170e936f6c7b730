//! The overlay: what a guest writes since a failover, over a point that never changes.
//!
//! Reads every image without compression, encryption, snapshots and external data, as QEMU
//! or an operator may have made it; writes those with extended L2 entries only, which
//! [`create_overlay`](crate::create_overlay) makes and QEMU keeps.
//!
//! A write goes to its place in the file at once, its mapping stays in memory until
//! [`Overlay::flush`]. That makes durable, in this order: new refcount blocks, if any; data,
//! reference counts and new L2 tables; the entries that point to them. A power loss between
//! any two leaves a right image, at worst with clusters that are counted and not used,
//! which `qemu-img check` calls leaks.
//!
//! All methods take `&self`. Reads and writes of data happen outside of the lock; writes
//! that change the mapping of one cluster of the guest wait for each other, so that two
//! writes into the same 4 KiB do not undo one another.

mod claims;
mod extents;
mod flush;
mod map;
mod open;
mod refcounts;
mod table;
mod write;

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_sys::disk::{Access, DiskFile};

use crate::geometry::Geometry;
use claims::Claims;
pub use extents::{ExtentState, Extents, OverlayExtent};
pub use flush::FlushError;
use map::Map;
pub use map::MapError;
pub use open::{OpenError, Unwritable};
pub use write::WriteError;

/// Reads what lies below an overlay: fills the buffer with the bytes at an offset of the
/// guest's disk, zeroes where the image below is shorter.
pub type ReadBelow<'a> = &'a (dyn Fn(u64, &mut [u8]) -> io::Result<()> + 'a);

/// An open overlay.
pub struct Overlay {
    file: Arc<dyn DiskFile>,
    access: Access,
    geometry: Geometry,
    map: Mutex<Map>,
    claims: Claims,
    /// Held while a flush writes, so that batches reach the disk one after the other.
    flushing: Mutex<()>,
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the tables, which are megabytes.
        f.debug_struct("Overlay")
            .field("access", &self.access)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

/// Why a read of the guest's disk failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("look up what to read")]
    Map { source: MapError },
    #[error("read {len} bytes of the overlay at {host:#x}")]
    Data {
        host: u64,
        len: u64,
        source: io::Error,
    },
    #[error("read {len} bytes at {offset} of the image below the overlay")]
    Below {
        offset: u64,
        len: u64,
        source: io::Error,
    },
}

impl Overlay {
    /// Bytes of the guest's disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size
    }

    /// Bytes that a write of the guest should be a multiple of, and aligned to, so that
    /// nothing is read from below.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        self.geometry.subcluster_size()
    }

    /// Reads what the guest sees at `offset`, from the overlay or from below.
    ///
    /// # Errors
    /// If the range lies beyond the end of the disk, the mapping is damaged, or one of the
    /// images cannot be read.
    pub fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        below: ReadBelow<'_>,
    ) -> Result<(), ReadError> {
        self.check_range(offset, buffer.len() as u64)
            .map_err(|source| ReadError::Map { source })?;
        let end = offset + buffer.len() as u64;
        for extent in self.extents(offset..end) {
            let OverlayExtent {
                offset: at,
                len,
                state,
            } = extent.map_err(|source| ReadError::Map { source })?;
            let start = (at - offset) as usize;
            let part = &mut buffer[start..start + len as usize];
            match state {
                ExtentState::Zero => part.fill(0),
                ExtentState::Data { host } => self
                    .read_data(host, part)
                    .map_err(|source| ReadError::Data { host, len, source })?,
                ExtentState::Absent => below(at, part).map_err(|source| ReadError::Below {
                    offset: at,
                    len,
                    source,
                })?,
            }
        }
        Ok(())
    }

    /// Reads bytes of an extent of data; beyond the end of the file they are zeroes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_data(&self, host: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.file.read_at(buffer, host) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let inside = self.file.len()?.saturating_sub(host);
                let inside = inside.min(buffer.len() as u64) as usize;
                let (head, tail) = buffer.split_at_mut(inside);
                tail.fill(0);
                self.file.read_at(head, host)
            }
            outcome => outcome,
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), MapError> {
        let virtual_size = self.geometry.virtual_size;
        match offset.checked_add(len) {
            Some(end) if end <= virtual_size => Ok(()),
            _ => Err(MapError::OutOfRange {
                offset,
                len,
                virtual_size,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
