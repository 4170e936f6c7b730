//! The second half of the demo: every recovery point is read over NBD, then the VM goes
//! on from its replica; once that is given up again, once it is kept.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lifeboat_model::{DiskId, LineageId, Sequence};
use lifeboat_nbd::{Client, Export, ExportSet};
use lifeboat_store::{FailoverTarget, StartedFailover, Store};
use lifeboat_sys::clock::{self, Stopwatch};

use super::check::{Comparison, Depth, DiskReader, compare_moment, point_readers, verdict};
use super::error::DemoError;
use super::fat::{ReadOnlyDisk, read_file};
use super::guest::{Guest, Moment};
use super::primary::{GRACE, connect, serve};
use super::protect::POINTS;
use super::report::{End, Failover, ms};
use super::{Demo, random_bytes};
use crate::exit::Failure;
use crate::exports::{FailoverExport, PointExport};
use crate::size::Bytes;

/// The older recovery point that the VM is taken back to.
const OLDER: Sequence = Sequence::new(7);

/// What the guest does after a failover.
const STEPS: u64 = 200;

/// A failover whose disks are served, and the guest that uses them.
struct Serving {
    sequence: Sequence,
    started: StartedFailover,
    guest: Guest,
    exports: ExportSet,
    ready_ms: f64,
    served_ms: f64,
}

impl Demo {
    /// Reads every recovery point, disks and files, through the NBD server.
    pub(super) fn compare_all_over_nbd(&mut self, store: &Store) -> Result<(), Failure> {
        let socket = self.folder.replica_socket();
        let exports = ExportSet::new();
        let server = serve(&socket, exports.clone())?;
        let watch = Stopwatch::start();
        let before = self.report.comparisons.len();
        for point in store.points() {
            self.refuse_if_interrupted()?;
            let sequence = point.sequence;
            let moment = Arc::clone(&self.moments[&sequence]);
            let readers = point_readers(store, sequence, &moment).map_err(DemoError::from)?;
            for (disk, reader) in moment.disks.iter().zip(readers) {
                offer(&exports, &disk.id, Arc::new(PointExport::new(reader)))?;
            }
            let comparison =
                self.compare_served(format!("point {sequence}, over NBD"), sequence, &moment)?;
            self.report.comparisons.push(comparison);
            withdraw_all(&exports, &moment)?;
        }
        server.shutdown(GRACE);
        let compared = &self.report.comparisons[before..];
        let bytes: u64 = compared.iter().map(|comparison| comparison.bytes).sum();
        let files: usize = compared.iter().map(|comparison| comparison.files).sum();
        self.say(&format!(
            "\nAll {} recovery points, read over NBD: {} and {files} files in {:.1} s\n  {}\n",
            compared.len(),
            Bytes(bytes),
            watch.elapsed().as_secs_f64(),
            verdict(compared),
        ))
    }

    /// Compares a moment with the exports that have the names of its disks.
    fn compare_served(
        &self,
        what: String,
        sequence: Sequence,
        moment: &Moment,
    ) -> Result<Comparison, DemoError> {
        let socket = self.folder.replica_socket();
        let open = |disk: &DiskId| connect(&socket, disk.as_str(), disk);
        let clients: Result<Vec<Client>, DemoError> =
            moment.disks.iter().map(|disk| open(&disk.id)).collect();
        let clients = clients?;
        let readers = clients.iter().map(|client| DiskReader {
            size: client.size(),
            read: Box::new(|offset, into: &mut [u8]| {
                client.read(offset, into).map_err(std::io::Error::other)
            }),
        });
        Ok(compare_moment(
            what,
            sequence,
            moment,
            readers.collect(),
            Depth::BytesAndFiles,
            &AtomicBool::new(false),
        ))
    }

    /// Fails over to the newest moment and gives that up; then to an older point, for good.
    pub(super) fn take_over(&mut self, mut store: Store) -> Result<(), Failure> {
        self.refuse_if_interrupted()?;
        let newest = Sequence::new(POINTS + 1);
        let serving = self.fail_over(&mut store, FailoverTarget::Newest, newest)?;
        self.give_up(&mut store, serving)?;
        self.refuse_if_interrupted()?;
        let serving = self.fail_over(&mut store, FailoverTarget::Point(OLDER), OLDER)?;
        self.keep(&mut store, serving)
    }

