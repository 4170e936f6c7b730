//! Who asked for what, and what came of it. Rows are added, never changed, never removed: the
//! database itself refuses it.

use lifeboat_model::Timestamp;
use rusqlite::params;

use super::page;
use crate::catalog::{Change, Reader};
use crate::column::{self, bounded, micros};
use crate::document::Document;
use crate::error::{CatalogError, Doing};

/// A command and its outcome, before it has a number.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAuditRow {
    pub at: Timestamp,
    pub caller: String,
    pub role: String,
    pub operation: String,
    pub target: String,
    /// The caller leaves out what is secret: what stands here is shown to people.
    pub arguments: Document,
    pub outcome: String,
}

/// A row as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// Counts from 1, without a gap.
    pub number: u64,
    pub row: NewAuditRow,
}

impl Reader<'_> {
    /// The rows below `before`, newest first, at most `limit` and
    /// [`PAGE_LIMIT`](super::PAGE_LIMIT). `u64::MAX` begins with the newest.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn audit_before(&self, before: u64, limit: usize) -> Result<Vec<AuditRow>, CatalogError> {
        let sql = "SELECT * FROM audit WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        let values = params![before, page(limit)];
        self.rows("list the audit rows", sql, values, |row| {
            Ok(AuditRow {
                number: column::unsigned(row, "id")?,
                row: NewAuditRow {
                    at: column::time(row, "at")?,
                    caller: row.get("caller")?,
                    role: row.get("role")?,
                    operation: row.get("operation")?,
                    target: row.get("target")?,
                    arguments: column::document(row, "arguments")?,
                    outcome: row.get("outcome")?,
                },
            })
        })
    }
}

impl Change<'_> {
    /// Adds a row and says its number.
    ///
    /// # Errors
    /// Refused when something is too long; accidents of the catalog.
    pub fn audit_add(&self, row: &NewAuditRow) -> Result<u64, CatalogError> {
        let sql = "INSERT INTO audit (at, caller, role, operation, target, arguments, outcome)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let values = params![
            micros(row.at),
            bounded("the caller", &row.caller)?,
            bounded("the role", &row.role)?,
            bounded("the operation", &row.operation)?,
            bounded("the target", &row.target)?,
            row.arguments.encode("the arguments")?,
            bounded("the outcome", &row.outcome)?,
        ];
        self.execute(sql, values).doing("add an audit row")?;
        Ok(self.last_number())
    }
}
