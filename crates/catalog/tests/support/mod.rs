//! Rows to test with.

use std::time::Duration;

use lifeboat_catalog::{
    Catalog, DesiredPower, Document, Job, JobId, NewEvent, NewRelationship, OnMissing, Place,
    Severity, Side, Vm,
};
use lifeboat_model::{RelationshipId, Timestamp, VmId};
use serde_json::{Value, json};
use tempfile::TempDir;

pub fn fresh() -> (TempDir, Catalog) {
    let directory = TempDir::new().unwrap();
    let catalog = Catalog::open(&directory.path().join("catalog.db"), OnMissing::Create).unwrap();
    (directory, catalog)
}

pub fn document(data: Value) -> Document {
    Document { format: 1, data }
}

pub fn vm_id(number: u8) -> VmId {
    VmId::from_bytes([number; 16])
}

pub fn relationship_id(number: u8) -> RelationshipId {
    RelationshipId::from_bytes([number; 16])
}

pub fn seconds(seconds: u64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

pub fn vm(number: u8, name: &str) -> Vm {
    Vm {
        id: vm_id(number),
        name: name.to_owned(),
        driver: "volume".to_owned(),
        definition: document(json!({"memory": number})),
        disks: document(json!([])),
        desired_power: DesiredPower::Off,
        created_at: seconds(10),
        updated_at: seconds(10),
    }
}

pub fn relationship(number: u8, place: Place) -> NewRelationship {
    NewRelationship {
        id: relationship_id(number),
        vm: vm_id(1),
        place,
        side: Side::Primary,
        record: document(json!({"phase": "ready"})),
        settings: document(json!({"frequency": 300})),
        peer_host: "b.example".to_owned(),
        peer_address: "b.example:8443".to_owned(),
        storage_folder: "/srv/lifeboat".to_owned(),
        trust_group: "default".to_owned(),
    }
}

pub fn job(number: u8, submitted: u64) -> Job {
    Job {
        id: JobId::from_bytes([number; 16]),
        job_type: 97,
        vm: Some(vm_id(number % 2)),
        relationship: None,
        name: format!("job {number}"),
        job_state: 4,
        percent_complete: 0,
        error_code: 0,
        error_description: String::new(),
        errors: None,
        time_submitted: seconds(submitted),
        scheduled_start: None,
        start_time: None,
        elapsed: Duration::ZERO,
        time_of_last_state_change: seconds(submitted),
        cancellable: true,
        owner: "root".to_owned(),
        request: document(json!({"point": number})),
        result: None,
        final_at: None,
    }
}

pub fn event(message: &str, at: u64) -> NewEvent {
    NewEvent {
        at: seconds(at),
        severity: Severity::Information,
        vm: None,
        relationship: None,
        kind: "test".to_owned(),
        message: message.to_owned(),
        document: None,
    }
}
