//! What a caller sends: nothing, a message, or a stream of pieces.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::wire::PIECE;

/// The body of a request.
#[derive(Debug)]
pub(super) enum Outgoing {
    Message(Option<Bytes>),
    /// Ends when the sender sends `None`; a sender that just goes cuts the body.
    Pieces(mpsc::Receiver<Option<Bytes>>),
    /// The stream has ended.
    Ended,
}

/// The caller has given the body up.
#[derive(Debug, thiserror::Error)]
#[error("the body was given up before its end")]
pub(super) struct GivenUp;

impl Body for Outgoing {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        match &mut *self {
            Self::Message(message) => Poll::Ready(message.take().map(|all| Ok(Frame::data(all)))),
            Self::Pieces(pieces) => match pieces.poll_recv(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Some(piece))) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                Poll::Ready(Some(None)) => {
                    *self = Self::Ended;
                    Poll::Ready(None)
                }
                Poll::Ready(None) => Poll::Ready(Some(Err(GivenUp))),
            },
            Self::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(message) => message.is_none(),
            Self::Pieces(_) => false,
            Self::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Message(message) => {
                SizeHint::with_exact(message.as_ref().map_or(0, |all| all.len() as u64))
            }
            Self::Pieces(_) => SizeHint::default(),
            Self::Ended => SizeHint::with_exact(0),
        }
    }
}

/// A slow source is sent in smaller pieces, so that the peer sees that something happens.
const LONGEST_GATHERING: Duration = Duration::from_millis(500);
/// Pieces that may be on their way, or wait to be used again.
const RECYCLED: usize = 4;

/// Cuts a reader into pieces, in memory that is used again when the pieces have gone.
pub(super) struct Pieces<'a> {
    source: &'a mut (dyn Read + Send),
    sent: VecDeque<Bytes>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(source: &'a mut (dyn Read + Send)) -> Self {
        Self {
            source,
            sent: VecDeque::new(),
        }
    }

    /// The next piece; `None` at the end of the source.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = self.buffer();
        let begun = Instant::now();
        let mut filled = 0;
        while filled < PIECE && (filled == 0 || begun.elapsed() < LONGEST_GATHERING) {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(None);
        }
        let whole = buffer.freeze();
        let piece = whole.slice(..filled);
        self.sent.push_back(whole);
        Ok(Some(piece))
    }

    /// Memory for a whole piece: that of the oldest piece when it has gone.
    fn buffer(&mut self) -> BytesMut {
        if self.sent.len() >= RECYCLED
            && let Some(oldest) = self.sent.pop_front()
            && let Ok(buffer) = oldest.try_into_mut()
        {
            return buffer;
        }
        BytesMut::zeroed(PIECE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, then nothing.
    struct Drops(usize);

    impl Read for Drops {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Ok(0);
            }
            self.0 -= 1;
            into[0] = 7;
            Ok(1)
        }
    }

    #[test]
    fn pieces_together_are_the_source_and_memory_is_used_again() {
        let content: Vec<u8> = (0..10 * PIECE + 5).map(|at| (at / 1000) as u8).collect();
        let mut source = content.as_slice();
        let mut pieces = Pieces::new(&mut source);
        let mut all = Vec::new();
        let mut places = std::collections::BTreeSet::new();
        while let Some(piece) = pieces.next().unwrap() {
            assert!(piece.len() <= PIECE);
            places.insert(piece.as_ptr() as usize);
            all.extend_from_slice(&piece);
        }
        assert!(all == content);
        assert!(places.len() <= RECYCLED, "{} buffers", places.len());
    }

    #[test]
    fn short_reads_are_gathered() {
        let mut source = Drops(1000);
        let mut pieces = Pieces::new(&mut source);
        let mut all = 0;
        let mut count = 0;
        while let Some(piece) = pieces.next().unwrap() {
            all += piece.len();
            count += 1;
        }
        assert_eq!(all, 1000);
        assert!(count < 1000);
    }

    #[test]
    fn an_error_of_the_source_is_not_its_end() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
        let mut source = Broken;
        assert!(Pieces::new(&mut source).next().is_err());
    }
}
