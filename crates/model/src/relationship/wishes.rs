//! What operators ask of a primary, and what its peer may ask of it.

use crate::contract::InitialReplicationType;
use crate::relationship::event::{CancelHow, CopyPurpose, Effect, Event, VmPower};
use crate::relationship::facts::stop_work;
use crate::relationship::guard::Operation;
use crate::relationship::primary::{
    Copying, CriticalCause, Cycle, PlannedStart, Primary, ResyncCause, Work,
};
use crate::relationship::refused::Refused;
use crate::relationship::{Record, Role, Step};
use crate::{Sequence, Timestamp};

/// How far ahead a start may be scheduled: 7 days.
const MAX_AHEAD_MICROS: u64 = 7 * 24 * 3600 * 1_000_000;

impl Record {
    pub(super) fn decide_as_primary(
        &self,
        primary: &Primary,
        now: Timestamp,
        event: Event,
    ) -> Result<Step, Refused> {
        match event {
            Event::Start { kind, at } => self.start(primary, now, kind, at),
            Event::CancelInitial => {
                self.refuse_unless(Operation::CancelInitialReplication)?;
                let mut effects = stop_work(primary);
                effects.push(Effect::StopTracking);
                Ok(self.primary(Primary::Ready { start: None }, effects))
            }
            Event::Suspend => self.suspend(primary),
            Event::Resume => self.go_on(primary),
            Event::Resynchronize { at } => self.resynchronize(primary, now, at),
            Event::CancelResynchronize => self.cancel_resynchronize(primary),
            Event::Prepare { vm } => self.prepare(primary, vm),
            Event::CancelPrepared { how } => self.cancel_prepared(primary, how),
            Event::FailOver(_) => Err(self.wrong_side(Operation::InitiateFailover)),
            Event::Revert { .. } => Err(self.wrong_side(Operation::RevertFailover)),
            Event::Commit => Err(self.wrong_side(Operation::CommitFailover)),
            Event::Reverse => Err(self.wrong_side(Operation::ReverseReplicationRelationship)),
            Event::BecomePrimary => self.become_the_primary(primary),
            Event::Survive {
                over,
                ancestors,
                lineage,
            } => {
                self.refuse_to_settle()?;
                self.survive(primary, over, ancestors, lineage)
            }
            Event::Yield { to } => {
                self.refuse_to_settle()?;
                self.yield_to(primary, to)
            }
            Event::Adopt {
                lineage,
                ancestors,
                vm,
                hop,
            } => {
                self.refuse_to_settle()?;
                self.be_adopted(primary, lineage, &ancestors, vm, hop)
            }
            Event::Upstream(upstream) => Ok(self.upstream(primary, &upstream)),
            Event::Due => Ok(self.due(primary, now)),
            Event::Session(standing) => Ok(self.session(primary, standing)),
            Event::ChunksDone { copy } => Ok(self.chunks_done(primary, copy)),
            Event::Captured { sequence, id } => Ok(self.captured(primary, sequence, id)),
            Event::CaptureFailed { sequence } => Ok(self.capture_failed(primary, sequence)),
            Event::SpoolLost { sequence } => Ok(self.spool_lost(primary, sequence)),
            Event::Received(receipt) => Ok(self.received(primary, receipt)),
            Event::CancelGranted => Ok(self.cancel_granted(primary)),
            Event::NeedsResync(cause) => Ok(self.needs_resync(primary, cause)),
            Event::Failed(cause) => Ok(self.failed(primary, cause)),
            Event::Mended => Ok(self.mended(primary)),
            Event::Peer(news) => Ok(self.peer_news(primary, news)),
            Event::Adopted { drawn } => Ok(self.peer_adopted(primary, drawn)),
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
            | Event::PreparedCancelled { .. }
            | Event::AdoptionFailed => Ok(self.unchanged()),
        }
    }

    pub(super) fn primary(&self, primary: Primary, effects: Vec<Effect>) -> Step {
        self.to(Role::Primary(primary), effects)
    }

