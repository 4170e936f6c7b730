//! What may happen to a relationship, and what is to be done about it.

use crate::contract::{FailoverType, InitialReplicationType};
use crate::relationship::forward::{Hop, Upstream};
use crate::relationship::primary::{CriticalCause, ResyncCause};
use crate::relationship::replica::ApplyTrouble;
use crate::relationship::standing::Standing;
use crate::{DeltaId, Lineage, LineageId, Receipt, Sequence, Timestamp};
use serde::{Deserialize, Serialize};

/// Something that happened. The first ones are wishes of operators and may be refused; the
/// others are facts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// `StartReplication`: now, or at a time.
    Start {
        kind: InitialReplicationType,
        at: Option<Timestamp>,
    },
    /// `RequestedState` 1.
    CancelInitial,
    /// `RequestedState` 7.
    Suspend,
    /// `RequestedState` 3 from a pause or an error.
    Resume,
    /// `Resynchronize`: now, or at a time.
    Resynchronize {
        at: Option<Timestamp>,
    },
    /// `RequestedState` 9.
    CancelResynchronize,
    /// `RequestedState` 4; the VM must be off.
    Prepare {
        vm: VmPower,
    },
    /// `RequestedState` 3 while prepared. `Forced` goes on without the replica's word and
    /// begins a lineage of its own.
    CancelPrepared {
        how: CancelHow,
    },
    /// `InitiateFailover`.
    FailOver(FailoverChoice),
    /// `RevertFailover`; the VM must be off.
    Revert {
        vm: VmPower,
    },
    /// `CommitFailover`.
    Commit,
    /// `ReverseReplicationRelationship`.
    Reverse,
    /// `ChangeReplicationModeToPrimary`, of the second hop's record.
    BecomePrimary,
    /// Where both sides have gone on with the VM: this side's history is the one to keep, and
    /// `over`, the peer's, is abandoned with all that led to it. A lineage begins that descends from both, so that the peer
    /// stands down when it hears of it. Said at both sides, it leaves them parted as before.
    Survive {
        over: Lineage,
        /// What the peer's history descends from.
        ancestors: Vec<Lineage>,
        /// Random: the lineage that begins with it.
        lineage: LineageId,
    },
    /// Where both sides have gone on with the VM: the peer's history is the one to keep. This
    /// side is fenced, and its disks may become the replica's.
    Yield {
        to: Lineage,
    },

    /// A cycle is due, or the time of a scheduled start has come.
    Due,
    /// The replica has reported what it holds.
    Session(Standing),
    /// All chunks of a copy are with the replica.
    ChunksDone {
        copy: Sequence,
    },
    /// The moment is whole in the send-spool.
    Captured {
        sequence: Sequence,
        id: DeltaId,
    },
    /// The moment could not be captured; its changes stay marked.
    CaptureFailed {
        sequence: Sequence,
    },
    /// What was in the send-spool cannot be read any more; its changes stay marked.
    SpoolLost {
        sequence: Sequence,
    },
    /// The replica has given a receipt.
    Received(Receipt),
    /// The replica has granted that the primary goes on.
    CancelGranted,
    /// Changes may have been missed, or the replica's state does not fit.
    NeedsResync(ResyncCause),
    /// Trouble that time does not mend: an operator must come.
    Failed(CriticalCause),
    /// What [`Event::Failed`] told of is over.
    Mended,
    /// The peer has taken over, or gives that up. To a replica: its primary goes on with a history
    /// of its own, which the replica follows unless it has gone on itself.
    Peer(TakeOverNews),

    /// The first copy is closed by a delta that is applied.
    InitialComplete,
    /// A copy over a replica that holds something has begun, or is closed.
    ResyncBegun,
    ResyncEnded,
    /// Received deltas cannot be applied, or can be again.
    ApplyFailed(ApplyTrouble),
    ApplyMended,
    /// The primary's last moment of a planned failover is here. Refused once a failover has begun,
    /// and if the primary has gone on since.
    Prepared {
        sequence: Sequence,
    },
    /// A wish of the primary: after the moment with this number it goes on. Refused once the
    /// failover has begun.
    PreparedCancelled {
        sequence: Sequence,
    },
    /// The store has failed over, and follows this lineage while the VM runs.
    FailedOver {
        lineage: Lineage,
    },
    /// The store could not; nothing is changed there.
    FailOverFailed,
    Reverted,
    Committed,
    /// The commit failed before its point of no return.
    CommitFailed,
    /// The old primary is a replica now; numbers up to this one are used up.
    Adopted {
        drawn: Sequence,
    },
    /// It could not be asked, or said no.
    AdoptionFailed,
    /// A wish of the peer, which has taken over: this host is to keep its replica from now on. The
    /// disks become the replica's; all that only they hold is a point of an abandoned history.
    Adopt {
        lineage: Lineage,
        ancestors: Vec<Lineage>,
        vm: VmPower,
        /// Which of its replicas the peer asks for.
        hop: Hop,
    },
    /// To the second hop's record: what the first has come to. Told whenever that changes, before
    /// the first hop's effects are run, and after a restart.
    Upstream(Upstream),
}

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VmPower {
    Running,
    Off,
}

