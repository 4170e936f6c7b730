//! What of a disk goes into the stream, and what of that is known to be zero without
//! reading it.

use std::collections::VecDeque;
use std::ops::Range;

use lifeboat_nbd::{Extent, Extents, RequestError, ZERO};

use crate::connect::OpenDisk;
use crate::error::CaptureError;

/// From this length on, asking a server what is allocated in a dirty run is cheaper than
/// reading zeroes: a question costs up to a millisecond of its CPU, which is what reading
/// 1 MiB costs. A smaller run is read, and a read tells zeroes by itself.
const ASK_ALLOCATION_FROM: u64 = 1 << 20;

/// Data are handed on after so many bytes, so that reading begins although the server
/// lists more and more of them.
const LONGEST_UNKNOWN: u64 = 64 << 20;

/// What is known of a segment before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Unknown,
    Zero,
}

/// A range that goes into the stream. Its ends are multiples of the disk's unit, or
/// the disk's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) range: Range<u64>,
    pub(crate) content: Content,
}

/// The segments of a disk, ascending; holds one answer of the server at a time. After an
/// error it is of no use.
pub(crate) struct Survey<'a> {
    disk: &'a OpenDisk,
    runs: Runs<'a>,
    /// The run that is being split, and the answers about it.
    splitting: Option<(Split, Extents<'a>)>,
    ready: VecDeque<Segment>,
    run_bytes: u64,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(disk: &'a OpenDisk) -> Result<Self, CaptureError> {
        let size = disk.size.bytes();
        let runs = match &disk.changes {
            None => Runs::Whole(Some(0..size)),
            Some(context) => {
                let extents = disk
                    .client
                    .extents(context, 0, size)
                    .map_err(|source| changes(disk, source))?;
                Runs::Changed(Merged {
                    extents,
                    unit: disk.unit,
                    size,
                    pending: None,
                })
            }
        };
        Ok(Self {
            disk,
            runs,
            splitting: None,
            ready: VecDeque::new(),
            run_bytes: 0,
        })
    }

    /// How many bytes the runs so far have: what the bitmap marks, or the whole disk.
    pub(crate) fn run_bytes(&self) -> u64 {
        self.run_bytes
    }

    fn begin_run(&mut self, run: Range<u64>) -> Result<(), CaptureError> {
        let length = run.end - run.start;
        self.run_bytes += length;
        let ask = length >= ASK_ALLOCATION_FROM || self.disk.changes.is_none();
        let Some(context) = self.disk.allocation.as_ref().filter(|_| ask) else {
            self.ready.push_back(Segment {
                range: run,
                content: Content::Unknown,
            });
            return Ok(());
        };
        let extents = self
            .disk
            .client
            .extents(context, run.start, length)
            .map_err(|source| allocation(self.disk, source))?;
        let split = Split {
            done: run.start,
            run,
            unit: self.disk.unit,
        };
        self.splitting = Some((split, extents));
        Ok(())
    }

    fn advance(&mut self) -> Option<Result<(), CaptureError>> {
        let Some((split, extents)) = &mut self.splitting else {
            let run = self.runs.next()?;
            let run = run.map_err(|source| changes(self.disk, source));
            return Some(run.and_then(|run| self.begin_run(run)));
        };
        match extents.next() {
            Some(Ok(extent)) => split.take(&extent, &mut self.ready),
            Some(Err(source)) => return Some(Err(allocation(self.disk, source))),
            None => {
                split.finish(&mut self.ready);
                self.splitting = None;
            }
        }
        Some(Ok(()))
    }
}

impl Iterator for Survey<'_> {
    type Item = Result<Segment, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(segment) = self.ready.pop_front() {
                return Some(Ok(segment));
            }
            if let Err(error) = self.advance()? {
                return Some(Err(error));
            }
        }
    }
}

fn changes(disk: &OpenDisk, source: RequestError) -> CaptureError {
    CaptureError::Changes {
        disk: disk.id.clone(),
        source,
    }
}

fn allocation(disk: &OpenDisk, source: RequestError) -> CaptureError {
    CaptureError::Allocation {
        disk: disk.id.clone(),
        source,
    }
}

/// The ranges to be captured, ascending, with gaps between any two.
enum Runs<'a> {
    Whole(Option<Range<u64>>),
    Changed(Merged<Extents<'a>>),
}

impl Iterator for Runs<'_> {
    type Item = Result<Range<u64>, RequestError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Whole(range) => range.take().map(Ok),
            Self::Changed(merged) => merged.next(),
        }
    }
}

/// Dirty extents, widened to whole units and joined where they touch.
struct Merged<I> {
    extents: I,
    unit: u64,
    size: u64,
    pending: Option<Range<u64>>,
}

impl<I, E> Iterator for Merged<I>
where
    I: Iterator<Item = Result<Extent, E>>,
{
    type Item = Result<Range<u64>, E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let extent = match self.extents.next() {
                None => return self.pending.take().map(Ok),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(extent)) => extent,
            };
            // A flag that is not known means nothing good: only 0 is clean.
            if extent.flags == 0 {
                continue;
            }
            let start = extent.offset - extent.offset % self.unit;
            let end = extent.end().min(self.size);
            let end = end.next_multiple_of(self.unit).min(self.size);
            match &mut self.pending {
                Some(pending) if start <= pending.end => pending.end = pending.end.max(end),
                pending => {
                    if let Some(run) = pending.replace(start..end) {
                        return Some(Ok(run));
                    }
                }
            }
        }
    }
}

