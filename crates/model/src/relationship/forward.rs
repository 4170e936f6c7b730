//! The second hop: what a replica has applied leaves for a third host.
//!
//! Beside the record of a replica stands a second one, which sends like a primary's: the same
//! phases, cycles, receipts and copies. It differs in what it sends. A moment is one that the
//! replica has applied, under the primary's own number and in the primary's history; nothing is
//! frozen and no number is drawn. What changed since the third host's last receipt is a set that
//! the store keeps with every moment applied, so that it survives whatever the store survives.
//!
//! Nothing leaves while the replica holds no such moment: a copy is under way, or a failover that
//! may still be reverted. A commit puts what it took back and what the guest wrote into the set;
//! from then on the record waits to become the primary's ([`Event::BecomePrimary`]).
//!
//! Neither record decides anything of the other's hop. The driver tells the second what the first has
//! come to ([`Event::Upstream`]), again after every restart, and before the effects of the step
//! that led there: no delta leaves after the store has begun to fail over.
//!
//! [`Event::BecomePrimary`]: super::Event::BecomePrimary
//! [`Event::Upstream`]: super::Event::Upstream

use serde::{Deserialize, Serialize};

use crate::relationship::event::Effect;
use crate::relationship::facts::stop_work;
use crate::relationship::guard::Operation;
use crate::relationship::primary::{CriticalCause, Primary, SuspendedFrom};
use crate::relationship::refused::Refused;
use crate::relationship::replica::ReplicaPhase;
use crate::relationship::standing::{ReplicaView, has};
use crate::relationship::{Record, Role, Step};
use crate::{Lineage, Sequence};

/// Which of the two ways a host is replicated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hop {
    /// From the host where the VM runs.
    First,
    /// From its replica.
    Second,
}

/// What a replica has for the host that it forwards to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// No whole moment of its primary's: a copy, or a failover that may be reverted.
    Nothing,
    /// The newest moment applied.
    Moment(Sequence),
    /// A history of its own, which began with a committed failover.
    Own,
}

/// What the first hop has come to on this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub lineage: Lineage,
    /// Oldest first, abandoned ones included.
    pub ancestors: Vec<Lineage>,
    pub drawn: Sequence,
    pub source: Source,
}

impl Upstream {
    /// From the first hop's record; the store knows the newest moment applied, which is absent
    /// while a copy is under way.
    #[must_use]
    pub fn of(record: &Record, applied: Option<Sequence>) -> Self {
        let source = match &record.role {
            Role::Replica(replica) => match &replica.phase {
                ReplicaPhase::WaitingInitial
                | ReplicaPhase::Replicating
                | ReplicaPhase::Suspended
                | ReplicaPhase::Critical(_)
                | ReplicaPhase::Resyncing => applied.map_or(Source::Nothing, Source::Moment),
                ReplicaPhase::FailingOver(_)
                | ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Reversing { .. } => Source::Nothing,
                ReplicaPhase::Committed { .. } => Source::Own,
            },
            // Overruled after a commit: the disks are the peer's as soon as it asks for them.
            Role::Primary(_) => Source::Nothing,
        };
        Self {
            lineage: record.lineage,
            ancestors: record.ancestors.clone(),
            drawn: record.drawn,
            source,
        }
    }
}

impl ReplicaView {
    /// With what the second hop's record, beside this one, knows of the third host: where that has
    /// taken over and this host has not, the peer is told so, and nothing of it is taken in before
    /// it has asked.
    #[must_use]
    pub fn beside(mut self, extended: &Record) -> Self {
        for one in &extended.ancestors {
            if !has(&self.ancestors, one.id) {
                self.ancestors.push(*one);
            }
        }
        if let (Some(by), false) = (extended.fenced_by(), self.has_taken_over) {
            self.ancestors.push(self.lineage);
            self.lineage = by;
            self.has_taken_over = true;
        }
        self
    }
}

impl Record {
    /// Whose take-over this side stands aside for.
    fn fenced_by(&self) -> Option<Lineage> {
        match &self.role {
            Role::Primary(Primary::Fenced { by, .. }) => Some(*by),
            Role::Primary(
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
                | Primary::ResyncSuspended(_),
            )
            | Role::Replica(_) => None,
        }
    }

    /// The first hop's primary is to hear of a third host that has taken over.
    pub(super) fn news_of_fence(&self) -> Option<Effect> {
        let is_known = self.forwards.is_some() && self.fenced_by().is_some();
        is_known.then_some(Effect::PassOnTakeOver)
    }

    /// Refuses an operation on the first hop that this second one stands against. A failover that an
    /// operator forces is not asked about.
    ///
    /// # Errors
    /// [`Refused::Extended`], and [`Refused::ExtendedTookOver`] for a failover while the VM may
    /// run on the third host.
    pub fn refuse_beside(&self, operation: Operation) -> Result<(), Refused> {
        match operation {
            Operation::CreateReplicationRelationship
            | Operation::RemoveReplicationRelationship
            | Operation::ReverseReplicationRelationship
            | Operation::InitiateFailback => Err(Refused::Extended { operation }),
            Operation::InitiateFailover => match self.fenced_by() {
                Some(by) => Err(Refused::ExtendedTookOver { by }),
                None => Ok(()),
            },
            Operation::StartReplication
            | Operation::ImportInitialReplica
            | Operation::ModifyReplicationSettings
            | Operation::CancelInitialReplication
            | Operation::MarkAsReplica
            | Operation::Resume
            | Operation::CancelPlannedFailover
            | Operation::PreparePlannedFailover
            | Operation::Suspend
            | Operation::CancelResynchronize
            | Operation::Resynchronize
            | Operation::RevertFailover
            | Operation::CommitFailover
            | Operation::TestReplicaSystem
            | Operation::ChangeReplicationModeToPrimary
            | Operation::ReadStatistics
            | Operation::SetFailoverNetworkAdapterSettings
            | Operation::StartVm => Ok(()),
        }
    }

