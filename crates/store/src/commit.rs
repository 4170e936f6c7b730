//! Commit: the disk that the VM runs on becomes the head, and all recovery points go.
//!
//! Each range is written once, from the overlay where the guest wrote, else from the oldest
//! segment at or after the point, and what both leave alone is in the head already. Overlay
//! and segments are only read, so any part of the work may be done twice: after a crash it
//! begins again. The record `Committing` is the point of no return.

use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, Lineage, Sequence};
use lifeboat_qcow2::{ExtentState, Overlay};
use lifeboat_sys::disk::{Access, Cloned, DiskFile, EntryKind};
use serde::Serialize;

use crate::digest::DigestTable;
use crate::error::{IoContext, Refused, StoreError};
use crate::failover::image_error;
use crate::files;
use crate::index::Saved;
use crate::reader::View;
use crate::record::{Failover, Phase, Record, Target};
use crate::segment::Segment;
use crate::store::Store;

/// How much of a disk is planned at once.
pub(crate) const WINDOW: u64 = 1 << 30;

/// Bytes copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// Longer runs are shared where the file system can; shorter ones are cheaper to copy.
const SHARE_FROM: u64 = 64 << 10;

/// After so many bytes written the kernel is told to begin with them.
const WRITEBACK_BYTES: u64 = 16 << 20;

/// A commit that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// The moment that the VM started from.
    pub sequence: Sequence,
    /// The lineage that the disks belong to from now on.
    pub lineage: Lineage,
    /// Recovery points that are gone.
    pub points: usize,
    /// Bytes written to the heads.
    pub written_bytes: u64,
    /// Bytes that became shared with the heads without being written.
    pub shared_bytes: u64,
}

/// An overlay, and its file to share blocks with.
type OpenOverlay = (Arc<dyn DiskFile>, Overlay);

/// What has to be written to a head, in order.
pub(crate) type Plan = Vec<(Range<u64>, Source)>;

/// Where a range of the disk comes from.
pub(crate) enum Source {
    Overlay { host: u64 },
    Segment { segment: Arc<Segment>, host: u64 },
    Zero,
}

