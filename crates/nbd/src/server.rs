//! An NBD server for exports of this process.

mod answer;
mod end;
mod export;
mod listen;
mod local;
mod negotiate;
mod session;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustls::ServerConfig;

pub use self::end::{Connection, ConnectionEnd, EndReason};
pub use self::export::{Access, Export, ExportSet, ExportSetError, Granularity, Holes};
pub use self::listen::{BindError, ListenAddress};
pub use self::local::LocalExport;

use self::listen::Listener;
use self::negotiate::Negotiation;
use crate::wire::Wire;

/// How long a server out of file descriptors waits before it accepts again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What is given to connections when a server is dropped without a shutdown.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// Whom a server tells about connections that have ended; called on their threads.
pub type Observer = Arc<dyn Fn(ConnectionEnd) + Send + Sync>;

/// The limits of a server.
#[derive(Clone)]
pub struct ServerOptions {
    /// When present, nothing is served without TLS. Whether clients must show a
    /// certificate is up to the configuration.
    pub tls: Option<Arc<ServerConfig>>,
    /// Further connections are closed at once.
    pub max_connections: usize,
    /// The most requests of one connection under way; at least 1.
    pub max_in_flight: usize,
    /// The most bytes of requests under way, of each connection; one larger request may
    /// go alone. Memory is bounded by this times `max_connections`.
    pub max_in_flight_bytes: usize,
    /// The most requests of one connection served at once; at least 1.
    pub workers: usize,
    /// From accepting a connection until it has opened an export.
    pub handshake_deadline: Duration,
    /// For one request or reply of up to 32 MiB to be transferred.
    pub transfer_deadline: Duration,
    /// How long a connection may have nothing to do; absent for no limit.
    pub idle_deadline: Option<Duration>,
    /// Hears of each connection that has ended.
    pub observer: Option<Observer>,
}

impl Default for ServerOptions {
    /// No TLS, 16 connections of 16 requests and 64 MiB each, 4 workers, 10 s to
    /// negotiate, 30 s for a transfer, idle without limit, no observer.
    fn default() -> Self {
        Self {
            tls: None,
            max_connections: 16,
            max_in_flight: 16,
            max_in_flight_bytes: 64 << 20,
            workers: 4,
            handshake_deadline: Duration::from_secs(10),
            transfer_deadline: Duration::from_secs(30),
            idle_deadline: None,
            observer: None,
        }
    }
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("tls", &self.tls.is_some())
            .field("max_connections", &self.max_connections)
            .field("max_in_flight", &self.max_in_flight)
            .field("max_in_flight_bytes", &self.max_in_flight_bytes)
            .field("workers", &self.workers)
            .field("handshake_deadline", &self.handshake_deadline)
            .field("transfer_deadline", &self.transfer_deadline)
            .field("idle_deadline", &self.idle_deadline)
            .finish_non_exhaustive()
    }
}

/// A running server. Dropping it shuts it down.
#[derive(Debug)]
pub struct Server {
    house: Arc<House>,
    address: ListenAddress,
    acceptor: Option<JoinHandle<()>>,
    /// Becomes readable when the acceptor must look up.
    wake: Arc<OwnedFd>,
}

/// What all connections of a server share.
#[derive(Debug)]
struct House {
    exports: ExportSet,
    options: ServerOptions,
    stopping: AtomicBool,
    next_id: AtomicU64,
    guests: Mutex<HashMap<u64, Arc<dyn Wire>>>,
    left: Condvar,
}

impl Server {
    /// Listens on `address` and serves `exports` until it is shut down.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(
        address: &ListenAddress,
        exports: ExportSet,
        options: ServerOptions,
    ) -> Result<Self, BindError> {
        let listener = Listener::bind(address)?;
        let thread = |source| BindError::Thread { source };
        let address = listener.address().map_err(thread)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| thread(error.into()))?;
        let wake = Arc::new(wake);
        let house = Arc::new(House::new(exports, options));
        let (inside, waker) = (Arc::clone(&house), Arc::clone(&wake));
        let acceptor = std::thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept(&inside, &listener, &waker))
            .map_err(thread)?;
        Ok(Self {
            house,
            address,
            acceptor: Some(acceptor),
            wake,
        })
    }

    /// Serves one client over a stream that is already connected, and returns when it
    /// has ended; the observer of the options is not told.
    pub fn serve_wire(
        wire: &Arc<dyn Wire>,
        exports: ExportSet,
        options: ServerOptions,
    ) -> ConnectionEnd {
        let house = House::new(exports, options);
        let connection = Connection {
            id: 1,
            peer: "given".to_owned(),
        };
        house.entertain(connection, wire)
    }

    /// Where clients find the server; with the port that was taken.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// The exports on offer, which may be changed at any time.
    #[must_use]
    pub fn exports(&self) -> &ExportSet {
        &self.house.exports
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.house.guests().len()
    }

    /// Stops: no new connections; the others answer what they have received and end,
    /// and are cut after `grace`. Returns how many have not ended even then, because
    /// a call into their export does not return.
    pub fn shutdown(mut self, grace: Duration) -> usize {
        self.stop(grace)
    }

    fn stop(&mut self, grace: Duration) -> usize {
        let Some(acceptor) = self.acceptor.take() else {
            return 0;
        };
        self.house.stopping.store(true, Ordering::Release);
        // A counter that cannot be raised is raised already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        let _ = acceptor.join();
        self.house.empty(grace)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(DROP_GRACE);
    }
}

