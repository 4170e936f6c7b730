//! The divergence map: where a side that took over differs from its former peer.
//!
//! Written before a failover is committed for good, for a reversal later: what the guest wrote
//! here, and what going back to a point undid.

use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskId, MAX_DISK_SIZE};
use lifeboat_qcow2::Overlay;
use lifeboat_stream::Entry;
use lifeboat_sys::disk::{Access, DiskFile};

use crate::damage::Damage;
use crate::error::{IoContext, StoreError};
use crate::failover::image_error;
use crate::files;
use crate::record::{Failover, Target};
use crate::spool::{self, ScanError, SpooledDelta};
use crate::store::Store;

const MAGIC: &[u8; 8] = b"LBDIVMP1";

/// Length of one range in the map; so many bytes of ff end it.
const ENTRY: usize = 24;

/// Length of the digest at the end.
const DIGEST: u64 = 32;

/// How much of a map is read at a time: whole entries.
const READ_BYTES: u64 = 24 << 15;

/// After so many ranges beyond those that are merged they are merged again.
const MERGE_AFTER: usize = 1 << 20;

/// Ranges of disks, ascending and apart.
pub type DiskRanges = Vec<(DiskId, Vec<Range<u64>>)>;

impl Store {
    /// Notes where this side's history differs from its former peer's: for a later reversal.
    /// Overlays are given as they are open, in the order of the disks. A crash half way leaves no
    /// map that reads as one.
    pub(crate) fn write_divergence_map(
        &self,
        failover: &Failover,
        overlays: &[&Overlay],
    ) -> Result<(), StoreError> {
        let path = self.layout.divergence_map(&failover.lineage.id);
        files::remove(self.disk.as_ref(), &path)?;
        let file = self.disk.create(&path).context("create", &path)?;
        let mut map = MapWriter::new(file);
        let write = |outcome: std::io::Result<()>| outcome.context("write", &path);
        for (at, overlay) in overlays.iter().enumerate() {
            for extent in overlay.allocated(0..overlay.virtual_size()) {
                let extent = extent.map_err(|error| image_error(&path, &error))?;
                let range = extent.offset..extent.offset + extent.len;
                write(map.push(at, MapKind::Written, range))?;
            }
            if let Target::Segment(number) = failover.target {
                for segment in self.images[at].chain.from(number) {
                    for (run, _) in segment.index().context("read the index for", &path)?.runs() {
                        let range = run.start * BLOCK_SIZE..run.end * BLOCK_SIZE;
                        write(map.push(at, MapKind::RolledBack, range))?;
                    }
                }
            }
            // No segment holds what a disk has grown by since the point; the commit zeroes it.
            let grown = failover.target_sizes[at].bytes()..failover.sizes[at].bytes();
            if !grown.is_empty() {
                write(map.push(at, MapKind::RolledBack, grown))?;
            }
            if !self.broken_spool.is_empty() {
                // What they would have changed cannot be known.
                write(map.push(at, MapKind::RolledBack, 0..failover.sizes[at].bytes()))?;
            }
        }
        for delta in &self.spool {
            self.note_unapplied(delta, &mut map)?;
        }
        map.finish().context("write", &path)?;
        files::sync_parent(self.disk.as_ref(), &path)
    }

    /// Notes what a delta would have changed that was acknowledged and never applied.
    fn note_unapplied(&self, delta: &SpooledDelta, map: &mut MapWriter) -> Result<(), StoreError> {
        let path = self
            .layout
            .delta(&self.state.lineage.id, delta.moment.sequence);
        let file = self
            .disk
            .open(&path, Access::ReadOnly)
            .context("open", &path)?;
        let disks = self.disks_of(delta);
        let at_spool = |error: ScanError| error.at(&path);
        let mut scan = spool::open_scan(&file).map_err(at_spool)?;
        while let Some(entry) = scan
            .next_entry()
            .map_err(|e| at_spool(ScanError::Decode(e)))?
        {
            let (disk, offset, len) = match entry {
                Entry::Blob { .. } => continue,
                Entry::Data {
                    disk,
                    offset,
                    payload,
                } => (disk, offset, u64::from(payload.plain_len)),
                Entry::Zero {
                    disk,
                    offset,
                    length,
                } => (disk, offset, length),
            };
            map.push(disks[disk], MapKind::RolledBack, offset..offset + len)
                .context("write the divergence map from", &path)?;
        }
        Ok(())
    }

    /// Where these disks differ from what the former peer holds, as far as this side knows: what
    /// was written here since the failover that was committed, and what it undid. `None`
    /// where no failover was committed, or its map is not here.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when the map is not as it was written; then all must be compared.
    pub fn divergence(&self) -> Result<Option<DiskRanges>, StoreError> {
        let path = self.layout.divergence_map(&self.state.lineage.id);
        if self.disk.kind(&path).context("look up", &path)?.is_none() {
            return Ok(None);
        }
        let file = self
            .disk
            .open(&path, Access::ReadOnly)
            .context("open", &path)?;
        let ranges =
            read_map(file.as_ref(), self.state.disks.len()).map_err(|error| match error {
                MapError::Io(source) => StoreError::Io {
                    what: "read",
                    path: path.clone(),
                    source,
                },
                MapError::Damaged(why) => StoreError::Damaged {
                    path: path.clone(),
                    damage: Damage::DivergenceMap { why },
                },
            })?;
        let disks = self.state.disks.iter().zip(ranges);
        Ok(Some(
            disks
                .map(|(disk, ranges)| (disk.id.clone(), ranges))
                .collect(),
        ))
    }
}

