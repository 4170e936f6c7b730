//! A stream with deadlines that depend on what the connection is doing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for the next request.
    Idle,
    /// Has the beginning of a request.
    Head,
    /// Has a request; its body has deadlines of its own.
    Busy,
}

/// The phase of one connection, shared between its stream and its service.
#[derive(Debug, Clone)]
pub(crate) struct PhaseCell(Arc<AtomicU8>);

impl PhaseCell {
    pub(crate) fn new(phase: Phase) -> Self {
        let cell = Self(Arc::new(AtomicU8::new(0)));
        cell.set(phase);
        cell
    }

    pub(crate) fn set(&self, phase: Phase) {
        let number = match phase {
            Phase::Idle => 0,
            Phase::Head => 1,
            Phase::Busy => 2,
        };
        self.0.store(number, Ordering::Release);
    }

    fn get(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        }
    }
}

/// How long each phase may wait for bytes, and how long the peer may leave ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    pub(crate) idle: Duration,
    pub(crate) head: Duration,
    pub(crate) write: Duration,
}

pub(crate) struct Watched<S> {
    stream: S,
    phase: PhaseCell,
    deadlines: Deadlines,
    read_timer: Pin<Box<Sleep>>,
    /// The phase that the timer was set for; absent when it is not set.
    read_armed: Option<Phase>,
    write_timer: Pin<Box<Sleep>>,
    write_armed: bool,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, phase: PhaseCell, deadlines: Deadlines) -> Self {
        Self {
            stream,
            phase,
            deadlines,
            read_timer: Box::pin(sleep(Duration::ZERO)),
            read_armed: None,
            write_timer: Box::pin(sleep(Duration::ZERO)),
            write_armed: false,
        }
    }

    /// The stream waits to be read.
    fn read_waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.phase.get();
        let longest = match phase {
            Phase::Idle => self.deadlines.idle,
            Phase::Head => self.deadlines.head,
            Phase::Busy => {
                self.read_armed = None;
                return Poll::Pending;
            }
        };
        if self.read_armed != Some(phase) {
            self.read_armed = Some(phase);
            self.read_timer.as_mut().reset(Instant::now() + longest);
        }
        match self.read_timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The stream waits to be written; or it does not, and the next wait starts anew.
    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_armed = false;
            return written;
        }
        if !self.write_armed {
            self.write_armed = true;
            let deadline = Instant::now() + self.deadlines.write;
            self.write_timer.as_mut().reset(deadline);
        }
        match self.write_timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, into) {
            Poll::Pending => self.read_waits(cx),
            Poll::Ready(Ok(())) => {
                if into.filled().len() > before && self.phase.get() == Phase::Idle {
                    self.phase.set(Phase::Head);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch_write(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch_write(cx, shut)
    }
}
