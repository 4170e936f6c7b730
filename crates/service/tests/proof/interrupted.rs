//! What operators ask for while a host dies at any call of it: asking again brings it to its end.

use lifeboat_model::contract::ReplicationState;
use lifeboat_service::api::{Urgency, VmOperation};

use crate::crashes::{DISK, cycle, fail_over, protect, ready_to_fail_over, ready_to_replicate};
use crate::deaths::Deaths;
use crate::world::{At, Primary, World};

const fn deaths(seed: u64, at: At) -> Deaths {
    Deaths { seed, at, most: 8 }
}

/// A VM that is off, with writes that are not replicated yet.
fn ready_to_prepare(world: &mut World) {
    ready_to_replicate(world);
    world.stop(At::Alpha);
}

fn prepare(world: &mut World) {
    let (copied, _) = world.traffic();
    world.prepare(At::Alpha);
    fail_over(world);
    let shadow = world.shadow.clone();
    world.expect_surely(At::Beta, &shadow);
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}

fn prepared(world: &mut World) {
    ready_to_prepare(world);
    world.prepare(At::Alpha);
}

fn cancel(world: &mut World) {
    let how = Urgency::Checked;
    let cancel = VmOperation::CancelPlannedFailover { how };
    world.reach("granted", At::Alpha, &cancel, |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Replicating
    });
    world.start(At::Alpha);
    world.write_surely(At::Alpha, 3);
    cycle(world);
}

/// A failover whose VM has written, and is off.
fn ready_to_revert(world: &mut World) {
    ready_to_fail_over(world);
    fail_over(world);
    world.start(At::Beta);
    let replicated = world.shadow.clone();
    world.write_at(At::Beta, 3);
    world.shadow = replicated;
    world.stop(At::Beta);
}

fn revert(world: &mut World) {
    let revert = VmOperation::RevertFailover;
    world.reach("reverted", At::Beta, &revert, World::is_replicating);
    world.start(At::Alpha);
    world.write_surely(At::Alpha, 3);
    cycle(world);
}

fn test(world: &mut World) {
    let test = VmOperation::TestFailover { point: None };
    world.reach("tested", At::Beta, &test, |world| {
        world.beta.view(world.vm).test_replica.is_some()
    });
    let before = world.shadow.clone();
    world.write_surely(At::Alpha, 3);
    world.replicate(At::Alpha);
    world.settle();
    world.expect_test(&before);
    end_test(world);
}

/// A test whose VM runs.
fn tested(world: &mut World) {
    protect(world);
    world
        .ask(At::Beta, VmOperation::TestFailover { point: None })
        .unwrap();
    let shadow = world.shadow.clone();
    world.expect_test(&shadow);
}

fn end_test(world: &mut World) {
    let end = VmOperation::EndTestFailover;
    world.reach("the test is ended", At::Beta, &end, |world| {
        world.beta.view(world.vm).test_replica.is_none()
    });
    let left = std::fs::read_dir(world.beta.root().join("state/tests")).unwrap();
    assert_eq!(left.count(), 0, "files of a test are left");
    world.write_surely(At::Alpha, 3);
    cycle(world);
}

fn remove(world: &mut World, at: At) {
    let remove = VmOperation::RemoveReplication;
    world.reach("removed", at, &remove, |world| {
        world.site(at).state(world.vm).1 == ReplicationState::Disabled
    });
}

/// Each side keeps a VM with everything that was replicated, whichever is removed first.
fn remove_both(world: &mut World, first: At) {
    let shadow = world.shadow.clone();
    remove(world, first);
    world.expect_surely(first, &shadow);
    remove(world, first.other());
    world.expect_surely(first.other(), &shadow);
}

fn pause(world: &mut World, at: At) {
    world.reach("paused", at, &VmOperation::Suspend, |world| {
        world.site(at).state(world.vm).1 == ReplicationState::Suspended
    });
    world.write_surely(At::Alpha, 3);
    world.reach("resumed", at, &VmOperation::Resume, World::is_replicating);
    cycle(world);
}

fn compare(world: &mut World) {
    let (copied, _) = world.traffic();
    let is_primary = |world: &World| world.alpha.state(world.vm).0 == Primary;
    assert!(is_primary(world));
    world.reach("paused", At::Alpha, &VmOperation::Suspend, |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Suspended
    });
    let again = VmOperation::Resynchronize { at: None };
    world.reach("compared", At::Alpha, &again, World::is_replicating);
    world.replicate(At::Alpha);
    world.expect_replica_surely(At::Beta);
    assert!(world.traffic().0 - copied < DISK, "everything travelled");
}

#[test]
fn a_primary_that_dies_during_a_planned_failover_brings_it_to_its_end() {
    deaths(61, At::Alpha).each(ready_to_prepare, prepare);
}

#[test]
fn a_replica_that_dies_during_a_planned_failover_brings_it_to_its_end() {
    deaths(62, At::Beta).each(ready_to_prepare, prepare);
}

#[test]
fn a_primary_that_dies_while_it_cancels_a_planned_failover_goes_on() {
    deaths(63, At::Alpha).each(prepared, cancel);
}

#[test]
fn a_replica_that_dies_while_a_planned_failover_is_cancelled_goes_on() {
    deaths(64, At::Beta).each(prepared, cancel);
}

#[test]
fn a_replica_that_dies_during_a_revert_follows_its_primary_again() {
    deaths(65, At::Beta).each(ready_to_revert, revert);
}

#[test]
fn a_primary_that_dies_while_its_replica_reverts_goes_on() {
    deaths(66, At::Alpha).each(ready_to_revert, revert);
}

#[test]
fn a_replica_that_dies_while_a_test_failover_is_made_keeps_to_its_moment() {
    deaths(67, At::Beta).each(protect, test);
}

#[test]
fn a_replica_that_dies_while_a_test_failover_is_ended_ends_it() {
    deaths(68, At::Beta).each(tested, end_test);
}

#[test]
fn a_primary_that_dies_while_it_is_removed_keeps_its_vm() {
    let deaths = Deaths {
        // It makes few calls, and a removal whose worker has died waits for it.
        most: 3,
        ..deaths(69, At::Alpha)
    };
    deaths.each(protect, |world| remove_both(world, At::Alpha));
}

#[test]
fn a_replica_that_dies_while_it_is_removed_keeps_the_vm() {
    deaths(70, At::Beta).each(protect, |world| remove_both(world, At::Beta));
}

#[test]
fn a_primary_that_dies_during_its_pause_loses_nothing() {
    deaths(71, At::Alpha).each(ready_to_replicate, |world| pause(world, At::Alpha));
}

#[test]
fn a_replica_that_dies_during_its_pause_loses_nothing() {
    deaths(72, At::Beta).each(ready_to_replicate, |world| pause(world, At::Beta));
}

#[test]
fn a_primary_that_dies_during_a_comparison_sends_what_differs() {
    deaths(73, At::Alpha).each(ready_to_replicate, compare);
}

#[test]
fn a_replica_that_dies_during_a_comparison_is_sent_what_differs() {
    deaths(74, At::Beta).each(ready_to_replicate, compare);
}
