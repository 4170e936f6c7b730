//! NBD protocol: codec, client and server.
//!
//! A frozen disk is read through [`Client`]: data, allocation and dirty maps,
//! many requests at once over one connection. A store's points are offered to
//! stock tools through [`Server`]: anything that implements [`Export`]. The process that serves
//! an export reads it through [`LocalExport`], without a socket between.
//!
//! Both sides speak fixed newstyle negotiation over unix sockets and TCP, with or
//! without TLS, and extended headers, structured or simple replies, whichever the
//! peer knows. Whatever a peer sends is checked before it is believed or stored:
//! an illegal message ends the connection with a named reason, memory stays within
//! the limits of the options, and nothing waits beyond its deadline.
//!
//! Not here: oldstyle negotiation, `NBD_CMD_CACHE`, resizing, TLS with shared keys,
//! reconnecting (whoever drives the client knows what may be asked again).

mod client;
mod codec;
mod context;
mod deadline;
mod errno;
mod extent;
mod protocol;
mod server;
mod socket;
mod tls;
mod uri;
mod wire;

pub use client::{
    BlockSizes, Client, ClientOptions, ConnectError, ConnectionLost, ExportInfo, Extents,
    OptionRefusal, Piece, ProtocolError, RequestError, RequestKind, TlsClient, export_info,
    list_exports,
};
pub use context::{ContextName, InvalidContextName};
pub use deadline::Deadline;
pub use errno::Errno;
pub use extent::{DIRTY, Extent, HOLE, ZERO};
pub use server::{
    Access, BindError, Connection, ConnectionEnd, EndReason, Export, ExportSet, ExportSetError,
    Granularity, Holes, ListenAddress, LocalExport, Observer, Server, ServerOptions,
};
pub use uri::{Endpoint, InvalidUri, NbdUri};
pub use wire::Wire;
