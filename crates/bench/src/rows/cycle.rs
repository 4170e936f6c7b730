//! One cycle of replication between two hosts, beside QEMU's own incremental backup.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lifeboat_nbd::Client as NbdClient;

use super::{GIB, MIB, Setting};
use crate::guest::Guest;
use crate::hosts::{self, Hosts, Line, Plan, Site, on_demand};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::report::RowReport;
use crate::stock::{Backup, Certificates, Served};
use crate::view;

const SIZE: u64 = GIB;
const VM: &str = "web";
/// What the guest changes before a cycle.
const CHANGED: u64 = 16 * MIB;
const STEP: usize = 4 << 10;
/// Idle cycles that are counted together, because processor time comes in steps of 10 ms.
const IDLE_CYCLES: u32 = 20;
/// How long nobody asks the daemons anything while their processor time is counted.
const IDLE_REST: Duration = Duration::from_millis(150);
const BUSY_REST: Duration = Duration::from_millis(1500);

/// What cycles cost, one value per run.
#[derive(Debug, Default)]
struct Costs {
    times: Vec<f64>,
    cpu: Vec<f64>,
    bytes: Vec<f64>,
}

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let mut guest = Guest::new(SIZE)?;
    let (ours, theirs) = view::write_pair(place, SIZE, &mut guest)?;
    let certificates = Certificates::make(&place.join("certificates"))?;
    let mut backup = Backup::start(place, &theirs, &certificates)?;
    let whole_image = place.join("whole.raw");
    std::fs::copy(&ours, &whole_image).context("copy the disk for nbdcopy")?;
    let whole = Served::tls(&whole_image, &certificates)?;
    let mut hosts = Hosts::start(setting, Line::Counted)?;
    hosts.protect(&Plan {
        vm: VM.to_owned(),
        size: SIZE,
        image: Some(ours),
        settings: on_demand(),
    })?;

    let (mut idle, mut idle_backup) = (Costs::default(), Costs::default());
    let (mut busy, mut busy_backup) = (Costs::default(), Costs::default());
    let mut copies = Vec::new();
    for _ in 0..setting.runs {
        idle_cycles(&mut hosts, &mut idle)?;
        idle_backups(&mut backup, &mut idle_backup)?;
        busy_cycle(setting, &mut hosts, &mut guest, &mut busy)?;
        busy_backup_cycle(setting, &mut backup, &mut guest, &mut busy_backup)?;
        copies.push(whole.copy_to_file(place, SIZE)?.as_secs_f64());
    }
    Ok(report(idle, idle_backup, busy, busy_backup, copies))
}

fn report(
    idle: Costs,
    idle_backup: Costs,
    busy: Costs,
    busy_backup: Costs,
    copies: Vec<f64>,
) -> RowReport {
    let (lifeboat, qemu) = ("both daemons", "both QEMU");
    let compared = |name: &str, unit, a: Vec<f64>, theirs: &str, b: Vec<f64>, bar| {
        let a = Side::new(lifeboat, a);
        Measurement::compared(name, unit, a, Side::new(theirs, b), bar)
    };
    let busy_times = busy.times.clone();
    RowReport {
        name: "cycle",
        about: "One cycle of a VM whose disk of 1 GiB is full: nothing changed, or 16 MiB at random in pieces of 4 KiB. Time is \
                from the wish to the receipt (captured, sent over mutual TLS, verified, durable); processor time and bytes are of \
                the whole cycle with applying, both ways, TLS included. Beside it QEMU's incremental backup by a bitmap of 4 KiB from \
                qemu-storage-daemon to another one over mutual TLS, with fsync: it writes straight into the only copy, checks \
                nothing, and keeps no older point. Idle cycles are the average of 20.",
        measurements: vec![
            compared(
                "idle: time",
                Unit::Seconds,
                idle.times,
                qemu,
                idle_backup.times,
                Bar::Record,
            ),
            compared(
                "idle: processor time",
                Unit::Seconds,
                idle.cpu,
                qemu,
                idle_backup.cpu,
                Bar::AtMost(0.1),
            ),
            Measurement::alone(
                "idle: bytes on the wire",
                Unit::Bytes,
                Side::new(lifeboat, idle.bytes),
                Bar::AtMost(20.0 * 1024.0),
            ),
            compared(
                "16 MiB: time",
                Unit::Seconds,
                busy.times,
                qemu,
                busy_backup.times,
                Bar::Record,
            ),
            compared(
                "16 MiB: time, against a whole copy",
                Unit::Seconds,
                busy_times,
                "nbdcopy of the whole disk over TLS, with fsync",
                copies,
                Bar::Record,
            ),
            compared(
                "16 MiB: processor time",
                Unit::Seconds,
                busy.cpu,
                qemu,
                busy_backup.cpu,
                Bar::Record,
            ),
            compared(
                "16 MiB: bytes on the wire for each changed byte",
                Unit::PerChangedByte,
                busy.bytes,
                qemu,
                busy_backup.bytes,
                Bar::AtMost(1.05),
            ),
        ],
        notes: Vec::new(),
    }
}

