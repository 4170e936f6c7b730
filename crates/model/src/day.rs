//! Times of day, windows of the day, and the offset of local time.
//!
//! Local time is UTC plus an offset that the caller reads at the edge; whoever asks again later
//! asks with the offset of then, so that a change to daylight saving time moves a window by an
//! hour and skips or repeats nothing.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;
use crate::invalid::quoted;

pub(crate) const SECONDS_OF_DAY: u32 = 86_400;
const MICROS_OF_SECOND: u64 = 1_000_000;
const MICROS_OF_DAY: u64 = SECONDS_OF_DAY as u64 * MICROS_OF_SECOND;

/// A time of day, to the second. As text `HH:MM` or `HH:MM:SS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u32);

/// Text or a number that is no time of day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no time of day: use HH:MM or HH:MM:SS, from 00:00 to 23:59:59")]
pub struct InvalidTimeOfDay {
    text: String,
}

impl TimeOfDay {
    pub const MIDNIGHT: Self = Self(0);

    /// The time that many seconds after midnight; `None` from 86,400 on.
    #[must_use]
    pub const fn from_seconds(seconds: u32) -> Option<Self> {
        if seconds < SECONDS_OF_DAY {
            Some(Self(seconds))
        } else {
            None
        }
    }

    /// Seconds since midnight.
    #[must_use]
    pub const fn seconds(self) -> u32 {
        self.0
    }

    /// The time of day at a moment, where local time has this offset.
    #[must_use]
    pub fn at(moment: Timestamp, offset: UtcOffset) -> Self {
        Self(seconds_of_day(
            i128::from(moment.as_micros() / MICROS_OF_SECOND) + offset.seconds(),
        ))
    }

    /// The same instant of the day as UTC has it.
    #[must_use]
    pub fn to_utc(self, offset: UtcOffset) -> Self {
        Self(seconds_of_day(i128::from(self.0) - offset.seconds()))
    }

    /// The first moment at or after `from` at which local time reads this.
    #[must_use]
    pub fn next(self, from: Timestamp, offset: UtcOffset) -> Timestamp {
        let utc = u64::from(self.to_utc(offset).0) * MICROS_OF_SECOND;
        let into_day = from.as_micros() % MICROS_OF_DAY;
        let wait = (MICROS_OF_DAY + utc - into_day) % MICROS_OF_DAY;
        from.after(Duration::from_micros(wait))
    }
}

fn seconds_of_day(seconds: i128) -> u32 {
    u32::try_from(seconds.rem_euclid(i128::from(SECONDS_OF_DAY)))
        .expect("BUG: a remainder is smaller than its divisor")
}

impl FromStr for TimeOfDay {
    type Err = InvalidTimeOfDay;

    fn from_str(text: &str) -> Result<Self, InvalidTimeOfDay> {
        parse_time(text).ok_or_else(|| InvalidTimeOfDay { text: quoted(text) })
    }
}

fn parse_time(text: &str) -> Option<TimeOfDay> {
    if text.len() != 5 && text.len() != 8 {
        return None;
    }
    let mut parts = text.split(':');
    let hour = two_digits(parts.next()?, 23)?;
    let minute = two_digits(parts.next()?, 59)?;
    let second = match parts.next() {
        Some(part) => two_digits(part, 59)?,
        None => 0,
    };
    let seconds = hour * 3600 + minute * 60 + second;
    parts.next().is_none().then_some(TimeOfDay(seconds))
}

fn two_digits(text: &str, last: u32) -> Option<u32> {
    let digits = text.len() == 2 && text.bytes().all(|c| c.is_ascii_digit());
    let number = text.parse().ok().filter(|&number| number <= last)?;
    digits.then_some(number)
}

impl TryFrom<String> for TimeOfDay {
    type Error = InvalidTimeOfDay;

    fn try_from(text: String) -> Result<Self, InvalidTimeOfDay> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> String {
        time.to_string()
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 3600, self.0 / 60 % 60)?;
        match self.0 % 60 {
            0 => Ok(()),
            second => write!(f, ":{second:02}"),
        }
    }
}

/// How far local time is ahead of UTC, in whole minutes; negative in the west.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UtcOffset(i16);

impl UtcOffset {
    pub const UTC: Self = Self(0);

    /// The most that CIM text can say; far more than any place has.
    pub const MAX_MINUTES: i16 = 999;

    /// `None` beyond [`MAX_MINUTES`](Self::MAX_MINUTES) in either direction.
    #[must_use]
    pub const fn from_minutes(minutes: i16) -> Option<Self> {
        if minutes >= -Self::MAX_MINUTES && minutes <= Self::MAX_MINUTES {
            Some(Self(minutes))
        } else {
            None
        }
    }

    #[must_use]
    pub const fn minutes(self) -> i16 {
        self.0
    }

    fn seconds(self) -> i128 {
        i128::from(self.0) * 60
    }
}

/// A part of each day, by local time. It lasts to the end of the minute that its end names, and
/// over midnight if it ends before it starts: 00:00 to 23:59 is the whole day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DayWindow {
    start: TimeOfDay,
    /// The last second that belongs to it.
    last: u32,
    end: TimeOfDay,
}

/// Two times that bound no window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a window cannot both start and end at {at}: for the whole day use 00:00 to 23:59")]
pub struct InvalidDayWindow {
    at: TimeOfDay,
}

impl DayWindow {
    /// # Errors
    /// Start and end are the same, which could mean all of the day or none.
    pub fn new(start: TimeOfDay, end: TimeOfDay) -> Result<Self, InvalidDayWindow> {
        if start == end {
            return Err(InvalidDayWindow { at: start });
        }
        let last = end.0 - end.0 % 60 + 59;
        Ok(Self { start, last, end })
    }

