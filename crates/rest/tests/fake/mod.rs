//! A service that does nothing but remember what it was asked, with answers that a test chooses.

#![allow(
    dead_code,
    reason = "several test programs use it, and not each of them uses all"
)]

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use lifeboat_model::contract::{
    FailoverType, JobState, JobType, PointKind, ReplicationHealth, ReplicationMode,
    ReplicationState, ReturnCode,
};
use lifeboat_model::service_settings::{ReplicationServiceSettings, ServiceSettingsChange};
use lifeboat_model::settings::{ReplicationSettings, SettingsChange};
use lifeboat_model::{
    DiskSize, Lineage, LineageId, RelationshipId, Sequence, Timestamp, UtcOffset, VmId,
};
use lifeboat_service::api::{
    Accepted, Activity, AuditView, AuthorizationEntryView, Caller, CheckFinding, CheckView,
    EventView, HealthReason, HealthView, HostView, JobFilter, JobId, JobView, JobWhich,
    ListenerView, LossView, NewVm, Operations, PointView, Rejection, RelationshipIndex,
    RelationshipView, Severity, StartView, StatisticsView, VmDiskView, VmOperation, VmRef, VmView,
};

/// The id of the only VM, whose name is `web1`.
pub const VM: VmId = VmId::from_bytes([0x11; 16]);

/// The job that operations start.
pub const JOB: JobId = JobId([0x77; 16]);

/// 2026-11-25T12:00:00Z.
pub const NOW: Timestamp = Timestamp::from_micros(1_795_608_000_000_000);

fn ago(seconds: u64) -> Timestamp {
    Timestamp::from_micros(NOW.as_micros() - seconds * 1_000_000)
}

#[derive(Debug)]
pub struct Fake {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Who asked what, in order.
    calls: Vec<(Caller, String)>,
    /// What everything is answered with, if anything is refused.
    rejection: Option<Rejection>,
    accepted: Accepted,
    job: JobView,
    events: Vec<EventView>,
    /// The first event that is still kept.
    first_event: u64,
    points: Vec<PointView>,
    mode: ReplicationMode,
    entries: Vec<AuthorizationEntryView>,
    /// Calls wait while this is so.
    held: bool,
    /// Calls end in a panic while this is so.
    broken: bool,
}

impl Fake {
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                calls: Vec::new(),
                rejection: None,
                accepted: Accepted::Completed,
                job: job(),
                events: Vec::new(),
                first_event: 1,
                points: points(),
                mode: ReplicationMode::Primary,
                entries: vec![entry("*.example.com"), entry("*")],
                held: false,
                broken: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// What was asked since the last time, without the callers.
    pub fn calls(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.lock().calls);
        calls.into_iter().map(|(_, call)| call).collect()
    }

    /// Who asked since the last time.
    pub fn callers(&self) -> Vec<Caller> {
        let calls = std::mem::take(&mut self.lock().calls);
        calls.into_iter().map(|(caller, _)| caller).collect()
    }

    /// Refuses everything from now on.
    pub fn reject(&self, code: ReturnCode, what: &str, remedy: &str) {
        let rejection = Rejection {
            code,
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        };
        self.change(|state| state.rejection = Some(rejection));
    }

    /// Operations start the job from now on.
    pub fn start_jobs(&self) {
        self.change(|state| state.accepted = Accepted::JobStarted(JOB));
    }

    /// The job has ended.
    pub fn end_job(&self, job_state: JobState, code: ReturnCode, description: &str) {
        self.change(|state| {
            state.job.job_state = job_state;
            state.job.percent_complete = 100;
            state.job.error_code = code.number();
            state.job.error_description = description.to_owned();
        });
        self.happens("job_ended");
    }

    /// The VM is this to replication from now on.
    pub fn becomes(&self, mode: ReplicationMode) {
        self.change(|state| state.mode = mode);
    }

    /// Another event.
    pub fn happens(&self, kind: &str) {
        self.change(|state| {
            let id = state.first_event + state.events.len() as u64;
            state.events.push(EventView {
                id,
                at: ago(60),
                severity: Severity::Warning,
                vm: Some(VM),
                kind: kind.to_owned(),
                message: format!("event {id}\nhappened"),
            });
        });
    }

    /// Forgets the oldest events, so many of them.
    pub fn forget_events(&self, count: usize) {
        self.change(|state| {
            state.events.drain(..count);
            state.first_event += count as u64;
        });
    }

    /// Calls wait from now on.
    pub fn hold(&self) {
        self.change(|state| state.held = true);
    }

    /// Lets waiting calls go on.
    pub fn release(&self) {
        self.change(|state| state.held = false);
    }

    /// Calls panic from now on.
    pub fn break_down(&self) {
        self.change(|state| state.broken = true);
    }

    fn called(&self, caller: &Caller, call: String) -> Result<MutexGuard<'_, State>, Rejection> {
        let mut state = self.lock();
        state.calls.push((caller.clone(), call));
        if state.broken {
            drop(state);
            panic!("the test wants it so");
        }
        let waited = self.changed.wait_while(state, |state| state.held);
        let state = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        match &state.rejection {
            Some(rejection) => Err(rejection.clone()),
            None => Ok(state),
        }
    }

    fn on_vm(
        &self,
        caller: &Caller,
        vm: &VmRef,
        call: String,
    ) -> Result<MutexGuard<'_, State>, Rejection> {
        let state = self.called(caller, call)?;
        let known = match vm {
            VmRef::Id(id) => *id == VM,
            VmRef::Name(name) => name == "web1",
        };
        if known {
            return Ok(state);
        }
        Err(Rejection {
            code: ReturnCode::FileNotFound,
            what: "there is no such VM".to_owned(),
            remedy: "see `lifeboat vm list`".to_owned(),
        })
    }
}

