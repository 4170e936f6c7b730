//! A disk of the VM as a copy reads it.

use std::ops::Range;

use lifeboat_hypervisor::DiskSource;
use lifeboat_model::{BLOCK_SIZE, DiskId};
use lifeboat_nbd::{Client, ClientOptions, ContextName, ZERO};

use super::{CopyTrouble, DIGEST, FRAME, Key};

/// The most extents of one range that are looked at.
const EXTENTS: usize = 16_384;

/// One disk of the copy.
pub(super) struct OpenDisk {
    pub(super) id: DiskId,
    /// Its place in the manifest.
    pub(super) index: usize,
    pub(super) size: u64,
    client: Client,
    has_allocation: bool,
}

/// A range of a disk that was asked for.
pub(super) struct Part {
    pub(super) range: Range<u64>,
    /// It is known to be zero.
    pub(super) is_hole: bool,
}

impl OpenDisk {
    pub(super) fn open(index: usize, source: &DiskSource) -> Result<Self, CopyTrouble> {
        let allocation = ContextName::allocation();
        let options = ClientOptions {
            contexts: vec![allocation.clone()],
            ..ClientOptions::default()
        };
        let client = Client::connect(&source.uri, &options).map_err(|error| CopyTrouble::Open {
            disk: source.disk.clone(),
            source: Box::new(error),
        })?;
        let has_allocation = client.contexts().any(|context| *context == allocation);
        Ok(Self {
            id: source.disk.clone(),
            index,
            size: source.size.bytes(),
            client,
            has_allocation,
        })
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CopyTrouble> {
        self.client
            .read(offset, into)
            .map_err(|source| CopyTrouble::Read {
                disk: self.id.clone(),
                source,
            })
    }

    /// Cuts a range into what may hold data and what is known to be zero, at whole blocks.
    pub(super) fn parts(&self, range: &Range<u64>) -> Result<Vec<Part>, CopyTrouble> {
        let all_data = |range: Range<u64>| Part {
            range,
            is_hole: false,
        };
        if !self.has_allocation {
            return Ok(vec![all_data(range.clone())]);
        }
        let allocation = ContextName::allocation();
        let extents = self
            .client
            .collect_extents(&allocation, range.start, range.end - range.start, EXTENTS)
            .map_err(|source| CopyTrouble::Read {
                disk: self.id.clone(),
                source,
            })?;
        // A range in more parts than that is read whole: blocks of zeroes are found anyway.
        let Some(extents) = extents else {
            return Ok(vec![all_data(range.clone())]);
        };
        let mut parts: Vec<Part> = Vec::new();
        // Where the part begins that comes next, and where the extent does.
        let (mut taken, mut at) = (range.start, range.start);
        for extent in extents {
            let (start, end) = (at, range.end.min(at + extent.length));
            at = end;
            if extent.flags & ZERO == 0 {
                continue;
            }
            // Whole blocks of zeroes only, so that no frame begins within one.
            let hole = start.div_ceil(BLOCK_SIZE) * BLOCK_SIZE..if end == self.size {
                end
            } else {
                end / BLOCK_SIZE * BLOCK_SIZE
            };
            if hole.start >= hole.end {
                continue;
            }
            if taken < hole.start {
                parts.push(all_data(taken..hole.start));
            }
            taken = hole.end;
            parts.push(Part {
                range: hole,
                is_hole: true,
            });
        }
        if taken < range.end {
            parts.push(all_data(taken..range.end));
        }
        Ok(parts)
    }

    /// The keyed digests of the units of a range, one after the other. Holes are not read.
    pub(super) fn digests(
        &self,
        range: &Range<u64>,
        unit: u64,
        key: &Key,
        into: &mut Vec<[u8; DIGEST]>,
    ) -> Result<(), CopyTrouble> {
        let zeroes = vec![0; unit as usize];
        let of_zeroes = digest(key, &zeroes);
        let mut buffer = vec![0; FRAME as usize];
        let mut at = range.start;
        for part in self.parts(range)? {
            if part.is_hole {
                // Whole units, that at the end of the disk not among them.
                let units = part.range.end.saturating_sub(at) / unit;
                into.extend(std::iter::repeat_n(of_zeroes, units as usize));
                at += units * unit;
                continue;
            }
            // What a hole left over of its last unit is read with what follows it.
            let end = (part.range.end - range.start).div_ceil(unit) * unit + range.start;
            let end = end.min(range.end);
            self.read_digests(at..end, unit, key, &mut buffer, into)?;
            at = at.max(end);
        }
        self.read_digests(at..range.end, unit, key, &mut buffer, into)
    }

    fn read_digests(
        &self,
        range: Range<u64>,
        unit: u64,
        key: &Key,
        buffer: &mut [u8],
        into: &mut Vec<[u8; DIGEST]>,
    ) -> Result<(), CopyTrouble> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + FRAME);
            let bytes = &mut buffer[..(end - start) as usize];
            self.read(start, bytes)?;
            into.extend(bytes.chunks(unit as usize).map(|part| digest(key, part)));
            start = end;
        }
        Ok(())
    }
}

fn digest(key: &Key, bytes: &[u8]) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(&blake3::keyed_hash(key, bytes).as_bytes()[..DIGEST]);
    digest
}
