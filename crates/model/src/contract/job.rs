//! Long work: what kind it is, and how far.

use super::number::numbered;

numbered! {
    /// How far a job is (`Msvm_ConcreteJob.JobState`).
    JobState : "JobState" {
        New = 2 "New",
        Starting = 3 "Starting",
        Running = 4 "Running",
        Suspended = 5 "Suspended",
        ShuttingDown = 6 "Shutting down",
        Completed = 7 "Completed",
        /// Ended early because somebody asked for it.
        Terminated = 8 "Terminated",
        Killed = 9 "Killed",
        /// Ended with an error.
        Exception = 10 "Exception",
        Service = 11 "Service",
        QueryPending = 12 "Query pending",
    }
}

impl JobState {
    /// Whether nothing more will happen to the job.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Terminated | Self::Killed | Self::Exception => true,
            Self::New
            | Self::Starting
            | Self::Running
            | Self::Suspended
            | Self::ShuttingDown
            | Self::Service
            | Self::QueryPending => false,
        }
    }

    /// Whether the job ended without doing what it was for.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self.is_final() && !matches!(self, Self::Completed)
    }
}

numbered! {
    /// What a job does (`Msvm_ConcreteJob.JobType`): the kinds that concern replication and the
    /// VMs it runs.
    JobType : "JobType" {
        Unknown = 0 "Unknown",
        DefineVirtualMachine = 1 "Define virtual machine",
        ModifyVirtualMachine = 2 "Modify virtual machine",
        DestroyVirtualMachine = 3 "Destroy virtual machine",
        StartVirtualMachine = 12 "Start virtual machine",
        PowerOffVirtualMachine = 13 "Power off virtual machine",
        ShutDownVirtualMachine = 16 "Shut down virtual machine",
        PauseVirtualMachine = 26 "Pause virtual machine",
        ResumeVirtualMachine = 27 "Resume virtual machine",
        ResetVirtualMachine = 28 "Reset virtual machine",
        ModifyReplicationServerSettings = 90 "Modify replication server settings",
        CreateReplicationRelationship = 91 "Create replication relationship",
        ModifyReplicationRelationshipSettings = 92 "Modify replication relationship settings",
        RemoveReplicationRelationship = 93 "Remove replication relationship",
        StartInbandInitialReplication = 94 "Start initial replication over the network",
        ImportReplication = 95 "Import initial replica",
        ReplicateStateChange = 96 "Change replication state",
        InitiateFailover = 97 "Initiate failover",
        RevertFailover = 98 "Revert failover",
        CommitFailover = 99 "Commit failover",
        InitiateSyncedReplication = 100 "Prepare planned failover",
        CancelSyncedReplication = 101 "Cancel prepared planned failover",
        InitiateTestReplica = 102 "Start test failover",
        RemoveTestReplica = 103 "Remove test failover",
        ReverseReplication = 104 "Reverse replication",
        SendingDelta = 105 "Sending delta",
        ReceivingDelta = 106 "Receiving delta",
        Resynchronizing = 107 "Resynchronizing",
        ApplyChangeLog = 108 "Applying delta",
        StopInitialReplication = 109 "Stop initial replication",
        StopResynchronizing = 110 "Stop resynchronizing",
        ReadReplicaStatistics = 111 "Read replication statistics",
        PrepareForConsistencyChecker = 112 "Prepare consistency check",
        ConsistencyChecker = 113 "Consistency check",
        StopConsistencyChecker = 114 "Stop consistency check",
        TestReplicationConnection = 115 "Test replication connection",
        SendingInitialReplica = 116 "Sending initial replica",
        StartResyncInitialReplication = 117 "Start initial replication from an existing copy",
        StartExportInitialReplication = 118 "Start initial replication to media",
        ResetReplicaStatistics = 119 "Reset replication statistics",
        ApplyRegisteredDeltas = 120 "Applying registered deltas",
        ResynchronizingExtendedReplication = 121 "Resynchronizing extended replication",
        ReadingTestReplicaConfiguration = 122 "Reading test replica configuration",
        ChangeReplicationModeToPrimary = 123 "Change replication mode to primary",
        InitiateFailback = 124 "Initiate failback",
        UpdateDiskSet = 125 "Update disk set",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_states_are_two_to_twelve_and_nothing_else() {
        let numbers: Vec<u16> = JobState::ALL.iter().map(|state| state.number()).collect();
        assert!(numbers.iter().copied().eq(2..=12));
        for number in [0, 1, 13, 32768] {
            assert!(JobState::try_from(number).is_err(), "{number}");
        }
    }

    #[test]
    fn seven_to_ten_are_final_and_only_seven_is_success() {
        for &state in JobState::ALL {
            let number = state.number();
            assert_eq!(state.is_final(), (7..=10).contains(&number), "{state}");
            assert_eq!(state.is_failure(), (8..=10).contains(&number), "{state}");
        }
    }

    #[test]
    fn the_replication_block_has_no_gap() {
        for number in 90..=125 {
            let job_type = JobType::try_from(number).unwrap();
            assert_eq!(u32::from(job_type.number()), number);
        }
        assert_eq!(JobType::CommitFailover.number(), 99);
        assert_eq!(JobType::UpdateDiskSet.number(), 125);
        assert!(JobType::try_from(126).is_err());
    }
}
