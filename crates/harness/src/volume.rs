//! Small file systems that a test may fill to the last byte.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::run_tool;

/// A file system of its own, unmounted when dropped.
#[derive(Debug)]
pub struct SmallVolume {
    /// Holds the image, if there is one, and the mount point.
    folder: TempDir,
}

impl SmallVolume {
    /// A file system that shares no blocks.
    ///
    /// # Errors
    /// When it cannot be mounted: this needs root.
    pub fn without_sharing(bytes: u64) -> Result<Self, String> {
        let volume = Self::new()?;
        let size = format!("size={bytes},mode=700");
        volume.mount(&["-t", "tmpfs", "-o", &size, "lifeboat-test"])?;
        Ok(volume)
    }

    /// XFS, which shares blocks; it is never smaller than 300 MiB.
    ///
    /// # Errors
    /// When it cannot be made or mounted: this needs root and a loop device.
    pub fn xfs(bytes: u64) -> Result<Self, String> {
        let volume = Self::new()?;
        let image = volume.folder.path().join("image");
        let made = File::create_new(&image).and_then(|file| file.set_len(bytes));
        made.map_err(|error| error.to_string())?;
        let image = image.to_str().ok_or("a temporary path is not UTF-8")?;
        succeed("mkfs.xfs", &["-q", "-m", "reflink=1", image])?;
        volume.mount(&["-t", "xfs", "-o", "loop", image])?;
        Ok(volume)
    }

    fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let volume = Self { folder };
        std::fs::create_dir(volume.path()).map_err(|error| error.to_string())?;
        Ok(volume)
    }

    fn mount(&self, arguments: &[&str]) -> Result<(), String> {
        let path = self.path();
        let path = path.to_str().ok_or("a temporary path is not UTF-8")?;
        succeed("mount", &[arguments, &[path]].concat())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Takes all space that is left, to the last block.
    ///
    /// # Errors
    /// Anything but the file system being full.
    pub fn fill(&self) -> io::Result<Filler> {
        let path = self.path().join("filler");
        let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
        let block = vec![0xFF; 1 << 20];
        let mut len = block.len();
        while len >= 4096 {
            match file.write_all(&block[..len]).and_then(|()| file.sync_all()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => len /= 2,
                Err(error) => return Err(error),
            }
        }
        Ok(Filler { path })
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        let path = self.path();
        // Never mounted is fine as well; what is busy must at least not stay for ever.
        let _ = run_tool("umount", &["-l", path.to_str().unwrap_or_default()]);
    }
}

/// The file that takes all space; removed when dropped.
#[derive(Debug)]
pub struct Filler {
    path: PathBuf,
}

impl Filler {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn succeed(name: &str, arguments: &[&str]) -> Result<(), String> {
    let output = run_tool(name, arguments)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{name} {}: {} (file systems that may be filled need root)",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}
