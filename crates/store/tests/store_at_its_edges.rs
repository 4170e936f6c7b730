//! The store at its edges: damaged spools, full chains, full disks, disks of other sizes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_harness::{
    Activity, ShadowVm, compare_point, compare_points, read_failover_disk, read_file,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Sequence, Timestamp};
use lifeboat_store::{FailoverTarget, Refused, Role, Store, StoreError};
use lifeboat_sys::disk::{Access, CrashChoice, DiskPort, GuestDisk, RealDisk, Recorder};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);
const OTHER: LineageId = LineageId::from_bytes([9; 16]);

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

fn open(disk: &Recorder) -> Store {
    Store::open(port(disk), Path::new(ROOT), "test").unwrap()
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

/// A replica with one moment applied.
fn replica(sizes: &[u64]) -> (Recorder, ShadowVm, Store) {
    let disk = Recorder::new();
    let mut shadow = ShadowVm::new(7, sizes);
    let mut store = Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    shadow.work(Activity::BLOCKS);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(&mut store);
    (disk, shadow, store)
}

fn write_block(shadow: &mut ShadowVm, block: u64, byte: u8) {
    shadow.write(0, block * 4096, &[byte; 4096]);
}

fn delta_path(shadow: &ShadowVm, sequence: Sequence) -> PathBuf {
    Path::new(ROOT).join(format!("spool/{}-{sequence}.delta", shadow.lineage))
}

#[test]
fn a_failed_over_disk_reads_zeroes_wherever_the_point_was_smaller() {
    let (_disk, mut shadow, mut store) = replica(&[16 * 4096]);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    shadow.resize(0, 64 * 4096);
    write_block(&mut shadow, 40, 0xEE);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(&mut store);
    store
        .start_failover(FailoverTarget::Point(point), OTHER, NOW, &mut |_| {})
        .unwrap();
    let guest = store.failover_disk(&shadow.names()[0]).unwrap();
    let mut block = [0xA5; 4096];
    guest.read_at(&mut block, 40 * 4096).unwrap();
    assert_eq!(block, [0; 4096]);
    guest.write_at(&[1; 512], 41 * 4096 + 512).unwrap();
    guest.read_at(&mut block, 41 * 4096).unwrap();
    assert_eq!((block[511], block[512], block[1024]), (0, 1, 0));
}

#[test]
fn a_delta_whose_base_is_missing_from_the_spool_is_not_applied() {
    let (disk, mut shadow, mut store) = replica(&[16 * 4096]);
    let mut sequences = Vec::new();
    for byte in 1..4 {
        write_block(&mut shadow, u64::from(byte), byte);
        let stream = shadow.capture();
        sequences.push(store.receive(&stream[..]).unwrap().receipt.sequence);
    }
    drop(store);
    disk.unlink(&delta_path(&shadow, sequences[1])).unwrap();

    let mut store = open(&disk);
    assert_eq!(store.tip(), sequences[0]);
    assert_eq!(
        store.apply_next(&mut |_| {}).unwrap().unwrap().sequence,
        sequences[0]
    );
    let error = store.apply_next(&mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    drop(store);
    let mut store = open(&disk);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, point, &shadow).unwrap();
}

#[test]
fn as_many_points_as_the_chain_holds_keep_nobody_from_applying() {
    let (_disk, mut shadow, mut store) = replica(&[16 * 4096]);
    let mut refused = None;
    for byte in 0..40 {
        match store.make_point(NOW, PointKind::Standard) {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
        write_block(&mut shadow, u64::from(byte % 16), byte);
        store.receive(&shadow.capture()[..]).unwrap();
        apply_all(&mut store);
    }
    assert!(matches!(
        refused,
        Some(StoreError::Refused(Refused::TooManySegments { .. }))
    ));
    for byte in 0..3 {
        store.seal().unwrap();
        write_block(&mut shadow, 3, byte);
        store.receive(&shadow.capture()[..]).unwrap();
        apply_all(&mut store);
        compare_points(&store, &shadow).unwrap();
    }
    assert_eq!(store.applied(), shadow.newest().unwrap().0);
}

#[test]
fn points_removed_from_the_middle_make_room_for_others() {
    let (_disk, mut shadow, mut store) = replica(&[16 * 4096]);
    for byte in 0..100 {
        store.make_point(NOW, PointKind::Standard).unwrap();
        write_block(&mut shadow, u64::from(byte % 16), byte);
        store.receive(&shadow.capture()[..]).unwrap();
        apply_all(&mut store);
        let points = store.points();
        if points.len() > 8 {
            store.remove_point(points[3].sequence).unwrap();
        }
    }
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn a_moment_is_one_recovery_point_whatever_failed_before() {
    let mut boundaries = 0;
    for others in 0..40 {
        let (disk, mut shadow, mut store) = replica(&[16 * 4096]);
        let point = store.make_point(NOW, PointKind::Standard).unwrap();
        store.seal().unwrap();
        write_block(&mut shadow, 3, 1);
        store.receive(&shadow.capture()[..]).unwrap();
        disk.fail_sync_after(others);
        if store.apply_next(&mut |_| {}).is_ok() {
            break;
        }
        drop(store);
        let mut store = open(&disk);
        if !store.status().unwrap().applying && store.applied() == point {
            boundaries = boundaries.max(store.status().unwrap().segments);
            assert_eq!(store.make_point(NOW, PointKind::Standard).unwrap(), point);
        }
        let points = store.points();
        let same = points.iter().filter(|other| other.sequence == point);
        assert_eq!(same.count(), 1, "sync {others} failed");
    }
    assert_eq!(
        boundaries, 2,
        "no failure came between the boundary and the delta"
    );
}

/// The ranges of a divergence map, per disk.
fn divergence(disk: &Recorder) -> Vec<(usize, std::ops::Range<u64>)> {
    let path = Path::new(ROOT).join(format!("divergence/{OTHER}.map"));
    let bytes = read_file(disk, &path).unwrap();
    let (body, digest) = bytes.split_at(bytes.len() - 32);
    assert_eq!(blake3::hash(body).as_bytes(), digest);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    body[8..body.len() - 24]
        .chunks_exact(24)
        .map(|range| {
            let at = u32::from_le_bytes(range[..4].try_into().unwrap()) as usize;
            let start = number(&range[8..16]);
            (at, start..start + number(&range[16..24]))
        })
        .collect()
}

/// Every byte that differs between the committed heads and the peer's newest disks is in the map.
fn assert_divergence_is_complete(disk: &Recorder, shadow: &ShadowVm) {
    let map = divergence(disk);
    for (at, name) in shadow.names().iter().enumerate() {
        let mut ours = read_file(
            disk,
            &Path::new(ROOT).join(format!("disks/{name}/head.raw")),
        )
        .unwrap();
        let mut theirs = shadow.disks()[at].clone();
        let len = ours.len().max(theirs.len());
        ours.resize(len, 0);
        theirs.resize(len, 0);
        for byte in (0..len).filter(|&byte| ours[byte] != theirs[byte]) {
            assert!(
                map.iter()
                    .any(|(disk, range)| *disk == at && range.contains(&(byte as u64))),
                "byte {byte} of {name} differs and is not in the map"
            );
        }
    }
}

#[test]
fn the_divergence_map_holds_deltas_that_were_never_applied() {
    for newest in [true, false] {
        let (disk, mut shadow, mut store) = replica(&[16 * 4096, 16 * 4096]);
        let point = store.make_point(NOW, PointKind::Standard).unwrap();
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture()[..]).unwrap();
        apply_all(&mut store);
        shadow.write(1, 0, &[0x77; 8192]);
        store.receive(&shadow.capture()[..]).unwrap();
        let target = if newest {
            FailoverTarget::Applied
        } else {
            FailoverTarget::Point(point)
        };
        store
            .start_failover(target, OTHER, NOW, &mut |_| {})
            .unwrap();
        drop(store);
        open(&disk).commit(&mut |_| {}).unwrap();
        assert_divergence_is_complete(&disk, &shadow);
    }
}

#[test]
fn the_divergence_map_holds_what_a_disk_grew_by_since_the_point() {
    let (disk, mut shadow, mut store) = replica(&[16 * 4096 + 512]);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    shadow.resize(0, 64 * 4096);
    write_block(&mut shadow, 40, 0xEE);
    write_block(&mut shadow, 16, 0xEF);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(&mut store);
    store
        .start_failover(FailoverTarget::Point(point), OTHER, NOW, &mut |_| {})
        .unwrap();
    store.commit(&mut |_| {}).unwrap();
    assert_divergence_is_complete(&disk, &shadow);
}

fn rot(disk: &Recorder, path: &Path, offset: u64) {
    let file = disk.open(path, Access::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, offset).unwrap();
    file.write_at(&[!byte[0]], offset).unwrap();
    file.sync().unwrap();
}

#[test]
fn a_delta_that_rots_in_the_spool_keeps_nobody_from_the_rest() {
    for offset in [3, 600] {
        let (disk, mut shadow, mut store) = replica(&[16 * 4096]);
        let point = store.make_point(NOW, PointKind::Standard).unwrap();
        write_block(&mut shadow, 3, 1);
        let stream = shadow.capture();
        let rotten = store.receive(&stream[..]).unwrap().receipt.sequence;
        drop(store);
        let path = delta_path(&shadow, rotten);
        let len = read_file(&disk, &path).unwrap().len() as u64;
        rot(&disk, &path, offset.min(len - 100));

        let mut store = open(&disk);
        compare_points(&store, &shadow).unwrap();
        assert_eq!(store.verify(&mut |_| {}).unwrap().findings.len(), 1);
        let newest = store.start_failover(FailoverTarget::Newest, OTHER, NOW, &mut |_| {});
        assert!(
            matches!(newest, Err(StoreError::Damaged { .. })),
            "{newest:?}"
        );
        drop(store);
        let mut store = open(&disk);
        store
            .start_failover(FailoverTarget::Point(point), OTHER, NOW, &mut |_| {})
            .unwrap();
        store.revert_failover().unwrap();
        store
            .start_failover(FailoverTarget::Applied, OTHER, NOW, &mut |_| {})
            .unwrap();
        store.revert_failover().unwrap();

        // Another delta with the same base goes on from what is applied.
        if store.tip() == store.applied() {
            assert!(!store.receive(&stream[..]).unwrap().repeated);
            apply_all(&mut store);
            let newest = store.make_point(NOW, PointKind::Standard).unwrap();
            compare_point(&store, newest, &shadow).unwrap();
            assert_eq!(store.verify(&mut |_| {}).unwrap().findings, []);
        }
    }
}

/// A replica whose power failed in the middle of an apply, and whose spool has rotted then.
fn half_applied_and_rotten() -> (Recorder, ShadowVm, Sequence) {
    let (disk, mut shadow, mut store) = replica(&[64 * 4096 + 512]);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    shadow.resize(0, 40 * 4096);
    shadow.work(Activity::BLOCKS);
    let sequence = store
        .receive(&shadow.capture()[..])
        .unwrap()
        .receipt
        .sequence;
    disk.start_recording();
    apply_all(&mut store);
    let recording = disk.recording();
    drop(store);
    let path = delta_path(&shadow, sequence);
    for calls in 0..recording.len() {
        let disk = recording.crash_after(calls, CrashChoice::Everything).disk;
        let store = open(&disk);
        let head = read_file(&disk, &Path::new(ROOT).join("disks/disk0/head.raw")).unwrap();
        let is_mixed = head.len() == 40 * 4096 && head != shadow.disks()[0];
        if store.status().unwrap().applying && is_mixed {
            drop(store);
            rot(&disk, &path, 600);
            return (disk, shadow, point);
        }
    }
    panic!("no crash left a delta half applied");
}

#[test]
fn a_point_can_be_failed_over_to_while_a_rotten_delta_is_half_applied() {
    let (disk, shadow, point) = half_applied_and_rotten();
    let mut store = open(&disk);
    compare_points(&store, &shadow).unwrap();
    let error = store.seal().unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    drop(store);
    let mut store = open(&disk);
    let applied = store.start_failover(FailoverTarget::Applied, OTHER, NOW, &mut |_| {});
    assert!(
        matches!(applied, Err(StoreError::Damaged { .. })),
        "{applied:?}"
    );
    drop(store);

    let mut store = open(&disk);
    store
        .start_failover(FailoverTarget::Point(point), OTHER, NOW, &mut |_| {})
        .unwrap();
    drop(store);
    let mut store = open(&disk);
    let guest = read_failover_disk(&store, &shadow.names()[0]).unwrap();
    assert!(guest == shadow.at(point)[0]);
    store.commit(&mut |_| {}).unwrap();
    drop(store);
    let store = open(&disk);
    assert_eq!(store.role(), Role::Committed);
    let head = read_file(&disk, &Path::new(ROOT).join("disks/disk0/head.raw")).unwrap();
    assert!(head == shadow.at(point)[0]);
}

#[test]
fn a_whole_delta_goes_over_a_rotten_one_that_is_half_applied() {
    for fail_over_first in [false, true] {
        let (disk, mut shadow, point) = half_applied_and_rotten();
        let mut store = open(&disk);
        if fail_over_first {
            store
                .start_failover(FailoverTarget::Point(point), OTHER, NOW, &mut |_| {})
                .unwrap();
            store.revert_failover().unwrap();
            compare_points(&store, &shadow).unwrap();
        }
        shadow.resize(0, 50 * 4096);
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture_whole()[..]).unwrap();
        drop(store);
        let mut store = open(&disk);
        apply_all(&mut store);
        let newest = store.make_point(NOW, PointKind::Standard).unwrap();
        compare_point(&store, newest, &shadow).unwrap();
        compare_points(&store, &shadow).unwrap();
        store.seal().unwrap();
        drop(store);
        let store = open(&disk);
        compare_points(&store, &shadow).unwrap();
        assert_eq!(store.verify(&mut |_| {}).unwrap().findings, []);
    }
}

#[test]
fn what_others_put_into_the_spool_is_never_applied() {
    let (disk, mut shadow, mut store) = replica(&[16 * 4096]);
    write_block(&mut shadow, 3, 1);
    let stream = shadow.capture();
    let sequence = store.receive(&stream[..]).unwrap().receipt.sequence;
    drop(store);
    let spool = Path::new(ROOT).join("spool");
    let put = |name: &str, bytes: &[u8]| {
        let file = disk.create(&spool.join(name)).unwrap();
        file.write_at(bytes, 0).unwrap();
    };
    let mut other = ShadowVm::new(7, &[16 * 4096, 4096]);
    other.capture();
    other.capture();
    let foreign = other.capture();
    put(&format!("{}-00{sequence}.delta", shadow.lineage), &stream);
    put(&format!("{}-+{sequence}.delta", shadow.lineage), &stream);
    put(&format!("{}-3.delta", shadow.lineage), &foreign);
    put(&format!("{}-99.delta", shadow.lineage), b"nonsense");
    put(&format!("{}-.delta", shadow.lineage), b"");
    put("what.part", b"");
    disk.create_dir(&spool.join("folder.part")).unwrap();
    disk.create_dir(&spool.join(format!("{}-7.delta", shadow.lineage)))
        .unwrap();
    let mut store = open(&disk);
    assert_eq!(
        store.apply_next(&mut |_| {}).unwrap().unwrap().sequence,
        sequence
    );
    assert!(store.apply_next(&mut |_| {}).is_err());
    drop(store);
    let mut store = open(&disk);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, point, &shadow).unwrap();
}

