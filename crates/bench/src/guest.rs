//! A guest that writes what a row tells it to, and the delta streams of its changes.

use anyhow::{Context as _, Result};
use lifeboat_harness::Random;
use lifeboat_model::{Consistency, DiskId, DiskSize, LineageId, RelationshipId, Sequence, VmId};
use lifeboat_store::NewStore;
use lifeboat_stream::{
    Base, Compression, Disk, Encoder, Header, Kind, Layout, MAX_DATA_LEN, Manifest, Options,
};
use lifeboat_sys::clock;

/// One changed range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// New random bytes.
    Write { offset: u64, len: usize },
    /// Zeroes, or what a guest discards.
    Zero { offset: u64, len: u64 },
}

/// Payloads as they are, at places where they can be shared: what a bar about bytes means.
pub const UNCOMPRESSED: Options = Options {
    compression: Compression::None,
    layout: Layout::Shareable,
};

/// Payloads as they are, one after the other.
pub const COMPACT: Options = Options {
    compression: Compression::None,
    layout: Layout::Compact,
};

/// A VM with one disk.
#[derive(Debug)]
pub struct Guest {
    vm: VmId,
    relationship: RelationshipId,
    lineage: LineageId,
    disk: DiskId,
    size: DiskSize,
    sequence: Sequence,
    newest: Option<Base>,
    random: Random,
}

impl Guest {
    /// A VM whose disk has `size` bytes.
    pub fn new(size: u64) -> Result<Self> {
        let mut random = Random::new(size);
        let mut id = [0; 16];
        random.fill(&mut id);
        Ok(Self {
            vm: VmId::from_bytes(id),
            relationship: RelationshipId::from_bytes(id),
            lineage: LineageId::from_bytes(id),
            disk: "sda".parse().context("name the disk")?,
            size: size.try_into().context("size the disk")?,
            sequence: Sequence::ZERO,
            newest: None,
            random,
        })
    }

    /// What a store for this VM is made from.
    pub fn new_store(&self) -> NewStore {
        NewStore {
            vm: self.vm,
            relationship: self.relationship,
            lineage: self.lineage,
            disks: vec![(self.disk.clone(), self.size)],
        }
    }

    pub fn disk(&self) -> &DiskId {
        &self.disk
    }

    /// The header of the next delta, for a stream that something else writes.
    pub fn next_header(&mut self) -> Result<Header> {
        self.sequence = self.sequence.next().context("draw a sequence number")?;
        Ok(Header {
            relationship: self.relationship,
            lineage: self.lineage,
            base: self.newest,
            sequence: self.sequence,
            kind: if self.newest.is_some() {
                Kind::Delta
            } else {
                Kind::Initial
            },
        })
    }

    /// Takes note that the delta with this header exists under this id.
    pub fn captured(&mut self, header: &Header, footer: &lifeboat_stream::Footer) {
        self.newest = Some(Base {
            sequence: header.sequence,
            id: footer.id,
        });
    }

    /// The first delta: random bytes up to `data`, zeroes behind.
    pub fn whole(&mut self, data: u64) -> Result<Vec<u8>> {
        let mut changes: Vec<Change> = pieces(0, data).collect();
        let rest = self.size.bytes() - data;
        if rest > 0 {
            changes.push(Change::Zero {
                offset: data,
                len: rest,
            });
        }
        self.delta(&changes, UNCOMPRESSED)
    }

    /// The next delta. Changes ascend and do not overlap.
    pub fn delta(&mut self, changes: &[Change], options: Options) -> Result<Vec<u8>> {
        let header = self.next_header()?;
        let disk = Disk {
            id: self.disk.clone(),
            size: self.size,
        };
        let manifest = Manifest::new(clock::wall(), Consistency::Crash, vec![disk])
            .context("describe the delta")?;
        let mut encoder =
            Encoder::new(Vec::new(), &header, &manifest, options).context("begin a delta")?;
        let mut bytes = vec![0; MAX_DATA_LEN];
        for &change in changes {
            match change {
                Change::Write { offset, len } => {
                    self.random.fill(&mut bytes[..len]);
                    encoder.data(0, offset, &bytes[..len])
                }
                Change::Zero { offset, len } => encoder.zero(0, offset, len),
            }
            .context("write a delta")?;
        }
        let (footer, stream) = encoder.finish().context("end a delta")?;
        self.captured(&header, &footer);
        Ok(stream)
    }

    /// Writes of `len` bytes in all, `step` bytes each, scattered below `data`.
    pub fn scattered(&mut self, data: u64, len: u64, step: usize) -> Vec<Change> {
        let slots = data / step as u64;
        scatter(&mut self.random, slots, len / step as u64)
            .into_iter()
            .map(|slot| Change::Write {
                offset: slot * step as u64,
                len: step,
            })
            .collect()
    }

    /// Random bytes that a guest might write.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.random.fill(&mut bytes);
        bytes
    }
}

/// `count` different numbers below `slots`, ascending.
fn scatter(random: &mut Random, slots: u64, count: u64) -> Vec<u64> {
    assert!(
        count <= slots,
        "BUG: {count} different numbers below {slots}"
    );
    // The numbers from `slots - count` on, each exchanged for an earlier one that is free
    // (Floyd's sampling): every choice is equally likely, and no number is drawn twice.
    let mut chosen = std::collections::BTreeSet::new();
    for last in slots - count..slots {
        let candidate = random.below(last + 1);
        if !chosen.insert(candidate) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

/// A range as writes that one frame can carry.
fn pieces(start: u64, end: u64) -> impl Iterator<Item = Change> {
    (start..end)
        .step_by(MAX_DATA_LEN)
        .map(move |offset| Change::Write {
            offset,
            len: (end - offset).min(MAX_DATA_LEN as u64) as usize,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lifeboat_stream::{Ending, Limits, verify};

    #[test]
    fn scattered_numbers_ascend_and_are_as_many_as_asked() {
        let mut random = Random::new(1);
        for (slots, count) in [(1, 1), (10, 10), (1000, 10), (5, 0)] {
            let numbers = scatter(&mut random, slots, count);
            assert_eq!(numbers.len() as u64, count);
            assert!(numbers.is_sorted_by(|a, b| a < b));
            assert!(numbers.iter().all(|&number| number < slots));
        }
    }

    #[test]
    fn every_delta_builds_on_the_one_before() {
        let mut guest = Guest::new(4 << 20).unwrap();
        let changes = guest.scattered(4 << 20, 64 << 10, 4096);
        assert_eq!(changes.len(), 16);
        let limits = Limits {
            stream_bytes: 16 << 20,
            ending: Ending::EndOfInput,
        };
        let first = verify(guest.whole(3 << 20).unwrap().as_slice(), &limits).unwrap();
        let stream = guest.delta(&changes, COMPACT).unwrap();
        let second = verify(stream.as_slice(), &limits).unwrap();
        assert_eq!(first.header.base, None);
        assert_eq!(second.header.base.unwrap().id, first.footer.id);
    }
}
