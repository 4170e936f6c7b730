//! Frame headers: the 64 bytes before every payload.
//!
//! A frame header is believed only after its own checksum, which is tied to the
//! stream's header and to the position where the frame stands. A damaged length
//! can therefore not make a reader go astray, and a frame that was moved, repeated
//! or taken from another stream is refused before its payload is read.

use lifeboat_model::SECTOR_SIZE;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::header::array;
use crate::manifest::MAX_MANIFEST_LEN;
use crate::payload::{Encoding, PayloadRef};

/// The length of a frame header in bytes.
pub(crate) const FRAME_HEADER_LEN: usize = 64;

/// How many of those bytes say what the frame means, however it is encoded.
pub(crate) const MEANING_LEN: usize = 40;

/// The most plain bytes in one data frame or one piece of a blob.
///
/// Large enough that per-frame costs vanish, small enough that a reader needs
/// only a few MiB whatever the stream says.
pub const MAX_DATA_LEN: usize = 1 << 20;

/// The most bytes that all blobs of a stream have together.
pub const MAX_BLOB_BYTES: u64 = 64 << 20;

/// Payloads that may be shared with a disk image start at a multiple of this:
/// the block size of the file systems that can share.
pub const SHARE_ALIGNMENT: u64 = 4096;

/// Only raw payloads of at least this many bytes are aligned: shorter ones are
/// faster copied than shared, and the padding would cost too much.
pub const SHARE_MIN_LEN: usize = 64 << 10;

/// What a blob holds; the order in which blobs stand in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobKind {
    /// The variable store of the guest's firmware.
    Nvram,
    /// The state of the guest's emulated TPM.
    Tpm,
    /// The VM definition, in the model of its own that travels between hosts.
    Definition,
}

/// What a frame is about. Lengths are in bytes and already within their bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    Manifest,
    Blob {
        kind: BlobKind,
        format: u16,
        offset: u64,
        total: u64,
    },
    Data {
        disk: u16,
        offset: u64,
    },
    Zero {
        disk: u16,
        offset: u64,
        length: u64,
    },
    End,
}

/// A payload as its frame header describes it; where it stands follows from the header's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payload {
    pub plain_len: u32,
    pub digest: u128,
    pub encoding: Encoding,
    pub stored_len: u32,
    pub stored_check: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub meaning: Meaning,
    /// Absent in zero and end frames.
    pub payload: Option<Payload>,
}

/// What the checksum of a frame header is tied to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The checksum of the stream's header.
    pub stream: u64,
    /// Where the frame header starts, in bytes from the start of the stream.
    pub position: u64,
}

/// A frame header that is not damaged and still cannot be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame header's checksum does not match: the stream is damaged, ask for it again")]
    Checksum,
    #[error("kind {kind} of frame does not exist in this version")]
    Kind { kind: u8 },
    #[error("kind {kind} of blob does not exist in this version")]
    Blob { kind: u8 },
    #[error("encoding {encoding} does not exist in this version")]
    Encoding { encoding: u8 },
    #[error("a field that this kind of frame does not use is not zero")]
    Unused,
    #[error("a payload of {length} bytes is out of bounds: 1 to {max} are allowed here")]
    PayloadLength { length: u32, max: u32 },
    #[error("{stored} stored bytes cannot be the encoding of {plain} plain bytes")]
    StoredLength { stored: u32, plain: u32 },
    #[error("a payload of {length} bytes is too short to be aligned")]
    AlignedTooShort { length: u32 },
}

