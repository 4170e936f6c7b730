//! How two sides stand to each other, from what the replica reports.

use crate::relationship::primary::{Cycle, Primary, ResyncCause};
use crate::relationship::{Record, Role};
use crate::{DeltaId, Lineage, Receipt, Sequence};

/// What a replica says it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Replication can go on.
    InStep,
    /// The replica has the delta under way; its answer was lost.
    ReceiptLost(Receipt),
    NeedsResync(ResyncCause),
    TakenOver {
        lineage: Lineage,
        ancestors: Vec<Lineage>,
    },
    /// Neither history is the other's ancestor.
    SplitBrain {
        theirs: Lineage,
    },
}

impl Record {
    /// Compares what the replica reports with what this primary knows.
    #[must_use]
    pub fn standing(&self, view: &ReplicaView) -> Standing {
        let is_ours = view.lineage.id == self.lineage.id;
        if !is_ours || view.has_taken_over {
            let descends = view.ancestors.iter().any(|one| one.id == self.lineage.id)
                || view
                    .lineage
                    .forked_from
                    .is_some_and(|(from, _)| from == self.lineage.id);
            return if descends && !is_ours {
                Standing::TakenOver {
                    lineage: view.lineage,
                    ancestors: view.ancestors.clone(),
                }
            } else {
                Standing::SplitBrain {
                    theirs: view.lineage,
                }
            };
        }
        let Role::Primary(primary) = &self.role else {
            return Standing::InStep;
        };
        if let Cycle::Sending { sequence, id } = primary.cycle()
            && view.tip == Some((sequence, id))
        {
            return Standing::ReceiptLost(Receipt {
                lineage: self.lineage.id,
                sequence,
                id,
            });
        }
        match primary {
            // The copy itself reconciles what the replica has of it.
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_)
            | Primary::ResyncRequired { .. } => Standing::InStep,
            Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::Fenced { .. } => self.compare_tips(primary, view),
        }
    }

    fn compare_tips(&self, primary: &Primary, view: &ReplicaView) -> Standing {
        let Some(last) = primary.last_receipt() else {
            return Standing::InStep;
        };
        if view.copy.is_some() {
            return Standing::NeedsResync(ResyncCause::CopyUnfinished);
        }
        match view.tip {
            Some((sequence, id)) if sequence == last.sequence && id == last.id => Standing::InStep,
            Some((sequence, _)) if sequence > last.sequence && sequence <= self.drawn => {
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
