//! The side that lost becomes a replica; a failover is committed beside its running guest; a
//! replica becomes an ordinary VM.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use lifeboat_harness::{
    Activity, Random, ShadowVm, compare_point, compare_points, copy_rest, read_file,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{DiskId, Lineage, LineageId, RelationshipId, Sequence, Timestamp, VmId};
use lifeboat_store::{
    Adoption, CopyKind, FailoverDisk, FailoverTarget, Heads, NewCopy, Refused, Reversal, Role,
    Store, StoreError,
};
use lifeboat_sys::disk::{
    Access, CrashChoice, DiskPort, Fault, FaultDisk, GuestDisk, ImageGuard, RealDisk, Recorder,
};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);
const LOSER: LineageId = LineageId::from_bytes([1; 16]);
const SURVIVOR: LineageId = LineageId::from_bytes([2; 16]);

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

fn open(disk: &Recorder) -> Store {
    Store::open(port(disk), Path::new(ROOT), "test").unwrap()
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> Refused {
    match outcome.unwrap_err() {
        StoreError::Refused(refused) => refused,
        error => panic!("{error:?}"),
    }
}

fn lineage(id: LineageId, forked_from: Option<LineageId>) -> Lineage {
    Lineage {
        counter: 1,
        id,
        forked_from: forked_from.map(|id| (id, Sequence::new(4))),
    }
}

/// Two images of a VM that ran outside of any store, and what its replica would be.
fn loser(disk: &dyn DiskPort, folder: &Path, seed: u64) -> (Adoption, ShadowVm) {
    let mut shadow = ShadowVm::new(seed, &[300 << 10, 77 * 512]);
    shadow.work(Activity::MIXED);
    let bytes = shadow.disks().to_vec();
    for _ in 0..9 {
        shadow.begin_copy();
    }
    let drawn = shadow.change_sides(SURVIVOR, &bytes);
    let mut images = Vec::new();
    for (name, bytes) in shadow.names().iter().zip(&bytes) {
        let path = folder.join(format!("{name}.raw"));
        let file = disk.create(&path).unwrap();
        file.write_at(bytes, 0).unwrap();
        file.sync().unwrap();
        images.push((name.clone(), path));
    }
    disk.sync_dir(folder).unwrap();
    let reversal = Reversal {
        relationship: shadow.relationship,
        lineage: lineage(SURVIVOR, Some(LOSER)),
        ancestors: vec![lineage(LOSER, None)],
        drawn,
    };
    let adoption = Adoption {
        vm: shadow.vm,
        reversal,
        left: LOSER,
        images,
    };
    (adoption, shadow)
}

fn images_folder(disk: &Recorder) -> PathBuf {
    let folder = PathBuf::from("/images");
    disk.create_dir(&folder).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    folder
}

/// Adopts, and checks everything that was promised.
fn adopt(disk: &Arc<dyn DiskPort>, root: &Path, adoption: &Adoption) -> Result<Store, String> {
    let adopted = Store::adopt(Arc::clone(disk), root, adoption, "test", NOW);
    let adopted = adopted.map_err(|error| format!("adopt: {error}: {error:?}"))?;
    Ok(adopted.store)
}

fn check_adopted(store: &Store, shadow: &ShadowVm, drawn: Sequence) -> Result<(), String> {
    let points = store.points();
    let [point] = &points[..] else {
        return Err(format!("{} points", points.len()));
    };
    if point.sequence != drawn || point.lineage != LOSER || store.lineage().id != SURVIVOR {
        return Err(format!("another point: {point:?}"));
    }
    if store.heads() != Heads::Consistent(drawn) || store.tip() != drawn {
        return Err(format!("the heads hold {:?}", store.heads()));
    }
    compare_point(store, drawn, shadow)
}

/// The survivor brings the replica to its own state; the loser's stays readable.
fn resynchronize(store: &mut Store, shadow: &mut ShadowVm) -> Result<(), String> {
    let said = |error: StoreError| format!("{error}: {error:?}");
    shadow.work(Activity::MIXED);
    let new = NewCopy {
        sequence: shadow.begin_copy(),
        kind: CopyKind::Resync,
    };
    store.begin_copy(new, NOW).map_err(said)?;
    copy_rest(store, shadow, &mut Random::new(3))?;
    store.receive(&shadow.capture_closing()[..]).map_err(said)?;
    while store.apply_next(&mut |_| {}).map_err(said)?.is_some() {}
    store.make_point(NOW, PointKind::Standard).map_err(said)?;
    compare_points(store, shadow)?;
    let findings = store.verify(&mut |_| {}).map_err(said)?.findings;
    if findings.is_empty() {
        Ok(())
    } else {
        Err(format!("{findings:?}"))
    }
}

#[test]
fn adopted_images_become_the_heads_and_a_point_of_the_dead_lineage() {
    let disk = Recorder::new();
    let (adoption, mut shadow) = loser(&disk, &images_folder(&disk), 1);
    let adopted = Store::adopt(port(&disk), Path::new(ROOT), &adoption, "test", NOW).unwrap();
    assert_eq!(adopted.left_behind, Vec::<PathBuf>::new());
    let mut store = adopted.store;
    check_adopted(&store, &shadow, adoption.reversal.drawn).unwrap();
    assert_eq!(store.ancestors(), adoption.reversal.ancestors);
    resynchronize(&mut store, &mut shadow).unwrap();
    let labels: Vec<_> = store.points().iter().map(|point| point.lineage).collect();
    assert_eq!(labels, [LOSER, SURVIVOR]);
    drop(store);
    let again = Store::adopt(port(&disk), Path::new(ROOT), &adoption, "test", NOW).unwrap();
    compare_points(&again.store, &shadow).unwrap();
}

#[test]
fn an_adoption_is_completed_after_a_power_loss_at_any_call() {
    let mut states = 0;
    for seed in 0..2 {
        let disk = Recorder::new();
        let (adoption, shadow) = loser(&disk, &images_folder(&disk), seed);
        disk.start_recording();
        drop(adopt(&port(&disk), Path::new(ROOT), &adoption).unwrap());
        let recording = disk.recording();
        let mut seen = std::collections::HashSet::new();
        let mut random = Random::new(seed);
        for calls in 0..=recording.len() {
            for choice in 0..8 {
                let choice = match choice {
                    0 => CrashChoice::Nothing,
                    1 => CrashChoice::Everything,
                    _ => CrashChoice::Some {
                        seed: random.next_u64(),
                        chance: [16, 128, 240][choice as usize % 3],
                    },
                };
                let state = recording.crash_after(calls, choice);
                if !seen.insert(state.fingerprint) {
                    continue;
                }
                let outcome =
                    adopt(&port(&state.disk), Path::new(ROOT), &adoption).and_then(|mut store| {
                        check_adopted(&store, &shadow, adoption.reversal.drawn)?;
                        resynchronize(&mut store, &mut shadow.clone())
                    });
                if let Err(error) = outcome {
                    panic!(
                        "seed {seed}, call {calls} of {}, {choice:?}: {error}",
                        recording.len()
                    );
                }
            }
        }
        states += seen.len();
    }
    println!("power loss while images are adopted: {states} states completed");
    assert!(states > 200, "{states}");
}

#[test]
fn an_adoption_that_fails_leaves_the_images_where_they_were() {
    let mut failed = 0;
    for fault in [Fault::InputOutput, Fault::DiskFull] {
        for call in 0.. {
            let disk = Recorder::new();
            let (adoption, shadow) = loser(&disk, &images_folder(&disk), 2);
            let faulty: Arc<dyn DiskPort> =
                Arc::new(FaultDisk::failing_at(port(&disk), call, fault));
            let outcome = Store::adopt(faulty, Path::new(ROOT), &adoption, "test", NOW);
            let is_done = outcome.is_ok();
            drop(outcome);
            if is_done && call > 8 {
                break;
            }
            let has_journal = disk
                .kind(&Path::new(ROOT).join("journal"))
                .unwrap()
                .is_some();
            for ((_, path), expected) in adoption.images.iter().zip(shadow.disks()) {
                if !has_journal {
                    assert!(
                        read_file(&disk, path).unwrap() == *expected,
                        "{fault:?} at {call}"
                    );
                }
            }
            failed += u32::from(!is_done);
            let store = adopt(&port(&disk), Path::new(ROOT), &adoption).unwrap();
            check_adopted(&store, &shadow, adoption.reversal.drawn).unwrap();
        }
    }
    assert!(failed > 40, "{failed}");
}

#[test]
fn an_image_on_another_file_system_is_copied_and_left_behind() {
    let other = std::env::var_os("LIFEBOAT_TEST_XFS").expect(
        "LIFEBOAT_TEST_XFS names no mount: run `cargo xtask test`, or `cargo xtask setup` and set it",
    );
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    // Temporary files may be on that mount, too; what cargo builds is not.
    let here = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let there = tempfile::tempdir_in(other).unwrap();
    let (adoption, mut shadow) = loser(disk.as_ref(), there.path(), 3);
    let root = here.path().join("store");
    let adopted = Store::adopt(Arc::clone(&disk), &root, &adoption, "test", NOW).unwrap();
    let expected: Vec<PathBuf> = adoption
        .images
        .iter()
        .map(|(_, path)| path.clone())
        .collect();
    assert_eq!(adopted.left_behind, expected);
    let mut store = adopted.store;
    check_adopted(&store, &shadow, adoption.reversal.drawn).unwrap();
    resynchronize(&mut store, &mut shadow).unwrap();
}

#[test]
fn what_cannot_be_adopted_is_refused_and_stays() {
    let disk = Recorder::new();
    let folder = images_folder(&disk);
    let (good, shadow) = loser(&disk, &folder, 4);
    let refused = |adoption: &Adoption| {
        refusal(Store::adopt(
            port(&disk),
            Path::new(ROOT),
            adoption,
            "test",
            NOW,
        ))
    };
    let mut doubled = good.clone();
    doubled.images[1].1 = doubled.images[0].1.clone();
    assert_eq!(refused(&doubled), Refused::BadDisks);
    let mut split = good.clone();
    split.reversal.ancestors.clear();
    split.reversal.lineage.forked_from = None;
    assert_eq!(refused(&split), Refused::NotDescended { from: LOSER });
    let mut missing = good.clone();
    missing.images[1].1 = folder.join("nothing.raw");
    assert!(matches!(refused(&missing), Refused::NoImage { .. }));
    let odd = folder.join("odd.raw");
    disk.create(&odd).unwrap().set_len(1000).unwrap();
    let mut odd_size = good.clone();
    odd_size.images[1].1 = odd;
    assert!(matches!(
        refused(&odd_size),
        Refused::BadImage { bytes: 1000, .. }
    ));
    let running = disk.open(&good.images[1].1, Access::ReadWrite).unwrap();
    let guard = ImageGuard::acquire(&running).unwrap();
    assert!(matches!(refused(&good), Refused::ImageInUse { .. }));
    drop(guard);
    for ((_, path), expected) in good.images.iter().zip(shadow.disks()) {
        assert!(read_file(&disk, path).unwrap() == *expected);
    }
    let store = adopt(&port(&disk), Path::new(ROOT), &good).unwrap();
    drop(store);
    let mut other = good;
    other.vm = VmId::from_bytes([9; 16]);
    assert!(matches!(refused(&other), Refused::NotEmpty { .. }));
}

/// A replica whose failover runs, and what its guest sees.
fn failed_over(disk: &Recorder, seed: u64, older: bool) -> (Store, ShadowVm, Vec<Vec<u8>>) {
    let mut shadow = ShadowVm::new(seed, &[300 << 10, 77 * 512]);
    let mut store = Store::init(port(disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    for _ in 0..3 {
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture()[..]).unwrap();
        while store.apply_next(&mut |_| {}).unwrap().is_some() {}
        store.make_point(NOW, PointKind::Standard).unwrap();
    }
    let target = if older {
        FailoverTarget::Point(store.points()[0].sequence)
    } else {
        FailoverTarget::Newest
    };
    let started = store
        .start_failover(target, SURVIVOR, NOW, &mut |_| {})
        .unwrap();
    let guest = shadow.at(started.sequence).to_vec();
    (store, shadow, guest)
}

fn open_disks(store: &Store) -> Vec<(DiskId, Arc<FailoverDisk>)> {
    let names = store.disk_ids().into_iter();
    names
        .map(|name| (name.clone(), Arc::new(store.failover_disk(&name).unwrap())))
        .collect()
}

/// Lets the guest write at random; answers what it changed.
fn write_some(
    disks: &[(DiskId, Arc<FailoverDisk>)],
    bytes: &mut [Vec<u8>],
    random: &mut Random,
) -> Vec<(DiskId, Range<u64>)> {
    write_and_note(disks, bytes, random, &mut Vec::new())
}

/// Also notes what the disks hold after each single write.
fn write_and_note(
    disks: &[(DiskId, Arc<FailoverDisk>)],
    bytes: &mut [Vec<u8>],
    random: &mut Random,
    history: &mut Vec<Vec<Vec<u8>>>,
) -> Vec<(DiskId, Range<u64>)> {
    let mut changed = Vec::new();
    for _ in 0..6 {
        let at = random.below(disks.len() as u64) as usize;
        let (name, disk) = &disks[at];
        let start = random.below(disk.size() / 512) * 512;
        let end = (start + (1 + random.below(30)) * 512).min(disk.size());
        let range = start as usize..end as usize;
        if random.one_in(3) {
            bytes[at][range].fill(0);
            disk.zero(start, end - start).unwrap();
        } else {
            random.fill(&mut bytes[at][range.clone()]);
            disk.write_at(&bytes[at][range], start).unwrap();
        }
        history.push(bytes.to_vec());
        changed.push((name.clone(), start..end));
    }
    changed
}

fn assert_guest_reads(disks: &[(DiskId, Arc<FailoverDisk>)], expected: &[Vec<u8>]) {
    for ((name, disk), expected) in disks.iter().zip(expected) {
        let mut bytes = vec![0xA5; disk.size() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == *expected, "{name}");
    }
}

fn head(disk: &Recorder, name: &DiskId) -> Vec<u8> {
    read_file(
        disk,
        &Path::new(ROOT).join(format!("disks/{name}/head.raw")),
    )
    .unwrap()
}

#[test]
fn a_live_commit_shows_its_guest_its_own_bytes_at_every_step_and_ends_with_them() {
    for (seed, older) in [(1, false), (2, true), (3, false), (4, true)] {
        let disk = Recorder::new();
        let (mut store, shadow, mut guest) = failed_over(&disk, seed, older);
        let mut random = Random::new(seed);
        let disks = open_disks(&store);
        write_some(&disks, &mut guest, &mut random);
        let live = store.begin_live_commit(&disks).unwrap();
        assert!(matches!(
            refusal(store.revert_failover()),
            Refused::Committing
        ));
        let mut changed = write_some(&disks, &mut guest, &mut random);
        live.copy(None).unwrap();
        assert_guest_reads(&disks, &guest);
        for _ in 0..3 {
            let copied = std::mem::take(&mut changed);
            changed.extend(write_some(&disks, &mut guest, &mut random));
            live.copy(Some(&copied)).unwrap();
            assert_guest_reads(&disks, &guest);
        }
        let committed = store.finish_live_commit(&live, &changed).unwrap();
        assert_eq!(committed.lineage.id, SURVIVOR);
        assert_eq!(committed.points, 3);
        assert_guest_reads(&disks, &guest);
        let late = disks[0].1.write_at(&[1; 512], 0).unwrap_err();
        assert_eq!(late.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(store.role(), Role::Committed);
        assert_eq!(store.committed_disks().unwrap().len(), 2);
        for (name, expected) in shadow.names().iter().zip(&guest) {
            assert!(head(&disk, name) == *expected);
        }
        // Everything in which the disks differ from the former peer's newest is in the map.
        let map = store.divergence().unwrap().unwrap();
        let (newest, _) = shadow.newest().unwrap();
        for (((name, ranges), ours), theirs) in map.iter().zip(&guest).zip(shadow.at(newest)) {
            for at in (0..ours.len()).filter(|&at| ours[at] != theirs[at]) {
                let is_noted = ranges.iter().any(|range| range.contains(&(at as u64)));
                assert!(is_noted, "byte {at} of {name}");
            }
        }
    }
}

#[test]
fn a_live_commit_that_a_power_loss_ends_is_completed_from_what_the_guest_flushed() {
    let mut states = 0;
    for (seed, older) in [(5, false), (6, true)] {
        let disk = Recorder::new();
        let (mut store, shadow, mut guest) = failed_over(&disk, seed, older);
        let mut random = Random::new(seed);
        let disks = open_disks(&store);
        let mut changed = write_some(&disks, &mut guest, &mut random);
        disks.iter().for_each(|(_, disk)| disk.flush().unwrap());
        // What the guest's disks held after each of its writes, and when it was flushed.
        let mut history = vec![guest.clone()];
        let mut flushed = vec![(0, 0)];
        disk.start_recording();
        let live = store.begin_live_commit(&disks).unwrap();
        for round in 0..3 {
            let some = write_and_note(&disks, &mut guest, &mut random, &mut history);
            changed.extend(some);
            if round == 1 {
                disks.iter().for_each(|(_, disk)| disk.flush().unwrap());
                flushed.push((disk.recorded(), history.len() - 1));
            }
            match round {
                0 => live.copy(None).unwrap(),
                _ => live.copy(Some(&changed)).unwrap(),
            }
        }
        store.finish_live_commit(&live, &changed).unwrap();
        flushed.push((disk.recorded(), history.len() - 1));
        let recording = disk.recording();
        let mut seen = std::collections::HashSet::new();
        for calls in 0..=recording.len() {
            let &(_, oldest) = flushed.iter().rev().find(|(at, _)| *at <= calls).unwrap();
            for choice in 0..6 {
                let choice = match choice {
                    0 => CrashChoice::Nothing,
                    1 => CrashChoice::Everything,
                    _ => CrashChoice::Some {
                        seed: random.next_u64(),
                        chance: [16, 128, 240][choice as usize % 3],
                    },
                };
                let state = recording.crash_after(calls, choice);
                if !seen.insert(state.fingerprint) {
                    continue;
                }
                let mut store = open(&state.disk);
                if store.role() == Role::FailedOver {
                    store.commit(&mut |_| {}).unwrap();
                }
                assert_eq!(store.role(), Role::Committed);
                assert!(store.divergence().unwrap().is_some());
                for (at, name) in shadow.names().iter().enumerate() {
                    let found = head(&state.disk, name);
                    for (sector, bytes) in found.chunks(512).enumerate() {
                        let held = |version: &Vec<Vec<u8>>| {
                            version[at][sector * 512..][..bytes.len()] == *bytes
                        };
                        assert!(
                            history[oldest..].iter().any(held),
                            "seed {seed}, call {calls} of {}, {choice:?}: sector {sector} of {name}",
                            recording.len()
                        );
                    }
                }
            }
        }
        states += seen.len();
    }
    println!("power loss during a live commit: {states} states completed");
    assert!(states > 300, "{states}");
}

#[test]
fn a_guest_that_never_stops_loses_nothing_to_a_live_commit() {
    let disk = Recorder::new();
    let (mut store, shadow, mut guest) = failed_over(&disk, 7, true);
    let disks = open_disks(&store);
    let live = store.begin_live_commit(&disks).unwrap();
    let changed = Mutex::new(Vec::new());
    let is_paused = AtomicBool::new(false);
    let mut expected = std::mem::take(&mut guest);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut random = Random::new(1);
            while !is_paused.load(Ordering::Acquire) {
                let some = write_some(&disks, &mut expected, &mut random);
                changed.lock().unwrap().extend(some);
                assert_guest_reads(&disks, &expected);
            }
        });
        live.copy(None).unwrap();
        for _ in 0..40 {
            let some = std::mem::take(&mut *changed.lock().unwrap());
            live.copy(Some(&some)).unwrap();
            // Noted after the write was done, so it may have come after the copy.
            changed.lock().unwrap().extend(some);
        }
        is_paused.store(true, Ordering::Release);
        writer.join().unwrap();
    });
    let changed = changed.into_inner().unwrap();
    store.finish_live_commit(&live, &changed).unwrap();
    for (name, expected) in shadow.names().iter().zip(&expected) {
        assert!(head(&disk, name) == *expected);
    }
}

