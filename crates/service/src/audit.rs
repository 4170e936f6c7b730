//! Who did what: one row for each change that was asked for, accepted or not.
//!
//! What was asked for in detail is JSON, with the names of the contract as the REST interface
//! writes them. Every operation says itself what of it is noted, so that nothing gets in unseen.
//! No request has a secret in it: certificates and keys are files on the hosts.

use lifeboat_catalog::{Document, NewAuditRow};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::{
    AccessRole, AuditView, Caller, EnableReplication, NewVm, NewVmDisk, Rejection,
    ReverseReplication, StopHow, Survivor, Urgency, VmOperation,
};
use crate::ledger::document;
use crate::rejection::not_read;
use crate::service::{Service, with_causes};

/// The longest arguments of a row, in bytes of JSON; of longer ones only the length is kept.
const LONGEST: usize = 16 << 10;

impl Service {
    /// Writes who did what, and passes the outcome on.
    pub(crate) fn audited<T>(
        &self,
        caller: &Caller,
        operation: &str,
        target: &str,
        arguments: Value,
        outcome: Result<T, Rejection>,
    ) -> Result<T, Rejection> {
        let told = match &outcome {
            Ok(_) => "accepted".to_owned(),
            Err(rejection) => format!("{}: {}", rejection.code.number(), rejection.what),
        };
        let row = NewAuditRow {
            at: self.now(),
            caller: caller.name.clone(),
            role: role_name(caller.role).to_owned(),
            operation: operation.to_owned(),
            target: target.to_owned(),
            arguments: document(&bounded(arguments)),
            outcome: told.chars().take(1000).collect(),
        };
        if let Err(error) = self.inner.ledger.add_audit(&row) {
            tracing::error!("write the audit: {}", with_causes(&error));
        }
        outcome
    }

    /// The newest rows, newest first.
    pub(crate) fn audit_rows(&self, limit: usize) -> Result<Vec<AuditView>, Rejection> {
        let rows = self
            .inner
            .ledger
            .audit(limit)
            .map_err(|error| not_read("the audit", &error))?;
        Ok(rows
            .into_iter()
            .map(|row| AuditView {
                id: row.number,
                at: row.row.at,
                caller: row.row.caller,
                role: row.row.role,
                operation: row.row.operation,
                target: row.row.target,
                arguments: kept_arguments(&row.row.arguments),
                outcome: row.row.outcome,
            })
            .collect())
    }
}

/// As a row has them. Those of earlier builds are a text, which was empty where there was nothing
/// to say.
fn kept_arguments(kept: &Document) -> Value {
    match kept.to().unwrap_or_default() {
        Value::String(text) if text.is_empty() => Value::Null,
        arguments => arguments,
    }
}

fn bounded(arguments: Value) -> Value {
    let bytes = arguments.to_string().len();
    if bytes <= LONGEST {
        arguments
    } else {
        json!({ "left_out_bytes": bytes })
    }
}

/// What the arguments are of one of the service's own documents.
pub(crate) fn arguments_of<T: Serialize>(document: &T) -> Value {
    serde_json::to_value(document).expect("BUG: what the service takes can be written as JSON")
}

/// Properties of which those without a value are left out; nothing where none has one.
fn properties<const N: usize>(all: [(&str, Value); N]) -> Value {
    let given = all
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.to_owned(), value));
    let given: Map<String, Value> = given.collect();
    if given.is_empty() {
        Value::Null
    } else {
        Value::Object(given)
    }
}

/// What of a change was given; nothing where nothing was.
fn change<T: Serialize>(change: &T) -> Value {
    match arguments_of(change) {
        Value::Object(given) if given.is_empty() => Value::Null,
        given => given,
    }
}

/// Text, or nothing.
fn text(value: Option<impl ToString>) -> Value {
    value.map_or(Value::Null, |value| Value::String(value.to_string()))
}

fn is_forced(how: Urgency) -> Value {
    Value::Bool(match how {
        Urgency::Checked => false,
        Urgency::Forced => true,
    })
}

