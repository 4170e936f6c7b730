//! What front doors ask of the service, and what it answers.
//!
//! Every front door (REST, the command line behind it, WS-Management, CIM-XML) turns its
//! own messages into these. The names are those of the CIM schema where it has one.

use std::ops::Range;
use std::path::PathBuf;

use lifeboat_model::contract::{
    FailoverType, InitialReplicationType, PointKind, ReplicationHealth, ReplicationMode,
    ReplicationState, ReturnCode,
};
use lifeboat_model::{DiskId, DiskSize, RelationshipId, Sequence, Timestamp, VmId};

/// Who asks: for the audit, and for what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `unix:UID` or the subject of a certificate.
    pub name: String,
    pub role: AccessRole,
}

/// What a caller may do. Each may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessRole {
    /// Look.
    Viewer,
    /// Everything that a drill or a disaster takes: start, stop, fail over, revert, commit, reverse.
    Operator,
    /// Settings, trust, and what destroys.
    Administrator,
}

/// A VM, by its id or its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmRef {
    Id(VmId),
    Name(String),
}

/// Which of a VM's relationships is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RelationshipIndex {
    #[default]
    Primary,
    /// From a replica to the third site.
    Extended,
}

/// A job's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub [u8; 16]);

/// The answer to an operation that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Done (return code 0).
    Completed,
    /// Under way (return code 4096).
    JobStarted(JobId),
}

/// The answer to one that was not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Rejection {
    pub code: ReturnCode,
    /// What was refused or failed, and why.
    pub what: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// What is asked about one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmOperation {
    /// `RequestStateChange` 2 and 3.
    StartVm,
    StopVm {
        how: StopHow,
    },
    /// `CreateReplicationRelationship`.
    EnableReplication(EnableReplication),
    /// `StartReplication`.
    StartReplication {
        kind: InitialReplicationType,
        at: Option<Timestamp>,
    },
    CancelInitialReplication,
    Suspend,
    Resume,
    Resynchronize {
        at: Option<Timestamp>,
    },
    CancelResynchronize,
    PreparePlannedFailover,
    CancelPlannedFailover {
        how: Urgency,
    },
    /// `InitiateFailover`. The point is a moment's number; absent for the newest.
    InitiateFailover {
        point: Option<Sequence>,
        how: Urgency,
    },
    RevertFailover,
    CommitFailover,
    /// Where both hosts have gone on with the VM: whose history of it is kept.
    NameSurvivor(Survivor),
    ReverseReplication(ReverseReplication),
    /// `TestReplicaSystem`.
    TestFailover {
        point: Option<Sequence>,
    },
    EndTestFailover,
    ModifySettings(lifeboat_model::settings::SettingsChange),
    RemoveReplication,
    ResetStatistics,
    /// A recovery point made now, besides the schedule.
    MakePoint,
    RemovePoint {
        point: Sequence,
    },
    /// Reads and compares everything that a recovery point stands on.
    VerifyPoint {
        point: Option<Sequence>,
    },
    /// Sends what has changed now, without waiting for the next cycle. The job ends when the
    /// replica has it.
    ReplicateNow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopHow {
    ShutDown,
    PowerOff,
}

/// Whether the operator takes on what cannot be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    Checked,
    /// `--force`: what a check would refuse is the operator's risk.
    Forced,
}

/// The host whose history of a VM is kept; what only the other one holds is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survivor {
    ThisHost,
    OtherHost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnableReplication {
    /// `host:port` of the replica's host.
    pub recovery_connection_point: String,
    /// The name that its certificate must prove; absent when it is the host of the address.
    pub recovery_host_name: Option<String>,
    /// A relationship that this host does not know any more and whose replica is kept there: it
    /// is taken up. Absent: a new one is made.
    pub kept_replica: Option<RelationshipId>,
    pub settings: lifeboat_model::settings::SettingsChange,
}

/// Settings of the new direction; what is absent is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReverseReplication {
    pub recovery_connection_point: Option<String>,
    pub settings: lifeboat_model::settings::SettingsChange,
}

/// Makes a VM of the embedded driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVm {
    /// The id that a lost catalog had for it; absent for a VM that is new.
    pub id: Option<VmId>,
    pub name: String,
    pub memory_mib: u32,
    pub processors: u32,
    pub disks: Vec<NewVmDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVmDisk {
    pub id: DiskId,
    /// Absent: the image's length.
    pub size: Option<DiskSize>,
    /// An existing raw image to use in place; absent: a new one of zeroes.
    pub image: Option<PathBuf>,
}

