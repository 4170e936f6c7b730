//! Start of a recovery point: failover, then QEMU until its machine runs on the overlay.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lifeboat_store::FailoverTarget;
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, MIB, POINTS, Setting};
use crate::guest::UNCOMPRESSED;
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::qemu::Qemu;
use crate::replica::Replica;
use crate::report::RowReport;

const TIB: u64 = 1 << 40;
const STEP: usize = 4 << 10;
/// What the guest wrote before each point.
const PER_POINT: u64 = 4 * MIB;
/// What it wrote since the last failover, so that there is an open segment to seal.
const SINCE: u64 = 2 * MIB;

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let mut large = Replica::create(&setting.place.join("large"), TIB, GIB)?;
    large.make_points(POINTS, TIB, PER_POINT, STEP)?;
    let mut small = Replica::create(&setting.place.join("small"), GIB, GIB)?;
    // The first start of an older point seals what nothing has sealed before.
    let all_open = start_oldest(&mut large)?.as_secs_f64();
    let (mut newest, mut bare, mut oldest) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        let changes = large.guest.scattered(TIB, SINCE, STEP);
        large.follow(&changes, UNCOMPRESSED)?;
        setting.place.sync()?;
        newest.push(start(&mut large, FailoverTarget::Newest)?.as_secs_f64());
        bare.push(start(&mut small, FailoverTarget::Newest)?.as_secs_f64());
        oldest.push(start_oldest(&mut large)?.as_secs_f64());
    }
    let what_large = "1 TiB, 24 points";
    Ok(RowReport {
        name: "start",
        about: "From the command to QEMU's `running` (a machine without devices) on the failover's overlay, store open, \
                spool empty. The disk of 1 TiB is sparse: 1 GiB at its beginning and 4 MiB in pieces of 4 KiB before each point.",
        measurements: vec![
            Measurement::compared(
                "newest",
                Unit::Seconds,
                Side::new(what_large, newest.clone()),
                Side::new("1 GiB, no points", bare),
                Bar::RatioAtMost(1.2),
            ),
            Measurement::alone(
                "newest, bound",
                Unit::Seconds,
                Side::new(what_large, newest),
                Bar::Percentile95AtMost(1.0),
            ),
            Measurement::alone(
                "oldest, bound",
                Unit::Seconds,
                Side::new("1 TiB, 24 points, sealed but for the newest 2 MiB", oldest),
                Bar::Percentile95AtMost(1.5),
            ),
            Measurement::alone(
                "oldest, first start",
                Unit::Seconds,
                Side::new("1 TiB, 24 points, none sealed", vec![all_open]),
                Bar::Record,
            ),
        ],
        notes: Vec::new(),
    })
}

fn start_oldest(replica: &mut Replica) -> Result<Duration> {
    let point = replica.oldest()?;
    start(replica, FailoverTarget::Point(point))
}

/// Fails over, starts QEMU, and gives the failover up again.
fn start(replica: &mut Replica, target: FailoverTarget) -> Result<Duration> {
    let watch = Stopwatch::start();
    let started = replica.start_failover(target)?;
    let machine = Qemu::start_machine(&started.disks[0].image)?;
    let time = watch.elapsed();
    drop(machine);
    replica
        .store
        .revert_failover()
        .context("give up the failover")?;
    Ok(time)
}
