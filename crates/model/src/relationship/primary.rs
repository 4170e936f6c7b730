//! The side where the VM runs.

use serde::{Deserialize, Serialize};

use crate::contract::{InitialReplicationType, ReplicationState};
use crate::relationship::event::{
    CancelHow, CopyPurpose, Effect, Event, Report, TakeOverNews, VmPower,
};
use crate::relationship::guard::Operation;
use crate::relationship::refused::Refused;
use crate::relationship::standing::Standing;
use crate::relationship::{Record, Role, Step};
use crate::{DeltaId, Lineage, LineageId, Receipt, Sequence, Timestamp};

/// How far ahead a start may be scheduled: 7 days.
const MAX_AHEAD_MICROS: u64 = 7 * 24 * 3600 * 1_000_000;

/// What the primary does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStart {
    pub kind: InitialReplicationType,
    pub at: Timestamp,
}

/// A copy of whole disks under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Chunks travel.
    Chunks,
    /// All chunks are there; a delta of what changed meanwhile closes the copy.
    Closing(Cycle),
}

/// One delta on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// An operator wants it.
    Requested,
    /// The roles were swapped.
    Reversed,
}

/// Why somebody must come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    fn rest(&self) -> SuspendedFrom {
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

impl Copying {
    fn at_rest(self) -> Self {
        let work = match self.work {
            Work::Chunks => Work::Chunks,
            Work::Closing(_) => Work::Closing(Cycle::Idle),
        };
        Self { work, ..self }
    }

