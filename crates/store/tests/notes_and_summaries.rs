//! What others can know of a store: its owner's note, and its summary.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{Activity, ShadowVm};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Timestamp};
use lifeboat_store::{
    CopyKind, FailoverTarget, MAX_NOTE, NewCopy, Refused, Standing, Store, StoreError,
};
use lifeboat_sys::disk::{Access, CrashChoice, DiskPort, RealDisk, Recorder};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);
const OTHER: LineageId = LineageId::from_bytes([9; 16]);

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

fn open(disk: &Recorder) -> Store {
    Store::open(port(disk), Path::new(ROOT), "test").unwrap()
}

fn new_store(disk: &Recorder, seed: u64) -> (ShadowVm, Store) {
    let shadow = ShadowVm::new(seed, &[16 * 4096, 8 * 4096]);
    let store = Store::init(port(disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    (shadow, store)
}

fn receive(shadow: &mut ShadowVm, store: &mut Store) {
    shadow.work(Activity::BLOCKS);
    store.receive(&shadow.capture()[..]).unwrap();
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

#[test]
fn a_crash_leaves_the_note_before_or_the_new_one() {
    let (old, new) = (vec![1; 9000], vec![2; 5000]);
    let disk = Recorder::new();
    let (_, store) = new_store(&disk, 1);
    store.keep_note(&old).unwrap();
    disk.start_recording();
    store.keep_note(&new).unwrap();
    let recording = disk.recording();
    drop(store);
    let mut seen = [false; 2];
    for calls in 0..=recording.len() {
        let some = |seed| CrashChoice::Some { seed, chance: 128 };
        for choice in [
            CrashChoice::Nothing,
            CrashChoice::Everything,
            some(7),
            some(8),
        ] {
            let crashed = recording.crash_after(calls, choice).disk;
            let found = open(&crashed).note().unwrap().unwrap();
            assert!(found == old || found == new, "after {calls} calls");
            seen[usize::from(found == new)] = true;
            // The next one finds its way over what the crash has left.
            open(&crashed).keep_note(b"next").unwrap();
            assert_eq!(open(&crashed).note().unwrap().unwrap(), b"next");
        }
    }
    let finished = recording.crash_after(recording.len(), CrashChoice::Nothing);
    assert_eq!(open(&finished.disk).note().unwrap().unwrap(), new);
    assert_eq!(seen, [true; 2]);
}

#[test]
fn a_note_that_is_the_same_is_not_written_again_and_one_that_is_too_long_is_refused() {
    let disk = Recorder::new();
    let (_, store) = new_store(&disk, 2);
    assert_eq!(store.note().unwrap(), None);
    let longest = vec![5; MAX_NOTE];
    store.keep_note(&longest).unwrap();
    disk.start_recording();
    store.keep_note(&longest).unwrap();
    assert!(disk.recording().is_empty());
    let error = store.keep_note(&vec![6; MAX_NOTE + 1]).unwrap_err();
    let StoreError::Refused(refused) = error else {
        panic!("{error:?}")
    };
    let bytes = MAX_NOTE + 1;
    assert_eq!(refused, Refused::NoteTooLong { bytes });
    assert_eq!(store.note().unwrap().unwrap(), longest);
}

#[test]
fn a_note_that_is_not_as_it_was_kept_is_damaged_and_the_store_is_not() {
    let disk = Recorder::new();
    let (_, store) = new_store(&disk, 3);
    store.keep_note(b"what the owner says").unwrap();
    let path = Path::new(ROOT).join("note");
    let file = disk.open(&path, Access::ReadWrite).unwrap();
    let length = file.len().unwrap();
    let whole = lifeboat_harness::read_file(&disk, &path).unwrap();
    for at in 0..length {
        file.write_at(&[whole[at as usize] ^ 1], at).unwrap();
        let error = store.note().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}");
        file.write_at(&[whole[at as usize]], at).unwrap();
    }
    for length in [0, 1, length - 1] {
        file.set_len(length).unwrap();
        let error = store.note().unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{length}");
        file.write_at(&whole, 0).unwrap();
    }
    file.set_len(u64::from(u32::MAX)).unwrap();
    let error = store.note().unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    drop(store);
    let store = open(&disk);
    store.keep_note(b"again").unwrap();
    assert_eq!(store.note().unwrap().unwrap(), b"again");
}

#[test]
fn a_summary_follows_the_store_and_no_number_in_it_is_higher() {
    let disk = Recorder::new();
    let (mut shadow, mut store) = new_store(&disk, 4);
    let standing = |store: &Store| store.summary().standing;
    assert_eq!(standing(&store), Standing::Empty);
    assert_eq!(store.summary().newest, store.tip());
    receive(&mut shadow, &mut store);
    // It waits; whoever only looks does not see it.
    assert_eq!(standing(&store), Standing::Empty);
    assert_eq!(store.summary().newest, store.tip());
    apply_all(&mut store);
    assert_eq!(standing(&store), Standing::Replica);
    let point = store.make_point(NOW, PointKind::PlannedFailover).unwrap();
    assert_eq!(store.summary().points, 1);
    receive(&mut shadow, &mut store);
    assert_eq!(store.summary().newest, store.tip());
    apply_all(&mut store);
    let copy = NewCopy {
        sequence: shadow.begin_copy(),
        kind: CopyKind::Resync,
    };
    store.begin_copy(copy, NOW).unwrap();
    assert_eq!(standing(&store), Standing::Replica);
    assert!(store.summary().heads_are_mixed);
    assert_eq!(store.summary().newest, copy.sequence);

    let target = FailoverTarget::Point(point);
    let started = store.start_failover(target, OTHER, NOW, &mut |_| {});
    let lineage = started.unwrap().lineage;
    let failed_over = Standing::FailedOver {
        lineage,
        point: Some(point),
        kind: PointKind::PlannedFailover,
    };
    assert_eq!(standing(&store), failed_over);
    drop(store);
    let mut store = open(&disk);
    assert_eq!(standing(&store), failed_over);
    store.commit(&mut |_| {}).unwrap();
    let summary = store.summary();
    assert_eq!(summary.standing, Standing::Committed);
    assert_eq!(summary.lineage, lineage);
    assert_eq!(summary.disks, store.disks());
    assert!(summary.ancestors.iter().any(|one| one.id == shadow.lineage));
    assert!(summary.newest >= point);
}

#[test]
fn a_look_at_a_store_in_use_changes_nothing_and_says_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap().join("vm");
    let mut shadow = ShadowVm::new(5, &[16 * 4096]);
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    let new = shadow.new_store();
    let mut store = Store::init(Arc::clone(&disk), &root, &new, "its owner").unwrap();
    receive(&mut shadow, &mut store);
    apply_all(&mut store);
    store.keep_note(b"noted").unwrap();
    let journal = std::fs::read(root.join("journal")).unwrap();
    let peek = Store::peek(disk.as_ref(), &root).unwrap();
    assert_eq!(peek.summary, store.summary());
    assert_eq!(peek.note.unwrap().unwrap(), b"noted");
    assert_eq!(peek.holder.unwrap(), "its owner");
    drop(store);
    let peek = Store::peek(disk.as_ref(), &root).unwrap();
    assert_eq!(peek.holder, None);
    assert_eq!(std::fs::read(root.join("journal")).unwrap(), journal);
}

#[test]
fn a_link_in_the_place_of_a_file_or_folder_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap().join("vm");
    let shadow = ShadowVm::new(6, &[16 * 4096]);
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    drop(Store::init(Arc::clone(&disk), &root, &shadow.new_store(), "test").unwrap());
    let id = &shadow.names()[0];
    for path in [
        root.join("disks"),
        root.join("disks").join(id.as_str()),
        root.join("disks").join(id.as_str()).join("head.raw"),
        root.join("journal"),
        root.join("note"),
    ] {
        let aside = folder.path().join("aside");
        let is_note = path.ends_with("note");
        if !is_note {
            std::fs::rename(&path, &aside).unwrap();
        }
        symlink(&aside, &path).unwrap();
        let peek = Store::peek(disk.as_ref(), &root);
        match peek {
            Ok(peek) => assert!(is_note && peek.note.is_err(), "{}", path.display()),
            Err(error) => assert!(!is_note, "{error}"),
        }
        std::fs::remove_file(&path).unwrap();
        if !is_note {
            let missing = Store::peek(disk.as_ref(), &root);
            assert!(missing.is_err(), "{}", path.display());
            std::fs::rename(&aside, &path).unwrap();
        }
        Store::peek(disk.as_ref(), &root).unwrap();
    }
}
