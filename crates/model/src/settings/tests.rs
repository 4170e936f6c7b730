use proptest::prelude::*;

use super::*;
use crate::InvalidField;

fn change(json: &str) -> SettingsChange {
    serde_json::from_str(json).unwrap()
}

fn new(json: &str) -> Result<ReplicationSettings, InvalidFields> {
    let mut given = change(json);
    given
        .recovery_connection_point
        .get_or_insert_with(|| "replica.example".to_owned());
    given.recovery_server_port_number.get_or_insert(8443);
    ReplicationSettings::new(given)
}

fn wrong(result: Result<ReplicationSettings, InvalidFields>) -> Vec<&'static str> {
    let error = result.unwrap_err();
    error
        .fields()
        .iter()
        .map(|field: &InvalidField| field.field)
        .collect()
}

#[test]
fn a_new_relationship_has_the_defaults_of_the_contract() {
    let settings = new("{}").unwrap();
    assert_eq!(settings.replication_interval().seconds(), 300);
    assert_eq!(settings.recovery_history(), RecoveryHistory::NONE);
    assert_eq!(settings.application_consistent_snapshot_interval(), 0);
    assert!(settings.compression_enabled());
    assert_eq!(settings.included_disks(), &IncludedDisks::All);
    assert!(!settings.auto_resynchronize_enabled());
    assert_eq!(
        settings.auto_resynchronize_window().to_string(),
        "18:30 to 06:00"
    );
    assert_eq!(settings.bandwidth_limit(), &BandwidthLimit::UNLIMITED);
    assert_eq!(settings.apply_backlog_limit(), Duration::from_secs(60));
    assert_eq!(settings.point_spacing(), Duration::from_secs(3600));
    assert_eq!(
        settings.recovery_connection_point().to_string(),
        "replica.example:8443"
    );
}

#[test]
fn where_the_replica_answers_must_be_said() {
    let missing = wrong(ReplicationSettings::new(SettingsChange::default()));
    assert_eq!(
        missing,
        ["recovery_connection_point", "recovery_server_port_number"]
    );
}

