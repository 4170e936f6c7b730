//! What happened, and who did what.

use lifeboat_service::api::{AuditView, EventView, Severity};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Time;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Rises by one; never used twice.
    pub id: u64,
    pub time: Time,
    /// `info`, `warning` or `error`.
    pub severity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// A word that programs can rely on.
    pub kind: String,
    pub message: String,
}

/// Events that a stream could not give, because they are no longer kept or because the
/// numbers that the client knows are not of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventGap {
    /// The last event that the client has.
    pub after: u64,
    /// The first one that follows in the stream.
    pub next: u64,
}

/// Who did what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    pub id: u64,
    pub time: Time,
    pub caller: String,
    pub role: String,
    pub operation: String,
    pub target: String,
    /// What was asked for in detail, as it is asked for in requests; left out where there is
    /// nothing to say. In records of earlier versions it is a text for people.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
    pub outcome: String,
}

/// How bad something is, in one word.
#[must_use]
pub const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

impl From<EventView> for Event {
    fn from(view: EventView) -> Self {
        Self {
            id: view.id,
            time: view.at.into(),
            severity: severity(view.severity).to_owned(),
            vm: view.vm.map(|vm| vm.to_string()),
            kind: view.kind,
            message: view.message,
        }
    }
}

impl From<AuditView> for AuditRecord {
    fn from(view: AuditView) -> Self {
        Self {
            id: view.id,
            time: view.at.into(),
            caller: view.caller,
            role: view.role,
            operation: view.operation,
            target: view.target,
            arguments: view.arguments,
            outcome: view.outcome,
        }
    }
}