/// A change of settings without what it does not mention.
fn mentioned(change: &SettingsChange) -> String {
    serde_json::to_string(change).unwrap()
}

pub fn vm() -> VmView {
    VmView {
        id: VM,
        name: "web1".to_owned(),
        driver: "embedded".to_owned(),
        running: true,
        replication_mode: ReplicationMode::Primary,
        replication_state: ReplicationState::Replicating,
        replication_health: ReplicationHealth::Ok,
        failed_over_replication_type: FailoverType::None,
        disks: vec![VmDiskView {
            id: "vda".parse().unwrap(),
            size: DiskSize::try_from(20 << 30).unwrap(),
            replicated: true,
            uri: Some("nbd+unix:///vda?socket=/run/web1.sock".to_owned()),
            path: PathBuf::from("/srv/vms/web1/vda.raw"),
        }],
        test_replica: None,
        test_of: None,
        relationships: vec![relationship()],
    }
}

fn relationship() -> RelationshipView {
    let settings = SettingsChange {
        recovery_connection_point: Some("replica.example.com".to_owned()),
        recovery_server_port_number: Some(8444),
        recovery_history: Some(4),
        ..SettingsChange::default()
    };
    RelationshipView {
        instance_id: format!("Microsoft:{VM}\\HVR\\0"),
        id: RelationshipId::from_bytes([0x22; 16]),
        index: RelationshipIndex::Primary,
        replication_mode: ReplicationMode::Primary,
        replication_state: ReplicationState::Replicating,
        replication_health: ReplicationHealth::Ok,
        failed_over_replication_type: FailoverType::None,
        last_replication_type: FailoverType::Regular,
        last_replication_time: Some(ago(42)),
        last_apply_time: Some(ago(41)),
        last_application_consistent_replication_time: None,
        last_sequence: Some(Sequence::new(1234)),
        lineage: Lineage {
            counter: 1,
            id: LineageId::from_bytes([0x33; 16]),
            forked_from: None,
        },
        primary_host_system: "alpha.example.com".to_owned(),
        recovery_host_system: "replica.example.com".to_owned(),
        recovery_connection_point: "replica.example.com:8444".to_owned(),
        storage_location: None,
        trust_group: None,
        settings: ReplicationSettings::new(settings).unwrap(),
        activity: Some(Activity {
            what: "sending delta".to_owned(),
            done_bytes: 3 << 20,
            total_bytes: 12 << 20,
        }),
    }
}

fn points() -> Vec<PointView> {
    let point = |sequence: u64, kind| PointView {
        sequence: Sequence::new(sequence),
        kind,
        captured_at: ago(7200 - sequence),
        opened_at: ago(7100 - sequence),
        abandoned: false,
        verified: true,
        sealed: true,
        in_use: sequence == 12,
    };
    vec![
        point(12, PointKind::Standard),
        point(99, PointKind::ApplicationConsistent),
    ]
}

pub fn job() -> JobView {
    JobView {
        id: JOB,
        vm: Some(VM),
        job_type: JobType::InitiateFailover,
        name: "Initiate failover".to_owned(),
        job_state: JobState::Running,
        percent_complete: 40,
        job_status: "applying what waits".to_owned(),
        error_code: 0,
        error_description: String::new(),
        time_submitted: ago(10),
        start_time: Some(ago(9)),
        elapsed_micros: 9_000_000,
        time_of_last_state_change: ago(9),
        cancellable: true,
        owner: "unix:0".to_owned(),
    }
}

