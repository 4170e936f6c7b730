//! Replies of the transmission phase.

use super::Cursor;
use crate::errno::Errno;
use crate::extent::Extent;
use crate::protocol::{
    CHUNK_BLOCK_STATUS, CHUNK_BLOCK_STATUS_EXT, CHUNK_ERROR_OFFSET, EXTENDED_REPLY_MAGIC, Framing,
    MAX_STRING, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};

/// The longest header of a reply.
pub(crate) const REPLY_HEADER_MAX: usize = 32;

/// The header of one chunk of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    /// The request's offset again; structured replies leave it out and have 0 here.
    pub(crate) offset: u64,
    /// How long the payload is, in bytes.
    pub(crate) length: u64,
}

/// What an error chunk says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorChunk {
    pub(crate) errno: Errno,
    pub(crate) message: String,
    pub(crate) offset: Option<u64>,
}

impl Framing {
    /// How long a chunk's header is, in bytes.
    pub(crate) fn chunk_header(self) -> usize {
        match self {
            Self::Simple => 16,
            Self::Structured => 20,
            Self::Extended => 32,
        }
    }

    /// The type of chunk that carries extents.
    pub(crate) fn status_chunk(self) -> u16 {
        match self {
            Self::Simple | Self::Structured => CHUNK_BLOCK_STATUS,
            Self::Extended => CHUNK_BLOCK_STATUS_EXT,
        }
    }

    /// How long one extent is in a chunk, in bytes.
    pub(crate) fn extent_size(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 8,
            Self::Extended => 16,
        }
    }

    /// How long the head of a status chunk is: context, and a count if extended.
    pub(crate) fn status_head(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 4,
            Self::Extended => 8,
        }
    }
}

