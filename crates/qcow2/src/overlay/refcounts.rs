//! Reference counts of an overlay that is being written, and the allocation of clusters.
//!
//! Clusters are only ever taken from behind the end that the file had when it was opened,
//! and never given back while it is open. So a new cluster reads as zeroes, nothing that
//! a damaged image points to is overwritten, and the place of data that a reader has
//! looked up stays its place.

use std::io;

use lifeboat_sys::disk::DiskFile;

use super::table::Tables;
use crate::geometry::{Geometry, OFFSET_LIMIT};
use crate::refcount_area::COUNT_SIZE;

/// Why no cluster was allocated.
#[derive(Debug)]
pub(super) enum AllocateError {
    /// The refcount table cannot count any further cluster.
    Full,
    Io(io::Error),
}

#[derive(Debug)]
pub(super) struct Refcounts {
    pub tables: Tables,
    cluster_size: u64,
    /// The next cluster to be tried.
    next: u64,
}

impl Refcounts {
    /// `file_len` is the length of the file before anything is allocated.
    pub fn new(tables: Tables, geometry: &Geometry, file_len: u64) -> Self {
        Self {
            tables,
            cluster_size: geometry.cluster_size(),
            next: geometry.clusters_for(file_len),
        }
    }

    /// Where the last allocated cluster ends.
    pub fn end(&self) -> u64 {
        self.next * self.cluster_size
    }

    /// Extends the file by a cluster that reads as zeroes and counts one reference to it.
    ///
    /// Refcount blocks that this takes are added to `metadata`.
    pub fn allocate(
        &mut self,
        file: &dyn DiskFile,
        metadata: &mut Vec<u64>,
    ) -> Result<u64, AllocateError> {
        let per_block = self.cluster_size / COUNT_SIZE;
        loop {
            let cluster = self.next;
            let offset = cluster * self.cluster_size;
            let block = cluster / per_block;
            if block >= self.tables.pointers.len() as u64 || offset >= OFFSET_LIMIT {
                return Err(AllocateError::Full);
            }
            file.set_len(offset + self.cluster_size)
                .map_err(AllocateError::Io)?;
            self.next += 1;
            let becomes_block = self.tables.table(block) == 0;
            if becomes_block {
                // A block within its own range: once pointed to, it counts itself.
                self.tables.adopt(block, offset);
                metadata.push(offset);
            }
            let at = cluster % per_block * COUNT_SIZE;
            let mut count = [0; COUNT_SIZE as usize];
            let io_error = AllocateError::Io;
            self.tables
                .read(file, block, at, &mut count)
                .map_err(io_error)?;
            if u16::from_be_bytes(count) != 0 {
                // Somebody counted a reference beyond the end of the file: leave it alone.
                continue;
            }
            let one = 1_u16.to_be_bytes();
            self.tables.write(file, block, at, &one).map_err(io_error)?;
            if !becomes_block {
                return Ok(offset);
            }
        }
    }
}
