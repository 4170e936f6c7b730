//! Two hosts or three, what is between them, and what the test alone knows.

use lifeboat_model::relationship::{
    Effect, Event, Hop, Record, Refused, Replica, ReplicaPhase, ReplicaView, Role, Source, Step,
    Upstream,
};
use lifeboat_model::{Lineage, LineageId, RelationshipId, Sequence, Timestamp, VmId};

use crate::disk::{Delta, Disk, Maps, Point, Store, StoreRole, difference};

/// Time says nothing in this world: no start is planned.
pub const NOW: Timestamp = Timestamp::from_micros(1_000_000);

/// The side that is a replica and forwards what it applies.
pub const MIDDLE: usize = 1;
/// The third host.
pub const THIRD: usize = 2;
/// The second record on the host of [`MIDDLE`]: it has a queue, a set of changes and a spool of
/// its own, and the disk and the store are those of the first.
pub const FORWARDER: usize = 3;

/// How much may go wrong, and how much may be done, from one scene on. Pairs are for each link: the
/// first two hosts', and the second's with the third.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Of either host, its daemon alone or with its guest.
    pub crashes: u8,
    /// Requests or answers.
    pub lost: [u8; 2],
    /// Requests that come a second time, at any later time.
    pub repeated: [u8; 2],
    /// Answers that come after other things have happened.
    pub slow: [u8; 2],
    pub writes: u8,
    /// Commands of operators, guests started and stopped included.
    pub commands: u8,
    /// Moments and copies that a timer begins.
    pub cycles: [u8; 2],
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
        hop: Hop,
    },
}

/// An answer on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Slow {
    Event(Event),
    /// Compared with the record when it is looked at.
    Report(ReplicaView),
}

