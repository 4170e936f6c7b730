//! What Prometheus is told of a host: gauges and counters with names that do not change.
//!
//! Labels are the VMs, the listeners and the states of jobs of this host, and no more. Nothing is
//! kept between two questions: each is answered from what the service says then. The names are
//! described in `docs/metrics.md`.

use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_model::Timestamp;
use lifeboat_model::contract::{JobState, ReplicationMode, ReturnCode};
use lifeboat_service::api::{
    Caller, HealthView, HostView, JobFilter, JobWhich, Operations, Rejection, StatisticsView,
    VmRef, VmView,
};
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

pub(crate) const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// What became of alerts. Counts since the daemon started.
#[derive(Debug, Default)]
pub struct AlertCounters {
    delivered: AtomicU64,
    failed: AtomicU64,
    held_back: AtomicU64,
}

impl AlertCounters {
    /// Somebody was told.
    pub fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody could be told by one of the ways, after all attempts.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The same had been told a short time before.
    pub fn held_back(&self) {
        self.held_back.fetch_add(1, Ordering::Relaxed);
    }

    /// How many were delivered, could not be delivered, and were held back.
    #[must_use]
    pub fn counts(&self) -> [u64; 3] {
        [&self.delivered, &self.failed, &self.held_back]
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// What the service says at one time.
pub(crate) struct Seen {
    host: HostView,
    vms: Vec<SeenVm>,
    /// How many jobs are in each state, in the order of [`JobState::ALL`].
    jobs: Vec<(JobState, usize)>,
}

struct SeenVm {
    view: VmView,
    health: Option<HealthView>,
    statistics: Option<StatisticsView>,
    points: Option<usize>,
}

impl Seen {
    /// Asks the service for everything.
    pub(crate) fn gather(operations: &dyn Operations, caller: &Caller) -> Result<Self, Rejection> {
        let host = operations.host(caller)?;
        let mut vms = Vec::new();
        for view in operations.vms(caller)? {
            vms.push(SeenVm::gather(operations, caller, view)?);
        }
        let filter = JobFilter {
            vm: None,
            which: JobWhich::All,
        };
        let jobs = operations.jobs(caller, &filter)?;
        let count = |state: &JobState| jobs.iter().filter(|job| job.job_state == *state).count();
        let jobs = JobState::ALL.iter().map(|state| (*state, count(state)));
        Ok(Self {
            host,
            vms,
            jobs: jobs.collect(),
        })
    }

    /// The metrics in the text format of Prometheus.
    pub(crate) fn render(&self, alerts: Option<&AlertCounters>) -> String {
        let mut registry = Registry::with_prefix("lifeboat");
        self.register_host(&mut registry);
        self.register_vms(&mut registry);
        self.register_statistics(&mut registry);
        if let Some(alerts) = alerts {
            register_alerts(&mut registry, alerts);
        }
        let mut text = String::new();
        let written = prometheus_text::encode(&mut text, &registry);
        written.expect("BUG: memory takes all that is written");
        text
    }

    fn register_host(&self, registry: &mut Registry) {
        let build = Family::<BuildLabels, Gauge>::default();
        let labels = BuildLabels {
            version: self.host.version.clone(),
            host: self.host.host.clone(),
        };
        build.get_or_create(&labels).set(1);
        registry.register("build_info", "The version that serves, always 1", build);
        let vms = Gauge::<i64>::default();
        vms.set(clamped(self.host.vms as u64));
        registry.register("vms", "VMs that this host knows", vms);
        if let Some(expires) = self.host.certificate_expires_at {
            let certificate = Gauge::<i64>::default();
            certificate.set(seconds_of(expires));
            registry.register_with_unit(
                "certificate_expiry_timestamp",
                "When the certificate of this host expires, in Unix time",
                Unit::Seconds,
                certificate,
            );
        }
        let listeners = Family::<ListenerLabels, Gauge>::default();
        for listener in &self.host.listeners {
            let labels = ListenerLabels {
                listener: listener.what.clone(),
            };
            let runs = i64::from(listener.trouble.is_none());
            listeners.get_or_create(&labels).set(runs);
        }
        registry.register("listener_up", "Whether a listener runs, 1 or 0", listeners);
        let jobs = Family::<JobLabels, Gauge>::default();
        for (state, count) in &self.jobs {
            let labels = JobLabels {
                state: word_of(state.label()),
            };
            jobs.get_or_create(&labels).set(clamped(*count as u64));
        }
        registry.register("jobs", "Jobs that this host remembers, by state", jobs);
    }

    fn register_vms(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&SeenVm) -> Option<i64>| {
            let family = Family::<VmLabels, Gauge>::default();
            for vm in &self.vms {
                if let Some(value) = value(vm) {
                    family.get_or_create(&vm.labels()).set(value);
                }
            }
            registry.register(name, help, family);
        };
        gauge("vm_running", "Whether the VM runs here, 1 or 0", &|vm| {
            Some(i64::from(vm.view.running))
        });
        gauge(
            "vm_replication_mode",
            "ReplicationMode of the schema: 0 none, 1 primary, 2 replica, 3 test replica, 4 extended replica",
            &|vm| Some(vm.view.replication_mode.number().into()),
        );
        gauge(
            "vm_replication_state",
            "ReplicationState of the schema",
            &|vm| Some(vm.view.replication_state.number().into()),
        );
        gauge(
            "vm_replication_health",
            "ReplicationHealth of the schema: 0 not applicable, 1 ok, 2 warning, 3 critical",
            &|vm| Some(vm.view.replication_health.number().into()),
        );
        gauge(
            "vm_last_replication_timestamp_seconds",
            "When something was last replicated, in Unix time",
            &|vm| {
                let relationship = vm.view.relationships.first()?;
                relationship.last_replication_time.map(seconds_of)
            },
        );
        gauge(
            "vm_loss_seconds",
            "Time since the newest moment that the replica has: what a failover now would lose",
            &|vm| vm.health.as_ref()?.loss.seconds.map(clamped),
        );
        gauge(
            "vm_loss_bytes",
            "Bytes changed since the newest moment that the replica has, where it is known",
            &|vm| vm.health.as_ref()?.loss.bytes.map(clamped),
        );
        gauge(
            "vm_backlog_bytes",
            "Bytes received and not yet applied",
            &|vm| Some(clamped(vm.replica_health()?.start.backlog_bytes)),
        );
        gauge(
            "vm_start_seconds",
            "How long a failover to the newest moment would take to start, at the speed measured last",
            &|vm| vm.replica_health()?.start.seconds.map(clamped),
        );
        gauge(
            "vm_free_bytes",
            "Free on the file system of the replica's store",
            &|vm| vm.health.as_ref()?.free_bytes.map(clamped),
        );
        gauge("vm_recovery_points", "Recovery points of the VM", &|vm| {
            Some(clamped(vm.points? as u64))
        });
        gauge(
            "vm_average_replication_seconds",
            "Average time of a replication in the running monitoring cycle",
            &|vm| Some(vm.statistics.as_ref()?.replication_latency.into()),
        );
    }

    fn register_statistics(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, value: &dyn Fn(&StatisticsView) -> u64| {
            let family = Family::<VmLabels, Counter>::default();
            for vm in &self.vms {
                if let Some(statistics) = &vm.statistics {
                    let counter = family.get_or_create(&vm.labels());
                    counter.inc_by(value(statistics));
                }
            }
            registry.register(name, help, family);
        };
        counter(
            "vm_replications",
            "Replications that succeeded in the running monitoring cycle",
            &|statistics| statistics.replication_success_count.into(),
        );
        counter(
            "vm_replications_missed",
            "Replications that were due and not made in time in the running monitoring cycle",
            &|statistics| statistics.replication_miss_count.into(),
        );
        counter(
            "vm_replications_failed",
            "Replications that failed in the running monitoring cycle",
            &|statistics| statistics.replication_failure_count.into(),
        );
        counter(
            "vm_network_failures",
            "Failures of the network in the running monitoring cycle",
            &|statistics| statistics.network_failure_count.into(),
        );
        counter(
            "vm_replicated_bytes",
            "Bytes replicated in the running monitoring cycle",
            &|statistics| statistics.replication_size,
        );
    }
}

impl SeenVm {
    fn gather(
        operations: &dyn Operations,
        caller: &Caller,
        view: VmView,
    ) -> Result<Self, Rejection> {
        let vm = VmRef::Id(view.id);
        let (health, statistics) = if view.relationships.is_empty() {
            (None, None)
        } else {
            (
                there(operations.health(caller, &vm))?,
                there(operations.statistics(caller, &vm))?,
            )
        };
        let points = match view.replication_mode {
            ReplicationMode::Replica | ReplicationMode::ExtendedReplica => {
                there(operations.points(caller, &vm))?.map(|points| points.len())
            }
            ReplicationMode::None | ReplicationMode::Primary | ReplicationMode::TestReplica => None,
        };
        Ok(Self {
            view,
            health,
            statistics,
            points,
        })
    }