/// What is noted of a VM that is made.
pub(crate) fn arguments_of_vm(vm: &NewVm) -> Value {
    let disk = |disk: &NewVmDisk| {
        properties([
            ("disk", text(Some(&disk.id))),
            (
                "size",
                disk.size.map_or(Value::Null, |size| json!(size.bytes())),
            ),
            (
                "image",
                text(disk.image.as_ref().map(|path| path.display())),
            ),
        ])
    };
    properties([
        ("name", text(vm.id)),
        ("element_name", json!(vm.name)),
        ("memory_mib", json!(vm.memory_mib)),
        ("processors", json!(vm.processors)),
        ("disks", vm.disks.iter().map(disk).collect()),
    ])
}

impl VmOperation {
    /// What is noted of it; nothing where the operation and its target say it all.
    pub(crate) fn arguments(&self) -> Value {
        let point = |point: &Option<lifeboat_model::Sequence>| {
            point.map_or(Value::Null, |point| json!(point.number()))
        };
        match self {
            Self::StartVm
            | Self::CancelInitialReplication
            | Self::Suspend
            | Self::Resume
            | Self::CancelResynchronize
            | Self::PreparePlannedFailover
            | Self::RevertFailover
            | Self::CommitFailover
            | Self::EndTestFailover
            | Self::RemoveReplication
            | Self::ResetStatistics
            | Self::MakePoint
            | Self::ReplicateNow => Value::Null,
            Self::StopVm { how } => properties([(
                "how",
                json!(match how {
                    StopHow::ShutDown => "shut_down",
                    StopHow::PowerOff => "power_off",
                }),
            )]),
            Self::EnableReplication(EnableReplication {
                recovery_connection_point,
                recovery_host_name,
                kept_replica,
                settings,
            }) => properties([
                (
                    "recovery_connection_point",
                    json!(recovery_connection_point),
                ),
                ("recovery_host_name", text(recovery_host_name.as_ref())),
                ("kept_replica", text(*kept_replica)),
                ("settings", change(settings)),
            ]),
            Self::StartReplication { kind, at } => properties([
                ("initial_replication_type", json!(kind.number())),
                ("start_time", text(*at)),
            ]),
            Self::Resynchronize { at } => properties([("start_time", text(*at))]),
            Self::CancelPlannedFailover { how } => properties([("force", is_forced(*how))]),
            Self::InitiateFailover { point: at, how } => {
                properties([("point", point(at)), ("force", is_forced(*how))])
            }
            Self::NameSurvivor(survivor) => properties([(
                "survivor",
                json!(match survivor {
                    Survivor::ThisHost => "this_host",
                    Survivor::OtherHost => "other_host",
                }),
            )]),
            Self::ReverseReplication(ReverseReplication {
                recovery_connection_point,
                settings,
            }) => properties([
                (
                    "recovery_connection_point",
                    text(recovery_connection_point.as_ref()),
                ),
                ("settings", change(settings)),
            ]),
            Self::TestFailover { point: at } | Self::VerifyPoint { point: at } => {
                properties([("point", point(at))])
            }
            Self::RemovePoint { point: at } => properties([("point", json!(at.number()))]),
            Self::ModifySettings(settings) => change(settings),
        }
    }

    /// What it is called: by the schema's name of the method where there is one.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::StartVm => "start_vm",
            Self::StopVm { .. } => "stop_vm",
            Self::EnableReplication(_) => "create_replication_relationship",
            Self::StartReplication { .. } => "start_replication",
            Self::CancelInitialReplication => "cancel_initial_replication",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Resynchronize { .. } => "resynchronize",
            Self::CancelResynchronize => "cancel_resynchronize",
            Self::PreparePlannedFailover => "prepare_planned_failover",
            Self::CancelPlannedFailover { .. } => "cancel_planned_failover",
            Self::InitiateFailover { .. } => "initiate_failover",
            Self::RevertFailover => "revert_failover",
            Self::CommitFailover => "commit_failover",
            Self::NameSurvivor(_) => "name_survivor",
            Self::ReverseReplication(_) => "reverse_replication_relationship",
            Self::TestFailover { .. } => "test_replica_system",
            Self::EndTestFailover => "end_test_failover",
            Self::ModifySettings(_) => "modify_replication_settings",
            Self::RemoveReplication => "remove_replication_relationship",
            Self::ResetStatistics => "reset_replication_statistics",
            Self::MakePoint => "make_point",
            Self::RemovePoint { .. } => "remove_point",
            Self::VerifyPoint { .. } => "verify_point",
            Self::ReplicateNow => "replicate_now",
        }
    }
}

