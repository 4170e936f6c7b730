//! The 25 characters in which CIM writes moments and spans of time.
//!
//! A timestamp is `yyyymmddHHMMSS.mmmmmm+UUU` (or `-UUU`: minutes that local time is ahead of
//! UTC), an interval `ddddddddHHMMSS.mmmmmm:000`. A field that is not known is written as
//! asterisks; of the microseconds, the last digits may be. Reading keeps what is unknown
//! unknown; turning it into a moment or a span asks for all fields down to the second, and takes
//! unknown digits of the microseconds for zero.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::calendar::{civil_from_days, days_from_civil, days_in_month};
use crate::day::SECONDS_OF_DAY;
use crate::invalid::quoted;
use crate::{TimeOfDay, Timestamp, UtcOffset};

const LEN: usize = 25;
const MICROS_OF_SECOND: u64 = 1_000_000;
const MAX_DAYS: u64 = 99_999_999;

/// Text as CIM writes it, its fields in their ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CimDateTime(Form);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Timestamp {
        date: Date,
        time: Time,
        /// Absent when the text does not say it.
        offset: Option<UtcOffset>,
    },
    Interval {
        days: Option<u32>,
        time: Time,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Date {
    year: Option<u16>,
    month: Option<u8>,
    day: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    hour: Option<u8>,
    minute: Option<u8>,
    second: Option<u8>,
    micros: Micros,
}

/// Microseconds of which the last digits may be unknown, and count as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Micros {
    value: u32,
    known_digits: u8,
}

/// Text that CIM would not write, or that does not say what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CimDateTimeError {
    #[error(
        "{text:?} is no CIM datetime: use the 25 characters of yyyymmddHHMMSS.mmmmmm+UUU for a moment or ddddddddHHMMSS.mmmmmm:000 for a span"
    )]
    Malformed { text: String },
    #[error("{text} is a span of time: a moment is written yyyymmddHHMMSS.mmmmmm+UUU")]
    NotAMoment { text: String },
    #[error("{text} is a moment: a span of time is written ddddddddHHMMSS.mmmmmm:000")]
    NotASpan { text: String },
    #[error(
        "{text} is no time of day: write it as 00000000HHMMSS.mmmmmm:000, or as a moment without a date"
    )]
    NotATimeOfDay { text: String },
    #[error("{text} leaves out what is needed: give every field down to the second")]
    Incomplete { text: String },
    #[error("{text} is no moment since 1970 in UTC: give a later one")]
    OutOfRange { text: String },
}

/// A moment or a span beyond what the 25 characters can say: after the year 9999, or longer than
/// 99,999,999 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a CIM datetime: it can say years to 9999 and spans to 99999999 days")]
pub struct TooLargeForCim;

impl CimDateTime {
    /// A moment, written in UTC.
    ///
    /// # Errors
    /// It lies after the year 9999.
    pub fn from_timestamp(at: Timestamp) -> Result<Self, TooLargeForCim> {
        Self::from_local(at, UtcOffset::UTC)
    }

    /// A moment, written as local time has it.
    ///
    /// # Errors
    /// Local time is after the year 9999 or before 1970.
    pub fn from_local(at: Timestamp, offset: UtcOffset) -> Result<Self, TooLargeForCim> {
        let micros = i128::from(at.as_micros())
            + i128::from(offset.minutes()) * 60 * i128::from(MICROS_OF_SECOND);
        let micros = u64::try_from(micros).map_err(|_| TooLargeForCim)?;
        let seconds = micros / MICROS_OF_SECOND;
        let (year, month, day) = civil_from_days(seconds / u64::from(SECONDS_OF_DAY));
        if year > 9999 {
            return Err(TooLargeForCim);
        }
        let date = Date {
            year: u16::try_from(year).ok(),
            month: u8::try_from(month).ok(),
            day: u8::try_from(day).ok(),
        };
        Ok(Self(Form::Timestamp {
            date,
            time: Time::of_micros(micros),
            offset: Some(offset),
        }))
    }

