//! Why an operation is refused, in words, with what helps, and as a return code.

use crate::contract::{ReplicationMode, ReplicationState, ReturnCode};
use crate::relationship::guard::Operation;
use crate::{Lineage, LineageId, Sequence, Timestamp};

/// The answer is no; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("cannot {} of a VM in mode \"{mode}\" and state \"{state}\"", operation.wish())]
    State {
        operation: Operation,
        mode: ReplicationMode,
        state: ReplicationState,
    },
    #[error("cannot {}: the VM runs", operation.wish())]
    VmRunning { operation: Operation },
    #[error("cannot fail over: the VM still runs on its primary host")]
    PrimaryRunning,
    #[error(
        "cannot fail over: the primary host is preparing a planned failover and sends what is missing here"
    )]
    PrimaryPreparing,
    #[error("cannot {}: it has begun to {what}", operation.wish())]
    Busy {
        operation: Operation,
        what: &'static str,
    },
    #[error("cannot start at {at}: that is more than 7 days ahead")]
    TooFarAhead { at: Timestamp },
    #[error(
        "cannot start the VM here: its replica has taken over (lineage {} of {})",
        by.counter,
        by.id
    )]
    TakenOver { by: Lineage },
    #[error("nothing has been replicated yet, so there is nothing to fail over to")]
    NothingReplicated,
    #[error(
        "both hosts have gone on with this VM; nothing is overwritten before somebody says which one survives (the other's lineage is {theirs})"
    )]
    SplitBrain { theirs: LineageId },
    #[error(
        "cannot {}: the other host's history of the VM was kept, and this failover is given up",
        operation.wish()
    )]
    Overruled { operation: Operation },
    #[error("there is no survivor to name: the two hosts' histories of the VM have not parted")]
    NothingToSettle,
    #[error(
        "cannot {}: the VM is replicated on from here to a third host",
        operation.wish()
    )]
    Extended { operation: Operation },
    #[error(
        "cannot fail over: the extended replica has taken over (lineage {} of {})",
        by.counter,
        by.id
    )]
    ExtendedTookOver { by: Lineage },
    #[error("the survivor is not named here: this host only passes the VM's history on")]
    SettledElsewhere,
    #[error("cannot {}: moment {sequence} is out of date", operation.wish())]
    OutOfDate {
        operation: Operation,
        sequence: Sequence,
    },
}

/// What would let the operation succeed.
pub type Remedy = &'static str;

impl Refused {
    /// The return code of the contract.
    #[must_use]
    pub const fn return_code(&self) -> ReturnCode {
        match self {
            Self::State { .. }
            | Self::VmRunning { .. }
            | Self::PrimaryRunning
            | Self::PrimaryPreparing
            | Self::TakenOver { .. }
            | Self::NothingReplicated
            | Self::SplitBrain { .. }
            | Self::Overruled { .. }
            | Self::NothingToSettle
            | Self::Extended { .. }
            | Self::ExtendedTookOver { .. }
            | Self::SettledElsewhere
            | Self::OutOfDate { .. } => ReturnCode::InvalidState,
            Self::Busy { .. } => ReturnCode::InUse,
            Self::TooFarAhead { .. } => ReturnCode::InvalidParameter,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::State {
                operation,
                mode,
                state,
            } => state_remedy(*operation, *mode, *state),
            Self::VmRunning { .. } => "stop the VM first: `lifeboat vm stop`",
            Self::PrimaryRunning => {
                "stop it there and prepare a planned failover, which loses nothing; with --force the failover is made nevertheless, and what the VM writes there from now on is lost"
            }
            Self::PrimaryPreparing => {
                "wait until it is prepared (`lifeboat job list` on the primary host), then nothing is lost; with --force the failover is made nevertheless, and what has not arrived is lost"
            }
            Self::Busy { .. } => "wait until that is done: `lifeboat job list`",
            Self::TooFarAhead { .. } => "choose a time within 7 days, or none to start now",
            Self::TakenOver { .. } => {
                "use the VM on the other host, and reverse replication there so that this host keeps its replica; if this host's history is the one to keep: `lifeboat failover survivor --this-host`"
            }
            Self::NothingReplicated => "wait until the initial replication is complete",
            Self::SplitBrain { .. } => {
                "compare what the VM holds on both hosts, then name the survivor with `lifeboat failover survivor`; what only the other one holds is given up"
            }
            Self::Overruled { .. } => "stop the VM here and revert the failover",
            Self::NothingToSettle => {
                "see `lifeboat health` on both hosts; a failover that is not committed is committed or reverted first"
            }
            Self::Extended { .. } => {
                "remove the extended relationship first; once a failover here is committed, it can be made the primary one instead"
            }
            Self::ExtendedTookOver { .. } => {
                "use the VM there, or revert that failover; with --force the failover is made nevertheless, and the two histories part"
            }
            Self::SettledElsewhere => {
                "name the survivor on the host where the VM is written, or remove the extended relationship and enable it again"
            }
            Self::OutOfDate { .. } => "ask the replica what it holds; this is done by itself",
        }
    }
}

