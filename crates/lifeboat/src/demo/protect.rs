//! The first half of the demo: the VM is replicated cycle by cycle, until its host is lost.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use lifeboat_model::Sequence;
use lifeboat_model::contract::PointKind;
use lifeboat_store::{NewStore, Store, StoreError};
use lifeboat_stream::Base;
use lifeboat_sys::clock::{self, Stopwatch};
use lifeboat_sys::disk::RealDisk;

use super::Demo;
use super::check::{Checker, Comparison, Job, compare_points, point_readers, verdict};
use super::crash::{Ended, apply_and_be_killed};
use super::error::DemoError;
use super::guest::{DISKS, Guest, Moment};
use super::primary::{Primary, send};
use super::report::{CYCLE_HEADINGS, Cycle, Kill, ms};
use super::running::Running;
use crate::exit::Failure;
use crate::size::Bytes;

/// Recovery points that are made.
pub const POINTS: u64 = 10;

/// In this cycle the process that applies is killed.
const KILL_CYCLE: u64 = 6;

/// Before which of its changes to the file system each process dies, at random in here:
/// while it opens the store, while it saves old blocks, and while it overwrites the disks.
const KILL_AT: [std::ops::Range<u64>; 3] = [10..40, 60..140, 150..250];

/// What the guest does in one cycle; half of it while the cycle is under way.
const STEPS: u64 = 300;

/// The VM and everything that replicates it.
struct Protected {
    primary: Primary,
    guest: Running,
    store: Store,
    checker: Checker,
    tip: Option<Base>,
}

impl Demo {
    /// Installs the VM and replicates it until its host is lost. The newest delta has
    /// arrived by then, but is not applied.
    pub(super) fn protect(&mut self) -> Result<Store, Failure> {
        let mut protected = self.install()?;
        self.say(CYCLE_HEADINGS)?;
        for number in 1..=POINTS {
            self.refuse_if_interrupted()?;
            let sequence = Sequence::new(number);
            let mut cycle = self.replicate(&mut protected, sequence)?;
            if number == KILL_CYCLE {
                (protected, cycle.apply_ms) = self.apply_with_kills(protected)?;
            }
            let applied_ms = self.apply(&mut protected)?;
            cycle.apply_ms = cycle.apply_ms.or(Some(applied_ms));
            self.say(&cycle.line())?;
            if number == KILL_CYCLE {
                self.say(&self.kill_text())?;
            }
            self.report.cycles.push(cycle);
        }
        let last = self.replicate(&mut protected, Sequence::new(POINTS + 1))?;
        self.say(&last.line())?;
        self.report.cycles.push(last);
        self.lose(protected)
    }

    fn install(&mut self) -> Result<Protected, Failure> {
        let primary = Primary::start(self.folder.primary(), self.relationship, self.lineage)?;
        let new = NewStore {
            vm: self.vm,
            relationship: self.relationship,
            lineage: self.lineage,
            disks: DISKS
                .iter()
                .map(|plan| (plan.id(), plan.disk_size()))
                .collect(),
        };
        let disk = Arc::new(RealDisk);
        let store = Store::init(disk, &self.folder.replica(), &new, &holder());
        let store = store.map_err(DemoError::from)?;
        let connect = |disk: &_| primary.connect(disk);
        let mut guest = Guest::start(Moment::empty(), self.random.next(), &connect)?;
        let watch = Stopwatch::start();
        guest.install()?;
        let moment = guest.moment();
        let disks = moment.disks.iter().map(|disk| {
            let bytes: usize = disk.files.values().map(|content| content.len()).sum();
            format!(
                "  {}  {}, a FAT file system with {} files ({})\n",
                disk.id,
                Bytes(disk.shadow.size()),
                disk.files.len(),
                Bytes(bytes as u64)
            )
        });
        self.say(&format!(
            "\nThe VM, installed over NBD in {:.1} s\n{}  \
             The size of sdb is not whole blocks; behind its file system lie raw blocks, as databases\n  \
             use them.\n\n",
            watch.elapsed().as_secs_f64(),
            disks.collect::<String>()
        ))?;
        self.say(
            "Replication: freeze, capture what changed, send, receive, apply, make a recovery point.\n\
             The guest goes on meanwhile, and older points are compared while deltas are applied.\n",
        )?;
        Ok(Protected {
            guest: Running::start(guest)?,
            primary,
            store,
            checker: Checker::start()?,
            tip: None,
        })
    }

    /// Freezes one moment and brings it to the replica, to the receipt.
    fn replicate(
        &mut self,
        protected: &mut Protected,
        sequence: Sequence,
    ) -> Result<Cycle, DemoError> {
        let Protected {
            primary,
            guest,
            store,
            tip,
            ..
        } = protected;
        guest.grant(STEPS);
        guest.wait_for(STEPS / 2)?;
        let safe = Stopwatch::start();
        // The guest holds still, so that its record is of the very instant of the freeze.
        let (view, moment, frozen) = guest.hold(|guest| {
            let watch = Stopwatch::start();
            let view = primary.freeze(sequence);
            (view, guest.moment(), watch.elapsed())
        });
        let view = view?;
        self.moments.insert(sequence, Arc::new(moment));
        let watch = Stopwatch::start();
        let (captured, delta) = primary.capture(&view, sequence, *tip)?;
        let capture = watch.elapsed();
        let watch = Stopwatch::start();
        let received = send(&delta, sequence, store)?;
        let receive = watch.elapsed();
        let receipt = received.receipt;
        let is_ours = (receipt.lineage, receipt.sequence, receipt.id)
            == (self.lineage, sequence, captured.footer.id);
        if !is_ours {
            return Err(DemoError::Receipt { sequence });
        }
        let safe = safe.elapsed();
        primary.release(view, sequence)?;
        *tip = Some(Base {
            sequence,
            id: receipt.id,
        });
        fs::remove_file(&delta).map_err(|source| DemoError::File {
            what: "remove",
            path: delta,
            source,
        })?;
        guest.wait_for(0)?;
        Ok(Cycle {
            sequence,
            changed_bytes: captured.dirty_bytes,
            travelled_bytes: received.bytes,
            frozen_ms: ms(frozen),
            capture_ms: ms(capture),
            receive_ms: ms(receive),
            safe_after_ms: ms(safe),
            apply_ms: None,
        })
    }

