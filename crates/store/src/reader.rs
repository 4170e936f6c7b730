//! Reading a recovery point, also while later deltas are being applied.
//!
//! A block of a point is the first hit in the segments from its boundary on, else the head.
//! The applier shows preimages in the index *before* it overwrites the head. So a reader
//! that found nothing, read the head, and then still finds nothing has read the right
//! bytes; one that finds the block now reads it from the segment instead.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::BLOCK_SIZE;
use lifeboat_sys::disk::DiskFile;

use crate::boundary::Pin;
use crate::damage::Damage;
use crate::image::Chain;
use crate::index::Saved;
use crate::layered::next_data;
use crate::segment::Segment;

/// One disk at one recovery point. Keeps the point from being removed, and the store from
/// being opened again: another owner would change the head without telling this reader.
#[derive(Debug)]
pub struct PointReader {
    view: View,
    pin: Pin,
    lock: Arc<dyn DiskFile>,
}

/// What a range of a point holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// It may hold anything.
    Data,
    /// It reads as zeroes.
    Zero,
}

impl PointReader {
    pub(crate) fn new(view: View, pin: Pin, lock: Arc<dyn DiskFile>) -> Self {
        Self { view, pin, lock }
    }

    /// The disk's size at the point, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.view.size
    }

    /// Fills `buffer` from `offset`; both may be odd.
    ///
    /// # Errors
    /// `UnexpectedEof` beyond the disk's end, `InvalidData` for blocks that are lost or damaged.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.view.read_at(offset, buffer)
    }

    /// The first range at or after `offset` that may hold data; what comes before it is zero.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        next_data(&self.view, offset)
    }

    pub(crate) fn into_parts(self) -> (View, Pin, Arc<dyn DiskFile>) {
        (self.view, self.pin, self.lock)
    }

    /// Which parts of a range hold data, in order and without gaps.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn ranges(&self, range: Range<u64>) -> io::Result<Vec<(Range<u64>, RangeKind)>> {
        self.view.ranges(range)
    }
}

/// One disk at one boundary, or at the head where `boundary` is `None`.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) chain: Arc<Chain>,
    pub(crate) boundary: Option<u64>,
    pub(crate) size: u64,
}

/// A run of blocks, and the segment that holds it; `None` where the head does.
pub(crate) type Resolved = (Range<u64>, Option<(Arc<Segment>, Saved)>);

/// Where a run of blocks is to be read.
enum Source {
    Segment { segment: Arc<Segment>, host: u64 },
    Zero,
    Lost,
    Head,
}

