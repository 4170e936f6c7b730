//! A host that dies at chosen calls of each flow, and starts again.
//!
//! Each flow is run once to count the calls that change something on the disk or go to a peer;
//! then deaths are spread over all of them, before and after the call. Afterwards nothing is
//! wrong, nothing travelled that need not, and nothing is stuck.

use lifeboat_model::contract::ReplicationState;
use lifeboat_model::settings::SettingsChange;
use lifeboat_service::api::{Urgency, VmOperation};

use crate::gate::Death;
use crate::world::{At, World};

/// Deaths tried for each flow and side.
const DEATHS: u64 = 6;

/// Runs a flow with deaths of one host spread over its calls.
fn each_death(seed: u64, at: At, before: impl Fn(&mut World), flow: impl Fn(&mut World)) {
    let run = |death: Option<Death>| {
        let mut world = World::new(seed, &[("vda", 256 << 10)]);
        before(&mut world);
        let calls = world.site(at).gate.calls();
        if let Some(death) = death {
            world.site(at).gate.die_at(death);
        }
        flow(&mut world);
        world.site(at).gate.live_on();
        world.site(at).gate.calls().saturating_sub(calls)
    };
    let calls = run(None);
    assert!(calls > 0, "the flow changes nothing at {at:?}");
    for number in 0..DEATHS {
        // The last ones may be later than the flow needs; then nobody dies.
        let call = number * calls / DEATHS;
        run(Some(Death::Before(call)));
        run(Some(Death::After(call)));
    }
}

fn protect(world: &mut World) {
    world.enable(SettingsChange::default());
    world.copy();
}

fn cycle(world: &mut World) {
    let (copied, _) = world.traffic();
    world.replicate(At::Alpha);
    world.expect_replica_surely(At::Beta);
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}

fn fail_over_and_commit(world: &mut World) {
    let how = Urgency::Checked;
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        matches!(
            world.beta.state(world.vm).1,
            ReplicationState::Recovered | ReplicationState::Committed
        )
    });
    world.reach(
        "committed",
        At::Beta,
        &VmOperation::CommitFailover,
        |world| world.beta.state(world.vm).1 == ReplicationState::Committed,
    );
    world.start(At::Beta);
    let shadow = world.shadow.clone();
    world.expect_surely(At::Beta, &shadow);
}

fn reverse(world: &mut World) {
    let (copied, _) = world.traffic();
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica_surely(At::Alpha);
    assert!(
        world.traffic().0 - copied < 256 << 10,
        "everything travelled"
    );
}

/// A VM that is off with everything replicated.
fn ready_to_fail_over(world: &mut World) {
    protect(world);
    world.write(3);
    world.replicate(At::Alpha);
    world.stop(At::Alpha);
}

fn ready_to_reverse(world: &mut World) {
    ready_to_fail_over(world);
    fail_over_and_commit(world);
    world.write_at(At::Beta, 3);
    world.wait("the old primary knows", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
}

#[test]
fn a_primary_that_dies_during_the_first_copy_goes_on_with_it() {
    each_death(
        41,
        At::Alpha,
        |_| {},
        |world| {
            protect(world);
            world.expect_replica_surely(At::Beta);
        },
    );
}

#[test]
fn a_replica_that_dies_during_the_first_copy_goes_on_with_it() {
    each_death(
        42,
        At::Beta,
        |_| {},
        |world| {
            protect(world);
            world.expect_replica_surely(At::Beta);
        },
    );
}

#[test]
fn a_primary_that_dies_during_a_cycle_sends_only_changes_afterwards() {
    let before = |world: &mut World| {
        protect(world);
        world.write(3);
    };
    each_death(43, At::Alpha, before, cycle);
}

#[test]
fn a_replica_that_dies_during_a_cycle_is_sent_only_changes_afterwards() {
    let before = |world: &mut World| {
        protect(world);
        world.write(3);
    };
    each_death(44, At::Beta, before, cycle);
}

#[test]
fn a_replica_that_dies_during_a_failover_or_a_commit_brings_it_to_its_end() {
    each_death(45, At::Beta, ready_to_fail_over, fail_over_and_commit);
}

#[test]
fn a_survivor_that_dies_during_a_reversal_brings_it_to_its_end() {
    each_death(46, At::Beta, ready_to_reverse, reverse);
}

#[test]
fn an_old_primary_that_dies_during_a_reversal_brings_it_to_its_end() {
    each_death(47, At::Alpha, ready_to_reverse, reverse);
}
