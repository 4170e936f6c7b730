//! On a file system that shares blocks: the same random lives, and proof that blocks are
//! shared and not copied. `LIFEBOAT_TEST_XFS` names the mount; without it these tests fail.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_harness::{
    Activity, Random, ShadowVm, compare_image, compare_points, read_file, run_tool,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Sequence, Timestamp};
use lifeboat_store::{FailoverTarget, Store};
use lifeboat_sys::disk::{Cloned, DiskPort, GuestDisk, RealDisk};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_micros(1);
const MIB: u64 = 1 << 20;

fn port() -> Arc<dyn DiskPort> {
    Arc::new(RealDisk)
}

/// A folder on the mount, which is proved to share blocks.
fn folder() -> TempDir {
    let mount = std::env::var_os("LIFEBOAT_TEST_XFS").expect(
        "LIFEBOAT_TEST_XFS names no mount: run `cargo xtask test`, or `cargo xtask setup` and set it",
    );
    let folder = tempfile::tempdir_in(PathBuf::from(mount)).expect("use the mount of the tests");
    let [one, two] = ["one", "two"].map(|name| RealDisk.create(&folder.path().join(name)).unwrap());
    one.write_at(&[7; 65536], 0).unwrap();
    let cloned = two.clone_range(one.as_ref(), 0, 65536, 0).unwrap();
    assert_eq!(
        cloned,
        Cloned::Shared,
        "the file system of the tests shares no blocks"
    );
    folder
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm) {
    let stream = shadow.capture();
    store.receive(&stream[..]).unwrap();
    apply_all(store);
}

