//! One client that has opened an export: requests in, replies out.
//!
//! The connection's own thread receives requests and payloads; a few workers, started
//! when there is work for them, serve several at once and send the replies. What one
//! client may have under way is bounded by count and bytes: beyond that its
//! requests stay in the socket.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use super::ServerOptions;
use super::answer::Terms;
use super::end::EndReason;
use super::negotiate::Opened;
use crate::codec::{Request, decode_request};
use crate::deadline::Deadline;
use crate::protocol::{
    CMD_BLOCK_STATUS, CMD_DISC, CMD_FLAG_PAYLOAD_LEN, CMD_READ, CMD_WRITE, Framing, MAX_PAYLOAD,
};
use crate::wire::{Input, Wire, send_all};

/// What a list of extents may take in memory, for the budget.
const STATUS_COST: usize = 2 << 20;

/// What a client is waited for after the last reply, so that the reply arrives.
const LINGER: std::time::Duration = std::time::Duration::from_millis(500);

/// Serves `opened` until the client leaves, the server stops or something breaks.
pub(super) fn serve(opened: Opened, options: &ServerOptions, stopping: &AtomicBool) -> EndReason {
    let Opened {
        session,
        mut input,
        framing,
        contexts,
    } = opened;
    let floor = Floor {
        wire: Arc::clone(input.wire()),
        terms: Terms {
            entry: &session.entry,
            framing,
            contexts: &contexts,
        },
        options,
        state: Mutex::new(State::default()),
        work: Condvar::new(),
        room: Condvar::new(),
        sending: Mutex::new(()),
    };
    let ended = || stopping.load(Ordering::Acquire) || session.entry.is_retired();
    let received = std::thread::scope(|scope| {
        let received = floor.receive(&mut input, scope, &ended);
        floor.close();
        received
    });
    let reason = lock(&floor.state).broken.take().unwrap_or(received);
    floor.part(&mut input, &reason);
    reason
}

/// Where the requests of one connection meet the workers.
struct Floor<'a> {
    wire: Arc<dyn Wire>,
    terms: Terms<'a>,
    options: &'a ServerOptions,
    state: Mutex<State>,
    /// A job, or the end.
    work: Condvar,
    /// Room for another request, or the end.
    room: Condvar,
    /// Keeps a reply together.
    sending: Mutex<()>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
    workers: usize,
    idle: usize,
    requests: usize,
    bytes: usize,
    buffers: Vec<Vec<u8>>,
    /// Why nothing can be sent any more.
    broken: Option<EndReason>,
}

/// A request with its payload, or a buffer for what it reads.
struct Job {
    request: Request,
    data: Vec<u8>,
    length: usize,
    cost: usize,
}

/// Gives the budget of a job back, also when serving it panics.
struct Settled<'a, 'b> {
    floor: &'a Floor<'b>,
    cost: usize,
    data: Vec<u8>,
}

impl Drop for Settled<'_, '_> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut state = lock(&self.floor.state);
        state.requests -= 1;
        state.bytes -= self.cost;
        let kept: usize = state.buffers.iter().map(Vec::len).sum();
        if !data.is_empty() && kept + data.len() <= self.floor.options.max_in_flight_bytes {
            state.buffers.push(data);
        }
        if std::thread::panicking() {
            state.broken.get_or_insert(EndReason::Panicked);
            self.floor.wire.close();
        }
        drop(state);
        self.floor.room.notify_all();
    }
}

