//! What is asked in bodies and paths.

use std::path::PathBuf;
use std::str::FromStr;

use lifeboat_model::contract::InitialReplicationType;
use lifeboat_model::{DiskSize, InvalidId, Sequence, VmId};
use lifeboat_service::api::{self, Urgency, VmOperation, VmRef};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{SettingsChange, Time};

/// The longest name of a VM that is looked for, in characters.
const MAX_VM_NAME: usize = 256;

/// A value that no request can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{property} is {given}: {remedy}")]
pub struct InvalidRequest {
    pub property: &'static str,
    /// The beginning of what was given.
    pub given: String,
    pub remedy: String,
}

impl InvalidRequest {
    pub(crate) fn new(property: &'static str, given: &str, remedy: impl Into<String>) -> Self {
        Self {
            property,
            given: format!("{:?}", given.chars().take(80).collect::<String>()),
            remedy: remedy.into(),
        }
    }
}

/// An id, if one is given.
fn parse_id<T: FromStr<Err = InvalidId>>(
    property: &'static str,
    text: Option<&str>,
) -> Result<Option<T>, InvalidRequest> {
    let parsed = text.map(|text| {
        text.parse()
            .map_err(|error: InvalidId| InvalidRequest::new(property, text, error.to_string()))
    });
    parsed.transpose()
}

/// The VM that a path names: an id of 32 hexadecimal digits, with or without hyphens, or a name.
///
/// # Errors
/// When no VM can have such a name.
pub fn parse_vm(text: &str) -> Result<VmRef, InvalidRequest> {
    let grouped = text.len() == 36
        && [8, 13, 18, 23]
            .iter()
            .all(|&at| text.as_bytes()[at] == b'-');
    let digits = if grouped {
        text.replace('-', "")
    } else {
        text.to_owned()
    };
    if let Ok(id) = digits.parse::<VmId>() {
        return Ok(VmRef::Id(id));
    }
    let length = text.chars().count();
    if length == 0 || length > MAX_VM_NAME || text.chars().any(char::is_control) {
        let remedy = format!("use a VM's id, or its name of at most {MAX_VM_NAME} characters");
        return Err(InvalidRequest::new("vm", text, remedy));
    }
    Ok(VmRef::Name(text.to_owned()))
}

/// A body that says nothing: absent, or an object without properties.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Makes a VM of the embedded driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefineVm {
    /// The id that a lost catalog had for it, 32 hexadecimal digits; a new one unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub element_name: String,
    pub memory_mib: u32,
    pub processors: u32,
    pub disks: Vec<DefineVmDisk>,
}

/// A disk of a VM that is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefineVmDisk {
    pub disk: String,
    /// In bytes; the image's length unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// An existing raw image on the host to use in place; a new one of zeroes unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl TryFrom<DefineVm> for api::NewVm {
    type Error = InvalidRequest;

    fn try_from(vm: DefineVm) -> Result<Self, InvalidRequest> {
        let disks = vm.disks.into_iter().map(api::NewVmDisk::try_from);
        Ok(Self {
            id: parse_id("name", vm.name.as_deref())?,
            name: vm.element_name,
            memory_mib: vm.memory_mib,
            processors: vm.processors,
            disks: disks.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<DefineVmDisk> for api::NewVmDisk {
    type Error = InvalidRequest;

    fn try_from(disk: DefineVmDisk) -> Result<Self, InvalidRequest> {
        let id = disk.disk.parse();
        let id = id.map_err(|error: lifeboat_model::InvalidDiskId| {
            InvalidRequest::new("disks.disk", &disk.disk, error.to_string())
        })?;
        let size = disk.size.map(|bytes| {
            DiskSize::try_from(bytes).map_err(|error| {
                InvalidRequest::new("disks.size", &bytes.to_string(), error.to_string())
            })
        });
        Ok(Self {
            id,
            size: size.transpose()?,
            image: disk.image.map(PathBuf::from),
        })
    }
}

/// How a VM is stopped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopHow {
    #[default]
    ShutDown,
    PowerOff,
}

/// Stops a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopVm {
    /// `shut_down` unless given.
    pub how: StopHow,
}

impl From<StopVm> for VmOperation {
    fn from(stop: StopVm) -> Self {
        let how = match stop.how {
            StopHow::ShutDown => api::StopHow::ShutDown,
            StopHow::PowerOff => api::StopHow::PowerOff,
        };
        Self::StopVm { how }
    }
}

/// Makes a relationship (`CreateReplicationRelationship`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnableReplication {
    /// `host:port` of the replica's host.
    pub recovery_connection_point: String,
    /// The name that its certificate must prove; the host of the address unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_host_name: Option<String>,
    /// The id of a relationship that this host does not know any more and whose replica is kept
    /// there: it is taken up. A new one is made unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_replica: Option<String>,
    #[serde(default)]
    pub settings: SettingsChange,
}

impl TryFrom<EnableReplication> for VmOperation {
    type Error = InvalidRequest;

    fn try_from(enable: EnableReplication) -> Result<Self, InvalidRequest> {
        Ok(Self::EnableReplication(api::EnableReplication {
            recovery_connection_point: enable.recovery_connection_point,
            recovery_host_name: enable.recovery_host_name,
            kept_replica: parse_id("kept_replica", enable.kept_replica.as_deref())?,
            settings: enable.settings.into(),
        }))
    }
}

/// Starts the initial replication (`StartReplication`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StartReplication {
    /// 1 over the network (unless given), 2 export to media, 3 the replica has a copy already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_replication_type: Option<u32>,
    /// At once unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
}

impl TryFrom<StartReplication> for VmOperation {
    type Error = InvalidRequest;