#[test]
fn every_point_of_a_random_life_equals_the_shadow_on_xfs() {
    const LONG: Activity = Activity {
        operations: 8,
        max_sectors: 900,
        alignment: 8,
    };
    for seed in 0..6 {
        let folder = folder();
        let root = folder.path().join("store");
        let mut random = Random::new(seed);
        let sizes = [
            (1 + random.below(4000)) * 512,
            (1 + random.below(700)) * 512,
        ];
        let mut shadow = ShadowVm::new(seed, &sizes);
        let mut store = Store::init(port(), &root, &shadow.new_store(), "test").unwrap();
        for _ in 0..30 {
            match random.below(10) {
                0..4 => {
                    shadow.work(if random.one_in(2) {
                        Activity::MIXED
                    } else {
                        LONG
                    });
                    if random.one_in(6) {
                        shadow.resize(0, (1 + random.below(4000)) * 512);
                    }
                    deliver(&mut store, &mut shadow);
                }
                4..7 if store.applied() > Sequence::ZERO => {
                    store.make_point(NOW, PointKind::Standard).unwrap();
                }
                7 if !store.points().is_empty() => {
                    let points = store.points();
                    let victim = random.below(points.len() as u64) as usize;
                    store.remove_point(points[victim].sequence).unwrap();
                }
                8 => store.seal().unwrap(),
                _ => {
                    drop(store);
                    store = Store::open(port(), &root, "test").unwrap();
                }
            }
            compare_points(&store, &shadow).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        store.seal().unwrap();
        let points = store.points();
        drop(store);
        for point in &points {
            for (disk, expected) in point.disks.iter().zip(shadow.at(point.sequence)) {
                compare_image(&disk.image, expected)
                    .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
        }
    }
}

/// Where the blocks of a file lie on the device, as the kernel tells `filefrag`.
fn places(path: &Path) -> BTreeSet<u64> {
    let path = path.to_str().unwrap();
    let output = run_tool("filefrag", &["-s", "-v", "-b4096", path]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut places = BTreeSet::new();
    // "   0:        0..      15:         24..        39:     16:             last,shared,eof"
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let [number, _, physical, ..] = fields[..] else {
            continue;
        };
        if number.trim().parse::<u64>().is_err() {
            continue;
        }
        let (first, last) = physical.split_once("..").unwrap();
        let [first, last] = [first, last].map(|text| text.trim().parse::<u64>().unwrap());
        places.extend(first..=last);
    }
    assert!(
        !places.is_empty(),
        "filefrag told nothing of {path}: {text}"
    );
    places
}

/// A store of one disk of 8 MiB full of random bytes, with a point.
fn full_disk(folder: &Path) -> (Store, ShadowVm, PathBuf) {
    let root = folder.join("store");
    let mut shadow = ShadowVm::new(1, &[8 * MIB]);
    let mut bytes = vec![0; 8 * MIB as usize];
    Random::new(2).fill(&mut bytes);
    shadow.write(0, 0, &bytes);
    let mut store = Store::init(port(), &root, &shadow.new_store(), "test").unwrap();
    deliver(&mut store, &mut shadow);
    store.make_point(NOW, PointKind::Standard).unwrap();
    (store, shadow, root.join("disks/disk0"))
}

#[test]
fn preimages_of_long_runs_are_the_blocks_that_the_head_had() {
    let folder = folder();
    let (mut store, mut shadow, disk) = full_disk(folder.path());
    let before = places(&disk.join("head.raw"));
    let mut bytes = vec![0; 2 * MIB as usize];
    Random::new(3).fill(&mut bytes);
    shadow.write(0, MIB, &bytes);
    // Too short to be worth sharing.
    shadow.write(0, 6 * MIB, &bytes[..32 << 10]);
    deliver(&mut store, &mut shadow);
    let saved = places(&disk.join("seg/1.open"));
    let shared = saved.intersection(&before).count();
    assert_eq!(
        shared,
        512,
        "of 512 long-run blocks among {} saved",
        saved.len()
    );
    assert!(saved.len() >= 512 + 8);
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn preimages_of_what_is_trimmed_take_no_new_space() {
    let folder = folder();
    let (mut store, mut shadow, disk) = full_disk(folder.path());
    let before = places(&disk.join("head.raw"));
    shadow.write(0, 0, &vec![0; 4 * MIB as usize]);
    let stream = shadow.capture();
    assert!(stream.len() < 64 << 10, "zeroes travelled as data");
    store.receive(&stream[..]).unwrap();
    apply_all(&mut store);
    let saved = places(&disk.join("seg/1.open"));
    assert_eq!(saved.len(), 1024);
    assert!(saved.is_subset(&before));
    assert!(places(&disk.join("head.raw")).is_disjoint(&saved));
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn a_delta_laid_out_for_sharing_becomes_part_of_the_head_without_a_copy() {
    let folder = folder();
    let (mut store, mut shadow, disk) = full_disk(folder.path());
    let mut shared = 0;
    // The shadow draws lots for how a stream is laid out and whether it is compressed.
    for seed in 0..12 {
        let mut bytes = vec![0; MIB as usize];
        Random::new(seed).fill(&mut bytes);
        shadow.write(0, 2 * MIB, &bytes);
        let stream = shadow.capture();
        let received = store.receive(&stream[..]).unwrap().receipt;
        let delta = disk.join(format!(
            "../../spool/{}-{}.delta",
            received.lineage, received.sequence
        ));
        let spooled = places(&delta);
        apply_all(&mut store);
        shared += places(&disk.join("head.raw"))
            .intersection(&spooled)
            .count();
    }
    assert!(shared >= 256, "{shared} blocks of 12 deltas were shared");
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn a_commit_of_an_older_point_shares_long_runs_and_copies_short_ones() {
    let folder = folder();
    let (mut store, mut shadow, disk) = full_disk(folder.path());
    let mut bytes = vec![0; 2 * MIB as usize];
    Random::new(3).fill(&mut bytes);
    shadow.write(0, MIB, &bytes);
    shadow.write(0, 6 * MIB, &bytes[..4096]);
    deliver(&mut store, &mut shadow);
    let point = store.points()[0].sequence;
    let lineage = LineageId::from_bytes([5; 16]);
    store
        .start_failover(FailoverTarget::Point(point), lineage, NOW, &mut |_| {})
        .unwrap();
    let mut expected = shadow.at(point)[0].clone();
    let overlay = store.failover_disk(&shadow.names()[0]).unwrap();
    expected[5 * MIB as usize..][..MIB as usize].copy_from_slice(&bytes[..MIB as usize]);
    overlay.write_at(&bytes[..MIB as usize], 5 * MIB).unwrap();
    overlay.flush().unwrap();
    drop(overlay);
    let saved = places(&disk.join("seg/1.qcow2"));
    let committed = store.commit(&mut |_| {}).unwrap();
    assert_eq!(committed.shared_bytes, 3 * MIB);
    assert_eq!(committed.written_bytes, 4096);
    let head = disk.join("head.raw");
    assert!(places(&head).intersection(&saved).count() >= 512);
    assert!(read_file(&RealDisk, &head).unwrap() == expected);
    store.empty_trash().unwrap();
    drop(store);
    assert!(read_file(&RealDisk, &head).unwrap() == expected);
}
