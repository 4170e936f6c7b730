//! What operators do, each ending with every byte compared.

use std::sync::atomic::Ordering;

use lifeboat_model::contract::{InitialReplicationType, JobState, ReplicationState, ReturnCode};
use lifeboat_model::settings::SettingsChange;
use lifeboat_model::{UncheckedBandwidthLimit, UncheckedBandwidthWindow};
use lifeboat_peer::testing::Fault;
use lifeboat_service::api::{Accepted, Operations as _, Urgency, VmOperation, VmRef};

use crate::links::lock;
use crate::site::admin;
use crate::world::{At, Primary, Replica, World, expect_same};

/// The only answer that a failover gives while the primary's guest runs.
fn fail_over(how: Urgency) -> VmOperation {
    VmOperation::InitiateFailover { point: None, how }
}

#[test]
fn a_replica_has_every_byte_and_cycles_send_only_changes() {
    let mut world = World::replicated(1);
    world.expect_replica(At::Beta);
    let (copied, sent) = world.traffic();
    for _ in 0..3 {
        world.write(3);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    }
    let (copied_after, sent_after) = world.traffic();
    assert_eq!(copied_after, copied, "whole disks travelled again");
    let health = world
        .alpha
        .service
        .health(&admin(), &VmRef::Id(world.vm))
        .unwrap();
    assert_eq!(health.start.seconds, Some(1), "the replica has said so");
    // Three rounds of three writes of at most 20 KiB, to two disks.
    assert!(sent_after - sent < 3 * 2 * 3 * (24 << 10));
}

#[test]
fn an_excluded_disk_does_not_travel() {
    let mut world = World::new(2, &[("vda", 1 << 20), ("swap", 1 << 20)]);
    world.enable(SettingsChange {
        included_disks: Some(vec!["vda".to_owned()]),
        ..SettingsChange::default()
    });
    world.copy();
    world.write(5);
    world.replicate(At::Alpha);
    let found = world.test(At::Beta);
    let wanted = [("vda".to_owned(), world.shadow["vda"].clone())].into();
    expect_same(&found, &wanted);
}

#[test]
fn a_vm_sends_no_faster_than_it_may_and_a_new_limit_holds_for_what_is_under_way() {
    let mut world = World::replicated(13);
    let limit = |bytes_per_second| {
        VmOperation::ModifySettings(SettingsChange {
            bandwidth_limit: Some(UncheckedBandwidthLimit {
                bytes_per_second,
                windows: Vec::new(),
            }),
            ..SettingsChange::default()
        })
    };
    world.ask(At::Alpha, limit(Some(4096))).unwrap();
    // Minutes at this rate.
    world.write(60);
    world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
    world.wait("a part has travelled", |world| {
        let activity = world.alpha.relation(world.vm).activity;
        activity.is_some_and(|activity| {
            let (done, total) = (activity.done_bytes, activity.total_bytes);
            done > 0 && done < total / 2
        })
    });
    world.ask(At::Alpha, limit(None)).unwrap();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn a_replica_that_applies_too_slowly_takes_no_more_and_catches_up() {
    let mut world = World::new(15, &[("vda", 200 << 20)]);
    world.enable(SettingsChange {
        compression_enabled: Some(false),
        apply_backlog_limit: Some(5),
        ..SettingsChange::default()
    });
    world.copy();
    assert!(!world.has_reason(At::Beta, "backlog_too_long"));
    // A cycle that was wished for before must not take a part of what is written now.
    world.reach("paused", At::Alpha, &VmOperation::Suspend, |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Suspended
    });
    let gate = std::sync::Arc::clone(&world.beta.gate);
    let held = gate.hold_applying();
    // More than is let wait, and nothing was applied yet that tells how fast that goes.
    world.fill("vda", 170 << 20);
    let before = world.alpha.relation(world.vm).last_sequence;
    world.ask(At::Alpha, VmOperation::Resume).unwrap();
    world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
    world.wait("it is received", |world| {
        world.alpha.relation(world.vm).last_sequence > before
    });
    let waiting = world.beta.backlog(world.vm);
    assert!(waiting > 160 << 20, "{waiting} bytes wait");
    world.write(3);
    world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
    world.wait("the refusal is told", |world| {
        world.story().contains("wait to be applied")
    });
    assert_eq!(world.beta.backlog(world.vm), waiting);
    // The side that applies says so, and only that.
    assert!(world.has_reason(At::Beta, "backlog_too_long"));
    assert!(!world.has_reason(At::Alpha, "backlog_too_long"));
    drop(held);
    world.replicate(At::Alpha);
    for at in [At::Alpha, At::Beta] {
        assert!(!world.has_reason(at, "backlog_too_long"));
    }
    world.expect_replica(At::Beta);
}

