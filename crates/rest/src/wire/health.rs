//! How a relationship is doing.

use lifeboat_service::api::{self, CheckView, HealthView, LossView, StartView, StatisticsView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Time, severity};

/// How a relationship is doing, why, and what a failover now would mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    pub vm: String,
    pub replication_health: u16,
    pub replication_health_text: String,
    pub reasons: Vec<HealthReason>,
    pub loss: Loss,
    pub start: Start,
}

/// One reason for the health being what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthReason {
    /// A word for what is the case, such as `space_low`; it stays the same while texts may change.
    pub kind: String,
    pub replication_health: u16,
    pub replication_health_text: String,
    pub what: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// What a failover now would lose, as far as it is known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Loss {
    /// Since the newest moment that the replica has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Changed since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// How long a start of the newest moment would take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Start {
    /// Received, and to be applied first.
    pub backlog_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// Whether a failover would work now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    pub vm: String,
    pub would_work: bool,
    pub findings: Vec<CheckFinding>,
    pub loss: Loss,
    pub start: Start,
}

/// Something that the check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckFinding {
    /// `info`, `warning` or `error`.
    pub severity: String,
    pub what: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// Statistics of the running monitoring cycle (`Msvm_ReplicationStatistics`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    pub start_statistic_time: Time,
    pub end_statistic_time: Time,
    pub replication_success_count: u32,
    /// The average, in bytes.
    pub replication_size: u64,
    /// In bytes.
    pub max_replication_size: u64,
    /// The average, in seconds.
    pub replication_latency: u32,
    pub replication_miss_count: u32,
    /// In seconds.
    pub max_replication_latency: u32,
    pub network_failure_count: u32,
    pub replication_failure_count: u32,
    /// In bytes; absent where changes may have been missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_replication_size: Option<u64>,
    pub application_consistent_snapshot_failure_count: u32,
    pub replication_health: u16,
    pub replication_health_text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_test_failover_time: Option<Time>,
}

impl From<HealthView> for Health {
    fn from(view: HealthView) -> Self {
        Self {
            vm: view.vm.to_string(),
            replication_health: view.health.number(),
            replication_health_text: view.health.to_string(),
            reasons: view.reasons.into_iter().map(HealthReason::from).collect(),
            loss: view.loss.into(),
            start: view.start.into(),
        }
    }
}

impl From<api::HealthReason> for HealthReason {
    fn from(reason: api::HealthReason) -> Self {
        Self {
            kind: reason.kind.to_owned(),
            replication_health: reason.health.number(),
            replication_health_text: reason.health.to_string(),
            what: reason.what,
            remedy: reason.remedy,
        }
    }
}

impl From<LossView> for Loss {
    fn from(view: LossView) -> Self {
        Self {
            seconds: view.seconds,
            bytes: view.bytes,
        }
    }
}

impl From<StartView> for Start {
    fn from(view: StartView) -> Self {
        Self {
            backlog_bytes: view.backlog_bytes,
            seconds: view.seconds,
        }
    }
}

impl From<CheckView> for Check {
    fn from(view: CheckView) -> Self {
        let finding = |finding: api::CheckFinding| CheckFinding {
            severity: severity(finding.severity).to_owned(),
            what: finding.what,
            remedy: finding.remedy,
        };
        Self {
            vm: view.vm.to_string(),
            would_work: view.would_work,
            findings: view.findings.into_iter().map(finding).collect(),
            loss: view.loss.into(),
            start: view.start.into(),
        }
    }
}

impl From<StatisticsView> for Statistics {
    fn from(view: StatisticsView) -> Self {
        Self {
            start_statistic_time: view.start_statistic_time.into(),
            end_statistic_time: view.end_statistic_time.into(),
            replication_success_count: view.replication_success_count,
            replication_size: view.replication_size,
            max_replication_size: view.max_replication_size,
            replication_latency: view.replication_latency,
            replication_miss_count: view.replication_miss_count,
            max_replication_latency: view.max_replication_latency,
            network_failure_count: view.network_failure_count,
            replication_failure_count: view.replication_failure_count,
            pending_replication_size: view.pending_replication_size,
            application_consistent_snapshot_failure_count: view
                .application_consistent_snapshot_failure_count,
            replication_health: view.replication_health.number(),
            replication_health_text: view.replication_health.to_string(),
            last_test_failover_time: view.last_test_failover_time.map(Time),
        }
    }
}