/// A VM as this host knows it (`Msvm_ComputerSystem`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// `Name` of the schema.
    pub id: VmId,
    /// `ElementName` of the schema.
    pub name: String,
    pub driver: String,
    pub running: bool,
    pub replication_mode: ReplicationMode,
    pub replication_state: ReplicationState,
    pub replication_health: ReplicationHealth,
    pub failed_over_replication_type: FailoverType,
    pub disks: Vec<VmDiskView>,
    /// The test failover's VM, while there is one.
    pub test_replica: Option<VmId>,
    /// Whose test this VM is.
    pub test_of: Option<VmId>,
    pub relationships: Vec<RelationshipView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDiskView {
    pub id: DiskId,
    pub size: DiskSize,
    pub replicated: bool,
    /// Where a guest's client connects while the VM runs.
    pub uri: Option<String>,
    /// The file that holds it, or its newest state.
    pub path: PathBuf,
}

/// One relationship (`Msvm_ReplicationRelationship` with its setting data).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationshipView {
    /// `Microsoft:<VM GUID>\HVR\<index>` of the schema.
    pub instance_id: String,
    pub id: RelationshipId,
    pub index: RelationshipIndex,
    pub replication_mode: ReplicationMode,
    pub replication_state: ReplicationState,
    pub replication_health: ReplicationHealth,
    pub failed_over_replication_type: FailoverType,
    pub last_replication_type: FailoverType,
    pub last_replication_time: Option<Timestamp>,
    pub last_apply_time: Option<Timestamp>,
    pub last_application_consistent_replication_time: Option<Timestamp>,
    /// The moment that the replica has for certain.
    pub last_sequence: Option<Sequence>,
    pub lineage: lifeboat_model::Lineage,
    pub primary_host_system: String,
    pub recovery_host_system: String,
    pub recovery_connection_point: String,
    pub storage_location: Option<PathBuf>,
    pub trust_group: Option<String>,
    pub settings: lifeboat_model::settings::ReplicationSettings,
    /// What runs at the moment, and how far it is.
    pub activity: Option<Activity>,
}

/// Work under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    pub what: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// A recovery point (`Msvm_VirtualSystemSettingData` of a snapshot).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointView {
    pub sequence: Sequence,
    pub kind: PointKind,
    pub captured_at: Timestamp,
    pub opened_at: Timestamp,
    /// It belongs to a history that was left behind: what the loser of a failover had written.
    pub abandoned: bool,
    /// Not so where a reversal has relied on maps, and the comparison of everything had not ended
    /// when the point was made.
    pub verified: bool,
    pub sealed: bool,
    pub in_use: bool,
}

/// A job (`Msvm_ConcreteJob`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    pub id: JobId,
    pub vm: Option<VmId>,
    pub job_type: lifeboat_model::contract::JobType,
    pub name: String,
    pub job_state: lifeboat_model::contract::JobState,
    pub percent_complete: u16,
    pub job_status: String,
    pub error_code: u16,
    pub error_description: String,
    pub time_submitted: Timestamp,
    pub start_time: Option<Timestamp>,
    pub elapsed_micros: u64,
    pub time_of_last_state_change: Timestamp,
    pub cancellable: bool,
    pub owner: String,
}

/// How a relationship is doing, why, and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthView {
    pub vm: VmId,
    pub health: ReplicationHealth,
    pub reasons: Vec<HealthReason>,
    /// What a failover now would lose: time since the newest moment that the replica has, and
    /// bytes changed since, as far as they are known here.
    pub loss: LossView,
    /// How long a start of the newest moment would take.
    pub start: StartView,
    /// Free on the file system of the replica's store; absent where there is no store.
    pub free_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReason {
    /// A word that programs can rely on, such as `space_low`.
    pub kind: &'static str,
    pub health: ReplicationHealth,
    pub what: String,
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LossView {
    pub seconds: Option<u64>,
    pub bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StartView {
    pub backlog_bytes: u64,
    /// Backlog at the apply speed measured last, plus one second.
    pub seconds: Option<u64>,
}

/// `lifeboat check`: would a failover work now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckView {
    pub vm: VmId,
    pub would_work: bool,
    pub findings: Vec<CheckFinding>,
    pub loss: LossView,
    pub start: StartView,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFinding {
    pub severity: Severity,
    pub what: String,
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// Something that happened, for people and for alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventView {
    /// Rises by one; never used twice.
    pub id: u64,
    pub at: Timestamp,
    pub severity: Severity,
    pub vm: Option<VmId>,
    /// A word that programs can rely on, such as `state_changed`.
    pub kind: String,
    pub message: String,
}

/// Who did what (`audit`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditView {
    pub id: u64,
    pub at: Timestamp,
    pub caller: String,
    pub role: String,
    pub operation: String,
    pub target: String,
    /// What was asked for in detail, with the names of the contract; null where the target says
    /// it all. Rows of earlier builds have a text for people.
    pub arguments: serde_json::Value,
    pub outcome: String,
}

/// This host (`Msvm_ReplicationService` and its setting data).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostView {
    pub host: String,
    pub version: String,
    /// `OperationalStatus`: whether every listener runs.
    pub listeners: Vec<ListenerView>,
    pub settings: lifeboat_model::service_settings::ReplicationServiceSettings,
    pub vms: usize,
    pub jobs_running: usize,
    pub certificate_expires_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerView {
    pub what: String,
    pub address: String,
    /// Why it does not run; absent when it does.
    pub trouble: Option<String>,
}

/// Statistics of the running monitoring cycle (`Msvm_ReplicationStatistics`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatisticsView {
    pub start_statistic_time: Timestamp,
    pub end_statistic_time: Timestamp,
    pub replication_success_count: u32,
    pub replication_size: u64,
    pub max_replication_size: u64,
    pub replication_latency: u32,
    pub replication_miss_count: u32,
    pub max_replication_latency: u32,
    pub network_failure_count: u32,
    pub replication_failure_count: u32,
    /// Absent where changes may have been missed.
    pub pending_replication_size: Option<u64>,
    pub application_consistent_snapshot_failure_count: u32,
    pub replication_health: ReplicationHealth,
    pub last_test_failover_time: Option<Timestamp>,
}

