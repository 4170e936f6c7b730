//! An overlay over one moment of a disk, as a guest uses it.

use std::io;
use std::ops::Range;

use lifeboat_qcow2::{ExtentState, Overlay};

use crate::reader::{RangeKind, View};

/// How much of the disk is looked through at once.
const WINDOW: u64 = 1 << 30;

/// What the guest wrote, and what it sees where it wrote nothing.
#[derive(Debug)]
pub(crate) struct Layered {
    pub(crate) overlay: Overlay,
    pub(crate) below: View,
}

impl Layered {
    pub(crate) fn size(&self) -> u64 {
        self.overlay.virtual_size()
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.overlay
            .read(offset, buffer, &|offset, buffer| {
                self.read_below(offset, buffer)
            })
            .map_err(io::Error::other)
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.overlay
            .write(offset, bytes, &|offset, buffer| {
                self.read_below(offset, buffer)
            })
            .map_err(io::Error::other)
    }

    pub(crate) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.overlay
            .write_zeroes(offset, len, &|offset, buffer| {
                self.read_below(offset, buffer)
            })
            .map_err(io::Error::other)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.overlay.flush().map_err(io::Error::other)
    }

    pub(crate) fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let size = self.size();
        let mut position = offset;
        while position < size {
            let end = (position + WINDOW).min(size);
            for extent in self.overlay.extents(position..end) {
                let extent = extent.map_err(io::Error::other)?;
                let range = extent.offset..extent.offset + extent.len;
                match extent.state {
                    ExtentState::Data { .. } => return Ok(Some(range)),
                    ExtentState::Zero => {}
                    ExtentState::Absent => {
                        if let Some(data) = first_data(&self.below, range)? {
                            return Ok(Some(data));
                        }
                    }
                }
            }
            position = end;
        }
        Ok(None)
    }

    /// Reads what the guest would see without the overlay: zeroes beyond the moment's size.
    fn read_below(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let there = self
            .below
            .size
            .saturating_sub(offset)
            .min(buffer.len() as u64) as usize;
        buffer[there..].fill(0);
        if there == 0 {
            return Ok(());
        }
        self.below.read_at(offset, &mut buffer[..there])
    }
}

/// The first part of a range that may hold data.
fn first_data(view: &View, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut parts = view.ranges(range)?.into_iter();
    let data = parts.find(|(_, kind)| match kind {
        RangeKind::Data => true,
        RangeKind::Zero => false,
    });
    Ok(data.map(|(range, _)| range))
}

/// The first range of a view at or after `offset` that may hold data.
pub(crate) fn next_data(view: &View, offset: u64) -> io::Result<Option<Range<u64>>> {
    let mut position = offset;
    while position < view.size {
        let end = (position + WINDOW).min(view.size);
        if let Some(data) = first_data(view, position..end)? {
            return Ok(Some(data));
        }
        position = end;
    }
    Ok(None)
}