impl<'a> Floor<'a> {
    fn receive<'scope>(
        &'scope self,
        input: &mut Input,
        scope: &'scope Scope<'scope, '_>,
        ended: &dyn Fn() -> bool,
    ) -> EndReason {
        loop {
            let idle = self
                .options
                .idle_deadline
                .map_or(Deadline::NEVER, Deadline::after);
            match input.wait(idle) {
                _ if ended() => return EndReason::Shutdown,
                Ok(true) => {}
                Ok(false) => return EndReason::HungUp,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    if self.is_busy() {
                        continue;
                    }
                    return EndReason::Idle;
                }
                Err(source) => return EndReason::Receive { source },
            }
            let job = match self.request(input) {
                Ok(Some(job)) => job,
                Ok(None) => return EndReason::Disconnected,
                Err(reason) => return reason,
            };
            self.hand_over(job, scope);
        }
    }

    /// Receives one request; nothing for a good-bye.
    fn request(&self, input: &mut Input) -> Result<Option<Job>, EndReason> {
        let deadline = Deadline::after(self.options.transfer_deadline);
        let framing = self.terms.framing;
        let mut header = [0; 32];
        let header = &mut header[..framing.request_header()];
        input.fill(header, deadline).map_err(receiving)?;
        let request = decode_request(framing, header).ok_or(EndReason::RequestMagic)?;
        if request.command == CMD_DISC {
            return Ok(None);
        }
        // QEMU's client sends the data of a write without the flag that announces it.
        let announced = framing == Framing::Extended && request.flags & CMD_FLAG_PAYLOAD_LEN != 0;
        let carries = announced || request.command == CMD_WRITE;
        let most = u64::from(MAX_PAYLOAD);
        if carries && request.length > most {
            let length = request.length;
            return Err(EndReason::OversizePayload { length });
        }
        let length = match request.command {
            _ if carries => request.length,
            // More will be refused, and needs no buffer for that.
            CMD_READ if request.length <= most => request.length,
            _ => 0,
        };
        let length = usize::try_from(length).unwrap_or_default();
        let cost = match request.command {
            CMD_BLOCK_STATUS => length + STATUS_COST,
            _ => length,
        };
        let mut data = self.admit(length, cost)?;
        if carries {
            // The deadline starts anew: the budget may have been waited for.
            let deadline = Deadline::after(self.options.transfer_deadline);
            if let Err(error) = input.fill(&mut data[..length], deadline) {
                drop(self.settle(cost, data));
                return Err(receiving(error));
            }
        }
        Ok(Some(Job {
            request,
            data,
            length,
            cost,
        }))
    }

    /// Waits for room in the budget and takes it, with a buffer of at least `length`.
    fn admit(&self, length: usize, cost: usize) -> Result<Vec<u8>, EndReason> {
        let limits = self.options;
        let mut state = lock(&self.state);
        loop {
            if state.broken.is_some() {
                // What broke the connection is told instead.
                return Err(EndReason::HungUp);
            }
            let fits = state.bytes == 0 || state.bytes + cost <= limits.max_in_flight_bytes;
            if fits && state.requests < limits.max_in_flight.max(1) {
                break;
            }
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.requests += 1;
        state.bytes += cost;
        if length == 0 {
            return Ok(Vec::new());
        }
        let buffer = state.buffers.pop().unwrap_or_default();
        drop(state);
        if buffer.len() < length {
            return Ok(vec![0; length]);
        }
        Ok(buffer)
    }

    fn settle(&self, cost: usize, data: Vec<u8>) -> Settled<'_, 'a> {
        Settled {
            floor: self,
            cost,
            data,
        }
    }

    /// Queues a job and sees that somebody serves it.
    fn hand_over<'scope>(&'scope self, job: Job, scope: &'scope Scope<'scope, '_>) {
        let mut state = lock(&self.state);
        state.jobs.push_back(job);
        let wanted = state.jobs.len() > state.idle && state.workers < self.options.workers.max(1);
        if !wanted {
            drop(state);
            self.work.notify_one();
            return;
        }
        state.workers += 1;
        let alone = state.workers == 1;
        drop(state);
        let started = std::thread::Builder::new()
            .name("nbd-serve".to_owned())
            .spawn_scoped(scope, || self.serve());
        if started.is_err() {
            lock(&self.state).workers -= 1;
            if alone {
                // Without any thread to be had, this one does it.
                let job = lock(&self.state).jobs.pop_front();
                job.into_iter().for_each(|job| self.answer(job));
            }
        }
    }

    /// A worker: serves until the connection is closed and no job is left.
    fn serve(&self) {
        loop {
            let mut state = lock(&self.state);
            let job = loop {
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                if state.closed {
                    return;
                }
                state.idle += 1;
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            };
            drop(state);
            self.answer(job);
        }
    }

    fn answer(&self, job: Job) {
        let Job {
            request,
            data,
            length,
            cost,
        } = job;
        let mut settled = self.settle(cost, data);
        if lock(&self.state).broken.is_some() {
            return;
        }
        let reply = self.terms.perform(&request, &mut settled.data[..length]);
        let framed = reply.frame(self.terms.framing, &request);
        let mut parts = framed.parts(&settled.data);
        let sent = {
            let _order = lock(&self.sending);
            // Starts when it is this reply's turn: the ones before have their own.
            let deadline = Deadline::after(self.options.transfer_deadline);
            send_all(self.wire.as_ref(), &mut parts, deadline)
        };
        if let Err(source) = sent {
            let reason = if source.kind() == io::ErrorKind::TimedOut {
                EndReason::TransferDeadline
            } else {
                EndReason::Send { source }
            };
            lock(&self.state).broken.get_or_insert(reason);
            self.wire.close();
        }
    }

    fn is_busy(&self) -> bool {
        lock(&self.state).requests > 0
    }

    /// No more jobs will come.
    fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_all();
    }

    /// Ends the connection so that what was sent arrives.
    fn part(&self, input: &mut Input, reason: &EndReason) {
        let deadline = Deadline::after(LINGER);
        let orderly = matches!(
            reason,
            EndReason::Disconnected | EndReason::Shutdown | EndReason::Idle
        );
        if orderly && self.wire.finish(deadline).is_ok() {
            // Closing with unread bytes would reset a TCP connection, and with it
            // replies on their way.
            while input.skip(1, deadline).is_ok() {}
        }
        self.wire.close();
    }
}

fn receiving(source: io::Error) -> EndReason {
    match source.kind() {
        io::ErrorKind::TimedOut => EndReason::TransferDeadline,
        io::ErrorKind::UnexpectedEof => EndReason::HungUp,
        _ => EndReason::Receive { source },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
