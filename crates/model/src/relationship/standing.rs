//! How two sides stand to each other, from what the replica reports.

use crate::relationship::primary::{Cycle, Primary, ResyncCause};
use crate::relationship::{Record, ReplicaPhase, Role};
use crate::{DeltaId, Lineage, LineageId, Receipt, Sequence};

/// What a replica says it holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplicaView {
    pub lineage: Lineage,
    /// Oldest first, abandoned ones included.
    pub ancestors: Vec<Lineage>,
    /// The other side's VM may run, or it protects the VM itself.
    pub has_taken_over: bool,
    /// The newest moment received; absent before the first.
    pub tip: Option<(Sequence, DeltaId)>,
    /// A copy that no delta has closed.
    pub copy: Option<Sequence>,
}

/// What follows for the primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Replication can go on.
    InStep,
    /// The replica has the delta under way; its answer was lost.
    ReceiptLost(Receipt),
    NeedsResync(ResyncCause),
    /// The replica holds moments that this side does not know, up to `tip`: this side was
    /// restored from something old. Their numbers must not be drawn again.
    Ahead {
        tip: Sequence,
    },
    /// The replica follows the history of this side's last receipt, which this side's descends from,
    /// and has not heard of that. It lacks what is marked since, and nothing else.
    Unaware {
        theirs: Lineage,
    },
    /// The replica follows a history that this side has left and may be brought after it.
    Behind {
        theirs: Lineage,
    },
    /// The peer has taken over with a history that an operator of this side has abandoned.
    Overruled {
        theirs: Lineage,
    },
    TakenOver {
        lineage: Lineage,
        ancestors: Vec<Lineage>,
    },
    /// Neither history is the other's ancestor.
    SplitBrain {
        theirs: Lineage,
    },
}

impl ReplicaView {
    /// What this side tells a peer that asks; the store knows the newest moment and the copy.
    #[must_use]
    pub fn of(record: &Record, tip: Option<(Sequence, DeltaId)>, copy: Option<Sequence>) -> Self {
        let mut view = Self {
            lineage: record.lineage,
            ancestors: record.ancestors.clone(),
            has_taken_over: true,
            tip,
            copy,
        };
        let Role::Replica(replica) = &record.role else {
            return view;
        };
        match &replica.phase {
            ReplicaPhase::FailedOver { lineage, .. }
            | ReplicaPhase::Reverting { lineage, .. }
            | ReplicaPhase::Committing { lineage, .. } => {
                view.ancestors.push(record.lineage);
                view.lineage = *lineage;
            }
            ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => {}
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_) => view.has_taken_over = false,
        }
        view
    }
}

impl Record {
    /// Compares what the replica reports with what this primary knows. Without a receipt, and
    /// while a copy is made, which itself reconciles what the replica has of it, the two are in step.
    #[must_use]
    pub fn standing(&self, view: &ReplicaView) -> Standing {
        let Role::Primary(primary) = &self.role else {
            return Standing::InStep;
        };
        let theirs = view.lineage;
        let is_ours = theirs.id == self.lineage.id;
        if has(&self.ancestors, theirs.id) && !is_ours {
            if view.has_taken_over {
                return Standing::Overruled { theirs };
            }
            let is_tracked = primary
                .last_receipt()
                .is_some_and(|last| last.lineage == theirs.id)
                && self.compare_tips(primary, view) == Standing::InStep;
            return self.fenced_still(primary, view).unwrap_or(if is_tracked {
                Standing::Unaware { theirs }
            } else {
                Standing::Behind { theirs }
            });
        }
        if !is_ours && descends(&theirs, &view.ancestors, self.lineage.id) {
            return Standing::TakenOver {
                lineage: theirs,
                ancestors: view.ancestors.clone(),
            };
        }
        if !is_ours || view.has_taken_over {
            return Standing::SplitBrain { theirs };
        }
        if let Some(fenced) = self.fenced_still(primary, view) {
            return fenced;
        }
        if let Cycle::Sending { sequence, id } = primary.cycle()
            && view.tip == Some((sequence, id))
        {
            return Standing::ReceiptLost(Receipt {
                lineage: self.lineage.id,
                sequence,
                id,
            });
        }
        self.compare_tips(primary, view)
    }

    /// Whether a moment lies on the way to this history: it was captured under this lineage, or
    /// under one that it descends from, before that was left.
    #[must_use]
    pub fn has_come_through(&self, lineage: LineageId, moment: Sequence) -> bool {
        let mut first_left = None;
        let left_at = self.lineage.forks(&self.ancestors).find_map(|(left, at)| {
            let at = first_left.map_or(at, |first: Sequence| first.min(at));
            first_left = Some(at);
            (left == lineage).then_some(at)
        });
        lineage == self.lineage.id || left_at.is_some_and(|left_at| moment <= left_at)
    }

    /// A fence falls only when the peer lists among its abandoned histories the one that put it
    /// up: an old report, or a peer restored from something old, does not.
    fn fenced_still(&self, primary: &Primary, view: &ReplicaView) -> Option<Standing> {
        match primary {
            Primary::Fenced { by, .. } if !has(&view.ancestors, by.id) => {
                Some(Standing::TakenOver {
                    lineage: *by,
                    ancestors: vec![self.lineage],
                })
            }
            Primary::Fenced { .. }
            | Primary::Ready { .. }
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

    fn compare_tips(&self, primary: &Primary, view: &ReplicaView) -> Standing {
        if let Some((tip, _)) = view.tip
            && tip > self.drawn
        {
            return Standing::Ahead { tip };
        }
        let Some(last) = primary.last_receipt() else {
            return Standing::InStep;
        };
        if view.copy.is_some() {
            return Standing::NeedsResync(ResyncCause::CopyUnfinished);
        }
        match view.tip {
            Some((sequence, id)) if sequence == last.sequence && id == last.id => Standing::InStep,
            Some((sequence, _)) if sequence > last.sequence => {
                // A delta of ours whose receipt was lost and which was given up since: all it
                // holds is marked still, and the next delta carries it again.
                Standing::InStep
            }
            Some((sequence, _)) if sequence < last.sequence => {
                Standing::NeedsResync(ResyncCause::ReplicaRolledBack)
            }
            None => Standing::NeedsResync(ResyncCause::ReplicaRolledBack),
            Some(_) => Standing::NeedsResync(ResyncCause::UnknownMoments),
        }
    }
}

/// Whether a history with these ancestors continues, or has taken up, the history `of`.
pub(super) fn descends(lineage: &Lineage, ancestors: &[Lineage], of: LineageId) -> bool {
    has(ancestors, of) || lineage.forked_from.is_some_and(|(from, _)| from == of)
}

pub(super) fn has(ancestors: &[Lineage], id: LineageId) -> bool {
    ancestors.iter().any(|one| one.id == id)
}
