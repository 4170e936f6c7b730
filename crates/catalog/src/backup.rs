//! Copies of the catalog: making one, checking one, putting one in place.
//!
//! A backup is one ordinary SQLite file without a log. Under its name stands a whole, checked
//! and durable copy or what stood there before, whatever happens meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::catalog::{Catalog, Reader};
use crate::error::{CatalogError, DatabaseError};
use crate::open::{self, OpenError, beside, connection};
use crate::schema::{self, Contents, MIGRATIONS};

/// How often a copy tries again while the file is locked, and how long it waits.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);

/// A backup was not made. Under its name stands what stood there before.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} is the catalog itself or belongs to it; name another file", path.display())]
    OwnFile { path: PathBuf },

    #[error("{doing} {}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("copy the catalog to {}", path.display())]
    Copy {
        path: PathBuf,
        source: DatabaseError,
    },

    #[error("copy the catalog to {}: it stayed locked", path.display())]
    Locked { path: PathBuf },

    #[error("the copy for {} is damaged ({what}), so the catalog may be; check it and its disk", path.display())]
    DamagedCopy { path: PathBuf, what: String },

    #[error("read the catalog")]
    Read { source: CatalogError },
}

/// A file cannot be used as a catalog.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("{} is not a catalog, or an empty one", path.display())]
    NotACatalog { path: PathBuf },

    #[error("{} was written by a newer version of Lifeboat (schema {found}, this one knows {known}); use that version", path.display())]
    TooNew {
        path: PathBuf,
        found: u32,
        known: u32,
    },

    #[error("{} is damaged ({what}); use another backup", path.display())]
    Damaged { path: PathBuf, what: String },

    #[error("read the rows of {}; use another backup", path.display())]
    Rows { path: PathBuf, source: CatalogError },

    #[error("read {}", path.display())]
    Database {
        path: PathBuf,
        source: DatabaseError,
    },
}

/// A backup was not put in place.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("check the backup")]
    Check { source: Box<CheckError> },

    #[error("make sure that nobody has the catalog")]
    Lock { source: Box<OpenError> },

    #[error("copy the backup beside the catalog")]
    Copy { source: Box<BackupError> },

    #[error("{doing} {}; restore again", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// What a check found in a good catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// The schema's version; an older one is migrated when the catalog is opened.
    pub schema: u32,
    pub vms: u64,
    pub relationships: u64,
}

impl Catalog {
    /// Copies the catalog as it is at one instant to `path`, and replaces what stood there.
    /// Changes go on meanwhile. Durable on return; a crash leaves what stood there before,
    /// and maybe a file `PATH.part`, which the next backup replaces.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn backup(&self, path: &Path) -> Result<(), BackupError> {
        self.refuse_own(path)?;
        let copied = self.with_reader("read the catalog", |connection| {
            Ok(copy_to(connection, path))
        });
        copied.map_err(|source| BackupError::Read { source })?
    }

    /// As [`backup`](Self::backup), of the catalog in the file `from`, which another process may
    /// have open and change meanwhile.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
        let from = &std::path::absolute(from).map_err(|source| BackupError::Io {
            doing: "find",
            path: from.to_owned(),
            source,
        })?;
        let source = connection(from, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| {
            BackupError::Copy {
                path: to.to_owned(),
                source: DatabaseError(error),
            }
        })?;
        copy_to(&source, to)
    }

    /// Reads the whole file at `path` and says whether it can be used as a catalog. It must
    /// not be in use, and is not changed. SQLite may leave an empty log beside it.
    ///
    /// # Errors
    /// See [`CheckError`].
    pub fn check(path: &Path) -> Result<Checked, CheckError> {
        let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut connection = connection(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|error| unreadable(path, error))?;
        let contents = Contents::of(&connection).map_err(|error| unreadable(path, error))?;
        let schema = match contents {
            Contents::Catalog { schema } => schema,
            Contents::Empty | Contents::Foreign => {
                return Err(CheckError::NotACatalog { path: path.clone() });
            }
        };
        let known = schema::newest(MIGRATIONS);
        if schema > known {
            return Err(CheckError::TooNew {
                path: path.clone(),
                found: schema,
                known,
            });
        }
        match schema::damage(&connection).map_err(|error| unreadable(path, error))? {
            None => {}
            Some(what) => {
                return Err(CheckError::Damaged {
                    path: path.clone(),
                    what,
                });
            }
        }
        if schema == known {
            read_rows(&mut connection, path)?;
        }
        let count = |table: &str| {
            connection
                .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                    crate::column::unsigned(row, "count(*)")
                })
                .map_err(|error| unreadable(path, error))
        };
        Ok(Checked {
            schema,
            vms: count("vm")?,
            relationships: count("relationship")?,
        })
    }

    /// Puts a copy of the file `backup` at `path` as the catalog. Nobody may have the catalog
    /// there open; what there was is kept as `PATH.replaced`, with its log.
    ///
    /// A crash meanwhile leaves the old catalog, maybe without the changes that were in its
    /// log only, or the restored one: restore again.
    ///
    /// Numbers of events, jobs and audit rows that were given after the backup was made are
    /// given a second time.
    ///
    /// # Errors
    /// See [`RestoreError`]. A backup that fails its check changes nothing.
    pub fn restore(backup: &Path, path: &Path) -> Result<Checked, RestoreError> {
        let io_error = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| RestoreError::Io {
                doing,
                path,
                source,
            }
        };
        let path = &std::path::absolute(path).map_err(io_error("find", path))?;
        let checked = Self::check(backup).map_err(|source| RestoreError::Check {
            source: Box::new(source),
        })?;
        let _lock = open::lock(path).map_err(|source| RestoreError::Lock {
            source: Box::new(source),
        })?;
        let fresh = beside(path, ".restoring");
        let source = std::path::absolute(backup).map_err(io_error("find", backup))?;
        connection(&source, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(|error| BackupError::Copy {
                path: fresh.clone(),
                source: DatabaseError(error),
            })
            .and_then(|source| copy_to(&source, &fresh))
            .map_err(|source| RestoreError::Copy {
                source: Box::new(source),
            })?;
        // The old log must be gone before the new file is there: SQLite would write what it
        // holds into the new file. The old file keeps its name until it is replaced.
        let kept = beside(path, ".replaced");
        for old in [kept.clone(), beside(&kept, "-wal"), beside(&kept, "-shm")] {
            remove(&old).map_err(io_error("remove", &old))?;
        }
        unless_missing(fs::hard_link(path, &kept)).map_err(io_error("keep", path))?;
        let log = beside(path, "-wal");
        unless_missing(fs::rename(&log, beside(&kept, "-wal"))).map_err(io_error("keep", &log))?;
        for old in [beside(path, "-shm"), beside(path, "-journal")] {
            remove(&old).map_err(io_error("remove", &old))?;
        }
        sync_directory(path).map_err(io_error("sync the directory of", path))?;
        fs::rename(&fresh, path).map_err(io_error("put the backup at", path))?;
        sync_directory(path).map_err(io_error("sync the directory of", path))?;
        Ok(checked)
    }

    fn refuse_own(&self, path: &Path) -> Result<(), BackupError> {
        let own = [
            self.path().to_owned(),
            beside(self.path(), "-wal"),
            beside(self.path(), "-shm"),
            beside(self.path(), "-journal"),
            beside(self.path(), ".lock"),
        ];
        let identity = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let theirs = identity(path);
        let same_name = std::path::absolute(path).is_ok_and(|path| own.contains(&path));
        let same_file = theirs.is_some() && own.iter().any(|own| identity(own) == theirs);
        match same_name || same_file {
            true => Err(BackupError::OwnFile {
                path: path.to_owned(),
            }),
            false => Ok(()),
        }
    }
}

