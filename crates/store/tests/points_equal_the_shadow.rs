//! Recovery points equal a shadow that the test's own writer keeps.

use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{Activity, Random, ShadowVm, compare_point, compare_points};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{Sequence, Timestamp};
use lifeboat_store::Store;
use lifeboat_sys::disk::{DiskPort, Recorder};

const NOW: Timestamp = Timestamp::from_micros(1);

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

/// A random life of a replica: deltas, points made and removed, seals, re-openings, resizes.
fn random_life(seed: u64, disk: &Arc<dyn DiskPort>, steps: u64) {
    let mut random = Random::new(seed);
    let sizes = [(1 + random.below(700)) * 512, (1 + random.below(700)) * 512];
    let mut shadow = ShadowVm::new(seed, &sizes[..1 + random.below(2) as usize]);
    let root = Path::new("/store");
    let mut store = Store::init(Arc::clone(disk), root, &shadow.new_store(), "test").unwrap();
    for _ in 0..steps {
        match random.below(12) {
            0..4 => {
                let activity = if random.one_in(2) {
                    Activity::MIXED
                } else {
                    Activity::BLOCKS
                };
                shadow.work(activity);
                if random.one_in(8) {
                    let at = random.below(shadow.names().len() as u64) as usize;
                    shadow.resize(at, (1 + random.below(900)) * 512);
                }
                let stream = shadow.capture();
                store.receive(&stream[..]).unwrap();
                if random.one_in(6) {
                    assert!(store.receive(&stream[..]).unwrap().repeated);
                }
            }
            4..6 => apply_all(&mut store),
            6..9 if store.applied() > Sequence::ZERO => {
                store.make_point(NOW, PointKind::Standard).unwrap();
            }
            9 => {
                let points = store.points();
                if !points.is_empty() {
                    let victim = points[random.below(points.len() as u64) as usize].sequence;
                    store.remove_point(victim).unwrap();
                }
            }
            10 => store.seal().unwrap(),
            _ => {
                drop(store);
                store = Store::open(Arc::clone(disk), root, "test").unwrap();
            }
        }
        compare_points(&store, &shadow).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    apply_all(&mut store);
    if store.applied() > Sequence::ZERO {
        let newest = store.make_point(NOW, PointKind::Standard).unwrap();
        compare_point(&store, newest, &shadow)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let found = store.verify(&mut |_| {}).unwrap();
    assert_eq!(found.findings, [], "seed {seed}");
}

#[test]
fn every_point_of_a_random_life_equals_the_shadow() {
    for seed in 0..120 {
        random_life(seed, &(Arc::new(Recorder::new()) as Arc<dyn DiskPort>), 60);
    }
}

#[test]
fn every_point_equals_the_shadow_where_blocks_are_shared() {
    for seed in 1000..1080 {
        random_life(
            seed,
            &(Arc::new(Recorder::new().sharing_blocks()) as Arc<dyn DiskPort>),
            60,
        );
    }
}