#[test]
fn a_live_commit_of_other_disks_and_beside_an_open_guest_is_refused() {
    let disk = Recorder::new();
    let (mut store, _, _) = failed_over(&disk, 8, false);
    let other = Recorder::new();
    let (foreign, _, _) = failed_over(&other, 8, false);
    let disks = open_disks(&store);
    assert_eq!(
        refusal(store.begin_live_commit(&disks[..1])),
        Refused::OtherFailoverDisks
    );
    assert_eq!(
        refusal(store.begin_live_commit(&open_disks(&foreign))),
        Refused::OtherFailoverDisks
    );
    let live = store.begin_live_commit(&disks).unwrap();
    drop((live, store));
    // The guest still writes to what completing the commit would take away.
    assert!(matches!(
        refusal(Store::open(port(&disk), Path::new(ROOT), "test")),
        Refused::ImageInUse { .. }
    ));
    drop(disks);
    assert_eq!(open(&disk).role(), Role::Committed);
}

#[test]
fn a_committed_store_joins_the_survivor_with_its_own_disks_as_a_point() {
    let disk = Recorder::new();
    let (mut store, mut shadow, mut guest) = failed_over(&disk, 9, true);
    let disks = open_disks(&store);
    write_some(&disks, &mut guest, &mut Random::new(1));
    disks.iter().for_each(|(_, disk)| disk.flush().unwrap());
    drop(disks);
    let next = LineageId::from_bytes([3; 16]);
    let reversal = |drawn, ancestors: Vec<Lineage>| Reversal {
        relationship: RelationshipId::from_bytes([8; 16]),
        lineage: lineage(next, Some(SURVIVOR)),
        ancestors,
        drawn,
    };
    let too_early = reversal(Sequence::new(50), vec![]);
    assert_eq!(refusal(store.rejoin(&too_early, NOW)), Refused::FailedOver);
    store.commit(&mut |_| {}).unwrap();
    assert!(store.divergence().unwrap().is_some());
    let chain = [store.ancestors(), &[store.lineage()]].concat();
    let drawn = shadow.change_sides(next, &guest);
    assert!(matches!(
        refusal(store.rejoin(&reversal(Sequence::new(1), chain.clone()), NOW)),
        Refused::TooOld { .. }
    ));
    let mut stranger = reversal(drawn, store.ancestors().to_vec());
    stranger.lineage.forked_from = Some((LOSER, Sequence::new(1)));
    assert_eq!(
        refusal(store.rejoin(&stranger, NOW)),
        Refused::NotDescended { from: SURVIVOR }
    );
    store.rejoin(&reversal(drawn, chain), NOW).unwrap();
    assert_eq!(store.role(), Role::Replica);
    assert_eq!(store.divergence().unwrap(), None);
    shadow.relationship = RelationshipId::from_bytes([8; 16]);
    let point = &store.points()[0];
    assert_eq!((point.sequence, point.lineage), (drawn, SURVIVOR));
    for (name, expected) in shadow.names().iter().zip(&guest) {
        let reader = store.reader(drawn, name).unwrap();
        let mut bytes = vec![0; expected.len()];
        reader.read_at(0, &mut bytes).unwrap();
        assert!(bytes == *expected);
    }
    drop(store);
    let mut store = open(&disk);
    store.remove_point(drawn).unwrap();
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture_whole()[..]).unwrap();
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
    store.make_point(NOW, PointKind::Standard).unwrap();
    compare_points(&store, &shadow).unwrap();
    assert_eq!(store.verify(&mut |_| {}).unwrap().findings, []);
}

