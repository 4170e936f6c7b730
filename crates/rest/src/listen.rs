//! Listeners: unix sockets and TLS, and the connections that come in.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lifeboat_service::api::Caller;
use rustls::ProtocolVersion;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::patience::Patient;
use crate::{Limits, Rest, UnixAccess};

/// How long requests may go on after the order to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How long nothing is accepted after accepting failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How much of a request's head is read.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// The most headers of a request.
const MAX_HEADERS: usize = 64;

/// Says which caller a verified chain of certificates proves, if any.
pub type CertificateCaller = Arc<dyn Fn(&[CertificateDer<'_>]) -> Option<Caller> + Send + Sync>;

/// The TLS configuration for the next connection; certificates may be renewed in between.
pub type TlsConfigSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Where requests come in, and who is believed to send them.
pub enum Listener {
    Unix {
        listener: UnixListener,
        access: UnixAccess,
    },
    /// TLS 1.3. The configuration must verify the certificates of clients that show one.
    Tls {
        listener: TcpListener,
        config: TlsConfigSource,
        caller: CertificateCaller,
    },
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix { listener, access } => f
                .debug_struct("Unix")
                .field("listener", listener)
                .field("access", access)
                .finish(),
            Self::Tls { listener, .. } => f
                .debug_struct("Tls")
                .field("listener", listener)
                .finish_non_exhaustive(),
        }
    }
}

/// Serves until the future is ready: then nothing is accepted any more, streams of events end, and
/// requests under way have ten seconds to be answered.
///
/// # Panics
/// When it is not called on a Tokio runtime with I/O and time.
pub async fn serve(listeners: Vec<Listener>, rest: Rest, shutdown: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(rest.limits.connections));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let door = Door {
            rest: rest.clone(),
            limits: rest.limits,
            slots: Arc::clone(&slots),
            stopped: stopped.clone(),
        };
        accepting.spawn(door.accept(listener));
    }
    shutdown.await;
    // Streams of events see this one, connections the other.
    rest.closing.send_replace(true);
    stopping.send_replace(true);
    while let Some(ended) = accepting.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a listener of the REST interface ended in a panic");
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Door {
    rest: Rest,
    limits: Limits,
    slots: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Door {
    /// Accepts connections until told to stop, then waits for those that are open.
    async fn accept(mut self, listener: Listener) {
        let mut connections = JoinSet::new();
        loop {
            // Without a slot nobody is accepted: who comes waits in the kernel's queue.
            let slot = Arc::clone(&self.slots).acquire_owned();
            let slot = tokio::select! {
                slot = slot => slot.expect("BUG: the slots are never closed"),
                () = told_to_stop(&mut self.stopped) => break,
            };
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = accept_one(&listener) => accepted,
                () = told_to_stop(&mut self.stopped) => break,
            };
            match accepted {
                Ok(accepted) => self.open(&mut connections, &listener, accepted, slot),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all_ended).await.is_err() {
            tracing::warn!("requests were still under way when the REST interface ended");
        }
    }

    /// Lets a connection run on its own.
    fn open(
        &self,
        connections: &mut JoinSet<()>,
        listener: &Listener,
        accepted: Accepted,
        slot: OwnedSemaphorePermit,
    ) {
        let door = self.clone();
        match (listener, accepted) {
            (Listener::Unix { access, .. }, Accepted::Unix(stream)) => {
                let access = *access;
                connections.spawn(async move {
                    let caller = unix_caller(&stream, access).await;
                    door.converse(stream, caller).await;
                    drop(slot);
                });
            }
            (Listener::Tls { config, caller, .. }, Accepted::Tcp(stream)) => {
                let (config, caller) = (config(), Arc::clone(caller));
                connections.spawn(async move {
                    door.converse_tls(stream, config, &caller).await;
                    drop(slot);
                });
            }
            (Listener::Unix { .. }, Accepted::Tcp(_))
            | (Listener::Tls { .. }, Accepted::Unix(_)) => {
                unreachable!("BUG: a listener accepts connections of its kind")
            }
        }
    }

    async fn converse_tls(
        self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
        caller: &CertificateCaller,
    ) {
        // Answers are short, and nobody should wait for them to be collected.
        let _ = stream.set_nodelay(true);
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream = match tokio::time::timeout(self.limits.header_time, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%error, "a client of the REST interface was refused");
                return;
            }
            Err(_) => return,
        };
        let session = stream.get_ref().1;
        if session.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            tracing::info!("a client of the REST interface was refused: it does not use TLS 1.3");
            return;
        }
        let caller = session.peer_certificates().and_then(|chain| caller(chain));
        self.converse(stream, caller).await;
    }

    /// Answers the requests of one connection, all in the name of one caller.
    async fn converse<S>(mut self, stream: S, caller: Option<Caller>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let rest = self.rest;
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(caller) = &caller {
                request.extensions_mut().insert(caller.clone());
            }
            let (rest, request) = (rest.clone(), request.map(axum::body::Body::new));
            async move { Ok::<_, Infallible>(rest.answer(request).await) }
        });
        let stream = TokioIo::new(Patient::new(stream, self.limits.stalled_time));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_time)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(stream, service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told_to_stop(&mut self.stopped) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection of the REST interface ended");
        }
    }
}

/// Returns when it is time to stop, which it also is when nobody is left to say so.
async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|&stopped| stopped).await;
}

async fn accept_one(listener: &Listener) -> io::Result<Accepted> {
    match listener {
        Listener::Unix { listener, .. } => {
            let (stream, _) = listener.accept().await?;
            Ok(Accepted::Unix(stream))
        }
        Listener::Tls { listener, .. } => {
            let (stream, _) = listener.accept().await?;
            Ok(Accepted::Tcp(stream))
        }
    }
}

/// Who connected. What the kernel tells about a process is a file, so a thread reads it.
async fn unix_caller(stream: &UnixStream, access: UnixAccess) -> Option<Caller> {
    let credentials = stream.peer_cred().ok()?;
    let caller = tokio::task::spawn_blocking(move || access.caller(&credentials));
    caller.await.ok().flatten()
}

/// Why no socket could be made.
#[derive(Debug, thiserror::Error)]
pub enum BindUnixError {
    #[error("another process answers on {}", path.display())]
    InUse { path: PathBuf },

    #[error("{} is no socket, and is left alone", path.display())]
    NotASocket { path: PathBuf },

    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Makes a socket for administrators and, if there is one, the operators' group. One that a
/// process left behind is replaced; a socket never exists with more rights than it is to have.
///
/// # Errors
/// When somebody answers there, something else has the name, or the folder cannot be written.
///
/// # Panics
/// When it is not called on a Tokio runtime with I/O.
pub fn bind_unix(path: &Path, access: UnixAccess) -> Result<UnixListener, BindUnixError> {
    let failed = |what: &'static str| {
        move |source: io::Error| BindUnixError::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindUnixError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(BindUnixError::InUse {
                    path: path.to_owned(),
                });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    // Given its rights under another name first: under its own name it has them from the start.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("make a socket at")(error));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&fresh);
    let listener = listener.map_err(failed("make a socket at"))?;
    let placed = give_rights(&fresh, access).and_then(|()| std::fs::rename(&fresh, path));
    if let Err(error) = placed {
        // It is of no use to anybody; if it cannot be removed, the next start does.
        let _ = std::fs::remove_file(&fresh);
        return Err(failed("make a socket at")(error));
    }
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener));
    listener.map_err(failed("listen at"))
}

fn give_rights(path: &Path, access: UnixAccess) -> io::Result<()> {
    let mode = match access.operators_gid {
        Some(gid) => {
            chown(path, None, Some(gid))?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
