//! What the catalog holds, one file for each kind of row.

mod audit;
mod event;
mod host;
mod job;
mod reference;
mod relationship;
mod statistics;
mod vm;

pub use audit::{AuditRow, NewAuditRow};
pub use event::{Event, EventFilter, EventId, EventRetention, NewEvent, Severity};
pub use host::{AuthorizationEntry, Peer};
pub use job::{
    Activity, Job, JobCursor, JobFilter, JobPage, JobRetention, MIN_JOB_RETENTION,
    RetentionTooShort,
};
pub use reference::Reference;
pub use relationship::{NewRelationship, Place, RecordVersion, Relationship, Side};
pub use statistics::{Cycle, CycleEnd};
pub use vm::{DesiredPower, Vm};

use crate::catalog::Reader;
use crate::error::CatalogError;

/// The most rows of one page; a larger number asks for as many.
pub const PAGE_LIMIT: usize = 1000;

/// How many rows of a page are asked for.
fn page(limit: usize) -> i64 {
    i64::try_from(limit.clamp(1, PAGE_LIMIT)).expect("BUG: a page is small")
}

impl Reader<'_> {
    /// Reads what must be readable for the service to begin.
    pub(crate) fn every_lasting_row(&self) -> Result<(), CatalogError> {
        self.settings()?;
        self.vms()?;
        self.relationships()?;
        self.references()?;
        self.authorization_entries()?;
        self.peers()?;
        let mut filter = JobPage::newest(PAGE_LIMIT);
        loop {
            let (_, next) = self.jobs(&JobFilter::unfinished(), filter)?;
            match next {
                Some(cursor) => filter = JobPage::after(cursor, PAGE_LIMIT),
                None => return Ok(()),
            }
        }
    }
}
