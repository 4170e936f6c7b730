//! The dangers that reviews of the design found, each as a test by its number.
//!
//! Those that are not here are covered elsewhere in this crate:
//! - S1-1 (what is saved is decidable), S2-16 (preimages before any write of the head):
//!   `power_loss.rs`, every operation at every call; `crashes_of_the_process.rs` of the harness;
//! - S1-3 (a number names one content): `hostile_input.rs`,
//!   `a_number_names_one_content_for_ever`, `a_replayed_delta_changes_nothing_however_late_it_comes`;
//! - S1-9 (locks of QEMU): `sealed_points_open_in_qemu.rs`,
//!   `qemu_is_kept_away_from_the_images_of_an_open_replica` and its neighbors;
//! - S1-10 (an acknowledged delta can be applied): `full_disk_and_io_errors.rs`,
//!   `what_has_a_receipt_is_applied_on_a_full_xfs` and its neighbors; a rotten one:
//!   `tampered_files.rs`, `a_waiting_delta_that_has_rotted_is_never_applied`;
//! - S2-6 (absolute names of heads): `sealed_points_open_in_qemu.rs`,
//!   `a_moved_store_reads_its_own_disks_and_not_those_it_was_copied_from`;
//! - S2-9 (readers beside the applier): `points_are_read_while_deltas_are_applied.rs`;
//! - S2-13 (rot of the head): `tampered_files.rs`, `a_rotten_head_is_found_by_verify`;
//! - S2-16 (failed syncs): `full_disk_and_io_errors.rs`,
//!   `a_failed_sync_stops_the_store_until_it_is_opened_again`; (shared blocks): `xfs_shares_blocks.rs`.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_harness::{
    Activity, Random, ShadowVm, compare_image, compare_point, compare_points, qemu_io,
    read_failover_disk,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{Consistency, LineageId, Sequence, Timestamp};
use lifeboat_store::{FailoverTarget, NewStore, Refused, Store, StoreError};
use lifeboat_stream::{Base, Compression, Disk, Encoder, Header, Kind, Layout, Manifest, Options};
use lifeboat_sys::disk::{DiskPort, RealDisk, Recorder};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_micros(1);
const LINEAGE: LineageId = LineageId::from_bytes([0xDA; 16]);
const MIB: u64 = 1 << 20;

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm) {
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(store);
}

fn random_bytes(len: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    Random::new(seed).fill(&mut bytes);
    bytes
}

/// A store on real files, with nothing in it yet.
fn on_files(sizes: &[u64]) -> (TempDir, PathBuf, Store, ShadowVm) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let shadow = ShadowVm::new(1, sizes);
    let store = Store::init(Arc::new(RealDisk), &root, &shadow.new_store(), "test").unwrap();
    (folder, root, store, shadow)
}

/// A store in memory, with nothing in it yet.
fn in_memory(sizes: &[u64]) -> (Store, ShadowVm) {
    let disk: Arc<dyn DiskPort> = Arc::new(Recorder::new());
    let shadow = ShadowVm::new(1, sizes);
    let store = Store::init(disk, Path::new("/store"), &shadow.new_store(), "test").unwrap();
    (store, shadow)
}

#[test]
fn s1_2_a_wrapper_used_by_a_guest_is_made_anew() {
    let (_folder, root, mut store, mut shadow) = on_files(&[8 * MIB]);
    shadow.write(0, 0, &random_bytes(2 * MIB, 1));
    deliver(&mut store, &mut shadow);
    drop(store);
    // A guest on the wrapper zeroes what is zero: entries of the wrapper say so from now on.
    let wrapper = root.join("disks/disk0/disk.qcow2");
    let pristine = std::fs::read(&wrapper).unwrap();
    qemu_io("qcow2", &wrapper, &["write -z 4M 2M".to_owned()]).unwrap();
    assert!(
        std::fs::read(&wrapper).unwrap() != pristine,
        "no entry was changed"
    );
    let mut store = Store::open(Arc::new(RealDisk), &root, "test").unwrap();
    shadow.write(0, 4 * MIB, &random_bytes(2 * MIB, 2));
    deliver(&mut store, &mut shadow);
    let started = store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    compare_image(&started.disks[0].image, &shadow.disks()[0]).unwrap();
}

