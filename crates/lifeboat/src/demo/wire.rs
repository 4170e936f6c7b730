//! The line between the two hosts: a relay in front of each host that counts what passes.
//!
//! It understands nothing of what it carries; TLS goes through it from host to host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::error::DemoError;

/// How long a connection to a host on this machine may take.
const CONNECT: Duration = Duration::from_secs(2);

/// What is carried at a time.
const BUFFER: usize = 64 << 10;

/// A relay in front of one host. Nobody answers behind it until it is told where the host is.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Debug, Default)]
struct Line {
    host: Mutex<Option<SocketAddr>>,
    bytes: AtomicU64,
    closed: AtomicBool,
}

impl Wire {
    /// Listens on a free port of this machine.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn start() -> Result<Self, DemoError> {
        let failed = |what| move |source| DemoError::System { what, source };
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed("a port"))?;
        let address = listener.local_addr().map_err(failed("a port"))?;
        let line = Arc::new(Line::default());
        let inside = Arc::clone(&line);
        std::thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || inside.accept(&listener))
            .map_err(failed("a thread"))?;
        Ok(Self { address, line })
    }

    /// Where the other host finds this one.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The host answers there from now on.
    pub fn lead_to(&self, host: SocketAddr) {
        *self
            .line
            .host
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(host);
    }

    /// What has passed in both directions, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.line.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.line.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts; if that has ended, nobody needs to be woken.
        let _ = TcpStream::connect_timeout(&self.address, CONNECT);
    }
}

impl Line {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            // A host that is gone refuses; who called sees the connection end.
            if let Ok(stream) = stream {
                let _ = self.connect(stream);
            }
        }
    }

    fn connect(self: &Arc<Self>, caller: TcpStream) -> io::Result<()> {
        let host = *self.host.lock().unwrap_or_else(PoisonError::into_inner);
        let host = host.ok_or(io::ErrorKind::ConnectionRefused)?;
        let host = TcpStream::connect_timeout(&host, CONNECT)?;
        for stream in [&caller, &host] {
            stream.set_nodelay(true)?;
        }
        let ways = [(caller.try_clone()?, host.try_clone()?), (host, caller)];
        for (from, to) in ways {
            let line = Arc::clone(self);
            std::thread::Builder::new()
                .name("wire".to_owned())
                .spawn(move || line.carry(from, to))?;
        }
        Ok(())
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                    self.bytes.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        // One side has ended; the other learns it. A stream that is gone cannot be ended.
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_unchanged_in_both_directions_and_are_counted() {
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire::start().unwrap();
        wire.lead_to(host.local_addr().unwrap());
        let mut caller = TcpStream::connect(wire.address()).unwrap();
        let (mut called, _) = host.accept().unwrap();
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
        assert_eq!(wire.bytes(), 100_006);
    }

    #[test]
    fn a_host_that_is_gone_ends_the_connection() {
        let wire = Wire::start().unwrap();
        let mut caller = TcpStream::connect(wire.address()).unwrap();
        assert!(matches!(caller.read(&mut [0]), Ok(0) | Err(_)));
        assert_eq!(wire.bytes(), 0);
    }
}