impl FrameHeader {
    pub(crate) fn encode(&self, place: Place) -> [u8; FRAME_HEADER_LEN] {
        let (kind, blob, index, offset, extent) = match self.meaning {
            Meaning::Manifest => (1, 0, 0, 0, 0),
            Meaning::Blob {
                kind,
                format,
                offset,
                total,
            } => (2, kind.to_byte(), format, offset, total),
            Meaning::Data { disk, offset } => (3, 0, disk, offset, 0),
            Meaning::Zero {
                disk,
                offset,
                length,
            } => (4, 0, disk, offset, length),
            Meaning::End => (5, 0, 0, 0, 0),
        };
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[0] = kind;
        bytes[1] = blob;
        bytes[2..4].copy_from_slice(&index.to_le_bytes());
        bytes[8..16].copy_from_slice(&offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&extent.to_le_bytes());
        if let Some(payload) = self.payload {
            bytes[4..8].copy_from_slice(&payload.plain_len.to_le_bytes());
            bytes[24..40].copy_from_slice(&payload.digest.to_le_bytes());
            bytes[40] = payload.encoding.to_byte();
            bytes[44..48].copy_from_slice(&payload.stored_len.to_le_bytes());
            bytes[48..56].copy_from_slice(&payload.stored_check.to_le_bytes());
        }
        let check = place.check(&bytes);
        bytes[56..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_LEN], place: Place) -> Result<Self, FrameError> {
        if u64::from_le_bytes(array(&bytes[56..])) != place.check(bytes) {
            return Err(FrameError::Checksum);
        }
        let index = u16::from_le_bytes(array(&bytes[2..4]));
        let offset = u64::from_le_bytes(array(&bytes[8..16]));
        let extent = u64::from_le_bytes(array(&bytes[16..24]));
        let (meaning, max_payload) = match bytes[0] {
            1 => (Meaning::Manifest, Some(MAX_MANIFEST_LEN)),
            2 => {
                let blob = Meaning::Blob {
                    kind: BlobKind::from_byte(bytes[1])?,
                    format: index,
                    offset,
                    total: extent,
                };
                (blob, Some(MAX_DATA_LEN as u32))
            }
            3 => (
                Meaning::Data {
                    disk: index,
                    offset,
                },
                Some(MAX_DATA_LEN as u32),
            ),
            4 => {
                let zero = Meaning::Zero {
                    disk: index,
                    offset,
                    length: extent,
                };
                (zero, None)
            }
            5 => (Meaning::End, None),
            kind => return Err(FrameError::Kind { kind }),
        };
        let payload = match max_payload {
            Some(max) => Some(Payload::decode(bytes, max)?),
            None => None,
        };
        let header = Self { meaning, payload };
        // Encoding it again leaves zero whatever the kind does not use.
        if header.encode(place) == *bytes {
            Ok(header)
        } else {
            Err(FrameError::Unused)
        }
    }

    /// How many zero bytes stand between the header, which starts at `position`, and the payload.
    pub(crate) fn padding(&self, position: u64) -> u64 {
        match self.payload {
            Some(Payload {
                encoding: Encoding::RawAligned,
                ..
            }) => {
                let end = position + FRAME_HEADER_LEN as u64;
                end.next_multiple_of(SHARE_ALIGNMENT) - end
            }
            _ => 0,
        }
    }

    /// The bytes that say what the frame means, however it is encoded.
    pub(crate) fn meaning_bytes(bytes: &[u8; FRAME_HEADER_LEN]) -> &[u8] {
        &bytes[..MEANING_LEN]
    }
}

impl Payload {
    fn decode(bytes: &[u8; FRAME_HEADER_LEN], max: u32) -> Result<Self, FrameError> {
        let plain_len = u32::from_le_bytes(array(&bytes[4..8]));
        let payload = Self {
            plain_len,
            digest: u128::from_le_bytes(array(&bytes[24..40])),
            encoding: Encoding::from_byte(bytes[40])?,
            stored_len: u32::from_le_bytes(array(&bytes[44..48])),
            stored_check: u64::from_le_bytes(array(&bytes[48..56])),
        };
        if plain_len == 0 || plain_len > max {
            return Err(FrameError::PayloadLength {
                length: plain_len,
                max,
            });
        }
        let lengths_fit = match payload.encoding {
            Encoding::Raw | Encoding::RawAligned => payload.stored_len == plain_len,
            Encoding::Zstd => (1..plain_len).contains(&payload.stored_len),
        };
        if !lengths_fit {
            return Err(FrameError::StoredLength {
                stored: payload.stored_len,
                plain: plain_len,
            });
        }
        match payload.encoding {
            Encoding::RawAligned if (plain_len as usize) < SHARE_MIN_LEN => {
                Err(FrameError::AlignedTooShort { length: plain_len })
            }
            Encoding::Raw | Encoding::RawAligned if payload.stored_check != 0 => {
                Err(FrameError::Unused)
            }
            Encoding::Raw | Encoding::RawAligned | Encoding::Zstd => Ok(payload),
        }
    }

    /// The payload of a frame whose header and padding end at `position`.
    pub(crate) fn at(&self, position: u64) -> PayloadRef {
        PayloadRef {
            position,
            stored_len: self.stored_len,
            plain_len: self.plain_len,
            encoding: self.encoding,
            digest: self.digest,
            stored_check: self.stored_check,
        }
    }
}

impl Place {
    fn check(self, bytes: &[u8; FRAME_HEADER_LEN]) -> u64 {
        xxh3_64_with_seed(&bytes[..56], self.stream.wrapping_add(self.position))
    }
}

impl BlobKind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Nvram => 1,
            Self::Tpm => 2,
            Self::Definition => 3,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, FrameError> {
        match byte {
            1 => Ok(Self::Nvram),
            2 => Ok(Self::Tpm),
            3 => Ok(Self::Definition),
            kind => Err(FrameError::Blob { kind }),
        }
    }
}

