//! Overlays written by QEMU, by us, and by both in turn.

use lifeboat_qcow2::{
    Backing, BackingFormat, Below, ExtentState, Overlay, OverlayExtent, create_overlay,
};
use lifeboat_sys::disk::Access;

use super::tools::{Folder, Oracle, Random};

const SIZE: u64 = 11 * (128 << 10) + 5 * 512;

/// An empty overlay over a raw image with data everywhere.
fn make_overlay(folder: &Folder, size: u64) -> Oracle {
    let base = Oracle::create(folder, "base.raw", size);
    base.write(&Random(77).bytes(size as usize), 0);
    let below = Below::Named(Backing {
        name: "base.raw",
        format: BackingFormat::Raw,
    });
    create_overlay(&*folder.create("overlay.qcow2"), size, below).expect("create");
    let expected = Oracle::create(folder, "expected.raw", size);
    let mut bytes = vec![0; size as usize];
    base.read(0, &mut bytes);
    expected.write(&bytes, 0);
    expected
}

pub fn read_all(overlay: &Overlay, base: &Oracle) -> Vec<u8> {
    let mut bytes = vec![0xEE; overlay.virtual_size() as usize];
    overlay
        .read(0, &mut bytes, &|offset, buffer| {
            base.read(offset, buffer);
            Ok(())
        })
        .expect("read the overlay");
    bytes
}

/// Asserts that we read an image as QEMU does.
pub fn assert_read_alike(folder: &Folder, image: &str, base: &str) {
    let overlay =
        Overlay::open(folder.open(image, Access::ReadOnly), Access::ReadOnly).expect("open");
    folder.run(
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", image, "theirs.raw"],
    );
    let theirs = Oracle::open(&folder.path("theirs.raw"));
    let mut expected = vec![0; overlay.virtual_size() as usize];
    theirs.read(0, &mut expected);
    let ours = read_all(&overlay, &Oracle::open(&folder.path(base)));
    let first = ours.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(first, None, "the first byte of {image} that differs");
}

/// Writes of all kinds, as commands of qemu-io.
pub fn qemu_commands(random: &mut Random, size: u64, count: u64) -> Vec<String> {
    let mut commands = Vec::new();
    for _ in 0..count {
        let offset = random.below(size / 512) * 512;
        let len = (1 + random.below(300)) * 512;
        let len = len.min(size - offset);
        let aligned = offset / 4096 * 4096;
        commands.push(match random.below(5) {
            0 => format!("write -P {} {offset} {len}", 1 + random.below(255)),
            1 => format!("write -P {} {aligned} 4096", 1 + random.below(255))
                .replace("4096", &4096.min(size - aligned).to_string()),
            2 => format!("write -z {offset} {len}"),
            3 => format!("write -z -u {offset} {len}"),
            _ => format!("discard {offset} {len}"),
        });
    }
    commands
}

/// Writes of all kinds through our own writer, and into the oracle.
fn write_randomly(overlay: &Overlay, base: &Oracle, expected: &Oracle, random: &mut Random) {
    let size = overlay.virtual_size();
    let below = |offset: u64, buffer: &mut [u8]| {
        base.read(offset, buffer);
        Ok(())
    };
    for _ in 0..60 {
        // Bytes, not sectors: nothing depends on a sector.
        let offset = random.below(size);
        let len = match random.below(3) {
            0 => 1 + random.below(5000),
            1 => 4096,
            _ => 1 + random.below(300 << 10),
        };
        let offset = if random.below(2) == 0 {
            offset / 4096 * 4096
        } else {
            offset
        };
        let len = len.min(size - offset);
        if random.below(3) == 0 {
            overlay.write_zeroes(offset, len, &below).expect("zero");
            expected.write(&vec![0; len as usize], offset);
        } else {
            let bytes = random.bytes(len as usize);
            overlay.write(offset, &bytes, &below).expect("write");
            expected.write(&bytes, offset);
        }
        if random.below(10) == 0 {
            overlay.flush().expect("flush");
        }
    }
}

