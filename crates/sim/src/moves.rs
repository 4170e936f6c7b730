//! What may happen next.

use lifeboat_model::relationship::{Cycle, Effect, Event, Primary, ReplicaPhase, Role, Work};

use crate::operator::{self, Command};
use crate::rules::{self, Rule};
use crate::world::{FORWARDER, World};

/// What becomes of an effect that is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// It is done, and the host crashes before what it came to is saved.
    CrashAfter,
    /// The peer hears nothing.
    RequestLost,
    /// The peer has done it; its answer is lost.
    AnswerLost,
    /// The peer gets the request now, and once more later.
    Repeated,
    /// It is done, and what it came to is looked at only after other things have happened.
    Slow,
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    Run {
        side: usize,
        fate: Fate,
    },
    Crash {
        side: usize,
    },
    PowerLoss {
        side: usize,
    },
    /// The set of changes that the third host lacks cannot be read.
    SetLost,
    Due {
        side: usize,
    },
    Apply {
        side: usize,
    },
    Late {
        index: usize,
    },
    Answer {
        side: usize,
    },
    Write {
        side: usize,
    },
    Command {
        side: usize,
        command: Command,
    },
}

impl World {
    /// Everything that may happen next. Where an effect that concerns nobody but its own host is
    /// next, nothing else is worth an order of its own but what that host's guest and power do.
    #[must_use]
    pub fn moves(&self) -> Vec<Move> {
        for side in 0..self.sides.len() {
            let here = &self.sides[side];
            if here.answer.is_none() && here.queue.first().is_some_and(is_own) {
                let mut moves = vec![Move::Run {
                    side,
                    fate: Fate::Done,
                }];
                let host = Self::host(side);
                self.push_write(host, &mut moves);
                self.push_crash(host, &mut moves);
                if side == FORWARDER && self.may_apply(host) {
                    moves.push(Move::Apply { side: host });
                }
                return moves;
            }
        }
        let mut moves = Vec::new();
        for side in 0..self.sides.len() {
            self.push_run(side, &mut moves);
            if side == FORWARDER {
                self.push_set_lost(&mut moves);
            } else {
                self.push_write(side, &mut moves);
                self.push_crash(side, &mut moves);
            }
            if self.is_due(side) {
                moves.push(Move::Due { side });
            }
            if self.may_apply(side) {
                moves.push(Move::Apply { side });
            }
            if self.budget.commands > 0 {
                moves.extend(
                    operator::commands(self, side)
                        .into_iter()
                        .map(|command| Move::Command { side, command }),
                );
            }
        }
        moves.extend((0..self.late.len()).map(|index| Move::Late { index }));
        moves
    }

    fn push_run(&self, side: usize, moves: &mut Vec<Move>) {
        if self.sides[side].answer.is_some() {
            moves.push(Move::Answer { side });
            return;
        }
        let Some(effect) = self.sides[side].queue.first() else {
            return;
        };
        let mut push = |fate| moves.push(Move::Run { side, fate });
        push(Fate::Done);
        let is_request = is_request(effect);
        let link = self.link(side);
        if is_request && self.budget.lost[link] > 0 {
            push(Fate::RequestLost);
            if *effect != Effect::OpenSession {
                push(Fate::AnswerLost);
            }
        }
        if is_request && self.budget.repeated[link] > 0 && *effect != Effect::OpenSession {
            push(Fate::Repeated);
        }
        let may_be_slow = is_request || matches!(effect, Effect::Capture { .. });
        if may_be_slow && self.budget.slow[link] > 0 {
            push(Fate::Slow);
        }
        if self.budget.crashes > 0 && *effect != Effect::OpenSession {
            push(Fate::CrashAfter);
        }
    }

    fn push_write(&self, side: usize, moves: &mut Vec<Move>) {
        if self.sides[side].is_running && self.budget.writes > 0 {
            moves.push(Move::Write { side });
        }
    }