/// Splits one run into zeroes and the rest, as the allocation says.
#[derive(Debug)]
struct Split {
    run: Range<u64>,
    /// Everything before is in a segment.
    done: u64,
    unit: u64,
}

impl Split {
    /// Only what reads as zeroes for certain is taken for zeroes: a hole without that
    /// promise may hold anything. Zeroes shrink to whole units, the rest is read.
    fn take(&mut self, extent: &Extent, ready: &mut VecDeque<Segment>) {
        let end = extent.end().min(self.run.end);
        let whole = if end == self.run.end {
            end
        } else {
            end - end % self.unit
        };
        if extent.flags & ZERO == 0 {
            if whole > self.done && whole - self.done >= LONGEST_UNKNOWN {
                self.emit(whole, Content::Unknown, ready);
            }
            return;
        }
        let start = extent.offset.next_multiple_of(self.unit);
        if start.max(self.done) < whole {
            self.emit(start.max(self.done), Content::Unknown, ready);
            self.emit(whole, Content::Zero, ready);
        }
    }

    fn finish(&mut self, ready: &mut VecDeque<Segment>) {
        self.emit(self.run.end, Content::Unknown, ready);
    }

    fn emit(&mut self, end: u64, content: Content, ready: &mut VecDeque<Segment>) {
        if self.done < end {
            ready.push_back(Segment {
                range: self.done..end,
                content,
            });
            self.done = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_nbd::HOLE;
    use proptest::prelude::*;

    use super::*;

    fn extent(offset: u64, length: u64, flags: u64) -> Extent {
        Extent {
            offset,
            length,
            flags,
        }
    }

    fn merged(extents: &[Extent], size: u64) -> Vec<Range<u64>> {
        let merged = Merged {
            extents: extents.iter().map(|extent| Ok::<_, ()>(*extent)),
            unit: 4096,
            size,
            pending: None,
        };
        merged.map(Result::unwrap).collect()
    }

    fn split(run: Range<u64>, extents: &[Extent]) -> Vec<(Range<u64>, Content)> {
        let mut ready = VecDeque::new();
        let mut split = Split {
            done: run.start,
            run,
            unit: 4096,
        };
        for extent in extents {
            split.take(extent, &mut ready);
        }
        split.finish(&mut ready);
        ready.into_iter().map(|s| (s.range, s.content)).collect()
    }

    #[test]
    fn dirty_extents_that_touch_the_same_block_are_read_once() {
        let extents = [
            extent(0, 512, 1),
            extent(512, 512, 0),
            extent(1024, 5000, 1),
            extent(6024, 100_000, 0),
            extent(106_024, 1, 0x8000_0000),
        ];
        assert_eq!(merged(&extents, 106_496), [0..8192, 102_400..106_496]);
    }

    #[test]
    fn the_last_run_ends_with_the_disk() {
        let extents = [extent(8192, 1024, 1)];
        let runs = merged(&extents, 9216);
        assert_eq!((runs.len(), runs[0].clone()), (1, 8192..9216));
    }

    #[test]
    fn a_hole_that_does_not_promise_zeroes_is_read() {
        let extents = [extent(0, 8192, HOLE), extent(8192, 8192, HOLE | ZERO)];
        assert_eq!(
            split(0..16_384, &extents),
            [(0..8192, Content::Unknown), (8192..16_384, Content::Zero)]
        );
    }

    #[test]
    fn zeroes_that_begin_or_end_within_a_block_are_read_there() {
        let extents = [
            extent(0, 100, 0),
            extent(100, 20_000, ZERO),
            extent(20_100, 12_668, 0),
        ];
        assert_eq!(
            split(0..32_768, &extents),
            [
                (0..4096, Content::Unknown),
                (4096..16_384, Content::Zero),
                (16_384..32_768, Content::Unknown)
            ]
        );
    }

    proptest! {
        #[test]
        fn segments_cover_the_run_once_and_zeroes_lie_within_zero_extents(
            lengths in prop::collection::vec((1u64..20_000, any::<bool>()), 1..40),
            first_block in 0u64..3,
        ) {
            let start = first_block * 4096;
            let mut extents = Vec::new();
            let mut next = start;
            for (length, zero) in lengths {
                extents.push(extent(next, length, if zero { ZERO } else { 0 }));
                next += length;
            }
            // The disk ends within a block, and the last extent may go beyond the run.
            let end = (next - next % 512).max(start + 512).min(next);
            prop_assume!(end > start);
            let mut expected = start;
            for (range, content) in split(start..end, &extents) {
                prop_assert_eq!(range.start, expected);
                prop_assert!(range.end > range.start);
                expected = range.end;
                let inside = |e: &&Extent| e.offset < range.end && e.end() > range.start;
                if content == Content::Zero {
                    prop_assert!(extents.iter().filter(inside).all(|e| e.flags & ZERO != 0));
                }
            }
            prop_assert_eq!(expected, end);
        }
    }
}
