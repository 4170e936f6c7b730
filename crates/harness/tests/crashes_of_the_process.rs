//! `kill -9` at every call: a real process on real files dies in the middle of an operation,
//! and what it leaves behind is opened, compared and used.
//!
//! The places are enumerated, not chosen: a run without a fault counts the calls that change
//! something, from opening the store to the end of the operation; then each number is tried,
//! once where blocks are copied and once where they are shared, on the mount that
//! `LIFEBOAT_TEST_XFS` names.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use lifeboat_harness::{Depth, Facts, Operation, copy_folder};
use lifeboat_store::Store;
use lifeboat_sys::disk::{DiskPort, RealDisk};
use tempfile::TempDir;

const SIGKILL: i32 = 9;

fn child(operation: Operation, root: &Path, stream: &Path, call: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lifeboat-crash-child"))
        .args([operation.name(), path(root), path(stream), call])
        .output()
        .expect("start the process that is to die")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("BUG: a test's path is UTF-8")
}

/// A process that dies loses nothing of the page cache, so no disk is needed to see it.
fn folder_in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

fn folder_that_shares_blocks() -> TempDir {
    let mount = std::env::var_os("LIFEBOAT_TEST_XFS").expect(
        "LIFEBOAT_TEST_XFS names no mount: run `cargo xtask test`, or `cargo xtask setup` and set it",
    );
    tempfile::tempdir_in(mount).unwrap()
}

/// Kills a process at each call of the operation; answers how many there are.
fn kill_at_every_call(operation: Operation, folder: &TempDir) -> u64 {
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    // The wrapper names the head by its path, so every try happens in the same place.
    let (root, kept) = (folder.path().join("store"), folder.path().join("kept"));
    let prepared = operation.prepare(0, &disk, &root);
    std::fs::rename(&root, &kept).unwrap();
    let stream = folder.path().join("delta");
    std::fs::write(&stream, &prepared.stream).unwrap();
    let again = || {
        if root.exists() {
            std::fs::remove_dir_all(&root).unwrap();
        }
        copy_folder(&kept, &root).unwrap();
    };

    again();
    let counted = child(operation, &root, &stream, "count");
    assert!(
        counted.status.success(),
        "{}: {counted:?}",
        operation.name()
    );
    let text = String::from_utf8(counted.stdout).unwrap();
    let calls: u64 = text.trim().parse().unwrap();
    let store = Store::open(Arc::clone(&disk), &root, "test").unwrap();
    let after = Facts::of(&store);
    drop(store);
    prepared.check(&disk, &root, &after, Depth::Future).unwrap();

    for call in 0..calls {
        again();
        let died = child(operation, &root, &stream, &call.to_string());
        assert_eq!(
            died.status.signal(),
            Some(SIGKILL),
            "{}, call {call} of {calls}: {died:?}",
            operation.name()
        );
        prepared
            .check(&disk, &root, &after, Depth::Future)
            .unwrap_or_else(|error| {
                panic!(
                    "{}, killed at call {call} of {calls}: {error}",
                    operation.name()
                )
            });
    }
    calls
}

fn explore(operation: Operation) {
    let copied = kill_at_every_call(operation, &folder_in_memory());
    let shared = kill_at_every_call(operation, &folder_that_shares_blocks());
    println!(
        "killed a process at each of {copied} and {shared} calls of {}: recovered and compared",
        operation.name()
    );
}

#[test]
fn a_process_killed_during_receive_leaves_a_store_that_goes_on() {
    explore(Operation::Receive);
}

#[test]
fn a_process_killed_during_apply_leaves_a_store_that_goes_on() {
    explore(Operation::Apply);
}

#[test]
fn a_process_killed_during_boundary_leaves_a_store_that_goes_on() {
    explore(Operation::Boundary);
}

#[test]
fn a_process_killed_during_seal_leaves_a_store_that_goes_on() {
    explore(Operation::Seal);
}

#[test]
fn a_process_killed_during_merge_leaves_a_store_that_goes_on() {
    explore(Operation::Merge);
}

#[test]
fn a_process_killed_during_drop_leaves_a_store_that_goes_on() {
    explore(Operation::Drop);
}

#[test]
fn a_process_killed_during_failover_to_the_newest_moment_leaves_a_store_that_goes_on() {
    explore(Operation::FailoverNewest);
}

#[test]
fn a_process_killed_during_failover_to_a_point_leaves_a_store_that_goes_on() {
    explore(Operation::FailoverOlder);
}

#[test]
fn a_process_killed_during_revert_leaves_a_store_that_goes_on() {
    explore(Operation::Revert);
}

#[test]
fn a_process_killed_during_commit_of_the_newest_moment_leaves_a_store_that_goes_on() {
    explore(Operation::CommitNewest);
}

#[test]
fn a_process_killed_during_commit_of_a_point_leaves_a_store_that_goes_on() {
    explore(Operation::CommitOlder);
}

#[test]
fn a_process_killed_during_resize_leaves_a_store_that_goes_on() {
    explore(Operation::Resize);
}
