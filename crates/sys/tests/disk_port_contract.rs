//! What both implementations of the disk port promise alike.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_sys::disk::{
    Access, Cloned, DIRECT_ALIGNMENT, DiskPort, EntryKind, FaultDisk, ImageGuard, RealDisk,
    Recorder,
};

/// Runs a rule on the kernel's file system, in memory, and behind the fault wrapper.
fn on_every_disk(rule: impl Fn(&dyn DiskPort, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    rule(&RealDisk, folder.path());
    rule(&Recorder::new(), Path::new("/"));
    let folder = tempfile::tempdir().unwrap();
    rule(&FaultDisk::counting(Arc::new(RealDisk)), folder.path());
}

fn names(disk: &dyn DiskPort, folder: &Path) -> Vec<(String, EntryKind)> {
    disk.list(folder)
        .unwrap()
        .into_iter()
        .map(|entry| (entry.name, entry.kind))
        .collect()
}

#[test]
fn what_is_written_is_read_back_and_holes_are_zero() {
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        file.write_at(b"hello", 10_000).unwrap();
        assert_eq!(file.len().unwrap(), 10_005);
        let mut buffer = [9; 7];
        file.read_at(&mut buffer, 9_998).unwrap();
        assert_eq!(&buffer, b"\0\0hello");
        assert_eq!(
            file.read_at(&mut buffer, 9_999).unwrap_err().kind(),
            ErrorKind::UnexpectedEof
        );
    });
}

#[test]
fn what_is_written_past_the_cache_is_read_back_whatever_its_alignment() {
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        file.write_at(&[1; 40_000], 0).unwrap();
        let mut expected = vec![1; 40_000];
        let memory: Vec<u8> = (0..60_000_u32).map(|at| (at / 7) as u8).collect();
        let aligned = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
        // In memory that is aligned and is not, whole blocks, a tail, less than a block, nothing.
        for (from, len, at) in [
            (aligned, 8192, 4096),
            (aligned, 9000, 28_672),
            (aligned + 512, 8192, 16_384),
            (aligned, 4096, 100),
            (aligned, 512, 0),
            (aligned, 0, 4096),
            (aligned, 8192, 36_864),
        ] {
            let bytes = &memory[from..from + len];
            file.write_past_cache_at(bytes, at as u64).unwrap();
            expected.resize(expected.len().max(at + len), 0);
            expected[at..at + len].copy_from_slice(bytes);
            let mut found = vec![0; expected.len()];
            file.read_at(&mut found, 0).unwrap();
            assert!(found == expected, "{len} bytes from {from} at {at}");
        }
        assert_eq!(file.len().unwrap(), expected.len() as u64);
        file.sync().unwrap();
    });
}

#[test]
fn a_punched_range_reads_as_zeroes_and_keeps_the_length() {
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        file.write_at(&[7; 20_000], 0).unwrap();
        file.punch(5_000, 100_000).unwrap();
        assert_eq!(file.len().unwrap(), 20_000);
        let mut buffer = [1; 20_000];
        file.read_at(&mut buffer, 0).unwrap();
        assert!(buffer[..5_000].iter().all(|&byte| byte == 7));
        assert!(buffer[5_000..].iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_cut_tail_does_not_come_back_when_the_file_grows_again() {
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        file.write_at(&[7; 9_000], 0).unwrap();
        file.set_len(5_000).unwrap();
        file.set_len(9_000).unwrap();
        let mut buffer = [1; 4_000];
        file.read_at(&mut buffer, 5_000).unwrap();
        assert_eq!(buffer, [0; 4_000]);
    });
}

#[test]
fn reserved_space_changes_neither_length_nor_content() {
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        file.write_at(&[7; 100], 0).unwrap();
        let before = file.occupied().unwrap();
        file.allocate(0, 1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 100);
        assert!(file.occupied().unwrap() >= before + (1 << 20) - 4096);
        file.write_at(&[8; 10], 500_000).unwrap();
        let mut buffer = [1; 10];
        file.read_at(&mut buffer, 400_000).unwrap();
        assert_eq!(buffer, [0; 10]);
    });
}

#[test]
fn data_is_found_and_holes_are_skipped() {
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        file.set_len(1 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_at(&[7; 4096], 1 << 19).unwrap();
        file.sync().unwrap();
        assert_eq!(
            file.next_data(0).unwrap(),
            Some((1 << 19)..(1 << 19) + 4096)
        );
        assert_eq!(
            file.next_data((1 << 19) + 100).unwrap(),
            Some((1 << 19) + 100..(1 << 19) + 4096)
        );
        assert_eq!(file.next_data((1 << 19) + 4096).unwrap(), None);
    });
}

#[test]
fn data_is_looked_for_in_a_file_that_becomes_shorter_meanwhile() {
    const AT: u64 = 1 << 20;
    on_every_disk(|disk, root| {
        let file = disk.create(&root.join("a")).unwrap();
        let stop = AtomicBool::new(false);
        let failed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    file.set_len(0).unwrap();
                    file.write_at(&[7; 4096], AT).unwrap();
                }
            });
            let is_right = |found: &std::io::Result<Option<std::ops::Range<u64>>>| match found {
                Ok(found) => found.as_ref().is_none_or(|data| data.contains(&AT)),
                Err(_) => false,
            };
            let mut looks = (0..50_000).map(|_| file.next_data(0));
            let failed = looks.find(|found| !is_right(found));
            stop.store(true, Ordering::Release);
            failed
        });
        assert!(failed.is_none(), "{failed:?}");
    });
}