/// An authorization entry (`Msvm_ReplicationAuthorizationSettingData`).
pub type AuthorizationEntryView = lifeboat_model::authorization::AuthorizationEntry;

/// The disks of a point or of the newest state, readable over NBD until it is ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedPoint {
    pub id: JobId,
    pub vm: VmId,
    pub sequence: Sequence,
    pub disks: Vec<(DiskId, String)>,
}

/// Ranges of a disk.
pub type DiskRanges = Vec<(DiskId, Vec<Range<u64>>)>;

/// The service, as every front door uses it. Methods block.
#[expect(
    clippy::missing_errors_doc,
    reason = "each rejects with a return code of the contract, what was refused, and what helps"
)]
pub trait Operations: Send + Sync {
    fn host(&self, caller: &Caller) -> Result<HostView, Rejection>;

    fn modify_service_settings(
        &self,
        caller: &Caller,
        change: lifeboat_model::service_settings::ServiceSettingsChange,
    ) -> Result<(), Rejection>;

    fn vms(&self, caller: &Caller) -> Result<Vec<VmView>, Rejection>;

    fn vm(&self, caller: &Caller, vm: &VmRef) -> Result<VmView, Rejection>;

    fn define_vm(&self, caller: &Caller, vm: NewVm) -> Result<VmView, Rejection>;

    /// Forgets a VM that is off and not replicated; its disks stay.
    fn undefine_vm(&self, caller: &Caller, vm: &VmRef) -> Result<(), Rejection>;

    fn request(
        &self,
        caller: &Caller,
        vm: &VmRef,
        operation: VmOperation,
    ) -> Result<Accepted, Rejection>;

    fn points(&self, caller: &Caller, vm: &VmRef) -> Result<Vec<PointView>, Rejection>;

    fn health(&self, caller: &Caller, vm: &VmRef) -> Result<HealthView, Rejection>;

    fn check(&self, caller: &Caller, vm: &VmRef) -> Result<CheckView, Rejection>;

    fn statistics(&self, caller: &Caller, vm: &VmRef) -> Result<StatisticsView, Rejection>;

    fn jobs(&self, caller: &Caller, filter: &JobFilter) -> Result<Vec<JobView>, Rejection>;

    fn job(&self, caller: &Caller, job: JobId) -> Result<JobView, Rejection>;

    fn cancel_job(&self, caller: &Caller, job: JobId) -> Result<(), Rejection>;

    /// Events after `since`, oldest first.
    fn events(
        &self,
        caller: &Caller,
        since: u64,
        limit: usize,
    ) -> Result<Vec<EventView>, Rejection>;

    /// Returns when there are events after `since`, or after `patience`: the id of the newest
    /// event, 0 when there is none.
    fn wait_for_events(&self, since: u64, patience: std::time::Duration) -> u64;

    fn audit(&self, caller: &Caller, limit: usize) -> Result<Vec<AuditView>, Rejection>;

    fn authorization_entries(
        &self,
        caller: &Caller,
    ) -> Result<Vec<AuthorizationEntryView>, Rejection>;

    fn add_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection>;

    fn modify_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection>;

    fn remove_authorization_entry(
        &self,
        caller: &Caller,
        allowed_primary_host_system: &str,
    ) -> Result<(), Rejection>;

    /// `TestReplicationConnection`: whether replication to that host could be enabled now.
    fn test_connection(
        &self,
        caller: &Caller,
        recovery_connection_point: &str,
    ) -> Result<String, Rejection>;
}

/// Which jobs are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobFilter {
    pub vm: Option<VmId>,
    pub which: JobWhich,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JobWhich {
    #[default]
    All,
    Running,
}
