//! Which blocks a segment holds, and where.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::damage::Damage;

/// What a segment knows of a run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Saved {
    /// The bytes are in the segment's data file, the first block at this offset.
    Data { host: u64 },
    /// All zeroes.
    Zero,
    /// They could not be read when they had to be saved.
    Lost,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    blocks: u64,
    saved: Saved,
}

/// Runs of blocks in ascending order, none overlapping another.
#[derive(Debug, Default)]
pub(crate) struct Index {
    runs: BTreeMap<u64, Run>,
}

impl Index {
    /// Adds a run that overlaps no other.
    pub(crate) fn insert(&mut self, first: u64, blocks: u64, saved: Saved) {
        if let Some((&start, run)) = self.runs.range_mut(..first).next_back() {
            assert!(
                start + run.blocks <= first,
                "BUG: block {first} is saved twice"
            );
            let follows = start + run.blocks == first
                && match (run.saved, saved) {
                    (Saved::Data { host }, Saved::Data { host: next }) => {
                        host + run.blocks * BLOCK == next
                    }
                    (Saved::Zero, Saved::Zero) | (Saved::Lost, Saved::Lost) => true,
                    (Saved::Data { .. } | Saved::Zero | Saved::Lost, _) => false,
                };
            if follows {
                run.blocks += blocks;
                return;
            }
        }
        self.runs.insert(first, Run { blocks, saved });
    }

    /// The range in order, cut into what is saved and what (`None`) is not.
    pub(crate) fn pieces(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<Saved>)> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut pieces = Vec::new();
        let mut position = range.start;
        let before = self
            .runs
            .range(..=range.start)
            .next_back()
            .filter(|(start, run)| *start + run.blocks > range.start);
        let from = before.map_or(range.start, |(&start, _)| start);
        for (&start, run) in self.runs.range(from..range.end.max(from)) {
            let first = start.max(range.start);
            let end = (start + run.blocks).min(range.end);
            if position < first {
                pieces.push((position..first, None));
            }
            let saved = match run.saved {
                Saved::Data { host } => Saved::Data {
                    host: host + (first - start) * BLOCK,
                },
                Saved::Zero | Saved::Lost => run.saved,
            };
            pieces.push((first..end, Some(saved)));
            position = end;
        }
        if position < range.end {
            pieces.push((position..range.end, None));
        }
        pieces
    }

    /// The parts of the range that are not saved.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.pieces(range)
            .into_iter()
            .filter(|(_, saved)| saved.is_none())
            .map(|(range, _)| range)
            .collect()
    }

    /// Every run, in ascending order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Range<u64>, Saved)> + '_ {
        self.runs
            .iter()
            .map(|(&start, run)| (start..start + run.blocks, run.saved))
    }
}

const BLOCK: u64 = lifeboat_model::BLOCK_SIZE;

/// The digest that goes with a run, where one was known when it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunDigest {
    /// xxh3-128 of the run's bytes; the last block is padded with zeroes.
    Known(u128),
    /// The bytes could not be read when they were shared.
    Unknown,
}

/// One record of a segment's index file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexRecord {
    pub(crate) first: u64,
    pub(crate) blocks: u32,
    pub(crate) saved: Saved,
    pub(crate) digest: RunDigest,
}

/// Length of a record in the index file.
pub(crate) const RECORD_LEN: usize = 64;

