//! One context of an export as a stream of extents.

use std::collections::VecDeque;

use super::Client;
use super::assembly::{Assembly, Body};
use super::error::{RequestError, RequestKind};
use super::negotiate::GrantedContext;
use super::shared::Outgoing;
use crate::extent::Extent;
use crate::protocol::{BLOCK_STATUS_PAYLOAD, CMD_BLOCK_STATUS, CMD_FLAG_PAYLOAD_LEN, Framing};

/// The most a compact request can ask about, on every possible block size.
const COMPACT_STEP: u64 = (1 << 32) - (1 << 16);

/// Extents of one context, ascending and without gaps, from the start of the range
/// to its end. Each step asks the server for more when the last answer is used up,
/// so memory holds one answer. After an error it ends.
#[derive(Debug)]
pub struct Extents<'a> {
    client: &'a Client,
    context: GrantedContext,
    next: u64,
    end: u64,
    ready: VecDeque<Extent>,
}

impl<'a> Extents<'a> {
    pub(super) fn new(
        client: &'a Client,
        context: GrantedContext,
        offset: u64,
        length: u64,
    ) -> Self {
        Self {
            client,
            context,
            next: offset,
            end: offset + length,
            ready: VecDeque::new(),
        }
    }

    /// Asks from `next` on. The receiver refuses answers that make no progress.
    fn ask(&mut self) -> Result<(), RequestError> {
        let shared = &self.client.shared;
        let agreement = &shared.agreement;
        let step = match agreement.framing {
            Framing::Simple | Framing::Structured => COMPACT_STEP,
            Framing::Extended => u64::MAX,
        };
        let length = (self.end - self.next).min(step);
        let choose = agreement.flags & BLOCK_STATUS_PAYLOAD != 0
            && agreement.framing == Framing::Extended
            && agreement.contexts.len() > 1;
        let mut payload = Vec::new();
        let (flags, expected) = if choose {
            // Spares the server from looking up what nobody asked.
            payload.extend_from_slice(&length.to_be_bytes());
            payload.extend_from_slice(&self.context.id.to_be_bytes());
            (CMD_FLAG_PAYLOAD_LEN, vec![self.context.id])
        } else {
            (0, agreement.contexts.iter().map(|c| c.id).collect())
        };
        let request = Outgoing {
            command: CMD_BLOCK_STATUS,
            flags,
            length: if choose { payload.len() as u64 } else { length },
            payload: &payload,
            assembly: Assembly::status(self.next, length, expected),
        };
        let body = shared.submit(request, self.client.deadline())?.wait()?;
        let Body::Status(status) = body else {
            unreachable!("BUG: a block status was assembled as something else");
        };
        let extents = status
            .found
            .into_iter()
            .find(|(id, _)| *id == self.context.id)
            .map(|(_, extents)| extents)
            .expect("BUG: a complete block status has every context");
        self.next = extents.last().map_or(self.next, Extent::end);
        self.ready = extents.into();
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, RequestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && self.next < self.end
            && let Err(error) = self.ask()
        {
            self.next = self.end;
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

impl Client {
    /// The extents of `context` in a range. Lengths of 0 give nothing.
    ///
    /// # Errors
    /// When the context was not granted, or the range does not fit the export.
    pub fn extents(
        &self,
        context: &crate::ContextName,
        offset: u64,
        length: u64,
    ) -> Result<Extents<'_>, RequestError> {
        self.check_range(RequestKind::BlockStatus, offset, length)?;
        let granted = self
            .shared
            .agreement
            .contexts
            .iter()
            .find(|granted| granted.name == *context)
            .ok_or_else(|| RequestError::ContextNotGranted {
                context: context.clone(),
            })?;
        Ok(Extents::new(self, granted.clone(), offset, length))
    }
}
