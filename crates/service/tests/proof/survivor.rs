//! Both hosts have gone on with a VM, and an operator names the one whose history is kept.

use lifeboat_model::contract::{ReplicationState, ReturnCode};
use lifeboat_service::api::{Survivor, Urgency, VmOperation};

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

/// Named until the host has heard enough of the other to take the name.
fn name(world: &mut World, at: At, survivor: Survivor, state: ReplicationState) {
    let named = VmOperation::NameSurvivor(survivor);
    world.ask(at, named).unwrap();
    world.wait("named", |world| world.site(at).state(world.vm).1 == state);
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
    let commit = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &commit, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
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

#[test]
fn a_host_that_yields_becomes_the_survivor_s_replica() {
    let mut world = World::replicated(63);
    world.stop(At::Alpha);
    world.prepare(At::Alpha);
    let beta = world.beta.address.clone();
    let alpha = world.alpha.address.clone();
    world.network.disconnect(&alpha);
    let fail_over = VmOperation::InitiateFailover {
        point: None,
        how: Urgency::Checked,
    };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.network.disconnect(&beta);
    let alone = VmOperation::CancelPlannedFailover {
        how: Urgency::Forced,
    };
    world.reach("alpha goes on alone", At::Alpha, &alone, |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
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
    let commit = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &commit, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
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
