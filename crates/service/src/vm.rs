//! A VM and its owner: events are decided one after the other, saved, then acted upon.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::Duration;

use lifeboat_hypervisor::VmDefinition;
use lifeboat_model::relationship::{Effect, Event, Refused};
use lifeboat_model::statistics::ReplicationStatistics;
use lifeboat_model::{DiskId, Timestamp, VmId};
use lifeboat_peer::Throttle;

use crate::activity::{Meter, Stop};
use crate::api::StartView;
use crate::jobs::ActiveJob;
use crate::relation::Relation;
use crate::replica::ReplicaStore;

/// One VM of this host: its own, or a replica's, or a test's.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    core: Mutex<Core>,
    /// Notified whenever the core has changed.
    changed: Condvar,
    queue: Mutex<Queue>,
    pub(crate) meter: Meter,
    /// What all transfers of this VM share; made with the first.
    pub(crate) throttle: OnceLock<Arc<Throttle>>,
    /// The replica's store, open; taken alone by whoever changes it.
    pub(crate) store: Mutex<Option<ReplicaStore>>,
    /// What the store held when it was last let go.
    pub(crate) store_facts: Mutex<StoreFacts>,
}

/// What the owner knows.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) definition: VmDefinition,
    pub(crate) place: DisksPlace,
    pub(crate) desired: lifeboat_catalog::DesiredPower,
    pub(crate) created_at: Timestamp,
    pub(crate) relation: Option<Relation>,
    pub(crate) jobs: Vec<ActiveJob>,
    /// Whose test this VM is.
    pub(crate) test_of: Option<VmId>,
    /// The test of this VM's replica.
    pub(crate) test: Option<VmId>,
    pub(crate) facts: Facts,
    pub(crate) statistics: Option<ReplicationStatistics>,
}

/// Where the VM's disks are.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum DisksPlace {
    /// Raw images of its own, by disk.
    Images(Vec<(DiskId, PathBuf)>),
    /// A store's folder: a replica, or the disks after a commit.
    Store(PathBuf),
    /// Overlays of a test, in this folder, over a boundary of the replica in the other.
    Test {
        folder: PathBuf,
        store: PathBuf,
        boundary: u64,
    },
}

/// What is known since the daemon runs; lost with it, and found out again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Attempts in a row that failed.
    pub(crate) failures: u32,
    /// Why the last one did.
    pub(crate) trouble: Option<Trouble>,
    /// When the last cycle began, by the monotonic clock.
    pub(crate) cycle_began: Option<Duration>,
    /// It was stopped, and that could not be saved.
    pub(crate) unsaved_stop: bool,
    /// What the replica said of itself last.
    pub(crate) peer_start: StartView,
    /// When it said so, by the monotonic clock.
    pub(crate) peer_asked: Option<Duration>,
    pub(crate) peer_clock_offset_micros: Option<i64>,
    pub(crate) peer_refusal: Option<String>,
    /// Somebody wants a cycle now.
    pub(crate) wanted: bool,
    /// The peer has refused what its own report may explain: a session that goes well does not
    /// show that it would take it now.
    pub(crate) is_refused: bool,
    /// The store failed and could not be opened again: it is tried when it is needed.
    pub(crate) store_failed: bool,
    /// An event is lost, because what followed could not be saved or the work panicked: it is
    /// looked for from then on, by the monotonic clock.
    pub(crate) lost_event: Option<Duration>,
}

/// Something that went wrong, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) code: lifeboat_model::contract::ReturnCode,
    pub(crate) what: String,
    pub(crate) at: Timestamp,
}

/// What a store held when it was last looked at, so that nobody waits for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoreFacts {
    pub(crate) status: Option<lifeboat_store::Status>,
    /// It failed half way, and is used as it is.
    pub(crate) has_failed: bool,
    /// Bytes per second that applying managed last; never zero.
    pub(crate) apply_speed: Option<u64>,
}

impl StoreFacts {
    /// Less than this tells how long a sync takes and not how fast bytes are applied.
    const MEASURED_BYTES: u64 = 4 << 20;

    /// What applying is thought to manage before it was measured.
    const DEFAULT_SPEED: u64 = 32 << 20;

    /// Takes note of how long applying has taken, if there was enough of it.
    pub(crate) fn measure(&mut self, bytes: u64, took: Duration) {
        if bytes >= Self::MEASURED_BYTES {
            let speed = bytes as f64 / took.as_secs_f64().max(0.001);
            self.apply_speed = Some((speed as u64).max(1));
        }
    }

