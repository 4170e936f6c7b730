//! Faults at a chosen call of the disk port.
//!
//! A run without a fault counts the calls; then every number up to that count is tried.
//! So the places where a process dies or a disk fills up are enumerated, not chosen.

use std::any::Any;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::poison::Poison;
use super::{Access, Cloned, DiskFile, DiskPort, Entry, EntryKind};
use crate::host;

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies as by `kill -9`, before the call is made.
    Kill,
    /// From the chosen call on every call that needs space fails with "no space left".
    DiskFull,
    /// The chosen call alone fails with an input/output error.
    InputOutput,
}

#[derive(Debug)]
struct Plan {
    calls: AtomicU64,
    chosen: Option<(u64, Fault)>,
}

impl Plan {
    /// Counts one call and lets the chosen fault happen.
    fn call(&self, needs_space: bool) -> io::Result<()> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.chosen {
            Some((at, Fault::Kill)) if number == at => host::kill_this_process(),
            Some((at, Fault::DiskFull)) if number >= at && needs_space => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            Some((at, Fault::InputOutput)) if number == at => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            _ => Ok(()),
        }
    }

    fn space(&self) -> io::Result<()> {
        self.call(true)
    }

    fn other(&self) -> io::Result<()> {
        self.call(false)
    }
}

/// A disk port in which one call, chosen by its number, goes wrong.
///
/// Calls that only read, hint or lock are passed on uncounted: dying before them is the
/// same as dying before the next call that changes something.
#[derive(Debug)]
pub struct FaultDisk {
    inner: Arc<dyn DiskPort>,
    plan: Arc<Plan>,
}

impl FaultDisk {
    /// Counts the calls that change something, and lets none of them fail.
    #[must_use]
    pub fn counting(inner: Arc<dyn DiskPort>) -> Self {
        Self {
            inner,
            plan: Arc::new(Plan {
                calls: AtomicU64::new(0),
                chosen: None,
            }),
        }
    }

    /// Lets `fault` happen at the call with this number; the first one is 0.
    #[must_use]
    pub fn failing_at(inner: Arc<dyn DiskPort>, call: u64, fault: Fault) -> Self {
        Self {
            inner,
            plan: Arc::new(Plan {
                calls: AtomicU64::new(0),
                chosen: Some((call, fault)),
            }),
        }
    }

    /// How many calls that change something were made so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.plan.calls.load(Ordering::SeqCst)
    }

    fn wrap(&self, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultFile {
            inner,
            plan: Arc::clone(&self.plan),
            poison: Poison::default(),
        })
    }
}

impl DiskPort for FaultDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.plan.space()?;
        Ok(self.wrap(self.inner.create(path)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.inner.open(path, access)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.other()?;
        self.inner.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.plan.other()?;
        self.inner.unlink(path)
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        self.plan.space()?;
        self.inner.symlink(target, path)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner.read_link(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.space()?;
        self.inner.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.other()?;
        self.inner.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.inner.kind(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.other()?;
        self.inner.sync_dir(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.inner.available(path)
    }
}

#[derive(Debug)]
struct FaultFile {
    inner: Arc<dyn DiskFile>,
    plan: Arc<Plan>,
    poison: Poison,
}

impl DiskFile for FaultFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.poison.check()?;
        self.plan.space()?;
        self.inner.write_at(bytes, offset)
    }

    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.poison.check()?;
        self.plan.space()?;
        self.inner.write_past_cache_at(bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.poison.check()?;
        self.plan.other()?;
        self.inner.punch(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.poison.check()?;
        self.plan.other()?;
        self.inner.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.poison.check()?;
        self.plan.space()?;
        self.inner.allocate(offset, len)
    }

    fn occupied(&self) -> io::Result<u64> {
        self.inner.occupied()
    }

    fn sync(&self) -> io::Result<()> {
        self.poison.check()?;
        let outcome = self.plan.other().and_then(|()| self.inner.sync());
        self.poison.after_sync(outcome)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }

    fn clone_range(
        &self,
        source: &dyn DiskFile,
        source_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<Cloned> {
        self.poison.check()?;
        self.plan.space()?;
        let source = source
            .as_any()
            .downcast_ref::<Self>()
            .expect("BUG: files of two disk ports were mixed");
        self.inner
            .clone_range(source.inner.as_ref(), source_offset, len, offset)
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.inner.prefetch(offset, len);
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.inner.start_writeback(offset, len);
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }

    fn try_lock_bytes(&self, held: &[u64], refused: &[u64]) -> io::Result<bool> {
        self.inner.try_lock_bytes(held, refused)
    }

    fn unlock_bytes(&self, held: &[u64]) -> io::Result<()> {
        self.inner.unlock_bytes(held)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
