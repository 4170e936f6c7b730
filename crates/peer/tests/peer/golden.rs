//! The JSON of every message. A name or a form that changes here is another version of the
//! protocol.

use std::fmt::Debug;

use lifeboat_model::{DeltaId, DiskSize, LineageId, Receipt, Sequence, Timestamp};
use lifeboat_peer::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChangedDisk, ChangedSince, ChunkPlace,
    CopiedDisk, CopyKind, CopyProgress, DeltaPlace, DigestQuery, GuestStatus, Introduction,
    NewReplica, PeerDisk, PlannedFailover, PlannedPhase, Refusal, RefusalCode, Removal,
    ReplicaReport, ReplicaRole, SessionRequest, TakeOver, TakeOverState, Tip, Verified,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::support::{disk, lineage, relationship, vm};

/// Written as `golden`, read from it, and refused with a field that is not known.
fn assert_golden<T>(message: &T, golden: &serde_json::Value)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    assert_eq!(serde_json::to_value(message).unwrap(), *golden);
    assert_eq!(
        serde_json::from_value::<T>(golden.clone()).unwrap(),
        *message
    );
    if let serde_json::Value::Object(fields) = golden {
        let mut more = fields.clone();
        more.insert("unknown".to_owned(), json!(1));
        assert!(serde_json::from_value::<T>(more.into()).is_err());
    }
}

const RELATIONSHIP: &str = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1";
const LINEAGE: &str = "b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2";

fn lineage_json() -> serde_json::Value {
    json!({"counter": 2, "id": LINEAGE, "forked_from": ["b1".repeat(16), 41]})
}

fn first_lineage() -> lifeboat_model::Lineage {
    lifeboat_model::Lineage {
        counter: 1,
        id: LineageId::from_bytes([0xb1; 16]),
        forked_from: None,
    }
}

fn first_lineage_json() -> serde_json::Value {
    json!({"counter": 1, "id": "b1".repeat(16)})
}

fn wall() -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000)
}

fn new_replica() -> NewReplica {
    NewReplica {
        vm: vm(),
        vm_name: "web".to_owned(),
        relationship: relationship(),
        lineage: lineage(),
        disks: vec![PeerDisk {
            id: disk(),
            size: DiskSize::try_from(1_048_576).unwrap(),
        }],
        definition: json!({"cpus": 2}),
        settings: json!({"interval": 300}),
        caller_address: "primary-1.example:8473".to_owned(),
        extended: true,
    }
}

fn new_replica_json() -> serde_json::Value {
    json!({
        "vm": "c3".repeat(16),
        "vm_name": "web",
        "relationship": RELATIONSHIP,
        "lineage": lineage_json(),
        "disks": [{"id": "vda", "size": 1_048_576}],
        "definition": {"cpus": 2},
        "settings": {"interval": 300},
        "caller_address": "primary-1.example:8473",
        "extended": true,
    })
}

#[test]
fn an_introduction_is_stable() {
    let mut message = Introduction {
        version: 1,
        software: "lifeboat 0.1.0".to_owned(),
        host: "replica-1.example".to_owned(),
        refusal: None,
        wall_clock: wall(),
    };
    let mut golden = json!({
        "version": 1,
        "software": "lifeboat 0.1.0",
        "host": "replica-1.example",
        "wall_clock": 1_700_000_000_000_000_u64,
    });
    assert_golden(&message, &golden);
    message.refusal = Some("no entry names you".to_owned());
    golden["refusal"] = json!("no entry names you");
    assert_golden(&message, &golden);
}

#[test]
fn messages_that_make_and_change_replicas_are_stable() {
    assert_golden(&new_replica(), &new_replica_json());
    assert_golden(
        &ChangeSettings {
            relationship: relationship(),
            settings: json!({"interval": 30}),
            definition: json!(null),
        },
        &json!({"relationship": RELATIONSHIP, "settings": {"interval": 30}, "definition": null}),
    );
    assert_golden(
        &Removal {
            relationship: relationship(),
        },
        &json!({"relationship": RELATIONSHIP}),
    );
}

