//! Where the two sides differ, by keyed digests.
//!
//! Both sides read and digest at the same time: this one while the other's answer is on its way.

use std::ops::Range;

use lifeboat_model::{BLOCK_SIZE, DiskId, LineageId, RelationshipId, Sequence};
use lifeboat_peer::{DigestQuery, Link};

use super::disk::OpenDisk;
use super::pieces::widened;
use super::{CopyTrouble, DIGEST, DiskRanges, Job, Key};
use crate::service::Service;
use crate::vm::VmArc;

/// The unit that is compared first; where it differs, blocks are compared.
const COARSE: u64 = 64 << 10;

/// How the two sides are compared.
pub(super) struct Comparison<'a> {
    pub(super) relationship: RelationshipId,
    pub(super) lineage: LineageId,
    pub(super) link: &'a dyn Link,
    pub(super) key: Key,
    /// The moment that the replica must hold.
    pub(super) at: Option<Sequence>,
}

impl Comparison<'_> {
    /// The blocks of these ranges in which the two sides differ, as ranges.
    pub(super) fn differing(
        &self,
        disk: &OpenDisk,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Range<u64>>, CopyTrouble> {
        let coarse = self.compare(disk, ranges, COARSE)?;
        self.differing_blocks(disk, &coarse)
    }

    /// As [`differing`](Self::differing), where much is expected to differ.
    pub(super) fn differing_blocks(
        &self,
        disk: &OpenDisk,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Range<u64>>, CopyTrouble> {
        let mut differing = Vec::new();
        for batch in batches(ranges) {
            differing.extend(self.compare(disk, &batch, BLOCK_SIZE)?);
        }
        Ok(differing)
    }

    /// Compares digests unit by unit; answers the ranges of the units that differ.
    fn compare(
        &self,
        disk: &OpenDisk,
        ranges: &[Range<u64>],
        unit: u64,
    ) -> Result<Vec<Range<u64>>, CopyTrouble> {
        let query = DigestQuery {
            relationship: self.relationship,
            lineage: self.lineage,
            disk: disk.id.clone(),
            ranges: ranges.to_vec(),
            unit: unit as u32,
            key: hex(&self.key),
            at: self.at,
        };
        let digest_here = || {
            let mut digests = Vec::new();
            for range in ranges {
                disk.digests(range, unit, &self.key, &mut digests)?;
            }
            Ok::<_, CopyTrouble>(digests)
        };
        let (ours, theirs) = std::thread::scope(|scope| {
            let ours = scope.spawn(digest_here);
            let theirs = self.link.digests(query);
            (ours.join(), theirs)
        });
        let ours = ours.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let theirs = theirs?;
        if theirs.len() != ours.len() * DIGEST {
            return Err(CopyTrouble::Digests {
                found: theirs.len(),
                expected: ours.len() * DIGEST,
            });
        }
        let units = ranges.iter().flat_map(|range| {
            let starts = range.clone().step_by(unit as usize);
            starts.map(|start| start..range.end.min(start + unit))
        });
        let mut differing: Vec<Range<u64>> = Vec::new();
        for ((ours, theirs), unit) in ours.iter().zip(theirs.chunks_exact(DIGEST)).zip(units) {
            if ours == theirs {
                continue;
            }
            match differing.last_mut() {
                Some(last) if last.end == unit.start => last.end = unit.end,
                _ => differing.push(unit),
            }
        }
        Ok(differing)
    }
}

impl Job<'_> {
    /// Before maps are relied on: the two sides must be the same where the maps say so, beside
    /// each range that they name, at the ends of the disks, and in a sample of the rest. Answers
    /// what differs of what the maps name.
    pub(super) fn prove(&self, diverged: &DiskRanges) -> Result<DiskRanges, CopyTrouble> {
        let mut proved = DiskRanges::new();
        for disk in self.disks {
            let known: &[Range<u64>] = diverged
                .iter()
                .find(|(id, _)| *id == disk.id)
                .map_or(&[], |(_, ranges)| ranges);
            let mut found = Vec::new();
            for ranges in batches(&with_neighbors(known, disk.size)) {
                self.refuse_if_stopped()?;
                let differing = self.comparison.differing_blocks(disk, &ranges)?;
                self.refuse_unknown(disk, &differing, known)?;
                found.extend(inside(&differing, known, disk.size));
            }
            for ranges in batches(&sample(disk.size, &self.comparison.key)) {
                self.refuse_if_stopped()?;
                let differing = self.comparison.differing(disk, &ranges)?;
                self.refuse_unknown(disk, &differing, known)?;
            }
            proved.push((disk.id.clone(), found));
        }
        Ok(proved)
    }

    /// Refuses differences that no map knows of.
    fn refuse_unknown(
        &self,
        disk: &OpenDisk,
        differing: &[Range<u64>],
        known: &[Range<u64>],
    ) -> Result<(), CopyTrouble> {
        if first_outside(differing, known, disk.size).is_none() {
            return Ok(());
        }
        // The VM runs: what it wrote since the maps were looked at is in them by now, and the
        // next delta carries it.
        let known = [known, &written(self.service, self.vm, &disk.id)?].concat();
        match first_outside(differing, &known, disk.size) {
            None => Ok(()),
            Some(at) => Err(CopyTrouble::Unproved {
                why: format!(
                    "disk {} differs at {at} where the maps know of no change",
                    disk.id
                ),
            }),
        }
    }
}

