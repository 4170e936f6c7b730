//! A VM as the test that writes it knows it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use lifeboat_model::{
    Consistency, DeltaId, DiskId, DiskSize, LineageId, RelationshipId, Sequence, Timestamp, VmId,
};
use lifeboat_store::NewStore;
use lifeboat_stream::{
    Base, BlobKind, Compression, Disk, Encoder, Header, Kind, Layout, MAX_DATA_LEN, Manifest,
    Options, is_zero,
};

use crate::Random;

const SECTOR: u64 = 512;

/// What the guest of a shadow VM does.
#[derive(Debug, Clone, Copy)]
pub struct Activity {
    /// How many writes, zeroes and discards.
    pub operations: u64,
    /// The longest of them, in sectors of 512 bytes.
    pub max_sectors: u64,
    /// Every operation begins and ends at a multiple of so many sectors.
    pub alignment: u64,
}

impl Activity {
    /// Small and large, aligned to nothing but sectors.
    pub const MIXED: Self = Self {
        operations: 12,
        max_sectors: 300,
        alignment: 1,
    };
    /// Whole blocks of 4 KiB.
    pub const BLOCKS: Self = Self {
        operations: 12,
        max_sectors: 64,
        alignment: 8,
    };
}

/// The bytes of a VM's disks, now and at every moment that was captured.
#[derive(Debug, Clone)]
pub struct ShadowVm {
    pub vm: VmId,
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    names: Vec<DiskId>,
    disks: Vec<Vec<u8>>,
    /// Sectors written since the last capture, per disk.
    dirty: Vec<BTreeSet<u64>>,
    moments: BTreeMap<Sequence, Vec<Vec<u8>>>,
    /// The VM definition in force, and at every moment.
    definition: Vec<u8>,
    definitions: BTreeMap<Sequence, Vec<u8>>,
    newest: Option<(Sequence, DeltaId)>,
    next: Sequence,
    random: Random,
}

impl ShadowVm {
    /// A VM with empty disks of these sizes in bytes.
    #[must_use]
    pub fn new(seed: u64, sizes: &[u64]) -> Self {
        let mut random = Random::new(seed);
        let mut id = [0; 16];
        random.fill(&mut id);
        Self {
            vm: VmId::from_bytes(id),
            relationship: RelationshipId::from_bytes(id),
            lineage: LineageId::from_bytes(id),
            names: (0..sizes.len())
                .map(|at| format!("disk{at}").parse().expect("BUG: a valid name"))
                .collect(),
            disks: sizes.iter().map(|&size| vec![0; size as usize]).collect(),
            dirty: vec![BTreeSet::new(); sizes.len()],
            moments: BTreeMap::new(),
            definition: Vec::new(),
            definitions: BTreeMap::new(),
            newest: None,
            next: Sequence::new(1),
            random,
        }
    }

    /// What a store for this VM is made from.
    #[must_use]
    pub fn new_store(&self) -> NewStore {
        let sizes = self.disks.iter().map(|disk| size_of(disk));
        NewStore {
            vm: self.vm,
            relationship: self.relationship,
            lineage: self.lineage,
            disks: self.names.iter().cloned().zip(sizes).collect(),
        }
    }

    #[must_use]
    pub fn names(&self) -> &[DiskId] {
        &self.names
    }

    /// The bytes of every disk now.
    #[must_use]
    pub fn disks(&self) -> &[Vec<u8>] {
        &self.disks
    }

    /// The bytes of every disk at a captured moment.
    ///
    /// # Panics
    /// If nothing was captured under that number.
    #[must_use]
    pub fn at(&self, sequence: Sequence) -> &[Vec<u8>] {
        self.moments
            .get(&sequence)
            .unwrap_or_else(|| panic!("moment {sequence} was never captured"))
    }

    /// The VM definition at a captured moment; empty before it was first sent.
    ///
    /// # Panics
    /// If nothing was captured under that number.
    #[must_use]
    pub fn definition_at(&self, sequence: Sequence) -> &[u8] {
        &self.definitions[&sequence]
    }

