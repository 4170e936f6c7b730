//! The settings of one relationship (`Msvm_ReplicationSettingData`).
//!
//! [`UncheckedSettings`] are what people, peers and files say; [`ReplicationSettings`] exist
//! only if every field is in range and the fields fit each other, so nobody checks them again.
//! A [`SettingsChange`] says only what shall be different.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bandwidth::day_window;
use crate::invalid::Findings;
use crate::retention::{MAX_STANDARD_POINTS, RecoveryHistory};
use crate::{
    BandwidthLimit, ConnectionPoint, DayWindow, DiskId, HostName, InvalidFields, MAX_DISKS,
    TimeOfDay, UncheckedBandwidthLimit,
};

/// How often changes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicationInterval(u16);

impl ReplicationInterval {
    /// The values that the contract knows, in seconds.
    pub const CONTRACT: [u16; 3] = [30, 300, 900];

    /// The shortest interval, in seconds: an extension of ours.
    pub const MIN_SECONDS: u16 = 5;

    /// The longest interval, in seconds: an extension of ours. With more, health would always
    /// say that nothing was sent for an hour.
    pub const MAX_SECONDS: u16 = 3600;

    /// `None` outside of 5 to 3600 seconds.
    #[must_use]
    pub const fn from_seconds(seconds: u16) -> Option<Self> {
        if seconds >= Self::MIN_SECONDS && seconds <= Self::MAX_SECONDS {
            Some(Self(seconds))
        } else {
            None
        }
    }

    #[must_use]
    pub const fn seconds(self) -> u16 {
        self.0
    }

    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }

    /// Whether clients that know only the contract understand the value.
    #[must_use]
    pub fn is_contract_value(self) -> bool {
        Self::CONTRACT.contains(&self.0)
    }
}

/// Which disks of the VM are replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncludedDisks {
    /// All that it has, and those that it gets.
    All,
    /// These, at least one.
    Only(BTreeSet<DiskId>),
}

impl IncludedDisks {
    #[must_use]
    pub fn includes(&self, disk: &DiskId) -> bool {
        match self {
            Self::All => true,
            Self::Only(disks) => disks.contains(disk),
        }
    }
}

/// The settings of one relationship, all in range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedSettings", into = "UncheckedSettings")]
pub struct ReplicationSettings {
    recovery_connection_point: ConnectionPoint,
    replication_interval: ReplicationInterval,
    recovery_history: RecoveryHistory,
    /// Hours; 0 for never.
    application_consistent_snapshot_interval: u8,
    compression_enabled: bool,
    included_disks: IncludedDisks,
    auto_resynchronize_enabled: bool,
    auto_resynchronize_window: DayWindow,
    bandwidth_limit: BandwidthLimit,
    /// Seconds.
    apply_backlog_limit: u32,
    /// Seconds.
    point_spacing: u32,
}

impl ReplicationSettings {
    /// The settings of a new relationship: the contract's defaults, with what `given` says.
    ///
    /// # Errors
    /// Every field that is not acceptable. Where the replica's host answers has no default.
    pub fn new(given: SettingsChange) -> Result<Self, InvalidFields> {
        given.onto(UncheckedSettings::default()).validate()
    }

    /// These settings with what `change` says; what it does not mention stays.
    ///
    /// # Errors
    /// Every field that is not acceptable; nothing is changed then.
    pub fn changed(&self, change: SettingsChange) -> Result<Self, InvalidFields> {
        change.onto(self.clone().into()).validate()
    }

    /// Whether a replica may pass its VM on to a third host with these settings, while it
    /// receives every `primary`.
    ///
    /// # Errors
    /// The interval is none of 300 and 900 s or shorter than the primary's, or
    /// application-consistent points are asked for.
    pub fn check_extended(&self, primary: ReplicationInterval) -> Result<(), InvalidFields> {
        let mut findings = Findings::default();
        let interval = self.replication_interval;
        if ![300, 900].contains(&interval.0) {
            findings.add(
                "replication_interval",
                &interval.0,
                "an extended relationship uses 300 or 900 seconds",
            );
        } else if interval < primary {
            findings.add(
                "replication_interval",
                &interval.0,
                format!(
                    "an extended relationship cannot send more often than it receives, which is every {} seconds: use 900, or make the primary's interval shorter",
                    primary.0
                ),
            );
        }
        if self.application_consistent_snapshot_interval != 0 {
            findings.add(
                "application_consistent_snapshot_interval",
                &self.application_consistent_snapshot_interval,
                "an extended relationship has no application-consistent points of its own: use 0",
            );
        }
        findings.finish(Some(()))
    }

