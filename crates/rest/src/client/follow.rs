//! Events as they happen.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Buf as _;
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;

use super::{Answer, Client, ClientError};
use crate::wire::{Event, EventGap};

/// The longest line of a stream that is read, in bytes.
const MAX_LINE: usize = 256 << 10;

/// A host shows signs of life four times as often.
const SILENCE: Duration = Duration::from_secs(60);

/// Something that a stream of events told.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    Event(Answer<Event>),
    /// Events that the host cannot give any more.
    Gap(EventGap),
}

impl Client {
    /// Gives every event after one (or from now on) to `each`, until that says to stop or the
    /// connection ends. `last` is kept at the last event given, so that calling this again with
    /// it goes on without a gap.
    ///
    /// # Errors
    /// When the host cannot be reached or refuses, or falls silent.
    pub fn follow_events(
        &self,
        last: &mut Option<u64>,
        mut each: impl FnMut(Followed) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let headers: Vec<_> = last
                .iter()
                .map(|id| ("last-event-id", id.to_string()))
                .collect();
            let sent = self.send(Method::GET, "/v1/events/stream", None, &headers);
            let response = self.in_time(sent).await??;
            let status = response.status();
            let mut incoming = response.into_body();
            if status != StatusCode::OK {
                let body = self.in_time(self.collect(incoming)).await??;
                return Err(self.problem(status, &body));
            }
            let mut lines = Lines::default();
            loop {
                let Some(frame) = self.in_time(incoming.frame()).await? else {
                    return Ok(());
                };
                let frame = frame.map_err(|source| ClientError::Receive {
                    address: self.address.clone(),
                    source: source.into(),
                })?;
                let Ok(mut data) = frame.into_data() else {
                    continue;
                };
                while data.has_remaining() {
                    let byte = data.get_u8();
                    let Some(message) = lines
                        .take(byte)
                        .map_err(|TooLong| self.unexpected("a line without an end"))?
                    else {
                        continue;
                    };
                    if let Some(followed) = self.understand(&message)? {
                        match &followed {
                            Followed::Event(event) => *last = Some(event.value.id),
                            Followed::Gap(gap) => *last = Some(gap.next.saturating_sub(1)),
                        }
                        if each(followed).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        })
    }

    async fn in_time<T>(&self, what: impl Future<Output = T>) -> Result<T, ClientError> {
        tokio::time::timeout(SILENCE, what)
            .await
            .map_err(|_| ClientError::TimedOut {
                address: self.address.clone(),
            })
    }

    fn understand(&self, message: &Message) -> Result<Option<Followed>, ClientError> {
        if message.data.is_empty() {
            return Ok(None);
        }
        let answer = if message.kind == "gap" {
            let gap: Answer<EventGap> = self.read(message.data.as_bytes())?;
            Followed::Gap(gap.value)
        } else {
            Followed::Event(self.read(message.data.as_bytes())?)
        };
        Ok(Some(answer))
    }
}

struct TooLong;

/// One message of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: String,
    data: String,
}

/// The lines of a stream, gathered to messages.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    message: Message,
}

impl Lines {
    /// Takes the next byte. Answers with a message when it ends one.
    fn take(&mut self, byte: u8) -> Result<Option<Message>, TooLong> {
        if byte != b'\n' {
            self.line.push(byte);
            let held = self.line.len() + self.message.data.len() + self.message.kind.len();
            return if held > MAX_LINE {
                Err(TooLong)
            } else {
                Ok(None)
            };
        }
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            return Ok(Some(std::mem::take(&mut self.message)));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.message.kind),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            // A comment, the id (which is in the data), or what later versions may add.
            _ => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<Message> {
        let mut lines = Lines::default();
        let taken = text.bytes().map(|byte| lines.take(byte).ok().flatten());
        taken.flatten().collect()
    }

    #[test]
    fn messages_end_with_an_empty_line_and_comments_are_none() {
        let read = messages(": alive\n\nid: 5\nevent: gap\r\ndata: {\"a\":\ndata:1}\n\ndata: half");
        let message = |kind: &str, data: &str| Message {
            kind: kind.to_owned(),
            data: data.to_owned(),
        };
        assert_eq!(read, [message("", ""), message("gap", "{\"a\":\n1}")]);
    }

    #[test]
    fn a_line_without_an_end_is_refused_before_it_takes_memory() {
        let mut lines = Lines::default();
        let refused = (0..=MAX_LINE).find(|_| lines.take(b'x').is_err());
        assert_eq!(refused, Some(MAX_LINE));
        // Many short ones are no better.
        let mut lines = Lines::default();
        let many = "data: x\n".bytes().cycle().take(8 * MAX_LINE);
        assert!(
            many.map(|byte| lines.take(byte))
                .any(|taken| taken.is_err())
        );
    }
}
