//! Making an overlay durable.

use std::io;
use std::sync::PoisonError;

use lifeboat_sys::disk::Access;

use super::Overlay;
use super::table::{Batch, Piece};

/// Slices of tables that may wait for a flush: 4 MiB. More, and a write flushes by itself.
const CHANGED_LIMIT: usize = 1024;

/// Why the overlay could not be made durable.
///
/// Nothing that was durable is lost, and what was written since can still be read. If a
/// write failed, for want of space say, the next flush tries again. If a sync failed, no
/// later one through this handle succeeds: the overlay has to be opened anew.
#[derive(Debug, thiserror::Error)]
#[error("make the overlay durable: {step}")]
pub struct FlushError {
    step: &'static str,
    source: io::Error,
}

impl Overlay {
    /// Makes everything that was written before the call durable.
    ///
    /// # Errors
    /// If writing the tables or a sync fails; see [`FlushError`].
    pub fn flush(&self) -> Result<(), FlushError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        // Mappings in these batches stand for data that is in the file already, so the
        // first sync makes it durable. What is mapped from here on waits for the next flush.
        let (counts, l2) = {
            let mut map = self.lock();
            let counts = map
                .refcounts
                .as_mut()
                .map(|refcounts| refcounts.tables.take_batch())
                .unwrap_or_default();
            (counts, map.l2.take_batch())
        };
        let outcome = self.write_batches(&counts, &l2);
        let mut map = self.lock();
        let map = &mut *map;
        let counts_tables = map
            .refcounts
            .as_mut()
            .map(|refcounts| &mut refcounts.tables);
        match &outcome {
            Ok(()) => {
                map.l2.settle(&l2);
                counts_tables
                    .into_iter()
                    .for_each(|tables| tables.settle(&counts));
            }
            Err(_) => {
                map.l2.give_back(&l2);
                counts_tables
                    .into_iter()
                    .for_each(|tables| tables.give_back(&counts));
            }
        }
        outcome
    }

    /// Flushes if many changes wait for it, to bound memory.
    pub(super) fn flush_if_many(&self) -> Result<(), FlushError> {
        if self.lock().changed() > CHANGED_LIMIT {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn write_batches(&self, counts: &Batch, l2: &Batch) -> Result<(), FlushError> {
        if !counts.fresh.is_empty() {
            // Each new refcount block counts itself; it must be there before it is pointed to.
            self.write_pieces(&counts.fresh)?;
            self.sync("sync new refcount blocks")?;
        }
        // Nothing points to new data and new L2 tables yet; they are counted before
        // something does. In between they are leaks.
        self.write_pieces(&counts.old)?;
        self.write_pieces(&counts.pointers)?;
        self.write_pieces(&l2.fresh)?;
        self.sync("sync data, reference counts and new L2 tables")?;
        if l2.is_empty() {
            return Ok(());
        }
        self.write_pieces(&l2.old)?;
        self.write_pieces(&l2.pointers)?;
        self.sync("sync L2 and L1 entries")
    }

    fn write_pieces(&self, pieces: &[Piece]) -> Result<(), FlushError> {
        for piece in pieces {
            self.file
                .write_at(&piece.bytes, piece.offset)
                .map_err(|source| FlushError {
                    step: "write tables",
                    source,
                })?;
        }
        Ok(())
    }

    fn sync(&self, step: &'static str) -> Result<(), FlushError> {
        self.file
            .sync()
            .map_err(|source| FlushError { step, source })
    }
}
