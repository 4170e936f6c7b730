//! Relationships, and the record of where each stands.

use std::fmt;

use lifeboat_model::{RelationshipId, VmId};
use rusqlite::{Row, params};

use crate::catalog::{Change, Reader};
use crate::column::{self, MAX_INTEGER, bounded, integer};
use crate::document::Document;
use crate::error::{CatalogError, Doing, Refused, unless_duplicate};

/// Which end of the relationship this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Primary,
    Replica,
}

const SIDES: [(Side, &str); 2] = [(Side::Primary, "primary"), (Side::Replica, "replica")];

impl Side {
    const fn word(self) -> &'static str {
        match self {
            Self::Primary => SIDES[0].1,
            Self::Replica => SIDES[1].1,
        }
    }
}

/// Which of the two relationships that a VM can have on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Number 0: between the VM's host and its replica.
    First,
    /// Number 1: from the replica on to a third host.
    Extended,
}

impl Place {
    /// The number in the contract.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::First => 0,
            Self::Extended => 1,
        }
    }
}

/// Counts the times a record was saved, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordVersion(u64);

impl RecordVersion {
    /// Of a record that was just added.
    pub const FIRST: Self = Self(1);

    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RecordVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A relationship that is to be added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRelationship {
    pub id: RelationshipId,
    pub vm: VmId,
    pub place: Place,
    pub side: Side,
    /// Where the relationship stands, by its decisions.
    pub record: Document,
    pub settings: Document,
    pub peer_host: String,
    pub peer_address: String,
    pub storage_folder: String,
    pub trust_group: String,
}

/// A relationship as it was saved.
#[derive(Debug, Clone, PartialEq)]
pub struct Relationship {
    pub row: NewRelationship,
    /// What the next save must expect.
    pub record_version: RecordVersion,
}

impl Reader<'_> {
    /// The relationship with this id.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn relationship(&self, id: RelationshipId) -> Result<Option<Relationship>, CatalogError> {
        let sql = "SELECT * FROM relationship WHERE id = ?1";
        self.row("read a relationship", sql, [id.as_bytes()], relationship)
    }

    /// The relationships of a VM, by place: at most two.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn relationships_of(&self, vm: VmId) -> Result<Vec<Relationship>, CatalogError> {
        let sql = "SELECT * FROM relationship WHERE vm = ?1 ORDER BY place";
        self.rows(
            "read a VM's relationships",
            sql,
            [vm.as_bytes()],
            relationship,
        )
    }

    /// All relationships, by VM and place.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn relationships(&self) -> Result<Vec<Relationship>, CatalogError> {
        let sql = "SELECT * FROM relationship ORDER BY vm, place";
        self.rows("read the relationships", sql, [], relationship)
    }
}

