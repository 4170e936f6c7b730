//! What the maps mark.

use std::collections::BTreeSet;

use lifeboat_model::BLOCK_SIZE;
use lifeboat_volume::{Changes, Outcome};

use super::fixture::{Dice, Fixture, PATIENCE, PLENTY, Stop, differing, random_change};

const SIZE: usize = (4 << 20) + 1536;

#[test]
fn a_map_marks_exactly_the_blocks_that_were_touched() {
    let fixture = Fixture::new(&[("a", SIZE), ("b", SIZE)], PLENTY);
    fixture.begin_tracking();
    let mut dice = Dice::new(7);
    let mut touched = [BTreeSet::new(), BTreeSet::new()];
    for round in 0..12 {
        for (disk, touched) in ["a", "b"].iter().zip(&mut touched) {
            let client = fixture.client(disk);
            for _ in 0..dice.roll(12) {
                let (offset, length, _) = random_change(&mut dice, &client, 0..client.size());
                touched.extend(offset / BLOCK_SIZE..(offset + length).div_ceil(BLOCK_SIZE));
            }
        }
        let all = touched[0].len() + touched[1].len();
        assert_eq!(fixture.volume.dirty_bytes() / BLOCK_SIZE, all as u64);
        let view = fixture.volume.freeze().unwrap();
        assert_eq!(view.dirty_bytes() / BLOCK_SIZE, all as u64);
        assert_eq!(fixture.volume.dirty_bytes(), 0);
        for (disk, touched) in ["a", "b"].iter().zip(&touched) {
            assert_eq!(fixture.marked(disk), *touched, "round {round}, disk {disk}");
        }
        match dice.roll(3) {
            0 => {
                view.release(Outcome::Received, PATIENCE).unwrap();
                touched = Default::default();
            }
            1 => view.release(Outcome::Failed, PATIENCE).unwrap(),
            _ => drop(view),
        }
    }
}

#[test]
fn what_is_written_during_a_failed_view_is_marked_together_with_its_map() {
    let fixture = Fixture::new(&[("a", SIZE)], PLENTY);
    fixture.begin_tracking();
    let client = fixture.client("a");
    client.write(0, &[1]).unwrap();
    let view = fixture.volume.freeze().unwrap();
    client.write(10 * BLOCK_SIZE, &[1]).unwrap();
    view.release(Outcome::Failed, PATIENCE).unwrap();
    client.write(20 * BLOCK_SIZE, &[1]).unwrap();
    let view = fixture.volume.freeze().unwrap();
    assert_eq!(fixture.marked("a"), BTreeSet::from([0, 10, 20]));
    client.write(30 * BLOCK_SIZE, &[1]).unwrap();
    view.release(Outcome::Received, PATIENCE).unwrap();
    let _view = fixture.volume.freeze().unwrap();
    assert_eq!(fixture.marked("a"), BTreeSet::from([30]));
}

#[test]
fn whatever_differs_between_two_views_is_marked_in_the_second() {
    let fixture = Fixture::new(&[("a", SIZE)], PLENTY);
    let stop = Stop::default();
    std::thread::scope(|scope| {
        let _end = stop.at_end();
        for writer in 0..3 {
            let (fixture, stop) = (&fixture, &stop);
            scope.spawn(move || {
                let client = fixture.client("a");
                let mut dice = Dice::new(writer);
                while !stop.has_come() {
                    random_change(&mut dice, &client, 0..client.size());
                }
            });
        }
        let view = fixture.volume.freeze().unwrap();
        let mut last = fixture.frozen("a");
        view.release(Outcome::Received, PATIENCE).unwrap();
        let mut dice = Dice::new(99);
        let mut compared = 0;
        for round in 0..25 {
            let view = fixture.volume.freeze().unwrap();
            assert_eq!(view.changes(), Changes::Tracked);
            let now = fixture.frozen("a");
            let changed = differing(&last, &now);
            let marked = fixture.marked("a");
            let missed: Vec<_> = changed.difference(&marked).collect();
            assert!(missed.is_empty(), "round {round}: {missed:?} not marked");
            compared += changed.len();
            if dice.roll(3) == 0 {
                view.release(Outcome::Failed, PATIENCE).unwrap();
            } else {
                view.release(Outcome::Received, PATIENCE).unwrap();
                last = now;
            }
        }
        assert!(compared > 0, "nothing has changed in the whole test");
    });
}
