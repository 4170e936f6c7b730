//! What hosts say to each other. See `docs/peer-protocol.md`.
//!
//! Every message that concerns a VM names its relationship. Names from a peer are labels: no
//! path is made of them. Each call may be repeated; the answer is the same as if it had been
//! heard once.

use lifeboat_model::{
    DeltaId, DiskId, DiskSize, Lineage, LineageId, Receipt, RelationshipId, Sequence, Timestamp,
    VmId,
};
use serde::{Deserialize, Serialize};

/// The version of the protocol that this build speaks.
pub const VERSION: u32 = 1;

/// Who a host is, and whether it takes replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    pub version: u32,
    pub software: String,
    pub host: String,
    /// Why no replica of the caller would be taken; absent when it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    pub wall_clock: Timestamp,
}

/// One disk, by size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerDisk {
    pub id: DiskId,
    pub size: DiskSize,
}

/// Asks for a replica to be made, empty, for a new relationship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewReplica {
    pub vm: VmId,
    pub vm_name: String,
    pub relationship: RelationshipId,
    pub lineage: Lineage,
    pub disks: Vec<PeerDisk>,
    /// The VM's definition as `lifeboat-hypervisor` writes it; bounded, checked by the receiver.
    pub definition: serde_json::Value,
    /// The relationship's settings as `lifeboat-model` writes them.
    pub settings: serde_json::Value,
    /// Where the caller answers: host name and port.
    pub caller_address: String,
    /// The caller holds a replica itself: this is the second hop.
    pub extended: bool,
}

/// What the primary knows when it begins to talk of a relationship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    pub relationship: RelationshipId,
    pub lineage: Lineage,
    /// Oldest first.
    pub ancestors: Vec<Lineage>,
    /// The last receipt that the primary saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_receipt: Option<Receipt>,
    pub wall_clock: Timestamp,
}

/// What the replica holds; the primary captures nothing before it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaReport {
    pub lineage: Lineage,
    /// Oldest first, abandoned ones included.
    pub ancestors: Vec<Lineage>,
    pub role: ReplicaRole,
    /// The newest moment received, with its id; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tip: Option<Tip>,
    /// The newest moment that the heads hold.
    pub applied: Sequence,
    /// A copy of whole disks that has begun and is not closed by a delta yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyProgress>,
    /// An operator of the replica's host has paused it.
    pub suspended: bool,
    /// Deltas received and not applied, in bytes; above its limit the replica takes no more
    /// for a while.
    pub backlog_bytes: u64,
    pub backlog_limit_bytes: u64,
    /// How long a start of the newest moment would take now, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_seconds: Option<u64>,
    pub free_bytes: u64,
    /// Why the replica takes nothing now; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    pub wall_clock: Timestamp,
}

/// What the other side's store is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaRole {
    Replica,
    FailedOver,
    Committed,
    /// It protects the VM itself now.
    Primary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tip {
    pub sequence: Sequence,
    pub id: DeltaId,
}

/// Why whole disks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// The replica is empty.
    Initial,
    /// The replica holds an older or damaged state: what differs travels.
    Resync,
    /// As `resync`, and what differs is known from maps: the replica counts as unverified until
    /// it is told that all was compared.
    ByMaps,
}

/// Begins, or goes on with, a copy of whole disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginCopy {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    /// Names the copy; drawn for it like a moment.
    pub copy: Sequence,
    pub kind: CopyKind,
    pub disks: Vec<PeerDisk>,
}

/// How far a copy has come, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyProgress {
    pub copy: Sequence,
    pub kind: CopyKind,
    pub disks: Vec<CopiedDisk>,
}

/// The ranges of one disk that a copy has finished, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiedDisk {
    pub id: DiskId,
    pub done: Vec<std::ops::Range<u64>>,
}