impl Store {
    /// Commits the failover: the heads take on what the VM's disks hold, every recovery point
    /// goes. Durable on return; once begun it is completed whatever happens, if need be when
    /// the store is opened again.
    ///
    /// The VM must be off. The space of the segments comes back in the background, by
    /// [`empty_trash`](Self::empty_trash). `progress` is told bytes done.
    ///
    /// # Errors
    /// Refused when there is no failover, while the VM runs, and while points are read. A
    /// segment whose digests fail is found before the point of no return: nothing is
    /// changed then, and the failover can still be reverted.
    pub fn commit(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Committed, StoreError> {
        let failover = match &self.state.phase {
            Phase::FailedOver(failover) => failover.clone(),
            Phase::Replica | Phase::FailingOver(_) => {
                return Err(Refused::NotFailedOver { purpose: "commit" }.into());
            }
            Phase::Committing(_) => return Err(Refused::Committing.into()),
            Phase::Committed(_) => return Err(Refused::Committed.into()),
        };
        self.refuse_readers()?;
        let _overlays = self.guard_overlays()?;
        let points = self.points_kept();
        self.guard_images()?;
        if let Err(error) = self.refuse_damaged(&failover) {
            // The VM can be started again.
            self.release_images();
            return Err(error);
        }
        self.change(|store| {
            let overlays = store.open_overlays()?;
            let overlays: Vec<_> = overlays.iter().map(|(_, overlay)| overlay).collect();
            store.write_divergence_map(&failover, &overlays)?;
            store.save(&Record::Committing)?;
            let moved = store.complete_commit(Begun::Now, progress)?;
            store.clear_after_commit()?;
            Ok(Committed::of(&failover, points, moved))
        })
    }

    /// How many recovery points there are, whatever the store is for now.
    pub(crate) fn points_kept(&self) -> usize {
        let segments = self.state.segments.iter();
        segments.filter(|segment| segment.is_point).count()
    }

    pub(crate) fn refuse_readers(&self) -> Result<(), Refused> {
        let pinned = self.pinned();
        let segment = self
            .state
            .segments
            .iter()
            .find(|segment| pinned.contains_key(&segment.number));
        match segment {
            Some(segment) => Err(Refused::PointInUse {
                sequence: segment.moment.sequence,
                users: pinned[&segment.number],
            }),
            None => Ok(()),
        }
    }

    /// Finds damage in whatever a commit reads, before the point of no return.
    fn refuse_damaged(&self, failover: &Failover) -> Result<(), StoreError> {
        self.open_overlays()?;
        match failover.target {
            Target::Newest => Ok(()),
            Target::Segment(number) => self.verify_segments_from(number),
        }
    }

    /// Opens every overlay.
    fn open_overlays(&self) -> Result<Vec<OpenOverlay>, StoreError> {
        let open = |path: std::path::PathBuf| {
            let file = self
                .disk
                .open(&path, Access::ReadOnly)
                .context("open", &path)?;
            let overlay = Overlay::open(Arc::clone(&file), Access::ReadOnly);
            Ok((file, overlay.map_err(|error| image_error(&path, &error))?))
        };
        self.state
            .disks
            .iter()
            .map(|disk| open(self.layout.overlay(&disk.id)))
            .collect()
    }

    /// Writes the heads of a commit that has begun.
    pub(crate) fn complete_commit(
        &mut self,
        begun: Begun,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Moved, StoreError> {
        let Phase::Committing(failover) = self.state.phase.clone() else {
            return Ok(Moved::default());
        };
        let overlays = self.open_overlays()?;
        if begun == Begun::Before {
            // The guest of a live commit may have written on since the map was written.
            let overlays: Vec<_> = overlays.iter().map(|(_, overlay)| overlay).collect();
            self.write_divergence_map(&failover, &overlays)?;
        }
        let mut moved = Moved::default();
        for (at, (file, overlay)) in overlays.iter().enumerate() {
            let image = &self.images[at];
            let path = self.layout.head(&image.id);
            let size = failover.sizes[at].bytes();
            let old = image.chain.head.len().context("measure", &path)?;
            if old != size {
                image.chain.head.set_len(size).context("resize", &path)?;
                image
                    .digests
                    .resized(old, size)
                    .context("forget digests of", &path)?;
            }
            let below = self.below(at, &failover);
            let mut writer = HeadWriter {
                head: &image.chain.head,
                digests: &image.digests,
                size,
                overlay: OverlayBytes::File(file),
                moved: &mut moved,
                unwritten: 0,
                buffer: Vec::new(),
                shares: true,
            };
            let mut start = 0;
            while start < size {
                let end = (start + WINDOW).min(size);
                for (range, source) in plan(overlay, &below, failover.target, start..end)
                    .map_err(|error| image_error(&path, error.as_ref()))?
                {
                    writer.put(range, &source).context("write", &path)?;
                }
                progress(writer.moved.written + writer.moved.shared);
                start = end;
            }
        }
        for image in &self.images {
            let path = self.layout.head(&image.id);
            image.chain.head.sync().context("sync", &path)?;
            image.digests.sync().context("sync", &path)?;
        }
        self.save(&Record::Committed)?;
        Ok(moved)
    }

    /// Takes away what a commit has made useless, and lets the VM have its disks. Repeats
    /// after a crash do no harm.
    pub(crate) fn clear_after_commit(&mut self) -> Result<(), StoreError> {
        // The overlays go last. Once they are gone a guest may be running on the wrappers.
        let mut is_first = false;
        for disk in &self.state.disks {
            let overlay = self.layout.overlay(&disk.id);
            is_first |= self
                .disk
                .kind(&overlay)
                .context("look up", &overlay)?
                .is_some();
        }
        for at in 0..self.images.len() {
            let image = &mut self.images[at];
            image.writer = None;
            image.chain.change(Vec::clear);
            let (id, size) = (image.id.clone(), self.state.disks[at].size);
            if is_first {
                self.ready_wrapper(&id, size)?;
            }
            let (segments, trash) = (self.layout.segments(&id), self.layout.trashed_segments(&id));
            files::ensure_dir(self.disk.as_ref(), &segments)?;
            let is_empty = self
                .disk
                .list(&segments)
                .context("list", &segments)?
                .is_empty();
            let trash_is_free = self.disk.kind(&trash).context("look up", &trash)?.is_none();
            if !is_empty && trash_is_free {
                self.disk
                    .rename(&segments, &trash)
                    .context("rename", &segments)?;
                files::ensure_dir(self.disk.as_ref(), &segments)?;
                files::sync_parent(self.disk.as_ref(), &segments)?;
            }
        }
        self.remove_overlays()?;
        for folder in [self.layout.points(), self.layout.spool()] {
            for entry in self.disk.list(&folder).context("list", &folder)? {
                let path = folder.join(&entry.name);
                if path != self.layout.reserve() {
                    files::remove(self.disk.as_ref(), &path)?;
                }
            }
            self.disk.sync_dir(&folder).context("sync", &folder)?;
        }
        let trash = self.layout.trash();
        self.disk.sync_dir(&trash).context("sync", &trash)?;
        self.spool.clear();
        self.broken_spool.clear();
        self.release_images();
        self.release_whole_reserve()
    }

    /// Gives back the space of segments that a commit has made useless. May take a while.
    ///
    /// # Errors
    /// What the operating system says; it can be called again.
    pub fn empty_trash(&self) -> Result<(), StoreError> {
        let trash = self.layout.trash();
        for folder in self.disk.list(&trash).context("list", &trash)? {
            let path = trash.join(&folder.name);
            if folder.kind != EntryKind::Folder {
                files::remove(self.disk.as_ref(), &path)?;
                continue;
            }
            for entry in self.disk.list(&path).context("list", &path)? {
                files::remove(self.disk.as_ref(), &path.join(&entry.name))?;
            }
            self.disk.remove_dir(&path).context("remove", &path)?;
        }
        Ok(())
    }
}

/// When a commit that is to be completed has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begun {
    /// In this call: nothing has changed since.
    Now,
    /// Before a crash, perhaps with a guest that wrote on.
    Before,
}

/// How many bytes a commit moved.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Moved {
    written: u64,
    shared: u64,
}

