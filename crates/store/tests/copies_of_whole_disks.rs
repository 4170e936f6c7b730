//! Copies of whole disks straight into the heads: the first one, and resynchronizations.
//!
//! The sender's guest writes all the while. At every call of a copy from its beginning to the
//! first point the power fails; the copy goes on from what the store says is done, and the
//! first point is right byte for byte.

use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{
    Activity, Random, ShadowVm, compare_point, compare_points, copy_piece, copy_rest, decode_piece,
    read_failover_disk,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{Lineage, LineageId, Sequence, Timestamp};
use lifeboat_store::{
    ChunkError, ChunkMemory, ChunkPlace, CopyKind, FailoverTarget, Heads, History, NewCopy,
    Refused, Role, Store, StoreError, decode_chunk,
};
use lifeboat_stream::{
    BlobKind, Compression, Disk, Encoder, Header, Kind, Layout, Manifest, Options,
};
use lifeboat_sys::disk::{CrashChoice, DiskPort, Fault, FaultDisk, Recorder};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);
const LINEAGE: LineageId = LineageId::from_bytes([7; 16]);

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

fn open(disk: &Recorder) -> Store {
    Store::open(port(disk), Path::new(ROOT), "test").unwrap()
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn begin(store: &mut Store, shadow: &mut ShadowVm, kind: CopyKind) -> Sequence {
    let sequence = shadow.begin_copy();
    store.begin_copy(NewCopy { sequence, kind }, NOW).unwrap();
    sequence
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> Refused {
    match outcome.unwrap_err() {
        StoreError::Refused(refused) => refused,
        error => panic!("{error:?}"),
    }
}

/// A store with two points and a guest that goes on.
fn replica(disk: &Recorder, seed: u64) -> (Store, ShadowVm) {
    let mut shadow = ShadowVm::new(seed, &[600 << 10, 77 * 512]);
    let mut store = Store::init(port(disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    for _ in 0..2 {
        shadow.work(Activity::MIXED);
        store.receive(&shadow.capture()[..]).unwrap();
        apply_all(&mut store);
        store.make_point(NOW, PointKind::Standard).unwrap();
    }
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(&mut store);
    shadow.work(Activity::MIXED);
    (store, shadow)
}

fn close(store: &mut Store, shadow: &mut ShadowVm) {
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture_closing()[..]).unwrap();
    apply_all(store);
}

fn refuse_findings(store: &Store) {
    let verified = store.verify(&mut |_| {}).unwrap();
    assert_eq!(verified.findings, []);
}

#[test]
fn an_initial_copy_becomes_the_first_point_when_a_delta_closes_it() {
    let disk = Recorder::new();
    let mut shadow = ShadowVm::new(1, &[600 << 10, 77 * 512]);
    shadow.work(Activity::MIXED);
    let mut store = Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    begin(&mut store, &mut shadow, CopyKind::Initial);
    assert_eq!(store.heads(), Heads::Mixed(None));
    copy_rest(&mut store, &mut shadow, &mut Random::new(1)).unwrap();
    assert!(matches!(
        refusal(store.make_point(NOW, PointKind::Standard)),
        Refused::Mixed { .. }
    ));
    let fail_over = store.start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {});
    assert!(matches!(refusal(fail_over), Refused::NothingApplied { .. }));
    close(&mut store, &mut shadow);
    assert_eq!(store.copy_status(), None);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    assert_eq!(store.heads(), Heads::Consistent(point));
    compare_point(&store, point, &shadow).unwrap();
    refuse_findings(&store);
}

#[test]
fn an_initial_copy_is_not_closed_before_every_byte_is_copied() {
    let disk = Recorder::new();
    let mut shadow = ShadowVm::new(2, &[600 << 10]);
    let mut store = Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    let copy = begin(&mut store, &mut shadow, CopyKind::Initial);
    copy_piece(&mut store, &mut shadow, copy, 0, 0..512 << 10).unwrap();
    let closing = shadow.capture_closing();
    assert_eq!(
        refusal(store.receive(&closing[..])),
        Refused::CopyIncomplete { sequence: copy }
    );
    copy_piece(&mut store, &mut shadow, copy, 0, 512 << 10..600 << 10).unwrap();
    store.receive(&closing[..]).unwrap();
}

#[test]
fn points_and_the_last_moment_survive_a_resynchronization() {
    for seed in 0..4 {
        let disk = Recorder::new();
        let (mut store, mut shadow) = replica(&disk, seed);
        let last = store.applied();
        begin(&mut store, &mut shadow, CopyKind::Resync);
        let mut random = Random::new(seed);
        for at in 0..6 {
            let range = at * 65536..(at + 1) * 65536;
            let copy = store.copy_status().unwrap().sequence;
            copy_piece(&mut store, &mut shadow, copy, 0, range).unwrap();
            shadow.work(Activity::MIXED);
            compare_points(&store, &shadow).unwrap();
            if random.one_in(3) {
                store.seal().unwrap();
            }
            if random.one_in(3) {
                drop(store);
                store = open(&disk);
            }
            assert_eq!(store.heads(), Heads::Mixed(Some(last)));
            assert_eq!(store.applied(), last);
            assert!(store.verify(&mut |_| {}).unwrap().heads_are_mixed);
            refuse_findings(&store);
        }
        close(&mut store, &mut shadow);
        store.make_point(NOW, PointKind::Standard).unwrap();
        compare_points(&store, &shadow).unwrap();
        assert_eq!(store.points().len(), 3);
        refuse_findings(&store);
        // The boundary that the copy kept goes with the points around it.
        for point in store.points() {
            store.remove_point(point.sequence).unwrap();
        }
        assert_eq!(store.status().unwrap().segments, 0);
    }
}

#[test]
fn a_failover_during_a_resynchronization_starts_from_the_last_moment() {
    for target in [FailoverTarget::Newest, FailoverTarget::Applied] {
        let disk = Recorder::new();
        let (mut store, mut shadow) = replica(&disk, 3);
        let last = store.applied();
        let copy = begin(&mut store, &mut shadow, CopyKind::Resync);
        copy_piece(&mut store, &mut shadow, copy, 0, 0..256 << 10).unwrap();
        let started = store
            .start_failover(target, LINEAGE, NOW, &mut |_| {})
            .unwrap();
        assert_eq!(started.sequence, last);
        for (name, expected) in shadow.names().iter().zip(shadow.at(last)) {
            assert!(read_failover_disk(&store, name).unwrap() == *expected);
        }
        assert_eq!(store.copy_status(), None);
        drop(store);
        let mut store = open(&disk);
        store.revert_failover().unwrap();
        assert_eq!(store.heads(), Heads::Mixed(Some(last)));
        let closing = shadow.capture_closing();
        assert_eq!(refusal(store.receive(&closing[..])), Refused::CopyNeeded);
        begin(&mut store, &mut shadow, CopyKind::Resync);
        copy_rest(&mut store, &mut shadow, &mut Random::new(1)).unwrap();
        close(&mut store, &mut shadow);
        let point = store.make_point(NOW, PointKind::Standard).unwrap();
        compare_point(&store, point, &shadow).unwrap();
        compare_points(&store, &shadow).unwrap();
    }
}

#[test]
fn a_commit_during_a_resynchronization_keeps_the_last_moment() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 4);
    let last = store.applied();
    let copy = begin(&mut store, &mut shadow, CopyKind::Resync);
    copy_piece(&mut store, &mut shadow, copy, 0, 0..600 << 10).unwrap();
    store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    store.commit(&mut |_| {}).unwrap();
    assert_eq!(store.heads(), Heads::Consistent(last));
    for (name, expected) in shadow.names().iter().zip(shadow.at(last)) {
        let head = Path::new(ROOT).join(format!("disks/{name}/head.raw"));
        assert!(lifeboat_harness::read_file(&disk, &head).unwrap() == *expected);
    }
}

