//! Three hosts: the replica forwards to a third one.

use lifeboat_sim::{Budget, Explored, ExtendedScene, Fate, Move, World, explore_from_all, walk};

/// Much goes wrong, on either link, and operators do little.
const FAULTS: Budget = Budget {
    crashes: 2,
    lost: [2; 2],
    repeated: [1; 2],
    slow: [1; 2],
    writes: 1,
    commands: 2,
    cycles: [1; 2],
};
/// Little goes wrong, and operators do much.
const OPERATORS: Budget = Budget {
    crashes: 0,
    lost: [1; 2],
    repeated: [1; 2],
    slow: [0; 2],
    writes: 2,
    commands: 4,
    cycles: [1; 2],
};
/// Little of either, and lost only on the second link: further than the others come.
const SECOND_LINK: Budget = Budget {
    crashes: 1,
    lost: [0, 1],
    repeated: [0, 1],
    slow: [0; 2],
    writes: 1,
    commands: 1,
    cycles: [1; 2],
};
/// How many states are followed from each scene, the nearest ones first: what an optimized build on
/// one core does in 20 to 25 seconds with each budget.
const STATES: usize = 32_000;
/// In one state of so many it is asked whether all becomes well, and whether each side can go on
/// with the others dead.
const HEALING: u64 = 48;

/// Each scene had more states than are followed when this was written. Fewer mean that moves have
/// disappeared, and with them what the exploration would find.
const LEAST_STATES: usize = ExtendedScene::ALL.len() * STATES;
/// As the test printed them, rounded down: each state counts as often as moves lead on from it.
const LEAST_TRANSITIONS_WITH_FAULTS: usize = 3_300_000;
const LEAST_TRANSITIONS_OF_OPERATORS: usize = 3_100_000;
/// As the test printed them, rounded down: most scenes come to an end before so many are followed.
const LEAST_STATES_OF_SECOND_LINK: usize = 245_000;
const LEAST_TRANSITIONS_OF_SECOND_LINK: usize = 1_100_000;

fn explored(budget: Budget) -> Explored {
    let starts = ExtendedScene::ALL.map(|scene| (scene, scene.world(budget)));
    explore_from_all(starts, STATES, HEALING).unwrap_or_else(|broken| panic!("{broken}"))
}

#[test]
fn no_order_of_faults_breaks_a_rule_of_three() {
    let all = explored(FAULTS);
    assert!(all.states >= LEAST_STATES, "{all:?}");
    assert!(all.transitions >= LEAST_TRANSITIONS_WITH_FAULTS, "{all:?}");
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_order_of_commands_breaks_a_rule_of_three() {
    let all = explored(OPERATORS);
    assert!(all.states >= LEAST_STATES, "{all:?}");
    assert!(all.transitions >= LEAST_TRANSITIONS_OF_OPERATORS, "{all:?}");
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_order_of_events_on_the_second_link_breaks_a_rule() {
    let all = explored(SECOND_LINK);
    assert!(all.states >= LEAST_STATES_OF_SECOND_LINK, "{all:?}");
    assert!(
        all.transitions >= LEAST_TRANSITIONS_OF_SECOND_LINK,
        "{all:?}"
    );
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_long_walk_of_three_breaks_a_rule() {
    for scene in ExtendedScene::ALL {
        for seed in 1..=8 {
            if let Err(broken) = walk(&scene.world(FAULTS), seed, 1000, 11) {
                panic!("from {scene:?}, seed {seed}: {broken}");
            }
        }
    }
}

/// Runs effects and applies deltas until nothing waits; the phases that were passed through.
fn settle(world: &mut World) -> Vec<String> {
    let mut passed = Vec::new();
    let is_next = |one: &Move| {
        matches!(
            one,
            Move::Run {
                fate: Fate::Done,
                ..
            } | Move::Apply { .. }
        )
    };
    while let Some(one) = world.moves().into_iter().find(is_next) {
        make(world, &one);
        passed.extend(world.phases());
    }
    passed
}

fn make(world: &mut World, one: &Move) {
    if let Err(rule) = world.make(one) {
        panic!("{rule}");
    }
}

#[test]
fn after_a_commit_in_the_middle_the_third_host_is_rolled_back_by_an_ordinary_delta() {
    let mut world = ExtendedScene::Left.world(FAULTS);
    assert_ne!(world.sides[1].disk, world.sides[2].disk);
    make(&mut world, &Move::Due { side: 1 });
    let passed = settle(&mut world);
    assert_eq!(world.sides[1].disk, world.sides[2].disk);
    assert_eq!(world.sides[2].record.lineage, world.sides[1].record.lineage);
    let is_compared = passed.iter().any(|phase| phase.contains("resync"));
    assert!(!is_compared, "{passed:?}");
}

#[test]
fn a_set_that_is_lost_leads_to_a_comparison() {
    let mut world = ExtendedScene::Behind.world(FAULTS);
    make(&mut world, &Move::SetLost);
    make(&mut world, &Move::Due { side: 3 });
    settle(&mut world);
    assert_eq!(world.phases()[3], "resync required, TrackingLost");
}

#[test]
fn a_failover_on_the_third_host_fences_both_others() {
    let world = ExtendedScene::ThirdCommitted.world(FAULTS);
    assert_eq!(
        world.phases(),
        ["fenced", "a replica", "committed", "fenced"]
    );
}
