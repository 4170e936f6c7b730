//! Comparing what a store says with what a shadow VM knows.

use std::path::Path;

use lifeboat_model::{DiskId, Sequence};
use lifeboat_store::Store;
use lifeboat_stream::BlobKind;
use lifeboat_sys::disk::{Access, DiskPort, GuestDisk};

use crate::ShadowVm;

/// Reads every disk of a recovery point and compares it with the shadow, byte for byte.
///
/// # Errors
/// Says which byte of which disk differs, or what failed.
pub fn compare_point(store: &Store, sequence: Sequence, shadow: &ShadowVm) -> Result<(), String> {
    for (name, expected) in shadow.names().iter().zip(shadow.at(sequence)) {
        let reader = store
            .reader(sequence, name)
            .map_err(|error| format!("open point {sequence}: {error}"))?;
        if reader.size() != expected.len() as u64 {
            return Err(format!(
                "{name} at {sequence} has {} bytes, not {}",
                reader.size(),
                expected.len()
            ));
        }
        let mut bytes = vec![0xA5; expected.len()];
        reader
            .read_at(0, &mut bytes)
            .map_err(|error| format!("read {name} at {sequence}: {error}"))?;
        compare_bytes(&bytes, expected)
            .map_err(|error| format!("{name} at {sequence}: {error}"))?;
    }
    let definition = store
        .point_blob(sequence, BlobKind::Definition)
        .map_err(|error| format!("read the definition at {sequence}: {error}"))?;
    let definition = definition.map_or_else(Vec::new, |blob| blob.bytes);
    if definition != shadow.definition_at(sequence) {
        return Err(format!("the definition at {sequence} is another one"));
    }
    Ok(())
}

/// Compares every recovery point of the store.
///
/// # Errors
/// As [`compare_point`].
pub fn compare_points(store: &Store, shadow: &ShadowVm) -> Result<(), String> {
    store
        .points()
        .iter()
        .try_for_each(|point| compare_point(store, point.sequence, shadow))
}

fn compare_bytes(found: &[u8], expected: &[u8]) -> Result<(), String> {
    // Much faster than looking for the byte that differs.
    if found == expected {
        return Ok(());
    }
    if found.len() != expected.len() {
        return Err(format!("{} bytes, not {}", found.len(), expected.len()));
    }
    match found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected)
    {
        Some(at) => Err(format!(
            "byte {at} (block {}) is {:#04x}, not {:#04x}",
            at / 4096,
            found[at],
            expected[at]
        )),
        None => Ok(()),
    }
}

/// All bytes of a failed-over disk as its guest sees them.
///
/// # Errors
/// What opening or reading it says.
pub fn read_failover_disk(store: &Store, disk: &DiskId) -> Result<Vec<u8>, String> {
    let disk = store
        .failover_disk(disk)
        .map_err(|error| error.to_string())?;
    let mut bytes = vec![0xA5; disk.size() as usize];
    disk.read_at(&mut bytes, 0)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// All bytes of a file behind a disk port.
///
/// # Errors
/// What the port says.
pub fn read_file(disk: &dyn DiskPort, path: &Path) -> std::io::Result<Vec<u8>> {
    let file = disk.open(path, Access::ReadOnly)?;
    let mut bytes = vec![0; file.len()? as usize];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}