#[test]
fn the_port_may_stand_behind_the_host() {
    let at = |json: &str| {
        ReplicationSettings::new(change(json))
            .map(|settings| settings.recovery_connection_point().to_string())
    };
    let one = |text: &str| at(&format!(r#"{{"recovery_connection_point": "{text}"}}"#));
    assert_eq!(
        one("replica.example:8443").as_deref(),
        Ok("replica.example:8443")
    );
    assert_eq!(one("[2001:db8::1]:443").as_deref(), Ok("[2001:db8::1]:443"));
    for text in [
        "replica",
        "replica:",
        "replica:0",
        "replica:65536",
        "replica:+1",
        ":443",
        "::1",
        "[::1]",
        "[::1:443",
        "replica:99999999999999999999",
        "a b:443",
    ] {
        assert!(one(text).is_err(), "{text}");
    }
    let both = r#"{"recovery_connection_point": "replica:1", "recovery_server_port_number": 2}"#;
    assert!(at(both).is_err(), "two ports");
    let moved = new("{}")
        .unwrap()
        .changed(change(r#"{"recovery_connection_point": "other"}"#));
    assert_eq!(
        moved.unwrap().recovery_connection_point().to_string(),
        "other:8443"
    );
}

#[test]
fn every_value_out_of_its_range_is_refused_by_name() {
    for (field, values) in [
        (
            "recovery_connection_point",
            &[r#""""#, r#""a b""#, r#""a:1""#, r#""a:b""#][..],
        ),
        ("recovery_server_port_number", &["0", "65536"]),
        (
            "replication_interval",
            &["0", "4", "3601", "65566", "18446744073709551615"],
        ),
        ("recovery_history", &["25", "256", "280"]),
        ("application_consistent_snapshot_interval", &["13", "256"]),
        (
            "included_disks",
            &[r#"["../x"]"#, r#"["a","a"]"#, r#"[""]"#],
        ),
        (
            "auto_resynchronize_interval_start",
            &[r#""24:00""#, r#""""#],
        ),
        (
            "auto_resynchronize_interval_end",
            &[r#""noon""#, r#""18:30""#],
        ),
        ("apply_backlog_limit", &["0", "4", "86401"]),
        ("point_spacing", &["299", "86401"]),
    ] {
        for value in values {
            let json = format!(r#"{{"{field}": {value}}}"#);
            assert_eq!(wrong(new(&json)), [field], "{json}");
        }
    }
}

#[test]
fn values_at_the_edges_of_their_ranges_are_accepted() {
    for json in [
        r#"{"replication_interval": 5}"#,
        r#"{"replication_interval": 3600}"#,
        r#"{"recovery_history": 24}"#,
        r#"{"recovery_history": 1, "application_consistent_snapshot_interval": 12}"#,
        r#"{"recovery_history": 24, "application_consistent_snapshot_interval": 1}"#,
        r#"{"auto_resynchronize_interval_start": "00:00", "auto_resynchronize_interval_end": "23:59"}"#,
        r#"{"recovery_history": 2, "point_spacing": 300}"#,
        r#"{"point_spacing": 86400, "apply_backlog_limit": 86400}"#,
        r#"{"recovery_server_port_number": 65535, "recovery_connection_point": "::1"}"#,
    ] {
        assert!(new(json).is_ok(), "{json}: {:?}", new(json));
    }
}

#[test]
fn all_wrong_fields_are_reported_at_once() {
    let json = r#"{"recovery_history": 99, "point_spacing": 1, "replication_interval": 1,
        "bandwidth_limit": {"bytes_per_second": 1, "windows": [{"start": "1", "end": "2"}]}}"#;
    assert_eq!(
        wrong(new(json)),
        [
            "replication_interval",
            "recovery_history",
            "bandwidth_limit.bytes_per_second",
            "bandwidth_limit.windows.start",
            "bandwidth_limit.windows.end",
            "point_spacing",
        ]
    );
    let text = new(json).unwrap_err().to_string();
    assert!(
        text.contains("recovery_history is 99: use 0 to 24 points"),
        "{text}"
    );
}

#[test]
fn application_consistent_points_need_a_history() {
    let json = r#"{"application_consistent_snapshot_interval": 4}"#;
    assert_eq!(
        wrong(new(json)),
        ["application_consistent_snapshot_interval"]
    );
}

#[test]
fn more_points_than_a_chain_carries_are_refused_with_the_spacing_that_fits() {
    let error = new(r#"{"recovery_history": 24, "point_spacing": 3599}"#).unwrap_err();
    assert!(
        error.to_string().contains("use 3600 seconds or more"),
        "{error}"
    );
    assert!(new(r#"{"recovery_history": 6, "point_spacing": 900}"#).is_ok());
    assert!(new(r#"{"recovery_history": 6, "point_spacing": 899}"#).is_err());
}

#[test]
fn a_change_keeps_what_it_does_not_mention() {
    let old =
        new(r#"{"recovery_history": 7, "included_disks": ["sda"], "replication_interval": 30}"#)
            .unwrap();
    let changed = old
        .changed(change(r#"{"compression_enabled": false}"#))
        .unwrap();
    assert!(!changed.compression_enabled());
    assert_eq!(changed.recovery_history().points(), 7);
    assert_eq!(changed.replication_interval().seconds(), 30);
    assert_eq!(changed.included_disks(), old.included_disks());
    let all = changed
        .changed(change(r#"{"included_disks": []}"#))
        .unwrap();
    assert_eq!(all.included_disks(), &IncludedDisks::All);
    assert_eq!(old.changed(SettingsChange::default()).unwrap(), old);
    assert_eq!(
        wrong(old.changed(change(r#"{"recovery_history": 25}"#))),
        ["recovery_history"]
    );
}

#[test]
fn a_misspelled_field_is_refused() {
    assert!(serde_json::from_str::<SettingsChange>(r#"{"recovery_histroy": 3}"#).is_err());
    let mut stored = serde_json::to_value(new("{}").unwrap()).unwrap();
    stored["surplus"] = true.into();
    assert!(serde_json::from_value::<ReplicationSettings>(stored).is_err());
}

#[test]
fn stored_settings_are_checked_when_they_are_read() {
    let mut stored = serde_json::to_value(new("{}").unwrap()).unwrap();
    stored["recovery_history"] = 25.into();
    let error = serde_json::from_value::<ReplicationSettings>(stored).unwrap_err();
    assert!(
        error.to_string().contains("recovery_history is 25"),
        "{error}"
    );
}

#[test]
fn an_extended_relationship_sends_every_300_or_900_seconds_and_no_faster_than_it_receives() {
    let primary = |seconds: u16| ReplicationInterval::from_seconds(seconds).unwrap();
    let extended = |seconds: u64, from: u16| {
        let settings = new(&format!(r#"{{"replication_interval": {seconds}}}"#)).unwrap();
        settings.check_extended(primary(from)).is_ok()
    };
    assert!(extended(300, 30) && extended(300, 300) && extended(900, 300) && extended(900, 900));
    assert!(!extended(30, 30) && !extended(60, 30) && !extended(300, 900) && !extended(3600, 30));
}

#[test]
fn an_extended_relationship_has_no_application_consistent_points() {
    let settings =
        new(r#"{"recovery_history": 3, "application_consistent_snapshot_interval": 1}"#).unwrap();
    let interval = ReplicationInterval::from_seconds(30).unwrap();
    let error = settings.check_extended(interval).unwrap_err();
    assert_eq!(
        error.fields()[0].field,
        "application_consistent_snapshot_interval"
    );
}

#[test]
fn a_disk_that_the_vm_does_not_have_is_refused() {
    let disk = |name: &str| name.parse::<DiskId>().unwrap();
    let settings = new(r#"{"included_disks": ["sda", "sdb"]}"#).unwrap();
    assert!(
        settings
            .check_disks(&[disk("sda"), disk("sdb"), disk("sdc")])
            .is_ok()
    );
    let error = settings.check_disks(&[disk("sda")]).unwrap_err();
    assert_eq!(error.fields().len(), 1);
    assert!(
        error.to_string().contains("included_disks is sdb"),
        "{error}"
    );
    assert!(new("{}").unwrap().check_disks(&[]).is_ok());
}

#[test]
fn only_three_intervals_are_values_of_the_contract() {
    let known: Vec<u16> = (0..=u16::MAX)
        .filter_map(ReplicationInterval::from_seconds)
        .filter(|interval| interval.is_contract_value())
        .map(ReplicationInterval::seconds)
        .collect();
    assert_eq!(known, [30, 300, 900]);
}

/// Any JSON value, up to a few levels deep.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        ".{0,12}".prop_map(serde_json::Value::from),
        "[0-9]{2}:[0-9]{2}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::hash_map("[a-z_]{1,10}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn hostile_json_never_makes_settings_that_are_out_of_range(
        replaced in prop::collection::vec((0..13usize, any_json()), 0..4),
    ) {
        let mut stored = serde_json::to_value(new("{}").unwrap()).unwrap();
        let names: Vec<String> = stored.as_object().unwrap().keys().cloned().collect();
        for (at, value) in replaced {
            stored[&names[at % names.len()]] = value;
        }
        if let Ok(settings) = serde_json::from_value::<ReplicationSettings>(stored) {
            prop_assert!((5..=3600).contains(&settings.replication_interval().seconds()));
            prop_assert!(settings.recovery_history().points() <= 24);
            prop_assert!(settings.application_consistent_snapshot_interval() <= 12);
            let json = serde_json::to_string(&settings).unwrap();
            prop_assert_eq!(serde_json::from_str::<ReplicationSettings>(&json).unwrap(), settings);
        }
    }

    #[test]
    fn any_text_is_settings_or_an_error(text in ".{0,200}") {
        let change = serde_json::from_str::<SettingsChange>(&text);
        let stored = serde_json::from_str::<ReplicationSettings>(&text);
        prop_assert!(stored.is_err());
        let may_be_a_struct = text.trim_start().starts_with(['{', '[']);
        prop_assert!(change.is_err() || may_be_a_struct);
    }

    #[test]
    fn what_is_accepted_is_stored_and_read_back(
        interval in 0..5000u64, history in 0..40u64, consistent in 0..20u64,
        spacing in 0..100_000u64, backlog in 0..100_000u64, enabled: bool,
    ) {
        let change = SettingsChange {
            replication_interval: Some(interval),
            recovery_history: Some(history),
            application_consistent_snapshot_interval: Some(consistent),
            point_spacing: Some(spacing),
            apply_backlog_limit: Some(backlog),
            auto_resynchronize_enabled: Some(enabled),
            recovery_connection_point: Some("replica".to_owned()),
            recovery_server_port_number: Some(443),
            ..SettingsChange::default()
        };
        let acceptable = (5..=3600).contains(&interval)
            && history <= 24
            && consistent <= 12
            && (consistent == 0 || history > 0)
            && (300..=86_400).contains(&spacing)
            && (5..=86_400).contains(&backlog)
            && history * 3600 <= 24 * spacing;
        match ReplicationSettings::new(change) {
            Ok(settings) => {
                prop_assert!(acceptable);
                let json = serde_json::to_string(&settings).unwrap();
                prop_assert_eq!(serde_json::from_str::<ReplicationSettings>(&json).unwrap(), settings);
            }
            Err(error) => {
                prop_assert!(!acceptable, "{}", error);
            }
        }
    }
}
