//! What a frozen view shows.

use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_nbd::{ContextName, Errno, RequestError, ZERO};
use lifeboat_volume::{BreakReason, Changes, FreezeError, FrozenView, Outcome};

use super::fixture::{Dice, Fixture, PATIENCE, PLENTY, Stop, id, random_change, read_all};

const MIB: usize = 1 << 20;

#[test]
fn a_view_stays_as_it_was_while_writers_go_on() {
    // The second disk ends within a block.
    let fixture = Fixture::new(&[("a", 6 * MIB), ("b", 3 * MIB + 512)], PLENTY);
    let mut dice = Dice::new(1);
    for round in 0..4 {
        for disk in ["a", "b"] {
            let client = fixture.client(disk);
            for _ in 0..60 {
                random_change(&mut dice, &client, 0..client.size());
            }
        }
        let before: Vec<_> = ["a", "b"]
            .map(|disk| read_all(&fixture.client(disk)).unwrap())
            .into();
        let view = fixture.volume.freeze().unwrap();
        let stop = Stop::default();
        std::thread::scope(|scope| {
            let _end = stop.at_end();
            for writer in 0..4u64 {
                let (fixture, stop) = (&fixture, &stop);
                scope.spawn(move || {
                    let client = fixture.client(["a", "b"][writer as usize % 2]);
                    let mut dice = Dice::new(100 * round + writer);
                    // Writers meet in the same blocks.
                    while !stop.has_come() {
                        random_change(&mut dice, &client, 0..client.size());
                    }
                });
            }
            for _ in 0..5 {
                for (disk, before) in ["a", "b"].iter().zip(&before) {
                    assert!(
                        fixture.frozen(disk) == *before,
                        "round {round}, disk {disk}"
                    );
                    assert_zeroes_are_told_truly(&fixture, disk, before);
                }
            }
        });
        assert!(view.broken().is_none());
        assert!(fixture.frozen("a") == before[0]);
        view.release(Outcome::Failed, PATIENCE).unwrap();
    }
}

fn assert_zeroes_are_told_truly(fixture: &Fixture, disk: &str, expected: &[u8]) {
    let allocation = ContextName::allocation();
    let name = FrozenView::export_name(&id(disk));
    let client = fixture.client_with(&name, std::slice::from_ref(&allocation));
    let mut next = 0;
    for extent in client.extents(&allocation, 0, client.size()).unwrap() {
        let extent = extent.unwrap();
        assert_eq!(extent.offset, next);
        next = extent.end();
        if extent.flags & ZERO != 0 {
            let range = extent.offset as usize..next as usize;
            assert!(expected[range].iter().all(|byte| *byte == 0), "{extent:?}");
        }
    }
    assert_eq!(next, client.size());
}

