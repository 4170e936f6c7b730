//! Copying whole disks straight into the heads: the first copy, and a resynchronization.
//!
//! The journal says that the heads are mixed before the first byte. If they held a moment, the
//! boundary after it is kept by the state itself, and whatever a piece overwrites is saved in
//! the open segment first, as for a delta: points and that moment stay readable, and a failover
//! starts from it. A delta of kind `resync` without a base closes the copy; the record `Applied`
//! of that delta ends the mixed state.
//!
//! The order of writes of one piece:
//! 1. preimages of what no segment holds yet, data then index, synced;
//! 2. `CopySaved` is journaled, and the preimages become visible to readers;
//! 3. the head is written and synced, with its digests;
//! 4. `Copied` is journaled.
//!
//! A crash before 4 leaves a piece that is not done and may be half written; the sender sends
//! it again. Its digests are forgotten on opening.

use std::ops::Range;

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize, Sequence, Timestamp};
use serde::Serialize;

use crate::apply::{Touched, changed_blocks};
use crate::chunk::{Chunk, Fill};
use crate::error::{IoContext, Refused, StoreError};
use crate::files;
use crate::lineage::refuse_unless_descended;
use crate::mixed::{CopyKind, Piece};
use crate::record::{History, Record};
use crate::spool;
use crate::store::Store;

/// A copy of whole disks, as the side that sends it names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewCopy {
    /// Drawn like a moment's: above everything that this store has received.
    pub sequence: Sequence,
    pub kind: CopyKind,
}

/// How far a copy has come, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyStatus {
    pub sequence: Sequence,
    pub kind: CopyKind,
    /// Per disk what is copied, in bytes, ascending and apart.
    pub disks: Vec<(DiskId, Vec<Range<u64>>)>,
}

/// What the heads hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Heads {
    /// No moment yet.
    Empty,
    /// This moment, on all disks.
    Consistent(Sequence),
    /// No single moment: whole disks are being copied, or that was given up half way. The
    /// last consistent moment, if there is one, is kept for a failover.
    Mixed(Option<Sequence>),
}

impl Store {
    /// Begins a copy of whole disks into the heads, or goes on with the one under way. Durable
    /// on return; what waits in the spool is applied first, so that nothing acknowledged is lost.
    ///
    /// The same copy again changes nothing. A newer one, or one of another kind, restarts: what was done is forgotten,
    /// what was overwritten is not. The disks keep the sizes they have here until the delta
    /// that closes the copy says otherwise.
    ///
    /// # Errors
    /// Refused unless the store is a replica, when the number is used up, and for an initial
    /// copy when there is a moment here already.
    pub fn begin_copy(&mut self, new: NewCopy, now: Timestamp) -> Result<CopyStatus, StoreError> {
        self.begin_copy_following(new, None, now)
    }

    /// As [`begin_copy`](Self::begin_copy), of a primary that has gone on with `history`, which
    /// descends from this store's lineage: the store follows it from the copy's beginning on, in
    /// the same durable step. What was received before keeps its lineage.
    ///
    /// # Errors
    /// As [`begin_copy`](Self::begin_copy), and refused when the history does not descend from
    /// the store's.
    pub fn begin_copy_following(
        &mut self,
        new: NewCopy,
        history: Option<History>,
        now: Timestamp,
    ) -> Result<CopyStatus, StoreError> {
        self.refuse_unless_replica()?;
        let history = history.filter(|history| history.lineage.id != self.state.lineage.id);
        if let Some(history) = &history {
            refuse_unless_descended(self.state.lineage.id, &history.lineage, &history.ancestors)?;
        }
        if let Some(status) = self.copy_status()
            && (status.sequence, status.kind) == (new.sequence, new.kind)
        {
            return Ok(status);
        }
        let under_way = self.state.mixed.as_ref().map(|mixed| mixed.sequence);
        let newest = self.tip().max(under_way.unwrap_or(Sequence::ZERO));
        let is_resumed = under_way == Some(new.sequence) && self.tip() < new.sequence;
        if new.sequence <= newest && !is_resumed {
            return Err(Refused::OldCopy {
                sequence: new.sequence,
                newest,
            }
            .into());
        }
        match (new.kind, self.state.applied) {
            (CopyKind::Initial, Some(moment)) => {
                return Err(Refused::NotEmptyForCopy {
                    applied: moment.sequence,
                }
                .into());
            }
            (CopyKind::Initial, None) | (CopyKind::Resync | CopyKind::ByMaps, _) => {}
        }
        self.change(|store| {
            store.apply_what_can_be()?;
            let boundary = store.last_consistent_boundary(now)?;
            store.settle_half_applied()?;
            store.save(&Record::CopyBegun {
                sequence: new.sequence,
                kind: new.kind,
                boundary,
                follows: history.map(Box::new),
            })?;
            store.clear_spool()?;
            store.reserve_what_fits()
        })?;
        self.copy_status().ok_or_else(|| Refused::NotCopying.into())
    }

