//! Lists of extents, as NBD clients ask for them.

use std::io;
use std::ops::Range;

use lifeboat_nbd::{Extent, HOLE, ZERO};

/// What is at `at`, and up to where, at most `end`, it is the same; `data` is what is found from
/// `at` on.
pub(crate) fn data_or_hole(data: Option<Range<u64>>, at: u64, end: u64) -> (u64, u64) {
    match data {
        Some(data) if data.start <= at => (0, data.end.clamp(at + 1, end)),
        Some(data) => (HOLE | ZERO, data.start.min(end)),
        None => (HOLE | ZERO, end),
    }
}

/// What is allocated of a disk, from `range.start` on, in at most `limit` extents.
pub(crate) fn allocation(
    next_data: impl Fn(u64) -> io::Result<Option<Range<u64>>>,
    range: Range<u64>,
    limit: usize,
) -> io::Result<Vec<Extent>> {
    let mut extents = ExtentList::new(range.start, limit);
    while extents.end() < range.end {
        let at = extents.end();
        let (flags, stop) = data_or_hole(next_data(at)?, at, range.end);
        if !extents.push(stop, flags) {
            break;
        }
    }
    Ok(extents.list)
}

/// Extents that follow one another, with equal neighbors joined.
#[derive(Debug)]
pub(crate) struct ExtentList {
    start: u64,
    limit: usize,
    pub(crate) list: Vec<Extent>,
}

impl ExtentList {
    pub(crate) fn new(start: u64, limit: usize) -> Self {
        Self {
            start,
            limit,
            list: Vec::new(),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.list.last().map_or(self.start, Extent::end)
    }

    /// Adds what lies between the end and `stop`; false if there is no room for it.
    pub(crate) fn push(&mut self, stop: u64, flags: u64) -> bool {
        let offset = self.end();
        if let Some(last) = self.list.last_mut().filter(|last| last.flags == flags) {
            last.length = stop - last.offset;
            return true;
        }
        if self.list.len() >= self.limit {
            return false;
        }
        self.list.push(Extent {
            offset,
            length: stop - offset,
            flags,
        });
        true
    }
}
