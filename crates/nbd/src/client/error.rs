//! What can go wrong between us and a server.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::context::ContextName;
use crate::errno::Errno;
use crate::protocol::{
    MAX_PAYLOAD, REP_ERR_BLOCK_SIZE_REQD, REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID,
    REP_ERR_PLATFORM, REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN, REP_ERR_UNSUP,
};
use crate::uri::NbdUri;

/// What was asked of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    Read,
    Write,
    WriteZeroes,
    Trim,
    Flush,
    BlockStatus,
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write zeroes",
            Self::Trim => "trim",
            Self::Flush => "flush",
            Self::BlockStatus => "block status",
        })
    }
}

/// A server's "no" to an option, and its words if it had any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionRefusal {
    pub(crate) code: u32,
    pub(crate) message: String,
}

impl fmt::Display for OptionRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            REP_ERR_UNSUP => f.write_str("unknown to the server")?,
            REP_ERR_POLICY => f.write_str("forbidden by the server's policy")?,
            REP_ERR_INVALID => f.write_str("invalid for the server")?,
            REP_ERR_PLATFORM => f.write_str("not supported where the server runs")?,
            REP_ERR_TLS_REQD => f.write_str("TLS is required first")?,
            REP_ERR_UNKNOWN => f.write_str("no such export")?,
            REP_ERR_SHUTDOWN => f.write_str("the server is shutting down")?,
            REP_ERR_BLOCK_SIZE_REQD => f.write_str("block sizes must be asked first")?,
            REP_ERR_TOO_BIG => f.write_str("too big for the server")?,
            REP_ERR_EXT_HEADER_REQD => f.write_str("extended headers are required")?,
            code => write!(f, "error {code:#010x}")?,
        }
        if self.message.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.message)
        }
    }
}

/// No connection to an export came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("look up the address of host {host}")]
    Resolve { host: String, source: io::Error },
    #[error("connect to {uri}")]
    Connect { uri: NbdUri, source: io::Error },
    #[error("{uri} demands TLS: give a TLS configuration with certificates")]
    TlsMissing { uri: NbdUri },
    #[error("{name:?} is no name a TLS certificate can prove: use a DNS name or an IP address")]
    TlsName { name: String },
    #[error("start TLS, refused: {refusal}; the connection is not continued in plain text")]
    TlsRefused { refusal: OptionRefusal },
    #[error("set up TLS with the server")]
    Tls { source: io::Error },
    #[error("the server demands TLS ({refusal}): use nbds:// and give a TLS configuration")]
    TlsRequired { refusal: OptionRefusal },
    #[error("open export {export:?}, refused: {refusal}")]
    Export {
        export: String,
        refusal: OptionRefusal,
    },
    #[error("list the exports, refused: {refusal}")]
    List { refusal: OptionRefusal },
    #[error("select metadata contexts of export {export:?}, refused: {refusal}")]
    Contexts {
        export: String,
        refusal: OptionRefusal,
    },
    #[error(
        "ask for metadata contexts: the server has only simple replies, which cannot carry them"
    )]
    SimpleRepliesOnly,
    #[error("negotiate with the server")]
    Negotiate { source: io::Error },
    #[error("negotiate with the server, which broke the protocol")]
    Illegal { source: ProtocolError },
    #[error("start the thread that receives replies")]
    Thread { source: io::Error },
}

/// One request was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// The server said no. The connection goes on.
    #[error("{request} at {offset}, refused by the server: {errno}{}", in_brackets(.message))]
    Refused {
        request: RequestKind,
        offset: u64,
        errno: Errno,
        message: String,
    },
    /// The connection is gone, and every later request fails the same way.
    #[error("{request} at {offset}: the connection is lost")]
    Lost {
        request: RequestKind,
        offset: u64,
        source: Arc<ConnectionLost>,
    },
    #[error("{request} of {length} bytes at {offset}: the export ends at {size}")]
    OutOfRange {
        request: RequestKind,
        offset: u64,
        length: u64,
        size: u64,
    },
    #[error(
        "{request} of {length} bytes at {offset}: the server takes multiples of {minimum} only"
    )]
    Misaligned {
        request: RequestKind,
        offset: u64,
        length: u64,
        minimum: u32,
    },
    #[error("{request}: the export is read-only")]
    ReadOnly { request: RequestKind },
    #[error("{request}: the server does not offer it for this export")]
    Unsupported { request: RequestKind },
    #[error("ask for {context}: the server did not grant this context")]
    ContextNotGranted { context: ContextName },
}

