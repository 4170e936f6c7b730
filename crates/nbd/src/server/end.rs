//! How a connection to a server ended.

use std::fmt;
use std::io;

/// A connection, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Counts up from 1 for each server.
    pub id: u64,
    /// The client's address, or `unix`.
    pub peer: String,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.id, self.peer)
    }
}

/// A connection that is over.
#[derive(Debug)]
pub struct ConnectionEnd {
    pub connection: Connection,
    /// Absent when the client never opened one.
    pub export: Option<String>,
    pub reason: EndReason,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum EndReason {
    #[error("the client said good-bye")]
    Disconnected,
    #[error("the client hung up")]
    HungUp,
    #[error("the server was shut down or the export withdrawn")]
    Shutdown,
    #[error("too many connections")]
    TooManyConnections,
    #[error("start a thread for the connection")]
    Thread { source: io::Error },
    #[error("the negotiation took longer than allowed")]
    HandshakeDeadline,
    #[error("the client was idle for longer than allowed")]
    Idle,
    #[error("a request or reply took longer than allowed to transfer")]
    TransferDeadline,
    #[error("receive from the client")]
    Receive { source: io::Error },
    #[error("send to the client")]
    Send { source: io::Error },
    #[error("set up TLS with the client")]
    Tls { source: io::Error },
    #[error("unencrypted bytes follow the agreement to encrypt")]
    PlaintextAfterStartTls,
    #[error("the client set unknown flags {flags:#x} or does not know the fixed newstyle")]
    ClientFlags { flags: u32 },
    #[error("an option does not begin with its magic")]
    OptionMagic,
    #[error("option {option} with {length} bytes is over the limit")]
    OversizeOption { option: u32, length: u32 },
    #[error("the client opened an export by a way that cannot refuse: {why}")]
    ExportName { why: &'static str },
    #[error("a request does not begin with its magic")]
    RequestMagic,
    #[error("a request carries {length} bytes, which is over the limit")]
    OversizePayload { length: u64 },
    #[error("serving a request panicked")]
    Panicked,
}
