//! Where both sides may have gone on with the VM: whose history is kept, and who follows whom.
//!
//! Nothing is overwritten that the survivor's history has not taken up, by descent or because
//! an operator said so, and only while no guest writes it.

use crate::relationship::event::{Effect, Report, TakeOverNews, VmPower};
use crate::relationship::facts::stop_work;
use crate::relationship::forward::Hop;
use crate::relationship::guard::Operation;
use crate::relationship::primary::{CriticalCause, Primary, ResyncCause, SuspendedFrom};
use crate::relationship::refused::Refused;
use crate::relationship::replica::{Replica, ReplicaPhase};
use crate::relationship::standing::{ReplicaView, descends, has};
use crate::relationship::{Record, Role, Step};
use crate::{Lineage, LineageId, RelationshipId, Sequence, VmId};

impl Record {
    /// A primary that has lost what it knew of its relationship, and takes up the replica that
    /// its peer has kept. `tip` is the newest moment there.
    ///
    /// It begins a history of its own, so that the one which was lost is known as left should it
    /// come back. The replica follows when the disks of both sides are compared.
    #[must_use]
    pub fn taking_up(
        vm: VmId,
        relationship: RelationshipId,
        replica: &ReplicaView,
        tip: Sequence,
        lineage: LineageId,
    ) -> Self {
        let mut record = Self {
            vm,
            relationship,
            lineage: replica.lineage,
            ancestors: replica.ancestors.clone(),
            drawn: replica.copy.map_or(tip, |copy| copy.max(tip)),
            role: Role::Primary(Primary::ResyncRequired {
                cause: ResyncCause::UnknownMoments,
                at: None,
            }),
            forwards: None,
        };
        record.fork(lineage, tip, &[]);
        record
    }

    /// Where the histories have parted, an operator's word that this side's is the one to keep.
    pub(super) fn survive(
        &self,
        primary: &Primary,
        over: Lineage,
        ancestors: Vec<Lineage>,
        lineage: LineageId,
    ) -> Result<Step, Refused> {
        let mut given_up = ancestors;
        given_up.push(over);
        let is_own = over.id == self.lineage.id;
        if let Primary::Fenced { by, .. } = primary {
            given_up.push(*by);
        }
        match primary {
            Primary::Fenced { .. } => Ok(self.go_on_alone(primary, lineage, &given_up)),
            Primary::Critical {
                cause: CriticalCause::SplitBrain { .. } | CriticalCause::WentOnAlone,
                ..
            } if !is_own => Ok(self.go_on_alone(primary, lineage, &given_up)),
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
            | Primary::ResyncSuspended(_) => Err(Refused::NothingToSettle),
        }
    }

