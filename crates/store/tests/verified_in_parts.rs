//! A verification in parts: what changes the store in between is neither mistaken for damage nor
//! hides any.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_harness::{Activity, ShadowVm, read_file};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Sequence, Timestamp};
use lifeboat_store::{FailoverTarget, Finding, Refused, Store, StoreError, Verification, Verifier};
use lifeboat_sys::disk::{Access, DiskPort, Recorder};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);

fn deliver(store: &mut Store, shadow: &mut ShadowVm) {
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

/// Four points of three sealed segments and an open one.
fn replica(disk: &Recorder, seed: u64) -> (Store, ShadowVm) {
    let mut shadow = ShadowVm::new(seed, &[1 << 20, 600 << 10]);
    let port: Arc<dyn DiskPort> = Arc::new(disk.clone());
    let mut store = Store::init(port, Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    for _ in 0..4 {
        deliver(&mut store, &mut shadow);
        store.make_point(NOW, PointKind::Standard).unwrap();
    }
    deliver(&mut store, &mut shadow);
    (store, shadow)
}

fn oldest(store: &Store) -> Sequence {
    store.points()[0].sequence
}

/// Verifies, and does something before the part of that number is taken out.
fn verify_with(
    store: &mut Store,
    mut verifier: Verifier,
    at: usize,
    meanwhile: impl FnOnce(&mut Store),
) -> Result<Verification, StoreError> {
    let mut meanwhile = Some(meanwhile);
    for number in 0.. {
        if number == at
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile(store);
        }
        let Some(unread) = verifier.next(store)? else {
            break;
        };
        // Read after the store has changed, which is the hardest.
        if number + 1 == at
            && let Some(meanwhile) = meanwhile.take()
        {
            meanwhile(store);
        }
        verifier.take_in(store, unread.read()?)?;
    }
    verifier.finish(store)
}

fn parts(store: &mut Store, verifier: Verifier) -> usize {
    let (mut verifier, mut count) = (verifier, 0);
    while let Some(unread) = verifier.next(store).unwrap() {
        verifier.take_in(store, unread.read().unwrap()).unwrap();
        count += 1;
    }
    count
}

#[test]
fn progress_rises_from_nothing_to_all_of_it() {
    let (mut store, mut shadow) = replica(&Recorder::new(), 3);
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    let sequence = oldest(&store);
    let mut totals = Vec::new();
    for mut verifier in [Verifier::of_everything(), Verifier::of_point(sequence)] {
        let (mut done, mut seen) = (0, 0);
        while let Some(unread) = verifier.next(&store).unwrap() {
            verifier.take_in(&store, unread.read().unwrap()).unwrap();
            let progress = verifier.progress();
            assert!(progress.done >= done && progress.done <= progress.total);
            seen += usize::from(progress.done > done);
            done = progress.done;
        }
        assert!(seen > 3, "{seen} steps");
        assert_eq!(verifier.progress().done, verifier.progress().total);
        totals.push(verifier.progress().total);
    }
    // What waits to be applied belongs to no point.
    assert!(totals[0] > totals[1], "{totals:?}");

    // What comes meanwhile does not make it fall, nor exceed the whole.
    let mut verifier = Verifier::of_everything();
    drop(verifier.next(&store).unwrap());
    deliver(&mut store, &mut shadow);
    while let Some(unread) = verifier.next(&store).unwrap() {
        verifier.take_in(&store, unread.read().unwrap()).unwrap();
        let progress = verifier.progress();
        assert!(progress.done <= progress.total);
    }
}

fn change_some_byte(disk: &Recorder, path: &Path, from: usize) {
    let bytes = read_file(disk, path).unwrap();
    let at = from + bytes[from..].iter().position(|byte| *byte != 0).unwrap();
    let file = disk.open(path, Access::ReadWrite).unwrap();
    file.write_at(&[bytes[at] ^ 1], at as u64).unwrap();
}

fn segment(name: &str) -> PathBuf {
    Path::new(ROOT).join("disks/disk0/seg").join(name)
}

/// The first byte of guest data in a segment: its second cluster.
const FIRST_DATA: usize = 128 << 10;

#[test]
fn what_is_applied_sealed_and_merged_meanwhile_is_no_damage() {
    let count = {
        let (mut store, _) = replica(&Recorder::new(), 1);
        parts(&mut store, Verifier::of_everything())
    };
    assert!(count > 8, "{count} parts");
    for at in 0..=count {
        let (mut store, mut shadow) = replica(&Recorder::new(), 1);
        let sequence = oldest(&store);
        for verifier in [Verifier::of_everything(), Verifier::of_point(sequence)] {
            let found = verify_with(&mut store, verifier, at, |store| {
                deliver(store, &mut shadow);
                store.make_point(NOW, PointKind::Standard).unwrap();
                deliver(store, &mut shadow);
                store.seal().unwrap();
                store.remove_point(store.points()[1].sequence).unwrap();
            });
            let found = found.unwrap();
            assert_eq!(found.findings, [], "before part {at}");
            assert!(found.verified_bytes > 0);
        }
    }
}

#[test]
fn a_rotten_segment_is_found_whatever_happens_meanwhile() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 2);
    store.seal().unwrap();
    let rotten = segment("2.qcow2");
    change_some_byte(&disk, &rotten, FIRST_DATA);
    let concerned: Vec<Sequence> = store.points()[..2].iter().map(|one| one.sequence).collect();
    let count = parts(&mut store, Verifier::of_point(concerned[0]));
    for at in 0..count {
        let busy = |store: &mut Store| deliver(store, &mut shadow);
        let point = Verifier::of_point(concerned[0]);
        let found = verify_with(&mut store, point, at, busy).unwrap().findings;
        let is_right = |finding: &Finding| finding.path == rotten && finding.points == concerned;
        assert!(!found.is_empty(), "before part {at}");
        assert!(found.iter().all(is_right), "{found:?}");
    }
    // A point that does not read it is right.
    let later = Verifier::of_point(store.points()[2].sequence);
    let found = verify_with(&mut store, later, 0, |_| {}).unwrap();
    assert_eq!(found.findings, []);
}

