//! When a VM's owner is woken, and what it does then.

use std::time::Duration;

use lifeboat_model::relationship::{Cycle, Event, Primary, ReplicaPhase, Role, Work};
use lifeboat_model::schedule::{CycleSchedule, Retry, StartAt, automatic_resynchronization};
use lifeboat_model::settings::ReplicationInterval;

use crate::relation::Relation;
use crate::service::Service;
use crate::vm::{Core, Facts, Vm, VmArc};

/// Nothing is looked at less often than this: clocks jump, windows open.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How often a replica tries to apply what it could not, once it has failed for a while.
const APPLIED_AGAIN: Duration = Duration::from_secs(60);

/// How often a failover, its end or a reversal under way is tried, once it has failed for a while.
const FINISHED_AGAIN: Duration = Duration::from_secs(10);

/// How often a peer that does not answer is asked whether it is there again.
const PROBE: Duration = Duration::from_secs(30);

impl Service {
    /// Sets the VM's alarm to when something is due.
    pub(crate) fn set_alarm(&self, vm: &Vm) {
        let at = self.next_due(&vm.core());
        self.inner.scheduler.set(vm.id, at);
    }

    fn next_due(&self, core: &Core) -> Option<Duration> {
        let relation = core.relation()?;
        let now = self.inner.clock.monotonic();
        // Until then the record may say that something is under way.
        if core.facts.lost_event.is_some() {
            return core.facts.lost_event;
        }
        match &relation.record().role {
            Role::Primary(primary) => self.primary_due(primary, relation, &core.facts, now),
            Role::Replica(replica) => {
                replica_due(&replica.phase, core.facts.failures).map(|wait| now + wait)
            }
        }
    }

    fn primary_due(
        &self,
        primary: &Primary,
        relation: &Relation,
        facts: &Facts,
        now: Duration,
    ) -> Option<Duration> {
        let retry = || {
            let wait = retry_of(facts).wait();
            // A peer that comes back is found sooner than its turn.
            now + wait.min(probe_interval(relation.settings.replication_interval()))
        };
        match primary {
            Primary::Replicating {
                cycle: Cycle::Idle, ..
            } if facts.failures == 0 => Some(self.next_cycle(relation, facts, now)),
            Primary::Replicating {
                cycle: Cycle::Idle | Cycle::Sending { .. },
                ..
            }
            | Primary::Preparing {
                cycle: Cycle::Idle | Cycle::Sending { .. },
                ..
            } if facts.wanted && facts.failures == 0 => Some(now),
            Primary::Replicating { .. } | Primary::Preparing { .. } => {
                Some(if facts.wanted { now } else { retry() })
            }
            // The peer may answer and the trouble last: nothing has failed then.
            Primary::AskingToGoOn { .. } | Primary::Critical { .. } => Some(if facts.wanted {
                now
            } else {
                now + probe_interval(relation.settings.replication_interval())
            }),
            Primary::Copying(copying) | Primary::Resyncing(copying) => match copying.work {
                Work::Closing(Cycle::Idle) if facts.failures == 0 => Some(now),
                Work::Chunks | Work::Closing(_) => {
                    (facts.failures > 0).then(|| if facts.wanted { now } else { retry() })
                }
            },
            Primary::Prepared { .. } => {
                (facts.failures > 0).then(|| if facts.wanted { now } else { retry() })
            }
            Primary::Ready { start: Some(start) } => Some(now + self.until(start.at)),
            Primary::ResyncRequired { at: Some(at), .. } => Some(now + self.until(*at)),
            Primary::ResyncRequired { at: None, .. } => Some(if facts.wanted {
                now
            } else {
                now + LONGEST_SLEEP / 60
            }),
            Primary::Ready { start: None }
            | Primary::Suspended { .. }
            | Primary::ResyncSuspended(_) => None,
            // Whether the take-over was given up is asked for now and then.
            Primary::Fenced { .. } => Some(if facts.wanted { now } else { now + PROBE }),
        }
    }

    /// Counts the cycles that were due while one ran.
    pub(crate) fn count_skipped(&self, vm: &Vm) {
        let skipped = {
            let core = vm.core();
            match (core.relation(), core.facts.cycle_began) {
                (Some(relation), Some(began)) => {
                    let now = self.inner.clock.monotonic();
                    schedule_of(relation).after_cycle(began, now).missed
                }
                (None, _) | (_, None) => 0,
            }
        };
        if skipped > 0 {
            self.count_missed(vm, skipped);
        }
    }

    fn next_cycle(&self, relation: &Relation, facts: &Facts, now: Duration) -> Duration {
        if facts.wanted {
            return now;
        }
        let schedule = schedule_of(relation);
        match facts.cycle_began {
            Some(began) => schedule.after_cycle(began, now).at,
            None => now,
        }
    }

