//! Full disks and failing calls: an error each time, nothing lost, and it goes on afterwards.
//!
//! The calls are counted, and each one fails once: by "no space left" from that call on, or by
//! an input/output error at that call alone. Then real file systems are filled to the last
//! block: what has a receipt can be applied all the same.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{
    Activity, Depth, Facts, Operation, Random, ShadowVm, SmallVolume, compare_point, compare_points,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Timestamp};
use lifeboat_store::{FailoverTarget, Refused, Store, StoreError};
use lifeboat_sys::disk::{CrashChoice, DiskPort, Fault, FaultDisk, RealDisk, Recorder};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

/// An independent copy of everything on the recorder.
fn copy(disk: &Recorder) -> Recorder {
    disk.start_recording();
    disk.recording()
        .crash_after(0, CrashChoice::Everything)
        .disk
}

fn attempt(disk: Arc<dyn DiskPort>, operation: Operation, stream: &[u8]) -> Result<(), StoreError> {
    let mut store = Store::open(disk, Path::new(ROOT), "test")?;
    operation.run(&mut store, stream)
}

/// Lets every call of the operation fail once.
fn fail_every_call(operation: Operation, seed: u64, fault: Fault) -> (u64, u64) {
    let root = Path::new(ROOT);
    let kept = Recorder::new();
    let prepared = operation.prepare(seed, &port(&kept), root);

    let disk = copy(&kept);
    let counting = Arc::new(FaultDisk::counting(port(&disk)));
    attempt(Arc::clone(&counting) as _, operation, &prepared.stream).unwrap();
    let calls = counting.calls();
    let after = Facts::of(&Store::open(port(&disk), root, "test").unwrap());

    let mut failed = 0;
    for call in 0..calls {
        let disk = copy(&kept);
        let faulty = FaultDisk::failing_at(port(&disk), call, fault);
        let outcome = attempt(Arc::new(faulty), operation, &prepared.stream);
        let healthy = port(&disk);
        let at = |error: String| {
            format!(
                "{}, seed {seed}, {fault:?} at call {call} of {calls} ({outcome:?}): {error}",
                operation.name()
            )
        };
        match &outcome {
            Ok(()) => {
                let found = Facts::of(&Store::open(port(&disk), root, "test").unwrap());
                assert_eq!(found, after, "{}", at("not done".to_owned()));
            }
            Err(StoreError::Refused(refused)) => panic!("{}", at(format!("refused: {refused}"))),
            Err(StoreError::Damaged { .. }) => panic!("{}", at("taken for damage".to_owned())),
            Err(error) => {
                let full = matches!(error, StoreError::DiskFull { .. });
                assert_eq!(
                    full,
                    fault == Fault::DiskFull,
                    "{}",
                    at("misnamed".to_owned())
                );
                failed += 1;
            }
        }
        if call % 2 == 0 {
            prepared
                .repeat(&healthy, root, &after)
                .unwrap_or_else(|error| panic!("{}", at(error)));
        }
        prepared
            .check(&healthy, root, &after, Depth::Future)
            .unwrap_or_else(|error| panic!("{}", at(error)));
    }
    (calls, failed)
}

fn fail_every_operation(fault: Fault) -> BTreeMap<&'static str, (u64, u64)> {
    Operation::ALL
        .into_iter()
        .map(|operation| {
            let counts = (0..2).map(|seed| fail_every_call(operation, seed, fault));
            let sum = counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
            (operation.name(), sum)
        })
        .collect()
}

#[test]
fn an_input_output_error_at_any_call_is_told_and_harms_nothing() {
    let counts = fail_every_operation(Fault::InputOutput);
    println!("input/output errors: (calls, failed operations) {counts:?}");
    for (operation, (calls, failed)) in counts {
        // The note in the lock file alone may fail in silence.
        assert!(failed + 4 >= calls, "{operation}: {failed} of {calls} told");
        assert!(failed > 20, "{operation}: {failed} of {calls} told");
    }
}

