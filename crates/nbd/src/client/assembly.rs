//! One reply while its chunks come in, in any order.

use std::collections::BTreeMap;

use super::error::{ProtocolError, RequestKind};
use crate::codec::ErrorChunk;
use crate::extent::Extent;

/// The most separate pieces of one read: one per sector of the largest request.
pub(super) const MAX_PIECES: usize = 65_536;

/// What a piece of a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    Hole,
}

/// A request's reply so far.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) kind: RequestKind,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) body: Body,
    failure: Option<ErrorChunk>,
}

#[derive(Debug)]
pub(super) enum Body {
    Read(ReadBody),
    Status(StatusBody),
    /// Only success or failure is of interest.
    Nothing,
}

/// The bytes of a read. `buffer` is at least as long as the request; what no data
/// piece covers in it has no meaning.
#[derive(Debug)]
pub(super) struct ReadBody {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) buffer: Vec<u8>,
    pieces: BTreeMap<u64, (u64, Content)>,
}

/// The extents of a block status.
#[derive(Debug)]
pub(super) struct StatusBody {
    /// The contexts that must answer.
    expected: Vec<u32>,
    pub(super) found: Vec<(u32, Vec<Extent>)>,
}

impl Assembly {
    pub(super) fn read(offset: u64, length: u64, buffer: Vec<u8>) -> Self {
        let body = Body::Read(ReadBody {
            offset,
            length,
            buffer,
            pieces: BTreeMap::new(),
        });
        Self::new(RequestKind::Read, offset, length, body)
    }

    pub(super) fn status(offset: u64, length: u64, expected: Vec<u32>) -> Self {
        let body = Body::Status(StatusBody {
            expected,
            found: Vec::new(),
        });
        Self::new(RequestKind::BlockStatus, offset, length, body)
    }

    pub(super) fn plain(kind: RequestKind, offset: u64, length: u64) -> Self {
        Self::new(kind, offset, length, Body::Nothing)
    }

    fn new(kind: RequestKind, offset: u64, length: u64, body: Body) -> Self {
        Self {
            kind,
            offset,
            length,
            body,
            failure: None,
        }
    }

    /// Remembers the first error; later ones add nothing a caller could use.
    pub(super) fn fail(&mut self, chunk: ErrorChunk) -> Result<(), ProtocolError> {
        if let Some(offset) = chunk.offset
            && !(self.offset..=self.offset + self.length).contains(&offset)
        {
            return Err(ProtocolError::OutsideRequest { offset, length: 1 });
        }
        self.failure.get_or_insert(chunk);
        Ok(())
    }

    /// The end of the reply: complete, or failed, or illegal.
    pub(super) fn complete(self) -> Result<Result<Body, ErrorChunk>, ProtocolError> {
        if let Some(failure) = self.failure {
            return Ok(Err(failure));
        }
        match &self.body {
            Body::Nothing => {}
            Body::Read(read) => {
                if let Some(offset) = read.first_missing() {
                    return Err(ProtocolError::MissingData { offset });
                }
            }
            Body::Status(status) => {
                if let Some(&id) = status.expected.first() {
                    return Err(ProtocolError::MissingContext { id });
                }
            }
        }
        Ok(Ok(self.body))
    }
}

impl ReadBody {
    /// Takes note of a piece before its bytes are received.
    pub(super) fn claim(
        &mut self,
        offset: u64,
        length: u64,
        content: Content,
    ) -> Result<(), ProtocolError> {
        let outside = ProtocolError::OutsideRequest { offset, length };
        let Some(end) = offset.checked_add(length) else {
            return Err(outside);
        };
        if length == 0 || offset < self.offset || end > self.offset + self.length {
            return Err(outside);
        }
        let before = self.pieces.range(..=offset).next_back();
        let after = self.pieces.range(offset..).next();
        if before.is_some_and(|(start, (length, _))| start + length > offset)
            || after.is_some_and(|(start, _)| *start < end)
        {
            return Err(ProtocolError::Overlap { offset });
        }
        let mut whole = (offset, length);
        if let Some((&start, &(length, kind))) = before
            && start + length == offset
            && kind == content
        {
            whole = (start, length + whole.1);
        }
        if let Some((&start, &(length, kind))) = after
            && start == end
            && kind == content
        {
            self.pieces.remove(&start);
            whole.1 += length;
        }
        self.pieces.insert(whole.0, (whole.1, content));
        if self.pieces.len() > MAX_PIECES {
            return Err(ProtocolError::TooManyPieces);
        }
        Ok(())
    }

