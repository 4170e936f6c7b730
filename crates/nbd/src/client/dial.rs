//! Reaching a server, and asking about exports without opening one.

use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use super::error::ConnectError;
use super::negotiate::Negotiation;
use super::{BlockSizes, ClientOptions};
use crate::deadline::Deadline;
use crate::protocol::{Framing, READ_ONLY};
use crate::socket::Socket;
use crate::uri::{Endpoint, NbdUri};
use crate::wire::Wire;

/// What a server tells of an export without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// In bytes.
    pub size: u64,
    pub read_only: bool,
    pub block_sizes: BlockSizes,
    /// Every context on offer; a wildcard such as `qemu:dirty-bitmap:` is possible.
    pub contexts: Vec<String>,
}

/// The names of the exports of the server that `uri` leads to; the export it names
/// does not matter.
///
/// # Errors
/// As [`crate::Client::connect`]; also when the server does not tell.
pub fn list_exports(uri: &NbdUri, options: &ClientOptions) -> Result<Vec<String>, ConnectError> {
    let deadline = Deadline::after(options.deadline);
    let (wire, host) = dial(uri, options, deadline)?;
    let mut negotiation = Negotiation::begin(wire, &host, options, deadline)?;
    let names = negotiation.list_exports()?;
    negotiation.abort();
    Ok(names)
}

/// What the server tells of the export that `uri` names.
///
/// # Errors
/// As [`crate::Client::connect`].
pub fn export_info(uri: &NbdUri, options: &ClientOptions) -> Result<ExportInfo, ConnectError> {
    let deadline = Deadline::after(options.deadline);
    let (wire, host) = dial(uri, options, deadline)?;
    let mut negotiation = Negotiation::begin(wire, &host, options, deadline)?;
    let framing = negotiation.agree_on_framing()?;
    let contexts = if framing == Framing::Simple {
        Vec::new()
    } else {
        negotiation.list_contexts(uri.export())?
    };
    let agreement = negotiation.info(uri.export(), framing)?;
    negotiation.abort();
    Ok(ExportInfo {
        size: agreement.size,
        read_only: agreement.flags & READ_ONLY != 0,
        block_sizes: agreement.block_sizes,
        contexts,
    })
}

/// A connected socket, and whom its certificate should name.
pub(super) fn dial(
    uri: &NbdUri,
    options: &ClientOptions,
    deadline: Deadline,
) -> Result<(Arc<dyn Wire>, String), ConnectError> {
    if uri.demands_tls() && options.tls.is_none() {
        return Err(ConnectError::TlsMissing { uri: uri.clone() });
    }
    let failed = |source| ConnectError::Connect {
        uri: uri.clone(),
        source,
    };
    let (socket, host) = match uri.endpoint() {
        Endpoint::Unix(path) => {
            let socket = Socket::connect_unix(path, deadline).map_err(failed)?;
            (socket, "localhost".to_owned())
        }
        Endpoint::Tcp { host, port } => {
            let socket = dial_tcp(host, *port, deadline)
                .map_err(|source| ConnectError::Resolve {
                    host: host.clone(),
                    source,
                })?
                .map_err(failed)?;
            (socket, host.clone())
        }
    };
    Ok((Arc::new(socket), host))
}

/// Tries every address of a host until one answers.
fn dial_tcp(host: &str, port: u16, deadline: Deadline) -> io::Result<io::Result<Socket>> {
    let mut last = Err(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    for address in (host, port).to_socket_addrs()? {
        last = Socket::connect_tcp(&address, deadline);
        if last.is_ok() {
            break;
        }
    }
    Ok(last)
}