    /// The health where there is a store, which alone has a backlog.
    fn replica_health(&self) -> Option<&HealthView> {
        self.health
            .as_ref()
            .filter(|health| health.free_bytes.is_some())
    }

    fn labels(&self) -> VmLabels {
        VmLabels {
            vm: self.view.name.clone(),
            id: self.view.id.to_string(),
        }
    }
}

/// An answer, unless what was asked for went away since the VMs were listed.
fn there<T>(answer: Result<T, Rejection>) -> Result<Option<T>, Rejection> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(rejection)
            if rejection.code == ReturnCode::FileNotFound
                || rejection.code == ReturnCode::InvalidState =>
        {
            Ok(None)
        }
        Err(rejection) => Err(rejection),
    }
}

fn register_alerts(registry: &mut Registry, alerts: &AlertCounters) {
    let family = Family::<OutcomeLabels, Counter>::default();
    let outcomes = ["delivered", "failed", "held_back"];
    for (outcome, count) in outcomes.iter().zip(alerts.counts()) {
        let labels = OutcomeLabels {
            outcome: (*outcome).to_owned(),
        };
        family.get_or_create(&labels).inc_by(count);
    }
    registry.register(
        "alerts",
        "Alerts since the daemon started, by what became of them",
        family,
    );
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: String,
    host: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmLabels {
    vm: String,
    id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: String,
}

/// A label of the contract as one word.
fn word_of(label: &str) -> String {
    label.to_lowercase().replace(' ', "_")
}

fn seconds_of(timestamp: Timestamp) -> i64 {
    clamped(timestamp.as_micros() / 1_000_000)
}

fn clamped(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