    /// Fails over, compares what the VM gets, and lets the guest go on with it.
    fn fail_over(
        &mut self,
        store: &mut Store,
        target: FailoverTarget,
        sequence: Sequence,
    ) -> Result<Serving, Failure> {
        let waiting = store.pending().len();
        let lineage = LineageId::from_bytes(random_bytes()?);
        let watch = Stopwatch::start();
        let started = store.start_failover(target, lineage, clock::wall(), &mut |_| {});
        let started = started.map_err(DemoError::from)?;
        let ready_ms = ms(watch.elapsed());
        let moment = Arc::clone(&self.moments[&sequence]);
        let exports = ExportSet::new();
        for disk in &moment.disks {
            let opened = store.failover_disk(&disk.id).map_err(DemoError::from)?;
            offer(&exports, &disk.id, Arc::new(FailoverExport::new(opened)))?;
        }
        let socket = self.folder.replica_socket();
        let server = serve(&socket, exports.clone())?;
        for disk in &moment.disks {
            let client = connect(&socket, disk.id.as_str(), &disk.id)?;
            client
                .read(0, &mut [0; 4096])
                .map_err(|source| DemoError::Request {
                    disk: disk.id.clone(),
                    source,
                })?;
        }
        let served_ms = ms(watch.elapsed());
        let applied = match waiting {
            0 => String::new(),
            count => format!("  deltas that waited and were applied first: {count}\n"),
        };
        let what = match target {
            FailoverTarget::Newest | FailoverTarget::Applied => "the newest moment",
            FailoverTarget::Point(_) => "the older recovery point",
        };
        self.say(&format!(
            "\nFailover to {what}, {sequence}: ready in {ready_ms:.0} ms, first bytes over NBD after {served_ms:.0} ms\n{applied}",
        ))?;
        let connect = |disk: &DiskId| connect(&socket, disk.as_str(), disk);
        let seed = self.random.next();
        let guest = Guest::start((*moment).clone(), seed, &connect)?;
        let found = self.compare_served(format!("failover to {sequence}"), sequence, &moment)?;
        let mut serving = Serving {
            sequence,
            started,
            guest,
            exports,
            ready_ms,
            served_ms,
        };
        let note = format!("The VM went on from moment {sequence}.\n");
        serving.guest.write_note("after-failover.txt", &note)?;
        serving.guest.work(STEPS)?;
        serving.guest.flush()?;
        let written = self.compare_served(
            format!("failover to {sequence}, after the guest wrote"),
            sequence,
            &serving.guest.moment(),
        )?;
        self.say(&format!(
            "  the VM's disks: {} files and every byte {}\n  after {STEPS} more changes by the guest: {}\n",
            found.files,
            verdict(std::slice::from_ref(&found)),
            verdict(std::slice::from_ref(&written)),
        ))?;
        self.report.comparisons.extend([found, written]);
        server.shutdown(GRACE);
        Ok(serving)
    }

    fn give_up(&mut self, store: &mut Store, serving: Serving) -> Result<(), Failure> {
        let Serving {
            sequence,
            guest,
            exports,
            ready_ms,
            served_ms,
            ..
        } = serving;
        let moment = guest.moment();
        drop(guest);
        withdraw_all(&exports, &moment)?;
        let watch = Stopwatch::start();
        store.revert_failover().map_err(DemoError::from)?;
        let revert_ms = ms(watch.elapsed());
        self.report.failovers.push(Failover {
            sequence,
            ready_ms,
            served_ms,
            end: End::Reverted { revert_ms },
        });
        let compared = self.compare_points(store, "after the revert")?;
        self.say(&format!(
            "  reverted in {revert_ms:.0} ms; all {} recovery points compared again: {}\n",
            compared.len(),
            verdict(&compared)
        ))?;
        self.report.comparisons.extend(compared);
        Ok(())
    }