    /// A span of time, to the microsecond; less than that is cut off.
    ///
    /// # Errors
    /// It is longer than 99,999,999 days and 24 hours.
    pub fn from_duration(span: Duration) -> Result<Self, TooLargeForCim> {
        let days = span.as_secs() / u64::from(SECONDS_OF_DAY);
        if days > MAX_DAYS {
            return Err(TooLargeForCim);
        }
        let micros = span.as_secs() % u64::from(SECONDS_OF_DAY) * MICROS_OF_SECOND
            + u64::from(span.subsec_micros());
        Ok(Self(Form::Interval {
            days: u32::try_from(days).ok(),
            time: Time::of_micros(micros),
        }))
    }

    /// A time of day, as an interval since midnight.
    #[must_use]
    pub fn from_time_of_day(time: TimeOfDay) -> Self {
        Self(Form::Interval {
            days: Some(0),
            time: Time::of_micros(u64::from(time.seconds()) * MICROS_OF_SECOND),
        })
    }

    /// # Errors
    /// It is a span, leaves something out above the microseconds, or lies before 1970.
    pub fn timestamp(&self) -> Result<Timestamp, CimDateTimeError> {
        let text = || self.to_string();
        let (date, time, offset) = match self.0 {
            Form::Timestamp { date, time, offset } => (date, time, offset),
            Form::Interval { .. } => return Err(CimDateTimeError::NotAMoment { text: text() }),
        };
        let incomplete = || CimDateTimeError::Incomplete { text: text() };
        let out_of_range = || CimDateTimeError::OutOfRange { text: text() };
        let micros = time.micros_of_day().ok_or_else(incomplete)?;
        let offset = offset.ok_or_else(incomplete)?;
        let (Some(year), Some(month), Some(day)) = (date.year, date.month, date.day) else {
            return Err(incomplete());
        };
        let days =
            days_from_civil(year.into(), month.into(), day.into()).ok_or_else(out_of_range)?;
        let local = i128::from(days) * i128::from(SECONDS_OF_DAY) * i128::from(MICROS_OF_SECOND)
            + i128::from(micros);
        let ahead = i128::from(offset.minutes()) * 60 * i128::from(MICROS_OF_SECOND);
        u64::try_from(local - ahead)
            .map(Timestamp::from_micros)
            .map_err(|_| out_of_range())
    }

    /// # Errors
    /// It is a moment, or leaves something out above the microseconds.
    pub fn duration(&self) -> Result<Duration, CimDateTimeError> {
        match self.0 {
            Form::Interval { days, time } => days
                .zip(time.micros_of_day())
                .map(|(days, micros)| {
                    Duration::from_secs(u64::from(days) * u64::from(SECONDS_OF_DAY))
                        + Duration::from_micros(micros)
                })
                .ok_or_else(|| CimDateTimeError::Incomplete {
                    text: self.to_string(),
                }),
            Form::Timestamp { .. } => Err(CimDateTimeError::NotASpan {
                text: self.to_string(),
            }),
        }
    }

    /// A time of day in UTC: an interval of less than a day is taken for UTC already, a moment
    /// without a date (all zeroes or all asterisks) has an offset that is taken off.
    ///
    /// # Errors
    /// There is a date, or something is left out above the microseconds.
    pub fn time_of_day(&self) -> Result<TimeOfDay, CimDateTimeError> {
        let text = || self.to_string();
        let (time, offset) = match self.0 {
            Form::Interval {
                days: None | Some(0),
                time,
            } => (time, Some(UtcOffset::UTC)),
            Form::Timestamp { date, time, offset } if date.is_absent() => (time, offset),
            Form::Interval { .. } | Form::Timestamp { .. } => {
                return Err(CimDateTimeError::NotATimeOfDay { text: text() });
            }
        };
        let seconds = time.micros_of_day().map(|micros| micros / MICROS_OF_SECOND);
        seconds
            .and_then(|seconds| u32::try_from(seconds).ok())
            .and_then(TimeOfDay::from_seconds)
            .zip(offset)
            .map(|(time, offset)| time.to_utc(offset))
            .ok_or_else(|| CimDateTimeError::Incomplete { text: text() })
    }
}

impl Date {
    fn is_absent(self) -> bool {
        let absent = |field: Option<u16>| field.is_none_or(|value| value == 0);
        absent(self.year) && absent(self.month.map(u16::from)) && absent(self.day.map(u16::from))
    }

