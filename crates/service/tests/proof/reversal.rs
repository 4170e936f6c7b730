//! Unplanned failovers to their end: commit, the old primary's return, and the way back.

use lifeboat_model::contract::{ReplicationState, ReturnCode};
use lifeboat_model::settings::SettingsChange;
use lifeboat_service::api::{Urgency, VmOperation};

use crate::gate::Death;
use crate::links::lock;
use crate::world::{At, World};

/// Alpha is dead, and the VM runs on beta with what was replicated last.
pub fn lose_alpha(world: &mut World) {
    let replicated = world.shadow.clone();
    // Lost with the host: a cycle that was wished for before takes none of it along.
    lock(&world.hosts.unheard).insert("put_delta");
    world.write(5);
    world.alpha.kill();
    lock(&world.hosts.unheard).remove("put_delta");
    world.shadow = replicated;
    let how = Urgency::Checked;
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach_alone("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.ask(At::Beta, VmOperation::StartVm).unwrap();
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
}

pub fn commit(world: &mut World) {
    let committed = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &committed, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
}

/// The old primary was told that it was left behind, and does not run its VM.
pub fn expect_fenced(world: &mut World) {
    world.wait("the old primary is fenced", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
    assert!(!world.alpha.view(world.vm).running);
    let refused = world.ask(At::Alpha, VmOperation::StartVm).unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState);
    assert!(refused.what.contains("taken over"), "{}", refused.what);
}

#[test]
fn an_old_primary_that_returns_is_fenced_and_told_why() {
    let mut world = World::replicated(21);
    lose_alpha(&mut world);
    world.revive();
    expect_fenced(&mut world);
    // And still after another restart.
    world.alpha.restart();
    expect_fenced(&mut world);
}

#[test]
fn a_primary_that_is_fenced_or_parted_does_not_ask_without_end() {
    let mut world = World::replicated(27);
    lose_alpha(&mut world);
    world.revive();
    expect_fenced(&mut world);
    // Once at the start, and then every half minute.
    assert!(world.calls_during(2000) < 20);

    let mut world = World::replicated(28);
    world.stop(At::Alpha);
    world.prepare(At::Alpha);
    let beta = world.beta.address.clone();
    world.network.disconnect(&beta);
    let how = Urgency::Forced;
    world
        .ask(At::Alpha, VmOperation::CancelPlannedFailover { how })
        .unwrap();
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.network.connect(&beta);
    world.wait("alpha knows", |world| {
        world.story().contains("from the same moment")
    });
    assert!(world.calls_during(2000) < 20);
}

#[test]
fn a_primary_whose_replica_refuses_changes_does_not_send_them_without_end() {
    let mut world = World::replicated(29);
    // What is left of the replica is no replica any more.
    world.beta.gate.die_at(Death::After(0));
    let _ = world.ask(At::Beta, VmOperation::RemoveReplication);
    world.revive();
    world.write(3);
    world.wait("the refusal is told", |world| {
        world.story().contains("no replica")
    });
    assert!(world.calls_during(2000) < 20);
}

#[test]
fn a_commit_under_a_writer_loses_none_of_its_bytes() {
    let mut world = World::replicated(22);
    lose_alpha(&mut world);
    world.write_at(At::Beta, 10);
    world.ask(At::Beta, VmOperation::CommitFailover).unwrap();
    // The guest never stops writing while the disks move.
    world.write_at(At::Beta, 40);
    commit(&mut world);
    world.write_at(At::Beta, 10);
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
    world.beta.restart();
    world.wait("the VM runs again", |world| {
        world.beta.view(world.vm).running
    });
    world.expect(At::Beta, &shadow);
}

#[test]
fn a_commit_of_a_vm_that_is_off_keeps_its_bytes() {
    let mut world = World::replicated(23);
    lose_alpha(&mut world);
    world.write_at(At::Beta, 10);
    world.stop(At::Beta);
    commit(&mut world);
    world.start(At::Beta);
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
}

#[test]
fn a_reversal_sends_what_the_maps_of_both_sides_name_and_the_way_back_too() {
    let mut world = World::replicated(24);
    lose_alpha(&mut world);
    world.write_at(At::Beta, 5);
    commit(&mut world);
    world.write_at(At::Beta, 5);
    world.revive();
    expect_fenced(&mut world);
    let (copied, _) = world.traffic();
    world.reverse(At::Beta);
    assert!(!world.says_that_disks_are_compared(At::Beta));
    world.write_at(At::Beta, 5);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
    assert!(
        world.traffic().0 - copied < 700 << 10,
        "nearly everything travelled"
    );
    // And back again, planned.
    world.stop(At::Beta);
    world.prepare(At::Beta);
    let how = Urgency::Checked;
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach("failed back", At::Alpha, &fail_over, |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Recovered
    });
    world.start(At::Alpha);
    let shadow = world.shadow.clone();
    world.expect(At::Alpha, &shadow);
    world.reverse(At::Alpha);
    world.write(5);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn a_reversal_commits_first_where_nobody_has() {
    let mut world = World::replicated(26);
    lose_alpha(&mut world);
    world.write_at(At::Beta, 5);
    world.revive();
    expect_fenced(&mut world);
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

#[test]
fn a_disk_that_is_not_replicated_stays_where_it_is_when_the_roles_are_swapped() {
    let mut world = World::new(25, &[("vda", 512 << 10), ("swap", 512 << 10)]);
    world.enable(SettingsChange {
        included_disks: Some(vec!["vda".to_owned()]),
        ..SettingsChange::default()
    });
    world.copy();
    world.write(3);
    world.replicate(At::Alpha);
    world.stop(At::Alpha);
    let disks = world.alpha.view(world.vm).disks;
    let path_of = |id: &str| {
        let found = disks.iter().find(|disk| disk.id.as_str() == id);
        found.unwrap().path.clone()
    };
    let swap = world.shadow.remove("swap").unwrap();
    world.prepare(At::Alpha);
    let how = Urgency::Checked;
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.start(At::Beta);
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
    world.write_at(At::Beta, 3);
    let (copied, _) = world.traffic();
    world.reverse(At::Beta);
    world.write_at(At::Beta, 3);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
    assert!(
        world.traffic().0 - copied < 256 << 10,
        "everything travelled"
    );
    assert_eq!(std::fs::read(path_of("swap")).unwrap(), swap);
    assert!(!path_of("vda").exists(), "its image is the replica's head");
}
