//! The side that keeps a copy.

use serde::{Deserialize, Serialize};

use crate::contract::{FailoverType, ReplicationState};
use crate::relationship::event::{
    CopyPurpose, Effect, Event, FailoverChoice, PrimaryGuest, VmPower,
};
use crate::relationship::guard::Operation;
use crate::relationship::primary::{Copying, Primary, ResyncCause, Work};
use crate::relationship::refused::Refused;
use crate::relationship::{Record, Role, Step};
use crate::{Lineage, LineageId, Sequence};

/// What the replica's side knows besides its store, whose journal is the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// The second hop: the copy of a copy.
    pub extended: bool,
    /// The primary's VM is off for a planned failover, and this moment is its last.
    pub prepared: Option<Sequence>,
    pub phase: ReplicaPhase,
}

/// What the replica does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaPhase {
    /// Nothing complete is here yet.
    WaitingInitial,
    /// Deltas are received and applied.
    Replicating,
    /// An operator's pause: nothing is received or applied.
    Suspended,
    /// Deltas are here that cannot be applied.
    Critical(ApplyTrouble),
    /// A copy over what is here is under way.
    Resyncing,
    /// The store is failing over.
    FailingOver(Failover),
    /// The VM may run here.
    FailedOver {
        failover: Failover,
        lineage: Lineage,
    },
    Reverting {
        failover: Failover,
        lineage: Lineage,
    },
    Committing {
        failover: Failover,
        lineage: Lineage,
    },
    /// No way back.
    Committed { kind: FailoverType },
    /// The old primary is being asked to become the replica.
    Reversing { kind: FailoverType },
}

/// A failover, and what was before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    pub point: Option<Sequence>,
    pub kind: FailoverType,
    pub lineage: LineageId,
    pub before: Before,
}

/// Where a revert leads back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    Replicating,
    Suspended,
    Critical(ApplyTrouble),
    Resyncing,
}

/// Why received deltas cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApplyTrouble {
    DiskFull,
    /// A delta or a segment is not as it was written.
    Damaged,
    /// The operating system fails calls.
    Io,
}

impl Replica {
    /// A replica that waits for its first copy.
    #[must_use]
    pub const fn waiting(extended: bool) -> Self {
        Self {
            extended,
            prepared: None,
            phase: ReplicaPhase::WaitingInitial,
        }
    }

    pub(super) fn state(&self) -> ReplicationState {
        match &self.phase {
            ReplicaPhase::WaitingInitial => ReplicationState::WaitingToCompleteInitialReplication,
            ReplicaPhase::Replicating => ReplicationState::Replicating,
            ReplicaPhase::Suspended => ReplicationState::Suspended,
            ReplicaPhase::Critical(_) => ReplicationState::Critical,
            ReplicaPhase::Resyncing => ReplicationState::Resynchronizing,
            ReplicaPhase::FailingOver(_) => ReplicationState::FailoverInProgress,
            ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. } => ReplicationState::Recovered,
            ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => {
                ReplicationState::Committed
            }
        }
    }

    /// What kind of failover was done; none before.
    #[must_use]
    pub fn failover_type(&self) -> FailoverType {
        match &self.phase {
            ReplicaPhase::FailedOver { failover, .. }
            | ReplicaPhase::Reverting { failover, .. }
            | ReplicaPhase::Committing { failover, .. } => failover.kind,
            ReplicaPhase::Committed { kind } | ReplicaPhase::Reversing { kind } => *kind,
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_) => FailoverType::None,
        }
    }

    /// Whether deltas and copies are taken in.
    #[must_use]
    pub fn receives(&self) -> bool {
        match self.phase {
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing => true,
            ReplicaPhase::Suspended
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. }
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. } => false,
        }
    }

    fn before(&self) -> Before {
        match self.phase {
            ReplicaPhase::Suspended => Before::Suspended,
            ReplicaPhase::Critical(trouble) => Before::Critical(trouble),
            ReplicaPhase::Resyncing => Before::Resyncing,
            ReplicaPhase::FailingOver(failover)
            | ReplicaPhase::FailedOver { failover, .. }
            | ReplicaPhase::Reverting { failover, .. }
            | ReplicaPhase::Committing { failover, .. } => failover.before,
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. } => Before::Replicating,
        }
    }

    pub(super) fn resume(&self) -> Vec<Effect> {
        match &self.phase {
            ReplicaPhase::FailingOver(failover) => vec![Effect::FailOverStore {
                point: failover.point,
                lineage: failover.lineage,
            }],
            ReplicaPhase::FailedOver { .. } | ReplicaPhase::Committed { .. } => {
                vec![Effect::AnnounceTakeOver]
            }
            ReplicaPhase::Reverting { .. } => vec![Effect::RevertStore],
            ReplicaPhase::Committing { .. } => vec![Effect::CommitStore],
            ReplicaPhase::Reversing { .. } => vec![Effect::AskAdoption],
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing => Vec::new(),
        }
    }
}