    fn resume(&self) -> Vec<Effect> {
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

impl Record {
    pub(super) fn decide_as_primary(
        &self,
        primary: &Primary,
        now: Timestamp,
        event: Event,
    ) -> Result<Step, Refused> {
        match event {
            Event::Start { kind, at } => self.start(now, kind, at),
            Event::CancelInitial => {
                self.refuse_unless(Operation::CancelInitialReplication)?;
                let effects = vec![Effect::StopWork, Effect::StopTracking];
                Ok(self.primary(Primary::Ready { start: None }, effects))
            }
            Event::Suspend => self.suspend(primary),
            Event::Resume => self.go_on(primary),
            Event::Resynchronize { at } => self.resynchronize(now, at),
            Event::CancelResynchronize => {
                self.refuse_unless(Operation::CancelResynchronize)?;
                let cause = match primary {
                    Primary::Resyncing(copying) | Primary::ResyncSuspended(copying) => {
                        copying.cause.unwrap_or(ResyncCause::Requested)
                    }
                    _ => ResyncCause::Requested,
                };
                let effects = vec![Effect::StopWork, Effect::StopTracking];
                Ok(self.primary(Primary::ResyncRequired { cause, at: None }, effects))
            }
            Event::Prepare { vm } => self.prepare(primary, vm),
            Event::CancelPrepared { how } => self.cancel_prepared(primary, how),
            Event::FailOver(_) => Err(self.wrong_side(Operation::InitiateFailover)),
            Event::Revert { .. } => Err(self.wrong_side(Operation::RevertFailover)),
            Event::Commit => Err(self.wrong_side(Operation::CommitFailover)),
            Event::Reverse => Err(self.wrong_side(Operation::ReverseReplicationRelationship)),
            Event::Due => Ok(self.due(primary, now)),
            Event::Session(standing) => Ok(self.session(primary, standing)),
            Event::ChunksDone { copy } => Ok(self.chunks_done(primary, copy)),
            Event::Captured { sequence, id } => Ok(self.captured(primary, sequence, id)),
            Event::CaptureFailed { sequence } => Ok(self.capture_failed(primary, sequence)),
            Event::SpoolLost { sequence } => Ok(self.spool_lost(primary, sequence)),
            Event::Received(receipt) => Ok(self.received(primary, receipt)),
            Event::CancelGranted => Ok(match primary {
                Primary::AskingToGoOn { last } => self.replicate_on(*last),
                _ => self.unchanged(),
            }),
            Event::NeedsResync(cause) => Ok(self.needs_resync(primary, cause)),
            Event::Failed(cause) => Ok(self.failed(primary, cause)),
            Event::Mended => Ok(self.mended(primary)),
            Event::Peer(news) => Ok(self.peer_news(primary, news)),
            // Facts about a replica's store say nothing to a primary.
            Event::InitialComplete
            | Event::ResyncBegun
            | Event::ResyncEnded
            | Event::ApplyFailed(_)
            | Event::ApplyMended
            | Event::FailedOver { .. }
            | Event::FailOverFailed
            | Event::Reverted
            | Event::Committed
            | Event::CommitFailed
            | Event::Prepared { .. }
            | Event::PreparedCancelled
            | Event::Adopted { .. }
            | Event::AdoptionFailed => Ok(self.unchanged()),
        }
    }

    fn primary(&self, primary: Primary, effects: Vec<Effect>) -> Step {
        self.to(Role::Primary(primary), effects)
    }

    /// As [`primary`](Self::primary), with a number drawn.
    fn primary_drawn(&self, drawn: Sequence, primary: Primary, effects: Vec<Effect>) -> Step {
        let mut step = self.primary(primary, effects);
        step.next.drawn = drawn;
        step
    }

    fn wrong_side(&self, operation: Operation) -> Refused {
        Refused::State {
            operation,
            mode: self.mode(),
            state: self.state(),
        }
    }

    fn start(
        &self,
        now: Timestamp,
        kind: InitialReplicationType,
        at: Option<Timestamp>,
    ) -> Result<Step, Refused> {
        self.refuse_unless(Operation::StartReplication)?;
        match at.filter(|at| *at > now) {
            Some(at) if at.as_micros() - now.as_micros() > MAX_AHEAD_MICROS => {
                Err(Refused::TooFarAhead { at })
            }
            Some(at) => {
                let start = Some(PlannedStart { kind, at });
                Ok(self.primary(Primary::Ready { start }, Vec::new()))
            }
            None => Ok(self.begin_first_copy(kind)),
        }
    }

    fn begin_first_copy(&self, kind: InitialReplicationType) -> Step {
        let purpose = match kind {
            InitialReplicationType::NetworkTransfer | InitialReplicationType::Export => {
                CopyPurpose::Initial
            }
            InitialReplicationType::SeededNetworkTransfer => CopyPurpose::Compare,
        };
        self.begin_copy(purpose, None, Primary::Copying)
    }

    fn begin_resync(&self, cause: ResyncCause) -> Step {
        self.begin_copy(CopyPurpose::Compare, Some(cause), Primary::Resyncing)
    }

    fn begin_copy(
        &self,
        purpose: CopyPurpose,
        cause: Option<ResyncCause>,
        phase: fn(Copying) -> Primary,
    ) -> Step {
        let copy = self.draw();
        let copying = Copying {
            copy,
            purpose,
            cause,
            work: Work::Chunks,
        };
        let effects = vec![
            Effect::StopWork,
            Effect::StartTracking { moment: copy },
            Effect::Copy { copy, purpose },
        ];
        self.primary_drawn(copy, phase(copying), effects)
    }

    fn suspend(&self, primary: &Primary) -> Result<Step, Refused> {
        self.refuse_unless(Operation::Suspend)?;
        let next = match primary {
            Primary::Resyncing(copying) => Primary::ResyncSuspended(copying.at_rest()),
            Primary::Fenced { by, .. } => return Err(Refused::TakenOver { by: *by }),
            other => Primary::Suspended { from: other.rest() },
        };
        let mut effects = vec![Effect::StopWork];
        effects.extend(dropped(primary));
        Ok(self.primary(next, effects))
    }

    fn go_on(&self, primary: &Primary) -> Result<Step, Refused> {
        self.refuse_unless(Operation::Resume)?;
        match primary {
            Primary::Suspended { from } | Primary::Critical { from, .. } => {
                Ok(self.from_rest(*from))
            }
            Primary::ResyncSuspended(copying) => Ok(self.copy_on(*copying, Primary::Resyncing)),
            Primary::Fenced { by, .. } => Err(Refused::TakenOver { by: *by }),
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_) => Ok(self.unchanged()),
        }
    }

    fn from_rest(&self, from: SuspendedFrom) -> Step {
        match from {
            SuspendedFrom::Ready => self.primary(Primary::Ready { start: None }, Vec::new()),
            SuspendedFrom::Replicating { last } => self.replicate_on(last),
            SuspendedFrom::Copying(copying) => self.copy_on(copying, Primary::Copying),
            SuspendedFrom::Resyncing(copying) => self.copy_on(copying, Primary::Resyncing),
            SuspendedFrom::Prepared { last } => {
                let sequence = last.sequence;
                let effects = vec![Effect::AnnouncePrepared { sequence }];
                self.primary(Primary::Prepared { last }, effects)
            }
            SuspendedFrom::ResyncRequired { cause } => {
                self.primary(Primary::ResyncRequired { cause, at: None }, Vec::new())
            }
        }
    }

    fn replicate_on(&self, last: Receipt) -> Step {
        let next = Primary::Replicating {
            last,
            cycle: Cycle::Idle,
        };
        self.primary(next, vec![Effect::OpenSession])
    }

    fn copy_on(&self, copying: Copying, phase: fn(Copying) -> Primary) -> Step {
        let copying = copying.at_rest();
        self.primary(phase(copying), copying.resume())
    }

    fn resynchronize(&self, now: Timestamp, at: Option<Timestamp>) -> Result<Step, Refused> {
        self.refuse_unless(Operation::Resynchronize)?;
        let cause = match &self.role {
            Role::Primary(Primary::ResyncRequired { cause, .. }) => *cause,
            Role::Primary(Primary::Fenced { by, .. }) => {
                return Err(Refused::TakenOver { by: *by });
            }
            Role::Primary(_) | Role::Replica(_) => ResyncCause::Requested,
        };
        match at.filter(|at| *at > now) {
            Some(at) if at.as_micros() - now.as_micros() > MAX_AHEAD_MICROS => {
                Err(Refused::TooFarAhead { at })
            }
            Some(at) => {
                let next = Primary::ResyncRequired {
                    cause,
                    at: Some(at),
                };
                Ok(self.primary(next, vec![Effect::StopWork]))
            }
            None => Ok(self.begin_resync(cause)),
        }
    }

    fn prepare(&self, primary: &Primary, vm: VmPower) -> Result<Step, Refused> {
        let operation = Operation::PreparePlannedFailover;
        self.refuse_unless(operation)?;
        if vm == VmPower::Running {
            return Err(Refused::VmRunning { operation });
        }
        let Primary::Replicating { last, .. } = primary else {
            return Ok(self.unchanged());
        };
        let sequence = self.draw();
        let mut effects = vec![Effect::StopWork];
        effects.extend(dropped(primary));
        effects.push(Effect::Capture {
            sequence,
            base: Some(*last),
            planned: true,
        });
        let next = Primary::Preparing {
            last: *last,
            cycle: Cycle::Capturing { sequence },
        };
        Ok(self.primary_drawn(sequence, next, effects))
    }

    fn cancel_prepared(&self, primary: &Primary, how: CancelHow) -> Result<Step, Refused> {
        self.refuse_unless(Operation::CancelPlannedFailover)?;
        match (primary, how) {
            // The replica has not been told, so it cannot have failed over as planned.
            (Primary::Preparing { last, .. }, _) => {
                let mut step = self.replicate_on(*last);
                step.effects.insert(0, Effect::StopWork);
                step.effects.extend(dropped(primary));
                Ok(step)
            }
            (Primary::Prepared { last } | Primary::AskingToGoOn { last }, CancelHow::Asking) => {
                let sequence = last.sequence;
                let effects = vec![Effect::AskToGoOn { sequence }];
                Ok(self.primary(Primary::AskingToGoOn { last: *last }, effects))
            }
            (
                Primary::Prepared { last } | Primary::AskingToGoOn { last },
                CancelHow::Forced { lineage },
            ) => {
                let next = Primary::Critical {
                    cause: CriticalCause::WentOnAlone,
                    from: SuspendedFrom::ResyncRequired {
                        cause: ResyncCause::Requested,
                    },
                };
                let report = Report::Critical(CriticalCause::WentOnAlone);
                let mut step = self.primary(next, vec![Effect::StopWork, Effect::Report(report)]);
                step.next.ancestors.push(self.lineage);
                step.next.lineage = Lineage {
                    counter: self.lineage.counter + 1,
                    id: lineage,
                    forked_from: Some((self.lineage.id, last.sequence)),
                };
                Ok(step)
            }
            _ => Ok(self.unchanged()),
        }
    }

    fn due(&self, primary: &Primary, now: Timestamp) -> Step {
        match primary {
            Primary::Ready { start: Some(start) } if start.at <= now => {
                self.begin_first_copy(start.kind)
            }
            Primary::ResyncRequired {
                cause,
                at: Some(at),
            } if *at <= now => self.begin_resync(*cause),
            Primary::Replicating {
                last,
                cycle: Cycle::Idle,
            } => {
                let sequence = self.draw();
                let next = Primary::Replicating {
                    last: *last,
                    cycle: Cycle::Capturing { sequence },
                };
                let capture = Effect::Capture {
                    sequence,
                    base: Some(*last),
                    planned: false,
                };
                self.primary_drawn(sequence, next, vec![capture])
            }
            Primary::Preparing {
                last,
                cycle: Cycle::Idle,
            } => {
                let sequence = self.draw();
                let next = Primary::Preparing {
                    last: *last,
                    cycle: Cycle::Capturing { sequence },
                };
                let capture = Effect::Capture {
                    sequence,
                    base: Some(*last),
                    planned: true,
                };
                self.primary_drawn(sequence, next, vec![capture])
            }
            Primary::Copying(copying) => self.close_copy(*copying, Primary::Copying),
            Primary::Resyncing(copying) => self.close_copy(*copying, Primary::Resyncing),
            // What was interrupted is tried again.
            Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Prepared { .. }
            | Primary::Critical { .. } => Step {
                next: self.clone(),
                effects: primary.resume(),
            },
            Primary::Ready { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => self.unchanged(),
        }
    }

    /// Goes on with a copy: chunks, or the delta that closes it.
    fn close_copy(&self, copying: Copying, phase: fn(Copying) -> Primary) -> Step {
        match copying.work {
            Work::Chunks | Work::Closing(Cycle::Capturing { .. } | Cycle::Sending { .. }) => Step {
                next: self.clone(),
                effects: copying.resume(),
            },
            Work::Closing(Cycle::Idle) => {
                let sequence = self.draw();
                let work = Work::Closing(Cycle::Capturing { sequence });
                let capture = Effect::Capture {
                    sequence,
                    base: None,
                    planned: false,
                };
                self.primary_drawn(sequence, phase(Copying { work, ..copying }), vec![capture])
            }
        }
    }

    fn session(&self, primary: &Primary, standing: Standing) -> Step {
        match standing {
            Standing::InStep => self.mended(primary),
            Standing::ReceiptLost(receipt) => self.received(primary, receipt),
            Standing::NeedsResync(cause) => self.needs_resync(primary, cause),
            Standing::TakenOver { lineage, ancestors } => {
                self.peer_news(primary, TakeOverNews::TakenOver { lineage, ancestors })
            }
            Standing::SplitBrain { theirs } => self.split_brain(primary, theirs),
        }
    }

    fn chunks_done(&self, primary: &Primary, copy: Sequence) -> Step {
        let close = |copying: &Copying, phase: fn(Copying) -> Primary| {
            if copying.copy == copy && copying.work == Work::Chunks {
                let work = Work::Closing(Cycle::Idle);
                self.close_copy(Copying { work, ..*copying }, phase)
            } else {
                self.unchanged()
            }
        };
        match primary {
            Primary::Copying(copying) => close(copying, Primary::Copying),
            Primary::Resyncing(copying) => close(copying, Primary::Resyncing),
            _ => self.unchanged(),
        }
    }

    /// The same phase with another cycle; `None` where there is none.
    fn with_cycle(primary: &Primary, cycle: Cycle) -> Option<Primary> {
        let closing = |copying: &Copying| match copying.work {
            Work::Chunks => None,
            Work::Closing(_) => Some(Copying {
                work: Work::Closing(cycle),
                ..*copying
            }),
        };
        match primary {
            Primary::Replicating { last, .. } => Some(Primary::Replicating { last: *last, cycle }),
            Primary::Preparing { last, .. } => Some(Primary::Preparing { last: *last, cycle }),
            Primary::Copying(copying) => closing(copying).map(Primary::Copying),
            Primary::Resyncing(copying) => closing(copying).map(Primary::Resyncing),
            _ => None,
        }
    }

    fn captured(&self, primary: &Primary, sequence: Sequence, id: DeltaId) -> Step {
        if primary.cycle() != (Cycle::Capturing { sequence }) {
            return self.unchanged();
        }
        let planned = matches!(primary, Primary::Preparing { .. });
        match Self::with_cycle(primary, Cycle::Sending { sequence, id }) {
            Some(next) => self.primary(
                next,
                vec![Effect::Send {
                    sequence,
                    id,
                    planned,
                }],
            ),
            None => self.unchanged(),
        }
    }

    fn capture_failed(&self, primary: &Primary, sequence: Sequence) -> Step {
        if primary.cycle() != (Cycle::Capturing { sequence }) {
            return self.unchanged();
        }
        match Self::with_cycle(primary, Cycle::Idle) {
            Some(next) => self.primary(next, vec![Effect::DropSpool { sequence }]),
            None => self.unchanged(),
        }
    }

    fn spool_lost(&self, primary: &Primary, lost: Sequence) -> Step {
        let next = match primary.cycle() {
            Cycle::Sending { sequence, .. } if sequence == lost => {
                Self::with_cycle(primary, Cycle::Idle)
            }
            Cycle::Idle | Cycle::Capturing { .. } | Cycle::Sending { .. } => None,
        };
        match next {
            Some(next) => self.primary(next, vec![Effect::DropSpool { sequence: lost }]),
            None => self.unchanged(),
        }
    }

    fn received(&self, primary: &Primary, receipt: Receipt) -> Step {
        let expected = Cycle::Sending {
            sequence: receipt.sequence,
            id: receipt.id,
        };
        if primary.cycle() != expected || receipt.lineage != self.lineage.id {
            return self.unchanged();
        }
        let mut effects = vec![Effect::Forget { receipt }];
        let next = match primary {
            Primary::Preparing { .. } => {
                effects.push(Effect::AnnouncePrepared {
                    sequence: receipt.sequence,
                });
                Primary::Prepared { last: receipt }
            }
            _ => Primary::Replicating {
                last: receipt,
                cycle: Cycle::Idle,
            },
        };
        self.primary(next, effects)
    }

    fn needs_resync(&self, primary: &Primary, cause: ResyncCause) -> Step {
        match primary {
            // Nothing is lost but time: what was copied is compared, not sent again.
            Primary::Copying(_) => self.begin_copy(CopyPurpose::Compare, None, Primary::Copying),
            Primary::Resyncing(copying) => self.begin_resync(copying.cause.unwrap_or(cause)),
            Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncSuspended(_) => {
                let mut effects = vec![Effect::StopWork];
                effects.extend(dropped(primary));
                effects.push(Effect::Report(Report::ResyncRequired(cause)));
                self.primary(Primary::ResyncRequired { cause, at: None }, effects)
            }
            Primary::Ready { .. } | Primary::ResyncRequired { .. } | Primary::Fenced { .. } => {
                self.unchanged()
            }
        }
    }

    fn failed(&self, primary: &Primary, cause: CriticalCause) -> Step {
        let from = match primary {
            Primary::Fenced { .. } | Primary::Suspended { .. } | Primary::ResyncSuspended(_) => {
                return self.unchanged();
            }
            Primary::Critical { cause: known, .. } if *known == cause => return self.unchanged(),
            other => other.rest(),
        };
        let mut effects = vec![Effect::StopWork];
        effects.extend(dropped(primary));
        effects.push(Effect::Report(Report::Critical(cause)));
        self.primary(Primary::Critical { cause, from }, effects)
    }

    fn mended(&self, primary: &Primary) -> Step {
        match primary {
            Primary::Critical { cause, from } => match cause {
                CriticalCause::Unreachable
                | CriticalCause::NotAuthorized
                | CriticalCause::ReplicaGone
                | CriticalCause::ReplicaRefuses
                | CriticalCause::LocalStorage => {
                    let mut step = self.from_rest(*from);
                    // The session is open: what is asked next is a cycle.
                    step.effects.retain(|effect| *effect != Effect::OpenSession);
                    step
                }
                CriticalCause::SplitBrain { .. } | CriticalCause::WentOnAlone => self.unchanged(),
            },
            _ => self.unchanged(),
        }
    }

    fn peer_news(&self, primary: &Primary, news: TakeOverNews) -> Step {
        match news {
            TakeOverNews::TakenOver { lineage, ancestors } => {
                let descends = lineage
                    .forked_from
                    .is_some_and(|(from, _)| from == self.lineage.id)
                    || ancestors.iter().any(|one| one.id == self.lineage.id);
                if !descends {
                    return self.split_brain(primary, lineage);
                }
                if let Primary::Fenced { by, .. } = primary
                    && by.id == lineage.id
                {
                    return self.unchanged();
                }
                let mut effects = vec![Effect::StopWork];
                effects.extend(dropped(primary));
                effects.push(Effect::Report(Report::Fenced { by: lineage }));
                let from = primary.rest();
                self.primary(Primary::Fenced { by: lineage, from }, effects)
            }
            TakeOverNews::Reverted => match primary {
                Primary::Fenced { from, .. } => self.from_rest(*from),
                _ => self.unchanged(),
            },
        }
    }

    fn split_brain(&self, primary: &Primary, theirs: Lineage) -> Step {
        let cause = CriticalCause::SplitBrain { theirs: theirs.id };
        let mut step = self.failed(primary, cause);
        if step.next != *self {
            step.effects
                .push(Effect::Report(Report::SplitBrain { theirs }));
        }
        step
    }
}

/// The delta under way, given up.
fn dropped(primary: &Primary) -> Option<Effect> {
    match primary.cycle() {
        Cycle::Idle => None,
        Cycle::Capturing { sequence } | Cycle::Sending { sequence, .. } => {
            Some(Effect::DropSpool { sequence })
        }
    }
}
