//! One disk of a frozen view: old blocks are kept before new ones are written.
//!
//! The scratch file has the size of the disk and is sparse; an old block is kept at its own
//! offset, and an old block of zeroes as a hole. `saved` tells which blocks are kept
//! there. A writer marks a block saved before it writes; a reader who has read from the
//! disk looks at the marks again, and what was saved meanwhile it takes from the scratch
//! file. So a reader never sees a new byte.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize};
use lifeboat_nbd::{Extent, ZERO};
use lifeboat_sys::disk::{DiskFile, GuestDisk};

use crate::error::BreakReason;
use crate::extents::{ExtentList, data_or_hole};
use crate::map::{BlockMap, blocks_of};

/// Old blocks are read and kept in parts of this many blocks, 64 KiB.
const PART_BLOCKS: u64 = 16;

/// Writers to different parts of a disk do not wait for one another.
const LOCKS: usize = 64;

/// From this many blocks on, holes are looked for before old blocks are read.
const LOOK_FOR_HOLES_FROM: u64 = 4 * PART_BLOCKS;

const ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// Whether a view is in use, and what its old blocks may take; the same for all its disks.
#[derive(Debug)]
pub(crate) struct Control {
    open: AtomicBool,
    broken: OnceLock<BreakReason>,
    kept: AtomicU64,
    limit: u64,
}

impl Control {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            open: AtomicBool::new(true),
            broken: OnceLock::new(),
            kept: AtomicU64::new(0),
            limit,
        }
    }

    /// Old blocks are kept no longer, and readers get errors.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::SeqCst);
    }

    pub(crate) fn broken(&self) -> Option<&BreakReason> {
        self.broken.get()
    }

    /// Bytes of old blocks in scratch files.
    pub(crate) fn kept(&self) -> u64 {
        self.kept.load(Ordering::SeqCst).min(self.limit)
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    /// The first reason stays.
    fn fail(&self, reason: BreakReason) {
        let _ = self.broken.set(reason);
        self.close();
    }

    fn reserve(&self, bytes: u64) -> Result<(), BreakReason> {
        let before = self.kept.fetch_add(bytes, Ordering::SeqCst);
        if before + bytes > self.limit {
            return Err(BreakReason::ScratchFull { limit: self.limit });
        }
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.is_open() {
            return Ok(());
        }
        Err(match self.broken.get() {
            Some(reason) => io::Error::other(format!("the frozen view is broken: {reason}")),
            None => io::Error::other("the frozen view has been released"),
        })
    }
}

/// One disk of a view.
#[derive(Debug)]
pub(crate) struct ViewDisk {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
    live: Arc<dyn GuestDisk>,
    scratch: Arc<dyn DiskFile>,
    saved: BlockMap,
    locks: [Mutex<()>; LOCKS],
}

impl ViewDisk {
    pub(crate) fn new(
        id: DiskId,
        size: DiskSize,
        live: Arc<dyn GuestDisk>,
        scratch: Arc<dyn DiskFile>,
    ) -> Self {
        Self {
            id,
            size,
            live,
            scratch,
            saved: BlockMap::new(size),
            locks: [const { Mutex::new(()) }; LOCKS],
        }
    }

    /// Keeps what `blocks` hold before they are written. What cannot be kept breaks the
    /// view, never the write.
    pub(crate) fn preserve(&self, control: &Control, blocks: Range<u64>) {
        let outcome = if blocks.end - blocks.start >= LOOK_FOR_HOLES_FROM {
            self.preserve_sparse(control, blocks)
        } else {
            self.preserve_parts(control, blocks)
        };
        if let Err(reason) = outcome {
            control.fail(reason);
        }
        // Readers must see the marks, or the end of the view, before what is written next.
        fence(Ordering::SeqCst);
    }

    fn preserve_sparse(&self, control: &Control, blocks: Range<u64>) -> Result<(), BreakReason> {
        let mut at = blocks.start;
        while at < blocks.end && control.is_open() {
            let offset = at * BLOCK_SIZE;
            let data = self
                .live
                .next_data(offset)
                .map_err(|source| self.old_blocks(offset, source))?;
            // What looks like data is at least one block, also when it is punched meanwhile.
            let (start, end) = data.map_or((blocks.end, blocks.end), |data| {
                let start = (data.start / BLOCK_SIZE).max(at);
                (start, data.end.div_ceil(BLOCK_SIZE).max(start + 1))
            });
            let (start, end) = (start.min(blocks.end), end.min(blocks.end));
            // A hole that nobody has saved was a hole when the view was frozen; one that
            // somebody has saved is marked already.
            self.saved.mark(at..start);
            self.preserve_parts(control, start..end)?;
            at = end;
        }
        Ok(())
    }

