//! Where both hosts have gone on with a VM: an operator names the one whose history is kept.

use lifeboat_model::relationship::{Event, Primary, Record, Role};
use lifeboat_model::{Lineage, contract::ReturnCode};

use crate::api::{Accepted, Rejection, Survivor};
use crate::rejection::{not_replicated, rejection_of_step};
use crate::relation::Relation;
use crate::requests::random_lineage;
use crate::service::{Service, with_causes};
use crate::session::view_of;
use crate::vm::VmArc;

/// The other host's history, as it says or as this host knows it.
struct Theirs {
    lineage: Lineage,
    ancestors: Vec<Lineage>,
}

impl Service {
    /// This host's history is kept, or the other's. Nothing is overwritten by it: whoever is
    /// given up stands down, and its disks are compared when replication is resumed or reversed.
    pub(crate) fn name_survivor(
        &self,
        vm: &VmArc,
        survivor: Survivor,
    ) -> Result<Accepted, Rejection> {
        let relation = vm.core().relation.clone().ok_or_else(not_replicated)?;
        let theirs = self.history_of_peer(&relation)?;
        let event = match survivor {
            Survivor::ThisHost => Event::Survive {
                over: theirs.lineage,
                ancestors: theirs.ancestors,
                lineage: random_lineage()?,
            },
            Survivor::OtherHost => Event::Yield { to: theirs.lineage },
        };
        self.step(vm, event).map_err(rejection_of_step)?;
        Ok(Accepted::Completed)
    }

    /// What is given up, or yielded to, has to be known: the other host is asked. One that does
    /// not answer is given up as far as it was heard of.
    fn history_of_peer(&self, relation: &Relation) -> Result<Theirs, Rejection> {
        match self.ask_for_report(relation) {
            Ok(report) => {
                let view = view_of(&report);
                Ok(Theirs {
                    lineage: view.lineage,
                    ancestors: view.ancestors,
                })
            }
            Err(error) => fenced_by(relation.record()).ok_or_else(|| Rejection {
                code: ReturnCode::NotAvailable,
                what: format!(
                    "the other host has to say which history of the VM it holds: {}",
                    with_causes(&error)
                ),
                remedy: "try again when it answers; if it is lost for good, remove the replication here: `lifeboat replication remove`".to_owned(),
            }),
        }
    }
}

fn fenced_by(record: &Record) -> Option<Theirs> {
    match &record.role {
        Role::Primary(Primary::Fenced { by, .. }) => Some(Theirs {
            lineage: *by,
            ancestors: Vec::new(),
        }),
        Role::Primary(_) | Role::Replica(_) => None,
    }
}