/// Whether the replica has to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelHow {
    Asking,
    Forced { lineage: LineageId },
}

/// What is failed over to, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FailoverChoice {
    /// A recovery point's moment; absent for the newest.
    pub point: Option<Sequence>,
    /// As the contract shows it afterwards.
    pub kind: FailoverType,
    /// Random: the lineage that begins with it.
    pub lineage: LineageId,
    /// What is known of the primary's guest.
    pub primary: PrimaryGuest,
}

/// What the replica's host knows of the guest on the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrimaryGuest {
    /// The primary's host says that it runs.
    Running,
    /// The primary's host says that it is off, and sends what the replica lacks.
    Preparing,
    /// The primary's host says that it is off.
    Off,
    /// The primary's host does not answer.
    Unknown,
    /// The operator takes the responsibility.
    Overruled,
}

/// What a peer says of a failover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TakeOverNews {
    /// The peer's VM may run; its lineage descends from ours.
    TakenOver {
        lineage: Lineage,
        ancestors: Vec<Lineage>,
        /// To a replica: how it is replicated to from now on.
        hop: Hop,
    },
    /// The peer says that it is a replica again. Only a session shows whether it is.
    Reverted,
}

/// Why whole disks travel, or are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyPurpose {
    /// The replica is empty: everything travels.
    Initial,
    /// The replica holds something: what differs travels.
    Compare,
    /// The roles were swapped: what may differ travels, by maps if they are proved.
    Reverse,
}

/// What is to be done, in this order. Each may be done again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Ask the replica what it holds: before any capture.
    OpenSession,
    /// Mark changes from now on, in a map that begins with `moment`.
    StartTracking {
        moment: Sequence,
    },
    StopTracking,
    /// Copy whole disks, or go on with it.
    Copy {
        copy: Sequence,
        purpose: CopyPurpose,
    },
    /// Freeze and drain into the send-spool. `base` absent: a delta that closes a copy.
    Capture {
        sequence: Sequence,
        base: Option<Receipt>,
        planned: bool,
    },
    /// Send what is in the send-spool.
    Send {
        sequence: Sequence,
        id: DeltaId,
        planned: bool,
    },
    /// Forget the maps that lie before the receipt, and the spooled delta.
    Forget {
        receipt: Receipt,
    },
    /// Give up a spooled or half captured delta.
    DropSpool {
        sequence: Sequence,
    },
    /// Stop copies, captures and transfers that run.
    StopWork,
    /// Tell the replica that the last moment of a planned failover is with it.
    AnnouncePrepared {
        sequence: Sequence,
    },
    /// Ask the replica whether the primary may go on.
    AskToGoOn {
        sequence: Sequence,
    },
    /// Fail the store over.
    FailOverStore {
        point: Option<Sequence>,
        lineage: LineageId,
    },
    RevertStore,
    CommitStore,
    /// Tell the peer which history this side writes or follows, and whether its VM may run: what
    /// became of a failover, or that a primary has gone on alone.
    AnnounceTakeOver,
    /// Ask the peer, an old primary or one that was overruled, to become the replica.
    AskAdoption,
    /// Of a second hop: tell the first hop's peer what became of a failover on the third host, as
    /// [`ReplicaView::beside`](super::ReplicaView::beside) has it.
    PassOnTakeOver,
    /// Write an event for people.
    Report(Report),
}

/// What people are told, beyond changes of the state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Report {
    ResyncRequired(ResyncCause),
    Critical(CriticalCause),
    Fenced { by: Lineage },
    SplitBrain { theirs: Lineage },
}
