//! Power losses: every operation is recorded, cut at every call, and recovered.
//!
//! For each kind of operation random stores are brought into a state in which it has work
//! to do. It runs once on the recorder. Then the machine dies after each of its calls, with
//! nothing, everything or a random part of the unsynced changes on the disk, pages torn at
//! sectors; every eighth time it dies once more during the recovery. The store must open,
//! hold everything that was promised, equal the shadow byte for byte, and go on working.
//!
//! The count of distinct states is printed and must reach [`STATES`].

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{Depth, Facts, Operation, Random};
use lifeboat_store::Store;
use lifeboat_sys::disk::{CrashChoice, DiskPort, Recorder};

/// Distinct states per kind of operation.
const STATES: usize = 20_000;

/// Random choices per call.
const CHOICES: u64 = 12;

const ROOT: &str = "/store";

fn port(disk: &Recorder) -> Arc<dyn DiskPort> {
    Arc::new(disk.clone())
}

/// Cuts the operation everywhere until enough distinct states have been recovered.
fn explore(operation: Operation) {
    let mut states = 0;
    let mut seed = 0;
    while states < STATES {
        states += explore_one(operation, seed);
        seed += 1;
    }
    let name = operation.name();
    println!(
        "power loss during {name}: {states} distinct states of {seed} stores recovered and compared"
    );
}

fn explore_one(operation: Operation, seed: u64) -> usize {
    let disk = match seed % 3 {
        0 => Recorder::new().sharing_blocks(),
        _ => Recorder::new(),
    };
    let prepared = operation.prepare(seed, &port(&disk), Path::new(ROOT));
    let mut store = Store::open(port(&disk), Path::new(ROOT), "test").unwrap();
    disk.start_recording();
    operation.run(&mut store, &prepared.stream).unwrap();
    let after = Facts::of(&store);
    let recording = disk.recording();
    drop(store);

    let mut seen = HashSet::new();
    let mut random = Random::new(seed ^ 0x00C0_FFEE);
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
            let crashed = if seen.len().is_multiple_of(8) {
                crash_in_recovery(&state.disk, &mut random)
            } else {
                state.disk
            };
            let depth = match seen.len() % 4 {
                0 => Depth::Future,
                _ => Depth::Promises,
            };
            let done = calls == recording.len();
            let outcome = refuse_broken_promise(&crashed, &after, done)
                .and_then(|()| prepared.check(&port(&crashed), Path::new(ROOT), &after, depth));
            if let Err(error) = outcome {
                panic!(
                    "{}, store {seed}, power lost after call {calls} of {}, {choice:?}: {error}",
                    operation.name(),
                    recording.len()
                );
            }
        }
    }
    seen.len()
}

/// An operation that returned has happened.
fn refuse_broken_promise(disk: &Recorder, after: &Facts, done: bool) -> Result<(), String> {
    if !done {
        return Ok(());
    }
    let store = Store::open(port(disk), Path::new(ROOT), "test")
        .map_err(|error| format!("open: {error}"))?;
    let found = Facts::of(&store);
    if found == *after {
        Ok(())
    } else {
        Err(format!(
            "it returned, and yet the store says {found:?}, not {after:?}"
        ))
    }
}

/// The power fails once more while the store is being opened.
fn crash_in_recovery(disk: &Recorder, random: &mut Random) -> Recorder {
    disk.start_recording();
    drop(Store::open(port(disk), Path::new(ROOT), "test"));
    let recording = disk.recording();
    let calls = random.below(recording.len() as u64 + 1) as usize;
    let choice = CrashChoice::Some {
        seed: random.next_u64(),
        chance: 128,
    };
    recording.crash_after(calls, choice).disk
}

macro_rules! power_loss {
    ($($name:ident: $operation:ident,)*) => {
        $(#[test]
        fn $name() {
            explore(Operation::$operation);
        })*
    };
}

power_loss! {
    power_loss_during_receive: Receive,
    power_loss_during_apply: Apply,
    power_loss_during_boundary: Boundary,
    power_loss_during_seal: Seal,
    power_loss_during_merge: Merge,
    power_loss_during_drop: Drop,
    power_loss_during_failover_to_the_newest: FailoverNewest,
    power_loss_during_failover_to_an_older_point: FailoverOlder,
    power_loss_during_revert: Revert,
    power_loss_during_commit_of_the_newest: CommitNewest,
    power_loss_during_commit_of_an_older_point: CommitOlder,
    power_loss_during_resize: Resize,
    power_loss_while_a_copy_begins: BeginCopy,
    power_loss_while_a_piece_is_copied: Piece,
    power_loss_while_a_copy_is_closed: CloseCopy,
    power_loss_during_failover_while_disks_are_copied: FailoverCopying,
    power_loss_while_a_replica_is_flattened: Flatten,
    power_loss_while_a_committed_store_becomes_a_replica: Rejoin,
}