#[test]
fn a_closing_delta_with_a_receipt_outlives_a_failover_to_the_last_moment() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 5);
    let last = store.applied();
    begin(&mut store, &mut shadow, CopyKind::Resync);
    copy_rest(&mut store, &mut shadow, &mut Random::new(1)).unwrap();
    let closing = shadow.capture_closing();
    store.receive(&closing[..]).unwrap();
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    let started = store
        .start_failover(FailoverTarget::Applied, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    assert_eq!(started.sequence, last);
    store.revert_failover().unwrap();
    drop(store);
    let mut store = open(&disk);
    apply_all(&mut store);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, point, &shadow).unwrap();
}

#[test]
fn what_does_not_continue_the_copy_is_refused() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 6);
    let ordinary = shadow.clone().capture();
    let initial = NewCopy {
        sequence: Sequence::new(90),
        kind: CopyKind::Initial,
    };
    assert!(matches!(
        refusal(store.begin_copy(initial, NOW)),
        Refused::NotEmptyForCopy { .. }
    ));
    let used = NewCopy {
        sequence: store.tip(),
        kind: CopyKind::Resync,
    };
    assert!(matches!(
        refusal(store.begin_copy(used, NOW)),
        Refused::OldCopy { .. }
    ));
    let first = begin(&mut store, &mut shadow, CopyKind::Resync);
    assert!(matches!(
        refusal(store.receive(&ordinary[..])),
        Refused::TooOld { .. } | Refused::Copying { .. }
    ));
    let later = shadow.clone().capture();
    assert_eq!(
        refusal(store.receive(&later[..])),
        Refused::Copying { sequence: first }
    );
    let stream = shadow.capture_piece(first, 0, 0..65536);
    let piece = decode_piece(&store, &stream, 0, 0..65536).unwrap();
    let second = begin(&mut store, &mut shadow, CopyKind::Resync);
    assert_eq!(
        refusal(store.write_chunk(&piece)),
        Refused::OtherCopy {
            theirs: first,
            ours: second
        }
    );
    let beyond = shadow.capture_piece(second, 1, 0..77 * 512);
    let beyond = decode_piece(&store, &beyond, 1, 0..80 * 512).unwrap();
    assert!(matches!(
        refusal(store.write_chunk(&beyond)),
        Refused::BadPiece { .. }
    ));
    let scattered = shadow.capture_piece(second, 0, 0..512);
    let scattered = decode_piece(&store, &scattered, 0, 0..512).unwrap();
    assert!(matches!(
        refusal(store.write_chunk(&scattered)),
        Refused::BadPiece { .. }
    ));
    let closed = {
        copy_rest(&mut store, &mut shadow, &mut Random::new(1)).unwrap();
        shadow.capture_closing()
    };
    let late = shadow.capture_piece(second, 0, 0..65536);
    store.receive(&closed[..]).unwrap();
    // A repeated piece is answered as before, and changes nothing any more.
    let late = decode_piece(&store, &late, 0, 0..65536).unwrap();
    store.write_chunk(&late).unwrap();
    apply_all(&mut store);
    assert_eq!(refusal(store.write_chunk(&late)), Refused::NotCopying);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, point, &shadow).unwrap();
}

