//! Maps that outlive the process: what they mark against what has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, Sequence};
use lifeboat_nbd::ExportSet;
use lifeboat_sys::disk::{DiskPort, Fault, FaultDisk, GuestDisk, RealDisk};
use lifeboat_sys::host::BootId;
use lifeboat_volume::{
    FrozenView, Outcome, RawImage, TrackedDisk, Tracker, TrackerError, ViewPlan, Volume,
    VolumeDevice,
};
use proptest::prelude::*;

use super::fixture::{Dice, PATIENCE, PLENTY, Stop, differing, id, random_change, read_all};
use super::tracking_host::{
    DISKS, Host, Process, assert_covers, blocks, open_tracker, state, tracked,
};

#[derive(Debug, Clone, Copy)]
enum Action {
    Change {
        seed: u64,
    },
    /// Frozen; received when the view ends, or not.
    Freeze {
        received: bool,
    },
    /// The moment's maps are there, its instant is not.
    FailedFreeze,
    /// The process dies; the kernel lives.
    Kill,
    Reboot,
    PowerLoss,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => any::<u64>().prop_map(|seed| Action::Change { seed }),
        4 => any::<bool>().prop_map(|received| Action::Freeze { received }),
        2 => Just(Action::FailedFreeze),
        2 => Just(Action::Kill),
        1 => Just(Action::Reboot),
        1 => Just(Action::PowerLoss),
    ]
}

/// A history with what the disks held at each moment.
struct History {
    host: Host,
    process: Option<Process>,
    boots: u64,
    next: u64,
    held: BTreeMap<u64, Vec<Vec<u8>>>,
}

impl History {
    fn new() -> Self {
        let host = Host::new();
        let mut history = Self {
            process: Some(host.process("boot 0")),
            host,
            boots: 0,
            next: 1,
            held: BTreeMap::new(),
        };
        history.begin();
        history
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn begin(&mut self) {
        let moment = self.draw();
        self.process().start_tracking(moment).unwrap();
        self.held.insert(moment, self.host.images());
    }

    fn restart(&mut self) {
        let boot = format!("boot {}", self.boots);
        self.process = Some(self.host.process(&boot));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Change { seed } => {
                let mut dice = Dice::new(seed);
                let disk = DISKS[dice.roll(2) as usize].0;
                let client = self.process().client(disk);
                random_change(&mut dice, &client, 0..client.size());
            }
            Action::Freeze { received } => {
                let moment = self.draw();
                self.held.insert(moment, self.host.images());
                let view = self.process().freeze(moment).unwrap();
                view.release(Outcome::Failed, PATIENCE).unwrap();
                if received {
                    self.process()
                        .tracker
                        .received(Sequence::new(moment))
                        .unwrap();
                    assert_eq!(state(&self.process().tracker), Ok(vec![moment]));
                }
            }
            Action::FailedFreeze => {
                let moment = self.draw();
                let process = self.process();
                let freeze = process.volume.begin_freeze().unwrap();
                process.tracker.begin_moment(Sequence::new(moment)).unwrap();
                drop(freeze);
            }
            Action::Kill => {
                self.process = None;
                self.restart();
            }
            Action::Reboot => {
                let process = self.process.take().unwrap();
                process.close(self.host.folder.path());
                self.boots += 1;
                self.restart();
            }
            Action::PowerLoss => {
                self.process = None;
                self.boots += 1;
                self.restart();
                let why = state(&self.process().tracker).unwrap_err();
                assert!(why.contains("went down"), "{why}");
                self.begin();
            }
        }
    }

