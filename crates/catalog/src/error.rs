//! Why the catalog did not do what it was asked.

use std::fmt;

use lifeboat_model::{RelationshipId, VmId};
use rusqlite::ErrorCode;

use crate::id::{JobId, ReferenceId};
use crate::rows::RecordVersion;

/// A read or a change did not happen.
///
/// Whatever the variant, nothing of the change is in the catalog, with one exception:
/// after [`Io`](Self::Io) it may be found there by another process that opens the catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// An answer: the caller can act on it.
    #[error(transparent)]
    Refused(#[from] Refused),

    /// There is no room. The catalog stays usable: reads go on, and a change works again
    /// as soon as there is room.
    #[error("{doing}: the file system of the catalog is full; free space there, then try again")]
    DiskFull {
        doing: &'static str,
        source: DatabaseError,
    },

    /// The operating system failed a call. After a change the catalog takes no further
    /// changes until it is mended, see [`Stopped`](Self::Stopped).
    #[error("{doing}: a file of the catalog could not be read or written")]
    Io {
        doing: &'static str,
        source: DatabaseError,
    },

    /// Something in the file is not as the catalog left it.
    #[error(
        "{doing}: the catalog is damaged; stop the service and restore a backup, or begin a new catalog and take the records from the stores' folders"
    )]
    Damaged {
        doing: &'static str,
        source: DatabaseError,
    },

    /// An earlier change failed in a way after which the open files cannot be trusted.
    #[error(
        "the catalog takes no changes since a write failed; look at the disk that holds it; when it can be written again, changes are taken again"
    )]
    Stopped,

    /// Anything else that SQLite reports.
    #[error("{doing}")]
    Database {
        doing: &'static str,
        source: DatabaseError,
    },
}

/// What the catalog will not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("there is a VM named {name:?}; names are unique, choose another one")]
    VmNameTaken { name: String },

    #[error("there is VM {vm} already")]
    VmExists { vm: VmId },

    #[error("there is no VM {vm}")]
    NoVm { vm: VmId },

    #[error("there is relationship {relationship} already, or one at the same place of VM {vm}")]
    RelationshipExists {
        relationship: RelationshipId,
        vm: VmId,
    },

    #[error("there is no relationship {relationship}")]
    NoRelationship { relationship: RelationshipId },

    #[error(
        "the record of relationship {relationship} is at version {found}, not {expected}: somebody else saved it; read it again and decide again"
    )]
    RecordChanged {
        relationship: RelationshipId,
        expected: RecordVersion,
        found: RecordVersion,
    },

    #[error("there is job {job} already")]
    JobExists { job: JobId },

    #[error("there is no job {job}; jobs are removed some time after their end")]
    NoJob { job: JobId },

    #[error("job {job} has ended; an ended job is not changed")]
    JobEnded { job: JobId },

    #[error("there is reference {reference} already")]
    ReferenceExists { reference: ReferenceId },

    #[error("relationship {relationship} has no running cycle to close; begin one first")]
    NoRunningCycle { relationship: RelationshipId },

    #[error("{what} has {bytes} bytes, more than the {limit} that the catalog keeps")]
    TooLong {
        what: &'static str,
        bytes: usize,
        limit: usize,
    },

    #[error("{what} is nested more than {limit} levels deep")]
    TooDeep { what: &'static str, limit: usize },

    #[error("{what} is {number}, more than the catalog can hold ({limit})")]
    TooLargeNumber {
        what: &'static str,
        number: u64,
        limit: u64,
    },
}

/// What SQLite reported. Its text is for people; nothing is decided by it.
#[derive(Debug)]
pub struct DatabaseError(pub(crate) rusqlite::Error);

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for DatabaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// What kind of accident an error of SQLite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accident {
    Full,
    Io,
    Damage,
    /// A condition of the schema: unique, or refers to what is not there.
    Constraint,
    Other,
}

impl Accident {
    pub(crate) fn of(error: &rusqlite::Error) -> Self {
        let undecodable = matches!(
            error,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..)
        );
        // The codes are SQLite's; there will be more of them.
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::SystemIoFailure) => Self::Io,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damage,
            Some(ErrorCode::ConstraintViolation) => Self::Constraint,
            Some(_) => Self::Other,
            None if undecodable => Self::Damage,
            None => Self::Other,
        }
    }
}

/// Names what was being done when SQLite failed.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, CatalogError>;
}

impl<T> Doing<T> for rusqlite::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, CatalogError> {
        self.map_err(|error| {
            let accident = Accident::of(&error);
            let source = DatabaseError(error);
            match accident {
                Accident::Full => CatalogError::DiskFull { doing, source },
                Accident::Io => CatalogError::Io { doing, source },
                Accident::Damage => CatalogError::Damaged { doing, source },
                Accident::Constraint | Accident::Other => CatalogError::Database { doing, source },
            }
        })
    }
}

/// As [`Doing::doing`]; a row that is there already is an answer.
pub(crate) fn unless_duplicate<T>(
    result: rusqlite::Result<T>,
    doing: &'static str,
    refused: impl FnOnce() -> Refused,
) -> Result<T, CatalogError> {
    match result {
        Err(error) if Accident::of(&error) == Accident::Constraint => Err(refused().into()),
        result => result.doing(doing),
    }
}