    /// As [`primary`](Self::primary), with a number drawn.
    pub(super) fn primary_drawn(
        &self,
        drawn: Sequence,
        primary: Primary,
        effects: Vec<Effect>,
    ) -> Step {
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
        primary: &Primary,
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
            None => Ok(self.begin_first_copy(primary, kind)),
        }
    }

    /// A number that was drawn says that a first copy was begun before: some of it, or all, may
    /// be at the replica.
    pub(super) fn begin_first_copy(&self, primary: &Primary, kind: InitialReplicationType) -> Step {
        let purpose = match kind {
            InitialReplicationType::NetworkTransfer | InitialReplicationType::Export
                if self.drawn == Sequence::ZERO =>
            {
                CopyPurpose::Initial
            }
            InitialReplicationType::NetworkTransfer
            | InitialReplicationType::Export
            | InitialReplicationType::SeededNetworkTransfer => CopyPurpose::Compare,
        };
        self.begin_copy(primary, purpose, None, Primary::Copying)
    }

    pub(super) fn begin_resync(&self, primary: &Primary, cause: ResyncCause) -> Step {
        self.begin_copy(
            primary,
            CopyPurpose::Compare,
            Some(cause),
            Primary::Resyncing,
        )
    }

    pub(super) fn begin_copy(
        &self,
        primary: &Primary,
        purpose: CopyPurpose,
        cause: Option<ResyncCause>,
        phase: fn(Copying) -> Primary,
    ) -> Step {
        let mut effects = stop_work(primary);
        let Some(copy) = self.next_moment() else {
            let waiting = awaiting_moment(purpose, cause);
            if waiting == *primary {
                return self.unchanged();
            }
            return self.primary(waiting, effects);
        };
        let copying = Copying {
            copy,
            purpose,
            cause,
            work: Work::Chunks,
        };
        effects.push(Effect::StartTracking { moment: copy });
        effects.push(Effect::Copy { copy, purpose });
        self.primary_drawn(copy, phase(copying), effects)
    }

    fn suspend(&self, primary: &Primary) -> Result<Step, Refused> {
        self.refuse_unless(Operation::Suspend)?;
        let next = match primary {
            Primary::Fenced { by, .. } => return Err(Refused::TakenOver { by: *by }),
            Primary::Critical {
                cause: CriticalCause::SplitBrain { theirs },
                ..
            } => return Err(Refused::SplitBrain { theirs: *theirs }),
            Primary::Resyncing(copying) => Primary::ResyncSuspended(copying.at_rest()),
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::ResyncSuspended(_) => Primary::Suspended {
                from: primary.rest(),
            },
        };
        Ok(self.primary(next, stop_work(primary)))
    }

    /// While the histories have parted, going on means no more than asking again.
    fn go_on(&self, primary: &Primary) -> Result<Step, Refused> {
        self.refuse_unless(Operation::Resume)?;
        match primary {
            Primary::Critical {
                cause: CriticalCause::SplitBrain { .. },
                ..
            } => Ok(self.primary(primary.clone(), vec![Effect::OpenSession])),
            Primary::Suspended { from } | Primary::Critical { from, .. } => {
                Ok(self.go_on_from(*from))
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

    fn resynchronize(
        &self,
        primary: &Primary,
        now: Timestamp,
        at: Option<Timestamp>,
    ) -> Result<Step, Refused> {
        self.refuse_unless(Operation::Resynchronize)?;
        let cause = match primary {
            Primary::ResyncRequired { cause, .. } => *cause,
            Primary::Fenced { by, .. } => return Err(Refused::TakenOver { by: *by }),
            Primary::Critical {
                cause: CriticalCause::SplitBrain { theirs },
                ..
            } => return Err(Refused::SplitBrain { theirs: *theirs }),
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_) => ResyncCause::Requested,
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
            None => Ok(self.begin_resync(primary, cause)),
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
        let mut effects = stop_work(primary);
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
            (Primary::Preparing { last, .. }, CancelHow::Asking | CancelHow::Forced { .. }) => {
                let mut effects = stop_work(primary);
                effects.push(Effect::OpenSession);
                let next = Primary::Replicating {
                    last: *last,
                    cycle: Cycle::Idle,
                };
                Ok(self.primary(next, effects))
            }
            (Primary::Prepared { last } | Primary::AskingToGoOn { last }, CancelHow::Asking) => {
                let sequence = last.sequence;
                let effects = vec![Effect::AskToGoOn { sequence }];
                Ok(self.primary(Primary::AskingToGoOn { last: *last }, effects))
            }
            (
                Primary::Prepared { .. } | Primary::AskingToGoOn { .. },
                CancelHow::Forced { lineage },
            ) => Ok(self.go_on_alone(primary, lineage, &[])),
            (
                Primary::Ready { .. }
                | Primary::Copying(_)
                | Primary::Replicating { .. }
                | Primary::Suspended { .. }
                | Primary::Critical { .. }
                | Primary::ResyncRequired { .. }
                | Primary::Resyncing(_)
                | Primary::ResyncSuspended(_)
                | Primary::Fenced { .. },
                _,
            ) => Ok(self.unchanged()),
        }
    }

    fn cancel_resynchronize(&self, primary: &Primary) -> Result<Step, Refused> {
        self.refuse_unless(Operation::CancelResynchronize)?;
        let (Primary::Resyncing(copying) | Primary::ResyncSuspended(copying)) = primary else {
            return Ok(self.unchanged());
        };
        let cause = copying.cause.unwrap_or(ResyncCause::Requested);
        let mut effects = stop_work(primary);
        effects.push(Effect::StopTracking);
        Ok(self.primary(Primary::ResyncRequired { cause, at: None }, effects))
    }
}

/// Where a copy would begin and there is no moment to begin with: it is due as soon as there is one.
fn awaiting_moment(purpose: CopyPurpose, cause: Option<ResyncCause>) -> Primary {
    let at = Timestamp::from_micros(0);
    let kind = match purpose {
        CopyPurpose::Initial => InitialReplicationType::NetworkTransfer,
        CopyPurpose::Compare | CopyPurpose::Reverse => {
            InitialReplicationType::SeededNetworkTransfer
        }
    };
    match cause {
        Some(cause) => Primary::ResyncRequired {
            cause,
            at: Some(at),
        },
        None => Primary::Ready {
            start: Some(PlannedStart { kind, at }),
        },
    }
}