#[test]
fn a_rotten_head_is_found_after_deltas_that_leave_it_alone() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 3);
    let count = parts(&mut store, Verifier::of_everything());
    // The last block of the disk is written once, with its whole chunk.
    let last = (1 << 20) - (64 << 10);
    shadow.write(0, last, &[7; 64 << 10]);
    store.receive(&shadow.capture()[..]).unwrap();
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
    let head = Path::new(ROOT).join("disks/disk0/head.raw");
    change_some_byte(&disk, &head, last as usize);
    for at in 0..=count {
        let busy = |store: &mut Store| {
            shadow.write(0, 4096, &[at as u8 + 1; 8192]);
            store.receive(&shadow.capture()[..]).unwrap();
            while store.apply_next(&mut |_| {}).unwrap().is_some() {}
        };
        let point = Verifier::of_point(oldest(&store));
        let found = verify_with(&mut store, point, at, busy).unwrap().findings;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&found[0].path, found[0].points.len()), (&head, 4));
    }
}

#[test]
fn a_point_that_goes_meanwhile_is_not_called_right() {
    let disk = Recorder::new();
    let (mut store, _) = replica(&disk, 4);
    for at in [0, 1] {
        let sequence = oldest(&store);
        let remove = |store: &mut Store| store.remove_point(sequence).unwrap();
        let outcome = verify_with(&mut store, Verifier::of_point(sequence), at, remove);
        let Err(StoreError::Refused(Refused::NoPoint { sequence: gone })) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(gone, sequence);
    }
}

#[test]
fn a_commit_does_not_wait_for_a_verification_and_ends_that_of_a_point() {
    for (seed, of_point) in [(5, false), (6, true)] {
        let disk = Recorder::new();
        let (mut store, _) = replica(&disk, seed);
        let lineage = LineageId::from_bytes([9; 16]);
        let newest = FailoverTarget::Newest;
        store
            .start_failover(newest, lineage, NOW, &mut |_| {})
            .unwrap();
        let verifier = match of_point {
            true => Verifier::of_point(oldest(&store)),
            false => Verifier::of_everything(),
        };
        let outcome = verify_with(&mut store, verifier, 1, |store| {
            store.commit(&mut |_| {}).unwrap();
        });
        match outcome {
            Ok(found) if !of_point => assert_eq!(found.findings, []),
            Err(StoreError::Refused(Refused::Committed)) if of_point => {}
            outcome => panic!("{outcome:?}"),
        }
    }
}