#[test]
fn s1_2_a_wrapper_is_as_long_as_its_disk_when_a_guest_starts() {
    let (_folder, _, mut store, mut shadow) = on_files(&[MIB]);
    for size in [5 * MIB, 3 * MIB + 512] {
        shadow.resize(0, size);
        shadow.write(0, size - 4096, &random_bytes(4096, size));
        deliver(&mut store, &mut shadow);
        let started = store
            .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
            .unwrap();
        compare_image(&started.disks[0].image, &shadow.disks()[0]).unwrap();
        store.revert_failover().unwrap();
    }
}

#[test]
fn s1_2_a_wrapper_that_a_committed_guest_uses_is_left_alone() {
    let (_folder, root, mut store, mut shadow) = on_files(&[8 * MIB]);
    shadow.write(0, 0, &random_bytes(8 * MIB, 1));
    deliver(&mut store, &mut shadow);
    store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    store.commit(&mut |_| {}).unwrap();
    let wrapper = root.join("disks/disk0/disk.qcow2");
    qemu_io("qcow2", &wrapper, &["write -z 4M 2M".to_owned()]).unwrap();
    let used = (
        std::fs::read(&wrapper).unwrap(),
        std::fs::metadata(&wrapper).unwrap().ino(),
    );
    drop(store);
    // Somebody asks for the state of the store while the guest runs.
    drop(Store::open(Arc::new(RealDisk), &root, "test").unwrap());
    assert!(std::fs::read(&wrapper).unwrap() == used.0);
    assert_eq!(std::fs::metadata(&wrapper).unwrap().ino(), used.1);
    let mut expected = shadow.disks()[0].clone();
    expected[4 * MIB as usize..6 * MIB as usize].fill(0);
    compare_image(&wrapper, &expected).unwrap();
    assert!(std::fs::read(root.join("disks/disk0/head.raw")).unwrap() == expected);
}

#[test]
fn s1_8_commit_of_an_older_point_after_growth_reads_zeroes_beyond() {
    let (_folder, _, mut store, mut shadow) = on_files(&[3 * MIB + 512]);
    shadow.write(0, 0, &random_bytes(3 * MIB + 512, 1));
    deliver(&mut store, &mut shadow);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    shadow.resize(0, 5 * MIB);
    shadow.write(0, 3 * MIB, &random_bytes(2 * MIB, 2));
    deliver(&mut store, &mut shadow);
    let started = store
        .start_failover(FailoverTarget::Point(point), LINEAGE, NOW, &mut |_| {})
        .unwrap();
    assert_eq!(started.disks[0].size.bytes(), 5 * MIB);
    let mut expected = shadow.at(point)[0].clone();
    expected.resize(5 * MIB as usize, 0);
    compare_image(&started.disks[0].image, &expected).unwrap();
    assert!(read_failover_disk(&store, &shadow.names()[0]).unwrap() == expected);
    store.commit(&mut |_| {}).unwrap();
    assert!(std::fs::read(&started.disks[0].head).unwrap() == expected);
}