/// Seconds of the day.
const NOON: u64 = 12 * 3600;
const MIDNIGHT: u64 = 0;

#[test]
fn a_host_sends_as_fast_as_its_window_of_the_day_lets_it() {
    let mut world = World::replicated(16);
    let slow_by_day = UncheckedBandwidthLimit {
        bytes_per_second: None,
        windows: vec![UncheckedBandwidthWindow {
            start: "08:00".to_owned(),
            end: "20:00".to_owned(),
            bytes_per_second: Some(4096),
        }],
    };
    world.alpha.bandwidth = slow_by_day.validate().unwrap();
    world.alpha.restart();
    world.start(At::Alpha);
    for _ in 0..2 {
        world.jump_to(NOON);
        // Minutes at this rate.
        world.write(60);
        world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap();
        let is_slow = |world: &World| {
            let activity = world.alpha.relation(world.vm).activity;
            activity.is_some_and(|activity| {
                let (done, total) = (activity.done_bytes, activity.total_bytes);
                done > 0 && done < total / 2
            })
        };
        world.wait("a part has travelled", is_slow);
        let before = world.alpha.relation(world.vm).last_sequence;
        // While the guest writes much more than that.
        world.write(600);
        assert!(is_slow(&world), "{:?}", world.alpha.relation(world.vm));
        assert_eq!(world.alpha.relation(world.vm).last_sequence, before);
        // What is under way goes on at the rate of the night.
        world.jump_to(MIDNIGHT);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    }
}

#[test]
fn a_wish_for_a_cycle_ends_when_the_replica_has_what_had_changed() {
    let mut world = World::replicated(17);
    lock(&world.hosts.unheard).insert("put_delta");
    world.write(3);
    let wanted = world.shadow.clone();
    let Accepted::JobStarted(id) = world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap() else {
        panic!("a wish for a cycle is a job");
    };
    let state = move |world: &World| world.alpha.service.job(&admin(), id).unwrap().job_state;
    world.stays("it is not there yet", |world| {
        state(world) == JobState::Running
    });
    // A restart of the daemon does not end it.
    world.alpha.restart();
    world.start(At::Alpha);
    world.stays("it is not there yet", |world| {
        state(world) == JobState::Running
    });
    lock(&world.hosts.unheard).clear();
    world.wait("the wish ends", |world| state(world).is_final());
    assert_eq!(state(&world), JobState::Completed);
    world.wait("it is applied", |world| world.beta.backlog(world.vm) == 0);
    expect_same(&world.test(At::Beta), &wanted);
}