    fn check(&mut self, after: Action) {
        let now = self.host.images();
        let moments = state(&self.process().tracker).unwrap();
        let then = &self.held[&moments[0]];
        let tracker = &self.process.as_ref().unwrap().tracker;
        assert_covers(tracker, then, &now, &format!("after {after:?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_change_since_the_oldest_moment_is_missed_whatever_happens(
        actions in prop::collection::vec(action(), 1..40),
    ) {
        let mut history = History::new();
        for action in actions {
            history.act(action);
            history.check(action);
        }
    }
}

#[test]
fn a_view_marks_what_has_changed_since_the_oldest_moment() {
    let host = Host::new();
    let mut process = host.process("b");
    process.start_tracking(1).unwrap();
    let client = process.client("a");
    client.write(0, &[1]).unwrap();
    drop(process.freeze(2).unwrap());
    client.write(5 * BLOCK_SIZE, &[1]).unwrap();
    assert_eq!(process.tracker.changed_bytes(), 2 * BLOCK_SIZE);
    let view = process.freeze(3).unwrap();
    assert_eq!(view.dirty_bytes(), 2 * BLOCK_SIZE);
    client.write(9 * BLOCK_SIZE, &[1]).unwrap();
    drop(view);
    process.tracker.received(Sequence::new(2)).unwrap();
    assert_eq!(state(&process.tracker), Ok(vec![2, 3]));
    let view = process.freeze(4).unwrap();
    assert_eq!(view.dirty_bytes(), 2 * BLOCK_SIZE);
    assert_eq!(
        blocks(&process.tracker.changed().unwrap(), 0),
        BTreeSet::from([5, 9])
    );
}

#[test]
fn whatever_differs_between_two_moments_is_marked_while_writers_go_on() {
    let host = Host::new();
    let mut process = host.process("b");
    process.start_tracking(1).unwrap();
    let clients = DISKS.map(|(name, _)| process.client(name));
    let stop = Stop::default();
    std::thread::scope(|scope| {
        let _end = stop.at_end();
        for (seed, client) in (0..).zip(&clients) {
            let stop = &stop;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                while !stop.has_come() {
                    random_change(&mut dice, client, 0..client.size());
                }
            });
        }
        let frozen = |process: &Process| {
            DISKS.map(|(name, _)| {
                let export = FrozenView::export_name(&id(name));
                read_all(&process.client(&export)).unwrap()
            })
        };
        let mut last: Option<[Vec<u8>; 2]> = None;
        let mut compared = 0;
        for moment in 2..40 {
            let view = process.freeze(moment).unwrap();
            let now = frozen(&process);
            if let Some(last) = &last {
                let before: Vec<Vec<u64>> = process.marked_in_view();
                for ((last, now), marked) in last.iter().zip(&now).zip(before) {
                    let changed = differing(last, now);
                    compared += changed.len();
                    let missed: Vec<_> = changed
                        .iter()
                        .filter(|block| !marked.contains(block))
                        .collect();
                    assert!(missed.is_empty(), "moment {moment} misses {missed:?}");
                }
            }
            drop(view);
            process.tracker.received(Sequence::new(moment)).unwrap();
            last = Some(now);
        }
        assert!(compared > 0, "nothing has changed in the whole test");
    });
}

#[test]
fn a_fault_at_any_step_of_a_freeze_or_receipt_forgets_no_change() {
    let run = |port: Arc<dyn DiskPort>| {
        let host = Host::new();
        // Opened over a port that works, as the fault is to come later.
        let mut held = BTreeMap::new();
        let (mut failures, mut dice) = (0, Dice::new(5));
        let mut process = {
            let tracker = open_tracker(host.folder.path(), port, "b");
            let Ok(tracker) = tracker else {
                return (1, None);
            };
            let mut process = host.process("b");
            process.tracker = tracker;
            process
        };
        if process.tracker.begin_writing().is_err() || process.start_tracking(1).is_err() {
            return (1, None);
        }
        held.insert(1, host.images());
        for moment in 2..5 {
            for (disk, _) in DISKS {
                let client = process.client(disk);
                random_change(&mut dice, &client, 0..client.size());
            }
            let before = host.images();
            match process.freeze(moment) {
                Ok(view) => {
                    held.insert(moment, before);
                    drop(view);
                    let client = process.client("a");
                    random_change(&mut dice, &client, 0..client.size());
                    failures += i32::from(process.tracker.received(Sequence::new(moment)).is_err());
                }
                Err(_) => failures += 1,
            }
            let moments = state(&process.tracker).unwrap();
            let what = format!("moment {moment}");
            assert_covers(&process.tracker, &held[&moments[0]], &host.images(), &what);
        }
        drop(process);
        let tracker = host.tracker(Arc::new(RealDisk), "b");
        if let Ok(moments) = state(&tracker) {
            assert_covers(&tracker, &held[&moments[0]], &host.images(), "reopened");
        }
        (failures, Some(state(&tracker)))
    };
    let counting = Arc::new(FaultDisk::counting(Arc::new(RealDisk)));
    let clean = run(Arc::clone(&counting) as Arc<dyn DiskPort>);
    assert_eq!(clean, (0, Some(Ok(vec![4]))));
    let mut failed = 0;
    for call in 0..counting.calls() {
        for fault in [Fault::InputOutput, Fault::DiskFull] {
            let port = FaultDisk::failing_at(Arc::new(RealDisk), call, fault);
            let (failures, end) = run(Arc::new(port));
            failed += failures;
            if let Some(Err(why)) = end {
                panic!("call {call}, {fault:?}: unknown although nothing was lost: {why}");
            }
        }
    }
    assert!(failed > 20, "{failed}");
}

#[test]
fn a_doubt_that_cannot_be_noted_is_not_forgotten() {
    let host = Host::new();
    let mut process = host.process("b");
    process.start_tracking(1).unwrap();
    // Every call that needs space fails from now on.
    let full = FaultDisk::failing_at(Arc::new(RealDisk), 0, Fault::DiskFull);
    let mut tracker = host.tracker(Arc::new(full), "b");
    assert_eq!(state(&tracker), Ok(vec![1]));
    tracker.lose("a disk failed").unwrap();
    drop(tracker);
    drop(process);
    let why = state(&host.tracker(Arc::new(RealDisk), "b")).unwrap_err();
    assert!(why.contains("note"), "{why}");
}

