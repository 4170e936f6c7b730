//! Keyed digests of heads, by which two sides find where their disks differ.
//!
//! BLAKE3 with a key that is new for each comparison, cut to 16 bytes: a guest that crafts
//! blocks cannot make two of them look equal.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskId};

use crate::error::StoreError;
use crate::image::Chain;
use crate::store::Store;

/// Length of a keyed digest in bytes.
pub const KEYED_DIGEST_LEN: usize = 16;

/// The most bytes of a disk that are digested at once.
pub const MAX_DIGESTED_BYTES: u64 = 1 << 30;

/// How much is read at a time.
const READ_BYTES: u64 = 1 << 20;

/// How many bytes of a disk one digest stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestUnit {
    /// 4 KiB.
    Block,
    /// 64 KiB.
    Chunk,
}

impl DigestUnit {
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Block => BLOCK_SIZE,
            Self::Chunk => 64 << 10,
        }
    }
}

/// A number that is no [`DigestUnit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest stands for 4096 or 65536 bytes, not for {bytes}")]
pub struct UnknownUnit {
    bytes: u32,
}

impl TryFrom<u32> for DigestUnit {
    type Error = UnknownUnit;

    fn try_from(bytes: u32) -> Result<Self, UnknownUnit> {
        match bytes {
            4096 => Ok(Self::Block),
            65536 => Ok(Self::Chunk),
            bytes => Err(UnknownUnit { bytes }),
        }
    }
}

/// The digest of one unit, which is shorter only at a disk's end.
#[must_use]
pub fn keyed_digest(key: &[u8; 32], bytes: &[u8]) -> [u8; KEYED_DIGEST_LEN] {
    let mut digest = [0; KEYED_DIGEST_LEN];
    let whole = blake3::keyed_hash(key, bytes);
    digest.copy_from_slice(&whole.as_bytes()[..KEYED_DIGEST_LEN]);
    digest
}

/// Digests the heads of a store beside whatever the store does.
///
/// What it says is what the heads held at some time during the call, block by block. It is one
/// moment's only if nothing is applied, copied or committed meanwhile: who wants that keeps
/// the store from it. Does not keep the store open.
#[derive(Debug, Clone)]
pub struct HeadDigester {
    disks: Arc<[(DiskId, Arc<Chain>)]>,
}

impl Store {
    /// Digests of the heads, for comparing them with the other side's disks.
    ///
    /// # Errors
    /// Refused unless the store is a replica.
    pub fn head_digester(&self) -> Result<HeadDigester, StoreError> {
        self.refuse_unless_replica()?;
        let images = self.images.iter();
        let disks = images.map(|image| (image.id.clone(), Arc::clone(&image.chain)));
        Ok(HeadDigester {
            disks: disks.collect(),
        })
    }
}

impl HeadDigester {
    /// The digests of all units of these ranges, one after the other. Holes are not read.
    ///
    /// # Errors
    /// `NotFound` for a disk that is not there; `InvalidInput` unless the ranges ascend, begin
    /// at whole units, end at whole units or the disk's end, and have at most
    /// [`MAX_DIGESTED_BYTES`] together; else what reading says.
    pub fn digests(
        &self,
        disk: &DiskId,
        ranges: &[Range<u64>],
        unit: DigestUnit,
        key: &[u8; 32],
    ) -> io::Result<Vec<u8>> {
        let mut disks = self.disks.iter();
        let chain = disks.find(|(id, _)| id == disk).map(|(_, chain)| chain);
        let chain = chain.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("there is no disk {disk}"))
        })?;
        let size = chain.head.len()?;
        refuse_bad_ranges(ranges, unit, size)?;
        let unit = unit.bytes();
        let zeroes = vec![0; unit as usize];
        let of_zeroes = keyed_digest(key, &zeroes);
        let mut digests = Vec::new();
        let mut buffer = Vec::new();
        for range in ranges {
            let mut position = range.start;
            while position < range.end {
                let data = chain.head.next_data(position)?;
                let data = data.unwrap_or(range.end..range.end);
                // Whole units before the one in which data begins.
                let hole = data.start.min(range.end) - position;
                let skipped = hole / unit;
                for _ in 0..skipped {
                    digests.extend_from_slice(&of_zeroes);
                }
                position += skipped * unit;
                let stop = data.end.max(position + 1).next_multiple_of(unit);
                let stop = stop.min(range.end);
                while position < stop {
                    let len = (stop - position).min(READ_BYTES);
                    buffer.resize(len as usize, 0);
                    chain.head.read_at(&mut buffer, position)?;
                    for bytes in buffer.chunks(unit as usize) {
                        let digest = if *bytes == zeroes {
                            of_zeroes
                        } else {
                            keyed_digest(key, bytes)
                        };
                        digests.extend_from_slice(&digest);
                    }
                    position += len;
                }
            }
        }
        Ok(digests)
    }
}

fn refuse_bad_ranges(ranges: &[Range<u64>], unit: DigestUnit, size: u64) -> io::Result<()> {
    let unit = unit.bytes();
    let mut taken = 0;
    let mut total = 0_u64;
    for range in ranges {
        let is_right = range.start >= taken
            && range.start < range.end
            && range.end <= size
            && range.start.is_multiple_of(unit)
            && (range.end.is_multiple_of(unit) || range.end == size);
        if !is_right {
            let why = format!(
                "{}..{} does not ascend, or is no range of whole units of {unit} bytes in a disk of {size}",
                range.start, range.end
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        taken = range.end;
        total += range.end - range.start;
    }
    if total > MAX_DIGESTED_BYTES {
        let why = format!("{total} bytes are asked for, {MAX_DIGESTED_BYTES} are the most");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(())
}
