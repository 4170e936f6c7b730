//! What a VM's worker does with each task.

use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{CriticalCause, Effect, Event, ResyncCause};
use lifeboat_peer::{LinkError, RefusalCode};

use crate::activity::Stop;
use crate::service::{Service, with_causes};
use crate::vm::{Task, Trouble, Vm, VmArc};

impl Service {
    pub(crate) fn run_task(&self, vm: &VmArc, task: Task, stop: &Stop) {
        match task {
            Task::Apply => self.apply_received(vm),
            Task::Verify => self.verify_on(vm, stop),
            Task::Note => self.note_beside_store(vm),
            Task::Effect(effect) => self.run_effect(vm, &effect, stop),
        }
    }

    fn run_effect(&self, vm: &VmArc, effect: &Effect, stop: &Stop) {
        match *effect {
            Effect::OpenSession => self.open_session(vm),
            Effect::StartTracking { moment } => self.start_tracking(vm, moment),
            Effect::StopTracking => self.stop_tracking(vm),
            Effect::Copy { copy, purpose } => self.copy_disks(vm, copy, purpose, stop),
            Effect::Capture {
                sequence,
                base,
                planned,
            } => self.capture_moment(vm, sequence, base, planned, stop),
            Effect::Send {
                sequence,
                id,
                planned,
            } => self.send_delta(vm, sequence, id, planned, stop),
            Effect::Forget { receipt } => self.forget(vm, receipt),
            Effect::DropSpool { sequence } => self.drop_spooled(vm, sequence),
            // Done when it was taken in.
            Effect::StopWork | Effect::Report(_) => {}
            Effect::AnnouncePrepared { sequence } => self.announce_prepared(vm, sequence),
            Effect::AskToGoOn { sequence } => self.ask_to_go_on(vm, sequence),
            Effect::FailOverStore { point, lineage } => self.fail_over_store(vm, point, lineage),
            Effect::RevertStore => self.revert_store(vm),
            Effect::CommitStore => self.commit_store(vm),
            Effect::AnnounceTakeOver => self.announce_take_over(vm),
            Effect::AskAdoption => self.ask_adoption(vm),
            // Of a second hop's record, which this service does not make.
            Effect::PassOnTakeOver => self.note_trouble(
                vm,
                ReturnCode::NotSupported,
                "pass on a take-over: extended replication is not supported".to_owned(),
            ),
        }
    }

    /// Notes what went wrong, for people; it goes when something succeeds.
    pub(crate) fn note_trouble(&self, vm: &Vm, code: ReturnCode, what: String) {
        tracing::warn!(vm = %vm.id, "{what}");
        let at = self.now();
        let mut core = vm.core();
        core.facts.failures = core.facts.failures.saturating_add(1);
        core.facts.trouble = Some(Trouble { code, what, at });
    }

    pub(crate) fn note_success(&self, vm: &VmArc) {
        let mut core = vm.core();
        core.facts.failures = 0;
        core.facts.trouble = None;
        core.facts.peer_refusal = None;
    }

    /// What a failed call to the peer means for the relationship.
    pub(crate) fn note_link_error(&self, vm: &VmArc, doing: &str, error: &LinkError) {
        let what = format!("{doing}: {}", with_causes(error));
        match error {
            LinkError::Cancelled => {}
            LinkError::Refused(refusal) => {
                self.note_trouble(vm, return_code(refusal.code), what);
                match refusal.code {
                    RefusalCode::NotAuthorized => {
                        self.tell(vm, Event::Failed(CriticalCause::NotAuthorized));
                    }
                    RefusalCode::NotFound => {
                        self.tell(vm, Event::Failed(CriticalCause::ReplicaGone));
                    }
                    RefusalCode::NotContinuous => {
                        self.tell(vm, Event::NeedsResync(ResyncCause::UnknownMoments));
                    }
                    // The session tells how the two sides stand.
                    RefusalCode::OtherLineage | RefusalCode::InvalidState => {
                        vm.core().facts.is_refused = true;
                        self.work_on(vm, [Task::Effect(Effect::OpenSession)]);
                    }
                    RefusalCode::Invalid | RefusalCode::Failed | RefusalCode::Version => {
                        if self.has_lost_patience(vm) {
                            self.tell(vm, Event::Failed(CriticalCause::ReplicaRefuses));
                        }
                    }
                    RefusalCode::Full | RefusalCode::Busy => {
                        vm.core().facts.peer_refusal = Some(refusal.message.clone());
                    }
                }
            }
            LinkError::NotTrusted { .. } => {
                self.note_trouble(vm, ReturnCode::AccessDenied, what);
                self.tell(vm, Event::Failed(CriticalCause::NotAuthorized));
            }
            LinkError::HostName { .. } | LinkError::Unsendable { .. } | LinkError::Source(_) => {
                self.note_trouble(vm, ReturnCode::Failed, what);
            }
            LinkError::Unreachable { .. }
            | LinkError::Interrupted { .. }
            | LinkError::TimedOut { .. }
            | LinkError::Protocol { .. } => {
                self.note_trouble(vm, ReturnCode::NotAvailable, what);
                self.count_network_failure(vm);
                if self.has_lost_patience(vm) {
                    self.tell(vm, Event::Failed(CriticalCause::Unreachable));
                }
            }
        }
    }

    /// After as many failures in a row as there are short retries.
    fn has_lost_patience(&self, vm: &VmArc) -> bool {
        vm.core().facts.failures as usize > lifeboat_model::schedule::RETRY_MINUTES.len()
    }
}

/// A peer's no, as a number of the contract.
pub(crate) const fn return_code(code: RefusalCode) -> ReturnCode {
    match code {
        RefusalCode::NotAuthorized => ReturnCode::AccessDenied,
        RefusalCode::NotFound => ReturnCode::NotAvailable,
        RefusalCode::InvalidState | RefusalCode::OtherLineage | RefusalCode::NotContinuous => {
            ReturnCode::InvalidState
        }
        RefusalCode::Invalid => ReturnCode::InvalidParameter,
        RefusalCode::Full | RefusalCode::Failed => ReturnCode::Failed,
        RefusalCode::Busy => ReturnCode::InUse,
        RefusalCode::Version => ReturnCode::NotSupported,
    }
}