/// What is done to a closed host, and a word of the reason that must be told.
type Oddity = (&'static str, fn(&Host));

#[test]
fn whatever_is_odd_is_told_and_never_believed() {
    let oddities: [Oddity; 11] = [
        ("changed while", |host| {
            let path = host.image("a");
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            // Written by another program, at least a tick later.
            while std::fs::metadata(&path).unwrap().modified().unwrap() == modified {
                use std::os::unix::fs::FileExt as _;
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[1], 0).unwrap();
            }
        }),
        ("another file", |host| {
            let copy = host.folder.path().join("copy");
            std::fs::copy(host.image("b"), &copy).unwrap();
            std::fs::rename(copy, host.image("b")).unwrap();
        }),
        ("bytes", |host| {
            let file = std::fs::File::options()
                .write(true)
                .open(host.image("b"))
                .unwrap();
            file.set_len(4 << 20).unwrap();
        }),
        ("moment 2", |host| {
            std::fs::remove_file(map(host, "since-2.b")).unwrap();
        }),
        ("another disk", |host| {
            std::fs::copy(map(host, "since-1.b"), map(host, "since-2.b")).unwrap();
        }),
        ("header", |host| {
            edit(&map(host, "since-1.a"), |bytes| bytes[20] ^= 1);
        }),
        ("beyond", |host| {
            edit(&map(host, "since-1.b"), |bytes| {
                *bytes.last_mut().unwrap() = 0xff;
            });
        }),
        ("words", |host| {
            let file = std::fs::File::options()
                .write(true)
                .open(map(host, "since-1.a"))
                .unwrap();
            file.set_len(4096).unwrap();
        }),
        ("missing", |host| {
            std::fs::remove_file(map(host, "tracking.json")).unwrap();
        }),
        ("damaged", |host| {
            edit(&map(host, "tracking.json"), |bytes| bytes.truncate(40));
        }),
        ("damaged", |host| {
            std::fs::write(map(host, "tracking.json"), b"").unwrap();
        }),
    ];
    for (word, make_odd) in oddities {
        let host = Host::new();
        let mut process = host.process("b");
        process.start_tracking(1).unwrap();
        process.client("a").write(0, &[1]).unwrap();
        drop(process.freeze(2).unwrap());
        process.close(host.folder.path());
        let tracker = host.tracker(Arc::new(RealDisk), "another");
        assert_eq!(state(&tracker), Ok(vec![1, 2]));
        drop(tracker);
        make_odd(&host);
        for boot in ["b", "another"] {
            let tracker = host.tracker(Arc::new(RealDisk), boot);
            let why = state(&tracker).unwrap_err();
            assert!(why.contains(word), "{word}: {why}");
            assert!(tracker.since().is_empty() && tracker.changed().is_none());
        }
        // It is known again once a moment that was frozen since is received.
        let mut process = host.process("b");
        let view = process.freeze(3).unwrap();
        assert_eq!(view.changes(), lifeboat_volume::Changes::Unknown);
        process.tracker.received(Sequence::new(3)).unwrap();
        assert_eq!(state(&process.tracker), Ok(vec![3]), "{word}");
    }
}

