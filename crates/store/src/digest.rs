//! The digest table of a head: what each 64 KiB of the disk should read as.
//!
//! Most bytes of every recovery point are read from the head, so rot there would spoil all
//! points unnoticed. A digest is set when a whole chunk is written, and becomes stale when
//! a part of one is; a scrub (`Store::verify`) reads such chunks once and sets it again.
//!
//! Two files: 16 bytes per chunk, and one bit per chunk that says "stale". Scattered small
//! writes only set bits, so they cost next to nothing on the disk: 32 KiB of bits stand for
//! 16 GiB.
//!
//! The table needs no journal. It changes only together with chunks of the head that an
//! unfinished apply or commit writes again after a crash, and with them their digests.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_model::{BLOCK_SIZE, MAX_DISK_SIZE};
use lifeboat_sys::disk::DiskFile;
use xxhash_rust::xxh3::xxh3_128;

const ENTRY: u64 = 16;

/// Bytes of bits that the largest disk can have.
const MAX_BITS: u64 = MAX_DISK_SIZE / DigestTable::CHUNK / 8;

/// The bits are written in pages of this size.
const PAGE: usize = 4096;

/// Digests of a head, one per 64 KiB; zero stands for "never known".
#[derive(Debug)]
pub(crate) struct DigestTable {
    digests: Arc<dyn DiskFile>,
    stale_file: Arc<dyn DiskFile>,
    stale: Mutex<StaleBits>,
}

/// Which digests no longer hold, and which pages of the bits are not written yet.
#[derive(Debug)]
struct StaleBits {
    bits: Vec<u8>,
    unwritten: BTreeSet<usize>,
    digests_unsynced: bool,
}

impl DigestTable {
    /// Bytes that one digest covers.
    pub(crate) const CHUNK: u64 = 64 << 10;
    pub(crate) const CHUNK_BLOCKS: u64 = Self::CHUNK / BLOCK_SIZE;

    pub(crate) fn open(
        digests: Arc<dyn DiskFile>,
        stale_file: Arc<dyn DiskFile>,
    ) -> io::Result<Self> {
        let len = stale_file.len()?;
        if len > MAX_BITS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the table of stale digests is too long",
            ));
        }
        let mut bits = vec![0; len as usize];
        stale_file.read_at(&mut bits, 0)?;
        let stale = StaleBits {
            bits,
            unwritten: BTreeSet::new(),
            digests_unsynced: false,
        };
        Ok(Self {
            digests,
            stale_file,
            stale: Mutex::new(stale),
        })
    }

    fn stale(&self) -> MutexGuard<'_, StaleBits> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of a chunk, if one is known and can be read.
    pub(crate) fn known(&self, chunk: u64) -> Option<u128> {
        if self.stale().is_set(chunk) {
            return None;
        }
        let mut bytes = [0; ENTRY as usize];
        self.digests.read_at(&mut bytes, chunk * ENTRY).ok()?;
        match u128::from_le_bytes(bytes) {
            0 => None,
            digest => Some(digest),
        }
    }

    /// Sets the digest of a chunk whose bytes (fewer at the disk's end) are known.
    pub(crate) fn set(&self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        self.set_all(chunk, &Self::digest(bytes).to_le_bytes())
    }

    /// Sets the digests of consecutive chunks.
    fn set_all(&self, first: u64, digests: &[u8]) -> io::Result<()> {
        self.digests.write_at(digests, first * ENTRY)?;
        let mut stale = self.stale();
        stale.digests_unsynced = true;
        stale.mark(first..first + digests.len() as u64 / ENTRY, Mark::Fresh);
        Ok(())
    }

    /// The digest as the table holds it: never zero.
    pub(crate) fn digest(bytes: &[u8]) -> u128 {
        xxh3_128(bytes).max(1)
    }

    /// Lets the digests of all chunks that the byte range touches no longer hold.
    pub(crate) fn forget(&self, range: Range<u64>) {
        if !range.is_empty() {
            self.stale().mark(
                range.start / Self::CHUNK..range.end.div_ceil(Self::CHUNK),
                Mark::Stale,
            );
        }
    }

    /// Takes note that `bytes` were written to the head at `offset`.
    pub(crate) fn written(&self, offset: u64, bytes: &[u8], disk_size: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let first_whole = offset.next_multiple_of(Self::CHUNK);
        let mut digests = Vec::new();
        let mut chunk = first_whole;
        while chunk + Self::CHUNK <= end || (chunk < end && end == disk_size) {
            let stop = (chunk + Self::CHUNK).min(end);
            let part = &bytes[(chunk - offset) as usize..(stop - offset) as usize];
            digests.extend_from_slice(&Self::digest(part).to_le_bytes());
            chunk = stop.next_multiple_of(Self::CHUNK);
        }
        self.forget(offset..first_whole.min(end));
        if !digests.is_empty() {
            self.set_all(first_whole / Self::CHUNK, &digests)?;
        }
        self.forget(chunk.min(end)..end);
        Ok(())
    }

    /// Forgets everything beyond a new end of the disk, and the chunk it falls into.
    pub(crate) fn resized(&self, old: u64, new: u64) -> io::Result<()> {
        self.forget(old.min(new)..old.max(new));
        let entries = new.div_ceil(Self::CHUNK) * ENTRY;
        if new < old && self.digests.len()? > entries {
            self.digests.set_len(entries)?;
        }
        Ok(())
    }

    /// Makes the table durable, where it changed.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let mut stale = self.stale();
        if stale.digests_unsynced {
            self.digests.sync()?;
            stale.digests_unsynced = false;
        }
        if stale.unwritten.is_empty() {
            return Ok(());
        }
        for &page in &stale.unwritten {
            let range = page * PAGE..((page + 1) * PAGE).min(stale.bits.len());
            self.stale_file
                .write_at(&stale.bits[range.clone()], range.start as u64)?;
        }
        self.stale_file.sync()?;
        stale.unwritten.clear();
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Stale,
    Fresh,
}