#[test]
fn an_existing_name_is_not_created_again() {
    on_every_disk(|disk, root| {
        disk.create(&root.join("a")).unwrap();
        assert_eq!(
            disk.create(&root.join("a")).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            disk.symlink("x", &root.join("a")).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(
            disk.create_dir(&root.join("a")).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
    });
}

#[test]
fn a_rename_replaces_a_file_and_an_open_file_survives_its_name() {
    on_every_disk(|disk, root| {
        let old = disk.create(&root.join("a")).unwrap();
        old.write_at(b"old", 0).unwrap();
        disk.create(&root.join("b"))
            .unwrap()
            .write_at(b"new", 0)
            .unwrap();
        disk.rename(&root.join("b"), &root.join("a")).unwrap();
        let mut buffer = [0; 3];
        disk.open(&root.join("a"), Access::ReadOnly)
            .unwrap()
            .read_at(&mut buffer, 0)
            .unwrap();
        assert_eq!(&buffer, b"new");
        disk.unlink(&root.join("a")).unwrap();
        old.read_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"old");
        assert_eq!(
            disk.open(&root.join("a"), Access::ReadOnly)
                .unwrap_err()
                .kind(),
            ErrorKind::NotFound
        );
    });
}

#[test]
fn a_symlink_is_replaced_by_rename_and_never_followed() {
    on_every_disk(|disk, root| {
        disk.create(&root.join("file")).unwrap();
        disk.symlink("file", &root.join("link")).unwrap();
        disk.symlink("other", &root.join("link.new")).unwrap();
        disk.rename(&root.join("link.new"), &root.join("link"))
            .unwrap();
        assert_eq!(
            disk.read_link(&root.join("link")).unwrap(),
            PathBuf::from("other")
        );
        assert!(disk.open(&root.join("link"), Access::ReadOnly).is_err());
        assert_eq!(
            names(disk, root),
            [
                ("file".to_owned(), EntryKind::File),
                ("link".to_owned(), EntryKind::Symlink)
            ]
        );
    });
}

#[test]
fn a_folder_moves_with_what_is_in_it_and_goes_only_when_empty() {
    on_every_disk(|disk, root| {
        disk.create_dir(&root.join("d")).unwrap();
        disk.create(&root.join("d/f")).unwrap();
        assert!(disk.remove_dir(&root.join("d")).is_err());
        disk.rename(&root.join("d"), &root.join("e")).unwrap();
        assert_eq!(disk.kind(&root.join("d/f")).unwrap(), None);
        assert_eq!(disk.kind(&root.join("e/f")).unwrap(), Some(EntryKind::File));
        disk.unlink(&root.join("e/f")).unwrap();
        disk.remove_dir(&root.join("e")).unwrap();
        assert_eq!(names(disk, root), []);
    });
}

#[test]
fn a_read_only_file_cannot_be_written() {
    on_every_disk(|disk, root| {
        disk.create(&root.join("a")).unwrap();
        let file = disk.open(&root.join("a"), Access::ReadOnly).unwrap();
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(3).is_err());
    });
}

#[test]
fn a_locked_file_is_not_locked_twice_until_the_handle_is_gone() {
    on_every_disk(|disk, root| {
        let first = disk.create(&root.join("a")).unwrap();
        let second = disk.open(&root.join("a"), Access::ReadWrite).unwrap();
        assert!(first.try_lock().unwrap());
        assert!(!second.try_lock().unwrap());
        drop(first);
        assert!(second.try_lock().unwrap());
    });
}

#[test]
fn an_image_has_one_guard_at_a_time() {
    on_every_disk(|disk, root| {
        let first = disk.create(&root.join("a")).unwrap();
        let second = disk.open(&root.join("a"), Access::ReadWrite).unwrap();
        let guard = ImageGuard::acquire(&first).unwrap();
        assert!(guard.is_some());
        assert!(ImageGuard::acquire(&second).unwrap().is_none());
        drop(guard);
        assert!(ImageGuard::acquire(&second).unwrap().is_some());
    });
}

#[test]
fn sharing_is_refused_or_exact() {
    on_every_disk(|disk, root| {
        let source = disk.create(&root.join("a")).unwrap();
        source.write_at(&[7; 8192], 0).unwrap();
        source.sync().unwrap();
        let target = disk.create(&root.join("b")).unwrap();
        match target.clone_range(source.as_ref(), 0, 8192, 4096).unwrap() {
            Cloned::Unsupported => assert_eq!(target.len().unwrap(), 0),
            Cloned::Shared => {
                let mut buffer = [0; 8192];
                target.read_at(&mut buffer, 4096).unwrap();
                assert_eq!(buffer, [7; 8192]);
            }
        }
    });
}