    /// Where the bytes of a claimed piece go.
    pub(super) fn place(&mut self, offset: u64, length: u64) -> &mut [u8] {
        let span = self.span(offset, length);
        &mut self.buffer[span]
    }

    fn span(&self, offset: u64, length: u64) -> std::ops::Range<usize> {
        let index = |number: u64| {
            usize::try_from(number - self.offset).expect("BUG: a piece outside its request")
        };
        index(offset)..index(offset + length)
    }

    fn first_missing(&self) -> Option<u64> {
        let mut next = self.offset;
        for (&start, &(length, _)) in &self.pieces {
            if start > next {
                break;
            }
            next = start + length;
        }
        (next < self.offset + self.length).then_some(next)
    }

    /// The pieces in ascending order: the bytes of data, nothing for a hole.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64, Option<&[u8]>)> {
        self.pieces.iter().map(|(&offset, &(length, content))| {
            let data = match content {
                Content::Data => Some(&self.buffer[self.span(offset, length)]),
                Content::Hole => None,
            };
            (offset, length, data)
        })
    }
}

impl StatusBody {
    /// Whether `id` may still answer; it then counts as answered.
    pub(super) fn claim(&mut self, id: u32) -> Result<(), ProtocolError> {
        let position = self
            .expected
            .iter()
            .position(|expected| *expected == id)
            .ok_or(ProtocolError::UnexpectedContext { id })?;
        self.expected.swap_remove(position);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn body(offset: u64, length: usize) -> ReadBody {
        match Assembly::read(offset, length as u64, vec![0; length]).body {
            Body::Read(read) => read,
            Body::Status(_) | Body::Nothing => unreachable!("made as a read"),
        }
    }

    #[test]
    fn a_piece_outside_or_twice_is_refused() {
        let mut read = body(1000, 100);
        for (offset, length) in [
            (999, 2),
            (1099, 2),
            (1000, 0),
            (0, 1),
            (u64::MAX, 2),
            (1100, 1),
        ] {
            assert_eq!(
                read.claim(offset, length, Content::Data),
                Err(ProtocolError::OutsideRequest { offset, length })
            );
        }
        read.claim(1010, 10, Content::Data).unwrap();
        for (offset, length) in [(1010, 1), (1019, 1), (1005, 6), (1000, 100), (1015, 50)] {
            assert_eq!(
                read.claim(offset, length, Content::Hole),
                Err(ProtocolError::Overlap { offset })
            );
        }
        assert_eq!(read.first_missing(), Some(1000));
        read.claim(1000, 10, Content::Hole).unwrap();
        assert_eq!(read.first_missing(), Some(1020));
        read.claim(1020, 80, Content::Data).unwrap();
        assert_eq!(read.first_missing(), None);
    }

    #[test]
    fn pieces_are_bounded_however_they_are_scattered() {
        let mut read = body(0, 4 * MAX_PIECES);
        let outcome = (0..2 * MAX_PIECES as u64)
            .map(|index| read.claim(index * 2, 1, Content::Data))
            .find(Result::is_err);
        assert_eq!(outcome, Some(Err(ProtocolError::TooManyPieces)));
    }

    proptest! {
        #[test]
        fn any_order_of_pieces_gives_the_same_reply(
            cuts in prop::collection::btree_set(1u64..500, 0..40),
            order: prop::sample::Index,
            holes: Vec<bool>,
        ) {
            let mut bounds: Vec<u64> = cuts.into_iter().collect();
            bounds.insert(0, 0);
            bounds.push(500);
            let mut pieces: Vec<_> = bounds
                .windows(2)
                .enumerate()
                .map(|(i, pair)| (pair[0], pair[1] - pair[0], holes.get(i) == Some(&true)))
                .collect();
            let turn = order.index(pieces.len());
            pieces.rotate_left(turn);
            if turn % 2 == 1 {
                pieces.reverse();
            }
            let mut read = body(0, 500);
            for (offset, length, hole) in pieces {
                prop_assert!(read.first_missing().is_some());
                if hole {
                    read.claim(offset, length, Content::Hole).unwrap();
                } else {
                    read.claim(offset, length, Content::Data).unwrap();
                    read.place(offset, length).fill(7);
                }
            }
            prop_assert_eq!(read.first_missing(), None);
            let mut next = 0;
            for (offset, length, data) in read.pieces() {
                prop_assert_eq!(offset, next);
                prop_assert!(data.is_none_or(|d| d.len() as u64 == length
                    && d.iter().all(|byte| *byte == 7)));
                next += length;
            }
            prop_assert_eq!(next, 500);
        }
    }
}
