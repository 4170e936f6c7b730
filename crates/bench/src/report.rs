//! What was measured, as a table for people, as JSON, and as the project's page about it.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Bar, Measurement, Verdict};

/// One row of the benchmark.
#[derive(Debug, Serialize)]
pub struct RowReport {
    pub name: &'static str,
    /// What was done, and at which scale.
    pub about: &'static str,
    pub measurements: Vec<Measurement>,
    /// What explains the numbers.
    pub notes: Vec<String>,
}

/// A row that could not be measured.
#[derive(Debug, Serialize)]
pub struct FailedRow {
    pub name: &'static str,
    pub why: String,
}

/// One run of the benchmark.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    /// How often each side was measured.
    pub runs: usize,
    pub rows: Vec<RowReport>,
    pub failed: Vec<FailedRow>,
}

/// A measurement in JSON: with what follows from its values.
#[derive(Serialize)]
struct JsonMeasurement<'a> {
    row: &'static str,
    #[serde(flatten)]
    measurement: &'a Measurement,
    median_a: f64,
    median_b: Option<f64>,
    median_ratio: Option<f64>,
    verdict: Verdict,
}

#[derive(Serialize)]
struct JsonReport<'a> {
    machine: &'a Machine,
    runs: usize,
    measurements: Vec<JsonMeasurement<'a>>,
    failed: &'a [FailedRow],
}

impl RowReport {
    /// The row as it is printed when it is done.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.name, self.about);
        for measured in &self.measurements {
            let _ = writeln!(text, "  {}", measured.name);
            let _ = writeln!(
                text,
                "    A {}: {}",
                measured.a.what,
                measured.a.show(measured.unit)
            );
            if let Some(b) = &measured.b {
                let _ = writeln!(text, "    B {}: {}", b.what, b.show(measured.unit));
            }
            let mut line = String::new();
            if let Some(ratio) = measured.ratio() {
                let _ = write!(line, "A / B = {}  ", show_ratio(ratio));
            }
            if measured.bar != Bar::Record {
                let word = measured.verdict().word();
                let _ = write!(line, "bar: {}  {word}", measured.show_bar());
            }
            if !line.is_empty() {
                let _ = writeln!(text, "    {}", line.trim_end());
            }
            if let (Verdict::Missed, Some(cause)) = (measured.verdict(), measured.cause) {
                let _ = writeln!(text, "    cause: {cause}");
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "  note: {note}");
        }
        text
    }
}

impl Report {
    /// Everything, with the single values, for programs.
    pub fn json(&self) -> String {
        let measurements = self
            .measurements()
            .map(|(row, measurement)| JsonMeasurement {
                row,
                measurement,
                median_a: measurement.a.median(),
                median_b: measurement.b.as_ref().map(|b| b.median()),
                median_ratio: measurement.ratio(),
                verdict: measurement.verdict(),
            });
        let report = JsonReport {
            machine: &self.machine,
            runs: self.runs,
            measurements: measurements.collect(),
            failed: &self.failed,
        };
        let mut json = serde_json::to_string_pretty(&report)
            .expect("BUG: plain values can always be written as JSON");
        json.push('\n');
        json
    }

    fn measurements(&self) -> impl Iterator<Item = (&'static str, &Measurement)> {
        let rows = self.rows.iter();
        rows.flat_map(|row| row.measurements.iter().map(|measured| (row.name, measured)))
    }

    fn missed(&self) -> Vec<(&'static str, &Measurement)> {
        self.measurements()
            .filter(|(_, measured)| measured.verdict() == Verdict::Missed)
            .collect()
    }

    /// How many bars there are, how many were missed, and what failed.
    pub fn summary(&self) -> String {
        let bars = self
            .measurements()
            .filter(|(_, measured)| measured.bar != Bar::Record)
            .count();
        let missed = self.missed();
        let mut text = format!("{bars} bars, {} missed", missed.len());
        for (row, measured) in missed {
            let _ = write!(text, "\n  MISSED {row}: {}", measured.name);
        }
        for failed in &self.failed {
            let _ = write!(text, "\n  FAILED {}: {}", failed.name, failed.why);
        }
        text
    }