fn entry(hosts: &str) -> AuthorizationEntryView {
    let unchecked = lifeboat_model::authorization::UncheckedEntry {
        allowed_primary_host_system: hosts.to_owned(),
        trust_group: "default".to_owned(),
        replica_storage_location: "/srv/replica".to_owned(),
        retention_floor: lifeboat_model::retention::UncheckedRetentionFloor {
            points: 2,
            hours: 48,
        },
    };
    unchecked.validate().unwrap()
}

const LOSS: LossView = LossView {
    seconds: Some(42),
    bytes: Some(5 << 20),
};

const START: StartView = StartView {
    backlog_bytes: 9 << 20,
    seconds: Some(2),
};

impl Operations for Fake {
    fn host(&self, caller: &Caller) -> Result<HostView, Rejection> {
        self.called(caller, "host".to_owned()).map(drop)?;
        Ok(HostView {
            host: "alpha.example.com".to_owned(),
            version: "0.1.0".to_owned(),
            listeners: vec![
                ListenerView {
                    what: "rest".to_owned(),
                    address: "unix:/run/lifeboat/lifeboat.sock".to_owned(),
                    trouble: None,
                },
                ListenerView {
                    what: "peer".to_owned(),
                    address: "0.0.0.0:8444".to_owned(),
                    trouble: Some("the address is in use".to_owned()),
                },
            ],
            settings: ReplicationServiceSettings::with_defaults(UtcOffset::UTC),
            vms: 1,
            jobs_running: 0,
            certificate_expires_at: Some(Timestamp::from_micros(NOW.as_micros() + 1)),
        })
    }

    fn modify_service_settings(
        &self,
        caller: &Caller,
        change: ServiceSettingsChange,
    ) -> Result<(), Rejection> {
        let change = serde_json::to_string(&change).unwrap();
        self.called(caller, format!("modify_service_settings {change}"))
            .map(drop)?;
        Ok(())
    }

    fn vms(&self, caller: &Caller) -> Result<Vec<VmView>, Rejection> {
        let state = self.called(caller, "vms".to_owned())?;
        Ok(vec![VmView {
            replication_mode: state.mode,
            ..vm()
        }])
    }

    fn vm(&self, caller: &Caller, name: &VmRef) -> Result<VmView, Rejection> {
        self.on_vm(caller, name, format!("vm {name:?}")).map(drop)?;
        Ok(vm())
    }

    fn define_vm(&self, caller: &Caller, new: NewVm) -> Result<VmView, Rejection> {
        self.called(caller, format!("define_vm {new:?}"))
            .map(drop)?;
        Ok(vm())
    }

    fn undefine_vm(&self, caller: &Caller, vm: &VmRef) -> Result<(), Rejection> {
        self.on_vm(caller, vm, "undefine_vm".to_owned()).map(drop)?;
        Ok(())
    }

    fn request(
        &self,
        caller: &Caller,
        vm: &VmRef,
        operation: VmOperation,
    ) -> Result<Accepted, Rejection> {
        let call = match &operation {
            VmOperation::EnableReplication(enable) => format!(
                "EnableReplication {} {:?} {}{}",
                enable.recovery_connection_point,
                enable.recovery_host_name,
                mentioned(&enable.settings),
                enable
                    .kept_replica
                    .map(|kept| format!(" onto {kept}"))
                    .unwrap_or_default()
            ),
            VmOperation::ReverseReplication(reverse) => format!(
                "ReverseReplication {:?} {}",
                reverse.recovery_connection_point,
                mentioned(&reverse.settings)
            ),
            VmOperation::ModifySettings(change) => format!("ModifySettings {}", mentioned(change)),
            other => format!("{other:?}"),
        };
        Ok(self.on_vm(caller, vm, call)?.accepted.clone())
    }

    fn points(&self, caller: &Caller, vm: &VmRef) -> Result<Vec<PointView>, Rejection> {
        Ok(self.on_vm(caller, vm, "points".to_owned())?.points.clone())
    }

    fn health(&self, caller: &Caller, vm: &VmRef) -> Result<HealthView, Rejection> {
        self.on_vm(caller, vm, "health".to_owned()).map(drop)?;
        Ok(HealthView {
            vm: VM,
            health: ReplicationHealth::Warning,
            reasons: vec![HealthReason {
                kind: "cycles_missed",
                health: ReplicationHealth::Warning,
                what: "more than a fifth of the cycles were missed".to_owned(),
                remedy: "see whether the link carries the changes".to_owned(),
            }],
            loss: LOSS,
            start: START,
            free_bytes: Some(5 << 30),
        })
    }