#[test]
fn what_maps_were_believed_for_is_unverified_until_all_was_compared() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 8);
    assert!(store.is_verified());
    let copy = begin(&mut store, &mut shadow, CopyKind::ByMaps);
    copy_piece(&mut store, &mut shadow, copy, 0, 0..65536).unwrap();
    assert!(matches!(
        refusal(store.mark_verified()),
        Refused::Mixed { .. }
    ));
    // The same copy, and the maps are not believed any more: nothing counts as done.
    let compared = NewCopy {
        sequence: copy,
        kind: CopyKind::Resync,
    };
    let status = store.begin_copy(compared, NOW).unwrap();
    assert_eq!(status.disks[0].1, []);
    assert!(store.is_verified());

    let copy = begin(&mut store, &mut shadow, CopyKind::ByMaps);
    copy_rest(&mut store, &mut shadow, &mut Random::new(2)).unwrap();
    store.receive(&shadow.capture_closing()[..]).unwrap();
    apply_all(&mut store);
    assert!(store.applied() > copy);
    let early = store.make_point(NOW, PointKind::Standard).unwrap();
    drop(store);
    let mut store = open(&disk);
    assert!(!store.is_verified());
    store.mark_verified().unwrap();
    store.mark_verified().unwrap();
    drop(store);
    let mut store = open(&disk);
    assert!(store.is_verified());
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(&mut store);
    let late = store.make_point(NOW, PointKind::Standard).unwrap();
    let points = store.status().unwrap().points;
    let verified = |sequence| {
        let point = points.iter().find(|point| point.sequence == sequence);
        point.unwrap().verified
    };
    assert!(!verified(early) && verified(late));
    // Those from before the copy are what they were.
    assert!(points.iter().any(|point| point.sequence < copy));
    let older = points.iter().filter(|point| point.sequence < copy);
    assert!(older.into_iter().all(|point| point.verified));
    compare_point(&store, late, &shadow).unwrap();
}

