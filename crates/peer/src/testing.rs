//! Test tooling: peers in one process, on a network that fails as it is told.
//!
//! A [`Network`] carries calls from [`MemoryLinks`] to [`Host`]s without sockets. Messages and
//! answers go through their JSON, within the same bounds as on the wire. What goes wrong is
//! planned call by call, so a test can put a fault where it wants one. Not for the product.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_model::{Receipt, RelationshipId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::address::PeerAddress;
use crate::cancel::Cancel;
use crate::client::{Link, LinkError, Links};
use crate::distrust::{Distrust, WhyNotTrusted};
use crate::message::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Introduction, NewReplica, PlannedFailover, Refusal, Removal,
    ReplicaReport, SessionRequest, TakeOver, Verified,
};
use crate::port::{Host, PeerName};
use crate::throttle::Cancelled;
use crate::wire::{MAX_ANSWER, MAX_MESSAGE};

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The host is not reached.
    RefuseConnection,
    /// The connection ends before the host hears the call.
    LoseRequest,
    /// The host hears the call and answers; the caller sees the connection end.
    LoseAnswer,
    /// The host hears the call twice; the caller gets the second answer. A body is repeated
    /// from memory.
    Repeat,
    /// The body ends with an error after so many bytes, for both sides. A call without a body
    /// loses its request.
    CutBody { after: u64 },
}

/// Hosts in this process, by address.
#[derive(Debug, Clone, Default)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    hosts: HashMap<PeerAddress, (PeerName, Arc<dyn Host>)>,
    faults: HashMap<PeerAddress, VecDeque<Option<Fault>>>,
    unreachable: BTreeSet<PeerAddress>,
}

impl Network {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a host at an address, instead of the one that was there.
    pub fn add(&self, address: &PeerAddress, name: PeerName, host: Arc<dyn Host>) {
        self.lock().hosts.insert(address.clone(), (name, host));
    }

    /// Takes the host at an address away.
    pub fn remove(&self, address: &PeerAddress) {
        self.lock().hosts.remove(address);
    }

    /// Plans a fault for the next call to an address; several happen one after another.
    pub fn plan(&self, address: &PeerAddress, fault: Fault) {
        self.queue(address, Some(fault));
    }

    /// Lets one call through before the faults that are planned after this.
    pub fn plan_success(&self, address: &PeerAddress) {
        self.queue(address, None);
    }

    /// Whether every planned fault has happened.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.lock().faults.values().all(VecDeque::is_empty)
    }

    /// Nobody reaches the address until it is connected again.
    pub fn disconnect(&self, address: &PeerAddress) {
        self.lock().unreachable.insert(address.clone());
    }

    pub fn connect(&self, address: &PeerAddress) {
        self.lock().unreachable.remove(address);
    }

    /// The network as `caller` uses it.
    #[must_use]
    pub fn links(&self, caller: PeerName) -> MemoryLinks {
        MemoryLinks {
            network: self.clone(),
            caller,
        }
    }

    fn queue(&self, address: &PeerAddress, fault: Option<Fault>) {
        let mut state = self.lock();
        let faults = state.faults.entry(address.clone()).or_default();
        faults.push_back(fault);
    }

    /// The host at an address and what happens to this call to it.
    fn next(&self, address: &PeerAddress) -> Option<(PeerName, Arc<dyn Host>, Option<Fault>)> {
        let mut state = self.lock();
        if state.unreachable.contains(address) {
            return None;
        }
        let (name, host) = state.hosts.get(address).cloned()?;
        let fault = state
            .faults
            .get_mut(address)
            .and_then(VecDeque::pop_front)
            .flatten();
        Some((name, host, fault))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`Links`] over a [`Network`].
#[derive(Debug, Clone)]
pub struct MemoryLinks {
    network: Network,
    caller: PeerName,
}

impl Links for MemoryLinks {
    fn to(&self, address: &PeerAddress, host: Option<&str>) -> Result<Arc<dyn Link>, LinkError> {
        Ok(Arc::new(MemoryLink {
            links: self.clone(),
            address: address.clone(),
            expected: host.map(str::to_owned),
            cancel: Cancel::new(),
        }))
    }
}

#[derive(Debug, Clone)]
struct MemoryLink {
    links: MemoryLinks,
    address: PeerAddress,
    expected: Option<String>,
    cancel: Cancel,
}

