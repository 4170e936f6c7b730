//! Commit of a failover to the oldest of 24 points: every block is written once.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lifeboat_store::FailoverTarget;
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, MIB, POINTS, Setting};
use crate::guest::Change;
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place::Place;
use crate::program;
use crate::replica::{Rehearsal, Replica};
use crate::report::RowReport;

/// Copies under way at once in the copy that a commit is compared with.
const DEPTH: usize = 16;

const READS_ALL: &str = "every run of every segment is verified before the point of no return, also the runs that an older segment \
                         hides: 1.4 times what is copied here, and the device decides. Asking the kernel for 16 MiB ahead \
                         changed nothing.";

const EVERY_RUN_COSTS: &str = "sharing a run costs about 0.1 ms where the head's own blocks have to be freed for it, more than half of that \
                               in the sync, whatever the run's length; these are 64 KiB, the shortest that are shared. Runs that are shared \
                               already cost a tenth, which is the fastest run.";

/// What a kind of guest writes between two points.
struct Writes {
    per_point: u64,
    step: usize,
}

const LARGE: Writes = Writes {
    per_point: 32 * MIB,
    step: 64 << 10,
};
/// A quarter of that, because QEMU takes long for small pieces.
const SMALL: Writes = Writes {
    per_point: 8 * MIB,
    step: 4 << 10,
};

/// What is in the page cache when the commit begins.
#[derive(Clone, Copy)]
enum Cache {
    Warm,
    Cold,
}

impl Cache {
    fn ready(self, place: &Place) -> Result<()> {
        match self {
            Self::Warm => {
                place.warm()?;
                place.sync()
            }
            Self::Cold => place.sync_and_forget(),
        }
    }
}

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let mut measurements = Vec::new();
    let mut notes = Vec::new();
    let place = &setting.place;

    let large = failed_over(place, &LARGE)?;
    let against_qemu = "qemu-img commit of the same chain, then sync";
    let compared = |name: &str, [ours, theirs]: [Vec<f64>; 2], most, cause| {
        Measurement::compared(
            name,
            Unit::Seconds,
            Side::new("Lifeboat", ours),
            Side::new(against_qemu, theirs),
            Bar::RatioAtMost(most),
        )
        .explained(cause)
    };
    let warm = against(setting.runs, &large, Cache::Warm)?;
    measurements.push(compared("64 KiB, warm", warm, 0.8, READS_ALL));
    let copied = extents_to_copy(&large)?;
    let (mut ours, mut theirs, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        ours.push(our_commit(&large, Cache::Cold)?);
        theirs.push(qemu_commit(&large, Cache::Cold)?);
        copies.push(copy_extents(place, &copied)?.as_secs_f64());
    }
    measurements.push(compared(
        "64 KiB, cold",
        [ours.clone(), theirs],
        0.8,
        READS_ALL,
    ));
    let against_copy = Measurement::compared(
        "64 KiB, cold, against a copy",
        Unit::Seconds,
        Side::new("Lifeboat", ours),
        Side::new("copy of as many extents at depth 16, with fsync", copies),
        Bar::RatioAtMost(1.5),
    );
    measurements.push(against_copy.explained(READS_ALL));
    place.clear()?;

    let small = failed_over(place, &SMALL)?;
    let warm = against(setting.runs, &small, Cache::Warm)?;
    measurements.push(compared("4 KiB, warm", warm, 0.4, READS_ALL));
    place.clear()?;

    let shared = failed_over(&setting.shared, &LARGE)?;
    let (_, committed) = shared.commit(|place| Cache::Warm.ready(place))?;
    notes.push(format!(
        "Where blocks are shared, a commit shared {} MiB and wrote {} MiB of data.",
        committed.shared_bytes >> 20,
        committed.written_bytes >> 20
    ));
    let warm = against(setting.runs, &shared, Cache::Warm)?;
    measurements.push(compared(
        "64 KiB, warm, blocks shared (XFS)",
        warm,
        0.5,
        EVERY_RUN_COSTS,
    ));
    Ok(RowReport {
        name: "commit-oldest",
        about: "Durable answer to a commit of the oldest of 24 points; VM off, disk of 1 GiB, before each point the guest \
                wrote 32 MiB in pieces of 64 KiB or 8 MiB in pieces of 4 KiB, scattered (scaled from 1 GiB).",
        measurements,
        notes,
    })
}