    /// Whether the VM has the disks that are to be replicated.
    ///
    /// # Errors
    /// A disk is named that the VM does not have.
    pub fn check_disks(&self, of_vm: &[DiskId]) -> Result<(), InvalidFields> {
        let mut findings = Findings::default();
        match &self.included_disks {
            IncludedDisks::All => {}
            IncludedDisks::Only(disks) => {
                for disk in disks.iter().filter(|disk| !of_vm.contains(disk)) {
                    findings.add(
                        "included_disks",
                        disk,
                        "the VM has no such disk: name disks that it has, or none for all",
                    );
                }
            }
        }
        findings.finish(Some(()))
    }

    #[must_use]
    pub const fn recovery_connection_point(&self) -> &ConnectionPoint {
        &self.recovery_connection_point
    }

    #[must_use]
    pub const fn replication_interval(&self) -> ReplicationInterval {
        self.replication_interval
    }

    /// How many points are kept beside the latest state.
    #[must_use]
    pub const fn recovery_history(&self) -> RecoveryHistory {
        self.recovery_history
    }

    /// How often a point is application-consistent, in hours; 0 for never.
    #[must_use]
    pub const fn application_consistent_snapshot_interval(&self) -> u8 {
        self.application_consistent_snapshot_interval
    }

    /// Whether what travels is compressed.
    #[must_use]
    pub const fn compression_enabled(&self) -> bool {
        self.compression_enabled
    }

    #[must_use]
    pub const fn included_disks(&self) -> &IncludedDisks {
        &self.included_disks
    }

    /// Whether a resynchronization that is needed begins without an operator, in the window.
    #[must_use]
    pub const fn auto_resynchronize_enabled(&self) -> bool {
        self.auto_resynchronize_enabled
    }

    /// When a resynchronization may begin by itself, in local time.
    #[must_use]
    pub const fn auto_resynchronize_window(&self) -> DayWindow {
        self.auto_resynchronize_window
    }

    #[must_use]
    pub const fn bandwidth_limit(&self) -> &BandwidthLimit {
        &self.bandwidth_limit
    }

    /// How long applying what was received may take, at most, before no more is received.
    #[must_use]
    pub const fn apply_backlog_limit(&self) -> Duration {
        Duration::from_secs(self.apply_backlog_limit as u64)
    }

    /// The time between two standard points.
    #[must_use]
    pub const fn point_spacing(&self) -> Duration {
        Duration::from_secs(self.point_spacing as u64)
    }
}

/// Settings as people, peers and files give them: nothing is checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedSettings {
    pub recovery_connection_point: String,
    pub recovery_server_port_number: u64,
    /// Seconds.
    pub replication_interval: u64,
    pub recovery_history: u64,
    /// Hours; 0 for never.
    pub application_consistent_snapshot_interval: u64,
    pub compression_enabled: bool,
    /// Empty for all.
    pub included_disks: Vec<String>,
    pub auto_resynchronize_enabled: bool,
    /// Local time of day.
    pub auto_resynchronize_interval_start: String,
    pub auto_resynchronize_interval_end: String,
    pub bandwidth_limit: UncheckedBandwidthLimit,
    /// Seconds.
    pub apply_backlog_limit: u64,
    /// Seconds.
    pub point_spacing: u64,
}

impl Default for UncheckedSettings {
    /// The contract's defaults; where the replica's host answers is missing.
    fn default() -> Self {
        Self {
            recovery_connection_point: String::new(),
            recovery_server_port_number: 0,
            replication_interval: 300,
            recovery_history: 0,
            application_consistent_snapshot_interval: 0,
            compression_enabled: true,
            included_disks: Vec::new(),
            auto_resynchronize_enabled: false,
            auto_resynchronize_interval_start: "18:30".to_owned(),
            auto_resynchronize_interval_end: "06:00".to_owned(),
            bandwidth_limit: UncheckedBandwidthLimit::default(),
            apply_backlog_limit: 60,
            point_spacing: 3600,
        }
    }
}

