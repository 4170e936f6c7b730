//! Hosts that were booted: what was changed there is not known any more, and is compared.

use lifeboat_model::contract::ReplicationState;
use lifeboat_model::settings::SettingsChange;
use lifeboat_service::api::{Operations as _, VmOperation, VmRef};

use crate::gate::Death;
use crate::reversal::{commit, expect_fenced, lose_alpha};
use crate::site::admin;
use crate::world::{At, World};

/// Less than this travels where only what differs does; the disks have 1.5 MiB.
const LITTLE: u64 = 512 << 10;

/// What alpha went through when it went down with its VM running.
enum Alpha {
    Killed,
    Booted,
}

/// A VM that was failed over to beta and committed there; alpha is back.
fn committed(seed: u64, alpha: &Alpha) -> World {
    let mut world = World::replicated(seed);
    lose_alpha(&mut world);
    match alpha {
        Alpha::Killed => world.revive(),
        Alpha::Booted => world.alpha.reboot(),
    }
    world.write_at(At::Beta, 5);
    commit(&mut world);
    world.write_at(At::Beta, 5);
    world
}

/// How a reversal finds what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Maps,
    Digests,
}

/// The reversal says which way it goes, and what it leaves is right.
fn reverse(world: &mut World, by: By) {
    expect_fenced(world);
    world.start(At::Beta);
    world.write_at(At::Beta, 5);
    let (copied, _) = world.traffic();
    world.reverse(At::Beta);
    let found = match world.says_that_disks_are_compared(At::Beta) {
        true => By::Digests,
        false => By::Maps,
    };
    assert_eq!(found, by, "{}", world.story());
    world.write_at(At::Beta, 5);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
    assert!(
        world.traffic().0 - copied < LITTLE,
        "nearly everything travelled"
    );
}

#[test]
fn a_reversal_compares_after_the_survivor_was_booted_while_its_vm_ran() {
    let mut world = committed(81, &Alpha::Killed);
    world.beta.reboot();
    world.wait("the VM runs again", |world| {
        world.beta.view(world.vm).running
    });
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
    reverse(&mut world, By::Digests);
}

#[test]
fn a_reversal_believes_the_maps_of_a_survivor_that_was_booted_while_its_vm_was_off() {
    let mut world = committed(82, &Alpha::Killed);
    world.stop(At::Beta);
    world.beta.reboot();
    reverse(&mut world, By::Maps);
}

#[test]
fn a_reversal_compares_after_the_old_primary_was_booted() {
    let mut world = committed(83, &Alpha::Booted);
    reverse(&mut world, By::Digests);
}

#[test]
fn a_reversal_believes_the_maps_of_an_old_primary_whose_daemon_was_back_before_it_was_booted() {
    // The daemon finds what the dead one left, and puts it in order.
    let mut world = committed(84, &Alpha::Killed);
    expect_fenced(&mut world);
    world.alpha.reboot();
    reverse(&mut world, By::Maps);
}

#[test]
fn a_reversal_compares_after_both_hosts_were_booted() {
    let mut world = committed(85, &Alpha::Booted);
    world.beta.reboot();
    reverse(&mut world, By::Digests);
}

#[test]
fn a_commit_during_which_the_host_was_booted_is_brought_to_its_end_and_reversed() {
    // Whichever call of the commit is the last: what comes after it is idle.
    for call in [0, 5, 15, 40, 80] {
        let mut world = World::replicated(86);
        lose_alpha(&mut world);
        world.write_at(At::Beta, 5);
        world.stop(At::Beta);
        world.beta.gate.die_at(Death::After(call));
        // It may die of it.
        let _ = world.ask(At::Beta, VmOperation::CommitFailover);
        world.wait_for("it died or committed", |world| {
            world.beta.gate.is_killed()
                || world.beta.state(world.vm).1 == ReplicationState::Committed
        });
        world.beta.gate.live_on();
        world.beta.reboot();
        world.revive();
        commit(&mut world);
        // At once: nothing of the commit may be left to be done.
        world.start(At::Beta);
        let shadow = world.shadow.clone();
        world.expect(At::Beta, &shadow);
        let told = world.beta.told();
        assert!(
            !told.iter().any(|told| told.contains("commit the failover")),
            "{told:#?}"
        );
        expect_fenced(&mut world);
        world.write_at(At::Beta, 5);
        world.reverse(At::Beta);
        world.replicate(At::Beta);
        world.expect_replica(At::Alpha);
    }
}

