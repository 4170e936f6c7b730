//! Answers that are lost and calls that are heard twice, at every call of a flow.

use std::collections::BTreeSet;

use lifeboat_model::contract::ReplicationState;
use lifeboat_model::settings::SettingsChange;
use lifeboat_peer::testing::Fault;
use lifeboat_service::api::{Urgency, VmOperation};

use crate::links::lock;
use crate::world::{At, World};

/// What one flow writes and compares is less than this; the disk has 256 KiB.
const LITTLE: u64 = 128 << 10;

/// A flow: what comes before any fault, and what is done while one happens.
struct Flow {
    seed: u64,
    before: fn(&mut World),
    during: fn(&mut World),
}

const FIRST_COPY: Flow = Flow {
    seed: 31,
    before: |_| {},
    during: |world| {
        protect(world);
        world.write(3);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
    },
};

const PLANNED_FAILOVER: Flow = Flow {
    seed: 32,
    before: ready_to_prepare,
    during: |world| {
        let (copied, _) = world.traffic();
        world.prepare(At::Alpha);
        fail_over(world);
        world.start(At::Beta);
        let shadow = world.shadow.clone();
        world.expect(At::Beta, &shadow);
        world.write_at(At::Beta, 3);
        world.reverse(At::Beta);
        world.replicate(At::Beta);
        world.verify(At::Beta);
        world.expect_replica(At::Alpha);
        assert!(world.traffic().0 - copied < LITTLE, "everything travelled");
    },
};

const CANCEL: Flow = Flow {
    seed: 33,
    before: ready_to_prepare,
    during: |world| {
        let (copied, _) = world.traffic();
        world.prepare(At::Alpha);
        let how = Urgency::Checked;
        let cancel = VmOperation::CancelPlannedFailover { how };
        world.reach("granted", At::Alpha, &cancel, |world| {
            world.alpha.state(world.vm).1 == ReplicationState::Replicating
        });
        go_on(world);
        assert_eq!(world.traffic().0, copied, "whole disks travelled again");
    },
};

const REVERT: Flow = Flow {
    seed: 34,
    before: |world| {
        ready_to_prepare(world);
        world.replicate(At::Alpha);
    },
    during: |world| {
        let (copied, _) = world.traffic();
        fail_over(world);
        let revert = VmOperation::RevertFailover;
        world.reach("reverted", At::Beta, &revert, World::is_replicating);
        go_on(world);
        assert_eq!(world.traffic().0, copied, "whole disks travelled again");
    },
};

const COMPARISON: Flow = Flow {
    seed: 35,
    before: protect,
    during: |world| {
        let (copied, _) = world.traffic();
        world.reach("paused", At::Alpha, &VmOperation::Suspend, |world| {
            world.alpha.state(world.vm).1 == ReplicationState::Suspended
        });
        world.write(3);
        let again = VmOperation::Resynchronize { at: None };
        world.reach("compared", At::Alpha, &again, World::is_replicating);
        world.replicate(At::Alpha);
        world.expect_replica(At::Beta);
        assert!(world.traffic().0 - copied < LITTLE, "everything travelled");
    },
};

const SETTINGS_AND_REMOVAL: Flow = Flow {
    seed: 36,
    before: protect,
    during: |world| {
        let change = VmOperation::ModifySettings(SettingsChange {
            recovery_history: Some(5),
            ..SettingsChange::default()
        });
        let history = |world: &World, at| {
            let relation = world.site(at).relation(world.vm);
            relation.settings.recovery_history()
        };
        let before = history(world, At::Alpha);
        world.reach("the settings are changed", At::Alpha, &change, |world| {
            history(world, At::Alpha) != before
        });
        assert_eq!(history(world, At::Alpha), history(world, At::Beta));
        let remove = VmOperation::RemoveReplication;
        for at in [At::Alpha, At::Beta] {
            world.reach("removed", at, &remove, |world| {
                world.site(at).state(world.vm).1 == ReplicationState::Disabled
            });
            world.start(at);
            let shadow = world.shadow.clone();
            world.expect(at, &shadow);
        }
    },
};