    /// The page `docs/benchmarks.md`.
    pub fn document(&self) -> String {
        let mut page = INTRODUCTION.to_owned();
        let _ = writeln!(page, "\n## The run on this page\n");
        let _ = writeln!(page, "{}\n", self.machine.sentence());
        let _ = writeln!(
            page,
            "{} runs of each side. Values are the median and, in parentheses, the smallest and the largest. A / B is \
             the median of the pairs' ratios.",
            self.runs
        );
        for row in &self.rows {
            let _ = writeln!(page, "\n### {}\n\n{}\n", row.name, row.about);
            let _ = writeln!(page, "| what | A | B | A / B | bar | |");
            let _ = writeln!(page, "|---|---|---|---|---|---|");
            for measured in &row.measurements {
                let _ = writeln!(page, "{}", table_line(measured));
            }
            for note in &row.notes {
                let _ = writeln!(page, "\n{note}");
            }
        }
        let _ = writeln!(page, "\n## Missed bars\n");
        let missed = self.missed();
        if missed.is_empty() {
            let _ = writeln!(page, "None.");
        }
        for (row, measured) in missed {
            let cause = measured.cause.unwrap_or("the cause is not known.");
            let _ = writeln!(page, "- {row}, {}: {cause}", measured.name);
        }
        if !self.failed.is_empty() {
            let _ = writeln!(page, "\n## Not measured\n");
        }
        for failed in &self.failed {
            let _ = writeln!(page, "- {}: {}", failed.name, failed.why);
        }
        page
    }
}

const INTRODUCTION: &str = "\
# Benchmarks

Written by `cargo xtask bench --write`; do not edit it by hand.

    cargo xtask bench            # every row, about fifty minutes
    cargo xtask bench start      # one row; `cargo xtask bench --help` has their names

It needs root (it drops the page cache and mounts a file system), about 20 GB of disk, and a machine that does nothing
else: it refuses to start when the load average says otherwise. Both sides of a comparison run in turn, A B A B, so what
the machine does meanwhile happens to both. The absolute numbers belong to the machine; the ratios are what counts, and
the bars are those that Lifeboat was designed for. Bytes of the device are its sector counters, after a sync.

The last six rows are of two hosts: two daemons of the release build on this machine, started as `lifeboat serve`, with
mutual TLS between them; their VMs are those of the embedded driver, and the benchmark is their guest.

Where a row is smaller than its bar was written for, it says so: both sides are scaled alike.
";

fn table_line(measured: &Measurement) -> String {
    let side = |side: &crate::measure::Side| format!("{}: {}", side.what, side.show(measured.unit));
    format!(
        "| {} | {} | {} | {} | {} | {} |",
        measured.name,
        side(&measured.a),
        measured.b.as_ref().map(side).unwrap_or_default(),
        measured.ratio().map(show_ratio).unwrap_or_default(),
        measured.show_bar(),
        measured.verdict().word(),
    )
}

fn show_ratio(ratio: f64) -> String {
    if ratio < 0.1 {
        format!("{ratio:.4}")
    } else {
        format!("{ratio:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Side, Unit};

    fn report(most: f64) -> Report {
        let compared = Measurement::compared(
            "newest",
            Unit::Seconds,
            Side::new("ours", vec![1.0, 2.0]),
            Side::new("theirs", vec![1.0, 1.0]),
            Bar::RatioAtMost(most),
        );
        Report {
            machine: Machine::example(),
            runs: 2,
            rows: vec![RowReport {
                name: "commit",
                about: "What was done.",
                measurements: vec![compared.explained("it copies twice.")],
                notes: vec!["A note.".to_owned()],
            }],
            failed: vec![FailedRow {
                name: "wire",
                why: "no QEMU".to_owned(),
            }],
        }
    }

    #[test]
    fn a_missed_bar_is_named_everywhere_with_its_cause() {
        let missed = report(1.4);
        assert!(
            missed.rows[0]
                .text()
                .contains("MISSED\n    cause: it copies twice.")
        );
        assert!(
            missed
                .summary()
                .starts_with("1 bars, 1 missed\n  MISSED commit: newest")
        );
        assert!(
            missed
                .document()
                .contains("- commit, newest: it copies twice.")
        );
        assert!(missed.json().contains("\"verdict\": \"missed\""));
        let held = report(1.6);
        assert!(!held.rows[0].text().contains("cause"));
        assert!(held.document().contains("## Missed bars\n\nNone."));
    }

    #[test]
    fn a_row_that_failed_is_named_everywhere() {
        let report = report(2.0);
        assert!(report.summary().contains("FAILED wire: no QEMU"));
        assert!(
            report
                .document()
                .contains("## Not measured\n\n- wire: no QEMU")
        );
        assert!(report.json().contains("\"why\": \"no QEMU\""));
    }

    #[test]
    fn the_page_has_a_table_line_per_measurement() {
        let line = "| newest | ours: 1.50 s (1.00 s .. 2.00 s) | theirs: 1.00 s (1.00 s .. 1.00 s) | 1.50 | A / B <= 2 | held |";
        assert!(report(2.0).document().contains(line));
    }
}
