//! What is read, asked and sent, in numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_model::BLOCK_SIZE;
use lifeboat_nbd::{DIRTY, Extent, ZERO};
use lifeboat_stream::{Compression, Kind, Layout, Options, SHARE_MIN_LEN};

use super::replica::{Dice, pattern, plan, source, take};
use super::shaped::{Map, Shaped, everywhere, image, listed, serve};

const MIB: u64 = 1 << 20;

/// A map that is dirty in these ranges (offset, length), which ascend.
fn dirty_in(size: u64, ranges: &[(u64, u64)]) -> Map {
    let mut list = Vec::new();
    let mut next = 0;
    let mut push = |offset, length, flags| {
        if length > 0 {
            list.push(Extent {
                offset,
                length,
                flags,
            });
        }
    };
    for &(offset, length) in ranges {
        push(next, offset - next, 0);
        push(offset, length, DIRTY);
        next = offset + length;
    }
    push(next, size - next, 0);
    listed(list, usize::MAX)
}

fn counted(bytes: Vec<u8>, dirty: Map, allocation: Option<Map>) -> (Shaped, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let shaped = Shaped {
        size: bytes.len() as u64,
        minimum: 1,
        content: image(bytes),
        dirty,
        allocation,
        allocation_asked: Arc::clone(&asked),
    };
    (shaped, asked)
}

#[test]
fn large_dirty_zeroes_are_neither_read_nor_skipped() {
    let size = 64 * MIB;
    let (export, asked) = counted(
        vec![0; size as usize],
        dirty_in(size, &[(MIB, 2 * MIB), (8 * MIB, 50 * MIB)]),
        Some(everywhere(size, ZERO)),
    );
    let served = serve(export);
    let taken = take(&plan(
        Kind::Delta,
        vec![source("a", &served.uri, Some("m"))],
    ))
    .unwrap();
    let captured = &taken.captured;
    assert_eq!(captured.dirty_bytes, 52 * MIB);
    assert_eq!((captured.read_bytes, captured.data_bytes), (0, 0));
    assert_eq!(captured.zero_bytes, 52 * MIB);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let mut disks = [vec![1; size as usize]];
    assert_eq!(taken.apply(&mut disks).len(), 2);
}

#[test]
fn the_allocation_of_small_dirty_runs_is_not_asked() {
    let size = 64 * MIB;
    let runs: Vec<_> = (0..60).map(|n| (n * MIB, MIB - BLOCK_SIZE)).collect();
    let mut bytes = vec![0; size as usize];
    bytes[(5 * MIB) as usize] = 1;
    let (export, asked) = counted(bytes, dirty_in(size, &runs), Some(everywhere(size, 0)));
    let served = serve(export);
    let taken = take(&plan(
        Kind::Delta,
        vec![source("a", &served.uri, Some("m"))],
    ))
    .unwrap();
    let captured = &taken.captured;
    assert_eq!(captured.read_bytes, captured.dirty_bytes);
    assert_eq!(captured.data_bytes, BLOCK_SIZE);
    assert_eq!(captured.zero_bytes, captured.dirty_bytes - BLOCK_SIZE);
    // The server itself looks for zeroes when it serves a read; nobody asked it to.
    let reads_by_the_server = 60 * 2;
    assert!(asked.load(Ordering::SeqCst) <= reads_by_the_server);
}

#[test]
fn scattered_blocks_cost_five_percent_on_the_wire_at_most() {
    let size = 256 * MIB;
    let mut dice = Dice::new(3);
    let runs: Vec<_> = (0..4096)
        .map(|n| ((n * 16 + dice.roll(8)) * BLOCK_SIZE, BLOCK_SIZE))
        .collect();
    let (export, _) = counted(
        pattern(9, size as usize),
        dirty_in(size, &runs),
        Some(everywhere(size, 0)),
    );
    let served = serve(export);
    let mut plan = plan(Kind::Delta, vec![source("a", &served.uri, Some("m"))]);
    for layout in [Layout::Shareable, Layout::Compact] {
        plan.options = Options {
            compression: Compression::None,
            layout,
        };
        let captured = take(&plan).unwrap().captured;
        assert_eq!(captured.data_bytes, 4096 * BLOCK_SIZE);
        assert_eq!(captured.read_bytes, captured.data_bytes);
        assert!(
            captured.bytes * 100 <= captured.data_bytes * 105,
            "{captured:?}"
        );
    }
}

#[test]
fn long_runs_are_cut_at_units_that_can_be_shared() {
    let size = 8 * MIB;
    let start = MIB / 2 + 3 * BLOCK_SIZE;
    let (export, _) = counted(
        pattern(4, size as usize),
        dirty_in(size, &[(start, 3 * MIB)]),
        Some(everywhere(size, 0)),
    );
    let served = serve(export);
    let taken = take(&plan(
        Kind::Delta,
        vec![source("a", &served.uri, Some("m"))],
    ))
    .unwrap();
    let unit = SHARE_MIN_LEN as u64;
    let ranges = taken.apply(&mut [vec![0; size as usize]]);
    let cuts: Vec<_> = ranges.iter().map(|range| range.offset).collect();
    let first = start.next_multiple_of(unit);
    assert_eq!(cuts, [start, first, MIB, 2 * MIB, 3 * MIB]);
}

#[test]
fn an_idle_disk_makes_an_empty_delta() {
    let size = 1 << 40;
    let (mut export, asked) = counted(Vec::new(), everywhere(size, 0), Some(everywhere(size, 0)));
    export.size = size;
    let served = serve(export);
    let taken = take(&plan(
        Kind::Delta,
        vec![source("a", &served.uri, Some("m"))],
    ))
    .unwrap();
    assert_eq!(taken.captured.dirty_bytes, 0);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert!(taken.captured.bytes < 20 << 10);
    assert!(taken.apply(&mut [Vec::new()]).is_empty());
}