    fn keep(&mut self, store: &mut Store, serving: Serving) -> Result<(), Failure> {
        let Serving {
            sequence,
            started,
            guest,
            exports,
            ready_ms,
            served_ms,
        } = serving;
        let moment = guest.moment();
        drop(guest);
        withdraw_all(&exports, &moment)?;
        let watch = Stopwatch::start();
        let committed = store.commit(&mut |_| {}).map_err(DemoError::from)?;
        let commit_ms = ms(watch.elapsed());
        store.empty_trash().map_err(DemoError::from)?;
        self.report.failovers.push(Failover {
            sequence,
            ready_ms,
            served_ms,
            end: End::Committed {
                commit_ms,
                written_bytes: committed.written_bytes,
                shared_bytes: committed.shared_bytes,
            },
        });
        let heads: Result<Vec<RawDisk>, DemoError> = started
            .disks
            .iter()
            .map(|disk| RawDisk::open(disk.head.clone()))
            .collect();
        let heads = heads?;
        let compared = compare_moment(
            format!("disks committed at {sequence}"),
            sequence,
            &moment,
            heads.iter().map(RawDisk::reader).collect(),
            Depth::BytesAndFiles,
            &AtomicBool::new(false),
        );
        self.say(&format!(
            "  committed in {commit_ms:.0} ms: {} written, {} shared\n  the raw disks: {} files and every byte {}\n",
            Bytes(committed.written_bytes),
            Bytes(committed.shared_bytes),
            compared.files,
            verdict(std::slice::from_ref(&compared)),
        ))?;
        let is_right = compared.first.is_none();
        self.report.comparisons.push(compared);
        match (is_right, self.letter_of_its_time(sequence, &moment)) {
            (true, Some(path)) => self.say(&self.quote(&heads[0], &path)?),
            _ => Ok(()),
        }
    }

    /// A letter that was changed later at the primary, and not since the failover.
    fn letter_of_its_time(&self, sequence: Sequence, now: &Moment) -> Option<String> {
        let files = |sequence| Some(&self.moments.get(&sequence)?.disks.first()?.files);
        let (then, newest) = (files(sequence)?, files(Sequence::new(POINTS + 1))?);
        let now = &now.disks.first()?.files;
        let path = then.iter().find(|(path, content)| {
            path.starts_with("letter-")
                && now.get(*path) == Some(content)
                && newest.get(*path).is_some_and(|later| later != *content)
        });
        path.map(|(path, _)| path.clone())
    }

    /// The first lines of a letter as it is on a disk, and as it had become at the primary.
    fn quote(&self, disk: &RawDisk, path: &str) -> Result<String, DemoError> {
        let failed = |source| DemoError::File {
            what: "read the file system in",
            path: disk.path.clone(),
            source,
        };
        let mut reader = disk.reader();
        let content = ReadOnlyDisk::new(reader.size, &mut reader.read);
        let here = read_file(content, path).map_err(failed)?;
        let newest = &self.moments[&Sequence::new(POINTS + 1)].disks[0].files[path];
        Ok(format!(
            "  {path} reads {:?}\n  at the lost primary it had become {:?}\n",
            first_line(&here),
            first_line(newest),
        ))
    }
}

/// The raw file of a committed disk.
struct RawDisk {
    path: PathBuf,
    file: File,
    size: u64,
}

impl RawDisk {
    fn open(path: PathBuf) -> Result<Self, DemoError> {
        let opened = File::open(&path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        match opened {
            Ok((file, size)) => Ok(Self { path, file, size }),
            Err(source) => Err(DemoError::File {
                what: "open",
                path,
                source,
            }),
        }
    }

    fn reader(&self) -> DiskReader<'_> {
        DiskReader {
            size: self.size,
            read: Box::new(|offset, into| self.file.read_exact_at(into, offset)),
        }
    }
}

fn offer(exports: &ExportSet, disk: &DiskId, export: Arc<dyn Export>) -> Result<(), DemoError> {
    let added = exports.add(disk.as_str(), export);
    added.map_err(|source| DemoError::Export {
        disk: disk.clone(),
        source,
    })
}

/// Withdraws the exports of a moment's disks; nothing holds those afterwards.
fn withdraw_all(exports: &ExportSet, moment: &Moment) -> Result<(), DemoError> {
    for disk in &moment.disks {
        let removed = exports.remove(disk.id.as_str(), GRACE);
        removed.map_err(|source| DemoError::Export {
            disk: disk.id.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The beginning of a text, to its first line break.
fn first_line(text: &[u8]) -> String {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}
