//! A request's body: gathered when it is a message, handed to a blocking reader piece by
//! piece when it is a stream.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::message::{Refusal, RefusalCode};
use crate::wire::{MAX_MESSAGE, refusal};

/// Pieces on their way to the reader. Each has at most the connection's buffer.
const IN_FLIGHT: usize = 3;
/// A peer that sends less than this between two deadlines has stalled.
const PROGRESS: usize = 1 << 10;
/// What a successful reader may have left over: the end of the transfer, not more data.
const LEFT_OVER: usize = 64 << 10;

/// The whole body of a message.
///
/// Refused when it is too long, before that much was read; when it is not complete in time;
/// and when the connection ends first.
pub(crate) async fn gather(mut body: Incoming, longest: Duration) -> Result<Vec<u8>, Refusal> {
    if body
        .size_hint()
        .upper()
        .is_some_and(|length| length > MAX_MESSAGE as u64)
    {
        return Err(too_long());
    }
    let gathering = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                refusal(
                    RefusalCode::Invalid,
                    "the message ended early; send it again",
                )
            })?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > MAX_MESSAGE {
                    return Err(too_long());
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes)
    };
    timeout(longest, gathering).await.unwrap_or_else(|_| {
        Err(refusal(
            RefusalCode::Invalid,
            format!("the message was not complete after {longest:?}; send it again"),
        ))
    })
}

fn too_long() -> Refusal {
    refusal(
        RefusalCode::Invalid,
        format!("the message is longer than {MAX_MESSAGE} bytes"),
    )
}

enum Piece {
    Data(Bytes),
    End,
    Failed(io::Error),
}

/// The end of a streamed body that blocks: what the host reads from.
///
/// An end of file is the body's true end. A body that is cut or stalls is an error.
pub(crate) struct BodyReader {
    pieces: mpsc::Receiver<Piece>,
    wanted: Arc<Notify>,
    current: Bytes,
    over: Over,
}

#[derive(Clone, Copy)]
enum Over {
    No,
    Ended,
    Failed(io::ErrorKind),
}

impl Read for BodyReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() {
            match self.over {
                Over::No => {}
                Over::Ended => return Ok(0),
                Over::Failed(kind) => return Err(kind.into()),
            }
            self.wanted.notify_one();
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.over = Over::Ended,
                Some(Piece::Failed(error)) => {
                    self.over = Over::Failed(error.kind());
                    return Err(error);
                }
                None => {
                    self.over = Over::Failed(io::ErrorKind::ConnectionAborted);
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the peer's connection ended before the body did",
                    ));
                }
            }
        }
        let length = into.len().min(self.current.len());
        self.current.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// The other end: takes the body from the connection.
pub(crate) struct Feeder {
    body: Incoming,
    pieces: mpsc::Sender<Piece>,
    wanted: Arc<Notify>,
    stall: Duration,
    ended: bool,
}

pub(crate) fn bridge(body: Incoming, stall: Duration) -> (BodyReader, Feeder) {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let wanted = Arc::new(Notify::new());
    let reader = BodyReader {
        pieces: receiver,
        wanted: Arc::clone(&wanted),
        current: Bytes::new(),
        over: Over::No,
    };
    let feeder = Feeder {
        body,
        pieces: sender,
        wanted,
        stall,
        ended: false,
    };
    (reader, feeder)
}

impl Feeder {
    /// Hands pieces over until the body or its reader ends. Takes nothing before the reader
    /// wants something: until then the peer waits with the body, if it asked to.
    pub(crate) async fn feed(&mut self) {
        self.wanted.notified().await;
        let mut deadline = Instant::now() + self.stall;
        let mut progress = 0;
        loop {
            let piece = match timeout_at(deadline, self.body.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    // Trailers say nothing here.
                    Err(_) => continue,
                },
                Ok(Some(Err(error))) => {
                    Piece::Failed(io::Error::new(io::ErrorKind::ConnectionAborted, error))
                }
                Ok(None) => {
                    self.ended = true;
                    Piece::End
                }
                Err(_) => Piece::Failed(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the peer has sent nothing for {:?}", self.stall),
                )),
            };
            let (length, last) = match &piece {
                Piece::Data(data) => (data.len(), false),
                Piece::End | Piece::Failed(_) => (0, true),
            };
            let slow_reader = self.pieces.capacity() == 0;
            if self.pieces.send(piece).await.is_err() || last {
                return;
            }
            progress += length;
            if progress >= PROGRESS || slow_reader {
                progress = 0;
                deadline = Instant::now() + self.stall;
            }
        }
    }

    /// Takes the end of a body whose reader had enough of it, so that the connection can be
    /// used again. Gives up when more than an end follows.
    pub(crate) async fn finish(mut self) {
        let finishing = async {
            let mut left = LEFT_OVER;
            while !self.ended {
                match self.body.frame().await {
                    Some(Ok(frame)) => {
                        let length = frame.data_ref().map_or(0, Bytes::len);
                        match left.checked_sub(length) {
                            Some(rest) => left = rest,
                            None => return,
                        }
                    }
                    Some(Err(_)) | None => return,
                }
            }
        };
        let _ = timeout(self.stall, finishing).await;
    }
}
