//! Power losses: every operation is recorded, cut at every call, and recovered.
//!
//! For each kind of operation random stores are brought into a state in which it has work
//! to do. It runs once on the recorder. Then the machine dies after each of its calls, with
//! nothing, everything or a random part of the unsynced changes on the disk, pages torn at
//! sectors; every eighth time it dies once more during the recovery. The store must open,
//! hold everything that was promised, equal the shadow byte for byte, and go on working.
//!
//! The count of distinct states is printed and must reach [`STATES`].

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{
    Activity, Random, ShadowVm, compare_point, compare_points, read_failover_disk, read_file,
};
use lifeboat_model::{LineageId, Sequence, Timestamp};
use lifeboat_store::{FailoverTarget, Role, Store};
use lifeboat_sys::disk::{CrashChoice, DiskPort, Recorder};

/// Distinct states per kind of operation.
const STATES: usize = 20_000;

/// Random choices per call.
const CHOICES: u64 = 12;

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);

/// What is true before and after the operation under test.
#[derive(Debug, Clone)]
struct Facts {
    tip: Sequence,
    points: BTreeSet<Sequence>,
    role: Role,
}

impl Facts {
    fn of(store: &Store) -> Self {
        Self {
            tip: store.tip(),
            points: store.points().iter().map(|point| point.sequence).collect(),
            role: store.role(),
        }
    }
}

/// A store on a recorder with the shadow of its VM.
struct Scenario {
    disk: Recorder,
    shadow: ShadowVm,
    /// What the guest sees after a failover, per disk: the target with its own writes.
    failed_over: Option<Vec<Vec<u8>>>,
    random: Random,
}

impl Scenario {
    /// A replica with some points, some deltas pending or not, sealed or not.
    fn new(seed: u64) -> (Self, Store) {
        let mut random = Random::new(seed);
        let sizes = [
            (24 + random.below(300)) * 512,
            (8 + random.below(100)) * 512,
        ];
        let shadow = ShadowVm::new(seed, &sizes[..1 + random.below(2) as usize]);
        let disk = if random.one_in(3) {
            Recorder::new().sharing_blocks()
        } else {
            Recorder::new()
        };
        let store = Store::init(port(&disk), Path::new(ROOT), &shadow.new_store(), "test").unwrap();
        let mut scenario = Self {
            disk,
            shadow,
            failed_over: None,
            random,
        };
        let mut store = store;
        scenario.receive(&mut store);
        apply_all(&mut store);
        (scenario, store)
    }

    fn activity(&mut self) -> Activity {
        let operations = 1 + self.random.below(5);
        if self.random.one_in(2) {
            Activity {
                operations,
                max_sectors: 80,
                alignment: 1,
            }
        } else {
            Activity {
                operations,
                max_sectors: 160,
                alignment: 8,
            }
        }
    }

    fn stream(&mut self) -> Vec<u8> {
        let activity = self.activity();
        self.shadow.work(activity);
        self.shadow.capture()
    }

    fn receive(&mut self, store: &mut Store) {
        let stream = self.stream();
        store.receive(&stream[..]).unwrap();
    }

    /// Points with deltas between them; some sealed.
    fn points(&mut self, store: &mut Store, count: u64) {
        for _ in 0..count {
            store.make_point(NOW).unwrap();
            if self.random.one_in(4) {
                store.seal().unwrap();
            }
            self.receive(store);
            apply_all(store);
        }
    }

    /// Fails over, and lets the guest write.
    fn fail_over(&mut self, store: &mut Store, target: FailoverTarget) {
        let started = store
            .start_failover(target, lineage(&mut self.random), NOW, &mut |_| {})
            .unwrap();
        let mut disks = self.shadow.at(started.sequence).to_vec();
        for (at, name) in self.shadow.names().iter().enumerate() {
            let disk = store.failover_disk(name).unwrap();
            disks[at].resize(disk.size() as usize, 0);
            for _ in 0..self.random.below(4) {
                let sectors = disk.size() / 512;
                let start = self.random.below(sectors);
                let end = (start + 1 + self.random.below(40)).min(sectors);
                let range = (start * 512) as usize..(end * 512) as usize;
                if self.random.one_in(4) {
                    disks[at][range].fill(0);
                    disk.write_zeroes(start * 512, (end - start) * 512).unwrap();
                } else {
                    self.random.fill(&mut disks[at][range.clone()]);
                    disk.write_at(start * 512, &disks[at][range]).unwrap();
                }
            }
            disk.flush().unwrap();
        }
        self.failed_over = Some(disks);
    }
}

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

