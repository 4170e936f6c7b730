//! Copying whole disks to the replica, piece by piece, while the VM runs.
//!
//! A piece is 64 MiB of one disk. What travels of it is everything that is not zero (first copy),
//! what differs by keyed digests (comparison), or what the maps name (reversal). The replica
//! answers when a piece is durable, and remembers it: an interrupted copy goes on where it was.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_hypervisor::{DiskSource, HypervisorError, Tracking};
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{CopyPurpose, Event, ResyncCause};
use lifeboat_model::{BLOCK_SIZE, Consistency, DiskId, Sequence};
use lifeboat_nbd::{Client, ClientOptions, ConnectError, ContextName, RequestError, ZERO};
use lifeboat_peer::{
    BeginCopy, ChunkPlace, CopyKind, CopyProgress, DigestQuery, Link, LinkError, PeerDisk,
};
use lifeboat_stream::{Disk, EncodeError, Encoder, Header, Kind, Manifest, is_zero};
use lifeboat_sys::host;

use crate::activity::Stop;
use crate::cycle::{included, stream_options};
use crate::relation::Relation;
use crate::service::{Service, lock, with_causes};
use crate::vm::VmArc;

/// Bytes of a disk that one piece covers.
const PIECE: u64 = 64 << 20;

/// The unit that is compared first; where it differs, blocks are compared.
const COARSE: u64 = 64 << 10;

/// Pieces on their way at once: the next is read while one is sent.
const STREAMS: usize = 2;

/// The largest frame of data.
const FRAME: u64 = lifeboat_stream::MAX_DATA_LEN as u64;

/// The most extents of one piece that are looked at.
const EXTENTS: usize = 16_384;

/// A digest of the comparison, in bytes.
const DIGEST: usize = 16;

/// A copy stopped before its end.
#[derive(Debug, thiserror::Error)]
enum CopyTrouble {
    #[error("ask for the VM's disks")]
    Disks { source: HypervisorError },
    #[error("open disk {disk}")]
    Open {
        disk: DiskId,
        source: Box<ConnectError>,
    },
    #[error("read disk {disk}")]
    Read { disk: DiskId, source: RequestError },
    #[error("encode a piece of disk {disk}")]
    Encode { disk: DiskId, source: EncodeError },
    #[error("draw a key")]
    Key { source: std::io::Error },
    #[error("changes of the disks may have been missed: {why}")]
    Untracked { why: String },
    #[error(
        "the replica answered {found} bytes of digests and {expected} were asked for; it is not believed"
    )]
    Digests { found: usize, expected: usize },
    #[error("the disks may not be what they were thought to be: {why}")]
    Unproved { why: String },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("stopped")]
    Stopped,
}

/// What travels of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Everything,
    WhatDiffers,
}

/// One disk of the copy.
struct OpenDisk {
    id: DiskId,
    /// Its place in the manifest.
    index: usize,
    size: u64,
    client: Client,
    has_allocation: bool,
}

/// What all pieces of one copy share.
struct Job<'a> {
    service: &'a Service,
    vm: &'a VmArc,
    relation: &'a Relation,
    copy: Sequence,
    disks: &'a [OpenDisk],
    manifest: &'a Manifest,
    key: [u8; 32],
    link: &'a dyn Link,
    stop: &'a Stop,
}

/// One piece.
#[derive(Debug, Clone)]
struct Piece {
    disk: usize,
    /// From the first to the last of what is looked at.
    range: Range<u64>,
    /// What is looked at, ascending and apart.
    within: Vec<Range<u64>>,
    way: Way,
}