    fn until(&self, at: lifeboat_model::Timestamp) -> Duration {
        let micros = at.as_micros().saturating_sub(self.now().as_micros());
        Duration::from_micros(micros).min(LONGEST_SLEEP)
    }

    /// The alarm has rung.
    pub(crate) fn wake(&self, vm: &VmArc) {
        if vm.core().facts.lost_event.is_some() {
            self.find_lost_event(vm);
            return;
        }
        let (role, settings) = {
            let mut core = vm.core();
            // A wish that comes while something is under way is for what follows it.
            core.facts.wanted &= !vm.is_free();
            let Some(relation) = core.relation() else {
                return;
            };
            (relation.record().role.clone(), relation.settings.clone())
        };
        match &role {
            Role::Primary(Primary::ResyncRequired { at: None, .. }) => {
                let start = automatic_resynchronization(
                    &settings,
                    self.now(),
                    self.inner.clock.utc_offset(),
                );
                match start {
                    Some(StartAt::Now) => self.tell(vm, Event::Resynchronize { at: None }),
                    Some(StartAt::At(at)) => {
                        self.tell(vm, Event::Resynchronize { at: Some(at) });
                    }
                    None => {
                        // Nothing follows from the wish for a cycle.
                        vm.core().facts.wanted = false;
                        self.set_alarm(vm);
                    }
                }
            }
            Role::Replica(replica) if replica.receives() => {
                self.apply_soon(vm);
                self.set_alarm(vm);
            }
            Role::Primary(_) | Role::Replica(_) => {
                if !vm.is_free() {
                    self.wake_soon(vm);
                    return;
                }
                self.tell(vm, Event::Due);
            }
        }
    }

    /// What is under way goes on; what it leaves is looked at when it ends.
    pub(crate) fn wake_soon(&self, vm: &Vm) {
        let again = self.inner.clock.monotonic() + Duration::from_secs(1);
        self.inner.scheduler.set(vm.id, Some(again));
    }
}

/// How soon a replica looks at what did not succeed.
fn replica_due(phase: &ReplicaPhase, failures: u32) -> Option<Duration> {
    match phase {
        ReplicaPhase::Critical(_) => Some(own_retry(failures, APPLIED_AGAIN)),
        ReplicaPhase::WaitingInitial | ReplicaPhase::Replicating | ReplicaPhase::Resyncing => {
            (failures > 0).then(|| own_retry(failures, APPLIED_AGAIN))
        }
        ReplicaPhase::FailingOver(_)
        | ReplicaPhase::Reverting { .. }
        | ReplicaPhase::Committing { .. }
        | ReplicaPhase::Reversing { .. } => Some(own_retry(failures, FINISHED_AGAIN)),
        ReplicaPhase::Suspended
        | ReplicaPhase::FailedOver { .. }
        | ReplicaPhase::Committed { .. } => None,
    }
}

/// How long to wait after failures that concern nobody but this host: a second, and then twice as
/// long each time. What failed once seldom fails again.
fn own_retry(failures: u32, most: Duration) -> Duration {
    match failures.checked_sub(1) {
        Some(doublings) => Duration::from_secs(1 << doublings.min(16)).min(most),
        None => most,
    }
}

/// The cycles of a relationship.
pub(crate) fn schedule_of(relation: &Relation) -> CycleSchedule {
    let seed = CycleSchedule::seed(&relation.record().relationship);
    CycleSchedule::new(relation.settings.replication_interval(), seed)
}

fn retry_of(facts: &Facts) -> Retry {
    (0..facts.failures.min(64)).fold(Retry::NONE, |retry, _| retry.after_failure())
}

fn probe_interval(interval: ReplicationInterval) -> Duration {
    interval.duration().min(PROBE)
}

#[cfg(test)]
mod tests {
    use lifeboat_model::relationship::ApplyTrouble;

    use super::*;

    #[test]
    fn a_replica_tries_again_to_apply_what_it_could_not_in_every_phase_that_applies() {
        let wait = |phase: &ReplicaPhase, failures| {
            replica_due(phase, failures).map(|wait| wait.as_secs())
        };
        for phase in [
            ReplicaPhase::WaitingInitial,
            ReplicaPhase::Replicating,
            ReplicaPhase::Resyncing,
        ] {
            assert_eq!(wait(&phase, 0), None, "{phase:?}");
            let waits = [1, 2, 3, 6, 7, u32::MAX].map(|failures| wait(&phase, failures));
            assert_eq!(waits, [1, 2, 4, 32, 60, 60].map(Some), "{phase:?}");
        }
        let critical = ReplicaPhase::Critical(ApplyTrouble::Io);
        assert_eq!(wait(&critical, 0), Some(60));
        assert_eq!(wait(&critical, 1), Some(1));
        assert_eq!(wait(&ReplicaPhase::Suspended, 1), None);
    }
}
