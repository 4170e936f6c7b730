//! Many ranges read at once and delivered one after the other.

use std::collections::VecDeque;

use super::Client;
use super::assembly::{Assembly, Body};
use super::error::{RequestError, RequestKind};
use super::shared::{Outgoing, Ticket};
use crate::protocol::CMD_READ;

/// Part of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Data(&'a [u8]),
    /// `length` bytes that read as zeroes, as the server says.
    Hole {
        length: u64,
    },
}

impl Piece<'_> {
    /// How many bytes of the export this is.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole { length } => *length,
        }
    }
}

impl Client {
    /// Reads `ranges` (offset, length) with up to `depth` requests under way and hands
    /// the pieces to `deliver` with their offsets, strictly in the order of the ranges
    /// and without gaps. Ranges are split to what one request may carry; memory holds
    /// no more than `depth` such requests, whatever `deliver` does meanwhile. Lengths
    /// of 0 deliver nothing.
    ///
    /// # Errors
    /// The first error, of a request or of `deliver`; nothing is delivered after it.
    pub fn read_ranges<I, F, E>(&self, ranges: I, depth: usize, mut deliver: F) -> Result<(), E>
    where
        I: IntoIterator<Item = (u64, u64)>,
        F: FnMut(u64, Piece<'_>) -> Result<(), E>,
        E: From<RequestError>,
    {
        let depth = depth.max(1);
        let mut ranges = ranges.into_iter();
        let mut rest = (0, 0);
        let mut under_way: VecDeque<Ticket<'_>> = VecDeque::with_capacity(depth.min(256));
        loop {
            while under_way.len() < depth {
                if rest.1 == 0 {
                    let Some(range) = ranges.next() else { break };
                    self.check_range(RequestKind::Read, range.0, range.1)?;
                    rest = range;
                    continue;
                }
                let length = rest.1.min(self.request_size());
                under_way.push_back(self.begin_read(rest.0, length)?);
                rest = (rest.0 + length, rest.1 - length);
            }
            let Some(ticket) = under_way.pop_front() else {
                return Ok(());
            };
            self.hand_over(ticket, &mut deliver)?;
        }
    }

    fn begin_read(&self, offset: u64, length: u64) -> Result<Ticket<'_>, RequestError> {
        let size = usize::try_from(length).expect("BUG: a request larger than memory");
        let request = Outgoing {
            command: CMD_READ,
            flags: 0,
            length,
            payload: &[],
            assembly: Assembly::read(offset, length, self.shared.buffer(size)),
        };
        self.shared.submit(request, self.deadline())
    }

    fn hand_over<F, E>(&self, ticket: Ticket<'_>, deliver: &mut F) -> Result<(), E>
    where
        F: FnMut(u64, Piece<'_>) -> Result<(), E>,
        E: From<RequestError>,
    {
        let Body::Read(read) = ticket.wait()? else {
            unreachable!("BUG: a read was assembled as something else");
        };
        for (offset, length, data) in read.pieces() {
            let piece = data.map_or(Piece::Hole { length }, Piece::Data);
            deliver(offset, piece)?;
        }
        self.shared.recycle(read.buffer);
        Ok(())
    }
}