    fn preserve_parts(&self, control: &Control, blocks: Range<u64>) -> Result<(), BreakReason> {
        let mut at = blocks.start;
        while at < blocks.end && control.is_open() {
            let part = at / PART_BLOCKS;
            let end = blocks.end.min((part + 1) * PART_BLOCKS);
            if self.saved.first_unmarked(at..end).is_some() {
                let lock = &self.locks[(part % LOCKS as u64) as usize];
                let _writer = lock.lock().unwrap_or_else(PoisonError::into_inner);
                self.preserve_part(control, at..end)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Called with the part locked.
    fn preserve_part(&self, control: &Control, blocks: Range<u64>) -> Result<(), BreakReason> {
        let mut buffer = [0; (PART_BLOCKS * BLOCK_SIZE) as usize];
        let mut at = blocks.start;
        while let Some(start) = self.saved.first_unmarked(at..blocks.end) {
            let (_, end) = self.saved.run(start..blocks.end);
            let span = self.bytes(start..end);
            let old = &mut buffer[..(span.end - span.start) as usize];
            self.live
                .read_at(old, span.start)
                .map_err(|source| self.old_blocks(span.start, source))?;
            self.keep(control, span.start, old)?;
            self.saved.mark(start..end);
            at = end;
        }
        Ok(())
    }

    /// Writes `old` to the scratch file, except for blocks of zeroes, which are there already.
    fn keep(&self, control: &Control, offset: u64, old: &[u8]) -> Result<(), BreakReason> {
        let mut run = 0..0;
        let block = BLOCK_SIZE as usize;
        loop {
            let next = &old[run.end..];
            let next = &next[..next.len().min(block)];
            if *next != ZEROES[..next.len()] {
                run.end += next.len();
                continue;
            }
            if !run.is_empty() {
                control.reserve(run.len() as u64)?;
                let at = offset + run.start as u64;
                let kept = self.scratch.write_at(&old[run.clone()], at);
                kept.map_err(|source| BreakReason::Scratch {
                    disk: self.id.clone(),
                    source,
                })?;
            }
            if next.is_empty() {
                return Ok(());
            }
            run = run.end + next.len()..run.end + next.len();
        }
    }

    fn old_blocks(&self, offset: u64, source: io::Error) -> BreakReason {
        BreakReason::OldBlocks {
            disk: self.id.clone(),
            offset,
            source,
        }
    }

    /// Reads what the disk held when it was frozen.
    pub(crate) fn read(&self, control: &Control, offset: u64, into: &mut [u8]) -> io::Result<()> {
        control.check()?;
        let blocks = blocks_of(offset, into.len() as u64);
        let whole = offset..offset + into.len() as u64;
        let mut at = blocks.start;
        while at < blocks.end {
            let (saved, end) = self.saved.run(at..blocks.end);
            if saved {
                self.read_saved(at..end, &whole, into)?;
            } else {
                let (start, part) = part_of(at..end, &whole);
                self.live.read_at(&mut into[part], start)?;
                // Pairs with the fence of the writers.
                fence(Ordering::SeqCst);
                let mut again = at;
                while let Some(start) = self.saved.first_marked(again..end) {
                    let (_, stop) = self.saved.run(start..end);
                    self.read_saved(start..stop, &whole, into)?;
                    again = stop;
                }
            }
            at = end;
        }
        fence(Ordering::SeqCst);
        control.check()
    }

    /// Reads from the scratch file what `blocks` and `whole` have in common.
    fn read_saved(
        &self,
        blocks: Range<u64>,
        whole: &Range<u64>,
        into: &mut [u8],
    ) -> io::Result<()> {
        let (start, part) = part_of(blocks, whole);
        self.scratch.read_at(&mut into[part], start)
    }

    /// What is allocated, from `range.start` on, in at most `limit` extents. Zeroes are
    /// claimed only where they are certain.
    pub(crate) fn allocation(
        &self,
        control: &Control,
        range: Range<u64>,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        control.check()?;
        let mut extents = ExtentList::new(range.start, limit);
        while extents.end() < range.end {
            let at = extents.end();
            let first = at / BLOCK_SIZE;
            let (saved, end) = self.saved.run(first..range.end.div_ceil(BLOCK_SIZE));
            let end = range.end.min(end * BLOCK_SIZE);
            let data = if saved {
                self.scratch.next_data(at)?
            } else {
                self.live.next_data(at)?
            };
            let (flags, mut stop) = data_or_hole(data, at, end);
            if !saved && flags & ZERO != 0 {
                fence(Ordering::SeqCst);
                // Whatever was saved meanwhile was perhaps a hole only after that.
                match self.saved.first_marked(first..stop.div_ceil(BLOCK_SIZE)) {
                    Some(block) if block == first => continue,
                    Some(block) => stop = stop.min(block * BLOCK_SIZE),
                    None => {}
                }
            }
            if !extents.push(stop, flags) {
                break;
            }
        }
        control.check()?;
        Ok(extents.list)
    }

    /// What `dirty` marks, from `range.start` on, in at most `limit` extents.
    pub(crate) fn changes(
        &self,
        control: &Control,
        dirty: &BlockMap,
        range: Range<u64>,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        control.check()?;
        let mut extents = ExtentList::new(range.start, limit);
        while extents.end() < range.end {
            let first = extents.end() / BLOCK_SIZE;
            let (marked, end) = dirty.run(first..range.end.div_ceil(BLOCK_SIZE));
            let flags = if marked { lifeboat_nbd::DIRTY } else { 0 };
            if !extents.push(range.end.min(end * BLOCK_SIZE), flags) {
                break;
            }
        }
        Ok(extents.list)
    }

    /// The bytes of `blocks`; the last block of the disk may be partial.
    fn bytes(&self, blocks: Range<u64>) -> Range<u64> {
        blocks.start * BLOCK_SIZE..self.size.bytes().min(blocks.end * BLOCK_SIZE)
    }
}

/// What `blocks` and the bytes `whole` have in common: where it begins on the disk, and its place
/// in a buffer for `whole`.
fn part_of(blocks: Range<u64>, whole: &Range<u64>) -> (u64, Range<usize>) {
    let start = whole.start.max(blocks.start * BLOCK_SIZE);
    let end = whole.end.min(blocks.end * BLOCK_SIZE);
    let part = (start - whole.start) as usize..(end - whole.start) as usize;
    (start, part)
}