fn lineage(random: &mut Random) -> LineageId {
    let mut id = [0; 16];
    random.fill(&mut id);
    LineageId::from_bytes(id)
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn open(disk: &Recorder) -> Result<Store, String> {
    Store::open(port(disk), Path::new(ROOT), "test")
        .map_err(|error| format!("open: {error}: {:?}", std::error::Error::source(&error)))
}

/// One kind of operation: `prepare` brings a store to where `operate` has work to do.
struct Operation {
    name: &'static str,
    prepare: fn(&mut Scenario, &mut Store),
    operate: fn(&mut Scenario, &mut Store),
}

/// Cuts the operation everywhere until enough distinct states have been recovered.
fn explore(operation: &Operation) {
    let mut states = 0;
    let mut seed = 0;
    while states < STATES {
        states += explore_one(operation, seed);
        seed += 1;
    }
    println!(
        "power loss during {}: {states} distinct states of {seed} stores recovered and compared",
        operation.name
    );
}

fn explore_one(operation: &Operation, seed: u64) -> usize {
    let (mut scenario, mut store) = Scenario::new(seed);
    (operation.prepare)(&mut scenario, &mut store);
    let before = Facts::of(&store);
    scenario.disk.start_recording();
    (operation.operate)(&mut scenario, &mut store);
    let after = Facts::of(&store);
    let recording = scenario.disk.recording();
    drop(store);

    let mut seen = HashSet::new();
    let mut random = Random::new(seed ^ 0xC0FFEE);
    for calls in 0..=recording.len() {
        for choice in 0..CHOICES {
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
            let disk = if seen.len().is_multiple_of(8) {
                crash_in_recovery(&state.disk, &mut random)
            } else {
                state.disk
            };
            let done = calls == recording.len();
            if let Err(error) = check(&disk, &scenario, &before, &after, done, seen.len()) {
                panic!(
                    "{}, store {seed}, power lost after call {calls} of {}, {choice:?}: {error}",
                    operation.name,
                    recording.len()
                );
            }
        }
    }
    seen.len()
}

/// The power fails once more while the store is being opened.
fn crash_in_recovery(disk: &Recorder, random: &mut Random) -> Recorder {
    disk.start_recording();
    drop(open(disk));
    let recording = disk.recording();
    let calls = random.below(recording.len() as u64 + 1) as usize;
    recording
        .crash_after(
            calls,
            CrashChoice::Some {
                seed: random.next_u64(),
                chance: 128,
            },
        )
        .disk
}

fn check(
    disk: &Recorder,
    scenario: &Scenario,
    before: &Facts,
    after: &Facts,
    done: bool,
    number: usize,
) -> Result<(), String> {
    let mut store = open(disk)?;
    let found = Facts::of(&store);
    if done && (found.tip != after.tip || found.points != after.points || found.role != after.role)
    {
        return Err(format!(
            "after the operation the store says {found:?}, not {after:?}"
        ));
    }
    if found.tip != before.tip && found.tip != after.tip {
        return Err(format!(
            "the newest moment is {}, neither {} nor {}",
            found.tip, before.tip, after.tip
        ));
    }
    if found.role != before.role && found.role != after.role {
        return Err(format!("the store is {:?}", found.role));
    }
    let kept: BTreeSet<_> = before.points.intersection(&after.points).copied().collect();
    let known: BTreeSet<_> = before.points.union(&after.points).copied().collect();
    if !kept.is_subset(&found.points) || !found.points.is_subset(&known) {
        return Err(format!(
            "the points are {:?}, not between {kept:?} and {known:?}",
            found.points
        ));
    }
    compare_points(&store, &scenario.shadow)?;
    match found.role {
        Role::Replica => check_replica(disk, store, scenario, number),
        Role::FailedOver => check_failed_over(disk, &mut store, scenario, number),
        Role::Committed => check_committed(disk, &store, scenario),
    }
}

/// A replica applies what it acknowledged, takes in the next delta, and all points stay right.
fn check_replica(
    disk: &Recorder,
    mut store: Store,
    scenario: &Scenario,
    number: usize,
) -> Result<(), String> {
    let apply = |store: &mut Store| {
        while store
            .apply_next(&mut |_| {})
            .map_err(|error| format!("apply: {error}"))?
            .is_some()
        {}
        let newest = store
            .make_point(NOW)
            .map_err(|error| format!("make a point: {error}"))?;
        compare_point(store, newest, &scenario.shadow)?;
        compare_points(store, &scenario.shadow)
    };
    apply(&mut store)?;
    if number.is_multiple_of(4) {
        // Go on from here with a delta of whole disks, which continues any tip.
        let mut shadow = scenario.shadow.clone();
        shadow.work(Activity {
            operations: 3,
            max_sectors: 100,
            alignment: 1,
        });
        let stream = shadow.capture_whole();
        store
            .receive(&stream[..])
            .map_err(|error| format!("receive: {error}"))?;
        while store
            .apply_next(&mut |_| {})
            .map_err(|error| format!("apply: {error}"))?
            .is_some()
        {}
        let newest = store
            .make_point(NOW)
            .map_err(|error| format!("make a point: {error}"))?;
        store.seal().map_err(|error| format!("seal: {error}"))?;
        compare_point(&store, newest, &shadow)?;
        compare_points(&store, &shadow)?;
        drop(store);
        store = open(disk)?;
        compare_points(&store, &shadow)?;
    }
    let verified = store
        .verify(&mut |_| {})
        .map_err(|error| format!("verify: {error}"))?;
    if verified.findings.is_empty() {
        Ok(())
    } else {
        Err(format!("verify: {:?}", verified.findings))
    }
}

fn check_failed_over(
    disk: &Recorder,
    store: &mut Store,
    scenario: &Scenario,
    number: usize,
) -> Result<(), String> {
    let started = store
        .started_failover()
        .ok_or("failed over, and yet to nothing")?;
    let expected = scenario
        .failed_over
        .clone()
        .unwrap_or_else(|| scenario.shadow.at(started.sequence).to_vec());
    for (name, expected) in scenario.shadow.names().iter().zip(&expected) {
        let mut bytes = read_failover_disk(store, name)?;
        // A disk that is larger today than at the point shows zeroes beyond it.
        let beyond = bytes.split_off(expected.len().min(bytes.len()));
        if bytes != *expected || beyond.iter().any(|&byte| byte != 0) {
            return Err(format!("{name} of the failed-over VM is wrong"));
        }
    }
    if number.is_multiple_of(2) {
        store
            .revert_failover()
            .map_err(|error| format!("revert: {error}"))?;
        compare_points(store, &scenario.shadow)?;
        while store
            .apply_next(&mut |_| {})
            .map_err(|error| format!("apply: {error}"))?
            .is_some()
        {}
        let newest = store
            .make_point(NOW)
            .map_err(|error| format!("make a point: {error}"))?;
        compare_point(store, newest, &scenario.shadow)
    } else {
        store
            .commit(&mut |_| {})
            .map_err(|error| format!("commit: {error}"))?;
        check_heads(disk, scenario, &expected)
    }
}

fn check_committed(disk: &Recorder, store: &Store, scenario: &Scenario) -> Result<(), String> {
    let expected = scenario
        .failed_over
        .as_ref()
        .ok_or("committed without a failover")?;
    if !store.points().is_empty() {
        return Err("recovery points survived a commit".to_owned());
    }
    check_heads(disk, scenario, expected)
}

fn check_heads(disk: &Recorder, scenario: &Scenario, expected: &[Vec<u8>]) -> Result<(), String> {
    for (name, expected) in scenario.shadow.names().iter().zip(expected) {
        let head = Path::new(ROOT).join(format!("disks/{name}/head.raw"));
        let mut bytes = read_file(disk, &head).map_err(|error| error.to_string())?;
        let beyond = bytes.split_off(expected.len().min(bytes.len()));
        if bytes != *expected || beyond.iter().any(|&byte| byte != 0) {
            return Err(format!("the committed head of {name} is wrong"));
        }
    }
    Ok(())
}

#[test]
fn power_loss_during_receive() {
    explore(&Operation {
        name: "receive",
        prepare: |scenario, store| {
            let count = scenario.random.below(3);
            scenario.points(store, count);
        },
        operate: Scenario::receive,
    });
}

#[test]
fn power_loss_during_apply() {
    explore(&Operation {
        name: "apply",
        prepare: |scenario, store| {
            let count = 1 + scenario.random.below(3);
            scenario.points(store, count);
            scenario.receive(store);
        },
        operate: |_, store| apply_all(store),
    });
}

#[test]
fn power_loss_during_boundary() {
    explore(&Operation {
        name: "boundary",
        prepare: |scenario, store| {
            let count = scenario.random.below(4);
            scenario.points(store, count);
        },
        operate: |_, store| _ = store.make_point(NOW).unwrap(),
    });
}

#[test]
fn power_loss_during_seal() {
    explore(&Operation {
        name: "seal",
        prepare: |scenario, store| {
            let count = 1 + scenario.random.below(3);
            scenario.points(store, count);
        },
        operate: |_, store| store.seal().unwrap(),
    });
}

#[test]
fn power_loss_during_merge() {
    explore(&Operation {
        name: "merge",
        prepare: |scenario, store| {
            let count = 3 + scenario.random.below(2);
            scenario.points(store, count);
            store.seal().unwrap();
        },
        operate: |scenario, store| {
            let points = store.points();
            let middle = 1 + scenario.random.below(points.len() as u64 - 1) as usize;
            store.remove_point(points[middle].sequence).unwrap();
        },
    });
}

#[test]
fn power_loss_during_drop() {
    explore(&Operation {
        name: "drop",
        prepare: |scenario, store| {
            let count = 2 + scenario.random.below(3);
            scenario.points(store, count);
        },
        operate: |_, store| {
            let oldest = store.points()[0].sequence;
            store.remove_point(oldest).unwrap();
        },
    });
}

#[test]
fn power_loss_during_failover() {
    explore(&Operation {
        name: "failover",
        prepare: |scenario, store| {
            let count = 1 + scenario.random.below(3);
            scenario.points(store, count);
        },
        operate: |scenario, store| {
            let points = store.points();
            let target = if scenario.random.one_in(2) {
                FailoverTarget::Newest
            } else {
                FailoverTarget::Point(
                    points[scenario.random.below(points.len() as u64) as usize].sequence,
                )
            };
            let lineage = lineage(&mut scenario.random);
            store
                .start_failover(target, lineage, NOW, &mut |_| {})
                .unwrap();
        },
    });
}

fn fail_over_to_some_point(scenario: &mut Scenario, store: &mut Store) {
    let count = 1 + scenario.random.below(3);
    scenario.points(store, count);
    let points = store.points();
    let target = points[scenario.random.below(points.len() as u64) as usize].sequence;
    scenario.fail_over(store, FailoverTarget::Point(target));
}

#[test]
fn power_loss_during_revert() {
    explore(&Operation {
        name: "revert",
        prepare: |scenario, store| {
            fail_over_to_some_point(scenario, store);
        },
        operate: |_, store| store.revert_failover().unwrap(),
    });
}

#[test]
fn power_loss_during_commit_of_the_newest() {
    explore(&Operation {
        name: "commit of the newest point",
        prepare: |scenario, store| {
            let count = 1 + scenario.random.below(3);
            scenario.points(store, count);
            scenario.fail_over(store, FailoverTarget::Newest);
        },
        operate: |_, store| {
            store.commit(&mut |_| {}).unwrap();
            store.empty_trash().unwrap();
        },
    });
}

#[test]
fn power_loss_during_commit_of_an_older_point() {
    explore(&Operation {
        name: "commit of an older point",
        prepare: fail_over_to_some_point,
        operate: |_, store| {
            store.commit(&mut |_| {}).unwrap();
            store.empty_trash().unwrap();
        },
    });
}

#[test]
fn power_loss_during_resize() {
    explore(&Operation {
        name: "resize",
        prepare: |scenario, store| {
            let count = 1 + scenario.random.below(3);
            scenario.points(store, count);
            for at in 0..scenario.shadow.names().len() {
                let size = (8 + scenario.random.below(400)) * 512;
                scenario.shadow.resize(at, size);
            }
            scenario.receive(store);
        },
        operate: |_, store| apply_all(store),
    });
}
