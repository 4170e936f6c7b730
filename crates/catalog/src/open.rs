//! Opening a catalog: the same steps after a crash and not, and nothing changed before the
//! file has been found good.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::backup::{self, BackupError};
use crate::catalog::Catalog;
use crate::error::{Accident, DatabaseError};
use crate::schema::{self, Contents, MIGRATIONS};

/// What every SQLite file begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Locks between our own connections are held for moments only; this is for the moment in
/// which the log is begun anew.
const BUSY: Duration = Duration::from_secs(10);

/// After a large change the log goes back to this size, in bytes.
const LOG_LIMIT: u32 = 16 << 20;

/// What to do when there is no catalog at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMissing {
    /// Begin a new one.
    Create,
    /// Say so: what is missing may be on a file system that is not mounted.
    Refuse,
}

/// A catalog could not be opened. The file is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("there is no catalog at {}; check that its file system is mounted, restore a backup, make it again from the stores with `lifeboat catalog rebuild`, or begin a new one", path.display())]
    Missing { path: PathBuf },

    #[error("there is a catalog at {} already; nothing is made in its place", path.display())]
    Exists { path: PathBuf },

    #[error("another process has the catalog {}: {holder}; stop it first", path.display())]
    InUse { path: PathBuf, holder: String },

    #[error("{} is not a catalog; name another file, or restore a backup there", path.display())]
    NotACatalog { path: PathBuf },

    #[error("{} was written by a newer version of Lifeboat (schema {found}, this one knows {known}); install that version, or restore a backup of the older one", path.display())]
    TooNew {
        path: PathBuf,
        found: u32,
        known: u32,
    },

    #[error("the catalog {} is damaged ({what}); restore a backup, or move it and the files beside it away and make it again from the stores with `lifeboat catalog rebuild`", path.display())]
    Damaged { path: PathBuf, what: String },

    #[error("copy {} before its schema is brought from {from} to {to}", path.display())]
    CopyBeforeMigration {
        path: PathBuf,
        from: u32,
        to: u32,
        source: Box<BackupError>,
    },

    #[error("bring the schema of {} from {from} to {to}; it is unchanged, see the cause and open it again", path.display())]
    Migrate {
        path: PathBuf,
        from: u32,
        to: u32,
        source: DatabaseError,
    },

    #[error("{} is on a file system without shared memory; put the catalog on a local one", path.display())]
    NoLog { path: PathBuf },

    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("{doing} {}", path.display())]
    Database {
        doing: &'static str,
        path: PathBuf,
        source: DatabaseError,
    },
}

impl Catalog {
    /// Opens the catalog at `path`; its directory must exist.
    ///
    /// A catalog that was not closed in order is searched for damage first. One of an older
    /// schema is copied to `PATH.schema-N` beside it, then migrated in one transaction: a
    /// crash meanwhile leaves the old catalog, and the copy.
    ///
    /// # Errors
    /// See [`OpenError`]; each says what to do.
    pub fn open(path: &Path, missing: OnMissing) -> Result<Self, OpenError> {
        open_with(path, missing, MIGRATIONS)
    }
}

/// [`Catalog::open`], where the schema's versions are these.
pub(crate) fn open_with(
    path: &Path,
    missing: OnMissing,
    migrations: &[&str],
) -> Result<Catalog, OpenError> {
    // SQLite takes a relative path that begins with "file:" for something else.
    let path = &std::path::absolute(path).map_err(io_error("find", path))?;
    // Before the lock, so that looking for a catalog leaves nothing behind.
    let found = Found::at(path)?;
    if found == Found::Nothing && missing == OnMissing::Refuse {
        return Err(OpenError::Missing { path: path.clone() });
    }
    let lock = lock(path)?;
    match Found::at(path)? {
        Found::Nothing => create_file(path)?,
        Found::Database => {}
    }
    // Read before SQLite opens the log, which it removes when it is closed in order.
    let closing = Closing::before(path)?;
    let mut connection = writer(path).map_err(database_error("open", path))?;
    match Contents::of(&connection).map_err(database_error("read", path))? {
        Contents::Foreign => return Err(OpenError::NotACatalog { path: path.clone() }),
        Contents::Empty => match missing {
            OnMissing::Refuse => return Err(OpenError::Missing { path: path.clone() }),
            OnMissing::Create => {
                use_log(&connection, path)?;
                migrate(&mut connection, path, 0, migrations)?;
                backup::sync_directory(path).map_err(io_error("sync the directory of", path))?;
            }
        },
        Contents::Catalog { schema } => {
            refuse_newer(path, schema, migrations)?;
            match closing {
                Closing::InOrder => {}
                Closing::ByCrash => {
                    refuse_damaged(&connection, path)?;
                    write_log_again(path)?;
                }
            }
            use_log(&connection, path)?;
            if schema < schema::newest(migrations) {
                refuse_damaged(&connection, path)?;
                copy(&connection, path, schema, migrations)?;
                migrate(&mut connection, path, schema, migrations)?;
            }
        }
    }
    close_in_order(&connection, path)?;
    Ok(Catalog::assemble(path.clone(), connection, lock))
}

/// What is at the path, before SQLite looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// No file, or one that was made and not yet written.
    Nothing,
    Database,
}

