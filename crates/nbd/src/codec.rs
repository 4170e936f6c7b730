//! Messages as bytes and back; nothing here reads or writes a socket.

mod option;
mod reply;
mod request;

pub(crate) use option::{
    BlockSizeInfo, Info, InfoRequest, MetaQuery, OptionHeader, OptionReplyHeader, decode_info,
    decode_meta_context, decode_server, encode_info_request, encode_meta_query, encode_option,
    encode_option_reply,
};
pub(crate) use reply::{
    ChunkHeader, ErrorChunk, REPLY_HEADER_MAX, decode_extended_reply, decode_extents,
    decode_structured_reply, encode_error_chunk, encode_extents, encode_reply_header,
    encode_simple_reply,
};
pub(crate) use request::{Request, decode_request, encode_request};

/// Takes numbers and strings off the front of a message that is completely there.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// `count` bytes, borrowed.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(head)
    }

    /// A string with a 32-bit length before it, within the protocol's limit.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.u32()?).ok()?;
        if length > crate::protocol::MAX_STRING {
            return None;
        }
        str::from_utf8(self.bytes(length)?).ok()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
