//! Writes that come at the worst moment of a reader of the view.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use lifeboat_model::BLOCK_SIZE;
use lifeboat_nbd::{ContextName, Errno, ZERO};
use lifeboat_volume::Outcome;

use super::fixture::{Fixture, PATIENCE, PLENTY, Stop};
use super::hooked::{HookedDisk, Hooks};

const SIZE: usize = 1 << 20;

fn hooked(scratch_limit: u64) -> (Fixture, Arc<Hooks>) {
    let hooks = Arc::new(Hooks::default());
    let port = Arc::new(HookedDisk(Arc::clone(&hooks)));
    let fixture = Fixture::over(port, &[("a", SIZE)], scratch_limit);
    fixture.client("a").write(0, &vec![1; SIZE]).unwrap();
    (fixture, hooks)
}

#[test]
fn a_block_that_is_written_while_it_is_read_is_read_as_it_was() {
    let (fixture, hooks) = hooked(PLENTY);
    let view = fixture.volume.freeze().unwrap();
    let (guest, reader) = (fixture.client("a"), fixture.client("a@frozen"));
    hooks.before_read(move || guest.write(5000, &[2; 6000]).unwrap());
    let mut read = vec![0; 12_288];
    reader.read(4096, &mut read).unwrap();
    assert!(hooks.all_done() && view.scratch_bytes() > 0);
    assert!(read.iter().all(|byte| *byte == 1));
}

#[test]
fn a_view_that_breaks_while_it_is_read_gives_an_error() {
    let (fixture, hooks) = hooked(0);
    let view = fixture.volume.freeze().unwrap();
    let (guest, reader) = (fixture.client("a"), fixture.client("a@frozen"));
    hooks.before_read(move || guest.write(4096, &[2; 4096]).unwrap());
    let error = reader.read(4096, &mut [0; 512]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::Io), "{error}");
    assert!(hooks.all_done() && view.broken().is_some());
}

#[test]
fn a_block_that_is_discarded_while_holes_are_looked_for_is_no_hole() {
    let (fixture, hooks) = hooked(PLENTY);
    let _view = fixture.volume.freeze().unwrap();
    let allocation = ContextName::allocation();
    let reader = fixture.client_with("a@frozen", std::slice::from_ref(&allocation));
    for block in [0, 17] {
        let guest = fixture.client("a");
        hooks.before_next_data(move || guest.trim(block * BLOCK_SIZE, BLOCK_SIZE).unwrap());
        for extent in reader.extents(&allocation, 0, SIZE as u64).unwrap() {
            assert_eq!(extent.unwrap().flags & ZERO, 0, "block {block}");
        }
        assert!(hooks.all_done());
    }
}

#[test]
fn writers_that_meet_in_a_block_keep_the_oldest() {
    const WRITERS: u8 = 4;
    let (fixture, hooks) = hooked(PLENTY);
    hooks.yields.store(30, Ordering::SeqCst);
    let barrier = Barrier::new(usize::from(WRITERS) + 1);
    const ROUNDS: u64 = 150;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (fixture, barrier) = (&fixture, &barrier);
            scope.spawn(move || {
                let client = fixture.client("a");
                for round in 0..ROUNDS {
                    barrier.wait();
                    client
                        .write(round * BLOCK_SIZE, &[writer + 10; 4096])
                        .unwrap();
                    barrier.wait();
                }
            });
        }
        let mut wrong = Vec::new();
        for round in 0..ROUNDS {
            let view = fixture.volume.freeze().unwrap();
            barrier.wait();
            barrier.wait();
            let mut read = [0; 4096];
            let reader = fixture.client("a@frozen");
            reader.read(round * BLOCK_SIZE, &mut read).unwrap();
            if read != [1; 4096] {
                wrong.push((round, read[0]));
            }
            drop(reader);
            view.release(Outcome::Received, PATIENCE).unwrap();
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    });
}

#[test]
fn a_write_under_way_is_finished_before_the_freeze_or_begun_after_it() {
    let (fixture, hooks) = hooked(PLENTY);
    hooks.yields.store(30, Ordering::SeqCst);
    let stop = Stop::default();
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let _end = stop.at_end();
        for writer in 0..2u64 {
            let (fixture, stop, answered) = (&fixture, &stop, &answered);
            scope.spawn(move || {
                let client = fixture.client("a");
                for number in 1u64.. {
                    if stop.has_come() {
                        return;
                    }
                    client
                        .write(writer * BLOCK_SIZE, &number.to_le_bytes())
                        .unwrap();
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..60 {
            let view = fixture.volume.freeze().unwrap();
            let seen = answered.load(Ordering::SeqCst);
            let reader = fixture.client("a@frozen");
            let mut first = [0; 2 * BLOCK_SIZE as usize];
            reader.read(0, &mut first).unwrap();
            while answered.load(Ordering::SeqCst) < seen + 6 {
                std::thread::yield_now();
            }
            let mut second = [0; 2 * BLOCK_SIZE as usize];
            reader.read(0, &mut second).unwrap();
            assert!(first == second, "round {round}: the view has changed");
            drop(reader);
            view.release(Outcome::Received, PATIENCE).unwrap();
        }
    });
}