#[test]
fn a_wish_for_a_cycle_is_refused_where_nothing_is_sent_and_ends_with_a_pause() {
    let mut world = World::replicated(18);
    let rejected = |world: &World, at| {
        let rejection = world.ask(at, VmOperation::ReplicateNow).unwrap_err();
        assert_eq!(rejection.code, ReturnCode::InvalidState, "{rejection}");
    };
    rejected(&world, At::Beta);
    lock(&world.hosts.unheard).insert("put_delta");
    let Accepted::JobStarted(id) = world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap() else {
        panic!("a wish for a cycle is a job");
    };
    world.ask(At::Alpha, VmOperation::Suspend).unwrap();
    let job = world.alpha.service.job(&admin(), id).unwrap();
    assert_eq!(job.job_state, JobState::Terminated, "{job:?}");
    rejected(&world, At::Alpha);
    world.ask(At::Alpha, VmOperation::Resume).unwrap();
    // Nobody has to wait for a peer that takes nothing.
    let Accepted::JobStarted(id) = world.ask(At::Alpha, VmOperation::ReplicateNow).unwrap() else {
        panic!("a wish for a cycle is a job");
    };
    world.alpha.service.cancel_job(&admin(), id).unwrap();
    let job = world.alpha.service.job(&admin(), id).unwrap();
    assert_eq!(job.job_state, JobState::Terminated, "{job:?}");
    lock(&world.hosts.unheard).clear();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

#[test]
fn a_worker_that_panics_is_not_the_vm_s_last_one() {
    let mut world = World::replicated(14);
    for call in 0..12 {
        world.write(2);
        // The calls of a cycle at the replica are its primary's, or those of applying.
        world.beta.gate.panic_at(call);
        world.replicate(At::Alpha);
        world.beta.gate.live_on();
        world.expect_replica(At::Beta);
    }
}

/// The record of a primary says that a moment is captured; nobody captures it any more.
#[test]
fn a_primary_whose_worker_panics_goes_on_and_does_not_ask_its_peer_again_and_again() {
    let mut world = World::replicated(15);
    for call in [0, 3] {
        world.write(2);
        world.alpha.gate.panic_at(call);
        let calls = world.hosts.calls.load(Ordering::SeqCst);
        world.replicate(At::Alpha);
        let calls = world.hosts.calls.load(Ordering::SeqCst) - calls;
        assert!(calls < 40, "{calls} calls to the peer");
        world.alpha.gate.live_on();
        world.expect_replica(At::Beta);
    }
}

#[test]
fn a_copy_that_is_interrupted_goes_on_with_the_pieces_that_are_missing() {
    for lost in [0, 2, 4] {
        let mut world = World::new(3, &[("vda", 200 << 20)]);
        world.enable(SettingsChange::default());
        let beta = world.beta.address.clone();
        // The copy begins with one call, and each piece is one.
        for _ in 0..lost {
            world.network.plan_success(&beta);
        }
        world.network.plan(&beta, Fault::LoseAnswer);
        let start = VmOperation::StartReplication {
            kind: InitialReplicationType::NetworkTransfer,
            at: None,
        };
        world.ask(At::Alpha, start).unwrap();
        world.wait("the call is lost", |world| world.network.is_exhausted());
        world.alpha.restart();
        world.wait("the first copy", World::is_replicating);
        world.start(At::Alpha);
        world.write(3);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    }
}

#[test]
fn a_pause_of_either_side_loses_nothing_and_copies_nothing_again() {
    let mut world = World::replicated(4);
    let (copied, _) = world.traffic();
    for at in [At::Alpha, At::Beta] {
        world.reach("paused", at, &VmOperation::Suspend, |world| {
            world.site(at).state(world.vm).1 == ReplicationState::Suspended
        });
        world.write(5);
        world.reach("resumed", at, &VmOperation::Resume, |world| {
            world.site(at).state(world.vm).1 == ReplicationState::Replicating
        });
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    }
    assert_eq!(world.traffic().0, copied);
}

#[test]
fn a_comparison_sends_what_differs_and_keeps_the_points() {
    let mut world = World::replicated(5);
    world.ask(At::Beta, VmOperation::MakePoint).unwrap();
    let before = world.shadow.clone();
    let points = world.beta.points(world.vm);
    world.write(3);
    // The maps of a host that was booted meanwhile are not believed.
    world.alpha.reboot();
    world.start(At::Alpha);
    let (copied, _) = world.traffic();
    world.compare_after_a_boot();
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
    let kept = world.beta.points(world.vm);
    for point in &points {
        assert!(kept.iter().any(|kept| kept.sequence == point.sequence));
    }
    assert!(
        world.traffic().0 - copied < 512 << 10,
        "nearly everything travelled"
    );
    // The point from before reads as it was.
    let newest = points.iter().map(|point| point.sequence).max();
    world.alpha.kill();
    world.reach(
        "failed over to the point",
        At::Beta,
        &VmOperation::InitiateFailover {
            point: newest,
            how: Urgency::Forced,
        },
        |world| world.beta.state(world.vm).1 == ReplicationState::Recovered,
    );
    world.start(At::Beta);
    world.expect(At::Beta, &before);
}

#[test]
fn a_test_failover_reads_one_moment_while_cycles_go_on_and_over_a_restart() {
    let mut world = World::replicated(6);
    let before = world.shadow.clone();
    let test = VmOperation::TestFailover { point: None };
    world.ask(At::Beta, test.clone()).unwrap();
    let id = world.beta.view(world.vm).test_replica.unwrap();
    world.beta.ask(id, VmOperation::StartVm).unwrap();
    world.write(5);
    world.replicate(At::Alpha);
    expect_same(&world.read(At::Beta, id), &before);
    world.beta.restart();
    world.wait("the test's VM runs again", |world| {
        world.beta.view(id).running
    });
    world.write(5);
    world.replicate(At::Alpha);
    expect_same(&world.read(At::Beta, id), &before);
    let refused = world.ask(At::Beta, test).unwrap_err();
    assert_eq!(refused.code, ReturnCode::InUse);
    world.ask(At::Beta, VmOperation::EndTestFailover).unwrap();
    world.expect_replica(At::Beta);
}

/// The VM is off and everything it wrote is with the replica.
fn prepare(world: &mut World) {
    world.write(5);
    let prepare = VmOperation::PreparePlannedFailover;
    let refused = world.ask(At::Alpha, prepare).unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState, "the VM runs");
    world.stop(At::Alpha);
    world.prepare(At::Alpha);
}

