//! Opening an overlay: everything is checked before anything is believed.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use lifeboat_sys::disk::{Access, DiskFile};

use super::Overlay;
use super::claims::Claims;
use super::map::Map;
use super::refcounts::Refcounts;
use super::table::Tables;
use crate::geometry::{COPIED, Geometry, L2Format, OFFSET_MASK};
use crate::header::{EXTERNAL_DATA, Header, HeaderError, REFCOUNT_ORDER};

/// Why an overlay was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("open an overlay: its header is refused")]
    Header { source: HeaderError },
    #[error("open an overlay: its data lies in another file, which is not supported")]
    ExternalData,
    #[error("open an overlay: read its tables")]
    Read { source: io::Error },
    #[error(
        "open an overlay: entry {index} of its {table} is {entry:#x}, which is no place for a table; look at it with qemu-img check"
    )]
    Pointer {
        table: &'static str,
        index: u64,
        entry: u64,
    },
    #[error("open an overlay: two tables lie at {offset:#x}; look at it with qemu-img check")]
    SharedTable { offset: u64 },
    #[error("open an overlay for writing: {reason}; open it read-only, or let QEMU write it")]
    Unwritable { reason: Unwritable },
}

/// Why an overlay that can be read cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error("it has no extended L2 entries")]
    PlainL2,
    #[error("it holds bitmaps, which would become stale")]
    Bitmaps,
    #[error("its reference counts are not 16 bits wide")]
    RefcountWidth,
    #[error("it uses an autoclear feature that is not known here")]
    Autoclear,
    #[error("one of its tables is not marked as referred to once")]
    SharedTable,
}

impl Overlay {
    /// Opens an overlay; nothing is written, and no other file is opened.
    ///
    /// Takes no lock; see [`ImageGuard`](lifeboat_sys::disk::ImageGuard). The file must not
    /// be written by anybody else meanwhile. Memory: the L1 table and, for writing, the
    /// refcount table (at most 32 and 8 MiB, and as much for checking them), and up to
    /// 20 MiB of cached tables.
    ///
    /// # Errors
    /// If the image is damaged, uses what is not supported, or cannot be read.
    pub fn open(file: Arc<dyn DiskFile>, access: Access) -> Result<Self, OpenError> {
        let header = Header::read(&*file).map_err(|source| OpenError::Header { source })?;
        if header.incompatible & EXTERNAL_DATA != 0 {
            return Err(OpenError::ExternalData);
        }
        if access == Access::ReadWrite {
            check_writable(&header).map_err(|reason| OpenError::Unwritable { reason })?;
        }
        let map = read_map(&*file, &header, access)?;
        Ok(Self {
            file,
            access,
            geometry: header.geometry,
            map: Mutex::new(map),
            claims: Claims::default(),
            flushing: Mutex::new(()),
        })
    }
}

fn check_writable(header: &Header) -> Result<(), Unwritable> {
    if header.geometry.l2_format == L2Format::Plain {
        return Err(Unwritable::PlainL2);
    }
    if header.has_bitmaps {
        return Err(Unwritable::Bitmaps);
    }
    if header.refcount_order != REFCOUNT_ORDER {
        return Err(Unwritable::RefcountWidth);
    }
    if header.autoclear != 0 {
        return Err(Unwritable::Autoclear);
    }
    Ok(())
}

fn read_map(file: &dyn DiskFile, header: &Header, access: Access) -> Result<Map, OpenError> {
    let geometry = header.geometry;
    let cluster_size = geometry.cluster_size();
    let file_len = file.len().map_err(|source| OpenError::Read { source })?;
    let refcount_table_len = header.refcount_table_clusters * cluster_size;
    let l1_len = geometry.clusters_for(header.l1_entries * 8) * cluster_size;
    let fixed = [
        header.l1_offset..header.l1_offset + l1_len,
        header.refcount_table_offset..header.refcount_table_offset + refcount_table_len,
    ];
    let checker = PointerChecker {
        geometry,
        fixed: &fixed,
        file_len,
    };

    let l1 = read_pointers(file, header.l1_offset, header.l1_entries)?;
    let mut metadata = checker.check("L1 table", &l1, OFFSET_MASK, COPIED)?;
    let refcounts = match access {
        Access::ReadOnly => None,
        Access::ReadWrite => {
            if l1.iter().any(|&entry| entry != 0 && entry & COPIED == 0) {
                let reason = Unwritable::SharedTable;
                return Err(OpenError::Unwritable { reason });
            }
            let offset = header.refcount_table_offset;
            let table = read_pointers(file, offset, refcount_table_len / 8)?;
            metadata.extend(checker.check("refcount table", &table, REFCOUNT_MASK, 0)?);
            let tables = Tables::new(offset, table, REFCOUNT_MASK, cluster_size);
            Some(Refcounts::new(tables, &geometry, file_len))
        }
    };
    metadata.sort_unstable();
    if let Some(pair) = metadata.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(OpenError::SharedTable { offset: pair[0] });
    }
    Ok(Map {
        geometry,
        l2: Tables::new(header.l1_offset, l1, OFFSET_MASK, cluster_size),
        refcounts,
        metadata,
        fixed,
        file_len,
    })
}

/// The bits of a refcount table entry that are the offset of the block.
const REFCOUNT_MASK: u64 = !0x1FF;

fn read_pointers(file: &dyn DiskFile, offset: u64, entries: u64) -> Result<Vec<u64>, OpenError> {
    let mut bytes = vec![0; entries as usize * 8];
    file.read_at(&mut bytes, offset)
        .map_err(|source| OpenError::Read { source })?;
    let words = bytes
        .chunks_exact(8)
        .map(|word| u64::from_be_bytes(word.try_into().expect("BUG: eight bytes are eight bytes")));
    Ok(words.collect())
}

/// Checks where the entries of a first-level table point.
struct PointerChecker<'a> {
    geometry: Geometry,
    fixed: &'a [Range<u64>],
    file_len: u64,
}

impl PointerChecker<'_> {
    /// Answers the offsets of the tables pointed to.
    fn check(
        &self,
        table: &'static str,
        entries: &[u64],
        offset_mask: u64,
        flags: u64,
    ) -> Result<Vec<u64>, OpenError> {
        let cluster_size = self.geometry.cluster_size();
        let mut offsets = Vec::new();
        for (index, &entry) in entries.iter().enumerate() {
            let offset = entry & offset_mask;
            if entry & !flags == 0 {
                continue;
            }
            let is_sound = entry & !(offset_mask | flags) == 0
                && offset >= cluster_size
                && offset.is_multiple_of(cluster_size)
                && offset
                    .checked_add(cluster_size)
                    .is_some_and(|end| end <= self.file_len)
                && !self.fixed.iter().any(|range| range.contains(&offset));
            if !is_sound {
                return Err(OpenError::Pointer {
                    table,
                    index: index as u64,
                    entry,
                });
            }
            offsets.push(offset);
        }
        Ok(offsets)
    }
}
