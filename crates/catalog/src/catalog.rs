//! The catalog as its callers have it: reads of one instant, and changes that are whole.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Params, Row, Transaction, TransactionBehavior};

use crate::error::{CatalogError, Doing};
use crate::open::{self, OpenError, database_error};
use crate::readers::Readers;

/// The catalog of one host.
///
/// Changes go through one connection, one after the other; reads have their own few
/// connections and see the last change that was finished before they began.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    // In this order they are closed: the writer's connection is the last, and tidies up.
    readers: Readers,
    writer: Mutex<Writer>,
    /// Held for as long as this process has the catalog.
    _lock: File,
}

#[derive(Debug)]
struct Writer {
    connection: Connection,
    state: WriterState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriterState {
    Usable,
    /// A write failed, and what the kernel still holds of it is unknown.
    Stopped,
}

impl Catalog {
    /// `writer` is open, checked and of this build's schema.
    pub(crate) fn assemble(path: PathBuf, writer: Connection, lock: File) -> Self {
        Self {
            readers: Readers::of(path.clone()),
            writer: Mutex::new(Writer {
                connection: writer,
                state: WriterState::Usable,
            }),
            path,
            _lock: lock,
        }
    }

    /// The file, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `read` on the catalog as it is at one instant. It does not wait for changes.
    ///
    /// `read` must not call [`read`](Self::read) again: the connections are few.
    ///
    /// # Errors
    /// What `read` returns, and accidents of the catalog.
    pub fn read<T>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let doing = "read the catalog";
        self.readers.with(doing, |connection| {
            // Only read through, so it does not matter that dropping it rolls it back.
            let snapshot = connection
                .transaction_with_behavior(TransactionBehavior::Deferred)
                .doing(doing)?;
            read(&Reader::of(&snapshot))
        })
    }

    /// Runs `change` and makes all of it durable, or nothing if it returns an error or panics.
    ///
    /// `change` must not call the catalog itself, which would wait for it for ever, and
    /// should not wait for anything: all other changes wait for its end.
    ///
    /// A crash meanwhile leaves all of the change or nothing; all of it once this returned.
    ///
    /// # Errors
    /// What `change` returns, and accidents of the catalog. After [`CatalogError::Io`] and
    /// [`CatalogError::Damaged`] no more changes are taken until [`mend`](Self::mend), after
    /// which this one is not in the catalog. It may be there when another process opens it.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&Change<'_>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        // A change that panicked was rolled back when its transaction was dropped.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match writer.state {
            WriterState::Usable => {}
            WriterState::Stopped => return Err(CatalogError::Stopped),
        }
        let result = transact(&mut writer.connection, change);
        match &result {
            Err(CatalogError::Io { .. } | CatalogError::Damaged { .. }) => writer.stop(),
            Err(
                CatalogError::Refused(_)
                | CatalogError::DiskFull { .. }
                | CatalogError::Stopped
                | CatalogError::Database { .. },
            )
            | Ok(_) => {}
        }
        result
    }

    /// Whether no more changes are taken since one has failed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.state == WriterState::Stopped
    }

    /// Takes changes again after one has failed, if the file is good and can be written. Answers
    /// whether that is so since now; a catalog that takes changes has nothing to mend.
    ///
    /// What failed was not acknowledged and is not in the catalog afterwards; everything that was
    /// acknowledged is, and is durable in the file itself. A crash meanwhile is like any other.
    ///
    /// # Errors
    /// What is still wrong. No changes are taken then; it may be tried again.
    pub fn mend(&self) -> Result<bool, OpenError> {
        if !self.is_stopped() {
            return Ok(false);
        }
        // It takes a while, and reads are not kept from going on.
        let checked = open::reader(&self.path).map_err(database_error("open", &self.path))?;
        open::refuse_damaged(&checked, &self.path)?;
        drop(checked);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.state == WriterState::Usable {
            return Ok(false);
        }
        let anew = open::writer(&self.path).map_err(database_error("open", &self.path))?;
        // The old one holds what it failed to write, and maybe a lock.
        writer.connection = anew;
        open::use_log(&writer.connection, &self.path)?;
        // The log has a tail that failed, which another process would take for a change, and what
        // is before it may not be on the disk: no sync tells that twice.
        open::empty_log(&writer.connection, &self.path)?;
        open::close_in_order(&writer.connection, &self.path)?;
        writer.state = WriterState::Usable;
        Ok(true)
    }

    /// Runs `with` on a connection that changes nothing.
    pub(crate) fn with_reader<T>(
        &self,
        doing: &'static str,
        with: impl FnOnce(&mut Connection) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        self.readers.with(doing, with)
    }

    #[cfg(test)]
    pub(crate) fn with_writer<T>(&self, with: impl FnOnce(&Connection) -> T) -> T {
        with(&self.writer.lock().unwrap().connection)
    }
}

impl Writer {
    /// No failed write is tried again on the same handle, not even by SQLite's own tidying up
    /// when it is closed: the log stays, and mending or opening again sorts out what it holds.
    fn stop(&mut self) {
        self.state = WriterState::Stopped;
        let kept = self
            .connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        debug_assert!(kept.is_ok(), "BUG: SQLite knows this setting");
    }
}

fn transact<T>(
    connection: &mut Connection,
    change: impl FnOnce(&Change<'_>) -> Result<T, CatalogError>,
) -> Result<T, CatalogError> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .doing("begin a change of the catalog")?;
    let value = change(&Change {
        reader: Reader::of(&transaction),
    })?;
    transaction
        .commit()
        .doing("make a change of the catalog durable")?;
    Ok(value)
}

/// The catalog at one instant.
#[derive(Debug)]
pub struct Reader<'c> {
    connection: &'c Transaction<'c>,
}

impl<'c> Reader<'c> {
    pub(crate) fn of(connection: &'c Transaction<'c>) -> Self {
        Self { connection }
    }

    pub(crate) fn rows<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: impl Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, CatalogError> {
        let mut statement = self.connection.prepare(sql).doing(doing)?;
        let rows = statement.query_map(params, row).doing(doing)?;
        rows.collect::<rusqlite::Result<_>>().doing(doing)
    }

    /// The first row, if there is one.
    pub(crate) fn row<T>(
        &self,
        doing: &'static str,
        sql: &str,
        params: impl Params,
        row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, CatalogError> {
        use rusqlite::OptionalExtension as _;
        self.connection
            .query_row(sql, params, row)
            .optional()
            .doing(doing)
    }
}

/// A change that is being made: sees what it has changed so far.
#[derive(Debug)]
pub struct Change<'c> {
    reader: Reader<'c>,
}

impl<'c> Deref for Change<'c> {
    type Target = Reader<'c>;

    fn deref(&self) -> &Reader<'c> {
        &self.reader
    }
}

impl Change<'_> {
    /// The number of rows changed.
    pub(crate) fn execute(&self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        self.reader.connection.execute(sql, params)
    }

    /// The number that the last row inserted got.
    pub(crate) fn last_number(&self) -> u64 {
        // SQLite numbers rows from 1.
        u64::try_from(self.reader.connection.last_insert_rowid()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
