//! The disk port: every touch of a file or folder by the store goes through it.
//!
//! Two implementations stand behind the traits. [`RealDisk`] is the kernel's file
//! system. [`Recorder`] keeps files in memory, records every call, and produces the
//! states that a power loss may leave. [`FaultDisk`] wraps either and kills the process
//! or fails a call, at a call chosen by number.
//!
//! What is durable, and only that:
//! - file content and length: what was written before the last successful
//!   [`DiskFile::sync`] of that file;
//! - names: what was created, renamed or unlinked before the last successful
//!   [`DiskPort::sync_dir`] of that folder (of both folders, for a move between two).
//!
//! A failed sync poisons the file handle: the kernel may have dropped the very pages
//! that it could not write and will report success next time, so every later write or
//! sync through the handle fails with [`Poisoned`].

mod fault;
mod guest;
mod poison;
mod real;
mod recorder;

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use fault::{Fault, FaultDisk};
pub use guest::GuestDisk;
pub use poison::Poisoned;
pub use real::RealDisk;
pub use recorder::{CrashChoice, CrashState, Recorder, Recording};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// What a name in a folder stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File,
    Folder,
    Symlink,
    Other,
}

/// One name in a folder. Names that are not UTF-8 are never listed: we make none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: EntryKind,
}

/// Whether a range was shared or has to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloned {
    /// The two ranges share their blocks on disk now; no data was written.
    Shared,
    /// The file system does not share these blocks; nothing was done.
    Unsupported,
}

/// A file system, as the store uses one.
pub trait DiskPort: Send + Sync + Debug {
    /// Makes a new, empty file, readable by its owner only. Fails if the name exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing regular file; a symlink is not followed.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file, folder or symlink another name, replacing a file or symlink there. Atomic.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the name of a file or symlink.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes a symlink with this text. Fails if the name exists.
    fn symlink(&self, target: &str, path: &Path) -> io::Result<()>;

    /// The text of a symlink.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;

    /// Makes a folder, accessible to its owner only. Fails if the name exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty folder.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// What a name stands for, or `None` if it does not exist. Does not follow a symlink.
    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>>;

    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes that may still be written to the file system that holds `path`.
    fn available(&self, path: &Path) -> io::Result<u64>;
}

/// What [`DiskFile::write_past_cache_at`] needs addresses, offsets and lengths to be a multiple of.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// An open file.
#[expect(
    clippy::len_without_is_empty,
    reason = "asking a file for its length can fail"
)]
pub trait DiskFile: Send + Sync + Debug {
    /// Fills `buffer` from `offset`. Fails with `UnexpectedEof` beyond the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing the file if need be.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// As [`write_at`](Self::write_at), for much that nobody reads soon: goes past the page cache
    /// where the file system can do that and `bytes`, their address included, are whole blocks of
    /// [`DIRECT_ALIGNMENT`]. Durable only after [`sync`](Self::sync), like everything.
    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)
    }

    /// Makes the range read as zeroes and gives its space back. Never changes the length.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Cuts the file or extends it with a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reserves space for the range without changing what is read or the length.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes of disk space the file occupies now.
    fn occupied(&self) -> io::Result<u64>;

    /// Makes content and length durable; see the module on failure.
    fn sync(&self) -> io::Result<()>;

    /// The first range at or after `offset` that may hold data; everything before it is a hole.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;

    /// Shares a range of `source`, another file of the same port, with this one.
    fn clone_range(
        &self,
        source: &dyn DiskFile,
        source_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<Cloned>;

    /// Hints that the range will be read soon.
    fn prefetch(&self, offset: u64, len: u64);

    /// Hints that the range should be on its way to the disk before a sync asks for it.
    fn start_writeback(&self, offset: u64, len: u64);

    /// Locks the whole file for this handle, or answers `false` if another handle has it.
    fn try_lock(&self) -> io::Result<bool>;

    /// Takes shared locks on the bytes `held`, then answers `false` (and holds none) if
    /// another handle has a lock on any of the bytes `refused`.
    ///
    /// This is how QEMU guards its images; see [`ImageGuard`].
    fn try_lock_bytes(&self, held: &[u64], refused: &[u64]) -> io::Result<bool>;

    /// Gives up locks on bytes.
    fn unlock_bytes(&self, held: &[u64]) -> io::Result<()>;

    #[doc(hidden)]
    fn as_any(&self) -> &dyn Any;
}

/// QEMU's image locks on one file, held until dropped.
///
/// QEMU puts a shared lock on byte `100 + p` for each permission `p` that it uses and on
/// byte `200 + p` for each that it does not share, and refuses to open an image when
/// another process has a lock that contradicts its own. Holding 101 (we write), 201
/// (nobody else may write) and 200 (nobody else may read consistently) makes QEMU refuse
/// every ordinary open.
#[derive(Debug)]
pub struct ImageGuard {
    file: Arc<dyn DiskFile>,
}

impl ImageGuard {
    const HELD: [u64; 3] = [101, 201, 200];
    const REFUSED: [u64; 4] = [100, 101, 201, 203];

    /// Locks the image, or answers `None` when QEMU or another Lifeboat uses it.
    ///
    /// # Errors
    /// When the file system has no locks.
    pub fn acquire(file: &Arc<dyn DiskFile>) -> io::Result<Option<Self>> {
        let locked = file.try_lock_bytes(&Self::HELD, &Self::REFUSED)?;
        Ok(locked.then(|| Self {
            file: Arc::clone(file),
        }))
    }
}

impl Drop for ImageGuard {
    fn drop(&mut self) {
        // The kernel drops the locks with the file description in any case.
        let _ = self.file.unlock_bytes(&Self::HELD);
    }
}