impl Change<'_> {
    /// Adds a relationship; its record is at [`RecordVersion::FIRST`].
    ///
    /// # Errors
    /// Refused when the id is there already, when the VM has a relationship at this place,
    /// and when something is too long; accidents of the catalog.
    pub fn relationship_add(&self, new: &NewRelationship) -> Result<RecordVersion, CatalogError> {
        let sql = "INSERT INTO relationship (id, vm, place, side, record, record_version,
            settings, peer_host, peer_address, storage_folder, trust_group)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        let version = RecordVersion::FIRST;
        let values = params![
            new.id.as_bytes(),
            new.vm.as_bytes(),
            new.place.number(),
            new.side.word(),
            new.record.encode("the record")?,
            integer("the record's version", version.0)?,
            new.settings.encode("the relationship's settings")?,
            bounded("the peer's name", &new.peer_host)?,
            bounded("the peer's address", &new.peer_address)?,
            bounded("the storage folder", &new.storage_folder)?,
            bounded("the trust group", &new.trust_group)?,
        ];
        let refused = || Refused::RelationshipExists {
            relationship: new.id,
            vm: new.vm,
        };
        unless_duplicate(self.execute(sql, values), "add a relationship", refused)?;
        Ok(version)
    }

    /// Saves a record if the saved one is still at `expected`, and says its new version: what
    /// was decided on an old record is never saved over a newer one.
    ///
    /// # Errors
    /// Refused when there is no such relationship, when the record was saved meanwhile, and
    /// when it is too long; accidents of the catalog.
    pub fn record_save(
        &self,
        relationship: RelationshipId,
        record: &Document,
        expected: RecordVersion,
    ) -> Result<RecordVersion, CatalogError> {
        let sql = "UPDATE relationship SET record = ?2, record_version = ?3
            WHERE id = ?1 AND record_version = ?4";
        let next = next(expected)?;
        let values = params![
            relationship.as_bytes(),
            record.encode("the record")?,
            integer("the record's version", next.0)?,
            integer("the record's version", expected.0)?,
        ];
        let saved = self.execute(sql, values).doing("save a record")?;
        self.as_expected(saved, relationship, expected)?;
        Ok(next)
    }

    /// Saves everything about a relationship but its id, VM and place, on the same condition
    /// as [`record_save`](Self::record_save); the record's version rises.
    ///
    /// # Errors
    /// As [`record_save`](Self::record_save).
    pub fn relationship_save(
        &self,
        row: &NewRelationship,
        expected: RecordVersion,
    ) -> Result<RecordVersion, CatalogError> {
        let sql = "UPDATE relationship SET side = ?3, record = ?4, settings = ?5, peer_host = ?6,
            peer_address = ?7, storage_folder = ?8, trust_group = ?9, record_version = ?10
            WHERE id = ?1 AND record_version = ?2";
        let next = next(expected)?;
        let values = params![
            row.id.as_bytes(),
            integer("the record's version", expected.0)?,
            row.side.word(),
            row.record.encode("the record")?,
            row.settings.encode("the relationship's settings")?,
            bounded("the peer's name", &row.peer_host)?,
            bounded("the peer's address", &row.peer_address)?,
            bounded("the storage folder", &row.storage_folder)?,
            bounded("the trust group", &row.trust_group)?,
            integer("the record's version", next.0)?,
        ];
        let saved = self.execute(sql, values).doing("save a relationship")?;
        self.as_expected(saved, row.id, expected)?;
        Ok(next)
    }

    /// Removes a relationship with its statistics. Jobs, events and audit rows stay.
    ///
    /// # Errors
    /// Refused when there is no such relationship; accidents of the catalog.
    pub fn relationship_remove(&self, relationship: RelationshipId) -> Result<(), CatalogError> {
        let sql = "DELETE FROM relationship WHERE id = ?1";
        let removed = self
            .execute(sql, [relationship.as_bytes()])
            .doing("remove a relationship")?;
        match removed {
            0 => Err(Refused::NoRelationship { relationship }.into()),
            _ => Ok(()),
        }
    }

    fn as_expected(
        &self,
        saved: usize,
        relationship: RelationshipId,
        expected: RecordVersion,
    ) -> Result<(), CatalogError> {
        if saved > 0 {
            return Ok(());
        }
        let sql = "SELECT record_version FROM relationship WHERE id = ?1";
        let found = self.row("read a record", sql, [relationship.as_bytes()], version)?;
        Err(match found {
            None => Refused::NoRelationship { relationship },
            Some(found) => Refused::RecordChanged {
                relationship,
                expected,
                found,
            },
        }
        .into())
    }
}

fn next(version: RecordVersion) -> Result<RecordVersion, Refused> {
    match version.0 {
        number if number < MAX_INTEGER => Ok(RecordVersion(number + 1)),
        number => Err(Refused::TooLargeNumber {
            what: "the record's version",
            number,
            limit: MAX_INTEGER,
        }),
    }
}

fn version(row: &Row<'_>) -> rusqlite::Result<RecordVersion> {
    column::unsigned(row, "record_version").map(RecordVersion)
}

fn relationship(row: &Row<'_>) -> rusqlite::Result<Relationship> {
    Ok(Relationship {
        record_version: version(row)?,
        row: NewRelationship {
            id: RelationshipId::from_bytes(row.get("id")?),
            vm: VmId::from_bytes(row.get("vm")?),
            place: column::number(row, "place", &[(Place::First, 0), (Place::Extended, 1)])?,
            side: column::word(row, "side", &SIDES)?,
            record: column::document(row, "record")?,
            settings: column::document(row, "settings")?,
            peer_host: row.get("peer_host")?,
            peer_address: row.get("peer_address")?,
            storage_folder: row.get("storage_folder")?,
            trust_group: row.get("trust_group")?,
        },
    })
}
