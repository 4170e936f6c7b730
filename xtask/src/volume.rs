//! The XFS file system that tests of block sharing use.
//!
//! It is a sparse image below `target/xtask`, mounted through a loop device
//! beside it. Sharing blocks between files is what the store does wherever it
//! can, so a machine on which this mount is impossible cannot run the tests:
//! that is an error, never a skipped test.
//!
//! Several runs may use the mount at once. Each holds a shared lock on
//! `xfs.users`, and the last one unmounts, so that what a killed run left is
//! gone after the next. What `cargo xtask setup` mounted is marked by
//! `xfs.kept` and stays until `cargo xtask unmount`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// The variable that tells tests where the file system is mounted.
pub const VARIABLE: &str = "LIFEBOAT_TEST_XFS";

/// What the file system may grow to; the image takes what is used of it.
const SIZE: u64 = 8 << 30;

/// The mounted file system, for as long as this value lives.
#[derive(Debug)]
pub struct TestVolume {
    place: Place,
    /// Locked shared; never read or written.
    users: File,
}

/// The files of the volume below `target/xtask`.
#[derive(Debug)]
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new(workspace: &Workspace) -> Result<Self> {
        let directory = workspace.target.join("xtask");
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let directory = directory
            .canonicalize()
            .with_context(|| format!("find {}", directory.display()))?;
        Ok(Self { directory })
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.join("xfs")
    }

    fn image(&self) -> PathBuf {
        self.directory.join("xfs.img")
    }

    fn mark_of_kept(&self) -> PathBuf {
        self.directory.join("xfs.kept")
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.directory.join(name);
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open the lock file {}", path.display()))
    }

    /// Waits for whoever is mounting or unmounting at this moment.
    fn lock_changes(&self) -> Result<File> {
        let file = self.lock_file("xfs.lock")?;
        file.lock()
            .context("wait for the lock of the test file system")?;
        Ok(file)
    }

    fn is_mounted(&self) -> Result<bool> {
        let mounts = fs::read("/proc/self/mountinfo").context("read the list of mounts")?;
        match type_mounted_at(&mounts, &self.mount_point()) {
            None => Ok(false),
            Some(kind) if kind == "xfs" => Ok(true),
            Some(kind) => bail!(
                "use {}: a file system of type {kind} is mounted there, not XFS; unmount it",
                self.mount_point().display()
            ),
        }
    }
}

impl TestVolume {
    /// Mounts the file system, or joins those who use it already.
    pub fn mount(workspace: &Workspace) -> Result<Self> {
        let place = Place::new(workspace)?;
        let _changing = place.lock_changes()?;
        if !place.is_mounted()? {
            make_image(&place.image())?;
            mount_image(&place)?;
        }
        let users = place.lock_file("xfs.users")?;
        users
            .lock_shared()
            .context("lock the test file system for use")?;
        Ok(Self { place, users })
    }

    /// Where it is mounted: an absolute path.
    pub fn path(&self) -> PathBuf {
        self.place.mount_point()
    }

    /// Leaves it mounted until it is unmounted by hand, and returns where.
    pub fn keep(self) -> Result<PathBuf> {
        let mark = self.place.mark_of_kept();
        File::create(&mark).with_context(|| format!("create {}", mark.display()))?;
        Ok(self.path())
    }

    /// Unmounts it, unless somebody else uses it or it is to be kept.
    pub fn release(self) -> Result<()> {
        let _changing = self.place.lock_changes()?;
        self.users.unlock().context("unlock the test file system")?;
        if self.place.mark_of_kept().exists() || self.users.try_lock().is_err() {
            return Ok(());
        }
        unmount_at(&self.place.mount_point())
    }