    fn push_crash(&self, side: usize, moves: &mut Vec<Move>) {
        if self.budget.crashes == 0 {
            return;
        }
        let is_at_work = (0..self.sides.len())
            .filter(|one| Self::host(*one) == side)
            .any(|one| !self.sides[one].queue.is_empty() || self.sides[one].answer.is_some());
        if is_at_work {
            moves.push(Move::Crash { side });
        }
        if self.sides[side].is_running || self.sides[side].maps.is_some() {
            moves.push(Move::PowerLoss { side });
        }
    }

    fn push_set_lost(&self, moves: &mut Vec<Move>) {
        if self.budget.crashes > 0 && self.sides[FORWARDER].maps.is_some() {
            moves.push(Move::SetLost);
        }
    }

    /// Whether a timer would do anything that does not wait already.
    fn is_due(&self, side: usize) -> bool {
        let link = self.link(side);
        let side = &self.sides[side];
        if !side.queue.is_empty() || side.answer.is_some() {
            return false;
        }
        match side.record.decide(crate::world::NOW, Event::Due) {
            Ok(step) => {
                let draws = step.next.drawn != side.record.drawn;
                !step.effects.is_empty() && (!draws || self.budget.cycles[link] > 0)
            }
            Err(_) => false,
        }
    }

    fn may_apply(&self, side: usize) -> bool {
        let side = &self.sides[side];
        let waits = side
            .store
            .as_ref()
            .is_some_and(|store| !store.pending.is_empty());
        let applies = match side.replica_phase() {
            Some(
                ReplicaPhase::WaitingInitial
                | ReplicaPhase::Replicating
                | ReplicaPhase::Resyncing
                | ReplicaPhase::Critical(_),
            ) => true,
            Some(
                ReplicaPhase::Suspended
                | ReplicaPhase::FailingOver(_)
                | ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Committed { .. }
                | ReplicaPhase::Reversing { .. },
            )
            | None => false,
        };
        waits && applies
    }

