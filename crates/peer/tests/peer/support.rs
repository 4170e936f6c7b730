//! Hosts with certificates, and what they say.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat_model::{
    DeltaId, DiskId, Lineage, LineageId, Receipt, RelationshipId, Sequence, Timestamp, VmId,
};
use lifeboat_peer::pki::{HostNames, Pki};
use lifeboat_peer::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyKind, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Host, Introduction, Limits, Link, Links, NewReplica, Patience,
    PeerAddress, PeerName, PeerServer, PeerTls, PlannedFailover, PlannedPhase, Refusal,
    RefusalCode, ReloadableTls, Removal, ReplicaReport, ReplicaRole, ServerEvent, SessionRequest,
    TakeOver, TlsLinks, Verified,
};
use tempfile::TempDir;

/// Long enough for a loaded machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);
const DAY: u64 = 86_400_000_000;

pub fn now() -> Timestamp {
    lifeboat_sys::clock::wall()
}

pub fn days_ago(days: u64) -> Timestamp {
    Timestamp::from_micros(now().as_micros() - days * DAY)
}

pub fn in_days(days: u64) -> Timestamp {
    Timestamp::from_micros(now().as_micros() + days * DAY)
}

/// A host's certificates.
pub struct Party {
    pub pki: Pki,
    pub folder: TempDir,
    pub name: String,
}

impl Party {
    pub fn empty(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            pki: Pki::open(&folder.path().join("pki")).unwrap(),
            folder,
            name: name.to_owned(),
        }
    }

    /// With an authority of its own, which is long there.
    pub fn with_authority(name: &str) -> Self {
        let party = Self::empty(name);
        party
            .pki
            .create_authority("Test authority", days_ago(2000))
            .unwrap();
        party.pki.issue_own(&names(name), now()).unwrap();
        party
    }

    /// Joined to the authority of another, by a certificate made at a time.
    pub fn joined(name: &str, authority: &Self, at: Timestamp) -> Self {
        let party = Self::empty(name);
        party.join(authority, at);
        party
    }

    pub fn join(&self, authority: &Self, at: Timestamp) {
        let request = self.pki.request(&names(&self.name)).unwrap();
        let (_, bundle) = authority
            .pki
            .sign(&request, &names(&self.name), at)
            .unwrap();
        let fingerprint = authority.pki.authority_info().unwrap().unwrap().fingerprint;
        self.pki.install(&bundle, &fingerprint).unwrap();
    }

    pub fn tls(&self) -> ReloadableTls {
        ReloadableTls::new(PeerTls::new(&self.pki.load().unwrap()).unwrap())
    }
}

pub fn names(name: &str) -> HostNames {
    HostNames::new(name).unwrap()
}

/// A server that is running, and what it has to say.
pub struct Served {
    pub server: PeerServer,
    pub tls: ReloadableTls,
    pub runtime: tokio::runtime::Runtime,
    events: Mutex<Receiver<ServerEvent>>,
}

pub fn serve(party: &Party, host: Arc<dyn Host>) -> Served {
    serve_with(party, host, Limits::default())
}