impl StaleBits {
    fn is_set(&self, chunk: u64) -> bool {
        self.bits
            .get((chunk / 8) as usize)
            .is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
    }

    fn mark(&mut self, chunks: Range<u64>, mark: Mark) {
        for chunk in chunks {
            if self.is_set(chunk) == (mark == Mark::Stale) {
                continue;
            }
            let byte = (chunk / 8) as usize;
            if self.bits.len() <= byte {
                self.bits.resize(byte + 1, 0);
            }
            self.bits[byte] ^= 1 << (chunk % 8);
            self.unwritten.insert(byte / PAGE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lifeboat_sys::disk::{Access, DiskPort, Recorder};

    use super::*;

    const CHUNK: u64 = DigestTable::CHUNK;

    fn open(disk: &Recorder) -> DigestTable {
        let file = |path| {
            let path = Path::new(path);
            disk.create(path)
                .or_else(|_| disk.open(path, Access::ReadWrite))
                .unwrap()
        };
        DigestTable::open(file("/digests"), file("/stale")).unwrap()
    }

    #[test]
    fn a_chunk_written_whole_is_known_and_one_written_in_part_is_not() {
        let disk = Recorder::new();
        let table = open(&disk);
        let bytes: Vec<u8> = (0..4 * CHUNK).map(|at| (at / 1000) as u8).collect();
        table.written(0, &bytes, 10 * CHUNK).unwrap();
        assert!((0..4).all(|chunk| table.known(chunk).is_some()));
        table
            .written(CHUNK + 4096, &bytes[..CHUNK as usize], 10 * CHUNK)
            .unwrap();
        let expected = [true, false, false, true];
        assert_eq!(
            [0, 1, 2, 3].map(|chunk| table.known(chunk).is_some()),
            expected
        );
        assert_eq!(
            table.known(0),
            Some(DigestTable::digest(&bytes[..CHUNK as usize]))
        );
        table.sync().unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|chunk| open(&disk).known(chunk).is_some()),
            expected
        );
    }

    #[test]
    fn a_chunk_written_whole_again_is_known_again() {
        let disk = Recorder::new();
        let table = open(&disk);
        table.written(512, &[7; 512], 10 * CHUNK).unwrap();
        table.sync().unwrap();
        table
            .written(0, &vec![9; CHUNK as usize], 10 * CHUNK)
            .unwrap();
        table.sync().unwrap();
        assert_eq!(
            open(&disk).known(0),
            Some(DigestTable::digest(&vec![9; CHUNK as usize]))
        );
    }

    #[test]
    fn the_partial_chunk_at_the_end_of_the_disk_counts_as_whole() {
        let table = open(&Recorder::new());
        table.written(CHUNK, &[7; 512], CHUNK + 512).unwrap();
        assert_eq!(table.known(1), Some(DigestTable::digest(&[7; 512])));
        table.resized(CHUNK + 512, CHUNK + 1024).unwrap();
        assert_eq!(table.known(1), None);
    }

    #[test]
    fn a_disk_that_shrank_and_grew_remembers_nothing_of_its_tail() {
        let table = open(&Recorder::new());
        table
            .written(0, &vec![7; 3 * CHUNK as usize], 3 * CHUNK)
            .unwrap();
        table.resized(3 * CHUNK, CHUNK).unwrap();
        table.resized(CHUNK, 3 * CHUNK).unwrap();
        assert_eq!(
            [0, 1, 2].map(|chunk| table.known(chunk).is_some()),
            [true, false, false]
        );
    }
}
