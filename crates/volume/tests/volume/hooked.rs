//! A disk port that lets a test act in the middle of an operation.

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use lifeboat_sys::disk::{Access, Cloned, DiskFile, DiskPort, Entry, EntryKind, RealDisk};

type Action = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// What happens before calls to files that are opened, not created: to the disks, not
/// to scratch files.
#[derive(Default)]
pub struct Hooks {
    before_read: Action,
    before_next_data: Action,
    /// How often a read or write lets other threads run first.
    pub yields: AtomicU32,
}

impl Hooks {
    /// Acts once, before the next read of a disk.
    pub fn before_read(&self, action: impl FnOnce() + Send + 'static) {
        *self.before_read.lock().unwrap() = Some(Box::new(action));
    }

    /// Acts once, before a disk is next asked for data.
    pub fn before_next_data(&self, action: impl FnOnce() + Send + 'static) {
        *self.before_next_data.lock().unwrap() = Some(Box::new(action));
    }

    fn give_way(&self) {
        for _ in 0..self.yields.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    pub fn all_done(&self) -> bool {
        self.before_read.lock().unwrap().is_none()
            && self.before_next_data.lock().unwrap().is_none()
    }
}

fn act(action: &Action) {
    let action = action.lock().unwrap().take();
    if let Some(action) = action {
        action();
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct HookedDisk(pub Arc<Hooks>);

#[derive(Debug)]
struct HookedFile {
    file: Arc<dyn DiskFile>,
    hooks: Arc<Hooks>,
}

impl DiskPort for HookedDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HookedFile {
            file: RealDisk.open(path, access)?,
            hooks: Arc::clone(&self.0),
        }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealDisk.unlink(path)
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        RealDisk.symlink(target, path)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        RealDisk.read_link(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        RealDisk.list(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        RealDisk.kind(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.sync_dir(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        RealDisk.available(path)
    }
}

impl DiskFile for HookedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        act(&self.hooks.before_read);
        self.hooks.give_way();
        self.file.read_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        act(&self.hooks.before_next_data);
        self.file.next_data(offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.hooks.give_way();
        self.file.write_at(bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn occupied(&self) -> io::Result<u64> {
        self.file.occupied()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn clone_range(
        &self,
        source: &dyn DiskFile,
        source_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<Cloned> {
        self.file.clone_range(source, source_offset, len, offset)
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.file.prefetch(offset, len);
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.file.start_writeback(offset, len);
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn try_lock_bytes(&self, held: &[u64], refused: &[u64]) -> io::Result<bool> {
        self.file.try_lock_bytes(held, refused)
    }

    fn unlock_bytes(&self, held: &[u64]) -> io::Result<()> {
        self.file.unlock_bytes(held)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