fn assert_matches(overlay: &Overlay, base: &Oracle, expected: &Oracle) {
    let mut bytes = vec![0; expected.size as usize];
    expected.read(0, &mut bytes);
    let ours = read_all(overlay, base);
    let first = ours.iter().zip(&bytes).position(|(a, b)| a != b);
    assert_eq!(first, None, "the first byte that differs");
}

#[test]
fn an_empty_overlay_is_clean_and_shows_what_is_below() {
    for size in [512, 4096, SIZE, 64 << 20] {
        let folder = Folder::new();
        make_overlay(&folder, size);
        folder.assert_clean("overlay.qcow2");
        folder.assert_reads_as("overlay.qcow2", "base.raw");
        assert_read_alike(&folder, "overlay.qcow2", "base.raw");
    }
}

#[test]
fn an_overlay_of_the_largest_disk_opens_and_has_nothing() {
    let folder = Folder::new();
    let size = 64 << 40;
    create_overlay(&*folder.create("overlay.qcow2"), size, Below::GivenOnOpen).expect("create");
    folder.assert_clean("overlay.qcow2");
    let file = folder.open("overlay.qcow2", Access::ReadWrite);
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    let extents: Vec<_> = overlay.extents(0..u64::MAX).map(Result::unwrap).collect();
    let whole = OverlayExtent {
        offset: 0,
        len: size,
        state: ExtentState::Absent,
    };
    assert_eq!(extents, [whole]);
    let untouched = |_: u64, _: &mut [u8]| panic!("nothing has to be read from below");
    overlay
        .write(size - 4096, &[7; 4096], &untouched)
        .expect("write");
    overlay.flush().expect("flush");
    let found: Vec<_> = overlay.allocated(0..size).map(Result::unwrap).collect();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].offset, found[0].len), (size - 4096, 4096));
    folder.assert_clean("overlay.qcow2");
}

#[test]
fn what_qemu_wrote_reads_the_same_here() {
    for seed in 0..6 {
        let folder = Folder::new();
        make_overlay(&folder, SIZE);
        let commands = qemu_commands(&mut Random(seed), SIZE, 40);
        folder.qemu_io("overlay.qcow2", &commands);
        assert_read_alike(&folder, "overlay.qcow2", "base.raw");
    }
}

#[test]
fn what_we_wrote_reads_the_same_in_qemu() {
    for seed in 0..6 {
        let folder = Folder::new();
        let expected = make_overlay(&folder, SIZE);
        let base = Oracle::open(&folder.path("base.raw"));
        let file = folder.open("overlay.qcow2", Access::ReadWrite);
        let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
        write_randomly(&overlay, &base, &expected, &mut Random(seed));
        assert_matches(&overlay, &base, &expected);
        overlay.flush().expect("flush");
        assert_matches(&overlay, &base, &expected);
        drop(overlay);
        folder.assert_clean("overlay.qcow2");
        folder.assert_reads_as("overlay.qcow2", "expected.raw");
        assert_read_alike(&folder, "overlay.qcow2", "base.raw");
    }
}

#[test]
fn qemu_and_we_take_turns_on_one_overlay() {
    let folder = Folder::new();
    make_overlay(&folder, SIZE);
    let base = Oracle::open(&folder.path("base.raw"));
    let mut random = Random(99);
    for _ in 0..5 {
        let commands = qemu_commands(&mut random, SIZE, 20);
        folder.qemu_io("overlay.qcow2", &commands);
        let raw = [
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            "overlay.qcow2",
            "expected.raw",
        ];
        folder.run("qemu-img", &raw);
        let file = folder.open("overlay.qcow2", Access::ReadWrite);
        let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
        let expected = Oracle::create(&folder, "ours.raw", SIZE);
        expected.write(&read_all(&overlay, &base), 0);
        write_randomly(&overlay, &base, &expected, &mut random);
        overlay.flush().expect("flush");
        drop(overlay);
        folder.assert_clean("overlay.qcow2");
        folder.assert_reads_as("overlay.qcow2", "ours.raw");
    }
}

