//! One relationship on one host: its state, and what follows from an event.
//!
//! [`Record::decide`] is pure: no clock, no I/O, nothing is awaited. Whoever drives it saves
//! [`Step::next`], only then adopts it, then runs [`Step::effects`] in order; what comes of
//! them returns as events. A crash may fall between any two of these, so every effect
//! can be run again, and [`Record::resume`] derives from a saved record what was under way.
//!
//! ```text
//! primary   Ready -> Copying -> Replicating <-> Suspended
//!             ^         |        |  ^  |  ^
//!             +-cancel--+        |  |  |  +-- Prepared <- Preparing
//!                                |  |  +----> Critical
//!                                v  |
//!           ResyncRequired -> Resyncing <-> ResyncSuspended     any -> Fenced, Critical
//!
//! replica   WaitingInitial -> Replicating <-> Suspended, Critical
//!                                |    ^
//!                                v    | revert
//!                          FailingOver -> FailedOver -> Committing -> Committed -> (primary)
//! ```
//!
//! Two sides may go on from the same moment: without a third party this is detected, not
//! prevented. Then both are at rest ([`CriticalCause::SplitBrain`], or [`Primary::Fenced`] where
//! the peer's history descends from ours) until [`Event::Survive`] or [`Event::Yield`] says which
//! history is kept. A failover that is not committed is given up by [`Event::Revert`].
//!
//! A replica's host may forward what it has applied to a third one: that is a record of its own,
//! whose role is a primary's and which knows only its own peer. See [`Upstream`].
//!
//! The numbers of the contract come from [`Record::state`]; nothing else knows them.

mod event;
mod facts;
mod forward;
mod guard;
mod parted;
mod primary;
mod refused;
mod replica;
mod standing;
#[cfg(test)]
mod tests;
mod wishes;

use serde::{Deserialize, Serialize};

use crate::contract::{ReplicationMode, ReplicationState};
use crate::{Lineage, LineageId, RelationshipId, Sequence, Timestamp, VmId};

pub use event::{
    CancelHow, CopyPurpose, Effect, Event, FailoverChoice, PrimaryGuest, Report, TakeOverNews,
    VmPower,
};
pub use forward::{Hop, Source, Upstream};
pub use guard::Operation;
pub use primary::{
    Copying, CriticalCause, Cycle, PlannedStart, Primary, ResyncCause, SuspendedFrom, Work,
};
pub use refused::{Refused, Remedy};
pub use replica::{ApplyTrouble, Before, Failover, Replica, ReplicaPhase};
pub use standing::{ReplicaView, Standing};

/// Lineages that are remembered, the newest of them. Each failover is one, and each session tells
/// them all: a message has room for these. A side that has missed more than so many is no
/// descendant any more, and an operator names the survivor.
pub const MAX_ANCESTORS: usize = 1024;

/// One relationship as this host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub vm: VmId,
    pub relationship: RelationshipId,
    /// The history that this side writes or follows.
    pub lineage: Lineage,
    /// What that history descends from, oldest first, abandoned ones included; at most
    /// [`MAX_ANCESTORS`].
    pub ancestors: Vec<Lineage>,
    /// The highest number ever drawn here or heard of; a new moment takes the next.
    pub drawn: Sequence,
    pub role: Role,
    /// What a replica's host forwards to a third one; absent on every record but the sending one of
    /// a second hop, whose role is a primary's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub forwards: Option<Source>,
}

/// What this host does for the relationship.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The VM runs here and its changes leave.
    Primary(Primary),
    /// A copy is kept here.
    Replica(Replica),
}

/// What follows from an event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use]
pub struct Step {
    /// To be saved before anything else happens.
    pub next: Record,
    /// To be run afterwards, in order.
    pub effects: Vec<Effect>,
}

impl Record {
    /// What follows from `event`.
    ///
    /// # Errors
    /// [`Refused`] for an operator's wish that the state does not allow. News that come too
    /// late or twice are no error: the step changes nothing.
    pub fn decide(&self, now: Timestamp, event: Event) -> Result<Step, Refused> {
        let mut step = match &self.role {
            Role::Primary(primary) => self.decide_as_primary(primary, now, event)?,
            Role::Replica(replica) => self.decide_as_replica(replica, event)?,
        };
        step.next.withhold(&mut step.effects);
        Ok(step)
    }

    /// The effects that a saved record asks for after a restart.
    #[must_use]
    pub fn resume(&self) -> Vec<Effect> {
        let mut effects = match &self.role {
            Role::Primary(primary) => primary.resume(),
            Role::Replica(replica) => replica.resume(),
        };
        effects.extend(self.news_of_fence());
        self.withhold(&mut effects);
        effects
    }

