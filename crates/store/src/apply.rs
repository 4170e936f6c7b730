//! Applying a delta: preimages, journal, heads, journal.
//!
//! The order of writes, in which any two may have a crash between them:
//! 1. every digest of the delta is verified; nothing is journaled;
//! 2. preimages of what no segment holds yet go to the open segment, data then index, synced;
//! 3. `Preimages` is journaled, and the preimages become visible to readers: only forward now;
//! 4. the heads are written and synced;
//! 5. `Applied` is journaled: this one record publishes all disks;
//! 6. the spooled delta goes.
//!
//! A large delta does 2 to 4 slice by slice, with the heads synced at the end.

use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskSize, Sequence};
use lifeboat_stream::{Encoding, Ending, Limits, PayloadDecoder, PayloadRef};
use lifeboat_sys::disk::{Access, Cloned, DiskFile};

use crate::blob::ScanOrStore;
use crate::damage::Damage;
use crate::error::{IoContext, StoreError};
use crate::files::{self, FileReader};
use crate::image::Image;
use crate::record::{Lengths, Moment, Record};
use crate::slice::{Change, Content, Slices};
use crate::spool::{self, BrokenDelta, ScanError, SpooledDelta};
use crate::status::AppliedDelta;
use crate::store::Store;

/// After so many bytes written to a head the kernel is told to begin with them.
const WRITEBACK_BYTES: u64 = 16 << 20;

/// Shorter zeroed ranges are not searched for holes.
const SEARCH_HOLES_FROM: u64 = 64 << 10;

/// How much of the spool is read at once.
const WINDOW_BYTES: u64 = 1 << 20;

