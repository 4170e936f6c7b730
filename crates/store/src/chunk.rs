//! One piece of a copy of whole disks, read and verified before any of it is written.
//!
//! Its body is a delta stream of kind `resync` without a base, whose ranges lie inside the
//! piece's range of one disk. What the stream leaves out is right already where it goes.

use std::io::{BufReader, Read};
use std::ops::Range;

use lifeboat_model::{BLOCK_SIZE, DiskId, LineageId, RelationshipId, Sequence};
use lifeboat_stream::{DecodeError, Decoder, Ending, Frame, Header, Kind, Limits};

use crate::chunk_memory::{ChunkMemory, LentBytes};

/// The most that one piece covers of a disk, in bytes. All of its data is held in memory.
pub const MAX_CHUNK_BYTES: u64 = 64 << 20;

/// What the stream may hold besides data: a frame per sector at worst, and its ends.
const FRAMES_BYTES: u64 = 32 << 20;

/// What is read from the sender at a time.
const READ_BYTES: usize = 256 << 10;

/// Where a piece of a copy belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkPlace {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    /// The copy's name, which is also the stream's sequence.
    pub sequence: Sequence,
    pub disk: DiskId,
    /// In bytes; begins at a whole block and ends at one, or at the disk's end.
    pub range: Range<u64>,
}

/// A piece of a copy, intact.
#[derive(Debug)]
pub struct Chunk {
    place: ChunkPlace,
    /// Ascending; none overlaps another.
    parts: Vec<Part>,
    /// The bytes of all parts that hold data, one after the other.
    bytes: LentBytes,
}

/// A range that the piece gives new content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    range: Range<u64>,
    fill: PartFill,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PartFill {
    /// Begins at this place in the piece's bytes.
    Data {
        start: usize,
    },
    Zero,
}

/// What a part of a piece holds from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fill<'a> {
    Data(&'a [u8]),
    Zero,
}

/// Why a body is not the piece that its place says.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error("read a piece of a copy")]
    Stream { source: DecodeError },
    #[error(
        "the piece covers {} bytes at {} of {disk}; a piece covers at least one byte and at most {MAX_CHUNK_BYTES}, from a whole block of {BLOCK_SIZE} bytes on",
        range.end.saturating_sub(range.start), range.start
    )]
    Range { disk: DiskId, range: Range<u64> },
    #[error("the piece's stream speaks of another {what} than its place; send it again")]
    OtherPlace { what: &'static str },
    #[error("the piece's stream has a base; what a copy sends stands on nothing")]
    HasBase,
    #[error("the piece's stream carries a blob; only the delta that closes the copy does")]
    HasBlob,
    #[error(
        "the piece's stream has {len} bytes at {offset} of disk number {disk}, outside of the piece"
    )]
    Outside { disk: usize, offset: u64, len: u64 },
}

/// Reads one piece of a copy to its end. Every digest is verified; nothing is written.
///
/// Memory stays below the piece's range and a few MiB, whatever is sent.
///
/// # Errors
/// When the stream is not intact, or is not what `place` says.
pub fn decode_chunk(
    reader: impl Read,
    place: &ChunkPlace,
    memory: &ChunkMemory,
) -> Result<Chunk, ChunkError> {
    let range = place.range.clone();
    let len = range.end.saturating_sub(range.start);
    if len == 0 || len > MAX_CHUNK_BYTES || !range.start.is_multiple_of(BLOCK_SIZE) {
        let disk = place.disk.clone();
        return Err(ChunkError::Range { disk, range });
    }
    let limits = Limits {
        stream_bytes: 2 * len + FRAMES_BYTES,
        ending: Ending::EndOfInput,
    };
    let stream = |source| ChunkError::Stream { source };
    let reader = BufReader::with_capacity(READ_BYTES, reader);
    let mut decoder = Decoder::new(reader, &limits).map_err(stream)?;
    refuse_other_place(decoder.header(), place)?;
    let disks = decoder.manifest().disks();
    let disk = disks.iter().position(|disk| disk.id == place.disk);
    let disk = disk.ok_or(ChunkError::OtherPlace { what: "disk" })?;
    let mut chunk = Chunk {
        place: place.clone(),
        parts: Vec::new(),
        bytes: memory.lend(len as usize),
    };
    while let Some(frame) = decoder.next_frame().map_err(stream)? {
        match frame {
            Frame::Blob { .. } => return Err(ChunkError::HasBlob),
            Frame::Data {
                disk: of,
                offset,
                bytes,
            } => {
                chunk.refuse_outside((disk, of), offset, bytes.len() as u64)?;
                chunk.push_data(offset, bytes);
            }
            Frame::Zero {
                disk: of,
                offset,
                length,
            } => {
                chunk.refuse_outside((disk, of), offset, length)?;
                chunk.parts.push(Part {
                    range: offset..offset + length,
                    fill: PartFill::Zero,
                });
            }
        }
    }
    Ok(chunk)
}

fn refuse_other_place(header: &Header, place: &ChunkPlace) -> Result<(), ChunkError> {
    let other = |what| Err(ChunkError::OtherPlace { what });
    if header.relationship != place.relationship {
        return other("relationship");
    }
    if header.lineage != place.lineage {
        return other("lineage");
    }
    if header.sequence != place.sequence {
        return other("copy");
    }
    match header.kind {
        Kind::Resync => {}
        Kind::Initial | Kind::Delta => return other("kind of stream"),
    }
    match header.base {
        None => Ok(()),
        Some(_) => Err(ChunkError::HasBase),
    }
}

impl Chunk {
    /// Where the piece belongs.
    #[must_use]
    pub fn place(&self) -> &ChunkPlace {
        &self.place
    }

    /// How many bytes of the disk it gives new content.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        let parts = self.parts.iter();
        parts.map(|part| part.range.end - part.range.start).sum()
    }

    /// What it changes, ascending.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Range<u64>, Fill<'_>)> {
        self.parts.iter().map(|part| {
            let len = (part.range.end - part.range.start) as usize;
            let fill = match part.fill {
                PartFill::Data { start } => Fill::Data(self.bytes.get(start..start + len)),
                PartFill::Zero => Fill::Zero,
            };
            (part.range.clone(), fill)
        })
    }

    /// `disks` are the one that the piece is of and the one that the frame is of.
    fn refuse_outside(
        &self,
        disks: (usize, usize),
        offset: u64,
        len: u64,
    ) -> Result<(), ChunkError> {
        // The decoder has proved that the sum is inside of a disk.
        let range = &self.place.range;
        if disks.0 == disks.1 && range.start <= offset && offset + len <= range.end {
            Ok(())
        } else {
            let disk = disks.1;
            Err(ChunkError::Outside { disk, offset, len })
        }
    }

    /// Adds data; what follows the part before becomes one with it.
    fn push_data(&mut self, offset: u64, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.push(bytes);
        let end = offset + bytes.len() as u64;
        match self.parts.last_mut() {
            Some(Part {
                range,
                fill: PartFill::Data { .. },
            }) if range.end == offset => range.end = end,
            _ => self.parts.push(Part {
                range: offset..end,
                fill: PartFill::Data { start },
            }),
        }
    }
}
