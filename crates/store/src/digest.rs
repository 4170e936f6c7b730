//! The digest table of a head: what each 64 KiB of the disk should read as.
//!
//! Most bytes of every recovery point are read from the head, so rot there would spoil all
//! points unnoticed. A digest is set when a whole chunk is written, and forgotten when a
//! part of one is; a scrub (`Store::verify`) reads such chunks once and sets it again.
//!
//! The table needs no journal. It changes only together with chunks of the head that an
//! unfinished apply or commit writes again after a crash, and with them their digests.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::BLOCK_SIZE;
use lifeboat_sys::disk::DiskFile;
use xxhash_rust::xxh3::xxh3_128;

const ENTRY: u64 = 16;

/// Digests of a head, one per 64 KiB; zero stands for "not known".
#[derive(Debug)]
pub(crate) struct DigestTable {
    file: Arc<dyn DiskFile>,
}

impl DigestTable {
    /// Bytes that one digest covers.
    pub(crate) const CHUNK: u64 = 64 << 10;
    pub(crate) const CHUNK_BLOCKS: u64 = Self::CHUNK / BLOCK_SIZE;

    pub(crate) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file }
    }

    /// The digest of a chunk, if one is known and can be read.
    pub(crate) fn known(&self, chunk: u64) -> Option<u128> {
        let mut bytes = [0; ENTRY as usize];
        self.file.read_at(&mut bytes, chunk * ENTRY).ok()?;
        match u128::from_le_bytes(bytes) {
            0 => None,
            digest => Some(digest),
        }
    }

    /// Sets the digest of a chunk whose bytes (fewer at the disk's end) are known.
    pub(crate) fn set(&self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        self.file
            .write_at(&Self::digest(bytes).to_le_bytes(), chunk * ENTRY)
    }

    /// The digest as the table holds it: never zero.
    pub(crate) fn digest(bytes: &[u8]) -> u128 {
        xxh3_128(bytes).max(1)
    }

    /// Forgets the digests of all chunks that the byte range touches.
    pub(crate) fn forget(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let chunks = range.start / Self::CHUNK..range.end.div_ceil(Self::CHUNK);
        let known = self.file.len()? / ENTRY;
        if chunks.start >= known {
            return Ok(());
        }
        let count = chunks.end.min(known) - chunks.start;
        if count * ENTRY >= 4096 {
            self.file.punch(chunks.start * ENTRY, count * ENTRY)
        } else {
            self.file
                .write_at(&vec![0; (count * ENTRY) as usize], chunks.start * ENTRY)
        }
    }

    /// Takes note that `bytes` were written to the head at `offset`.
    pub(crate) fn written(&self, offset: u64, bytes: &[u8], disk_size: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let mut digests = Vec::new();
        let first_whole = offset.next_multiple_of(Self::CHUNK);
        let mut chunk = first_whole;
        while chunk + Self::CHUNK <= end || (chunk < end && end == disk_size) {
            let stop = (chunk + Self::CHUNK).min(end);
            digests.extend_from_slice(
                &Self::digest(&bytes[(chunk - offset) as usize..(stop - offset) as usize])
                    .to_le_bytes(),
            );
            chunk = stop.next_multiple_of(Self::CHUNK);
        }
        self.forget(offset..first_whole.min(end))?;
        if !digests.is_empty() {
            self.file
                .write_at(&digests, first_whole / Self::CHUNK * ENTRY)?;
        }
        if chunk < end {
            self.forget(chunk..end)?;
        }
        Ok(())
    }

    /// Forgets everything beyond a new end of the disk, and the chunk it falls into.
    pub(crate) fn resized(&self, old: u64, new: u64) -> io::Result<()> {
        self.forget(old.min(new)..old.max(new))?;
        if new < old {
            let entries = new.div_ceil(Self::CHUNK) * ENTRY;
            if self.file.len()? > entries {
                self.file.set_len(entries)?;
            }
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lifeboat_sys::disk::{DiskPort, Recorder};

    use super::*;

    const CHUNK: u64 = DigestTable::CHUNK;

    fn table() -> DigestTable {
        DigestTable::new(Recorder::new().create(Path::new("/digests")).unwrap())
    }

    #[test]
    fn a_chunk_written_whole_is_known_and_one_written_in_part_is_not() {
        let table = table();
        let bytes: Vec<u8> = (0..4 * CHUNK).map(|at| (at / 1000) as u8).collect();
        table.written(0, &bytes, 10 * CHUNK).unwrap();
        assert!((0..4).all(|chunk| table.known(chunk).is_some()));
        table
            .written(CHUNK + 4096, &bytes[..CHUNK as usize], 10 * CHUNK)
            .unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|chunk| table.known(chunk).is_some()),
            [true, false, false, true]
        );
        assert_eq!(
            table.known(0),
            Some(DigestTable::digest(&bytes[..CHUNK as usize]))
        );
    }

    #[test]
    fn the_partial_chunk_at_the_end_of_the_disk_counts_as_whole() {
        let table = table();
        table.written(CHUNK, &[7; 512], CHUNK + 512).unwrap();
        assert_eq!(table.known(1), Some(DigestTable::digest(&[7; 512])));
        table.resized(CHUNK + 512, CHUNK + 1024).unwrap();
        assert_eq!(table.known(1), None);
    }

    #[test]
    fn a_disk_that_shrank_and_grew_remembers_nothing_of_its_tail() {
        let table = table();
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
