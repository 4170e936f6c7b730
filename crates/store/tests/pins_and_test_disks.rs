//! References to moments, the disks of test failovers that stand on them, and digests of heads.

use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{Activity, Random, ShadowVm, compare_points, copy_piece, read_file};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Timestamp};
use lifeboat_store::{
    BoundaryPin, CopyKind, DigestUnit, FailoverTarget, NewCopy, RangeKind, Refused, Store,
    StoreError, keyed_digest,
};
use lifeboat_sys::disk::{Access, CrashChoice, DiskPort, GuestDisk, Recorder};

const ROOT: &str = "/store";
const TEST: &str = "/test";
const NOW: Timestamp = Timestamp::from_micros(1);
const LINEAGE: LineageId = LineageId::from_bytes([7; 16]);

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

fn open(disk: &Recorder) -> Store {
    Store::open(port(disk), Path::new(ROOT), "test").unwrap()
}

fn replica(disk: &Recorder, seed: u64) -> (Store, ShadowVm) {
    let mut shadow = ShadowVm::new(seed, &[600 << 10, 77 * 512]);
    let store = Store::init(port(disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    let mut store = store;
    deliver(&mut store, &mut shadow);
    store.make_point(NOW, PointKind::Standard).unwrap();
    deliver(&mut store, &mut shadow);
    disk.create_dir(Path::new(TEST)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    (store, shadow)
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm) {
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> Refused {
    match outcome.unwrap_err() {
        StoreError::Refused(refused) => refused,
        error => panic!("{error:?}"),
    }
}

fn assert_moment(store: &Store, pin: &BoundaryPin, shadow: &ShadowVm) {
    for (name, expected) in shadow.names().iter().zip(shadow.at(pin.sequence())) {
        let reader = store.reader_at(pin, name).unwrap();
        let mut bytes = vec![0xA5; reader.size() as usize];
        reader.read_at(0, &mut bytes).unwrap();
        assert!(bytes == *expected, "{name} at {}", pin.sequence());
    }
}

#[test]
fn a_pinned_moment_is_no_point_and_stays_while_deltas_are_applied_and_points_go() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 1);
    let pin = store.pin_newest(NOW).unwrap();
    assert_eq!(pin.sequence(), store.applied());
    assert_eq!(store.points().len(), 1);
    for _ in 0..4 {
        deliver(&mut store, &mut shadow);
        store.make_point(NOW, PointKind::Standard).unwrap();
        store.seal().unwrap();
    }
    for point in store.points() {
        store.remove_point(point.sequence).unwrap();
        assert_moment(&store, &pin, &shadow);
    }
    drop(pin);
    deliver(&mut store, &mut shadow);
    store.seal().unwrap();
    assert_eq!(store.status().unwrap().segments, 0);
}

#[test]
fn a_reference_is_taken_again_after_a_restart_and_refused_once_its_moment_is_gone() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 2);
    let pin = store.pin_newest(NOW).unwrap();
    let number = pin.boundary();
    drop((pin, store));
    let mut store = open(&disk);
    let pin = store.pin_boundary(number).unwrap();
    deliver(&mut store, &mut shadow);
    assert_moment(&store, &pin, &shadow);
    assert_eq!(pin.disks().len(), 2);
    drop(pin);
    for point in store.points() {
        store.remove_point(point.sequence).unwrap();
    }
    deliver(&mut store, &mut shadow);
    assert_eq!(
        refusal(store.pin_boundary(number)),
        Refused::NoBoundary { number }
    );
}

#[test]
fn a_reference_to_another_store_opens_nothing() {
    let (first, second) = (Recorder::new(), Recorder::new());
    let (mut store, shadow) = replica(&first, 3);
    let (other, _) = replica(&second, 3);
    let pin = store.pin_newest(NOW).unwrap();
    let point = store.points()[0].sequence;
    let foreign = other.pin_point(point).unwrap();
    assert!(matches!(
        refusal(store.reader_at(&foreign, &shadow.names()[0])),
        Refused::NoBoundary { .. }
    ));
    drop(pin);
}