/// One host's part of a relationship.
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
    /// Two hosts; or three, and the `FORWARDER`; or three, after it has become the middle
    /// one's only record.
    pub sides: Vec<Side>,
    /// With the side that each is addressed to.
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
        let side = |role, is_running, store| Side::new(lineage, role, is_running, store);
        let primary = lifeboat_model::relationship::Primary::Ready { start: None };
        Self {
            sides: vec![
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

    /// As [`new`](Self::new), and the replica's host is to forward to a third one.
    #[must_use]
    pub fn extended(budget: Budget) -> Self {
        let mut world = Self::new(budget);
        let lineage = world.sides[0].record.lineage;
        let third = Role::Replica(Replica::waiting(true));
        let store = Some(Store::empty(lineage.id));
        world.sides.push(Side::new(lineage, third, false, store));
        let primary = lifeboat_model::relationship::Primary::Ready { start: None };
        let mut forwarder = Side::new(lineage, Role::Primary(primary), false, None);
        forwarder.record.forwards = Some(Source::Nothing);
        world.sides.push(forwarder);
        world
    }

    /// The hosts, by the sides that have a disk.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.sides.len().min(FORWARDER)
    }

    /// Whether the replica's host forwards to a third one.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.sides.len() > FORWARDER
    }

    /// Whether the middle host protects the VM on the third, and has left the first.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.sides.len() == FORWARDER
    }

    /// The side whose disk, store and guest this one's host has.
    #[must_use]
    pub const fn host(at: usize) -> usize {
        if at == FORWARDER { MIDDLE } else { at }
    }

    /// The side that this one talks to.
    #[must_use]
    pub fn peer(&self, at: usize) -> usize {
        match at {
            MIDDLE if self.has_left() => THIRD,
            THIRD if self.has_left() => MIDDLE,
            THIRD => FORWARDER,
            FORWARDER => THIRD,
            first => 1 - first,
        }
    }

    /// Which link it talks over.
    #[must_use]
    pub fn link(&self, at: usize) -> usize {
        usize::from(at >= THIRD || (at == MIDDLE && self.has_left()))
    }

    /// What a peer that asks is told.
    #[must_use]
    pub fn view(&self, at: usize) -> ReplicaView {
        let view = self.sides[at].view();
        match self.sides.get(FORWARDER) {
            Some(forwarder) if at == MIDDLE => view.beside(&forwarder.record),
            Some(_) | None => view,
        }
    }

    /// What the head of the middle host held before; what differs now joins the set of changes
    /// that the third host lacks.
    pub fn mark_forwarded(&mut self, at: usize, before: &Disk) {
        let blocks = difference(before, &self.sides[at].disk);
        if at == MIDDLE
            && let Some(forwarder) = self.sides.get_mut(FORWARDER)
            && let Some(set) = &mut forwarder.maps
        {
            set.mark_all(blocks);
        }
    }

    /// The second record is told what the first has come to.
    pub fn tell_forwarder(&mut self) {
        if self.is_extended() {
            let side = &self.sides[MIDDLE];
            let upstream = Upstream::of(&side.record, side.whole_moment());
            self.tell(FORWARDER, Event::Upstream(upstream));
        }
    }

    /// The second record takes the place of the first.
    pub fn leave_first_hop(&mut self) {
        let forwarder = self.sides.remove(FORWARDER);
        let middle = &mut self.sides[MIDDLE];
        *middle = Side {
            is_running: middle.is_running,
            disk: middle.disk,
            ..forwarder
        };
    }

    /// What has happened on a side is decided, saved and adopted; its effects wait.
    ///
    /// # Errors
    /// As [`Record::decide`].
    pub fn decide(&mut self, at: usize, event: Event) -> Result<(), Refused> {
        let side = &mut self.sides[at];
        let Step { next, effects } = side.record.decide(NOW, event)?;
        let left = side.record.lineage.id;
        side.record = next;
        for effect in effects {
            side.enqueue(effect);
        }
        side.follow_record(left);
        if at == MIDDLE {
            self.tell_forwarder();
        }
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

impl Side {
    fn new(lineage: Lineage, role: Role, is_running: bool, store: Option<Store>) -> Self {
        let record = Record {
            vm: VmId::from_bytes([1; 16]),
            relationship: RelationshipId::from_bytes([2; 16]),
            lineage,
            ancestors: Vec::new(),
            drawn: Sequence::ZERO,
            role,
            forwards: None,
        };
        Self {
            record,
            queue: Vec::new(),
            answer: None,
            is_running,
            disk: [0; 2],
            maps: None,
            spool: None,
            store,
        }
    }

    /// The moment that the head holds; none while it holds a part of one.
    #[must_use]
    pub fn whole_moment(&self) -> Option<Sequence> {
        let store = self.store.as_ref()?;
        let is_whole = store.role == StoreRole::Replica && store.copy.is_none();
        store
            .applied
            .filter(|_| is_whole)
            .map(|(sequence, _)| sequence)
    }

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
                | Effect::PassOnTakeOver
                | Effect::Report(_) => true,
            });
        } else if !matches!(effect, Effect::Report(_)) && !self.queue.contains(&effect) {
            self.queue.push(effect);
        }
    }

    /// The store follows the history that its record follows, and a new replica has a store.
    fn follow_record(&mut self, left: LineageId) {
        let Role::Replica(replica) = &self.record.role else {
            return;
        };
        if replica.phase.has_failed_over() {
            return;
        }
        let lineage = self.record.lineage.id;
        let is_adopted = match &self.store {
            Some(store) => store.role == StoreRole::Committed,
            None => true,
        };
        if is_adopted {
            let (sequence, disk) = (self.record.drawn, self.disk);
            self.store = Some(Store {
                applied: Some((sequence, disk)),
                points: vec![Point {
                    lineage: left,
                    sequence,
                    disk,
                }],
                ..Store::empty(lineage)
            });
            self.maps = None;
            self.spool = None;
        }
        if let Some(store) = &mut self.store
            && store.role == StoreRole::Replica
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

    /// Whether it is the second copy of a chain, which reverses nothing.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        match &self.record.role {
            Role::Replica(replica) => replica.extended,
            Role::Primary(_) => false,
        }
    }

    /// What this side alone has to tell.
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