impl Store {
    /// Applies the oldest delta of the spool, or answers `None` when there is none.
    ///
    /// All disks change together or not at all, whatever crashes when. `progress` is told
    /// how many bytes of the disks are done, from time to time.
    ///
    /// # Errors
    /// Refused unless the store is a replica. After any other error the store has to be
    /// opened again; the delta then still stands in the spool, or is half applied and will
    /// be completed by the next call.
    pub fn apply_next(
        &mut self,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<AppliedDelta>, StoreError> {
        self.refuse_unless_replica()?;
        self.change(|store| store.apply_oldest(progress))
    }

    /// As [`apply_next`](Self::apply_next), within a change of the store.
    pub(crate) fn apply_oldest(
        &mut self,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<AppliedDelta>, StoreError> {
        while let Some(delta) = self.spool.first().cloned() {
            match self.apply(&delta, progress) {
                Ok(changed_bytes) => {
                    return Ok(Some(AppliedDelta {
                        sequence: delta.moment.sequence,
                        delta: delta.moment.id,
                        captured_at: delta.moment.captured_at,
                        consistency: delta.moment.consistency,
                        changed_bytes,
                    }));
                }
                Err(StoreError::Damaged { path, damage }) => {
                    if !self.set_apart(&damage) {
                        return Err(StoreError::Damaged { path, damage });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        match (self.broken_spool.first(), self.state.applying) {
            (None, None) => Ok(None),
            (Some(broken), _) => Err(broken.error()),
            (None, Some(applying)) => Err(self.missing(applying.sequence)),
        }
    }

    /// Sets the oldest delta apart, which is damaged, with what builds on it, if a later one
    /// can do without; answers whether.
    fn set_apart(&mut self, damage: &Damage) -> bool {
        let applied = self.state.applied_sequence();
        // Heads that hold no single moment are nothing to build on.
        let is_mixed = self.state.mixed.is_some();
        let can_do_without = |delta: &SpooledDelta| {
            delta
                .base
                .is_none_or(|base| !is_mixed && base.sequence <= applied)
        };
        let later = self.spool.iter().skip(1).position(can_do_without);
        let Some(later) = later else {
            return false;
        };
        for delta in self.spool.drain(..=later) {
            let sequence = delta.moment.sequence;
            self.broken_spool.push(BrokenDelta {
                sequence,
                path: self.layout.delta(&self.state.lineage.id, sequence),
                damage: damage.clone(),
            });
        }
        true
    }

    /// Completes a delta that is half applied.
    pub(crate) fn complete_apply(&mut self) -> Result<(), StoreError> {
        match (self.state.applying, self.spool.first().cloned()) {
            (None, _) => Ok(()),
            (Some(applying), Some(delta)) if delta.moment.id == applying.id => {
                self.apply(&delta, &mut |_| {}).map(|_| ())
            }
            (Some(applying), _) => Err(self.missing(applying.sequence)),
        }
    }

    /// Why a delta that is half applied cannot be completed.
    fn missing(&self, sequence: Sequence) -> StoreError {
        let mut broken = self.broken_spool.iter();
        match broken.find(|broken| broken.sequence == sequence) {
            Some(broken) => broken.error(),
            None => StoreError::Damaged {
                path: self.layout.delta(&self.state.lineage.id, sequence),
                damage: Damage::Missing,
            },
        }
    }

    fn apply(
        &mut self,
        delta: &SpooledDelta,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, StoreError> {
        let moment = delta.moment;
        let path = self.layout.delta(&self.state.lineage.id, moment.sequence);
        let file = self
            .disk
            .open(&path, Access::ReadOnly)
            .context("open", &path)?;
        let at_spool = |error: ScanError| error.at(&path);
        let disks = self.disks_of(delta);
        let sizes = self.sizes_of(delta);
        // Another delta that is half applied is no hindrance: this one holds whatever that one
        // changed, and the preimages of what it has written are saved.
        let begun = self.state.applying.filter(|begun| begun.id == moment.id);
        let begun_to = begun.map(|begun| begun.slice);
        self.release_reserve()?;
        if let Err(error) = self.ready_segments(moment.captured_at) {
            self.reserve_what_fits()?;
            return Err(error);
        }

        let mut slices = Slices::of(spool::open_scan(&file).map_err(at_spool)?);
        let decode = |error| at_spool(ScanError::Decode(error));
        let mut next = slices.next_slice().map_err(decode)?;
        let mut after = if next.is_some() {
            slices.next_slice().map_err(decode)?
        } else {
            None
        };
        if after.is_some() {
            // The first slice must not be written before the last one is known to be intact.
            let limits = Limits {
                stream_bytes: delta.bytes,
                ending: Ending::EndOfInput,
            };
            let reader = FileReader::new(Arc::clone(&file)).context("read", &path)?;
            lifeboat_stream::verify(reader, &limits).map_err(decode)?;
        }

        let mut source = Payloads::new(Arc::clone(&file)).map_err(at_spool)?;
        let mut changed = 0;
        let mut number = 0;
        loop {
            let mut slice = next.unwrap_or_default();
            for change in &mut slice {
                change.disk = disks[change.disk];
            }
            source.load(&slice).map_err(at_spool)?;
            if begun_to.is_none_or(|begun| number > begun) {
                let resized = if number == 0 {
                    Some(sizes.as_slice())
                } else {
                    None
                };
                let saved = self.save_preimages(&slice, resized)?;
                // A later slice that needed none may be applied again from the start.
                if number == 0 || saved {
                    self.journal_preimages(moment, number)?;
                }
            }
            if number == 0 {
                self.resize_heads(&sizes)?;
            }
            self.write_heads(&slice, &sizes, &mut source)?;
            changed += slice.iter().map(|change| change.len).sum::<u64>();
            progress(changed);
            number += 1;
            match after {
                None => break,
                Some(slice) => {
                    next = Some(slice);
                    after = slices.next_slice().map_err(decode)?;
                }
            }
        }
        for image in &self.images {
            let path = self.layout.head(&image.id);
            image.chain.head.sync().context("sync", &path)?;
            image.digests.sync().context("sync", &path)?;
        }
        let blobs = self.keep_blobs(&file).map_err(|error| match error {
            ScanOrStore::Scan(error) => at_spool(error),
            ScanOrStore::Store(error) => error,
        })?;
        self.save(&Record::Applied {
            moment,
            sizes,
            blobs,
        })?;
        self.spool.remove(0);
        self.broken_spool
            .retain(|broken| broken.sequence > moment.sequence);
        files::remove(self.disk.as_ref(), &path)?;
        Ok(changed)
    }

    /// For each disk of the delta, its place in the store.
    pub(crate) fn disks_of(&self, delta: &SpooledDelta) -> Vec<usize> {
        let place = |disk: &lifeboat_stream::Disk| self.disk_index(&disk.id);
        let places: Result<Vec<_>, _> = delta.manifest.disks().iter().map(place).collect();
        places.expect("BUG: a received delta carries the store's disks")
    }

    /// The sizes that the store's disks have in the delta.
    fn sizes_of(&self, delta: &SpooledDelta) -> Vec<DiskSize> {
        let mut sizes: Vec<DiskSize> = self.state.disks.iter().map(|disk| disk.size).collect();
        for (place, disk) in self.disks_of(delta).into_iter().zip(delta.manifest.disks()) {
            sizes[place] = disk.size;
        }
        sizes
    }

    /// Lets segments and heads have the space that was kept for the oldest delta.
    fn release_reserve(&mut self) -> Result<(), StoreError> {
        let need = self.needs(self.spool.iter()).first().copied().unwrap_or(0);
        let rest = self.reserve.held().saturating_sub(need);
        let path = self.layout.reserve();
        self.reserve.hold(rest).context("release", &path)
    }

    /// Records that the preimages of slices up to this one are durable, and shows them to readers.
    fn journal_preimages(&mut self, moment: Moment, slice: u64) -> Result<(), StoreError> {
        self.save(&Record::Preimages {
            sequence: moment.sequence,
            id: moment.id,
            slice,
            lengths: self.writer_lengths(),
        })?;
        self.publish_preimages();
        Ok(())
    }

    /// The valid lengths of the open segment's files, if there is one.
    pub(crate) fn writer_lengths(&self) -> Option<Vec<Lengths>> {
        let writers = self.images.iter().map(|image| image.writer.as_ref());
        writers.map(|writer| Some(writer?.lengths())).collect()
    }

    /// Shows readers the preimages that were journaled.
    pub(crate) fn publish_preimages(&mut self) {
        for image in &mut self.images {
            image.writer.iter_mut().for_each(|writer| writer.publish());
        }
    }

    /// Saves and syncs what the slice will overwrite and a smaller size will cut off; answers
    /// whether there was anything to save.
    fn save_preimages(
        &mut self,
        slice: &[Change],
        resized: Option<&[DiskSize]>,
    ) -> Result<bool, StoreError> {
        let mut saved = false;
        if self.state.open_segment().is_none() {
            return Ok(saved);
        }
        for at in 0..self.images.len() {
            let changes = slice.iter().filter(|change| change.disk == at);
            let touched = changes.map(|change| {
                let range = change.offset..change.offset + change.len;
                match change.content {
                    Content::Zero => Touched::Zeroed(range),
                    Content::Data { .. } => Touched::Written(range),
                }
            });
            let image = &self.images[at];
            let path = self.layout.head(&image.id);
            let mut blocks =
                changed_blocks(touched, image.chain.head.as_ref()).context("search", &path)?;
            let old = self.state.disks[at].size;
            if let Some(new) = resized.map(|sizes| sizes[at])
                && new < old
            {
                push_merged(&mut blocks, new.bytes() / BLOCK_SIZE..old.blocks());
            }
            saved |= self.save_blocks(at, &blocks)?;
        }
        Ok(saved)
    }

    /// Saves and syncs what the head of a disk holds in these blocks (ascending), where no
    /// segment does yet; answers whether there was anything to save.
    pub(crate) fn save_blocks(
        &mut self,
        at: usize,
        blocks: &[Range<u64>],
    ) -> Result<bool, StoreError> {
        let Some(segment) = self.state.open_segment() else {
            return Ok(false);
        };
        let end = segment.disks[at].size.blocks();
        let Image {
            id,
            chain,
            writer,
            digests,
            ..
        } = &mut self.images[at];
        let path = self.layout.open_segment(id, segment.number);
        let writer = writer.as_mut().expect("BUG: an open segment has a writer");
        writer
            .save(&chain.head, digests, blocks, end)
            .context("save preimages in", &path)?;
        writer.sync().context("sync", &path)
    }

    /// Gives the heads their new lengths.
    fn resize_heads(&self, sizes: &[DiskSize]) -> Result<(), StoreError> {
        for ((image, disk), size) in self.images.iter().zip(&self.state.disks).zip(sizes) {
            let path = self.layout.head(&image.id);
            if image.chain.head.len().context("measure", &path)? != size.bytes() {
                image
                    .chain
                    .head
                    .set_len(size.bytes())
                    .context("resize", &path)?;
            }
            if disk.size != *size {
                image
                    .digests
                    .resized(disk.size.bytes(), size.bytes())
                    .context("forget digests of", &path)?;
            }
        }
        Ok(())
    }

    fn write_heads(
        &self,
        slice: &[Change],
        sizes: &[DiskSize],
        source: &mut Payloads,
    ) -> Result<(), StoreError> {
        let mut unwritten = 0;
        for change in slice {
            let image = &self.images[change.disk];
            let path = self.layout.head(&image.id);
            let (offset, len) = (change.offset, change.len);
            match change.content {
                Content::Zero => {
                    image
                        .chain
                        .head
                        .punch(offset, len)
                        .context("punch", &path)?;
                    image.digests.forget(offset..offset + len);
                }
                Content::Data { payload, skip } => {
                    let bytes = source.bytes(&payload, skip, len);
                    image
                        .digests
                        .written(offset, bytes, sizes[change.disk].bytes())
                        .context("note digests of", &path)?;
                    let is_whole = len == u64::from(payload.plain_len);
                    let is_shared = is_whole
                        && source
                            .share(&payload, image.chain.head.as_ref(), offset)
                            .context("share with", &path)?;
                    if !is_shared {
                        let bytes = source.bytes(&payload, skip, len);
                        image
                            .chain
                            .head
                            .write_at(bytes, offset)
                            .context("write", &path)?;
                    }
                }
            }
            unwritten += len;
            if unwritten >= WRITEBACK_BYTES {
                image.chain.head.start_writeback(0, 0);
                unwritten = 0;
            }
        }
        Ok(())
    }
}

/// A range of a disk that gets new content.
#[derive(Debug, Clone)]
pub(crate) enum Touched {
    Written(Range<u64>),
    Zeroed(Range<u64>),
}

/// The blocks that changes (ascending, of one disk) give other bytes than the head has.
///
/// Zeroing a hole changes nothing, and whole disks are mostly holes.
pub(crate) fn changed_blocks(
    changes: impl Iterator<Item = Touched>,
    head: &dyn DiskFile,
) -> std::io::Result<Vec<Range<u64>>> {
    let mut blocks = Vec::new();
    for change in changes {
        let (Touched::Written(range) | Touched::Zeroed(range)) = &change;
        let touched = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
        match &change {
            Touched::Zeroed(range) if range.end - range.start >= SEARCH_HOLES_FROM => {
                let mut block = touched.start;
                while block < touched.end
                    && let Some(data) = head.next_data(block * BLOCK_SIZE)?
                {
                    let start = (data.start / BLOCK_SIZE).max(block);
                    let end = data.end.div_ceil(BLOCK_SIZE).max(start + 1);
                    if start < touched.end {
                        push_merged(&mut blocks, start..end.min(touched.end));
                    }
                    block = end;
                }
            }
            Touched::Zeroed(_) | Touched::Written(_) => push_merged(&mut blocks, touched),
        }
    }
    Ok(blocks)
}

/// Appends a range that begins no earlier than the last one did.
fn push_merged(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}

/// The plain bytes of one slice, verified.
struct Payloads {
    file: Arc<dyn DiskFile>,
    file_len: u64,
    decoder: PayloadDecoder,
    /// Plain bytes of the slice, and where each payload's begin, by position in the stream.
    plain: Vec<u8>,
    starts: std::collections::HashMap<u64, usize>,
    /// A stretch of the file, and where it begins.
    window: Vec<u8>,
    window_start: u64,
    shares: bool,
}

impl Payloads {
    fn new(file: Arc<dyn DiskFile>) -> Result<Self, ScanError> {
        let decoder =
            PayloadDecoder::new().map_err(|error| std::io::Error::other(error.to_string()))?;
        let starts = std::collections::HashMap::new();
        Ok(Self {
            file_len: file.len()?,
            file,
            decoder,
            plain: Vec::new(),
            starts,
            window: Vec::new(),
            window_start: 0,
            shares: true,
        })
    }

    /// Reads and verifies every payload of a slice.
    fn load(&mut self, slice: &[Change]) -> Result<(), ScanError> {
        self.plain.clear();
        self.starts.clear();
        for change in slice {
            let Content::Data { payload, .. } = change.content else {
                continue;
            };
            self.read_window(payload.position, u64::from(payload.stored_len))?;
            let from = (payload.position - self.window_start) as usize;
            let stored = &self.window[from..from + payload.stored_len as usize];
            let plain = self
                .decoder
                .decode(&payload, stored)
                .map_err(|source| spool::damaged_payload(&payload, source))?;
            self.starts.insert(payload.position, self.plain.len());
            self.plain.extend_from_slice(plain);
        }
        Ok(())
    }

    /// Has the window hold a range; small payloads that follow each other are read at once.
    fn read_window(&mut self, position: u64, len: u64) -> std::io::Result<()> {
        let end = self.window_start + self.window.len() as u64;
        if position < self.window_start || position + len > end {
            let ahead = self.file_len.saturating_sub(position).min(WINDOW_BYTES);
            self.window.resize(ahead.max(len) as usize, 0);
            self.window_start = position;
            self.file.read_at(&mut self.window, position)?;
        }
        Ok(())
    }

    fn bytes(&self, payload: &PayloadRef, skip: u64, len: u64) -> &[u8] {
        let start = *self
            .starts
            .get(&payload.position)
            .expect("BUG: the payload's slice was loaded");
        &self.plain[start + skip as usize..start + (skip + len) as usize]
    }

    /// Shares a payload with the head where both lie so that the file system can.
    fn share(
        &mut self,
        payload: &PayloadRef,
        head: &dyn DiskFile,
        offset: u64,
    ) -> std::io::Result<bool> {
        let aligned = matches!(payload.encoding, Encoding::RawAligned | Encoding::Raw)
            && payload.is_shareable();
        let whole_blocks = offset.is_multiple_of(BLOCK_SIZE)
            && u64::from(payload.plain_len).is_multiple_of(BLOCK_SIZE);
        if !self.shares || !aligned || !whole_blocks {
            return Ok(false);
        }
        match head.clone_range(
            self.file.as_ref(),
            payload.position,
            u64::from(payload.plain_len),
            offset,
        )? {
            Cloned::Shared => Ok(true),
            Cloned::Unsupported => {
                self.shares = false;
                Ok(false)
            }
        }
    }
}