    fn check(&self, caller: &Caller, vm: &VmRef) -> Result<CheckView, Rejection> {
        self.on_vm(caller, vm, "check".to_owned()).map(drop)?;
        Ok(CheckView {
            vm: VM,
            would_work: true,
            findings: vec![CheckFinding {
                severity: Severity::Info,
                what: "the newest moment is 42 seconds old".to_owned(),
                remedy: String::new(),
            }],
            loss: LOSS,
            start: START,
        })
    }

    fn statistics(&self, caller: &Caller, vm: &VmRef) -> Result<StatisticsView, Rejection> {
        self.on_vm(caller, vm, "statistics".to_owned()).map(drop)?;
        Ok(StatisticsView {
            start_statistic_time: ago(3600),
            end_statistic_time: NOW,
            replication_success_count: 11,
            replication_size: 4 << 20,
            max_replication_size: 9 << 20,
            replication_latency: 3,
            replication_miss_count: 1,
            max_replication_latency: 8,
            network_failure_count: 2,
            replication_failure_count: 0,
            pending_replication_size: Some(1 << 20),
            application_consistent_snapshot_failure_count: 0,
            replication_health: ReplicationHealth::Ok,
            last_test_failover_time: None,
        })
    }

    fn jobs(&self, caller: &Caller, filter: &JobFilter) -> Result<Vec<JobView>, Rejection> {
        let state = self.called(caller, format!("jobs {filter:?}"))?;
        let listed = match filter.which {
            JobWhich::All => true,
            JobWhich::Running => !state.job.job_state.is_final(),
        };
        Ok(listed.then(|| state.job.clone()).into_iter().collect())
    }

    fn job(&self, caller: &Caller, id: JobId) -> Result<JobView, Rejection> {
        let state = self.called(caller, "job".to_owned())?;
        if id == JOB {
            return Ok(state.job.clone());
        }
        Err(Rejection {
            code: ReturnCode::FileNotFound,
            what: "there is no such job".to_owned(),
            remedy: "see `lifeboat job list`".to_owned(),
        })
    }

    fn cancel_job(&self, caller: &Caller, _job: JobId) -> Result<(), Rejection> {
        self.called(caller, "cancel_job".to_owned()).map(drop)?;
        Ok(())
    }

    fn events(
        &self,
        caller: &Caller,
        since: u64,
        limit: usize,
    ) -> Result<Vec<EventView>, Rejection> {
        let state = self.called(caller, format!("events {since} {limit}"))?;
        let after = state.events.iter().filter(|event| event.id > since);
        Ok(after.take(limit).cloned().collect())
    }

    fn wait_for_events(&self, since: u64, patience: Duration) -> u64 {
        let newest = |state: &State| state.first_event + state.events.len() as u64 - 1;
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, patience, |state| newest(state) <= since);
        newest(&waited.unwrap().0)
    }

    fn audit(&self, caller: &Caller, limit: usize) -> Result<Vec<AuditView>, Rejection> {
        self.called(caller, format!("audit {limit}")).map(drop)?;
        Ok(vec![AuditView {
            id: 7,
            at: ago(30),
            caller: "unix:0".to_owned(),
            role: "administrator".to_owned(),
            operation: "initiate_failover".to_owned(),
            target: "web1".to_owned(),
            arguments: serde_json::json!({ "point": 7, "force": false }),
            outcome: "4096 job started".to_owned(),
        }])
    }

    fn authorization_entries(
        &self,
        caller: &Caller,
    ) -> Result<Vec<AuthorizationEntryView>, Rejection> {
        Ok(self
            .called(caller, "authorization_entries".to_owned())?
            .entries
            .clone())
    }

    fn add_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection> {
        let hosts = &entry.allowed_primary_host_system;
        self.called(caller, format!("add_authorization_entry {hosts}"))
            .map(drop)?;
        Ok(())
    }

    fn modify_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection> {
        let hosts = &entry.allowed_primary_host_system;
        self.called(caller, format!("modify_authorization_entry {hosts}"))
            .map(drop)?;
        Ok(())
    }

    fn remove_authorization_entry(&self, caller: &Caller, hosts: &str) -> Result<(), Rejection> {
        self.called(caller, format!("remove_authorization_entry {hosts}"))
            .map(drop)?;
        Ok(())
    }

    fn test_connection(&self, caller: &Caller, to: &str) -> Result<String, Rejection> {
        self.called(caller, format!("test_connection {to}"))
            .map(drop)?;
        Ok("replica.example.com accepts replicas of this host".to_owned())
    }
}