impl std::fmt::Display for BlobKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nvram => "NVRAM",
            Self::Tpm => "TPM state",
            Self::Definition => "VM definition",
        })
    }
}

/// Whether a range may stand in a frame: whole sectors, and not empty.
pub(crate) const fn is_whole_sectors(offset: u64, length: u64) -> bool {
    length > 0 && offset.is_multiple_of(SECTOR_SIZE) && length.is_multiple_of(SECTOR_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        stream: 77,
        position: 4096,
    };

    fn payload() -> Payload {
        Payload {
            plain_len: 65536,
            digest: 5,
            encoding: Encoding::Raw,
            stored_len: 65536,
            stored_check: 0,
        }
    }

    fn data(payload: Payload) -> FrameHeader {
        FrameHeader {
            meaning: Meaning::Data {
                disk: 3,
                offset: 512,
            },
            payload: Some(payload),
        }
    }

    #[test]
    fn a_frame_header_is_refused_anywhere_but_in_its_place() {
        let bytes = data(payload()).encode(PLACE);
        assert_eq!(FrameHeader::decode(&bytes, PLACE), Ok(data(payload())));
        for elsewhere in [
            Place {
                stream: 78,
                ..PLACE
            },
            Place {
                position: 8192,
                ..PLACE
            },
        ] {
            assert_eq!(
                FrameHeader::decode(&bytes, elsewhere),
                Err(FrameError::Checksum)
            );
        }
    }

    #[test]
    fn lengths_that_the_encoding_cannot_have_are_refused() {
        let zstd = |stored_len| Payload {
            encoding: Encoding::Zstd,
            stored_len,
            ..payload()
        };
        let refused = |header: FrameHeader| {
            FrameHeader::decode(&header.encode(PLACE), PLACE).expect_err("must be refused")
        };
        let stored = |stored| FrameError::StoredLength {
            stored,
            plain: 65536,
        };
        assert_eq!(refused(data(zstd(0))), stored(0));
        assert_eq!(refused(data(zstd(65536))), stored(65536));
        assert_eq!(refused(data(zstd(u32::MAX))), stored(u32::MAX));
        let raw_short = Payload {
            stored_len: 65535,
            ..payload()
        };
        assert_eq!(refused(data(raw_short)), stored(65535));
        for plain_len in [0, MAX_DATA_LEN as u32 + 1, u32::MAX] {
            let header = data(Payload {
                plain_len,
                stored_len: plain_len,
                ..payload()
            });
            assert_eq!(
                refused(header),
                FrameError::PayloadLength {
                    length: plain_len,
                    max: MAX_DATA_LEN as u32
                }
            );
        }
        let aligned = Payload {
            encoding: Encoding::RawAligned,
            plain_len: 65024,
            stored_len: 65024,
            ..payload()
        };
        assert_eq!(
            refused(data(aligned)),
            FrameError::AlignedTooShort { length: 65024 }
        );
        let checked = Payload {
            stored_check: 1,
            ..payload()
        };
        assert_eq!(refused(data(checked)), FrameError::Unused);
    }

    #[test]
    fn every_byte_that_a_kind_does_not_use_must_be_zero() {
        let zero = FrameHeader {
            meaning: Meaning::Zero {
                disk: 1,
                offset: 0,
                length: 512,
            },
            payload: None,
        };
        let end = FrameHeader {
            meaning: Meaning::End,
            payload: None,
        };
        let manifest = FrameHeader {
            meaning: Meaning::Manifest,
            payload: Some(Payload {
                plain_len: 10,
                stored_len: 10,
                ..payload()
            }),
        };
        let unused: [(FrameHeader, &[usize]); 4] = [
            (zero, &[1, 4, 24, 40, 41, 44, 48]),
            (end, &[1, 2, 4, 8, 16, 24, 40, 43, 44, 48]),
            (manifest, &[1, 2, 8, 16, 41, 48]),
            (data(payload()), &[1, 16, 42, 48]),
        ];
        for (header, positions) in unused {
            for &position in positions {
                let mut bytes = header.encode(PLACE);
                bytes[position] ^= 1;
                let check = PLACE.check(&bytes);
                bytes[56..].copy_from_slice(&check.to_le_bytes());
                let refused = FrameHeader::decode(&bytes, PLACE);
                assert!(refused.is_err(), "{header:?} byte {position}: {refused:?}");
            }
        }
    }

    #[test]
    fn padding_brings_an_aligned_payload_to_a_multiple_of_the_alignment() {
        let aligned = data(Payload {
            encoding: Encoding::RawAligned,
            ..payload()
        });
        for (position, padding) in [(0, 4032), (4032, 0), (4033, 4095), (104, 3928)] {
            assert_eq!(aligned.padding(position), padding);
            assert_eq!(data(payload()).padding(position), 0);
        }
    }
}
