//! The project's page about the benchmark. Rows that a run did not measure stay as they are.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

/// The page in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The sentence about the machine.
    pub machine: String,
    /// What was measured.
    pub rows: Vec<Part>,
    /// Bars that were missed, and why.
    pub missed: Vec<Part>,
    /// Rows that could not be measured, and why.
    pub failed: Vec<Part>,
}

/// What the page says of a row in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    row: String,
    text: String,
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

Where a row is smaller than its bar was written for, it says so: both sides are scaled alike.
";

const RUN: &str = "## The run on this page";
const HOW: &str = "Values are the median and, in parentheses, the smallest and the largest. A / B is the median of the pairs' ratios.";
const MISSED: &str = "## Missed bars";
const NONE_MISSED: &str = "None.";
const FAILED: &str = "## Not measured";
/// Before the name of a row.
const ROW: &str = "### ";

impl Part {
    pub fn new(row: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            row: row.into(),
            text: text.into(),
        }
    }
}

impl Page {
    pub fn text(&self) -> String {
        let mut text = format!("{INTRODUCTION}\n{RUN}\n\n{}\n\n{HOW}\n", self.machine);
        for Part { row, text: section } in &self.rows {
            let _ = writeln!(text, "\n{ROW}{row}\n\n{section}");
        }
        let _ = writeln!(text, "\n{MISSED}\n");
        if self.missed.is_empty() {
            let _ = writeln!(text, "{NONE_MISSED}");
        }
        for Part { row, text: why } in &self.missed {
            let _ = writeln!(text, "- {row}, {why}");
        }
        if !self.failed.is_empty() {
            let _ = writeln!(text, "\n{FAILED}\n");
        }
        for Part { row, text: why } in &self.failed {
            let _ = writeln!(text, "- {row}: {why}");
        }
        text
    }

    /// Takes apart what [`text`](Self::text) wrote.
    pub fn parse(text: &str) -> Result<Self> {
        let cut = |text: &str, at: &str| -> Option<(String, String)> {
            let (before, after) = text.split_once(&format!("\n{at}\n"))?;
            Some((before.to_owned(), after.to_owned()))
        };
        let (_, run) = cut(text, RUN).with_context(|| format!("find \"{RUN}\""))?;
        let (run, ends) = cut(&run, MISSED).with_context(|| format!("find \"{MISSED}\""))?;
        let (missed, failed) = cut(&ends, FAILED).unwrap_or((ends, String::new()));
        let heading = format!("\n{ROW}");
        let mut sections = run.split(heading.as_str());
        let head = sections.next().unwrap_or_default();
        let machine = head.lines().find(|line| !line.is_empty());
        let rows = sections.map(|section| {
            let (row, text) = section.split_once('\n')?;
            Some(Part::new(row, text.trim()))
        });
        let items = |text: &str, after_row: &str| -> Option<Vec<Part>> {
            let items = text.lines().filter_map(|line| line.strip_prefix("- "));
            let part = |item: &str| {
                let (row, text) = item.split_once(after_row)?;
                Some(Part::new(row, text))
            };
            items.map(part).collect()
        };
        Ok(Self {
            machine: machine.context("find what machine it is about")?.to_owned(),
            rows: rows
                .collect::<Option<_>>()
                .context("find the rows' sections")?,
            missed: items(&missed, ", ").context("read the missed bars")?,
            failed: items(&failed, ": ").context("read what was not measured")?,
        })
    }

    /// This page with what a newer one has. `order` has every row.
    pub fn updated_by(mut self, newer: Self, order: &[&str]) -> Result<Self> {
        ensure!(
            self.machine == newer.machine,
            "it is about another machine ({}): measure every row",
            self.machine
        );
        let measured: Vec<String> = newer
            .rows
            .iter()
            .chain(&newer.failed)
            .map(|part| part.row.clone())
            .collect();
        for (parts, new) in [
            (&mut self.rows, newer.rows),
            (&mut self.missed, newer.missed),
            (&mut self.failed, newer.failed),
        ] {
            parts.retain(|part| !measured.contains(&part.row));
            parts.extend(new);
            parts.sort_by_key(|part| order.iter().position(|row| *row == part.row));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &[&str], missed: &[&str], failed: &[&str]) -> Page {
        let parts = |rows: &[&str], text: &str| {
            let part = |row: &&str| Part::new(*row, format!("{text} {row}, and: more"));
            rows.iter().map(part).collect()
        };
        Page {
            machine: "2 cores.".to_owned(),
            rows: parts(rows, "About\n\n| table |\n\nA note of"),
            missed: parts(missed, "why"),
            failed: parts(failed, "no QEMU for"),
        }
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        for page in [
            page(&["start", "wire"], &["wire", "wire"], &["idle"]),
            page(&["start"], &[], &[]),
        ] {
            assert_eq!(Page::parse(&page.text()).unwrap(), page);
        }
        assert!(Page::parse("# Benchmarks\n").is_err());
    }

    #[test]
    fn what_is_measured_again_takes_the_place_of_what_was_and_the_rest_stays() {
        let order = ["start", "apply", "wire", "idle"];
        let old = page(&["start", "wire"], &["start", "wire"], &["apply"]);
        let new = page(&["apply", "wire"], &[], &["idle"]);
        let expected = page(&["start", "apply", "wire"], &["start"], &["idle"]);
        assert_eq!(old.clone().updated_by(new, &order).unwrap(), expected);
        let mut other = page(&["wire"], &[], &[]);
        other.machine = "4 cores.".to_owned();
        assert!(old.updated_by(other, &order).is_err());
    }
}
