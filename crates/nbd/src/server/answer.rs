//! One request: checked, done by the export, and its reply.

use std::io::IoSlice;

use super::export::{Access, Entry, Holes};
use crate::codec::{
    ChunkHeader, Cursor, REPLY_HEADER_MAX, Request, encode_error_chunk, encode_extents,
    encode_reply_header, encode_simple_reply,
};
use crate::context::ContextName;
use crate::errno::Errno;
use crate::extent::{Extent, ZERO};
use crate::protocol::{
    CHUNK_DONE, CHUNK_ERROR, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, CMD_BLOCK_STATUS,
    CMD_FLAG_DF, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_PAYLOAD_LEN, CMD_FLAG_REQ_ONE, CMD_FLUSH,
    CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Framing, MAX_PAYLOAD,
};

/// The most extents of one context in one reply.
const MAX_STATUS_EXTENTS: usize = 32_768;

/// The most pieces that one read is split into for the sake of its holes.
const MAX_READ_PIECES: usize = 64;

/// Below this, asking for holes costs more than reading them.
const MIN_SPARSE_READ: u64 = 16 << 10;

/// A context and the number that stands for it on this connection.
pub(super) type NumberedContext = (u32, ContextName);

/// What the requests of one connection have in common.
#[derive(Debug)]
pub(super) struct Terms<'a> {
    pub(super) entry: &'a Entry,
    pub(super) framing: Framing,
    pub(super) contexts: &'a [NumberedContext],
}

