//! The settings of a relationship.

use lifeboat_model::settings as model;
use lifeboat_model::{UncheckedBandwidthLimit, UncheckedBandwidthWindow};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The settings of one relationship (`Msvm_ReplicationSettingData`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicationSettings {
    /// The host that keeps the replica.
    pub recovery_connection_point: String,
    pub recovery_server_port_number: u64,
    /// In seconds.
    pub replication_interval: u64,
    /// How many recovery points are kept beside the latest state.
    pub recovery_history: u64,
    /// In hours; 0 for never.
    pub application_consistent_snapshot_interval: u64,
    pub compression_enabled: bool,
    /// Empty for all.
    pub included_disks: Vec<String>,
    pub auto_resynchronize_enabled: bool,
    /// Local time of day, `HH:MM`.
    pub auto_resynchronize_interval_start: String,
    /// Local time of day, `HH:MM`.
    pub auto_resynchronize_interval_end: String,
    pub bandwidth_limit: BandwidthLimit,
    /// In seconds.
    pub apply_backlog_limit: u64,
    /// In seconds.
    pub point_spacing: u64,
}

/// What shall be different; what is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsChange {
    /// The host that keeps the replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_connection_point: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_server_port_number: Option<u64>,
    /// In seconds: 5 to 3600; every client knows 30, 300 and 900.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_interval: Option<u64>,
    /// How many recovery points are kept beside the latest state: 0 to 24.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_history: Option<u64>,
    /// In hours, up to 12; 0 for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_consistent_snapshot_interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_enabled: Option<bool>,
    /// An empty list asks for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub included_disks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resynchronize_enabled: Option<bool>,
    /// Local time of day, `HH:MM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resynchronize_interval_start: Option<String>,
    /// Local time of day, `HH:MM`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resynchronize_interval_end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<BandwidthLimit>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_backlog_limit: Option<u64>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point_spacing: Option<u64>,
}

/// How fast may be sent, by time of day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BandwidthLimit {
    /// Outside of the windows; absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<BandwidthWindow>,
}

/// A part of the day with a limit of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BandwidthWindow {
    /// Local time of day, `HH:MM`.
    pub start: String,
    /// Local time of day, `HH:MM`; before the start for a window over midnight.
    pub end: String,
    /// Absent for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl From<model::ReplicationSettings> for ReplicationSettings {
    fn from(settings: model::ReplicationSettings) -> Self {
        let model::UncheckedSettings {
            recovery_connection_point,
            recovery_server_port_number,
            replication_interval,
            recovery_history,
            application_consistent_snapshot_interval,
            compression_enabled,
            included_disks,
            auto_resynchronize_enabled,
            auto_resynchronize_interval_start,
            auto_resynchronize_interval_end,
            bandwidth_limit,
            apply_backlog_limit,
            point_spacing,
        } = settings.into();
        Self {
            recovery_connection_point,
            recovery_server_port_number,
            replication_interval,
            recovery_history,
            application_consistent_snapshot_interval,
            compression_enabled,
            included_disks,
            auto_resynchronize_enabled,
            auto_resynchronize_interval_start,
            auto_resynchronize_interval_end,
            bandwidth_limit: bandwidth_limit.into(),
            apply_backlog_limit,
            point_spacing,
        }
    }
}

impl From<SettingsChange> for model::SettingsChange {
    fn from(change: SettingsChange) -> Self {
        Self {
            recovery_connection_point: change.recovery_connection_point,
            recovery_server_port_number: change.recovery_server_port_number,
            replication_interval: change.replication_interval,
            recovery_history: change.recovery_history,
            application_consistent_snapshot_interval: change
                .application_consistent_snapshot_interval,
            compression_enabled: change.compression_enabled,
            included_disks: change.included_disks,
            auto_resynchronize_enabled: change.auto_resynchronize_enabled,
            auto_resynchronize_interval_start: change.auto_resynchronize_interval_start,
            auto_resynchronize_interval_end: change.auto_resynchronize_interval_end,
            bandwidth_limit: change.bandwidth_limit.map(UncheckedBandwidthLimit::from),
            apply_backlog_limit: change.apply_backlog_limit,
            point_spacing: change.point_spacing,
        }
    }
}

impl From<UncheckedBandwidthLimit> for BandwidthLimit {
    fn from(limit: UncheckedBandwidthLimit) -> Self {
        let window = |window: UncheckedBandwidthWindow| BandwidthWindow {
            start: window.start,
            end: window.end,
            bytes_per_second: window.bytes_per_second,
        };
        Self {
            bytes_per_second: limit.bytes_per_second,
            windows: limit.windows.into_iter().map(window).collect(),
        }
    }
}

impl From<BandwidthLimit> for UncheckedBandwidthLimit {
    fn from(limit: BandwidthLimit) -> Self {
        let window = |window: BandwidthWindow| UncheckedBandwidthWindow {
            start: window.start,
            end: window.end,
            bytes_per_second: window.bytes_per_second,
        };
        Self {
            bytes_per_second: limit.bytes_per_second,
            windows: limit.windows.into_iter().map(window).collect(),
        }
    }
}