#[test]
fn the_same_copy_again_changes_nothing_and_a_newer_one_forgets_what_was_done() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 7);
    let last = store.applied();
    let first = begin(&mut store, &mut shadow, CopyKind::Resync);
    copy_piece(&mut store, &mut shadow, first, 0, 0..65536).unwrap();
    let before = store.copy_status().unwrap();
    let again = NewCopy {
        sequence: first,
        kind: CopyKind::Resync,
    };
    assert_eq!(store.begin_copy(again, NOW).unwrap(), before);
    drop(store);
    let mut store = open(&disk);
    assert_eq!(store.begin_copy(again, NOW).unwrap(), before);
    assert_eq!(
        before.disks[0].1,
        vec![std::ops::Range {
            start: 0,
            end: 65536
        }]
    );
    begin(&mut store, &mut shadow, CopyKind::Resync);
    assert_eq!(store.copy_status().unwrap().disks[0].1, []);
    assert_eq!(store.heads(), Heads::Mixed(Some(last)));
    assert!(matches!(
        refusal(store.begin_copy(again, NOW)),
        Refused::OldCopy { .. }
    ));
}

#[test]
fn a_rotten_closing_delta_is_never_skipped_for_one_that_builds_on_it() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 8);
    begin(&mut store, &mut shadow, CopyKind::Resync);
    copy_rest(&mut store, &mut shadow, &mut Random::new(1)).unwrap();
    shadow.work(Activity::MIXED);
    let closing = shadow.capture_closing();
    let sequence = store.receive(&closing[..]).unwrap().receipt.sequence;
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    drop(store);
    let path = format!("{ROOT}/spool/{}-{sequence}.delta", shadow.lineage);
    let file = disk
        .open(Path::new(&path), lifeboat_sys::disk::Access::ReadWrite)
        .unwrap();
    let middle = closing.len() as u64 / 2;
    let mut byte = [0];
    file.read_at(&mut byte, middle).unwrap();
    file.write_at(&[byte[0] ^ 0x40], middle).unwrap();
    let mut store = open(&disk);
    assert!(matches!(
        store.apply_next(&mut |_| {}),
        Err(StoreError::Damaged { .. })
    ));
    assert_eq!(store.role(), Role::Replica);
    drop(store);
    let mut store = open(&disk);
    assert!(matches!(store.heads(), Heads::Mixed(Some(_))));
    compare_points(&store, &shadow).unwrap();
    // A new copy makes it good.
    begin(&mut store, &mut shadow, CopyKind::Resync);
    copy_rest(&mut store, &mut shadow, &mut Random::new(2)).unwrap();
    close(&mut store, &mut shadow);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, point, &shadow).unwrap();
    compare_points(&store, &shadow).unwrap();
    refuse_findings(&store);
}

/// Copies from where the store is to the first point.
fn carry_on(disk: &Recorder, shadow: &mut ShadowVm, copy: NewCopy) -> Result<(), String> {
    let said = |error: StoreError| format!("{error}: {error:?}");
    let mut store = Store::open(port(disk), Path::new(ROOT), "test").map_err(said)?;
    compare_points(&store, shadow)?;
    store.begin_copy(copy, NOW).map_err(said)?;
    copy_rest(&mut store, shadow, &mut Random::new(9))?;
    shadow.work(Activity::BLOCKS);
    store.receive(&shadow.capture_closing()[..]).map_err(said)?;
    while store.apply_next(&mut |_| {}).map_err(said)?.is_some() {}
    let point = store.make_point(NOW, PointKind::Standard).map_err(said)?;
    compare_point(&store, point, shadow)?;
    compare_points(&store, shadow)?;
    let findings = store.verify(&mut |_| {}).map_err(said)?.findings;
    if findings.is_empty() {
        Ok(())
    } else {
        Err(format!("{findings:?}"))
    }
}