#[test]
fn a_planned_failover_loses_nothing_and_locks_the_vm_where_it_was() {
    let mut world = World::replicated(7);
    prepare(&mut world);
    let refused = world.ask(At::Alpha, VmOperation::StartVm).unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState);
    let (copied, _) = world.traffic();
    world.reach(
        "failed over",
        At::Beta,
        &fail_over(Urgency::Checked),
        |world| world.beta.state(world.vm).1 == ReplicationState::Recovered,
    );
    world.start(At::Beta);
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
    world.write_at(At::Beta, 5);
    world.reverse(At::Beta);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
    assert!(world.traffic().0 - copied < 512 << 10);
}

#[test]
fn a_planned_failover_can_be_cancelled_until_the_replica_has_failed_over() {
    let mut world = World::replicated(8);
    prepare(&mut world);
    let cancel = VmOperation::CancelPlannedFailover {
        how: Urgency::Checked,
    };
    world.reach("granted", At::Alpha, &cancel, |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Replicating
    });
    world.start(At::Alpha);
    prepare(&mut world);
    world.reach(
        "failed over",
        At::Beta,
        &fail_over(Urgency::Checked),
        |world| world.beta.state(world.vm).1 == ReplicationState::Recovered,
    );
    // It may be refused at once or after the replica was asked; it is never granted.
    let _ = world.ask(At::Alpha, cancel);
    world.wait("fenced", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
    let refused = world.ask(At::Alpha, VmOperation::StartVm).unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState);
}

#[test]
fn a_failover_is_refused_while_the_primary_runs_unless_it_is_forced() {
    let mut world = World::replicated(9);
    let refused = world
        .ask(At::Beta, fail_over(Urgency::Checked))
        .unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState);
    assert!(world.is_replicating());
    let shadow = world.shadow.clone();
    world.reach(
        "failed over",
        At::Beta,
        &fail_over(Urgency::Forced),
        |world| world.beta.state(world.vm).1 == ReplicationState::Recovered,
    );
    world.start(At::Beta);
    world.expect(At::Beta, &shadow);
    world.wait("the old primary knows", |world| {
        world.alpha.state(world.vm).1 == ReplicationState::Critical
    });
}