impl Piece {
    /// How much is looked at.
    fn bytes(&self) -> u64 {
        self.within
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

impl Service {
    /// Copies whole disks, or goes on with it.
    pub(crate) fn copy_disks(&self, vm: &VmArc, copy: Sequence, purpose: CopyPurpose, stop: &Stop) {
        let _place = self.inner.transfers.take();
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        let what = match purpose {
            CopyPurpose::Initial => "initial replication",
            CopyPurpose::Compare => "comparing disks",
            CopyPurpose::Reverse => "reversing replication",
        };
        vm.meter.begin(what, 0);
        let outcome = self.run_copy(vm, &relation, copy, purpose, stop);
        vm.meter.end();
        match outcome {
            Ok(()) => {
                self.note_success(vm);
                self.tell(vm, Event::ChunksDone { copy });
            }
            Err(CopyTrouble::Stopped | CopyTrouble::Link(LinkError::Cancelled)) => {}
            Err(CopyTrouble::Link(error)) => self.note_link_error(vm, what, &error),
            Err(trouble) => {
                let text = format!("{what}: {}", with_causes(&trouble));
                self.note_trouble(vm, ReturnCode::Failed, text);
                if let CopyTrouble::Untracked { why } | CopyTrouble::Unproved { why } = &trouble {
                    if purpose == CopyPurpose::Reverse {
                        self.report_comparison(vm, why);
                    }
                    self.tell(vm, Event::NeedsResync(ResyncCause::TrackingLost));
                }
            }
        }
    }

    fn run_copy(
        &self,
        vm: &VmArc,
        relation: &Relation,
        copy: Sequence,
        purpose: CopyPurpose,
        stop: &Stop,
    ) -> Result<(), CopyTrouble> {
        self.track_copy(vm, copy, purpose)?;
        let link = self.link(&relation.peer)?;
        let sources = self
            .inner
            .hypervisor
            .present_disks(vm.id)
            .map_err(|source| CopyTrouble::Disks { source })?;
        let sources = included(relation, &sources);
        let disks = open_disks(&sources)?;
        let record = relation.record();
        let kind = match purpose {
            CopyPurpose::Initial => CopyKind::Initial,
            CopyPurpose::Compare | CopyPurpose::Reverse => CopyKind::Resync,
        };
        let manifest = Manifest::new(
            self.now(),
            Consistency::Crash,
            sources
                .iter()
                .map(|source| Disk {
                    id: source.disk.clone(),
                    size: source.size,
                })
                .collect(),
        )
        .expect("BUG: a VM's disks make a manifest");
        let key = host::random_bytes().map_err(|source| CopyTrouble::Key { source })?;
        let progress = link.begin_copy(BeginCopy {
            relationship: record.relationship,
            lineage: record.lineage.id,
            copy,
            kind,
            disks: sources
                .iter()
                .map(|source| PeerDisk {
                    id: source.disk.clone(),
                    size: source.size,
                })
                .collect(),
        })?;
        let job = Job {
            service: self,
            vm,
            relation,
            copy,
            disks: &disks,
            manifest: &manifest,
            key,
            link: link.as_ref(),
            stop,
        };
        let pieces = match purpose {
            CopyPurpose::Initial => all_pieces(&disks, &progress, Way::Everything),
            CopyPurpose::Compare => all_pieces(&disks, &progress, Way::WhatDiffers),
            CopyPurpose::Reverse => match self.diverged(vm, relation, copy) {
                Ok(diverged) => {
                    job.prove(&diverged)?;
                    pieces_of(&disks, &diverged, &progress)
                }
                Err(why) => {
                    self.report_comparison(vm, &why);
                    all_pieces(&disks, &progress, Way::WhatDiffers)
                }
            },
        };
        let total = pieces.iter().map(Piece::bytes).sum();
        vm.meter.begin(what_of(purpose), total);
        job.run(&pieces)
    }

    /// Says why a reversal compares everything.
    fn report_comparison(&self, vm: &VmArc, why: &str) {
        let name = vm.name();
        let message = format!(
            "{name}: the disks of both sides are compared, because the maps are not believed: {why}"
        );
        let severity = crate::api::Severity::Info;
        self.report(Some(vm.id), severity, "reversal", &message);
    }

    /// Sees to it that changes during the copy are known.
    fn track_copy(
        &self,
        vm: &VmArc,
        copy: Sequence,
        purpose: CopyPurpose,
    ) -> Result<(), CopyTrouble> {
        let hypervisor = &self.inner.hypervisor;
        let tracking = hypervisor
            .tracking(vm.id)
            .map_err(|source| CopyTrouble::Disks { source })?;
        match (tracking, purpose) {
            (Tracking::Since { moments }, CopyPurpose::Initial | CopyPurpose::Compare)
                if moments.first().is_some_and(|first| *first <= copy) =>
            {
                Ok(())
            }
            // The maps since the commit say what differs.
            (Tracking::Since { .. }, CopyPurpose::Reverse) => Ok(()),
            (Tracking::Unknown { why }, _) => Err(CopyTrouble::Untracked { why }),
            (Tracking::Off, _) => Err(CopyTrouble::Untracked {
                why: "nothing tracks them".to_owned(),
            }),
            (Tracking::Since { .. }, _) => Err(CopyTrouble::Untracked {
                why: "they are tracked from a later moment on".to_owned(),
            }),
        }
    }
}

fn what_of(purpose: CopyPurpose) -> &'static str {
    match purpose {
        CopyPurpose::Initial => "initial replication",
        CopyPurpose::Compare => "comparing disks",
        CopyPurpose::Reverse => "reversing replication",
    }
}

fn open_disks(sources: &[DiskSource]) -> Result<Vec<OpenDisk>, CopyTrouble> {
    let open = |(index, source): (usize, &DiskSource)| {
        let options = ClientOptions {
            contexts: vec![ContextName::allocation()],
            ..ClientOptions::default()
        };
        let client = Client::connect(&source.uri, &options).map_err(|error| CopyTrouble::Open {
            disk: source.disk.clone(),
            source: Box::new(error),
        })?;
        let allocation = ContextName::allocation();
        let has_allocation = client.contexts().any(|context| *context == allocation);
        Ok(OpenDisk {
            id: source.disk.clone(),
            index,
            size: source.size.bytes(),
            client,
            has_allocation,
        })
    };
    sources.iter().enumerate().map(open).collect()
}

/// Every piece that is not done yet.
fn all_pieces(disks: &[OpenDisk], progress: &CopyProgress, way: Way) -> Vec<Piece> {
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

/// The pieces that hold the ranges: one for each part of a disk that has any, so that scattered
/// ranges travel together.
fn pieces_of(
    disks: &[OpenDisk],
    ranges: &[(DiskId, Vec<Range<u64>>)],
    progress: &CopyProgress,
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (at, disk) in disks.iter().enumerate() {
        let Some((_, ranges)) = ranges.iter().find(|(id, _)| *id == disk.id) else {
            continue;
        };
        let mut parts: Vec<Vec<Range<u64>>> = Vec::new();
        for range in widened(ranges, COARSE, disk.size) {
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
                    way: Way::WhatDiffers,
                });
            }
        }
    }
    pieces
}

