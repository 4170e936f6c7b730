//! Which operation the contract allows in which mode and state.

use crate::contract::{ReplicationMode, ReplicationState};

/// A call that is about a relationship or its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    CreateReplicationRelationship,
    StartReplication,
    ImportInitialReplica,
    ModifyReplicationSettings,
    RemoveReplicationRelationship,
    /// `RequestedState` 1.
    CancelInitialReplication,
    /// `RequestedState` 2.
    MarkAsReplica,
    /// `RequestedState` 3 in 7, 8 and 11.
    Resume,
    /// `RequestedState` 3 in 4.
    CancelPlannedFailover,
    /// `RequestedState` 4.
    PreparePlannedFailover,
    /// `RequestedState` 7.
    Suspend,
    /// `RequestedState` 9.
    CancelResynchronize,
    Resynchronize,
    InitiateFailover,
    RevertFailover,
    CommitFailover,
    ReverseReplicationRelationship,
    TestReplicaSystem,
    ChangeReplicationModeToPrimary,
    InitiateFailback,
    ReadStatistics,
    SetFailoverNetworkAdapterSettings,
    /// `RequestStateChange` 2 on the VM.
    StartVm,
}

impl Operation {
    pub const ALL: [Self; 23] = [
        Self::CreateReplicationRelationship,
        Self::StartReplication,
        Self::ImportInitialReplica,
        Self::ModifyReplicationSettings,
        Self::RemoveReplicationRelationship,
        Self::CancelInitialReplication,
        Self::MarkAsReplica,
        Self::Resume,
        Self::CancelPlannedFailover,
        Self::PreparePlannedFailover,
        Self::Suspend,
        Self::CancelResynchronize,
        Self::Resynchronize,
        Self::InitiateFailover,
        Self::RevertFailover,
        Self::CommitFailover,
        Self::ReverseReplicationRelationship,
        Self::TestReplicaSystem,
        Self::ChangeReplicationModeToPrimary,
        Self::InitiateFailback,
        Self::ReadStatistics,
        Self::SetFailoverNetworkAdapterSettings,
        Self::StartVm,
    ];

