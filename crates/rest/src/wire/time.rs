//! Times as text.

use std::fmt;
use std::str::FromStr;

use lifeboat_model::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const MICROS_PER_SECOND: u64 = 1_000_000;

/// A time in RFC 3339: written in UTC to the microsecond, read with any offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, format = DateTime)]
pub struct Time(pub Timestamp);

/// Text that is no time, or one before 1970.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no time: use RFC 3339, such as 2026-01-31T22:00:00Z")]
pub struct InvalidTime {
    text: String,
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.to_string();
        let micros = self.0.as_micros() % MICROS_PER_SECOND;
        write!(f, "{}.{micros:06}Z", seconds.trim_end_matches('Z'))
    }
}

impl From<Time> for String {
    fn from(time: Time) -> String {
        time.to_string()
    }
}

impl From<Timestamp> for Time {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp)
    }
}

impl TryFrom<String> for Time {
    type Error = InvalidTime;

    fn try_from(text: String) -> Result<Self, InvalidTime> {
        text.parse()
    }
}

impl FromStr for Time {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        parse(text).map(Self).ok_or_else(|| InvalidTime {
            text: text.chars().take(80).collect(),
        })
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (micros, offset) = fraction(rest)?;
    let days = days_from_civil(year, month, day)?;
    let local = days * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = local.checked_add_signed(-offset_seconds(offset)?)?;
    let micros = seconds
        .checked_mul(MICROS_PER_SECOND)?
        .checked_add(micros)?;
    Some(Timestamp::from_micros(micros))
}

/// Numbers of so many digits each, with separators between.
fn numbers(text: &str, separator: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        *number = number_of(parts.next()?, digits)?;
    }
    parts.next().is_none().then_some(numbers)
}

fn number_of(text: &str, digits: usize) -> Option<u64> {
    let all_digits = text.len() == digits && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| all_digits)
}

/// The microseconds of a fraction of a second, and what follows it. Finer digits are dropped.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(rest) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    let (digits, rest) = rest.split_at(end);
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    let mut micros = 0;
    for at in 0..6 {
        let digit = digits.as_bytes().get(at).map_or(0, |c| u64::from(c - b'0'));
        micros = micros * 10 + digit;
    }
    Some((micros, rest))
}

/// How far local time is ahead of UTC.
fn offset_seconds(text: &str) -> Option<i64> {
    if matches!(text, "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = text.split_at_checked(1)?;
    let sign = match sign {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (number_of(hours, 2)?, number_of(minutes, 2)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    i64::try_from(hours * 3600 + minutes * 60)
        .ok()
        .map(|seconds| sign * seconds)
}

/// How many days after 1970-01-01 a date of the Gregorian calendar lies.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if year < 1970 || !(1..=length).contains(&day) {
        return None;
    }
    // Years begin in March, so that the leap day is the last of a year.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    (year * 365 + leap_days + (153 * month + 2) / 5 + day).checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> Option<u64> {
        text.parse::<Time>().ok().map(|time| time.0.as_micros())
    }

    #[test]
    fn a_time_reads_back_what_it_wrote() {
        let mut micros = 1;
        while micros < 4_107_542_400_000_000 {
            let time = Time(Timestamp::from_micros(micros));
            assert_eq!(time.to_string().parse(), Ok(time));
            micros += 86_399_123_457 * 37;
        }
        let time = Time(Timestamp::from_micros(951_782_399_000_001));
        assert_eq!(time.to_string(), "2000-02-28T23:59:59.000001Z");
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        let utc = micros("2026-03-01T00:30:00Z");
        assert!(utc.is_some());
        assert_eq!(micros("2026-03-01T02:30:00+02:00"), utc);
        assert_eq!(micros("2026-02-28T19:00:00-05:30"), utc);
        assert_eq!(micros("2026-03-01t00:30:00.000z"), utc);
        assert_eq!(micros("1970-01-01T00:00:00.5Z"), Some(500_000));
        assert_eq!(micros("1970-01-01T00:00:00.123456789Z"), Some(123_456));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "now",
            "2026-03-01",
            "2026-03-01T00:30:00",
            "2026-03-01T00:30Z",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234567890Z",
            "2026-01-01T00:00:00.5",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+24:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "+026-01-01T00:00:00Z",
            "2026-01-01T00:00:00Zz",
            "é026-01-01T00:00:00Z",
        ] {
            assert_eq!(micros(text), None, "{text:?}");
        }
    }
}
