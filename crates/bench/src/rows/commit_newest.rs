//! Commit of a failover to the newest point: only what the guest wrote since is moved.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lifeboat_qcow2::{Backing, BackingFormat, Below, Overlay, create_overlay};
use lifeboat_store::FailoverTarget;
use lifeboat_sys::clock::Stopwatch;
use lifeboat_sys::disk::{Access, DiskPort as _, RealDisk};

use super::{GIB, MIB, POINTS, Setting};
use crate::guest::{Change, Guest};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place::Place;
use crate::program;
use crate::replica::{Rehearsal, Replica};
use crate::report::RowReport;

/// What the guest wrote before each point, and the pieces it wrote in.
const PER_POINT: u64 = 64 * MIB;
const STEP: usize = 64 << 10;
/// What the guest wrote since the failover.
const SINCE_FAILOVER: u64 = 256 * MIB;

const SCALE: &str = "a commit takes nine syncs whatever the points hold, QEMU's grows with them: at the 1 GiB each that the bar was \
                     written for it copies sixteen times as much as here.";

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let idle = Rehearsal::of(failed_over(place, "points", POINTS)?, place, "points")?;
    let chain = forward_chain(place)?;
    let (mut nothing, mut merged) = (Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        nothing.push(idle.commit(ready)?.0.as_secs_f64());
        merged.push(commit_chain(place, &chain)?.as_secs_f64());
    }
    remove_chain(place, &chain)?;

    let with_points = written(idle.reopen()?, place, "points")?;
    let without = written(failed_over(place, "none", 0)?, place, "none")?;
    let (mut ours, mut bare, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        ours.push(with_points.commit(ready)?.0.as_secs_f64());
        theirs.push(qemu_commit(&with_points)?.as_secs_f64());
        bare.push(without.commit(ready)?.0.as_secs_f64());
    }

    let what_ours = "Lifeboat, 24 points";
    Ok(RowReport {
        name: "commit-newest",
        about: "Durable answer to a commit of the newest point; VM off, disk of 1 GiB, 24 points of 64 MiB in pieces of \
                64 KiB (scaled from 1 GiB each), files in the page cache. The guest wrote 256 MiB in pieces of 64 KiB since \
                the failover, or nothing.",
        measurements: vec![
            Measurement::compared(
                "256 MiB written since",
                Unit::Seconds,
                Side::new(what_ours, ours.clone()),
                Side::new("qemu-img commit of the same overlay, then sync", theirs),
                Bar::ExtraAndRatioAtMost {
                    extra: 0.2,
                    ratio: 1.2,
                },
            ),
            Measurement::compared(
                "256 MiB written since, points make no difference",
                Unit::Seconds,
                Side::new(what_ours, ours),
                Side::new("Lifeboat, no points", bare),
                Bar::RatioAtMost(1.2),
            ),
            Measurement::compared(
                "nothing written since",
                Unit::Seconds,
                Side::new(what_ours, nothing),
                Side::new(
                    "qemu-img commit of a chain of 24 snapshots, then sync",
                    merged,
                ),
                Bar::RatioAtMost(0.01),
            )
            .explained(SCALE),
        ],
        notes: Vec::new(),
    })
}

/// A store with so many points that is failed over to its newest state.
fn failed_over(place: &Place, name: &str, points: usize) -> Result<Replica> {
    let mut replica = Replica::create(&place.join(name), GIB, GIB)?;
    replica.make_points(points, GIB, PER_POINT, STEP)?;
    replica.start_failover(FailoverTarget::Newest)?;
    Ok(replica)
}

/// Lets the failed-over guest write.
fn written(mut replica: Replica, place: &Place, name: &str) -> Result<Rehearsal> {
    let changes = replica.guest.scattered(GIB, SINCE_FAILOVER, STEP);
    replica.write_overlay(&changes)?;
    Rehearsal::of(replica, place, name)
}

/// Everything written out and in the page cache: the VM has just been shut down.
fn ready(place: &Place) -> Result<()> {
    place.warm()?;
    place.sync()
}

/// What QEMU takes to move the same overlay into the same head.
fn qemu_commit(rehearsal: &Rehearsal) -> Result<Duration> {
    rehearsal.restore()?;
    let place = rehearsal.place();
    ready(place)?;
    let watch = Stopwatch::start();
    program::output(
        Command::new("qemu-img")
            .args(["commit", "-q", "-d"])
            .arg(rehearsal.overlay()),
    )?;
    place.sync()?;
    Ok(watch.elapsed())
}

/// The same points as a replica keeps them that takes a snapshot for each: a raw base, and an
/// overlay for every point.
fn forward_chain(place: &Place) -> Result<Vec<String>> {
    let mut guest = Guest::new(GIB)?;
    let base = place.join("base.raw");
    let whole: Vec<Change> = guest.scattered(GIB, GIB, MIB as usize);
    let file = RealDisk.create(&base).context("make the base")?;
    for change in whole {
        if let Change::Write { offset, len } = change {
            file.write_at(&guest.bytes(len), offset)
                .context("write the base")?;
        }
    }
    let mut names = vec!["base.raw".to_owned()];
    for number in 1..=POINTS {
        let name = format!("layer-{number}.qcow2");
        let below = &names[names.len() - 1];
        write_layer(place, &name, below, &mut guest)?;
        names.push(name);
    }
    Ok(names)
}

fn write_layer(place: &Place, name: &str, below: &str, guest: &mut Guest) -> Result<()> {
    let file = RealDisk.create(&place.join(name)).context("make a layer")?;
    let format = if below.ends_with(".raw") {
        BackingFormat::Raw
    } else {
        BackingFormat::Qcow2
    };
    let below = Below::Named(Backing {
        name: below,
        format,
    });
    create_overlay(file.as_ref(), GIB, below).context("make a layer")?;
    let overlay = Overlay::open(file, Access::ReadWrite).context("open a layer")?;
    for change in guest.scattered(GIB, PER_POINT, STEP) {
        if let Change::Write { offset, len } = change {
            // Whole blocks of 4 KiB never need what is below.
            overlay
                .write(offset, &guest.bytes(len), &|_, buffer| {
                    buffer.fill(0);
                    Ok(())
                })
                .context("write a layer")?;
        }
    }
    overlay.flush().context("flush a layer")
}

/// Merges the newest layer into the base; the files can be merged again, with the same work.
fn commit_chain(place: &Place, names: &[String]) -> Result<Duration> {
    place.warm()?;
    place.sync()?;
    let newest: &Path = names[names.len() - 1].as_ref();
    let watch = Stopwatch::start();
    program::output(
        Command::new("qemu-img")
            .current_dir(place.folder())
            .args(["commit", "-q", "-d", "-b", &names[0]])
            .arg(newest),
    )?;
    place.sync()?;
    Ok(watch.elapsed())
}

fn remove_chain(place: &Place, names: &[String]) -> Result<()> {
    names
        .iter()
        .try_for_each(|name| std::fs::remove_file(place.join(name)).context("remove a layer"))
}