    /// The number of the next moment or copy: drawn, or that of a moment applied which was not used
    /// yet. Absent while there is none to forward.
    pub(super) fn next_moment(&self) -> Option<Sequence> {
        match self.forwards {
            None => Some(self.draw()),
            Some(Source::Moment(applied)) => (applied > self.drawn).then_some(applied),
            Some(Source::Nothing | Source::Own) => None,
        }
    }

    /// Keeps back what must not leave.
    pub(super) fn withhold(&self, effects: &mut Vec<Effect>) {
        let (deltas, news) = match self.forwards {
            None | Some(Source::Moment(_)) => return,
            Some(Source::Nothing) => (false, true),
            Some(Source::Own) => (false, false),
        };
        effects.retain(|effect| match effect {
            Effect::Copy { .. } | Effect::Capture { .. } | Effect::Send { .. } => deltas,
            Effect::AnnounceTakeOver | Effect::AskAdoption => news,
            Effect::OpenSession
            | Effect::StartTracking { .. }
            | Effect::StopTracking
            | Effect::Forget { .. }
            | Effect::DropSpool { .. }
            | Effect::StopWork
            | Effect::AnnouncePrepared { .. }
            | Effect::AskToGoOn { .. }
            | Effect::FailOverStore { .. }
            | Effect::RevertStore
            | Effect::CommitStore
            | Effect::PassOnTakeOver
            | Effect::Report(_) => true,
        });
    }

    /// What the first hop has come to. The set goes on over a change of history: it names what
    /// differs, whoever wrote it.
    pub(super) fn upstream(&self, primary: &Primary, upstream: &Upstream) -> Step {
        let Some(before) = self.forwards else {
            return self.unchanged();
        };
        let mut told = self.clone();
        told.forwards = Some(upstream.source);
        let has_forked = upstream.lineage.id != self.lineage.id;
        if has_forked {
            told.follow(upstream.lineage, &upstream.ancestors);
        }
        if upstream.source == Source::Own {
            told.drawn = told.drawn.max(upstream.drawn);
        }
        let went_on = is_moment(upstream.source) && !is_moment(before);
        let was_stopped = is_moment(before) && !is_moment(upstream.source);
        if let Some(from) = told.settled(primary) {
            let mut step = told.go_on_from(from);
            step.effects.insert(0, Effect::AnnounceTakeOver);
            step.effects.push(Effect::PassOnTakeOver);
            return step;
        }
        let mut effects = Vec::new();
        if has_forked || was_stopped {
            effects.extend(stop_work(primary));
        }
        let at_rest = if effects.is_empty() {
            primary.clone()
        } else {
            primary.at_rest()
        };
        if has_forked {
            effects.push(Effect::AnnounceTakeOver);
        }
        if has_forked || went_on {
            effects.extend(at_rest.resume());
        }
        told.primary(at_rest, effects)
    }

    /// Where the history that stood against this side's was given up by it: what goes on.
    fn settled(&self, primary: &Primary) -> Option<SuspendedFrom> {
        match primary {
            Primary::Fenced { by, from } => has(&self.ancestors, by.id).then_some(*from),
            Primary::Critical {
                cause: CriticalCause::SplitBrain { theirs },
                from,
            } => has(&self.ancestors, *theirs).then_some(*from),
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
            | Primary::ResyncSuspended(_) => None,
        }
    }

    /// The relationship becomes the VM's only one: its VM runs here, and the third host keeps
    /// its replica. The first hop's record goes with it.
    ///
    /// A third host that has taken over has not taken this history up: both have gone on.
    pub(super) fn become_the_primary(&self, primary: &Primary) -> Result<Step, Refused> {
        if self.forwards != Some(Source::Own) {
            return Err(Refused::State {
                operation: Operation::ChangeReplicationModeToPrimary,
                mode: self.mode(),
                state: self.state(),
            });
        }
        let mut next = self.clone();
        next.forwards = None;
        let next_phase = match primary {
            Primary::Fenced { by, from } => Primary::Critical {
                cause: CriticalCause::SplitBrain { theirs: by.id },
                from: *from,
            },
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
            | Primary::ResyncSuspended(_) => primary.at_rest(),
        };
        let mut effects = vec![Effect::AnnounceTakeOver];
        effects.extend(next_phase.resume());
        Ok(next.primary(next_phase, effects))
    }

    /// Where the two hosts of a second hop have gone on apart, the first hop's primary, or this host
    /// after a commit, begins the history that settles it.
    pub(super) fn refuse_to_settle(&self) -> Result<(), Refused> {
        match self.forwards {
            None => Ok(()),
            Some(Source::Nothing | Source::Moment(_) | Source::Own) => {
                Err(Refused::SettledElsewhere)
            }
        }
    }
}

const fn is_moment(source: Source) -> bool {
    match source {
        Source::Moment(_) => true,
        Source::Nothing | Source::Own => false,
    }
}
