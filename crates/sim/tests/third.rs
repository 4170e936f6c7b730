//! Three hosts: the replica forwards to a third one.

use lifeboat_sim::{Budget, Explored, ExtendedScene, explore, walk};

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
/// How many states are followed from each scene, the nearest ones first.
const STATES: usize = 60_000;
/// In one state of so many it is asked whether all becomes well, and whether each side can go on
/// with the others dead.
const HEALING: u64 = 32;

fn explored(budget: Budget) -> Explored {
    let mut all = Explored {
        states: 0,
        transitions: 0,
        depth: 0,
        healed: 0,
    };
    for scene in ExtendedScene::ALL {
        match explore(&scene.world(budget), STATES, HEALING) {
            Ok(one) => {
                println!("{scene:?}: {one:?}");
                all.states += one.states;
                all.transitions += one.transitions;
                all.depth = all.depth.max(one.depth);
                all.healed += one.healed;
            }
            Err(broken) => panic!("from {scene:?}: {broken}"),
        }
    }
    println!("all: {all:?}");
    all
}

#[test]
fn no_order_of_faults_breaks_a_rule_of_three() {
    let all = explored(FAULTS);
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_order_of_commands_breaks_a_rule_of_three() {
    let all = explored(OPERATORS);
    assert!(all.healed > 0, "{all:?}");
}

#[test]
fn no_long_walk_of_three_breaks_a_rule() {
    for scene in ExtendedScene::ALL {
        for seed in 1..=20 {
            if let Err(broken) = walk(&scene.world(FAULTS), seed, 1000, 7) {
                panic!("from {scene:?}, seed {seed}: {broken}");
            }
        }
    }
}