impl MemoryLink {
    /// The host, as far as it is reached, and the fault that remains to happen.
    fn reach(&self) -> Result<(Arc<dyn Host>, Option<Fault>), LinkError> {
        if self.cancel.is_raised() {
            return Err(LinkError::Cancelled);
        }
        let unreachable = || LinkError::Unreachable {
            address: self.address.clone(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        let (name, host, fault) = self
            .links
            .network
            .next(&self.address)
            .ok_or_else(unreachable)?;
        if let Some(expected) = &self.expected
            && expected != name.as_str()
        {
            return Err(LinkError::NotTrusted {
                address: self.address.clone(),
                why: WhyNotTrusted::Peer(Distrust::WrongName {
                    expected: expected.clone(),
                    presented: vec![name.to_string()],
                }),
            });
        }
        match fault {
            Some(Fault::RefuseConnection) => Err(unreachable()),
            Some(Fault::LoseRequest) => Err(self.interrupted()),
            Some(Fault::LoseAnswer | Fault::Repeat | Fault::CutBody { .. }) | None => {
                Ok((host, fault))
            }
        }
    }

    fn interrupted(&self) -> LinkError {
        LinkError::Interrupted {
            address: self.address.clone(),
            source: io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// A call without a body.
    fn call<T>(
        &self,
        ask: impl Fn(&dyn Host, &PeerName) -> Result<T, Refusal>,
    ) -> Result<T, LinkError> {
        let (host, fault) = self.reach()?;
        let caller = &self.links.caller;
        match fault {
            Some(Fault::CutBody { .. }) => return Err(self.interrupted()),
            Some(Fault::Repeat) => {
                let _ = ask(host.as_ref(), caller);
            }
            Some(Fault::RefuseConnection | Fault::LoseRequest | Fault::LoseAnswer) | None => {}
        }
        let answer = ask(host.as_ref(), caller);
        match fault {
            Some(Fault::LoseAnswer) => Err(self.interrupted()),
            Some(
                Fault::RefuseConnection
                | Fault::LoseRequest
                | Fault::Repeat
                | Fault::CutBody { .. },
            )
            | None => answer.map_err(LinkError::Refused),
        }
    }

    /// A call whose message and answer travel as JSON.
    fn asked<M, A>(
        &self,
        message: &M,
        ask: fn(&dyn Host, &PeerName, M) -> Result<A, Refusal>,
    ) -> Result<A, LinkError>
    where
        M: Serialize + DeserializeOwned,
        A: Serialize + DeserializeOwned,
    {
        let sent = self.travelled(message, MAX_MESSAGE)?;
        let answer = self.call(|host, caller| ask(host, caller, parse(&sent)))?;
        Ok(parse(&self.travelled(&answer, MAX_ANSWER)?))
    }

    fn travelled<T: Serialize>(&self, message: &T, most: usize) -> Result<Vec<u8>, LinkError> {
        let text = serde_json::to_vec(message).map_err(|error| LinkError::Protocol {
            address: self.address.clone(),
            why: error.to_string(),
        })?;
        if text.len() > most {
            return Err(LinkError::Unsendable {
                why: format!("it has {} bytes, and {most} are the limit", text.len()),
            });
        }
        Ok(text)
    }

    /// A call with a body.
    fn stream<T>(
        &self,
        body: &mut (dyn Read + Send),
        put: impl Fn(&dyn Host, &PeerName, &mut dyn Read) -> Result<T, Refusal>,
    ) -> Result<T, LinkError> {
        let (host, fault) = self.reach()?;
        let caller = &self.links.caller;
        let (limit, kept) = match fault {
            Some(Fault::CutBody { after }) => (after, Kept::Nothing),
            Some(Fault::Repeat) => (u64::MAX, Kept::All(Vec::new())),
            Some(Fault::RefuseConnection | Fault::LoseRequest | Fault::LoseAnswer) | None => {
                (u64::MAX, Kept::Nothing)
            }
        };
        let mut travelling = Travelling {
            body,
            left: limit,
            kept,
            cancel: &self.cancel,
            end: None,
        };
        let mut answer = put(host.as_ref(), caller, &mut travelling);
        let (end, kept) = (travelling.end, travelling.kept);
        match end {
            Some(End::Cut) => return Err(self.interrupted()),
            Some(End::Cancelled) => return Err(LinkError::Cancelled),
            Some(End::Source(error)) => return Err(LinkError::Source(error)),
            None => {}
        }
        if let Kept::All(bytes) = kept {
            answer = put(host.as_ref(), caller, &mut bytes.as_slice());
        }
        match fault {
            Some(Fault::LoseAnswer) => Err(self.interrupted()),
            Some(
                Fault::RefuseConnection
                | Fault::LoseRequest
                | Fault::Repeat
                | Fault::CutBody { .. },
            )
            | None => answer.map_err(LinkError::Refused),
        }
    }
}

/// What was read is read back.
fn parse<T: DeserializeOwned>(text: &[u8]) -> T {
    serde_json::from_slice(text).expect("BUG: a message is not read as it was written")
}

enum Kept {
    Nothing,
    All(Vec<u8>),
}

enum End {
    Cut,
    Cancelled,
    Source(io::Error),
}

/// A body as the host gets it.
struct Travelling<'a> {
    body: &'a mut (dyn Read + Send),
    left: u64,
    kept: Kept,
    cancel: &'a Cancel,
    end: Option<End>,
}

impl Read for Travelling<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let aborted = || io::Error::from(io::ErrorKind::ConnectionAborted);
        if self.end.is_some() {
            return Err(aborted());
        }
        if self.cancel.is_raised() {
            self.end = Some(End::Cancelled);
            return Err(aborted());
        }
        if self.left == 0 {
            self.end = Some(End::Cut);
            return Err(aborted());
        }
        let most = into
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        match self.body.read(&mut into[..most]) {
            Ok(read) => {
                self.left -= read as u64;
                if let Kept::All(bytes) = &mut self.kept {
                    bytes.extend_from_slice(&into[..read]);
                }
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let cancelled = error.get_ref().is_some_and(|cause| cause.is::<Cancelled>());
                self.end = Some(if cancelled {
                    End::Cancelled
                } else {
                    End::Source(error)
                });
                Err(aborted())
            }
        }
    }
}

impl Link for MemoryLink {
    fn introduce(&self) -> Result<Introduction, LinkError> {
        let answer = self.call(|host, caller| host.introduce(caller))?;
        Ok(parse(&self.travelled(&answer, MAX_ANSWER)?))
    }

