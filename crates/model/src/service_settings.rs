//! The settings of the replication service on one host (`Msvm_ReplicationServiceSettingData`).

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use crate::contract::AllowedAuthenticationType;
use crate::invalid::Findings;
use crate::{InvalidFields, TimeOfDay, UtcOffset};

/// Whether this host takes replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryServer {
    Enabled,
    Disabled,
}

/// The settings of a host, all in range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "UncheckedServiceSettings",
    into = "UncheckedServiceSettings"
)]
pub struct ReplicationServiceSettings {
    recovery_server: RecoveryServer,
    allowed_authentication_type: AllowedAuthenticationType,
    http_port: NonZeroU16,
    https_port: NonZeroU16,
    monitoring_start_time: TimeOfDay,
    /// Seconds.
    monitoring_interval: u32,
}

impl ReplicationServiceSettings {
    /// The contract's defaults: no replicas are taken, and monitoring cycles start at nine in the
    /// morning of local time, which is kept as UTC.
    #[must_use]
    pub fn with_defaults(local: UtcOffset) -> Self {
        UncheckedServiceSettings::with_defaults(local)
            .validate()
            .expect("BUG: the defaults of the contract are in range")
    }

    /// These settings with what `change` says; what it does not mention stays.
    ///
    /// # Errors
    /// Every field that is not acceptable; nothing is changed then.
    pub fn changed(&self, change: ServiceSettingsChange) -> Result<Self, InvalidFields> {
        change.onto(self.clone().into()).validate()
    }

    #[must_use]
    pub const fn recovery_server(&self) -> RecoveryServer {
        self.recovery_server
    }

    #[must_use]
    pub const fn allowed_authentication_type(&self) -> AllowedAuthenticationType {
        self.allowed_authentication_type
    }

    /// Where peers without certificates would be answered. Kept for the contract: no such peer is
    /// accepted.
    #[must_use]
    pub const fn http_port(&self) -> NonZeroU16 {
        self.http_port
    }

    /// Where peers with certificates are answered.
    #[must_use]
    pub const fn https_port(&self) -> NonZeroU16 {
        self.https_port
    }

    /// When one of the monitoring cycles of a day starts, in UTC.
    #[must_use]
    pub const fn monitoring_start_time(&self) -> TimeOfDay {
        self.monitoring_start_time
    }

    /// How long a monitoring cycle is, in seconds.
    #[must_use]
    pub const fn monitoring_interval(&self) -> u32 {
        self.monitoring_interval
    }
}

/// Settings as people and files give them: nothing is checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedServiceSettings {
    pub recovery_server_enabled: bool,
    pub allowed_authentication_type: AllowedAuthenticationType,
    pub http_port: u64,
    pub https_port: u64,
    /// Time of day in UTC.
    pub monitoring_start_time: String,
    /// Seconds.
    pub monitoring_interval: u64,
}

impl UncheckedServiceSettings {
    /// The contract's defaults where local time is ahead of UTC by this.
    #[must_use]
    pub fn with_defaults(local: UtcOffset) -> Self {
        let nine = TimeOfDay::from_seconds(9 * 3600).unwrap_or(TimeOfDay::MIDNIGHT);
        Self {
            recovery_server_enabled: false,
            allowed_authentication_type: AllowedAuthenticationType::NotDefined,
            http_port: 80,
            https_port: 443,
            monitoring_start_time: nine.to_utc(local).to_string(),
            monitoring_interval: 43_200,
        }
    }

    /// # Errors
    /// Every field that is not acceptable, with the range and what to do.
    pub fn validate(self) -> Result<ReplicationServiceSettings, InvalidFields> {
        let mut findings = Findings::default();
        let settings = self.check(&mut findings);
        findings.finish(settings)
    }

    fn check(self, findings: &mut Findings) -> Option<ReplicationServiceSettings> {
        let recovery_server = if self.recovery_server_enabled {
            RecoveryServer::Enabled
        } else {
            RecoveryServer::Disabled
        };
        check_authentication(findings, recovery_server, self.allowed_authentication_type);
        let ports = 1..=65_535;
        let http_port: Option<u16> =
            findings.number("http_port", self.http_port, ports.clone(), "");
        let https_port: Option<u16> = findings.number("https_port", self.https_port, ports, "");
        if http_port.is_some() && http_port == https_port {
            findings.add(
                "https_port",
                &self.https_port,
                "http_port is the same: each listener needs a port of its own",
            );
        }
        let start = findings.text("monitoring_start_time", &self.monitoring_start_time);
        let interval = findings.number(
            "monitoring_interval",
            self.monitoring_interval,
            3600..=604_800,
            "seconds",
        );
        Some(ReplicationServiceSettings {
            recovery_server,
            allowed_authentication_type: self.allowed_authentication_type,
            http_port: NonZeroU16::new(http_port?)?,
            https_port: NonZeroU16::new(https_port?)?,
            monitoring_start_time: start?,
            monitoring_interval: interval?,
        })
    }
}

fn check_authentication(
    findings: &mut Findings,
    recovery_server: RecoveryServer,
    allowed: AllowedAuthenticationType,
) {
    const FIELD: &str = "allowed_authentication_type";
    match (allowed, recovery_server) {
        (AllowedAuthenticationType::Certificate, RecoveryServer::Enabled | RecoveryServer::Disabled)
        | (AllowedAuthenticationType::NotDefined, RecoveryServer::Disabled) => {}
        (AllowedAuthenticationType::NotDefined, RecoveryServer::Enabled) => findings.add(
            FIELD,
            &allowed.number(),
            "a host that takes replicas must say how primaries prove themselves: use 2 (certificate)",
        ),
        (
            AllowedAuthenticationType::Kerberos | AllowedAuthenticationType::Both,
            RecoveryServer::Enabled | RecoveryServer::Disabled,
        ) => findings.add(
            FIELD,
            &allowed.number(),
            "hosts prove themselves with certificates only, Kerberos is not offered: use 2 (certificate)",
        ),
    }
}

