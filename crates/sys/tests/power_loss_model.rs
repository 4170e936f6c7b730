//! What the recorder keeps and loses at a power loss.

use std::path::Path;

use lifeboat_sys::disk::{Access, CrashChoice, CrashState, DiskPort, Poisoned, Recorder};

fn read(state: &CrashState, path: &str) -> Option<Vec<u8>> {
    let file = state.disk.open(Path::new(path), Access::ReadOnly).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

/// Every distinct state after the whole recording, as far as random draws find them.
fn outcomes<T: Ord>(
    disk: &Recorder,
    view: impl Fn(&CrashState) -> T,
) -> std::collections::BTreeSet<T> {
    let recording = disk.recording();
    (0..4000)
        .map(|seed| {
            view(&recording.crash_after(recording.len(), CrashChoice::Some { seed, chance: 128 }))
        })
        .collect()
}

#[test]
fn synced_content_under_a_synced_name_always_survives() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.write_at(&[1; 10_000], 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(
        outcomes(&disk, |state| read(state, "/a")),
        [Some(vec![1; 10_000])].into()
    );
}

#[test]
fn a_synced_file_whose_folder_was_not_synced_may_be_gone() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.write_at(&[1; 10], 0).unwrap();
    file.sync().unwrap();
    assert_eq!(
        outcomes(&disk, |state| read(state, "/a")),
        [None, Some(vec![1; 10])].into()
    );
}

#[test]
fn unsynced_writes_are_kept_in_any_combination() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.set_len(512 * 3).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    for sector in 0..3 {
        file.write_at(&[1; 512], sector * 512).unwrap();
    }
    let found = outcomes(&disk, |state| {
        let bytes = read(state, "/a").unwrap();
        [bytes[0], bytes[512], bytes[1024]]
    });
    assert_eq!(found.len(), 8, "every subset of three sectors");
}

#[test]
fn a_page_may_be_torn_at_a_sector() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.set_len(4096).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    file.write_at(&[1; 4096], 0).unwrap();
    let torn = outcomes(&disk, |state| {
        let bytes = read(state, "/a").unwrap();
        bytes.iter().filter(|&&byte| byte == 1).count()
    });
    assert!(torn.contains(&0) && torn.contains(&4096));
    assert!(torn.iter().any(|&kept| kept > 0 && kept < 4096));
    assert!(torn.iter().all(|kept| kept % 512 == 0));
}

#[test]
fn a_length_may_survive_without_its_data() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    file.write_at(&[1; 512], 0).unwrap();
    let found = outcomes(&disk, |state| read(state, "/a").unwrap());
    assert!(
        found.contains(&vec![]) && found.contains(&vec![0; 512]) && found.contains(&vec![1; 512])
    );
}

#[test]
fn an_unsynced_rename_happened_or_did_not() {
    let disk = Recorder::new();
    for (name, byte) in [("/a", 1), ("/b", 2)] {
        let file = disk.create(Path::new(name)).unwrap();
        file.write_at(&[byte], 0).unwrap();
        file.sync().unwrap();
    }
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    disk.rename(Path::new("/b"), Path::new("/a")).unwrap();
    let found = outcomes(&disk, |state| (read(state, "/a"), read(state, "/b")));
    assert_eq!(
        found,
        [(Some(vec![1]), Some(vec![2])), (Some(vec![2]), None)].into()
    );
}

#[test]
fn a_move_between_folders_needs_both_synced() {
    let disk = Recorder::new();
    disk.create_dir(Path::new("/d")).unwrap();
    disk.create(Path::new("/a")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    disk.rename(Path::new("/a"), Path::new("/d/a")).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(
        outcomes(&disk, |state| read(state, "/d/a").is_some()).len(),
        2
    );
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(
        outcomes(&disk, |state| read(state, "/d/a").is_some()),
        [true].into()
    );
}

#[test]
fn later_changes_did_not_happen_yet() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    file.write_at(b"x", 0).unwrap();
    file.sync().unwrap();
    file.write_at(b"y", 0).unwrap();
    file.sync().unwrap();
    let recording = disk.recording();
    let found: Vec<_> = (0..=recording.len())
        .map(|calls| read(&recording.crash_after(calls, CrashChoice::Everything), "/a").unwrap())
        .collect();
    assert_eq!(
        found,
        [
            b"".to_vec(),
            b"x".to_vec(),
            b"x".to_vec(),
            b"y".to_vec(),
            b"y".to_vec()
        ]
    );
}

#[test]
fn a_failed_sync_poisons_the_handle_and_its_writes_stay_in_doubt() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.write_at(b"old", 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    file.write_at(b"new", 0).unwrap();
    disk.fail_sync_after(0);
    assert!(file.sync().is_err());
    let refused = file.write_at(b"xyz", 0).unwrap_err();
    assert!(
        refused
            .get_ref()
            .is_some_and(|source| source.is::<Poisoned>())
    );
    assert!(
        file.sync().is_err(),
        "a poisoned handle never reports success"
    );
    // Another handle's sync succeeds, as Linux has it, and yet promises nothing about "new".
    disk.open(Path::new("/a"), Access::ReadWrite)
        .unwrap()
        .sync()
        .unwrap();
    assert_eq!(
        outcomes(&disk, |state| read(state, "/a").unwrap()),
        [b"new".to_vec(), b"old".to_vec()].into()
    );
}

#[test]
fn what_was_in_doubt_before_the_recording_stays_in_doubt() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.sync().unwrap();
    disk.start_recording();
    assert_eq!(disk.recorded(), 0);
    assert_eq!(
        outcomes(&disk, |state| read(state, "/a").is_some()),
        [false, true].into()
    );
    disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    assert_eq!(
        outcomes(&disk, |state| (
            read(state, "/a").is_some(),
            read(state, "/b").is_some()
        )),
        [(false, true)].into()
    );
}

#[test]
fn equal_fingerprints_mean_equal_states() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.set_len(8192).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk.start_recording();
    file.write_at(&[1; 8192], 0).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    let recording = disk.recording();
    for seed in 0..2000 {
        let state = recording.crash_after(recording.len(), CrashChoice::Some { seed, chance: 128 });
        let bytes = read(&state, "/a").unwrap();
        assert_eq!(
            seen.entry(state.fingerprint)
                .or_insert_with(|| bytes.clone()),
            &bytes
        );
    }
    assert!(seen.len() > 50);
}

#[test]
fn a_full_disk_refuses_and_changes_nothing() {
    let disk = Recorder::new();
    let file = disk.create(Path::new("/a")).unwrap();
    file.write_at(&[1; 8192], 0).unwrap();
    disk.limit_capacity(Some(8192));
    let error = file.write_at(&[2; 4096], 8192).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 8192);
    file.write_at(&[3; 4096], 0).unwrap();
    file.punch(0, 4096).unwrap();
    file.write_at(&[2; 4096], 8192).unwrap();
}