fn failed_over(place: &Place, writes: &Writes) -> Result<Rehearsal> {
    let mut replica = Replica::create(&place.join("store"), GIB, GIB)?;
    replica.make_points(POINTS, GIB, writes.per_point, writes.step)?;
    let oldest = replica.oldest()?;
    replica.start_failover(FailoverTarget::Point(oldest))?;
    Rehearsal::of(replica, place, "store")
}

/// Our commit and QEMU's, in turn.
fn against(runs: usize, rehearsal: &Rehearsal, cache: Cache) -> Result<[Vec<f64>; 2]> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(our_commit(rehearsal, cache)?);
        theirs.push(qemu_commit(rehearsal, cache)?);
    }
    Ok([ours, theirs])
}

fn our_commit(rehearsal: &Rehearsal, cache: Cache) -> Result<f64> {
    let (time, _) = rehearsal.commit(|place| cache.ready(place))?;
    Ok(time.as_secs_f64())
}

fn qemu_commit(rehearsal: &Rehearsal, cache: Cache) -> Result<f64> {
    rehearsal.restore()?;
    let place = rehearsal.place();
    cache.ready(place)?;
    let watch = Stopwatch::start();
    program::output(
        Command::new("qemu-img")
            .args(["commit", "-q", "-d", "-b"])
            .args([rehearsal.wrapper(), rehearsal.overlay()]),
    )?;
    place.sync()?;
    Ok(watch.elapsed().as_secs_f64())
}

/// As many extents as the commit writes, of the same size, scattered alike.
fn extents_to_copy(rehearsal: &Rehearsal) -> Result<Vec<(u64, u64)>> {
    let (_, committed) = rehearsal.commit(|_| Ok(()))?;
    let mut guest = crate::guest::Guest::new(GIB)?;
    let writes = guest.scattered(GIB, committed.written_bytes, LARGE.step);
    let source = rehearsal.place().join("source.raw");
    let mut file = File::create(&source).with_context(|| format!("create {}", source.display()))?;
    for _ in 0..committed.written_bytes / MIB + 1 {
        file.write_all(&guest.bytes(MIB as usize))
            .context("write what is copied")?;
    }
    let target = rehearsal.place().join("target.raw");
    let mut whole =
        File::create(&target).with_context(|| format!("create {}", target.display()))?;
    std::io::copy(
        &mut File::open(&rehearsal.started.disks[0].head)
            .context("open the head")?
            .take(GIB),
        &mut whole,
    )
    .context("fill what is copied to")?;
    // A segment has its blocks in the order of the disk.
    Ok(writes
        .into_iter()
        .enumerate()
        .filter_map(|(at, change)| match change {
            Change::Write { offset, .. } => Some((at as u64 * LARGE.step as u64, offset)),
            Change::Zero { .. } => None,
        })
        .collect())
}

/// Copies the extents, cold, with `DEPTH` copies under way at once.
fn copy_extents(place: &Place, extents: &[(u64, u64)]) -> Result<Duration> {
    place.sync_and_forget()?;
    let source = File::open(place.join("source.raw")).context("open what is copied")?;
    let target = fs::OpenOptions::new()
        .write(true)
        .open(place.join("target.raw"))
        .context("open what is copied to")?;
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        for _ in 0..DEPTH {
            scope.spawn(|| {
                let mut buffer = vec![0; LARGE.step];
                while let Some(&(from, to)) = extents.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let copied = source
                        .read_exact_at(&mut buffer, from)
                        .and_then(|()| target.write_all_at(&buffer, to));
                    if let Err(error) = copied {
                        *failed.lock().expect("BUG: no copy panics") = Some(error);
                        return;
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("BUG: no copy panics");
    failed.map_or(Ok(()), |error| Err(anyhow!(error).context("copy")))?;
    target.sync_all().context("sync the copy")?;
    Ok(watch.elapsed())
}
