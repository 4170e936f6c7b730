//! One connection, from the handshake to the last word.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::answer::{self, Asked};
use super::quota::{Quota, Ticket};
use super::watched::{Deadlines, Phase, PhaseCell, Watched};
use super::{Limits, Observer, ServerEvent, Stop, linger};
use crate::distrust::Distrust;
use crate::port::{Host, PeerName};
use crate::tls::ReloadableTls;

/// What all connections share.
pub(crate) struct Shared {
    pub(super) host: Arc<dyn Host>,
    pub(super) tls: ReloadableTls,
    pub(super) limits: Limits,
    observer: Observer,
    connections: Quota<PeerName>,
    pub(super) requests: Quota<PeerName>,
}

/// A request's head fits into this.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 32;
/// What a connection reads ahead, and the largest piece of a body that comes of it.
const READ_BUFFER: usize = 512 << 10;

impl Shared {
    pub(super) fn new(
        host: Arc<dyn Host>,
        tls: ReloadableTls,
        limits: Limits,
        observer: Observer,
    ) -> Self {
        Self {
            host,
            tls,
            limits,
            observer,
            connections: Quota::new(limits.connections, limits.connections_per_peer),
            requests: Quota::new(limits.requests, limits.requests_per_peer),
        }
    }

    pub(super) fn observe(&self, event: &ServerEvent) {
        tracing::debug!(?event, "peer server");
        (self.observer)(event);
    }
}

/// Serves one connection. Ends when the peer or the server wants it to, or a deadline does.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    handshake: Ticket<IpAddr>,
    stopping: watch::Receiver<Stop>,
) {
    // Small messages go at once; that this fails costs speed only.
    let _ = stream.set_nodelay(true);
    let changes = shared.tls.changes();
    let Some((stream, chain, peer)) = shake_hands(&shared, stream, address).await else {
        return;
    };
    drop(handshake);
    let connection = shared.connections.take(&peer);
    if connection.is_none() {
        shared.observe(&ServerEvent::TurnedAway {
            address,
            peer: Some(peer.clone()),
        });
    }
    let caller = Caller {
        shared: Arc::clone(&shared),
        chain: chain.into(),
        peer,
        phase: PhaseCell::new(Phase::Idle),
        turned_away: connection.is_none(),
    };
    requests(caller, stream, changes, stopping).await;
    drop(connection);
}

type Chain = Vec<CertificateDer<'static>>;

/// The stream, the certificates that proved the peer, and who it is.
async fn shake_hands(
    shared: &Shared,
    stream: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream<TcpStream>, Chain, PeerName)> {
    let tls = shared.tls.present();
    let accept = TlsAcceptor::from(Arc::clone(&tls.server))
        .accept(stream)
        .into_fallible();
    let event = match timeout(shared.limits.handshake, accept).await {
        Ok(Ok(stream)) => {
            let chain: Chain = stream
                .get_ref()
                .1
                .peer_certificates()
                .unwrap_or_default()
                .iter()
                .map(|der| der.clone().into_owned())
                .collect();
            match tls.verify(&chain) {
                Ok(peer) => return Some((stream, chain, peer)),
                Err(why) => {
                    linger::close(stream).await;
                    ServerEvent::Distrusted { address, why }
                }
            }
        }
        Ok(Err((error, stream))) => {
            linger::close(stream).await;
            let cause = error
                .get_ref()
                .and_then(|cause| cause.downcast_ref::<rustls::Error>());
            match cause {
                Some(rustls::Error::AlertReceived(alert)) => ServerEvent::DistrustsUs {
                    address,
                    alert: format!("{alert:?}"),
                },
                Some(cause) => match Distrust::of(cause) {
                    Some(why) => ServerEvent::Distrusted { address, why },
                    None => no_handshake(address, &error),
                },
                None => no_handshake(address, &error),
            }
        }
        Err(_) => no_handshake(address, &"the handshake took too long"),
    };
    shared.observe(&event);
    None
}

fn no_handshake(address: SocketAddr, why: &dyn std::fmt::Display) -> ServerEvent {
    ServerEvent::NoHandshake {
        address,
        why: crate::pki::clean(&why.to_string()),
    }
}

/// Answers the requests of a connection, and closes it.
async fn requests(
    caller: Caller,
    stream: TlsStream<TcpStream>,
    mut changes: watch::Receiver<u64>,
    mut stopping: watch::Receiver<Stop>,
) {
    let limits = caller.shared.limits;
    let deadlines = Deadlines {
        idle: if caller.turned_away {
            limits.header
        } else {
            limits.idle
        },
        head: limits.header,
        write: limits.stall,
    };
    let io = TokioIo::new(Watched::new(stream, caller.phase.clone(), deadlines));
    let mut connection = hyper::server::conn::http1::Builder::new()
        .half_close(false)
        .header_read_timeout(None)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .max_buf_size(READ_BUFFER)
        .keep_alive(!caller.turned_away)
        .serve_connection(io, caller.clone());
    let mut stop_heard = false;
    loop {
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %caller.peer, %error, "a peer's connection ended");
                }
                break;
            }
            Ok(()) = changes.changed() => {
                if let Err(why) = caller.shared.tls.present().verify(&caller.chain) {
                    let peer = caller.peer.clone();
                    caller.shared.observe(&ServerEvent::CutOff { peer, why });
                    return;
                }
            }
            _ = stopping.wait_for(|stop| *stop == Stop::Soon), if !stop_heard => {
                stop_heard = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    }
    linger::close(connection.into_parts().io.into_inner()).await;
}

/// Who is at the other end, as the service of a connection.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) shared: Arc<Shared>,
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    pub(super) peer: PeerName,
    phase: PhaseCell,
    /// It has too many connections, and is told so on this one.
    pub(super) turned_away: bool,
}

impl Service<Request<Incoming>> for Caller {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.phase.set(Phase::Busy);
        let caller = self.clone();
        Box::pin(async move {
            let response = answer::answer(Asked::new(caller.clone(), request)).await;
            caller.phase.set(Phase::Idle);
            Ok(response)
        })
    }
}