#[test]
fn a_full_disk_keeps_nobody_from_failing_over_to_a_point() {
    for sizes in [vec![16 * 4096], vec![64 * 4096; 30]] {
        let (disk, mut shadow, mut store) = replica(&sizes);
        let mut points = Vec::new();
        for byte in 0..3 {
            points.push(store.make_point(NOW, PointKind::Standard).unwrap());
            write_block(&mut shadow, byte, 1 + byte as u8);
            store.receive(&shadow.capture()[..]).unwrap();
            apply_all(&mut store);
        }
        write_block(&mut shadow, 9, 9);
        store.receive(&shadow.capture()[..]).unwrap();
        disk.limit_capacity(Some(disk.occupied()));
        for target in [FailoverTarget::Point(points[1]), FailoverTarget::Applied] {
            let lineage = LineageId::from_bytes([8; 16]);
            store
                .start_failover(target, lineage, NOW, &mut |_| {})
                .unwrap_or_else(|error| panic!("{} disks, {target:?}: {error:?}", sizes.len()));
            store.revert_failover().unwrap();
        }
    }
}

#[test]
fn a_failed_over_store_that_was_moved_names_its_own_head() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let mut shadow = ShadowVm::new(7, &[16 * 4096]);
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    let mut store = Store::init(Arc::clone(&disk), &old, &shadow.new_store(), "test").unwrap();
    shadow.work(Activity::BLOCKS);
    store.receive(&shadow.capture()[..]).unwrap();
    store
        .start_failover(FailoverTarget::Newest, OTHER, NOW, &mut |_| {})
        .unwrap();
    drop(store);
    std::fs::rename(&old, &new).unwrap();
    let store = Store::open(disk, &new, "test").unwrap();
    let wrapper = std::fs::read(new.join("disks/disk0/disk.qcow2")).unwrap();
    let names = |path: &Path| {
        let text = path.to_str().unwrap().as_bytes();
        wrapper.windows(text.len()).any(|window| window == text)
    };
    assert!(names(&new.join("disks/disk0/head.raw")));
    assert!(!names(&old.join("disks/disk0/head.raw")));
    assert_eq!(store.role(), Role::FailedOver);
}

