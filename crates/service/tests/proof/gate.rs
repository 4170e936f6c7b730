//! A host that dies at a chosen call, as by `kill -9`, while the others live on.
//!
//! Every call to the disk and to peers passes the gate of its host. At the chosen call the
//! host's catalog is copied as the kernel would keep it, and from then on every thread of the
//! host ends at its next call: what it still says to its old catalog reaches nobody, and its
//! disks stay as they are for the next life.

use std::any::Any;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use lifeboat_catalog::Catalog;
use lifeboat_sys::disk::{Access, Cloned, DiskFile, DiskPort, Entry, EntryKind};

/// The device failed.
const EIO: i32 = 5;

/// Where a host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Before(u64),
    After(u64),
}

/// One life of a host.
pub struct Gate {
    root: PathBuf,
    /// Where the catalog is kept as it was at the death.
    kept: PathBuf,
    killed: AtomicBool,
    /// Nobody looks any more: whoever comes late is told no.
    closed: AtomicBool,
    /// Whoever wants to know waits for the first who kills the host.
    buried: OnceLock<()>,
    calls: AtomicU64,
    full: AtomicBool,
    /// Files whose writes fail: those whose path has this in it.
    failing: Mutex<Option<&'static str>>,
    /// The name of the files or folders of which a sync fails, and how many before it do not.
    failing_sync: Mutex<Option<(&'static str, u32)>>,
    /// The call at which a thread panics, once.
    panics_at: AtomicU64,
    /// Held while the host dies: whoever lifts its death knows afterwards whether it has died.
    death: Mutex<Option<Death>>,
    /// Calls are not counted, and nobody dies at one.
    spared: AtomicBool,
    passing: RwLock<()>,
    /// While it is locked nothing is written to segments: nothing is applied.
    applying: Mutex<()>,
    /// While it is locked no job reads from the disk.
    jobs: Mutex<()>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("root", &self.root).finish()
    }
}

impl Gate {
    pub fn new(root: PathBuf, kept: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            root,
            kept,
            killed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            buried: OnceLock::new(),
            calls: AtomicU64::new(0),
            full: AtomicBool::new(false),
            failing: Mutex::new(None),
            failing_sync: Mutex::new(None),
            panics_at: AtomicU64::new(u64::MAX),
            death: Mutex::new(None),
            spared: AtomicBool::new(false),
            passing: RwLock::new(()),
            applying: Mutex::new(()),
            jobs: Mutex::new(()),
        })
    }

    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    /// Calls that change something, so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Plans the death, by calls counted from now on.
    pub fn die_at(&self, death: Death) {
        let now = self.calls();
        let planned = match death {
            Death::Before(call) => Death::Before(now + call),
            Death::After(call) => Death::After(now + call),
        };
        *self.planned() = Some(planned);
        self.expose();
    }

    /// No death is planned any more, and calls do not count.
    pub fn live_on(&self) {
        self.panics_at.store(u64::MAX, Ordering::SeqCst);
        *self.planned() = None;
        self.spare();
    }

    /// Until [`expose`](Self::expose) nobody dies, and calls do not count.
    pub fn spare(&self) {
        let _planned = self.planned();
        self.spared.store(true, Ordering::SeqCst);
    }

    /// Calls count again, and may be the last.
    pub fn expose(&self) {
        self.spared.store(false, Ordering::SeqCst);
    }

    /// The number of a call that begins.
    fn number(&self) -> u64 {
        if self.spared.load(Ordering::SeqCst) {
            return u64::MAX;
        }
        self.calls.fetch_add(1, Ordering::SeqCst)
    }

    fn die_if_planned(&self, death: Death) {
        let planned = self.planned();
        if *planned == Some(death) && !self.spared.load(Ordering::SeqCst) {
            self.kill();
        }
    }

    /// The thread that makes this call, counted from now on, panics; the host lives on.
    pub fn panic_at(&self, call: u64) {
        self.panics_at.store(self.calls() + call, Ordering::SeqCst);
        self.expose();
    }

    /// Nothing is applied until this is dropped.
    pub fn hold_applying(&self) -> MutexGuard<'_, ()> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs that have a thread of their own read nothing until this is dropped.
    pub fn hold_jobs(&self) -> MutexGuard<'_, ()> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there is no space left.
    pub fn fill_disk(&self) {
        self.full.store(true, Ordering::SeqCst);
    }

    /// From now on the device fails where files are written whose path has this in it; none
    /// with nothing.
    pub fn fail_writes_to(&self, part: Option<&'static str>) {
        *self.failing() = part;
    }

    /// The sync of a file or folder of this name fails, once, after so many that do not: what was
    /// written may be on the disk or not, and here it is.
    pub fn fail_sync_of(&self, name: &'static str, after: u32) {
        *self.failing_sync() = Some((name, after));
    }

    /// Whether the sync that is to fail has not come yet.
    pub fn will_fail_a_sync(&self) -> bool {
        self.failing_sync().is_some()
    }

    fn failing_sync(&self) -> MutexGuard<'_, Option<(&'static str, u32)>> {
        self.failing_sync
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self, path: &Path, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failing = self.failing_sync();
        // A file is known by the name that it was made with.
        let known = path.file_name().and_then(OsStr::to_str).unwrap_or("");
        if let Some((name, left)) = failing.as_mut()
            && known.trim_end_matches(".new") == *name
        {
            if *left == 0 {
                *failing = None;
                return Err(io::Error::from_raw_os_error(EIO));
            }
            *left -= 1;
        }
        drop(failing);
        self.pass(act)
    }

    fn failing(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is space again.
    pub fn free_disk(&self) {
        self.full.store(false, Ordering::SeqCst);
    }

    fn planned(&self) -> std::sync::MutexGuard<'_, Option<Death>> {
        self.death.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host dies here and now. On return its catalog is kept, whoever killed it.
    pub fn kill(&self) {
        self.bury(|| keep(&self.root, &self.kept).expect("keep the catalog of a host that dies"));
    }

    /// The host is dead, and its catalog was kept before.
    pub fn kill_unkept(&self) {
        self.bury(|| {});
    }

    /// The test is over: the host is dead, and its threads do not end in the middle of things.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.kill_unkept();
    }

    fn bury(&self, keep: impl FnOnce()) {
        self.buried.get_or_init(|| {
            self.killed.store(true, Ordering::SeqCst);
            // Nobody is within a call to the disk while the catalog is copied.
            let _alone = self.passing.write().unwrap_or_else(PoisonError::into_inner);
            keep();
        });
    }

    /// The thread ends, if its host is dead.
    pub fn end_if_killed(&self) -> io::Result<()> {
        if !self.is_killed() {
            return Ok(());
        }
        if std::thread::panicking() || self.closed.load(Ordering::SeqCst) {
            return Err(io::Error::other("this host is dead"));
        }
        resume_unwind(Box::new("this host is dead"));
    }

    /// A call that changes something.
    fn pass<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.end_if_killed()?;
        let number = self.number();
        // A call that does not count has no number of its own.
        if number != u64::MAX && number == self.panics_at.load(Ordering::SeqCst) {
            panic!("a defect, as the test wants it");
        }
        self.die_if_planned(Death::Before(number));
        let outcome = {
            let _passing = self.passing.read().unwrap_or_else(PoisonError::into_inner);
            self.end_if_killed()?;
            act()
        };
        self.after(number)?;
        outcome
    }

    /// A call to a peer, during which this host's other threads go on.
    pub fn announce(&self) -> io::Result<u64> {
        self.end_if_killed()?;
        let number = self.number();
        self.die_if_planned(Death::Before(number));
        self.end_if_killed()?;
        Ok(number)
    }

    pub fn after(&self, number: u64) -> io::Result<()> {
        self.die_if_planned(Death::After(number));
        self.end_if_killed()
    }

    fn space<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.pass(|| {
            if self.full.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            act()
        })
    }

    fn look<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.end_if_killed()?;
        act()
    }
}

