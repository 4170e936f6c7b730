//! What is worth an alert.

use std::time::Duration;

use lifeboat_model::contract::{ReplicationMode, ReturnCode};
use lifeboat_model::health::CERTIFICATE_NOTICE;
use lifeboat_model::{Timestamp, VmId};
use lifeboat_service::api::{
    Caller, EventView, HealthReason, Operations, Rejection, Severity, VmRef, VmView,
};
use serde::Serialize;

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    pub kind: AlertKind,
    /// Tells how bad it is apart within a kind; empty for kinds without degrees.
    pub degree: &'static str,
    pub severity: Severity,
    /// Absent: the host itself.
    pub vm: Option<VmId>,
    pub vm_name: Option<String>,
    pub at: Timestamp,
    pub message: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// What an alert is about: a word that programs can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    ReplicationCritical,
    /// Cycles are missed, or nothing comes through for too long.
    RpoMissed,
    DiskFilling,
    CertificateExpiring,
    SplitBrain,
    /// What was received cannot be applied to the replica.
    ApplyFailed,
    /// A failover failed, or a VM did not start.
    OperationFailed,
}

impl AlertKind {
    /// For people: the beginning of a subject.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::ReplicationCritical => "replication is critical",
            Self::RpoMissed => "replication is late",
            Self::DiskFilling => "the replica's disk fills",
            Self::CertificateExpiring => "the certificate expires",
            Self::SplitBrain => "split brain",
            Self::ApplyFailed => "changes cannot be applied",
            Self::OperationFailed => "an operation failed",
        }
    }
}

/// What helps with an event of many causes.
const SEE_HEALTH: &str =
    "`lifeboat health` and `lifeboat job list` on this host say why, and what helps";

/// The alert that an event is worth, if any.
pub(super) fn of_event(event: &EventView) -> Option<Alert> {
    let (kind, remedy) = match event.kind.as_str() {
        "split_brain" => (
            AlertKind::SplitBrain,
            "stop the VM on the host where it should not run, compare what both hold, then say whose history is kept: `lifeboat failover survivor`",
        ),
        "fenced" => (
            AlertKind::ReplicationCritical,
            "stop the VM on this host if it still runs; use it on the other host, and reverse replication there",
        ),
        "replication_critical" | "resync_required" | "replica_differs" | "disks_unavailable" => {
            (AlertKind::ReplicationCritical, SEE_HEALTH)
        }
        "failover_failed" | "vm_not_started" | "vm_held" => {
            (AlertKind::OperationFailed, SEE_HEALTH)
        }
        _ => return None,
    };
    Some(Alert {
        kind,
        degree: "",
        severity: event.severity,
        vm: event.vm,
        vm_name: None,
        at: event.at,
        message: event.message.clone(),
        remedy: remedy.to_owned(),
    })
}

/// The alerts that the present health is worth.
pub(super) fn look(
    operations: &dyn Operations,
    caller: &Caller,
    now: Timestamp,
) -> Result<Vec<Alert>, Rejection> {
    let mut alerts = Vec::new();
    let host = operations.host(caller)?;
    if let Some(expires) = host.certificate_expires_at {
        alerts.extend(of_certificate(&host.host, expires, now));
    }
    for vm in operations.vms(caller)? {
        if vm.relationships.is_empty() {
            continue;
        }
        let health = match operations.health(caller, &VmRef::Id(vm.id)) {
            Ok(health) => health,
            // It went away meanwhile.
            Err(rejection) if rejection.code == ReturnCode::FileNotFound => continue,
            Err(rejection) => return Err(rejection),
        };
        let reasons = health.reasons.iter();
        alerts.extend(reasons.filter_map(|reason| of_reason(&vm, reason, now)));
    }
    Ok(alerts)
}

/// The alert that a reason of a VM's health is worth, if any. What operators did on purpose, such
/// as a pause, is worth none.
fn of_reason(vm: &VmView, reason: &HealthReason, now: Timestamp) -> Option<Alert> {
    let (kind, degree) = match reason.kind {
        "cycles_missed" | "nothing_sent" | "nothing_received" => (AlertKind::RpoMissed, ""),
        "backlog_too_long" => (AlertKind::RpoMissed, "backlog"),
        "space_low" => (AlertKind::DiskFilling, "low"),
        "space_critical" | "reserve_missing" => (AlertKind::DiskFilling, "critical"),
        "replication_error" => match vm.replication_mode {
            ReplicationMode::Replica | ReplicationMode::ExtendedReplica => {
                (AlertKind::ApplyFailed, "")
            }
            ReplicationMode::None | ReplicationMode::Primary | ReplicationMode::TestReplica => {
                (AlertKind::ReplicationCritical, "")
            }
        },
        "operation_unfinished" => (AlertKind::OperationFailed, ""),
        "cannot_send" | "resynchronization_required" | "state_unknown" => {
            (AlertKind::ReplicationCritical, "")
        }
        "catalog_stopped" => (AlertKind::ReplicationCritical, "catalog"),
        _ => return None,
    };
    let severity = match reason.health {
        lifeboat_model::contract::ReplicationHealth::Critical => Severity::Error,
        lifeboat_model::contract::ReplicationHealth::NotApplicable
        | lifeboat_model::contract::ReplicationHealth::Ok
        | lifeboat_model::contract::ReplicationHealth::Warning => Severity::Warning,
    };
    Some(Alert {
        kind,
        degree,
        severity,
        vm: Some(vm.id),
        vm_name: Some(vm.name.clone()),
        at: now,
        message: format!("{}: {}", vm.name, reason.what),
        remedy: reason.remedy.clone(),
    })
}