pub(crate) fn encode_simple_reply(errno: Option<Errno>, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.map_or(0, Errno::to_wire).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The header, in the first [`Framing::chunk_header`] bytes of the answer; simple
/// framing has no chunks.
pub(crate) fn encode_reply_header(
    framing: Framing,
    header: &ChunkHeader,
) -> [u8; REPLY_HEADER_MAX] {
    let mut bytes = [0; REPLY_HEADER_MAX];
    let magic = match framing {
        Framing::Extended => EXTENDED_REPLY_MAGIC,
        Framing::Structured => STRUCTURED_REPLY_MAGIC,
        Framing::Simple => panic!("BUG: a chunk with simple framing"),
    };
    bytes[..4].copy_from_slice(&magic.to_be_bytes());
    bytes[4..6].copy_from_slice(&header.flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&header.kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&header.cookie.to_be_bytes());
    if framing == Framing::Extended {
        bytes[16..24].copy_from_slice(&header.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&header.length.to_be_bytes());
    } else {
        let length = u32::try_from(header.length)
            .unwrap_or_else(|_| panic!("BUG: structured chunk of {} bytes", header.length));
        bytes[16..20].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

/// The header after the magic of a structured chunk.
pub(crate) fn decode_structured_reply(bytes: &[u8; 16]) -> ChunkHeader {
    let mut cursor = Cursor::new(bytes);
    let mut next = || {
        Some(ChunkHeader {
            flags: cursor.u16()?,
            kind: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: 0,
            length: u64::from(cursor.u32()?),
        })
    };
    next().expect("BUG: 16 bytes hold a structured header")
}

/// The header after the magic of an extended chunk.
pub(crate) fn decode_extended_reply(bytes: &[u8; 28]) -> ChunkHeader {
    let mut cursor = Cursor::new(bytes);
    let mut next = || {
        Some(ChunkHeader {
            flags: cursor.u16()?,
            kind: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            length: cursor.u64()?,
        })
    };
    next().expect("BUG: 28 bytes hold an extended header")
}

pub(crate) fn encode_error_chunk(errno: Errno, message: &str) -> Vec<u8> {
    let mut end = message.len().min(MAX_STRING);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let message = &message.as_bytes()[..end];
    let length = u16::try_from(end).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(6 + end);
    bytes.extend_from_slice(&errno.to_wire().to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    bytes
}

impl ErrorChunk {
    /// What the payload of an error chunk of type `kind` says; nothing if it is malformed.
    pub(crate) fn decode(kind: u16, payload: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(payload);
        let number = cursor.u32().filter(|number| *number != 0)?;
        let length = usize::from(cursor.u16()?);
        if length > MAX_STRING {
            return None;
        }
        let message: String = String::from_utf8_lossy(cursor.bytes(length)?)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let offset = if kind == CHUNK_ERROR_OFFSET {
            Some(cursor.u64()?)
        } else {
            None
        };
        Some(Self {
            errno: Errno::from_wire(number),
            message,
            offset,
        })
    }
}

/// The payload of a status chunk.
pub(crate) fn encode_extents(framing: Framing, context: u32, extents: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + extents.len() * framing.extent_size());
    bytes.extend_from_slice(&context.to_be_bytes());
    if framing == Framing::Extended {
        let count = u32::try_from(extents.len()).expect("BUG: more extents than a chunk may have");
        bytes.extend_from_slice(&count.to_be_bytes());
    }
    for extent in extents {
        if framing == Framing::Extended {
            bytes.extend_from_slice(&extent.length.to_be_bytes());
            bytes.extend_from_slice(&extent.flags.to_be_bytes());
        } else {
            let compact = |number: u64| {
                u32::try_from(number)
                    .expect("BUG: an extent too large for its chunk")
                    .to_be_bytes()
            };
            bytes.extend_from_slice(&compact(extent.length));
            bytes.extend_from_slice(&compact(extent.flags));
        }
    }
    bytes
}

/// Length and flags of the extents in `payload`, a whole number of them.
pub(crate) fn decode_extents(
    framing: Framing,
    payload: &[u8],
) -> impl Iterator<Item = (u64, u64)> + '_ {
    payload
        .chunks_exact(framing.extent_size())
        .filter_map(move |bytes| {
            let mut cursor = Cursor::new(bytes);
            Some(if framing == Framing::Extended {
                (cursor.u64()?, cursor.u64()?)
            } else {
                (u64::from(cursor.u32()?), u64::from(cursor.u32()?))
            })
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::CHUNK_ERROR;

    proptest! {
        #[test]
        fn a_chunk_header_survives_the_wire(
            flags: u16, kind: u16, cookie: u64, offset: u64, length: u64,
        ) {
            let extended = ChunkHeader { flags, kind, cookie, offset, length };
            let bytes = encode_reply_header(Framing::Extended, &extended);
            prop_assert_eq!(&bytes[..4], &[0x6e, 0x8a, 0x27, 0x8c]);
            prop_assert_eq!(decode_extended_reply(bytes[4..].try_into().unwrap()), extended);

            let structured = ChunkHeader { offset: 0, length: length >> 32, ..extended };
            let bytes = encode_reply_header(Framing::Structured, &structured);
            prop_assert_eq!(&bytes[..4], &[0x66, 0x8e, 0x33, 0xef]);
            prop_assert_eq!(decode_structured_reply(bytes[4..20].try_into().unwrap()), structured);
        }

        #[test]
        fn extents_survive_the_wire(pairs: Vec<(u32, u32)>, context: u32) {
            let extents: Vec<_> = pairs
                .iter()
                .map(|&(length, flags)| Extent {
                    offset: 0,
                    length: u64::from(length),
                    flags: u64::from(flags),
                })
                .collect();
            for framing in [Framing::Structured, Framing::Extended] {
                let payload = encode_extents(framing, context, &extents);
                prop_assert_eq!(&payload[..4], &context.to_be_bytes());
                let back: Vec<_> =
                    decode_extents(framing, &payload[framing.status_head()..]).collect();
                let there: Vec<_> = extents.iter().map(|e| (e.length, e.flags)).collect();
                prop_assert_eq!(back, there);
            }
        }

        #[test]
        fn an_error_survives_the_wire(message in "[^\\p{Cc}]{0,300}") {
            let payload = encode_error_chunk(Errno::NoSpace, &message);
            prop_assert_eq!(
                ErrorChunk::decode(CHUNK_ERROR, &payload),
                Some(ErrorChunk { errno: Errno::NoSpace, message, offset: None })
            );
        }

        #[test]
        fn no_error_payload_makes_the_decoder_panic(kind: u16, payload: Vec<u8>) {
            if let Some(chunk) = ErrorChunk::decode(kind, &payload) {
                prop_assert!(chunk.message.len() <= 3 * payload.len());
            }
        }
    }

    #[test]
    fn an_error_text_is_cut_at_a_character() {
        let payload = encode_error_chunk(Errno::Io, &"ü".repeat(4000).replacen('ü', "x", 1));
        assert_eq!(payload.len(), 6 + MAX_STRING - 1);
        assert!(ErrorChunk::decode(CHUNK_ERROR, &payload).is_some());
    }

    #[test]
    fn a_malformed_error_is_refused() {
        let no_error = [0, 0, 0, 0, 0, 0];
        let text_missing = [0, 0, 0, 5, 0, 1];
        let offset_missing = [0, 0, 0, 5, 0, 0, 1, 2, 3];
        assert_eq!(ErrorChunk::decode(CHUNK_ERROR, &no_error), None);
        assert_eq!(ErrorChunk::decode(CHUNK_ERROR, &text_missing), None);
        assert_eq!(
            ErrorChunk::decode(CHUNK_ERROR_OFFSET, &offset_missing),
            None
        );
        assert!(ErrorChunk::decode(CHUNK_ERROR, &offset_missing).is_some());
    }
}