impl Moved {
    pub(crate) fn add(&mut self, other: Self) {
        self.written += other.written;
        self.shared += other.shared;
    }
}

impl Committed {
    pub(crate) fn of(failover: &Failover, points: usize, moved: Moved) -> Self {
        let sequence = failover
            .lineage
            .forked_from
            .map_or(Sequence::ZERO, |(_, sequence)| sequence);
        Self {
            sequence,
            lineage: failover.lineage,
            points,
            written_bytes: moved.written,
            shared_bytes: moved.shared,
        }
    }
}

/// Where each range of a window has to be taken from; ranges that the head holds are left out.
pub(crate) fn plan(
    overlay: &Overlay,
    below: &View,
    target: Target,
    window: Range<u64>,
) -> Result<Plan, Box<dyn std::error::Error>> {
    let mut plan = Vec::new();
    for extent in overlay.extents(window) {
        let extent = extent?;
        let range = extent.offset..extent.offset + extent.len;
        match (extent.state, target) {
            (ExtentState::Data { host }, _) => plan.push((range, Source::Overlay { host })),
            (ExtentState::Zero, _) => plan.push((range, Source::Zero)),
            (ExtentState::Absent, Target::Newest) => {}
            (ExtentState::Absent, Target::Segment(_)) => plan_below(below, range, &mut plan)?,
        }
    }
    Ok(plan)
}