/// Why a map cannot be read.
enum MapError {
    Io(std::io::Error),
    Damaged(&'static str),
}

impl From<std::io::Error> for MapError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// The ranges of each disk, merged. Nothing of a map is believed unless all of it is intact.
fn read_map(file: &dyn DiskFile, disks: usize) -> Result<Vec<Vec<Range<u64>>>, MapError> {
    let len = file.len()?;
    let smallest = MAGIC.len() as u64 + ENTRY as u64 + DIGEST;
    let entries = len
        .checked_sub(smallest)
        .filter(|bytes| bytes.is_multiple_of(ENTRY as u64))
        .ok_or(MapError::Damaged("it has no length that a map can have"))?;
    let mut magic = [0; MAGIC.len()];
    file.read_at(&mut magic, 0)?;
    if magic != *MAGIC {
        return Err(MapError::Damaged("it does not begin as a map does"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&magic);
    let mut ranges: Vec<Vec<Range<u64>>> = vec![Vec::new(); disks];
    let mut merged = vec![0; disks];
    let end = MAGIC.len() as u64 + entries;
    let mut position = MAGIC.len() as u64;
    let mut buffer = Vec::new();
    while position < end {
        buffer.resize((end - position).min(READ_BYTES) as usize, 0);
        file.read_at(&mut buffer, position)?;
        hasher.update(&buffer);
        for entry in buffer.chunks_exact(ENTRY) {
            let (disk, range) = decode_entry(entry)?;
            let of_disk = ranges
                .get_mut(disk)
                .ok_or(MapError::Damaged("it speaks of a disk that is not there"))?;
            of_disk.push(range);
            if of_disk.len() >= merged[disk] + MERGE_AFTER {
                merge(of_disk);
                merged[disk] = of_disk.len();
            }
        }
        position += buffer.len() as u64;
    }
    let mut tail = [0; ENTRY + DIGEST as usize];
    file.read_at(&mut tail, end)?;
    hasher.update(&tail[..ENTRY]);
    let is_intact =
        tail[..ENTRY] == [0xFF; ENTRY] && hasher.finalize().as_bytes()[..] == tail[ENTRY..];
    if !is_intact {
        return Err(MapError::Damaged("it fails its digest"));
    }
    ranges.iter_mut().for_each(merge);
    Ok(ranges)
}

fn decode_entry(entry: &[u8]) -> Result<(usize, Range<u64>), MapError> {
    let half = |from: usize| {
        let bytes = entry[from..from + 4].try_into();
        u32::from_le_bytes(bytes.expect("BUG: four bytes are four bytes"))
    };
    let whole = |from: usize| {
        let bytes = entry[from..from + 8].try_into();
        u64::from_le_bytes(bytes.expect("BUG: eight bytes are eight bytes"))
    };
    let (disk, offset, len) = (half(0), whole(8), whole(16));
    let end = offset.checked_add(len).filter(|&end| end <= MAX_DISK_SIZE);
    match end {
        Some(end) => Ok((disk as usize, offset..end)),
        None => Err(MapError::Damaged("it speaks of what no disk can have")),
    }
}

/// Sorts ranges and joins those that touch.
fn merge(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges.drain(..).filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}

/// Why a range differs from what the former peer holds.
#[derive(Clone, Copy)]
enum MapKind {
    /// The guest wrote it here.
    Written = 1,
    /// The peer had sent it, and going back to a point undid it, or it was never applied.
    RolledBack = 2,
}

/// Writes a divergence map: ranges in no order, overlapping or not, with a digest at the end.
///
/// ```text
/// 0  8  magic "LBDIVMP1"
/// then per range, little endian: disk u32, kind u32 (1 written, 2 rolled back), offset u64, length u64
/// at the end: 24 bytes of ff, then BLAKE3 of everything before, 32 bytes
/// ```
struct MapWriter {
    file: Arc<dyn DiskFile>,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    position: u64,
}

impl MapWriter {
    fn new(file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            hasher: blake3::Hasher::new(),
            buffer: MAGIC.to_vec(),
            position: 0,
        }
    }

    fn push(&mut self, disk: usize, kind: MapKind, range: Range<u64>) -> std::io::Result<()> {
        self.buffer.extend_from_slice(&(disk as u32).to_le_bytes());
        self.buffer.extend_from_slice(&(kind as u32).to_le_bytes());
        self.buffer.extend_from_slice(&range.start.to_le_bytes());
        self.buffer
            .extend_from_slice(&(range.end - range.start).to_le_bytes());
        if self.buffer.len() >= 1 << 20 {
            self.write_out()
        } else {
            Ok(())
        }
    }

    fn write_out(&mut self) -> std::io::Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_at(&self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.buffer.extend_from_slice(&[0xFF; 24]);
        self.write_out()?;
        self.file
            .write_at(self.hasher.finalize().as_bytes(), self.position)?;
        self.file.sync()
    }
}