    /// Lets it happen, and checks the rules.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn make(&mut self, one: &Move) -> Result<(), Rule> {
        let before = self.clone();
        match one {
            Move::Run { side, fate } => {
                let link = self.link(*side);
                match fate {
                    Fate::Done => {}
                    Fate::CrashAfter => self.budget.crashes -= 1,
                    Fate::RequestLost | Fate::AnswerLost => self.budget.lost[link] -= 1,
                    Fate::Repeated => self.budget.repeated[link] -= 1,
                    Fate::Slow => self.budget.slow[link] -= 1,
                }
                self.run(*side, *fate)?;
            }
            Move::Crash { side } => {
                self.budget.crashes -= 1;
                self.crash(*side);
            }
            Move::PowerLoss { side } => {
                self.budget.crashes -= 1;
                self.lose_power(*side);
            }
            Move::SetLost => {
                self.budget.crashes -= 1;
                self.sides[FORWARDER].maps = None;
            }
            Move::Due { side } => {
                self.tell(*side, Event::Due);
                if self.sides[*side].record.drawn != before.sides[*side].record.drawn {
                    let link = self.link(*side);
                    self.budget.cycles[link] -= 1;
                }
            }
            Move::Apply { side } => self.apply(*side)?,
            Move::Late { index } => self.deliver_late(*index)?,
            Move::Answer { side } => self.look_at_answer(*side),
            Move::Write { side } => {
                self.budget.writes -= 1;
                self.write(*side)?;
            }
            Move::Command { side, command } => {
                self.budget.commands -= 1;
                operator::give(self, *side, command);
            }
        }
        rules::check(&before, self, one)
    }

    /// The guest writes a block: the blocks in turn.
    fn write(&mut self, at: usize) -> Result<(), Rule> {
        let lineage = rules::writer(self, at)?;
        self.ghost.writes.push(lineage);
        let number = self.ghost.writes.len();
        let block = number % crate::disk::BLOCKS;
        let side = &mut self.sides[at];
        if let Some(store) = &mut side.store
            && let crate::disk::StoreRole::FailedOver { guest, .. } = &mut store.role
        {
            guest[block] = number as u8;
            return Ok(());
        }
        let before = side.disk;
        side.disk[block] = number as u8;
        if let Some(maps) = &mut side.maps {
            maps.mark(block);
        }
        self.mark_forwarded(at, &before);
        Ok(())
    }

    /// The sides' phases without their numbers.
    #[must_use]
    pub fn phases(&self) -> Vec<String> {
        (0..self.sides.len()).map(|at| self.phase(at)).collect()
    }

    fn phase(&self, at: usize) -> String {
        match &self.sides[at].record.role {
            Role::Primary(primary) => match primary {
                Primary::Ready { .. } => "ready".to_owned(),
                Primary::Copying(copying) => format!("copying, {}", work(copying.work)),
                Primary::Replicating { .. } => "replicating".to_owned(),
                Primary::Preparing { .. } => "preparing".to_owned(),
                Primary::Prepared { .. } => "prepared".to_owned(),
                Primary::AskingToGoOn { .. } => "asking to go on".to_owned(),
                Primary::Suspended { .. } => "suspended".to_owned(),
                Primary::Critical { cause, .. } => format!("critical, {cause:?}"),
                Primary::ResyncRequired { cause, .. } => format!("resync required, {cause:?}"),
                Primary::Resyncing(copying) => format!("resyncing, {}", work(copying.work)),
                Primary::ResyncSuspended(_) => "resync suspended".to_owned(),
                Primary::Fenced { .. } => "fenced".to_owned(),
            },
            Role::Replica(replica) => match &replica.phase {
                ReplicaPhase::WaitingInitial => "waiting for the first copy",
                ReplicaPhase::Replicating => "a replica",
                ReplicaPhase::Suspended => "a paused replica",
                ReplicaPhase::Critical(_) => "a replica that cannot apply",
                ReplicaPhase::Resyncing => "a replica being resynchronized",
                ReplicaPhase::FailingOver(_) => "failing over",
                ReplicaPhase::FailedOver { .. } => "failed over",
                ReplicaPhase::Reverting { .. } => "reverting",
                ReplicaPhase::Committing { .. } => "committing",
                ReplicaPhase::Committed { .. } => "committed",
                ReplicaPhase::Reversing { .. } => "reversing",
            }
            .to_owned(),
        }
    }
}

fn work(work: Work) -> &'static str {
    match work {
        Work::Chunks => "chunks",
        Work::Closing(Cycle::Idle | Cycle::Capturing { .. } | Cycle::Sending { .. }) => "closing",
    }
}

/// Whether an effect concerns its own host alone and cannot fail.
fn is_own(effect: &Effect) -> bool {
    match effect {
        Effect::StartTracking { .. }
        | Effect::StopTracking
        | Effect::Forget { .. }
        | Effect::DropSpool { .. }
        | Effect::StopWork
        | Effect::PassOnTakeOver
        | Effect::Report(_) => true,
        Effect::OpenSession
        | Effect::Copy { .. }
        | Effect::Capture { .. }
        | Effect::Send { .. }
        | Effect::AnnouncePrepared { .. }
        | Effect::AskToGoOn { .. }
        | Effect::FailOverStore { .. }
        | Effect::RevertStore
        | Effect::CommitStore
        | Effect::AnnounceTakeOver
        | Effect::AskAdoption => false,
    }
}

fn is_request(effect: &Effect) -> bool {
    match effect {
        Effect::OpenSession
        | Effect::Copy { .. }
        | Effect::Send { .. }
        | Effect::AnnouncePrepared { .. }
        | Effect::AskToGoOn { .. }
        | Effect::AnnounceTakeOver
        | Effect::AskAdoption => true,
        Effect::StartTracking { .. }
        | Effect::StopTracking
        | Effect::Capture { .. }
        | Effect::Forget { .. }
        | Effect::DropSpool { .. }
        | Effect::StopWork
        | Effect::FailOverStore { .. }
        | Effect::RevertStore
        | Effect::CommitStore
        | Effect::PassOnTakeOver
        | Effect::Report(_) => false,
    }
}