    pub(crate) fn speed_or_default(&self) -> u64 {
        self.apply_speed.unwrap_or(Self::DEFAULT_SPEED)
    }

    /// How long a start takes behind a backlog; nothing where the speed is not known and matters.
    pub(crate) fn seconds_to_start(&self, backlog_bytes: u64) -> Option<u64> {
        match self.apply_speed {
            Some(speed) => Some(backlog_bytes / speed + 1),
            None if backlog_bytes < Self::MEASURED_BYTES => Some(1),
            None => None,
        }
    }
}

/// What a VM's worker has to do, in order.
#[derive(Debug, Default)]
struct Queue {
    tasks: VecDeque<Task>,
    running: Option<(Task, Stop)>,
    has_worker: bool,
}

impl Queue {
    fn has_waiting(&self) -> bool {
        self.tasks.iter().any(|task| *task != Task::Verify)
    }

    fn is_free(&self) -> bool {
        let is_busy = |(task, _): &(Task, Stop)| *task != Task::Verify;
        !self.has_waiting() && !self.running.as_ref().is_some_and(is_busy)
    }
}

/// One thing for the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Effect(Effect),
    /// Apply what was received; points, retention.
    Apply,
    /// Go on comparing everything after a reversal by maps.
    Verify,
    /// Note beside the store what the VM is.
    Note,
}

/// An event was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the VM is not replicated")]
    NoRelation,
    #[error("save what follows from an event")]
    Save {
        #[source]
        source: lifeboat_catalog::CatalogError,
    },
}

impl Vm {
    pub(crate) fn new(id: VmId, core: Core) -> Self {
        Self {
            id,
            core: Mutex::new(core),
            changed: Condvar::new(),
            queue: Mutex::default(),
            meter: Meter::default(),
            throttle: OnceLock::new(),
            store: Mutex::new(None),
            store_facts: Mutex::default(),
        }
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Option<ReplicaStore>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody is at the store now: who can come again need not wait.
    pub(crate) fn is_store_busy(&self) -> bool {
        matches!(self.store.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Closes a store that somebody was at who panicked, be it a worker or a peer's request: what
    /// was done is half done, and what is on the disk says how far it came.
    pub(crate) fn give_up_broken_store(&self) {
        if !self.store.is_poisoned() {
            return;
        }
        self.store.clear_poison();
        *self.store() = None;
        self.core().facts.store_failed = true;
    }

    pub(crate) fn store_facts(&self) -> StoreFacts {
        self.store_facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn name(&self) -> String {
        self.core().definition.name().to_owned()
    }

    pub(crate) fn tell_changed(&self) {
        self.changed.notify_all();
    }

    /// Waits until the core is as wanted, or time is up; answers whether it is.
    pub(crate) fn wait_until(
        &self,
        patience: Duration,
        mut wanted: impl FnMut(&Core) -> bool,
    ) -> bool {
        let core = self.core();
        let (core, _) = self
            .changed
            .wait_timeout_while(core, patience, |core| !wanted(core))
            .unwrap_or_else(PoisonError::into_inner);
        wanted(&core)
    }

    /// Takes tasks in; answers whether a worker has to be started for them.
    pub(crate) fn enqueue(&self, tasks: impl IntoIterator<Item = Task>) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks {
            if task == Task::Effect(Effect::StopWork) {
                queue.tasks.retain(|task| !task.may_be_stopped());
                if let Some((task, stop)) = &queue.running
                    && task.may_be_stopped()
                {
                    stop.now();
                }
                continue;
            }
            let is_running = queue
                .running
                .as_ref()
                .is_some_and(|(running, stop)| *running == task && !stop.is_asked());
            // A delta that comes while others are applied may just have missed its turn, and so
            // may a change that is noted. Work in the background that makes room goes on later.
            let may_repeat = matches!(task, Task::Apply | Task::Note | Task::Verify);
            if queue.tasks.contains(&task) || (is_running && !may_repeat) {
                continue;
            }
            queue.tasks.push_back(task);
        }
        let wants_worker = !queue.has_worker && !queue.tasks.is_empty();
        queue.has_worker |= wants_worker;
        drop(queue);
        // Who rests in the background makes room.
        self.tell_changed();
        wants_worker
    }

    /// The next task for the worker; with none the worker ends.
    pub(crate) fn next_task(&self) -> Option<(Task, Stop)> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.running = None;
        let Some(task) = queue.tasks.pop_front() else {
            queue.has_worker = false;
            return None;
        };
        let stop = Stop::default();
        queue.running = Some((task.clone(), stop.clone()));
        Some((task, stop))
    }

    /// The worker is gone without having said so. What waits is for the next one.
    pub(crate) fn forget_worker(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.running = None;
        queue.has_worker = false;
    }

    /// Whether something waits for which work in the background makes room.
    pub(crate) fn has_waiting(&self) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.has_waiting()
    }

    /// Whether nothing is under way or waits.
    pub(crate) fn is_idle(&self) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        !queue.has_worker
    }

