//! VMs.

use lifeboat_model::contract::EnabledState;
use lifeboat_service::api::{VmDiskView, VmView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Relationship;

/// A VM as this host knows it (`Msvm_ComputerSystem`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// The VM's id, as in the schema.
    pub name: String,
    /// What people call it.
    pub element_name: String,
    /// What runs it.
    pub driver: String,
    pub enabled_state: u16,
    pub enabled_state_text: String,
    pub replication_mode: u16,
    pub replication_mode_text: String,
    pub replication_state: u16,
    pub replication_state_text: String,
    pub replication_health: u16,
    pub replication_health_text: String,
    pub failed_over_replication_type: u16,
    pub failed_over_replication_type_text: String,
    pub disks: Vec<VmDisk>,
    /// The VM of the test failover, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_replica_system: Option<String>,
    /// The VM that this one tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_of: Option<String>,
    pub relationships: Vec<Relationship>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDisk {
    pub disk: String,
    /// In bytes.
    pub size: u64,
    pub replicated: bool,
    /// Where a guest's client connects while the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The file that holds the disk, or its newest state.
    pub path: String,
}

impl From<VmView> for Vm {
    fn from(view: VmView) -> Self {
        let enabled = if view.running {
            EnabledState::Enabled
        } else {
            EnabledState::Disabled
        };
        Self {
            name: view.id.to_string(),
            element_name: view.name,
            driver: view.driver,
            enabled_state: enabled.number(),
            enabled_state_text: enabled.to_string(),
            replication_mode: view.replication_mode.number(),
            replication_mode_text: view.replication_mode.to_string(),
            replication_state: view.replication_state.number(),
            replication_state_text: view.replication_state.to_string(),
            replication_health: view.replication_health.number(),
            replication_health_text: view.replication_health.to_string(),
            failed_over_replication_type: view.failed_over_replication_type.number(),
            failed_over_replication_type_text: view.failed_over_replication_type.to_string(),
            disks: view.disks.into_iter().map(VmDisk::from).collect(),
            test_replica_system: view.test_replica.map(|vm| vm.to_string()),
            test_of: view.test_of.map(|vm| vm.to_string()),
            relationships: view
                .relationships
                .into_iter()
                .map(Relationship::from)
                .collect(),
        }
    }
}

impl From<VmDiskView> for VmDisk {
    fn from(view: VmDiskView) -> Self {
        Self {
            disk: view.id.to_string(),
            size: view.size.bytes(),
            replicated: view.replicated,
            uri: view.uri,
            path: view.path.display().to_string(),
        }
    }
}