/// Ranges widened to whole units, ascending and apart.
fn widened(ranges: &[Range<u64>], unit: u64, size: u64) -> Vec<Range<u64>> {
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

impl Job<'_> {
    /// Sends all pieces, a few at once; the first that fails ends the copy.
    fn run(&self, pieces: &[Piece]) -> Result<(), CopyTrouble> {
        let next = AtomicUsize::new(0);
        let first: Mutex<Option<CopyTrouble>> = Mutex::new(None);
        let work = || {
            // Of the size of a piece: used again, its pages are there already.
            let mut body = Vec::new();
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::SeqCst)) {
                if lock(&first).is_some() {
                    return;
                }
                if self.stop.is_asked() {
                    lock(&first).get_or_insert(CopyTrouble::Stopped);
                    return;
                }
                if let Err(trouble) = self.send_piece(piece, &mut body) {
                    lock(&first).get_or_insert(trouble);
                    return;
                }
                self.vm.meter.add(piece.bytes());
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..STREAMS {
                scope.spawn(work);
            }
            work();
        });
        match first
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some(trouble) => Err(trouble),
            None => Ok(()),
        }
    }

    fn send_piece(&self, piece: &Piece, body: &mut Vec<u8>) -> Result<(), CopyTrouble> {
        let disk = &self.disks[piece.disk];
        let ranges = match piece.way {
            Way::Everything => piece.within.clone(),
            Way::WhatDiffers => self.differing(disk, &piece.within)?,
        };
        self.encode(disk, &ranges, piece.way, body)?;
        let place = ChunkPlace {
            relationship: self.relation.record().relationship,
            lineage: self.relation.record().lineage.id,
            copy: self.copy,
            disk: disk.id.clone(),
            range: piece.range.clone(),
        };
        let sent = body.len() as u64;
        let mut body = self.service.throttled(self.vm, body.as_slice(), self.stop);
        self.link
            .cancelled_by(self.stop.flag())
            .put_chunk(place, &mut body)?;
        self.service.count_copied(self.vm, sent);
        Ok(())
    }

    fn encode(
        &self,
        disk: &OpenDisk,
        ranges: &[Range<u64>],
        way: Way,
        body: &mut Vec<u8>,
    ) -> Result<(), CopyTrouble> {
        let encoding = |source| CopyTrouble::Encode {
            disk: disk.id.clone(),
            source,
        };
        let record = self.relation.record();
        let header = Header {
            relationship: record.relationship,
            lineage: record.lineage.id,
            sequence: self.copy,
            base: None,
            kind: Kind::Resync,
        };
        let options = stream_options(self.relation);
        body.clear();
        let mut encoder =
            Encoder::new(&mut *body, &header, self.manifest, options).map_err(encoding)?;
        let mut buffer = vec![0; FRAME as usize];
        for range in ranges {
            for (part, is_hole) in self.parts(disk, range, way)? {
                let mut start = part.start;
                while start < part.end && !is_hole {
                    let end = part.end.min((start / FRAME + 1) * FRAME);
                    let bytes = &mut buffer[..(end - start) as usize];
                    read(disk, start, bytes)?;
                    if is_zero(bytes) {
                        // A first copy goes to a disk of zeroes.
                        if way == Way::WhatDiffers {
                            encoder
                                .zero(disk.index, start, end - start)
                                .map_err(encoding)?;
                        }
                    } else {
                        encoder.data(disk.index, start, bytes).map_err(encoding)?;
                    }
                    start = end;
                }
            }
        }
        encoder.finish().map_err(encoding)?;
        Ok(())
    }

    /// Cuts a range into what may hold data and what is known to be zero. Differing ranges are
    /// read whole: their zeroes must travel.
    fn parts(
        &self,
        disk: &OpenDisk,
        range: &Range<u64>,
        way: Way,
    ) -> Result<Vec<(Range<u64>, bool)>, CopyTrouble> {
        if way == Way::WhatDiffers || !disk.has_allocation {
            return Ok(vec![(range.clone(), false)]);
        }
        let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
        let allocation = ContextName::allocation();
        let extents = disk
            .client
            .collect_extents(&allocation, range.start, range.end - range.start, EXTENTS)
            .map_err(|source| CopyTrouble::Read {
                disk: disk.id.clone(),
                source,
            })?;
        // A piece in more parts than that is read whole: blocks of zeroes are found anyway.
        let Some(extents) = extents else {
            return Ok(vec![(range.clone(), false)]);
        };
        let mut at = range.start;
        for extent in extents {
            // Whole blocks, so that no frame begins within one.
            let end = range
                .end
                .min((at + extent.length).div_ceil(BLOCK_SIZE) * BLOCK_SIZE);
            if end <= at {
                continue;
            }
            let is_hole = extent.flags & ZERO != 0;
            let hole_end = if is_hole {
                (range.end.min(at + extent.length) / BLOCK_SIZE * BLOCK_SIZE).max(at)
            } else {
                end
            };
            if hole_end > at {
                parts.push((at..hole_end, is_hole));
                at = hole_end;
            }
        }
        if at < range.end {
            parts.push((at..range.end, false));
        }
        Ok(parts)
    }

    /// The blocks of a range in which the two sides differ, as ranges.
    fn differing(
        &self,
        disk: &OpenDisk,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Range<u64>>, CopyTrouble> {
        let coarse = self.compare(disk, ranges, COARSE)?;
        if coarse.is_empty() {
            return Ok(coarse);
        }
        self.compare(disk, &coarse, BLOCK_SIZE)
    }

    /// Compares digests unit by unit; answers the ranges of the units that differ.
    fn compare(
        &self,
        disk: &OpenDisk,
        ranges: &[Range<u64>],
        unit: u64,
    ) -> Result<Vec<Range<u64>>, CopyTrouble> {
        let theirs = self.link.digests(DigestQuery {
            relationship: self.relation.record().relationship,
            lineage: self.relation.record().lineage.id,
            disk: disk.id.clone(),
            ranges: ranges.to_vec(),
            unit: unit as u32,
            key: hex(&self.key),
        })?;
        let units = |range: &Range<u64>| (range.end - range.start).div_ceil(unit) as usize;
        let expected = ranges.iter().map(units).sum::<usize>() * DIGEST;
        if theirs.len() != expected {
            let found = theirs.len();
            return Err(CopyTrouble::Digests { found, expected });
        }
        let mut theirs = theirs.chunks_exact(DIGEST);
        let mut differing: Vec<Range<u64>> = Vec::new();
        let mut buffer = vec![0; FRAME as usize];
        for range in ranges {
            let mut start = range.start;
            while start < range.end {
                let end = range.end.min(start + FRAME);
                let bytes = &mut buffer[..(end - start) as usize];
                read(disk, start, bytes)?;
                for (n, part) in bytes.chunks(unit as usize).enumerate() {
                    let at = start + n as u64 * unit;
                    let ours = blake3::keyed_hash(&self.key, part);
                    if theirs.next() != Some(&ours.as_bytes()[..DIGEST]) {
                        let end = at + part.len() as u64;
                        match differing.last_mut() {
                            Some(last) if last.end == at => last.end = end,
                            _ => differing.push(at..end),
                        }
                    }
                }
                start = end;
            }
        }
        Ok(differing)
    }

    /// Before maps are relied on: the two sides must be the same where the maps say so, at the
    /// ends of the disks, around what differs, and in a sample of the rest.
    fn prove(&self, diverged: &[(DiskId, Vec<Range<u64>>)]) -> Result<(), CopyTrouble> {
        for disk in self.disks {
            let known: &[Range<u64>] = diverged
                .iter()
                .find(|(id, _)| *id == disk.id)
                .map_or(&[], |(_, ranges)| ranges);
            for ranges in batches(&sample(disk.size, known, &self.key)) {
                if self.stop.is_asked() {
                    return Err(CopyTrouble::Stopped);
                }
                let differing = self.compare(disk, &ranges, BLOCK_SIZE)?;
                if first_outside(&differing, known, disk.size).is_none() {
                    continue;
                }
                // The VM runs: what it wrote since the maps were looked at is in them by now,
                // and the next delta carries it.
                let known = [known, &self.written(&disk.id)?].concat();
                if let Some(at) = first_outside(&differing, &known, disk.size) {
                    return Err(CopyTrouble::Unproved {
                        why: format!(
                            "disk {} differs at {at} where the maps know of no change",
                            disk.id
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// What the VM has written to a disk since the commit, ascending; nothing where nobody knows.
    fn written(&self, disk: &DiskId) -> Result<Vec<Range<u64>>, CopyTrouble> {
        let changed = self.service.inner.hypervisor.changed_ranges(self.vm.id);
        let changed = changed.map_err(|source| CopyTrouble::Disks { source })?;
        let of_disk = changed.unwrap_or_default().into_iter();
        let of_disk = of_disk.filter(|(id, _)| id == disk);
        Ok(of_disk.flat_map(|(_, ranges)| ranges).collect())
    }
}

/// Where a disk differs first outside of what is known, which is taken in whole blocks.
fn first_outside(differing: &[Range<u64>], known: &[Range<u64>], size: u64) -> Option<u64> {
    let known = widened(known, BLOCK_SIZE, size);
    differing.iter().find_map(|range| {
        let after = known.partition_point(|known| known.start <= range.start);
        let covered = known[..after].last().map_or(0, |known| known.end);
        let at = range.start.max(covered);
        (at < range.end).then_some(at)
    })
}

/// What is compared of a disk before its maps are relied on: the first and last 16 MiB, the
/// blocks beside each known range, and one block in a hundred.
fn sample(size: u64, known: &[Range<u64>], seed: &[u8; 32]) -> Vec<Range<u64>> {
    const ENDS: u64 = 16 << 20;
    /// One stretch of this length in each hundred of them.
    const STRETCH: u64 = 1 << 20;
    let mut ranges = vec![
        0..size.min(ENDS),
        size.saturating_sub(ENDS) / COARSE * COARSE..size,
    ];
    for range in known {
        let before = (range.start / BLOCK_SIZE * BLOCK_SIZE).saturating_sub(BLOCK_SIZE);
        let after = range.end.div_ceil(BLOCK_SIZE) * BLOCK_SIZE;
        ranges.push(before..(before + BLOCK_SIZE).min(size));
        ranges.push(after.min(size)..(after + BLOCK_SIZE).min(size));
    }
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
    widened(&ranges, BLOCK_SIZE, size)
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

fn read(disk: &OpenDisk, offset: u64, into: &mut [u8]) -> Result<(), CopyTrouble> {
    disk.client
        .read(offset, into)
        .map_err(|source| CopyTrouble::Read {
            disk: disk.id.clone(),
            source,
        })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_covers_the_ends_and_the_neighbors_and_a_hundredth_of_the_rest() {
        let size = 1 << 30;
        let known = 100 << 20..(100 << 20) + 8192;
        let ranges = sample(size, std::slice::from_ref(&known), &[7; 32]);
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        let holds = |at: u64| ranges.iter().any(|range| range.contains(&at));
        assert!(holds(0) && holds((16 << 20) - 1) && holds(size - 1));
        assert!(holds(known.start - 1) && holds(known.end));
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