impl RequestError {
    /// What the server answered, if it answered.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Lost { .. }
            | Self::OutOfRange { .. }
            | Self::Misaligned { .. }
            | Self::ReadOnly { .. }
            | Self::Unsupported { .. }
            | Self::ContextNotGranted { .. } => None,
        }
    }
}

fn in_brackets(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionLost {
    #[error("the server closed the connection")]
    ClosedByServer,
    #[error("the client was closed")]
    ClosedByUs,
    #[error("no answer to {request} at {offset} before the deadline")]
    Deadline { request: RequestKind, offset: u64 },
    #[error("receive a reply")]
    Receive { source: io::Error },
    #[error("send a request")]
    Send { source: io::Error },
    #[error("the server broke the protocol")]
    Protocol { source: ProtocolError },
}

/// How a server broke the protocol. Nothing after such a message can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the peer is no NBD server: it did not begin with NBDMAGIC and IHAVEOPT")]
    NoGreeting,
    #[error("the server knows only the oldstyle negotiation")]
    Oldstyle,
    #[error("the server does not know the fixed newstyle negotiation")]
    NotFixedNewstyle,
    #[error("an answer in the negotiation does not begin with its magic")]
    OptionReplyMagic,
    #[error("option {asked} was asked, option {answered} was answered")]
    WrongOption { asked: u32, answered: u32 },
    #[error("an answer to option {option} of {length} bytes is over the limit")]
    OversizeOptionReply { option: u32, length: u32 },
    #[error("more answers to option {option} than any server needs")]
    TooManyOptionReplies { option: u32 },
    #[error("answer of type {kind:#x} to option {option} has no meaning there")]
    UnexpectedOptionReply { option: u32, kind: u32 },
    #[error("malformed answer of type {kind:#x} to option {option}")]
    MalformedOptionReply { option: u32, kind: u32 },
    #[error("unencrypted bytes follow the agreement to encrypt")]
    PlaintextAfterStartTls,
    #[error("context {name:?} was granted but not asked, or granted twice")]
    UnaskedContext { name: String },
    #[error("two contexts have the number {id}")]
    DuplicateContextId { id: u32 },
    #[error("the export was opened without telling its size")]
    NoExportInfo,
    #[error("an export of {size} bytes is larger than any offset")]
    ImpossibleSize { size: u64 },
    #[error("impossible block sizes: minimum {minimum}, preferred {preferred}, maximum {maximum}")]
    ImpossibleBlockSizes {
        minimum: u32,
        preferred: u32,
        maximum: u32,
    },
    #[error("a reply begins with the unknown magic {magic:#010x}")]
    UnknownMagic { magic: u32 },
    #[error("a reply to cookie {cookie:#x}, which is not in flight")]
    UnknownCookie { cookie: u64 },
    #[error("a reply names offset {answered}, its request was at {asked}")]
    WrongOffset { asked: u64, answered: u64 },
    #[error("a simple reply to {request} where a structured one is due")]
    SimpleReply { request: RequestKind },
    #[error("a chunk of type {kind:#x} cannot answer {request}")]
    UnexpectedChunk { kind: u16, request: RequestKind },
    #[error("a chunk of type {kind:#x} cannot have {length} bytes")]
    ChunkLength { kind: u16, length: u64 },
    #[error("an empty chunk that is not the last of its reply")]
    EmptyChunk,
    #[error("{length} bytes at {offset} were not asked for by the request")]
    OutsideRequest { offset: u64, length: u64 },
    #[error("the bytes at {offset} were sent twice in one reply")]
    Overlap { offset: u64 },
    #[error("a reply in more pieces than one per 512 bytes")]
    TooManyPieces,
    #[error("a reply ended without the bytes at {offset}")]
    MissingData { offset: u64 },
    #[error("a malformed error chunk")]
    MalformedError,
    #[error("extents of context number {id}, which was not asked or came twice")]
    UnexpectedContext { id: u32 },
    #[error("a reply ended without the extents of context number {id}")]
    MissingContext { id: u32 },
    #[error("an extent without length")]
    EmptyExtent,
    #[error("{count} extents in one chunk, the limit is 1048576")]
    TooManyExtents { count: u64 },
    #[error("a chunk announces {announced} extents and has {present}")]
    ExtentCount { announced: u64, present: u64 },
    #[error("an extent begins at {offset}, after the end of the request")]
    ExtentBeyondRequest { offset: u64 },
}

const _: () = assert!(MAX_PAYLOAD as usize / 512 == super::assembly::MAX_PIECES);
