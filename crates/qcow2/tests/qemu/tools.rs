//! The stock tools, and files that hold what a disk should read.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lifeboat_sys::disk::{Access, DiskFile, DiskPort, RealDisk};
use tempfile::TempDir;

/// A folder for one test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("make a folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn create(&self, name: &str) -> Arc<dyn DiskFile> {
        RealDisk
            .create(&self.path(name))
            .unwrap_or_else(|error| panic!("create {name}: {error}"))
    }

    pub fn open(&self, name: &str, access: Access) -> Arc<dyn DiskFile> {
        RealDisk
            .open(&self.path(name), access)
            .unwrap_or_else(|error| panic!("open {name}: {error}"))
    }

    /// Runs a program in the folder; answers its output, panics unless it succeeds.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let (succeeded, text) = self.try_run(program, arguments);
        assert!(succeeded, "{program} {arguments:?} failed:\n{text}");
        text
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap_or_else(|error| match error.kind() {
                ErrorKind::NotFound => {
                    panic!("{program} is missing: install the package qemu-utils")
                }
                _ => panic!("start {program}: {error}"),
            });
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Asserts that `qemu-img check` finds neither errors nor leaks.
    pub fn assert_clean(&self, image: &str) {
        let text = self.run("qemu-img", &["check", "-f", "qcow2", image]);
        assert!(text.contains("No errors were found"), "{image}: {text}");
    }

    /// Asserts that QEMU reads the same from an image as from a raw file.
    pub fn assert_reads_as(&self, image: &str, raw: &str) {
        let arguments = ["compare", "-f", "qcow2", "-F", "raw", image, raw];
        let text = self.run("qemu-img", &arguments);
        assert!(
            text.contains("identical") && !text.contains("mismatch"),
            "{image} against {raw}: {text}"
        );
    }

    /// Runs commands of qemu-io on a qcow2 image, each of which must succeed.
    pub fn qemu_io(&self, image: &str, commands: &[String]) {
        let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(image);
        let text = self.run("qemu-io", &arguments);
        assert!(
            !text.to_lowercase().contains("failed") && !text.contains("error"),
            "qemu-io {commands:?}: {text}"
        );
    }
}

/// A raw file that holds what a disk should read.
pub struct Oracle {
    file: File,
    pub size: u64,
}

impl Oracle {
    pub fn create(folder: &Folder, name: &str, size: u64) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(folder.path(name))
            .expect("create an oracle");
        file.set_len(size).expect("size an oracle");
        Self { file, size }
    }

    pub fn open(path: &Path) -> Self {
        let file = File::open(path).expect("open an oracle");
        let size = file.metadata().expect("measure an oracle").len();
        Self { file, size }
    }

    /// Writes what of `bytes` lies on the disk.
    pub fn write(&self, bytes: &[u8], offset: u64) {
        let len = self.size.saturating_sub(offset).min(bytes.len() as u64) as usize;
        self.file
            .write_all_at(&bytes[..len], offset)
            .expect("write to an oracle");
    }

    /// Fills `buffer`; beyond the end are zeroes.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        let len = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (head, tail) = buffer.split_at_mut(len);
        self.file
            .read_exact_at(head, offset)
            .expect("read an oracle");
        tail.fill(0);
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Bytes that compress badly and are not zero.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() as u8) | 1).collect()
    }
}