    /// Whether the call may be accepted there. What else it needs (a VM that is off, a peer that
    /// answers) is asked elsewhere.
    #[must_use]
    pub fn accepts(self, mode: ReplicationMode, state: ReplicationState) -> bool {
        use ReplicationMode as M;
        use ReplicationState as S;
        let is_receiver = matches!(mode, M::Replica | M::ExtendedReplica);
        let is_replicated = matches!(mode, M::Primary | M::Replica | M::ExtendedReplica);
        match self {
            Self::CreateReplicationRelationship => match mode {
                M::None => state == S::Disabled,
                M::Replica => matches!(state, S::Replicating | S::Suspended | S::Critical),
                M::Primary | M::TestReplica | M::ExtendedReplica => false,
            },
            Self::StartReplication => {
                matches!(mode, M::Primary | M::Replica) && state == S::ReadyForReplication
            }
            Self::ImportInitialReplica => {
                mode == M::Replica && state == S::WaitingToCompleteInitialReplication
            }
            Self::ModifyReplicationSettings => {
                matches!(mode, M::Primary | M::Replica)
                    && matches!(
                        state,
                        S::ReadyForReplication
                            | S::Replicating
                            | S::Suspended
                            | S::Critical
                            | S::WaitingToStartResynchronization
                    )
            }
            Self::RemoveReplicationRelationship => {
                is_replicated
                    && !matches!(
                        state,
                        S::Disabled
                            | S::Resynchronizing
                            | S::FailoverInProgress
                            | S::FailbackInProgress
                    )
            }
            Self::CancelInitialReplication => {
                mode == M::Primary && state == S::WaitingToCompleteInitialReplication
            }
            Self::MarkAsReplica => match mode {
                M::None => state == S::Disabled,
                M::Primary => state != S::Disabled,
                M::Replica | M::TestReplica | M::ExtendedReplica => false,
            },
            Self::Resume => {
                is_replicated
                    && matches!(
                        state,
                        S::Suspended | S::Critical | S::ResynchronizationSuspended
                    )
            }
            Self::CancelPlannedFailover => {
                mode == M::Primary && state == S::SyncedReplicationComplete
            }
            Self::PreparePlannedFailover => mode == M::Primary && state == S::Replicating,
            Self::Suspend => {
                is_replicated && matches!(state, S::Replicating | S::Critical | S::Resynchronizing)
            }
            Self::CancelResynchronize => {
                mode == M::Primary
                    && matches!(state, S::Resynchronizing | S::ResynchronizationSuspended)
            }
            Self::Resynchronize => {
                matches!(mode, M::Primary | M::Replica)
                    && matches!(
                        state,
                        S::Suspended | S::Critical | S::WaitingToStartResynchronization
                    )
            }
            Self::InitiateFailover => {
                is_receiver
                    && matches!(
                        state,
                        S::Replicating
                            | S::Suspended
                            | S::Critical
                            | S::WaitingToStartResynchronization
                            | S::Resynchronizing
                            | S::ResynchronizationSuspended
                    )
            }
            Self::RevertFailover | Self::CommitFailover => is_receiver && state == S::Recovered,
            Self::ReverseReplicationRelationship | Self::InitiateFailback => {
                mode == M::Replica && matches!(state, S::Recovered | S::Committed)
            }
            Self::TestReplicaSystem => {
                is_receiver && matches!(state, S::Replicating | S::Suspended | S::Critical)
            }
            Self::ChangeReplicationModeToPrimary => mode == M::Replica && state == S::Committed,
            Self::ReadStatistics | Self::SetFailoverNetworkAdapterSettings => {
                is_replicated && state != S::Disabled
            }
            Self::StartVm => match mode {
                M::None | M::TestReplica => true,
                M::Primary => state != S::SyncedReplicationComplete,
                M::Replica | M::ExtendedReplica => matches!(state, S::Recovered | S::Committed),
            },
        }
    }

    /// Whether it is about the first of two relationships, or the VM, and never about the second.
    pub(super) const fn is_of_first_hop(self) -> bool {
        match self {
            Self::CreateReplicationRelationship
            | Self::ImportInitialReplica
            | Self::MarkAsReplica
            | Self::CancelPlannedFailover
            | Self::PreparePlannedFailover
            | Self::InitiateFailover
            | Self::RevertFailover
            | Self::CommitFailover
            | Self::ReverseReplicationRelationship
            | Self::TestReplicaSystem
            | Self::InitiateFailback
            | Self::SetFailoverNetworkAdapterSettings
            | Self::StartVm => true,
            Self::StartReplication
            | Self::ModifyReplicationSettings
            | Self::RemoveReplicationRelationship
            | Self::CancelInitialReplication
            | Self::Resume
            | Self::Suspend
            | Self::CancelResynchronize
            | Self::Resynchronize
            | Self::ChangeReplicationModeToPrimary
            | Self::ReadStatistics => false,
        }
    }