#[test]
fn the_newest_moment_while_disks_are_copied_is_the_one_before() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 4);
    let last = store.applied();
    let sequence = shadow.begin_copy();
    let kind = CopyKind::Resync;
    store.begin_copy(NewCopy { sequence, kind }, NOW).unwrap();
    shadow.work(Activity::MIXED);
    copy_piece(&mut store, &mut shadow, sequence, 0, 0..256 << 10).unwrap();
    let pin = store.pin_newest(NOW).unwrap();
    assert_eq!(pin.sequence(), last);
    copy_piece(&mut store, &mut shadow, sequence, 0, 256 << 10..600 << 10).unwrap();
    assert_moment(&store, &pin, &shadow);
}

#[test]
fn a_point_has_its_kind_and_its_lineage_and_keeps_them() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 5);
    let planned = store.make_point(NOW, PointKind::PlannedFailover).unwrap();
    deliver(&mut store, &mut shadow);
    let standard = store.make_point(NOW, PointKind::Standard).unwrap();
    let kinds = |store: &Store| -> Vec<_> {
        let points = store.points();
        points.iter().map(|point| point.kind).collect()
    };
    let expected = [
        PointKind::Standard,
        PointKind::PlannedFailover,
        PointKind::Standard,
    ];
    assert_eq!(kinds(&store), expected);
    // The moment is a point already: it becomes a better one, and no worse one.
    store
        .make_point(NOW, PointKind::ApplicationConsistent)
        .unwrap();
    assert_eq!(kinds(&store)[2], PointKind::ApplicationConsistent);
    assert_eq!(
        store.make_point(NOW, PointKind::Standard).unwrap(),
        standard
    );
    drop(store);
    let store = open(&disk);
    assert_eq!(
        kinds(&store)[1..],
        [PointKind::PlannedFailover, PointKind::ApplicationConsistent]
    );
    for point in store.points() {
        assert_eq!(point.lineage, shadow.lineage);
        let manifest = Path::new(ROOT).join(format!("points/{}.json", point.sequence));
        let text = read_file(&disk, &manifest).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let kind = serde_json::to_value(point.kind).unwrap();
        assert_eq!(manifest["segment"]["kind"], kind);
    }
    assert!(store.points()[1].sequence == planned);
}

/// Lets a guest write at random, through the disk and in memory.
fn write_some(disk: &dyn GuestDisk, bytes: &mut [u8], random: &mut Random) {
    for _ in 0..12 {
        let start = random.below(disk.size() / 512) * 512;
        let end = (start + (1 + random.below(60)) * 512).min(disk.size());
        let range = start as usize..end as usize;
        if random.one_in(3) {
            bytes[range].fill(0);
            disk.zero(start, end - start).unwrap();
        } else {
            random.fill(&mut bytes[range.clone()]);
            disk.write_at(&bytes[range], start).unwrap();
        }
    }
}