    /// The newest captured moment.
    #[must_use]
    pub fn newest(&self) -> Option<(Sequence, DeltaId)> {
        self.newest
    }

    /// Lets the guest write, zero and discard at random.
    pub fn work(&mut self, activity: Activity) {
        for _ in 0..activity.operations {
            let disk = self.random.below(self.disks.len() as u64) as usize;
            let sectors = self.disks[disk].len() as u64 / SECTOR;
            let start = self.random.below(sectors) / activity.alignment * activity.alignment;
            let count =
                (1 + self.random.below(activity.max_sectors)).next_multiple_of(activity.alignment);
            let end = (start + count).min(sectors);
            let range = (start * SECTOR) as usize..(end * SECTOR) as usize;
            if self.random.one_in(4) {
                self.disks[disk][range].fill(0);
            } else {
                self.random.fill(&mut self.disks[disk][range]);
            }
            self.dirty[disk].extend(start..end);
        }
    }

    /// Writes bytes that the test has chosen.
    pub fn write(&mut self, disk: usize, offset: u64, bytes: &[u8]) {
        let range = offset as usize..offset as usize + bytes.len();
        self.disks[disk][range].copy_from_slice(bytes);
        self.dirty[disk].extend(offset / SECTOR..(offset + bytes.len() as u64).div_ceil(SECTOR));
    }

    /// Gives a disk another size; what is new is zero.
    pub fn resize(&mut self, disk: usize, size: u64) {
        self.disks[disk].resize(size as usize, 0);
        self.dirty[disk].retain(|&sector| sector < size / SECTOR);
    }

    /// Captures everything that was written since the last capture.
    pub fn capture(&mut self) -> Vec<u8> {
        let kind = if self.newest.is_some() {
            Kind::Delta
        } else {
            Kind::Initial
        };
        let base = self.newest;
        self.capture_as(kind, base)
    }

    /// Captures whole disks, as a first delta does, whatever was captured before.
    pub fn capture_whole(&mut self) -> Vec<u8> {
        self.capture_as(Kind::Initial, None)
    }

    /// Draws the name of a copy of whole disks. What the guest writes from now on is in the
    /// delta that closes the copy.
    pub fn begin_copy(&mut self) -> Sequence {
        let sequence = self.draw();
        self.dirty.iter_mut().for_each(BTreeSet::clear);
        sequence
    }

    /// A piece of a copy: what the disk holds in this range of bytes now.
    pub fn capture_piece(&mut self, copy: Sequence, disk: usize, range: Range<u64>) -> Vec<u8> {
        let header = Header {
            relationship: self.relationship,
            lineage: self.lineage,
            base: None,
            sequence: copy,
            kind: Kind::Resync,
        };
        let mut encoder = self.encoder(&header);
        let sectors = (range.start / SECTOR, range.end / SECTOR);
        encode_ranges(
            &mut encoder,
            disk,
            &self.disks[disk],
            &[sectors],
            &mut self.random,
        );
        encoder.finish().expect("BUG: a complete stream").1
    }

    /// Captures everything that was written since the copy began, to close it.
    pub fn capture_closing(&mut self) -> Vec<u8> {
        self.capture_as(Kind::Resync, None)
    }

    /// The VM goes on under another lineage with these bytes, and they are kept under a number
    /// drawn for them. Nothing that is captured later builds on an earlier moment.
    pub fn change_sides(&mut self, lineage: LineageId, disks: &[Vec<u8>]) -> Sequence {
        let sequence = self.draw();
        self.lineage = lineage;
        self.disks = disks.to_vec();
        self.dirty.iter_mut().for_each(BTreeSet::clear);
        self.newest = None;
        self.moments.insert(sequence, self.disks.clone());
        self.definitions.insert(sequence, self.definition.clone());
        sequence
    }

    fn draw(&mut self) -> Sequence {
        let sequence = self.next;
        self.next = sequence.next().expect("BUG: a test ran out of numbers");
        sequence
    }

