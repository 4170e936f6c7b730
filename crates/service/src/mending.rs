//! A catalog whose write failed takes changes again, and what could not be saved is done again.
//!
//! Nothing was acted upon that could not be saved, so what this host knows and what its catalog
//! has are the same still; a VM whose event was lost goes on as it would after a restart, with its
//! guest running and its disks open. The same finds an event that was lost by a panic.

use std::time::Duration;

use crate::api::Severity;
use crate::service::{Service, with_causes};
use crate::vm::{Vm, VmArc};

/// How often it is tried.
pub(crate) const MENDED_AGAIN: Duration = Duration::from_secs(10);

/// When mending was tried last, by the monotonic clock; nothing while there is nothing to mend.
#[derive(Debug, Default)]
pub(crate) struct Mending {
    tried: Option<Duration>,
}

impl Mending {
    /// Whether it is time to try. What has failed just now is left alone for as long as between
    /// two tries.
    fn is_due(&mut self, is_stopped: bool, now: Duration) -> bool {
        if !is_stopped {
            self.tried = None;
            return false;
        }
        let last = *self.tried.get_or_insert(now);
        let is_due = now.saturating_sub(last) >= MENDED_AGAIN;
        if is_due {
            self.tried = Some(now);
        }
        is_due
    }
}

impl Service {
    pub(crate) fn mend_catalog_when_due(&self, mending: &mut Mending) {
        let now = self.inner.clock.monotonic();
        if mending.is_due(self.inner.ledger.is_stopped(), now) {
            self.mend_catalog();
        }
    }

    /// Answers whether the catalog takes changes.
    pub(crate) fn mend_catalog(&self) -> bool {
        match self.inner.ledger.mend() {
            Ok(true) => {
                self.go_on_after_mending();
                true
            }
            Ok(false) => true,
            Err(error) => {
                let why = with_causes(&error);
                tracing::warn!("the catalog takes no changes still: {why}; it is tried again");
                false
            }
        }
    }

    fn go_on_after_mending(&self) {
        let now = self.inner.clock.monotonic();
        for vm in self.all_vms() {
            self.save_unsaved_stop(&vm);
            let mut core = vm.core();
            core.facts.lost_event = core.facts.lost_event.map(|_| now);
            drop(core);
            self.set_alarm(&vm);
        }
        let message = "the catalog takes changes again; what could not be saved is done again";
        self.report(None, Severity::Info, "catalog_mended", message);
    }

    pub(crate) fn look_for_lost_event_later(&self, vm: &Vm) {
        let later = self.inner.clock.monotonic() + MENDED_AGAIN;
        vm.core().facts.lost_event = Some(later);
    }

    /// Goes on as after a restart with a VM of which an event is lost, once it can be saved what
    /// follows and nothing is under way.
    pub(crate) fn find_lost_event(&self, vm: &VmArc) {
        if self.inner.ledger.is_stopped() {
            self.look_for_lost_event_later(vm);
            self.set_alarm(vm);
        } else if vm.is_free() {
            vm.core().facts.lost_event = None;
            self.go_on(vm);
        } else {
            self.wake_soon(vm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mending_is_tried_a_while_after_the_failure_and_then_now_and_then() {
        let at = Duration::from_secs;
        let mut mending = Mending::default();
        assert!(!mending.is_due(false, at(100)));
        assert!(!mending.is_due(true, at(200)));
        assert!(!mending.is_due(true, at(209)));
        assert!(mending.is_due(true, at(210)));
        assert!(!mending.is_due(true, at(211)));
        assert!(mending.is_due(true, at(220)));
        assert!(!mending.is_due(false, at(221)));
        assert!(!mending.is_due(true, at(222)), "another failure");
    }
}
