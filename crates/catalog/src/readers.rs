//! The few connections that reads share.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::Connection;

use crate::error::{CatalogError, Doing};
use crate::open;

/// So many reads run at once; more wait. Each connection has a cache of 2 MiB.
const MOST: usize = 4;

/// Opens connections as they are needed and keeps them.
#[derive(Debug)]
pub(crate) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    lent: usize,
}

impl Readers {
    pub(crate) fn of(path: PathBuf) -> Self {
        Self {
            path,
            pool: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// Lends a connection to `with`. A connection that saw an error is not lent again.
    pub(crate) fn with<T>(
        &self,
        doing: &'static str,
        with: impl FnOnce(&mut Connection) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut loan = Loan {
            readers: self,
            connection: self.borrow(),
        };
        let mut connection = match loan.connection.take() {
            Some(connection) => connection,
            None => open::reader(&self.path).doing(doing)?,
        };
        let result = with(&mut connection);
        match &result {
            Ok(_) | Err(CatalogError::Refused(_)) => loan.connection = Some(connection),
            Err(
                CatalogError::DiskFull { .. }
                | CatalogError::Io { .. }
                | CatalogError::Damaged { .. }
                | CatalogError::Stopped
                | CatalogError::Database { .. },
            ) => {}
        }
        result
    }

    /// Waits until another connection may be used; nothing if it must be opened first.
    fn borrow(&self) -> Option<Connection> {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pool = self
            .freed
            .wait_while(pool, |pool| pool.lent >= MOST)
            .unwrap_or_else(PoisonError::into_inner);
        pool.lent += 1;
        pool.idle.pop()
    }
}

/// Gives back the place in the pool, also when the read panics.
struct Loan<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut pool = self
            .readers
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pool.lent -= 1;
        pool.idle.extend(self.connection.take());
        self.readers.freed.notify_one();
    }
}