#[test]
fn a_damaged_divergence_map_is_refused_whatever_byte_it_is() {
    let disk = Recorder::new();
    let (mut store, _, mut guest) = failed_over(&disk, 10, true);
    let disks = open_disks(&store);
    write_some(&disks, &mut guest, &mut Random::new(1));
    disks.iter().for_each(|(_, disk)| disk.flush().unwrap());
    drop(disks);
    assert_eq!(store.divergence().unwrap(), None);
    store.commit(&mut |_| {}).unwrap();
    let map = store.divergence().unwrap().unwrap();
    assert!(
        map.iter()
            .all(|(_, ranges)| { ranges.windows(2).all(|pair| pair[0].end < pair[1].start) })
    );
    let path = Path::new(ROOT).join(format!("divergence/{SURVIVOR}.map"));
    let file = disk.open(&path, Access::ReadWrite).unwrap();
    let bytes = read_file(&disk, &path).unwrap();
    let refused = |store: &Store| matches!(store.divergence(), Err(StoreError::Damaged { .. }));
    for at in 0..bytes.len() {
        file.write_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
        assert!(refused(&store), "byte {at}");
        file.write_at(&bytes[at..=at], at as u64).unwrap();
    }
    for len in (0..bytes.len()).step_by(5) {
        file.set_len(len as u64).unwrap();
        assert!(refused(&store), "cut at {len}");
    }
    file.set_len(0).unwrap();
    file.write_at(&bytes, 0).unwrap();
    assert_eq!(store.divergence().unwrap().unwrap(), map);
}

