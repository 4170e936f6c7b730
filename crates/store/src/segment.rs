//! A segment of one disk: the preimages since a boundary.
//!
//! An open segment is two files that only grow. In the data file the first cluster of
//! 128 KiB is left free for an image header; every guest cluster of 128 KiB that is touched
//! gets the next host cluster, and each of its blocks of 4 KiB has its own place in it. The
//! index file says which blocks are there. How much of both is valid, the journal says.
//! Sealing adds qcow2 metadata; the data stays where it is.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use lifeboat_model::BLOCK_SIZE;
use lifeboat_qcow2::{SEGMENT_CLUSTER, SealedCluster};
use lifeboat_sys::disk::{Cloned, DiskFile};
use xxhash_rust::xxh3::xxh3_128;

use crate::damage::Damage;
use crate::digest::DigestTable;
use crate::error::{IoContext, StoreError};
use crate::index::{Index, IndexRecord, RECORD_LEN, RunDigest, Saved};
use crate::record::Lengths;

/// Blocks in a cluster.
pub(crate) const CLUSTER_BLOCKS: u64 = SEGMENT_CLUSTER / BLOCK_SIZE;

/// Shorter runs are cheaper to copy than to share.
const SHARE_FROM_BLOCKS: u64 = 16;

/// How many ranges ahead the kernel is told of.
const PREFETCH_RANGES: usize = 64;

/// After the data file has grown by so much the kernel is told to begin with it.
const WRITEBACK_BYTES: u64 = 256 << 20;

/// How far the data file is made longer than needed.
const GROW_BYTES: u64 = 32 << 20;

/// Memory for reading an index file.
const INDEX_CHUNK: usize = RECORD_LEN * 4096;

/// A segment that readers may look into.
#[derive(Debug)]
pub(crate) struct Segment {
    number: u64,
    data: Arc<dyn DiskFile>,
    index_file: Arc<dyn DiskFile>,
    /// What of the files is valid; grows while the segment is open.
    lengths: Mutex<Lengths>,
    /// Read from the file when it is first needed.
    index: OnceLock<RwLock<Index>>,
}