    /// What the operator asked for, as the end of "cannot …".
    #[must_use]
    pub const fn wish(self) -> &'static str {
        match self {
            Self::CreateReplicationRelationship => "enable replication",
            Self::StartReplication => "start the initial replication",
            Self::ImportInitialReplica => "import an initial copy",
            Self::ModifyReplicationSettings => "change the settings",
            Self::RemoveReplicationRelationship => "remove replication",
            Self::CancelInitialReplication => "cancel the initial replication",
            Self::MarkAsReplica => "mark the VM as a replica",
            Self::Resume => "resume",
            Self::CancelPlannedFailover => "cancel a planned failover",
            Self::PreparePlannedFailover => "prepare a planned failover",
            Self::Suspend => "suspend replication",
            Self::CancelResynchronize => "cancel a resynchronization",
            Self::Resynchronize => "resynchronize",
            Self::InitiateFailover => "fail over",
            Self::RevertFailover => "revert a failover",
            Self::CommitFailover => "commit a failover",
            Self::ReverseReplicationRelationship => "reverse replication",
            Self::TestReplicaSystem => "test a failover",
            Self::ChangeReplicationModeToPrimary => {
                "turn the extended relationship into the primary one"
            }
            Self::InitiateFailback => "fail back",
            Self::ReadStatistics => "read statistics",
            Self::SetFailoverNetworkAdapterSettings => "set failover network settings",
            Self::StartVm => "start the VM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix as the contract's table has it, in numbers: mode, states.
    fn table(operation: Operation) -> Vec<(u16, Vec<u16>)> {
        let all_but = |not: &[u16]| (1..=21).filter(|n| !not.contains(n)).collect::<Vec<u16>>();
        let receivers = |states: Vec<u16>| vec![(2, states.clone()), (4, states)];
        let replicated =
            |states: Vec<u16>| vec![(1, states.clone()), (2, states.clone()), (4, states)];
        match operation {
            Operation::CreateReplicationRelationship => vec![(0, vec![0]), (2, vec![3, 7, 8])],
            Operation::StartReplication => vec![(1, vec![1]), (2, vec![1])],
            Operation::ImportInitialReplica => vec![(2, vec![2])],
            Operation::ModifyReplicationSettings => {
                vec![(1, vec![1, 3, 7, 8, 9]), (2, vec![1, 3, 7, 8, 9])]
            }
            Operation::RemoveReplicationRelationship => replicated(all_but(&[10, 12, 13])),
            Operation::CancelInitialReplication => vec![(1, vec![2])],
            Operation::MarkAsReplica => vec![(0, vec![0]), (1, all_but(&[]))],
            Operation::Resume => replicated(vec![7, 8, 11]),
            Operation::CancelPlannedFailover => vec![(1, vec![4])],
            Operation::PreparePlannedFailover => vec![(1, vec![3])],
            Operation::Suspend => replicated(vec![3, 8, 10]),
            Operation::CancelResynchronize => vec![(1, vec![10, 11])],
            Operation::Resynchronize => vec![(1, vec![7, 8, 9]), (2, vec![7, 8, 9])],
            Operation::InitiateFailover => receivers(vec![3, 7, 8, 9, 10, 11]),
            Operation::RevertFailover | Operation::CommitFailover => receivers(vec![5]),
            Operation::ReverseReplicationRelationship | Operation::InitiateFailback => {
                vec![(2, vec![5, 6])]
            }
            Operation::TestReplicaSystem => receivers(vec![3, 7, 8]),
            Operation::ChangeReplicationModeToPrimary => vec![(2, vec![6])],
            Operation::ReadStatistics | Operation::SetFailoverNetworkAdapterSettings => {
                replicated(all_but(&[]))
            }
            Operation::StartVm => {
                let mut any: Vec<u16> = all_but(&[]);
                any.insert(0, 0);
                let primary = any.iter().copied().filter(|&n| n != 4).collect();
                vec![
                    (0, any.clone()),
                    (3, any),
                    (1, primary),
                    (2, vec![5, 6]),
                    (4, vec![5, 6]),
                ]
            }
        }
    }

    #[test]
    fn every_mode_state_and_operation_has_the_answer_of_the_contracts_matrix() {
        let mut answers = 0;
        for operation in Operation::ALL {
            let table = table(operation);
            for &mode in ReplicationMode::ALL {
                for &state in ReplicationState::ALL {
                    let expected = table
                        .iter()
                        .any(|(m, states)| *m == mode.number() && states.contains(&state.number()));
                    assert_eq!(
                        operation.accepts(mode, state),
                        expected,
                        "{operation:?} in {mode:?}, {state:?}"
                    );
                    answers += 1;
                }
            }
        }
        assert_eq!(answers, 23 * 5 * 22);
    }
}