#[test]
fn scattered_writes_over_a_large_disk_stay_clean() {
    let folder = Folder::new();
    let size = (40_u64 << 30) + 512;
    let below = Below::GivenOnOpen;
    create_overlay(&*folder.create("overlay.qcow2"), size, below).expect("create");
    let file = folder.open("overlay.qcow2", Access::ReadWrite);
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    let zeroes = |_: u64, buffer: &mut [u8]| {
        buffer.fill(0);
        Ok(())
    };
    let expected = Oracle::create(&folder, "expected.raw", size);
    let mut random = Random(5);
    // More slices than may wait for a flush.
    for _ in 0..3000 {
        let offset = random.below(size / 512) * 512;
        let bytes = random.bytes(512);
        overlay.write(offset, &bytes, &zeroes).expect("write");
        expected.write(&bytes, offset);
    }
    overlay.flush().expect("flush");
    folder.assert_clean("overlay.qcow2");
    let mut covered = 0;
    for extent in overlay.allocated(0..size) {
        let extent = extent.expect("extent");
        let mut ours = vec![0; extent.len as usize];
        let mut theirs = ours.clone();
        overlay
            .read(extent.offset, &mut ours, &zeroes)
            .expect("read");
        expected.read(extent.offset, &mut theirs);
        assert!(ours == theirs, "at {}", extent.offset);
        covered += extent.len;
    }
    assert!(covered >= 2900 * 4096, "{covered}");
    // A map of what both hold, by QEMU.
    folder.run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "overlay.qcow2",
            "expected.raw",
        ],
    );
}

#[test]
fn writes_from_many_threads_into_the_same_blocks_are_all_kept() {
    let folder = Folder::new();
    let expected = make_overlay(&folder, SIZE);
    let base = Oracle::open(&folder.path("base.raw"));
    let file = folder.open("overlay.qcow2", Access::ReadWrite);
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    const THREADS: u64 = 4;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (overlay, base) = (&overlay, &base);
            scope.spawn(move || {
                let below = |offset: u64, buffer: &mut [u8]| {
                    base.read(offset, buffer);
                    Ok(())
                };
                // Each thread has sectors of its own in every block of 4 KiB.
                for sector in (0..SIZE / 512).filter(|sector| sector % THREADS == thread) {
                    let bytes = [thread as u8 + 1; 512];
                    overlay.write(sector * 512, &bytes, &below).expect("write");
                    if sector % 511 == 0 {
                        overlay.flush().expect("flush");
                    }
                }
            });
        }
    });
    for sector in 0..SIZE / 512 {
        expected.write(&[(sector % THREADS) as u8 + 1; 512], sector * 512);
    }
    assert_matches(&overlay, &base, &expected);
    overlay.flush().expect("flush");
    folder.assert_clean("overlay.qcow2");
    folder.assert_reads_as("overlay.qcow2", "expected.raw");
}

#[test]
fn zeroing_gives_space_back() {
    let folder = Folder::new();
    let size = 16 << 20;
    make_overlay(&folder, size);
    let file = folder.open("overlay.qcow2", Access::ReadWrite);
    let overlay = Overlay::open(file.clone(), Access::ReadWrite).expect("open");
    let untouched = |_: u64, _: &mut [u8]| panic!("nothing has to be read from below");
    let bytes = Random(3).bytes(size as usize);
    overlay.write(0, &bytes, &untouched).expect("write");
    overlay.flush().expect("flush");
    let full = file.occupied().expect("occupied");
    overlay.write_zeroes(0, size, &untouched).expect("zero");
    overlay.flush().expect("flush");
    let empty = file.occupied().expect("occupied");
    assert!(
        full >= size && empty < 2 << 20,
        "{full} bytes, then {empty}"
    );
    folder.assert_clean("overlay.qcow2");
}
