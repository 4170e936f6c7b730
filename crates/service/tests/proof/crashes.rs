//! A host that dies at chosen calls of each flow, and starts again.
//!
//! Each flow is run once to count the calls that change something on the disk or go to a peer;
//! then deaths are spread over all of them, before and after the call. Afterwards nothing is
//! wrong, nothing travelled that need not, and nothing is stuck.

use lifeboat_model::contract::ReplicationState;
use lifeboat_model::settings::SettingsChange;
use lifeboat_service::api::{Urgency, VmOperation};

use crate::deaths::Deaths;
use crate::world::{At, World};

/// The size of the only disk: what is less did not travel as a whole.
pub const DISK: u64 = 256 << 10;

pub fn protect(world: &mut World) {
    world.enable(SettingsChange::default());
    world.copy();
}

/// A VM whose last writes are not replicated yet.
pub fn ready_to_replicate(world: &mut World) {
    protect(world);
    world.write(3);
}

/// A VM that is off with everything replicated.
pub fn ready_to_fail_over(world: &mut World) {
    ready_to_replicate(world);
    world.replicate(At::Alpha);
    world.stop(At::Alpha);
}

fn ready_to_reverse(world: &mut World) {
    ready_to_fail_over(world);
    fail_over(world);
    commit(world);
    world.write_at(At::Beta, 3);
    world.wait("the old primary knows", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
}

fn first_copy(world: &mut World) {
    protect(world);
    world.expect_replica_surely(At::Beta);
}

pub fn cycle(world: &mut World) {
    let (copied, _) = world.traffic();
    world.replicate(At::Alpha);
    world.expect_replica_surely(At::Beta);
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}

pub fn fail_over(world: &mut World) {
    let how = Urgency::Checked;
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        matches!(
            world.beta.state(world.vm).1,
            ReplicationState::Recovered | ReplicationState::Committed
        )
    });
}

fn commit(world: &mut World) {
    let commit = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &commit, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    let shadow = world.shadow.clone();
    world.expect_surely(At::Beta, &shadow);
}

fn fail_over_and_commit(world: &mut World) {
    fail_over(world);
    commit(world);
}

fn reverse(world: &mut World) {
    let (copied, _) = world.traffic();
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica_surely(At::Alpha);
    assert!(world.traffic().0 - copied < DISK, "everything travelled");
}

const fn deaths(seed: u64, at: At) -> Deaths {
    Deaths { seed, at, most: 12 }
}

#[test]
fn a_primary_that_dies_during_the_first_copy_goes_on_with_it() {
    deaths(41, At::Alpha).each(|_| {}, first_copy);
}

#[test]
fn a_replica_that_dies_during_the_first_copy_goes_on_with_it() {
    deaths(42, At::Beta).each(|_| {}, first_copy);
}

#[test]
fn a_primary_that_dies_during_a_cycle_sends_only_changes_afterwards() {
    deaths(43, At::Alpha).each(ready_to_replicate, cycle);
}

#[test]
fn a_replica_that_dies_during_a_cycle_is_sent_only_changes_afterwards() {
    deaths(44, At::Beta).each(ready_to_replicate, cycle);
}

#[test]
fn a_replica_that_dies_during_a_failover_or_a_commit_brings_it_to_its_end() {
    deaths(45, At::Beta).each(ready_to_fail_over, fail_over_and_commit);
}

#[test]
fn a_survivor_that_dies_during_a_reversal_brings_it_to_its_end() {
    deaths(46, At::Beta).each(ready_to_reverse, reverse);
}

#[test]
fn an_old_primary_that_dies_during_a_reversal_brings_it_to_its_end() {
    deaths(47, At::Alpha).each(ready_to_reverse, reverse);
}