impl Before {
    const fn phase(self) -> ReplicaPhase {
        match self {
            Self::Replicating => ReplicaPhase::Replicating,
            Self::Suspended => ReplicaPhase::Suspended,
            Self::Critical(trouble) => ReplicaPhase::Critical(trouble),
            Self::Resyncing => ReplicaPhase::Resyncing,
        }
    }
}

impl Record {
    pub(super) fn decide_as_replica(
        &self,
        replica: &Replica,
        event: Event,
    ) -> Result<Step, Refused> {
        match event {
            Event::Suspend => {
                self.refuse_unless(Operation::Suspend)?;
                Ok(self.replica(replica, ReplicaPhase::Suspended, vec![Effect::StopWork]))
            }
            Event::Resume => {
                self.refuse_unless(Operation::Resume)?;
                Ok(self.replica(replica, ReplicaPhase::Replicating, Vec::new()))
            }
            Event::FailOver(choice) => self.fail_over(replica, choice),
            Event::Revert { vm } => self.revert(replica, vm),
            Event::Commit => self.commit(replica),
            Event::Reverse => self.reverse(replica),
            Event::Start { .. } => Err(self.not_here(Operation::StartReplication)),
            Event::CancelInitial => Err(self.not_here(Operation::CancelInitialReplication)),
            Event::Resynchronize { .. } => Err(self.not_here(Operation::Resynchronize)),
            Event::CancelResynchronize => Err(self.not_here(Operation::CancelResynchronize)),
            Event::Prepare { .. } => Err(self.not_here(Operation::PreparePlannedFailover)),
            Event::CancelPrepared { .. } => Err(self.not_here(Operation::CancelPlannedFailover)),

            Event::InitialComplete => Ok(match replica.phase {
                ReplicaPhase::WaitingInitial => {
                    self.replica(replica, ReplicaPhase::Replicating, Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::ResyncBegun => Ok(match replica.phase {
                ReplicaPhase::Replicating | ReplicaPhase::Critical(_) => {
                    self.replica(replica, ReplicaPhase::Resyncing, Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::ResyncEnded => Ok(match replica.phase {
                ReplicaPhase::Resyncing => {
                    self.replica(replica, ReplicaPhase::Replicating, Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::ApplyFailed(trouble) => Ok(match replica.phase {
                ReplicaPhase::Replicating | ReplicaPhase::Critical(_) => {
                    self.replica(replica, ReplicaPhase::Critical(trouble), Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::ApplyMended => Ok(match replica.phase {
                ReplicaPhase::Critical(_) => {
                    self.replica(replica, ReplicaPhase::Replicating, Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::Prepared { sequence } => Ok(self.set_prepared(replica, Some(sequence))),
            Event::PreparedCancelled => Ok(self.set_prepared(replica, None)),
            Event::FailedOver { lineage } => Ok(match replica.phase {
                ReplicaPhase::FailingOver(failover) => {
                    let phase = ReplicaPhase::FailedOver { failover, lineage };
                    self.replica(replica, phase, vec![Effect::AnnounceTakeOver])
                }
                _ => self.unchanged(),
            }),
            Event::FailOverFailed => Ok(match replica.phase {
                ReplicaPhase::FailingOver(failover) => {
                    self.replica(replica, failover.before.phase(), Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::Reverted => Ok(self.reverted(replica)),
            Event::Committed => Ok(self.committed(replica)),
            Event::CommitFailed => Ok(match replica.phase {
                ReplicaPhase::Committing { failover, lineage } => {
                    let phase = ReplicaPhase::FailedOver { failover, lineage };
                    self.replica(replica, phase, Vec::new())
                }
                _ => self.unchanged(),
            }),
            Event::Adopted { drawn } => Ok(self.become_primary(replica, drawn)),
            Event::AdoptionFailed => Ok(match replica.phase {
                ReplicaPhase::Reversing { kind } => {
                    self.replica(replica, ReplicaPhase::Committed { kind }, Vec::new())
                }
                _ => self.unchanged(),
            }),
            // Work that was interrupted is tried again.
            Event::Due => Ok(Step {
                next: self.clone(),
                effects: replica.resume(),
            }),
            // Facts about a primary's cycles say nothing to a replica.
            Event::Session(_)
            | Event::ChunksDone { .. }
            | Event::Captured { .. }
            | Event::CaptureFailed { .. }
            | Event::SpoolLost { .. }
            | Event::Received(_)
            | Event::CancelGranted
            | Event::NeedsResync(_)
            | Event::Failed(_)
            | Event::Mended
            | Event::Peer(_) => Ok(self.unchanged()),
        }
    }

    fn replica(&self, replica: &Replica, phase: ReplicaPhase, effects: Vec<Effect>) -> Step {
        let role = Role::Replica(Replica {
            phase,
            ..replica.clone()
        });
        self.to(role, effects)
    }

    fn not_here(&self, operation: Operation) -> Refused {
        Refused::State {
            operation,
            mode: self.mode(),
            state: self.state(),
        }
    }

    fn set_prepared(&self, replica: &Replica, prepared: Option<Sequence>) -> Step {
        let role = Role::Replica(Replica {
            prepared,
            ..replica.clone()
        });
        self.to(role, Vec::new())
    }

    fn fail_over(&self, replica: &Replica, choice: FailoverChoice) -> Result<Step, Refused> {
        self.refuse_unless(Operation::InitiateFailover)?;
        match choice.primary {
            PrimaryGuest::Running => return Err(Refused::PrimaryRunning),
            PrimaryGuest::Off | PrimaryGuest::Unknown | PrimaryGuest::Overruled => {}
        }
        let failover = Failover {
            point: choice.point,
            kind: choice.kind,
            lineage: choice.lineage,
            before: replica.before(),
        };
        let effects = vec![
            Effect::StopWork,
            Effect::FailOverStore {
                point: choice.point,
                lineage: choice.lineage,
            },
        ];
        Ok(self.replica(replica, ReplicaPhase::FailingOver(failover), effects))
    }

    fn revert(&self, replica: &Replica, vm: VmPower) -> Result<Step, Refused> {
        let operation = Operation::RevertFailover;
        self.refuse_unless(operation)?;
        if vm == VmPower::Running {
            return Err(Refused::VmRunning { operation });
        }
        match replica.phase {
            ReplicaPhase::FailedOver { failover, lineage }
            | ReplicaPhase::Reverting { failover, lineage } => {
                let phase = ReplicaPhase::Reverting { failover, lineage };
                Ok(self.replica(replica, phase, vec![Effect::RevertStore]))
            }
            _ => Err(Refused::Busy {
                operation,
                what: "commit",
            }),
        }
    }

    fn reverted(&self, replica: &Replica) -> Step {
        let ReplicaPhase::Reverting { failover, lineage } = replica.phase else {
            return self.unchanged();
        };
        let phase = failover.before.phase();
        let mut step = self.replica(replica, phase, vec![Effect::AnnounceTakeOver]);
        step.next.ancestors.push(lineage);
        step
    }

    fn commit(&self, replica: &Replica) -> Result<Step, Refused> {
        let operation = Operation::CommitFailover;
        self.refuse_unless(operation)?;
        match replica.phase {
            ReplicaPhase::FailedOver { failover, lineage }
            | ReplicaPhase::Committing { failover, lineage } => {
                let phase = ReplicaPhase::Committing { failover, lineage };
                Ok(self.replica(replica, phase, vec![Effect::CommitStore]))
            }
            _ => Err(Refused::Busy {
                operation,
                what: "revert",
            }),
        }
    }

    fn committed(&self, replica: &Replica) -> Step {
        let ReplicaPhase::Committing { failover, lineage } = replica.phase else {
            return self.unchanged();
        };
        let phase = ReplicaPhase::Committed {
            kind: failover.kind,
        };
        let mut step = self.replica(replica, phase, vec![Effect::AnnounceTakeOver]);
        step.next.ancestors.push(self.lineage);
        step.next.lineage = lineage;
        step
    }

    /// A failover that is not committed yet is committed first; the wish has to be repeated then.
    fn reverse(&self, replica: &Replica) -> Result<Step, Refused> {
        self.refuse_unless(Operation::ReverseReplicationRelationship)?;
        match replica.phase {
            ReplicaPhase::Committed { kind } | ReplicaPhase::Reversing { kind } => {
                let phase = ReplicaPhase::Reversing { kind };
                Ok(self.replica(replica, phase, vec![Effect::AskAdoption]))
            }
            ReplicaPhase::Reverting { .. } => Err(Refused::Busy {
                operation: Operation::ReverseReplicationRelationship,
                what: "revert",
            }),
            _ => self.commit(replica),
        }
    }

    fn become_primary(&self, replica: &Replica, drawn: Sequence) -> Step {
        let ReplicaPhase::Reversing { .. } = replica.phase else {
            return self.unchanged();
        };
        let mut next = self.clone();
        next.drawn = self.drawn.max(drawn);
        let copy = next.draw();
        next.drawn = copy;
        let purpose = CopyPurpose::Reverse;
        next.role = Role::Primary(Primary::Resyncing(Copying {
            copy,
            purpose,
            cause: Some(ResyncCause::Reversed),
            work: Work::Chunks,
        }));
        Step {
            next,
            effects: vec![Effect::Copy { copy, purpose }],
        }
    }
}