fn assert_reads(disk: &dyn GuestDisk, expected: &[u8]) {
    let mut bytes = vec![0xA5; disk.size() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
    // What the map calls a hole reads as zeroes.
    let mut position = 0;
    while let Some(data) = disk.next_data(position).unwrap() {
        assert!(data.start >= position && data.end > data.start);
        assert!(
            expected[position as usize..data.start as usize]
                .iter()
                .all(|&b| b == 0)
        );
        position = data.end;
    }
    assert!(expected[position as usize..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_test_disk_shows_its_moment_and_what_its_guest_wrote_while_the_replica_goes_on() {
    for seed in 0..6 {
        let disk = Recorder::new();
        let (mut store, mut shadow) = replica(&disk, seed);
        let pin = store.pin_newest(NOW).unwrap();
        let name = shadow.names()[0].clone();
        let mut expected = shadow.at(pin.sequence())[0].clone();
        let scratch = store.scratch_disk(&pin, &name, Path::new(TEST)).unwrap();
        let mut random = Random::new(seed);
        for _ in 0..3 {
            assert_reads(&scratch, &expected);
            write_some(&scratch, &mut expected, &mut random);
            deliver(&mut store, &mut shadow);
            store.make_point(NOW, PointKind::Standard).unwrap();
        }
        assert_reads(&scratch, &expected);
        compare_points(&store, &shadow).unwrap();
        let second = store.scratch_disk(&pin, &name, Path::new(TEST));
        assert!(matches!(refusal(second), Refused::ImageInUse { .. }));
    }
}

#[test]
fn what_a_test_guest_flushed_is_there_after_a_power_loss_at_any_call() {
    let disk = Recorder::new();
    let (mut store, shadow) = replica(&disk, 8);
    let pin = store.pin_newest(NOW).unwrap();
    let number = pin.boundary();
    let name = shadow.names()[0].clone();
    let moment = shadow.at(pin.sequence())[0].clone();
    disk.start_recording();
    let scratch = store.scratch_disk(&pin, &name, Path::new(TEST)).unwrap();
    let made = disk.recorded();
    let mut bytes = moment.clone();
    write_some(&scratch, &mut bytes, &mut Random::new(1));
    scratch.flush().unwrap();
    let recording = disk.recording();
    drop((scratch, pin, store));
    for calls in 0..=recording.len() {
        for seed in 0..6 {
            let choice = CrashChoice::Some { seed, chance: 128 };
            let crashed = recording.crash_after(calls, choice).disk;
            let store = open(&crashed);
            let pin = store.pin_boundary(number).unwrap();
            let scratch = store.scratch_disk(&pin, &name, Path::new(TEST)).unwrap();
            if calls <= made {
                assert_reads(&scratch, &moment);
            } else if calls == recording.len() {
                assert_reads(&scratch, &bytes);
            }
        }
    }
}

#[test]
fn a_scratch_file_of_another_disk_is_refused() {
    let disk = Recorder::new();
    let (store, shadow) = replica(&disk, 9);
    let pin = store.pin_point(store.points()[0].sequence).unwrap();
    let [first, second] = [&shadow.names()[0], &shadow.names()[1]];
    drop(store.scratch_disk(&pin, first, Path::new(TEST)).unwrap());
    let from = Path::new(TEST).join(format!("{first}.qcow2"));
    let to = Path::new(TEST).join(format!("{second}.qcow2"));
    disk.rename(&from, &to).unwrap();
    assert!(matches!(
        store.scratch_disk(&pin, second, Path::new(TEST)),
        Err(StoreError::Damaged { .. })
    ));
    let file = disk.open(&to, Access::ReadWrite).unwrap();
    file.set_len(100).unwrap();
    assert!(matches!(
        store.scratch_disk(&pin, second, Path::new(TEST)),
        Err(StoreError::Damaged { .. } | StoreError::Io { .. })
    ));
}

#[test]
fn a_commit_waits_for_the_end_of_a_test() {
    let disk = Recorder::new();
    let (mut store, _) = replica(&disk, 10);
    let pin = store.pin_newest(NOW).unwrap();
    store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    assert!(matches!(
        refusal(store.commit(&mut |_| {})),
        Refused::PointInUse { .. }
    ));
    assert_eq!(refusal(store.committed_disks()), Refused::FailedOver);
    drop(pin);
    store.commit(&mut |_| {}).unwrap();
    let disks = store.committed_disks().unwrap();
    assert_eq!(disks.len(), 2);
    for started in disks {
        let head = read_file(&disk, &started.head).unwrap();
        assert_eq!(head.len() as u64, started.size.bytes());
        assert!(started.below.is_empty());
    }
    assert_eq!(refusal(store.pin_boundary(1)), Refused::Committed);
}

#[test]
fn a_failed_over_disk_is_shared_by_threads_that_write_each_their_part() {
    let disk = Recorder::new();
    let (mut store, shadow) = replica(&disk, 11);
    store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    let name = &shadow.names()[0];
    let guest: Arc<dyn GuestDisk> = Arc::new(store.failover_disk(name).unwrap());
    let mut expected = shadow.at(store.applied())[0].clone();
    std::thread::scope(|scope| {
        for (at, part) in expected.chunks_mut(150 << 10).enumerate() {
            let guest = Arc::clone(&guest);
            scope.spawn(move || {
                let mut random = Random::new(at as u64);
                for _ in 0..40 {
                    let start = random.below(part.len() as u64 / 512) as usize * 512;
                    let end = (start + 4608).min(part.len());
                    random.fill(&mut part[start..end]);
                    let offset = (at * (150 << 10) + start) as u64;
                    guest.write_at(&part[start..end], offset).unwrap();
                }
                guest.flush().unwrap();
            });
        }
    });
    assert_reads(guest.as_ref(), &expected);
}

#[test]
fn a_readers_map_finds_all_data_and_only_ranges_of_its_disk() {
    let disk = Recorder::new();
    let (store, shadow) = replica(&disk, 12);
    let point = store.points()[0].sequence;
    for (name, expected) in shadow.names().iter().zip(shadow.at(point)) {
        let reader = store.reader(point, name).unwrap();
        let mut position = 0;
        while let Some(data) = reader.next_data(position).unwrap() {
            let before = &expected[position as usize..data.start as usize];
            assert!(before.iter().all(|&byte| byte == 0));
            let kinds = reader.ranges(data.clone()).unwrap();
            assert!(kinds.iter().all(|(_, kind)| *kind == RangeKind::Data));
            position = data.end;
        }
        assert!(expected[position as usize..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn keyed_digests_are_those_of_the_bytes_with_and_without_holes() {
    let key = [9; 32];
    for seed in 0..6 {
        let disk = Recorder::new();
        let (store, shadow) = replica(&disk, seed);
        let digester = store.head_digester().unwrap();
        for (name, bytes) in shadow.names().iter().zip(shadow.at(store.applied())) {
            for unit in [DigestUnit::Block, DigestUnit::Chunk] {
                let whole = 0..bytes.len() as u64;
                let found = digester.digests(name, std::slice::from_ref(&whole), unit, &key);
                let slow: Vec<u8> = bytes
                    .chunks(unit.bytes() as usize)
                    .flat_map(|bytes| keyed_digest(&key, bytes))
                    .collect();
                assert!(found.unwrap() == slow);
            }
        }
    }
    let other = keyed_digest(&[8; 32], &[1; 4096]);
    assert_ne!(other, keyed_digest(&key, &[1; 4096]));
}

#[test]
fn digests_of_what_a_peer_may_not_ask_for_are_refused() {
    let disk = Recorder::new();
    let (mut store, shadow) = replica(&disk, 1);
    let digester = store.head_digester().unwrap();
    let name = &shadow.names()[0];
    let size = 600 << 10;
    let bad = [
        vec![std::ops::Range { start: 0, end: 0 }],
        vec![std::ops::Range {
            start: 8192,
            end: 4096,
        }],
        vec![std::ops::Range {
            start: 512,
            end: 4096,
        }],
        vec![std::ops::Range {
            start: 0,
            end: 4000,
        }],
        vec![std::ops::Range {
            start: 0,
            end: size + 4096,
        }],
        vec![std::ops::Range {
            start: 0,
            end: u64::MAX,
        }],
        vec![4096..8192, 0..4096],
        vec![0..8192, 4096..12288],
    ];
    for ranges in bad {
        let outcome = digester.digests(name, &ranges, DigestUnit::Block, &[1; 32]);
        assert_eq!(
            outcome.unwrap_err().kind(),
            std::io::ErrorKind::InvalidInput,
            "{ranges:?}"
        );
    }
    let nobody = "nobody".parse().unwrap();
    let outcome = digester.digests(&nobody, &[], DigestUnit::Block, &[1; 32]);
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(DigestUnit::try_from(8192).is_err());
    store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    assert_eq!(refusal(store.head_digester()), Refused::FailedOver);
}