/// The host's certificate is everybody's, so it is told once and not for each VM.
fn of_certificate(host: &str, expires: Timestamp, now: Timestamp) -> Option<Alert> {
    let left = expires.as_micros().saturating_sub(now.as_micros());
    let left = Duration::from_micros(left);
    if left > CERTIFICATE_NOTICE {
        return None;
    }
    let (degree, severity, message) = if left.is_zero() {
        let message = format!("the certificate of {host} expired at {expires}");
        ("expired", Severity::Error, message)
    } else {
        let message = format!("the certificate of {host} expires at {expires}");
        ("expires", Severity::Warning, message)
    };
    Some(Alert {
        kind: AlertKind::CertificateExpiring,
        degree,
        severity,
        vm: None,
        vm_name: None,
        at: now,
        message,
        remedy: "renew it with `lifeboat certificate renew`, then `systemctl reload lifeboat`"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use lifeboat_model::contract::{FailoverType, ReplicationHealth, ReplicationState};

    use super::*;

    fn event(kind: &str) -> EventView {
        EventView {
            id: 7,
            at: Timestamp::from_micros(1_000_000),
            severity: Severity::Error,
            vm: Some(VmId::from_bytes([1; 16])),
            kind: kind.to_owned(),
            message: format!("web1: {kind}"),
        }
    }

    fn vm(replication_mode: ReplicationMode) -> VmView {
        VmView {
            id: VmId::from_bytes([1; 16]),
            name: "web1".to_owned(),
            driver: "volume".to_owned(),
            running: true,
            replication_mode,
            replication_state: ReplicationState::Replicating,
            replication_health: ReplicationHealth::Critical,
            failed_over_replication_type: FailoverType::None,
            disks: Vec::new(),
            test_replica: None,
            test_of: None,
            relationships: Vec::new(),
        }
    }

    fn reason(kind: &'static str) -> HealthReason {
        HealthReason {
            kind,
            health: ReplicationHealth::Critical,
            what: "because".to_owned(),
            remedy: "do something".to_owned(),
        }
    }

    #[test]
    fn what_needs_somebody_is_an_alert_and_daily_work_is_none() {
        let kind = |event: &EventView| of_event(event).map(|alert| alert.kind);
        assert_eq!(kind(&event("split_brain")), Some(AlertKind::SplitBrain));
        assert_eq!(kind(&event("fenced")), Some(AlertKind::ReplicationCritical));
        assert_eq!(
            kind(&event("failover_failed")),
            Some(AlertKind::OperationFailed)
        );
        for daily in [
            "state_changed",
            "vm_started",
            "test_failover",
            "replica_made",
        ] {
            assert_eq!(kind(&event(daily)), None, "{daily}");
        }
    }

    #[test]
    fn a_host_that_remembers_nothing_any_more_is_an_alert_of_its_own() {
        let now = Timestamp::from_micros(1);
        let alert = of_reason(
            &vm(ReplicationMode::Primary),
            &reason("catalog_stopped"),
            now,
        );
        let alert = alert.unwrap();
        assert_eq!(
            (alert.kind, alert.degree, alert.severity),
            (AlertKind::ReplicationCritical, "catalog", Severity::Error)
        );
    }

    #[test]
    fn an_error_of_a_replica_is_one_of_applying_and_an_error_of_a_primary_is_not() {
        let now = Timestamp::from_micros(1);
        let kind = |mode| of_reason(&vm(mode), &reason("replication_error"), now).map(|a| a.kind);
        assert_eq!(kind(ReplicationMode::Replica), Some(AlertKind::ApplyFailed));
        assert_eq!(
            kind(ReplicationMode::Primary),
            Some(AlertKind::ReplicationCritical)
        );
    }

    #[test]
    fn a_disk_that_fills_up_further_is_told_apart_and_a_pause_is_nobodys_alarm() {
        let now = Timestamp::from_micros(1);
        let of = |kind| of_reason(&vm(ReplicationMode::Replica), &reason(kind), now);
        let low = of("space_low").unwrap();
        let critical = of("space_critical").unwrap();
        assert_eq!(
            (low.kind, critical.kind),
            (AlertKind::DiskFilling, AlertKind::DiskFilling)
        );
        assert_ne!(low.degree, critical.degree);
        assert_eq!(critical.message, "web1: because");
        assert_eq!(critical.remedy, "do something");
        assert_eq!(of("paused_on_replica"), None);
        assert_eq!(of("initial_replication_incomplete"), None);
    }

    #[test]
    fn a_certificate_is_told_in_time_and_once_more_when_it_has_expired() {
        let day = 86_400_000_000;
        let expires = Timestamp::from_micros(100 * day);
        let at = |days: u64| of_certificate("alpha", expires, Timestamp::from_micros(days * day));
        assert_eq!(at(50), None);
        let soon = at(75).unwrap();
        assert_eq!((soon.degree, soon.severity), ("expires", Severity::Warning));
        let late = at(101).unwrap();
        assert_eq!((late.degree, late.severity), ("expired", Severity::Error));
        assert!(late.message.contains("alpha"));
    }
}