pub fn serve_with(party: &Party, host: Arc<dyn Host>, limits: Limits) -> Served {
    let runtime = runtime();
    let tls = party.tls();
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let server = PeerServer::start(
        runtime.handle(),
        "127.0.0.1:0".parse().unwrap(),
        host,
        tls.clone(),
        limits,
        Arc::new(move |event| {
            let _ = sender.lock().unwrap().send(event.clone());
        }),
    )
    .unwrap();
    Served {
        server,
        tls,
        runtime,
        events: Mutex::new(events),
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

impl Served {
    pub fn address(&self) -> PeerAddress {
        peer_address(self.server.address())
    }

    pub fn event(&self) -> ServerEvent {
        self.events
            .lock()
            .unwrap()
            .recv_timeout(PATIENCE)
            .expect("the server says nothing")
    }

    /// The next event that a test is interested in.
    pub fn event_that(&self, wanted: impl Fn(&ServerEvent) -> bool) -> ServerEvent {
        loop {
            let event = self.event();
            if wanted(&event) {
                return event;
            }
        }
    }
}

pub fn peer_address(address: SocketAddr) -> PeerAddress {
    address.to_string().parse().unwrap()
}

/// A caller with a runtime of its own.
pub struct Caller {
    pub links: TlsLinks,
    pub tls: ReloadableTls,
    _runtime: tokio::runtime::Runtime,
}

pub fn caller(party: &Party) -> Caller {
    caller_with(party, Patience::default())
}

pub fn caller_with(party: &Party, patience: Patience) -> Caller {
    let runtime = runtime();
    let tls = party.tls();
    Caller {
        links: TlsLinks::new(runtime.handle().clone(), tls.clone(), patience),
        tls,
        _runtime: runtime,
    }
}

impl Caller {
    pub fn link(&self, served: &Served, name: &str) -> Arc<dyn Link> {
        self.links.to(&served.address(), Some(name)).unwrap()
    }
}

type Answer<T> = Result<T, Refusal>;
type OnDelta = dyn Fn(&PeerName, &DeltaPlace, &mut dyn Read) -> Answer<Receipt> + Send + Sync;

/// A host that answers what tests expect and remembers what it heard.
pub struct Scripted {
    pub heard: Mutex<Vec<String>>,
    on_delta: Box<OnDelta>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").finish_non_exhaustive()
    }
}

impl Scripted {
    /// Reads every delta to its end.
    pub fn new() -> Arc<Self> {
        Self::on_delta(|_, place, body| {
            io::copy(body, &mut io::sink()).map_err(|error| failed(&error))?;
            Ok(receipt(place))
        })
    }

    pub fn on_delta(
        on_delta: impl Fn(&PeerName, &DeltaPlace, &mut dyn Read) -> Answer<Receipt>
        + Send
        + Sync
        + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            heard: Mutex::default(),
            on_delta: Box::new(on_delta),
        })
    }

    fn hear(&self, caller: &PeerName, what: &str) {
        self.heard.lock().unwrap().push(format!("{caller}: {what}"));
    }
}

pub fn failed(error: &io::Error) -> Refusal {
    Refusal {
        code: RefusalCode::Failed,
        message: error.to_string(),
    }
}

pub fn receipt(place: &DeltaPlace) -> Receipt {
    Receipt {
        lineage: place.lineage,
        sequence: place.sequence,
        id: DeltaId::from_bytes([3; 32]),
    }
}

impl Host for Scripted {
    fn introduce(&self, caller: &PeerName) -> Answer<Introduction> {
        self.hear(caller, "introduce");
        Ok(introduction())
    }

    fn make_replica(&self, caller: &PeerName, message: NewReplica) -> Answer<()> {
        self.hear(caller, &format!("make replica of {}", message.vm_name));
        Ok(())
    }

    fn begin_session(&self, caller: &PeerName, _: SessionRequest) -> Answer<ReplicaReport> {
        self.hear(caller, "begin session");
        Ok(report())
    }

    fn begin_copy(&self, caller: &PeerName, message: BeginCopy) -> Answer<CopyProgress> {
        self.hear(caller, "begin copy");
        Ok(CopyProgress {
            copy: message.copy,
            kind: message.kind,
            disks: Vec::new(),
        })
    }

    fn digests(&self, caller: &PeerName, message: DigestQuery) -> Answer<Vec<u8>> {
        self.hear(caller, "digests");
        // A key of zeroes asks for a wrong answer.
        let length = usize::try_from(message.answer_length().unwrap()).unwrap();
        let wrong = usize::from(message.key.bytes().all(|digit| digit == b'0'));
        Ok((0..length + wrong).map(|at| (at % 251) as u8).collect())
    }

