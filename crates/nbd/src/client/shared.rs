//! What the callers and the receiving thread of one connection share.
//!
//! A caller puts its request into a slot, sends it and waits for the slot to be
//! filled. The window (how many requests and bytes may be under way) is given back
//! when the reply is complete; what a caller keeps afterwards is its own affair.
//! Whoever finds the connection broken, or waits beyond its deadline, ends it for all.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::assembly::{Assembly, Body};
use super::error::{ConnectionLost, RequestError, RequestKind};
use super::negotiate::Agreement;
use crate::codec::{ErrorChunk, Request, encode_request};
use crate::deadline::Deadline;
use crate::wire::{Wire, send_all};

/// The window of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) requests: usize,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) wire: Arc<dyn Wire>,
    pub(super) agreement: Agreement,
    window: Window,
    state: Mutex<State>,
    /// Room in the window, or the end of the connection.
    room: Condvar,
    /// Keeps a request and its payload together.
    sending: Mutex<()>,
}

#[derive(Debug)]
struct State {
    slots: HashMap<u64, Slot>,
    next_cookie: u64,
    requests: usize,
    bytes: u64,
    lost: Option<Arc<ConnectionLost>>,
    /// Buffers of finished reads, for the next ones.
    buffers: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Slot {
    stage: Stage,
    interest: Interest,
    cost: u64,
    done: Arc<Condvar>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing of the reply has come.
    Waiting(Assembly),
    /// The receiving thread has the assembly.
    Receiving,
    Done(Result<Body, ErrorChunk>),
}

/// Whether anybody waits for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interest {
    Wanted,
    /// The reply is still to come, and will be dropped.
    Abandoned,
}

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) command: u16,
    pub(super) flags: u16,
    /// What the header's length field says.
    pub(super) length: u64,
    pub(super) payload: &'a [u8],
    pub(super) assembly: Assembly,
}

/// The right to one reply.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    shared: &'a Shared,
    cookie: u64,
    kind: RequestKind,
    offset: u64,
    deadline: Deadline,
    done: Arc<Condvar>,
}

impl Shared {
    pub(super) fn new(wire: Arc<dyn Wire>, agreement: Agreement, window: Window) -> Self {
        Self {
            wire,
            agreement,
            window,
            state: Mutex::new(State {
                slots: HashMap::new(),
                next_cookie: 1,
                requests: 0,
                bytes: 0,
                lost: None,
                buffers: Vec::new(),
            }),
            room: Condvar::new(),
            sending: Mutex::new(()),
        }
    }