impl House {
    fn new(exports: ExportSet, options: ServerOptions) -> Self {
        Self {
            exports,
            options,
            stopping: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            guests: Mutex::default(),
            left: Condvar::new(),
        }
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<u64, Arc<dyn Wire>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees every connection off; returns how many stay.
    fn empty(&self, grace: Duration) -> usize {
        let wait = |guests| {
            self.left
                .wait_timeout_while(guests, grace, |guests: &mut HashMap<_, _>| {
                    !guests.is_empty()
                })
                .unwrap_or_else(PoisonError::into_inner)
                .0
        };
        let mut guests = self.guests();
        for wire in guests.values() {
            wire.stop_receiving();
        }
        guests = wait(guests);
        for wire in guests.values() {
            wire.close();
        }
        wait(guests).len()
    }

    /// Gives a new connection its thread.
    fn welcome(self: &Arc<Self>, wire: Arc<dyn Wire>, peer: String) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { id, peer };
        {
            let mut guests = self.guests();
            if guests.len() >= self.options.max_connections {
                drop(guests);
                wire.close();
                self.report(connection, EndReason::TooManyConnections);
                return;
            }
            guests.insert(id, Arc::clone(&wire));
        }
        let house = Arc::clone(self);
        let guest = connection.clone();
        let started = std::thread::Builder::new()
            .name("nbd-connection".to_owned())
            .spawn(move || {
                let end = house.entertain(guest, &wire);
                drop(wire);
                house.tell(end);
                house.see_off(id);
            });
        if let Err(source) = started {
            self.see_off(id);
            self.report(connection, EndReason::Thread { source });
        }
    }

    fn see_off(&self, id: u64) {
        self.guests().remove(&id);
        self.left.notify_all();
    }

    fn report(&self, connection: Connection, reason: EndReason) {
        self.tell(ConnectionEnd {
            connection,
            export: None,
            reason,
        });
    }

    fn tell(&self, end: ConnectionEnd) {
        if let Some(observer) = &self.options.observer {
            observer(end);
        }
    }

    /// A connection from its greeting to its end.
    fn entertain(&self, connection: Connection, wire: &Arc<dyn Wire>) -> ConnectionEnd {
        let mut export = None;
        let id = connection.id;
        let served = catch_unwind(AssertUnwindSafe(|| {
            let opened = Negotiation::run(id, Arc::clone(wire), &self.exports, &self.options)?;
            export = Some(opened.session.entry.name.clone());
            Ok(session::serve(opened, &self.options, &self.stopping))
        }));
        wire.close();
        ConnectionEnd {
            connection,
            export,
            reason: match served {
                Ok(Ok(reason) | Err(reason)) => reason,
                Err(_) => EndReason::Panicked,
            },
        }
    }
}

/// Accepts until the server stops.
fn accept(house: &Arc<House>, listener: &Listener, wake: &OwnedFd) {
    let mut pause: Option<Timespec> = None;
    loop {
        let mut polled = [
            PollFd::new(wake, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        // While there are no descriptors, only the end is waited for.
        let watched = if pause.is_some() { 1 } else { 2 };
        // An interrupted wait is repeated.
        let _ = poll(&mut polled[..watched], pause.as_ref());
        if house.stopping.load(Ordering::Acquire) {
            return;
        }
        pause = None;
        match listener.accept() {
            Ok((socket, peer)) => house.welcome(Arc::new(socket), peer),
            Err(error) => {
                let passing = matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionAborted
                );
                if !passing {
                    pause = Timespec::try_from(ACCEPT_RETRY).ok();
                }
            }
        }
    }
}
