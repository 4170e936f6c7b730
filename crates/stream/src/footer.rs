//! The footer: what the stream held, and the identity of the delta.

use lifeboat_model::DeltaId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::header::array;

/// The length of the footer in bytes.
pub(crate) const FOOTER_LEN: usize = 96;

/// What a complete stream held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// The delta's id: commits to header, manifest, blobs, ranges and every byte of data,
    /// and not to how they were compressed.
    pub id: DeltaId,
    /// BLAKE3 of the plain bytes of all data frames, one after the other.
    pub content: [u8; 32],
    /// How many frames the stream has, the manifest and the end among them.
    pub frames: u64,
    /// How many bytes of the disks the data frames cover.
    pub data_bytes: u64,
    /// How many bytes of the disks the zero frames cover.
    pub zero_bytes: u64,
}

/// What a writer or reader counted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub frames: u64,
    pub data_bytes: u64,
    pub zero_bytes: u64,
}

impl Footer {
    pub(crate) const fn new(counts: Counts, content: [u8; 32], id: DeltaId) -> Self {
        Self {
            id,
            content,
            frames: counts.frames,
            data_bytes: counts.data_bytes,
            zero_bytes: counts.zero_bytes,
        }
    }

    /// The footer's bytes; `stream` is the checksum of the stream's header.
    pub(crate) fn encode(&self, stream: u64) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        bytes[..8].copy_from_slice(&self.frames.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.zero_bytes.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.content);
        bytes[56..88].copy_from_slice(self.id.as_bytes());
        let check = xxh3_64_with_seed(&bytes[..88], stream);
        bytes[88..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The footer that these bytes are, or `None` when their checksum does not match.
    pub(crate) fn decode(bytes: &[u8; FOOTER_LEN], stream: u64) -> Option<Self> {
        let number = |at: usize| u64::from_le_bytes(array(&bytes[at..at + 8]));
        (number(88) == xxh3_64_with_seed(&bytes[..88], stream)).then(|| Self {
            frames: number(0),
            data_bytes: number(8),
            zero_bytes: number(16),
            content: array(&bytes[24..56]),
            id: DeltaId::from_bytes(array(&bytes[56..88])),
        })
    }

    pub(crate) const fn counts(&self) -> Counts {
        Counts {
            frames: self.frames,
            data_bytes: self.data_bytes,
            zero_bytes: self.zero_bytes,
        }
    }
}
