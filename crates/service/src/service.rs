//! The service of one host: what it is made of, and how an event becomes a step.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use lifeboat_catalog::Catalog;
use lifeboat_hypervisor::Hypervisor;
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{Effect, Event, Record, Report};
use lifeboat_model::{Timestamp, VmId};
use lifeboat_peer::{Link, LinkError, Links, Pace, PeerAddress, Rate, SleepingPace, Throttle};
use lifeboat_store::ChunkMemory;
use lifeboat_sys::disk::DiskPort;

use crate::api::Severity;
use crate::clock::Clock;
use crate::config::ServiceConfig;
use crate::ledger::Ledger;
use crate::limits::Places;
use crate::mending::{MENDED_AGAIN, Mending};
use crate::news::News;
use crate::relation::{PeerPlace, Relation};
use crate::scheduler::{Alarm, Scheduler};
use crate::vm::{StepError, Task, Vm, VmArc};

/// The replication service of one host. Clones are the same service.
#[derive(Debug, Clone)]
pub struct Service {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ServiceConfig,
    pub(crate) ledger: Ledger,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) links: Arc<dyn Links>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) disk: Arc<dyn DiskPort>,
    pub(crate) vms: RwLock<BTreeMap<VmId, VmArc>>,
    pub(crate) scheduler: Scheduler,
    pub(crate) news: News,
    /// Captures, transfers and comparisons under way.
    pub(crate) transfers: Places,
    /// What pieces of copies are received into.
    pub(crate) chunk_memory: ChunkMemory,
    /// How transfers wait for their turn.
    pub(crate) pace: Arc<dyn Pace>,
    /// The host's bandwidth, shared by all transfers.
    pub(crate) throttle: Arc<Throttle>,
    /// What front doors show of listeners and certificates.
    pub(crate) standing: Mutex<HostStanding>,
    timer: Mutex<Option<JoinHandle<()>>>,
}

/// What the daemon around the service says of itself.
#[derive(Debug, Clone, Default)]
pub struct HostStanding {
    pub listeners: Vec<crate::api::ListenerView>,
    pub certificate_expires_at: Option<Timestamp>,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("read the catalog")]
    Catalog {
        #[source]
        source: lifeboat_catalog::CatalogError,
    },
    #[error("read {what} of VM {vm} from the catalog")]
    Row {
        what: &'static str,
        vm: VmId,
        source: serde_json::Error,
    },
    #[error("make the folder {}", path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("start the timer")]
    Timer { source: std::io::Error },
}

impl Service {
    /// Starts the service: what was under way when the last one ended goes on.
    ///
    /// # Errors
    /// When the catalog cannot be read. A VM or store that cannot be opened is shown as such and
    /// keeps nobody else from working.
    pub fn start(
        config: ServiceConfig,
        catalog: Catalog,
        hypervisor: Arc<dyn Hypervisor>,
        links: Arc<dyn Links>,
        disk: Arc<dyn DiskPort>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let ticking = Arc::clone(&clock);
        let pace: Arc<dyn Pace> = Arc::new(SleepingPace::new(move || ticking.monotonic()));
        let throttle = Arc::new(Throttle::new(Rate::Unlimited, Arc::clone(&pace)));
        let service = Self {
            inner: Arc::new(Inner {
                transfers: Places::new(config.transfers),
                chunk_memory: ChunkMemory::default(),
                ledger: Ledger::new(catalog),
                config,
                hypervisor,
                links,
                clock,
                disk,
                vms: RwLock::default(),
                scheduler: Scheduler::default(),
                news: News::default(),
                pace,
                throttle,
                standing: Mutex::default(),
                timer: Mutex::new(None),
            }),
        };
        service.boot()?;
        let timer = service.clone();
        let thread = std::thread::Builder::new()
            .name("timer".to_owned())
            .spawn(move || timer.run_timer())
            .map_err(|source| StartError::Timer { source })?;
        *lock(&service.inner.timer) = Some(thread);
        Ok(service)
    }