impl UncheckedSettings {
    /// # Errors
    /// Every field that is not acceptable, with the range and what to do.
    pub fn validate(self) -> Result<ReplicationSettings, InvalidFields> {
        let mut findings = Findings::default();
        let settings = self.check(&mut findings);
        if let Some(settings) = &settings {
            settings.check_points(&mut findings);
        }
        findings.finish(settings)
    }

    fn check(self, findings: &mut Findings) -> Option<ReplicationSettings> {
        let host: Option<HostName> =
            findings.text("recovery_connection_point", &self.recovery_connection_point);
        let port: Option<u16> = findings.number(
            "recovery_server_port_number",
            self.recovery_server_port_number,
            1..=65_535,
            "",
        );
        let interval: Option<u16> = findings.number(
            "replication_interval",
            self.replication_interval,
            u64::from(ReplicationInterval::MIN_SECONDS)
                ..=u64::from(ReplicationInterval::MAX_SECONDS),
            "seconds; 30, 300 and 900 are known to every client",
        );
        let history: Option<u8> = findings.number(
            "recovery_history",
            self.recovery_history,
            0..=u64::from(RecoveryHistory::MAX),
            "points",
        );
        let application_consistent = findings.number(
            "application_consistent_snapshot_interval",
            self.application_consistent_snapshot_interval,
            0..=12,
            "hours, 0 for none",
        );
        let disks = check_disk_names(findings, self.included_disks);
        let start: Option<TimeOfDay> = findings.text(
            "auto_resynchronize_interval_start",
            &self.auto_resynchronize_interval_start,
        );
        let end: Option<TimeOfDay> = findings.text(
            "auto_resynchronize_interval_end",
            &self.auto_resynchronize_interval_end,
        );
        let window = day_window(findings, "auto_resynchronize_interval_end", start, end);
        let bandwidth = self.bandwidth_limit.check(findings);
        let backlog = findings.number(
            "apply_backlog_limit",
            self.apply_backlog_limit,
            5..=86_400,
            "seconds",
        );
        let spacing = findings.number("point_spacing", self.point_spacing, 300..=86_400, "seconds");
        Some(ReplicationSettings {
            recovery_connection_point: ConnectionPoint {
                host: host?,
                port: NonZeroU16::new(port?)?,
            },
            replication_interval: ReplicationInterval::from_seconds(interval?)?,
            recovery_history: RecoveryHistory::new(history?)?,
            application_consistent_snapshot_interval: application_consistent?,
            compression_enabled: self.compression_enabled,
            included_disks: disks?,
            auto_resynchronize_enabled: self.auto_resynchronize_enabled,
            auto_resynchronize_window: window?,
            bandwidth_limit: bandwidth?,
            apply_backlog_limit: backlog?,
            point_spacing: spacing?,
        })
    }
}

impl ReplicationSettings {
    /// Finds what the fields that concern points ask for together and cannot have.
    fn check_points(&self, findings: &mut Findings) {
        let history = self.recovery_history;
        if self.application_consistent_snapshot_interval > 0 && history == RecoveryHistory::NONE {
            findings.add(
                "application_consistent_snapshot_interval",
                &self.application_consistent_snapshot_interval,
                "it needs points to be kept: use 0, or a recovery_history above 0",
            );
        }
        // Points younger than as many hours as the history counts are never given up.
        let within = history
            .hours()
            .as_secs()
            .div_ceil(u64::from(self.point_spacing));
        if within > MAX_STANDARD_POINTS {
            let shortest = history.hours().as_secs().div_ceil(MAX_STANDARD_POINTS);
            findings.add(
                "point_spacing",
                &self.point_spacing,
                format!(
                    "a recovery_history of {} would keep {within} points, more than {MAX_STANDARD_POINTS}: use {shortest} seconds or more, or a smaller recovery_history",
                    history.points()
                ),
            );
        }
    }
}

fn check_disk_names(findings: &mut Findings, names: Vec<String>) -> Option<IncludedDisks> {
    const FIELD: &str = "included_disks";
    if names.is_empty() {
        return Some(IncludedDisks::All);
    }
    if names.len() > MAX_DISKS {
        findings.add(
            FIELD,
            &format_args!("a list of {}", names.len()),
            format!("a VM has at most {MAX_DISKS} disks: name some of them, or none for all"),
        );
        return None;
    }
    let mut disks = BTreeSet::new();
    for name in names {
        let disk: DiskId = findings.text(FIELD, &name)?;
        if !disks.insert(disk) {
            findings.add(FIELD, &name, "name each disk once");
            return None;
        }
    }
    Some(IncludedDisks::Only(disks))
}

