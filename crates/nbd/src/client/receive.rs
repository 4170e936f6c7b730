//! The receiving thread: sorts what the server sends into the requests' assemblies.
//!
//! It reads payloads straight into the buffers of the requests, holds no lock while
//! it waits, and ends with the connection.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::assembly::{Assembly, Body, Content};
use super::error::{ConnectionLost, ProtocolError};
use super::shared::Shared;
use crate::codec::{
    ChunkHeader, ErrorChunk, decode_extended_reply, decode_extents, decode_structured_reply,
};
use crate::deadline::Deadline;
use crate::errno::Errno;
use crate::extent::Extent;
use crate::protocol::{
    CHUNK_DONE, CHUNK_ERROR_BIT, CHUNK_NONE, CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE,
    EXTENDED_REPLY_MAGIC, Framing, MAX_EXTENTS, MAX_STRING, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
};
use crate::wire::Input;

/// How much of a list of extents is decoded at once: a whole number of either size.
const EXTENT_STEP: usize = 64 << 10;

/// The longest error chunk: the text, and room for fields yet to be invented.
const MAX_ERROR_CHUNK: u64 = MAX_STRING as u64 + 1024;

/// Callers enforce the deadlines by closing the wire, so this side just waits.
const PATIENCE: Deadline = Deadline::NEVER;

pub(super) struct Receiver {
    shared: Arc<Shared>,
    input: Input,
    /// Replies of which some chunk has come.
    begun: HashMap<u64, Assembly>,
}

