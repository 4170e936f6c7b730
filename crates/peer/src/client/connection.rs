//! One connection to a peer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::body::Outgoing;
use super::error::Failure;
use crate::address::{PeerAddress, PeerHost};
use crate::tls::PeerTls;

const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 32;
const BUFFER: usize = 1 << 20;
/// What TLS encrypts ahead of the socket.
const ENCRYPTED_AHEAD: usize = 512 << 10;

/// A connection that proved to lead to the right host. Dropping it closes it at once.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Outgoing>,
    task: AbortHandle,
    /// Which configuration of TLS it was made with.
    pub(super) number: u64,
    /// It has answered before.
    pub(super) used: bool,
    /// Since when nobody uses it.
    pub(super) since: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects, and returns when the peer has proved to be `name`.
pub(super) async fn open(
    address: &PeerAddress,
    name: ServerName<'static>,
    tls: &PeerTls,
    number: u64,
    longest: Duration,
) -> Result<Connection, Failure> {
    let opening = async {
        let stream = dial(address).await?;
        // Small messages go at once; that this fails costs speed only.
        let _ = stream.set_nodelay(true);
        TlsConnector::from(Arc::clone(&tls.client))
            .connect_with(name, stream, |session| {
                session.set_buffer_limit(Some(ENCRYPTED_AHEAD));
            })
            .await
    };
    let stream = timeout(longest, opening)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(Failure::Connect)?;
    let (sender, connection) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Exchange)?;
    let task = tokio::spawn(async move {
        // Whoever waits for an answer gets the error.
        let _ = connection.await;
    });
    Ok(Connection {
        sender,
        task: task.abort_handle(),
        number,
        used: false,
        since: Instant::now(),
    })
}

async fn dial(address: &PeerAddress) -> io::Result<TcpStream> {
    match address.peer_host() {
        PeerHost::Address(ip) => TcpStream::connect((*ip, address.port())).await,
        PeerHost::Name(name) => TcpStream::connect((name.as_str(), address.port())).await,
    }
}
