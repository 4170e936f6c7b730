//! Files and folders of a store that somebody has tampered with: refused by name, never a
//! panic, nothing followed, and what is intact stays of use.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_harness::{Activity, Random, ShadowVm, compare_point, compare_points, copy_folder};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Timestamp};
use lifeboat_store::{FailoverTarget, Refused, Role, Store, StoreError};
use lifeboat_sys::disk::RealDisk;
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_micros(1);

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm) {
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(store);
}

/// A replica on real files that is closed, to be tampered with.
struct Closed {
    folder: TempDir,
    shadow: ShadowVm,
}

impl Closed {
    /// Two points (the older one sealed or not), one delta waiting.
    fn new(seal: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut shadow = ShadowVm::new(3, &[1 << 20]);
        let root = folder.path().join("store");
        let mut store =
            Store::init(Arc::new(RealDisk), &root, &shadow.new_store(), "test").unwrap();
        for _ in 0..2 {
            deliver(&mut store, &mut shadow);
            store.make_point(NOW, PointKind::Standard).unwrap();
        }
        deliver(&mut store, &mut shadow);
        if seal {
            store.seal().unwrap();
        }
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture()[..]).unwrap();
        Self { folder, shadow }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("store").join(name)
    }

    fn delta(&self) -> PathBuf {
        let (sequence, _) = self.shadow.newest().unwrap();
        self.path(&format!("spool/{}-{sequence}.delta", self.shadow.lineage))
    }

    fn open(&self) -> Result<Store, StoreError> {
        Store::open(Arc::new(RealDisk), &self.path(""), "test")
    }

    /// The store opens, its points are right, verify names the delta, and it is not applied.
    fn refused_to_apply(&self, delta: &Path) {
        let mut store = self.open().unwrap();
        let applied = store.applied();
        let found = store.verify(&mut |_| {}).unwrap().findings;
        assert!(
            found.iter().any(|finding| finding.path == delta),
            "{found:?}"
        );
        match store.apply_next(&mut |_| {}) {
            Err(StoreError::Damaged { path, .. }) => assert_eq!(path, delta),
            other => panic!("{} was tampered with: {other:?}", delta.display()),
        }
        drop(store);
        let store = self.open().unwrap();
        assert_eq!(store.applied(), applied);
        compare_points(&store, &self.shadow).unwrap();
    }

    /// The damage that opening names, of this file.
    fn damage_of(&self, path: &Path) -> String {
        match self.open() {
            Err(StoreError::Damaged {
                path: found,
                damage,
            }) => {
                assert_eq!(
                    found.components().collect::<PathBuf>(),
                    path.components().collect::<PathBuf>(),
                    "{damage}"
                );
                damage.to_string()
            }
            Err(error) => panic!("no damage of {}: {error:?}", path.display()),
            Ok(_) => panic!("{} was tampered with unnoticed", path.display()),
        }
    }
}

fn change_byte(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_waiting_delta_that_has_rotted_is_never_applied() {
    let closed = Closed::new(false);
    let delta = closed.delta();
    let intact = std::fs::read(&delta).unwrap();
    let mut random = Random::new(5);
    for at in (0..intact.len())
        .step_by(intact.len() / 60)
        .chain([intact.len() - 1])
    {
        let mut rotten = intact.clone();
        rotten[at] ^= 1 << random.below(8);
        std::fs::write(&delta, &rotten).unwrap();
        closed.refused_to_apply(&delta);
    }
    std::fs::write(&delta, &intact).unwrap();
    let mut store = closed.open().unwrap();
    apply_all(&mut store);
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &closed.shadow).unwrap();
}

#[test]
fn a_waiting_delta_under_another_number_is_refused() {
    let closed = Closed::new(false);
    let delta = closed.delta();
    let renamed = closed.path(&format!("spool/{}-9.delta", closed.shadow.lineage));
    std::fs::rename(&delta, &renamed).unwrap();
    closed.refused_to_apply(&renamed);
    std::fs::rename(&renamed, &delta).unwrap();
    assert_eq!(closed.open().unwrap().pending().len(), 1);
}

#[test]
fn a_delta_whose_base_is_gone_from_the_spool_is_never_applied() {
    let mut closed = Closed::new(false);
    let lost = closed.delta();
    let mut store = closed.open().unwrap();
    closed.shadow.work(Activity::MIXED);
    store.receive(&closed.shadow.capture()[..]).unwrap();
    drop(store);
    let kept = std::fs::read(&lost).unwrap();
    std::fs::remove_file(&lost).unwrap();
    closed.refused_to_apply(&closed.delta());
    std::fs::write(&lost, kept).unwrap();
    let mut store = closed.open().unwrap();
    apply_all(&mut store);
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &closed.shadow).unwrap();
}

#[test]
fn the_loss_of_the_newest_waiting_delta_shows_in_the_tip() {
    let closed = Closed::new(false);
    std::fs::remove_file(closed.delta()).unwrap();
    let store = closed.open().unwrap();
    let (newest, _) = closed.shadow.newest().unwrap();
    assert_eq!(store.tip().next(), Some(newest));
    compare_points(&store, &closed.shadow).unwrap();
}

