//! What is compared: everything in the background after a reversal that has relied on maps, and
//! what a recovery point stands on when an operator asks for it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::Sequence;
use lifeboat_model::contract::{JobState, ReplicationState};
use lifeboat_service::api::{Accepted, JobView, Operations as _, VmOperation};

use crate::links::lock;
use crate::reversal::{commit, expect_fenced, lose_alpha};
use crate::site::admin;
use crate::world::{At, World};

/// Beta has taken over and alpha is its replica by the maps of both. The call is not heard until
/// [`hear`].
fn reversed(seed: u64, unheard: &'static str) -> World {
    let mut world = World::replicated(seed);
    lose_alpha(&mut world);
    world.write_at(At::Beta, 5);
    commit(&mut world);
    world.revive();
    expect_fenced(&mut world);
    lock(&world.hosts.unheard).insert(unheard);
    world.reverse(At::Beta);
    assert!(!world.says_that_disks_are_compared(At::Beta));
    world
}

fn hear(world: &World) {
    lock(&world.hosts.unheard).clear();
}

fn has_told(world: &World, at: At, what: &str) -> bool {
    let told = world.site(at).told();
    told.iter().any(|told| told.contains(what))
}

#[test]
fn points_are_unverified_until_everything_was_compared_after_a_reversal_by_maps() {
    let mut world = reversed(71, "verified");
    world.write_at(At::Beta, 3);
    world.replicate(At::Beta);
    assert!(world.is_unverified(At::Beta));
    assert!(world.is_unverified(At::Alpha));
    let early = world.make_point(At::Alpha);
    let verified = |world: &World, point| {
        let points = world.alpha.points(world.vm).into_iter();
        points
            .filter(|known| known.sequence == point)
            .map(|known| known.verified)
            .next()
    };
    assert_eq!(verified(&world, early), Some(false));
    // Neither a restart of either side nor time makes it better.
    world.alpha.restart();
    world.beta.restart();
    world.start(At::Beta);
    world.replicate(At::Beta);
    assert!(world.is_unverified(At::Beta));
    assert!(world.is_unverified(At::Alpha));

    hear(&world);
    world.verify(At::Beta);
    world.wait("it is told", |world| {
        has_told(world, At::Beta, "compared whole and are equal")
    });
    world.write_at(At::Beta, 3);
    world.replicate(At::Beta);
    let late = world.make_point(At::Alpha);
    assert_eq!(verified(&world, late), Some(true));
    assert_eq!(verified(&world, early), Some(false));
    world.expect_replica(At::Alpha);
}

#[test]
fn a_guest_that_writes_all_the_time_is_not_mistaken_for_a_difference() {
    let mut world = reversed(72, "verified");
    for _ in 0..6 {
        world.ask(At::Beta, VmOperation::ReplicateNow).unwrap();
        world.write_at(At::Beta, 10);
    }
    hear(&world);
    world.verify(At::Beta);
    assert!(!has_told(&world, At::Beta, "differs"), "{}", world.story());
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

#[test]
fn a_difference_that_no_map_knows_of_is_found_and_mended() {
    let mut world = reversed(73, "comparison");
    world.replicate(At::Beta);
    // A block of the replica changes by itself, where nobody writes it afterwards.
    const AT: u64 = 300 << 10;
    let head = find(world.alpha.root(), "head.raw").expect("a replica");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(head)
        .unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, AT).unwrap();
    block[17] ^= 1;
    file.write_all_at(&block, AT).unwrap();
    hear(&world);
    world.wait("the difference is told", |world| {
        has_told(world, At::Beta, &format!("differs at {AT}"))
    });
    let compare = VmOperation::Resynchronize { at: None };
    world.reach("mended", At::Beta, &compare, |world| {
        world.is_replicating() && !world.is_unverified(At::Beta)
    });
    assert_eq!(world.beta.state(world.vm).1, ReplicationState::Replicating);
    world.replicate(At::Beta);
    world.expect_replica(At::Alpha);
}

/// Verifies a recovery point at beta. Before the job reads anything, changes are received and
/// applied there.
fn verify_while_changes_come(world: &mut World, point: Option<Sequence>) -> JobView {
    let gate = Arc::clone(&world.beta.gate);
    let held = gate.hold_jobs();
    let verify = VmOperation::VerifyPoint { point };
    let Accepted::JobStarted(id) = world.ask(At::Beta, verify).unwrap() else {
        panic!("a verification is a job");
    };
    for _ in 0..3 {
        world.write(5);
        world.replicate(At::Alpha);
    }
    let job = |world: &World| world.beta.service.job(&admin(), id).unwrap();
    assert_eq!(job(world).job_state, JobState::Running);
    drop(held);
    world.wait("the verification ends", |world| {
        job(world).job_state.is_final()
    });
    job(world)
}

#[test]
fn changes_are_received_and_applied_while_a_point_is_verified() {
    let mut world = World::replicated(75);
    let point = world.make_point(At::Beta);
    let then = world.shadow.clone();
    world.write(40);
    world.replicate(At::Alpha);
    for verified in [Some(point), None] {
        let job = verify_while_changes_come(&mut world, verified);
        assert_eq!(job.job_state, JobState::Completed, "{job:?}");
    }
    world.expect_point(point, &then);

    // A byte of what the point stands on changes by itself.
    let segment = some_segment(world.beta.root()).expect("what was overwritten is kept");
    let at = FIRST_DATA + first_not_zero(&std::fs::read(&segment).unwrap()[FIRST_DATA..]);
    let file = OpenOptions::new().read(true).write(true).open(&segment);
    let file = file.unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
    for verified in [Some(point), None] {
        let job = verify_while_changes_come(&mut world, verified);
        assert_eq!(job.job_state, JobState::Exception, "{job:?}");
        let path = segment.display().to_string();
        assert!(job.error_description.contains(&path), "{job:?}");
    }
    world.expect_replica(At::Beta);
}

/// The first byte of guest data in a segment.
const FIRST_DATA: usize = 128 << 10;

fn first_not_zero(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte != 0).unwrap()
}

/// A segment below a folder that holds data.
fn some_segment(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.into_iter().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            return some_segment(&path);
        }
        let is_segment = path.parent().is_some_and(|folder| folder.ends_with("seg"))
            && path.extension().is_some_and(|ending| ending != "idx");
        let holds_data = || {
            let bytes = std::fs::read(&path).unwrap();
            bytes.iter().skip(FIRST_DATA).any(|byte| *byte != 0)
        };
        (is_segment && holds_data()).then_some(path)
    })
}

/// The first file of that name below a folder, by path.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    entries.into_iter().find_map(|path| {
        if path.is_dir() && !path.is_symlink() {
            find(&path, name)
        } else {
            path.ends_with(name).then_some(path)
        }
    })
}
