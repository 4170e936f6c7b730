//! Power losses at every moment: what was flushed is there, and no image is ever wrong.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use lifeboat_qcow2::{
    Backing, BackingFormat, Below, Layout, Overlay, SEGMENT_CLUSTER, SUB_BLOCK, Seal,
    SealedCluster, create_overlay, seal,
};
use lifeboat_sys::disk::{Access, CrashChoice, CrashState, DiskFile, DiskPort, Recorder};

const IMAGE: &str = "overlay.qcow2";
const SECTOR: u64 = 512;
const COPIED: u64 = 1 << 63;

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

/// What lies below the overlay: each sector is filled with one byte, 1 to 97.
fn read_below(offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = 1 + ((offset + index as u64) / SECTOR % 97) as u8;
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

/// The parts of a disk of three L2 tables that the guest writes: two at borders between
/// tables, and the cut end.
const SIZE: u64 = (3 << 30) + 2 * SEGMENT_CLUSTER + 5 * SECTOR;
const WINDOWS: [Range<u64>; 4] = [
    0..2 * SEGMENT_CLUSTER,
    (1 << 30) - 2 * SEGMENT_CLUSTER..(1 << 30) + SEGMENT_CLUSTER,
    (2 << 30) - SEGMENT_CLUSTER..(2 << 30) + 2 * SEGMENT_CLUSTER,
    SIZE - 2 * SEGMENT_CLUSTER..SIZE,
];

/// For each sector the bytes it may be filled with after a power loss now: what the last
/// flush made durable, and everything written since.
#[derive(Clone)]
struct Possible {
    sectors: BTreeMap<u64, Vec<u8>>,
}

impl Possible {
    fn new() -> Self {
        let mut sectors = BTreeMap::new();
        for sector in WINDOWS
            .into_iter()
            .flat_map(|w| w.start / SECTOR..w.end / SECTOR)
        {
            let mut byte = [0];
            read_below(sector * SECTOR, &mut byte).expect("below");
            sectors.insert(sector, byte.to_vec());
        }
        Self { sectors }
    }

    fn write(&mut self, range: &Range<u64>, byte: u8) {
        for (_, bytes) in self
            .sectors
            .range_mut(range.start / SECTOR..range.end / SECTOR)
        {
            bytes.push(byte);
        }
    }

    fn flushed(&mut self) {
        for bytes in self.sectors.values_mut() {
            bytes.drain(..bytes.len() - 1);
        }
    }

    fn assert_allows(&self, overlay: &Overlay, context: &str) {
        for window in WINDOWS {
            let found = read_window(overlay, &window, context);
            for (index, sector) in found.chunks(SECTOR as usize).enumerate() {
                let number = window.start / SECTOR + index as u64;
                let possible = &self.sectors[&number];
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]) && possible.contains(&sector[0]),
                    "{context}: sector {number} reads {sector:?}, possible are {possible:?}",
                );
            }
        }
    }
}