#[test]
fn messages_of_a_session_are_stable() {
    let id = DeltaId::from_bytes([0xd4; 32]);
    assert_golden(
        &SessionRequest {
            relationship: relationship(),
            lineage: lineage(),
            ancestors: vec![first_lineage()],
            last_receipt: Some(Receipt {
                lineage: lineage().id,
                sequence: Sequence::new(42),
                id,
            }),
            wall_clock: wall(),
        },
        &json!({
            "relationship": RELATIONSHIP,
            "lineage": lineage_json(),
            "ancestors": [first_lineage_json()],
            "last_receipt": {"lineage": LINEAGE, "sequence": 42, "id": "d4".repeat(32)},
            "wall_clock": 1_700_000_000_000_000_u64,
        }),
    );
    assert_golden(
        &ReplicaReport {
            lineage: lineage(),
            ancestors: Vec::new(),
            role: ReplicaRole::FailedOver,
            tip: Some(Tip {
                sequence: Sequence::new(42),
                id,
            }),
            applied: Sequence::new(41),
            copy: Some(progress()),
            suspended: true,
            backlog_bytes: 1,
            backlog_limit_bytes: 2,
            start_seconds: Some(3),
            free_bytes: 3,
            refusal: Some("full".to_owned()),
            wall_clock: wall(),
        },
        &json!({
            "lineage": lineage_json(),
            "ancestors": [],
            "role": "failed_over",
            "tip": {"sequence": 42, "id": "d4".repeat(32)},
            "applied": 41,
            "copy": progress_json(),
            "suspended": true,
            "backlog_bytes": 1,
            "backlog_limit_bytes": 2,
            "start_seconds": 3,
            "free_bytes": 3,
            "refusal": "full",
            "wall_clock": 1_700_000_000_000_000_u64,
        }),
    );
    for (role, name) in [
        (ReplicaRole::Replica, "replica"),
        (ReplicaRole::FailedOver, "failed_over"),
        (ReplicaRole::Committed, "committed"),
        (ReplicaRole::Primary, "primary"),
    ] {
        assert_golden(&role, &json!(name));
    }
}

fn progress() -> CopyProgress {
    CopyProgress {
        copy: Sequence::new(7),
        kind: CopyKind::Resync,
        disks: vec![CopiedDisk {
            id: disk(),
            done: vec![0..4096, 8192..12288],
        }],
    }
}

fn progress_json() -> serde_json::Value {
    json!({
        "copy": 7,
        "kind": "resync",
        "disks": [{
            "id": "vda",
            "done": [{"start": 0, "end": 4096}, {"start": 8192, "end": 12288}],
        }],
    })
}

#[test]
fn messages_of_a_copy_are_stable() {
    assert_golden(&progress(), &progress_json());
    assert_golden(&CopyKind::Initial, &json!("initial"));
    assert_golden(
        &BeginCopy {
            relationship: relationship(),
            lineage: lineage().id,
            copy: Sequence::new(7),
            kind: CopyKind::Initial,
            disks: Vec::new(),
        },
        &json!({
            "relationship": RELATIONSHIP,
            "lineage": LINEAGE,
            "copy": 7,
            "kind": "initial",
            "disks": [],
        }),
    );
    assert_golden(
        &DigestQuery {
            relationship: relationship(),
            lineage: lineage().id,
            disk: disk(),
            ranges: vec![0..4096, 8192..12288],
            unit: 4096,
            key: "0f".repeat(32),
            at: Some(Sequence::new(6)),
        },
        &json!({
            "relationship": RELATIONSHIP,
            "lineage": LINEAGE,
            "disk": "vda",
            "ranges": [{"start": 0, "end": 4096}, {"start": 8192, "end": 12288}],
            "unit": 4096,
            "key": "0f".repeat(32),
            "at": 6,
        }),
    );
    assert_golden(
        &Verified {
            relationship: relationship(),
            lineage: lineage().id,
            at: Sequence::new(6),
        },
        &json!({
            "relationship": RELATIONSHIP,
            "lineage": LINEAGE,
            "at": 6,
        }),
    );
    assert_golden(
        &ChunkPlace {
            relationship: relationship(),
            lineage: lineage().id,
            copy: Sequence::new(7),
            disk: disk(),
            range: 0..65536,
        },
        &json!({
            "relationship": RELATIONSHIP,
            "lineage": LINEAGE,
            "copy": 7,
            "disk": "vda",
            "range": {"start": 0, "end": 65536},
        }),
    );
    assert_golden(
        &DeltaPlace {
            relationship: relationship(),
            lineage: lineage().id,
            sequence: Sequence::new(42),
            planned: true,
        },
        &json!({
            "relationship": RELATIONSHIP,
            "lineage": LINEAGE,
            "sequence": 42,
            "planned": true,
        }),
    );
}

