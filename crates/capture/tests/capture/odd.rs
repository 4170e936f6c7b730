//! Whatever the shape of a server's maps, the replica gets the disk.

use lifeboat_model::BLOCK_SIZE;
use lifeboat_nbd::{DIRTY, Extent, HOLE, ZERO};
use lifeboat_stream::Kind;
use proptest::prelude::*;

use super::replica::{Dice, Range, pattern, plan, source, take};
use super::shaped::{Shaped, image, listed, serve};

/// A new image, its old state, and maps that tell the truth in an odd way.
#[derive(Debug, Clone)]
struct Scene {
    seed: u64,
    sectors: u64,
    /// How many pieces the maps have.
    pieces: u64,
    at_once: usize,
    tells_allocation: bool,
    minimum: u32,
}

fn scenes() -> impl Strategy<Value = Scene> {
    (
        any::<u64>(),
        prop_oneof![1u64..40, 2000u64..12_000],
        prop_oneof![1u64..4, 10u64..60],
        1usize..5,
        prop::bool::weighted(0.8),
        prop_oneof![Just(1u32), Just(512)],
    )
        .prop_map(
            |(seed, sectors, pieces, at_once, tells_allocation, minimum)| Scene {
                seed: seed >> 1,
                sectors,
                pieces,
                at_once,
                tells_allocation,
                minimum,
            },
        )
}

/// Cuts a disk at random places, of which few are borders of blocks.
fn cut(dice: &mut Dice, size: u64, pieces: u64, minimum: u32) -> Vec<(u64, u64)> {
    let minimum = u64::from(minimum);
    let mut cuts: Vec<u64> = (0..pieces)
        .map(|_| dice.roll(size) / minimum * minimum)
        .collect();
    cuts.extend([0, size]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2)
        .map(|pair| (pair[0], pair[1] - pair[0]))
        .collect()
}

#[derive(Debug)]
struct Disk {
    old: Vec<u8>,
    new: Vec<u8>,
    dirty: Vec<Extent>,
    allocation: Vec<Extent>,
}

fn disk(scene: &Scene) -> Disk {
    let mut dice = Dice::new(scene.seed);
    let size = scene.sectors * 512;
    let old = pattern(scene.seed, size as usize);
    let mut new = old.clone();
    let mut dirty = Vec::new();
    for (offset, length) in cut(&mut dice, size, scene.pieces, scene.minimum) {
        let kind = dice.roll(4);
        let range = offset as usize..(offset + length) as usize;
        match kind {
            0 => {}
            1 => new[range].fill(0),
            2 => new[range.clone()].copy_from_slice(&pattern(dice.next() >> 1, range.len())),
            // Dirty and the same as before.
            _ => {}
        }
        dirty.push(Extent {
            offset,
            length,
            flags: if kind == 0 { 0 } else { DIRTY },
        });
    }
    // Zeroes that no map of changes knows make the allocation differ from it.
    let mut allocation = Vec::new();
    for (offset, length) in cut(&mut dice, size, 2 * scene.pieces, scene.minimum) {
        let bytes = &new[offset as usize..(offset + length) as usize];
        let zero = bytes.iter().all(|byte| *byte == 0);
        let flags = match (zero, dice.roll(3)) {
            (true, 0) => ZERO,
            (true, 1) => ZERO | HOLE,
            (_, 2) => HOLE,
            _ => 0,
        };
        allocation.push(Extent {
            offset,
            length,
            flags,
        });
    }
    Disk {
        old,
        new,
        dirty,
        allocation,
    }
}

fn touches_dirty(range: &Range, dirty: &[Extent]) -> bool {
    let blocks = range.offset / BLOCK_SIZE..(range.offset + range.length).div_ceil(BLOCK_SIZE);
    blocks.into_iter().all(|block| {
        let (start, end) = (block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
        dirty
            .iter()
            .any(|extent| extent.flags != 0 && extent.offset < end && extent.end() > start)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_old_disk_and_a_capture_give_the_new_disk(scene in scenes()) {
        let disk = disk(&scene);
        let served = serve(Shaped {
            size: disk.new.len() as u64,
            minimum: scene.minimum,
            content: image(disk.new.clone()),
            dirty: listed(disk.dirty.clone(), scene.at_once),
            allocation: scene
                .tells_allocation
                .then(|| listed(disk.allocation.clone(), scene.at_once)),
            allocation_asked: Default::default(),
        });
        let taken = take(&plan(Kind::Delta, vec![source("a", &served.uri, Some("m"))])).unwrap();
        let mut disks = [disk.old.clone()];
        let ranges = taken.apply(&mut disks);
        prop_assert!(disks[0] == disk.new);
        for range in &ranges {
            prop_assert!(touches_dirty(range, &disk.dirty), "{range:?} is not dirty");
        }

        let taken = take(&plan(Kind::Initial, vec![source("a", &served.uri, None)])).unwrap();
        let mut disks = [vec![0xee; disk.new.len()]];
        taken.apply(&mut disks);
        prop_assert!(disks[0] == disk.new);
        prop_assert_eq!(taken.captured.dirty_bytes, disk.new.len() as u64);
        let last = taken.progress.last().unwrap();
        prop_assert_eq!(last.position, last.size);
    }
}