impl View {
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset
            .checked_add(buffer.len() as u64)
            .filter(|&end| end <= self.size);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if buffer.is_empty() {
            return Ok(());
        }
        for (blocks, source) in self.resolve(offset / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE))? {
            let range = (blocks.start * BLOCK_SIZE).max(offset)..(blocks.end * BLOCK_SIZE).min(end);
            let part = &mut buffer[(range.start - offset) as usize..(range.end - offset) as usize];
            let skip = range.start - blocks.start * BLOCK_SIZE;
            match source {
                Source::Head => self.read_head(range, part)?,
                other => read_saved(&other, blocks.start, skip, part)?,
            }
        }
        Ok(())
    }

    /// Reads what no segment held a moment ago.
    fn read_head(&self, range: Range<u64>, buffer: &mut [u8]) -> io::Result<()> {
        // A head that was cut meanwhile ends too early; then the cut-off tail is saved.
        let outcome = self.chain.head.read_at(buffer, range.start);
        for (blocks, source) in
            self.resolve(range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE))?
        {
            let part = (blocks.start * BLOCK_SIZE).max(range.start)
                ..(blocks.end * BLOCK_SIZE).min(range.end);
            let within = (part.start - range.start) as usize..(part.end - range.start) as usize;
            match source {
                Source::Head if outcome.is_ok() => {}
                Source::Head if part == range => return outcome,
                // It may be overwritten before it is read now, so it is looked up again.
                Source::Head => self.read_head(part, &mut buffer[within])?,
                other => {
                    read_saved(
                        &other,
                        blocks.start,
                        part.start - blocks.start * BLOCK_SIZE,
                        &mut buffer[within],
                    )?;
                }
            }
        }
        Ok(())
    }

    /// Which parts of a range hold data.
    pub(crate) fn ranges(&self, range: Range<u64>) -> io::Result<Vec<(Range<u64>, RangeKind)>> {
        let end = range.end.min(self.size);
        let mut ranges: Vec<(Range<u64>, RangeKind)> = Vec::new();
        let mut push = |range: Range<u64>, kind: RangeKind| {
            match ranges.last_mut() {
                Some((last, last_kind)) if *last_kind == kind && last.end == range.start => {
                    last.end = range.end;
                }
                _ if range.is_empty() => {}
                _ => ranges.push((range, kind)),
            };
        };
        if range.start >= end {
            return Ok(Vec::new());
        }
        for (blocks, source) in self.resolve(range.start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE))? {
            let part =
                (blocks.start * BLOCK_SIZE).max(range.start)..(blocks.end * BLOCK_SIZE).min(end);
            match source {
                Source::Zero => push(part, RangeKind::Zero),
                Source::Segment { .. } | Source::Lost => push(part, RangeKind::Data),
                // Nobody may punch the head here before showing what it held.
                Source::Head => {
                    for (part, kind) in self.head_ranges(part)? {
                        push(part, kind);
                    }
                }
            }
        }
        Ok(ranges)
    }

    /// Data and holes of the head, as far as no segment has taken over meanwhile.
    fn head_ranges(&self, range: Range<u64>) -> io::Result<Vec<(Range<u64>, RangeKind)>> {
        let mut ranges = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let data = self
                .chain
                .head
                .next_data(position)?
                .unwrap_or(range.end..range.end);
            let hole = position..data.start.clamp(position, range.end);
            if !hole.is_empty() {
                // Whole blocks only: a hole may begin within a block that was changed meanwhile.
                let blocks = hole.start / BLOCK_SIZE..hole.end.div_ceil(BLOCK_SIZE);
                let untouched = self
                    .resolve(blocks)?
                    .iter()
                    .all(|(_, source)| matches!(source, Source::Head));
                ranges.push((
                    hole.clone(),
                    if untouched {
                        RangeKind::Zero
                    } else {
                        RangeKind::Data
                    },
                ));
            }
            let data = hole.end..data.end.clamp(hole.end, range.end);
            position = data.end;
            if !data.is_empty() {
                ranges.push((data, RangeKind::Data));
            }
        }
        Ok(ranges)
    }

    /// For each block of the range, in order, where it is to be read.
    fn resolve(&self, blocks: Range<u64>) -> io::Result<Vec<(Range<u64>, Source)>> {
        let saved = self.saved(blocks)?.into_iter().map(|(range, saved)| {
            let source = match saved {
                None => Source::Head,
                Some((segment, Saved::Data { host })) => Source::Segment { segment, host },
                Some((_, Saved::Zero)) => Source::Zero,
                Some((_, Saved::Lost)) => Source::Lost,
            };
            (range, source)
        });
        Ok(saved.collect())
    }

    /// For each block of the range, in order, the oldest segment from the boundary on that
    /// holds it, and what it says; `None` is the head's.
    pub(crate) fn saved(&self, blocks: Range<u64>) -> io::Result<Vec<Resolved>> {
        let Some(boundary) = self.boundary else {
            return Ok(vec![(blocks, None)]);
        };
        let mut open = vec![blocks];
        let mut found = Vec::new();
        for segment in self.chain.from(boundary) {
            if open.is_empty() {
                break;
            }
            let index = segment.index()?;
            let mut still_open = Vec::new();
            for (piece, saved) in open.into_iter().flat_map(|range| index.pieces(range)) {
                match saved {
                    None => still_open.push(piece),
                    Some(saved) => found.push((piece, Some((Arc::clone(&segment), saved)))),
                }
            }
            open = still_open;
        }
        found.extend(open.into_iter().map(|range| (range, None)));
        found.sort_by_key(|(range, _)| range.start);
        Ok(found)
    }
}

/// Reads from a run that begins with block `first`, leaving out its first `skip` bytes.
fn read_saved(source: &Source, first: u64, skip: u64, buffer: &mut [u8]) -> io::Result<()> {
    match source {
        Source::Segment { segment, host } => segment.data().read_at(buffer, host + skip),
        Source::Zero => {
            buffer.fill(0);
            Ok(())
        }
        Source::Lost => {
            let blocks = (skip + buffer.len() as u64).div_ceil(BLOCK_SIZE);
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                Damage::Lost {
                    block: first,
                    blocks,
                },
            ))
        }
        Source::Head => unreachable!("BUG: the head is read by its own function"),
    }
}
