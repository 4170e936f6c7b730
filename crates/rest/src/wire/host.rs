//! This host, its settings, and whom it lets in.

use lifeboat_model::authorization as entry;
use lifeboat_model::contract::AllowedAuthenticationType;
use lifeboat_model::retention::UncheckedRetentionFloor;
use lifeboat_model::service_settings as model;
use lifeboat_service::api::{HostView, ListenerView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{InvalidRequest, Time};

/// This host (`Msvm_ReplicationService`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Host {
    pub host: String,
    pub version: String,
    pub listeners: Vec<HostListener>,
    pub settings: ServiceSettings,
    pub vms: usize,
    pub jobs_running: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires_at: Option<Time>,
}

/// Where this host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostListener {
    pub what: String,
    pub address: String,
    /// Why it does not run; absent when it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The settings of this host (`Msvm_ReplicationServiceSettingData`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSettings {
    /// Whether others may replicate to this host.
    pub recovery_server_enabled: bool,
    pub allowed_authentication_type: u16,
    pub allowed_authentication_type_text: String,
    pub http_port: u64,
    pub https_port: u64,
    /// Time of day in UTC, `HH:MM`.
    pub monitoring_start_time: String,
    /// In seconds.
    pub monitoring_interval: u64,
}

/// What shall be different; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSettingsChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_server_enabled: Option<bool>,
    /// 0 not defined, 1 Kerberos, 2 certificate, 3 both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_authentication_type: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_port: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_port: Option<u64>,
    /// Time of day in UTC, `HH:MM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring_start_time: Option<String>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring_interval: Option<u64>,
}

/// Who may replicate to this host, and where to (`Msvm_ReplicationAuthorizationSettingData`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthorizationEntry {
    /// A full host name, `*.` and a domain, or `*`.
    pub allowed_primary_host_system: String,
    pub trust_group: String,
    /// An absolute path on this host.
    pub replica_storage_location: String,
    /// How many recovery points this host keeps, whatever the primary asks for.
    #[serde(default)]
    pub retention_floor_points: u64,
    /// For how many hours this host keeps recovery points, whatever the primary asks for.
    #[serde(default)]
    pub retention_floor_hours: u64,
}

impl From<HostView> for Host {
    fn from(view: HostView) -> Self {
        let listener = |view: ListenerView| HostListener {
            what: view.what,
            address: view.address,
            trouble: view.trouble,
        };
        Self {
            host: view.host,
            version: view.version,
            listeners: view.listeners.into_iter().map(listener).collect(),
            settings: view.settings.into(),
            vms: view.vms,
            jobs_running: view.jobs_running,
            certificate_expires_at: view.certificate_expires_at.map(Time),
        }
    }
}

impl From<model::ReplicationServiceSettings> for ServiceSettings {
    fn from(settings: model::ReplicationServiceSettings) -> Self {
        let model::UncheckedServiceSettings {
            recovery_server_enabled,
            allowed_authentication_type,
            http_port,
            https_port,
            monitoring_start_time,
            monitoring_interval,
        } = settings.into();
        Self {
            recovery_server_enabled,
            allowed_authentication_type: allowed_authentication_type.number(),
            allowed_authentication_type_text: allowed_authentication_type.to_string(),
            http_port,
            https_port,
            monitoring_start_time,
            monitoring_interval,
        }
    }
}

impl TryFrom<ServiceSettingsChange> for model::ServiceSettingsChange {
    type Error = InvalidRequest;

    fn try_from(change: ServiceSettingsChange) -> Result<Self, InvalidRequest> {
        let authentication = change.allowed_authentication_type.map(|number| {
            AllowedAuthenticationType::try_from(number).map_err(|_| {
                let remedy = "use 0 (not defined), 1 (Kerberos), 2 (certificate) or 3 (both)";
                InvalidRequest::new("allowed_authentication_type", &number.to_string(), remedy)
            })
        });
        Ok(Self {
            recovery_server_enabled: change.recovery_server_enabled,
            allowed_authentication_type: authentication.transpose()?,
            http_port: change.http_port,
            https_port: change.https_port,
            monitoring_start_time: change.monitoring_start_time,
            monitoring_interval: change.monitoring_interval,
        })
    }
}

impl From<entry::AuthorizationEntry> for AuthorizationEntry {
    fn from(entry: entry::AuthorizationEntry) -> Self {
        let entry::UncheckedEntry {
            allowed_primary_host_system,
            trust_group,
            replica_storage_location,
            retention_floor,
        } = entry.into();
        Self {
            allowed_primary_host_system,
            trust_group,
            replica_storage_location,
            retention_floor_points: retention_floor.points,
            retention_floor_hours: retention_floor.hours,
        }
    }
}

impl TryFrom<AuthorizationEntry> for entry::AuthorizationEntry {
    type Error = lifeboat_model::InvalidFields;

    fn try_from(entry: AuthorizationEntry) -> Result<Self, lifeboat_model::InvalidFields> {
        let unchecked = entry::UncheckedEntry {
            allowed_primary_host_system: entry.allowed_primary_host_system,
            trust_group: entry.trust_group,
            replica_storage_location: entry.replica_storage_location,
            retention_floor: UncheckedRetentionFloor {
                points: entry.retention_floor_points,
                hours: entry.retention_floor_hours,
            },
        };
        unchecked.validate()
    }
}
