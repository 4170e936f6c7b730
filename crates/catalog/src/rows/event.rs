//! Events: what happened, for people and for those who follow along.

use std::fmt;
use std::time::Duration;

use lifeboat_model::{RelationshipId, Timestamp, VmId};
use rusqlite::types::Value;
use rusqlite::{Row, params, params_from_iter};

use super::page;
use crate::catalog::{Change, Reader};
use crate::column::{self, bounded, duration_micros, encoded, micros, optional_document};
use crate::document::Document;
use crate::error::{CatalogError, Doing};

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Information,
    Warning,
    /// Somebody must come.
    Error,
}

const SEVERITIES: [(Severity, i64); 3] = [
    (Severity::Information, 0),
    (Severity::Warning, 1),
    (Severity::Error, 2),
];

impl Severity {
    const fn number(self) -> i64 {
        match self {
            Self::Information => SEVERITIES[0].1,
            Self::Warning => SEVERITIES[1].1,
            Self::Error => SEVERITIES[2].1,
        }
    }
}

/// The number of an event: each is larger than all before, and none is given twice, whatever
/// was removed meanwhile. Restoring a backup goes back to the backup's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u64);

impl EventId {
    /// Before the first event.
    pub const ZERO: Self = Self(0);

    /// The event with this number, if there is one.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    fn column(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that happened, before it has a number.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub at: Timestamp,
    pub severity: Severity,
    pub vm: Option<VmId>,
    pub relationship: Option<RelationshipId>,
    /// A word for programs.
    pub kind: String,
    /// A sentence for people.
    pub message: String,
    pub document: Option<Document>,
}

/// An event as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: EventId,
    pub event: NewEvent,
}

/// Which events are listed: those that match everything that is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFilter {
    pub vm: Option<VmId>,
    pub relationship: Option<RelationshipId>,
    pub at_least: Severity,
}

impl EventFilter {
    pub const ALL: Self = Self {
        vm: None,
        relationship: None,
        at_least: Severity::Information,
    };
}

/// How long and how many events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRetention {
    /// Older ones go.
    pub age: Duration,
    /// Of the younger ones the newest stay.
    pub most: u32,
}

impl Reader<'_> {
    /// Events after `after`, oldest first, at most `limit` and
    /// [`PAGE_LIMIT`](super::PAGE_LIMIT).
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn events_after(
        &self,
        after: EventId,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, CatalogError> {
        self.events("id > ?", "id", after.column(), filter, limit)
    }

    /// The newest events, newest first, at most `limit` and
    /// [`PAGE_LIMIT`](super::PAGE_LIMIT).
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn events_newest(
        &self,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, CatalogError> {
        self.events("id <= ?", "id DESC", i64::MAX, filter, limit)
    }

    /// Events before `before`, newest first, at most `limit` and
    /// [`PAGE_LIMIT`](super::PAGE_LIMIT).
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn events_before(
        &self,
        before: EventId,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, CatalogError> {
        self.events("id < ?", "id DESC", before.column(), filter, limit)
    }

    /// The number of the last event that was ever added, also if it is gone.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn event_last_id(&self) -> Result<EventId, CatalogError> {
        let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'event'";
        let last = self.row("read the last event", sql, [], |row| {
            column::unsigned(row, "seq")
        })?;
        Ok(last.map_or(EventId::ZERO, EventId))
    }

    /// The oldest event there is. Who follows along and is behind it has missed some.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn event_oldest_id(&self) -> Result<Option<EventId>, CatalogError> {
        let sql = "SELECT id FROM event ORDER BY id LIMIT 1";
        self.row("read the oldest event", sql, [], |row| {
            column::unsigned(row, "id").map(EventId)
        })
    }

    fn events(
        &self,
        range: &str,
        order: &str,
        bound: i64,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, CatalogError> {
        // Only the conditions that are asked for, so that SQLite finds the index for them.
        let mut sql = format!("SELECT * FROM event WHERE {range} AND severity >= ?");
        let mut values: Vec<Value> = vec![bound.into(), filter.at_least.number().into()];
        if let Some(vm) = filter.vm {
            sql.push_str(" AND vm = ?");
            values.push(vm.as_bytes().to_vec().into());
        }
        if let Some(relationship) = filter.relationship {
            sql.push_str(" AND relationship = ?");
            values.push(relationship.as_bytes().to_vec().into());
        }
        sql.push_str(&format!(" ORDER BY {order} LIMIT ?"));
        values.push(page(limit).into());
        self.rows("list the events", &sql, params_from_iter(values), event)
    }
}

impl Change<'_> {
    /// Adds an event and says its number.
    ///
    /// # Errors
    /// Refused when something is too long; accidents of the catalog.
    pub fn event_add(&self, event: &NewEvent) -> Result<EventId, CatalogError> {
        let sql = "INSERT INTO event (at, severity, vm, relationship, kind, message, document)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let values = params![
            micros(event.at),
            event.severity.number(),
            event.vm.as_ref().map(VmId::as_bytes),
            event.relationship.as_ref().map(RelationshipId::as_bytes),
            bounded("the event's kind", &event.kind)?,
            bounded("the event's message", &event.message)?,
            encoded("the event's data", event.document.as_ref())?,
        ];
        self.execute(sql, values).doing("add an event")?;
        Ok(EventId(self.last_number()))
    }

    /// Removes events as `retention` has it, and says how many.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn event_purge(
        &self,
        retention: EventRetention,
        now: Timestamp,
    ) -> Result<usize, CatalogError> {
        // Whatever the clocks were, the number bounds them.
        let sql = "DELETE FROM event WHERE at < ?1 OR id <= (
            SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?2)";
        let oldest = micros(now).saturating_sub(duration_micros(retention.age));
        self.execute(sql, params![oldest, retention.most])
            .doing("remove old events")
    }
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: EventId(column::unsigned(row, "id")?),
        event: NewEvent {
            at: column::time(row, "at")?,
            severity: column::number(row, "severity", &SEVERITIES)?,
            vm: row.get::<_, Option<_>>("vm")?.map(VmId::from_bytes),
            relationship: row
                .get::<_, Option<_>>("relationship")?
                .map(RelationshipId::from_bytes),
            kind: row.get("kind")?,
            message: row.get("message")?,
            document: optional_document(row, "document")?,
        },
    })
}