#[test]
fn a_journal_with_a_changed_byte_in_its_middle_is_refused_and_a_torn_end_is_not() {
    let closed = Closed::new(false);
    let mut store = closed.open().unwrap();
    apply_all(&mut store);
    for _ in 0..3 {
        store.make_point(NOW, PointKind::Standard).unwrap();
    }
    drop(store);
    let journal = closed.path("journal");
    let intact = std::fs::read(&journal).unwrap();
    for at in (0..intact.len() / 2).step_by(41) {
        std::fs::write(&journal, &intact).unwrap();
        change_byte(&journal, at);
        closed.damage_of(&journal);
    }
    for torn in [1, 7, 31, 100] {
        std::fs::write(
            &journal,
            [&intact[..], &intact[..torn.min(intact.len())]].concat(),
        )
        .unwrap();
        compare_points(&closed.open().unwrap(), &closed.shadow).unwrap();
    }
}

#[test]
fn a_symlink_in_place_of_a_file_is_never_followed() {
    let closed = Closed::new(false);
    let secret = closed.folder.path().join("secret");
    std::fs::write(&secret, b"not to be touched").unwrap();
    for name in [
        "disks/disk0/head.raw",
        "disks/disk0/digests",
        "disks/disk0/seg/2.open",
        "disks/disk0/seg/2.idx",
        "journal",
        "lock",
        "spool/reserve",
    ] {
        let path = closed.path(name);
        let kept = closed.folder.path().join("kept");
        std::fs::rename(&path, &kept).unwrap();
        symlink(&secret, &path).unwrap();
        assert!(closed.open().is_err(), "{name} is followed");
        assert_eq!(
            std::fs::read(&secret).unwrap(),
            b"not to be touched",
            "{name}"
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&kept, &path).unwrap();
    }
    // Names that are about to be made anew: the symlink goes, its target stays.
    let part = format!("spool/{}-9.0.part", closed.shadow.lineage);
    for name in [
        part.as_str(),
        "journal.new",
        "disks/disk0/disk.qcow2.new",
        "disks/disk0/seg/3.open",
        "disks/disk0/seg/3.idx",
        "points/9.json.new",
        "failover/disk0.qcow2",
    ] {
        symlink(&secret, closed.path(name)).unwrap();
    }
    let mut store = closed.open().unwrap();
    apply_all(&mut store);
    store.make_point(NOW, PointKind::Standard).unwrap();
    compare_points(&store, &closed.shadow).unwrap();
    assert_eq!(std::fs::read(&secret).unwrap(), b"not to be touched");
}

#[test]
fn a_part_planted_while_the_store_is_open_is_not_written_through() {
    let mut closed = Closed::new(false);
    let mut store = closed.open().unwrap();
    closed.shadow.work(Activity::MIXED);
    let stream = closed.shadow.capture();
    let secret = closed.folder.path().join("secret");
    std::fs::write(&secret, b"not to be touched").unwrap();
    let (sequence, _) = closed.shadow.newest().unwrap();
    symlink(
        &secret,
        closed.path(&format!(
            "spool/{}-{sequence}.0.part",
            closed.shadow.lineage
        )),
    )
    .unwrap();
    store.receive(&stream[..]).unwrap();
    assert_eq!(std::fs::read(&secret).unwrap(), b"not to be touched");
}

#[test]
fn a_head_that_somebody_has_resized_is_refused() {
    let closed = Closed::new(false);
    let head = closed.path("disks/disk0/head.raw");
    let file = std::fs::OpenOptions::new().write(true).open(&head).unwrap();
    for size in [0, 512, (1 << 20) - 512, (1 << 20) + 512, 1 << 30] {
        file.set_len(size).unwrap();
        closed.damage_of(&head);
    }
}

#[test]
fn an_index_or_a_segment_that_was_cut_is_refused() {
    for (seal, names) in [
        (false, ["1.idx", "2.idx", "1.open", "2.open"]),
        (true, ["1.idx", "2.idx", "1.qcow2", "2.qcow2"]),
    ] {
        let closed = Closed::new(seal);
        for name in names {
            let path = closed.path(&format!("disks/disk0/seg/{name}"));
            let intact = std::fs::read(&path).unwrap();
            // Metadata of a sealed segment follows what the journal counts; the half is data.
            std::fs::write(&path, &intact[..intact.len() / 2 / 64 * 64]).unwrap();
            closed.damage_of(&path);
            std::fs::write(&path, &intact).unwrap();
        }
        compare_points(&closed.open().unwrap(), &closed.shadow).unwrap();
    }
}

