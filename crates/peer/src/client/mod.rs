//! The caller's side: a peer as somebody to talk to.
//!
//! [`Link`] has the calls of [`Host`](crate::Host) without the caller; [`TlsLinks`] makes
//! links over mutual TLS. All methods block, and wait on the runtime they were given; they
//! are not for that runtime's own threads. A call that was not answered may have been heard:
//! repeat it, the answer is the same.

mod answer;
mod body;
mod connection;
mod error;
mod link;
mod pool;

use std::fmt::Debug;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::{Receipt, RelationshipId};
use tokio::runtime::Handle;

use crate::address::PeerAddress;
use crate::cancel::Cancel;
use crate::message::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Introduction, NewReplica, PlannedFailover, Removal, ReplicaReport,
    SessionRequest, TakeOver, Verified,
};
use crate::tls::ReloadableTls;

pub use error::LinkError;
use link::TlsLink;
use pool::Pool;

/// One peer. Each call may be made again with the same message.
#[expect(
    clippy::missing_errors_doc,
    reason = "the error says who refused or what happened on the way"
)]
pub trait Link: Send + Sync + Debug {
    fn introduce(&self) -> Result<Introduction, LinkError>;

    fn make_replica(&self, message: NewReplica) -> Result<(), LinkError>;

    fn begin_session(&self, message: SessionRequest) -> Result<ReplicaReport, LinkError>;

    fn begin_copy(&self, message: BeginCopy) -> Result<CopyProgress, LinkError>;

    /// Exactly the bytes that the query asks for.
    fn digests(&self, message: DigestQuery) -> Result<Vec<u8>, LinkError>;

    fn verified(&self, message: Verified) -> Result<(), LinkError>;

    /// Sends `body` to its end. The peer may refuse without reading it.
    fn put_chunk(&self, place: ChunkPlace, body: &mut (dyn Read + Send)) -> Result<(), LinkError>;

    /// As above. The receipt is the peer's word; whether it is for the delta that was sent,
    /// the caller compares.
    fn put_delta(
        &self,
        place: DeltaPlace,
        body: &mut (dyn Read + Send),
    ) -> Result<Receipt, LinkError>;

    fn planned_failover(&self, message: PlannedFailover) -> Result<(), LinkError>;

    fn guest_status(&self, relationship: RelationshipId) -> Result<GuestStatus, LinkError>;

    fn take_over(&self, message: TakeOver) -> Result<(), LinkError>;

    fn adopt(&self, message: Adoption) -> Result<Adopted, LinkError>;

    fn change_settings(&self, message: ChangeSettings) -> Result<(), LinkError>;

    fn remove(&self, message: Removal) -> Result<(), LinkError>;

    /// The same peer, for calls that end with [`LinkError::Cancelled`] soon after the flag
    /// is raised. A body whose own `read` blocks is waited for: give [`ThrottledRead`] the
    /// same flag.
    ///
    /// [`ThrottledRead`]: crate::ThrottledRead
    fn cancelled_by(&self, cancel: Cancel) -> Arc<dyn Link>;
}

/// Finds peers.
pub trait Links: Send + Sync + Debug {
    /// The peer at `address`. Connects when the first call is made.
    ///
    /// `host` is the name that its certificate must prove, whatever the address is; without
    /// it, the address's own name or IP address.
    ///
    /// # Errors
    /// When `host` is no name that a certificate could prove.
    fn to(&self, address: &PeerAddress, host: Option<&str>) -> Result<Arc<dyn Link>, LinkError>;
}

/// How long a caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until a connection is there and the peer has proved who it is, name look-up included.
    pub connect: Duration,
    /// For the answer to a message.
    pub answer: Duration,
    /// For the answer to a body after its last byte: the peer makes it durable first.
    pub durable: Duration,
    /// For the peer to take a piece of a body, and between pieces of an answer.
    pub stall: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(120),
            durable: Duration::from_secs(600),
            stall: Duration::from_secs(30),
            // Shorter than the server's, so that the client closes first.
            idle: Duration::from_secs(15 * 60 + 30),
        }
    }
}

/// [`Links`] over mutual TLS, with a few warm connections to each peer.
#[derive(Debug)]
pub struct TlsLinks {
    pool: Arc<Pool>,
}

impl TlsLinks {
    /// Connections live on `runtime`, which must have threads of its own.
    #[must_use]
    pub fn new(runtime: Handle, tls: ReloadableTls, patience: Patience) -> Self {
        Self {
            pool: Arc::new(Pool::new(runtime, tls, patience)),
        }
    }
}

impl Links for TlsLinks {
    fn to(&self, address: &PeerAddress, host: Option<&str>) -> Result<Arc<dyn Link>, LinkError> {
        let link = TlsLink::new(Arc::clone(&self.pool), address, host, Cancel::new())?;
        Ok(Arc::new(link))
    }
}
