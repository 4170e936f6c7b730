//! The mapping of an overlay: which parts of the guest's disk it holds, and where.

use std::io;

use lifeboat_sys::disk::DiskFile;

use super::refcounts::{AllocateError, Refcounts};
use super::table::Tables;
use crate::geometry::{COPIED, Geometry, L2Format, OFFSET_LIMIT, OFFSET_MASK};

const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROES: u64 = 1;

/// Why a part of the mapping could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(
        "map {len} bytes at {offset} of a disk of {virtual_size} bytes: the range lies beyond its end"
    )]
    OutOfRange {
        offset: u64,
        len: u64,
        virtual_size: u64,
    },
    #[error(
        "map the disk at {offset}: the cluster is compressed, which is not supported; rewrite the overlay with qemu-img convert"
    )]
    Compressed { offset: u64 },
    #[error(
        "map the disk at {offset}: the overlay is damaged there ({found:#x} {what}); look at it with qemu-img check"
    )]
    Damaged {
        offset: u64,
        found: u64,
        what: &'static str,
    },
    #[error("read the tables of the overlay")]
    Read { source: io::Error },
    #[error("the overlay has reached the largest size its reference counts allow")]
    Full,
}

impl From<AllocateError> for MapError {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::Full => Self::Full,
            AllocateError::Io(source) => Self::Read { source },
        }
    }
}

/// What an L2 entry says of one cluster; see [`Geometry::subclusters`] for the bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where the cluster lies in the file; 0 if nowhere.
    pub host: u64,
    pub data: u32,
    pub zero: u32,
    /// Whether nothing else refers to the cluster, so that it may be written in place.
    pub is_sole: bool,
}

/// State of the overlay behind its lock.
#[derive(Debug)]
pub(super) struct Map {
    pub geometry: Geometry,
    pub l2: Tables,
    /// `None` if the overlay was opened read-only.
    pub refcounts: Option<Refcounts>,
    /// Offsets of all L2 tables and refcount blocks, ascending.
    pub metadata: Vec<u64>,
    /// Where the first-level tables lie in the file: L1, refcount table.
    pub fixed: [std::ops::Range<u64>; 2],
    /// Length of the file when it was opened.
    pub file_len: u64,
}

impl Map {
    /// Index of the L2 table for a cluster of the guest, and where in it the entry lies.
    fn locate(&self, cluster: u64) -> (u64, u64) {
        let entries = self.geometry.cluster_size() / self.geometry.entry_size();
        (
            cluster / entries,
            cluster % entries * self.geometry.entry_size(),
        )
    }

    /// Whether there is an L2 table for this cluster of the guest.
    pub fn has_table(&self, cluster: u64) -> bool {
        self.l2.table(self.locate(cluster).0) != 0
    }

    pub fn entry(&mut self, file: &dyn DiskFile, cluster: u64) -> Result<Entry, MapError> {
        let (index, at) = self.locate(cluster);
        if self.l2.table(index) == 0 {
            return Ok(Entry::default());
        }
        let mut raw = [0; 16];
        let raw = &mut raw[..self.geometry.entry_size() as usize];
        self.l2
            .read(file, index, at, raw)
            .map_err(|source| MapError::Read { source })?;
        let word = |at: usize| {
            let bytes = raw[at..at + 8].try_into();
            u64::from_be_bytes(bytes.expect("BUG: eight bytes are eight bytes"))
        };
        let offset = cluster * self.geometry.cluster_size();
        match self.geometry.l2_format {
            L2Format::Plain => self.decode_plain(offset, word(0)),
            L2Format::Extended => self.decode_extended(offset, word(0), word(8)),
        }
    }

    fn decode_plain(&self, offset: u64, word: u64) -> Result<Entry, MapError> {
        let zero = word & READS_AS_ZEROES;
        let host = self.decode_host(offset, word & !READS_AS_ZEROES)?;
        let data = u32::from(zero == 0 && host != 0);
        self.check_data(offset, host, data)?;
        Ok(Entry {
            host,
            data,
            zero: zero as u32,
            is_sole: word & COPIED != 0,
        })
    }

