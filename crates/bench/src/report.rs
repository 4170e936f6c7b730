//! What was measured, as a table for people, as JSON, and as parts of the project's page.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::{Bar, Measurement, Verdict};
use crate::page::{Page, Part};

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

impl RowReport {
    /// The row's part of the page.
    fn section(&self) -> Part {
        let runs = self.measurements.iter().map(|one| one.a.values.len());
        let runs = match runs.max() {
            Some(1) => "1 run".to_owned(),
            most => format!("{} runs of each side", most.unwrap_or_default()),
        };
        let mut text = format!("{} ({runs}.)\n\n", self.about);
        let _ = writeln!(text, "| what | A | B | A / B | bar | |");
        let _ = writeln!(text, "|---|---|---|---|---|---|");
        for measured in &self.measurements {
            let _ = writeln!(text, "{}", table_line(measured));
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        Part::new(self.name, text.trim_end())
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

    /// The project's page about this run.
    pub fn page(&self) -> Page {
        let missed = self.missed().into_iter().map(|(row, measured)| {
            let cause = measured.cause.unwrap_or("the cause is not known.");
            Part::new(row, format!("{}: {cause}", measured.name))
        });
        let failed = self.failed.iter();
        Page {
            machine: self.machine.sentence(),
            rows: self.rows.iter().map(RowReport::section).collect(),
            missed: missed.collect(),
            failed: failed
                .map(|one| Part::new(one.name, one.why.clone()))
                .collect(),
        }
    }
}

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
                .page()
                .text()
                .contains("- commit, newest: it copies twice.")
        );
        assert!(missed.json().contains("\"verdict\": \"missed\""));
        let held = report(1.6);
        assert!(!held.rows[0].text().contains("cause"));
        assert!(held.page().text().contains("## Missed bars\n\nNone."));
    }

    #[test]
    fn a_row_that_failed_is_named_everywhere() {
        let report = report(2.0);
        assert!(report.summary().contains("FAILED wire: no QEMU"));
        assert!(
            report
                .page()
                .text()
                .contains("## Not measured\n\n- wire: no QEMU")
        );
        assert!(report.json().contains("\"why\": \"no QEMU\""));
    }

    #[test]
    fn the_page_has_a_table_line_per_measurement() {
        let line = "| newest | ours: 1.50 s (1.00 s .. 2.00 s) | theirs: 1.00 s (1.00 s .. 1.00 s) | 1.50 | A / B <= 2 | held |";
        assert!(report(2.0).page().text().contains(line));
    }
}