impl Segment {
    /// A segment whose files hold what `lengths` says.
    pub(crate) fn on_disk(
        number: u64,
        data: Arc<dyn DiskFile>,
        index_file: Arc<dyn DiskFile>,
        lengths: Lengths,
    ) -> Self {
        Self {
            number,
            data,
            index_file,
            lengths: Mutex::new(lengths),
            index: OnceLock::new(),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn lengths(&self) -> Lengths {
        *self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn data(&self) -> &Arc<dyn DiskFile> {
        &self.data
    }

    /// Refuses files that end before what the journal says.
    pub(crate) fn refuse_short(
        &self,
        data_path: &Path,
        index_path: &Path,
    ) -> Result<(), StoreError> {
        let lengths = self.lengths();
        let files = [
            (&self.data, lengths.data, data_path),
            (&self.index_file, lengths.index, index_path),
        ];
        for (file, expected, path) in files {
            let found = file.len().context("measure", path)?;
            if found < expected {
                return Err(StoreError::Damaged {
                    path: path.to_owned(),
                    damage: Damage::Length { found, expected },
                });
            }
        }
        Ok(())
    }

    /// What the segment holds.
    pub(crate) fn index(&self) -> io::Result<RwLockReadGuard<'_, Index>> {
        if self.index.get().is_none() {
            let mut index = Index::default();
            self.records(|record| {
                index.insert(record.first, u64::from(record.blocks), record.saved);
                Ok(())
            })?;
            // Another reader may have been faster; both read the same file.
            let _ = self.index.set(RwLock::new(index));
        }
        let index = self.index.get().expect("BUG: the index was set above");
        Ok(index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the index file record by record.
    pub(crate) fn records(
        &self,
        mut each: impl FnMut(IndexRecord) -> io::Result<()>,
    ) -> io::Result<()> {
        let lengths = self.lengths();
        if !lengths.index.is_multiple_of(RECORD_LEN as u64) {
            return Err(damaged(Damage::Length {
                found: lengths.index,
                expected: lengths.index.next_multiple_of(64),
            }));
        }
        let mut buffer = vec![0; INDEX_CHUNK.min(lengths.index as usize)];
        let mut position = 0;
        while position < lengths.index {
            let count = (buffer.len() as u64).min(lengths.index - position) as usize;
            self.index_file.read_at(&mut buffer[..count], position)?;
            for (at, bytes) in buffer[..count].chunks_exact(RECORD_LEN).enumerate() {
                let number = position / RECORD_LEN as u64 + at as u64;
                let bytes = bytes.try_into().expect("BUG: a chunk is a record");
                each(
                    IndexRecord::decode(bytes, number, self.number, lengths.data)
                        .map_err(damaged)?,
                )?;
            }
            position += count as u64;
        }
        Ok(())
    }

    fn publish(&self, records: &[IndexRecord], lengths: Lengths) {
        *self.lengths.lock().unwrap_or_else(PoisonError::into_inner) = lengths;
        let index = self
            .index
            .get()
            .expect("BUG: an open segment has its index in memory");
        let mut index = index.write().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            index.insert(record.first, u64::from(record.blocks), record.saved);
        }
    }

    /// What qcow2 metadata has to say of the segment, for a disk of `size` bytes.
    pub(crate) fn sealed_clusters(&self, size: u64) -> io::Result<Vec<SealedCluster>> {
        let index = self.index()?;
        let mut clusters: Vec<SealedCluster> = Vec::new();
        let end = size.div_ceil(BLOCK_SIZE);
        for (run, saved) in index.runs() {
            let mut block = run.start;
            while block < run.end.min(end) {
                let guest = block / CLUSTER_BLOCKS;
                let stop = run.end.min((guest + 1) * CLUSTER_BLOCKS).min(end);
                if clusters.last().is_none_or(|cluster| cluster.guest != guest) {
                    clusters.push(SealedCluster {
                        guest,
                        host: None,
                        data: 0,
                        zero: 0,
                    });
                }
                let cluster = clusters
                    .last_mut()
                    .expect("BUG: a cluster was pushed above");
                let bits = bits(block % CLUSTER_BLOCKS..block % CLUSTER_BLOCKS + (stop - block));
                match saved {
                    Saved::Data { host } => {
                        cluster.data |= bits;
                        cluster.host =
                            Some(cluster_of(block, host + (block - run.start) * BLOCK_SIZE));
                    }
                    // A lost block has no right content; zeroes at least are nobody else's data.
                    Saved::Zero | Saved::Lost => cluster.zero |= bits,
                }
                block = stop;
            }
        }
        Ok(clusters)
    }
}

fn bits(range: Range<u64>) -> u32 {
    range.fold(0, |bits, bit| bits | 1 << bit)
}

/// Where the cluster of a block begins in the data file, given where the block is.
fn cluster_of(block: u64, host: u64) -> u64 {
    host - block % CLUSTER_BLOCKS * BLOCK_SIZE
}

fn damaged(damage: Damage) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, damage)
}

/// Appends preimages to an open segment.
///
/// [`save`](Self::save) writes them, [`sync`](Self::sync) makes them durable; after the
/// journal says so, [`publish`](Self::publish) shows them to readers.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    segment: Arc<Segment>,
    lengths: Lengths,
    /// How long the data file is now.
    file_len: u64,
    /// Where the host cluster of each touched guest cluster begins.
    clusters: HashMap<u64, u64>,
    /// Written and not yet published.
    pending: Vec<IndexRecord>,
    /// Index bytes not yet written.
    index_bytes: Vec<u8>,
    shares: bool,
}

impl SegmentWriter {
    /// The lengths of a segment that holds nothing.
    pub(crate) const EMPTY: Lengths = Lengths {
        data: SEGMENT_CLUSTER,
        index: 0,
    };