    /// Where the histories have parted, an operator's word that the other side's is kept.
    pub(super) fn yield_to(&self, primary: &Primary, to: Lineage) -> Result<Step, Refused> {
        match primary {
            Primary::Critical {
                cause: CriticalCause::SplitBrain { theirs },
                ..
            } if *theirs == to.id => Ok(self.fence(primary, to)),
            Primary::Fenced { by, .. } if by.id == to.id => Ok(self.unchanged()),
            Primary::Critical { .. }
            | Primary::Fenced { .. }
            | Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_) => Err(Refused::NothingToSettle),
        }
    }

    /// Begins a history of this side's own, which the replica can follow only by comparing disks.
    /// `over` is abandoned with it.
    pub(super) fn go_on_alone(
        &self,
        primary: &Primary,
        lineage: LineageId,
        over: &[Lineage],
    ) -> Step {
        let mut effects = stop_work(primary);
        effects.push(Effect::AnnounceTakeOver);
        effects.push(Effect::Report(Report::Critical(CriticalCause::WentOnAlone)));
        let next = Primary::Critical {
            cause: CriticalCause::WentOnAlone,
            from: SuspendedFrom::ResyncRequired {
                cause: ResyncCause::Requested,
            },
        };
        let left_at = primary
            .last_receipt()
            .map_or(self.drawn, |last| last.sequence);
        let mut step = self.primary(next, effects);
        step.next.fork(lineage, left_at, over);
        step
    }

    /// The survivor of a failover asks that this host keep its replica.
    ///
    /// Only a history that the survivor's has taken up, or that an operator gave up here, is
    /// overwritten, and only while no guest writes it.
    pub(super) fn be_adopted(
        &self,
        primary: &Primary,
        lineage: Lineage,
        ancestors: &[Lineage],
        vm: VmPower,
        hop: Hop,
    ) -> Result<Step, Refused> {
        let operation = Operation::MarkAsReplica;
        let gave_up = match primary {
            Primary::Fenced { by, .. } => by.id == lineage.id || has(ancestors, by.id),
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
            | Primary::ResyncSuspended(_) => false,
        };
        let is_known = lineage.id == self.lineage.id || has(&self.ancestors, lineage.id);
        if is_known || !(gave_up || descends(&lineage, ancestors, self.lineage.id)) {
            return Err(Refused::SplitBrain { theirs: lineage.id });
        }
        if vm == VmPower::Running {
            return Err(Refused::VmRunning { operation });
        }
        Ok(self.become_replica(stop_work(primary), lineage, ancestors, hop))
    }

    /// The primary has gone on with a history that takes up ours. As in
    /// [`prepared_cancelled`](Self::prepared_cancelled), a number is used up.
    pub(super) fn primary_news(&self, replica: &Replica, news: TakeOverNews) -> Step {
        let TakeOverNews::TakenOver {
            lineage,
            ancestors,
            hop,
        } = news
        else {
            return self.unchanged();
        };
        if lineage.id == self.lineage.id || has(&self.ancestors, lineage.id) {
            return self.unchanged();
        }
        match &replica.phase {
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing => {
                if !descends(&lineage, &ancestors, self.lineage.id) {
                    return self.unchanged();
                }
                let followed = Replica {
                    extended: hop == Hop::Second,
                    ..replica.clone()
                };
                let mut step = self.set_prepared(&followed, None);
                step.next.drawn = self.draw();
                step.next.follow(lineage, &ancestors);
                step
            }
            // Given up by an operator there: known here as abandoned, so that it cannot be
            // committed any more.
            ReplicaPhase::FailedOver { lineage: own, .. } => {
                let mut step = self.unchanged();
                if has(&ancestors, own.id) {
                    step.next.remember(*own);
                }
                step
            }
            ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => {
                if descends(&lineage, &ancestors, self.lineage.id) {
                    self.stand_down(lineage)
                } else {
                    self.unchanged()
                }
            }
            // What has begun is brought to its end; the primary says it again.
            ReplicaPhase::FailingOver(_)
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. } => self.unchanged(),
        }
    }

    /// A committed failover is a primary without a replica; overruled, it is a fenced one.
    fn stand_down(&self, by: Lineage) -> Step {
        let from = SuspendedFrom::ResyncRequired {
            cause: ResyncCause::Requested,
        };
        let role = Role::Primary(Primary::Fenced { by, from });
        self.to(
            role,
            vec![Effect::StopWork, Effect::Report(Report::Fenced { by })],
        )
    }

    pub(super) fn survive_as_replica(
        &self,
        replica: &Replica,
        over: Lineage,
        ancestors: Vec<Lineage>,
        lineage: LineageId,
    ) -> Result<Step, Refused> {
        let mut given_up = ancestors;
        given_up.push(over);
        match &replica.phase {
            ReplicaPhase::Committed { .. } if over.id != self.lineage.id => {
                let mut step = self.to(self.role.clone(), vec![Effect::AnnounceTakeOver]);
                step.next.fork(lineage, self.drawn, &given_up);
                Ok(step)
            }
            ReplicaPhase::Committed { .. }
            | ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. }
            | ReplicaPhase::Reversing { .. } => Err(Refused::NothingToSettle),
        }
    }

    pub(super) fn yield_as_replica(&self, replica: &Replica, to: Lineage) -> Result<Step, Refused> {
        match &replica.phase {
            ReplicaPhase::Committed { .. }
                if to.id != self.lineage.id && !has(&self.ancestors, to.id) =>
            {
                Ok(self.stand_down(to))
            }
            ReplicaPhase::Committed { .. }
            | ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. }
            | ReplicaPhase::Reversing { .. } => Err(Refused::NothingToSettle),
        }
    }

    /// Asked again after a lost answer, it is a replica already.
    pub(super) fn be_adopted_as_replica(
        &self,
        replica: &Replica,
        lineage: Lineage,
        ancestors: &[Lineage],
        vm: VmPower,
        hop: Hop,
    ) -> Result<Step, Refused> {
        let operation = Operation::MarkAsReplica;
        match &replica.phase {
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
                if lineage.id == self.lineage.id =>
            {
                Ok(self.unchanged())
            }
            ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => {
                let is_known = lineage.id == self.lineage.id || has(&self.ancestors, lineage.id);
                if is_known || !descends(&lineage, ancestors, self.lineage.id) {
                    Err(Refused::SplitBrain { theirs: lineage.id })
                } else if vm == VmPower::Running {
                    Err(Refused::VmRunning { operation })
                } else {
                    Ok(self.become_replica(vec![Effect::StopWork], lineage, ancestors, hop))
                }
            }
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. } => Err(self.not_here(operation)),
        }
    }
}