impl IndexRecord {
    /// The record as it stands in the index of segment `segment`.
    pub(crate) fn encode(&self, segment: u64) -> [u8; RECORD_LEN] {
        let (kind, host) = match self.saved {
            Saved::Data { host } => (1, host),
            Saved::Zero => (2, 0),
            Saved::Lost => (3, 0),
        };
        let (known, digest) = match self.digest {
            RunDigest::Known(digest) => (1, digest),
            RunDigest::Unknown => (0, 0),
        };
        let mut bytes = [0; RECORD_LEN];
        bytes[0..8].copy_from_slice(&self.first.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[12] = kind;
        bytes[13] = known;
        bytes[16..24].copy_from_slice(&host.to_le_bytes());
        bytes[24..40].copy_from_slice(&digest.to_le_bytes());
        bytes[40..48].copy_from_slice(&segment.to_le_bytes());
        let check = xxhash_rust::xxh3::xxh3_64(&bytes[..56]);
        bytes[56..64].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads record `number` of segment `segment`, whose data file is `data_len` bytes long.
    pub(crate) fn decode(
        bytes: &[u8; RECORD_LEN],
        number: u64,
        segment: u64,
        data_len: u64,
    ) -> Result<Self, Damage> {
        let u64_at = |at: usize| {
            u64::from_le_bytes(
                bytes[at..at + 8]
                    .try_into()
                    .expect("BUG: eight bytes are eight bytes"),
            )
        };
        let wrong = Damage::IndexRecord { number };
        if xxhash_rust::xxh3::xxh3_64(&bytes[..56]) != u64_at(56) || u64_at(40) != segment {
            return Err(wrong);
        }
        let first = u64_at(0);
        let blocks = u32::from_le_bytes(
            bytes[8..12]
                .try_into()
                .expect("BUG: four bytes are four bytes"),
        );
        let host = u64_at(16);
        let saved = match bytes[12] {
            1 => Saved::Data { host },
            2 => Saved::Zero,
            3 => Saved::Lost,
            _ => return Err(wrong),
        };
        let fits = match saved {
            Saved::Data { host } => host
                .checked_add(u64::from(blocks) * BLOCK)
                .is_some_and(|end| end <= data_len),
            Saved::Zero | Saved::Lost => true,
        };
        if blocks == 0 || !fits || first.checked_add(u64::from(blocks)).is_none() {
            return Err(wrong);
        }
        let digest = match bytes[13] {
            0 => RunDigest::Unknown,
            _ => RunDigest::Known(u128::from_le_bytes(
                bytes[24..40]
                    .try_into()
                    .expect("BUG: sixteen bytes are sixteen bytes"),
            )),
        };
        Ok(Self {
            first,
            blocks,
            saved,
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against an array with one entry per block.
        #[test]
        fn pieces_say_for_each_block_what_was_inserted(
            inserts in prop::collection::vec((0_u64..200, 1_u64..20, 0_u8..3), 0..40),
            start in 0_u64..220,
            len in 0_u64..220,
        ) {
            let mut index = Index::default();
            let mut oracle: Vec<Option<Saved>> = vec![None; 512];
            for (number, (first, blocks, kind)) in inserts.into_iter().enumerate() {
                for missing in index.missing(first..first + blocks) {
                    let saved = match kind {
                        0 => Saved::Zero,
                        1 => Saved::Lost,
                        // Sometimes the continuation of the run before, sometimes elsewhere.
                        _ => Saved::Data { host: (missing.start + 1000 * (number as u64 % 2)) * BLOCK },
                    };
                    index.insert(missing.start, missing.end - missing.start, saved);
                    for block in missing.clone() {
                        oracle[block as usize] = Some(match saved {
                            Saved::Data { host } => Saved::Data { host: host + (block - missing.start) * BLOCK },
                            other => other,
                        });
                    }
                }
            }
            let mut position = start;
            for (range, saved) in index.pieces(start..start + len) {
                prop_assert_eq!(range.start, position);
                prop_assert!(range.end > range.start);
                for block in range.clone() {
                    let expected = saved.map(|saved| match saved {
                        Saved::Data { host } => Saved::Data { host: host + (block - range.start) * BLOCK },
                        other => other,
                    });
                    prop_assert_eq!(expected, oracle[block as usize], "block {}", block);
                }
                position = range.end;
            }
            prop_assert_eq!(position, start + len);
        }

        #[test]
        fn a_changed_byte_of_a_record_is_noticed(at in 0_usize..RECORD_LEN, mask in 1_u8..) {
            let record = IndexRecord { first: 7, blocks: 3, saved: Saved::Data { host: 131_072 }, digest: RunDigest::Known(99) };
            let mut bytes = record.encode(5);
            prop_assert_eq!(IndexRecord::decode(&bytes, 0, 5, 1 << 20), Ok(record));
            bytes[at] ^= mask;
            prop_assert!(IndexRecord::decode(&bytes, 0, 5, 1 << 20).is_err());
        }
    }

    #[test]
    fn a_record_that_points_beyond_the_data_is_refused() {
        let record = IndexRecord {
            first: 7,
            blocks: 3,
            saved: Saved::Data { host: 131_072 },
            digest: RunDigest::Unknown,
        };
        let bytes = record.encode(5);
        assert!(IndexRecord::decode(&bytes, 0, 5, 131_072 + 3 * BLOCK - 1).is_err());
        assert!(
            IndexRecord::decode(&bytes, 0, 6, 1 << 20).is_err(),
            "a record of another segment"
        );
    }
}