#[test]
fn a_full_disk_keeps_nobody_from_removing_points() {
    let (disk, mut shadow, mut store) = replica(&[64 * 4096]);
    for _ in 0..5 {
        store.make_point(NOW, PointKind::Standard).unwrap();
        shadow.work(Activity::BLOCKS);
        store.receive(&shadow.capture()[..]).unwrap();
        apply_all(&mut store);
    }
    store.seal().unwrap();
    let files = disk.occupied();
    disk.limit_capacity(Some(files + 3 * 4096));
    let points = store.points();
    store.remove_point(points[2].sequence).unwrap();
    compare_points(&store, &shadow).unwrap();
    assert_eq!(store.status().unwrap().segments, 5);
    store.remove_point(points[0].sequence).unwrap();
    compare_points(&store, &shadow).unwrap();
    disk.limit_capacity(None);
    store.remove_point(points[4].sequence).unwrap();
    compare_points(&store, &shadow).unwrap();
    assert_eq!(store.points().len(), 2);
    assert_eq!(store.status().unwrap().segments, 2);
}

#[test]
fn a_file_put_into_the_trash_keeps_nobody_from_the_committed_disks() {
    let (disk, _shadow, mut store) = replica(&[16 * 4096]);
    store
        .start_failover(FailoverTarget::Newest, OTHER, NOW, &mut |_| {})
        .unwrap();
    store.commit(&mut |_| {}).unwrap();
    drop(store);
    disk.create(&Path::new(ROOT).join("trash/note")).unwrap();
    let store = open(&disk);
    assert_eq!(store.role(), Role::Committed);
    assert!(
        disk.list(&Path::new(ROOT).join("trash"))
            .unwrap()
            .is_empty()
    );
}
