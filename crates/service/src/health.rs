//! How a relationship is doing, why, and what it means for a failover now.

use std::time::Duration;

use lifeboat_hypervisor::Tracking;
use lifeboat_model::Timestamp;
use lifeboat_model::contract::{ReplicationHealth, ReplicationMode, ReplicationState};
use lifeboat_model::health::{
    self, Backlog, Catalog, Direction, Facts, Reserve, Space, Verification,
};
use lifeboat_model::relationship::{
    CriticalCause, Primary, ReplicaPhase, Report, ResyncCause, Role, VmPower,
};

use crate::api::{HealthReason, HealthView, LossView, Severity, StartView};
use crate::failover::FailoverTrouble;
use crate::relation::Relation;
use crate::service::{Service, lock};
use crate::vm::{Trouble, Vm, VmArc};

impl Service {
    pub(crate) fn health_of(&self, vm: &VmArc) -> HealthView {
        let relation = vm.core().relation.clone();
        let Some(relation) = relation else {
            return HealthView {
                vm: vm.id,
                health: ReplicationHealth::NotApplicable,
                reasons: Vec::new(),
                loss: LossView::default(),
                start: StartView::default(),
                free_bytes: None,
            };
        };
        let assessed = self.assess(vm, &relation);
        let is_running = self.power(vm) == VmPower::Running;
        HealthView {
            vm: vm.id,
            health: assessed.value,
            reasons: assessed
                .reasons
                .iter()
                .map(|reason| HealthReason {
                    kind: reason.kind(),
                    health: reason.health(),
                    what: reason.to_string(),
                    remedy: remedy_of(&relation, reason, is_running).to_owned(),
                })
                .collect(),
            loss: self.loss_of(vm, &relation),
            start: self.start_of(vm),
            free_bytes: vm.store_facts().status.map(|status| status.available_bytes),
        }
    }

    pub(crate) fn health_value(&self, vm: &Vm) -> ReplicationHealth {
        let relation = vm.core().relation.clone();
        relation.map_or(ReplicationHealth::NotApplicable, |relation| {
            self.assess(vm, &relation).value
        })
    }

    fn assess(&self, vm: &Vm, relation: &Relation) -> health::Health {
        let record = relation.record();
        let (trouble, offset) = {
            let core = vm.core();
            (
                core.facts.trouble.clone(),
                core.facts.peer_clock_offset_micros,
            )
        };
        let status = vm.store_facts().status;
        let statistics = self.statistics_of(vm);
        let now = self.now();
        let is_primary = relation.is_primary();
        let facts = Facts {
            now,
            mode: record.mode(),
            state: record.state(),
            direction: if is_primary {
                Direction::Sends
            } else {
                Direction::Receives
            },
            statistics: &statistics,
            last_exchange: relation.saved.last.replicated_at,
            cannot_send: cannot_send(relation, trouble.as_ref()),
            unfinished: unfinished(relation, trouble.as_ref())
                .or_else(|| self.failed_under_guest(vm, relation)),
            cause: cause_of(relation, trouble.as_ref()),
            catalog: if self.inner.ledger.is_stopped() {
                Catalog::Stopped
            } else {
                Catalog::Usable
            },
            verification: verification_of(relation, status.as_ref()),
            space: status.as_ref().map(|status| Space {
                free: status.available_bytes,
                total: status.available_bytes
                    + status
                        .disks
                        .iter()
                        .map(|disk| disk.head_bytes + disk.segment_bytes)
                        .sum::<u64>(),
            }),
            reserve: match &status {
                Some(status)
                    if status.reserved_bytes < status.needed_reserve_bytes
                        && record.mode() == ReplicationMode::Replica
                        && record.state() == ReplicationState::Replicating =>
                {
                    Reserve::Missing {
                        bytes: status.needed_reserve_bytes - status.reserved_bytes,
                    }
                }
                Some(_) | None => Reserve::Held,
            },
            clocks: offset.map(|offset| {
                let theirs = i128::from(now.as_micros()) + i128::from(offset);
                let theirs = u64::try_from(theirs.max(0)).unwrap_or(u64::MAX);
                (Timestamp::from_micros(theirs), now)
            }),
            certificate_expires: lock(&self.inner.standing).certificate_expires_at,
            backlog: self.backlog_of(vm, relation),
        };
        health::assess(&facts)
    }

    /// What keeps a failover from being committed or reverted: its store has failed, and cannot be
    /// opened again while a guest runs on its disks.
    fn failed_under_guest(&self, vm: &Vm, relation: &Relation) -> Option<String> {
        let is_failed_over = match &relation.record().role {
            Role::Replica(replica) => matches!(replica.phase, ReplicaPhase::FailedOver { .. }),
            Role::Primary(_) => false,
        };
        let is_stuck =
            is_failed_over && vm.store_facts().has_failed && self.power(vm) == VmPower::Running;
        is_stuck.then(|| FailoverTrouble::GuestOnDisks.to_string())
    }

