//! Payloads: how bytes are stored in a frame, and how they are proved and decoded.

use std::io;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};
use zstd::bulk::Decompressor;

use crate::frame::{MAX_DATA_LEN, SHARE_ALIGNMENT, SHARE_MIN_LEN};

/// How the plain bytes of a payload are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// As they are, starting at a multiple of [`SHARE_ALIGNMENT`] in the stream.
    RawAligned,
    /// Compressed, as one or more zstd frames.
    Zstd,
}

/// Where a payload stands, and what its bytes must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadRef {
    /// Where it starts, in bytes from the start of the stream.
    pub position: u64,
    /// How many bytes it takes in the stream.
    pub stored_len: u32,
    /// How many bytes it decodes to, at most [`MAX_DATA_LEN`].
    pub plain_len: u32,
    pub encoding: Encoding,
    /// XXH3-128 of the plain bytes.
    pub digest: u128,
    /// XXH3-64 of the stored bytes if they are compressed, otherwise 0.
    pub stored_check: u64,
}

/// Why a payload is not what its frame says.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error("prepare zstd for decoding")]
    Prepare { source: io::Error },
    #[error("the payload takes {expected} bytes and {found} were given")]
    StoredLength { expected: u32, found: usize },
    #[error("the stored bytes do not match their checksum: the stream is damaged")]
    StoredCheck,
    #[error("the payload does not decompress to {expected} bytes or less")]
    Decompress { expected: u32, source: io::Error },
    #[error("the payload decompresses to {found} bytes instead of {expected}")]
    PlainLength { expected: u32, found: usize },
    #[error("the bytes do not match their digest: the stream is damaged")]
    Digest,
}

impl Encoding {
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::RawAligned => 1,
            Self::Zstd => 2,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Result<Self, crate::FrameError> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::RawAligned),
            2 => Ok(Self::Zstd),
            encoding => Err(crate::FrameError::Encoding { encoding }),
        }
    }
}

impl PayloadRef {
    /// Whether the stored bytes are the plain bytes and stand where a file system
    /// can share them with a disk image.
    ///
    /// Holds only for a stream that starts at a multiple of [`SHARE_ALIGNMENT`] in its file.
    #[must_use]
    pub const fn is_shareable(&self) -> bool {
        match self.encoding {
            Encoding::Raw | Encoding::RawAligned => {
                self.plain_len as usize >= SHARE_MIN_LEN
                    && self.position.is_multiple_of(SHARE_ALIGNMENT)
            }
            Encoding::Zstd => false,
        }
    }
}

/// Proves and decodes payloads, in any order.
///
/// Needs at most [`MAX_DATA_LEN`] bytes and the zstd context, whatever it is given.
pub struct PayloadDecoder {
    zstd: Decompressor<'static>,
    plain: Vec<u8>,
}

impl PayloadDecoder {
    /// A decoder with a context of its own.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Prepare`] when zstd cannot allocate its context.
    pub fn new() -> Result<Self, PayloadError> {
        let zstd = Decompressor::new().map_err(|source| PayloadError::Prepare { source })?;
        Ok(Self {
            zstd,
            plain: Vec::new(),
        })
    }

    /// The plain bytes of the payload that `stored` holds, proved against both digests.
    ///
    /// Bytes stored raw are proved and returned without a copy.
    ///
    /// # Errors
    ///
    /// Any [`PayloadError`] but `Prepare`: `stored` is not what the frame announced.
    pub fn decode<'a>(
        &'a mut self,
        payload: &PayloadRef,
        stored: &'a [u8],
    ) -> Result<&'a [u8], PayloadError> {
        if stored.len() != payload.stored_len as usize {
            return Err(PayloadError::StoredLength {
                expected: payload.stored_len,
                found: stored.len(),
            });
        }
        let plain = match payload.encoding {
            Encoding::Raw | Encoding::RawAligned => stored,
            Encoding::Zstd => self.decompress(payload, stored)?,
        };
        if plain.len() != payload.plain_len as usize {
            return Err(PayloadError::PlainLength {
                expected: payload.plain_len,
                found: plain.len(),
            });
        }
        if xxh3_128(plain) == payload.digest {
            Ok(plain)
        } else {
            Err(PayloadError::Digest)
        }
    }

    /// The first `length` bytes that the last compressed payload decoded to.
    pub(crate) fn decompressed(&self, length: usize) -> &[u8] {
        &self.plain[..length]
    }

    fn decompress(&mut self, payload: &PayloadRef, stored: &[u8]) -> Result<&[u8], PayloadError> {
        // zstd never sees bytes that were damaged on the way, and never has more
        // room than the frame announced, which is bounded.
        if xxh3_64(stored) != payload.stored_check {
            return Err(PayloadError::StoredCheck);
        }
        let room = (payload.plain_len as usize).min(MAX_DATA_LEN);
        if self.plain.len() < room {
            self.plain.resize(room, 0);
        }
        let written = self
            .zstd
            .decompress_to_buffer(stored, &mut self.plain[..room])
            .map_err(|source| PayloadError::Decompress {
                expected: payload.plain_len,
                source,
            })?;
        Ok(&self.plain[..written])
    }
}

impl std::fmt::Debug for PayloadDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PayloadDecoder").finish_non_exhaustive()
    }
}
