//! When each VM's owner wants to be woken.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use lifeboat_model::VmId;

/// Alarms by monotonic time, one a VM.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    alarms: Mutex<Alarms>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Alarms {
    by_time: BTreeSet<(Duration, VmId)>,
    by_vm: HashMap<VmId, Duration>,
    ended: bool,
}

/// What [`Scheduler::next`] waited for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    Due(VmId),
    /// Nothing yet: ask again, time has passed or alarms have changed.
    Again,
    Ended,
}

impl Scheduler {
    /// Sets the VM's alarm, or takes it back.
    pub(crate) fn set(&self, vm: VmId, at: Option<Duration>) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = alarms.by_vm.remove(&vm) {
            alarms.by_time.remove(&(old, vm));
        }
        if let Some(at) = at {
            alarms.by_vm.insert(vm, at);
            alarms.by_time.insert((at, vm));
        }
        self.changed.notify_all();
    }

    /// When the VM's alarm is set to.
    #[cfg(test)]
    fn at(&self, vm: VmId) -> Option<Duration> {
        let alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        alarms.by_vm.get(&vm).copied()
    }

    pub(crate) fn end(&self) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        alarms.ended = true;
        self.changed.notify_all();
    }

    /// Waits for the next alarm until it is due by `now`, and no longer than `longest`.
    pub(crate) fn next(&self, now: Duration, longest: Duration) -> Alarm {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.ended {
            return Alarm::Ended;
        }
        match alarms.by_time.first().copied() {
            Some((at, vm)) if at <= now => {
                alarms.by_time.remove(&(at, vm));
                alarms.by_vm.remove(&vm);
                Alarm::Due(vm)
            }
            next => {
                let wait = next.map_or(longest, |(at, _)| longest.min(at - now));
                let _ = self
                    .changed
                    .wait_timeout(alarms, wait)
                    .unwrap_or_else(PoisonError::into_inner);
                Alarm::Again
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(n: u8) -> VmId {
        VmId::from_bytes([n; 16])
    }

    #[test]
    fn alarms_come_in_the_order_of_their_times_and_once() {
        let scheduler = Scheduler::default();
        let at = Duration::from_secs;
        scheduler.set(vm(1), Some(at(30)));
        scheduler.set(vm(2), Some(at(10)));
        scheduler.set(vm(3), Some(at(20)));
        scheduler.set(vm(1), Some(at(5)));
        scheduler.set(vm(3), None);
        assert_eq!(scheduler.at(vm(1)), Some(at(5)));
        assert_eq!(scheduler.next(at(100), Duration::MAX), Alarm::Due(vm(1)));
        assert_eq!(scheduler.next(at(100), Duration::MAX), Alarm::Due(vm(2)));
        assert_eq!(scheduler.at(vm(1)), None);
        scheduler.end();
        assert_eq!(scheduler.next(at(100), Duration::MAX), Alarm::Ended);
    }

    #[test]
    fn an_alarm_is_not_due_before_its_time() {
        let scheduler = Scheduler::default();
        scheduler.set(vm(1), Some(Duration::from_millis(1)));
        assert_eq!(scheduler.next(Duration::ZERO, Duration::MAX), Alarm::Again);
        assert_eq!(scheduler.at(vm(1)), Some(Duration::from_millis(1)));
    }
}
