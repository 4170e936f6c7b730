//! How fast replication may send, by time of day.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::invalid::Findings;
use crate::{BLOCK_SIZE, DayWindow, InvalidFields, TimeOfDay, Timestamp, UtcOffset};

/// The lowest limit, in bytes per second: one block. Less would never finish a frame.
pub const MIN_BANDWIDTH: u64 = BLOCK_SIZE;

/// The highest limit, in bytes per second: beyond what any link carries.
pub const MAX_BANDWIDTH: u64 = 1 << 40;

/// The most windows that one limit may have.
pub const MAX_BANDWIDTH_WINDOWS: usize = 16;

/// How fast may be sent. The lower of two is the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rate {
    /// Bytes per second.
    Limited(NonZeroU64),
    Unlimited,
}

/// A limit for most of the day, and others for parts of it. The first window that is open counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedBandwidthLimit", into = "UncheckedBandwidthLimit")]
pub struct BandwidthLimit {
    otherwise: Rate,
    windows: Vec<(DayWindow, Rate)>,
}

/// A [`BandwidthLimit`] as people and files give it. Bytes per second; absent for no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedBandwidthLimit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<UncheckedBandwidthWindow>,
}

/// A part of the day, in local time, with a limit of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncheckedBandwidthWindow {
    pub start: String,
    pub end: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

impl BandwidthLimit {
    pub const UNLIMITED: Self = Self {
        otherwise: Rate::Unlimited,
        windows: Vec::new(),
    };

    /// What holds at that time of day, by local time.
    #[must_use]
    pub fn rate_at(&self, time: TimeOfDay) -> Rate {
        self.windows
            .iter()
            .find(|(window, _)| window.contains(time))
            .map_or(self.otherwise, |(_, rate)| *rate)
    }

    /// The first moment after `now` at which the rate may be another; `None` if it never is.
    #[must_use]
    pub fn next_change(&self, now: Timestamp, offset: UtcOffset) -> Option<Timestamp> {
        let later = now.after(std::time::Duration::from_micros(1));
        self.windows
            .iter()
            .flat_map(|(window, _)| window.edges())
            .map(|edge| edge.next(later, offset))
            .min()
    }
}

impl UncheckedBandwidthLimit {
    /// # Errors
    /// Every field that is out of range, with the range.
    pub fn validate(&self) -> Result<BandwidthLimit, InvalidFields> {
        let mut findings = Findings::default();
        let limit = self.check(&mut findings);
        findings.finish(limit)
    }

    pub(crate) fn check(&self, findings: &mut Findings) -> Option<BandwidthLimit> {
        const FIELD: &str = "bandwidth_limit.windows";
        let otherwise = rate(
            findings,
            "bandwidth_limit.bytes_per_second",
            self.bytes_per_second,
        );
        if self.windows.len() > MAX_BANDWIDTH_WINDOWS {
            findings.add(
                FIELD,
                &format_args!("a list of {}", self.windows.len()),
                format!("use at most {MAX_BANDWIDTH_WINDOWS}"),
            );
            return None;
        }
        let mut windows = Vec::with_capacity(self.windows.len());
        for window in &self.windows {
            let rate = rate(
                findings,
                "bandwidth_limit.windows.bytes_per_second",
                window.bytes_per_second,
            );
            let start = findings.text("bandwidth_limit.windows.start", &window.start);
            let end = findings.text("bandwidth_limit.windows.end", &window.end);
            let window = day_window(findings, FIELD, start, end);
            windows.push((window?, rate?));
        }
        Some(BandwidthLimit {
            otherwise: otherwise?,
            windows,
        })
    }
}

/// The window between two times that were themselves looked at already.
pub(crate) fn day_window(
    findings: &mut Findings,
    field: &'static str,
    start: Option<TimeOfDay>,
    end: Option<TimeOfDay>,
) -> Option<DayWindow> {
    let (start, end) = (start?, end?);
    match DayWindow::new(start, end) {
        Ok(window) => Some(window),
        Err(error) => {
            findings.add(field, &format_args!("{start} to {end}"), error.to_string());
            None
        }
    }
}

fn rate(findings: &mut Findings, field: &'static str, given: Option<u64>) -> Option<Rate> {
    let Some(given) = given else {
        return Some(Rate::Unlimited);
    };
    let range = MIN_BANDWIDTH..=MAX_BANDWIDTH;
    let bytes: u64 = findings.number(field, given, range, "bytes per second, or leave it out")?;
    NonZeroU64::new(bytes).map(Rate::Limited)
}

impl TryFrom<UncheckedBandwidthLimit> for BandwidthLimit {
    type Error = InvalidFields;

    fn try_from(unchecked: UncheckedBandwidthLimit) -> Result<Self, InvalidFields> {
        unchecked.validate()
    }
}

