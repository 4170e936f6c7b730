//! What a relationship is, and how it is.

use super::number::numbered;

numbered! {
    /// What a VM is to replication on this host (`Msvm_ComputerSystem.ReplicationMode`).
    ReplicationMode : "ReplicationMode" {
        None = 0 "None",
        Primary = 1 "Primary",
        Replica = 2 "Replica",
        /// A test failover's VM.
        TestReplica = 3 "Test Replica",
        /// The replica of a replica.
        ExtendedReplica = 4 "Extended Replica",
    }
}

numbered! {
    /// The state of a relationship on one side (`Msvm_ReplicationRelationship.ReplicationState`).
    ReplicationState : "ReplicationState" {
        Disabled = 0 "Disabled",
        ReadyForReplication = 1 "Ready for replication",
        WaitingToCompleteInitialReplication = 2 "Waiting to complete initial replication",
        Replicating = 3 "Replicating",
        SyncedReplicationComplete = 4 "Prepared for planned failover",
        /// Failed over, neither committed nor reverted.
        Recovered = 5 "Failed over, waiting for completion",
        Committed = 6 "Failover committed",
        Suspended = 7 "Suspended",
        Critical = 8 "Critical",
        WaitingToStartResynchronization = 9 "Resynchronization required",
        Resynchronizing = 10 "Resynchronizing",
        ResynchronizationSuspended = 11 "Resynchronization suspended",
        FailoverInProgress = 12 "Failover in progress",
        FailbackInProgress = 13 "Failback in progress",
        FailbackComplete = 14 "Failback complete",
        DiskUpdateInProgress = 15 "Disk update in progress",
        DiskUpdateCritical = 16 "Disk update critical",
        Unknown = 17 "Unknown",
        RepurposeReplicationInProgress = 18 "Repurpose replication in progress",
        PreparedForSyncReplication = 19 "Prepared for sync replication",
        PreparedForGroupReverseReplication = 20 "Prepared for group reverse replication",
        FiredrillInProgress = 21 "Firedrill in progress",
    }
}

numbered! {
    /// How a relationship is doing (`ReplicationHealth`).
    ReplicationHealth : "ReplicationHealth" {
        NotApplicable = 0 "Not applicable",
        Ok = 1 "OK",
        Warning = 2 "Warning",
        Critical = 3 "Critical",
    }
}

numbered! {
    /// What a failover started from, or what kind the last replication was
    /// (`FailedOverReplicationType`, `LastReplicationType`).
    FailoverType : "FailedOverReplicationType" {
        None = 0 "None",
        Regular = 1 "Regular",
        ApplicationConsistent = 2 "Application consistent",
        Planned = 3 "Planned",
    }
}

numbered! {
    /// The kind of a recovery point: the end of `VirtualSystemType`. The numbers are ours.
    PointKind : "recovery point kind" {
        Standard = 0 "Standard",
        ApplicationConsistent = 1 "Application consistent",
        PlannedFailover = 2 "Planned failover",
    }
}

impl Default for PointKind {
    /// What a point is whose kind nobody noted.
    fn default() -> Self {
        Self::Standard
    }
}

impl PointKind {
    /// What a failover to such a point counts as.
    #[must_use]
    pub const fn failover_type(self) -> FailoverType {
        match self {
            Self::Standard => FailoverType::Regular,
            Self::ApplicationConsistent => FailoverType::ApplicationConsistent,
            Self::PlannedFailover => FailoverType::Planned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_the_number_it_stands_at() {
        assert_eq!(ReplicationState::ALL.len(), 22);
        for (number, &state) in (0u32..).zip(ReplicationState::ALL) {
            assert_eq!(ReplicationState::try_from(number), Ok(state));
            assert_eq!(u32::from(state.number()), number);
        }
        assert!(ReplicationState::try_from(22).is_err());
        assert_eq!(ReplicationMode::ALL.len(), 5);
    }
}