#[test]
fn a_view_never_shows_one_disk_ahead_of_another() {
    let fixture = Fixture::new(&[("a", MIB), ("b", MIB)], PLENTY);
    let (started, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = Stop::default();
    let counter = |disk: &str| u64::from_le_bytes(fixture.frozen(disk)[..8].try_into().unwrap());
    std::thread::scope(|scope| {
        let _end = stop.at_end();
        scope.spawn(|| {
            let (a, b) = (fixture.client("a"), fixture.client("b"));
            while !stop.has_come() {
                let number = started.fetch_add(1, Ordering::SeqCst) + 1;
                a.write(0, &number.to_le_bytes()).unwrap();
                b.write(0, &number.to_le_bytes()).unwrap();
                answered.store(number, Ordering::SeqCst);
            }
        });
        for _ in 0..60 {
            let least = answered.load(Ordering::SeqCst);
            let view = fixture.volume.freeze().unwrap();
            let most = started.load(Ordering::SeqCst);
            let (a, b) = (counter("a"), counter("b"));
            assert!(b <= a && a <= b + 1, "a {a}, b {b}");
            assert!(least <= b && a <= most, "{least} <= {b}, {a} <= {most}");
            view.release(Outcome::Received, PATIENCE).unwrap();
        }
    });
}

#[test]
fn discarding_a_whole_disk_keeps_its_old_data_only() {
    let fixture = Fixture::new(&[("a", 64 * MIB)], PLENTY);
    let client = fixture.client("a");
    for offset in [0, 5 * MIB + 4096, 40 * MIB, 64 * MIB - 8192] {
        client.write(offset as u64, &[7; 8192]).unwrap();
    }
    let before = read_all(&client).unwrap();
    let view = fixture.volume.freeze().unwrap();
    client.trim(0, client.size()).unwrap();
    assert!(read_all(&client).unwrap().iter().all(|byte| *byte == 0));
    assert!(fixture.frozen("a") == before);
    assert_eq!(view.scratch_bytes(), 4 * 8192);
    assert_zeroes_are_told_truly(&fixture, "a", &before);
}

#[test]
fn zeroed_ranges_read_as_zeroes_whether_their_space_is_kept_or_not() {
    let fixture = Fixture::new(&[("a", MIB)], PLENTY);
    let client = fixture.client("a");
    client.write(0, &vec![9; MIB]).unwrap();
    client.write_zeroes(100, 50_000).unwrap();
    client.write_zeroes_allocated(200_000, 70_000).unwrap();
    let bytes = read_all(&client).unwrap();
    for (at, byte) in bytes.iter().enumerate() {
        let zero = (100..50_100).contains(&at) || (200_000..270_000).contains(&at);
        assert_eq!(*byte == 0, zero, "{at}");
    }
    client.flush().unwrap();
}

#[test]
fn a_full_scratch_breaks_the_view_and_never_the_guest() {
    let limit = 64 << 10;
    let fixture = Fixture::new(&[("a", MIB), ("b", MIB)], limit);
    fixture.begin_tracking();
    let client = fixture.client("a");
    client.write(0, &vec![1; MIB]).unwrap();
    let view = fixture.volume.freeze().unwrap();
    client.write(0, &vec![2; limit as usize]).unwrap();
    assert!(view.broken().is_none());
    assert_eq!(view.scratch_bytes(), limit);
    assert!(fixture.frozen("a") == vec![1; MIB]);

    client.write(limit, &[3; 1]).unwrap();
    assert!(matches!(
        view.broken(),
        Some(BreakReason::ScratchFull { limit: 65_536 })
    ));
    for disk in ["a", "b"] {
        let reader = fixture.client(&FrozenView::export_name(&id(disk)));
        let error = reader.read(0, &mut [0; 512]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Io));
        assert!(error.to_string().contains("view is broken"), "{error}");
    }
    client.write(500_000, &[4; 5000]).unwrap();
    view.release(Outcome::Failed, PATIENCE).unwrap();
    let mut expected = vec![1; MIB];
    expected[..limit as usize].fill(2);
    expected[limit as usize] = 3;
    expected[500_000..505_000].fill(4);
    assert!(read_all(&client).unwrap() == expected);
    let _view = fixture.volume.freeze().unwrap();
    assert_eq!(fixture.marked("a"), (0..256).collect());
}

#[test]
fn old_blocks_of_zeroes_take_no_scratch() {
    let fixture = Fixture::new(&[("a", MIB)], 0);
    let client = fixture.client("a");
    client.write_zeroes_allocated(0, 65_536).unwrap();
    let view = fixture.volume.freeze().unwrap();
    client.write(0, &vec![1; MIB]).unwrap();
    assert!(view.broken().is_none());
    assert!(fixture.frozen("a") == vec![0; MIB]);
}

#[test]
fn there_is_one_view_at_a_time_and_it_is_read_only() {
    let fixture = Fixture::new(&[("a", MIB)], PLENTY);
    let view = fixture.volume.freeze().unwrap();
    let again = fixture.volume.freeze();
    assert!(
        matches!(again, Err(FreezeError::AlreadyFrozen)),
        "{again:?}"
    );
    let reader = fixture.client("a@frozen");
    assert!(reader.read_only());
    assert!(matches!(
        reader.write(0, &[1]),
        Err(RequestError::ReadOnly { .. })
    ));
    view.release(Outcome::Failed, PATIENCE).unwrap();
    assert!(reader.read(0, &mut [0; 512]).is_err());
    assert_eq!(fixture.exports.names(), ["a"]);
}

#[test]
fn only_a_received_view_lets_the_next_one_have_a_bitmap() {
    let fixture = Fixture::new(&[("a", MIB)], PLENTY);
    for outcome in [Outcome::Failed, Outcome::Received] {
        let view = fixture.volume.freeze().unwrap();
        assert_eq!(view.changes(), Changes::Unknown);
        let names = [super::fixture::bitmap(), ContextName::allocation()];
        let client = fixture.client_with("a@frozen", &names);
        let granted: Vec<_> = client.contexts().cloned().collect();
        assert_eq!(granted, [ContextName::allocation()]);
        drop(client);
        view.release(outcome, PATIENCE).unwrap();
    }
    let view = fixture.volume.freeze().unwrap();
    assert_eq!(view.changes(), Changes::Tracked);
    assert!(fixture.marked("a").is_empty());
}