#[test]
fn a_disk_that_is_full_from_any_call_on_is_told_and_harms_nothing() {
    let counts = fail_every_operation(Fault::DiskFull);
    println!("full disks: (calls, failed operations) {counts:?}");
    for (operation, (calls, failed)) in counts {
        assert!(failed > 10, "{operation}: {failed} of {calls} told");
    }
}

/// A store whose deltas need space in every way there is.
struct Tight {
    store: Store,
    shadow: ShadowVm,
    first: Vec<u8>,
}

impl Tight {
    const SIZES: [u64; 2] = [48 << 20, 16 << 20];

    fn new(root: &Path) -> Self {
        let mut shadow = ShadowVm::new(1, &Self::SIZES);
        let mut random = Random::new(2);
        for (at, size) in Self::SIZES.into_iter().enumerate() {
            let mut bytes = vec![0; size as usize - (6 << 20)];
            random.fill(&mut bytes);
            shadow.write(at, 0, &bytes);
        }
        let mut store = Store::init(Arc::new(RealDisk), root, &shadow.new_store(), "test").unwrap();
        let first = shadow.capture();
        store.receive(&first[..]).unwrap();
        apply_all(&mut store);
        store.make_point(NOW, PointKind::Standard).unwrap();
        Self {
            store,
            shadow,
            first,
        }
    }

    /// Long runs, single blocks all over the disks, a cut-off tail, new space at the end.
    fn capture_much(&mut self) -> Vec<u8> {
        let mut random = Random::new(3);
        let mut bytes = vec![0; 5 << 20];
        random.fill(&mut bytes);
        self.shadow.write(0, 3 << 20, &bytes);
        for at in 0..400 {
            random.fill(&mut bytes[..512]);
            self.shadow.write(0, at * (100 << 10), &bytes[..512]);
        }
        self.shadow.resize(1, 5 << 20);
        self.shadow.resize(0, 60 << 20);
        random.fill(&mut bytes);
        self.shadow.write(0, 54 << 20, &bytes);
        self.shadow.work(Activity::MIXED);
        self.shadow.capture()
    }

    fn receive_much(&mut self) {
        let stream = self.capture_much();
        self.store.receive(&stream[..]).unwrap();
    }
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn assert_full(volume: &SmallVolume) {
    let probe = volume.path().join("probe");
    let outcome = std::fs::write(&probe, [1; 4096]);
    let _ = std::fs::remove_file(&probe);
    assert!(
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull),
        "the file system was not filled, so nothing is shown"
    );
}

/// After a receipt somebody takes all space that is left; apply needs none of it.
fn apply_on_a_full_disk(volume: &SmallVolume, name: &str) {
    let root = volume.path().join(name);
    let mut tight = Tight::new(&root);
    tight.receive_much();
    let filler = volume.fill().unwrap();
    assert_full(volume);
    apply_all(&mut tight.store);
    drop(filler);
    let newest = tight.store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&tight.store, newest, &tight.shadow).unwrap();
    compare_points(&tight.store, &tight.shadow).unwrap();
    drop(tight);
    std::fs::remove_dir_all(&root).unwrap();
}

/// The disk is full and the process is started anew.
fn open_and_apply_on_a_full_disk(volume: &SmallVolume, name: &str) {
    let root = volume.path().join(name);
    let mut tight = Tight::new(&root);
    // So that applying has to begin with a new segment.
    tight.store.seal().unwrap();
    tight.receive_much();
    let filler = volume.fill().unwrap();
    assert_full(volume);
    let Tight { store, shadow, .. } = tight;
    drop(store);
    let mut store = Store::open(Arc::new(RealDisk), &root, "test").unwrap();
    compare_points(&store, &shadow).unwrap();
    apply_all(&mut store);
    // A failover has to be possible even now.
    let lineage = LineageId::from_bytes([9; 16]);
    store
        .start_failover(FailoverTarget::Newest, lineage, NOW, &mut |_| {})
        .unwrap();
    store.revert_failover().unwrap();
    drop(filler);
    drop(store);
    let mut store = Store::open(Arc::new(RealDisk), &root, "test").unwrap();
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &shadow).unwrap();
    compare_points(&store, &shadow).unwrap();
    drop(store);
    std::fs::remove_dir_all(&root).unwrap();
}