const FLOWS: [&Flow; 6] = [
    &FIRST_COPY,
    &PLANNED_FAILOVER,
    &CANCEL,
    &REVERT,
    &COMPARISON,
    &SETTINGS_AND_REMOVAL,
];

fn protect(world: &mut World) {
    world.enable(SettingsChange::default());
    world.copy();
}

fn ready_to_prepare(world: &mut World) {
    protect(world);
    world.write(3);
    world.stop(At::Alpha);
}

fn fail_over(world: &mut World) {
    let how = Urgency::Checked;
    let fail_over = VmOperation::InitiateFailover { point: None, how };
    world.reach("failed over", At::Beta, &fail_over, |world| {
        world.beta.state(world.vm).1 == ReplicationState::Recovered
    });
}

fn go_on(world: &mut World) {
    world.start(At::Alpha);
    world.write(3);
    world.replicate(At::Alpha);
    world.expect_replica(At::Beta);
}

impl Flow {
    fn world(&self) -> World {
        let mut world = World::new(self.seed, &[("vda", 256 << 10)]);
        (self.before)(&mut world);
        world
    }

    /// Every call that may go wrong: as many as the flow makes, counted by running on until a
    /// planned fault is not reached any more. Says how many there were.
    fn with_every_fault(&self) {
        let mut faults = 0;
        for at in [At::Alpha, At::Beta] {
            for (fault, times) in [
                (Fault::LoseAnswer, 1),
                (Fault::LoseAnswer, 2),
                (Fault::Repeat, 1),
            ] {
                let mut call = 0;
                while self.with(at, call, fault, times) {
                    call += 1;
                }
                faults += call;
            }
        }
        println!("{faults} faults happened");
    }

    /// Runs it with a fault of the call with this number of those that come, so many times in a
    /// row; answers whether the flow makes so many calls.
    fn with(&self, at: At, call: u32, fault: Fault, times: u32) -> bool {
        let mut world = self.world();
        let address = world.site(at).address.clone();
        for _ in 0..call {
            world.network.plan_success(&address);
        }
        for _ in 0..times {
            world.network.plan(&address, fault);
        }
        (self.during)(&mut world);
        world.network.is_exhausted()
    }
}

#[test]
fn a_first_copy_and_its_cycles_end_right_whatever_answer_is_lost() {
    FIRST_COPY.with_every_fault();
}

#[test]
fn a_planned_failover_and_its_reversal_end_right_whatever_answer_is_lost() {
    PLANNED_FAILOVER.with_every_fault();
}

#[test]
fn a_planned_failover_is_cancelled_whatever_answer_is_lost() {
    CANCEL.with_every_fault();
}

#[test]
fn a_failover_is_reverted_whatever_answer_is_lost() {
    REVERT.with_every_fault();
}

#[test]
fn a_comparison_ends_right_whatever_answer_is_lost() {
    COMPARISON.with_every_fault();
}

#[test]
fn settings_are_changed_and_replication_is_removed_whatever_answer_is_lost() {
    SETTINGS_AND_REMOVAL.with_every_fault();
}

#[test]
fn every_call_of_the_protocol_is_made_in_a_flow_whose_answers_are_lost() {
    let mut asked = BTreeSet::new();
    for flow in FLOWS {
        let mut world = flow.world();
        lock(&world.hosts.asked).clear();
        (flow.during)(&mut world);
        asked.extend(lock(&world.hosts.asked).iter().copied());
    }
    let all = [
        "adopt",
        "begin_copy",
        "begin_session",
        "change_settings",
        "digests",
        "guest_status",
        "introduce",
        "make_replica",
        "planned_failover",
        "put_chunk",
        "put_delta",
        "remove",
        "take_over",
        "verified",
    ];
    assert_eq!(asked.into_iter().collect::<Vec<_>>(), all);
}
