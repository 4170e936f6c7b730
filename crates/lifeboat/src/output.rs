//! What a command prints: text for people, or one JSON value for programs.

use std::io::Write as _;

use serde::Serialize;

use crate::exit::Failure;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OutputFormat {
    /// Text for people
    Table,
    /// One JSON value; errors are JSON on the error output
    Json,
}

impl OutputFormat {
    /// Prints a result whole: `value` as JSON, or what `text` makes of it.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let printed = match self {
            Self::Table => text(value),
            Self::Json => {
                let json = serde_json::to_string_pretty(value);
                json.expect("BUG: a result can be written as JSON") + "\n"
            }
        };
        print(&printed)
    }
}

/// Prints text to the standard output, all of it before returning.
///
/// # Errors
/// When the output cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| Failure::Print { source })
}

/// Columns under headings, two spaces apart.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|&heading| heading.to_owned()).collect()],
        }
    }

    /// Adds a row with as many cells as there are headings.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        assert_eq!(
            cells.len(),
            self.rows[0].len(),
            "BUG: a row has a cell for each heading"
        );
        self.rows.push(cells);
    }

    #[must_use]
    pub fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Facts, one to a line: names in a column of their own.
#[must_use]
pub fn facts(facts: &[(&str, String)]) -> String {
    let names = facts.iter().map(|(name, _)| name.chars().count());
    let width = names.max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{name:width$}  {}\n", printable(value));
    facts.iter().map(line).collect()
}

/// Without what could move a terminal's cursor: names and errors may be another's own words.
#[must_use]
pub fn printable(text: &str) -> String {
    let replace = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(replace).collect()
}

/// A word for each answer.
#[must_use]
pub fn yes_no(answer: bool) -> &'static str {
    if answer { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["sda".to_owned(), "1 GiB".to_owned()]);
        table.row(["a-long-name".to_owned(), String::new()]);
        assert_eq!(
            table.render(),
            "NAME         SIZE\nsda          1 GiB\na-long-name\n"
        );
    }

    #[test]
    fn what_could_move_the_cursor_is_not_printed() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\u{1b}[2J\nb".to_owned()]);
        assert_eq!(table.render(), "NAME\na\u{fffd}[2J\u{fffd}b\n");
        assert_eq!(facts(&[("vm", "a\rb".to_owned())]), "vm  a\u{fffd}b\n");
    }

    #[test]
    fn facts_line_up() {
        let text = facts(&[("vm", "1".to_owned()), ("lineage", "2".to_owned())]);
        assert_eq!(text, "vm       1\nlineage  2\n");
    }
}