/// What a request came to. The bytes of a read are in the buffer of the caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Failed {
        errno: Errno,
        why: String,
    },
    /// Offset, length and whether it is a hole; without gaps.
    Read(Vec<(u64, u64, Sort)>),
    Status(Vec<(u32, Vec<Extent>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Data,
    Zeroes,
}

fn failed(errno: Errno, why: &str) -> Reply {
    Reply::Failed {
        errno,
        why: why.to_owned(),
    }
}

fn of_io(error: &std::io::Error) -> Reply {
    Reply::Failed {
        errno: Errno::of_io(error),
        why: error.to_string(),
    }
}

impl Terms<'_> {
    /// Does what `request` says. `data` is its payload, or for a read the buffer of at
    /// least its length.
    pub(super) fn perform(&self, request: &Request, data: &mut [u8]) -> Reply {
        if let Err(refused) = self.check(request) {
            return refused;
        }
        let (offset, length) = (request.offset, request.length);
        let export = &self.entry.export;
        let done = match request.command {
            CMD_READ => return self.read(request, data),
            CMD_BLOCK_STATUS => return self.block_status(request, data),
            CMD_FLUSH => export.flush(),
            CMD_WRITE => export.write(offset, data),
            CMD_TRIM => export.trim(offset, length),
            _ => {
                let holes = if request.flags & CMD_FLAG_NO_HOLE != 0 {
                    Holes::Forbidden
                } else {
                    Holes::Allowed
                };
                export.write_zeroes(offset, length, holes)
            }
        };
        let changed = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        let durable = match done {
            Ok(()) if changed && request.flags & CMD_FLAG_FUA != 0 => export.flush(),
            other => other,
        };
        match durable {
            Ok(()) => Reply::Done,
            Err(error) => of_io(&error),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Reply> {
        let extended = self.framing == Framing::Extended;
        let carries = request.flags & CMD_FLAG_PAYLOAD_LEN != 0;
        let allowed = CMD_FLAG_FUA
            | match request.command {
                CMD_READ if self.framing != Framing::Simple => CMD_FLAG_DF,
                CMD_READ | CMD_FLUSH | CMD_TRIM => 0,
                CMD_WRITE if extended => CMD_FLAG_PAYLOAD_LEN,
                CMD_WRITE => 0,
                CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE,
                CMD_BLOCK_STATUS if extended => CMD_FLAG_REQ_ONE | CMD_FLAG_PAYLOAD_LEN,
                CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE,
                _ => return Err(failed(Errno::Invalid, "unknown command")),
            };
        if request.flags & !allowed != 0 {
            return Err(failed(
                Errno::Invalid,
                "the command does not know this flag",
            ));
        }
        let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if writes && self.entry.access == Access::ReadOnly {
            return Err(failed(Errno::Permission, "the export is read-only"));
        }
        if request.command == CMD_FLUSH || (request.command == CMD_BLOCK_STATUS && carries) {
            return Ok(());
        }
        let errno = if matches!(request.command, CMD_WRITE | CMD_WRITE_ZEROES) {
            Errno::NoSpace
        } else {
            Errno::Invalid
        };
        self.check_range(request.offset, request.length, errno)?;
        if request.command == CMD_READ && request.length > u64::from(MAX_PAYLOAD) {
            return Err(failed(Errno::Invalid, "a read of more than 32 MiB"));
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, length: u64, beyond: Errno) -> Result<(), Reply> {
        let size = self.entry.size;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(failed(beyond, "beyond the end of the export"));
        }
        let minimum = u64::from(self.entry.granularity.minimum);
        if !(offset | length).is_multiple_of(minimum) {
            return Err(failed(Errno::Invalid, "not a multiple of the block size"));
        }
        Ok(())
    }

    fn read(&self, request: &Request, buffer: &mut [u8]) -> Reply {
        if request.length == 0 {
            return Reply::Read(Vec::new());
        }
        let pieces = self.sort(request);
        for &(offset, length, sort) in &pieces {
            if sort == Sort::Zeroes {
                continue;
            }
            let index = |number: u64| usize::try_from(number).expect("BUG: an unchecked length");
            let start = index(offset - request.offset);
            let part = &mut buffer[start..start + index(length)];
            if let Err(error) = self.entry.export.read(offset, part) {
                return of_io(&error);
            }
        }
        Reply::Read(pieces)
    }

    /// Which parts of a read are known to be zero.
    fn sort(&self, request: &Request) -> Vec<(u64, u64, Sort)> {
        let (offset, length) = (request.offset, request.length);
        let whole = vec![(offset, length, Sort::Data)];
        let allocation = self
            .entry
            .contexts
            .iter()
            .find(|context| context.as_str() == "base:allocation");
        let may_split = self.framing != Framing::Simple
            && request.flags & CMD_FLAG_DF == 0
            && length >= MIN_SPARSE_READ;
        let Some(context) = allocation.filter(|_| may_split) else {
            return whole;
        };
        // An export that cannot tell is read; if that fails too, the client hears of it.
        let Ok(extents) = self.extents(context, offset, length, MAX_READ_PIECES - 1) else {
            return whole;
        };
        let mut pieces: Vec<(u64, u64, Sort)> = Vec::new();
        let end = offset + length;
        let mut next = offset;
        for extent in extents {
            let sort = if extent.flags & ZERO != 0 {
                Sort::Zeroes
            } else {
                Sort::Data
            };
            let here = extent.length.min(end - next);
            match pieces.last_mut() {
                Some(last) if last.2 == sort => last.1 += here,
                _ => pieces.push((next, here, sort)),
            }
            next += here;
        }
        match pieces.last_mut() {
            Some(last) if next < end && last.2 == Sort::Data => last.1 += end - next,
            _ if next < end => pieces.push((next, end - next, Sort::Data)),
            _ => {}
        }
        pieces
    }

    fn block_status(&self, request: &Request, payload: &[u8]) -> Reply {
        let wanted: Vec<&NumberedContext>;
        let length;
        if request.flags & CMD_FLAG_PAYLOAD_LEN != 0 {
            match self.choice(request.offset, payload) {
                Ok(choice) => (length, wanted) = choice,
                Err(refused) => return refused,
            }
        } else {
            length = request.length;
            wanted = self.contexts.iter().collect();
        }
        if wanted.is_empty() {
            return failed(Errno::Invalid, "no context was selected");
        }
        if length == 0 {
            return failed(Errno::Invalid, "block status of nothing");
        }
        let one = request.flags & CMD_FLAG_REQ_ONE != 0;
        let limit = if one { 1 } else { MAX_STATUS_EXTENTS };
        let mut status = Vec::with_capacity(wanted.len());
        for (id, context) in wanted {
            let extents = match self.extents(context, request.offset, length, limit) {
                Ok(extents) => extents,
                Err(error) => return of_io(&error),
            };
            let longest = if one { length } else { u64::MAX };
            status.push((*id, self.fit(extents, longest)));
        }
        Reply::Status(status)
    }

    /// The contexts that the payload of a block status names, and its real length.
    fn choice(&self, offset: u64, payload: &[u8]) -> Result<(u64, Vec<&NumberedContext>), Reply> {
        let malformed = || failed(Errno::Invalid, "malformed choice of contexts");
        let mut cursor = Cursor::new(payload);
        let length = cursor.u64().ok_or_else(malformed)?;
        let mut wanted: Vec<&NumberedContext> = Vec::new();
        while !cursor.is_empty() {
            let id = cursor.u32().ok_or_else(malformed)?;
            let context = self.contexts.iter().find(|(own, _)| *own == id);
            match context {
                Some(context) if wanted.iter().all(|(own, _)| *own != id) => wanted.push(context),
                Some(_) | None => return Err(malformed()),
            }
        }
        self.check_range(offset, length, Errno::Invalid)?;
        Ok((length, wanted))
    }

    /// The export's extents, once it is sure that they are what they must be.
    fn extents(
        &self,
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> std::io::Result<Vec<Extent>> {
        let mut extents = self.entry.export.extents(context, offset, length, limit)?;
        let mut next = offset;
        let end = offset + length;
        for extent in &extents {
            if extent.offset != next || extent.length == 0 {
                return Err(std::io::Error::other("the export's map has gaps"));
            }
            if self.framing != Framing::Extended && u32::try_from(extent.flags).is_err() {
                return Err(std::io::Error::other("the map needs extended headers"));
            }
            next = extent.end();
        }
        if extents.is_empty() {
            return Err(std::io::Error::other("the export's map is empty"));
        }
        extents.truncate(limit);
        extents.retain(|extent| extent.offset < end);
        Ok(extents)
    }

    /// Shortens the list to what one chunk can say.
    fn fit(&self, mut extents: Vec<Extent>, longest: u64) -> Vec<Extent> {
        // A multiple of every block size.
        const COMPACT: u64 = (1 << 32) - (1 << 16);
        let longest = match self.framing {
            Framing::Simple | Framing::Structured => longest.min(COMPACT),
            Framing::Extended => longest,
        };
        if let Some(index) = extents.iter().position(|extent| extent.length > longest) {
            extents.truncate(index + 1);
            extents[index].length = longest;
        }
        let size = self.entry.size;
        for extent in &mut extents {
            extent.length = extent.length.min(size - extent.offset);
        }
        extents
    }
}

/// The parts of a reply that are not in the buffer of a read.
#[derive(Debug)]
pub(super) struct Framed {
    heads: Vec<Head>,
}

/// Bytes to send, and what part of the buffer follows them.
#[derive(Debug)]
struct Head {
    bytes: Vec<u8>,
    data: std::ops::Range<usize>,
}

impl Reply {
    /// The reply as it goes over the wire.
    pub(super) fn frame(&self, framing: Framing, request: &Request) -> Framed {
        if framing == Framing::Simple {
            return self.frame_simply(request);
        }
        let none = 0..0;
        let heads = match self {
            Self::Done => vec![chunk(framing, request, CHUNK_NONE, CHUNK_DONE, &[], none)],
            Self::Read(pieces) if pieces.is_empty() => {
                vec![chunk(framing, request, CHUNK_NONE, CHUNK_DONE, &[], none)]
            }
            Self::Failed { errno, why } => {
                let payload = encode_error_chunk(*errno, why);
                vec![chunk(
                    framing,
                    request,
                    CHUNK_ERROR,
                    CHUNK_DONE,
                    &payload,
                    none,
                )]
            }
            Self::Read(pieces) => {
                let last = pieces.len() - 1;
                let part = |(index, piece)| {
                    let flags = if index == last { CHUNK_DONE } else { 0 };
                    read_chunk(framing, request, flags, piece)
                };
                pieces.iter().enumerate().map(part).collect()
            }
            Self::Status(status) => {
                let last = status.len() - 1;
                let part = |(index, (id, extents)): (usize, &(u32, Vec<Extent>))| {
                    let flags = if index == last { CHUNK_DONE } else { 0 };
                    let payload = encode_extents(framing, *id, extents);
                    let kind = framing.status_chunk();
                    chunk(framing, request, kind, flags, &payload, 0..0)
                };
                status.iter().enumerate().map(part).collect()
            }
        };
        Framed { heads }
    }

    fn frame_simply(&self, request: &Request) -> Framed {
        let (errno, data) = match self {
            Self::Failed { errno, .. } => (Some(*errno), 0..0),
            Self::Done | Self::Status(_) => (None, 0..0),
            Self::Read(_) => {
                let length = usize::try_from(request.length).expect("BUG: an unchecked length");
                (None, 0..length)
            }
        };
        let bytes = encode_simple_reply(errno, request.cookie).to_vec();
        Framed {
            heads: vec![Head { bytes, data }],
        }
    }
}

impl Framed {
    /// Everything in order; `buffer` is what the read has filled.
    pub(super) fn parts<'a>(&'a self, buffer: &'a [u8]) -> Vec<IoSlice<'a>> {
        let mut parts = Vec::with_capacity(2 * self.heads.len());
        for head in &self.heads {
            parts.push(IoSlice::new(&head.bytes));
            if !head.data.is_empty() {
                parts.push(IoSlice::new(&buffer[head.data.clone()]));
            }
        }
        parts
    }
}

fn read_chunk(
    framing: Framing,
    request: &Request,
    flags: u16,
    &(offset, length, sort): &(u64, u64, Sort),
) -> Head {
    let mut payload = offset.to_be_bytes().to_vec();
    match sort {
        Sort::Zeroes => {
            let length = u32::try_from(length).expect("BUG: an unchecked length");
            payload.extend_from_slice(&length.to_be_bytes());
            chunk(framing, request, CHUNK_OFFSET_HOLE, flags, &payload, 0..0)
        }
        Sort::Data => {
            let index = |number: u64| usize::try_from(number).expect("BUG: an unchecked length");
            let start = index(offset - request.offset);
            let data = start..start + index(length);
            chunk(framing, request, CHUNK_OFFSET_DATA, flags, &payload, data)
        }
    }
}

fn chunk(
    framing: Framing,
    request: &Request,
    kind: u16,
    flags: u16,
    payload: &[u8],
    data: std::ops::Range<usize>,
) -> Head {
    let header = ChunkHeader {
        flags,
        kind,
        cookie: request.cookie,
        offset: request.offset,
        length: (payload.len() + data.len()) as u64,
    };
    let mut bytes = Vec::with_capacity(REPLY_HEADER_MAX + payload.len());
    bytes.extend_from_slice(&encode_reply_header(framing, &header)[..framing.chunk_header()]);
    bytes.extend_from_slice(payload);
    Head { bytes, data }
}