/// The VM is off already, and what it wrote last is on its way.
#[test]
fn a_failover_is_refused_while_the_primary_prepares_and_then_loses_nothing() {
    let mut world = World::replicated(86);
    world.write(5);
    world.stop(At::Alpha);
    lock(&world.hosts.unheard).insert("put_delta");
    world
        .ask(At::Alpha, VmOperation::PreparePlannedFailover)
        .unwrap();
    let refused = world
        .ask(At::Beta, fail_over(Urgency::Checked))
        .unwrap_err();
    assert_eq!(refused.code, ReturnCode::InvalidState);
    assert!(refused.what.contains("preparing"), "{refused:?}");
    let vm = VmRef::Id(world.vm);
    let findings = world.beta.service.check(&admin(), &vm).unwrap().findings;
    assert!(
        findings.iter().any(|one| one.what.contains("prepares")),
        "{findings:?}"
    );
    lock(&world.hosts.unheard).clear();
    world.prepare(At::Alpha);
    world.reach(
        "failed over",
        At::Beta,
        &fail_over(Urgency::Checked),
        |world| world.beta.state(world.vm).1 == ReplicationState::Recovered,
    );
    world.start(At::Beta);
    let shadow = world.shadow.clone();
    world.expect(At::Beta, &shadow);
}

#[test]
fn a_revert_gives_the_choice_of_another_point_and_cycles_go_on_after_it() {
    let mut world = World::replicated(10);
    let point = world.make_point(At::Beta);
    let older = world.shadow.clone();
    world.write(5);
    world.replicate(At::Alpha);
    let newest = world.shadow.clone();
    world.stop(At::Alpha);
    let (copied, _) = world.traffic();
    for (point, bytes) in [(None, &newest), (Some(point), &older), (None, &newest)] {
        let how = Urgency::Checked;
        world.reach(
            "failed over",
            At::Beta,
            &VmOperation::InitiateFailover { point, how },
            |world| world.beta.state(world.vm).1 == ReplicationState::Recovered,
        );
        world.start(At::Beta);
        world.expect(At::Beta, bytes);
        // What is written during the failover goes with the revert.
        world.write_at(At::Beta, 3);
        world.shadow = newest.clone();
        world.stop(At::Beta);
        world.reach(
            "reverted",
            At::Beta,
            &VmOperation::RevertFailover,
            |world| world.beta.state(world.vm).1 == ReplicationState::Replicating,
        );
    }
    world.wait("the primary goes on", World::is_replicating);
    world.start(At::Alpha);
    world.write(5);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
    assert_eq!(world.traffic().0, copied, "whole disks travelled again");
}

#[test]
fn removing_either_side_needs_no_peer_and_keeps_the_vm() {
    let mut world = World::replicated(11);
    let (alpha, beta) = (world.alpha.address.clone(), world.beta.address.clone());
    world.network.disconnect(&alpha);
    world.network.disconnect(&beta);
    for at in [At::Alpha, At::Beta] {
        world.ask(at, VmOperation::RemoveReplication).unwrap();
        assert_eq!(world.site(at).state(world.vm).1, ReplicationState::Disabled);
    }
    let shadow = world.shadow.clone();
    world.expect(At::Alpha, &shadow);
    world.start(At::Beta);
    world.expect(At::Beta, &shadow);
    for at in [At::Alpha, At::Beta] {
        world.site_mut(at).restart();
    }
    world.wait("both run again", |world| {
        [At::Alpha, At::Beta]
            .iter()
            .all(|at| world.site(*at).view(world.vm).running)
    });
    world.expect(At::Alpha, &shadow);
    world.expect(At::Beta, &shadow);
    assert!(world.alpha.state(world.vm).0 != Primary);
    assert!(world.beta.state(world.vm).0 != Replica);
}
