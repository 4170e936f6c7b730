//! Peers as hosts that may die reach them, and what travels between them.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_model::{Receipt, RelationshipId};
use lifeboat_peer::testing::MemoryLinks;
use lifeboat_peer::{
    Adopted, Adoption, BeginCopy, Cancel, ChangeSettings, ChunkPlace, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Introduction, Link, LinkError, Links, NewReplica, PeerAddress,
    PlannedFailover, Removal, ReplicaReport, SessionRequest, TakeOver, Verified,
};

use crate::gate::Gate;

/// The present life of every host, and what all of them have sent.
#[derive(Debug, Default)]
pub struct Hosts {
    gates: Mutex<HashMap<PeerAddress, Arc<Gate>>>,
    pub calls: AtomicU64,
    /// Which calls of the protocol were made.
    pub asked: Mutex<BTreeSet<&'static str>>,
    /// Calls that nobody hears; `comparison` are questions for digests of one moment.
    pub unheard: Mutex<BTreeSet<&'static str>>,
    /// Every delta, as it was sent, with the receipt for it.
    pub deltas: Mutex<Vec<SentDelta>>,
    /// Bytes of pieces of copies.
    pub copied: AtomicU64,
    /// Bytes of deltas.
    pub sent: AtomicU64,
}

impl Hosts {
    pub fn lives(&self, address: &PeerAddress, gate: &Arc<Gate>) {
        lock(&self.gates).insert(address.clone(), Arc::clone(gate));
    }

    fn gate(&self, address: &PeerAddress) -> Option<Arc<Gate>> {
        lock(&self.gates).get(address).cloned()
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A delta as whoever listens has it.
#[derive(Debug, Clone)]
pub struct SentDelta {
    pub place: DeltaPlace,
    pub body: Vec<u8>,
    pub receipt: Receipt,
}

#[derive(Debug)]
pub struct GatedLinks {
    pub inner: MemoryLinks,
    pub own: Arc<Gate>,
    pub hosts: Arc<Hosts>,
}

impl Links for GatedLinks {
    fn to(&self, address: &PeerAddress, host: Option<&str>) -> Result<Arc<dyn Link>, LinkError> {
        Ok(Arc::new(GatedLink {
            inner: self.inner.to(address, host)?,
            address: address.clone(),
            own: Arc::clone(&self.own),
            hosts: Arc::clone(&self.hosts),
        }))
    }
}

#[derive(Debug)]
struct GatedLink {
    inner: Arc<dyn Link>,
    address: PeerAddress,
    own: Arc<Gate>,
    hosts: Arc<Hosts>,
}

impl GatedLink {
    fn interrupted(&self) -> LinkError {
        LinkError::Interrupted {
            address: self.address.clone(),
            source: io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// A call: whoever dies during it, nobody gets an answer.
    fn call<T>(
        &self,
        name: &'static str,
        ask: impl FnOnce() -> Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        let number = self.own.announce().map_err(|_| self.interrupted())?;
        self.hosts.calls.fetch_add(1, Ordering::SeqCst);
        if lock(&self.hosts.unheard).contains(name) {
            return Err(self.interrupted());
        }
        lock(&self.hosts.asked).insert(name);
        let callee = self.hosts.gate(&self.address);
        let is_dead = || callee.as_ref().is_some_and(|gate| gate.is_killed());
        let outcome = match catch_unwind(AssertUnwindSafe(ask)) {
            Ok(outcome) => outcome,
            Err(_) if is_dead() => Err(self.interrupted()),
            Err(panic) => resume_unwind(panic),
        };
        self.own.after(number).map_err(|_| self.interrupted())?;
        if is_dead() {
            return Err(self.interrupted());
        }
        outcome
    }
}

/// A body whose bytes are counted and kept.
struct Counted<'a> {
    body: &'a mut (dyn Read + Send),
    count: &'a AtomicU64,
    kept: Vec<u8>,
}

impl<'a> Counted<'a> {
    fn new(body: &'a mut (dyn Read + Send), count: &'a AtomicU64) -> Self {
        Self {
            body,
            count,
            kept: Vec::new(),
        }
    }
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.body.read(into)?;
        self.count.fetch_add(read as u64, Ordering::SeqCst);
        self.kept.extend_from_slice(&into[..read]);
        Ok(read)
    }
}

impl Link for GatedLink {
    fn introduce(&self) -> Result<Introduction, LinkError> {
        self.call("introduce", || self.inner.introduce())
    }

    fn make_replica(&self, message: NewReplica) -> Result<(), LinkError> {
        self.call("make_replica", || self.inner.make_replica(message))
    }

    fn begin_session(&self, message: SessionRequest) -> Result<ReplicaReport, LinkError> {
        self.call("begin_session", || self.inner.begin_session(message))
    }

    fn begin_copy(&self, message: BeginCopy) -> Result<CopyProgress, LinkError> {
        self.call("begin_copy", || self.inner.begin_copy(message))
    }

    fn digests(&self, message: DigestQuery) -> Result<Vec<u8>, LinkError> {
        if message.at.is_some() && lock(&self.hosts.unheard).contains("comparison") {
            return Err(self.interrupted());
        }
        self.call("digests", || self.inner.digests(message))
    }

    fn put_chunk(&self, place: ChunkPlace, body: &mut (dyn Read + Send)) -> Result<(), LinkError> {
        let mut body = Counted::new(body, &self.hosts.copied);
        self.call("put_chunk", || self.inner.put_chunk(place, &mut body))
    }

    fn put_delta(
        &self,
        place: DeltaPlace,
        body: &mut (dyn Read + Send),
    ) -> Result<Receipt, LinkError> {
        let mut body = Counted::new(body, &self.hosts.sent);
        let receipt = self.call("put_delta", || {
            self.inner.put_delta(place.clone(), &mut body)
        })?;
        let body = body.kept;
        lock(&self.hosts.deltas).push(SentDelta {
            place,
            body,
            receipt,
        });
        Ok(receipt)
    }

    fn verified(&self, message: Verified) -> Result<(), LinkError> {
        self.call("verified", || self.inner.verified(message))
    }

    fn planned_failover(&self, message: PlannedFailover) -> Result<(), LinkError> {
        self.call("planned_failover", || self.inner.planned_failover(message))
    }

    fn guest_status(&self, relationship: RelationshipId) -> Result<GuestStatus, LinkError> {
        self.call("guest_status", || self.inner.guest_status(relationship))
    }

    fn take_over(&self, message: TakeOver) -> Result<(), LinkError> {
        self.call("take_over", || self.inner.take_over(message))
    }

    fn adopt(&self, message: Adoption) -> Result<Adopted, LinkError> {
        self.call("adopt", || self.inner.adopt(message))
    }

    fn change_settings(&self, message: ChangeSettings) -> Result<(), LinkError> {
        self.call("change_settings", || self.inner.change_settings(message))
    }

    fn remove(&self, message: Removal) -> Result<(), LinkError> {
        self.call("remove", || self.inner.remove(message))
    }

    fn cancelled_by(&self, cancel: Cancel) -> Arc<dyn Link> {
        Arc::new(Self {
            inner: self.inner.cancelled_by(cancel),
            address: self.address.clone(),
            own: Arc::clone(&self.own),
            hosts: Arc::clone(&self.hosts),
        })
    }
}
