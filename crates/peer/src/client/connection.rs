//! One connection to a peer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
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
    task: JoinHandle<hyper::Result<()>>,
    /// Which configuration of TLS it was made with.
    pub(super) number: u64,
    /// It has answered before.
    pub(super) used: bool,
    /// Since when nobody uses it.
    pub(super) since: Instant,
}

/// How long a connection that is closed may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Connection {
    /// What is behind a failure: of a request that came too late for the connection, why the
    /// connection has ended.
    pub(super) async fn explain(&mut self, failure: Failure) -> Failure {
        match failure {
            Failure::Exchange(error) if error.is_canceled() || error.is_closed() => {
                match timeout(LAST_WORDS, &mut self.task).await {
                    Ok(Ok(Err(cause))) => Failure::Exchange(cause),
                    Ok(Ok(Ok(())) | Err(_)) | Err(_) => Failure::Exchange(error),
                }
            }
            other => other,
        }
    }
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
    Ok(Connection {
        sender,
        task: tokio::spawn(connection),
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
