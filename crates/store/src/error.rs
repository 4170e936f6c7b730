//! Why a store did not do what it was asked.

use std::io;
use std::path::{Path, PathBuf};

use lifeboat_model::{DeltaId, DiskId, LineageId, RelationshipId, Sequence};
use lifeboat_stream::DecodeError;

use crate::damage::Damage;

/// The store answered no, failed, or is damaged.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An answer: nothing was changed, and the text says what would help.
    #[error(transparent)]
    Refused(#[from] Refused),

    /// The operating system failed a call.
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// The file system that holds the store has no room for the operation.
    #[error("{what} {}: the file system is full; free space there or give the store a larger one, then try again", path.display())]
    DiskFull {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    /// A delta is not what it should be.
    #[error("read the delta")]
    Delta { source: DecodeError },

    /// Something in the store is not as the store left it.
    #[error("{} is damaged: {damage}", path.display())]
    Damaged { path: PathBuf, damage: Damage },
}

/// What the store will not do in its present state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{} is no store; make one with `lifeboat store init`", path.display())]
    NoStore { path: PathBuf },

    #[error("{} exists and is not empty; a store is made in a new or empty folder", path.display())]
    NotEmpty { path: PathBuf },

    #[error("another process uses this store: {holder}; wait for it or stop it")]
    InUse { holder: String },

    #[error("{} is open in QEMU or another program; stop it first", path.display())]
    ImageInUse { path: PathBuf },

    #[error(
        "an earlier operation failed half way; open the store again, which brings it into order"
    )]
    Reopen,

    #[error("a VM needs at least one disk and at most 256, each with its own name")]
    BadDisks,

    #[error("the delta belongs to relationship {theirs}, this store to {ours}")]
    OtherRelationship {
        theirs: RelationshipId,
        ours: RelationshipId,
    },

    #[error(
        "the delta belongs to lineage {theirs}, this store is at {ours}; one side has taken over, see `lifeboat store check`"
    )]
    OtherLineage { theirs: LineageId, ours: LineageId },

    #[error(
        "the delta builds on moment {base}, which this store does not know (it holds {tip}); capture again from {tip} or resynchronize"
    )]
    UnknownBase { base: Sequence, tip: Sequence },

    #[error(
        "the delta builds on moment {sequence} as {theirs}, this store holds it as {ours}; the replica must be resynchronized"
    )]
    OtherBase {
        sequence: Sequence,
        theirs: DeltaId,
        ours: DeltaId,
    },

    #[error(
        "moment {sequence} is here already, with other content ({ours}, not {theirs}); a number names one moment for ever: draw a new one"
    )]
    OtherContent {
        sequence: Sequence,
        theirs: DeltaId,
        ours: DeltaId,
    },

    #[error(
        "moment {sequence} is older than the newest one here ({tip}); nothing is lost: capture from {tip}"
    )]
    TooOld { sequence: Sequence, tip: Sequence },

    #[error("the first delta must hold whole disks; capture without a bitmap")]
    NotInitial,

    #[error("the delta carries disks {theirs}, this store holds {ours}")]
    OtherDisks { theirs: String, ours: String },

    #[error("there is no recovery point {sequence}; see `lifeboat point list`")]
    NoPoint { sequence: Sequence },

    #[error(
        "the chain of lineages does not lead from {from}, which these disks belong to, to the new one; the sides have split: an operator must name the survivor"
    )]
    NotDescended { from: LineageId },

    #[error(
        "{} has {bytes} bytes and cannot become a disk: give a raw image, a regular file of whole sectors of 512 bytes", path.display()
    )]
    BadImage { path: PathBuf, bytes: u64 },

    #[error("{} is missing, and the store does not hold it either; check where the disk's image is", path.display())]
    NoImage { path: PathBuf },

    #[error("boundary {number} is gone, nothing kept it; start again from a recovery point")]
    NoBoundary { number: u64 },

    #[error("this folder holds a replica, not the VM's own disks; fail over and commit first")]
    NotCommitted,

    #[error("there is no disk {disk}")]
    NoDisk { disk: DiskId },

    #[error("nothing has been applied yet, so there is no state to {purpose}")]
    NothingApplied { purpose: &'static str },

    #[error("recovery point {sequence} is in use ({users} readers); end them first")]
    PointInUse { sequence: Sequence, users: usize },

    #[error("{limit} recovery points are the most whose images QEMU opens well; remove one first")]
    TooManySegments { limit: usize },

    #[error(
        "copy {sequence} is no newer than what is here ({newest}); a number names one thing for ever: draw a new one"
    )]
    OldCopy {
        sequence: Sequence,
        newest: Sequence,
    },

    #[error(
        "an initial copy is for an empty replica, and this one holds moment {applied}; resynchronize it"
    )]
    NotEmptyForCopy { applied: Sequence },

    #[error("no copy of whole disks is under way; begin one first")]
    NotCopying,

    #[error(
        "the piece belongs to copy {theirs}, under way is copy {ours}; begin copy {theirs} first"
    )]
    OtherCopy { theirs: Sequence, ours: Sequence },

    #[error("the delta that closes the copy is here already; nothing is copied any more")]
    CopyClosing,

    #[error(
        "the piece ends at byte {end} of {disk}, which has {size} here; a piece ends at a whole block or at the disk's end"
    )]
    BadPiece { disk: DiskId, end: u64, size: u64 },

    #[error("the copy is scattered over too many ranges; copy the gaps first")]
    ScatteredCopy,

    #[error(
        "whole disks are being copied, so they hold no single moment to {purpose}; wait until the copy is closed"
    )]
    Mixed { purpose: &'static str },

    #[error(
        "whole disks are being copied (copy {sequence}); the next delta must close the copy: of kind resync, without a base"
    )]
    Copying { sequence: Sequence },

    #[error("copy {sequence} has not covered all disks; copy the missing ranges first")]
    CopyIncomplete { sequence: Sequence },

    #[error(
        "a copy of whole disks was given up for a failover, so they hold no single moment; begin a new copy"
    )]
    CopyNeeded,

    #[error("the VM is failed over; revert or commit the failover first")]
    FailedOver,

    #[error(
        "the disks given are not those that the failed-over VM has, each once; give all of them as they were opened"
    )]
    OtherFailoverDisks,

    #[error("there is no failover to {purpose}")]
    NotFailedOver { purpose: &'static str },

    #[error("a commit has begun and cannot be stopped; open the store again to complete it")]
    Committing,

    #[error(
        "the failover was committed: this folder holds the VM's own disks now, and is no replica"
    )]
    Committed,

    #[error("the note has {bytes} bytes; {} are the most", crate::note::MAX_NOTE)]
    NoteTooLong { bytes: usize },
}

/// Adds to an I/O error what was done to which file.
pub(crate) trait IoContext<T> {
    fn context(self, what: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, what: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    StoreError::DiskFull { what, path, source }
                }
                _ => StoreError::Io { what, path, source },
            }
        })
    }
}
