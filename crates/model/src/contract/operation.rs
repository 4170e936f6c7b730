//! What is asked of the service, and the numbers it answers with.

use super::number::numbered;

numbered! {
    /// What a method of the service returns.
    ReturnCode : "return code" {
        Completed = 0 "Completed with no error",
        JobStarted = 4096 "Method parameters checked, job started",
        Failed = 32768 "Failed",
        AccessDenied = 32769 "Access denied",
        NotSupported = 32770 "Not supported",
        UnknownStatus = 32771 "Status is unknown",
        Timeout = 32772 "Timeout",
        InvalidParameter = 32773 "Invalid parameter",
        InUse = 32774 "System is in use",
        InvalidState = 32775 "Invalid state for this operation",
        IncorrectDataType = 32776 "Incorrect data type",
        NotAvailable = 32777 "System is not available",
        OutOfMemory = 32778 "Out of memory",
        FileNotFound = 32779 "File not found",
    }
}

numbered! {
    /// What `RequestReplicationStateChange` asks for.
    RequestedState : "RequestedState" {
        /// Cancels an initial replication that runs.
        ReadyForReplication = 1 "Ready for replication",
        /// Marks a VM as a replica that a seeded replication will fill.
        WaitingToCompleteInitialReplication = 2 "Waiting to complete initial replication",
        /// Resumes, or cancels a prepared planned failover.
        Replicating = 3 "Replicating",
        /// Prepares a planned failover.
        SyncedReplicationComplete = 4 "Synced replication complete",
        Suspend = 7 "Suspend",
        CancelResynchronize = 9 "Cancel resynchronization",
    }
}

numbered! {
    /// How the first copy of the disks gets to the replica.
    InitialReplicationType : "InitialReplicationType" {
        NetworkTransfer = 1 "Network transfer",
        Export = 2 "Export",
        /// The replica has a copy already; what differs travels.
        SeededNetworkTransfer = 3 "Seeded network transfer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_fourteen_return_codes() {
        assert_eq!(ReturnCode::ALL.len(), 14);
        let numbers: Vec<u16> = ReturnCode::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(numbers[..2], [0, 4096]);
        assert!(numbers[2..].iter().copied().eq(32768..=32779));
    }
}
