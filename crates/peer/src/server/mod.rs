//! The server: answers peers with what a [`Host`] says.
//!
//! HTTP/1.1 over mutual TLS 1.3. The caller is who its certificate says; it is verified when
//! it connects and again for each request. Methods of the host block, so they run on the
//! runtime's blocking threads, as many at once as the limits say; more callers are told to
//! come again, none is queued. A panic in the host ends that request only.
//!
//! Nothing that a peer sends makes the server use more memory than the limits add up to, and
//! nothing that a peer fails to send keeps a connection longer than the deadlines say.

mod answer;
mod body;
mod connection;
mod linger;
mod quota;
mod watched;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::distrust::Distrust;
use crate::port::{Host, PeerName};
use crate::tls::ReloadableTls;
use connection::Shared;
use quota::Quota;

/// What the server takes on at most, and how long it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that have not proved who they are.
    pub handshakes: usize,
    /// The same, of one IP address.
    pub handshakes_per_address: usize,
    pub connections: usize,
    pub connections_per_peer: usize,
    /// Requests that are worked on.
    pub requests: usize,
    pub requests_per_peer: usize,
    /// From the first byte to a verified peer.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its headers; for a message that is no
    /// stream, to its end.
    pub header: Duration,
    /// Between two pieces of a body; for the peer to take a piece of an answer.
    pub stall: Duration,
    /// Between two requests.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 64,
            handshakes_per_address: 16,
            connections: 512,
            connections_per_peer: 32,
            requests: 128,
            requests_per_peer: 24,
            handshake: Duration::from_secs(10),
            header: Duration::from_secs(20),
            stall: Duration::from_secs(30),
            // A little over the longest replication interval, so that a connection stays
            // warm from one cycle to the next.
            idle: Duration::from_secs(16 * 60),
        }
    }
}

/// Something that an operator may want to know of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent {
    /// Somebody was not let in.
    Distrusted { address: SocketAddr, why: Distrust },
    /// A peer does not believe this host; the text is TLS's.
    DistrustsUs { address: SocketAddr, alert: String },
    /// What came was no TLS, or not in time.
    NoHandshake { address: SocketAddr, why: String },
    /// Somebody has too many connections.
    TurnedAway {
        address: SocketAddr,
        /// Absent before it has proved who it is.
        peer: Option<PeerName>,
    },
    /// A peer that was let in is believed no longer, and was cut off.
    CutOff { peer: PeerName, why: Distrust },
    /// The host panicked while it answered.
    Panicked { peer: PeerName, call: &'static str },
}

/// Is told of events as they happen. Must not block.
pub type Observer = Arc<dyn Fn(&ServerEvent) + Send + Sync>;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("listen on {address}; choose an address of this host and a port that is free")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// A running server. Dropping it cuts all connections; [`stop`](Self::stop) lets requests
/// end first.
#[derive(Debug)]
pub struct PeerServer {
    address: SocketAddr,
    stop: watch::Sender<Stop>,
    accepting: JoinHandle<()>,
    runtime: Handle,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    /// Requests end, no new ones begin.
    Soon,
}

impl PeerServer {
    /// Listens and answers, on the threads of `runtime`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(
        runtime: &Handle,
        address: SocketAddr,
        host: Arc<dyn Host>,
        tls: ReloadableTls,
        limits: Limits,
        observer: Observer,
    ) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { address, source };
        let socket = std::net::TcpListener::bind(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(socket).map_err(failed)?
        };
        let (stop, stopping) = watch::channel(Stop::No);
        let shared = Arc::new(Shared::new(host, tls, limits, observer));
        let accepting = runtime.spawn(accept(listener, shared, stopping));
        Ok(Self {
            address,
            stop,
            accepting,
            runtime: runtime.clone(),
        })
    }

    /// Where it listens, with the port that was chosen if none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new requests, and returns when those that run have ended or `patience` is
    /// over. Blocks; not for the runtime's own threads.
    pub fn stop(mut self, patience: Duration) {
        self.stop.send_replace(Stop::Soon);
        let accepting = &mut self.accepting;
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(patience, accepting).await });
        if ended.is_err() {
            tracing::warn!("requests of peers did not end in time and are cut off");
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until it is stopped, then waits for the connections. They end with this future.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopping: watch::Receiver<Stop>) {
    let handshakes = Quota::new(
        shared.limits.handshakes,
        shared.limits.handshakes_per_address,
    );
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = stopping.wait_for(|stop| *stop == Stop::Soon) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly a lack of file descriptors, which passes when connections end.
                tracing::warn!(%error, "accept a peer's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match handshakes.take(&address.ip()) {
            Some(ticket) => {
                let (shared, stopping) = (Arc::clone(&shared), stopping.clone());
                connections.spawn(connection::serve(shared, stream, address, ticket, stopping));
            }
            None => shared.observe(&ServerEvent::TurnedAway {
                address,
                peer: None,
            }),
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