fn idle_cycles(hosts: &mut Hosts, costs: &mut Costs) -> Result<()> {
    let mut time = Duration::ZERO;
    for _ in 0..IDLE_CYCLES {
        time += hosts.cycle(VM)?;
    }
    hosts.wait_until_applied(Site::Beta, VM)?;
    costs.times.push((time / IDLE_CYCLES).as_secs_f64());
    // Again, without questions: those cost the daemons time, too.
    let known = hosts.alpha.last_moment(VM)?;
    let (cpu, bytes) = (hosts.cpu()?, hosts.bytes());
    for _ in 0..IDLE_CYCLES {
        hosts.alpha.ask_for_cycle(VM)?;
        std::thread::sleep(IDLE_REST);
    }
    let (cpu, bytes) = (hosts.cpu()? - cpu, hosts.bytes() - bytes);
    // On a loaded machine one wish may meet the next.
    let made = hosts.alpha.last_moment(VM)? - known;
    let made = u32::try_from(made).context("count cycles")?;
    ensure!(made > 0, "no cycle was made in the time of {IDLE_CYCLES}");
    costs.cpu.push((cpu / made).as_secs_f64());
    costs.bytes.push(bytes as f64 / f64::from(made));
    Ok(())
}

fn idle_backups(backup: &mut Backup, costs: &mut Costs) -> Result<()> {
    let cpu = backup.cpu()?;
    let mut time = Duration::ZERO;
    for _ in 0..IDLE_CYCLES {
        time += backup.cycle()?;
    }
    costs.times.push((time / IDLE_CYCLES).as_secs_f64());
    let cpu = (backup.cpu()? - cpu) / IDLE_CYCLES;
    costs.cpu.push(cpu.as_secs_f64());
    Ok(())
}

fn busy_cycle(
    setting: &Setting,
    hosts: &mut Hosts,
    guest: &mut Guest,
    costs: &mut Costs,
) -> Result<()> {
    let client = hosts.alpha.disk(VM)?;
    change(&client, guest)?;
    setting.place.sync()?;
    costs.times.push(hosts.cycle(VM)?.as_secs_f64());
    hosts.wait_until_applied(Site::Beta, VM)?;
    // Again, without questions.
    change(&client, guest)?;
    setting.place.sync()?;
    let known = hosts.alpha.last_moment(VM)?;
    let (cpu, bytes) = (hosts.cpu()?, hosts.bytes());
    hosts.alpha.ask_for_cycle(VM)?;
    std::thread::sleep(BUSY_REST);
    hosts.alpha.wait("the moment at the replica", |host| {
        Ok((host.last_moment(VM)? > known).then_some(()))
    })?;
    hosts.wait_until_applied(Site::Beta, VM)?;
    costs.cpu.push((hosts.cpu()? - cpu).as_secs_f64());
    let bytes = (hosts.bytes() - bytes) as f64;
    costs.bytes.push(bytes / CHANGED as f64);
    Ok(())
}

fn busy_backup_cycle(
    setting: &Setting,
    backup: &mut Backup,
    guest: &mut Guest,
    costs: &mut Costs,
) -> Result<()> {
    change(&backup.client, guest)?;
    setting.place.sync()?;
    let (cpu, bytes) = (backup.cpu()?, backup.bytes());
    costs.times.push(backup.cycle()?.as_secs_f64());
    costs.cpu.push((backup.cpu()? - cpu).as_secs_f64());
    let bytes = (backup.bytes() - bytes) as f64;
    costs.bytes.push(bytes / CHANGED as f64);
    Ok(())
}

fn change(client: &NbdClient, guest: &mut Guest) -> Result<()> {
    let changes = guest.scattered(SIZE, CHANGED, STEP);
    hosts::write(client, guest, &changes)
}