#[test]
fn messages_of_a_failover_are_stable() {
    for (phase, name) in [
        (PlannedPhase::Prepared, "prepared"),
        (PlannedPhase::Cancelled, "cancelled"),
    ] {
        assert_golden(
            &PlannedFailover {
                relationship: relationship(),
                lineage: lineage().id,
                sequence: Sequence::new(42),
                phase,
            },
            &json!({
                "relationship": RELATIONSHIP,
                "lineage": LINEAGE,
                "sequence": 42,
                "phase": name,
            }),
        );
    }
    assert_golden(
        &GuestStatus {
            running: true,
            prepared: Some(Sequence::new(42)),
            preparing: false,
            unsent_bytes: 7,
        },
        &json!({"running": true, "prepared": 42, "unsent_bytes": 7}),
    );
    assert_golden(
        &GuestStatus {
            running: false,
            prepared: None,
            preparing: true,
            unsent_bytes: 7,
        },
        &json!({"running": false, "preparing": true, "unsent_bytes": 7}),
    );
    for (state, name) in [
        (TakeOverState::FailedOver, "failed_over"),
        (TakeOverState::Reverted, "reverted"),
        (TakeOverState::Committed, "committed"),
    ] {
        assert_golden(
            &TakeOver {
                relationship: relationship(),
                lineage: lineage(),
                ancestors: vec![first_lineage()],
                state,
            },
            &json!({
                "relationship": RELATIONSHIP,
                "lineage": lineage_json(),
                "ancestors": [first_lineage_json()],
                "state": name,
            }),
        );
    }
}

#[test]
fn messages_of_a_reversal_are_stable() {
    assert_golden(
        &Adoption {
            old_relationship: relationship(),
            replica: new_replica(),
            ancestors: vec![first_lineage()],
        },
        &json!({
            "old_relationship": RELATIONSHIP,
            "replica": new_replica_json(),
            "ancestors": [first_lineage_json()],
        }),
    );
    assert_golden(
        &Adopted {
            drawn: Sequence::new(50),
            changed: Some(ChangedSince {
                moment: Sequence::new(41),
                disks: vec![ChangedDisk {
                    id: disk(),
                    ranges: vec![0..4096, 8192..12288],
                }],
            }),
            why_unknown: Some("unclean".to_owned()),
        },
        &json!({
            "drawn": 50,
            "changed": {
                "moment": 41,
                "disks": [{"id": "vda", "ranges": [{"start": 0, "end": 4096}, {"start": 8192, "end": 12288}]}],
            },
            "why_unknown": "unclean",
        }),
    );
}

#[test]
fn refusals_are_stable() {
    for (code, name) in [
        (RefusalCode::NotAuthorized, "not_authorized"),
        (RefusalCode::NotFound, "not_found"),
        (RefusalCode::InvalidState, "invalid_state"),
        (RefusalCode::Invalid, "invalid"),
        (RefusalCode::OtherLineage, "other_lineage"),
        (RefusalCode::NotContinuous, "not_continuous"),
        (RefusalCode::Full, "full"),
        (RefusalCode::Busy, "busy"),
        (RefusalCode::Failed, "failed"),
        (RefusalCode::Version, "version"),
    ] {
        assert_golden(
            &Refusal {
                code,
                message: "no".to_owned(),
            },
            &json!({"code": name, "message": "no"}),
        );
    }
}
