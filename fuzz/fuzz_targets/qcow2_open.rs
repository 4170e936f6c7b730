//! Damaged overlays: opening, walking, reading and writing them never panics, never takes
//! more memory than the file justifies, and never overwrites the header.

#![no_main]

use std::path::Path;
use std::sync::Arc;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use lifeboat_qcow2::{Below, Overlay, create_overlay, verify_wrapper};
use lifeboat_sys::disk::{Access, DiskFile, DiskPort, Recorder};

const CLUSTER: u64 = 128 << 10;
const SIZE: u64 = (1 << 30) + 3 * CLUSTER + 512;

#[derive(Debug, Arbitrary)]
enum Input {
    /// A whole image.
    Bytes(Vec<u8>),
    /// An image of ours with some words changed.
    Patches(Vec<Patch>),
}

#[derive(Debug, Arbitrary)]
struct Patch {
    cluster: u8,
    at: u16,
    word: u64,
    /// Shifts the word towards the numbers that mean something: offsets of clusters.
    is_offset: bool,
}

fuzz_target!(|input: Input| {
    let file = Recorder::new()
        .create(Path::new("x"))
        .expect("create a file in memory");
    match input {
        Input::Bytes(bytes) => file.write_at(&bytes, 0).expect("write a file in memory"),
        Input::Patches(patches) => {
            make_overlay(&file);
            patches
                .iter()
                .take(16)
                .for_each(|patch| apply(&*file, patch));
        }
    }
    let _ = verify_wrapper(&*file, SIZE, "/head.raw");
    if let Ok(overlay) = Overlay::open(Arc::clone(&file), Access::ReadOnly) {
        walk(&overlay);
    }
    if let Ok(overlay) = Overlay::open(Arc::clone(&file), Access::ReadWrite) {
        let before = header(&*file);
        write(&overlay);
        walk(&overlay);
        assert_eq!(before, header(&*file), "the header was overwritten");
    }
});

fn make_overlay(file: &Arc<dyn DiskFile>) {
    create_overlay(&**file, SIZE, Below::GivenOnOpen).expect("create an overlay");
    let overlay = Overlay::open(Arc::clone(file), Access::ReadWrite).expect("open it");
    write(&overlay);
}

fn apply(file: &dyn DiskFile, patch: &Patch) {
    let offset = u64::from(patch.cluster % 12) * CLUSTER + u64::from(patch.at / 8 * 8);
    let word = if patch.is_offset {
        (patch.word % 16 * CLUSTER) | (patch.word & 1 << 63)
    } else {
        patch.word
    };
    file.write_at(&word.to_be_bytes(), offset)
        .expect("write a file in memory");
}

fn header(file: &dyn DiskFile) -> [u8; 512] {
    let mut bytes = [0; 512];
    file.read_at(&mut bytes, 0).expect("read a file in memory");
    bytes
}

fn zeroes_below(_: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    buffer.fill(0);
    Ok(())
}

fn write(overlay: &Overlay) {
    let size = overlay.virtual_size();
    for offset in [0, 512, CLUSTER, size / 2, size.saturating_sub(9000)] {
        let len = size.saturating_sub(offset).min(9000);
        let _ = overlay.write(offset, &vec![1; len as usize], &zeroes_below);
        let _ = overlay.write_zeroes(offset, len / 2, &zeroes_below);
    }
    let _ = overlay.flush();
}

fn walk(overlay: &Overlay) {
    let size = overlay.virtual_size();
    let mut next = 0;
    for extent in overlay.extents(0..size).take(2000) {
        let Ok(extent) = extent else { break };
        assert_eq!(extent.offset, next, "a gap between extents");
        assert!(extent.len > 0, "an empty extent");
        next += extent.len;
        assert!(next <= size, "an extent beyond the end");
    }
    let mut buffer = vec![0; size.min(1 << 20) as usize];
    let _ = overlay.read(size - buffer.len() as u64, &mut buffer, &zeroes_below);
}
