//! Answers that are lost and calls that are heard twice, at every call of a flow.

use lifeboat_model::contract::ReplicationState;
use lifeboat_model::settings::SettingsChange;
use lifeboat_peer::testing::Fault;
use lifeboat_service::api::{Urgency, VmOperation};

use crate::world::{At, World};

/// Plans a fault for the call with this number of those that come, so many times in a row.
fn plan(world: &World, at: At, call: u32, fault: Fault, times: u32) {
    let address = &world.site(at).address;
    for _ in 0..call {
        world.network.plan_success(address);
    }
    for _ in 0..times {
        world.network.plan(address, fault);
    }
}

/// Every call that may go wrong: as many as the flow makes, counted by running on until a
/// planned fault is not reached any more.
fn each_call(flow: impl Fn(At, u32, Fault, u32) -> bool) {
    for at in [At::Alpha, At::Beta] {
        for (fault, times) in [
            (Fault::LoseAnswer, 1),
            (Fault::LoseAnswer, 2),
            (Fault::Repeat, 1),
        ] {
            let mut call = 0;
            while flow(at, call, fault, times) {
                call += 1;
            }
        }
    }
}

#[test]
fn a_first_copy_and_its_cycles_end_right_whatever_answer_is_lost() {
    each_call(|at, call, fault, times| {
        let mut world = World::new(31, &[("vda", 256 << 10)]);
        plan(&world, at, call, fault, times);
        world.enable(SettingsChange::default());
        world.copy();
        world.write(3);
        world.replicate(At::Alpha);
        let is_reached = world.network.is_exhausted();
        world.expect_replica(At::Beta);
        is_reached
    });
}

#[test]
fn a_planned_failover_and_its_reversal_end_right_whatever_answer_is_lost() {
    each_call(|at, call, fault, times| {
        let mut world = World::new(32, &[("vda", 256 << 10)]);
        world.enable(SettingsChange::default());
        world.copy();
        world.write(3);
        let (copied, _) = world.traffic();
        world.stop(At::Alpha);
        plan(&world, at, call, fault, times);
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
        world.reverse(At::Beta);
        world.replicate(At::Beta);
        let is_reached = world.network.is_exhausted();
        world.expect_replica(At::Alpha);
        assert!(
            world.traffic().0 - copied < 256 << 10,
            "everything travelled"
        );
        is_reached
    });
}
