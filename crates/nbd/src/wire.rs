//! What the protocol runs over: a byte stream in both directions.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::deadline::Deadline;

/// A connected byte stream. Both directions progress independently of each other
/// and may be used from different threads at once.
pub trait Wire: Send + Sync + fmt::Debug {
    /// Waits for at least one byte and takes what is there; 0 is the orderly end.
    ///
    /// # Errors
    /// `TimedOut` once the deadline has passed; the stream is then still usable.
    fn receive(&self, into: &mut [u8], deadline: Deadline) -> io::Result<usize>;

    /// Sends some of `parts`, at least one byte if there is any.
    ///
    /// # Errors
    /// `TimedOut` once the deadline has passed; part of the bytes may be gone.
    fn send(&self, parts: &[IoSlice<'_>], deadline: Deadline) -> io::Result<usize>;

    /// Tells the peer that nothing more will be sent. Receiving goes on.
    ///
    /// # Errors
    /// When the peer cannot be told before the deadline.
    fn finish(&self, deadline: Deadline) -> io::Result<()>;

    /// Makes receiving end, now and later; sending goes on.
    fn stop_receiving(&self);

    /// Ends both directions: whoever waits in another method returns.
    fn close(&self);
}

/// Sends every byte of `parts`.
pub(crate) fn send_all(
    wire: &dyn Wire,
    mut parts: &mut [IoSlice<'_>],
    deadline: Deadline,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match wire.send(parts, deadline)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            sent => IoSlice::advance_slices(&mut parts, sent),
        }
    }
    Ok(())
}

/// Enough for a run of headers; payloads go past it straight to their place.
const BUFFER: usize = 4096;

/// The receiving half with a small buffer, so that headers do not cost a call each.
#[derive(Debug)]
pub(crate) struct Input {
    wire: Arc<dyn Wire>,
    buffer: Box<[u8; BUFFER]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new(wire: Arc<dyn Wire>) -> Self {
        Self {
            wire,
            buffer: Box::new([0; BUFFER]),
            start: 0,
            end: 0,
        }
    }

    pub(crate) fn wire(&self) -> &Arc<dyn Wire> {
        &self.wire
    }

    /// Bytes received but not yet asked for.
    pub(crate) fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// Waits until a byte can be read; false at the orderly end.
    pub(crate) fn wait(&mut self, deadline: Deadline) -> io::Result<bool> {
        if self.buffered() == 0 {
            self.start = 0;
            self.end = 0;
            self.end = self.wire.receive(&mut self.buffer[..], deadline)?;
        }
        Ok(self.buffered() > 0)
    }

    /// Fills `into` completely.
    pub(crate) fn fill(&mut self, mut into: &mut [u8], deadline: Deadline) -> io::Result<()> {
        while !into.is_empty() {
            if self.buffered() == 0 && into.len() >= BUFFER {
                match self.wire.receive(into, deadline)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    received => into = &mut into[received..],
                }
                continue;
            }
            if !self.wait(deadline)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = into.len().min(self.buffered());
            into[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
            self.start += count;
            into = &mut into[count..];
        }
        Ok(())
    }

    /// An array of the next bytes.
    pub(crate) fn array<const N: usize>(&mut self, deadline: Deadline) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, deadline)?;
        Ok(bytes)
    }

    /// Drops the next `count` bytes.
    pub(crate) fn skip(&mut self, mut count: u64, deadline: Deadline) -> io::Result<()> {
        while count > 0 {
            if !self.wait(deadline)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let here = self
                .buffered()
                .min(usize::try_from(count).unwrap_or(usize::MAX));
            self.start += here;
            count -= here as u64;
        }
        Ok(())
    }
}
