//! A relay in front of a host: it carries bytes late, at a limited pace, and not at all while
//! it is cut. TLS goes through it from host to host.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lifeboat_sys::clock::Stopwatch;

/// How bad a line is.
#[derive(Debug, Clone, Copy)]
pub struct Quality {
    /// How long a byte is on its way, beside what its pace takes.
    delay: Duration,
    /// Bytes a second, each way of each connection.
    pace: u64,
}

impl Quality {
    pub const SLOW: Self = Self {
        delay: Duration::from_millis(15),
        pace: 8 << 20,
    };
    pub const GOOD: Self = Self {
        delay: Duration::ZERO,
        pace: 1 << 40,
    };
}

/// What is carried at a time.
const PARCEL: usize = 16 << 10;

/// Parcels under way on one connection, each way.
const UNDER_WAY: usize = 64;

const CONNECT: Duration = Duration::from_secs(2);

/// Nobody answers behind it until it is told where the host is.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    quality: Quality,
    watch: Stopwatch,
    state: Mutex<State>,
    /// Notified when bytes have passed, and when it is cut.
    changed: Condvar,
    bytes: AtomicU64,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    host: Option<SocketAddr>,
    is_cut: bool,
    connections: Vec<TcpStream>,
}

impl Relay {
    pub fn start(at: IpAddr, quality: Quality) -> io::Result<Self> {
        let listener = TcpListener::bind((at, 0))?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line {
            quality,
            watch: Stopwatch::start(),
            state: Mutex::default(),
            changed: Condvar::new(),
            bytes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let inside = Arc::clone(&line);
        std::thread::spawn(move || inside.accept(&listener));
        Ok(Self { address, line })
    }

    pub fn lead_to(&self, host: SocketAddr) {
        self.line.state().host = Some(host);
    }

    /// What has passed in both directions, in bytes.
    pub fn bytes(&self) -> u64 {
        self.line.bytes.load(Ordering::SeqCst)
    }

    /// Ends every connection, and refuses new ones until it is mended.
    pub fn cut(&self) {
        let mut state = self.line.state();
        state.is_cut = true;
        for stream in state.connections.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.line.state().is_cut = false;
    }

    /// Waits until bytes pass, or for so long.
    pub fn wait(&self, patience: Duration) {
        let state = self.line.state();
        let waited = self.line.changed.wait_timeout(state, patience);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.line.closed.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts; if that has ended, nobody needs to be woken.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT);
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.closed.load(Ordering::SeqCst) {
                return;
            }
            // A host that is gone refuses; who called sees the connection end.
            if let Ok(stream) = stream {
                let _ = self.connect(stream);
            }
        }
    }

    fn connect(self: &Arc<Self>, caller: TcpStream) -> io::Result<()> {
        let host = {
            let state = self.state();
            let host = if state.is_cut { None } else { state.host };
            host.ok_or(io::ErrorKind::ConnectionRefused)?
        };
        let host = TcpStream::connect_timeout(&host, CONNECT)?;
        {
            let mut state = self.state();
            if state.is_cut {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            for stream in [&caller, &host] {
                stream.set_nodelay(true)?;
                state.connections.push(stream.try_clone()?);
            }
        }
        for (from, to) in [(caller.try_clone()?, host.try_clone()?), (host, caller)] {
            let (parcels, taken) = sync_channel(UNDER_WAY);
            let (sender, receiver) = (Arc::clone(self), Arc::clone(self));
            std::thread::spawn(move || sender.take_in(from, &parcels));
            std::thread::spawn(move || receiver.hand_out(to, &taken));
        }
        Ok(())
    }

    /// Reads what comes, and notes when it is to arrive.
    fn take_in(&self, mut from: TcpStream, parcels: &SyncSender<(Duration, Vec<u8>)>) {
        let Quality { delay, pace } = self.quality;
        let mut free = self.watch.elapsed();
        let mut buffer = vec![0; PARCEL];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            free = free.max(self.watch.elapsed());
            free += Duration::from_nanos(read as u64 * 1_000_000_000 / pace);
            let parcel = (free + delay, buffer[..read].to_vec());
            if parcels.send(parcel).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Writes each parcel when its time has come.
    fn hand_out(&self, mut to: TcpStream, parcels: &Receiver<(Duration, Vec<u8>)>) {
        for (due, bytes) in parcels {
            let early = due.saturating_sub(self.watch.elapsed());
            if !early.is_zero() {
                std::thread::park_timeout(early);
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
            self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            self.changed.notify_all();
        }
        // The other side may have ended it already.
        let _ = to.shutdown(Shutdown::Both);
    }
}
