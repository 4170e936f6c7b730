//! Both hosts have gone on with a VM, and an operator names the one whose history is kept.

use lifeboat_model::contract::{ReplicationState, ReturnCode};
use lifeboat_service::api::{Operations as _, Survivor, Urgency, VmOperation};

use crate::site::admin;
use crate::world::{At, Bytes, Primary, World};

/// The VM runs on both hosts, and each writes its own history of it. Answers what beta has; the
/// world's shadow is what alpha has.
fn run_on_both(seed: u64) -> (World, Bytes) {
    let mut world = World::replicated(seed);
    let fail_over = VmOperation::InitiateFailover {
        point: None,
        how: Urgency::Forced,
    };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.start(At::Beta);
    let alphas = world.shadow.clone();
    world.write_at(At::Beta, 4);
    let betas = std::mem::replace(&mut world.shadow, alphas);
    world.write_at(At::Alpha, 4);
    world.wait("the old primary knows", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
    (world, betas)
}

/// Names the survivor, and waits until the host that was asked stands as it should then.
fn name(world: &mut World, at: At, survivor: Survivor, state: ReplicationState) {
    let named = VmOperation::NameSurvivor(survivor);
    world.ask(at, named).unwrap();
    world.wait("named", |world| world.site(at).state(world.vm).1 == state);
}

fn commit(world: &mut World) {
    let commit = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &commit, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
}

/// The survivor replicates again, and the other's disks become its replica.
fn replicate_again(world: &mut World, from: At) {
    let (copied, _) = world.traffic();
    world.reach("in step", from, &VmOperation::Resume, |world| {
        let resync = VmOperation::Resynchronize { at: None };
        let state = world.site(from).state(world.vm).1;
        if state == ReplicationState::WaitingToStartResynchronization {
            // Refused once it has begun.
            let _ = world.ask(from, resync);
        }
        world.is_replicating()
    });
    world.replicate(from);
    world.expect_replica(from.other());
    assert!(
        world.traffic().0 - copied < 1 << 20,
        "whole disks travelled instead of what differs"
    );
}

#[test]
fn an_old_primary_that_is_named_survivor_gets_the_reverted_replica_back() {
    let (mut world, _) = run_on_both(61);
    name(
        &mut world,
        At::Alpha,
        Survivor::ThisHost,
        ReplicationState::Critical,
    );
    world.stop(At::Beta);
    let refused = world.ask(At::Beta, VmOperation::CommitFailover);
    assert_eq!(refused.unwrap_err().code, ReturnCode::InvalidState);
    let revert = VmOperation::RevertFailover;
    world.reach("reverted", At::Beta, &revert, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Replicating
    });
    replicate_again(&mut world, At::Alpha);
    let points = world.beta.points(world.vm);
    let first = points.first().unwrap();
    assert!(!first.abandoned, "both histories share it: {first:?}");
}

#[test]
fn an_old_primary_that_is_named_survivor_gets_the_disks_of_a_committed_failover() {
    let (mut world, betas) = run_on_both(62);
    commit(&mut world);
    name(
        &mut world,
        At::Alpha,
        Survivor::ThisHost,
        ReplicationState::Critical,
    );
    world.wait("the other host stands down", |world| {
        world.beta.state(world.vm) == (Primary, ReplicationState::Critical)
    });
    world.expect(At::Beta, &betas);
    world.stop(At::Beta);
    let refused = world.ask(At::Beta, VmOperation::StartVm).unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState);
    replicate_again(&mut world, At::Alpha);
    let points = world.beta.points(world.vm);
    let lost = points.iter().find(|point| point.abandoned);
    assert!(lost.is_some(), "what only beta wrote is kept: {points:?}");
}

/// A planned failover that the primary gave up with force while it could not hear that the
/// replica had failed over: two histories, of which neither continues the other. The shadow is
/// what beta has.
fn part(seed: u64) -> World {
    let mut world = World::replicated(seed);
    world.stop(At::Alpha);
    world.prepare(At::Alpha);
    let beta = world.beta.address.clone();
    let alpha = world.alpha.address.clone();
    // Both ways: alpha must not hear of the failover before it goes on alone.
    world.network.disconnect(&alpha);
    world.network.disconnect(&beta);
    let fail_over = VmOperation::InitiateFailover {
        point: None,
        how: Urgency::Checked,
    };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    let alone = VmOperation::CancelPlannedFailover {
        how: Urgency::Forced,
    };
    world.reach("alpha goes on alone", At::Alpha, &alone, |world| {
        world.story().contains("went on here without")
    });
    world.start(At::Alpha);
    world.start(At::Beta);
    let before = world.shadow.clone();
    world.write_at(At::Alpha, 4);
    world.shadow = before;
    world.write_at(At::Beta, 4);
    let cut = world.ask(At::Alpha, VmOperation::NameSurvivor(Survivor::OtherHost));
    assert_eq!(cut.unwrap_err().code, ReturnCode::NotAvailable);
    world.network.connect(&alpha);
    world.network.connect(&beta);
    world
}

#[test]
fn a_host_that_yields_becomes_the_survivor_s_replica() {
    let mut world = part(63);
    world.wait("alpha knows", |world| {
        world
            .alpha
            .told()
            .iter()
            .any(|told| told.contains("split brain"))
    });
    let refused = world.ask(At::Alpha, VmOperation::Suspend).unwrap_err();
    assert!(refused.remedy.contains("failover survivor"), "{refused:?}");
    name(
        &mut world,
        At::Alpha,
        Survivor::OtherHost,
        ReplicationState::Critical,
    );
    world.stop(At::Alpha);
    commit(&mut world);
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

#[test]
fn a_committed_failover_that_is_named_survivor_gets_the_other_host_s_disks() {
    let mut world = part(65);
    commit(&mut world);
    name(
        &mut world,
        At::Beta,
        Survivor::ThisHost,
        ReplicationState::Committed,
    );
    world.stop(At::Alpha);
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
    let audit = world.beta.service.audit(&admin(), 100).unwrap();
    let row = audit.iter().find(|row| row.operation == "name_survivor");
    let row = row.expect("who did it is noted");
    assert_eq!(row.arguments["survivor"], "this_host", "{row:?}");
}

#[test]
fn a_committed_failover_that_yields_becomes_the_survivor_s_replica() {
    let mut world = part(66);
    world.shadow = world.read(At::Alpha, world.vm);
    commit(&mut world);
    name(
        &mut world,
        At::Beta,
        Survivor::OtherHost,
        ReplicationState::Critical,
    );
    world.stop(At::Beta);
    name(
        &mut world,
        At::Alpha,
        Survivor::ThisHost,
        ReplicationState::Critical,
    );
    replicate_again(&mut world, At::Alpha);
}

#[test]
fn nobody_is_named_survivor_while_replication_goes_on() {
    let world = World::replicated(64);
    for (at, survivor) in [
        (At::Alpha, Survivor::ThisHost),
        (At::Alpha, Survivor::OtherHost),
        (At::Beta, Survivor::ThisHost),
        (At::Beta, Survivor::OtherHost),
    ] {
        let refused = world.ask(at, VmOperation::NameSurvivor(survivor));
        assert_eq!(refused.unwrap_err().code, ReturnCode::InvalidState);
        assert!(world.is_replicating());
    }
}
