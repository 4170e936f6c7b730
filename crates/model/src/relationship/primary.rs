//! The side where the VM runs.

use serde::{Deserialize, Serialize};

use crate::contract::{InitialReplicationType, ReplicationState};
use crate::relationship::event::{CopyPurpose, Effect, Event};
use crate::{DeltaId, Lineage, LineageId, Receipt, Sequence, Timestamp};

/// What the primary does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Primary {
    /// The replica is made and empty. Copying starts when somebody says so, or at a time.
    Ready {
        start: Option<PlannedStart>,
    },
    /// The first copy.
    Copying(Copying),
    /// Changes follow.
    Replicating {
        last: Receipt,
        cycle: Cycle,
    },
    /// The VM is off and its last moment is on its way.
    Preparing {
        last: Receipt,
        cycle: Cycle,
    },
    /// The replica has everything; the VM stays off.
    Prepared {
        last: Receipt,
    },
    /// The replica is asked whether the VM may go on here.
    AskingToGoOn {
        last: Receipt,
    },
    /// An operator's pause. Changes are marked on.
    Suspended {
        from: SuspendedFrom,
    },
    /// Nothing can be done until somebody comes, or what is wrong goes away.
    Critical {
        cause: CriticalCause,
        from: SuspendedFrom,
    },
    /// What the replica lacks is not known; the disks must be compared.
    ResyncRequired {
        cause: ResyncCause,
        at: Option<Timestamp>,
    },
    /// The disks are being compared, and what differs travels.
    Resyncing(Copying),
    ResyncSuspended(Copying),
    /// The replica has taken over. What is marked stays marked, for a reversal.
    Fenced {
        by: Lineage,
        from: SuspendedFrom,
    },
}

/// A start that somebody has planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStart {
    pub kind: InitialReplicationType,
    pub at: Timestamp,
}

/// A copy of whole disks under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copying {
    /// The copy's own number; tracking begins with it.
    pub copy: Sequence,
    pub purpose: CopyPurpose,
    /// Why; absent for the first copy.
    pub cause: Option<ResyncCause>,
    pub work: Work,
}

/// Where a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Chunks travel.
    Chunks,
    /// All chunks are there; a delta of what changed meanwhile closes the copy.
    Closing(Cycle),
}

/// One delta on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cycle {
    Idle,
    /// The number is drawn and saved; the VM may or may not have been frozen for it.
    Capturing {
        sequence: Sequence,
    },
    /// The delta is whole in the send-spool.
    Sending {
        sequence: Sequence,
        id: DeltaId,
    },
}

/// What goes on after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspendedFrom {
    Replicating {
        last: Receipt,
    },
    Copying(Copying),
    Resyncing(Copying),
    Prepared {
        last: Receipt,
    },
    ResyncRequired {
        cause: ResyncCause,
    },
    /// Nothing had been replicated yet.
    Ready,
}

/// Why the disks must be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncCause {
    /// Changes may have been missed; the driver says why.
    TrackingLost,
    /// The replica holds less than it once gave receipts for.
    ReplicaRolledBack,
    /// The replica holds moments that this side does not know.
    UnknownMoments,
    /// A copy of whole disks had begun at the replica and this side knows nothing of it.
    CopyUnfinished,
    /// The replica's store is damaged.
    ReplicaDamaged,
    /// A comparison in the background has found what no map knows of.
    Differs,
    /// An operator wants it.
    Requested,
    /// The roles were swapped.
    Reversed,
}

/// Why somebody must come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CriticalCause {
    /// The replica's host does not answer.
    Unreachable,
    /// The replica's host does not let this one in.
    NotAuthorized,
    /// The replica knows nothing of this relationship.
    ReplicaGone,
    /// The replica refuses for a reason of its own, such as a full disk.
    ReplicaRefuses,
    /// Disks cannot be read, or the send-spool cannot be written.
    LocalStorage,
    /// Both sides have gone on from the same moment.
    SplitBrain { theirs: LineageId },
    /// The operator went on without the replica's word.
    WentOnAlone,
}

