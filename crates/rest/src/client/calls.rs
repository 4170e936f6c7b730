//! The calls, one for each thing that a host can be asked.

use http::Method;
use serde::Serialize;

use super::{Answer, Client, ClientError, Outcome, json, segment};
use crate::wire::{
    AuditRecord, AuthorizationEntry, CancelPlannedFailover, Check, Connection, DefineVm,
    EnableReplication, Event, Health, Host, InitiateFailover, Job, NameSurvivor, Point,
    Relationship, Resynchronize, ReverseReplication, ServiceSettings, ServiceSettingsChange,
    SettingsChange, StartReplication, Statistics, StopVm, TestConnection, TestFailover, Vm,
};

/// What is asked about a VM, as the command line has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmRequest {
    Start,
    Stop(StopVm),
    EnableReplication(EnableReplication),
    StartReplication(StartReplication),
    CancelInitialReplication,
    Suspend,
    Resume,
    Resynchronize(Resynchronize),
    CancelResynchronize,
    Reverse(ReverseReplication),
    ReplicateNow,
    ModifySettings(SettingsChange),
    RemoveReplication,
    TestFailover(TestFailover),
    EndTestFailover,
    PrepareFailover,
    CancelPlannedFailover(CancelPlannedFailover),
    InitiateFailover(InitiateFailover),
    RevertFailover,
    CommitFailover,
    NameSurvivor(NameSurvivor),
    MakePoint,
    RemovePoint(u64),
    /// The newest moment if there is no sequence.
    VerifyPoint(Option<u64>),
    ResetStatistics,
}

impl VmRequest {
    /// The method, the path below the VM, and the body.
    fn parts(&self) -> (Method, String, Option<bytes::Bytes>) {
        let post = |path: &str| (Method::POST, path.to_owned(), None);
        match self {
            Self::Start => post("start"),
            Self::Stop(body) => with_body("stop", body),
            Self::EnableReplication(body) => with_body("replication", body),
            Self::StartReplication(body) => with_body("replication/start", body),
            Self::CancelInitialReplication => post("replication/cancel-initial"),
            Self::Suspend => post("replication/suspend"),
            Self::Resume => post("replication/resume"),
            Self::Resynchronize(body) => with_body("replication/resync", body),
            Self::CancelResynchronize => post("replication/cancel-resync"),
            Self::Reverse(body) => with_body("replication/reverse", body),
            Self::ReplicateNow => post("replication/now"),
            Self::ModifySettings(body) => {
                (Method::PATCH, "replication".to_owned(), Some(json(body)))
            }
            Self::RemoveReplication => (Method::DELETE, "replication".to_owned(), None),
            Self::TestFailover(body) => with_body("failover/test", body),
            Self::EndTestFailover => post("failover/test-end"),
            Self::PrepareFailover => post("failover/prepare"),
            Self::CancelPlannedFailover(body) => with_body("failover/cancel-prepare", body),
            Self::InitiateFailover(body) => with_body("failover/start", body),
            Self::RevertFailover => post("failover/revert"),
            Self::CommitFailover => post("failover/commit"),
            Self::NameSurvivor(body) => with_body("failover/survivor", body),
            Self::MakePoint => post("points"),
            Self::RemovePoint(sequence) => (Method::DELETE, format!("points/{sequence}"), None),
            Self::VerifyPoint(Some(sequence)) => post(&format!("points/{sequence}/verify")),
            Self::VerifyPoint(None) => post("points/newest/verify"),
            Self::ResetStatistics => post("statistics/reset"),
        }
    }
}

fn with_body(path: &str, body: &impl Serialize) -> (Method, String, Option<bytes::Bytes>) {
    (Method::POST, path.to_owned(), Some(json(body)))
}

/// Every call fails as [`ClientError`] says.
#[expect(clippy::missing_errors_doc, reason = "each fails as ClientError says")]
impl Client {
    pub fn host(&self) -> Result<Answer<Host>, ClientError> {
        self.get("/v1/host")
    }

    pub fn host_settings(&self) -> Result<Answer<ServiceSettings>, ClientError> {
        self.get("/v1/host/settings")
    }

    pub fn modify_host_settings(&self, change: &ServiceSettingsChange) -> Result<(), ClientError> {
        self.change(Method::PATCH, "/v1/host/settings", Some(json(change)))
    }

