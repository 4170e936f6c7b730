//! The side that keeps a copy.

use serde::{Deserialize, Serialize};

use crate::contract::{FailoverType, ReplicationState};
use crate::relationship::event::{
    CopyPurpose, Effect, Event, FailoverChoice, PrimaryGuest, VmPower,
};
use crate::relationship::guard::Operation;
use crate::relationship::primary::{Copying, Primary, ResyncCause, Work};
use crate::relationship::refused::Refused;
use crate::relationship::standing::has;
use crate::relationship::{Record, Role, Step};
use crate::{Lineage, LineageId, Sequence};

/// What the replica's side knows besides its store, whose journal is the truth.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// The second hop: the copy of a copy.
    pub extended: bool,
    /// The primary's VM is off for a planned failover, and this moment is its last.
    pub prepared: Option<Sequence>,
    pub phase: ReplicaPhase,
}

/// What the replica does.
///
/// A pause forgets that a copy was under way or that deltas could not be applied: after it, the
/// next copy or the next delta shows it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

impl ReplicaPhase {
    /// Whether a failover has begun and was not reverted: nothing more is received.
    #[must_use]
    pub const fn has_failed_over(&self) -> bool {
        match self {
            Self::FailingOver(_)
            | Self::FailedOver { .. }
            | Self::Reverting { .. }
            | Self::Committing { .. }
            | Self::Committed { .. }
            | Self::Reversing { .. } => true,
            Self::WaitingInitial
            | Self::Replicating
            | Self::Suspended
            | Self::Critical(_)
            | Self::Resyncing => false,
        }
    }
}

/// A failover, and what was before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    pub point: Option<Sequence>,
    pub kind: FailoverType,
    pub lineage: LineageId,
    pub before: Before,
}

/// Where a revert leads back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    Replicating,
    Suspended,
    Critical(ApplyTrouble),
    Resyncing,
}

