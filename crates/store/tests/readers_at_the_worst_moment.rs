//! Deltas that are applied between two steps of one read of a recovery point.

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lifeboat_harness::ShadowVm;
use lifeboat_model::Timestamp;
use lifeboat_model::contract::PointKind;
use lifeboat_store::Store;
use lifeboat_sys::disk::{Access, Cloned, DiskFile, DiskPort, Entry, EntryKind, Recorder};

const NOW: Timestamp = Timestamp::from_micros(1);

type Step = Box<dyn FnOnce() + Send>;

/// What happens before the next reads of a head, one step before each.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Vec<Step>>>);

impl Steps {
    fn next(&self) {
        let step = {
            let mut steps = self.0.lock().unwrap();
            (!steps.is_empty()).then(|| steps.remove(0))
        };
        if let Some(step) = step {
            // The step reads heads itself; the steps after it must wait for the reader.
            let later = std::mem::take(&mut *self.0.lock().unwrap());
            step();
            *self.0.lock().unwrap() = later;
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Steps")
    }
}

/// A disk whose heads take a step before each read.
#[derive(Debug)]
struct SteppedDisk {
    inner: Recorder,
    steps: Steps,
}

impl SteppedDisk {
    fn wrap(&self, path: &Path, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        if path.ends_with("head.raw") {
            let steps = self.steps.clone();
            Arc::new(SteppedFile { inner, steps })
        } else {
            inner
        }
    }
}

impl DiskPort for SteppedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.inner.open(path, access)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.inner.unlink(path)
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        self.inner.symlink(target, path)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner.read_link(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        self.inner.kind(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.inner.sync_dir(path)
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        self.inner.available(path)
    }
}

#[derive(Debug)]
struct SteppedFile {
    inner: Arc<dyn DiskFile>,
    steps: Steps,
}

impl DiskFile for SteppedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.steps.next();
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(bytes, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.allocate(offset, len)
    }

    fn occupied(&self) -> io::Result<u64> {
        self.inner.occupied()
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }

    fn clone_range(
        &self,
        _source: &dyn DiskFile,
        _source_offset: u64,
        _len: u64,
        _offset: u64,
    ) -> io::Result<Cloned> {
        Ok(Cloned::Unsupported)
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
        self.inner.as_any()
    }
}

#[test]
fn a_reader_whose_head_is_cut_and_then_overwritten_still_reads_its_point() {
    let steps = Steps::default();
    let disk = Arc::new(SteppedDisk {
        inner: Recorder::new(),
        steps: steps.clone(),
    });
    let mut shadow = ShadowVm::new(3, &[32 * 4096]);
    let mut store = Store::init(disk, Path::new("/store"), &shadow.new_store(), "test").unwrap();
    shadow.write(0, 0, &[1; 32 * 4096]);
    store.receive(&shadow.capture()[..]).unwrap();
    store.apply_next(&mut |_| {}).unwrap();
    let point = store.make_point(NOW, PointKind::Standard).unwrap();

    shadow.resize(0, 16 * 4096);
    store.receive(&shadow.capture()[..]).unwrap();
    shadow.write(0, 3 * 4096, &[2; 4096]);
    store.receive(&shadow.capture()[..]).unwrap();
    let reader = store.reader(point, &shadow.names()[0]).unwrap();
    let store = Arc::new(Mutex::new(store));
    for _ in 0..2 {
        let store = Arc::clone(&store);
        steps.0.lock().unwrap().push(Box::new(move || {
            let applied = store.lock().unwrap().apply_next(&mut |_| {}).unwrap();
            assert!(applied.is_some());
        }));
    }
    let mut bytes = vec![0; 32 * 4096];
    reader.read_at(0, &mut bytes).unwrap();
    assert!(store.lock().unwrap().pending().is_empty());
    assert!(bytes == shadow.at(point)[0]);
}
