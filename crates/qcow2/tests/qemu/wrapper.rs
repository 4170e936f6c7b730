//! Wrappers of heads of all sizes.

use std::fs;

use lifeboat_qcow2::{WrapperError, verify_wrapper, write_wrapper};
use lifeboat_sys::disk::Access;

use super::tools::{Folder, Oracle, Random};

const MIB: u64 = 1 << 20;

/// A head with some data at its beginning, middle and end.
fn make_head(folder: &Folder, size: u64) -> String {
    let head = Oracle::create(folder, "head.raw", size);
    let mut random = Random(size);
    for offset in [0, size / 1024 * 512, size - 512] {
        head.write(&random.bytes(64 << 10), offset);
    }
    let path = folder.path("head.raw");
    path.to_str().expect("UTF-8").to_owned()
}

fn start_of(folder: &Folder) -> Vec<u8> {
    let head = Oracle::open(&folder.path("head.raw"));
    let mut bytes = vec![0; head.size.min(64 << 10) as usize];
    head.read(0, &mut bytes);
    bytes
}

#[test]
fn a_wrapper_of_any_size_reads_as_its_head() {
    for size in [
        512,
        MIB,
        2 * MIB,
        2 * MIB + 512,
        1 << 30,
        (513 << 30) + 512,
        1 << 40,
    ] {
        let folder = Folder::new();
        let head = make_head(&folder, size);
        let before = (start_of(&folder), fs::metadata(&head).expect("head").len());
        let file = folder.create("disk.qcow2");
        write_wrapper(&*file, size, &head).expect("write");
        verify_wrapper(&*file, size, &head).expect("verify");
        drop(file);
        folder.assert_clean("disk.qcow2");
        // Comparing a TiB of holes takes too long: its ends must do.
        if size <= 1 << 30 {
            folder.assert_reads_as("disk.qcow2", "head.raw");
        } else {
            let mut last = vec![0; 512];
            Oracle::open(&folder.path("head.raw")).read(size - 512, &mut last);
            let text = folder.run(
                "qemu-io",
                &[
                    "-r",
                    "-f",
                    "qcow2",
                    "-c",
                    &format!("read -v {} 512", size - 512),
                    "disk.qcow2",
                ],
            );
            let first = format!(
                "{:02x} {:02x} {:02x} {:02x}",
                last[0], last[1], last[2], last[3]
            );
            assert!(text.contains(&first), "{first} is not in {text}");
        }
        let after = (start_of(&folder), fs::metadata(&head).expect("head").len());
        assert_eq!(before, after, "the head of {size} bytes was touched");
    }
}

#[test]
fn what_a_guest_writes_through_the_wrapper_lies_at_its_own_place_in_the_head() {
    let folder = Folder::new();
    let size = 9 * MIB + 512;
    let head = make_head(&folder, size);
    write_wrapper(&*folder.create("disk.qcow2"), size, &head).expect("write");
    folder.qemu_io(
        "disk.qcow2",
        &[
            "write -P 0x5a 3145728 8192".into(),
            format!("write -P 0x6b {} 512", size - 512),
        ],
    );
    folder.assert_clean("disk.qcow2");
    let oracle = Oracle::open(&folder.path("head.raw"));
    assert_eq!(oracle.size, size);
    let mut bytes = vec![0; 8192];
    oracle.read(3 * MIB, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == 0x5a));
    oracle.read(size - 512, &mut bytes[..512]);
    assert!(bytes[..512].iter().all(|&byte| byte == 0x6b));
    // Plain writes leave the mapping as it was.
    let file = folder.open("disk.qcow2", Access::ReadOnly);
    verify_wrapper(&*file, size, &head).expect("verify");
}

#[test]
fn a_wrapper_with_a_mapping_of_its_own_is_refused() {
    let folder = Folder::new();
    let size = 9 * MIB;
    let head = make_head(&folder, size);
    write_wrapper(&*folder.create("disk.qcow2"), size, &head).expect("write");
    folder.qemu_io("disk.qcow2", &["discard 4M 2M".into()]);
    let file = folder.open("disk.qcow2", Access::ReadOnly);
    let error = verify_wrapper(&*file, size, &head).expect_err("a discarded cluster");
    assert!(
        matches!(error, WrapperError::Mapping { offset } if offset == 4 * MIB),
        "{error:?}"
    );
}

#[test]
fn a_wrapper_of_something_else_is_refused() {
    let folder = Folder::new();
    let size = 9 * MIB;
    let head = make_head(&folder, size);
    let file = folder.create("disk.qcow2");
    write_wrapper(&*file, size, &head).expect("write");
    let other = verify_wrapper(&*file, size + 512, &head);
    assert!(
        matches!(other, Err(WrapperError::OtherSize { .. })),
        "{other:?}"
    );
    let other = verify_wrapper(&*file, size, "/other/head.raw");
    assert!(
        matches!(other, Err(WrapperError::OtherDataFile { .. })),
        "{other:?}"
    );
    folder.run(
        "qemu-img",
        &["bitmap", "--add", "-f", "qcow2", "disk.qcow2", "b0"],
    );
    let file = folder.open("disk.qcow2", Access::ReadOnly);
    let bitmap = verify_wrapper(&*file, size, &head);
    assert!(matches!(bitmap, Err(WrapperError::Bitmaps)), "{bitmap:?}");
}

#[test]
fn a_relative_data_file_is_refused() {
    let folder = Folder::new();
    let outcome = write_wrapper(&*folder.create("disk.qcow2"), MIB, "head.raw");
    assert!(
        matches!(outcome, Err(WrapperError::DataFile { .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_wrapper_replaces_whatever_the_file_held() {
    let folder = Folder::new();
    let large = make_head(&folder, 1 << 40);
    let file = folder.create("disk.qcow2");
    write_wrapper(&*file, 1 << 40, &large).expect("write the large one");
    let small = make_head(&folder, MIB);
    write_wrapper(&*file, MIB, &small).expect("write the small one");
    verify_wrapper(&*file, MIB, &small).expect("verify");
    folder.assert_clean("disk.qcow2");
    folder.assert_reads_as("disk.qcow2", "head.raw");
}