/// No receipt for what does not fit, and nothing of it stays.
fn receive_on_a_full_disk(volume: &SmallVolume, name: &str) {
    let root = volume.path().join(name);
    let mut tight = Tight::new(&root);
    let point = tight.store.points()[0].sequence;
    let filler = volume.fill().unwrap();
    // What is here already is told again, room or not.
    let again = tight.store.receive(&tight.first[..]).unwrap();
    assert!(again.repeated);
    let stream = tight.capture_much();
    for _ in 0..3 {
        let error = tight.store.receive(&stream[..]).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
        assert!(tight.store.pending().is_empty());
        compare_point(&tight.store, point, &tight.shadow).unwrap();
    }
    let spool: Vec<_> = std::fs::read_dir(root.join("spool"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(spool, ["reserve"]);
    drop(filler);
    // The store was not opened again meanwhile.
    tight.store.receive(&stream[..]).unwrap();
    apply_all(&mut tight.store);
    let newest = tight.store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&tight.store, newest, &tight.shadow).unwrap();
    drop(tight);
    std::fs::remove_dir_all(&root).unwrap();
}

#[test]
fn what_has_a_receipt_is_applied_on_a_full_disk_that_shares_no_blocks() {
    let volume = SmallVolume::without_sharing(300 << 20).unwrap();
    apply_on_a_full_disk(&volume, "running");
    open_and_apply_on_a_full_disk(&volume, "restarted");
}

#[test]
fn a_tail_that_is_cut_off_is_saved_on_a_full_disk() {
    let volume = SmallVolume::without_sharing(300 << 20).unwrap();
    let mut tight = Tight::new(&volume.path().join("store"));
    tight.shadow.resize(0, 1 << 20);
    tight.store.receive(&tight.shadow.capture()[..]).unwrap();
    let _filler = volume.fill().unwrap();
    assert_full(&volume);
    apply_all(&mut tight.store);
    compare_points(&tight.store, &tight.shadow).unwrap();
}

#[test]
fn blocks_scattered_over_a_disk_are_applied_on_a_full_disk() {
    let volume = SmallVolume::xfs(400 << 20).unwrap();
    let root = volume.path().join("store");
    // Every second block in a piece of its own: index and maps grow as badly as they can.
    let mut shadow = ShadowVm::new(4, &[48 << 20]);
    let mut store = Store::init(Arc::new(RealDisk), &root, &shadow.new_store(), "test").unwrap();
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(&mut store);
    store.make_point(NOW, PointKind::Standard).unwrap();
    let mut random = Random::new(5);
    let mut bytes = [0; 512];
    for at in 0..6000 {
        random.fill(&mut bytes);
        shadow.write(0, at * 8192, &bytes);
    }
    store.receive(&shadow.capture()[..]).unwrap();
    let _filler = volume.fill().unwrap();
    assert_full(&volume);
    apply_all(&mut store);
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn what_has_a_receipt_is_applied_on_a_full_xfs() {
    let volume = SmallVolume::xfs(400 << 20).unwrap();
    apply_on_a_full_disk(&volume, "running");
    open_and_apply_on_a_full_disk(&volume, "restarted");
}

#[test]
fn a_full_disk_gives_no_receipt_and_the_store_is_used_on() {
    receive_on_a_full_disk(&SmallVolume::without_sharing(300 << 20).unwrap(), "memory");
    receive_on_a_full_disk(&SmallVolume::xfs(400 << 20).unwrap(), "xfs");
}

#[test]
fn every_operation_survives_a_full_xfs() {
    let volume = SmallVolume::xfs(320 << 20).unwrap();
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    for operation in Operation::ALL {
        let root = volume.path().join(operation.name());
        let prepared = operation.prepare(5, &disk, &root);
        let filler = volume.fill().unwrap();
        // With the reserve held or not, it is done or it says that the disk is full.
        let outcome = Store::open(Arc::clone(&disk), &root, "test")
            .and_then(|mut store| operation.run(&mut store, &prepared.stream));
        drop(filler);
        if let Err(error) = &outcome {
            assert!(
                matches!(error, StoreError::DiskFull { .. }),
                "{}: {error:?}",
                operation.name()
            );
        }
        let after = expected_after(operation);
        prepared
            .repeat(&disk, &root, &after)
            .and_then(|()| prepared.check(&disk, &root, &after, Depth::Future))
            .unwrap_or_else(|error| panic!("{} ({outcome:?}): {error}", operation.name()));
        std::fs::remove_dir_all(&root).unwrap();
    }
}

/// What the operation leads to on a disk with room.
fn expected_after(operation: Operation) -> Facts {
    let disk = port(&Recorder::new());
    let root = Path::new(ROOT);
    let prepared = operation.prepare(5, &disk, root);
    let mut store = Store::open(disk, root, "test").unwrap();
    operation.run(&mut store, &prepared.stream).unwrap();
    Facts::of(&store)
}

/// Gives bytes, then fails as a lost connection does.
struct Lost<'a>(&'a [u8]);

impl Read for Lost<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        self.0.read(buffer)
    }
}

