//! What effects do, and what hosts answer.

use lifeboat_model::relationship::{
    CopyPurpose, CriticalCause, Effect, Event, Hop, ReplicaPhase, ResyncCause, Role, TakeOverNews,
    VmPower,
};
use lifeboat_model::{Lineage, Sequence};

use crate::disk::{Delta, Maps, StoreRefused, StoreRole};
use crate::moves::Fate;
use crate::rules::{self, Rule};
use crate::world::{FORWARDER, MIDDLE, Message, Side, Slow, THIRD, World};

/// What a host says to a request.
enum Answer {
    Done,
    Receipt(lifeboat_model::Receipt),
    Adopted(Sequence),
    /// Ask what it holds.
    OtherLineage,
    NotContinuous,
    Refused,
    Busy,
    /// This host knows nothing of the relationship.
    Gone,
}

/// What a request came to for the host that made it.
enum Heard {
    Answer(Answer),
    Nothing,
}

impl World {
    /// Runs the effect that is first in the queue; `crash` loses what it came to.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn run(&mut self, at: usize, fate: Fate) -> Result<(), Rule> {
        let effect = self.sides[at].queue.remove(0);
        match effect {
            Effect::StopWork | Effect::Report(_) => {}
            Effect::StartTracking { moment } => Maps::start(&mut self.sides[at].maps, moment),
            Effect::StopTracking => self.sides[at].maps = None,
            Effect::Forget { receipt } => {
                if let Some(maps) = &mut self.sides[at].maps {
                    maps.forget(receipt.sequence);
                }
                self.drop_spool(at, receipt.sequence);
            }
            Effect::DropSpool { sequence } => self.drop_spool(at, sequence),
            Effect::Capture { sequence, base, .. } => {
                self.capture(at, sequence, base.map(|base| base.sequence), fate);
            }
            Effect::FailOverStore { point, lineage } => {
                self.fail_over(at, point, lineage, fate)?;
            }
            Effect::RevertStore => self.revert(at, fate),
            Effect::CommitStore => self.commit(at, fate),
            Effect::OpenSession => self.open_session(at, fate),
            Effect::Send { sequence, .. } => self.send(at, sequence, fate)?,
            Effect::Copy { copy, purpose } => self.copy(at, copy, purpose, fate)?,
            Effect::AnnouncePrepared { sequence } => {
                let lineage = self.sides[at].record.lineage.id;
                let message = Message::Prepared { lineage, sequence };
                let heard = self.request(at, message, fate)?;
                self.heard(at, fate, &heard, None);
            }
            Effect::AskToGoOn { sequence } => {
                let lineage = self.sides[at].record.lineage.id;
                let message = Message::GoOn { lineage, sequence };
                let heard = self.request(at, message, fate)?;
                self.heard(at, fate, &heard, Some(Event::CancelGranted));
            }
            Effect::AnnounceTakeOver => {
                if let Some(news) = self.news_of(at) {
                    self.request(at, Message::TakeOver(news), fate)?;
                }
            }
            Effect::AskAdoption => {
                let record = &self.sides[at].record;
                let message = Message::Adopt {
                    lineage: record.lineage,
                    ancestors: record.ancestors.clone(),
                    hop: Self::hop(at),
                };
                let event = match self.request(at, message, fate)? {
                    Heard::Answer(Answer::Adopted(drawn)) => Event::Adopted { drawn },
                    Heard::Answer(_) | Heard::Nothing => Event::AdoptionFailed,
                };
                self.tell_by(at, fate, event);
            }
            Effect::PassOnTakeOver => {
                let queue = &mut self.sides[MIDDLE].queue;
                if !queue.contains(&Effect::AnnounceTakeOver) {
                    queue.push(Effect::AnnounceTakeOver);
                }
            }
        }
        if fate == Fate::CrashAfter {
            self.crash(Self::host(at));
        }
        Ok(())
    }

    /// The daemon dies and comes back: what was not saved is gone.
    pub fn crash(&mut self, at: usize) {
        self.restart(at);
        if at == MIDDLE && self.is_extended() {
            self.restart(FORWARDER);
            self.tell_forwarder();
        }
    }

    fn restart(&mut self, at: usize) {
        self.sides[at].queue.clear();
        self.sides[at].answer = None;
        if let Role::Primary(primary) = &self.sides[at].record.role
            && let Some(event) = primary.interrupted()
        {
            self.tell(at, event);
        }
        for effect in self.sides[at].record.resume() {
            if !self.sides[at].queue.contains(&effect) {
                self.sides[at].queue.push(effect);
            }
        }
    }

    /// The whole host dies: its guest is off, and nobody knows what the maps have missed. What a
    /// store keeps of changes is as durable as the moments applied.
    pub fn lose_power(&mut self, at: usize) {
        self.sides[at].is_running = false;
        self.sides[at].maps = None;
        if at == MIDDLE && self.is_extended() && self.sides[at].whole_moment().is_none() {
            self.sides[FORWARDER].maps = None;
        }
        self.crash(at);
    }

    /// Applies what the replica has received.
    pub fn apply(&mut self, at: usize) -> Result<(), Rule> {
        let side = &mut self.sides[at];
        let before = side.disk;
        let Some(store) = &mut side.store else {
            return Ok(());
        };
        let Some(delta) = store.apply_next(&mut side.disk) else {
            return Ok(());
        };
        rules::applied(&side.disk, &delta)?;
        self.mark_forwarded(at, &before);
        let side = &self.sides[at];
        let event = match side.replica_phase() {
            Some(ReplicaPhase::WaitingInitial) => Event::InitialComplete,
            Some(ReplicaPhase::Resyncing) => Event::ResyncEnded,
            Some(
                ReplicaPhase::Replicating
                | ReplicaPhase::Suspended
                | ReplicaPhase::Critical(_)
                | ReplicaPhase::FailingOver(_)
                | ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Committed { .. }
                | ReplicaPhase::Reversing { .. },
            )
            | None => Event::ApplyMended,
        };
        self.tell(at, event);
        Ok(())
    }

    /// A request that was repeated comes at last.
    ///
    /// # Errors
    /// The rule that was broken.
    pub fn deliver_late(&mut self, index: usize) -> Result<(), Rule> {
        let (to, message) = self.late.remove(index);
        self.arrive(to, message).map(|_| ())
    }

    fn drop_spool(&mut self, at: usize, sequence: Sequence) {
        let spool = &mut self.sides[at].spool;
        if spool
            .as_ref()
            .is_some_and(|delta| delta.sequence == sequence)
        {
            *spool = None;
        }
    }

    fn capture(&mut self, at: usize, sequence: Sequence, base: Option<Sequence>, fate: Fate) {
        let source = &self.sides[Self::host(at)];
        let frozen = source.disk;
        // A moment is forwarded as long as it is the newest; a newer one may have come.
        let is_there = at != FORWARDER || source.whole_moment() == Some(sequence);
        if !is_there {
            if fate != Fate::CrashAfter {
                self.tell(at, Event::CaptureFailed { sequence });
            }
            return;
        }
        let side = &mut self.sides[at];
        let lineage = side.record.lineage.id;
        let is_tracked = side.maps.as_ref().and_then(Maps::first);
        let reaches_back = is_tracked.is_some_and(|first| base.is_none_or(|base| first <= base));
        let captured = side.maps.as_mut().filter(|_| reaches_back).map(|maps| {
            let blocks = maps.changed(base);
            maps.freeze(sequence);
            Delta {
                lineage,
                sequence,
                base,
                blocks,
                frozen,
            }
        });
        if fate == Fate::CrashAfter {
            side.spool = captured.or(side.spool.take());
            return;
        }
        match captured {
            Some(delta) => {
                let id = delta.id();
                side.spool = Some(delta);
                self.tell_by(at, fate, Event::Captured { sequence, id });
            }
            None => {
                self.tell(at, Event::CaptureFailed { sequence });
                self.tell(at, Event::NeedsResync(ResyncCause::TrackingLost));
            }
        }
    }

    fn fail_over(
        &mut self,
        at: usize,
        point: Option<Sequence>,
        id: lifeboat_model::LineageId,
        fate: Fate,
    ) -> Result<(), Rule> {
        let follows = self.sides[at].record.lineage;
        let side = &mut self.sides[at];
        let before = side.disk;
        let disk = &mut side.disk;
        let started = side.store.as_mut().and_then(|store| {
            if let StoreRole::FailedOver { lineage, .. } = &store.role {
                return Some(*lineage);
            }
            let (sequence, guest) = match point {
                None => {
                    while store.apply_next(disk).is_some() {}
                    store.applied
                }
                Some(point) => {
                    let found = store.points.iter().find(|one| one.sequence == point);
                    found.map(|one| (one.sequence, one.disk))
                }
            }?;
            let lineage = Lineage {
                counter: follows.counter + 1,
                id,
                forked_from: Some((follows.id, sequence)),
            };
            store.role = StoreRole::FailedOver { lineage, guest };
            Some(lineage)
        });
        self.mark_forwarded(at, &before);
        if fate == Fate::CrashAfter {
            return Ok(());
        }
        match started {
            Some(lineage) => {
                self.tell(at, Event::FailedOver { lineage });
                rules::failed_over(self, at)
            }
            None => {
                self.tell(at, Event::FailOverFailed);
                Ok(())
            }
        }
    }

    fn revert(&mut self, at: usize, fate: Fate) {
        let side = &mut self.sides[at];
        if side.is_running {
            return;
        }
        if let Some(store) = &mut side.store
            && let StoreRole::FailedOver { .. } = store.role
        {
            store.role = StoreRole::Replica;
        }
        if fate != Fate::CrashAfter {
            self.tell(at, Event::Reverted);
        }
    }

    fn commit(&mut self, at: usize, fate: Fate) {
        let side = &mut self.sides[at];
        let before = side.disk;
        if let Some(store) = &mut side.store
            && let StoreRole::FailedOver { guest, .. } = store.role
        {
            side.disk = guest;
            store.role = StoreRole::Committed;
            store.points.clear();
            store.pending.clear();
            store.copy = None;
            let moment = side
                .record
                .drawn
                .max(store.tip.map_or(Sequence::ZERO, |(tip, _)| tip));
            side.maps = Some(Maps::since(moment));
        }
        // What was taken back, and what the guest wrote.
        self.mark_forwarded(at, &before);
        if fate != Fate::CrashAfter {
            self.tell(at, Event::Committed);
        }
    }

    fn open_session(&mut self, at: usize, fate: Fate) {
        match fate {
            Fate::Done | Fate::Repeated => {
                let view = self.view(self.peer(at));
                let standing = self.sides[at].record.standing(&view);
                self.tell(at, Event::Session(standing));
            }
            Fate::Slow => {
                let view = self.view(self.peer(at));
                self.sides[at].answer = Some(Slow::Report(view));
            }
            Fate::RequestLost | Fate::AnswerLost => {
                self.tell(at, Event::Failed(CriticalCause::Unreachable));
            }
            Fate::CrashAfter => {}
        }
    }

    fn send(&mut self, at: usize, sequence: Sequence, fate: Fate) -> Result<(), Rule> {
        let side = &self.sides[at];
        let spooled = side
            .spool
            .as_ref()
            .filter(|delta| delta.sequence == sequence);
        let Some(delta) = spooled.cloned() else {
            if fate != Fate::CrashAfter {
                self.tell(at, Event::SpoolLost { sequence });
            }
            return Ok(());
        };
        let ancestors = side.record.ancestors.clone();
        rules::forwarded(self, at)?;
        let heard = self.request(at, Message::Delta { delta, ancestors }, fate)?;
        self.heard(at, fate, &heard, None);
        Ok(())
    }

    fn copy(
        &mut self,
        at: usize,
        copy: Sequence,
        purpose: CopyPurpose,
        fate: Fate,
    ) -> Result<(), Rule> {
        let side = &self.sides[at];
        let first = side.maps.as_ref().and_then(Maps::first);
        let is_tracked = match purpose {
            CopyPurpose::Initial | CopyPurpose::Compare => first.is_some_and(|first| first <= copy),
            CopyPurpose::Reverse => first.is_some(),
        };
        if !is_tracked {
            if fate != Fate::CrashAfter {
                self.tell(at, Event::NeedsResync(ResyncCause::TrackingLost));
            }
            return Ok(());
        }
        let message = Message::Copy {
            lineage: side.record.lineage.id,
            copy,
            first: purpose == CopyPurpose::Initial,
            content: self.sides[Self::host(at)].disk,
            ancestors: side.record.ancestors.clone(),
        };
        rules::forwarded(self, at)?;
        let heard = self.request(at, message, fate)?;
        self.heard(at, fate, &heard, Some(Event::ChunksDone { copy }));
        Ok(())
    }

    /// What an answer means, as the driver reads it.
    fn heard(&mut self, at: usize, fate: Fate, heard: &Heard, done: Option<Event>) {
        let event = match heard {
            Heard::Answer(Answer::Done) => done,
            Heard::Answer(Answer::Receipt(receipt)) => Some(Event::Received(*receipt)),
            Heard::Answer(Answer::OtherLineage) => {
                let queue = &mut self.sides[at].queue;
                if !queue.contains(&Effect::OpenSession) {
                    queue.push(Effect::OpenSession);
                }
                None
            }
            Heard::Answer(Answer::NotContinuous) => {
                Some(Event::NeedsResync(ResyncCause::UnknownMoments))
            }
            Heard::Answer(Answer::Gone) => Some(Event::Failed(CriticalCause::ReplicaGone)),
            Heard::Answer(Answer::Refused | Answer::Busy | Answer::Adopted(_)) => None,
            Heard::Nothing => Some(Event::Failed(CriticalCause::Unreachable)),
        };
        if let Some(event) = event {
            self.tell_by(at, fate, event);
        }
    }

    /// Now, or when the answer is looked at.
    fn tell_by(&mut self, at: usize, fate: Fate, event: Event) {
        match fate {
            Fate::Done | Fate::RequestLost | Fate::AnswerLost | Fate::Repeated => {
                self.tell(at, event);
            }
            Fate::Slow => self.sides[at].answer = Some(Slow::Event(event)),
            Fate::CrashAfter => {}
        }
    }

    /// The answer that was on its way is looked at.
    pub fn look_at_answer(&mut self, at: usize) {
        let event = match self.sides[at].answer.take() {
            Some(Slow::Event(event)) => event,
            Some(Slow::Report(view)) => Event::Session(self.sides[at].record.standing(&view)),
            None => return,
        };
        self.tell(at, event);
    }

    fn request(&mut self, at: usize, message: Message, fate: Fate) -> Result<Heard, Rule> {
        // The third host knows the middle one by its relationship, whatever record that is in.
        let to = if at == THIRD {
            FORWARDER
        } else {
            self.peer(at)
        };
        match fate {
            Fate::RequestLost => Ok(Heard::Nothing),
            Fate::Done | Fate::Slow => self.arrive(to, message).map(Heard::Answer),
            Fate::Repeated => {
                self.late.push((to, message.clone()));
                self.arrive(to, message).map(Heard::Answer)
            }
            Fate::AnswerLost => self.arrive(to, message).map(|_| Heard::Nothing),
            // The answer comes to a daemon that is gone.
            Fate::CrashAfter => self
                .arrive(to, message)
                .map(|_| Heard::Answer(Answer::Busy)),
        }
    }

    /// A middle host that has left the first one has only the record of the other relationship.
    fn arrive(&mut self, to: usize, message: Message) -> Result<Answer, Rule> {
        match to {
            MIDDLE if self.has_left() => Ok(Answer::Gone),
            FORWARDER if self.has_left() => self.answer(MIDDLE, message),
            at => self.answer(at, message),
        }
    }

    fn answer(&mut self, at: usize, message: Message) -> Result<Answer, Rule> {
        match message {
            Message::TakeOver(news) => {
                self.tell(at, Event::Peer(news));
                Ok(Answer::Done)
            }
            Message::Adopt {
                lineage,
                ancestors,
                hop,
            } => {
                let vm = power(&self.sides[at]);
                let before = self.sides[at].clone();
                let event = Event::Adopt {
                    lineage,
                    ancestors: ancestors.clone(),
                    vm,
                    hop,
                };
                match self.decide(at, event) {
                    Ok(()) => {
                        rules::overwritten(self, &before.disk, &lineage, &ancestors)?;
                        Ok(Answer::Adopted(self.sides[at].record.drawn))
                    }
                    Err(_) => Ok(Answer::Refused),
                }
            }
            Message::Prepared { lineage, sequence } => {
                if let Some(no) = self.not_receiving(at, lineage) {
                    return Ok(no);
                }
                let tip = self.sides[at].store.as_ref().and_then(|store| store.tip);
                if tip.map(|(tip, _)| tip) != Some(sequence) {
                    return Ok(Answer::NotContinuous);
                }
                Ok(match self.decide(at, Event::Prepared { sequence }) {
                    Ok(()) => Answer::Done,
                    Err(_) => Answer::Refused,
                })
            }
            Message::GoOn { lineage, sequence } => {
                // Only the records are asked: between a look at the phase and the step lies a race.
                if self.view(at).lineage.id != lineage {
                    return Ok(Answer::OtherLineage);
                }
                Ok(
                    match self.decide(at, Event::PreparedCancelled { sequence }) {
                        Ok(()) => Answer::Done,
                        Err(_) => Answer::OtherLineage,
                    },
                )
            }
            Message::Delta { delta, ancestors } => {
                if let Some(no) = self.not_receiving(at, delta.lineage) {
                    return Ok(no);
                }
                rules::overwritten_by(self, at, delta.lineage, &ancestors)?;
                let Some(store) = &mut self.sides[at].store else {
                    return Ok(Answer::Refused);
                };
                match store.receive(&delta) {
                    Ok(receipt) => {
                        let record = &mut self.sides[at].record;
                        record.drawn = record.drawn.max(receipt.sequence);
                        Ok(Answer::Receipt(receipt))
                    }
                    Err(StoreRefused::OtherLineage) => Ok(Answer::OtherLineage),
                    Err(StoreRefused::NotContinuous) => Ok(Answer::NotContinuous),
                }
            }
            Message::Copy {
                lineage,
                copy,
                first,
                content,
                ancestors,
            } => {
                if let Some(no) = self.not_receiving(at, lineage) {
                    return Ok(no);
                }
                rules::overwritten_by(self, at, lineage, &ancestors)?;
                let side = &mut self.sides[at];
                let Some(store) = &mut side.store else {
                    return Ok(Answer::Refused);
                };
                let before = side.disk;
                let began = store.begin_copy(&mut side.disk, copy, first);
                let is_whole = store.applied.is_some();
                match began {
                    Ok(()) => {
                        side.disk = content;
                        self.mark_forwarded(at, &before);
                        if is_whole {
                            // What waited was applied first.
                            self.tell(at, Event::InitialComplete);
                        }
                        self.tell(at, Event::ResyncBegun);
                        Ok(Answer::Done)
                    }
                    Err(_) => Ok(Answer::NotContinuous),
                }
            }
        }
    }

    /// How a side's peer is replicated to.
    const fn hop(at: usize) -> Hop {
        if at == FORWARDER {
            Hop::Second
        } else {
            Hop::First
        }
    }

    /// What a side has to say about who writes the VM's history.
    fn news_of(&self, at: usize) -> Option<TakeOverNews> {
        let view = self.view(at);
        let has_own = self.sides[at].view().has_taken_over;
        match self.sides[at].replica_phase() {
            Some(ReplicaPhase::WaitingInitial | ReplicaPhase::FailingOver(_)) => None,
            Some(
                ReplicaPhase::Replicating
                | ReplicaPhase::Suspended
                | ReplicaPhase::Critical(_)
                | ReplicaPhase::Resyncing,
            ) if view.has_taken_over == has_own => Some(TakeOverNews::Reverted),
            Some(
                ReplicaPhase::Replicating
                | ReplicaPhase::Suspended
                | ReplicaPhase::Critical(_)
                | ReplicaPhase::Resyncing
                | ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Committed { .. }
                | ReplicaPhase::Reversing { .. },
            )
            | None => Some(TakeOverNews::TakenOver {
                lineage: view.lineage,
                ancestors: view.ancestors,
                hop: Self::hop(at),
            }),
        }
    }

    fn not_receiving(&self, at: usize, lineage: lifeboat_model::LineageId) -> Option<Answer> {
        let side = &self.sides[at];
        let Some(phase) = side.replica_phase() else {
            return Some(Answer::OtherLineage);
        };
        if phase.has_failed_over() || self.view(at).lineage.id != lineage {
            return Some(Answer::OtherLineage);
        }
        (*phase == ReplicaPhase::Suspended).then_some(Answer::Busy)
    }
}

#[must_use]
pub fn power(side: &Side) -> VmPower {
    if side.is_running {
        VmPower::Running
    } else {
        VmPower::Off
    }
}