impl Primary {
    pub(super) fn state(&self) -> ReplicationState {
        match self {
            Self::Ready { .. } => ReplicationState::ReadyForReplication,
            Self::Copying(_) => ReplicationState::WaitingToCompleteInitialReplication,
            Self::Replicating { .. } => ReplicationState::Replicating,
            Self::Preparing { .. } | Self::Prepared { .. } | Self::AskingToGoOn { .. } => {
                ReplicationState::SyncedReplicationComplete
            }
            Self::Suspended { .. } => ReplicationState::Suspended,
            Self::Critical { .. } | Self::Fenced { .. } => ReplicationState::Critical,
            Self::ResyncRequired { .. } => ReplicationState::WaitingToStartResynchronization,
            Self::Resyncing(_) => ReplicationState::Resynchronizing,
            Self::ResyncSuspended(_) => ReplicationState::ResynchronizationSuspended,
        }
    }

    /// The last receipt, in the phases that have one.
    #[must_use]
    pub fn last_receipt(&self) -> Option<Receipt> {
        match self {
            Self::Replicating { last, .. }
            | Self::Preparing { last, .. }
            | Self::Prepared { last }
            | Self::AskingToGoOn { last } => Some(*last),
            Self::Suspended { from } | Self::Critical { from, .. } | Self::Fenced { from, .. } => {
                match from {
                    SuspendedFrom::Replicating { last } | SuspendedFrom::Prepared { last } => {
                        Some(*last)
                    }
                    SuspendedFrom::Copying(_)
                    | SuspendedFrom::Resyncing(_)
                    | SuspendedFrom::ResyncRequired { .. }
                    | SuspendedFrom::Ready => None,
                }
            }
            Self::Ready { .. }
            | Self::Copying(_)
            | Self::ResyncRequired { .. }
            | Self::Resyncing(_)
            | Self::ResyncSuspended(_) => None,
        }
    }

    /// The delta on its way.
    #[must_use]
    pub fn cycle(&self) -> Cycle {
        match self {
            Self::Replicating { cycle, .. } | Self::Preparing { cycle, .. } => *cycle,
            Self::Copying(copying) | Self::Resyncing(copying) => match copying.work {
                Work::Chunks => Cycle::Idle,
                Work::Closing(cycle) => cycle,
            },
            Self::Ready { .. }
            | Self::Prepared { .. }
            | Self::AskingToGoOn { .. }
            | Self::Suspended { .. }
            | Self::Critical { .. }
            | Self::ResyncRequired { .. }
            | Self::ResyncSuspended(_)
            | Self::Fenced { .. } => Cycle::Idle,
        }
    }

    /// The event that a restart of this host's daemon stands for: what was being captured is
    /// lost, and its number with it.
    #[must_use]
    pub fn interrupted(&self) -> Option<Event> {
        match self.cycle() {
            Cycle::Capturing { sequence } => Some(Event::CaptureFailed { sequence }),
            Cycle::Idle | Cycle::Sending { .. } => None,
        }
    }

    /// What goes on after whatever now interrupts.
    pub(super) fn rest(&self) -> SuspendedFrom {
        match self {
            Self::Ready { .. } => SuspendedFrom::Ready,
            Self::Copying(copying) => SuspendedFrom::Copying(copying.at_rest()),
            Self::Resyncing(copying) | Self::ResyncSuspended(copying) => {
                SuspendedFrom::Resyncing(copying.at_rest())
            }
            Self::Replicating { last, .. } => SuspendedFrom::Replicating { last: *last },
            Self::Preparing { last, .. } => SuspendedFrom::Replicating { last: *last },
            Self::Prepared { last } | Self::AskingToGoOn { last } => {
                SuspendedFrom::Prepared { last: *last }
            }
            Self::Suspended { from } | Self::Critical { from, .. } | Self::Fenced { from, .. } => {
                *from
            }
            Self::ResyncRequired { cause, .. } => SuspendedFrom::ResyncRequired { cause: *cause },
        }
    }

