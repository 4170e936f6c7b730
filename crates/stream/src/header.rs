//! The stream header: which moment of which history the stream carries.

use lifeboat_model::{DeltaId, LineageId, RelationshipId, Sequence};
use xxhash_rust::xxh3::xxh3_64;

/// The version of the format that this build writes and reads.
pub const VERSION: u32 = 1;

/// The length of the header in bytes.
pub(crate) const HEADER_LEN: usize = 104;

/// How much of the header tells whether the rest can be understood: magic and version.
pub(crate) const PREFIX_LEN: usize = 12;

/// Byte 0 is no ASCII and byte 7 is what text conversion damages, so that neither
/// a text file nor a stream that went through one is taken for a delta.
const MAGIC: [u8; 8] = *b"\xd5LBDLTA\n";

/// Which moment a stream carries, and what it builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    /// The moment the changes are relative to; absent when there is none.
    pub base: Option<Base>,
    pub sequence: Sequence,
    pub kind: Kind,
}

/// The moment a delta builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub sequence: Sequence,
    /// The identity of the delta that carried that moment; never all zeroes.
    pub id: DeltaId,
}

/// What a stream does to the disks it is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every byte of every disk is in the stream, as data or as zeroes. Has no base.
    Initial,
    /// What changed between the base and this moment. Always has a base.
    Delta,
    /// Ranges found different by comparison. May or may not have a base.
    Resync,
}

/// A combination of header fields that no stream may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    #[error("the stream's sequence is 0, which names the moment before the first delta")]
    NoSequence,
    #[error("the base {base} does not come before the stream's own sequence {sequence}")]
    BaseNotOlder { base: Sequence, sequence: Sequence },
    #[error("the base's sequence and id must both be zero or both be present")]
    HalfBase,
    #[error("an initial stream carries whole disks and cannot have a base")]
    InitialWithBase,
    #[error("a delta needs a base")]
    DeltaWithoutBase,
    #[error("kind {0} is none of 1 (initial), 2 (delta) and 3 (resync)")]
    Kind(u8),
    #[error("reserved bytes are not zero")]
    Reserved,
}

/// Why the first bytes of a stream are not a header this build can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the input does not start as a delta stream does")]
    NotADeltaStream,
    #[error(
        "the stream has version {found} and this build reads version {VERSION}: run the same release on both sides"
    )]
    Version { found: u32 },
    #[error("the header's checksum does not match: the stream is damaged, ask for it again")]
    Checksum,
    #[error("the header contradicts itself")]
    Invalid { source: InvalidHeader },
}

impl Header {
    /// Checks what every stream promises about its own place in the history.
    ///
    /// # Errors
    ///
    /// The first promise that is broken.
    pub fn validate(&self) -> Result<(), InvalidHeader> {
        if self.sequence == Sequence::ZERO {
            return Err(InvalidHeader::NoSequence);
        }
        match (self.kind, self.base) {
            (Kind::Initial, Some(_)) => Err(InvalidHeader::InitialWithBase),
            (Kind::Delta, None) => Err(InvalidHeader::DeltaWithoutBase),
            (_, Some(base)) if base.sequence == Sequence::ZERO || base.id == NO_ID => {
                Err(InvalidHeader::HalfBase)
            }
            (_, Some(base)) if base.sequence >= self.sequence => Err(InvalidHeader::BaseNotOlder {
                base: base.sequence,
                sequence: self.sequence,
            }),
            (Kind::Initial | Kind::Resync, None) | (Kind::Delta | Kind::Resync, Some(_)) => Ok(()),
        }
    }

    /// The header's bytes and the checksum that the frames are tied to.
    pub(crate) fn encode(&self) -> ([u8; HEADER_LEN], u64) {
        let (base_sequence, base_id) = self
            .base
            .map_or((Sequence::ZERO, NO_ID), |base| (base.sequence, base.id));
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = self.kind.to_byte();
        bytes[16..32].copy_from_slice(self.relationship.as_bytes());
        bytes[32..48].copy_from_slice(self.lineage.as_bytes());
        bytes[48..56].copy_from_slice(&self.sequence.number().to_le_bytes());
        bytes[56..64].copy_from_slice(&base_sequence.number().to_le_bytes());
        bytes[64..96].copy_from_slice(base_id.as_bytes());
        let check = xxh3_64(&bytes[..96]);
        bytes[96..].copy_from_slice(&check.to_le_bytes());
        (bytes, check)
    }

    /// Refuses input that is no delta stream or one of another version.
    ///
    /// A later version may lay out the rest differently, so this is decided on
    /// magic and version alone.
    pub(crate) fn check_prefix(prefix: &[u8; PREFIX_LEN]) -> Result<(), HeaderError> {
        if prefix[..8] != MAGIC {
            return Err(HeaderError::NotADeltaStream);
        }
        let found = u32::from_le_bytes(array(&prefix[8..]));
        if found == VERSION {
            Ok(())
        } else {
            Err(HeaderError::Version { found })
        }
    }

