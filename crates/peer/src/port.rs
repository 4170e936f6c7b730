//! What a host does for its peers, apart from how the messages travel.

use std::fmt::Debug;
use std::io::Read;

use lifeboat_model::{Receipt, RelationshipId};

use crate::message::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Introduction, NewReplica, PlannedFailover, Refusal, Removal,
    ReplicaReport, SessionRequest, TakeOver, Verified,
};

/// A peer that has proved who it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(String);

impl PeerName {
    /// The host name that the peer's certificate proves.
    #[must_use]
    pub fn new(host: String) -> Self {
        Self(host)
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for PeerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// A host as its peers use it. Methods block; each may be called again with the same
/// message and then answers the same.
#[expect(
    clippy::missing_errors_doc,
    reason = "each refuses with a code that says what kind of no it is"
)]
pub trait Host: Send + Sync + Debug {
    fn introduce(&self, caller: &PeerName) -> Result<Introduction, Refusal>;

    fn make_replica(&self, caller: &PeerName, message: NewReplica) -> Result<(), Refusal>;

    fn begin_session(
        &self,
        caller: &PeerName,
        message: SessionRequest,
    ) -> Result<ReplicaReport, Refusal>;

    fn begin_copy(&self, caller: &PeerName, message: BeginCopy) -> Result<CopyProgress, Refusal>;

    fn digests(&self, caller: &PeerName, message: DigestQuery) -> Result<Vec<u8>, Refusal>;

    fn verified(&self, caller: &PeerName, message: Verified) -> Result<(), Refusal>;

    /// Answers when the piece is durable. `body` is untrusted and may end early.
    fn put_chunk(
        &self,
        caller: &PeerName,
        place: ChunkPlace,
        body: &mut dyn Read,
    ) -> Result<(), Refusal>;

    /// Answers when the delta is durable and can be applied. `body` is as above.
    fn put_delta(
        &self,
        caller: &PeerName,
        place: DeltaPlace,
        body: &mut dyn Read,
    ) -> Result<Receipt, Refusal>;

    fn planned_failover(&self, caller: &PeerName, message: PlannedFailover) -> Result<(), Refusal>;

    fn guest_status(
        &self,
        caller: &PeerName,
        relationship: RelationshipId,
    ) -> Result<GuestStatus, Refusal>;

    fn take_over(&self, caller: &PeerName, message: TakeOver) -> Result<(), Refusal>;

    fn adopt(&self, caller: &PeerName, message: Adoption) -> Result<Adopted, Refusal>;

    fn change_settings(&self, caller: &PeerName, message: ChangeSettings) -> Result<(), Refusal>;

    fn remove(&self, caller: &PeerName, message: Removal) -> Result<(), Refusal>;
}