#[test]
fn a_primary_that_is_booted_during_a_cycle_compares_and_keeps_the_points() {
    for call in [0, 3, 6, 9, 12, 15] {
        let mut world = World::replicated(87);
        world.ask(At::Beta, VmOperation::MakePoint).unwrap();
        let older = world.shadow.clone();
        let points = world.beta.points(world.vm);
        world.write(3);
        let (copied, _) = world.traffic();
        world.alpha.gate.die_at(Death::Before(call));
        let before = world.alpha.relation(world.vm).last_sequence;
        let _ = world.ask(At::Alpha, VmOperation::ReplicateNow);
        world.wait_for("it died, or the cycle is over", |world| {
            world.alpha.gate.is_killed() || world.alpha.relation(world.vm).last_sequence > before
        });
        world.alpha.gate.live_on();
        world.alpha.reboot();
        world.start(At::Alpha);
        world.write(3);
        world.compare_after_a_boot();
        world.write(3);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
        assert!(
            world.traffic().0 - copied < LITTLE,
            "nearly everything travelled"
        );
        let kept = world.beta.points(world.vm);
        for point in &points {
            assert!(kept.iter().any(|kept| kept.sequence == point.sequence));
        }
        let newest = points.iter().map(|point| point.sequence).max();
        world.expect_point(newest.unwrap(), &older);
    }
}

const NOON: u64 = 12 * 3600;
const EVENING: u64 = 20 * 3600;

/// Alpha was booted at this time of day while its VM ran, which runs again: what it changed since
/// is not known. Automatic resynchronization is for the hours from 18:30 to 06:00.
fn booted_at(seed: u64, second: u64, automatic: bool) -> World {
    let mut world = World::new(seed, &[("vda", 1 << 20), ("vdb", 512 << 10)]);
    world.enable(SettingsChange {
        auto_resynchronize_enabled: Some(automatic),
        auto_resynchronize_interval_start: Some("18:30".to_owned()),
        auto_resynchronize_interval_end: Some("06:00".to_owned()),
        ..SettingsChange::default()
    });
    world.copy();
    world.jump_to(second);
    world.write(3);
    world.alpha.reboot();
    world.start(At::Alpha);
    world.write(3);
    world
}

/// What waits to be sent, as the statistics of a side have it.
fn pending_bytes(world: &World, at: At) -> Option<u64> {
    let vm = VmRef::Id(world.vm);
    let statistics = world.site(at).service.statistics(&admin(), &vm);
    statistics.unwrap().pending_replication_size
}

/// The lost maps are found, and nothing begins by itself, however often the VM is looked at.
fn expect_waiting(world: &mut World) {
    let waits = |world: &World| {
        let state = world.alpha.state(world.vm).1;
        state == ReplicationState::WaitingToStartResynchronization
    };
    world.wait("the lost maps are found", waits);
    assert_eq!(pending_bytes(world, At::Alpha), None);
    world.stays("nothing begins", waits);
}

#[test]
fn lost_maps_are_compared_by_themselves_in_the_hours_for_it() {
    let mut world = booted_at(88, EVENING, true);
    let (copied, _) = world.traffic();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
    assert_eq!(pending_bytes(&world, At::Alpha), Some(0));
    assert_eq!(pending_bytes(&world, At::Beta), Some(0));
    world.write(1);
    assert!(pending_bytes(&world, At::Alpha) > Some(0));
    assert!(
        world.traffic().0 - copied < LITTLE,
        "nearly everything travelled"
    );
}

#[test]
fn lost_maps_wait_for_the_hours_in_which_they_are_compared_by_themselves() {
    let mut world = booted_at(89, NOON, true);
    expect_waiting(&mut world);
    // A restart of the daemon forgets nothing of that.
    world.alpha.restart();
    world.start(At::Alpha);
    expect_waiting(&mut world);
    world.jump_to(EVENING);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn lost_maps_wait_for_an_operator_unless_the_settings_say_otherwise() {
    let mut world = booted_at(90, EVENING, false);
    expect_waiting(&mut world);
    world.compare_after_a_boot();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}