    /// Tells front doors how this host's listeners and certificates are.
    pub fn set_standing(&self, standing: HostStanding) {
        *lock(&self.inner.standing) = standing;
    }

    /// Ends the service in an orderly way: work is stopped where it may be, guests' disks are
    /// made durable, stores are sealed and closed. What was under way goes on with the next start.
    pub fn stop(&self) {
        self.inner.scheduler.end();
        if let Some(timer) = lock(&self.inner.timer).take() {
            // A timer that panicked has said so.
            let _ = timer.join();
        }
        for vm in self.all_vms() {
            vm.stop_everything();
        }
        for vm in self.all_vms() {
            self.wait_until_idle(&vm);
            self.close_vm(&vm);
        }
    }

    fn wait_until_idle(&self, vm: &Vm) {
        // The worker tells of its end; the time limit is for tasks that may not be stopped.
        vm.wait_until(Duration::from_secs(30), |_| vm.is_idle());
    }

    fn run_timer(&self) {
        let mut mending = Mending::default();
        loop {
            self.mend_catalog_when_due(&mut mending);
            let now = self.inner.clock.monotonic();
            match self.inner.scheduler.next(now, MENDED_AGAIN) {
                Alarm::Ended => return,
                Alarm::Again => {}
                Alarm::Due(vm) => {
                    if let Some(vm) = self.find(vm) {
                        self.wake(&vm);
                    }
                }
            }
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.inner.clock.wall()
    }

    pub(crate) fn find(&self, vm: VmId) -> Option<VmArc> {
        let vms = self
            .inner
            .vms
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        vms.get(&vm).cloned()
    }

    pub(crate) fn all_vms(&self) -> Vec<VmArc> {
        let vms = self
            .inner
            .vms
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        vms.values().cloned().collect()
    }

    pub(crate) fn insert(&self, vm: VmArc) {
        let mut vms = self
            .inner
            .vms
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        vms.insert(vm.id, vm);
    }

    pub(crate) fn remove(&self, vm: VmId) {
        let mut vms = self
            .inner
            .vms
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        vms.remove(&vm);
    }

    /// Decides an event, saves what follows, adopts it, and has the worker act upon it.
    pub(crate) fn step(&self, vm: &VmArc, event: Event) -> Result<(), StepError> {
        self.step_with(vm, event, |_| {})
    }

    /// As [`step`](Self::step), with labels that change in the same save.
    pub(crate) fn step_with(
        &self,
        vm: &VmArc,
        event: Event,
        label: impl FnOnce(&mut Relation),
    ) -> Result<(), StepError> {
        self.step_by(vm, |_| event, label)
    }

    /// As [`step_with`](Self::step_with), with an event that depends on the record in force: the
    /// one that was there before a call to the peer may be old by now.
    pub(crate) fn step_by(
        &self,
        vm: &VmArc,
        event: impl FnOnce(&Record) -> Event,
        label: impl FnOnce(&mut Relation),
    ) -> Result<(), StepError> {
        let now = self.now();
        let mut core = vm.core();
        let event = event(core.relation().ok_or(StepError::NoRelation)?.record());
        let step = core.decide(now, event)?;
        let relation = core.relation.as_mut().ok_or(StepError::NoRelation)?;
        let before = relation.record().state();
        let mut next = relation.clone();
        label(&mut next);
        next.saved.record = step.next;
        if next.saved != relation.saved {
            next.version = self
                .inner
                .ledger
                .save_relation(&next)
                .map_err(|source| StepError::Save { source })?;
            *relation = next;
        }
        let after = relation.record().state();
        let mode = relation.record().mode();
        if after != before {
            let name = core.definition.name().to_owned();
            let message = format!("{name}: {before} is over, now: {after} (as {mode})");
            self.report(Some(vm.id), Severity::Info, "state_changed", &message);
        }
        self.update_jobs(vm, &mut core);
        drop(core);
        vm.tell_changed();
        let (reports, effects): (Vec<_>, Vec<_>) = step
            .effects
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Report(_)));
        for report in reports {
            if let Effect::Report(report) = report {
                self.report_news(vm, &report);
            }
        }
        self.work_on(vm, effects.into_iter().map(Task::Effect));
        self.set_alarm(vm);
        Ok(())
    }

    /// A fact that is not refused; a failure to save it is told and the work is tried again.
    pub(crate) fn tell(&self, vm: &VmArc, event: Event) {
        if let Err(error) = self.step(vm, event) {
            self.report_unsaved(vm, &error);
        }
    }

    pub(crate) fn report_unsaved(&self, vm: &VmArc, error: &StepError) {
        let why = with_causes(error);
        match error {
            // Done again when it is its turn: a catalog may take no changes for long, and whatever
            // led here would be done again and again meanwhile.
            StepError::Save { .. } => {
                self.note_trouble(vm, ReturnCode::Failed, why);
                self.look_for_lost_event_later(vm);
            }
            StepError::Refused(_) | StepError::NoRelation => {
                tracing::error!(vm = %vm.id, "{why}");
            }
        }
    }

    /// Gives the worker tasks, and the VM a worker if it has none.
    pub(crate) fn work_on(&self, vm: &VmArc, tasks: impl IntoIterator<Item = Task>) {
        if !vm.enqueue(tasks) {
            return;
        }
        let (service, worked) = (self.clone(), Arc::clone(vm));
        let spawned = std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || service.run_worker(&worked));
        if let Err(error) = spawned {
            tracing::error!(vm = %vm.id, "start a worker: {error}; it is tried again");
            // Without a thread here and now the next alarm asks again.
            vm.stop_everything();
            let _ = vm.next_task();
        }
    }

    fn run_worker(&self, vm: &VmArc) {
        let _end = WorkerEnd { service: self, vm };
        while let Some((task, stop)) = vm.next_task() {
            self.run_task(vm, task, &stop);
            self.set_alarm(vm);
            vm.tell_changed();
        }
        // What was wished for meanwhile can begin now that nothing is under way.
        self.set_alarm(vm);
        vm.tell_changed();
    }

    /// Writes an event for people; what cannot be written is in the log at least.
    pub(crate) fn report(&self, vm: Option<VmId>, severity: Severity, kind: &str, message: &str) {
        match severity {
            Severity::Info => tracing::info!(kind, "{message}"),
            Severity::Warning => tracing::warn!(kind, "{message}"),
            Severity::Error => tracing::error!(kind, "{message}"),
        }
        match self
            .inner
            .ledger
            .add_event(self.now(), vm, severity, kind, message)
        {
            Ok(id) => self.inner.news.tell(id),
            Err(error) => tracing::error!("write an event: {}", with_causes(&error)),
        }
    }

    fn report_news(&self, vm: &VmArc, report: &Report) {
        let name = vm.name();
        let (severity, kind, message) = crate::health::describe_report(&name, report);
        self.report(Some(vm.id), severity, kind, &message);
    }

    /// A connection to the peer of a relationship.
    pub(crate) fn link(&self, peer: &PeerPlace) -> Result<Arc<dyn Link>, LinkError> {
        let address: PeerAddress = peer.address.parse().map_err(|_| LinkError::HostName {
            name: peer.address.clone(),
        })?;
        self.inner.links.to(&address, Some(&peer.host))
    }
}

/// How long a VM waits for another worker after one that panicked: not long where that was once,
/// and often enough where it is always so.
const AFTER_A_PANIC: Duration = Duration::from_secs(3);

/// A worker that ends by a panic is a defect of this program, and must not be the VM's last one.
struct WorkerEnd<'a> {
    service: &'a Service,
    vm: &'a VmArc,
}

impl Drop for WorkerEnd<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        tracing::error!(vm = %self.vm.id, "BUG: the work on this VM panicked; it is tried again in a few seconds");
        self.vm.give_up_broken_store();
        let inner = &self.service.inner;
        let again = inner.clock.monotonic() + AFTER_A_PANIC;
        self.vm.core().facts.lost_event = Some(again);
        // Last: from here on another worker may begin.
        self.vm.forget_worker();
        inner.scheduler.set(self.vm.id, Some(again));
        self.vm.tell_changed();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