    fn backlog_of(&self, vm: &Vm, relation: &Relation) -> Option<Backlog> {
        let facts = vm.store_facts();
        let status = facts.status.as_ref()?;
        let waiting: u64 = status.pending.iter().map(|pending| pending.bytes).sum();
        let micros = u128::from(waiting) * 1_000_000 / u128::from(facts.speed_or_default());
        Some(Backlog {
            // To the microsecond: what is too much to take more of is too long here, too.
            estimate: Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)),
            limit: relation.settings.apply_backlog_limit(),
        })
    }

    /// What a failover now would lose.
    pub(crate) fn loss_of(&self, vm: &Vm, relation: &Relation) -> LossView {
        let since = relation
            .saved
            .last
            .captured_at
            .map(|at| self.now().as_micros().saturating_sub(at.as_micros()) / 1_000_000);
        match &relation.record().role {
            Role::Primary(Primary::Prepared { .. }) => LossView {
                seconds: Some(0),
                bytes: Some(0),
            },
            Role::Primary(_) => LossView {
                seconds: since,
                bytes: self.unsent_bytes(vm),
            },
            Role::Replica(replica) if replica.prepared.is_some() => LossView {
                seconds: Some(0),
                bytes: Some(0),
            },
            Role::Replica(_) => LossView {
                seconds: since,
                bytes: None,
            },
        }
    }

    /// What no receipt covers; nothing where changes may have been missed.
    fn unsent_bytes(&self, vm: &Vm) -> Option<u64> {
        match self.inner.hypervisor.tracking(vm.id) {
            Ok(Tracking::Since { .. }) => self.inner.hypervisor.dirty_bytes(vm.id).ok(),
            Ok(Tracking::Off | Tracking::Unknown { .. }) | Err(_) => None,
        }
    }

    /// What waits to be sent. A replica sends nothing.
    pub(crate) fn pending_bytes(&self, vm: &Vm) -> Option<u64> {
        let relation = vm.core().relation.clone()?;
        if relation.is_primary() {
            self.loss_of(vm, &relation).bytes
        } else {
            Some(0)
        }
    }

    /// How long a start of the newest moment would take, on whichever host has the replica.
    pub(crate) fn start_of(&self, vm: &Vm) -> StartView {
        let core = vm.core();
        let is_primary = core.relation().is_some_and(Relation::is_primary);
        let told = core.facts.peer_start;
        drop(core);
        if is_primary {
            told
        } else {
            self.start_of_replica(vm)
        }
    }

    /// As the replica kept here has it.
    pub(crate) fn start_of_replica(&self, vm: &Vm) -> StartView {
        let facts = vm.store_facts();
        let Some(status) = &facts.status else {
            return StartView::default();
        };
        let backlog_bytes: u64 = status.pending.iter().map(|pending| pending.bytes).sum();
        StartView {
            backlog_bytes,
            seconds: facts.seconds_to_start(backlog_bytes),
        }
    }
}

/// Whether more than maps says that the two sides are equal.
fn verification_of(relation: &Relation, status: Option<&lifeboat_store::Status>) -> Verification {
    let is_verified = match relation.record().role {
        Role::Primary(_) => relation.saved.verifying.is_none(),
        Role::Replica(_) => status.is_none_or(|status| status.verified),
    };
    if is_verified {
        Verification::Verified
    } else {
        Verification::Unverified
    }
}

/// What to do: where the histories have parted, an operator has to say which one is kept.
fn remedy_of(relation: &Relation, reason: &health::HealthReason, is_running: bool) -> &'static str {
    let is_error = matches!(reason, health::HealthReason::ReplicationError { .. });
    match &relation.record().role {
        Role::Primary(Primary::Fenced { .. }) if is_error && is_running => {
            "The VM still runs here, and what it writes reaches nobody: stop it (`lifeboat vm stop`), use it on the other host and reverse replication there. If this host's history is the one to keep: `lifeboat failover survivor --this-host`."
        }
        Role::Primary(Primary::Fenced { .. }) if is_error => {
            "Use the VM on the other host and reverse replication there. If this host's history is the one to keep: `lifeboat failover survivor --this-host`."
        }
        Role::Primary(Primary::Critical {
            cause: CriticalCause::SplitBrain { .. },
            ..
        }) if is_error => {
            "Compare what the VM holds on both hosts, then name the one whose history is kept: `lifeboat failover survivor`."
        }
        Role::Primary(Primary::Critical {
            cause: CriticalCause::ReplicaGone,
            ..
        }) if is_error => {
            "If the other host has lost its catalog, mend that there (`lifeboat catalog rebuild`). If the replica was removed there: `lifeboat replication remove` here, then enable it again."
        }
        Role::Primary(_) | Role::Replica(_) => reason.remedy(),
    }
}

