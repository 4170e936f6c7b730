//! Statistics of a relationship, by monitoring cycle: those that ended, and the one that runs.

use lifeboat_model::{RelationshipId, Timestamp};
use rusqlite::{Row, params};

use super::page;
use crate::catalog::{Change, Reader};
use crate::column::{self, micros, optional_time};
use crate::document::Document;
use crate::error::{Accident, CatalogError, Doing, Refused};

/// What was counted in one monitoring cycle.
#[derive(Debug, Clone, PartialEq)]
pub struct Cycle {
    pub started_at: Timestamp,
    /// Absent while it runs.
    pub ended_at: Option<Timestamp>,
    pub document: Document,
}

/// The end of a cycle, which is the beginning of the next one.
#[derive(Debug, Clone, Copy)]
pub struct CycleEnd<'d> {
    pub at: Timestamp,
    /// What the ended cycle counted in all.
    pub ended: &'d Document,
    /// What the next one begins with.
    pub next: &'d Document,
    /// So many ended cycles of the relationship stay, this one included.
    pub most: u32,
}

impl Reader<'_> {
    /// The running cycle.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn statistics_running(
        &self,
        relationship: RelationshipId,
    ) -> Result<Option<Cycle>, CatalogError> {
        let sql = "SELECT * FROM statistics WHERE relationship = ?1 AND ended_at IS NULL";
        let relationship = [relationship.as_bytes()];
        self.row("read the running statistics", sql, relationship, cycle)
    }

    /// The ended cycles, newest first, at most `limit` and [`PAGE_LIMIT`](super::PAGE_LIMIT).
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn statistics_ended(
        &self,
        relationship: RelationshipId,
        limit: usize,
    ) -> Result<Vec<Cycle>, CatalogError> {
        let sql = "SELECT * FROM statistics WHERE relationship = ?1 AND ended_at IS NOT NULL
            ORDER BY id DESC LIMIT ?2";
        let values = params![relationship.as_bytes(), page(limit)];
        self.rows("read the statistics", sql, values, cycle)
    }
}

impl Change<'_> {
    /// Saves what the running cycle has counted; begins one at `now` if none runs.
    ///
    /// # Errors
    /// Refused when there is no such relationship, and when the document is too long;
    /// accidents of the catalog.
    pub fn statistics_save(
        &self,
        relationship: RelationshipId,
        document: &Document,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let sql = "INSERT INTO statistics (relationship, started_at, document)
            VALUES (?1, ?2, ?3)
            ON CONFLICT (relationship) WHERE ended_at IS NULL
            DO UPDATE SET document = excluded.document";
        let document = document.encode("the statistics")?;
        let values = params![relationship.as_bytes(), micros(now), document];
        match self.execute(sql, values) {
            // The only condition that can fail is that the relationship is there.
            Err(error) if Accident::of(&error) == Accident::Constraint => {
                Err(Refused::NoRelationship { relationship }.into())
            }
            saved => saved.doing("save the running statistics").map(drop),
        }
    }

    /// Ends the running cycle, begins the next one, and removes the oldest that are too many.
    ///
    /// # Errors
    /// Refused when no cycle runs, and when a document is too long; accidents of the catalog.
    pub fn statistics_next_cycle(
        &self,
        relationship: RelationshipId,
        end: CycleEnd<'_>,
    ) -> Result<(), CatalogError> {
        let sql = "UPDATE statistics SET ended_at = ?2, document = ?3
            WHERE relationship = ?1 AND ended_at IS NULL";
        let document = end.ended.encode("the statistics")?;
        let values = params![relationship.as_bytes(), micros(end.at), document];
        let ended = self.execute(sql, values).doing("end a monitoring cycle")?;
        if ended == 0 {
            return Err(Refused::NoRunningCycle { relationship }.into());
        }
        self.statistics_save(relationship, end.next, end.at)?;
        let sql = "DELETE FROM statistics WHERE relationship = ?1 AND id <= (
            SELECT id FROM statistics WHERE relationship = ?1 AND ended_at IS NOT NULL
            ORDER BY id DESC LIMIT 1 OFFSET ?2)";
        self.execute(sql, params![relationship.as_bytes(), end.most])
            .doing("remove old statistics")?;
        Ok(())
    }

    /// Removes all statistics of a relationship; the next save begins anew.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn statistics_reset(&self, relationship: RelationshipId) -> Result<(), CatalogError> {
        let sql = "DELETE FROM statistics WHERE relationship = ?1";
        self.execute(sql, [relationship.as_bytes()])
            .doing("reset statistics")?;
        Ok(())
    }
}

fn cycle(row: &Row<'_>) -> rusqlite::Result<Cycle> {
    Ok(Cycle {
        started_at: column::time(row, "started_at")?,
        ended_at: optional_time(row, "ended_at")?,
        document: column::document(row, "document")?,
    })
}