/// Asks for the keyed digests of a range of the replica's newest state. The answer is 16 bytes
/// per unit, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestQuery {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    pub disk: DiskId,
    /// Ascending, aligned to `unit` but for the disk's end; at most 1 GiB together.
    pub ranges: Vec<std::ops::Range<u64>>,
    /// 4 KiB or 64 KiB.
    pub unit: u32,
    /// 32 random bytes in hexadecimal digits, new for each copy.
    pub key: String,
    /// Refused as busy unless the replica's newest state is this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Sequence>,
}

/// All of the replica's newest state was compared with the primary's disks, and what differed is
/// known: points made from now on are verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    /// The moment that the replica had applied when the comparison ended.
    pub at: Sequence,
}

/// Where a piece of a copy belongs. Its content is a delta stream of kind `resync` whose
/// ranges lie inside; what the stream leaves out is right at the replica already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkPlace {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    pub copy: Sequence,
    pub disk: DiskId,
    pub range: std::ops::Range<u64>,
}

/// Which delta a stream carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaPlace {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    pub sequence: Sequence,
    /// The delta is the last one of a planned failover: its moment becomes a recovery point.
    pub planned: bool,
}

/// A planned failover is prepared, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFailover {
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    pub sequence: Sequence,
    pub phase: PlannedPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedPhase {
    /// The VM is off and its last moment is with the replica.
    Prepared,
    /// The primary wants to go on; granted unless the replica has failed over.
    Cancelled,
}

/// What the primary's host says of the guest: asked before a failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestStatus {
    pub running: bool,
    /// Prepared for a planned failover, with its last moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Sequence>,
    /// A planned failover is being prepared: what the replica lacks is on its way.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preparing: bool,
    /// Bytes changed since the last moment that the replica has.
    pub unsent_bytes: u64,
}

/// The replica has taken over, or has given the take-over up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeOver {
    pub relationship: RelationshipId,
    pub lineage: Lineage,
    pub ancestors: Vec<Lineage>,
    pub state: TakeOverState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TakeOverState {
    FailedOver,
    Reverted,
    Committed,
}

/// Asks the old primary to become the replica of the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adoption {
    /// The relationship that the failover was of.
    pub old_relationship: RelationshipId,
    /// The new replica; its lineage descends from the old one's.
    pub replica: NewReplica,
    pub ancestors: Vec<Lineage>,
}

/// The old primary is a replica now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// Numbers up to this one are used up; the new primary draws higher ones.
    pub drawn: Sequence,
    /// What the old primary has changed since the moments it names, if its maps are unbroken
    /// and its disks untouched since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<ChangedSince>,
    /// Why the maps are not believed, when they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_unknown: Option<String>,
}

/// Ranges that differ from the disks at an earlier moment, or may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedSince {
    /// The moment that the maps begin with.
    pub moment: Sequence,
    pub disks: Vec<ChangedDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedDisk {
    pub id: DiskId,
    /// Ascending, in bytes.
    pub ranges: Vec<std::ops::Range<u64>>,
}

/// New settings for a relationship, from its primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeSettings {
    pub relationship: RelationshipId,
    pub settings: serde_json::Value,
    pub definition: serde_json::Value,
}

/// The primary protects the VM no longer. A request: files stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removal {
    pub relationship: RelationshipId,
}

/// Why a host says no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct Refusal {
    pub code: RefusalCode,
    /// What was refused, why, and what helps.
    pub message: String,
}

/// What kind of no it is; decides what the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The caller's certificate is not authorized for this.
    NotAuthorized,
    /// No such relationship, VM, disk or moment here.
    NotFound,
    /// Not in the present state.
    InvalidState,
    /// The message contradicts itself or the receiver's limits.
    Invalid,
    /// Another lineage rules here: the caller was left behind.
    OtherLineage,
    /// The delta or copy does not continue what is here; the disks must be compared.
    NotContinuous,
    /// No room for it at the moment: try again later.
    Full,
    /// Paused by the receiver's operator, or too busy: try again later.
    Busy,
    /// The receiver failed.
    Failed,
    /// Another version of the protocol.
    Version,
}
