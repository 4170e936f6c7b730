//! Images that others made.

use lifeboat_qcow2::{ExtentState, HeaderError, MapError, OpenError, Overlay, Unwritable};
use lifeboat_sys::disk::Access;

use super::overlay::{assert_read_alike, qemu_commands, read_all};
use super::tools::{Folder, Oracle, Random};

const SIZE: u64 = 9 * (128 << 10) + 3 * 512;

fn make_base(folder: &Folder) {
    let base = Oracle::create(folder, "base.raw", SIZE);
    base.write(&Random(78).bytes(SIZE as usize), 0);
}

/// Makes an image over `base.raw` with these options of `qemu-img create`.
fn make_image(folder: &Folder, options: &str) {
    make_base(folder);
    let create = [
        "create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", options, "x.qcow2",
    ];
    folder.run("qemu-img", &create);
}

fn open(folder: &Folder, access: Access) -> Result<Overlay, OpenError> {
    Overlay::open(folder.open("x.qcow2", access), access)
}

#[test]
fn images_of_all_cluster_sizes_are_read_right() {
    for (seed, options) in [
        "cluster_size=512",
        "cluster_size=1024",
        "cluster_size=4096",
        "cluster_size=65536",
        "cluster_size=131072",
        "cluster_size=2097152",
        "cluster_size=16384,extended_l2=on",
        "cluster_size=65536,extended_l2=on",
        "cluster_size=131072,extended_l2=on",
        "cluster_size=2097152,extended_l2=on",
        "cluster_size=65536,refcount_bits=1",
        "cluster_size=65536,lazy_refcounts=on",
        "cluster_size=65536,compression_type=zstd",
    ]
    .into_iter()
    .enumerate()
    {
        let folder = Folder::new();
        make_image(&folder, options);
        assert_read_alike(&folder, "x.qcow2", "base.raw");
        let commands = qemu_commands(&mut Random(seed as u64), SIZE, 40);
        folder.qemu_io("x.qcow2", &commands);
        assert_read_alike(&folder, "x.qcow2", "base.raw");
    }
}

#[test]
fn a_preallocated_image_is_read_right() {
    for preallocation in ["metadata", "falloc", "full"] {
        let folder = Folder::new();
        Oracle::create(&folder, "base.raw", SIZE);
        let options = format!("preallocation={preallocation}");
        let create = [
            "create",
            "-f",
            "qcow2",
            "-o",
            &options,
            "x.qcow2",
            &SIZE.to_string(),
        ];
        folder.run("qemu-img", &create);
        assert_read_alike(&folder, "x.qcow2", "base.raw");
        folder.qemu_io("x.qcow2", &["write -P 9 70000 9000".to_owned()]);
        assert_read_alike(&folder, "x.qcow2", "base.raw");
    }
}

#[test]
fn an_image_whose_file_was_cut_within_its_data_reads_zeroes_there() {
    for options in ["cluster_size=65536", "cluster_size=65536,extended_l2=on"] {
        let folder = Folder::new();
        make_image(&folder, options);
        // The first write makes the L2 table, so that the last cluster is data.
        for command in ["write -P 8 0 512", "write -P 9 200000 30000"] {
            folder.qemu_io("x.qcow2", &[command.to_owned()]);
        }
        let file = folder.open("x.qcow2", Access::ReadWrite);
        let len = file.len().expect("measure");
        for cut in [512, 4096 + 512, 5 * 4096] {
            file.set_len(len - cut).expect("cut");
            assert_read_alike(&folder, "x.qcow2", "base.raw");
            let overlay = open(&folder, Access::ReadOnly).expect("open");
            for extent in overlay.extents(0..SIZE) {
                let extent = extent.expect("extent");
                if let ExtentState::Data { host } = extent.state {
                    assert!(host + extent.len <= len - cut, "{extent:?}");
                }
            }
        }
    }
}

#[test]
fn extended_images_of_other_cluster_sizes_are_written_right() {
    for size in ["16384", "65536", "2097152"] {
        let folder = Folder::new();
        make_image(&folder, &format!("cluster_size={size},extended_l2=on"));
        let base = Oracle::open(&folder.path("base.raw"));
        let overlay = open(&folder, Access::ReadWrite).expect("open");
        let below = |offset: u64, buffer: &mut [u8]| {
            base.read(offset, buffer);
            Ok(())
        };
        let mut random = Random(4);
        for _ in 0..50 {
            let offset = random.below(SIZE);
            let len = (1 + random.below(90_000)).min(SIZE - offset);
            let bytes = random.bytes(len as usize);
            overlay.write(offset, &bytes, &below).expect("write");
            let offset = random.below(SIZE);
            let len = (1 + random.below(90_000)).min(SIZE - offset);
            overlay.write_zeroes(offset, len, &below).expect("zero");
        }
        overlay.flush().expect("flush");
        let expected = Oracle::create(&folder, "expected.raw", SIZE);
        expected.write(&read_all(&overlay, &base), 0);
        folder.assert_clean("x.qcow2");
        folder.assert_reads_as("x.qcow2", "expected.raw");
    }
}