const fn role_name(role: AccessRole) -> &'static str {
    match role {
        AccessRole::Viewer => "viewer",
        AccessRole::Operator => "operator",
        AccessRole::Administrator => "administrator",
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_model::contract::InitialReplicationType;
    use lifeboat_model::settings::SettingsChange;
    use lifeboat_model::{RelationshipId, Sequence, Timestamp};

    use super::*;

    #[test]
    fn arguments_are_json_with_the_names_of_the_contract() {
        let settings = SettingsChange {
            replication_interval: Some(300),
            auto_resynchronize_enabled: Some(true),
            ..SettingsChange::default()
        };
        let enable = VmOperation::EnableReplication(EnableReplication {
            recovery_connection_point: "beta.test:8473".to_owned(),
            recovery_host_name: None,
            kept_replica: Some(RelationshipId::from_bytes([0xab; 16])),
            settings: settings.clone(),
        });
        let at = Some(Timestamp::from_micros(1_800_000_000_000_000));
        let rows: Vec<(VmOperation, &str, &str)> = vec![
            (VmOperation::StartVm, "start_vm", "null"),
            (
                VmOperation::StopVm {
                    how: StopHow::PowerOff,
                },
                "stop_vm",
                r#"{"how":"power_off"}"#,
            ),
            (
                enable,
                "create_replication_relationship",
                r#"{"kept_replica":"abababababababababababababababab","recovery_connection_point":"beta.test:8473","settings":{"auto_resynchronize_enabled":true,"replication_interval":300}}"#,
            ),
            (
                VmOperation::StartReplication {
                    kind: InitialReplicationType::NetworkTransfer,
                    at,
                },
                "start_replication",
                r#"{"initial_replication_type":1,"start_time":"2027-01-15T08:00:00Z"}"#,
            ),
            (
                VmOperation::InitiateFailover {
                    point: Some(Sequence::new(7)),
                    how: Urgency::Forced,
                },
                "initiate_failover",
                r#"{"force":true,"point":7}"#,
            ),
            (
                VmOperation::InitiateFailover {
                    point: None,
                    how: Urgency::Checked,
                },
                "initiate_failover",
                r#"{"force":false}"#,
            ),
            (
                VmOperation::NameSurvivor(Survivor::OtherHost),
                "name_survivor",
                r#"{"survivor":"other_host"}"#,
            ),
            (
                VmOperation::ModifySettings(settings),
                "modify_replication_settings",
                r#"{"auto_resynchronize_enabled":true,"replication_interval":300}"#,
            ),
            (
                VmOperation::ReverseReplication(ReverseReplication::default()),
                "reverse_replication_relationship",
                "null",
            ),
        ];
        for (operation, name, arguments) in rows {
            assert_eq!(operation.name(), name);
            assert_eq!(operation.arguments().to_string(), arguments);
        }
    }

    #[test]
    fn a_vm_that_is_made_is_noted_as_it_was_asked_for() {
        let disk = |id: &str, image: Option<&str>| NewVmDisk {
            id: id.parse().unwrap(),
            size: image.is_none().then(|| (1 << 20).try_into().unwrap()),
            image: image.map(Into::into),
        };
        let vm = NewVm {
            id: None,
            name: "web".to_owned(),
            memory_mib: 64,
            processors: 2,
            disks: vec![disk("vda", None), disk("vdb", Some("/srv/b.raw"))],
        };
        assert_eq!(
            arguments_of_vm(&vm).to_string(),
            r#"{"disks":[{"disk":"vda","size":1048576},{"disk":"vdb","image":"/srv/b.raw"}],"element_name":"web","memory_mib":64,"processors":2}"#
        );
    }

    #[test]
    fn rows_of_earlier_builds_stay_readable() {
        let text = "InitiateFailover { point: None, how: Checked }";
        assert_eq!(kept_arguments(&document(&text)), text);
        assert_eq!(kept_arguments(&document(&"")), Value::Null);
        let arguments = json!({ "point": 7 });
        assert_eq!(kept_arguments(&document(&arguments)), arguments);
    }

    #[test]
    fn arguments_without_end_are_not_kept() {
        let long = json!({ "included_disks": vec!["x"; LONGEST] });
        let bytes = long.to_string().len();
        assert_eq!(bounded(long), json!({ "left_out_bytes": bytes }));
    }
}