    /// Whether the heads are known to be what the other side holds by more than maps.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        !self.state.unverified
    }

    /// All of the heads was compared with the other side's disks: points that are made from now
    /// on are verified. Durable on return; again it changes nothing.
    ///
    /// # Errors
    /// Refused unless the store is a replica whose heads hold one moment.
    pub fn mark_verified(&mut self) -> Result<(), StoreError> {
        self.refuse_unless_replica()?;
        self.refuse_mixed("call the replica verified")?;
        if !self.state.unverified {
            return Ok(());
        }
        self.change(|store| store.save(&Record::Verified))
    }

    /// Whether the delta that ends the copy was received, and waits to be applied.
    #[must_use]
    pub fn is_copy_closed(&self) -> bool {
        // While a copy is under way nothing else is received before it.
        self.state.mixed.is_some() && !self.spool.is_empty()
    }

    /// How far the copy has come that is under way, if one is.
    #[must_use]
    pub fn copy_status(&self) -> Option<CopyStatus> {
        let mixed = self.state.mixed.as_ref()?;
        let done = mixed.done.as_ref()?;
        let disks = self.state.disks.iter().zip(done);
        Some(CopyStatus {
            sequence: mixed.sequence,
            kind: mixed.kind,
            disks: disks
                .map(|(disk, done)| (disk.id.clone(), done.0.clone()))
                .collect(),
        })
    }

    /// What the heads hold.
    #[must_use]
    pub fn heads(&self) -> Heads {
        match (&self.state.mixed, self.state.applied) {
            (Some(_), _) => {
                let last = self.state.last_consistent();
                Heads::Mixed(last.map(|segment| segment.moment.sequence))
            }
            (None, Some(moment)) => Heads::Consistent(moment.sequence),
            (None, None) => Heads::Empty,
        }
    }

    /// Writes one piece of the copy that is under way. Durable on return, and then part of
    /// [`copy_status`](Self::copy_status). A piece that is done already changes nothing.
    ///
    /// # Errors
    /// Refused when the piece does not belong to the copy under way; [`StoreError::DiskFull`]
    /// when there is no room for it, before anything is written. After any other error the
    /// store has to be opened again; the piece is then not done.
    pub fn write_chunk(&mut self, chunk: &Chunk) -> Result<(), StoreError> {
        self.refuse_unless_replica()?;
        let place = chunk.place();
        self.refuse_foreign_copy(chunk)?;
        let piece = Piece {
            disk: self.disk_index(&place.disk)?,
            range: place.range.clone(),
        };
        self.refuse_bad_piece(&piece)?;
        if self.is_done(&piece) {
            return Ok(());
        }
        let is_closing = !self.spool.is_empty()
            || !self.broken_spool.is_empty()
            || self.state.applying.is_some();
        if is_closing {
            // It would bring bytes that are newer than the delta which is to close the copy.
            return Err(Refused::CopyClosing.into());
        }
        let root = self.layout.root();
        let available = self.disk.available(root).context("measure", root)?;
        if available < need(chunk) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(full).context("copy into", root);
        }
        self.change(|store| store.write_piece(chunk, piece))
    }

    /// Refuses what belongs to another copy than the one under way.
    fn refuse_foreign_copy(&self, chunk: &Chunk) -> Result<(), Refused> {
        let (state, place) = (&self.state, chunk.place());
        if place.relationship != state.relationship {
            return Err(Refused::OtherRelationship {
                theirs: place.relationship,
                ours: state.relationship,
            });
        }
        if place.lineage != state.lineage.id {
            return Err(Refused::OtherLineage {
                theirs: place.lineage,
                ours: state.lineage.id,
            });
        }
        match state.mixed.as_ref().filter(|mixed| mixed.done.is_some()) {
            None => Err(Refused::NotCopying),
            Some(mixed) if mixed.sequence != place.sequence => Err(Refused::OtherCopy {
                theirs: place.sequence,
                ours: mixed.sequence,
            }),
            Some(_) => Ok(()),
        }
    }

    fn refuse_bad_piece(&self, piece: &Piece) -> Result<(), Refused> {
        let size = self.state.disks[piece.disk].size.bytes();
        let end = piece.range.end;
        if end > size || !(end.is_multiple_of(BLOCK_SIZE) || end == size) {
            return Err(Refused::BadPiece {
                disk: self.state.disks[piece.disk].id.clone(),
                end,
                size,
            });
        }
        match &self.state.mixed {
            Some(mixed) if mixed.has_room_for(piece) => Ok(()),
            Some(_) | None => Err(Refused::ScatteredCopy),
        }
    }

    fn is_done(&self, piece: &Piece) -> bool {
        let done = self.state.mixed.as_ref().and_then(|mixed| {
            let done = mixed.done.as_ref()?;
            done.get(piece.disk)
        });
        done.is_some_and(|done| done.covers(&piece.range))
    }

    fn write_piece(&mut self, chunk: &Chunk, piece: Piece) -> Result<(), StoreError> {
        let at = piece.disk;
        if let Some(newest) = self.state.segments.last() {
            let opened_at = newest.opened_at;
            self.ready_segments(opened_at)?;
        }
        let path = self.layout.head(&self.images[at].id);
        let touched = chunk.parts().map(|(range, fill)| match fill {
            Fill::Data(_) => Touched::Written(range),
            Fill::Zero => Touched::Zeroed(range),
        });
        let blocks = changed_blocks(touched, self.images[at].chain.head.as_ref())
            .context("search", &path)?;
        self.save_blocks(at, &blocks)?;
        self.save(&Record::CopySaved {
            piece: piece.clone(),
            lengths: self.writer_lengths(),
        })?;
        self.publish_preimages();

        let size = self.state.disks[at].size.bytes();
        let image = &self.images[at];
        for (range, fill) in chunk.parts() {
            match fill {
                Fill::Zero => {
                    let len = range.end - range.start;
                    let head = &image.chain.head;
                    head.punch(range.start, len).context("punch", &path)?;
                    image.digests.forget(range);
                }
                Fill::Data(bytes) => {
                    image
                        .digests
                        .written(range.start, bytes, size)
                        .context("note digests of", &path)?;
                    let head = &image.chain.head;
                    // Much at once, and read by nobody before the VM starts here.
                    head.write_past_cache_at(bytes, range.start)
                        .context("write", &path)?;
                }
            }
        }
        image.chain.head.sync().context("sync", &path)?;
        image.digests.sync().context("sync digests of", &path)?;
        self.save(&Record::Copied { piece })?;
        self.reserve_what_fits()
    }

    /// Applies the spool as far as it is intact.
    fn apply_what_can_be(&mut self) -> Result<(), StoreError> {
        loop {
            match self.apply_oldest(&mut |_| {}) {
                Ok(Some(_)) => {}
                // What is damaged is what the copy makes good.
                Ok(None) | Err(StoreError::Damaged { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The boundary of the last consistent moment, opened if need be.
    fn last_consistent_boundary(&mut self, now: Timestamp) -> Result<Option<u64>, StoreError> {
        if let Some(mixed) = &self.state.mixed {
            return Ok(mixed.boundary);
        }
        if self.state.applying.is_some() {
            // A delta was half applied and cannot be completed: only points are left.
            let mut points = self.state.segments.iter().rev();
            let newest = points.find(|segment| segment.is_point);
            return Ok(newest.map(|segment| segment.number));
        }
        match self.state.applied {
            Some(_) => self.boundary_now(now).map(Some),
            None => Ok(None),
        }
    }

    /// Gives heads their sizes back that a delta had changed which cannot be completed.
    fn settle_half_applied(&self) -> Result<(), StoreError> {
        if self.state.applying.is_none() {
            return Ok(());
        }
        for (image, disk) in self.images.iter().zip(&self.state.disks) {
            let path = self.layout.head(&image.id);
            let head = &image.chain.head;
            let (old, size) = (head.len().context("measure", &path)?, disk.size.bytes());
            head.set_len(size).context("resize", &path)?;
            head.sync().context("sync", &path)?;
            // Any of it may have been written without its digest.
            image
                .digests
                .resized(old, size)
                .context("forget digests of", &path)?;
            image.digests.forget(0..size);
            image.digests.sync().context("sync digests of", &path)?;
        }
        Ok(())
    }

    /// Removes deltas that can never be applied any more. A crash before leaves them to the
    /// next opening.
    fn clear_spool(&mut self) -> Result<(), StoreError> {
        let folder = self.layout.spool();
        for entry in self.disk.list(&folder).context("list", &folder)? {
            let path = folder.join(&entry.name);
            if path != self.layout.reserve() {
                files::remove(self.disk.as_ref(), &path)?;
            }
        }
        self.spool.clear();
        self.broken_spool.clear();
        Ok(())
    }

    /// Forgets the digests of a piece that may be half written. Durable on return.
    pub(crate) fn forget_half_written(&self) -> Result<(), StoreError> {
        let writing = self.state.mixed.as_ref().and_then(|m| m.writing.as_ref());
        let Some(piece) = writing else {
            return Ok(());
        };
        if let Some(image) = self.images.get(piece.disk) {
            let path = self.layout.head(&image.id);
            image.digests.forget(piece.range.clone());
            image.digests.sync().context("sync digests of", &path)?;
        }
        Ok(())
    }

    /// Whether a copy is under way and the delta that closes it is not here.
    pub(crate) fn is_copy_open(&self) -> bool {
        let under_way = self.state.mixed.as_ref().is_some_and(|m| m.done.is_some());
        under_way && self.spool.is_empty()
    }

    /// Refuses what needs the heads to hold one moment.
    pub(crate) fn refuse_mixed(&self, purpose: &'static str) -> Result<(), Refused> {
        match self.state.mixed {
            Some(_) => Err(Refused::Mixed { purpose }),
            None => Ok(()),
        }
    }

    /// Whether a copy may be closed now, as far as what it has copied goes.
    pub(crate) fn refuse_incomplete_copy(&self) -> Result<(), Refused> {
        let Some(mixed) = &self.state.mixed else {
            return Ok(());
        };
        if mixed.done.is_none() {
            return Err(Refused::CopyNeeded);
        }
        let is_first = mixed.kind == CopyKind::Initial || mixed.boundary.is_none();
        let sizes: Vec<DiskSize> = self.state.disks.iter().map(|disk| disk.size).collect();
        if is_first && !mixed.is_complete(&sizes) {
            return Err(Refused::CopyIncomplete {
                sequence: mixed.sequence,
            });
        }
        Ok(())
    }
}

/// What writing a piece can take from the file system at most.
fn need(chunk: &Chunk) -> u64 {
    let parts = chunk.parts().map(|(range, fill)| {
        let len = range.end - range.start;
        match fill {
            Fill::Data(_) => spool::preimages_and_head(range.start, len),
            Fill::Zero => spool::zeroed(range.start, len),
        }
    });
    spool::HEADROOM + parts.sum::<u64>()
}
