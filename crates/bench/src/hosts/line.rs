//! The line between two hosts, where what passes is counted.
//!
//! It understands nothing of what it carries; TLS goes through it from end to end.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How hosts reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Nothing is between them.
    Direct,
    /// Through a relay in front of each, which costs time and tells how many bytes passed.
    Counted,
}

/// How long a connection on this machine may take.
const CONNECT: Duration = Duration::from_secs(2);

/// What is carried at a time.
const BUFFER: usize = 256 << 10;

/// A relay in front of a server. It leads nowhere until it is told where that is.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    server: Mutex<Option<SocketAddr>>,
    /// Towards the server.
    there: AtomicU64,
    back: AtomicU64,
    closed: AtomicBool,
}

impl Relay {
    /// Listens on a free port of this machine.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
        let address = listener.local_addr().context("listen on loopback")?;
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        std::thread::spawn(move || inside.accept(&listener));
        Ok(Self { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server answers there from now on.
    pub fn lead_to(&self, server: SocketAddr) {
        let place = self.shared.server.lock();
        *place.unwrap_or_else(PoisonError::into_inner) = Some(server);
    }

    /// What has passed in both directions.
    pub fn bytes(&self) -> u64 {
        self.shared.there.load(Ordering::Relaxed) + self.bytes_back()
    }

    /// What the server has sent.
    pub fn bytes_back(&self) -> u64 {
        self.shared.back.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts; if that has ended, nobody needs to be woken.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT);
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            // A server that is gone refuses; who called sees the connection end.
            if let Ok(stream) = stream {
                let _ = self.connect(stream);
            }
        }
    }

    fn connect(self: &Arc<Self>, caller: TcpStream) -> io::Result<()> {
        let server = *self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server.ok_or(io::ErrorKind::ConnectionRefused)?;
        let server = TcpStream::connect_timeout(&server, CONNECT)?;
        caller.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from, to) = (caller.try_clone()?, server.try_clone()?);
        let shared = Arc::clone(self);
        let builder = std::thread::Builder::new();
        builder.spawn(move || carry(from, to, &shared.there))?;
        let shared = Arc::clone(self);
        let builder = std::thread::Builder::new();
        builder.spawn(move || carry(server, caller, &shared.back))?;
        Ok(())
    }
}

/// Carries one direction to its end.
fn carry(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(count) if count > 0 => {
                bytes.fetch_add(count as u64, Ordering::Relaxed);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    // One side has ended; the other learns it. A stream that is gone cannot be ended.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_both_directions_pass_unchanged_and_are_counted() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start().unwrap();
        relay.lead_to(server.local_addr().unwrap());
        let mut caller = TcpStream::connect(relay.address()).unwrap();
        let (mut called, _) = server.accept().unwrap();
        caller.write_all(&[7; 100_000]).unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        called.read_to_end(&mut got).unwrap();
        assert_eq!(got, [7; 100_000]);
        called.write_all(b"answer").unwrap();
        drop(called);
        got.clear();
        caller.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"answer");
        assert_eq!((relay.bytes(), relay.bytes_back()), (100_006, 6));
    }

    #[test]
    fn a_relay_that_leads_nowhere_ends_the_connection() {
        let relay = Relay::start().unwrap();
        let mut caller = TcpStream::connect(relay.address()).unwrap();
        assert!(matches!(caller.read(&mut [0]), Ok(0) | Err(_)));
        assert_eq!(relay.bytes(), 0);
    }
}