    fn decode_extended(&self, offset: u64, word: u64, bitmap: u64) -> Result<Entry, MapError> {
        let host = self.decode_host(offset, word)?;
        let data = bitmap as u32;
        let zero = (bitmap >> 32) as u32;
        if data & zero != 0 || (data != 0 && host == 0) {
            return Err(MapError::Damaged {
                offset,
                found: bitmap,
                what: "is no bitmap of sub-clusters",
            });
        }
        self.check_data(offset, host, data)?;
        Ok(Entry {
            host,
            data,
            zero,
            is_sole: word & COPIED != 0,
        })
    }

    /// The place of a cluster: aligned, and not on top of header or tables.
    fn decode_host(&self, offset: u64, word: u64) -> Result<u64, MapError> {
        if word & COMPRESSED != 0 {
            return Err(MapError::Compressed { offset });
        }
        let host = word & OFFSET_MASK;
        let reserved = word & !(OFFSET_MASK | COPIED);
        if reserved != 0 || !host.is_multiple_of(self.geometry.cluster_size()) {
            return Err(MapError::Damaged {
                offset,
                found: word,
                what: "is no cluster descriptor",
            });
        }
        if host != 0 && self.is_metadata(host) {
            return Err(MapError::Damaged {
                offset,
                found: host,
                what: "is a place of tables, not of data",
            });
        }
        Ok(host)
    }

    fn check_data(&self, offset: u64, host: u64, data: u32) -> Result<(), MapError> {
        if data != 0 && host >= self.data_end() {
            return Err(MapError::Damaged {
                offset,
                found: host,
                what: "lies beyond the end of the file",
            });
        }
        Ok(())
    }

    /// Where in the file data can end: at the end it had when it was opened, or of the last
    /// cluster allocated since.
    pub fn data_end(&self) -> u64 {
        self.refcounts
            .as_ref()
            .map_or(self.file_len, |refcounts| refcounts.end())
    }

    pub fn is_metadata(&self, host: u64) -> bool {
        host < self.geometry.cluster_size()
            || self.fixed.iter().any(|range| range.contains(&host))
            || self.metadata.binary_search(&host).is_ok()
    }

    /// Changes what the map says of a cluster; makes the L2 table if there is none.
    ///
    /// Only for extended entries, on an overlay that is open for writing.
    pub fn set_entry(
        &mut self,
        file: &dyn DiskFile,
        cluster: u64,
        entry: Entry,
    ) -> Result<(), MapError> {
        let (index, at) = self.locate(cluster);
        if self.l2.table(index) == 0 {
            let table = self.allocate(file)?;
            self.metadata.push(table);
            self.l2.adopt(index, table | COPIED);
        }
        let descriptor = if entry.host == 0 {
            0
        } else {
            entry.host | COPIED
        };
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&descriptor.to_be_bytes());
        let bitmap = u64::from(entry.zero) << 32 | u64::from(entry.data);
        raw[8..].copy_from_slice(&bitmap.to_be_bytes());
        self.l2
            .write(file, index, at, &raw)
            .map_err(|source| MapError::Read { source })
    }

    /// Extends the file by a cluster, which reads as zeroes.
    pub fn allocate(&mut self, file: &dyn DiskFile) -> Result<u64, MapError> {
        let refcounts = self
            .refcounts
            .as_mut()
            .expect("BUG: allocation in an overlay that is read only");
        let offset = refcounts.allocate(file, &mut self.metadata)?;
        assert!(offset < OFFSET_LIMIT, "BUG: a cluster beyond every table");
        Ok(offset)
    }

    /// Slices of tables that wait for a flush.
    pub fn changed(&self) -> usize {
        let refcounts = self.refcounts.as_ref();
        self.l2.changed() + refcounts.map_or(0, |refcounts| refcounts.tables.changed())
    }
}
