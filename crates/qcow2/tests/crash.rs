//! Power losses at every moment: what was flushed is there, and no image is ever wrong.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lifeboat_qcow2::{
    Backing, BackingFormat, Below, Layout, Overlay, SEGMENT_CLUSTER, SUB_BLOCK, Seal,
    SealedCluster, create_overlay, seal,
};
use lifeboat_sys::disk::{Access, CrashChoice, DiskFile, DiskPort, Recorder};

const IMAGE: &str = "overlay.qcow2";
const SECTOR: usize = 512;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What lies below the overlay: no two sectors alike.
fn read_below(offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = ((offset + index as u64) / SECTOR as u64 % 251) as u8;
    }
    Ok(())
}

fn create(disk: &Recorder, name: &str) -> Arc<dyn DiskFile> {
    let file = disk.create(Path::new(name)).expect("create");
    disk.sync_dir(Path::new("")).expect("sync the folder");
    file
}

fn read_file(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().expect("len") as usize];
    file.read_at(&mut bytes, 0).expect("read");
    bytes
}

/// For each sector what it may read after a power loss now: what the last flush made
/// durable, and everything written since.
#[derive(Clone)]
struct Possible {
    sectors: Vec<Vec<[u8; SECTOR]>>,
}

impl Possible {
    fn new(size: u64) -> Self {
        let mut bytes = vec![0; size as usize];
        read_below(0, &mut bytes).expect("below");
        Self {
            sectors: bytes
                .as_chunks::<SECTOR>()
                .0
                .iter()
                .map(|&s| vec![s])
                .collect(),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let first = offset as usize / SECTOR;
        for (index, sector) in bytes.as_chunks::<SECTOR>().0.iter().enumerate() {
            self.sectors[first + index].push(*sector);
        }
    }

    fn flushed(&mut self) {
        for sector in &mut self.sectors {
            sector.drain(..sector.len() - 1);
        }
    }

    fn assert_allows(&self, bytes: &[u8], context: &str) {
        for (index, sector) in bytes.as_chunks::<SECTOR>().0.iter().enumerate() {
            assert!(
                self.sectors[index].contains(sector),
                "{context}: sector {index} reads {:?}..., possible are {:?}",
                &sector[..4],
                self.sectors[index].iter().map(|s| s[0]).collect::<Vec<_>>()
            );
        }
    }
}

/// Asserts that QEMU finds no error in an image, other than leaks.
fn assert_sound(bytes: &[u8], context: &str) {
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().join(IMAGE);
    fs::write(&path, bytes).expect("write the image");
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", "--output=json"])
        .arg(&path)
        .output()
        .unwrap_or_else(|error| panic!("start qemu-img (package qemu-utils): {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    // 0: clean, 3: leaks. "corruptions" is there only if there are some.
    let is_sound = matches!(output.status.code(), Some(0 | 3)) && !text.contains("corruptions");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(is_sound, "{context}: {text}{errors}");
}

/// The calls that were recorded when an operation ended, and what was possible from its
/// beginning until then.
struct Moment {
    calls: usize,
    possible: Possible,
}

/// Writes and flushes an overlay over several L2 tables and notes what is possible when.
fn run_overlay(disk: &Recorder, size: u64, seed: u64) -> Vec<Moment> {
    let file = disk
        .open(Path::new(IMAGE), Access::ReadWrite)
        .expect("open");
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    let mut possible = Possible::new(size);
    let mut moments = Vec::new();
    let mut random = Random(seed);
    let sectors = size / SECTOR as u64;
    for step in 0..40 {
        let first = random.below(sectors);
        let count = (1 + random.below(40)).min(sectors - first);
        let (offset, len) = (first * SECTOR as u64, count * SECTOR as u64);
        match random.below(4) {
            0 => {
                possible.write(offset, &vec![0; len as usize]);
                overlay
                    .write_zeroes(offset, len, &read_below)
                    .expect("zero");
            }
            1 => {
                overlay.flush().expect("flush");
                // While it ran, the flush promised nothing yet.
                moments.push(Moment {
                    calls: disk.recorded(),
                    possible: possible.clone(),
                });
                possible.flushed();
                continue;
            }
            _ => {
                let bytes = vec![100 + step as u8; len as usize];
                possible.write(offset, &bytes);
                overlay.write(offset, &bytes, &read_below).expect("write");
            }
        }
        moments.push(Moment {
            calls: disk.recorded(),
            possible: possible.clone(),
        });
    }
    overlay.flush().expect("flush");
    moments.push(Moment {
        calls: disk.recorded(),
        possible: possible.clone(),
    });
    possible.flushed();
    moments.push(Moment {
        calls: disk.recorded() + 1,
        possible,
    });
    moments
}

#[test]
fn a_power_loss_keeps_what_was_flushed_and_leaves_a_sound_overlay() {
    let size = 3 * SEGMENT_CLUSTER + 5 * SECTOR as u64;
    for seed in 0..3 {
        let disk = Recorder::new();
        create_overlay(&*create(&disk, IMAGE), size, Below::GivenOnOpen).expect("create");
        disk.start_recording();
        let moments = run_overlay(&disk, size, seed);
        let recording = disk.recording();
        let mut seen = HashSet::new();
        for calls in 0..=recording.len() {
            let moment = moments
                .iter()
                .find(|moment| calls <= moment.calls)
                .expect("a moment for every call");
            let choices = [
                CrashChoice::Nothing,
                CrashChoice::Everything,
                CrashChoice::Some { seed, chance: 128 },
                CrashChoice::Some {
                    seed: seed + 100,
                    chance: 220,
                },
                CrashChoice::Some {
                    seed: seed + 200,
                    chance: 40,
                },
            ];
            for choice in choices {
                let state = recording.crash_after(calls, choice);
                if !seen.insert((state.fingerprint, moment.calls)) {
                    continue;
                }
                let context = format!("seed {seed}, {calls} calls, {choice:?}");
                let file = state
                    .disk
                    .open(Path::new(IMAGE), Access::ReadWrite)
                    .expect("open");
                let image = read_file(&*file);
                let overlay = Overlay::open(Arc::clone(&file), Access::ReadWrite)
                    .unwrap_or_else(|error| panic!("{context}: {error:?}"));
                let mut bytes = vec![0; size as usize];
                overlay
                    .read(0, &mut bytes, &read_below)
                    .unwrap_or_else(|error| panic!("{context}: {error:?}"));
                moment.possible.assert_allows(&bytes, &context);
                if calls % 4 == 0 {
                    assert_sound(&image, &context);
                }
                // The overlay goes on where it stopped.
                overlay.write(512, &[9; 8192], &read_below).expect("write");
                overlay.flush().expect("flush");
                bytes[512..512 + 8192].fill(9);
                let again = Overlay::open(file, Access::ReadOnly).expect("open again");
                let mut found = vec![0; size as usize];
                again.read(0, &mut found, &read_below).expect("read again");
                assert!(found == bytes, "{context}: after going on");
            }
        }
        assert!(seen.len() > 150, "{} states", seen.len());
    }
}

#[test]
fn a_power_loss_is_harmless_where_a_new_refcount_block_begins() {
    // An overlay whose file already ends shortly before 8 GiB: the next clusters need
    // counts that no block holds yet.
    let size = 4 << 30;
    let disk = Recorder::new();
    let file = create(&disk, IMAGE);
    create_overlay(&*file, size, Below::GivenOnOpen).expect("create");
    file.set_len((8 << 30) - SEGMENT_CLUSTER).expect("extend");
    file.sync().expect("sync");
    disk.start_recording();
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    for step in 0..6_u64 {
        let bytes = [step as u8 + 1; SUB_BLOCK as usize];
        overlay
            .write(step << 29, &bytes, &read_below)
            .expect("write");
        if step % 2 == 1 {
            overlay.flush().expect("flush");
        }
    }
    let recording = disk.recording();
    for calls in 0..=recording.len() {
        for seed in 0..8 {
            let choice = CrashChoice::Some { seed, chance: 128 };
            let state = recording.crash_after(calls, choice);
            let context = format!("{calls} calls, {choice:?}");
            let file = state
                .disk
                .open(Path::new(IMAGE), Access::ReadOnly)
                .expect("open");
            assert_counts(&*file, &context);
        }
    }
    let last = recording.crash_after(recording.len(), CrashChoice::Nothing);
    let file = last
        .disk
        .open(Path::new(IMAGE), Access::ReadOnly)
        .expect("open");
    let overlay = Overlay::open(file, Access::ReadOnly).expect("open");
    for step in 0..6_u64 {
        let mut bytes = [0; SUB_BLOCK as usize];
        overlay
            .read(step << 29, &mut bytes, &read_below)
            .expect("read");
        assert_eq!(bytes, [step as u8 + 1; SUB_BLOCK as usize]);
    }
}

/// Asserts that everything an image refers to is counted: no errors but leaks.
///
/// For files too large to be handed to `qemu-img`; for images of 128 KiB clusters with
/// extended L2 entries, whose first-level tables have one cluster each.
fn assert_counts(file: &dyn DiskFile, context: &str) {
    let word = |offset: u64| {
        let mut bytes = [0; 8];
        file.read_at(&mut bytes, offset)
            .unwrap_or_else(|error| panic!("{context}: read {offset:#x}: {error}"));
        u64::from_be_bytes(bytes)
    };
    let refcount_table = word(48);
    let l1 = word(40);
    let mut referred = vec![0, l1, refcount_table];
    for index in 0..SEGMENT_CLUSTER / 8 {
        let block = word(refcount_table + index * 8);
        if block != 0 {
            referred.push(block);
        }
    }
    for index in 0..4 {
        let table = word(l1 + index * 8) & !(1 << 63);
        if table == 0 {
            continue;
        }
        referred.push(table);
        for entry in 0..SEGMENT_CLUSTER / 16 {
            let host = word(table + entry * 16) & !(1 << 63);
            if host != 0 {
                referred.push(host);
            }
        }
    }
    let unique: HashSet<u64> = referred.iter().copied().collect();
    assert_eq!(unique.len(), referred.len(), "{context}: {referred:x?}");
    for offset in referred {
        let cluster = offset / SEGMENT_CLUSTER;
        let per_block = SEGMENT_CLUSTER / 2;
        let block = word(refcount_table + cluster / per_block * 8);
        assert_ne!(block, 0, "{context}: {offset:#x} has no refcount block");
        let mut count = [0; 2];
        file.read_at(&mut count, block + cluster % per_block * 2)
            .expect("read a count");
        assert_eq!(u16::from_be_bytes(count), 1, "{context}: {offset:#x}");
    }
}

#[test]
fn a_failed_write_of_tables_is_made_good_by_the_next_flush() {
    let size = 3 * SEGMENT_CLUSTER;
    let disk = Recorder::new();
    let file = create(&disk, IMAGE);
    create_overlay(&*file, size, Below::GivenOnOpen).expect("create");
    let overlay = Overlay::open(Arc::clone(&file), Access::ReadWrite).expect("open");
    overlay.write(4096, &[5; 4096], &read_below).expect("write");
    disk.limit_capacity(Some(disk.occupied()));
    overlay.flush().expect_err("no room for an L2 table");
    disk.limit_capacity(None);
    overlay.flush().expect("flush");
    let again = Overlay::open(Arc::clone(&file), Access::ReadOnly).expect("open");
    let mut bytes = [0; 4096];
    again.read(4096, &mut bytes, &read_below).expect("read");
    assert_eq!(bytes, [5; 4096]);
    assert_sound(&read_file(&*file), "after the second flush");
}

#[test]
fn a_failed_sync_is_reported_and_never_forgotten() {
    let size = 3 * SEGMENT_CLUSTER;
    for failing in 0..3 {
        let disk = Recorder::new();
        let file = create(&disk, IMAGE);
        create_overlay(&*file, size, Below::GivenOnOpen).expect("create");
        let overlay = Overlay::open(Arc::clone(&file), Access::ReadWrite).expect("open");
        overlay.write(4096, &[5; 4096], &read_below).expect("write");
        disk.fail_sync_after(failing);
        overlay.flush().expect_err("a failed sync");
        overlay.flush().expect_err("the file is poisoned");
    }
}

fn sealed_clusters() -> [SealedCluster; 3] {
    [
        SealedCluster {
            guest: 1,
            host: Some(2 * SEGMENT_CLUSTER),
            data: 0b1011,
            zero: 0b100,
        },
        SealedCluster {
            guest: 2,
            host: None,
            data: 0,
            zero: 0xFFFF_0000,
        },
        SealedCluster {
            guest: 9000,
            host: Some(SEGMENT_CLUSTER),
            data: 1,
            zero: 0,
        },
    ]
}

#[test]
fn sealing_again_after_a_power_loss_gives_the_same_image() {
    let data_len = 2 * SEGMENT_CLUSTER + 4 * SUB_BLOCK;
    let plan = Seal {
        data_len,
        virtual_size: 9001 * SEGMENT_CLUSTER,
        layout: Layout::ExtendedL2,
        backing: Backing {
            name: "7.next",
            format: BackingFormat::Qcow2,
        },
    };
    let disk = Recorder::new();
    let file = create(&disk, "7.open");
    file.write_at(&[1; SUB_BLOCK as usize], SEGMENT_CLUSTER)
        .expect("data");
    file.write_at(&[2; 4 * SUB_BLOCK as usize], 2 * SEGMENT_CLUSTER)
        .expect("data");
    file.sync().expect("sync");
    disk.start_recording();
    seal(&*file, &plan, sealed_clusters()).expect("seal");
    let whole = read_file(&*file);
    let recording = disk.recording();
    let mut states = HashSet::new();
    for calls in 0..=recording.len() {
        for seed in 0..12 {
            let choice = CrashChoice::Some { seed, chance: 128 };
            let state = recording.crash_after(calls, choice);
            if !states.insert(state.fingerprint) {
                continue;
            }
            let file = state
                .disk
                .open(Path::new("7.open"), Access::ReadWrite)
                .expect("open");
            let found = read_file(&*file);
            if found.starts_with(b"QFI\xfb") {
                assert!(found == whole, "{calls} calls: a header before its tables");
            }
            file.set_len(data_len).expect("cut");
            seal(&*file, &plan, sealed_clusters()).expect("seal again");
            assert!(read_file(&*file) == whole, "{calls} calls, {choice:?}");
        }
    }
    assert!(states.len() > 20, "{} states", states.len());
}
