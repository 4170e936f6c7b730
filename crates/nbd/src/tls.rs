//! TLS over another [`Wire`], full duplex.
//!
//! One lock guards the TLS state and is held for computing only, never while
//! waiting for the peer: a sender that is blocked does not keep the receiver from
//! draining, and the other way round. A lock per direction keeps the records of
//! that direction in order.

use std::io::{self, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::deadline::Deadline;
use crate::wire::{Wire, send_all};

/// How much ciphertext is taken from the wire at once.
const RECEIVE: usize = 256 << 10;

/// How much plaintext is encrypted before it goes out.
const SEND: usize = 256 << 10;

#[derive(Debug)]
pub(crate) struct TlsWire {
    below: Arc<dyn Wire>,
    state: Mutex<Connection>,
    /// Ciphertext received but not yet given to TLS.
    incoming: Mutex<Incoming>,
    /// Ciphertext on its way out; empty between two sends.
    outgoing: Mutex<Vec<u8>>,
}

#[derive(Debug)]
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl TlsWire {
    /// Shakes hands as the client; the peer must prove to be `name`.
    pub(crate) fn client(
        below: Arc<dyn Wire>,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: Deadline,
    ) -> io::Result<Self> {
        let state = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Self::shake_hands(below, state.into(), deadline)
    }

    /// Shakes hands as the server.
    pub(crate) fn server(
        below: Arc<dyn Wire>,
        config: Arc<ServerConfig>,
        deadline: Deadline,
    ) -> io::Result<Self> {
        let state = ServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake_hands(below, state.into(), deadline)
    }

    fn shake_hands(
        below: Arc<dyn Wire>,
        mut state: Connection,
        deadline: Deadline,
    ) -> io::Result<Self> {
        state.set_buffer_limit(Some(SEND));
        let wire = Self {
            below,
            state: Mutex::new(state),
            incoming: Mutex::new(Incoming {
                bytes: vec![0; RECEIVE].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
            outgoing: Mutex::new(Vec::new()),
        };
        let mut incoming = lock(&wire.incoming);
        loop {
            wire.flush(deadline)?;
            {
                let mut state = lock(&wire.state);
                if !state.is_handshaking() {
                    break;
                }
                if incoming.start < incoming.end {
                    let fed = incoming.feed(&mut state);
                    drop(state);
                    if fed.is_err() {
                        // The alert tells the peer why; that it arrives is not sure.
                        let _ = wire.flush(deadline);
                    }
                    fed?;
                    continue;
                }
            }
            incoming.refill(wire.below.as_ref(), deadline)?;
        }
        drop(incoming);
        wire.flush(deadline)?;
        Ok(wire)
    }

    /// Sends whatever TLS itself has to say.
    fn flush(&self, deadline: Deadline) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        drain(&mut lock(&self.state), &mut outgoing)?;
        self.send_outgoing(&mut outgoing, deadline)
    }

    fn send_outgoing(&self, outgoing: &mut Vec<u8>, deadline: Deadline) -> io::Result<()> {
        let sent = send_all(self.below.as_ref(), &mut [IoSlice::new(outgoing)], deadline);
        outgoing.clear();
        sent
    }
}

impl Incoming {
    /// Gives TLS some of the ciphertext at hand.
    fn feed(&mut self, state: &mut Connection) -> io::Result<()> {
        let mut unread = &self.bytes[self.start..self.end];
        state.read_tls(&mut unread)?;
        self.start = self.end - unread.len();
        state
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(())
    }

    fn refill(&mut self, below: &dyn Wire, deadline: Deadline) -> io::Result<()> {
        let received = below.receive(&mut self.bytes, deadline)?;
        if received == 0 {
            // Without the closing message the end may have been forged.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.start = 0;
        self.end = received;
        Ok(())
    }
}

impl Wire for TlsWire {
    fn receive(&self, into: &mut [u8], deadline: Deadline) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        let mut filled = 0;
        loop {
            let mut state = lock(&self.state);
            loop {
                match state.reader().read(&mut into[filled..]) {
                    // The orderly end, or a full buffer: both are an answer.
                    Ok(0) => return Ok(filled),
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if incoming.start == incoming.end {
                            break;
                        }
                        incoming.feed(&mut state)?;
                    }
                    Err(error) => return Err(error),
                }
            }
            drop(state);
            if filled > 0 {
                return Ok(filled);
            }
            incoming.refill(self.below.as_ref(), deadline)?;
        }
    }

    fn send(&self, parts: &[IoSlice<'_>], deadline: Deadline) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        let mut taken = 0;
        {
            let mut state = lock(&self.state);
            for part in parts {
                let written = state.writer().write(part)?;
                taken += written;
                if written < part.len() {
                    break;
                }
            }
            drain(&mut state, &mut outgoing)?;
        }
        self.send_outgoing(&mut outgoing, deadline)?;
        Ok(taken)
    }

    fn finish(&self, deadline: Deadline) -> io::Result<()> {
        lock(&self.state).send_close_notify();
        self.flush(deadline)?;
        self.below.finish(deadline)
    }

    fn stop_receiving(&self) {
        self.below.stop_receiving();
    }

    fn close(&self) {
        self.below.close();
    }
}

fn drain(state: &mut Connection, into: &mut Vec<u8>) -> io::Result<()> {
    while state.wants_write() {
        state.write_tls(into)?;
    }
    Ok(())
}

/// No code panics while it holds one of these locks, and TLS notices torn state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