#[test]
fn an_image_with_a_bitmap_is_read_but_not_written() {
    let folder = Folder::new();
    make_image(&folder, "cluster_size=131072,extended_l2=on");
    folder.run(
        "qemu-img",
        &["bitmap", "--add", "-f", "qcow2", "x.qcow2", "b0"],
    );
    folder.qemu_io("x.qcow2", &["write -P 9 70000 9000".to_owned()]);
    assert_read_alike(&folder, "x.qcow2", "base.raw");
    let error = open(&folder, Access::ReadWrite).expect_err("a bitmap would become stale");
    let reason = Unwritable::Bitmaps;
    assert!(
        matches!(error, OpenError::Unwritable { reason: found } if found == reason),
        "{error:?}"
    );
}

#[test]
fn an_image_without_extended_entries_is_not_written() {
    let folder = Folder::new();
    make_image(&folder, "cluster_size=65536");
    let error = open(&folder, Access::ReadWrite).expect_err("plain entries");
    let reason = Unwritable::PlainL2;
    assert!(
        matches!(error, OpenError::Unwritable { reason: found } if found == reason),
        "{error:?}"
    );
}

#[test]
fn a_compressed_cluster_is_refused_where_it_is_read() {
    let folder = Folder::new();
    make_image(&folder, "cluster_size=65536");
    folder.qemu_io("x.qcow2", &["write -c -P 9 65536 65536".to_owned()]);
    let overlay = open(&folder, Access::ReadOnly).expect("open");
    let extents: Vec<_> = overlay.extents(0..SIZE).collect();
    assert_eq!(extents.len(), 2, "{extents:?}");
    assert!(extents[0].is_ok());
    let Err(MapError::Compressed { offset }) = &extents[1] else {
        panic!("{extents:?}");
    };
    assert_eq!(*offset, 65536);
}

#[test]
fn what_cannot_be_read_right_is_refused_with_its_reason() {
    let folder = Folder::new();
    make_image(&folder, "compat=0.10");
    let version = open(&folder, Access::ReadOnly).expect_err("version 2");
    assert!(
        matches!(
            version,
            OpenError::Header {
                source: HeaderError::Version { version: 2 }
            }
        ),
        "{version:?}"
    );

    let folder = Folder::new();
    make_image(&folder, "cluster_size=65536");
    folder.run("qemu-img", &["snapshot", "-c", "s0", "x.qcow2"]);
    let snapshots = open(&folder, Access::ReadOnly).expect_err("a snapshot");
    assert!(
        matches!(
            snapshots,
            OpenError::Header {
                source: HeaderError::Snapshots { count: 1 }
            }
        ),
        "{snapshots:?}"
    );

    let folder = Folder::new();
    let size = SIZE.to_string();
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let secret = "secret,id=s,data=secret";
    folder.run(
        "qemu-img",
        &[
            "create", "--object", secret, "-f", "qcow2", "-o", options, "x.qcow2", &size,
        ],
    );
    let encrypted = open(&folder, Access::ReadOnly).expect_err("encryption");
    assert!(
        matches!(
            encrypted,
            OpenError::Header {
                source: HeaderError::Encrypted
            }
        ),
        "{encrypted:?}"
    );

    let folder = Folder::new();
    let options = "data_file=data.raw,data_file_raw=on";
    folder.run(
        "qemu-img",
        &["create", "-f", "qcow2", "-o", options, "x.qcow2", &size],
    );
    let external = open(&folder, Access::ReadOnly).expect_err("external data");
    assert!(matches!(external, OpenError::ExternalData), "{external:?}");

    let folder = Folder::new();
    Oracle::create(&folder, "x.qcow2", SIZE);
    let raw = open(&folder, Access::ReadOnly).expect_err("raw");
    assert!(
        matches!(
            raw,
            OpenError::Header {
                source: HeaderError::NotQcow2
            }
        ),
        "{raw:?}"
    );
}

#[test]
fn a_dirty_or_corrupt_image_is_refused() {
    for (bit, expected) in [(1_u8, "check -r"), (2, "check -r"), (32, "not known")] {
        let folder = Folder::new();
        make_image(&folder, "cluster_size=65536");
        let file = folder.open("x.qcow2", Access::ReadWrite);
        // The last byte of the incompatible features.
        file.write_at(&[bit], 79).expect("mark");
        let error = open(&folder, Access::ReadOnly).expect_err("a marked image");
        let OpenError::Header { source } = error else {
            panic!("{error:?}");
        };
        assert!(source.to_string().contains(expected), "{source}");
    }
}