impl TryFrom<UncheckedServiceSettings> for ReplicationServiceSettings {
    type Error = InvalidFields;

    fn try_from(unchecked: UncheckedServiceSettings) -> Result<Self, InvalidFields> {
        unchecked.validate()
    }
}

impl From<ReplicationServiceSettings> for UncheckedServiceSettings {
    fn from(settings: ReplicationServiceSettings) -> Self {
        Self {
            recovery_server_enabled: settings.recovery_server == RecoveryServer::Enabled,
            allowed_authentication_type: settings.allowed_authentication_type,
            http_port: settings.http_port.get().into(),
            https_port: settings.https_port.get().into(),
            monitoring_start_time: settings.monitoring_start_time.to_string(),
            monitoring_interval: settings.monitoring_interval.into(),
        }
    }
}

/// What shall be different; what is absent stays. Fields as in [`UncheckedServiceSettings`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSettingsChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_server_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_authentication_type: Option<AllowedAuthenticationType>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_port: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_port: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring_start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitoring_interval: Option<u64>,
}

impl ServiceSettingsChange {
    /// `old` with what is present here.
    #[must_use]
    pub fn onto(self, old: UncheckedServiceSettings) -> UncheckedServiceSettings {
        UncheckedServiceSettings {
            recovery_server_enabled: self
                .recovery_server_enabled
                .unwrap_or(old.recovery_server_enabled),
            allowed_authentication_type: self
                .allowed_authentication_type
                .unwrap_or(old.allowed_authentication_type),
            http_port: self.http_port.unwrap_or(old.http_port),
            https_port: self.https_port.unwrap_or(old.https_port),
            monitoring_start_time: self
                .monitoring_start_time
                .unwrap_or(old.monitoring_start_time),
            monitoring_interval: self.monitoring_interval.unwrap_or(old.monitoring_interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(json: &str) -> Result<ReplicationServiceSettings, InvalidFields> {
        let change = serde_json::from_str(json).unwrap();
        ReplicationServiceSettings::with_defaults(UtcOffset::UTC).changed(change)
    }

    fn wrong(json: &str) -> Vec<&'static str> {
        let error = changed(json).unwrap_err();
        error.fields().iter().map(|field| field.field).collect()
    }

    #[test]
    fn a_host_takes_no_replicas_until_it_is_told_to() {
        let settings = ReplicationServiceSettings::with_defaults(UtcOffset::UTC);
        assert_eq!(settings.recovery_server(), RecoveryServer::Disabled);
        assert_eq!(settings.allowed_authentication_type().number(), 0);
        assert_eq!(
            (settings.http_port().get(), settings.https_port().get()),
            (80, 443)
        );
        assert_eq!(settings.monitoring_interval(), 43_200);
    }

    #[test]
    fn monitoring_starts_at_nine_by_local_time() {
        for (minutes, utc) in [(0, "09:00"), (60, "08:00"), (-480, "17:00"), (780, "20:00")] {
            let local = UtcOffset::from_minutes(minutes).unwrap();
            let settings = ReplicationServiceSettings::with_defaults(local);
            assert_eq!(
                settings.monitoring_start_time().to_string(),
                utc,
                "{minutes}"
            );
        }
    }

    #[test]
    fn a_host_that_takes_replicas_says_how_primaries_prove_themselves() {
        assert_eq!(
            wrong(r#"{"recovery_server_enabled": true}"#),
            ["allowed_authentication_type"]
        );
        let both =
            r#"{"recovery_server_enabled": true, "allowed_authentication_type": "certificate"}"#;
        assert_eq!(
            changed(both).unwrap().recovery_server(),
            RecoveryServer::Enabled
        );
    }

    #[test]
    fn kerberos_is_refused_with_what_is_offered() {
        for kind in ["kerberos", "both"] {
            let json = format!(r#"{{"allowed_authentication_type": "{kind}"}}"#);
            assert_eq!(wrong(&json), ["allowed_authentication_type"]);
            assert!(
                changed(&json)
                    .unwrap_err()
                    .to_string()
                    .contains("use 2 (certificate)")
            );
        }
    }

    #[test]
    fn every_value_out_of_its_range_is_refused_by_name() {
        for (field, values) in [
            ("http_port", ["0", "65536"]),
            ("https_port", ["0", "80"]),
            ("monitoring_start_time", [r#""24:00""#, r#""""#]),
            ("monitoring_interval", ["3599", "604801"]),
        ] {
            for value in values {
                let json = format!(r#"{{"{field}": {value}}}"#);
                assert_eq!(wrong(&json), [field], "{json}");
            }
        }
        for seconds in [3600, 604_800] {
            assert!(changed(&format!(r#"{{"monitoring_interval": {seconds}}}"#)).is_ok());
        }
    }

    #[test]
    fn stored_settings_are_checked_when_they_are_read() {
        let settings = changed(r#"{"https_port": 8443}"#).unwrap();
        let mut stored = serde_json::to_value(&settings).unwrap();
        assert_eq!(
            serde_json::from_value::<ReplicationServiceSettings>(stored.clone()).unwrap(),
            settings
        );
        stored["https_port"] = 0.into();
        assert!(serde_json::from_value::<ReplicationServiceSettings>(stored.clone()).is_err());
        stored["https_port"] = 443.into();
        stored["surplus"] = 1.into();
        assert!(serde_json::from_value::<ReplicationServiceSettings>(stored).is_err());
    }
}
