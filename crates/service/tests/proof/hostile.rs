//! Peers that are not what they should be, disks that are full, clocks that jump.

use lifeboat_hypervisor::{DiskBus, DiskSettings, Firmware, VmDefinition, VmSettings};
use lifeboat_model::settings::{ReplicationSettings, SettingsChange};
use lifeboat_model::{DiskId, DiskSize, Lineage, LineageId, RelationshipId, Sequence, VmId};
use lifeboat_peer::{
    BeginCopy, ChangeSettings, ChunkPlace, CopyKind, DeltaPlace, DigestQuery, Host, NewReplica,
    PeerDisk, PeerName, PlannedFailover, PlannedPhase, Refusal, RefusalCode, Removal,
    SessionRequest,
};
use lifeboat_service::api::{Operations, VmOperation};

use crate::links::{SentDelta, lock};
use crate::site::{Site, admin};
use crate::world::{At, Replica, World, entry};

fn mallory() -> PeerName {
    PeerName::new("mallory.test".to_owned())
}

fn alpha() -> PeerName {
    PeerName::new("alpha.test".to_owned())
}

fn beta() -> PeerName {
    PeerName::new("beta.test".to_owned())
}

/// A body that nobody may read.
struct Unread;

impl std::io::Read for Unread {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        panic!("a body was read before its sender was let in");
    }
}

/// A message as an honest primary would send it.
fn new_replica(vm: VmId) -> NewReplica {
    let disk: DiskId = "vda".parse().unwrap();
    let size = DiskSize::try_from(1 << 20).unwrap();
    let definition = VmDefinition::try_from(VmSettings {
        format: lifeboat_hypervisor::FORMAT,
        vm,
        name: "theirs".to_owned(),
        memory_mib: 64,
        processors: 1,
        firmware: Firmware::Bios,
        adapters: Vec::new(),
        disks: vec![DiskSettings {
            id: disk.clone(),
            size,
            bus: DiskBus::Virtio,
        }],
    })
    .unwrap();
    let settings = ReplicationSettings::new(SettingsChange {
        recovery_connection_point: Some("beta.test".to_owned()),
        recovery_server_port_number: Some(8473),
        ..SettingsChange::default()
    })
    .unwrap();
    NewReplica {
        vm,
        vm_name: "theirs".to_owned(),
        relationship: RelationshipId::from_bytes([7; 16]),
        lineage: Lineage {
            counter: 1,
            id: LineageId::from_bytes([8; 16]),
            forked_from: None,
        },
        disks: vec![PeerDisk { id: disk, size }],
        definition: serde_json::to_value(&definition).unwrap(),
        settings: serde_json::to_value(&settings).unwrap(),
        caller_address: "mallory.test:8473".to_owned(),
        extended: false,
    }
}

/// What a caller is told, by call, when it meddles with the world's relationship.
fn meddle(world: &World, caller: &PeerName, lineage: LineageId) -> Vec<(&'static str, Refusal)> {
    let host = &world.beta.service;
    let relationship = world.beta.relation(world.vm).id;
    let disk: DiskId = "vda".parse().unwrap();
    let size = DiskSize::try_from(1 << 20).unwrap();
    let sequence = world.beta.relation(world.vm).last_sequence.unwrap();
    let said = [
        (
            "begin_copy",
            host.begin_copy(
                caller,
                BeginCopy {
                    relationship,
                    lineage,
                    copy: sequence.next().unwrap(),
                    kind: CopyKind::Resync,
                    disks: vec![PeerDisk {
                        id: disk.clone(),
                        size,
                    }],
                },
            )
            .map(|_| ()),
        ),
        (
            "digests",
            host.digests(
                caller,
                DigestQuery {
                    relationship,
                    lineage,
                    disk: disk.clone(),
                    ranges: std::iter::once(0..4096).collect(),
                    unit: 4096,
                    key: "00".repeat(32),
                    at: None,
                },
            )
            .map(|_| ()),
        ),
        (
            "put_chunk",
            host.put_chunk(
                caller,
                ChunkPlace {
                    relationship,
                    lineage,
                    copy: sequence,
                    disk,
                    range: 0..4096,
                },
                &mut Unread,
            ),
        ),
        (
            "put_delta",
            host.put_delta(
                caller,
                DeltaPlace {
                    relationship,
                    lineage,
                    sequence,
                    planned: false,
                },
                &mut Unread,
            )
            .map(|_| ()),
        ),
        (
            "planned_failover",
            host.planned_failover(
                caller,
                PlannedFailover {
                    relationship,
                    lineage,
                    sequence,
                    phase: PlannedPhase::Prepared,
                },
            ),
        ),
    ];
    said.into_iter()
        .filter_map(|(call, said)| Some((call, said.err()?)))
        .collect()
}