impl TryFrom<UncheckedSettings> for ReplicationSettings {
    type Error = InvalidFields;

    fn try_from(unchecked: UncheckedSettings) -> Result<Self, InvalidFields> {
        unchecked.validate()
    }
}

impl From<ReplicationSettings> for UncheckedSettings {
    fn from(settings: ReplicationSettings) -> Self {
        Self {
            recovery_connection_point: settings.recovery_connection_point.host.to_string(),
            recovery_server_port_number: settings.recovery_connection_point.port.get().into(),
            replication_interval: settings.replication_interval.0.into(),
            recovery_history: settings.recovery_history.points().into(),
            application_consistent_snapshot_interval: settings
                .application_consistent_snapshot_interval
                .into(),
            compression_enabled: settings.compression_enabled,
            included_disks: match settings.included_disks {
                IncludedDisks::All => Vec::new(),
                IncludedDisks::Only(disks) => disks.into_iter().map(String::from).collect(),
            },
            auto_resynchronize_enabled: settings.auto_resynchronize_enabled,
            auto_resynchronize_interval_start: settings
                .auto_resynchronize_window
                .start()
                .to_string(),
            auto_resynchronize_interval_end: settings.auto_resynchronize_window.end().to_string(),
            bandwidth_limit: settings.bandwidth_limit.into(),
            apply_backlog_limit: settings.apply_backlog_limit.into(),
            point_spacing: settings.point_spacing.into(),
        }
    }
}

/// What shall be different; what is absent stays. Fields as in [`UncheckedSettings`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsChange {
    /// A host, or `host:port` if the port is not given on its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_connection_point: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_server_port_number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_history: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_consistent_snapshot_interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_enabled: Option<bool>,
    /// An empty list asks for all disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub included_disks: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resynchronize_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resynchronize_interval_start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_resynchronize_interval_end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<UncheckedBandwidthLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_backlog_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point_spacing: Option<u64>,
}

impl SettingsChange {
    /// `old` with what is present here.
    #[must_use]
    pub fn onto(self, old: UncheckedSettings) -> UncheckedSettings {
        let given = self.recovery_connection_point;
        let (host, port) = match (given, self.recovery_server_port_number) {
            (Some(text), None) => match split_port(&text) {
                Some((host, port)) => (Some(host), Some(port)),
                None => (Some(text), None),
            },
            // With a port of its own, one in the text is refused as no part of a host's name.
            (host, port) => (host, port),
        };
        UncheckedSettings {
            recovery_connection_point: host.unwrap_or(old.recovery_connection_point),
            recovery_server_port_number: port.unwrap_or(old.recovery_server_port_number),
            replication_interval: self
                .replication_interval
                .unwrap_or(old.replication_interval),
            recovery_history: self.recovery_history.unwrap_or(old.recovery_history),
            application_consistent_snapshot_interval: self
                .application_consistent_snapshot_interval
                .unwrap_or(old.application_consistent_snapshot_interval),
            compression_enabled: self.compression_enabled.unwrap_or(old.compression_enabled),
            included_disks: self.included_disks.unwrap_or(old.included_disks),
            auto_resynchronize_enabled: self
                .auto_resynchronize_enabled
                .unwrap_or(old.auto_resynchronize_enabled),
            auto_resynchronize_interval_start: self
                .auto_resynchronize_interval_start
                .unwrap_or(old.auto_resynchronize_interval_start),
            auto_resynchronize_interval_end: self
                .auto_resynchronize_interval_end
                .unwrap_or(old.auto_resynchronize_interval_end),
            bandwidth_limit: self.bandwidth_limit.unwrap_or(old.bandwidth_limit),
            apply_backlog_limit: self.apply_backlog_limit.unwrap_or(old.apply_backlog_limit),
            point_spacing: self.point_spacing.unwrap_or(old.point_spacing),
        }
    }
}

/// The parts of `host:port` or `[address]:port`; nothing for a host or an address alone.
fn split_port(text: &str) -> Option<(String, u64)> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?,
        None => host,
    };
    let digits = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    digits
        .then(|| port.parse().ok())
        .flatten()
        .map(|port| (host.to_owned(), port))
}

#[cfg(test)]
mod tests;