    fn try_from(start: StartReplication) -> Result<Self, InvalidRequest> {
        let kind = match start.initial_replication_type {
            None => InitialReplicationType::NetworkTransfer,
            Some(number) => InitialReplicationType::try_from(number).map_err(|_| {
                let remedy = "use 1 (over the network), 2 (export) or 3 (the replica has a copy)";
                InvalidRequest::new("initial_replication_type", &number.to_string(), remedy)
            })?,
        };
        Ok(Self::StartReplication {
            kind,
            at: start.start_time.map(|time| time.0),
        })
    }
}

/// Compares both sides and sends what differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resynchronize {
    /// At once unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
}

impl From<Resynchronize> for VmOperation {
    fn from(resynchronize: Resynchronize) -> Self {
        Self::Resynchronize {
            at: resynchronize.start_time.map(|time| time.0),
        }
    }
}

/// Gives up a planned failover that was prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CancelPlannedFailover {
    /// Takes on the risk that the replica has started already, when it cannot be asked.
    pub force: bool,
}

impl From<CancelPlannedFailover> for VmOperation {
    fn from(cancel: CancelPlannedFailover) -> Self {
        Self::CancelPlannedFailover {
            how: urgency(cancel.force),
        }
    }
}

/// Says whose history of a VM is kept, where both hosts have gone on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NameSurvivor {
    pub survivor: Survivor,
}

/// The host whose history is kept; what only the other one holds is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Survivor {
    ThisHost,
    OtherHost,
}

impl From<NameSurvivor> for VmOperation {
    fn from(named: NameSurvivor) -> Self {
        Self::NameSurvivor(match named.survivor {
            Survivor::ThisHost => lifeboat_service::api::Survivor::ThisHost,
            Survivor::OtherHost => lifeboat_service::api::Survivor::OtherHost,
        })
    }
}

/// Lets the replica's VM take over (`InitiateFailover`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InitiateFailover {
    /// The sequence of a recovery point; the newest moment unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<u64>,
    /// Takes on what cannot be checked, such as whether the primary still runs.
    pub force: bool,
}

impl From<InitiateFailover> for VmOperation {
    fn from(failover: InitiateFailover) -> Self {
        Self::InitiateFailover {
            point: failover.point.map(Sequence::new),
            how: urgency(failover.force),
        }
    }
}

fn urgency(force: bool) -> Urgency {
    if force {
        Urgency::Forced
    } else {
        Urgency::Checked
    }
}

/// Starts a copy of the VM beside the replica (`TestReplicaSystem`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TestFailover {
    /// The sequence of a recovery point; the newest moment unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<u64>,
}

impl From<TestFailover> for VmOperation {
    fn from(test: TestFailover) -> Self {
        Self::TestFailover {
            point: test.point.map(Sequence::new),
        }
    }
}

/// Replicates the other way round (`ReverseReplicationRelationship`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReverseReplication {
    /// `host:port` of the new replica's host; the former primary unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_connection_point: Option<String>,
    pub settings: SettingsChange,
}

impl From<ReverseReplication> for VmOperation {
    fn from(reverse: ReverseReplication) -> Self {
        Self::ReverseReplication(api::ReverseReplication {
            recovery_connection_point: reverse.recovery_connection_point,
            settings: reverse.settings.into(),
        })
    }
}

/// Tries whether replication to a host could be enabled (`TestReplicationConnection`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestConnection {
    /// `host:port`.
    pub recovery_connection_point: String,
}

/// What a tried connection showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    pub recovery_connection_point: String,
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_named_by_its_id_in_either_form_or_by_its_name() {
        let id = VmId::from_bytes([0xab; 16]);
        assert_eq!(parse_vm(&"ab".repeat(16)), Ok(VmRef::Id(id)));
        assert_eq!(
            parse_vm("ABABABAB-abab-abab-abab-abababababab"),
            Ok(VmRef::Id(id))
        );
        assert_eq!(parse_vm("web 1"), Ok(VmRef::Name("web 1".to_owned())));
        // Hyphens elsewhere make a name.
        let other = "abababababababab-abababab-ababab-abab";
        assert_eq!(parse_vm(other), Ok(VmRef::Name(other.to_owned())));
    }

    #[test]
    fn names_that_no_vm_has_are_refused() {
        for text in ["", "a\nb", "\u{1b}[2J", &"x".repeat(257)] {
            assert!(parse_vm(text).is_err(), "{text:?}");
        }
        // Hostile text around the places of hyphens does not end the program.
        assert!(parse_vm("é-éé-é-é").is_ok());
        assert!(parse_vm(&"é".repeat(18)).is_ok());
    }

    #[test]
    fn properties_that_are_not_known_are_refused() {
        assert!(serde_json::from_str::<InitiateFailover>(r#"{"forced": true}"#).is_err());
        assert!(serde_json::from_str::<Nothing>(r#"{"a": 1}"#).is_err());
        assert!(
            serde_json::from_str::<EnableReplication>(
                r#"{"recovery_connection_point": "a:1", "settings": {"recovery_histroy": 1}}"#
            )
            .is_err()
        );
        let failover: InitiateFailover = serde_json::from_str("{}").unwrap();
        assert_eq!(
            failover,
            InitiateFailover {
                point: None,
                force: false
            }
        );
    }

    #[test]
    fn a_start_of_a_kind_that_is_not_known_is_refused() {
        for number in [0, 4, 65_537] {
            let start = StartReplication {
                initial_replication_type: Some(number),
                start_time: None,
            };
            assert!(VmOperation::try_from(start).is_err(), "{number}");
        }
    }
}
