//! The versions of the schema, and the way from each to the next.
//!
//! A migration that has been released is never changed. A new one is appended, and a file
//! `tests/golden/vN.sql` with rows in every table goes with it: a test opens all of them.

use rusqlite::{Connection, TransactionBehavior};

use crate::error::Accident;

/// Marks a SQLite file as a catalog: `LBCT`.
pub(crate) const APPLICATION_ID: u32 = u32::from_be_bytes(*b"LBCT");

/// Number `n` leads from schema `n` to schema `n + 1`; an empty file is schema 0.
pub(crate) const MIGRATIONS: &[&str] = &[include_str!("schema/0001.sql")];

/// What a file says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Nothing yet: new, or a crash came before the first schema was there.
    Empty,
    Catalog {
        schema: u32,
    },
    /// A database of something else.
    Foreign,
}

impl Contents {
    pub(crate) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let number =
            |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let (application, schema) = (number("application_id")?, number("user_version")?);
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok(match (application, u32::try_from(schema)) {
            (0, Ok(0)) if tables == 0 => Self::Empty,
            (id, Ok(schema)) if id == i64::from(APPLICATION_ID) && schema > 0 => {
                Self::Catalog { schema }
            }
            _ => Self::Foreign,
        })
    }
}

/// The newest schema that `migrations` leads to.
pub(crate) fn newest(migrations: &[&str]) -> u32 {
    u32::try_from(migrations.len()).expect("BUG: migrations are few")
}

/// Brings schema `from` to the newest one, in one transaction: all the way, or not at all.
pub(crate) fn migrate(
    connection: &mut Connection,
    from: u32,
    migrations: &[&str],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (version, sql) in (1..).zip(migrations) {
        if version > from {
            transaction.execute_batch(sql)?;
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", newest(migrations))?;
    transaction.commit()
}

/// The first thing that SQLite finds wrong with the file's structure, or nothing.
pub(crate) fn damage(connection: &Connection) -> rusqlite::Result<Option<String>> {
    // Damage of some kinds ends the search with an error; it is damage all the same.
    let found: String =
        match connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)) {
            Err(error) if Accident::of(&error) == Accident::Damage => error.to_string(),
            found => found?,
        };
    if found != "ok" {
        return Ok(Some(found));
    }
    let mut statement = connection.prepare("SELECT \"table\" FROM pragma_foreign_key_check")?;
    let mut rows = statement.query([])?;
    Ok(match rows.next()? {
        Some(row) => {
            let table: String = row.get(0)?;
            Some(format!(
                "a row of table {table} refers to one that is not there"
            ))
        }
        None => None,
    })
}