#[test]
fn a_changed_index_record_is_named_and_never_misread() {
    let closed = Closed::new(true);
    let path = closed.path("disks/disk0/seg/1.idx");
    let intact = std::fs::read(&path).unwrap();
    for at in (0..intact.len()).step_by(intact.len() / 20 + 1) {
        std::fs::write(&path, &intact).unwrap();
        change_byte(&path, at);
        let store = closed.open().unwrap();
        let points = store.points();
        let mut bytes = vec![0; 1 << 20];
        let reader = store
            .reader(points[0].sequence, &closed.shadow.names()[0])
            .unwrap();
        assert!(reader.read_at(0, &mut bytes).is_err(), "byte {at}");
        compare_point(&store, points[1].sequence, &closed.shadow).unwrap();
        let found = store.verify(&mut |_| {}).unwrap().findings;
        assert!(
            found
                .iter()
                .any(|finding| finding.path == path && finding.points == [points[0].sequence]),
            "byte {at}: {found:?}"
        );
    }
}

/// The first byte of guest data in a segment of random bytes: its second cluster.
const FIRST_DATA: usize = 128 << 10;

/// Where a segment's data file holds something.
fn some_data(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    FIRST_DATA
        + bytes[FIRST_DATA..]
            .iter()
            .position(|&byte| byte != 0)
            .unwrap()
}

#[test]
fn a_rotten_segment_is_found_by_verify_with_the_points_it_spoils() {
    let closed = Closed::new(true);
    for (name, spoiled) in [("1.qcow2", 1), ("2.qcow2", 2)] {
        let path = closed.path(&format!("disks/disk0/seg/{name}"));
        let at = some_data(&path);
        change_byte(&path, at);
        let store = closed.open().unwrap();
        let points: Vec<_> = store.points().iter().map(|point| point.sequence).collect();
        let found = store.verify(&mut |_| {}).unwrap().findings;
        let of_this: Vec<_> = found
            .iter()
            .filter(|finding| finding.path == path)
            .collect();
        assert!(!of_this.is_empty(), "{name} is not found: {found:?}");
        assert_eq!(of_this.len(), found.len(), "{found:?}");
        assert!(
            of_this
                .iter()
                .all(|finding| finding.points == points[..spoiled]),
            "{found:?}"
        );
        drop(store);
        change_byte(&path, at);
    }
    assert_eq!(
        closed.open().unwrap().verify(&mut |_| {}).unwrap().findings,
        []
    );
}

#[test]
fn a_rotten_head_is_found_by_verify() {
    let closed = Closed::new(true);
    let head = closed.path("disks/disk0/head.raw");
    let store = closed.open().unwrap();
    assert_eq!(store.verify(&mut |_| {}).unwrap().findings, []);
    drop(store);
    let at = std::fs::read(&head)
        .unwrap()
        .iter()
        .position(|&byte| byte != 0)
        .unwrap();
    change_byte(&head, at);
    let found = closed.open().unwrap().verify(&mut |_| {}).unwrap().findings;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].path.as_path(), found[0].points.len()),
        (head.as_path(), 2)
    );
}

#[test]
fn a_commit_finds_a_rotten_segment_before_anything_is_changed() {
    let closed = Closed::new(true);
    let mut store = closed.open().unwrap();
    let point = store.points()[0].sequence;
    let started = store
        .start_failover(
            FailoverTarget::Point(point),
            LineageId::from_bytes([9; 16]),
            NOW,
            &mut |_| {},
        )
        .unwrap();
    let rotten = closed.path("disks/disk0/seg/2.qcow2");
    let at = some_data(&rotten);
    change_byte(&rotten, at);
    let head = std::fs::read(&started.disks[0].head).unwrap();
    for _ in 0..2 {
        match store.commit(&mut |_| {}) {
            Err(StoreError::Damaged { path, .. }) => assert_eq!(path, rotten),
            other => panic!("{other:?}"),
        }
        assert_eq!(store.role(), Role::FailedOver);
        assert!(std::fs::read(&started.disks[0].head).unwrap() == head);
    }
    // The guest may be started again: nothing keeps QEMU from the images.
    let image = started.disks[0].image.to_str().unwrap();
    let output =
        lifeboat_harness::run_tool("qemu-io", &["-f", "qcow2", "-c", "read 0 512", image]).unwrap();
    assert!(output.status.success(), "{output:?}");
    change_byte(&rotten, at);
    store.revert_failover().unwrap();
    compare_points(&store, &closed.shadow).unwrap();
    apply_all(&mut store);
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &closed.shadow).unwrap();
}

#[test]
fn a_folder_copied_under_a_running_store_is_a_store_of_its_own() {
    let closed = Closed::new(false);
    let store = closed.open().unwrap();
    let copy = closed.folder.path().join("copy");
    copy_folder(&closed.path(""), &copy).unwrap();
    let second = Store::open(Arc::new(RealDisk), &copy, "test").unwrap();
    compare_points(&second, &closed.shadow).unwrap();
    assert!(matches!(
        closed.open(),
        Err(StoreError::Refused(Refused::InUse { holder })) if holder == "test"
    ));
    drop(store);
    closed.open().unwrap();
}
