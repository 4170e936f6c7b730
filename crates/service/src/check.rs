//! `check`: would a failover work now, what would stop it, what would be lost.

use lifeboat_model::contract::ReplicationHealth;
use lifeboat_model::relationship::{Operation, PrimaryGuest, Refused, Role};

use crate::api::{CheckFinding, CheckView, LossView, Severity, StartView};
use crate::relation::Relation;
use crate::service::{Service, with_causes};
use crate::vm::VmArc;

impl Service {
    pub(crate) fn check_vm(&self, vm: &VmArc) -> CheckView {
        let relation = vm.core().relation.clone();
        let mut findings = Vec::new();
        let Some(relation) = relation else {
            findings.push(error(
                "the VM is not replicated",
                "enable replication: `lifeboat replication enable`",
            ));
            return view(vm, findings, LossView::default(), StartView::default());
        };
        match &relation.record().role {
            Role::Replica(_) => self.check_replica(vm, &relation, &mut findings),
            Role::Primary(_) => self.check_primary(vm, &relation, &mut findings),
        }
        let health = self.health_of(vm);
        for reason in health.reasons {
            findings.push(CheckFinding {
                severity: if reason.health == ReplicationHealth::Critical {
                    Severity::Error
                } else {
                    Severity::Warning
                },
                what: reason.what,
                remedy: reason.remedy,
            });
        }
        let blocked = matches!(relation.record().role, Role::Replica(_))
            && relation
                .record()
                .refuse_unless(Operation::InitiateFailover)
                .is_err();
        let mut checked = view(vm, findings, health.loss, health.start);
        checked.would_work &= !blocked;
        checked
    }

    fn check_replica(&self, vm: &VmArc, relation: &Relation, findings: &mut Vec<CheckFinding>) {
        if let Err(refused) = relation.record().refuse_unless(Operation::InitiateFailover) {
            findings.push(error(&refused.to_string(), refused.remedy()));
        }
        if vm.store().is_none() {
            findings.push(error(
                "the replica's store is not open",
                "see `lifeboat events` for why it could not be opened",
            ));
        }
        match self.ask_primary(relation) {
            Ok(PrimaryGuest::Running) => findings.push(CheckFinding {
                severity: Severity::Info,
                what: "the VM runs on its primary host, which answers: an unplanned failover would be refused without --force".to_owned(),
                remedy: "stop it there and prepare a planned failover, which loses nothing".to_owned(),
            }),
            Ok(PrimaryGuest::Preparing) => findings.push(CheckFinding {
                severity: Severity::Info,
                what: "the primary host prepares a planned failover: until it is prepared, a failover would be refused without --force".to_owned(),
                remedy: Refused::PrimaryPreparing.remedy().to_owned(),
            }),
            Ok(PrimaryGuest::Off | PrimaryGuest::Unknown | PrimaryGuest::Overruled) => {}
            Err(link) => findings.push(CheckFinding {
                severity: Severity::Info,
                what: format!("the primary host does not say whether the VM runs there: {}", with_causes(&link)),
                remedy: "an unplanned failover is possible; make sure that the VM does not run there".to_owned(),
            }),
        }
    }

    fn check_primary(&self, vm: &VmArc, relation: &Relation, findings: &mut Vec<CheckFinding>) {
        let introduced = self.link(&relation.peer).and_then(|link| link.introduce());
        match introduced {
            Ok(introduction) => {
                if let Some(refusal) = introduction.refusal {
                    findings.push(error(&refusal, "mend that on the replica's host"));
                }
            }
            Err(link) => findings.push(error(
                &format!(
                    "the replica's host cannot be reached: {}",
                    with_causes(&link)
                ),
                "look at the network, and at the daemon there",
            )),
        }
        for disk in &vm.core().definition.settings().disks {
            if !relation.settings.included_disks().includes(&disk.id) {
                findings.push(CheckFinding {
                    severity: Severity::Warning,
                    what: format!(
                        "disk {} is not replicated: the settings leave it out, and a failover starts the VM without it",
                        disk.id
                    ),
                    remedy: "remove replication and enable it with this disk, if it is needed".to_owned(),
                });
            }
        }
    }
}

fn error(what: &str, remedy: &str) -> CheckFinding {
    CheckFinding {
        severity: Severity::Error,
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn view(vm: &VmArc, findings: Vec<CheckFinding>, loss: LossView, start: StartView) -> CheckView {
    CheckView {
        vm: vm.id,
        would_work: findings
            .iter()
            .all(|finding| finding.severity < Severity::Error),
        findings,
        loss,
        start,
    }
}