    pub fn test_connection(
        &self,
        test: &TestConnection,
    ) -> Result<Answer<Connection>, ClientError> {
        self.query("/v1/test-connection", test)
    }

    pub fn vms(&self) -> Result<Answer<Vec<Vm>>, ClientError> {
        self.get("/v1/vms")
    }

    pub fn vm(&self, vm: &str) -> Result<Answer<Vm>, ClientError> {
        self.get(&of_vm(vm, ""))
    }

    pub fn define_vm(&self, vm: &DefineVm) -> Result<Answer<Vm>, ClientError> {
        self.query("/v1/vms", vm)
    }

    pub fn undefine_vm(&self, vm: &str) -> Result<(), ClientError> {
        self.change(Method::DELETE, &of_vm(vm, ""), None)
    }

    pub fn request(&self, vm: &str, request: &VmRequest) -> Result<Outcome, ClientError> {
        let (method, path, body) = request.parts();
        self.operate(method, &of_vm(vm, &format!("/{path}")), body)
    }

    pub fn relationships(&self, vm: &str) -> Result<Answer<Vec<Relationship>>, ClientError> {
        self.get(&of_vm(vm, "/replication"))
    }

    pub fn points(&self, vm: &str) -> Result<Answer<Vec<Point>>, ClientError> {
        self.get(&of_vm(vm, "/points"))
    }

    pub fn health(&self, vm: &str) -> Result<Answer<Health>, ClientError> {
        self.get(&of_vm(vm, "/health"))
    }

    pub fn check(&self, vm: &str) -> Result<Answer<Check>, ClientError> {
        self.get(&of_vm(vm, "/check"))
    }

    pub fn statistics(&self, vm: &str) -> Result<Answer<Statistics>, ClientError> {
        self.get(&of_vm(vm, "/statistics"))
    }

    /// All jobs.
    pub fn jobs(&self) -> Result<Answer<Vec<Job>>, ClientError> {
        self.get("/v1/jobs")
    }

    /// The jobs that have not ended.
    pub fn running_jobs(&self) -> Result<Answer<Vec<Job>>, ClientError> {
        self.get("/v1/jobs?running=true")
    }

    pub fn job(&self, job: &str) -> Result<Answer<Job>, ClientError> {
        self.get(&format!("/v1/jobs/{}", segment(job)))
    }

    /// The job when it has ended, or as it is after so many seconds, at most 60.
    pub fn wait_for_job(&self, job: &str, seconds: u64) -> Result<Answer<Job>, ClientError> {
        self.get(&format!("/v1/jobs/{}/wait?seconds={seconds}", segment(job)))
    }

    pub fn cancel_job(&self, job: &str) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{}/cancel", segment(job));
        self.change(Method::POST, &path, None)
    }

    /// Events after one, oldest first; at most 1000.
    pub fn events(&self, since: u64, limit: usize) -> Result<Answer<Vec<Event>>, ClientError> {
        self.get(&format!("/v1/events?since={since}&limit={limit}"))
    }

    /// The newest events, oldest first; at most 1000.
    pub fn newest_events(&self, limit: usize) -> Result<Answer<Vec<Event>>, ClientError> {
        self.get(&format!("/v1/events?limit={limit}"))
    }

    /// Who did what, the newest first; at most 1000.
    pub fn audit(&self, limit: usize) -> Result<Answer<Vec<AuditRecord>>, ClientError> {
        self.get(&format!("/v1/audit?limit={limit}"))
    }

    pub fn authorization_entries(&self) -> Result<Answer<Vec<AuthorizationEntry>>, ClientError> {
        self.get("/v1/authorization-entries")
    }

    pub fn add_authorization_entry(&self, entry: &AuthorizationEntry) -> Result<(), ClientError> {
        self.change(Method::POST, "/v1/authorization-entries", Some(json(entry)))
    }

    pub fn modify_authorization_entry(
        &self,
        entry: &AuthorizationEntry,
    ) -> Result<(), ClientError> {
        let path = of_entry(&entry.allowed_primary_host_system);
        self.change(Method::PUT, &path, Some(json(entry)))
    }

    pub fn remove_authorization_entry(&self, host: &str) -> Result<(), ClientError> {
        self.change(Method::DELETE, &of_entry(host), None)
    }
}

fn of_vm(vm: &str, path: &str) -> String {
    format!("/v1/vms/{}{path}", segment(vm))
}

fn of_entry(host: &str) -> String {
    format!("/v1/authorization-entries/{}", segment(host))
}
