//! The talk with the replica: what it holds, and whether the primary may go on.

use std::time::Duration;

use lifeboat_model::Sequence;
use lifeboat_model::relationship::{Event, Primary, Record, ReplicaView, Role};
use lifeboat_peer::{
    LinkError, PlannedFailover, PlannedPhase, RefusalCode, ReplicaReport, ReplicaRole,
    SessionRequest,
};

use crate::api::StartView;
use crate::relation::Relation;
use crate::service::Service;
use crate::vm::VmArc;

/// A replica's backlog is looked at as often as this while changes flow.
const REPORT_AGE: Duration = Duration::from_secs(60);

impl Service {
    /// Asks the replica what it holds; before any capture, and after whatever went wrong.
    pub(crate) fn open_session(&self, vm: &VmArc) {
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        match self.ask_for_report(&relation) {
            Ok(report) => {
                let is_refused = std::mem::take(&mut vm.core().facts.is_refused);
                if !is_refused {
                    self.note_success(vm);
                }
                self.note_report(vm, &report);
                // The peer may have taken over since it was asked, and this side may know.
                let view = view_of(&report);
                let standing = |record: &Record| Event::Session(record.standing(&view));
                if let Err(error) = self.step_by(vm, standing, |_| {}) {
                    self.report_unsaved(vm, &error);
                    return;
                }
                let mut core = vm.core();
                // What was held up goes on at once, unless it was refused. A side that is fenced has
                // nothing to send, and asks again when it is its turn.
                let goes_on = core.relation().is_some_and(has_something_to_send);
                core.facts.wanted |= goes_on && !is_refused;
            }
            Err(error) => self.note_link_error(vm, "ask the replica what it holds", &error),
        }
    }

    pub(crate) fn ask_for_report(&self, relation: &Relation) -> Result<ReplicaReport, LinkError> {
        let record = relation.record();
        self.link(&relation.peer)?.begin_session(SessionRequest {
            relationship: record.relationship,
            lineage: record.lineage,
            ancestors: record.ancestors.clone(),
            last_receipt: relation.last_receipt(),
            wall_clock: self.now(),
        })
    }

    /// Asks how the replica is doing, if it has not said so for a while: receipts do not tell.
    pub(crate) fn refresh_report(&self, vm: &VmArc) {
        let (relation, asked) = {
            let core = vm.core();
            (core.relation.clone(), core.facts.peer_asked)
        };
        let now = self.inner.clock.monotonic();
        let is_fresh = asked.is_some_and(|asked| now.saturating_sub(asked) < REPORT_AGE);
        let Some(relation) = relation.filter(|_| !is_fresh) else {
            return;
        };
        // What goes wrong here goes wrong with the next cycle, too, and is told then.
        if let Ok(report) = self.ask_for_report(&relation) {
            self.note_report(vm, &report);
        }
    }

    fn note_report(&self, vm: &VmArc, report: &ReplicaReport) {
        let now = self.now().as_micros();
        let theirs = report.wall_clock.as_micros();
        let mut core = vm.core();
        core.facts.peer_start = StartView {
            backlog_bytes: report.backlog_bytes,
            seconds: report.start_seconds,
        };
        core.facts.peer_asked = Some(self.inner.clock.monotonic());
        core.facts.peer_refusal.clone_from(&report.refusal);
        core.facts.peer_clock_offset_micros =
            i64::try_from(i128::from(theirs) - i128::from(now)).ok();
    }

    /// Tells the replica that the last moment of a planned failover is with it.
    pub(crate) fn announce_prepared(&self, vm: &VmArc, sequence: Sequence) {
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        match self.say_planned(&relation, sequence, PlannedPhase::Prepared) {
            Ok(()) => self.note_success(vm),
            // It has failed over already, or does not answer: the session tells which.
            Err(error) => {
                self.note_link_error(vm, "tell the replica of the planned failover", &error);
            }
        }
    }

    pub(crate) fn ask_to_go_on(&self, vm: &VmArc, sequence: Sequence) {
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        match self.say_planned(&relation, sequence, PlannedPhase::Cancelled) {
            Ok(()) => {
                self.note_success(vm);
                self.tell(vm, Event::CancelGranted);
            }
            Err(LinkError::Refused(refusal))
                if refusal.code == RefusalCode::OtherLineage
                    || refusal.code == RefusalCode::InvalidState =>
            {
                self.open_session(vm);
            }
            Err(error) => self.note_link_error(vm, "ask the replica to go on", &error),
        }
    }

    fn say_planned(
        &self,
        relation: &Relation,
        sequence: Sequence,
        phase: PlannedPhase,
    ) -> Result<(), LinkError> {
        self.link(&relation.peer)?
            .planned_failover(PlannedFailover {
                relationship: relation.record().relationship,
                lineage: relation.record().lineage.id,
                sequence,
                phase,
            })
    }
}

/// Whether a cycle or a copy follows a session that went well.
fn has_something_to_send(relation: &Relation) -> bool {
    match &relation.record().role {
        Role::Primary(primary) => match primary {
            Primary::Replicating { .. }
            | Primary::Preparing { .. }
            | Primary::Copying(_)
            | Primary::Resyncing(_) => true,
            Primary::Ready { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. } => false,
        },
        Role::Replica(_) => false,
    }
}

pub(crate) fn view_of(report: &ReplicaReport) -> ReplicaView {
    ReplicaView {
        lineage: report.lineage,
        ancestors: report.ancestors.clone(),
        has_taken_over: match report.role {
            ReplicaRole::Replica => false,
            ReplicaRole::FailedOver | ReplicaRole::Committed | ReplicaRole::Primary => true,
        },
        tip: report.tip.map(|tip| (tip.sequence, tip.id)),
        copy: report.copy.as_ref().map(|copy| copy.copy),
    }
}