    /// Continues an open segment, whose files are cut to what the journal says.
    pub(crate) fn resume(segment: Arc<Segment>) -> io::Result<Self> {
        let lengths = segment.lengths();
        segment.data.set_len(lengths.data)?;
        segment.index_file.set_len(lengths.index)?;
        let mut clusters = HashMap::new();
        for (run, saved) in segment.index()?.runs() {
            if let Saved::Data { host } = saved {
                let mut block = run.start;
                while block < run.end {
                    clusters.insert(
                        block / CLUSTER_BLOCKS,
                        cluster_of(block, host + (block - run.start) * BLOCK_SIZE),
                    );
                    block = (block / CLUSTER_BLOCKS + 1) * CLUSTER_BLOCKS;
                }
            }
        }
        Ok(Self {
            segment,
            lengths,
            file_len: lengths.data,
            clusters,
            pending: Vec::new(),
            index_bytes: Vec::new(),
            shares: true,
        })
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn lengths(&self) -> Lengths {
        self.lengths
    }

    /// Saves what the head holds in those parts of `ranges` (blocks, ascending) that are not
    /// saved yet and lie below `end`, the disk's size at the boundary in blocks.
    pub(crate) fn save(
        &mut self,
        head: &Arc<dyn DiskFile>,
        digests: &DigestTable,
        ranges: &[Range<u64>],
        end: u64,
    ) -> io::Result<()> {
        let missing: Vec<Range<u64>> = {
            let index = self.segment.index()?;
            let clipped = ranges.iter().filter(|range| range.start < end);
            clipped
                .flat_map(|range| index.missing(range.start..range.end.min(end)))
                .collect()
        };
        let source = HeadSource {
            head,
            len: head.len()?,
            digests,
            last_data: Cell::new((0, 0)),
        };
        let mut written_back = self.lengths.data;
        for (at, range) in missing.iter().enumerate() {
            // One window ahead of the reads, each range once.
            if at.is_multiple_of(PREFETCH_RANGES) {
                let from = if at == 0 { 0 } else { at + PREFETCH_RANGES };
                for ahead in missing.iter().take(at + 2 * PREFETCH_RANGES).skip(from) {
                    head.prefetch(
                        ahead.start * BLOCK_SIZE,
                        (ahead.end - ahead.start) * BLOCK_SIZE,
                    );
                }
            }
            self.save_range(&source, range.clone())?;
            if self.lengths.data - written_back >= WRITEBACK_BYTES {
                let grown = self.lengths.data - written_back;
                self.segment.data.start_writeback(written_back, grown);
                written_back = self.lengths.data;
            }
        }
        Ok(())
    }

    fn save_range(&mut self, source: &HeadSource<'_>, range: Range<u64>) -> io::Result<()> {
        let mut block = range.start;
        while block < range.end {
            let data = source.data_from(block)?.unwrap_or(range.end..range.end);
            let hole_end = data.start.min(range.end);
            if block < hole_end {
                self.note_long(block..hole_end, Saved::Zero);
            }
            let data_end = data.end.min(range.end);
            let mut position = hole_end;
            while position < data_end {
                let stop = data_end.min((position / CLUSTER_BLOCKS + 1) * CLUSTER_BLOCKS);
                self.save_data(source, position..stop)?;
                position = stop;
            }
            block = data_end.max(hole_end);
        }
        Ok(())
    }

    /// Saves blocks of one cluster that are not a hole.
    fn save_data(&mut self, source: &HeadSource<'_>, range: Range<u64>) -> io::Result<()> {
        if self.shares
            && range.end - range.start >= SHARE_FROM_BLOCKS
            && range.end * BLOCK_SIZE <= source.len
        {
            let host = self.place(range.start)?;
            let len = (range.end - range.start) * BLOCK_SIZE;
            match self.segment.data.clone_range(
                source.head.as_ref(),
                range.start * BLOCK_SIZE,
                len,
                host,
            )? {
                Cloned::Shared => {
                    self.note_shared(source, range, host);
                    return Ok(());
                }
                Cloned::Unsupported => self.shares = false,
            }
        }
        let mut bytes = vec![0; ((range.end - range.start) * BLOCK_SIZE) as usize];
        if source.read(range.start, &mut bytes).is_err() {
            return self.save_what_is_readable(source, range);
        }
        self.save_bytes(range.start, &bytes)
    }

    /// Goes block by block, so that one bad sector costs one block.
    fn save_what_is_readable(
        &mut self,
        source: &HeadSource<'_>,
        range: Range<u64>,
    ) -> io::Result<()> {
        for block in range {
            let mut bytes = [0; BLOCK_SIZE as usize];
            match source.read(block, &mut bytes) {
                Ok(()) => self.save_bytes(block, &bytes)?,
                Err(_) => self.note(block..block + 1, Saved::Lost, RunDigest::Unknown),
            }
        }
        Ok(())
    }

    /// Saves bytes of blocks within one cluster, data and zeroes apart.
    fn save_bytes(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let mut run: Option<(u64, bool)> = None;
        let last = first + bytes.len() as u64 / BLOCK_SIZE;
        for block in first..=last {
            let zero = (block < last)
                .then(|| lifeboat_stream::is_zero(slice_of(bytes, first, block..block + 1)));
            match (run, zero) {
                (Some((_, was)), Some(is)) if was == is => {}
                (Some((start, true)), _) => {
                    self.note(start..block, Saved::Zero, RunDigest::Unknown);
                    run = zero.map(|zero| (block, zero));
                }
                (Some((start, false)), _) => {
                    let host = self.place(start)?;
                    let run_bytes = slice_of(bytes, first, start..block);
                    self.segment.data.write_at(run_bytes, host)?;
                    self.note(
                        start..block,
                        Saved::Data { host },
                        RunDigest::Known(xxh3_128(run_bytes)),
                    );
                    run = zero.map(|zero| (block, zero));
                }
                (None, _) => run = zero.map(|zero| (block, zero)),
            }
        }
        Ok(())
    }

    /// Where a block belongs in the data file; takes the next host cluster if need be.
    ///
    /// The file is made longer well before it is written there: XFS gives space that nobody
    /// asked for to a file that grows by being written, and scattered blocks would keep it.
    fn place(&mut self, block: u64) -> io::Result<u64> {
        let lengths = &mut self.lengths;
        let cluster = *self
            .clusters
            .entry(block / CLUSTER_BLOCKS)
            .or_insert_with(|| {
                let host = lengths.data;
                lengths.data += SEGMENT_CLUSTER;
                host
            });
        if self.file_len < self.lengths.data {
            self.file_len = self.lengths.data + GROW_BYTES;
            self.segment.data.set_len(self.file_len)?;
        }
        Ok(cluster + block % CLUSTER_BLOCKS * BLOCK_SIZE)
    }

    /// Notes shared blocks, with the head's own digests where those cover whole pieces. The
    /// rest is read: a preimage without a digest could rot unnoticed.
    fn note_shared(&mut self, source: &HeadSource<'_>, range: Range<u64>, host: u64) {
        let mut block = range.start;
        while block < range.end {
            let stop = range
                .end
                .min(block - block % DigestTable::CHUNK_BLOCKS + DigestTable::CHUNK_BLOCKS);
            let whole = block.is_multiple_of(DigestTable::CHUNK_BLOCKS)
                && stop - block == DigestTable::CHUNK_BLOCKS;
            let known = if whole {
                source.digests.known(block / DigestTable::CHUNK_BLOCKS)
            } else {
                None
            };
            let saved = Saved::Data {
                host: host + (block - range.start) * BLOCK_SIZE,
            };
            let digest = match known {
                Some(digest) => RunDigest::Known(digest),
                None => source.digest(block..stop),
            };
            self.note(block..stop, saved, digest);
            block = stop;
        }
    }

    fn note_long(&mut self, range: Range<u64>, saved: Saved) {
        let mut block = range.start;
        while block < range.end {
            let stop = range.end.min(block + u64::from(u32::MAX));
            self.note(block..stop, saved, RunDigest::Unknown);
            block = stop;
        }
    }

    fn note(&mut self, range: Range<u64>, saved: Saved, digest: RunDigest) {
        let blocks =
            u32::try_from(range.end - range.start).expect("BUG: a noted run is below 2^32 blocks");
        let record = IndexRecord {
            first: range.start,
            blocks,
            saved,
            digest,
        };
        self.index_bytes
            .extend_from_slice(&record.encode(self.segment.number));
        self.pending.push(record);
    }

    /// Makes everything saved so far durable; answers whether there was anything.
    pub(crate) fn sync(&mut self) -> io::Result<bool> {
        if self.pending.is_empty() {
            return Ok(false);
        }
        // The length is part of what is promised.
        self.file_len = self.lengths.data;
        self.segment.data.set_len(self.file_len)?;
        self.segment.data.sync()?;
        self.segment
            .index_file
            .write_at(&self.index_bytes, self.lengths.index)?;
        self.segment.index_file.sync()?;
        self.lengths.index += self.index_bytes.len() as u64;
        self.index_bytes.clear();
        Ok(true)
    }

    /// Shows readers what was saved. Only after the journal has recorded it.
    pub(crate) fn publish(&mut self) {
        self.segment.publish(&self.pending, self.lengths);
        self.pending.clear();
    }
}

fn slice_of(bytes: &[u8], first: u64, blocks: Range<u64>) -> &[u8] {
    &bytes[((blocks.start - first) * BLOCK_SIZE) as usize
        ..((blocks.end - first) * BLOCK_SIZE) as usize]
}

/// The head as preimages are taken from it.
struct HeadSource<'a> {
    head: &'a Arc<dyn DiskFile>,
    len: u64,
    digests: &'a DigestTable,
    /// The range of data that was found last.
    last_data: Cell<(u64, u64)>,
}

