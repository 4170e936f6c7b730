//! The sending side of a copy of whole disks, as a test has it.

use std::ops::Range;

use lifeboat_model::{BLOCK_SIZE, Sequence};
use lifeboat_store::{Chunk, ChunkMemory, ChunkPlace, Store, decode_chunk};

use crate::{Activity, Random, ShadowVm};

/// What the guest does while its disks are copied.
const MEANWHILE: Activity = Activity {
    operations: 2,
    max_sectors: 60,
    alignment: 1,
};

/// Reads a piece for the copy that is under way at the store.
///
/// # Errors
/// When no copy is under way, or the store refuses the bytes.
pub fn decode_piece(
    store: &Store,
    stream: &[u8],
    disk: usize,
    range: Range<u64>,
) -> Result<Chunk, String> {
    let copy = store.copy_status().ok_or("no copy is under way")?;
    let place = ChunkPlace {
        relationship: store.relationship(),
        lineage: store.lineage().id,
        sequence: copy.sequence,
        disk: store.disks()[disk].0.clone(),
        range,
    };
    decode_chunk(stream, &place, &ChunkMemory::default())
        .map_err(|error| format!("decode a piece: {error}"))
}

/// Copies one range of a disk as it is now.
///
/// # Errors
/// What the store says.
pub fn copy_piece(
    store: &mut Store,
    shadow: &mut ShadowVm,
    copy: Sequence,
    disk: usize,
    range: Range<u64>,
) -> Result<(), String> {
    let stream = shadow.capture_piece(copy, disk, range.clone());
    let chunk = decode_piece(store, &stream, disk, range)?;
    let outcome = store.write_chunk(&chunk);
    outcome.map_err(|error| format!("write a piece: {error}: {error:?}"))
}

/// Copies everything that the copy under way has not done yet, while the guest goes on.
///
/// # Errors
/// What the store says.
pub fn copy_rest(
    store: &mut Store,
    shadow: &mut ShadowVm,
    random: &mut Random,
) -> Result<(), String> {
    let copy = store.copy_status().ok_or("no copy is under way")?;
    for (disk, (_, done)) in copy.disks.iter().enumerate() {
        let size = store.disks()[disk].1.bytes();
        let mut position = 0;
        while position < size {
            let next = done.iter().find(|range| range.end > position);
            if let Some(range) = next.filter(|range| range.start <= position) {
                position = range.end;
                continue;
            }
            let gap_end = next.map_or(size, |range| range.start);
            let len = (1 + random.below(40)) * BLOCK_SIZE;
            let end = (position + len).min(gap_end);
            copy_piece(store, shadow, copy.sequence, disk, position..end)?;
            shadow.work(MEANWHILE);
            position = end;
        }
    }
    Ok(())
}