    /// Reads the bytes that [`Header::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<(Self, u64), HeaderError> {
        Self::check_prefix(&array(&bytes[..PREFIX_LEN]))?;
        let check = u64::from_le_bytes(array(&bytes[96..]));
        if check != xxh3_64(&bytes[..96]) {
            return Err(HeaderError::Checksum);
        }
        Self::decode_fields(bytes)
            .map(|header| (header, check))
            .map_err(|source| HeaderError::Invalid { source })
    }

    fn decode_fields(bytes: &[u8; HEADER_LEN]) -> Result<Self, InvalidHeader> {
        if bytes[13..16] != [0; 3] {
            return Err(InvalidHeader::Reserved);
        }
        let base_sequence = Sequence::new(u64::from_le_bytes(array(&bytes[56..64])));
        let base_id = DeltaId::from_bytes(array(&bytes[64..96]));
        let has_base = base_sequence != Sequence::ZERO || base_id != NO_ID;
        let header = Self {
            relationship: RelationshipId::from_bytes(array(&bytes[16..32])),
            lineage: LineageId::from_bytes(array(&bytes[32..48])),
            base: has_base.then_some(Base {
                sequence: base_sequence,
                id: base_id,
            }),
            sequence: Sequence::new(u64::from_le_bytes(array(&bytes[48..56]))),
            kind: Kind::from_byte(bytes[12])?,
        };
        header.validate()?;
        Ok(header)
    }
}

impl Kind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Initial => 1,
            Self::Delta => 2,
            Self::Resync => 3,
        }
    }

    const fn from_byte(byte: u8) -> Result<Self, InvalidHeader> {
        match byte {
            1 => Ok(Self::Initial),
            2 => Ok(Self::Delta),
            3 => Ok(Self::Resync),
            other => Err(InvalidHeader::Kind(other)),
        }
    }
}

/// Stands in the header where a stream has no base.
const NO_ID: DeltaId = DeltaId::from_bytes([0; 32]);

/// A slice of a length fixed in the code, as an array.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes
        .try_into()
        .expect("BUG: a field is cut with the wrong length")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta() -> Header {
        Header {
            relationship: RelationshipId::from_bytes([1; 16]),
            lineage: LineageId::from_bytes([2; 16]),
            base: Some(Base {
                sequence: Sequence::new(6),
                id: DeltaId::from_bytes([3; 32]),
            }),
            sequence: Sequence::new(9),
            kind: Kind::Delta,
        }
    }

    #[test]
    fn a_header_reads_back_what_it_wrote() {
        let initial = Header {
            base: None,
            kind: Kind::Initial,
            ..delta()
        };
        let resync = Header {
            kind: Kind::Resync,
            ..delta()
        };
        for header in [delta(), initial, resync] {
            let (bytes, check) = header.encode();
            assert_eq!(Header::decode(&bytes), Ok((header, check)));
        }
    }

    #[test]
    fn a_newer_version_is_refused_naming_both_versions() {
        let (mut bytes, _) = delta().encode();
        bytes[8] = 2;
        let error = Header::decode(&bytes).unwrap_err();
        assert_eq!(error, HeaderError::Version { found: 2 });
        assert!(error.to_string().contains("version 2"), "{error}");
        assert!(error.to_string().contains("reads version 1"), "{error}");
    }

    #[test]
    fn a_header_that_contradicts_itself_is_refused_although_its_checksum_is_right() {
        let base = |sequence, byte| {
            Some(Base {
                sequence: Sequence::new(sequence),
                id: DeltaId::from_bytes([byte; 32]),
            })
        };
        let cases = [
            (
                Header {
                    sequence: Sequence::ZERO,
                    ..delta()
                },
                InvalidHeader::NoSequence,
            ),
            (
                Header {
                    base: base(9, 3),
                    ..delta()
                },
                InvalidHeader::BaseNotOlder {
                    base: Sequence::new(9),
                    sequence: Sequence::new(9),
                },
            ),
            (
                Header {
                    base: base(0, 3),
                    ..delta()
                },
                InvalidHeader::HalfBase,
            ),
            (
                Header {
                    base: base(5, 0),
                    ..delta()
                },
                InvalidHeader::HalfBase,
            ),
            (
                Header {
                    base: None,
                    ..delta()
                },
                InvalidHeader::DeltaWithoutBase,
            ),
            (
                Header {
                    kind: Kind::Initial,
                    ..delta()
                },
                InvalidHeader::InitialWithBase,
            ),
        ];
        for (header, expected) in cases {
            assert_eq!(header.validate(), Err(expected));
            let (bytes, _) = header.encode();
            assert_eq!(
                Header::decode(&bytes),
                Err(HeaderError::Invalid { source: expected })
            );
        }
    }

    #[test]
    fn unknown_kinds_and_reserved_bytes_are_refused() {
        for (position, value, expected) in [
            (12, 0, InvalidHeader::Kind(0)),
            (12, 4, InvalidHeader::Kind(4)),
            (14, 1, InvalidHeader::Reserved),
        ] {
            let (mut bytes, _) = delta().encode();
            bytes[position] = value;
            let check = xxh3_64(&bytes[..96]);
            bytes[96..].copy_from_slice(&check.to_le_bytes());
            assert_eq!(
                Header::decode(&bytes),
                Err(HeaderError::Invalid { source: expected })
            );
        }
    }
}