/// What lies under the overlay: segments from the point on, and zeroes beyond the point's size.
fn plan_below(below: &View, range: Range<u64>, plan: &mut Plan) -> std::io::Result<()> {
    let there = range.start.min(below.size)..range.end.min(below.size);
    if !there.is_empty() {
        for (blocks, saved) in
            below.saved(there.start / BLOCK_SIZE..there.end.div_ceil(BLOCK_SIZE))?
        {
            let part = (blocks.start * BLOCK_SIZE).max(there.start)
                ..(blocks.end * BLOCK_SIZE).min(there.end);
            let skip = part.start - blocks.start * BLOCK_SIZE;
            match saved {
                Some((segment, Saved::Data { host })) => plan.push((
                    part,
                    Source::Segment {
                        segment,
                        host: host + skip,
                    },
                )),
                Some((_, Saved::Zero)) => plan.push((part, Source::Zero)),
                Some((_, Saved::Lost)) => {
                    let damage = crate::damage::Damage::Lost {
                        block: blocks.start,
                        blocks: blocks.end - blocks.start,
                    };
                    return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, damage));
                }
                None => {}
            }
        }
    }
    if range.end > below.size {
        plan.push((range.start.max(below.size)..range.end, Source::Zero));
    }
    Ok(())
}

/// Writes one head during a commit.
pub(crate) struct HeadWriter<'a> {
    pub(crate) head: &'a Arc<dyn DiskFile>,
    pub(crate) digests: &'a DigestTable,
    pub(crate) size: u64,
    pub(crate) overlay: OverlayBytes<'a>,
    pub(crate) moved: &'a mut Moved,
    pub(crate) unwritten: u64,
    pub(crate) buffer: Vec<u8>,
    pub(crate) shares: bool,
}

/// Where the bytes of an overlay are read.
#[derive(Clone, Copy)]
pub(crate) enum OverlayBytes<'a> {
    /// From its file, which nobody writes.
    File(&'a Arc<dyn DiskFile>),
    /// As its guest reads them, while it writes.
    Live(&'a Overlay),
}

impl HeadWriter<'_> {
    pub(crate) fn put(&mut self, range: Range<u64>, source: &Source) -> std::io::Result<()> {
        match source {
            Source::Zero => {
                let len = range.end - range.start;
                self.head.punch(range.start, len)?;
                self.digests.forget(range);
                Ok(())
            }
            Source::Overlay { host } => match self.overlay {
                OverlayBytes::File(file) => self.copy(file, *host, range),
                OverlayBytes::Live(overlay) => self.write_from(range, &|offset, buffer| {
                    // What an overlay holds once it holds for ever.
                    let gone = || std::io::Error::other("read what an overlay gave up");
                    overlay
                        .read(offset, buffer, &|_, _| Err(gone()))
                        .map_err(std::io::Error::other)
                }),
            },
            Source::Segment { segment, host } => self.copy(segment.data(), *host, range),
        }
    }

    fn copy(
        &mut self,
        from: &Arc<dyn DiskFile>,
        host: u64,
        range: Range<u64>,
    ) -> std::io::Result<()> {
        let len = range.end - range.start;
        let aligned = (host | range.start | len).is_multiple_of(BLOCK_SIZE);
        if self.shares && len >= SHARE_FROM && aligned && host + len <= from.len()? {
            match self
                .head
                .clone_range(from.as_ref(), host, len, range.start)?
            {
                Cloned::Shared => {
                    self.moved.shared += len;
                    self.digests.forget(range);
                    return Ok(());
                }
                Cloned::Unsupported => self.shares = false,
            }
        }
        let start = range.start;
        self.write_from(range, &|offset, buffer| {
            read_padded(from.as_ref(), host + (offset - start), buffer)
        })
    }

    /// Writes what `read` fills in for each offset of the disk.
    fn write_from(
        &mut self,
        range: Range<u64>,
        read: &dyn Fn(u64, &mut [u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut position = range.start;
        while position < range.end {
            let step = (range.end - position).min(COPY_BYTES);
            self.buffer.resize(step as usize, 0);
            read(position, &mut self.buffer)?;
            self.head.write_at(&self.buffer, position)?;
            self.digests.written(position, &self.buffer, self.size)?;
            position += step;
            self.moved.written += step;
            self.unwritten += step;
        }
        if self.unwritten >= WRITEBACK_BYTES {
            self.head.start_writeback(0, 0);
            self.unwritten = 0;
        }
        Ok(())
    }
}

/// Reads from an image file whose last cluster may be cut short: the rest is zero.
fn read_padded(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    let there = file.len()?.saturating_sub(offset).min(buffer.len() as u64) as usize;
    buffer[there..].fill(0);
    file.read_at(&mut buffer[..there], offset)
}