fn map(host: &Host, name: &str) -> PathBuf {
    host.folder.path().join("maps").join(name)
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn moments_without_receipts_are_merged_and_stay_covered() {
    let host = Host::new();
    let mut process = host.process("b");
    process.start_tracking(1).unwrap();
    let then = host.images();
    let client = process.client("a");
    for moment in 2..60 {
        client.write(moment * BLOCK_SIZE, &[1]).unwrap();
        drop(process.freeze(moment).unwrap());
    }
    let moments = state(&process.tracker).unwrap();
    assert!(moments.len() <= 16 && moments[0] == 1, "{moments:?}");
    assert_covers(&process.tracker, &then, &host.images(), "merged");
    // A moment whose maps were merged away lets only what is surely older go.
    let then = host.images();
    client.write(100 * BLOCK_SIZE, &[1]).unwrap();
    process.tracker.received(Sequence::new(30)).unwrap();
    let kept = blocks(&process.tracker.changed().unwrap(), 0);
    assert!((31..60).all(|block| kept.contains(&block)), "{kept:?}");
    process.tracker.received(Sequence::new(59)).unwrap();
    assert_eq!(state(&process.tracker), Ok(vec![59]));
    assert_eq!(
        blocks(&process.tracker.changed().unwrap(), 0),
        BTreeSet::from([100])
    );
    assert_covers(&process.tracker, &then, &host.images(), "received");
    let future = process.tracker.received(Sequence::new(61));
    assert!(matches!(future, Err(TrackerError::FutureMoment { .. })));
    let old = process.tracker.begin_moment(Sequence::new(59));
    assert!(matches!(old, Err(TrackerError::OldMoment { .. })));
}

#[test]
fn a_disk_that_is_new_to_the_vm_is_marked_whole_and_the_others_as_they_were() {
    let host = Host::new();
    let all = tracked(host.folder.path());
    let maps = host.folder.path().join("maps");
    let open = |disks: &[TrackedDisk]| {
        let port = Arc::new(RealDisk);
        Tracker::open(port, maps.clone(), disks, BootId::noted("b")).unwrap()
    };
    let mut tracker = open(&all[..1]);
    tracker.start(Sequence::new(1)).unwrap();
    drop(tracker);
    for _ in 0..2 {
        let tracker = open(&all);
        assert_eq!(state(&tracker), Ok(vec![1]));
        let changed = tracker.changed().unwrap();
        assert!(changed[0].1.is_empty());
        assert_eq!(changed[1].1, vec![0..DISKS[1].1 as u64; 1]);
    }
    let tracker = open(&all[1..]);
    assert_eq!(tracker.changed().unwrap().len(), 1);
    let mut names: Vec<_> = std::fs::read_dir(&maps)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["since-1.b", "tracking.json"]);
    tracker.remove().unwrap();
    assert!(!maps.exists());
}

/// An image whose flush fails, as when the kernel has dropped what it could not write.
#[derive(Debug)]
struct Unflushable(RawImage);

impl GuestDisk for Unflushable {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.zero(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        Err(io::Error::other("the disk is broken"))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

#[test]
fn a_flush_that_fails_marks_the_whole_disk_also_for_the_next_process() {
    let host = Host::new();
    let mut process = host.process("b");
    process.start_tracking(1).unwrap();
    let Process {
        tracker, volume, ..
    } = process;
    drop(volume);
    let image = RawImage::open(&RealDisk, &host.image("a")).unwrap();
    let other = RawImage::open(&RealDisk, &host.image("b")).unwrap();
    let devices = vec![
        VolumeDevice {
            id: id("a"),
            device: Arc::new(Unflushable(image)),
        },
        VolumeDevice {
            id: id("b"),
            device: Arc::new(other),
        },
    ];
    let views = ViewPlan {
        scratch_folder: host.folder.path().to_owned(),
        scratch_limit: PLENTY,
        exports: ExportSet::new(),
        prefix: String::new(),
    };
    let volume = Volume::over(Arc::new(RealDisk), devices, views, tracker.marking()).unwrap();
    assert!(volume.flush().is_err());
    drop((volume, tracker));
    let changed = host.tracker(Arc::new(RealDisk), "b").changed().unwrap();
    assert_eq!(changed[0].1, vec![0..DISKS[0].1 as u64; 1]);
    assert!(changed[1].1.is_empty());
}

/// Tells the process that a test starts of itself to be the writer, and where.
const CHILD: &str = "LIFEBOAT_VOLUME_TEST_CHILD";

#[test]
fn marks_of_a_process_that_is_killed_are_all_there() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    if let Some(folder) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&folder));
    }
    let host = Host::new();
    let mut dice = Dice::new(3);
    let mut process = host.process("b");
    process.start_tracking(1).unwrap();
    drop(process);
    let then = host.images();
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "tracked::marks_of_a_process_that_is_killed_are_all_there",
            ])
            .arg("--nocapture")
            .env(CHILD, host.folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..3 + dice.roll(20) {
            assert!(lines.next().is_some(), "the writer ended by itself");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let tracker = host.tracker(Arc::new(RealDisk), "b");
        assert_eq!(state(&tracker).unwrap()[0], 1);
        let now = host.images();
        assert!(now != then);
        assert_covers(&tracker, &then, &now, &format!("round {round}"));
    }
}

fn write_until_killed(folder: &Path) -> ! {
    let mut process = Process::start(folder, Arc::new(RealDisk), "b");
    let newest = state(&process.tracker).unwrap().last().copied().unwrap();
    let mut dice = Dice::new(newest + 77);
    let clients = DISKS.map(|(name, _)| process.client(name));
    for moment in newest + 1.. {
        println!("moment {moment}");
        std::thread::scope(|scope| {
            for client in &clients {
                let mut dice = Dice::new(dice.roll(u64::MAX));
                scope.spawn(move || {
                    for _ in 0..8 {
                        // In a small part, so that not everything is marked in the end.
                        let start = dice.roll(8) * (client.size() / 16);
                        random_change(&mut dice, client, start..start + client.size() / 16);
                    }
                });
            }
        });
        drop(process.freeze(moment).unwrap());
    }
    unreachable!("moments have come to an end")
}