    /// Applies what waits and makes a recovery point of it, while older ones are compared.
    /// Answers how many milliseconds applying took.
    fn apply(&mut self, protected: &mut Protected) -> Result<f64, DemoError> {
        self.check_old_points(protected)?;
        let watch = Stopwatch::start();
        let store = &mut protected.store;
        let applied = protected.checker.during(|| store.apply_next(&mut |_| {}));
        applied?;
        let applied_ms = ms(watch.elapsed());
        protected
            .store
            .make_point(clock::wall(), PointKind::Standard)?;
        Ok(applied_ms)
    }

    /// Has the newest recovery point and one of the older ones compared in the background.
    fn check_old_points(&mut self, protected: &Protected) -> Result<(), DemoError> {
        let points = protected.store.points();
        let Some((newest, older)) = points.split_last() else {
            return Ok(());
        };
        let chosen = match older.len() as u64 {
            0 => None,
            count => older.get(self.random.below(count) as usize),
        };
        for point in chosen.into_iter().chain([newest]) {
            let job = self.job(&protected.store, point.sequence)?;
            protected.checker.submit(job);
        }
        Ok(())
    }

    /// Gives the store to processes that are killed while they apply what waits, and
    /// opens it again after each. Answers how many milliseconds one took that was done
    /// before it could be killed.
    fn apply_with_kills(
        &mut self,
        protected: Protected,
    ) -> Result<(Protected, Option<f64>), DemoError> {
        let Protected {
            primary,
            guest,
            mut store,
            checker,
            tip,
        } = protected;
        self.report.comparisons.extend(checker.finish());
        let root = self.folder.replica();
        let mut applied_ms = None;
        for calls in KILL_AT {
            self.refuse_if_interrupted()?;
            drop(store);
            let call = calls.start + self.random.below(calls.end - calls.start);
            let watch = Stopwatch::start();
            let ended = apply_and_be_killed(&root, call)?;
            let child_ms = ms(watch.elapsed());
            let watch = Stopwatch::start();
            store = open(&root)?;
            let recovery_ms = ms(watch.elapsed());
            if ended == Ended::Applied {
                applied_ms = Some(child_ms);
                break;
            }
            let compared =
                self.compare_points(&store, &format!("after kill -9 at change {call}"))?;
            self.report.kills.push(Kill {
                call,
                recovery_ms,
                points_compared: compared.len(),
                verdict: verdict(&compared),
            });
            self.report.comparisons.extend(compared);
        }
        let protected = Protected {
            primary,
            guest,
            store,
            checker: Checker::start()?,
            tip,
        };
        Ok((protected, applied_ms))
    }

    fn kill_text(&self) -> String {
        let line = |kill: &Kill| {
            format!(
                "         ^ kill -9 at change {:3} to the disk; recovered in {:.0} ms, {} points compared: {}\n",
                kill.call, kill.recovery_ms, kill.points_compared, kill.verdict
            )
        };
        self.report.kills.iter().map(line).collect()
    }

    /// Compares every recovery point, read directly.
    pub(super) fn compare_points(
        &self,
        store: &Store,
        when: &str,
    ) -> Result<Vec<Comparison>, DemoError> {
        self.refuse_if_interrupted()?;
        let points = store.points();
        let jobs: Result<Vec<Job>, DemoError> = points
            .iter()
            .map(|point| self.job(store, point.sequence))
            .collect();
        Ok(compare_points(jobs?, when))
    }

    fn job(&self, store: &Store, sequence: Sequence) -> Result<Job, DemoError> {
        let moment = Arc::clone(&self.moments[&sequence]);
        Ok(Job {
            sequence,
            readers: point_readers(store, sequence, &moment)?,
            moment,
        })
    }

    /// The primary's host is gone, in the middle of the guest's work.
    fn lose(&mut self, protected: Protected) -> Result<Store, Failure> {
        let Protected {
            primary,
            guest,
            store,
            checker,
            ..
        } = protected;
        guest.grant(STEPS);
        guest.wait_for(STEPS / 2)?;
        guest.stop()?;
        self.report.unreplicated_bytes = primary.dirty_bytes();
        primary.lose()?;
        self.report.comparisons.extend(checker.finish());
        self.say(&format!(
            "\nThe primary host is lost, and with it {} of changes that were not captured yet.\n",
            Bytes(self.report.unreplicated_bytes)
        ))?;
        Ok(store)
    }
}

/// Opens the store, which brings it into order.
fn open(root: &Path) -> Result<Store, StoreError> {
    Store::open(Arc::new(RealDisk), root, &holder())
}

fn holder() -> String {
    format!("lifeboat demo, process {}", std::process::id())
}