/// What the maps of a VM name of a disk, ascending; nothing where nobody knows.
pub(super) fn written(
    service: &Service,
    vm: &VmArc,
    disk: &DiskId,
) -> Result<Vec<Range<u64>>, CopyTrouble> {
    let changed = service.inner.hypervisor.changed_ranges(vm.id);
    let changed = changed.map_err(|source| CopyTrouble::Disks { source })?;
    let of_disk = changed.unwrap_or_default().into_iter();
    let of_disk = of_disk.filter(|(id, _)| id == disk);
    Ok(of_disk.flat_map(|(_, ranges)| ranges).collect())
}

/// Where a disk differs first outside of what is known, which is taken in whole blocks.
pub(super) fn first_outside(
    differing: &[Range<u64>],
    known: &[Range<u64>],
    size: u64,
) -> Option<u64> {
    let known = widened(known, BLOCK_SIZE, size);
    differing.iter().find_map(|range| {
        let after = known.partition_point(|known| known.start <= range.start);
        let covered = known[..after].last().map_or(0, |known| known.end);
        let at = range.start.max(covered);
        (at < range.end).then_some(at)
    })
}

/// What is compared of a disk before its maps are relied on, besides what they name: the first
/// and last 16 MiB, and one block in a hundred.
fn sample(size: u64, seed: &Key) -> Vec<Range<u64>> {
    const ENDS: u64 = 16 << 20;
    /// One stretch of this length in each hundred of them.
    const STRETCH: u64 = 1 << 20;
    let mut ranges = vec![0..size.min(ENDS), size.saturating_sub(ENDS)..size];
    let mut hundred = 0;
    while hundred * 100 * STRETCH < size {
        let random = blake3::keyed_hash(seed, &hundred.to_le_bytes());
        let pick = u64::from_le_bytes(random.as_bytes()[..8].try_into().expect("BUG: 8 bytes"));
        let start = (hundred * 100 + pick % 100) * STRETCH;
        if start < size {
            ranges.push(start..(start + STRETCH).min(size));
        }
        hundred += 1;
    }
    widened(&ranges, COARSE, size)
}

/// What the maps of a disk name, with a block on either side of each range.
fn with_neighbors(known: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let wide = known.iter().map(|range| {
        let start = range.start / BLOCK_SIZE * BLOCK_SIZE;
        start.saturating_sub(BLOCK_SIZE)..range.end.div_ceil(BLOCK_SIZE) * BLOCK_SIZE + BLOCK_SIZE
    });
    widened(&wide.collect::<Vec<_>>(), BLOCK_SIZE, size)
}

/// What of `ranges` lies in whole blocks of `known`.
fn inside(ranges: &[Range<u64>], known: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let known = widened(known, BLOCK_SIZE, size);
    let mut inside = Vec::new();
    for range in ranges {
        let first = known.partition_point(|known| known.end <= range.start);
        let overlapping = known[first..]
            .iter()
            .take_while(|known| known.start < range.end);
        inside.extend(
            overlapping.map(|known| known.start.max(range.start)..known.end.min(range.end)),
        );
    }
    inside
}

/// Ranges in groups that fit one question each.
fn batches(ranges: &[Range<u64>]) -> Vec<Vec<Range<u64>>> {
    const MOST_RANGES: usize = 1000;
    const MOST_BYTES: u64 = 64 << 20;
    let mut batches: Vec<Vec<Range<u64>>> = Vec::new();
    let mut bytes = 0;
    for range in ranges {
        let length = range.end - range.start;
        match batches.last_mut() {
            Some(last) if last.len() < MOST_RANGES && bytes + length <= MOST_BYTES => {
                last.push(range.clone());
                bytes += length;
            }
            _ => {
                batches.push(vec![range.clone()]);
                bytes = length;
            }
        }
    }
    batches
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_covers_the_ends_and_a_hundredth_of_the_rest() {
        let size = 1 << 30;
        let ranges = sample(size, &[7; 32]);
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        let holds = |at: u64| ranges.iter().any(|range| range.contains(&at));
        assert!(holds(0) && holds((16 << 20) - 1) && holds(size - 1));
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(bytes >= (32 << 20) + size / 110, "{bytes}");
    }

    #[test]
    fn known_ranges_count_in_whole_blocks() {
        const SIZE: u64 = 1 << 20;
        let known = [8192..12288, 4096..4097];
        let outside = |range| first_outside(&[range], &known, SIZE);
        assert_eq!(outside(4096..8192), None);
        assert_eq!(outside(4096..12288), None);
        assert_eq!(outside(0..4096), Some(0));
        assert_eq!(outside(8192..16384), Some(12288));
        assert_eq!(first_outside(&[], &known, SIZE), None);
    }

    #[test]
    fn what_maps_name_is_looked_at_with_its_neighbors() {
        const SIZE: u64 = 1 << 20;
        let known = [4097..4098, 40960..45056, SIZE - 100..SIZE];
        assert_eq!(
            with_neighbors(&known, SIZE),
            [0..12288, 36864..49152, SIZE - 8192..SIZE]
        );
        assert_eq!(
            inside(&[0..8192, 36864..49152], &known, SIZE),
            [4096..8192, 40960..45056]
        );
        assert!(inside(&[8192..40960, 45056..49152], &known, SIZE).is_empty());
    }

    #[test]
    fn blocks_that_only_both_maps_together_know_are_known() {
        // The VM wrote right behind a block that the old primary had changed.
        let (theirs, ours) = (4096..8192, 8192..12288);
        let differing: Vec<Range<u64>> = std::iter::once(4096..12288).collect();
        let outside = |known: &[Range<u64>]| first_outside(&differing, known, 1 << 20);
        assert_eq!(outside(std::slice::from_ref(&theirs)), Some(8192));
        assert_eq!(outside(std::slice::from_ref(&ours)), Some(4096));
        assert_eq!(outside(&[theirs, ours]), None);
    }
}
