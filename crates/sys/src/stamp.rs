//! By what a file is recognized later.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Which file it is, and whether it has been written since. Times have the resolution of the
/// kernel's tick: two writes in one tick are not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    pub device: u64,
    pub inode: u64,
    /// In bytes.
    pub size: u64,
    /// When its contents were last changed, in nanoseconds since 1970; limited to what fits.
    pub modified: i64,
}

impl FileStamp {
    /// The stamp of the file that `path` leads to; symlinks are followed.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: metadata
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.mtime_nsec()),
        })
    }

    /// Whether both are of one file, whatever was written to it.
    #[must_use]
    pub fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}