    /// Whether what is due may begin: nothing is under way or waits but work that makes room.
    pub(crate) fn is_free(&self) -> bool {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.is_free()
    }

    /// Stops what can be stopped, and forgets what waits.
    pub(crate) fn stop_everything(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.tasks.clear();
        if let Some((_, stop)) = &queue.running {
            stop.now();
        }
    }
}

impl Task {
    /// Copies, captures and transfers may be given up half way; what changes a store or tells
    /// the peer something decided is brought to its end.
    fn may_be_stopped(&self) -> bool {
        match self {
            Self::Apply | Self::Note => false,
            Self::Verify => true,
            Self::Effect(effect) => match effect {
                Effect::OpenSession
                | Effect::Copy { .. }
                | Effect::Capture { .. }
                | Effect::Send { .. } => true,
                Effect::StartTracking { .. }
                | Effect::StopTracking
                | Effect::Forget { .. }
                | Effect::DropSpool { .. }
                | Effect::StopWork
                | Effect::AnnouncePrepared { .. }
                | Effect::AskToGoOn { .. }
                | Effect::FailOverStore { .. }
                | Effect::RevertStore
                | Effect::CommitStore
                | Effect::AnnounceTakeOver
                | Effect::AskAdoption
                | Effect::PassOnTakeOver
                | Effect::Report(_) => false,
            },
        }
    }
}

impl Core {
    pub(crate) fn relation(&self) -> Option<&Relation> {
        self.relation.as_ref()
    }

    /// What follows from an event, not saved yet.
    pub(crate) fn decide(
        &self,
        now: Timestamp,
        event: Event,
    ) -> Result<lifeboat_model::relationship::Step, StepError> {
        let relation = self.relation.as_ref().ok_or(StepError::NoRelation)?;
        Ok(relation.record().decide(now, event)?)
    }
}

/// A shared VM.
pub(crate) type VmArc = Arc<Vm>;

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(running: Option<Task>, waiting: &[Task]) -> Queue {
        Queue {
            tasks: waiting.iter().cloned().collect(),
            running: running.map(|task| (task, Stop::default())),
            has_worker: true,
        }
    }

    #[test]
    fn what_is_due_does_not_wait_for_work_in_the_background() {
        let session = || Task::Effect(Effect::OpenSession);
        for (running, waiting, is_free, has_waiting) in [
            (None, vec![], true, false),
            (Some(Task::Verify), vec![], true, false),
            (Some(Task::Verify), vec![Task::Verify], true, false),
            (None, vec![Task::Verify], true, false),
            (Some(Task::Verify), vec![session()], false, true),
            (Some(session()), vec![Task::Verify], false, false),
            (Some(Task::Apply), vec![], false, false),
        ] {
            let queue = queue(running, &waiting);
            assert_eq!(queue.is_free(), is_free, "{queue:?}");
            assert_eq!(queue.has_waiting(), has_waiting, "{queue:?}");
        }
    }

    #[test]
    fn the_speed_of_applying_is_measured_by_what_is_large_enough() {
        let mut facts = StoreFacts::default();
        let second = Duration::from_secs(1);
        facts.measure(0, second);
        facts.measure(4096, second);
        assert_eq!(facts.speed_or_default(), StoreFacts::DEFAULT_SPEED);
        assert_eq!(facts.seconds_to_start(4096), Some(1));
        assert_eq!(facts.seconds_to_start(1 << 30), None);
        facts.measure(100 << 20, second * 2);
        facts.measure(4096, second);
        assert_eq!(facts.speed_or_default(), 50 << 20);
        assert_eq!(facts.seconds_to_start(500 << 20), Some(11));
    }
}
