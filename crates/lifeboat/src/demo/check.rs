//! Comparing whole moments, in the foreground and while deltas are being applied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use lifeboat_model::Sequence;
use lifeboat_store::{PointReader, Store, StoreError};
use serde::Serialize;

use super::compare::{Difference, ReadDisk, compare};
use super::error::DemoError;
use super::fat::{ReadOnlyDisk, check_files};
use super::guest::Moment;

/// How a disk is read.
pub struct DiskReader<'a> {
    pub size: u64,
    pub read: Box<ReadDisk<'a>>,
}

/// How much of a moment is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every byte of every disk.
    Bytes,
    /// And every file, through the file systems on the disks.
    BytesAndFiles,
}

/// All disks of one moment, compared with what the guest wrote.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// What was read, and how.
    pub what: String,
    /// The moment that it was compared with.
    pub sequence: Sequence,
    pub bytes: u64,
    /// Of these, read while a delta was being applied to the same disks.
    pub bytes_while_applying: u64,
    /// Files that were read through the file system and are as they were written.
    pub files: usize,
    pub file_bytes: u64,
    pub wrong_bytes: u64,
    /// The first difference; absent when everything is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Difference>,
}

/// Compares every disk of a moment.
pub fn compare_moment(
    what: String,
    sequence: Sequence,
    moment: &Moment,
    readers: Vec<DiskReader<'_>>,
    depth: Depth,
    applying: &AtomicBool,
) -> Comparison {
    let mut comparison = Comparison {
        what,
        sequence,
        bytes: 0,
        bytes_while_applying: 0,
        files: 0,
        file_bytes: 0,
        wrong_bytes: 0,
        first: None,
    };
    assert_eq!(
        readers.len(),
        moment.disks.len(),
        "BUG: every disk is compared"
    );
    for (disk, mut reader) in moment.disks.iter().zip(readers) {
        let (size, read) = (reader.size, &mut reader.read);
        let compared = compare(&disk.id, size, &disk.shadow, applying, read);
        comparison.bytes += compared.bytes;
        comparison.bytes_while_applying += compared.bytes_while_applying;
        comparison.wrong_bytes += compared.wrong_bytes;
        let is_right = compared.first.is_none();
        comparison.first = comparison.first.or(compared.first);
        // A file system is only read where its bytes are known to be right.
        if is_right && depth == Depth::BytesAndFiles {
            let checked = check_files(&disk.id, ReadOnlyDisk::new(size, read), &disk.files);
            comparison.files += checked.files;
            comparison.file_bytes += checked.bytes;
            comparison.first = comparison.first.or(checked.first);
        }
    }
    comparison
}

/// Opens every disk of a recovery point.
///
/// # Errors
/// When there is no such point.
pub fn point_readers(
    store: &Store,
    sequence: Sequence,
    moment: &Moment,
) -> Result<Vec<PointReader>, StoreError> {
    let disks = moment.disks.iter();
    disks.map(|disk| store.reader(sequence, &disk.id)).collect()
}

/// Reads a recovery point's disks directly.
#[must_use]
pub fn read_point(readers: &[PointReader]) -> Vec<DiskReader<'_>> {
    readers
        .iter()
        .map(|reader| DiskReader {
            size: reader.size(),
            read: Box::new(|offset, into| reader.read_at(offset, into)),
        })
        .collect()
}

/// Compares recovery points in a thread of its own.
#[derive(Debug)]
pub struct Checker {
    jobs: Sender<Job>,
    thread: JoinHandle<Vec<Comparison>>,
    applying: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Job {
    sequence: Sequence,
    moment: Arc<Moment>,
    readers: Vec<PointReader>,
}

impl Checker {
    /// # Errors
    /// When there can be no further thread.
    pub fn start() -> Result<Self, DemoError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let applying = Arc::new(AtomicBool::new(false));
        let is_applying = Arc::clone(&applying);
        let thread = std::thread::Builder::new()
            .name("checker".to_owned())
            .spawn(move || queue.into_iter().map(|job| job.run(&is_applying)).collect())
            .map_err(|source| DemoError::System {
                what: "a thread",
                source,
            })?;
        Ok(Self {
            jobs,
            thread,
            applying,
        })
    }

    /// Has a recovery point compared while other things go on.
    pub fn submit(&self, sequence: Sequence, moment: Arc<Moment>, readers: Vec<PointReader>) {
        let job = Job {
            sequence,
            moment,
            readers,
        };
        // A checker that has panicked is found out about when it is finished.
        let _ = self.jobs.send(job);
    }

    /// Tells the checker that a delta is being applied as long as `work` takes.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.applying.store(true, Ordering::Relaxed);
        let done = work();
        self.applying.store(false, Ordering::Relaxed);
        done
    }

    /// What was found, when everything submitted is compared.
    #[must_use]
    pub fn finish(self) -> Vec<Comparison> {
        drop(self.jobs);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Job {
    fn run(self, applying: &AtomicBool) -> Comparison {
        let sequence = self.sequence;
        compare_moment(
            format!("point {sequence}, while the replica went on"),
            sequence,
            &self.moment,
            read_point(&self.readers),
            Depth::Bytes,
            applying,
        )
    }
}
