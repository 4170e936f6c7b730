//! Applying keeps up with receiving, from daemon to daemon, under a VM that never rests.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lifeboat_nbd::Client as NbdClient;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::SettingsChange;
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, MIB, POINTS, Setting};
use crate::guest::Guest;
use crate::hosts::{self, Hosts, Line, Plan, Site, on_demand};
use crate::measure::{Bar, Measurement, Side, Unit, megabytes_per_second};
use crate::report::RowReport;
use crate::view;

const SIZE: u64 = GIB;
const VM: &str = "web";
/// Deltas of which receiving and applying are timed.
const SHAPES: [(&str, u64, usize); 2] = [
    ("256 MiB in pieces of 64 KiB", 256 * MIB, 64 << 10),
    ("64 MiB in pieces of 4 KiB", 64 * MIB, 4 << 10),
];
/// What the steady writer changes in a second, in pieces of 4 KiB.
const RATE: u64 = 20 * 1_000_000;
const STEP: usize = 4 << 10;
/// Seconds between two cycles of the steady writer: the shortest that can be set.
const INTERVAL: u64 = 5;
/// Cycles of the steady writer, of which the second half is looked at.
const CYCLES: u64 = 8;

/// Speeds of one shape, one value per run.
#[derive(Debug, Default)]
struct Speeds {
    applied: Vec<f64>,
    received: Vec<f64>,
}

/// What a steady writer left behind, one value per run.
#[derive(Debug, Default)]
struct Steady {
    /// Bytes that the guest wrote in a second, in 10^6.
    rates: Vec<f64>,
    /// The largest backlog that was seen.
    largest: Vec<f64>,
    /// Bytes that the guest wrote in a cycle.
    per_cycle: Vec<f64>,
    /// The smallest backlog in the last cycle.
    rest: Vec<f64>,
}

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let image = setting.place.join("disk.raw");
    let mut guest = Guest::new(SIZE)?;
    view::write_mixed(&image, SIZE, &mut guest)?;
    let mut hosts = Hosts::start(setting, Line::Direct)?;
    let settings = SettingsChange {
        recovery_history: Some(POINTS as u64),
        ..on_demand()
    };
    hosts.protect(&Plan {
        vm: VM.to_owned(),
        size: SIZE,
        image: Some(image),
        settings,
    })?;
    for _ in 0..POINTS {
        follow(&mut hosts, &mut guest, 16 * MIB, 64 << 10)?;
        hosts.beta.operate(VM, &VmRequest::MakePoint)?;
    }
    let points = hosts.beta.ask("list points", |client| client.points(VM))?;
    let points = points.value.len();
    ensure!(
        points >= POINTS,
        "there are {points} recovery points, and {POINTS} were made"
    );

    let mut speeds = [Speeds::default(), Speeds::default()];
    for _ in 0..setting.runs {
        for ((_, bytes, step), speeds) in SHAPES.into_iter().zip(&mut speeds) {
            one_delta(setting, &mut hosts, &mut guest, (bytes, step), speeds)?;
        }
    }
    let change = SettingsChange {
        replication_interval: Some(INTERVAL),
        ..SettingsChange::default()
    };
    hosts
        .alpha
        .operate(VM, &VmRequest::ModifySettings(change))?;
    let mut steady = Steady::default();
    for _ in 0..setting.runs {
        write_steadily(&mut hosts, &mut guest, &mut steady)?;
    }
    Ok(report(speeds, steady))
}

fn report(speeds: [Speeds; 2], steady: Steady) -> RowReport {
    let received_small = speeds[1].received.clone();
    let mut measurements = Vec::new();
    for ((name, _, _), speeds) in SHAPES.into_iter().zip(speeds) {
        let compared = Measurement::compared(
            name,
            Unit::MegabytesPerSecond,
            Side::new("apply", speeds.applied),
            Side::new("receive over TLS", speeds.received),
            Bar::Record,
        );
        measurements.push(compared);
    }
    measurements.extend([
        Measurement::compared(
            "what the steady writer changes, against receiving",
            Unit::MegabytesPerSecond,
            Side::new("a guest that never rests", steady.rates),
            Side::new("receive over TLS, pieces of 4 KiB", received_small),
            Bar::Record,
        ),
        Measurement::compared(
            "steady writer: largest backlog of cycles 5 to 8",
            Unit::Bytes,
            Side::new("received, not yet applied", steady.largest),
            Side::new("written in one cycle", steady.per_cycle),
            Bar::RatioAtMost(1.2),
        ),
        Measurement::alone(
            "steady writer: backlog left in cycle 8",
            Unit::Bytes,
            Side::new("received, not yet applied", steady.rest),
            Bar::AtMost(0.0),
        ),
    ]);
    RowReport {
        name: "keep-up",
        about: "From daemon to daemon over mutual TLS, uncompressed, a disk of 1 GiB that is full, 24 recovery points, every block touched \
                first. Receiving is from the first byte sent to the receipt, applying from the receipt until nothing waits. Then \
                a guest that changes 20 MB a second at random in pieces of 4 KiB for 8 cycles of 5 s.",
        measurements,
        notes: Vec::new(),
    }
}