#[test]
fn a_flattened_replica_is_the_newest_applied_state_and_nothing_else() {
    let disk = Recorder::new();
    let mut shadow = ShadowVm::new(11, &[300 << 10, 77 * 512]);
    let mut store = Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    assert!(matches!(
        refusal(store.flatten()),
        Refused::NothingApplied { .. }
    ));
    for _ in 0..3 {
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture()[..]).unwrap();
        while store.apply_next(&mut |_| {}).unwrap().is_some() {}
        store.make_point(NOW, PointKind::Standard).unwrap();
    }
    let newest = store.applied();
    store.receive(&shadow.capture()[..]).unwrap();
    let pin = store.pin_newest(NOW).unwrap();
    assert!(matches!(
        refusal(store.flatten()),
        Refused::PointInUse { .. }
    ));
    drop(pin);
    store.flatten().unwrap();
    drop(store);
    let store = open(&disk);
    assert_eq!((store.role(), store.applied()), (Role::Committed, newest));
    assert_eq!(store.lineage().id, shadow.lineage);
    for (name, expected) in shadow.names().iter().zip(shadow.at(newest)) {
        assert!(head(&disk, name) == *expected);
    }
    let left: BTreeSet<String> = ["points", "spool", "trash", "failover"]
        .iter()
        .flat_map(|folder| disk.list(&Path::new(ROOT).join(folder)).unwrap())
        .map(|entry| entry.name)
        .collect();
    assert_eq!(left, BTreeSet::from(["reserve".to_owned()]));
}

#[test]
fn a_delta_that_is_set_apart_shows_in_the_status() {
    let disk = Recorder::new();
    let mut shadow = ShadowVm::new(12, &[300 << 10]);
    let mut store = Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    shadow.work(Activity::MIXED);
    let sequence = store
        .receive(&shadow.capture()[..])
        .unwrap()
        .receipt
        .sequence;
    assert_eq!(store.status().unwrap().set_apart, []);
    drop(store);
    let path = Path::new(ROOT).join(format!("spool/{}-{sequence}.delta", shadow.lineage));
    disk.open(&path, Access::ReadWrite)
        .unwrap()
        .set_len(300)
        .unwrap();
    let store = open(&disk);
    let set_apart = store.status().unwrap().set_apart;
    assert_eq!(set_apart.len(), 1);
    assert_eq!(
        (set_apart[0].sequence, &set_apart[0].path),
        (sequence, &path)
    );
}
