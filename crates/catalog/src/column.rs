//! Values between Rust and columns. What a column holds is checked when it is read.

use std::time::Duration;

use lifeboat_model::Timestamp;
use rusqlite::Row;
use rusqlite::types::{FromSqlError, FromSqlResult, ValueRef};

use crate::document::Document;
use crate::error::Refused;

/// The longest text of a column that is no document, in bytes.
pub(crate) const MAX_TEXT: usize = 64 << 10;

/// The largest integer of a column.
pub(crate) const MAX_INTEGER: u64 = i64::MAX as u64;

/// `text`, if it is not too long to be kept.
pub(crate) fn bounded<'t>(what: &'static str, text: &'t str) -> Result<&'t str, Refused> {
    let (bytes, limit) = (text.len(), MAX_TEXT);
    match bytes {
        _ if bytes > limit => Err(Refused::TooLong { what, bytes, limit }),
        _ => Ok(text),
    }
}

/// `number` as SQLite has it.
pub(crate) fn integer(what: &'static str, number: u64) -> Result<i64, Refused> {
    let limit = MAX_INTEGER;
    i64::try_from(number).map_err(|_| Refused::TooLargeNumber {
        what,
        number,
        limit,
    })
}

/// A time as SQLite has it; what lies beyond the year 290000 is the last moment there.
pub(crate) fn micros(time: Timestamp) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// A duration in microseconds; what is longer than SQLite can say is the longest.
pub(crate) fn duration_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A document's text, or NULL.
pub(crate) fn encoded(
    what: &'static str,
    document: Option<&Document>,
) -> Result<Option<String>, Refused> {
    document.map(|document| document.encode(what)).transpose()
}

pub(crate) fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    read(row, column, |value| {
        let number = value.as_i64()?;
        u64::try_from(number).map_err(|_| FromSqlError::OutOfRange(number))
    })
}

pub(crate) fn time(row: &Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    unsigned(row, column).map(Timestamp::from_micros)
}

pub(crate) fn optional_time(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    optional(row, column, time)
}

pub(crate) fn document(row: &Row<'_>, column: &str) -> rusqlite::Result<Document> {
    read(row, column, |value| {
        Document::decode(value.as_str()?).map_err(|error| FromSqlError::Other(Box::new(error)))
    })
}

pub(crate) fn optional_document(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Document>> {
    optional(row, column, document)
}

/// One of a fixed set of words.
pub(crate) fn word<T: Copy>(
    row: &Row<'_>,
    column: &str,
    words: &[(T, &str)],
) -> rusqlite::Result<T> {
    read(row, column, |value| {
        let text = value.as_str()?;
        words
            .iter()
            .find(|(_, word)| *word == text)
            .map(|(value, _)| *value)
            .ok_or_else(|| FromSqlError::Other("unknown word".into()))
    })
}

/// One of a fixed set of numbers.
pub(crate) fn number<T: Copy>(
    row: &Row<'_>,
    column: &str,
    numbers: &[(T, i64)],
) -> rusqlite::Result<T> {
    read(row, column, |value| {
        let found = value.as_i64()?;
        numbers
            .iter()
            .find(|(_, number)| *number == found)
            .map(|(value, _)| *value)
            .ok_or(FromSqlError::OutOfRange(found))
    })
}

fn optional<T>(
    row: &Row<'_>,
    column: &str,
    some: impl FnOnce(&Row<'_>, &str) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => some(row, column).map(Some),
    }
}

fn read<T>(
    row: &Row<'_>,
    column: &str,
    convert: impl FnOnce(ValueRef<'_>) -> FromSqlResult<T>,
) -> rusqlite::Result<T> {
    let value = row.get_ref(column)?;
    convert(value).map_err(|error| {
        let cause = format!("column {column}: {error}");
        rusqlite::Error::FromSqlConversionFailure(0, value.data_type(), cause.into())
    })
}
