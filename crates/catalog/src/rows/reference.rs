//! What needs a boundary of a store to stay: test failovers, exports, captures for a third host.

use lifeboat_model::VmId;
use rusqlite::{Row, params};

use crate::catalog::{Change, Reader};
use crate::column::{self, bounded, integer};
use crate::document::Document;
use crate::error::{CatalogError, Doing, Refused, unless_duplicate};
use crate::id::ReferenceId;

/// A reference to a boundary.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub id: ReferenceId,
    pub vm: VmId,
    /// The boundary's number in the VM's store.
    pub boundary: u64,
    /// Who holds it. One whose owner is gone is released.
    pub owner: String,
    pub document: Document,
}

impl Reader<'_> {
    /// The reference with this id.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn reference(&self, id: ReferenceId) -> Result<Option<Reference>, CatalogError> {
        let sql = "SELECT * FROM reference WHERE id = ?1";
        self.row("read a reference", sql, [id.as_bytes()], reference)
    }

    /// The references to boundaries of a VM's store, by boundary.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn references_of(&self, vm: VmId) -> Result<Vec<Reference>, CatalogError> {
        let sql = "SELECT * FROM reference WHERE vm = ?1 ORDER BY boundary, id";
        self.rows("read a VM's references", sql, [vm.as_bytes()], reference)
    }

    /// All references, by VM and boundary.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn references(&self) -> Result<Vec<Reference>, CatalogError> {
        let sql = "SELECT * FROM reference ORDER BY vm, boundary, id";
        self.rows("read the references", sql, [], reference)
    }
}

impl Change<'_> {
    /// Adds a reference.
    ///
    /// # Errors
    /// Refused when the id is there already, and when something is too long; accidents of the
    /// catalog.
    pub fn reference_add(&self, new: &Reference) -> Result<(), CatalogError> {
        let sql = "INSERT INTO reference (id, vm, boundary, owner, document)
            VALUES (?1, ?2, ?3, ?4, ?5)";
        let values = params![
            new.id.as_bytes(),
            new.vm.as_bytes(),
            integer("the boundary", new.boundary)?,
            bounded("the reference's owner", &new.owner)?,
            new.document.encode("the reference")?,
        ];
        let refused = || Refused::ReferenceExists { reference: new.id };
        unless_duplicate(self.execute(sql, values), "add a reference", refused)?;
        Ok(())
    }

    /// Whether there was such a reference; it is gone.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn reference_remove(&self, id: ReferenceId) -> Result<bool, CatalogError> {
        self.execute("DELETE FROM reference WHERE id = ?1", [id.as_bytes()])
            .doing("remove a reference")
            .map(|removed| removed > 0)
    }
}

fn reference(row: &Row<'_>) -> rusqlite::Result<Reference> {
    Ok(Reference {
        id: ReferenceId::from_bytes(row.get("id")?),
        vm: VmId::from_bytes(row.get("vm")?),
        boundary: column::unsigned(row, "boundary")?,
        owner: row.get("owner")?,
        document: column::document(row, "document")?,
    })
}