fn state_remedy(operation: Operation, mode: ReplicationMode, state: ReplicationState) -> Remedy {
    use ReplicationState as S;
    match (mode, state) {
        (ReplicationMode::None | ReplicationMode::TestReplica, _) | (_, S::Disabled) => {
            "the VM is not replicated; enable it with `lifeboat replication enable`"
        }
        (ReplicationMode::Primary, _) if is_of_replica(operation) => {
            "this is done on the host that has the replica: use --host"
        }
        (ReplicationMode::Replica | ReplicationMode::ExtendedReplica, _)
            if is_of_primary(operation) =>
        {
            "this is done on the host where the VM runs: use --host"
        }
        (_, S::ReadyForReplication) => {
            "start the initial replication: `lifeboat replication start`"
        }
        (_, S::WaitingToCompleteInitialReplication) => {
            "wait for the initial replication, or cancel it: `lifeboat replication start --cancel`"
        }
        (_, S::Replicating) => "the relationship replicates; suspend it first if it must rest",
        (_, S::SyncedReplicationComplete) => {
            "a planned failover is prepared: fail over on the other host, or cancel it with `lifeboat failover prepare --cancel`"
        }
        (_, S::Recovered) => "revert or commit the failover first",
        (_, S::Committed) => "the failover is committed: reverse replication, or remove it",
        (_, S::Suspended) => "resume first: `lifeboat replication resume`",
        (_, S::Critical) => "see what is wrong with `lifeboat health`, then resume",
        (_, S::WaitingToStartResynchronization) => "resynchronize: `lifeboat replication resync`",
        (_, S::Resynchronizing | S::ResynchronizationSuspended) => {
            "wait for the resynchronization, or cancel it: `lifeboat replication resync --cancel`"
        }
        (_, S::FailoverInProgress | S::FailbackInProgress) => {
            "wait until that is done: `lifeboat job list`"
        }
        (
            _,
            S::FailbackComplete
            | S::DiskUpdateInProgress
            | S::DiskUpdateCritical
            | S::Unknown
            | S::RepurposeReplicationInProgress
            | S::PreparedForSyncReplication
            | S::PreparedForGroupReverseReplication
            | S::FiredrillInProgress,
        ) => "see `lifeboat health`",
    }
}

const fn is_of_replica(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::ImportInitialReplica
            | Operation::InitiateFailover
            | Operation::RevertFailover
            | Operation::CommitFailover
            | Operation::ReverseReplicationRelationship
            | Operation::TestReplicaSystem
            | Operation::InitiateFailback
            | Operation::ChangeReplicationModeToPrimary
    )
}

const fn is_of_primary(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::StartReplication
            | Operation::CancelInitialReplication
            | Operation::CancelPlannedFailover
            | Operation::PreparePlannedFailover
            | Operation::CancelResynchronize
            | Operation::Resynchronize
            | Operation::ModifyReplicationSettings
    )
}