/// Why received deltas cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
            Event::BecomePrimary => Err(self.not_here(Operation::ChangeReplicationModeToPrimary)),

            Event::Survive {
                over,
                ancestors,
                lineage,
            } => self.survive_as_replica(replica, over, ancestors, lineage),
            Event::Yield { to } => self.yield_as_replica(replica, to),
            Event::Adopt {
                lineage,
                ancestors,
                vm,
                hop,
            } => self.be_adopted_as_replica(replica, lineage, &ancestors, vm, hop),
            Event::Prepared { sequence } => self.prepared(replica, sequence),
            Event::PreparedCancelled { sequence } => self.prepared_cancelled(replica, sequence),
            Event::Peer(news) => Ok(self.primary_news(replica, news)),
            Event::InitialComplete
            | Event::ResyncBegun
            | Event::ResyncEnded
            | Event::ApplyFailed(_)
            | Event::ApplyMended => Ok(self.receiving(replica, &event)),
            Event::FailedOver { .. }
            | Event::FailOverFailed
            | Event::Reverted
            | Event::Committed
            | Event::CommitFailed
            | Event::Adopted { .. }
            | Event::AdoptionFailed => Ok(self.store_done(replica, &event)),
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
            | Event::Upstream(_) => Ok(self.unchanged()),
        }
    }

    fn replica(&self, replica: &Replica, phase: ReplicaPhase, effects: Vec<Effect>) -> Step {
        let role = Role::Replica(Replica {
            phase,
            ..replica.clone()
        });
        self.to(role, effects)
    }

    pub(super) fn not_here(&self, operation: Operation) -> Refused {
        Refused::State {
            operation,
            mode: self.mode(),
            state: self.state(),
        }
    }

    /// What receiving and applying bring about.
    fn receiving(&self, replica: &Replica, event: &Event) -> Step {
        let next = match (&replica.phase, event) {
            (ReplicaPhase::WaitingInitial, Event::InitialComplete)
            | (ReplicaPhase::Resyncing, Event::ResyncEnded)
            | (ReplicaPhase::Critical(_), Event::ApplyMended) => ReplicaPhase::Replicating,
            (ReplicaPhase::Replicating | ReplicaPhase::Critical(_), Event::ResyncBegun) => {
                ReplicaPhase::Resyncing
            }
            (
                ReplicaPhase::Replicating | ReplicaPhase::Critical(_),
                Event::ApplyFailed(trouble),
            ) => ReplicaPhase::Critical(*trouble),
            (
                ReplicaPhase::WaitingInitial
                | ReplicaPhase::Replicating
                | ReplicaPhase::Suspended
                | ReplicaPhase::Critical(_)
                | ReplicaPhase::Resyncing
                | ReplicaPhase::FailingOver(_)
                | ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Committed { .. }
                | ReplicaPhase::Reversing { .. },
                _,
            ) => return self.unchanged(),
        };
        self.replica(replica, next, Vec::new())
    }

    /// What the store, or the old primary, has done for a failover.
    fn store_done(&self, replica: &Replica, event: &Event) -> Step {
        match (&replica.phase, event) {
            (ReplicaPhase::FailingOver(failover), Event::FailedOver { lineage }) => {
                let phase = ReplicaPhase::FailedOver {
                    failover: *failover,
                    lineage: *lineage,
                };
                self.replica(replica, phase, vec![Effect::AnnounceTakeOver])
            }
            (ReplicaPhase::FailingOver(failover), Event::FailOverFailed) => {
                self.replica(replica, failover.before.phase(), Vec::new())
            }
            (ReplicaPhase::Reverting { failover, lineage }, Event::Reverted) => {
                let phase = failover.before.phase();
                let mut step = self.replica(replica, phase, vec![Effect::AnnounceTakeOver]);
                step.next.remember(*lineage);
                step
            }
            (ReplicaPhase::Committing { failover, lineage }, Event::Committed) => {
                let phase = ReplicaPhase::Committed {
                    kind: failover.kind,
                };
                let mut step = self.replica(replica, phase, vec![Effect::AnnounceTakeOver]);
                step.next.remember(self.lineage);
                step.next.lineage = *lineage;
                step
            }
            (ReplicaPhase::Committing { failover, lineage }, Event::CommitFailed) => {
                let phase = ReplicaPhase::FailedOver {
                    failover: *failover,
                    lineage: *lineage,
                };
                self.replica(replica, phase, Vec::new())
            }
            (ReplicaPhase::Reversing { .. }, Event::Adopted { drawn }) => {
                self.become_primary(*drawn)
            }
            (ReplicaPhase::Reversing { kind }, Event::AdoptionFailed) => {
                self.replica(replica, ReplicaPhase::Committed { kind: *kind }, Vec::new())
            }
            (
                ReplicaPhase::WaitingInitial
                | ReplicaPhase::Replicating
                | ReplicaPhase::Suspended
                | ReplicaPhase::Critical(_)
                | ReplicaPhase::Resyncing
                | ReplicaPhase::FailingOver(_)
                | ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Committed { .. }
                | ReplicaPhase::Reversing { .. },
                _,
            ) => self.unchanged(),
        }
    }

    /// A late announcement, from before the primary went on, would promise that nothing is lost.
    fn prepared(&self, replica: &Replica, sequence: Sequence) -> Result<Step, Refused> {
        let operation = Operation::PreparePlannedFailover;
        if replica.phase.has_failed_over() {
            return Err(self.not_here(operation));
        }
        if sequence < self.drawn {
            return Err(Refused::OutOfDate {
                operation,
                sequence,
            });
        }
        let mut step = self.set_prepared(replica, Some(sequence));
        step.next.drawn = sequence;
        Ok(step)
    }

    /// From here on a failover is no planned one. The number that follows is used up, so that an
    /// announcement that comes late is known as such.
    fn prepared_cancelled(&self, replica: &Replica, sequence: Sequence) -> Result<Step, Refused> {
        if replica.phase.has_failed_over() {
            return Err(self.not_here(Operation::CancelPlannedFailover));
        }
        if sequence < self.drawn {
            return Ok(self.unchanged());
        }
        let mut step = self.set_prepared(replica, None);
        step.next.drawn = sequence.next().unwrap_or(sequence);
        Ok(step)
    }

    pub(super) fn set_prepared(&self, replica: &Replica, prepared: Option<Sequence>) -> Step {
        let role = Role::Replica(Replica {
            prepared,
            ..replica.clone()
        });
        self.to(role, Vec::new())
    }

    /// The guest may run unless its failover is being ended, or was overruled.
    pub(super) fn may_start_as_replica(&self, replica: &Replica) -> Result<(), Refused> {
        let operation = Operation::StartVm;
        match &replica.phase {
            ReplicaPhase::FailedOver { lineage, .. } => self.refuse_overruled(operation, lineage),
            ReplicaPhase::Reverting { .. } => Err(Refused::Busy {
                operation,
                what: "revert",
            }),
            ReplicaPhase::Committing { .. } => Err(Refused::Busy {
                operation,
                what: "commit",
            }),
            ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => Ok(()),
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_) => Err(self.not_here(operation)),
        }
    }

    fn refuse_overruled(&self, operation: Operation, lineage: &Lineage) -> Result<(), Refused> {
        if has(&self.ancestors, lineage.id) {
            Err(Refused::Overruled { operation })
        } else {
            Ok(())
        }
    }

    fn fail_over(&self, replica: &Replica, choice: FailoverChoice) -> Result<Step, Refused> {
        self.refuse_unless(Operation::InitiateFailover)?;
        match choice.primary {
            PrimaryGuest::Running => return Err(Refused::PrimaryRunning),
            PrimaryGuest::Preparing => return Err(Refused::PrimaryPreparing),
            PrimaryGuest::Off | PrimaryGuest::Unknown | PrimaryGuest::Overruled => {}
        }
        let failover = Failover {
            point: choice.point,
            kind: self.proven_kind(replica, choice.kind),
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

    /// A failover is a planned one, which loses nothing, only from the moment that the primary
    /// announced as its last, with nothing heard of it since.
    fn proven_kind(&self, replica: &Replica, kind: FailoverType) -> FailoverType {
        match kind {
            FailoverType::Planned if replica.prepared != Some(self.drawn) => FailoverType::Regular,
            FailoverType::None
            | FailoverType::Regular
            | FailoverType::ApplicationConsistent
            | FailoverType::Planned => kind,
        }
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
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. }
            | ReplicaPhase::Committing { .. } => Err(Refused::Busy {
                operation,
                what: "commit",
            }),
        }
    }

    fn commit(&self, replica: &Replica) -> Result<Step, Refused> {
        let operation = Operation::CommitFailover;
        self.refuse_unless(operation)?;
        match replica.phase {
            ReplicaPhase::FailedOver { failover, lineage }
            | ReplicaPhase::Committing { failover, lineage } => {
                self.refuse_overruled(operation, &lineage)?;
                let phase = ReplicaPhase::Committing { failover, lineage };
                Ok(self.replica(replica, phase, vec![Effect::CommitStore]))
            }
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. }
            | ReplicaPhase::Reverting { .. } => Err(Refused::Busy {
                operation,
                what: "revert",
            }),
        }
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
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Committing { .. } => self.commit(replica),
        }
    }

    fn become_primary(&self, drawn: Sequence) -> Step {
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
