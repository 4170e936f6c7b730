//! Heads that hold no single moment, because whole disks are being copied into them.
//!
//! Pure: what is done, what is being written, and which boundary is the last consistent one.
//! The journal has it; `copy.rs` acts on it.

use std::ops::Range;

use lifeboat_model::{DiskSize, Sequence};
use serde::{Deserialize, Serialize};

/// The most separate ranges that a copy may have done, over all disks: the journal stays
/// bounded. In order, and however many streams are open, a copy has a few.
const MAX_DONE_RANGES: usize = 4096;

/// Why whole disks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// The replica is empty.
    Initial,
    /// The replica holds an older or damaged state: what differs is copied.
    Resync,
    /// As `Resync`, and what differs is known from maps: the heads are unverified until
    /// [`Store::mark_verified`](crate::Store::mark_verified).
    ByMaps,
}

/// The heads are, or were, being copied into and hold no single moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mixed {
    /// The boundary of the last consistent moment; absent when there never was one. Nothing
    /// may remove it.
    pub(crate) boundary: Option<u64>,
    /// The newest copy's name. Deltas below it are worthless here.
    pub(crate) sequence: Sequence,
    pub(crate) kind: CopyKind,
    /// What is copied, per disk; absent once the copy was cancelled.
    pub(crate) done: Option<Vec<DoneRanges>>,
    /// A piece that may be half written.
    pub(crate) writing: Option<Piece>,
}

/// A range of a disk, by its place in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Piece {
    pub(crate) disk: usize,
    pub(crate) range: Range<u64>,
}

impl Mixed {
    /// Whether every byte of every disk is copied.
    pub(crate) fn is_complete(&self, sizes: &[DiskSize]) -> bool {
        self.done.as_ref().is_some_and(|done| {
            done.len() == sizes.len()
                && done
                    .iter()
                    .zip(sizes)
                    .all(|(done, size)| done.covers(&(0..size.bytes())))
        })
    }

    /// Whether a further range can be noted.
    pub(crate) fn has_room_for(&self, piece: &Piece) -> bool {
        let Some(done) = &self.done else {
            return false;
        };
        let others = done.iter().enumerate();
        let others: usize = others
            .filter(|(disk, _)| *disk != piece.disk)
            .map(|(_, done)| done.0.len())
            .sum();
        let mut with = done.get(piece.disk).cloned().unwrap_or_default();
        with.add(piece.range.clone());
        others + with.0.len() <= MAX_DONE_RANGES
    }
}

/// Ranges in ascending order; none touches another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct DoneRanges(pub(crate) Vec<Range<u64>>);

impl DoneRanges {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|known| known.end < range.start);
        let last = self.0.partition_point(|known| known.start <= range.end);
        let merged = match self.0.get(first..last) {
            Some([touched @ .., end]) => {
                let start = touched.first().unwrap_or(end).start;
                start.min(range.start)..end.end.max(range.end)
            }
            Some([]) | None => range,
        };
        self.0.splice(first..last, [merged]);
    }

    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self
                .0
                .iter()
                .any(|known| known.start <= range.start && range.end <= known.end)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn done_ranges_are_the_union_in_as_few_pieces_as_can_be(
            ranges in prop::collection::vec((0_u64..60, 0_u64..12), 0..40),
        ) {
            let mut done = DoneRanges::default();
            let mut oracle = BTreeSet::new();
            for (start, len) in ranges {
                done.add(start..start + len);
                oracle.extend(start..start + len);
                let listed: Vec<u64> = done.0.iter().flat_map(Clone::clone).collect();
                prop_assert_eq!(&listed, &oracle.iter().copied().collect::<Vec<_>>());
                prop_assert!(done.0.windows(2).all(|pair| pair[0].end < pair[1].start));
                for from in 0..75 {
                    let range = from..from + 3;
                    let all = range.clone().all(|at| oracle.contains(&at));
                    prop_assert_eq!(done.covers(&range), all);
                }
            }
        }
    }

    #[test]
    fn a_copy_in_too_many_pieces_has_no_room() {
        let scattered: Vec<_> = (0..MAX_DONE_RANGES as u64)
            .map(|at| at * 8192..at * 8192 + 4096)
            .collect();
        let mixed = Mixed {
            boundary: None,
            sequence: Sequence::new(1),
            kind: CopyKind::Initial,
            done: Some(vec![DoneRanges(scattered), DoneRanges::default()]),
            writing: None,
        };
        let piece = |disk, range| Piece { disk, range };
        assert!(mixed.has_room_for(&piece(0, 4096..8192)));
        assert!(!mixed.has_room_for(&piece(0, 1 << 40..(1 << 40) + 4096)));
        assert!(!mixed.has_room_for(&piece(1, 0..4096)));
    }
}
