//! Time, for those at the edge who may ask for it.
//!
//! Wall time labels things for people. Waiting and measuring use [`Stopwatch`], which
//! a changed clock does not move. Code below the edge takes moments as arguments.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;
use lifeboat_model::{Timestamp, UtcOffset};

/// The wall clock's time now; the epoch if the clock stands before it.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "this is the edge that the ban points to"
)]
pub fn wall() -> Timestamp {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
}

/// How far local time is ahead of UTC at a moment, in whole minutes; UTC where the system does not
/// say which time zone it is in.
#[must_use]
pub fn utc_offset(at: Timestamp) -> UtcOffset {
    offset_in(&TimeZone::system(), at)
}

fn offset_in(zone: &TimeZone, at: Timestamp) -> UtcOffset {
    let micros = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    let minutes = jiff::Timestamp::from_microsecond(micros)
        .map_or(0, |moment| zone.to_offset(moment).seconds() / 60);
    i16::try_from(minutes)
        .ok()
        .and_then(UtcOffset::from_minutes)
        .unwrap_or(UtcOffset::UTC)
}

/// Time passed since it was started, by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the edge that the ban points to"
    )]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_follows_the_zone_and_its_daylight_saving_time() {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        let minutes =
            |seconds: u64| offset_in(&zone, Timestamp::from_micros(seconds * 1_000_000)).minutes();
        // 2026-03-29, one second before and at the change.
        assert_eq!(minutes(1_774_745_999), 60);
        assert_eq!(minutes(1_774_746_000), 120);
        assert_eq!(
            offset_in(&zone, Timestamp::from_micros(u64::MAX)),
            UtcOffset::UTC
        );
    }
}
