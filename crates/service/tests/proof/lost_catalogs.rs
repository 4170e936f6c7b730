//! Catalogs that are lost without a backup, and made again from the stores.

use lifeboat_model::contract::{InitialReplicationType, ReplicationState};
use lifeboat_model::settings::SettingsChange;
use lifeboat_model::{RelationshipId, Sequence, VmId};
use lifeboat_peer::testing::Fault;
use lifeboat_service::api::{
    EnableReplication, NewVm, NewVmDisk, Operations as _, Urgency, VmOperation, VmRef,
};

use crate::gate::Death;
use crate::reversal::commit;
use crate::site::admin;
use crate::world::{At, Bytes, Primary, World, let_in};

/// Bytes of copies that a comparison of a few changed blocks stays below; the disks have more.
const FEW: u64 = 512 << 10;

/// Beta loses its catalog, and its operator lets alpha in again.
fn lose_betas_catalog(world: &mut World) {
    let rebuilt = world.beta.lose_catalog();
    assert_eq!(rebuilt.left_out, []);
    assert_eq!(rebuilt.vms.len(), 1);
    assert_eq!(rebuilt.vms[0].assumed, [] as [&str; 0]);
    let_in(&world.beta, world.alpha.name);
}

/// A recovery point that is not the newest moment, and what it holds.
fn older_point(world: &mut World) -> (Sequence, Bytes) {
    let point = world.make_point(At::Beta);
    let bytes = world.shadow.clone();
    world.write(5);
    world.replicate(At::Alpha);
    (point, bytes)
}

fn fail_over(world: &mut World, point: Option<Sequence>, bytes: &Bytes) {
    let how = Urgency::Forced;
    let fail_over = VmOperation::InitiateFailover { point, how };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.start(At::Beta);
    world.expect(At::Beta, bytes);
}

#[test]
fn a_primary_goes_on_with_a_replica_that_is_known_again_and_no_disk_travels() {
    let mut world = World::replicated(101);
    let change = SettingsChange {
        recovery_history: Some(5),
        ..SettingsChange::default()
    };
    world
        .ask(At::Alpha, VmOperation::ModifySettings(change))
        .unwrap();
    let (point, bytes) = older_point(&mut world);
    let before = (world.beta.points(world.vm), world.beta.relation(world.vm));
    let (copied, _) = world.traffic();
    for _ in 0..2 {
        // Acknowledged, and maybe not applied.
        world.write(3);
        world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
        lose_betas_catalog(&mut world);
        world.write(3);
        let (_, sent) = world.traffic();
        world.replicate(At::Alpha);
        assert!(
            world.traffic().1 - sent < 6 * 2 * 2 * (24 << 10),
            "more than the changes travelled"
        );
        world.expect_replica(At::Beta);
    }
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
    let (points, relation) = before;
    let kept = world.beta.points(world.vm);
    for point in &points {
        assert!(kept.iter().any(|kept| kept.sequence == point.sequence));
    }
    world.expect_point(point, &bytes);
    let after = world.beta.relation(world.vm);
    assert_eq!(after.settings, relation.settings);
    assert_eq!(after.settings.recovery_history().points(), 5);
    assert_eq!(after.primary_host_system, relation.primary_host_system);
    assert_eq!(after.trust_group, relation.trust_group);
    assert_eq!(after.storage_location, relation.storage_location);
    assert_eq!(world.beta.view(world.vm).name, "web");
}

