//! A store that fails half way while somebody uses its disks: it is opened again as soon as
//! nobody does, and health says what has to end.

use lifeboat_model::contract::{InitialReplicationType, ReplicationState};
use lifeboat_model::settings::SettingsChange;
use lifeboat_service::api::{Operations as _, VmOperation, VmRef};

use crate::crashes::fail_over;
use crate::site::admin;
use crate::world::{At, World};

/// What the health of a VM's replication says.
fn says(world: &World, at: At, kind: &str, text: &str) -> bool {
    let health = world
        .site(at)
        .service
        .health(&admin(), &VmRef::Id(world.vm));
    let mut reasons = health.unwrap().reasons.into_iter();
    reasons.any(|reason| reason.kind == kind && reason.what.contains(text))
}

#[test]
fn a_commit_that_fails_beside_a_running_guest_goes_on_when_the_vm_is_off() {
    let mut world = committing_without(81, "/journal");
    world.wait("the commit fails", |world| {
        let told = world.beta.told();
        told.iter().any(|told| told.contains("commit the failover"))
            && world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
    world.beta.gate.fail_writes_to(None);
    world.ask(At::Beta, VmOperation::CommitFailover).unwrap();
    world.wait("it says what to do", |world| {
        says(world, At::Beta, "operation_unfinished", "stop the VM")
    });
    world.stop(At::Beta);
    // The second commit may still be about to find out that a guest runs.
    world.wait("nothing is left to do", |world| {
        !says(world, At::Beta, "operation_unfinished", "")
    });
    let commit = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &commit, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    world.start(At::Beta);
    let written = world.shadow.clone();
    world.expect(At::Beta, &written);
}

#[test]
fn a_commit_whose_guest_is_off_before_its_end_comes_to_it() {
    // What the guest wrote cannot be copied to where it belongs; nothing else fails.
    let mut world = committing_without(85, "/head.raw");
    world.wait("the commit fails", |world| {
        says(world, At::Beta, "operation_unfinished", "commit")
    });
    world.stop(At::Beta);
    world.beta.gate.fail_writes_to(None);
    let commit = VmOperation::CommitFailover;
    world.reach("committed", At::Beta, &commit, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    world.start(At::Beta);
    let written = world.shadow.clone();
    world.expect(At::Beta, &written);
}

/// A commit was asked for beside a guest that has written, and files with this in their path cannot
/// be written.
fn committing_without(seed: u64, part: &'static str) -> World {
    let mut world = World::replicated(seed);
    ready_to_fail_over_again(&mut world);
    world.start(At::Beta);
    world.write_at(At::Beta, 5);
    world.beta.gate.fail_writes_to(Some(part));
    world.ask(At::Beta, VmOperation::CommitFailover).unwrap();
    world
}

fn ready_to_fail_over_again(world: &mut World) {
    world.stop(At::Alpha);
    world.replicate(At::Alpha);
    fail_over(world);
}

#[test]
fn a_store_that_fails_under_a_test_failover_goes_on_when_the_test_has_ended() {
    let mut world = World::replicated(82);
    world
        .ask(At::Beta, VmOperation::TestFailover { point: None })
        .unwrap();
    let tested = world.shadow.clone();
    world.write(5);
    world.beta.gate.fail_writes_to(Some("/seg/"));
    world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
    world.wait("it says what to do", |world| {
        says(
            world,
            At::Beta,
            "replication_error",
            "end the test failover",
        )
    });
    world.beta.gate.fail_writes_to(None);
    // The test reads what it read before.
    world.expect_test(&tested);
    world.ask(At::Beta, VmOperation::EndTestFailover).unwrap();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn a_commit_whose_device_fails_says_so_and_ends_when_the_device_is_mended() {
    let mut world = World::replicated(83);
    ready_to_fail_over_again(&mut world);
    world.start(At::Beta);
    world.write_at(At::Beta, 5);
    let written = world.shadow.clone();
    world.beta.gate.fail_writes_to(Some("/head.raw"));
    world.ask(At::Beta, VmOperation::CommitFailover).unwrap();
    world.wait("it says that the commit does not end", |world| {
        says(
            world,
            At::Beta,
            "operation_unfinished",
            "commit the failover",
        )
    });
    world.beta.gate.fail_writes_to(None);
    // It is tried again by itself, every ten seconds.
    world.wait("committed", |world| {
        world.beta.state(world.vm).1 == ReplicationState::Committed
    });
    world.expect(At::Beta, &written);
    assert!(!says(&world, At::Beta, "operation_unfinished", ""));
}

/// What was written before is on the disk all the same: changes that the host that sent them is
/// told are not here, and a point that is made.
#[test]
fn a_planned_failover_is_prepared_whichever_sync_of_the_replica_fails() {
    for (number, name) in ["spool", "journal", "head.raw"].into_iter().enumerate() {
        let mut failed = 0;
        loop {
            let mut world = World::replicated(84 + number as u64);
            world.write(5);
            world.stop(At::Alpha);
            world.beta.gate.fail_sync_of(name, failed);
            world
                .ask(At::Alpha, VmOperation::PreparePlannedFailover)
                .unwrap();
            world.wait("prepared", |world| {
                // It is tried again by itself.
                world.alpha.state(world.vm).1 == ReplicationState::SyncedReplicationComplete
                    && world.planned_points(At::Beta) == 1
            });
            assert_eq!(world.beta.backlog(world.vm), 0);
            if world.beta.gate.will_fail_a_sync() {
                break;
            }
            failed += 1;
            fail_over(&mut world);
            world.start(At::Beta);
            let written = world.shadow.clone();
            world.expect(At::Beta, &written);
        }
        assert!(failed > 0, "{name} is not synced");
    }
}

/// The end of a first copy may be received and not applied when the replica is asked what it holds:
/// that is no reason to compare everything.
#[test]
fn a_first_copy_ends_whichever_sync_of_the_replicas_disk_fails() {
    for after in 0.. {
        let mut world = World::new(94, &[("vda", 4 << 20)]);
        world.enable(SettingsChange::default());
        world.beta.gate.fail_sync_of("head.raw", after);
        let start = VmOperation::StartReplication {
            kind: InitialReplicationType::NetworkTransfer,
            at: None,
        };
        world.reach("everything is sent", At::Alpha, &start, |world| {
            world.alpha.state(world.vm).1 == ReplicationState::Replicating
        });
        // A host that starts asks its peer what it holds.
        world.alpha.restart();
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
        let (copied, _) = world.traffic();
        assert!(copied < 6 << 20, "{copied} bytes of copies travelled");
        if world.beta.gate.will_fail_a_sync() {
            assert!(after > 1, "no sync has failed");
            return;
        }
        world.beta.gate.close();
    }
}