impl HeadSource<'_> {
    /// The next blocks at or after `block` that may hold data.
    fn data_from(&self, block: u64) -> io::Result<Option<Range<u64>>> {
        let (start, end) = self.last_data.get();
        if (start..end).contains(&block) {
            return Ok(Some(block..end));
        }
        let data = self.head.next_data(block * BLOCK_SIZE)?;
        Ok(data.map(|data| {
            let blocks = (data.start / BLOCK_SIZE).max(block)..data.end.div_ceil(BLOCK_SIZE);
            self.last_data.set((blocks.start, blocks.end));
            blocks
        }))
    }

    /// The digest of blocks that can be read.
    fn digest(&self, blocks: Range<u64>) -> RunDigest {
        let mut bytes = vec![0; ((blocks.end - blocks.start) * BLOCK_SIZE) as usize];
        match self.read(blocks.start, &mut bytes) {
            Ok(()) => RunDigest::Known(xxh3_128(&bytes)),
            Err(_) => RunDigest::Unknown,
        }
    }

    /// Fills `bytes` with blocks from `first` on; what lies beyond the end is zero.
    fn read(&self, first: u64, bytes: &mut [u8]) -> io::Result<()> {
        let offset = first * BLOCK_SIZE;
        let there = self.len.saturating_sub(offset).min(bytes.len() as u64) as usize;
        bytes[there..].fill(0);
        self.head.read_at(&mut bytes[..there], offset)
    }
}
