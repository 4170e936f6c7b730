//! The VMs of this host.

use lifeboat_model::{Timestamp, VmId};
use rusqlite::{Row, params};

use crate::catalog::{Change, Reader};
use crate::column::{self, bounded, micros};
use crate::document::Document;
use crate::error::{CatalogError, Doing, Refused, unless_duplicate};

/// Whether a VM is meant to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DesiredPower {
    Running,
    Off,
}

const POWERS: [(DesiredPower, &str); 2] = [
    (DesiredPower::Running, "running"),
    (DesiredPower::Off, "off"),
];

impl DesiredPower {
    const fn word(self) -> &'static str {
        match self {
            Self::Running => POWERS[0].1,
            Self::Off => POWERS[1].1,
        }
    }
}

/// A VM as this host has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    pub id: VmId,
    /// A label for people, unique on this host. Never an identity.
    pub name: String,
    /// What runs it.
    pub driver: String,
    pub definition: Document,
    pub disks: Document,
    pub desired_power: DesiredPower,
    pub created_at: Timestamp,
    /// When it was saved last.
    pub updated_at: Timestamp,
}

impl Reader<'_> {
    /// The VM with this id.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn vm(&self, id: VmId) -> Result<Option<Vm>, CatalogError> {
        let sql = "SELECT * FROM vm WHERE id = ?1";
        self.row("read a VM", sql, [id.as_bytes()], vm)
    }

    /// The VM of this name.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn vm_named(&self, name: &str) -> Result<Option<Vm>, CatalogError> {
        let sql = "SELECT * FROM vm WHERE name = ?1";
        self.row("read a VM", sql, [name], vm)
    }

    /// All VMs, by name.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn vms(&self) -> Result<Vec<Vm>, CatalogError> {
        let sql = "SELECT * FROM vm ORDER BY name";
        self.rows("read the VMs", sql, [], vm)
    }
}

impl Change<'_> {
    /// Adds a VM.
    ///
    /// # Errors
    /// Refused when the id or the name is there already, and when something is too long;
    /// accidents of the catalog.
    pub fn vm_add(&self, vm: &Vm) -> Result<(), CatalogError> {
        let sql = "INSERT INTO vm (id, name, driver, definition, disks, desired_power,
            created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        if self.vm(vm.id)?.is_some() {
            return Err(Refused::VmExists { vm: vm.id }.into());
        }
        let values = params![
            vm.id.as_bytes(),
            bounded("the VM's name", &vm.name)?,
            bounded("the VM's driver", &vm.driver)?,
            vm.definition.encode("the VM's definition")?,
            vm.disks.encode("the VM's disks")?,
            vm.desired_power.word(),
            micros(vm.created_at),
            micros(vm.updated_at),
        ];
        unless_duplicate(self.execute(sql, values), "add a VM", || name_taken(vm))?;
        Ok(())
    }

    /// Saves everything about a VM but its id and when it was created.
    ///
    /// # Errors
    /// Refused when there is no such VM, when another one has the name, and when something
    /// is too long; accidents of the catalog.
    pub fn vm_save(&self, vm: &Vm) -> Result<(), CatalogError> {
        let sql = "UPDATE vm SET name = ?2, driver = ?3, definition = ?4, disks = ?5,
            desired_power = ?6, updated_at = ?7 WHERE id = ?1";
        let values = params![
            vm.id.as_bytes(),
            bounded("the VM's name", &vm.name)?,
            bounded("the VM's driver", &vm.driver)?,
            vm.definition.encode("the VM's definition")?,
            vm.disks.encode("the VM's disks")?,
            vm.desired_power.word(),
            micros(vm.updated_at),
        ];
        let saved = unless_duplicate(self.execute(sql, values), "save a VM", || name_taken(vm))?;
        found(saved, vm.id)
    }

    /// Saves whether a VM is meant to run, and nothing else of it.
    ///
    /// # Errors
    /// Refused when there is no such VM; accidents of the catalog.
    pub fn vm_save_desired_power(
        &self,
        vm: VmId,
        power: DesiredPower,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let sql = "UPDATE vm SET desired_power = ?2, updated_at = ?3 WHERE id = ?1";
        let saved = self
            .execute(sql, params![vm.as_bytes(), power.word(), micros(now)])
            .doing("save whether a VM is meant to run")?;
        found(saved, vm)
    }

    /// Removes a VM.
    ///
    /// # Errors
    /// Refused when there is no such VM; accidents of the catalog.
    pub fn vm_remove(&self, vm: VmId) -> Result<(), CatalogError> {
        let removed = self
            .execute("DELETE FROM vm WHERE id = ?1", [vm.as_bytes()])
            .doing("remove a VM")?;
        found(removed, vm)
    }
}

fn vm(row: &Row<'_>) -> rusqlite::Result<Vm> {
    Ok(Vm {
        id: VmId::from_bytes(row.get("id")?),
        name: row.get("name")?,
        driver: row.get("driver")?,
        definition: column::document(row, "definition")?,
        disks: column::document(row, "disks")?,
        desired_power: column::word(row, "desired_power", &POWERS)?,
        created_at: column::time(row, "created_at")?,
        updated_at: column::time(row, "updated_at")?,
    })
}

fn name_taken(vm: &Vm) -> Refused {
    Refused::VmNameTaken {
        name: vm.name.clone(),
    }
}

fn found(rows: usize, vm: VmId) -> Result<(), CatalogError> {
    match rows {
        0 => Err(Refused::NoVm { vm }.into()),
        _ => Ok(()),
    }
}