    /// Whether there can be such a date: a real one, one of zeroes, or one with unknown fields.
    fn is_possible(self) -> bool {
        match (self.year, self.month, self.day) {
            (Some(0) | None, Some(0) | None, Some(0) | None) => true,
            (year, Some(month), Some(day)) => {
                // An unknown year may be a leap year.
                let year = year.map_or(2000, u64::from);
                days_in_month(year, month.into())
                    .is_some_and(|last| (1..=last).contains(&day.into()))
            }
            (_, month, day) => {
                month.is_none_or(|month| (1..=12).contains(&month))
                    && day.is_none_or(|day| (1..=31).contains(&day))
            }
        }
    }
}

impl Time {
    fn of_micros(micros: u64) -> Self {
        let second = micros / MICROS_OF_SECOND;
        let part = |value: u64| u8::try_from(value).ok();
        Self {
            hour: part(second / 3600 % 24),
            minute: part(second / 60 % 60),
            second: part(second % 60),
            micros: Micros {
                value: u32::try_from(micros % MICROS_OF_SECOND)
                    .expect("BUG: a remainder is smaller than its divisor"),
                known_digits: 6,
            },
        }
    }

    fn micros_of_day(self) -> Option<u64> {
        let seconds =
            u64::from(self.hour?) * 3600 + u64::from(self.minute?) * 60 + u64::from(self.second?);
        Some(seconds * MICROS_OF_SECOND + u64::from(self.micros.value))
    }
}

impl FromStr for CimDateTime {
    type Err = CimDateTimeError;

    fn from_str(text: &str) -> Result<Self, CimDateTimeError> {
        parse(text)
            .map(Self)
            .ok_or_else(|| CimDateTimeError::Malformed { text: quoted(text) })
    }
}

fn parse(text: &str) -> Option<Form> {
    if text.len() != LEN || !text.is_ascii() || text.as_bytes()[14] != b'.' {
        return None;
    }
    let time = Time {
        hour: field(&text[8..10], &23)?,
        minute: field(&text[10..12], &59)?,
        second: field(&text[12..14], &59)?,
        micros: micros(&text[15..21])?,
    };
    let zone = &text[22..];
    match text.as_bytes()[21] {
        b':' if zone == "000" => Some(Form::Interval {
            days: field(&text[..8], &u32::MAX)?,
            time,
        }),
        sign @ (b'+' | b'-') => {
            let date = Date {
                year: field(&text[..4], &9999)?,
                month: field(&text[4..6], &12)?,
                day: field(&text[6..8], &31)?,
            };
            let minutes: Option<i16> = field(zone, &UtcOffset::MAX_MINUTES)?;
            let signed = |minutes: i16| if sign == b'-' { -minutes } else { minutes };
            let offset = minutes.map(signed).and_then(UtcOffset::from_minutes);
            date.is_possible()
                .then_some(Form::Timestamp { date, time, offset })
        }
        _ => None,
    }
}

/// A number of digits only, or nothing for asterisks only.
fn field<T: FromStr + PartialOrd>(text: &str, last: &T) -> Option<Option<T>> {
    if text.bytes().all(|c| c == b'*') {
        return Some(None);
    }
    if !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|value| value <= last).map(Some)
}

fn micros(text: &str) -> Option<Micros> {
    let known = text.trim_end_matches('*');
    if !known.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some(Micros {
        value: format!("{known:0<6}").parse().ok()?,
        known_digits: u8::try_from(known.len()).ok()?,
    })
}

impl fmt::Display for CimDateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Form::Timestamp { date, time, offset } => {
                write_field(f, date.year, 4)?;
                write_field(f, date.month, 2)?;
                write_field(f, date.day, 2)?;
                time.fmt(f)?;
                let minutes = offset.map(UtcOffset::minutes);
                f.write_str(if minutes.is_some_and(|minutes| minutes < 0) {
                    "-"
                } else {
                    "+"
                })?;
                write_field(f, minutes.map(i16::unsigned_abs), 3)
            }
            Form::Interval { days, time } => {
                write_field(f, days, 8)?;
                time.fmt(f)?;
                f.write_str(":000")
            }
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_field(f, self.hour, 2)?;
        write_field(f, self.minute, 2)?;
        write_field(f, self.second, 2)?;
        let digits = format!("{:06}", self.micros.value);
        write!(
            f,
            ".{:*<6}",
            &digits[..usize::from(self.micros.known_digits)]
        )
    }
}