    /// The state that the contract shows.
    #[must_use]
    pub fn state(&self) -> ReplicationState {
        match &self.role {
            Role::Primary(primary) => primary.state(),
            Role::Replica(replica) => replica.state(),
        }
    }

    /// The mode that the contract shows.
    #[must_use]
    pub fn mode(&self) -> ReplicationMode {
        match &self.role {
            Role::Primary(_) if self.forwards.is_some() => ReplicationMode::Replica,
            Role::Primary(_) => ReplicationMode::Primary,
            Role::Replica(replica) if replica.extended => ReplicationMode::ExtendedReplica,
            Role::Replica(_) => ReplicationMode::Replica,
        }
    }

    /// Whether the VM may be started here.
    ///
    /// # Errors
    /// Why not: a prepared planned failover, a replica that is not failed over, a failover that is
    /// being ended or was overruled, a peer that took over.
    pub fn may_start_vm(&self) -> Result<(), Refused> {
        self.refuse_unless(Operation::StartVm)?;
        match &self.role {
            Role::Primary(primary) => self.may_start_as_primary(primary),
            Role::Replica(replica) => self.may_start_as_replica(replica),
        }
    }

    fn may_start_as_primary(&self, primary: &Primary) -> Result<(), Refused> {
        match primary {
            Primary::Fenced { by, .. } => Err(Refused::TakenOver { by: *by }),
            // The replica was told that the VM stays off, and has not agreed to anything else.
            Primary::Suspended { from } | Primary::Critical { from, .. }
                if matches!(from, SuspendedFrom::Prepared { .. }) =>
            {
                Err(Refused::State {
                    operation: Operation::StartVm,
                    mode: self.mode(),
                    state: ReplicationState::SyncedReplicationComplete,
                })
            }
            Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_) => Ok(()),
        }
    }

    /// Refuses an operation that the contract does not allow in this mode and state.
    ///
    /// # Errors
    /// [`Refused::State`].
    pub fn refuse_unless(&self, operation: Operation) -> Result<(), Refused> {
        let (mode, state) = (self.mode(), self.state());
        let is_of_first_hop = self.forwards.is_some() && operation.is_of_first_hop();
        if operation.accepts(mode, state) && !is_of_first_hop {
            Ok(())
        } else {
            Err(Refused::State {
                operation,
                mode,
                state,
            })
        }
    }

    fn unchanged(&self) -> Step {
        Step {
            next: self.clone(),
            effects: Vec::new(),
        }
    }

    fn to(&self, role: Role, effects: Vec<Effect>) -> Step {
        Step {
            next: Self {
                role,
                ..self.clone()
            },
            effects,
        }
    }

    /// Begins a lineage of this side's own at `left_at`; those in `over` are abandoned with it.
    fn fork(&mut self, id: LineageId, left_at: Sequence, over: &[Lineage]) {
        let left = self.lineage;
        let counters = over.iter().map(|one| one.counter);
        let counter = counters.fold(left.counter, u32::max);
        self.remember(left);
        for one in over {
            self.remember(*one);
        }
        self.lineage = Lineage {
            counter: counter.saturating_add(1),
            id,
            forked_from: Some((left.id, left_at)),
        };
    }

    /// Follows another history; what this side knows of others stays known.
    fn follow(&mut self, lineage: Lineage, ancestors: &[Lineage]) {
        let left = self.lineage;
        for one in ancestors {
            self.remember(*one);
        }
        self.remember(left);
        self.lineage = lineage;
    }

    fn remember(&mut self, lineage: Lineage) {
        if !standing::has(&self.ancestors, lineage.id) {
            self.ancestors.push(lineage);
            let forgotten = self.ancestors.len().saturating_sub(MAX_ANCESTORS);
            self.ancestors.drain(..forgotten);
        }
    }

    /// The disks become a replica's: the moment that they hold takes the next number.
    fn become_replica(
        &self,
        effects: Vec<Effect>,
        lineage: Lineage,
        ancestors: &[Lineage],
        hop: Hop,
    ) -> Step {
        let replica = Replica {
            extended: hop == Hop::Second,
            prepared: None,
            phase: ReplicaPhase::Resyncing,
        };
        let mut step = self.to(Role::Replica(replica), effects);
        step.next.drawn = self.draw();
        step.next.forwards = None;
        step.next.follow(lineage, ancestors);
        step
    }

    /// Draws the next moment. A peer may have used up all numbers; the last one then stays, and a
    /// store refuses what comes with it.
    fn draw(&self) -> Sequence {
        self.drawn.next().unwrap_or(self.drawn)
    }
}