/// Calls that know no lineage.
fn meddle_without_lineage(world: &World, caller: &PeerName) -> Vec<Refusal> {
    let host = &world.beta.service;
    let relation = world.beta.relation(world.vm);
    let relationship = relation.id;
    let session = SessionRequest {
        relationship,
        lineage: relation.lineage,
        ancestors: Vec::new(),
        last_receipt: None,
        wall_clock: lifeboat_model::Timestamp::from_micros(0),
    };
    let replica = new_replica(world.vm);
    let change = ChangeSettings {
        relationship,
        settings: replica.settings,
        definition: replica.definition,
    };
    [
        host.begin_session(caller, session).map(|_| ()),
        host.change_settings(caller, change),
        host.remove(caller, Removal { relationship }),
        host.guest_status(caller, relationship).map(|_| ()),
    ]
    .into_iter()
    .filter_map(Result::err)
    .collect()
}

#[test]
fn a_host_without_an_entry_or_of_another_group_is_let_at_nothing() {
    let mut world = World::replicated(51);
    let lineage = world.beta.relation(world.vm).lineage.id;
    for group in [None, Some("others")] {
        if let Some(group) = group {
            let entry = entry(&world.beta, "mallory.test", group);
            world
                .beta
                .service
                .add_authorization_entry(&admin(), entry)
                .unwrap();
        } else {
            let host = &world.beta.service;
            assert!(host.introduce(&mallory()).unwrap().refusal.is_some());
            let vm = VmId::from_bytes([9; 16]);
            let refused = host.make_replica(&mallory(), new_replica(vm)).unwrap_err();
            assert_eq!(refused.code, RefusalCode::NotAuthorized);
        }
        let refused = meddle(&world, &mallory(), lineage);
        assert_eq!(refused.len(), 5, "{refused:?}");
        for (call, refused) in refused {
            assert_eq!(refused.code, RefusalCode::NotAuthorized, "{call}");
        }
        let refused = meddle_without_lineage(&world, &mallory());
        assert_eq!(refused.len(), 4, "{refused:?}");
        for refused in refused {
            assert_eq!(refused.code, RefusalCode::NotAuthorized);
        }
    }
    world.write(3);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn an_old_lineage_is_refused_before_its_body_is_read() {
    let mut world = World::replicated(52);
    let refused = meddle(&world, &alpha(), LineageId::from_bytes([1; 16]));
    assert_eq!(refused.len(), 5, "{refused:?}");
    for (call, refused) in refused {
        assert_eq!(refused.code, RefusalCode::OtherLineage, "{call}");
    }
    world.expect_replica(At::Beta);
}

#[test]
fn a_delta_that_is_cut_forged_or_of_other_disks_changes_nothing() {
    let mut world = World::replicated(53);
    let host = world.beta.service.clone();
    let relation = world.beta.relation(world.vm);
    let place = DeltaPlace {
        relationship: relation.id,
        lineage: relation.lineage.id,
        sequence: relation.last_sequence.unwrap().next().unwrap(),
        planned: false,
    };
    for body in [&b""[..], b"not a delta", &[0xff; 100_000]] {
        let mut body = body;
        host.put_delta(&alpha(), place.clone(), &mut body)
            .unwrap_err();
    }
    let other = BeginCopy {
        relationship: relation.id,
        lineage: relation.lineage.id,
        copy: Sequence::new(1000),
        kind: CopyKind::Resync,
        disks: vec![PeerDisk {
            id: "vda".parse().unwrap(),
            size: DiskSize::try_from(2 << 20).unwrap(),
        }],
    };
    let refused = host.begin_copy(&alpha(), other).unwrap_err();
    assert_eq!(refused.code, RefusalCode::Invalid);
    world.write(3);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn names_and_documents_from_a_peer_are_checked_before_anything_is_made() {
    let world = World::replicated(54);
    let host = &world.beta.service;
    let vms = host.vms(&admin()).unwrap().len();
    let vm = VmId::from_bytes([9; 16]);
    let mut messages = Vec::new();
    let mut large = new_replica(vm);
    large.settings["note"] = "x".repeat(100 << 10).into();
    messages.push(large);
    let mut large = new_replica(vm);
    large.definition["name"] = "x".repeat(100 << 10).into();
    messages.push(large);
    let mut climbing = new_replica(vm);
    climbing.definition["disks"][0]["id"] = "../../etc/passwd".into();
    messages.push(climbing);
    // A definition of another VM.
    let mut other = new_replica(vm);
    other.definition = new_replica(VmId::from_bytes([3; 16])).definition;
    messages.push(other);
    for message in messages {
        let refused = host.make_replica(&alpha(), message).unwrap_err();
        assert_eq!(refused.code, RefusalCode::Invalid, "{refused}");
    }
    // Somebody else's relationship cannot be taken up under another VM's id.
    let refused = host
        .make_replica(&alpha(), new_replica(world.vm))
        .unwrap_err();
    assert_eq!(refused.code, RefusalCode::InvalidState);
    assert_eq!(host.vms(&admin()).unwrap().len(), vms);
    let text =
        r#"{"relationship":"x","lineage":"y","copy":1,"disk":"../a","range":{"start":0,"end":1}}"#;
    assert!(serde_json::from_str::<ChunkPlace>(text).is_err());
}

#[test]
fn a_primary_cannot_destroy_the_points_of_its_replica() {
    let mut world = World::replicated(55);
    for _ in 0..3 {
        world.write(2);
        world.replicate(At::Alpha);
        world.ask(At::Beta, VmOperation::MakePoint).unwrap();
    }
    let points = world.beta.points(world.vm);
    assert!(points.len() >= 3);
    // No history any more, and a day of changes.
    let none = SettingsChange {
        recovery_history: Some(0),
        ..SettingsChange::default()
    };
    world
        .ask(At::Alpha, VmOperation::ModifySettings(none))
        .unwrap();
    for _ in 0..24 {
        world.alpha.clock.jump(3600);
        world.beta.clock.jump(3600);
        world.write(1);
        world.replicate(At::Alpha);
    }
    world
        .ask(At::Alpha, VmOperation::RemoveReplication)
        .unwrap();
    let kept = world.beta.points(world.vm);
    for point in points {
        assert!(
            kept.iter().any(|kept| kept.sequence == point.sequence),
            "point {} is gone",
            point.sequence
        );
    }
}

#[test]
fn a_clock_that_jumps_does_not_change_what_is_kept() {
    for jump in [3600 * 24 * 365 * 5, -3600 * 24 * 365 * 5] {
        let mut world = World::replicated(56);
        for _ in 0..2 {
            world.write(2);
            world.replicate(At::Alpha);
            world.ask(At::Beta, VmOperation::MakePoint).unwrap();
        }
        let points = world.beta.points(world.vm);
        world.beta.clock.jump(jump);
        world.write(2);
        world.replicate(At::Alpha);
        world.beta.clock.jump(-jump);
        world.write(2);
        world.replicate(At::Alpha);
        let kept = world.beta.points(world.vm);
        for point in points {
            assert!(kept.iter().any(|kept| kept.sequence == point.sequence));
        }
        world.expect_replica(At::Beta);
    }
}

#[test]
fn a_disk_that_is_full_on_either_side_costs_time_and_nothing_else() {
    let mut world = World::replicated(57);
    let (copied, _) = world.traffic();
    for at in [At::Beta, At::Alpha] {
        world.write(5);
        let before = world.alpha.relation(world.vm).last_sequence;
        world.site(at).gate.fill_disk();
        world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
        world.wait("the cycle fails", |world| {
            let health = world
                .alpha
                .service
                .health(&admin(), &lifeboat_service::api::VmRef::Id(world.vm))
                .unwrap();
            !health.reasons.is_empty() || world.alpha.relation(world.vm).last_sequence > before
        });
        world.site(at).gate.free_disk();
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    }
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}

/// What was heard of a delta is said again, as it was and as if it were of another lineage.
fn replay(world: &World, to: At, caller: &PeerName, old: &SentDelta) -> Vec<Refusal> {
    let site = world.site(to);
    let now = site.relation(world.vm);
    let place = |lineage, sequence| DeltaPlace {
        lineage,
        sequence,
        ..old.place.clone()
    };
    let next = now.last_sequence.and_then(Sequence::next);
    let places = [
        old.place.clone(),
        place(now.lineage.id, old.place.sequence),
        place(now.lineage.id, next.unwrap_or(old.place.sequence)),
    ];
    let said = places.map(|place| {
        let said = site
            .service
            .put_delta(caller, place, &mut old.body.as_slice());
        said.expect_err("a delta of another history was taken")
    });
    said.into_iter().collect()
}

#[test]
fn a_delta_and_a_receipt_of_a_history_that_was_left_change_nothing() {
    let mut world = World::replicated(58);
    world.write(3);
    world.replicate(At::Alpha);
    let old = lock(&world.hosts.deltas).last().cloned().unwrap();
    crate::reversal::lose_alpha(&mut world);
    crate::reversal::commit(&mut world);
    world.write_at(At::Beta, 3);
    for refused in replay(&world, At::Beta, &alpha(), &old) {
        assert_eq!(refused.code, RefusalCode::OtherLineage, "{refused}");
    }
    world.revive();
    world.reverse(At::Beta);
    world.write_at(At::Beta, 3);
    world.replicate(At::Beta);
    assert_eq!(world.alpha.state(world.vm).0, Replica);
    let before = world.alpha.points(world.vm).len();
    for caller in [alpha(), beta(), mallory()] {
        for at in [At::Alpha, At::Beta] {
            for refused in replay(&world, at, &caller, &old) {
                let code = refused.code;
                let is_expected =
                    matches!(code, RefusalCode::OtherLineage | RefusalCode::NotAuthorized);
                assert!(is_expected, "{refused}");
            }
        }
    }
    // The old primary's word of what it was given a receipt for leads nobody back.
    let session = SessionRequest {
        relationship: old.place.relationship,
        lineage: Lineage {
            counter: 1,
            id: old.place.lineage,
            forked_from: None,
        },
        ancestors: Vec::new(),
        last_receipt: Some(old.receipt),
        wall_clock: lifeboat_model::Timestamp::from_micros(0),
    };
    for at in [At::Alpha, At::Beta] {
        let caller = [beta(), alpha()][usize::from(at == At::Beta)].clone();
        let report = world
            .site(at)
            .service
            .begin_session(&caller, session.clone());
        assert!(report.unwrap().lineage.id != old.place.lineage);
    }
    assert_eq!(world.alpha.points(world.vm).len(), before);
    // A cycle that was asked for twice may have come since; nothing else has.
    let now = VmOperation::ReplicateNow;
    world.reach("both are at one moment", At::Beta, &now, |world| {
        let last = |site: &Site| site.relation(world.vm).last_sequence;
        last(&world.alpha) == last(&world.beta)
    });
    world.write_at(At::Beta, 3);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

#[test]
fn a_delta_that_is_sent_again_after_a_revert_gets_its_receipt_and_changes_nothing() {
    let mut world = World::replicated(59);
    world.write(3);
    world.replicate(At::Alpha);
    let older = lock(&world.hosts.deltas).first().cloned().unwrap();
    let newest = lock(&world.hosts.deltas).last().cloned().unwrap();
    world.stop(At::Alpha);
    crate::crashes::fail_over(&mut world);
    let revert = VmOperation::RevertFailover;
    world.reach("reverted", At::Beta, &revert, World::is_replicating);
    let host = world.beta.service.clone();
    let again = |delta: &SentDelta| {
        host.put_delta(&alpha(), delta.place.clone(), &mut delta.body.as_slice())
    };
    assert_eq!(again(&newest).unwrap(), newest.receipt);
    assert_eq!(again(&older).unwrap(), older.receipt);
    world.start(At::Alpha);
    world.write(3);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn a_replica_whose_disk_is_full_says_so_and_keeps_its_points() {
    let mut world = World::replicated(60);
    let point = world.make_point(At::Beta);
    let older = world.shadow.clone();
    let (copied, _) = world.traffic();
    let points = world.beta.points(world.vm);
    world.beta.gate.fill_disk();
    // A primary that does not stop writing.
    for _ in 0..3 {
        world.write(20);
        world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
        world.wait("the primary is told", |world| {
            let health = world
                .alpha
                .service
                .health(&admin(), &lifeboat_service::api::VmRef::Id(world.vm));
            let reasons = format!("{:?}", health.unwrap().reasons);
            reasons.contains("space")
        });
    }
    assert_eq!(world.beta.points(world.vm).len(), points.len());
    world.beta.gate.free_disk();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
    world.expect_point(point, &older);
    let kept = world.beta.points(world.vm);
    for point in points {
        assert!(kept.iter().any(|kept| kept.sequence == point.sequence));
    }
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}