    fn make_replica(&self, message: NewReplica) -> Result<(), LinkError> {
        self.asked(&message, |host, caller, message| {
            host.make_replica(caller, message)
        })
    }

    fn begin_session(&self, message: SessionRequest) -> Result<ReplicaReport, LinkError> {
        self.asked(&message, |host, caller, message| {
            host.begin_session(caller, message)
        })
    }

    fn begin_copy(&self, message: BeginCopy) -> Result<CopyProgress, LinkError> {
        self.asked(&message, |host, caller, message| {
            host.begin_copy(caller, message)
        })
    }

    fn digests(&self, message: DigestQuery) -> Result<Vec<u8>, LinkError> {
        let expected = message
            .answer_length()
            .map_err(|why| LinkError::Unsendable {
                why: why.to_string(),
            })?;
        let sent = self.travelled(&message, MAX_MESSAGE)?;
        let answer = self.call(|host, caller| host.digests(caller, parse(&sent)))?;
        if answer.len() as u64 != expected {
            return Err(LinkError::Protocol {
                address: self.address.clone(),
                why: format!(
                    "its answer has {} bytes instead of {expected}",
                    answer.len()
                ),
            });
        }
        Ok(answer)
    }

    fn verified(&self, message: Verified) -> Result<(), LinkError> {
        self.asked(&message, |host, caller, message| {
            host.verified(caller, message)
        })
    }

    fn put_chunk(&self, place: ChunkPlace, body: &mut (dyn Read + Send)) -> Result<(), LinkError> {
        self.stream(body, |host, caller, body| {
            host.put_chunk(caller, place.clone(), body)
        })
    }

    fn put_delta(
        &self,
        place: DeltaPlace,
        body: &mut (dyn Read + Send),
    ) -> Result<Receipt, LinkError> {
        self.stream(body, |host, caller, body| {
            host.put_delta(caller, place.clone(), body)
        })
    }

    fn planned_failover(&self, message: PlannedFailover) -> Result<(), LinkError> {
        self.asked(&message, |host, caller, message| {
            host.planned_failover(caller, message)
        })
    }

    fn guest_status(&self, relationship: RelationshipId) -> Result<GuestStatus, LinkError> {
        self.asked(&relationship, |host, caller, relationship| {
            host.guest_status(caller, relationship)
        })
    }

    fn take_over(&self, message: TakeOver) -> Result<(), LinkError> {
        self.asked(&message, |host, caller, message| {
            host.take_over(caller, message)
        })
    }

    fn adopt(&self, message: Adoption) -> Result<Adopted, LinkError> {
        self.asked(&message, |host, caller, message| {
            host.adopt(caller, message)
        })
    }

    fn change_settings(&self, message: ChangeSettings) -> Result<(), LinkError> {
        self.asked(&message, |host, caller, message| {
            host.change_settings(caller, message)
        })
    }

    fn remove(&self, message: Removal) -> Result<(), LinkError> {
        self.asked(&message, |host, caller, message| {
            host.remove(caller, message)
        })
    }

    fn cancelled_by(&self, cancel: Cancel) -> Arc<dyn Link> {
        Arc::new(Self {
            cancel,
            ..self.clone()
        })
    }
}
