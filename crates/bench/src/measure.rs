//! What one comparison measured, and whether it holds its bar.
//!
//! Both sides of a ratio are measured in turn, A B A B, so that whatever the machine does
//! meanwhile happens to both. The ratio is taken pair by pair, and its median counts.

use std::time::Duration;

use serde::Serialize;

/// What a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Seconds,
    /// 10^6 bytes per second.
    MegabytesPerSecond,
    /// Bytes moved for each byte that the guest changed.
    PerChangedByte,
    Bytes,
    /// Processor time for each second.
    Cores,
    Count,
}

impl Unit {
    /// The value with as many digits as it deserves.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::Seconds if value < 1.0 => format!("{:.1} ms", value * 1e3),
            Self::Seconds => format!("{value:.2} s"),
            Self::MegabytesPerSecond => format!("{value:.0} MB/s"),
            Self::PerChangedByte => format!("{value:.3}"),
            Self::Cores => format!("{value:.3} cores"),
            Self::Count => format!("{value:.0}"),
            Self::Bytes if value < 1e5 => format!("{value:.0} B"),
            Self::Bytes => format!("{:.2} MiB", value / f64::from(1 << 20)),
        }
    }
}

/// What has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// Measured for the record.
    Record,
    /// A / B, at most.
    RatioAtMost(f64),
    /// A / B, at least.
    RatioAtLeast(f64),
    /// A - `extra`, at most so many times B.
    ExtraAndRatioAtMost { extra: f64, ratio: f64 },
    /// A, at most.
    AtMost(f64),
    /// The 95th percentile of A, at most.
    Percentile95AtMost(f64),
}

/// Whether a measurement holds its bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Held,
    Missed,
    /// There is no bar.
    Record,
}

impl Verdict {
    /// The word for tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Missed => "MISSED",
            Self::Record => "",
        }
    }
}

/// The values of one side, one per run.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub what: String,
    pub values: Vec<f64>,
}

impl Side {
    /// A side that has been measured `values.len()` times, at least once.
    pub fn new(what: impl Into<String>, values: Vec<f64>) -> Self {
        assert!(
            !values.is_empty(),
            "BUG: a side was not measured: there are no runs"
        );
        Self {
            what: what.into(),
            values,
        }
    }

    pub fn median(&self) -> f64 {
        median(&self.values)
    }

    pub fn smallest(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn largest(&self) -> f64 {
        self.values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// By nearest rank: the largest of fewer than twenty values.
    pub fn percentile_95(&self) -> f64 {
        let sorted = sorted(&self.values);
        let rank = (sorted.len() * 95).div_ceil(100);
        sorted[rank - 1]
    }

    /// Median and spread, for tables.
    pub fn show(&self, unit: Unit) -> String {
        if self.values.len() == 1 {
            return unit.show(self.values[0]);
        }
        format!(
            "{} ({} .. {})",
            unit.show(self.median()),
            unit.show(self.smallest()),
            unit.show(self.largest())
        )
    }
}

/// One comparison, or one value against a fixed bar.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    pub name: String,
    pub unit: Unit,
    pub a: Side,
    /// Absent where the bar is a fixed value.
    pub b: Option<Side>,
    pub bar: Bar,
    /// Why the bar is missed, where that is known.
    pub cause: Option<&'static str>,
}

impl Measurement {
    /// A against B, measured in turn and equally often.
    pub fn compared(name: impl Into<String>, unit: Unit, a: Side, b: Side, bar: Bar) -> Self {
        assert_eq!(
            a.values.len(),
            b.values.len(),
            "BUG: both sides are measured equally often"
        );
        Self {
            name: name.into(),
            unit,
            a,
            b: Some(b),
            bar,
            cause: None,
        }
    }

    /// A alone.
    pub fn alone(name: impl Into<String>, unit: Unit, a: Side, bar: Bar) -> Self {
        Self {
            name: name.into(),
            unit,
            a,
            b: None,
            bar,
            cause: None,
        }
    }

    /// The same, with what explains a missed bar.
    pub fn explained(mut self, cause: &'static str) -> Self {
        self.cause = Some(cause);
        self
    }

    /// The median of A / B, pair by pair.
    pub fn ratio(&self) -> Option<f64> {
        self.median_of_pairs(|a, b| a / b)
    }

    fn median_of_pairs(&self, of: impl Fn(f64, f64) -> f64) -> Option<f64> {
        let b = self.b.as_ref()?;
        let pairs = self.a.values.iter().zip(&b.values);
        let values: Vec<f64> = pairs.map(|(&a, &b)| of(a, b)).collect();
        Some(median(&values))
    }

