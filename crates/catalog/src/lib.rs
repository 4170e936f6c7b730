//! Settings, jobs, events, statistics and a cache of records of one host, in SQLite.
//!
//! - A change that returned is durable; one that did not return or failed is not in the
//!   catalog, and never half of it. See [`Catalog::change`], and [`Catalog::mend`] after a write
//!   that failed.
//! - What is read in one [`Catalog::read`] is of one instant, and waits for no change.
//! - A file that is damaged, is no catalog, or was written by a newer build is refused and
//!   left as it is. An older one is migrated after a copy of it was made.
//! - One process has the catalog; the second is told who has it.
//!
//! Rules and policy are elsewhere. For lineage, points and the phase of a failover the
//! journal of the VM's store is the truth; what stands here about them is a cache.
//!
//! The calls block: on the disk, and changes on each other.

mod backup;
mod catalog;
mod column;
mod document;
mod draft;
mod error;
mod id;
mod open;
mod readers;
mod rows;
mod schema;

pub use backup::{BackupError, CheckError, Checked, RestoreError};
pub use catalog::{Catalog, Change, Reader};
pub use document::{Document, MAX_DOCUMENT};
pub use draft::Draft;
pub use error::{CatalogError, DatabaseError, Refused};
pub use id::{InvalidRowId, JobId, ReferenceId};
pub use open::{OnMissing, OpenError};
pub use rows::{
    Activity, AuditRow, AuthorizationEntry, Cycle, CycleEnd, DesiredPower, Event, EventFilter,
    EventId, EventRetention, Job, JobCursor, JobFilter, JobPage, JobRetention, MIN_JOB_RETENTION,
    NewAuditRow, NewEvent, NewRelationship, PAGE_LIMIT, Peer, Place, RecordVersion, Reference,
    Relationship, RetentionTooShort, Severity, Side, Vm,
};