#[test]
fn whoever_is_not_let_in_again_does_not_get_at_a_replica_that_is_known_again() {
    let mut world = World::replicated(102);
    world.beta.lose_catalog();
    let points = world.beta.points(world.vm);
    world.write(3);
    world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
    world.wait("the primary is refused", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
    assert_eq!(world.beta.points(world.vm), points);
    let_in(&world.beta, world.alpha.name);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn a_first_copy_under_way_goes_on_with_the_pieces_that_are_missing() {
    let mut world = World::new(103, &[("vda", 200 << 20)]);
    world.enable(SettingsChange::default());
    let beta = world.beta.address.clone();
    // The copy begins with one call, and each piece is one.
    world.network.plan_success(&beta);
    world.network.plan_success(&beta);
    world.network.plan(&beta, Fault::LoseAnswer);
    let start = VmOperation::StartReplication {
        kind: InitialReplicationType::NetworkTransfer,
        at: None,
    };
    world.ask(At::Alpha, start).unwrap();
    world.wait("the call is lost", |world| world.network.is_exhausted());
    lose_betas_catalog(&mut world);
    world.wait("the first copy", World::is_replicating);
    world.write(3);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn with_both_catalogs_lost_an_older_point_is_started_kept_and_protected_anew() {
    let mut world = World::replicated(104);
    let (point, bytes) = older_point(&mut world);
    world.alpha.kill();
    let rebuilt = world.beta.lose_catalog();
    assert_eq!(rebuilt.vms.len(), 1);
    // Alpha is not there to be asked.
    let how = Urgency::Checked;
    let operation = VmOperation::InitiateFailover {
        point: Some(point),
        how,
    };
    world.beta.ask(world.vm, operation).unwrap();
    world.wait_for("failed over", |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.beta.ask(world.vm, VmOperation::StartVm).unwrap();
    world.expect(At::Beta, &bytes);
    world.shadow = bytes;
    world.write_at(At::Beta, 5);
    world
        .beta
        .ask(world.vm, VmOperation::CommitFailover)
        .unwrap();
    world.wait_for("committed", |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);

    world.alpha.begin_anew();
    let_in(&world.alpha, world.beta.name);
    world.ask(At::Beta, VmOperation::RemoveReplication).unwrap();
    let enable = VmOperation::EnableReplication(EnableReplication {
        recovery_connection_point: "alpha.test:8473".to_owned(),
        recovery_host_name: None,
        kept_replica: None,
        settings: SettingsChange {
            replication_interval: Some(3600),
            ..SettingsChange::default()
        },
    });
    world.ask(At::Beta, enable).unwrap();
    let start = VmOperation::StartReplication {
        kind: InitialReplicationType::NetworkTransfer,
        at: None,
    };
    world.reach("the first copy", At::Beta, &start, World::is_replicating);
    world.write_at(At::Beta, 5);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

#[test]
fn a_failed_over_vm_keeps_what_it_wrote_and_can_be_reverted_or_committed() {
    let mut world = World::replicated(105);
    let (point, bytes) = older_point(&mut world);
    let newest = world.shadow.clone();
    world.stop(At::Alpha);
    let (copied, _) = world.traffic();
    for (point, bytes) in [(None, &newest), (Some(point), &bytes)] {
        fail_over(&mut world, point, bytes);
        world.shadow.clone_from(bytes);
        world.write_at(At::Beta, 4);
        let written = world.shadow.clone();
        lose_betas_catalog(&mut world);
        assert_eq!(world.beta.state(world.vm).1, ReplicationState::Recovered);
        assert!(!world.beta.view(world.vm).running);
        world.start(At::Beta);
        world.expect(At::Beta, &written);
        world.stop(At::Beta);
        let revert = VmOperation::RevertFailover;
        world.reach("reverted", At::Beta, &revert, |world| {
            world.beta.state(world.vm).1 == ReplicationState::Replicating
        });
        world.shadow.clone_from(&newest);
        world.wait("the primary goes on", World::is_replicating);
        world.expect_replica(At::Beta);
    }
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");

    fail_over(&mut world, Some(point), &bytes);
    world.shadow = bytes;
    world.write_at(At::Beta, 4);
    lose_betas_catalog(&mut world);
    commit(&mut world);
    let shadow = world.shadow.clone();
    world.start(At::Beta);
    world.expect(At::Beta, &shadow);
}

#[test]
fn a_commit_that_is_cut_anywhere_is_completed_or_can_be_asked_for_again() {
    let mut ended_by_itself = false;
    let mut call = 0;
    let mut completed = 0;
    while !ended_by_itself {
        let mut world = World::replicated(106);
        let (point, bytes) = older_point(&mut world);
        world.stop(At::Alpha);
        fail_over(&mut world, Some(point), &bytes);
        world.shadow = bytes;
        world.write_at(At::Beta, 4);
        world.stop(At::Beta);
        world.beta.gate.die_at(Death::After(call));
        // Its host may die before it answers.
        let _ = world.beta.ask(world.vm, VmOperation::CommitFailover);
        world.wait_for("committed, or dead", |world| {
            world.beta.gate.is_killed()
                || world.beta.state(world.vm).1 == ReplicationState::Committed
        });
        ended_by_itself = !world.beta.gate.is_killed();
        lose_betas_catalog(&mut world);
        let state = world.beta.state(world.vm).1;
        if state == ReplicationState::Committed {
            completed += 1;
        } else {
            assert_eq!(state, ReplicationState::Recovered);
        }
        commit(&mut world);
        world.start(At::Beta);
        let shadow = world.shadow.clone();
        world.expect(At::Beta, &shadow);
        call += 2;
    }
    assert!(
        completed > 2,
        "no commit was cut after its point of no return"
    );
    assert!(call > 10, "no commit was cut");
}

#[test]
fn a_survivor_goes_on_by_comparison_with_what_the_other_host_has() {
    let mut world = World::replicated(107);
    let newest = world.shadow.clone();
    world.stop(At::Alpha);
    fail_over(&mut world, None, &newest);
    world.write_at(At::Beta, 4);
    commit(&mut world);
    let (copied, _) = world.traffic();
    // Before it has asked the old primary to become the replica, and after.
    for _ in 0..2 {
        lose_betas_catalog(&mut world);
        assert_eq!(world.beta.state(world.vm).1, ReplicationState::Committed);
        world.start(At::Beta);
        world.write_at(At::Beta, 4);
        world.reverse(At::Beta);
        assert!(world.says_that_disks_are_compared(At::Beta));
        world.replicate(At::Beta);
        world.expect_replica(At::Alpha);
    }
    assert!(
        world.traffic().0 - copied < 2 * FEW,
        "nearly everything travelled"
    );
    // The former primary, which keeps the replica now, loses its catalog.
    let point = world.make_point(At::Alpha);
    let (copied, _) = world.traffic();
    let rebuilt = world.alpha.lose_catalog();
    assert_eq!(rebuilt.vms[0].assumed, [] as [&str; 0]);
    let_in(&world.alpha, world.beta.name);
    world.write_at(At::Beta, 4);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
    let points = world.alpha.points(world.vm);
    assert!(points.iter().any(|kept| kept.sequence == point));
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}

#[test]
fn a_vm_that_is_not_replicated_any_more_is_a_vm_again() {
    let mut world = World::replicated(108);
    world.ask(At::Beta, VmOperation::RemoveReplication).unwrap();
    world.wait("it is noted", |world| {
        !world.beta.view(world.vm).running && noted_relationships(world) == 0
    });
    let rebuilt = world.beta.lose_catalog();
    assert!(rebuilt.vms[0].relationship.is_none());
    assert_ne!(world.beta.state(world.vm).0, Primary);
    let shadow = world.shadow.clone();
    world.start(At::Beta);
    world.expect(At::Beta, &shadow);
}

/// How many relationships the note beside beta's store has.
fn noted_relationships(world: &World) -> usize {
    let note = world
        .beta
        .root()
        .join("replicas")
        .join(world.vm.to_string());
    let note = std::fs::read_to_string(note.join("note")).unwrap();
    note.matches("\"peer_host\"").count()
}

#[test]
fn a_store_that_knows_nothing_but_itself_can_do_all_but_receive() {
    let mut world = World::replicated(109);
    let (point, bytes) = older_point(&mut world);
    world.alpha.kill();
    let store = world
        .beta
        .root()
        .join("replicas")
        .join(world.vm.to_string());
    std::fs::remove_file(store.join("note")).unwrap();
    let rebuilt = world.beta.lose_catalog();
    let [vm] = &rebuilt.vms[..] else {
        panic!("{rebuilt:?}")
    };
    assert_eq!(vm.assumed.len(), 3, "{:?}", vm.assumed);
    assert_eq!(vm.name, format!("vm-{}", &world.vm.to_string()[..8]));
    let relationship = vm.relationship.as_ref().unwrap();
    assert!(relationship.other_side.is_none());
    // Nothing of it goes.
    let points = world.beta.points(world.vm);
    assert!(points.iter().any(|kept| kept.sequence == point));
    world.expect_point(point, &bytes);
    let newest = world.shadow.clone();
    let bytes_of_test = world.test(At::Beta);
    crate::world::expect_same(&bytes_of_test, &newest);
    let health = |vm: VmId| world.beta.service.health(&admin(), &VmRef::Id(vm));
    health(world.vm).unwrap();
    let how = Urgency::Checked;
    let operation = VmOperation::InitiateFailover {
        point: Some(point),
        how,
    };
    world.beta.ask(world.vm, operation).unwrap();
    world.wait_for("failed over", |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world
        .beta
        .ask(world.vm, VmOperation::CommitFailover)
        .unwrap();
    world.wait_for("committed", |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    world
        .beta
        .ask(world.vm, VmOperation::RemoveReplication)
        .unwrap();
    world.beta.ask(world.vm, VmOperation::StartVm).unwrap();
    world.expect(At::Beta, &bytes);
}

/// Alpha's catalog is lost, and the VM is defined again on its images.
fn define_again_on_alpha(world: &World, id: Option<VmId>) -> VmId {
    let folder = world.alpha.root().join("state/vms");
    let folder = folder.join(world.vm.to_string());
    let disks = world.shadow.keys().map(|disk| NewVmDisk {
        id: disk.parse().unwrap(),
        size: None,
        image: Some(folder.join(format!("{disk}.raw"))),
    });
    let new = NewVm {
        id,
        name: "web".to_owned(),
        memory_mib: 64,
        processors: 1,
        disks: disks.collect(),
    };
    world.alpha.service.define_vm(&admin(), new).unwrap().id
}

fn take_up(relationship: RelationshipId) -> VmOperation {
    VmOperation::EnableReplication(EnableReplication {
        recovery_connection_point: "beta.test:8473".to_owned(),
        recovery_host_name: None,
        kept_replica: Some(relationship),
        settings: SettingsChange {
            replication_interval: Some(3600),
            recovery_history: Some(7),
            ..SettingsChange::default()
        },
    })
}

#[test]
fn a_primary_whose_catalog_is_lost_takes_the_kept_replica_up_by_comparison() {
    let mut world = World::replicated(110);
    let (point, bytes) = older_point(&mut world);
    let before = world.beta.relation(world.vm);
    // Numbers that its peer has never heard of are used up there.
    let beta = world.beta.address.clone();
    world.network.disconnect(&beta);
    world.write(4);
    world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
    world.wait_for("it does not get through", |world| {
        let health = world.alpha.service.health(&admin(), &VmRef::Id(world.vm));
        !health.unwrap().reasons.is_empty()
    });
    world.alpha.begin_anew();
    world.network.connect(&beta);
    assert_eq!(define_again_on_alpha(&world, Some(world.vm)), world.vm);
    world.start(At::Alpha);
    let shadow = world.shadow.clone();
    world.expect(At::Alpha, &shadow);
    world.write(4);
    let (copied, _) = world.traffic();
    world.ask(At::Alpha, take_up(before.id)).unwrap();
    // Nothing is overwritten before somebody asks for it.
    world.alpha.restart();
    world.start(At::Alpha);
    assert_eq!(world.beta.points(world.vm).len(), 2);
    let resync = VmOperation::Resynchronize { at: None };
    world.reach("compared", At::Alpha, &resync, World::is_replicating);
    for _ in 0..2 {
        world.write(4);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    }
    assert!(
        world.traffic().0 - copied < FEW,
        "nearly everything travelled"
    );
    world.expect_point(point, &bytes);
    let after = world.beta.relation(world.vm);
    assert_eq!(after.id, before.id);
    assert_eq!(after.settings.recovery_history().points(), 7);
    assert_eq!(
        after.lineage.forked_from.map(|(left, _)| left),
        Some(before.lineage.id)
    );
    // And what failed over from it is reversed as any other.
    let_in(&world.alpha, world.beta.name);
    let newest = world.shadow.clone();
    world.stop(At::Alpha);
    fail_over(&mut world, None, &newest);
    world.write_at(At::Beta, 4);
    commit(&mut world);
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

#[test]
fn no_replica_is_taken_up_that_is_another_vm_s_or_has_taken_over() {
    let mut world = World::replicated(111);
    let relationship = world.beta.relation(world.vm).id;
    let points = world.beta.points(world.vm);
    world.alpha.kill();
    world.alpha.begin_anew();
    let other = define_again_on_alpha(&world, None);
    assert_ne!(other, world.vm);
    let refused = world.alpha.ask(other, take_up(relationship)).unwrap_err();
    assert!(refused.what.contains("of another VM"), "{}", refused.what);
    let nobody = RelationshipId::from_bytes([9; 16]);
    let refused = world.alpha.ask(other, take_up(nobody)).unwrap_err();
    assert!(refused.what.contains("no such"), "{}", refused.what);
    world
        .alpha
        .service
        .undefine_vm(&admin(), &VmRef::Id(other))
        .unwrap();

    define_again_on_alpha(&world, Some(world.vm));
    let folder = world
        .alpha
        .root()
        .join("state/vms")
        .join(world.vm.to_string());
    let again = NewVm {
        id: Some(world.vm),
        name: "web again".to_owned(),
        memory_mib: 64,
        processors: 1,
        disks: vec![NewVmDisk {
            id: "vda".parse().unwrap(),
            size: None,
            image: Some(folder.join("vda.raw")),
        }],
    };
    let refused = world.alpha.service.define_vm(&admin(), again).unwrap_err();
    assert!(refused.what.contains("already"), "{}", refused.what);
    let newest = world.shadow.clone();
    fail_over(&mut world, None, &newest);
    let refused = world
        .alpha
        .ask(world.vm, take_up(relationship))
        .unwrap_err();
    assert!(
        refused.what.contains("taken the VM over"),
        "{}",
        refused.what
    );
    assert_eq!(world.beta.points(world.vm).len(), points.len());
    assert_eq!(world.alpha.state(world.vm).1, ReplicationState::Disabled);
    world.expect(At::Beta, &newest);
}
