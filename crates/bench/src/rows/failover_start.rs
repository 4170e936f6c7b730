//! An unplanned failover: from the request to the VM that runs on the other host.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lifeboat_model::contract::ReplicationState;
use lifeboat_nbd::{Client as NbdClient, ClientOptions};
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, MIB, Setting};
use crate::guest::Guest;
use crate::hosts::{self, Hosts, Line, Plan, Site, on_demand};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place::Place;
use crate::program;
use crate::qemu::{Door, Qemu, export_uri};
use crate::report::RowReport;
use crate::view;

const SIZE: u64 = GIB;
const VM: &str = "web";
/// What the last delta before the failover changes.
const BACKLOG: u64 = 128 * MIB;
const STEP: usize = 4 << 10;

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let mut guest = Guest::new(SIZE)?;
    let (ours, theirs) = view::write_pair(place, SIZE, &mut guest)?;
    let mut hosts = Hosts::start(setting, Line::Direct)?;
    hosts.protect(&Plan {
        vm: VM.to_owned(),
        size: SIZE,
        image: Some(ours),
        settings: on_demand(),
    })?;

    let (mut empty, mut overlay) = (Vec::new(), Vec::new());
    let (mut waiting, mut applied, mut left) = (Vec::new(), Vec::new(), Vec::new());
    let mut silent = Vec::new();
    for _ in 0..setting.runs {
        hosts.alpha.halt()?;
        silent.push(hosts.beta.fail_over(VM)?.as_secs_f64());
        hosts.beta.revert(VM)?;
        hosts.alpha.go_on()?;

        receive(setting, &mut hosts, &mut guest)?;
        let watch = Stopwatch::start();
        hosts.wait_until_applied(Site::Beta, VM)?;
        applied.push(watch.elapsed().as_secs_f64());

        receive(setting, &mut hosts, &mut guest)?;
        left.push(hosts.beta.backlog(VM)? as f64);
        hosts.alpha.kill();
        waiting.push(hosts.beta.fail_over(VM)?.as_secs_f64());
        hosts.beta.revert(VM)?;
        place.sync()?;

        empty.push(hosts.beta.fail_over(VM)?.as_secs_f64());
        hosts.beta.revert(VM)?;
        overlay.push(start_overlay(place, &theirs)?.as_secs_f64());

        hosts.alpha.start()?;
        hosts
            .alpha
            .wait_for_state(VM, ReplicationState::Replicating)?;
        hosts.alpha.wait("the VM at its own host", |host| {
            Ok(host.disk(VM).ok().map(|_| ()))
        })?;
        hosts.cycle(VM)?;
        hosts.wait_until_applied(Site::Beta, VM)?;
    }
    let (request, no_backlog) = ("Lifeboat", "nothing waits to be applied");
    Ok(RowReport {
        name: "failover-start",
        about: "From the request of an unplanned failover to the newest moment until the VM has started and the first bytes of its \
                disk of 1 GiB have been read over NBD; two requests over the unix socket, the commitment of the catalog included. The \
                primary's daemon was killed just before. Beside it the bare minimum: qemu-img makes an overlay on an equal disk, \
                qemu-storage-daemon serves it, and the first bytes are read. A backlog is a delta of 128 MiB in pieces of 4 KiB \
                that was received at the moment of the request.",
        measurements: vec![
            Measurement::compared(
                no_backlog,
                Unit::Seconds,
                Side::new(request, empty.clone()),
                Side::new("an overlay in qemu-storage-daemon", overlay),
                Bar::Record,
            ),
            Measurement::alone(
                "nothing waits to be applied, bound",
                Unit::Seconds,
                Side::new(request, empty),
                Bar::Percentile95AtMost(1.0),
            ),
            Measurement::compared(
                "128 MiB wait to be applied",
                Unit::Seconds,
                Side::new(request, waiting),
                Side::new("applying as much without a failover", applied),
                Bar::ExtraAndRatioAtMost {
                    extra: 1.0,
                    ratio: 1.0,
                },
            ),
            Measurement::alone(
                "backlog just before that failover",
                Unit::Bytes,
                Side::new("received, not yet applied", left),
                Bar::Record,
            ),
            Measurement::alone(
                "the primary's host takes connections and does not answer",
                Unit::Seconds,
                Side::new(request, silent),
                Bar::Record,
            ),
        ],
        notes: Vec::new(),
    })
}

/// Lets the guest change what becomes the backlog, and returns when beta has received it.
fn receive(setting: &Setting, hosts: &mut Hosts, guest: &mut Guest) -> Result<()> {
    let changes = guest.scattered(SIZE, BACKLOG, STEP);
    hosts::write(&hosts.alpha.disk(VM)?, guest, &changes)?;
    setting.place.sync()?;
    hosts.cycle(VM)?;
    Ok(())
}

/// What a start needs at the least.
fn start_overlay(place: &Place, image: &Path) -> Result<Duration> {
    const EXPORT: &str = "disk";
    let (overlay, socket) = (place.join("overlay.qcow2"), place.join("overlay.sock"));
    let watch = Stopwatch::start();
    program::output(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(image)
            .arg(&overlay),
    )?;
    let mut qemu = Qemu::serve_qcow2(&overlay, Door::Unix(&socket))?;
    qemu.export(EXPORT)?;
    let uri = export_uri(&socket, EXPORT)?;
    let client = NbdClient::connect(&uri, &ClientOptions::default()).context("connect")?;
    client.read(0, &mut [0; 4096]).context("read an overlay")?;
    let time = watch.elapsed();
    drop(qemu);
    std::fs::remove_file(&overlay).context("remove the overlay")?;
    Ok(time)
}