/// A copy whose guest is the same whenever the power fails: what a crash loses of the shadow
/// is not lost in the VM.
struct Copying {
    disk: Recorder,
    shadow: ShadowVm,
    copy: NewCopy,
}

impl Copying {
    fn new(kind: CopyKind, seed: u64) -> Self {
        let disk = if seed.is_multiple_of(2) {
            Recorder::new()
        } else {
            Recorder::new().sharing_blocks()
        };
        let mut shadow = match kind {
            CopyKind::Initial => {
                let mut shadow = ShadowVm::new(seed, &[300 << 10, 77 * 512]);
                shadow.work(Activity::MIXED);
                Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
                shadow
            }
            CopyKind::Resync | CopyKind::ByMaps => replica(&disk, seed).1,
        };
        let sequence = shadow.begin_copy();
        Self {
            disk,
            shadow,
            copy: NewCopy { sequence, kind },
        }
    }
}

fn power_loss(kind: CopyKind) -> usize {
    let mut states = 0;
    for seed in 0..2 {
        let Copying { disk, shadow, copy } = Copying::new(kind, seed);
        disk.start_recording();
        // The guest has written everything before the crash: any of it may be copied.
        let mut now = shadow.clone();
        now.work(Activity::MIXED);
        let guest = now.clone();
        let mut store = open(&disk);
        store.begin_copy(copy, NOW).unwrap();
        let size = store.disks()[0].1.bytes();
        for start in (0..size).step_by(64 << 10) {
            let range = start..(start + (64 << 10)).min(size);
            copy_piece(&mut store, &mut now, copy.sequence, 0, range).unwrap();
        }
        drop(store);
        let recording = disk.recording();
        let mut seen = std::collections::HashSet::new();
        let mut random = Random::new(seed);
        for calls in 0..=recording.len() {
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
                if seen.insert(state.fingerprint) {
                    carry_on(&state.disk, &mut guest.clone(), copy).unwrap_or_else(|error| {
                        panic!("{kind:?}, seed {seed}, call {calls}, {choice:?}: {error}")
                    });
                }
            }
        }
        states += seen.len();
    }
    println!("power loss during a copy ({kind:?}): {states} states carried on to a right point");
    states
}

#[test]
fn an_initial_copy_goes_on_after_a_power_loss_at_any_call() {
    assert!(power_loss(CopyKind::Initial) > 300);
}

#[test]
fn a_resynchronization_goes_on_after_a_power_loss_at_any_call() {
    assert!(power_loss(CopyKind::Resync) > 500);
}

#[test]
fn a_piece_for_which_there_is_no_room_is_refused_before_anything_is_written() {
    let disk = Recorder::new();
    let (mut store, mut shadow) = replica(&disk, 10);
    let copy = begin(&mut store, &mut shadow, CopyKind::Resync);
    let stream = shadow.capture_piece(copy, 0, 0..256 << 10);
    let piece = decode_piece(&store, &stream, 0, 0..256 << 10).unwrap();
    disk.limit_capacity(Some(disk.occupied() + 4096));
    assert!(matches!(
        store.write_chunk(&piece),
        Err(StoreError::DiskFull { .. })
    ));
    disk.limit_capacity(None);
    // The store was not opened again meanwhile.
    store.write_chunk(&piece).unwrap();
    copy_rest(&mut store, &mut shadow, &mut Random::new(1)).unwrap();
    close(&mut store, &mut shadow);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, point, &shadow).unwrap();
}