    /// The same phase with no delta on its way.
    pub(super) fn at_rest(&self) -> Self {
        match self {
            Self::Copying(copying) => Self::Copying(copying.at_rest()),
            Self::Resyncing(copying) => Self::Resyncing(copying.at_rest()),
            Self::Replicating { last, .. } => Self::Replicating {
                last: *last,
                cycle: Cycle::Idle,
            },
            Self::Preparing { last, .. } => Self::Preparing {
                last: *last,
                cycle: Cycle::Idle,
            },
            Self::Ready { .. }
            | Self::Prepared { .. }
            | Self::AskingToGoOn { .. }
            | Self::Suspended { .. }
            | Self::Critical { .. }
            | Self::ResyncRequired { .. }
            | Self::ResyncSuspended(_)
            | Self::Fenced { .. } => self.clone(),
        }
    }

    pub(super) fn resume(&self) -> Vec<Effect> {
        match self {
            Self::Copying(copying) | Self::Resyncing(copying) => copying.resume(),
            Self::Replicating { cycle, .. } => match cycle {
                Cycle::Idle | Cycle::Capturing { .. } => vec![Effect::OpenSession],
                Cycle::Sending { sequence, id } => vec![Effect::Send {
                    sequence: *sequence,
                    id: *id,
                    planned: false,
                }],
            },
            Self::Preparing { cycle, .. } => match cycle {
                Cycle::Idle | Cycle::Capturing { .. } => vec![Effect::OpenSession],
                Cycle::Sending { sequence, id } => vec![Effect::Send {
                    sequence: *sequence,
                    id: *id,
                    planned: true,
                }],
            },
            Self::Prepared { last } => vec![Effect::AnnouncePrepared {
                sequence: last.sequence,
            }],
            Self::AskingToGoOn { last } => vec![Effect::AskToGoOn {
                sequence: last.sequence,
            }],
            Self::Critical { .. } | Self::Fenced { .. } => vec![Effect::OpenSession],
            Self::Ready { .. }
            | Self::Suspended { .. }
            | Self::ResyncRequired { .. }
            | Self::ResyncSuspended(_) => Vec::new(),
        }
    }
}

impl CriticalCause {
    /// Whether a peer that answers and is in step shows that the trouble is over.
    pub(super) const fn ends_with_contact(self) -> bool {
        match self {
            Self::Unreachable
            | Self::NotAuthorized
            | Self::ReplicaGone
            | Self::ReplicaRefuses
            | Self::SplitBrain { .. } => true,
            Self::LocalStorage | Self::WentOnAlone => false,
        }
    }

    /// Whether the histories have parted, which no lesser trouble may hide.
    pub(super) const fn is_about_histories(self) -> bool {
        match self {
            Self::SplitBrain { .. } | Self::WentOnAlone => true,
            Self::Unreachable
            | Self::NotAuthorized
            | Self::ReplicaGone
            | Self::ReplicaRefuses
            | Self::LocalStorage => false,
        }
    }
}

impl Copying {
    pub(super) fn at_rest(self) -> Self {
        let work = match self.work {
            Work::Chunks => Work::Chunks,
            Work::Closing(_) => Work::Closing(Cycle::Idle),
        };
        Self { work, ..self }
    }

    /// Not [`Effect::StartTracking`]: if tracking has ended meanwhile, beginning it again would hide
    /// that changes were missed. The copy finds out and begins anew.
    pub(super) fn resume(&self) -> Vec<Effect> {
        match self.work {
            Work::Chunks => vec![Effect::Copy {
                copy: self.copy,
                purpose: self.purpose,
            }],
            // The next cycle that is due draws a number and captures.
            Work::Closing(Cycle::Idle | Cycle::Capturing { .. }) => vec![Effect::OpenSession],
            Work::Closing(Cycle::Sending { sequence, id }) => vec![Effect::Send {
                sequence,
                id,
                planned: false,
            }],
        }
    }
}