impl From<BandwidthLimit> for UncheckedBandwidthLimit {
    fn from(limit: BandwidthLimit) -> Self {
        Self {
            bytes_per_second: limit.otherwise.bytes_per_second(),
            windows: limit
                .windows
                .into_iter()
                .map(|(window, rate)| UncheckedBandwidthWindow {
                    start: window.start().to_string(),
                    end: window.end().to_string(),
                    bytes_per_second: rate.bytes_per_second(),
                })
                .collect(),
        }
    }
}

impl Rate {
    /// `None` without a limit.
    #[must_use]
    pub const fn bytes_per_second(self) -> Option<u64> {
        match self {
            Self::Limited(bytes) => Some(bytes.get()),
            Self::Unlimited => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(json: &str) -> Result<BandwidthLimit, serde_json::Error> {
        serde_json::from_str(json)
    }

    fn at(limit: &BandwidthLimit, time: &str) -> Option<u64> {
        limit.rate_at(time.parse().unwrap()).bytes_per_second()
    }

    const BY_DAY: &str = r#"{"bytes_per_second": 1000000, "windows": [
        {"start": "12:00", "end": "12:59"},
        {"start": "08:00", "end": "17:59", "bytes_per_second": 50000}]}"#;

    #[test]
    fn the_first_open_window_counts_and_otherwise_the_general_limit() {
        let limit = limit(BY_DAY).unwrap();
        assert_eq!(at(&limit, "07:59:59"), Some(1_000_000));
        assert_eq!(at(&limit, "08:00"), Some(50_000));
        assert_eq!(at(&limit, "12:30"), None);
        assert_eq!(at(&limit, "13:00"), Some(50_000));
        assert_eq!(at(&limit, "18:00"), Some(1_000_000));
    }

    #[test]
    fn limits_that_would_stop_replication_are_refused() {
        for json in [
            r#"{"bytes_per_second": 0}"#,
            r#"{"bytes_per_second": 4095}"#,
            r#"{"bytes_per_second": 1099511627777}"#,
            r#"{"bytes_per_second": -1}"#,
            r#"{"windows": [{"start": "08:00", "end": "08:00"}]}"#,
            r#"{"windows": [{"start": "08:00", "end": "25:00"}]}"#,
            r#"{"windows": [{"start": "08:00"}]}"#,
            r#"{"megabits": 10}"#,
        ] {
            assert!(limit(json).is_err(), "{json}");
        }
        let window = r#"{"start": "08:00", "end": "09:00"}"#;
        let many = |count: usize| format!(r#"{{"windows": [{}]}}"#, vec![window; count].join(","));
        assert!(limit(&many(MAX_BANDWIDTH_WINDOWS)).is_ok());
        assert!(limit(&many(MAX_BANDWIDTH_WINDOWS + 1)).is_err());
    }

    #[test]
    fn a_limit_without_windows_never_changes() {
        let now = Timestamp::from_micros(5);
        assert_eq!(
            BandwidthLimit::UNLIMITED.next_change(now, UtcOffset::UTC),
            None
        );
    }

    proptest! {
        #[test]
        fn between_two_changes_the_rate_stays(
            windows in prop::collection::vec((0..1440u32, 0..1440u32, 4096..9999u64), 1..4),
            from in 0..200_000u64,
            offset in -840..=840i16,
        ) {
            let offset = UtcOffset::from_minutes(offset).unwrap();
            let text = |minute: u32| TimeOfDay::from_seconds(minute * 60).unwrap().to_string();
            let unchecked = UncheckedBandwidthLimit {
                bytes_per_second: None,
                windows: windows
                    .iter()
                    .filter(|(start, end, _)| start != end)
                    .map(|&(start, end, rate)| UncheckedBandwidthWindow {
                        start: text(start),
                        end: text(end),
                        bytes_per_second: Some(rate),
                    })
                    .collect(),
            };
            let limit = unchecked.validate().unwrap();
            let rate = |second: u64| {
                limit.rate_at(TimeOfDay::at(Timestamp::from_micros(second * 1_000_000), offset))
            };
            let now = Timestamp::from_micros(from * 1_000_000);
            let next = limit.next_change(now, offset);
            let until = next.map_or(from + 90_000, |next| next.as_micros() / 1_000_000);
            prop_assert!(until > from);
            for second in from..until {
                prop_assert_eq!(rate(second), rate(from));
            }
        }

        #[test]
        fn a_limit_reads_back_what_it_wrote(
            rate in prop::option::of(MIN_BANDWIDTH..=MAX_BANDWIDTH),
            start in 0..1439u32,
        ) {
            let unchecked = UncheckedBandwidthLimit {
                bytes_per_second: rate,
                windows: vec![UncheckedBandwidthWindow {
                    start: TimeOfDay::from_seconds(start * 60).unwrap().to_string(),
                    end: "23:59".to_owned(),
                    bytes_per_second: rate,
                }],
            };
            let limit = unchecked.validate().unwrap();
            let json = serde_json::to_string(&limit).unwrap();
            prop_assert_eq!(serde_json::from_str::<BandwidthLimit>(&json).unwrap(), limit);
        }
    }
}