    /// Unmounts the file system of `workspace` if it is mounted.
    pub fn unmount(workspace: &Workspace) -> Result<()> {
        let place = Place::new(workspace)?;
        let _changing = place.lock_changes()?;
        let users = place.lock_file("xfs.users")?;
        if users.try_lock().is_err() {
            bail!("unmount the test file system: tests are running on it; stop them first");
        }
        if place.is_mounted()? {
            unmount_at(&place.mount_point())?;
        }
        let mark = place.mark_of_kept();
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", mark.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Makes the image, unless there is one. An image that bears the name is
/// complete: it gets the name only when the file system is in it.
fn make_image(image: &Path) -> Result<()> {
    if image.exists() {
        return Ok(());
    }
    let unfinished = image.with_extension("img.part");
    let file =
        File::create(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    file.set_len(SIZE).with_context(|| {
        format!(
            "make {} a sparse file of {SIZE} bytes",
            unfinished.display()
        )
    })?;
    let program = process::find("mkfs.xfs").unwrap_or_else(|| "mkfs.xfs".into());
    process::run(
        Command::new(program)
            .args(["-q", "-f", "-m", "reflink=1"])
            .arg(&unfinished),
    )?;
    fs::rename(&unfinished, image).with_context(|| format!("name {}", image.display()))
}

fn mount_image(place: &Place) -> Result<()> {
    let point = place.mount_point();
    fs::create_dir_all(&point).with_context(|| format!("create {}", point.display()))?;
    let mut mount = process::as_root("mount")?;
    mount
        .args(["-t", "xfs", "-o", "loop,nosuid,nodev,discard"])
        .arg(place.image())
        .arg(&point);
    process::run(&mut mount).with_context(|| {
        format!(
            "mount an XFS file system at {}: the tests need it; the kernel must have loop devices \
             and XFS, and a container must be allowed to mount; if the image {} is damaged, delete it",
            point.display(),
            place.image().display()
        )
    })?;
    // Tests run as whoever started them, not as the root that mounted it.
    let mut chmod = process::as_root("chmod")?;
    process::run(chmod.arg("1777").arg(&point))?;
    prove_sharing(&point)
}

/// Two files below `point` can share blocks, and `point` is not just a
/// directory of the file system around it.
fn prove_sharing(point: &Path) -> Result<()> {
    let device = |path: &Path| {
        fs::metadata(path)
            .map(|found| found.dev())
            .with_context(|| format!("look at {}", path.display()))
    };
    if device(point)? == device(point.parent().unwrap_or(point))? {
        bail!(
            "mount an XFS file system at {}: mount succeeded, but the directory is still on the file system around it",
            point.display()
        );
    }
    let (original, copy) = (point.join(".probe"), point.join(".probe.copy"));
    fs::write(&original, [b'p'; 4096]).with_context(|| format!("write {}", original.display()))?;
    let shared = process::run(
        Command::new("cp")
            .arg("--reflink=always")
            .args([&original, &copy]),
    );
    for probe in [&original, &copy] {
        if probe.exists() {
            fs::remove_file(probe).with_context(|| format!("remove {}", probe.display()))?;
        }
    }
    shared.with_context(|| {
        format!(
            "share blocks between files at {}: unmount it and delete its image, which is made anew then",
            point.display()
        )
    })
}

fn unmount_at(point: &Path) -> Result<()> {
    let mut umount = process::as_root("umount")?;
    process::run(umount.arg(point)).with_context(|| {
        format!(
            "unmount {}: a program may have a file open there",
            point.display()
        )
    })
}

/// The type of the file system mounted last at `point`, from the text of
/// `/proc/self/mountinfo`.
fn type_mounted_at(mountinfo: &[u8], point: &Path) -> Option<String> {
    let mut found = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(at) = fields.nth(4) else { continue };
        if unescape_octal(at) != point.as_os_str().as_bytes() {
            continue;
        }
        // Optional fields end with a lone hyphen; the type is next.
        if let Some(kind) = fields.skip_while(|field| *field != b"-").nth(1) {
            found = Some(String::from_utf8_lossy(kind).into_owned());
        }
    }
    found
}

/// Spaces, tabs, line ends and backslashes are `\ooo` in the list of mounts.
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(value.unwrap_or(byte));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        40 22 7:0 / /a/target/xtask/xfs rw,nosuid shared:3 master:1 - xfs /dev/loop0 rw\n\
        41 22 7:1 / /with\\040space/xfs rw - btrfs /dev/loop1 rw\n\
        42 22 0:9 / /stacked rw - tmpfs none rw\n\
        43 42 7:2 / /stacked rw - xfs /dev/loop2 rw\n\
        broken line\n";

    #[test]
    fn the_type_of_a_mount_stands_after_the_optional_fields() {
        let kind = |point: &str| type_mounted_at(MOUNTS, Path::new(point));
        assert_eq!(kind("/a/target/xtask/xfs").as_deref(), Some("xfs"));
        assert_eq!(kind("/with space/xfs").as_deref(), Some("btrfs"));
        assert_eq!(kind("/a/target/xtask"), None);
    }

    #[test]
    fn the_mount_on_top_counts() {
        assert_eq!(
            type_mounted_at(MOUNTS, Path::new("/stacked")).as_deref(),
            Some("xfs")
        );
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape_octal(b"a\\134b\\9\\"), b"a\\b\\9\\");
        assert_eq!(unescape_octal(b"\\777"), b"\\777");
    }

    /// A workspace of which only the target directory exists; it goes with
    /// the value.
    struct Scratch(Workspace);

    impl Scratch {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
            let target = root.join("target");
            fs::create_dir_all(&target).unwrap();
            Self(Workspace {
                root,
                target,
                crates: Vec::new(),
            })
        }

        fn is_mounted(&self) -> bool {
            Place::new(&self.0).unwrap().is_mounted().unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            // A failed test may have left it mounted; what is below it is
            // deleted only once it is not.
            if TestVolume::unmount(&self.0).is_ok() {
                let _ = fs::remove_dir_all(&self.0.root);
            }
        }
    }

    #[test]
    fn a_directory_that_is_no_mount_is_noticed() {
        let scratch = Scratch::new("no-mount");
        let said = prove_sharing(&scratch.0.target).unwrap_err().to_string();
        assert!(
            said.contains("still on the file system around it"),
            "{said}"
        );
    }

    #[test]
    fn the_last_user_unmounts() {
        let scratch = Scratch::new("last-user");
        let first = TestVolume::mount(&scratch.0).unwrap();
        let second = TestVolume::mount(&scratch.0).unwrap();
        assert!(prove_sharing(&first.path()).is_ok());
        first.release().unwrap();
        assert!(scratch.is_mounted(), "the second user lost it");
        let said = TestVolume::unmount(&scratch.0).unwrap_err().to_string();
        assert!(said.contains("tests are running on it"), "{said}");
        second.release().unwrap();
        assert!(!scratch.is_mounted());
    }

    #[test]
    fn what_is_kept_stays_with_its_files_until_it_is_unmounted() {
        let scratch = Scratch::new("kept");
        let point = TestVolume::mount(&scratch.0).unwrap().keep().unwrap();
        fs::write(point.join("file"), b"content").unwrap();
        TestVolume::mount(&scratch.0).unwrap().release().unwrap();
        assert_eq!(fs::read(point.join("file")).unwrap(), b"content");
        TestVolume::unmount(&scratch.0).unwrap();
        assert!(!scratch.is_mounted());
        TestVolume::mount(&scratch.0).unwrap().release().unwrap();
        assert!(!scratch.is_mounted(), "the mark of what is kept was left");
    }
}