fn read_window(overlay: &Overlay, window: &Range<u64>, context: &str) -> Vec<u8> {
    let mut bytes = vec![0; (window.end - window.start) as usize];
    overlay
        .read(window.start, &mut bytes, &read_below)
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    bytes
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

/// Writes and flushes an overlay and notes what is possible when.
fn run_overlay(disk: &Recorder, seed: u64) -> Vec<Moment> {
    let file = disk
        .open(Path::new(IMAGE), Access::ReadWrite)
        .expect("open");
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    let mut possible = Possible::new();
    let mut moments = Vec::new();
    let mut random = Random(seed);
    for step in 0..40 {
        let window = WINDOWS[random.below(4) as usize].clone();
        let sectors = (window.end - window.start) / SECTOR;
        let first = random.below(sectors);
        let count = (1 + random.below(40)).min(sectors - first);
        let start = window.start + first * SECTOR;
        let range = start..start + count * SECTOR;
        let len = range.end - range.start;
        let flushes = step % 4 == 3;
        if flushes {
            overlay.flush().expect("flush");
        } else if random.below(3) == 0 {
            possible.write(&range, 0);
            overlay.write_zeroes(start, len, &read_below).expect("zero");
        } else {
            let byte = 100 + step as u8;
            possible.write(&range, byte);
            overlay
                .write(start, &vec![byte; len as usize], &read_below)
                .expect("write");
        }
        moments.push(Moment {
            calls: disk.recorded(),
            possible: possible.clone(),
        });
        if flushes {
            possible.flushed();
        }
    }
    // The loop ended with a flush: nothing else is possible after it.
    moments.push(Moment {
        calls: usize::MAX,
        possible,
    });
    moments
}

#[test]
fn a_power_loss_keeps_what_was_flushed_and_leaves_a_sound_overlay() {
    for seed in 0..2 {
        let disk = Recorder::new();
        create_overlay(&*create(&disk, IMAGE), SIZE, Below::GivenOnOpen).expect("create");
        disk.start_recording();
        let moments = run_overlay(&disk, seed);
        let recording = disk.recording();
        let mut seen = HashSet::new();
        for calls in 0..=recording.len() {
            let moment = moments
                .iter()
                .find(|moment| calls <= moment.calls)
                .expect("a moment for every call");
            let some = |seed, chance| CrashChoice::Some { seed, chance };
            let choices = [
                CrashChoice::Nothing,
                CrashChoice::Everything,
                some(seed, 128),
                some(seed + 100, 220),
                some(seed + 200, 40),
            ];
            for choice in choices {
                let state = recording.crash_after(calls, choice);
                if seen.insert((state.fingerprint, moment.calls)) {
                    let context = format!("seed {seed}, {calls} calls, {choice:?}");
                    check_state(&state, &moment.possible, &context);
                    if seen.len() % 8 == 0 {
                        let file = open_image(&state, Access::ReadOnly);
                        assert_sound(&read_file(&*file), &context);
                    }
                }
            }
        }
        assert!(seen.len() > 150, "{} states", seen.len());
    }
}

fn open_image(state: &CrashState, access: Access) -> Arc<dyn DiskFile> {
    state.disk.open(Path::new(IMAGE), access).expect("open")
}

fn check_state(state: &CrashState, possible: &Possible, context: &str) {
    let file = open_image(state, Access::ReadWrite);
    assert_counts(&*file, context);
    let overlay = Overlay::open(Arc::clone(&file), Access::ReadWrite)
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    possible.assert_allows(&overlay, context);

    // The overlay goes on where it stopped.
    let written = WINDOWS[1].clone();
    let mut expected = WINDOWS.map(|window| read_window(&overlay, &window, context));
    expected[1].fill(99);
    overlay
        .write(written.start, &expected[1], &read_below)
        .expect("write");
    overlay.flush().expect("flush");
    assert_counts(&*file, context);
    let again = Overlay::open(file, Access::ReadOnly).expect("open again");
    let found = WINDOWS.map(|window| read_window(&again, &window, context));
    assert!(found == expected, "{context}: after going on");
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

/// Asserts that everything an image refers to is counted once: no errors but leaks.
///
/// For images of 128 KiB clusters with
/// extended L2 entries, whose first-level tables have one cluster each.
fn assert_counts(file: &dyn DiskFile, context: &str) {
    let words = |offset: u64, count: u64| -> Vec<u64> {
        let mut bytes = vec![0; count as usize * 8];
        file.read_at(&mut bytes, offset)
            .unwrap_or_else(|error| panic!("{context}: read {offset:#x}: {error}"));
        let words = bytes.as_chunks::<8>().0.iter();
        words.map(|word| u64::from_be_bytes(*word)).collect()
    };
    let (l1, refcount_table) = (words(40, 1)[0], words(48, 1)[0]);
    let mut referred = vec![0, l1, refcount_table];
    let blocks = words(refcount_table, SEGMENT_CLUSTER / 8);
    referred.extend(blocks.iter().filter(|&&block| block != 0));
    for table in words(l1, 4).into_iter().filter(|&table| table != 0) {
        referred.push(table & !COPIED);
        for entry in words(table & !COPIED, SEGMENT_CLUSTER / 8).chunks(2) {
            if entry[0] != 0 {
                referred.push(entry[0] & !COPIED);
            }
        }
    }
    let unique: HashSet<u64> = referred.iter().copied().collect();
    assert_eq!(unique.len(), referred.len(), "{context}: {referred:x?}");
    for offset in referred {
        let cluster = offset / SEGMENT_CLUSTER;
        let per_block = SEGMENT_CLUSTER / 2;
        let block = blocks[(cluster / per_block) as usize];
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
    for failing in 0..2 {
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