    pub fn verdict(&self) -> Verdict {
        let held = match self.bar {
            Bar::Record => return Verdict::Record,
            Bar::RatioAtMost(most) => self.ratio().is_some_and(|ratio| ratio <= most),
            Bar::RatioAtLeast(least) => self.ratio().is_some_and(|ratio| ratio >= least),
            Bar::ExtraAndRatioAtMost { extra, ratio } => self
                .median_of_pairs(|a, b| (a - extra) / b)
                .is_some_and(|rest| rest <= ratio),
            Bar::AtMost(most) => self.a.median() <= most,
            Bar::Percentile95AtMost(most) => self.a.percentile_95() <= most,
        };
        if held { Verdict::Held } else { Verdict::Missed }
    }

    /// The bar as a person reads it.
    pub fn show_bar(&self) -> String {
        match self.bar {
            Bar::Record => String::new(),
            Bar::RatioAtMost(most) => format!("A / B <= {most}"),
            Bar::RatioAtLeast(least) => format!("A / B >= {least}"),
            Bar::ExtraAndRatioAtMost { extra, ratio } => {
                format!("A <= {} + {ratio} B", self.unit.show(extra))
            }
            Bar::AtMost(most) => format!("A <= {}", self.unit.show(most)),
            Bar::Percentile95AtMost(most) => format!("p95 of A <= {}", self.unit.show(most)),
        }
    }
}

/// A speed in 10^6 bytes per second.
pub fn megabytes_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(a: &[f64], b: &[f64], bar: Bar) -> Measurement {
        Measurement::compared(
            "m",
            Unit::Seconds,
            Side::new("a", a.to_vec()),
            Side::new("b", b.to_vec()),
            bar,
        )
    }

    #[test]
    fn a_ratio_is_the_median_of_the_pairs_and_not_of_the_sides() {
        // The machine was ten times slower during the second pair.
        let found = measured(&[1.0, 20.0, 3.0], &[2.0, 20.0, 2.0], Bar::RatioAtMost(1.0));
        assert_eq!(found.ratio(), Some(1.0));
        assert_eq!(found.verdict(), Verdict::Held);
        let found = measured(&[1.0, 3.0, 3.0], &[2.0, 2.0, 2.0], Bar::RatioAtMost(1.0));
        assert_eq!(found.verdict(), Verdict::Missed);
    }

    #[test]
    fn an_extra_is_taken_off_before_the_ratio() {
        let bar = Bar::ExtraAndRatioAtMost {
            extra: 0.5,
            ratio: 2.0,
        };
        assert_eq!(measured(&[2.5], &[1.0], bar).verdict(), Verdict::Held);
        assert_eq!(measured(&[2.6], &[1.0], bar).verdict(), Verdict::Missed);
    }

    #[test]
    fn fixed_bars_look_at_one_side() {
        let alone = |values: &[f64], bar| {
            Measurement::alone("m", Unit::Seconds, Side::new("a", values.to_vec()), bar)
        };
        let values = [1.0, 2.0, 9.0];
        assert_eq!(alone(&values, Bar::AtMost(2.0)).verdict(), Verdict::Held);
        assert_eq!(alone(&values, Bar::AtMost(1.9)).verdict(), Verdict::Missed);
        assert_eq!(
            alone(&values, Bar::Percentile95AtMost(8.9)).verdict(),
            Verdict::Missed
        );
        assert_eq!(alone(&values, Bar::Record).verdict(), Verdict::Record);
    }

    #[test]
    fn a_ratio_bar_without_a_second_side_is_not_held() {
        let alone = Measurement::alone(
            "m",
            Unit::Seconds,
            Side::new("a", vec![0.0]),
            Bar::RatioAtMost(1.0),
        );
        assert_eq!(alone.verdict(), Verdict::Missed);
    }

    #[test]
    fn the_95th_percentile_is_by_nearest_rank() {
        let numbers = |n: u32| Side::new("a", (1..=n).map(f64::from).collect());
        assert_eq!(numbers(7).percentile_95(), 7.0);
        assert_eq!(numbers(20).percentile_95(), 19.0);
        assert_eq!(numbers(100).percentile_95(), 95.0);
        assert_eq!(numbers(1).percentile_95(), 1.0);
        assert_eq!(numbers(4).median(), 2.5);
    }
}