/// The file of a host's catalog.
pub const CATALOG: &str = "catalog";

/// Copies a host's catalog as it is at one instant.
pub fn keep(root: &Path, kept: &Path) -> io::Result<()> {
    std::fs::create_dir(kept)?;
    Catalog::copy(&root.join(CATALOG), &kept.join(CATALOG)).map_err(io::Error::other)
}

/// The disk of a host, as its threads reach it.
#[derive(Debug)]
pub struct GatedDisk {
    pub inner: Arc<dyn DiskPort>,
    pub gate: Arc<Gate>,
}

impl GatedDisk {
    fn wrap(&self, inner: Arc<dyn DiskFile>, path: &Path) -> Arc<dyn DiskFile> {
        let is_segment = path.components().any(|part| part.as_os_str() == "seg");
        Arc::new(GatedFile {
            inner,
            is_segment,
            path: path.to_owned(),
            gate: Arc::clone(&self.gate),
        })
    }
}

impl DiskPort for GatedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.gate.space(|| self.inner.create(path))?, path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(self.gate.look(|| self.inner.open(path, access))?, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.gate.pass(|| self.inner.rename(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.gate.pass(|| self.inner.unlink(path))
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        self.gate.space(|| self.inner.symlink(target, path))
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.gate.look(|| self.inner.read_link(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.gate.space(|| self.inner.create_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.gate.pass(|| self.inner.remove_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.gate.look(|| self.inner.list(path))
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.gate.look(|| self.inner.kind(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.gate.sync(path, || self.inner.sync_dir(path))
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        if self.gate.full.load(Ordering::SeqCst) {
            return Ok(0);
        }
        self.gate.look(|| self.inner.available(path))
    }
}

#[derive(Debug)]
struct GatedFile {
    inner: Arc<dyn DiskFile>,
    is_segment: bool,
    path: PathBuf,
    gate: Arc<Gate>,
}

impl DiskFile for GatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if std::thread::current().name() == Some("job") {
            drop(self.gate.hold_jobs());
        }
        self.gate.look(|| self.inner.read_at(buffer, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.is_segment {
            drop(self.gate.hold_applying());
        }
        let failing = *self.gate.failing();
        if failing.is_some_and(|part| self.path.to_string_lossy().contains(part)) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.gate.space(|| self.inner.write_at(bytes, offset))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.pass(|| self.inner.punch(offset, len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate.pass(|| self.inner.set_len(len))
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.space(|| self.inner.allocate(offset, len))
    }

    fn occupied(&self) -> io::Result<u64> {
        self.inner.occupied()
    }

    fn sync(&self) -> io::Result<()> {
        // What the kernel holds outlives a process: nothing has to reach the disk here.
        self.gate.sync(&self.path, || Ok(()))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.gate.look(|| self.inner.next_data(offset))
    }

    fn clone_range(
        &self,
        source: &dyn DiskFile,
        source_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<Cloned> {
        let source = source
            .as_any()
            .downcast_ref::<Self>()
            .expect("BUG: files of two disk ports were mixed");
        let from = source.inner.as_ref();
        self.gate
            .space(|| self.inner.clone_range(from, source_offset, len, offset))
    }

    fn prefetch(&self, offset: u64, len: u64) {
        self.inner.prefetch(offset, len);
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        self.inner.start_writeback(offset, len);
    }

    // The locks of a process end with it; here they would outlive their host.
    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn try_lock_bytes(&self, _: &[u64], _: &[u64]) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock_bytes(&self, _: &[u64]) -> io::Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
