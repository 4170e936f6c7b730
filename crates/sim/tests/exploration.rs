//! Every order of events within a budget, and long random ones beyond it.

use std::collections::BTreeSet;

use lifeboat_sim::{Budget, Scene, explore, heal, walk};

/// What may happen from each scene on.
const BUDGET: Budget = Budget {
    crashes: 2,
    lost: 2,
    repeated: 1,
    slow: 1,
    writes: 1,
    commands: 2,
    cycles: 1,
};

fn explored(scene: Scene) {
    let outcome = explore(
        &scene.world(BUDGET),
        std::env::var("LIM").map_or(200_000, |x| x.parse().unwrap()),
        16,
    );
    match outcome {
        Ok(explored) => println!("{scene:?}: {explored:?}"),
        Err(broken) => panic!("{scene:?}: {broken}"),
    }
}

#[test]
fn new() {
    explored(Scene::New)
}
#[test]
fn replicating() {
    explored(Scene::Replicating)
}
#[test]
fn prepared() {
    explored(Scene::Prepared)
}
#[test]
fn taken_over() {
    explored(Scene::TakenOver)
}
#[test]
fn committed() {
    explored(Scene::Committed)
}
#[test]
fn parted() {
    explored(Scene::Parted)
}
#[test]
fn walks() {
    for scene in Scene::ALL {
        for seed in 1..40 {
            if let Err(broken) = walk(&scene.world(BUDGET), seed, 1000, 7) {
                panic!("{scene:?} {seed}: {broken}");
            }
        }
    }
}