    #[must_use]
    pub const fn start(&self) -> TimeOfDay {
        self.start
    }

    #[must_use]
    pub const fn end(&self) -> TimeOfDay {
        self.end
    }

    /// Whether that time of day lies inside.
    #[must_use]
    pub const fn contains(&self, time: TimeOfDay) -> bool {
        if self.start.0 <= self.last {
            self.start.0 <= time.0 && time.0 <= self.last
        } else {
            self.start.0 <= time.0 || time.0 <= self.last
        }
    }

    /// The first moment at or after `from` that lies inside: `from` itself while it is open.
    #[must_use]
    pub fn next_open(&self, from: Timestamp, offset: UtcOffset) -> Timestamp {
        if self.contains(TimeOfDay::at(from, offset)) {
            from
        } else {
            self.start.next(from, offset)
        }
    }

    /// The times of day at which it opens and at which it has just closed.
    pub(crate) fn edges(&self) -> [TimeOfDay; 2] {
        [self.start, TimeOfDay((self.last + 1) % SECONDS_OF_DAY)]
    }
}

impl fmt::Display for DayWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(text: &str) -> TimeOfDay {
        text.parse().unwrap()
    }

    fn window(start: &str, end: &str) -> DayWindow {
        DayWindow::new(time(start), time(end)).unwrap()
    }

    fn seconds(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * MICROS_OF_SECOND)
    }

    #[test]
    fn text_that_is_no_time_of_day_is_refused() {
        for text in [
            "",
            "24:00",
            "23:60",
            "23:59:60",
            "1:00",
            "01:0",
            "01-00",
            "+1:00",
            "01:00:",
            "::",
            "01:00:00:00",
            "ab:cd",
            " 1:00",
            "１:00",
            "01:00 AM",
        ] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text:?}");
        }
        assert_eq!(time("23:59:59").seconds(), 86_399);
        assert_eq!(time("18:30").to_string(), "18:30");
        assert_eq!(TimeOfDay::from_seconds(86_400), None);
    }

    #[test]
    fn a_window_over_midnight_is_open_on_both_sides_of_it() {
        let night = window("18:30", "06:00");
        for inside in ["18:30", "23:59:59", "00:00", "06:00", "06:00:59"] {
            assert!(night.contains(time(inside)), "{inside}");
        }
        for outside in ["06:01", "12:00", "18:29:59"] {
            assert!(!night.contains(time(outside)), "{outside}");
        }
    }

    #[test]
    fn midnight_to_the_last_minute_is_the_whole_day() {
        let day = window("00:00", "23:59");
        assert!((0..SECONDS_OF_DAY).all(|second| day.contains(TimeOfDay(second))));
        assert!(DayWindow::new(time("12:00"), time("12:00")).is_err());
    }

    #[test]
    fn a_closed_window_opens_at_its_start_by_local_time() {
        let night = window("18:30", "06:00");
        let east = UtcOffset::from_minutes(120).unwrap();
        // 10:00 UTC is noon there; the window opens at 16:30 UTC.
        assert_eq!(night.next_open(seconds(36_000), east), seconds(59_400));
        // 17:00 UTC is 19:00 there.
        assert_eq!(night.next_open(seconds(61_200), east), seconds(61_200));
        let west = UtcOffset::from_minutes(-300).unwrap();
        // 20:00 UTC is 15:00 there; 18:30 is 23:30 UTC.
        assert_eq!(night.next_open(seconds(72_000), west), seconds(84_600));
    }

    #[test]
    fn an_offset_that_text_cannot_carry_is_refused() {
        assert_eq!(UtcOffset::from_minutes(1000), None);
        assert_eq!(UtcOffset::from_minutes(-1000), None);
        assert_eq!(UtcOffset::from_minutes(i16::MIN), None);
    }

    proptest! {
        #[test]
        fn a_time_of_day_reads_back_what_it_wrote(second in 0..SECONDS_OF_DAY) {
            let time = TimeOfDay(second);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }

        /// The oracle walks minute by minute.
        #[test]
        fn the_next_opening_is_the_first_minute_inside(
            start in 0..1440u32,
            end in 0..1440u32,
            from in 0..5_000_000u64,
            offset in -999..=999i16,
        ) {
            prop_assume!(start != end);
            let window = DayWindow::new(TimeOfDay(start * 60), TimeOfDay(end * 60)).unwrap();
            let offset = UtcOffset::from_minutes(offset).unwrap();
            let inside = |minute: i64| {
                let local = (minute + i64::from(offset.minutes())).rem_euclid(1440) as u32;
                if start < end { (start..=end).contains(&local) } else { local >= start || local <= end }
            };
            let first = (from / 60..).find(|&minute| inside(minute.cast_signed())).unwrap();
            let expected = from.max(first * 60);
            prop_assert_eq!(window.next_open(seconds(from), offset), seconds(expected));
        }

        #[test]
        fn no_moment_and_no_offset_overflows(micros: u64, second in 0..SECONDS_OF_DAY, offset in -999..=999i16) {
            let offset = UtcOffset::from_minutes(offset).unwrap();
            let (time, now) = (TimeOfDay(second), Timestamp::from_micros(micros));
            let next = time.next(now, offset);
            prop_assert!(next >= now);
            if next < Timestamp::from_micros(u64::MAX) {
                prop_assert_eq!(TimeOfDay::at(next, offset), time);
            }
        }
    }
}
