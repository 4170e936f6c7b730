//! Replication relationships.

use lifeboat_service::api::{self, RelationshipIndex, RelationshipView};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ReplicationSettings, Time};

/// One relationship of a VM (`Msvm_ReplicationRelationship`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Relationship {
    pub instance_id: String,
    pub relationship_id: String,
    /// 0, or 1 for the one from a replica to a third site.
    pub index: u16,
    pub replication_mode: u16,
    pub replication_mode_text: String,
    pub replication_state: u16,
    pub replication_state_text: String,
    pub replication_health: u16,
    pub replication_health_text: String,
    pub failed_over_replication_type: u16,
    pub failed_over_replication_type_text: String,
    pub last_replication_type: u16,
    pub last_replication_type_text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_replication_time: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_apply_time: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_application_consistent_replication_time: Option<Time>,
    /// The moment that the replica has for certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sequence: Option<u64>,
    pub lineage: Lineage,
    pub primary_host_system: String,
    pub recovery_host_system: String,
    /// `host:port`.
    pub recovery_connection_point: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_storage_location: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_group: Option<String>,
    pub settings: ReplicationSettings,
    /// What runs at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// One unbroken history of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lineage {
    /// Rises when a side takes over.
    pub counter: u64,
    pub id: String,
}

/// Work under way, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Activity {
    pub what: String,
    pub done_bytes: u64,
    pub total_bytes: u64,
}

impl From<RelationshipView> for Relationship {
    fn from(view: RelationshipView) -> Self {
        Self {
            instance_id: view.instance_id,
            relationship_id: view.id.to_string(),
            index: match view.index {
                RelationshipIndex::Primary => 0,
                RelationshipIndex::Extended => 1,
            },
            replication_mode: view.replication_mode.number(),
            replication_mode_text: view.replication_mode.to_string(),
            replication_state: view.replication_state.number(),
            replication_state_text: view.replication_state.to_string(),
            replication_health: view.replication_health.number(),
            replication_health_text: view.replication_health.to_string(),
            failed_over_replication_type: view.failed_over_replication_type.number(),
            failed_over_replication_type_text: view.failed_over_replication_type.to_string(),
            last_replication_type: view.last_replication_type.number(),
            last_replication_type_text: view.last_replication_type.to_string(),
            last_replication_time: view.last_replication_time.map(Time),
            last_apply_time: view.last_apply_time.map(Time),
            last_application_consistent_replication_time: view
                .last_application_consistent_replication_time
                .map(Time),
            last_sequence: view.last_sequence.map(lifeboat_model::Sequence::number),
            lineage: Lineage {
                counter: view.lineage.counter.into(),
                id: view.lineage.id.to_string(),
            },
            primary_host_system: view.primary_host_system,
            recovery_host_system: view.recovery_host_system,
            recovery_connection_point: view.recovery_connection_point,
            replica_storage_location: view.storage_location.map(|path| path.display().to_string()),
            trust_group: view.trust_group,
            settings: view.settings.into(),
            activity: view.activity.map(Activity::from),
        }
    }
}

impl From<api::Activity> for Activity {
    fn from(activity: api::Activity) -> Self {
        Self {
            what: activity.what,
            done_bytes: activity.done_bytes,
            total_bytes: activity.total_bytes,
        }
    }
}