impl Found {
    pub(crate) fn at(path: &Path) -> Result<Self, OpenError> {
        let mut head = Vec::new();
        match File::open(path) {
            Ok(file) => file
                .take(MAGIC.len() as u64)
                .read_to_end(&mut head)
                .map_err(io_error("read", path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(io_error("open", path)(source)),
        };
        match &head[..] {
            [] if length(&beside(path, "-wal"))? > 0 => Err(OpenError::Damaged {
                path: path.to_owned(),
                what: "its log is there, but the file itself is missing or empty".to_owned(),
            }),
            [] => Ok(Self::Nothing),
            head if head == MAGIC => Ok(Self::Database),
            _ => Err(OpenError::NotACatalog {
                path: path.to_owned(),
            }),
        }
    }
}

/// How the catalog was closed the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closing {
    InOrder,
    ByCrash,
}

impl Closing {
    /// SQLite removes its log when the last connection is closed.
    fn before(path: &Path) -> Result<Self, OpenError> {
        for log in ["-wal", "-journal"] {
            if length(&beside(path, log))? > 0 {
                return Ok(Self::ByCrash);
            }
        }
        Ok(Self::InOrder)
    }
}

/// The last process may have ended because a sync of the log failed. The kernel then takes what
/// it holds of the log for written, and no later sync writes it; but what is changed from now on
/// comes after it, and is lost with it. The same bytes once more are on the disk when this returns.
fn write_log_again(path: &Path) -> Result<(), OpenError> {
    let log = &beside(path, "-wal");
    let file = match OpenOptions::new().read(true).write(true).open(log) {
        Ok(file) => file,
        // A crash of a migration leaves another kind of log, which SQLite undoes.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error("open", log)(source)),
    };
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        match file.read_at(&mut piece, at) {
            Ok(0) => break,
            Ok(read) => {
                file.write_all_at(&piece[..read], at)
                    .map_err(io_error("write", log))?;
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(io_error("read", log)(source)),
        }
    }
    file.sync_data().map_err(io_error("sync", log))
}

/// The file's length; 0 when there is none.
fn length(path: &Path) -> Result<u64, OpenError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(source) => Err(io_error("look at", path)(source)),
    }
}

/// The file of this name with `suffix` added.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Makes this process the only one that has the catalog, until the file is closed.
pub(crate) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_error("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for people: an unreadable name is no reason for another error.
            let read = file.take(80).read_to_string(&mut holder);
            return Err(OpenError::InUse {
                path: path.to_owned(),
                holder: match read {
                    Ok(1..) => holder.trim_end().to_owned(),
                    Ok(0) | Err(_) => "unknown".to_owned(),
                },
            });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "process {}", std::process::id()))
        .map_err(io_error("write", &lock_path))?;
    Ok(file)
}

/// For its owner only, before anything is in it. SQLite gives its logs the same mode.
fn create_file(path: &Path) -> Result<(), OpenError> {
    backup::create_private(path).map_err(io_error("create", path))
}

/// The connection for changes. Closing it does not touch the file yet: that is allowed when
/// the file has been found good.
pub(crate) fn writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(connection)
}

/// A connection for reads. Closing it leaves the log to the writer.
pub(crate) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Without mutexes of SQLite's own: a connection is with one thread at a time.
pub(crate) fn connection(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    // What a file says about itself is not run.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(connection)
}

/// Write-ahead log, synced with each change.
pub(crate) fn use_log(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let set_up = || -> rusqlite::Result<String> {
        let mode =
            connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_LIMIT, |_| Ok(()))?;
        Ok(mode)
    };
    match set_up().map_err(database_error("set up", path))?.as_str() {
        "wal" => Ok(()),
        _ => Err(OpenError::NoLog {
            path: path.to_owned(),
        }),
    }
}

/// Brings everything in the log into the file, durably, and begins the log anew.
pub(crate) fn empty_log(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let doing = "write the log into";
    let busy: bool = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .map_err(database_error(doing, path))?;
    if busy {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        return Err(database_error(doing, path)(rusqlite::Error::SqliteFailure(
            busy, None,
        )));
    }
    Ok(())
}

/// The file has been found good: SQLite may tidy up when the connection is closed.
pub(crate) fn close_in_order(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        .map_err(database_error("set up", path))?;
    Ok(())
}

fn refuse_newer(path: &Path, found: u32, migrations: &[&str]) -> Result<(), OpenError> {
    let known = schema::newest(migrations);
    match found {
        _ if found > known => Err(OpenError::TooNew {
            path: path.to_owned(),
            found,
            known,
        }),
        _ => Ok(()),
    }
}

pub(crate) fn refuse_damaged(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    match schema::damage(connection).map_err(database_error("check", path))? {
        None => Ok(()),
        Some(what) => Err(OpenError::Damaged {
            path: path.to_owned(),
            what,
        }),
    }
}

/// The way back, should the newer version not do.
fn copy(
    connection: &Connection,
    path: &Path,
    from: u32,
    migrations: &[&str],
) -> Result<(), OpenError> {
    let to = schema::newest(migrations);
    backup::copy_to(connection, &beside(path, &format!(".schema-{from}"))).map_err(|source| {
        OpenError::CopyBeforeMigration {
            path: path.to_owned(),
            from,
            to,
            source: Box::new(source),
        }
    })
}

fn migrate(
    connection: &mut Connection,
    path: &Path,
    from: u32,
    migrations: &[&str],
) -> Result<(), OpenError> {
    schema::migrate(connection, from, migrations).map_err(|error| OpenError::Migrate {
        path: path.to_owned(),
        from,
        to: schema::newest(migrations),
        source: DatabaseError(error),
    })
}

pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io {
        doing,
        path,
        source,
    }
}

pub(crate) fn database_error(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    move |error| match Accident::of(&error) {
        Accident::Damage => OpenError::Damaged {
            path,
            what: error.to_string(),
        },
        Accident::Full | Accident::Io | Accident::Constraint | Accident::Other => {
            OpenError::Database {
                doing,
                path,
                source: DatabaseError(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
