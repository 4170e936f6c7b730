//! Settings of a relationship, as options.

use lifeboat_rest::wire::{BandwidthLimit, BandwidthWindow, ReplicationSettings, SettingsChange};

use super::{Switch, duration};
use crate::output::facts;
use crate::size::{self, Bytes};

/// What shall be different; what is not given stays.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingsArgs {
    /// Send changes every so many seconds: 5 to 3600; every client knows 30, 300 and 900
    #[arg(long, value_name = "SECONDS")]
    interval: Option<u64>,

    /// Keep so many recovery points beside the newest state: 0 to 24
    #[arg(long, value_name = "N")]
    history: Option<u64>,

    /// Make an application-consistent point every so many hours, up to 12; 0 for never
    #[arg(long, value_name = "HOURS")]
    application_consistent: Option<u64>,

    /// Compress what travels
    #[arg(long, value_enum, value_name = "SWITCH")]
    compression: Option<Switch>,

    /// Replicate this disk; may be given several times, and those not given are left out
    #[arg(long = "disk", value_name = "NAME", conflicts_with = "all_disks")]
    disks: Vec<String>,

    /// Replicate all disks, also those that the VM gets
    #[arg(long)]
    all_disks: bool,

    /// Begin a resynchronization that is needed without an operator
    #[arg(long, value_enum, value_name = "SWITCH")]
    auto_resync: Option<Switch>,

    /// From when on, in local time, a resynchronization may begin by itself
    #[arg(long, value_name = "HH:MM")]
    auto_resync_start: Option<String>,

    /// Until when, in local time, a resynchronization may begin by itself
    #[arg(long, value_name = "HH:MM")]
    auto_resync_end: Option<String>,

    /// Send so many bytes a second at most, such as 10M; `none` for no limit
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<BandwidthRate>,

    /// Another rate in a part of the day, such as 08:00-18:00=2M; may be given several times
    #[arg(
        long,
        value_name = "HH:MM-HH:MM=RATE",
        value_parser = parse_window,
        requires = "bandwidth"
    )]
    bandwidth_window: Vec<BandwidthWindow>,

    /// Receive no more while what waits to be applied would take longer than this
    #[arg(long, value_name = "SECONDS")]
    apply_backlog_limit: Option<u64>,

    /// Make a recovery point every so many seconds
    #[arg(long, value_name = "SECONDS")]
    point_spacing: Option<u64>,
}

/// A rate of its own type: absent means that nothing was said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BandwidthRate(Option<u64>);

fn parse_rate(text: &str) -> Result<BandwidthRate, String> {
    if text == "none" {
        return Ok(BandwidthRate(None));
    }
    size::parse(text).map(|rate| BandwidthRate(Some(rate)))
}

fn parse_window(text: &str) -> Result<BandwidthWindow, String> {
    let parts = text.split_once('=').and_then(|(times, rate)| {
        let (start, end) = times.split_once('-')?;
        Some((start, end, rate))
    });
    let Some((start, end, rate)) = parts else {
        return Err("use START-END=RATE, such as 08:00-18:00=2M".to_owned());
    };
    Ok(BandwidthWindow {
        start: start.to_owned(),
        end: end.to_owned(),
        bytes_per_second: parse_rate(rate)?.0,
    })
}

impl From<SettingsArgs> for SettingsChange {
    fn from(args: SettingsArgs) -> Self {
        let windows = args.bandwidth_window;
        Self {
            recovery_connection_point: None,
            recovery_server_port_number: None,
            replication_interval: args.interval,
            recovery_history: args.history,
            application_consistent_snapshot_interval: args.application_consistent,
            compression_enabled: args.compression.map(bool::from),
            included_disks: if args.all_disks || !args.disks.is_empty() {
                Some(args.disks)
            } else {
                None
            },
            auto_resynchronize_enabled: args.auto_resync.map(bool::from),
            auto_resynchronize_interval_start: args.auto_resync_start,
            auto_resynchronize_interval_end: args.auto_resync_end,
            bandwidth_limit: args.bandwidth.map(|rate| BandwidthLimit {
                bytes_per_second: rate.0,
                windows,
            }),
            apply_backlog_limit: args.apply_backlog_limit,
            point_spacing: args.point_spacing,
        }
    }
}

/// Settings for people.
pub fn settings_text(settings: &ReplicationSettings) -> String {
    let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
    let consistent = settings.application_consistent_snapshot_interval;
    let disks = if settings.included_disks.is_empty() {
        "all".to_owned()
    } else {
        settings.included_disks.join(", ")
    };
    let resync = if settings.auto_resynchronize_enabled {
        format!(
            "from {} to {}",
            settings.auto_resynchronize_interval_start, settings.auto_resynchronize_interval_end
        )
    } else {
        "off".to_owned()
    };
    facts(&[
        (
            "recovery server",
            format!(
                "{} port {}",
                settings.recovery_connection_point, settings.recovery_server_port_number
            ),
        ),
        ("interval", duration(settings.replication_interval)),
        (
            "recovery history",
            format!("{} points", settings.recovery_history),
        ),
        (
            "application-consistent",
            if consistent == 0 {
                "never".to_owned()
            } else {
                format!("every {consistent} h")
            },
        ),
        ("point spacing", duration(settings.point_spacing)),
        ("compression", switch(settings.compression_enabled)),
        ("disks", disks),
        ("automatic resync", resync),
        ("bandwidth", bandwidth(&settings.bandwidth_limit)),
        (
            "apply backlog limit",
            duration(settings.apply_backlog_limit),
        ),
    ])
}

fn bandwidth(limit: &BandwidthLimit) -> String {
    let rate = |rate: Option<u64>| match rate {
        Some(rate) => format!("{}/s", Bytes(rate)),
        None => "no limit".to_owned(),
    };
    let mut text = rate(limit.bytes_per_second);
    for window in &limit.windows {
        text.push_str(&format!(
            "; {} from {} to {}",
            rate(window.bytes_per_second),
            window.start,
            window.end
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_two_times_and_a_rate() {
        let window = parse_window("08:00-18:00=2M").unwrap();
        assert_eq!(
            (window.start.as_str(), window.end.as_str()),
            ("08:00", "18:00")
        );
        assert_eq!(window.bytes_per_second, Some(2 << 20));
        assert_eq!(
            parse_window("22:00-06:00=none").unwrap().bytes_per_second,
            None
        );
        for text in ["", "08:00", "08:00-18:00", "08:00=2M", "08:00-18:00=fast"] {
            assert!(parse_window(text).is_err(), "{text:?}");
        }
    }
}