    /// Sends a request once the window has room for it.
    pub(super) fn submit(
        &self,
        request: Outgoing<'_>,
        deadline: Deadline,
    ) -> Result<Ticket<'_>, RequestError> {
        let Outgoing {
            command,
            flags,
            length,
            payload,
            assembly,
        } = request;
        let (kind, offset) = (assembly.kind, assembly.offset);
        let failed = |source| RequestError::Lost {
            request: kind,
            offset,
            source,
        };
        let ticket = self.enter(assembly, deadline).map_err(failed)?;
        let header = encode_request(
            self.agreement.framing,
            &Request {
                flags,
                command,
                cookie: ticket.cookie,
                offset,
                length,
            },
        );
        let header = &header[..self.agreement.framing.request_header()];
        let sent = {
            let _order = lock(&self.sending);
            let mut parts = [IoSlice::new(header), IoSlice::new(payload)];
            send_all(self.wire.as_ref(), &mut parts, deadline)
        };
        if let Err(source) = sent {
            let reason = if source.kind() == std::io::ErrorKind::TimedOut {
                ConnectionLost::Deadline {
                    request: kind,
                    offset,
                }
            } else {
                ConnectionLost::Send { source }
            };
            return Err(failed(self.lose(reason)));
        }
        Ok(ticket)
    }

    /// Takes a place in the window.
    fn enter(
        &self,
        assembly: Assembly,
        deadline: Deadline,
    ) -> Result<Ticket<'_>, Arc<ConnectionLost>> {
        let (kind, offset) = (assembly.kind, assembly.offset);
        let cost = match kind {
            RequestKind::Read | RequestKind::Write => assembly.length,
            RequestKind::WriteZeroes
            | RequestKind::Trim
            | RequestKind::Flush
            | RequestKind::BlockStatus => 0,
        };
        let mut state = lock(&self.state);
        loop {
            if let Some(lost) = &state.lost {
                return Err(Arc::clone(lost));
            }
            // Alone, even a request larger than the whole window may go.
            let fits = state.bytes == 0 || state.bytes + cost <= self.window.bytes;
            if fits && state.requests < self.window.requests {
                break;
            }
            state = match wait(&self.room, state, deadline) {
                Ok(state) => state,
                Err(state) => {
                    drop(state);
                    return Err(self.lose(ConnectionLost::Deadline {
                        request: kind,
                        offset,
                    }));
                }
            };
        }
        let cookie = state.next_cookie;
        state.next_cookie = cookie.wrapping_add(1);
        state.requests += 1;
        state.bytes += cost;
        let done = Arc::new(Condvar::new());
        state.slots.insert(
            cookie,
            Slot {
                stage: Stage::Waiting(assembly),
                interest: Interest::Wanted,
                cost,
                done: Arc::clone(&done),
            },
        );
        Ok(Ticket {
            shared: self,
            cookie,
            kind,
            offset,
            deadline,
            done,
        })
    }

    /// Ends the connection for everybody; the first reason stays.
    pub(super) fn lose(&self, reason: ConnectionLost) -> Arc<ConnectionLost> {
        let mut state = lock(&self.state);
        let lost = Arc::clone(state.lost.get_or_insert_with(|| Arc::new(reason)));
        for slot in state.slots.values() {
            slot.done.notify_all();
        }
        self.room.notify_all();
        drop(state);
        self.wire.close();
        lost
    }

    /// True once the connection has ended.
    pub(super) fn is_lost(&self) -> bool {
        lock(&self.state).lost.is_some()
    }

    /// Hands the receiving thread the assembly of a reply that begins to come in.
    pub(super) fn take_assembly(&self, cookie: u64) -> Option<Assembly> {
        let mut state = lock(&self.state);
        let slot = state.slots.get_mut(&cookie)?;
        match std::mem::replace(&mut slot.stage, Stage::Receiving) {
            Stage::Waiting(assembly) => Some(assembly),
            other => {
                slot.stage = other;
                None
            }
        }
    }

    /// The reply to `cookie` is complete.
    pub(super) fn deliver(&self, cookie: u64, outcome: Result<Body, ErrorChunk>) {
        let mut state = lock(&self.state);
        let slot = state
            .slots
            .get_mut(&cookie)
            .expect("BUG: a reply was received for a slot that is gone");
        let abandoned = slot.interest == Interest::Abandoned;
        slot.stage = Stage::Done(outcome);
        slot.done.notify_all();
        let cost = slot.cost;
        state.requests -= 1;
        state.bytes -= cost;
        if abandoned
            && let Some(slot) = state.slots.remove(&cookie)
            && let Stage::Done(Ok(Body::Read(read))) = slot.stage
        {
            self.keep_buffer(&mut state, read.buffer);
        }
        drop(state);
        self.room.notify_all();
    }

    /// A buffer of at least `length` bytes with any content.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = lock(&self.state).buffers.pop().unwrap_or_default();
        if buffer.len() < length {
            // Nothing of the old content is worth copying.
            buffer = vec![0; length];
        }
        buffer
    }

    /// Gives a buffer back.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        self.keep_buffer(&mut lock(&self.state), buffer);
    }

    fn keep_buffer(&self, state: &mut State, buffer: Vec<u8>) {
        let kept: usize = state.buffers.iter().map(Vec::len).sum();
        let fits = (kept + buffer.len()) as u64 <= self.window.bytes;
        if fits && state.buffers.len() < self.window.requests {
            state.buffers.push(buffer);
        }
    }
}

impl Ticket<'_> {
    /// Waits for the reply. Beyond the deadline the connection is ended, because
    /// nothing tells whether the reply would still come.
    pub(super) fn wait(self) -> Result<Body, RequestError> {
        let failed = |source| RequestError::Lost {
            request: self.kind,
            offset: self.offset,
            source,
        };
        let mut state = lock(&self.shared.state);
        loop {
            let slot = state
                .slots
                .get(&self.cookie)
                .expect("BUG: a slot went away while its ticket exists");
            if matches!(slot.stage, Stage::Done(_)) {
                break;
            }
            if let Some(lost) = &state.lost {
                return Err(failed(Arc::clone(lost)));
            }
            state = match wait(&self.done, state, self.deadline) {
                Ok(state) => state,
                Err(state) => {
                    drop(state);
                    let reason = ConnectionLost::Deadline {
                        request: self.kind,
                        offset: self.offset,
                    };
                    return Err(failed(self.shared.lose(reason)));
                }
            };
        }
        let slot = state.slots.remove(&self.cookie);
        drop(state);
        match slot.map(|slot| slot.stage) {
            Some(Stage::Done(Ok(body))) => Ok(body),
            Some(Stage::Done(Err(chunk))) => Err(RequestError::Refused {
                request: self.kind,
                offset: self.offset,
                errno: chunk.errno,
                message: chunk.message,
            }),
            _ => unreachable!("BUG: the slot was done under the same lock"),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        let Some(slot) = state.slots.get_mut(&self.cookie) else {
            return;
        };
        match &slot.stage {
            Stage::Done(_) => {
                state.slots.remove(&self.cookie);
            }
            // The receiving thread still needs to know what to expect.
            Stage::Waiting(_) | Stage::Receiving => slot.interest = Interest::Abandoned,
        }
    }
}

/// Waits for `what`; the guard comes back as an error when the deadline has passed.
fn wait<'a>(
    what: &Condvar,
    guard: MutexGuard<'a, State>,
    deadline: Deadline,
) -> Result<MutexGuard<'a, State>, MutexGuard<'a, State>> {
    match deadline.remaining() {
        None => Ok(what.wait(guard).unwrap_or_else(PoisonError::into_inner)),
        Some(left) if left.is_zero() => Err(guard),
        Some(left) => Ok(what
            .wait_timeout(guard, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0),
    }
}

/// A panic elsewhere leaves the counts at worst too high: requests then wait and
/// meet their deadline.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