#[test]
fn a_connection_lost_at_any_place_leaves_nothing_behind() {
    let recorder = Recorder::new();
    let prepared = Operation::Receive.prepare(1, &port(&recorder), Path::new(ROOT));
    let mut store = Store::open(port(&recorder), Path::new(ROOT), "test").unwrap();
    let stream = &prepared.stream;
    for len in (0..stream.len()).step_by(97) {
        let error = store.receive(Lost(&stream[..len])).unwrap_err();
        assert!(
            matches!(error, StoreError::Delta { .. }),
            "cut at {len}: {error:?}"
        );
        let spool = recorder.list(Path::new("/store/spool")).unwrap();
        assert_eq!(spool.len(), 1, "cut at {len}: {spool:?}");
    }
    assert!(!store.receive(&stream[..]).unwrap().repeated);
}

#[test]
fn a_failed_sync_stops_the_store_until_it_is_opened_again() {
    let root = Path::new(ROOT);
    let kept = Recorder::new();
    let prepared = Operation::Apply.prepare(2, &port(&kept), root);
    let mut stopped = 0;
    for syncs in 0..40 {
        let disk = copy(&kept);
        let mut store = Store::open(port(&disk), root, "test").unwrap();
        disk.fail_sync_after(syncs);
        let Err(error) = Operation::Apply.run(&mut store, &[]) else {
            continue;
        };
        assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
        for outcome in [
            store.make_point(NOW, PointKind::Standard).map(|_| ()),
            store.seal(),
            store.receive(&prepared.stream[..]).map(|_| ()),
            store.apply_next(&mut |_| {}).map(|_| ()),
        ] {
            assert!(
                matches!(outcome, Err(StoreError::Refused(Refused::Reopen))),
                "after sync {syncs} had failed: {outcome:?}"
            );
        }
        stopped += 1;
        drop(store);
        let after = Facts {
            tip: prepared.before.tip,
            ..prepared.before.clone()
        };
        prepared
            .check(&port(&disk), root, &after, Depth::Future)
            .unwrap_or_else(|error| panic!("after sync {syncs} had failed: {error}"));
    }
    assert!(stopped >= 8, "only {stopped} syncs were made to fail");
}
