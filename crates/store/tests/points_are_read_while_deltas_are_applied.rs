//! Threads read old points, and every byte is compared, while the store works on: deltas,
//! other points, seals, merges, resizes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat_harness::{Activity, Random, ShadowVm, compare_points};
use lifeboat_model::{Sequence, Timestamp};
use lifeboat_store::{PointReader, RangeKind, Refused, Store, StoreError};
use lifeboat_sys::disk::{DiskPort, RealDisk, Recorder};

const NOW: Timestamp = Timestamp::from_micros(1);

/// Reads that must have begun and ended while the store was at work.
const READS: u64 = 20_000;

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm, activity: Activity) {
    shadow.work(activity);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(store);
}

/// Reads at random until told to stop, or until a byte is wrong.
fn read_and_compare(
    reader: &PointReader,
    expected: &[u8],
    seed: u64,
    stop: &AtomicBool,
    reads: &AtomicU64,
) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut buffer = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let offset = random.below(expected.len() as u64);
        let most = [512, 4096, 65536, 400_000][random.below(4) as usize];
        let len = (1 + random.below(most)).min(expected.len() as u64 - offset);
        let range = offset as usize..(offset + len) as usize;
        if random.one_in(4) {
            for (part, kind) in reader
                .ranges(offset..offset + len)
                .map_err(|error| error.to_string())?
            {
                let bytes = &expected[part.start as usize..part.end as usize];
                if kind == RangeKind::Zero && bytes.iter().any(|&byte| byte != 0) {
                    return Err(format!("{part:?} holds data and is said to be zero"));
                }
            }
        } else {
            buffer.resize(len as usize, 0xA5);
            buffer.fill(0xA5);
            reader
                .read_at(offset, &mut buffer)
                .map_err(|error| format!("read {len} at {offset}: {error}"))?;
            if buffer != expected[range] {
                let at = buffer
                    .iter()
                    .zip(&expected[offset as usize..])
                    .position(|(found, expected)| found != expected);
                return Err(format!("read {len} at {offset}: wrong from {at:?} on"));
            }
        }
        reads.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}

/// One step of the store's life that leaves the points in `kept` alone.
fn work(store: &mut Store, shadow: &mut ShadowVm, random: &mut Random, kept: &[Sequence]) {
    match random.below(10) {
        0..6 => {
            if random.one_in(5) {
                shadow.resize(0, (200 + random.below(3000)) * 512);
            }
            let activity = if random.one_in(2) {
                Activity::MIXED
            } else {
                Activity::BLOCKS
            };
            deliver(store, shadow, activity);
        }
        6 | 7 if store.points().len() < 12 => _ = store.make_point(NOW).unwrap(),
        8 => store.seal().unwrap(),
        _ => {
            let points = store.points();
            let others = points
                .iter()
                .map(|point| point.sequence)
                .filter(|sequence| !kept.contains(sequence));
            if let Some(victim) = others.last() {
                store.remove_point(victim).unwrap();
            }
        }
    }
}

/// Reads two points by four threads while the store works, until there were enough reads.
fn read_during_work(disk: Arc<dyn DiskPort>, root: &Path, seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let mut shadow = ShadowVm::new(seed, &[3000 * 512, 700 * 512]);
    let mut store = Store::init(disk, root, &shadow.new_store(), "test").unwrap();
    let mut kept = Vec::new();
    for _ in 0..2 {
        deliver(&mut store, &mut shadow, Activity::MIXED);
        kept.push(store.make_point(NOW).unwrap());
    }
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut steps = 0;
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for (number, &sequence) in kept.iter().enumerate() {
            for (at, name) in shadow.names().to_vec().into_iter().enumerate() {
                let reader = store.reader(sequence, &name).unwrap();
                let expected = shadow.at(sequence)[at].clone();
                let (stop, reads) = (&stop, &reads);
                let seed = seed * 100 + number as u64 * 10 + at as u64;
                readers.push(scope.spawn(move || {
                    let outcome = read_and_compare(&reader, &expected, seed, stop, reads);
                    outcome.map_err(|error| format!("point {sequence}, {name}: {error}"))
                }));
            }
        }
        while (reads.load(Ordering::Acquire) < READS || steps < 60)
            && readers.iter().all(|reader| !reader.is_finished())
        {
            work(&mut store, &mut shadow, &mut random, &kept);
            steps += 1;
        }
        for &sequence in &kept {
            assert!(matches!(
                store.remove_point(sequence),
                Err(StoreError::Refused(Refused::PointInUse { users: 2, .. }))
            ));
        }
        stop.store(true, Ordering::Release);
        for reader in readers {
            reader
                .join()
                .unwrap()
                .unwrap_or_else(|error| panic!("seed {seed}, step {steps}: {error}"));
        }
    });
    compare_points(&store, &shadow).unwrap();
    for sequence in kept {
        store.remove_point(sequence).unwrap();
    }
    (reads.load(Ordering::Acquire), steps)
}

#[test]
fn readers_of_old_points_never_see_a_newer_byte_on_real_files() {
    for seed in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let (reads, steps) = read_during_work(Arc::new(RealDisk), &root, seed);
        println!("{reads} reads during {steps} steps of the store");
    }
}

#[test]
fn readers_of_old_points_never_see_a_newer_byte_where_blocks_are_shared() {
    let disk = Arc::new(Recorder::new().sharing_blocks());
    let (reads, steps) = read_during_work(disk, Path::new("/store"), 7);
    println!("{reads} reads during {steps} steps of the store");
}

#[test]
fn a_store_is_not_opened_again_while_a_reader_of_the_old_one_is_left() {
    let disk: Arc<dyn DiskPort> = Arc::new(Recorder::new());
    let root = Path::new("/store");
    let mut shadow = ShadowVm::new(1, &[100 * 512]);
    let mut store = Store::init(Arc::clone(&disk), root, &shadow.new_store(), "first").unwrap();
    deliver(&mut store, &mut shadow, Activity::MIXED);
    let point = store.make_point(NOW).unwrap();
    let reader = store.reader(point, &shadow.names()[0]).unwrap();
    drop(store);
    // Another owner would apply to the head that this reader reads.
    assert!(matches!(
        Store::open(Arc::clone(&disk), root, "second"),
        Err(StoreError::Refused(Refused::InUse { holder })) if holder == "first"
    ));
    let mut bytes = vec![0; 100 * 512];
    reader.read_at(0, &mut bytes).unwrap();
    assert!(bytes == shadow.at(point)[0]);
    drop(reader);
    Store::open(disk, root, "second").unwrap();
}
