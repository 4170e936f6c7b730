//! Every order of events within a budget, and long random ones beyond it.

use lifeboat_sim::{Budget, Explored, Scene, explore_from_all, walk};

/// Much goes wrong, and operators do little.
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
    slow: [1; 2],
    writes: 2,
    commands: 4,
    cycles: [1; 2],
};
/// How many states are followed from each scene, the nearest ones first: what an optimized build
/// on one core does in half a minute with either budget.
const STATES: usize = 150_000;
/// In one state of so many it is asked whether all becomes well, and whether each side can go on
/// with the other one dead.
const HEALING: u64 = 32;

/// Each scene had more states than are followed when this was written. Fewer mean that moves have
/// disappeared, and with them what the exploration would find.
const LEAST_STATES: usize = Scene::ALL.len() * STATES;
/// As the test printed them, 5,452,138 with faults and 6,082,448 of operators, rounded down: each
/// state counts as often as moves lead on from it.
const LEAST_TRANSITIONS_WITH_FAULTS: usize = 5_400_000;
const LEAST_TRANSITIONS_OF_OPERATORS: usize = 6_000_000;

fn explored(budget: Budget) -> Explored {
    let starts = Scene::ALL.map(|scene| (scene, scene.world(budget)));
    explore_from_all(starts, STATES, HEALING).unwrap_or_else(|broken| panic!("{broken}"))
}

#[test]
fn no_order_of_faults_breaks_a_rule() {
    let all = explored(FAULTS);
    assert!(all.states >= LEAST_STATES, "{all:?}");
    assert!(all.transitions >= LEAST_TRANSITIONS_WITH_FAULTS, "{all:?}");
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_order_of_commands_breaks_a_rule() {
    let all = explored(OPERATORS);
    assert!(all.states >= LEAST_STATES, "{all:?}");
    assert!(all.transitions >= LEAST_TRANSITIONS_OF_OPERATORS, "{all:?}");
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_long_walk_breaks_a_rule() {
    for scene in Scene::ALL {
        for seed in 1..=20 {
            if let Err(broken) = walk(&scene.world(FAULTS), seed, 1000, 7) {
                panic!("from {scene:?}, seed {seed}: {broken}");
            }
        }
    }
}

#[test]
fn a_walk_repeats_from_its_seed() {
    let start = Scene::Replicating.world(FAULTS);
    let once = walk(&start, 7, 300, 50).map_err(|broken| broken.to_string());
    let twice = walk(&start, 7, 300, 50).map_err(|broken| broken.to_string());
    assert_eq!(once, twice);
    assert_ne!(once.unwrap(), start);
}
