//! What a primary makes of facts: its cycles, its peer's answers, and news of a failover.

use crate::relationship::event::{CopyPurpose, Effect, Report, TakeOverNews};
use crate::relationship::primary::{
    Copying, CriticalCause, Cycle, Primary, ResyncCause, SuspendedFrom, Work,
};
use crate::relationship::standing::{Standing, descends, has};
use crate::relationship::{Record, Role, Step};
use crate::{DeltaId, Lineage, Receipt, Sequence, Timestamp};

impl Record {
    pub(super) fn go_on_from(&self, from: SuspendedFrom) -> Step {
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

    pub(super) fn replicate_on(&self, last: Receipt) -> Step {
        let next = Primary::Replicating {
            last,
            cycle: Cycle::Idle,
        };
        self.primary(next, vec![Effect::OpenSession])
    }

    pub(super) fn copy_on(&self, copying: Copying, phase: fn(Copying) -> Primary) -> Step {
        let copying = copying.at_rest();
        self.primary(phase(copying), copying.resume())
    }

    pub(super) fn due(&self, primary: &Primary, now: Timestamp) -> Step {
        match primary {
            Primary::Ready { start: Some(start) } if start.at <= now => {
                self.begin_first_copy(primary, start.kind)
            }
            Primary::ResyncRequired {
                cause,
                at: Some(at),
            } if *at <= now => self.begin_resync(primary, *cause),
            Primary::Replicating {
                last,
                cycle: Cycle::Idle,
            } => {
                let Some(sequence) = self.next_moment() else {
                    return self.unchanged();
                };
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
            | Primary::Critical { .. }
            | Primary::Fenced { .. } => Step {
                next: self.clone(),
                effects: primary.resume(),
            },
            Primary::Ready { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncSuspended(_) => self.unchanged(),
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
                let Some(sequence) = self.next_moment() else {
                    return self.primary(phase(copying), Vec::new());
                };
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

    /// What a session has shown. Contact ends the troubles that are about contact.
    pub(super) fn session(&self, primary: &Primary, standing: Standing) -> Step {
        match standing {
            Standing::InStep => self.in_contact(primary),
            Standing::ReceiptLost(receipt) => self.received(primary, receipt),
            Standing::NeedsResync(cause) => self
                .in_contact(primary)
                .and_then(|record, primary| record.needs_resync(primary, cause)),
            Standing::Ahead { tip } => {
                let mut step = self.in_contact(primary).and_then(|record, primary| {
                    record.needs_resync(primary, ResyncCause::UnknownMoments)
                });
                step.next.drawn = step.next.drawn.max(tip);
                step
            }
            Standing::Unaware { .. } => {
                let mut step = self.in_contact(primary);
                step.effects.push(Effect::AnnounceTakeOver);
                step
            }
            Standing::Behind { .. } => self.in_contact(primary).and_then(|record, primary| {
                let mut step = record.needs_resync_after_fork(primary);
                step.effects.push(Effect::AnnounceTakeOver);
                step
            }),
            Standing::Overruled { .. } => self.overruled(primary),
            Standing::TakenOver { lineage, ancestors } => {
                self.told_of_take_over(primary, lineage, &ancestors)
            }
            Standing::SplitBrain { theirs } => self.split_brain(primary, theirs),
        }
    }

    /// The peer answers, and no history of its own stands against this one.
    fn in_contact(&self, primary: &Primary) -> Step {
        match primary {
            Primary::Critical { cause, from } if cause.ends_with_contact() => {
                self.go_on_in_session(*from)
            }
            Primary::Fenced { by, from } => {
                let mut step = self.go_on_in_session(*from);
                step.next.remember(*by);
                if self.forwards.is_some() {
                    step.effects.push(Effect::PassOnTakeOver);
                }
                step
            }
            Primary::Critical { .. }
            | Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_) => self.unchanged(),
        }
    }

    /// The replica follows a history that this side has left: what it has of this one must
    /// be compared. A copy finds that out by itself.
    fn needs_resync_after_fork(&self, primary: &Primary) -> Step {
        match primary {
            Primary::Copying(_) | Primary::Resyncing(_) | Primary::ResyncSuspended(_) => {
                self.unchanged()
            }
            Primary::Ready { .. }
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Fenced { .. } => self.needs_resync(primary, ResyncCause::ReplicaRolledBack),
        }
    }

    /// The peer has taken over and an operator kept this side's history: the peer is told, and
    /// asked to keep the replica once somebody here wants to replicate again.
    fn overruled(&self, primary: &Primary) -> Step {
        let mut effects = vec![Effect::AnnounceTakeOver];
        match primary {
            Primary::Copying(_) | Primary::Resyncing(_) => effects.push(Effect::AskAdoption),
            // Where it was given up by somebody further up the chain.
            Primary::Replicating { .. } | Primary::Preparing { .. } => {
                let mut step = self.needs_resync(primary, ResyncCause::UnknownMoments);
                step.effects.push(Effect::AnnounceTakeOver);
                return step;
            }
            Primary::Ready { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => {}
        }
        self.primary(primary.clone(), effects)
    }

    /// The peer keeps the replica now. Its numbers are used up, so a copy begins with a new one.
    pub(super) fn peer_adopted(&self, primary: &Primary, drawn: Sequence) -> Step {
        let mut heard = self.clone();
        heard.drawn = heard.drawn.max(drawn);
        match primary {
            // The peer has used up no number of this copy: it goes on where it was refused.
            Primary::Copying(copying) | Primary::Resyncing(copying) if copying.copy > drawn => {
                heard.primary(primary.clone(), copying.resume())
            }
            Primary::Copying(_) => {
                heard.begin_copy(primary, CopyPurpose::Compare, None, Primary::Copying)
            }
            Primary::Resyncing(copying) => {
                heard.begin_resync(primary, copying.cause.unwrap_or(ResyncCause::Reversed))
            }
            Primary::Ready { .. }
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => heard.unchanged(),
        }
    }

    pub(super) fn chunks_done(&self, primary: &Primary, copy: Sequence) -> Step {
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
            Primary::Ready { .. }
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => self.unchanged(),
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
            Primary::Ready { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => None,
        }
    }

    pub(super) fn captured(&self, primary: &Primary, sequence: Sequence, id: DeltaId) -> Step {
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

    pub(super) fn capture_failed(&self, primary: &Primary, sequence: Sequence) -> Step {
        if primary.cycle() != (Cycle::Capturing { sequence }) {
            return self.unchanged();
        }
        match Self::with_cycle(primary, Cycle::Idle) {
            Some(next) => self.primary(next, vec![Effect::DropSpool { sequence }]),
            None => self.unchanged(),
        }
    }

    pub(super) fn spool_lost(&self, primary: &Primary, lost: Sequence) -> Step {
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

    pub(super) fn received(&self, primary: &Primary, receipt: Receipt) -> Step {
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
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => Primary::Replicating {
                last: receipt,
                cycle: Cycle::Idle,
            },
        };
        self.primary(next, effects)
    }

    pub(super) fn needs_resync(&self, primary: &Primary, cause: ResyncCause) -> Step {
        match primary {
            // Nothing is lost but time: what was copied is compared, not sent again.
            Primary::Copying(_) => {
                self.begin_copy(primary, CopyPurpose::Compare, None, Primary::Copying)
            }
            Primary::Resyncing(copying) => {
                self.begin_resync(primary, copying.cause.unwrap_or(cause))
            }
            // The VM stays off until the replica has agreed or an operator overrules it; whatever
            // needs comparing is found again when it goes on.
            Primary::Prepared { .. } | Primary::AskingToGoOn { .. } => self.unchanged(),
            // Parted histories must not be hidden by a lesser trouble.
            Primary::Critical { cause: known, from } if known.is_about_histories() => {
                let from = match from {
                    SuspendedFrom::Prepared { .. } => *from,
                    SuspendedFrom::Replicating { .. }
                    | SuspendedFrom::Copying(_)
                    | SuspendedFrom::Resyncing(_)
                    | SuspendedFrom::ResyncRequired { .. }
                    | SuspendedFrom::Ready => SuspendedFrom::ResyncRequired { cause },
                };
                let cause = *known;
                self.primary(Primary::Critical { cause, from }, Vec::new())
            }
            Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncSuspended(_) => {
                let mut effects = stop_work(primary);
                effects.push(Effect::Report(Report::ResyncRequired(cause)));
                self.primary(Primary::ResyncRequired { cause, at: None }, effects)
            }
            Primary::Ready { .. } | Primary::ResyncRequired { .. } | Primary::Fenced { .. } => {
                self.unchanged()
            }
        }
    }

    pub(super) fn failed(&self, primary: &Primary, cause: CriticalCause) -> Step {
        let is_kept = match primary {
            // Nothing is under way there that could fail; a planned start stays planned.
            Primary::Ready { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncSuspended(_)
            // The VM stays off until the replica has agreed, whether or not it answers now.
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Fenced { .. } => true,
            Primary::Critical { cause: known, .. } => {
                *known == cause || known.is_about_histories()
            }
            Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Resyncing(_) => false,
        };
        if is_kept {
            self.unchanged()
        } else {
            self.become_critical(primary, cause)
        }
    }

    fn become_critical(&self, primary: &Primary, cause: CriticalCause) -> Step {
        let from = primary.rest();
        let mut effects = stop_work(primary);
        effects.push(Effect::Report(Report::Critical(cause)));
        self.primary(Primary::Critical { cause, from }, effects)
    }

    pub(super) fn mended(&self, primary: &Primary) -> Step {
        match primary {
            Primary::Critical { cause, from } if !cause.is_about_histories() => {
                self.go_on_in_session(*from)
            }
            Primary::Critical { .. }
            | Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => self.unchanged(),
        }
    }

    /// As [`go_on_from`](Self::go_on_from), while a session is open: what is asked next is a cycle.
    fn go_on_in_session(&self, from: SuspendedFrom) -> Step {
        let mut step = self.go_on_from(from);
        step.effects.retain(|effect| *effect != Effect::OpenSession);
        step
    }

    /// News may be late: what was abandoned since is not believed, and a fence falls only when
    /// the peer's own report shows that it has given up.
    pub(super) fn peer_news(&self, primary: &Primary, news: TakeOverNews) -> Step {
        match news {
            TakeOverNews::TakenOver {
                lineage, ancestors, ..
            } => self.told_of_take_over(primary, lineage, &ancestors),
            TakeOverNews::Reverted => match primary {
                Primary::Fenced { .. } => self.primary(primary.clone(), vec![Effect::OpenSession]),
                Primary::Ready { .. }
                | Primary::Copying(_)
                | Primary::Replicating { .. }
                | Primary::Preparing { .. }
                | Primary::Prepared { .. }
                | Primary::AskingToGoOn { .. }
                | Primary::Suspended { .. }
                | Primary::Critical { .. }
                | Primary::ResyncRequired { .. }
                | Primary::Resyncing(_)
                | Primary::ResyncSuspended(_) => self.unchanged(),
            },
        }
    }

    fn told_of_take_over(
        &self,
        primary: &Primary,
        lineage: Lineage,
        ancestors: &[Lineage],
    ) -> Step {
        if lineage.id == self.lineage.id || has(&self.ancestors, lineage.id) {
            return self.unchanged();
        }
        if !descends(&lineage, ancestors, self.lineage.id) {
            return self.split_brain(primary, lineage);
        }
        if let Primary::Fenced { by, .. } = primary
            && by.id == lineage.id
        {
            return self.unchanged();
        }
        let mut heard = self.clone();
        if self.forwards.is_some() {
            // Whoever settles it further up the chain must know all that is given up then.
            for one in ancestors.iter().filter(|one| one.id != self.lineage.id) {
                heard.remember(*one);
            }
        }
        heard.fence(primary, lineage)
    }

    pub(super) fn fence(&self, primary: &Primary, by: Lineage) -> Step {
        let mut effects = stop_work(primary);
        effects.push(Effect::Report(Report::Fenced { by }));
        let from = primary.rest();
        let mut step = self.primary(Primary::Fenced { by, from }, effects);
        step.effects.extend(step.next.news_of_fence());
        step
    }

    pub(super) fn cancel_granted(&self, primary: &Primary) -> Step {
        match primary {
            Primary::AskingToGoOn { last } => self.replicate_on(*last),
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => self.unchanged(),
        }
    }

    /// Both sides stop, whatever they were at, until an operator names the one that survives.
    fn split_brain(&self, primary: &Primary, theirs: Lineage) -> Step {
        let cause = CriticalCause::SplitBrain { theirs: theirs.id };
        match primary {
            Primary::Fenced { .. } => self.unchanged(),
            Primary::Critical { cause: known, .. } if *known == cause => self.unchanged(),
            Primary::Critical { .. }
            | Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_) => {
                let mut step = self.become_critical(primary, cause);
                step.effects
                    .push(Effect::Report(Report::SplitBrain { theirs }));
                step
            }
        }
    }
}

impl Step {
    /// Goes on from a step that leaves a primary; its effects come first.
    fn and_then(mut self, go_on: impl FnOnce(&Record, &Primary) -> Self) -> Self {
        let Role::Primary(primary) = &self.next.role else {
            return self;
        };
        let after = go_on(&self.next, primary);
        // What the first step began and the second one stops need not be begun.
        if after.effects.contains(&Effect::StopWork) {
            self.effects.clear();
        }
        self.effects.extend(after.effects);
        Self {
            next: after.next,
            effects: self.effects,
        }
    }
}

/// Stops what runs, and gives up the delta under way: what it holds is marked still.
pub(super) fn stop_work(primary: &Primary) -> Vec<Effect> {
    let mut effects = vec![Effect::StopWork];
    match primary.cycle() {
        Cycle::Idle => {}
        Cycle::Capturing { sequence } | Cycle::Sending { sequence, .. } => {
            effects.push(Effect::DropSpool { sequence });
        }
    }
    effects
}