fn write_field<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    value: Option<T>,
    width: usize,
) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{value:0width$}"),
        None => write!(f, "{:*<width$}", ""),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> CimDateTime {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn seconds(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * MICROS_OF_SECOND)
    }

    #[test]
    fn a_moment_is_read_with_its_offset() {
        let noon = seconds(1_798_113_600);
        for text in [
            "20261224120000.000000+000",
            "20261224120000.000000-000",
            "20261224130000.000000+060",
            "20261224070000.000000-300",
            "20261224120000.******+000",
        ] {
            assert_eq!(read(text).timestamp(), Ok(noon), "{text}");
        }
        let near = read("20261224120000.12****+000").timestamp().unwrap();
        assert_eq!(near.since(noon), Duration::from_micros(120_000));
    }

    #[test]
    fn the_contract_s_defaults_are_times_of_day() {
        let time = |text: &str| read(text).time_of_day().map(|time| time.to_string());
        assert_eq!(time("00000000183000.000000:000").as_deref(), Ok("18:30"));
        assert_eq!(time("00000000060000.000000:000").as_deref(), Ok("06:00"));
        assert_eq!(time("00000000090000.000000+000").as_deref(), Ok("09:00"));
        assert_eq!(time("00000000090000.000000+120").as_deref(), Ok("07:00"));
        assert_eq!(time("********003000.000000+060").as_deref(), Ok("23:30"));
        assert_eq!(time("********143000.******-420").as_deref(), Ok("21:30"));
    }

    #[test]
    fn what_is_asked_of_the_wrong_form_is_refused_with_the_right_one() {
        let span = read("00000001020304.000005:000");
        let moment = read("20261224120000.000000+000");
        assert_eq!(span.duration(), Ok(Duration::from_micros(93_784_000_005)));
        assert!(matches!(
            span.timestamp(),
            Err(CimDateTimeError::NotAMoment { .. })
        ));
        assert!(matches!(
            moment.duration(),
            Err(CimDateTimeError::NotASpan { .. })
        ));
        assert!(matches!(
            moment.time_of_day(),
            Err(CimDateTimeError::NotATimeOfDay { .. })
        ));
        assert!(matches!(
            span.time_of_day(),
            Err(CimDateTimeError::NotATimeOfDay { .. })
        ));
    }

    #[test]
    fn what_is_unknown_is_not_guessed() {
        let incomplete = |error| matches!(error, CimDateTimeError::Incomplete { .. });
        for text in [
            "20261224****00.000000+000",
            "202612**120000.000000+000",
            "20261224120000.000000+***",
            "****1224120000.000000+000",
            "*********************+***",
        ] {
            let text = if text.as_bytes()[14] == b'.' {
                text.to_owned()
            } else {
                text.replacen("*******+", ".******+", 1)
            };
            assert!(read(&text).timestamp().is_err_and(incomplete), "{text}");
        }
        let span = read("00000000**0000.000000:000");
        assert!(span.duration().is_err_and(incomplete));
        assert!(span.time_of_day().is_err_and(incomplete));
    }

    #[test]
    fn moments_before_1970_are_refused_and_not_wrapped() {
        for text in [
            "19691231235959.999999+000",
            "19700101005959.000000+060",
            "00000000000000.000000+000",
            "16010101000000.000000+000",
        ] {
            let error = read(text).timestamp().unwrap_err();
            assert!(
                matches!(error, CimDateTimeError::OutOfRange { .. }),
                "{text}"
            );
        }
        assert_eq!(
            read("19691231230000.000000-060").timestamp(),
            Ok(seconds(0))
        );
        assert_eq!(
            read("19700101010000.000000+060").timestamp(),
            Ok(seconds(0))
        );
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "20261224120000",
            "20261224120000.000000+0000",
            "20261224120000.000000Z000",
            "20261224120000,000000+000",
            "20261324120000.000000+000",
            "20260229120000.000000+000",
            "20261200120000.000000+000",
            "20261224240000.000000+000",
            "20261224126000.000000+000",
            "20261224120060.000000+000",
            "2026122412000*.000000+000",
            "20261224120000.0*0000+000",
            "20261224120000.+00000+000",
            "+0261224120000.000000+000",
            "00000000120000.000000:001",
            "0000000é120000.000000:00",
            "2026-12-24T12:00:00+00:00",
        ] {
            assert!(text.parse::<CimDateTime>().is_err(), "{text}");
        }
        let error = "x".repeat(9000).parse::<CimDateTime>().unwrap_err();
        assert!(error.to_string().len() < 400);
    }

    #[test]
    fn what_25_characters_cannot_say_is_refused() {
        let last = 253_402_300_799;
        let text = CimDateTime::from_timestamp(seconds(last))
            .unwrap()
            .to_string();
        assert_eq!(text, "99991231235959.000000+000");
        assert_eq!(
            CimDateTime::from_timestamp(seconds(last + 1)),
            Err(TooLargeForCim)
        );
        let west = UtcOffset::from_minutes(-60).unwrap();
        assert_eq!(
            CimDateTime::from_local(seconds(0), west),
            Err(TooLargeForCim)
        );
        assert_eq!(
            CimDateTime::from_duration(Duration::MAX),
            Err(TooLargeForCim)
        );
        let span = Duration::from_secs(100_000_000 * 86_400);
        assert_eq!(CimDateTime::from_duration(span), Err(TooLargeForCim));
        let text = CimDateTime::from_duration(span - Duration::from_micros(1)).unwrap();
        assert_eq!(text.to_string(), "99999999235959.999999:000");
    }

    proptest! {
        #[test]
        fn a_moment_reads_back_what_it_wrote(
            micros in 0..=253_402_300_799_999_999u64,
            minutes in -999..=999i16,
        ) {
            let (at, offset) = (Timestamp::from_micros(micros), UtcOffset::from_minutes(minutes).unwrap());
            let utc = CimDateTime::from_timestamp(at).unwrap().to_string();
            prop_assert_eq!(utc.len(), 25);
            prop_assert_eq!(read(&utc).timestamp(), Ok(at));
            if let Ok(local) = CimDateTime::from_local(at, offset) {
                prop_assert_eq!(read(&local.to_string()), local);
                prop_assert_eq!(local.timestamp(), Ok(at));
            }
        }

        #[test]
        fn a_span_reads_back_what_it_wrote(micros in 0..8_640_000_000_000_000_000u64) {
            let span = Duration::from_micros(micros);
            let text = CimDateTime::from_duration(span).unwrap().to_string();
            prop_assert_eq!(text.len(), 25);
            prop_assert_eq!(read(&text).duration(), Ok(span));
        }

        #[test]
        fn a_time_of_day_reads_back_what_it_wrote(second in 0..86_400u32) {
            let time = TimeOfDay::from_seconds(second).unwrap();
            let text = CimDateTime::from_time_of_day(time).to_string();
            prop_assert_eq!(read(&text).time_of_day(), Ok(time));
        }

        /// Near misses: the characters that datetimes are made of, in any order.
        #[test]
        fn text_that_is_accepted_is_written_the_same_again(
            text in "[0-9*]{14}\\.[0-9*]{6}[+:-][0-9*]{3}",
        ) {
            if let Ok(value) = text.parse::<CimDateTime>() {
                // There are two ways to write an offset of nothing.
                prop_assert_eq!(value.to_string(), text.replace("-000", "+000").replace("-***", "+***"));
                let _ = (value.timestamp(), value.duration(), value.time_of_day());
            }
        }

        #[test]
        fn any_text_is_a_datetime_or_an_error(text in "\\PC{0,30}") {
            let _ = text.parse::<CimDateTime>();
        }

        /// Dates that exist, with fields blanked out at random.
        #[test]
        fn unknown_fields_stay_unknown(
            micros in 0..=253_402_300_799_999_999u64,
            blank in prop::collection::vec(any::<bool>(), 6),
            digits in 0..=6usize,
        ) {
            let at = Timestamp::from_micros(micros);
            let mut text = CimDateTime::from_timestamp(at).unwrap().to_string();
            let fields = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14];
            for (field, _) in fields.iter().zip(&blank).filter(|(_, blank)| **blank) {
                text.replace_range(field.clone(), &"*".repeat(field.len()));
            }
            text.replace_range(21 - digits..21, &"*".repeat(digits));
            let value = read(&text);
            prop_assert_eq!(value.to_string(), text);
            prop_assert_eq!(value.timestamp().is_ok(), !blank.contains(&true));
        }
    }
}