#[test]
fn an_error_at_any_call_of_a_piece_leaves_it_undone_and_everything_else_right() {
    for fault in [Fault::InputOutput, Fault::DiskFull] {
        let mut failed = 0;
        for call in 0.. {
            let kept = Recorder::new();
            let (mut store, mut shadow) = replica(&kept, 11);
            let copy = begin(&mut store, &mut shadow, CopyKind::Resync);
            drop(store);
            let new = NewCopy {
                sequence: copy,
                kind: CopyKind::Resync,
            };
            let stream = shadow.capture_piece(copy, 0, 0..256 << 10);
            let counting = FaultDisk::failing_at(port(&kept), call, fault);
            let outcome = Store::open(Arc::new(counting), Path::new(ROOT), "test")
                .map_err(|error| error.to_string())
                .and_then(|mut store| {
                    let piece = decode_piece(&store, &stream, 0, 0..256 << 10)?;
                    store.write_chunk(&piece).map_err(|error| error.to_string())
                });
            // The note in the lock file alone may fail in silence.
            if outcome.is_ok() && call > 8 {
                break;
            }
            failed += u32::from(outcome.is_err());
            carry_on(&kept, &mut shadow, new).unwrap_or_else(|error| {
                panic!("{fault:?} at call {call} ({outcome:?}): {error}");
            });
        }
        assert!(failed > 20, "{fault:?}: {failed} failed");
    }
}

/// A primary that has gone on alone, with a delta at the replica that is not applied yet.
fn gone_on_alone(disk: &Recorder, seed: u64) -> (ShadowVm, NewCopy, History) {
    let (mut store, mut shadow) = replica(disk, seed);
    store.receive(&shadow.capture()[..]).unwrap();
    shadow.work(Activity::MIXED);
    let history = History {
        lineage: Lineage {
            counter: 2,
            id: LineageId::from_bytes([8; 16]),
            forked_from: Some((shadow.lineage, store.tip())),
        },
        ancestors: Vec::new(),
    };
    shadow.lineage = history.lineage.id;
    let copy = NewCopy {
        sequence: shadow.begin_copy(),
        kind: CopyKind::Resync,
    };
    (shadow, copy, history)
}

#[test]
fn a_primary_that_went_on_alone_is_followed_after_a_power_loss_at_any_call() {
    let disk = Recorder::new();
    let (shadow, copy, history) = gone_on_alone(&disk, 12);
    disk.start_recording();
    let follow = |disk: &Recorder| {
        let mut store = open(disk);
        let begun = store.begin_copy_following(copy, Some(history.clone()), NOW);
        begun.map(|_| store).map_err(|error| format!("{error:?}"))
    };
    let before: Vec<_> = open(&disk).points();
    drop(follow(&disk).unwrap());
    let recording = disk.recording();
    let mut seen = std::collections::HashSet::new();
    for calls in 0..=recording.len() {
        for choice in [
            CrashChoice::Nothing,
            CrashChoice::Everything,
            CrashChoice::Some {
                seed: calls as u64,
                chance: 128,
            },
        ] {
            let state = recording.crash_after(calls, choice);
            if !seen.insert(state.fingerprint) {
                continue;
            }
            let at = format!("call {calls}, {choice:?}");
            let store = follow(&state.disk).unwrap_or_else(|error| panic!("{at}: {error}"));
            assert_eq!(store.lineage(), history.lineage, "{at}");
            let points = store.points();
            let labels = |points: &[lifeboat_store::Point]| -> Vec<_> {
                let points = points.iter();
                points
                    .map(|point| (point.sequence, point.lineage))
                    .collect()
            };
            assert!(labels(&points).starts_with(&labels(&before)), "{at}");
            drop(store);
            let mut shadow = shadow.clone();
            carry_on(&state.disk, &mut shadow, copy)
                .unwrap_or_else(|error| panic!("{at}: {error}"));
            let newest = open(&state.disk).points().pop().unwrap();
            assert_eq!(newest.lineage, history.lineage.id, "{at}");
        }
    }
    assert!(seen.len() > 20, "{} states", seen.len());
}

#[test]
fn a_history_that_does_not_descend_from_the_store_s_is_not_followed() {
    let disk = Recorder::new();
    let (_, copy, history) = gone_on_alone(&disk, 13);
    let mut store = open(&disk);
    let (lineage, before) = (store.lineage(), store.copy_status());
    let foreign = History {
        lineage: Lineage {
            forked_from: Some((LineageId::from_bytes([9; 16]), Sequence::new(1))),
            ..history.lineage
        },
        ancestors: Vec::new(),
    };
    let refused = refusal(store.begin_copy_following(copy, Some(foreign), NOW));
    assert!(
        matches!(refused, Refused::NotDescended { .. }),
        "{refused:?}"
    );
    assert_eq!((store.lineage(), store.copy_status()), (lineage, before));
}

