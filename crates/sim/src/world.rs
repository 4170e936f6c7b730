//! Two hosts, what is between them, and what the test alone knows.

use lifeboat_model::relationship::{
    Effect, Event, Record, Refused, Replica, ReplicaPhase, ReplicaView, Role, Step,
};
use lifeboat_model::{Lineage, LineageId, RelationshipId, Sequence, Timestamp, VmId};

use crate::disk::{Delta, Disk, Maps, Store};

/// Time says nothing in this world: no start is planned.
pub const NOW: Timestamp = Timestamp::from_micros(1_000_000);

/// How much may go wrong, and how much may be done, from one scene on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Of either host, its daemon alone or with its guest.
    pub crashes: u8,
    /// Requests or answers.
    pub lost: u8,
    /// Requests that come a second time, at any later time.
    pub repeated: u8,
    /// Answers that come after other things have happened.
    pub slow: u8,
    pub writes: u8,
    /// Commands of operators, guests started and stopped included.
    pub commands: u8,
    /// Moments and copies that a timer begins.
    pub cycles: u8,
}

/// A request that may come late. Answers to it go nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message {
    Copy {
        lineage: LineageId,
        copy: Sequence,
        first: bool,
        content: Disk,
        ancestors: Vec<Lineage>,
    },
    Delta {
        delta: Delta,
        ancestors: Vec<Lineage>,
    },
    Prepared {
        lineage: LineageId,
        sequence: Sequence,
    },
    GoOn {
        lineage: LineageId,
        sequence: Sequence,
    },
    TakeOver(lifeboat_model::relationship::TakeOverNews),
    Adopt {
        lineage: Lineage,
        ancestors: Vec<Lineage>,
    },
}

/// An answer on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Slow {
    Event(Event),
    /// Compared with the record when it is looked at.
    Report(ReplicaView),
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Side {
    /// As it is saved. What runs is the same: it is adopted only when it is saved.
    pub record: Record,
    /// Effects that are still to be run; a crash loses them.
    pub queue: Vec<Effect>,
    /// What a request came to, not yet looked at: meanwhile no other effect is run.
    pub answer: Option<Slow>,
    pub is_running: bool,
    /// The guest's disk, or the replica's head.
    pub disk: Disk,
    /// Absent where nothing is tracked, or what was may have missed something.
    pub maps: Option<Maps>,
    pub spool: Option<Delta>,
    pub store: Option<Store>,
}

/// Who wrote what: not known to anybody in the world.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ghost {
    /// The lineage of each guest write, the first one at 0.
    pub writes: Vec<LineageId>,
    /// Which side the guest of a lineage wrote on.
    pub writers: Vec<(LineageId, usize)>,
    /// Lineages that an operator gave up.
    pub given_up: Vec<LineageId>,
    /// Lineages that random numbers made.
    pub lineages: u8,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub sides: [Side; 2],
    pub late: Vec<(usize, Message)>,
    pub budget: Budget,
    pub ghost: Ghost,
}

impl World {
    /// A relationship that was just made: side 0 is the primary and its guest runs.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        let lineage = Lineage {
            counter: 1,
            id: lineage_id(0),
            forked_from: None,
        };
        let record = |role| Record {
            vm: VmId::from_bytes([1; 16]),
            relationship: RelationshipId::from_bytes([2; 16]),
            lineage,
            ancestors: Vec::new(),
            drawn: Sequence::ZERO,
            role,
        };
        let side = |role, is_running, store| Side {
            record: record(role),
            queue: Vec::new(),
            answer: None,
            is_running,
            disk: [0; 2],
            maps: None,
            spool: None,
            store,
        };
        let primary = lifeboat_model::relationship::Primary::Ready { start: None };
        Self {
            sides: [
                side(Role::Primary(primary), true, None),
                side(
                    Role::Replica(Replica::waiting(false)),
                    false,
                    Some(Store::empty(lineage.id)),
                ),
            ],
            late: Vec::new(),
            budget,
            ghost: Ghost {
                lineages: 1,
                ..Ghost::default()
            },
        }
    }

    /// What has happened on a side is decided, saved and adopted; its effects wait.
    ///
    /// # Errors
    /// As [`Record::decide`].
    pub fn decide(&mut self, at: usize, event: Event) -> Result<(), Refused> {
        let side = &mut self.sides[at];
        let Step { next, effects } = side.record.decide(NOW, event)?;
        side.record = next;
        for effect in effects {
            side.enqueue(effect);
        }
        side.follow_record();
        Ok(())
    }

    /// As [`decide`](Self::decide), for facts, which are never refused.
    pub fn tell(&mut self, at: usize, event: Event) {
        let shown = format!("{event:?}");
        if let Err(refused) = self.decide(at, event) {
            panic!("BUG: the fact {shown} was refused: {refused}");
        }
    }

    /// A lineage as random numbers give them: never the same.
    pub fn fresh_lineage(&mut self) -> LineageId {
        let id = lineage_id(self.ghost.lineages);
        self.ghost.lineages += 1;
        id
    }
}

#[must_use]
pub const fn lineage_id(number: u8) -> LineageId {
    LineageId::from_bytes([number + 0x10; 16])
}

#[must_use]
pub const fn other(side: usize) -> usize {
    1 - side
}

impl Side {
    /// As the driver's queue does: stopping takes away what waits and can be stopped.
    fn enqueue(&mut self, effect: Effect) {
        if effect == Effect::StopWork {
            self.queue.retain(|waiting| match waiting {
                Effect::OpenSession
                | Effect::Copy { .. }
                | Effect::Capture { .. }
                | Effect::Send { .. } => false,
                Effect::StartTracking { .. }
                | Effect::StopTracking
                | Effect::Forget { .. }
                | Effect::DropSpool { .. }
                | Effect::StopWork
                | Effect::AnnouncePrepared { .. }
                | Effect::AskToGoOn { .. }
                | Effect::FailOverStore { .. }
                | Effect::RevertStore
                | Effect::CommitStore
                | Effect::AnnounceTakeOver
                | Effect::AskAdoption
                | Effect::Report(_) => true,
            });
        } else if !matches!(effect, Effect::Report(_)) && !self.queue.contains(&effect) {
            self.queue.push(effect);
        }
    }

    /// The store follows the history that its record follows, and a new replica has a store.
    fn follow_record(&mut self) {
        let Role::Replica(replica) = &self.record.role else {
            return;
        };
        if replica.phase.has_failed_over() {
            return;
        }
        let lineage = self.record.lineage.id;
        let is_adopted = match &self.store {
            Some(store) => store.role == crate::disk::StoreRole::Committed,
            None => true,
        };
        if is_adopted {
            let moment = (self.record.drawn, self.disk);
            self.store = Some(Store {
                applied: Some(moment),
                points: vec![moment],
                ..Store::empty(lineage)
            });
            self.maps = None;
            self.spool = None;
        }
        if let Some(store) = &mut self.store
            && store.role == crate::disk::StoreRole::Replica
        {
            store.lineage = lineage;
        }
    }

    #[must_use]
    pub fn replica_phase(&self) -> Option<&ReplicaPhase> {
        match &self.record.role {
            Role::Replica(replica) => Some(&replica.phase),
            Role::Primary(_) => None,
        }
    }

    /// What a peer is told.
    #[must_use]
    pub fn view(&self) -> ReplicaView {
        let store = self.store.as_ref();
        ReplicaView::of(
            &self.record,
            store.and_then(|store| store.tip),
            store.and_then(Store::open_copy),
        )
    }
}