#[test]
fn s1_9_a_sealed_segment_never_changes() {
    let (_folder, root, mut store, mut shadow) = on_files(&[2 * MIB]);
    shadow.work(Activity::MIXED);
    deliver(&mut store, &mut shadow);
    store.make_point(NOW, PointKind::Standard).unwrap();
    shadow.work(Activity::MIXED);
    deliver(&mut store, &mut shadow);
    store.make_point(NOW, PointKind::Standard).unwrap();
    store.seal().unwrap();
    let sealed = root.join("disks/disk0/seg/1.qcow2");
    let bytes = std::fs::read(&sealed).unwrap();
    let mut held = File::open(&sealed).unwrap();
    for _ in 0..3 {
        shadow.work(Activity::MIXED);
        deliver(&mut store, &mut shadow);
        store.make_point(NOW, PointKind::Standard).unwrap();
        store.seal().unwrap();
    }
    assert!(std::fs::read(&sealed).unwrap() == bytes);
    // A merge makes another file: who has this one open reads on what it was.
    let second = store.points()[1].sequence;
    store.remove_point(second).unwrap();
    assert!(
        std::fs::read(&sealed).unwrap() != bytes,
        "nothing was merged"
    );
    let mut still = Vec::new();
    held.read_to_end(&mut still).unwrap();
    assert!(still == bytes);
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn s1_11_hole_and_zero_preimages_are_written_down() {
    let size = 2 * MIB + 512;
    let (_folder, root, mut store, mut shadow) = on_files(&[size]);
    // Blocks 0 to 15 hold zeroes that were written, all others are holes.
    shadow.write(0, 0, &random_bytes(16 * 4096, 1));
    deliver(&mut store, &mut shadow);
    shadow.write(0, 0, &[0; 16 * 4096]);
    deliver(&mut store, &mut shadow);
    let head = File::options()
        .write(true)
        .open(root.join("disks/disk0/head.raw"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&head, &[0; 16 * 4096], 0).unwrap();
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    // All of it, the partial last block too, gets data.
    shadow.write(0, 0, &random_bytes(size, 2));
    deliver(&mut store, &mut shadow);
    assert!(shadow.at(point)[0].iter().all(|&byte| byte == 0));
    compare_point(&store, point, &shadow).unwrap();
    store.seal().unwrap();
    let image = store.points()[0].disks[0].image.clone();
    drop(store);
    compare_image(&image, &shadow.at(point)[0]).unwrap();
}

#[test]
fn s2_7_preimages_of_scattered_blocks_take_little_more_than_themselves() {
    let (_folder, root, mut store, mut shadow) = on_files(&[64 * MIB]);
    shadow.write(0, 0, &random_bytes(64 * MIB, 1));
    deliver(&mut store, &mut shadow);
    store.make_point(NOW, PointKind::Standard).unwrap();
    let mut random = Random::new(2);
    let mut blocks = std::collections::BTreeSet::new();
    while blocks.len() < 1000 {
        blocks.insert(random.below(64 * MIB / 4096));
    }
    for block in blocks {
        shadow.write(0, block * 4096, &random_bytes(4096, block));
    }
    deliver(&mut store, &mut shadow);
    store.seal().unwrap();
    let sealed = std::fs::metadata(root.join("disks/disk0/seg/1.qcow2")).unwrap();
    let occupied = sealed.blocks() * 512;
    assert!(
        occupied < 1000 * 4096 * 5 / 4,
        "1000 blocks of 4 KiB occupy {occupied} bytes"
    );
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn s2_8_the_chain_is_capped() {
    let (mut store, mut shadow) = in_memory(&[200 * 512]);
    shadow.work(Activity::MIXED);
    deliver(&mut store, &mut shadow);
    let mut refused = 0;
    for _ in 0..40 {
        match store.make_point(NOW, PointKind::Standard) {
            Ok(_) => {}
            Err(StoreError::Refused(Refused::TooManySegments { .. })) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        store.seal().unwrap();
        assert!(store.status().unwrap().segments <= 32);
        shadow.work(Activity::MIXED);
        deliver(&mut store, &mut shadow);
        assert!(store.status().unwrap().segments <= 32);
    }
    assert!(refused > 0, "40 points were made");
    compare_points(&store, &shadow).unwrap();
    // A removed point in the middle makes room.
    let points = store.points();
    store
        .remove_point(points[points.len() / 2].sequence)
        .unwrap();
    store.make_point(NOW, PointKind::Standard).unwrap();
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn s2_10_failover_to_newest_applies_the_spool_first() {
    let (mut store, mut shadow) = in_memory(&[200 * 512, 100 * 512]);
    shadow.work(Activity::MIXED);
    deliver(&mut store, &mut shadow);
    let applied = store.applied();
    for _ in 0..3 {
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture()[..]).unwrap();
    }
    // What is applied starts at once, and what waits is kept for a revert.
    let started = store
        .start_failover(FailoverTarget::Applied, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    assert_eq!(started.sequence, applied);
    for (name, expected) in shadow.names().iter().zip(shadow.at(applied)) {
        assert!(read_failover_disk(&store, name).unwrap() == *expected);
    }
    store.revert_failover().unwrap();
    assert_eq!(store.pending().len(), 3);
    let mut told = 0;
    let started = store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |bytes| {
            told += bytes;
        })
        .unwrap();
    assert_eq!(
        Some(started.sequence),
        shadow.newest().map(|(sequence, _)| sequence)
    );
    assert!(told > 0, "no progress was told");
    for (name, expected) in shadow.names().iter().zip(shadow.disks()) {
        assert!(read_failover_disk(&store, name).unwrap() == *expected);
    }
}

/// Writes a stream of one disk of 2 GiB to a file.
fn write_stream(path: &Path, new: &NewStore, base: Option<Base>, data: u64) -> Base {
    let (disk, size) = new.disks[0].clone();
    let sequence = base.map_or(Sequence::new(1), |base| base.sequence.next().unwrap());
    let header = Header {
        relationship: new.relationship,
        lineage: new.lineage,
        base,
        sequence,
        kind: if base.is_some() {
            Kind::Delta
        } else {
            Kind::Initial
        },
    };
    let disks = vec![Disk { id: disk, size }];
    let manifest = Manifest::new(NOW, Consistency::Crash, disks).unwrap();
    let options = Options {
        compression: Compression::None,
        layout: Layout::Compact,
    };
    let file = BufWriter::new(File::create(path).unwrap());
    let mut encoder = Encoder::new(file, &header, &manifest, options).unwrap();
    if base.is_none() {
        let bytes = random_bytes(MIB, 1);
        for offset in (0..data).step_by(MIB as usize) {
            encoder.data(0, offset, &bytes).unwrap();
        }
        encoder.zero(0, data, size.bytes() - data).unwrap();
    } else {
        encoder.zero(0, 0, data).unwrap();
    }
    let id = encoder.finish().unwrap().0.id;
    Base { sequence, id }
}

#[test]
fn s2_12_a_trim_of_much_gives_the_head_space_back_in_slices() {
    const DATA: u64 = 384 * MIB;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let mut new = ShadowVm::new(1, &[512]).new_store();
    new.disks[0].1 = (2048 * MIB).try_into().unwrap();
    let mut store = Store::init(Arc::new(RealDisk), &root, &new, "test").unwrap();
    let stream = folder.path().join("stream");
    let base = write_stream(&stream, &new, None, DATA);
    store.receive(File::open(&stream).unwrap()).unwrap();
    apply_all(&mut store);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    write_stream(&stream, &new, Some(base), DATA);
    assert!(std::fs::metadata(&stream).unwrap().len() < 64 << 10);
    store.receive(File::open(&stream).unwrap()).unwrap();

    let disk = root.join("disks/disk0");
    let occupied = |name: &str| std::fs::metadata(disk.join(name)).unwrap().blocks() * 512;
    let before = occupied("head.raw");
    assert!(before >= DATA);
    let (mut most, mut steps) = (0, 0);
    let applied = store.apply_next(&mut |_| {
        most = most.max(occupied("head.raw") + occupied("seg/1.open"));
        steps += 1;
    });
    assert_eq!(applied.unwrap().unwrap().changed_bytes, DATA);
    assert!(steps >= 4, "applied in {steps} slices");
    assert!(
        most < before + before / 4,
        "{most} bytes were occupied, {before} before"
    );
    assert!(occupied("head.raw") < MIB);
    // The point keeps all of it.
    let reader = store.reader(point, &new.disks[0].0).unwrap();
    let (expected, mut bytes) = (random_bytes(MIB, 1), vec![0; MIB as usize]);
    for offset in (0..DATA).step_by(61 * MIB as usize) {
        reader.read_at(offset, &mut bytes).unwrap();
        assert!(bytes == expected, "at {offset}");
    }
}

#[test]
fn s2_16_two_changes_of_one_block_save_it_once_and_whole() {
    let (mut store, mut shadow) = in_memory(&[100 * 512]);
    shadow.write(0, 0, &random_bytes(100 * 512, 1));
    deliver(&mut store, &mut shadow);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    // Two sectors of each block, apart, travel as two frames.
    for block in 0..12 {
        shadow.write(0, block * 4096, &random_bytes(512, block));
        shadow.write(0, block * 4096 + 2048, &random_bytes(512, block + 100));
    }
    deliver(&mut store, &mut shadow);
    compare_point(&store, point, &shadow).unwrap();
}