/// A stream for a piece of 64 KiB of the first disk, made by hand.
fn stream(header: &Header, write: impl FnOnce(&mut Encoder<Vec<u8>>)) -> Vec<u8> {
    let disks = ["disk0", "disk1"].map(|id| Disk {
        id: id.parse().unwrap(),
        size: (1_u64 << 20).try_into().unwrap(),
    });
    let manifest = Manifest::new(NOW, lifeboat_model::Consistency::Crash, disks.to_vec()).unwrap();
    let options = Options {
        compression: Compression::None,
        layout: Layout::Compact,
    };
    let mut encoder = Encoder::new(Vec::new(), header, &manifest, options).unwrap();
    write(&mut encoder);
    encoder.finish().unwrap().1
}

#[test]
fn a_piece_that_is_not_what_its_place_says_is_refused() {
    let memory = ChunkMemory::default();
    let shadow = ShadowVm::new(1, &[1 << 20, 1 << 20]);
    let place = ChunkPlace {
        relationship: shadow.relationship,
        lineage: shadow.lineage,
        sequence: Sequence::new(5),
        disk: "disk0".parse().unwrap(),
        range: 65536..131_072,
    };
    let header = Header {
        relationship: shadow.relationship,
        lineage: shadow.lineage,
        base: None,
        sequence: Sequence::new(5),
        kind: Kind::Resync,
    };
    let good = stream(&header, |encoder| {
        encoder.data(0, 65536, &[7; 4096]).unwrap();
        encoder.data(0, 65536 + 4096, &[8; 512]).unwrap();
        encoder.zero(0, 131_072 - 512, 512).unwrap();
    });
    assert_eq!(
        decode_chunk(&good[..], &place, &memory)
            .unwrap()
            .changed_bytes(),
        4096 + 1024
    );
    for position in (0..good.len()).step_by(7) {
        let mut rotten = good.clone();
        rotten[position] ^= 0x20;
        decode_chunk(&rotten[..], &place, &memory).unwrap_err();
        decode_chunk(&good[..position], &place, &memory).unwrap_err();
    }
    let outside = |offset| {
        stream(&header, |encoder| {
            encoder.data(0, offset, &[7; 1024]).unwrap();
        })
    };
    for offset in [65536 - 512, 131_072 - 512, 0, 131_072] {
        assert!(matches!(
            decode_chunk(&outside(offset)[..], &place, &memory),
            Err(ChunkError::Outside { .. })
        ));
    }
    let other_disk = stream(&header, |encoder| encoder.zero(1, 65536, 4096).unwrap());
    assert!(matches!(
        decode_chunk(&other_disk[..], &place, &memory),
        Err(ChunkError::Outside { disk: 1, .. })
    ));
    let blob = stream(&header, |encoder| {
        encoder.blob(BlobKind::Definition, 1, b"cpus").unwrap();
    });
    assert!(matches!(
        decode_chunk(&blob[..], &place, &memory),
        Err(ChunkError::HasBlob)
    ));
    let mut places = vec![place.clone(); 4];
    places[0].relationship = lifeboat_model::RelationshipId::from_bytes([9; 16]);
    places[1].lineage = LINEAGE;
    places[2].sequence = Sequence::new(6);
    places[3].disk = "other".parse().unwrap();
    for place in places {
        assert!(matches!(
            decode_chunk(&good[..], &place, &memory),
            Err(ChunkError::OtherPlace { .. })
        ));
    }
    #[expect(
        clippy::reversed_empty_ranges,
        reason = "a peer may send any two numbers"
    )]
    for range in [0..0, 512..8192, 131_072..65536, 0..(64 << 20) + 4096] {
        let place = ChunkPlace {
            range,
            ..place.clone()
        };
        assert!(matches!(
            decode_chunk(&good[..], &place, &memory),
            Err(ChunkError::Range { .. })
        ));
    }
}