    fn put_chunk(&self, caller: &PeerName, place: ChunkPlace, body: &mut dyn Read) -> Answer<()> {
        let length = io::copy(body, &mut io::sink()).map_err(|error| failed(&error))?;
        self.hear(
            caller,
            &format!("chunk of {length} bytes at {}", place.range.start),
        );
        Ok(())
    }

    fn put_delta(
        &self,
        caller: &PeerName,
        place: DeltaPlace,
        body: &mut dyn Read,
    ) -> Answer<Receipt> {
        self.hear(caller, &format!("delta {}", place.sequence));
        (self.on_delta)(caller, &place, body)
    }

    fn planned_failover(&self, caller: &PeerName, message: PlannedFailover) -> Answer<()> {
        self.hear(caller, &format!("planned failover {:?}", message.phase));
        match message.phase {
            PlannedPhase::Prepared => Ok(()),
            PlannedPhase::Cancelled => Err(Refusal {
                code: RefusalCode::InvalidState,
                message: "the replica\x1b[2J has failed over\n".to_owned(),
            }),
        }
    }

    fn guest_status(&self, caller: &PeerName, _: RelationshipId) -> Answer<GuestStatus> {
        self.hear(caller, "guest status");
        Ok(GuestStatus {
            running: true,
            prepared: None,
            preparing: false,
            unsent_bytes: 7,
        })
    }

    fn verified(&self, caller: &PeerName, message: Verified) -> Answer<()> {
        self.hear(caller, &format!("verified at {}", message.at));
        Ok(())
    }

    fn take_over(&self, caller: &PeerName, message: TakeOver) -> Answer<()> {
        self.hear(caller, &format!("take over {:?}", message.state));
        Ok(())
    }

    fn adopt(&self, caller: &PeerName, _: Adoption) -> Answer<Adopted> {
        self.hear(caller, "adopt");
        Ok(Adopted {
            drawn: Sequence::new(9),
            changed: None,
            why_unknown: Some("the disks were touched".to_owned()),
        })
    }

    fn change_settings(&self, caller: &PeerName, _: ChangeSettings) -> Answer<()> {
        self.hear(caller, "change settings");
        Ok(())
    }

    fn remove(&self, caller: &PeerName, _: Removal) -> Answer<()> {
        self.hear(caller, "remove");
        // Only what is asked for in tests of panics.
        panic!("a bug of the host");
    }
}

pub fn relationship() -> RelationshipId {
    RelationshipId::from_bytes([0xa1; 16])
}

pub fn lineage() -> Lineage {
    Lineage {
        counter: 2,
        id: LineageId::from_bytes([0xb2; 16]),
        forked_from: Some((LineageId::from_bytes([0xb1; 16]), Sequence::new(41))),
    }
}

pub fn vm() -> VmId {
    VmId::from_bytes([0xc3; 16])
}

pub fn disk() -> DiskId {
    "vda".parse().unwrap()
}

pub fn delta_place() -> DeltaPlace {
    DeltaPlace {
        relationship: relationship(),
        lineage: lineage().id,
        sequence: Sequence::new(42),
        planned: false,
    }
}

pub fn introduction() -> Introduction {
    Introduction {
        version: lifeboat_peer::VERSION,
        software: "lifeboat 0.1.0".to_owned(),
        host: "replica-1.example".to_owned(),
        refusal: None,
        wall_clock: Timestamp::from_micros(1_700_000_000_000_000),
    }
}

pub fn report() -> ReplicaReport {
    ReplicaReport {
        lineage: lineage(),
        ancestors: Vec::new(),
        role: ReplicaRole::Replica,
        tip: None,
        applied: Sequence::ZERO,
        copy: Some(CopyProgress {
            copy: Sequence::new(1),
            kind: CopyKind::Initial,
            disks: Vec::new(),
        }),
        suspended: false,
        backlog_bytes: 0,
        backlog_limit_bytes: 1 << 30,
        start_seconds: None,
        free_bytes: 1 << 40,
        refusal: None,
        wall_clock: Timestamp::from_micros(1_700_000_000_000_000),
    }
}