/// Lets the guest change something, and returns when the replica has applied it.
fn follow(hosts: &mut Hosts, guest: &mut Guest, bytes: u64, step: usize) -> Result<()> {
    let changes = guest.scattered(SIZE, bytes, step);
    hosts::write(&hosts.alpha.disk(VM)?, guest, &changes)?;
    hosts.cycle(VM)?;
    hosts.wait_until_applied(Site::Beta, VM)
}

/// Times receiving and applying of one delta that touches every block first.
fn one_delta(
    setting: &Setting,
    hosts: &mut Hosts,
    guest: &mut Guest,
    (bytes, step): (u64, usize),
    speeds: &mut Speeds,
) -> Result<()> {
    hosts.beta.operate(VM, &VmRequest::MakePoint)?;
    let changes = guest.scattered(SIZE, bytes, step);
    hosts::write(&hosts.alpha.disk(VM)?, guest, &changes)?;
    setting.place.sync()?;
    let known = hosts.alpha.last_moment(VM)?;
    hosts.alpha.ask_for_cycle(VM)?;
    hosts.alpha.wait("a delta on its way", |host| {
        let activity = host.activity(VM)?;
        Ok(activity.filter(|(what, _)| what == "sending").map(|_| ()))
    })?;
    let watch = Stopwatch::start();
    hosts.alpha.wait("the receipt", |host| {
        Ok((host.last_moment(VM)? > known).then_some(()))
    })?;
    let received = watch.elapsed();
    let watch = Stopwatch::start();
    hosts.wait_until_applied(Site::Beta, VM)?;
    let applied = watch.elapsed();
    speeds.received.push(megabytes_per_second(bytes, received));
    speeds.applied.push(megabytes_per_second(bytes, applied));
    Ok(())
}

/// Lets the guest write at a steady rate, and watches the backlog.
fn write_steadily(hosts: &mut Hosts, guest: &mut Guest, steady: &mut Steady) -> Result<()> {
    let client = hosts.alpha.disk(VM)?;
    let (written, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_at_rate(&client, guest, &written, &is_over));
        let seen = watch_backlog(hosts, &written, steady);
        is_over.store(true, Ordering::Relaxed);
        let wrote = writer.join();
        wrote.map_err(|_| anyhow!("BUG: the writer panicked"))??;
        seen
    })
}

fn write_at_rate(
    client: &NbdClient,
    guest: &mut Guest,
    written: &AtomicU64,
    is_over: &AtomicBool,
) -> Result<()> {
    /// What is written before the writer looks at the time.
    const BURST: u64 = 256 << 10;
    let watch = Stopwatch::start();
    while !is_over.load(Ordering::Relaxed) {
        let done = written.load(Ordering::Relaxed);
        let due = Duration::from_secs_f64(done as f64 / RATE as f64);
        if let Some(early) = due.checked_sub(watch.elapsed()) {
            std::thread::sleep(early);
        }
        for change in guest.scattered(SIZE, BURST, STEP) {
            hosts::write_one(client, guest, change)?;
        }
        written.fetch_add(BURST, Ordering::Relaxed);
    }
    client.flush().context("let the guest flush")
}

/// Looks at the backlog until enough cycles were made.
fn watch_backlog(hosts: &mut Hosts, written: &AtomicU64, steady: &mut Steady) -> Result<()> {
    /// How often it is looked at.
    const LOOK: Duration = Duration::from_millis(50);
    let first = hosts.alpha.last_moment(VM)?;
    let watch = Stopwatch::start();
    let before = written.load(Ordering::Relaxed);
    let (mut largest, mut rest) = (0, u64::MAX);
    loop {
        let made = hosts.alpha.last_moment(VM)? - first;
        if made > CYCLES {
            break;
        }
        let backlog = hosts.beta.backlog(VM)?;
        if made >= CYCLES / 2 {
            largest = largest.max(backlog);
        }
        if made == CYCLES {
            rest = rest.min(backlog);
        }
        std::thread::sleep(LOOK);
    }
    let bytes = written.load(Ordering::Relaxed) - before;
    steady
        .rates
        .push(megabytes_per_second(bytes, watch.elapsed()));
    steady.largest.push(largest as f64);
    steady.per_cycle.push(bytes as f64 / (CYCLES + 1) as f64);
    steady.rest.push(rest as f64);
    Ok(())
}