/// Copies what `source` sees to `path`: whole, checked and durable, or not at all.
pub(crate) fn copy_to(source: &Connection, path: &Path) -> Result<(), BackupError> {
    let io_error = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Io {
            doing,
            path,
            source,
        }
    };
    let path = &std::path::absolute(path).map_err(io_error("find", path))?;
    let part = beside(path, ".part");
    let parts = [
        part.clone(),
        beside(&part, "-wal"),
        beside(&part, "-journal"),
    ];
    for old in &parts {
        remove(old).map_err(io_error("remove", old))?;
    }
    create_private(&part).map_err(io_error("create", &part))?;
    let finished = fill(source, &part, path)
        .and_then(|()| {
            File::open(&part)
                .and_then(|file| file.sync_all())
                .map_err(io_error("sync", &part))
        })
        .and_then(|()| fs::rename(&part, path).map_err(io_error("rename the copy to", path)))
        .and_then(|()| sync_directory(path).map_err(io_error("sync the directory of", path)));
    if finished.is_err() {
        // The error that counts is the first one.
        for left in &parts {
            let _ = remove(left);
        }
    }
    finished
}

/// Fills the empty file `part` and checks what is in it.
fn fill(source: &Connection, part: &Path, path: &Path) -> Result<(), BackupError> {
    let failed = |error| BackupError::Copy {
        path: path.to_owned(),
        source: DatabaseError(error),
    };
    let mut target = connection(part, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    copy_pages(source, &mut target, path)?;
    // The copied file says that it has a log. A backup is one file.
    target
        .pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))
        .map_err(failed)?;
    match schema::damage(&target).map_err(failed)? {
        None => Ok(()),
        Some(what) => Err(BackupError::DamagedCopy {
            path: path.to_owned(),
            what,
        }),
    }
}

/// In one step, so that all pages are of one instant and no change makes it begin again.
fn copy_pages(
    source: &Connection,
    target: &mut Connection,
    path: &Path,
) -> Result<(), BackupError> {
    let failed = |error| BackupError::Copy {
        path: path.to_owned(),
        source: DatabaseError(error),
    };
    let backup = Backup::new(source, target).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        match backup.step(-1).map_err(failed)? {
            StepResult::Done => return Ok(()),
            // More kinds of steps may come; none of them is the last one.
            _ => std::thread::sleep(PAUSE),
        }
    }
    Err(BackupError::Locked {
        path: path.to_owned(),
    })
}

/// Every row that the service needs to begin is readable.
fn read_rows(connection: &mut Connection, path: &Path) -> Result<(), CheckError> {
    let snapshot = connection
        .transaction_with_behavior(TransactionBehavior::Deferred)
        .map_err(|error| unreadable(path, error))?;
    let reader = Reader::of(&snapshot);
    reader
        .every_lasting_row()
        .map_err(|source| CheckError::Rows {
            path: path.to_owned(),
            source,
        })
}

fn unreadable(path: &Path, error: rusqlite::Error) -> CheckError {
    use crate::error::Accident;
    let path = path.to_owned();
    match (Accident::of(&error), error.sqlite_error_code()) {
        (_, Some(rusqlite::ErrorCode::NotADatabase)) => CheckError::NotACatalog { path },
        (Accident::Damage, _) => CheckError::Damaged {
            path,
            what: error.to_string(),
        },
        (Accident::Full | Accident::Io | Accident::Constraint | Accident::Other, _) => {
            CheckError::Database {
                path,
                source: DatabaseError(error),
            }
        }
    }
}

/// An empty file for its owner only; one that is there is left alone.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
}

/// Makes the names in the directory of `path` durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    unless_missing(fs::remove_file(path))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