fn cannot_send(relation: &Relation, trouble: Option<&Trouble>) -> Option<String> {
    let is_sending = match &relation.record().role {
        Role::Primary(
            Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Copying(_)
            | Primary::Resyncing(_),
        ) => true,
        Role::Primary(_) | Role::Replica(_) => false,
    };
    trouble
        .filter(|_| is_sending)
        .map(|trouble| trouble.what.clone())
}

/// Why a copy, a failover, its end or a reversal under way does not come to its end.
fn unfinished(relation: &Relation, trouble: Option<&Trouble>) -> Option<String> {
    let is_under_way = match &relation.record().role {
        Role::Replica(replica) => match replica.phase {
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. }
            | ReplicaPhase::Reversing { .. } => true,
            ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Committed { .. } => false,
        },
        Role::Primary(_) => false,
    };
    trouble
        .filter(|_| is_under_way)
        .map(|trouble| trouble.what.clone())
}

fn cause_of(relation: &Relation, trouble: Option<&Trouble>) -> Option<String> {
    let detail = trouble.map(|trouble| trouble.what.as_str());
    match &relation.record().role {
        Role::Primary(Primary::Critical { cause, .. }) => {
            Some(with_detail(critical(*cause), detail))
        }
        Role::Primary(Primary::Fenced { by, .. }) => Some(format!(
            "the replica has taken over (lineage {} of {}); this host does not start the VM any more",
            by.counter, by.id
        )),
        Role::Primary(Primary::ResyncRequired { cause, .. }) => {
            Some(with_detail(resync(*cause), detail))
        }
        Role::Primary(_) => None,
        Role::Replica(_) => detail.map(str::to_owned),
    }
}

fn with_detail(text: &str, detail: Option<&str>) -> String {
    match detail {
        Some(detail) => format!("{text} ({detail})"),
        None => text.to_owned(),
    }
}

pub(crate) const fn critical(cause: CriticalCause) -> &'static str {
    match cause {
        CriticalCause::Unreachable => "the replica's host does not answer",
        CriticalCause::NotAuthorized => "the replica's host does not let this one in",
        CriticalCause::ReplicaGone => "the replica's host knows nothing of this relationship",
        CriticalCause::ReplicaRefuses => "the replica's host refuses",
        CriticalCause::LocalStorage => "the disks or the send-spool of this host fail",
        CriticalCause::SplitBrain { .. } => {
            "both sides have gone on from the same moment (split brain); an operator must say which one survives"
        }
        CriticalCause::WentOnAlone => {
            "the VM went on here without the replica's word; when replication is resumed, both sides are compared"
        }
    }
}

pub(crate) const fn resync(cause: ResyncCause) -> &'static str {
    match cause {
        ResyncCause::TrackingLost => "changes of the disks may have been missed",
        ResyncCause::ReplicaRolledBack => "the replica holds less than it gave receipts for",
        ResyncCause::UnknownMoments => "the replica holds moments that this host does not know",
        ResyncCause::CopyUnfinished => "a copy of whole disks to the replica was not finished",
        ResyncCause::ReplicaDamaged => "the replica's store is damaged",
        ResyncCause::Differs => "the replica was found to differ where it must not",
        ResyncCause::Requested => "an operator asked for it",
        ResyncCause::Reversed => "the roles were swapped",
    }
}

/// A report in words: severity, kind, message.
pub(crate) fn describe_report(name: &str, report: &Report) -> (Severity, &'static str, String) {
    match report {
        Report::ResyncRequired(cause) => (
            Severity::Error,
            "resync_required",
            format!(
                "{name}: a resynchronization is required: {}",
                resync(*cause)
            ),
        ),
        Report::Critical(cause) => (
            Severity::Error,
            "replication_critical",
            format!("{name}: replication is critical: {}", critical(*cause)),
        ),
        Report::Fenced { by } => (
            Severity::Error,
            "fenced",
            format!(
                "{name}: the replica has taken over (lineage {} of {}); this host stands down",
                by.counter, by.id
            ),
        ),
        Report::SplitBrain { theirs } => (
            Severity::Error,
            "split_brain",
            format!(
                "{name}: split brain: the other side goes on with lineage {} of {}, which is no descendant of this one's; nothing is overwritten",
                theirs.counter, theirs.id
            ),
        ),
    }
}