    /// Begins a stream, compressed and laid out one way or the other.
    fn encoder(&mut self, header: &Header) -> Encoder<Vec<u8>> {
        let disks = self.names.iter().zip(&self.disks).map(|(id, bytes)| Disk {
            id: id.clone(),
            size: size_of(bytes),
        });
        let captured_at =
            Timestamp::from_micros(1_700_000_000_000_000 + header.sequence.number() * 1_000_000);
        let manifest = Manifest::new(captured_at, Consistency::Crash, disks.collect())
            .expect("BUG: a valid manifest");
        let compression = if self.random.one_in(2) {
            Compression::None
        } else {
            Compression::Zstd(1)
        };
        let layout = if self.random.one_in(2) {
            Layout::Shareable
        } else {
            Layout::Compact
        };
        let options = Options {
            compression,
            layout,
        };
        Encoder::new(Vec::new(), header, &manifest, options).expect("BUG: a valid header")
    }

    fn capture_as(&mut self, kind: Kind, base: Option<(Sequence, DeltaId)>) -> Vec<u8> {
        let sequence = self.draw();
        let header = Header {
            relationship: self.relationship,
            lineage: self.lineage,
            base: base.map(|(sequence, id)| Base { sequence, id }),
            sequence,
            kind,
        };
        let mut encoder = self.encoder(&header);
        if self.random.one_in(3) {
            self.definition = format!("cpus = {}", self.random.below(64)).into_bytes();
            encoder
                .blob(BlobKind::Definition, 1, &self.definition)
                .expect("BUG: a valid blob");
        }
        for (at, bytes) in self.disks.iter().enumerate() {
            let sectors = bytes.len() as u64 / SECTOR;
            let ranges = match kind {
                Kind::Initial => vec![(0, sectors)],
                Kind::Delta | Kind::Resync => runs(&self.dirty[at]),
            };
            encode_ranges(&mut encoder, at, bytes, &ranges, &mut self.random);
            self.dirty[at].clear();
        }
        let (footer, stream) = encoder.finish().expect("BUG: a complete stream");
        self.newest = Some((sequence, footer.id));
        self.moments.insert(sequence, self.disks.clone());
        self.definitions.insert(sequence, self.definition.clone());
        stream
    }
}

/// Writes what a disk holds in these ranges of sectors.
fn encode_ranges(
    encoder: &mut Encoder<Vec<u8>>,
    disk: usize,
    bytes: &[u8],
    ranges: &[(u64, u64)],
    random: &mut Random,
) {
    for &(start, end) in ranges {
        for (from, to) in pieces(bytes, start, end) {
            let part = &bytes[(from * SECTOR) as usize..(to * SECTOR) as usize];
            // A zeroed range may travel as zeroes or as data; both are right.
            if is_zero(part) && (part.len() > MAX_DATA_LEN || !random.one_in(4)) {
                encoder
                    .zero(disk, from * SECTOR, part.len() as u64)
                    .expect("BUG: a valid frame");
            } else {
                let mut offset = from * SECTOR;
                for chunk in part.chunks(MAX_DATA_LEN) {
                    encoder
                        .data(disk, offset, chunk)
                        .expect("BUG: a valid frame");
                    offset += chunk.len() as u64;
                }
            }
        }
    }
}

fn size_of(bytes: &[u8]) -> DiskSize {
    (bytes.len() as u64)
        .try_into()
        .expect("BUG: a shadow disk has a valid size")
}

/// Consecutive numbers as half-open ranges.
fn runs(sectors: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &sector in sectors {
        match runs.last_mut() {
            Some((_, end)) if *end == sector => *end += 1,
            _ => runs.push((sector, sector + 1)),
        }
    }
    runs
}

/// A range cut where zeroes begin and end.
fn pieces(bytes: &[u8], start: u64, end: u64) -> Vec<(u64, u64)> {
    let zero =
        |sector: u64| is_zero(&bytes[(sector * SECTOR) as usize..((sector + 1) * SECTOR) as usize]);
    let mut pieces = Vec::new();
    let mut from = start;
    for sector in start + 1..=end {
        if sector == end || zero(sector) != zero(from) {
            pieces.push((from, sector));
            from = sector;
        }
    }
    pieces
}