/// Why receiving ended.
enum Stop {
    Io(io::Error),
    Illegal(ProtocolError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtocolError> for Stop {
    fn from(error: ProtocolError) -> Self {
        Self::Illegal(error)
    }
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, input: Input) -> Self {
        Self {
            shared,
            input,
            begun: HashMap::new(),
        }
    }

    /// Receives until the connection ends, then tells everybody why.
    pub(super) fn run(mut self) {
        let reason = loop {
            match self.input.wait(PATIENCE) {
                Ok(true) => {}
                Ok(false) => break ConnectionLost::ClosedByServer,
                Err(source) => break ConnectionLost::Receive { source },
            }
            match self.reply() {
                Ok(()) => {}
                Err(Stop::Io(source)) if source.kind() == io::ErrorKind::UnexpectedEof => {
                    break ConnectionLost::ClosedByServer;
                }
                Err(Stop::Io(source)) => break ConnectionLost::Receive { source },
                Err(Stop::Illegal(source)) => break ConnectionLost::Protocol { source },
            }
        };
        self.shared.lose(reason);
    }

    fn reply(&mut self) -> Result<(), Stop> {
        let magic = u32::from_be_bytes(self.input.array(PATIENCE)?);
        match (self.shared.agreement.framing, magic) {
            (Framing::Simple | Framing::Structured, SIMPLE_REPLY_MAGIC) => self.simple_reply(),
            (Framing::Structured, STRUCTURED_REPLY_MAGIC) => {
                let header = decode_structured_reply(&self.input.array(PATIENCE)?);
                self.chunk(header)
            }
            (Framing::Extended, EXTENDED_REPLY_MAGIC) => {
                let header = decode_extended_reply(&self.input.array(PATIENCE)?);
                self.chunk(header)
            }
            _ => Err(ProtocolError::UnknownMagic { magic }.into()),
        }
    }

    fn assembly(&mut self, cookie: u64) -> Result<Assembly, ProtocolError> {
        self.begun
            .remove(&cookie)
            .or_else(|| self.shared.take_assembly(cookie))
            .ok_or(ProtocolError::UnknownCookie { cookie })
    }

    fn simple_reply(&mut self) -> Result<(), Stop> {
        let number = u32::from_be_bytes(self.input.array(PATIENCE)?);
        let cookie = u64::from_be_bytes(self.input.array(PATIENCE)?);
        let framing = self.shared.agreement.framing;
        if self.begun.contains_key(&cookie) {
            // A reply that began with chunks ends with one.
            return Err(ProtocolError::UnknownCookie { cookie }.into());
        }
        let mut assembly = self.assembly(cookie)?;
        if number != 0 {
            assembly.fail(ErrorChunk {
                errno: Errno::from_wire(number),
                message: String::new(),
                offset: None,
            })?;
        }
        match &mut assembly.body {
            Body::Nothing => {}
            Body::Read(_) | Body::Status(_) if framing != Framing::Simple && number == 0 => {
                let request = assembly.kind;
                return Err(ProtocolError::SimpleReply { request }.into());
            }
            Body::Read(_) if framing != Framing::Simple => {
                let request = assembly.kind;
                return Err(ProtocolError::SimpleReply { request }.into());
            }
            Body::Read(_) if number != 0 => {}
            Body::Read(read) => {
                let (offset, length) = (read.offset, read.length);
                read.claim(offset, length, Content::Data)?;
                self.input.fill(read.place(offset, length), PATIENCE)?;
            }
            Body::Status(_) => {}
        }
        self.shared.deliver(cookie, assembly.complete()?);
        Ok(())
    }

    fn chunk(&mut self, header: ChunkHeader) -> Result<(), Stop> {
        let mut assembly = self.assembly(header.cookie)?;
        if self.shared.agreement.framing == Framing::Extended && header.offset != assembly.offset {
            return Err(ProtocolError::WrongOffset {
                asked: assembly.offset,
                answered: header.offset,
            }
            .into());
        }
        let last = header.flags & CHUNK_DONE != 0;
        self.payload(&header, &mut assembly)?;
        if last {
            let outcome = assembly.complete()?;
            self.shared.deliver(header.cookie, outcome);
        } else if header.kind == CHUNK_NONE {
            return Err(ProtocolError::EmptyChunk.into());
        } else {
            self.begun.insert(header.cookie, assembly);
        }
        Ok(())
    }

    fn payload(&mut self, header: &ChunkHeader, assembly: &mut Assembly) -> Result<(), Stop> {
        let &ChunkHeader { kind, length, .. } = header;
        let wrong_length = ProtocolError::ChunkLength { kind, length };
        let framing = self.shared.agreement.framing;
        if kind == CHUNK_NONE {
            return if length == 0 {
                Ok(())
            } else {
                Err(wrong_length.into())
            };
        }
        if kind & CHUNK_ERROR_BIT != 0 {
            if length > MAX_ERROR_CHUNK {
                return Err(wrong_length.into());
            }
            let mut payload = vec![0; usize::try_from(length).unwrap_or_default()];
            self.input.fill(&mut payload, PATIENCE)?;
            let chunk = ErrorChunk::decode(kind, &payload).ok_or(ProtocolError::MalformedError)?;
            return Ok(assembly.fail(chunk)?);
        }
        match &mut assembly.body {
            Body::Read(read) if kind == CHUNK_OFFSET_DATA => {
                let count = length
                    .checked_sub(8)
                    .filter(|count| *count > 0)
                    .ok_or(wrong_length)?;
                let offset = u64::from_be_bytes(self.input.array(PATIENCE)?);
                read.claim(offset, count, Content::Data)?;
                self.input.fill(read.place(offset, count), PATIENCE)?;
                Ok(())
            }
            Body::Read(read) if kind == CHUNK_OFFSET_HOLE => {
                if length != 12 {
                    return Err(wrong_length.into());
                }
                let offset = u64::from_be_bytes(self.input.array(PATIENCE)?);
                let count = u32::from_be_bytes(self.input.array(PATIENCE)?);
                Ok(read.claim(offset, u64::from(count), Content::Hole)?)
            }
            Body::Status(_) if kind == framing.status_chunk() => self.extents(header, assembly),
            _ => Err(ProtocolError::UnexpectedChunk {
                kind,
                request: assembly.kind,
            }
            .into()),
        }
    }

    fn extents(&mut self, header: &ChunkHeader, assembly: &mut Assembly) -> Result<(), Stop> {
        let framing = self.shared.agreement.framing;
        let size = framing.extent_size() as u64;
        let wrong_length = ProtocolError::ChunkLength {
            kind: header.kind,
            length: header.length,
        };
        let list = header
            .length
            .checked_sub(framing.status_head() as u64)
            .filter(|list| *list > 0 && list.is_multiple_of(size))
            .ok_or(wrong_length)?;
        let count = list / size;
        if count > MAX_EXTENTS as u64 {
            return Err(ProtocolError::TooManyExtents { count }.into());
        }
        let id = u32::from_be_bytes(self.input.array(PATIENCE)?);
        if framing == Framing::Extended {
            let announced = u64::from(u32::from_be_bytes(self.input.array(PATIENCE)?));
            if announced != count {
                let present = count;
                return Err(ProtocolError::ExtentCount { announced, present }.into());
            }
        }
        let (mut next, end) = (assembly.offset, assembly.offset + assembly.length);
        let Body::Status(status) = &mut assembly.body else {
            unreachable!("BUG: the caller has looked at the body");
        };
        status.claim(id)?;
        let mut extents = Vec::new();
        let mut step = vec![0; EXTENT_STEP.min(usize::try_from(list).unwrap_or(EXTENT_STEP))];
        let mut left = list;
        while left > 0 {
            let here = step.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.fill(&mut step[..here], PATIENCE)?;
            left -= here as u64;
            for (length, flags) in decode_extents(framing, &step[..here]) {
                if length == 0 {
                    return Err(ProtocolError::EmptyExtent.into());
                }
                if next >= end {
                    return Err(ProtocolError::ExtentBeyondRequest { offset: next }.into());
                }
                // Only the last one may go on beyond the request.
                let length = length.min(end - next);
                extents.push(Extent {
                    offset: next,
                    length,
                    flags,
                });
                next += length;
            }
        }
        status.found.push((id, extents));
        Ok(())
    }
}
