//! What a copy is cut into.

use std::ops::Range;

use lifeboat_model::{BLOCK_SIZE, DiskId};
use lifeboat_peer::CopyProgress;

use super::disk::OpenDisk;
use super::{DiskRanges, PIECE};

/// What travels of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// All of it that is not zero: it goes to a disk of zeroes.
    Everything,
    /// The blocks that differ by their digests.
    WhatDiffers,
    /// All of it, zeroes too: it is known to differ.
    Known,
}

/// One piece.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Its place among the open disks.
    pub(super) disk: usize,
    /// From the first to the last of what is looked at.
    pub(super) range: Range<u64>,
    /// What is looked at, ascending and apart.
    pub(super) within: Vec<Range<u64>>,
    pub(super) way: Way,
}

impl Piece {
    /// How much is looked at.
    pub(super) fn bytes(&self) -> u64 {
        self.within
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

/// Every piece that is not done yet.
pub(super) fn all_pieces(disks: &[OpenDisk], progress: &CopyProgress, way: Way) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let mut start = 0;
        while start < disk.size {
            let range = start..disk.size.min(start + PIECE);
            start = range.end;
            if !is_done(progress, &disk.id, &range) {
                pieces.push(Piece {
                    disk: at,
                    within: vec![range.clone()],
                    range,
                    way,
                });
            }
        }
    }
    pieces
}

/// The pieces that hold ranges which are known to differ: one for each part of a disk that has
/// any, so that scattered ranges travel together.
pub(super) fn pieces_of(
    disks: &[OpenDisk],
    ranges: &DiskRanges,
    progress: &CopyProgress,
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let Some((_, ranges)) = ranges.iter().find(|(id, _)| *id == disk.id) else {
            continue;
        };
        let mut parts: Vec<Vec<Range<u64>>> = Vec::new();
        for range in widened(ranges, BLOCK_SIZE, disk.size) {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min((start / PIECE + 1) * PIECE);
                match parts.last_mut() {
                    Some(part) if part[0].start / PIECE == start / PIECE => part.push(start..end),
                    _ => parts.push(std::iter::once(start..end).collect()),
                }
                start = end;
            }
        }
        for within in parts {
            let range = within[0].start..within[within.len() - 1].end;
            if !is_done(progress, &disk.id, &range) {
                pieces.push(Piece {
                    disk: at,
                    range,
                    within,
                    way: Way::Known,
                });
            }
        }
    }
    pieces
}

/// Ranges widened to whole units, ascending and apart.
pub(super) fn widened(ranges: &[Range<u64>], unit: u64, size: u64) -> Vec<Range<u64>> {
    let mut wide: Vec<Range<u64>> = ranges
        .iter()
        .filter(|range| range.start < range.end.min(size))
        .map(|range| range.start / unit * unit..(range.end.div_ceil(unit) * unit).min(size))
        .collect();
    wide.sort_by_key(|range| range.start);
    let mut apart: Vec<Range<u64>> = Vec::new();
    for range in wide {
        match apart.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

fn is_done(progress: &CopyProgress, disk: &DiskId, range: &Range<u64>) -> bool {
    let disk = progress.disks.iter().find(|copied| copied.id == *disk);
    disk.is_some_and(|copied| {
        copied
            .done
            .iter()
            .any(|done| done.start <= range.start && range.end <= done.end)
    })
}
