//! Comparing whole moments, in the foreground and while deltas are being applied.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use lifeboat_model::Sequence;
use lifeboat_store::{PointReader, Store, StoreError};
use serde::Serialize;

use super::compare::{Difference, ReadDisk, compare};
use super::error::DemoError;
use super::fat::{ReadOnlyDisk, check_files};
use super::guest::Moment;

/// More threads would only wait for the disk.
const MAX_THREADS: usize = 4;

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

/// What comparisons found, in a few words.
#[must_use]
pub fn verdict(compared: &[Comparison]) -> String {
    let wrong: u64 = compared.iter().map(|one| one.wrong_bytes).sum();
    let differ = compared.iter().filter(|one| one.first.is_some()).count();
    match differ {
        0 => "as written, 0 wrong bytes".to_owned(),
        count => format!(
            "WRONG in {count} of {}, {wrong} wrong bytes",
            compared.len()
        ),
    }
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

/// Compares recovery points, several at once where there are processors for it.
pub fn compare_points(jobs: Vec<Job>, when: &str) -> Vec<Comparison> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut compared = Vec::new();
        while let Some(job) = next() {
            compared.push(job.run(when, &AtomicBool::new(false)));
        }
        compared
    };
    let mut compared: Vec<Comparison> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(MAX_THREADS))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    compared.sort_by_key(|comparison| comparison.sequence);
    compared
}

/// Compares recovery points in a thread of its own.
#[derive(Debug)]
pub struct Checker {
    jobs: Sender<Job>,
    thread: JoinHandle<Vec<Comparison>>,
    applying: Arc<AtomicBool>,
}

/// A recovery point that is to be compared.
#[derive(Debug)]
pub struct Job {
    pub sequence: Sequence,
    pub moment: Arc<Moment>,
    pub readers: Vec<PointReader>,
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
            .spawn(move || {
                queue
                    .into_iter()
                    .map(|job| job.run("while the replica went on", &is_applying))
                    .collect()
            })
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
    pub fn submit(&self, job: Job) {
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
    fn run(self, when: &str, applying: &AtomicBool) -> Comparison {
        let sequence = self.sequence;
        compare_moment(
            format!("point {sequence}, {when}"),
            sequence,
            &self.moment,
            read_point(&self.readers),
            Depth::Bytes,
            applying,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::fat::Files;
    use crate::demo::guest::FrozenDisk;
    use crate::demo::shadow::Shadow;
    use lifeboat_harness::ShadowVm;
    use lifeboat_model::Timestamp;
    use lifeboat_model::contract::PointKind;
    use lifeboat_sys::disk::RealDisk;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    const SIZES: [u64; 2] = [1 << 20, (512 << 10) + 512];

    /// A store with one recovery point, and what was written.
    fn store_with_a_point(root: &Path) -> (Store, Sequence, Moment) {
        let mut vm = ShadowVm::new(5, &SIZES);
        for (disk, size) in SIZES.into_iter().enumerate() {
            vm.write(
                disk,
                0,
                &crate::demo::random::Random::new(9).bytes(size as usize),
            );
        }
        let mut store = Store::init(Arc::new(RealDisk), root, &vm.new_store(), "test").unwrap();
        store.receive(vm.capture().as_slice()).unwrap();
        store.apply_next(&mut |_| {}).unwrap();
        let sequence = store
            .make_point(Timestamp::from_micros(1), PointKind::Standard)
            .unwrap();
        let disk = |(id, bytes): (&lifeboat_model::DiskId, &Vec<u8>)| {
            let mut shadow = Shadow::new(bytes.len() as u64);
            shadow.write(0, bytes);
            FrozenDisk {
                id: id.clone(),
                shadow,
                files: Files::new(),
            }
        };
        let disks = vm.names().iter().zip(vm.disks()).map(disk).collect();
        (store, sequence, Moment { disks })
    }

    fn compare_in_the_background(store: &Store, sequence: Sequence, moment: Moment) -> Comparison {
        let readers = point_readers(store, sequence, &moment).unwrap();
        let checker = Checker::start().unwrap();
        checker.submit(Job {
            sequence,
            moment: Arc::new(moment),
            readers,
        });
        checker.finish().pop().unwrap()
    }

    #[test]
    fn a_point_that_is_right_has_no_difference() {
        let folder = tempfile::tempdir().unwrap();
        let (store, sequence, moment) = store_with_a_point(&folder.path().join("store"));
        let comparison = compare_in_the_background(&store, sequence, moment);
        assert_eq!(comparison.first, None);
        assert_eq!(comparison.bytes, SIZES.iter().sum::<u64>());
    }

    #[test]
    fn one_flipped_byte_in_a_head_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let (store, sequence, moment) = store_with_a_point(&root);
        let offset = SIZES[1] - 3;
        let id = moment.disks[1].id.clone();
        let head = root.join(format!("disks/{id}/head.raw"));
        let head = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(head)
            .unwrap();
        let mut byte = [0];
        head.read_exact_at(&mut byte, offset).unwrap();
        head.write_all_at(&[byte[0] ^ 1], offset).unwrap();

        let comparison = compare_in_the_background(&store, sequence, moment);
        assert_eq!(comparison.wrong_bytes, 1);
        let difference = Difference::Byte {
            disk: id,
            offset,
            found: byte[0] ^ 1,
            expected: byte[0],
        };
        assert_eq!(comparison.first, Some(difference));
    }

    #[test]
    fn points_compared_at_once_are_told_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (store, sequence, moment) = store_with_a_point(&folder.path().join("store"));
        let moment = Arc::new(moment);
        let jobs = (0..9).rev().map(|number| Job {
            sequence: Sequence::new(number),
            readers: point_readers(&store, sequence, &moment).unwrap(),
            moment: Arc::clone(&moment),
        });
        let compared = compare_points(jobs.collect(), "at once");
        let numbers: Vec<u64> = compared.iter().map(|one| one.sequence.number()).collect();
        assert_eq!(numbers, (0..9).collect::<Vec<_>>());
        assert!(compared.iter().all(|one| one.first.is_none()));
    }
}
