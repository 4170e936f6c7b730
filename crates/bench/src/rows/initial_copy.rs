//! The first copy of a VM's disk from host to host, beside nbdcopy.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lifeboat_rest::wire::SettingsChange;
use lifeboat_sys::clock::Stopwatch;
use lifeboat_sys::disk::{DIRECT_ALIGNMENT, DiskPort as _, RealDisk};

use super::{GIB, Setting};
use crate::guest::Guest;
use crate::hosts::{Hosts, Line, Plan, on_demand};
use crate::measure::{Bar, Measurement, Side, Unit, megabytes_per_second};
use crate::place;
use crate::report::RowReport;
use crate::stock::{Certificates, Served};
use crate::view;

const SIZE: u64 = 2 * GIB;
const VM: &str = "web";

const CAUSE: &str = "the device and the processors of this machine, which both sides share: what is copied has to be durable, and \
                     what the device takes directly is in the table; twice as fast as nbdcopy would be faster than that.";

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let (ours, theirs) = view::write_pair(place, SIZE, &mut Guest::new(SIZE)?)?;
    let certificates = Certificates::make(&place.join("certificates"))?;
    let plain = Served::plain(&theirs)?;
    let tls = Served::tls(&theirs, &certificates)?;

    let (mut copied, mut packed, mut over_tls, mut over_tcp) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut used, mut used_by_nbdcopy) = (Vec::new(), Vec::new());
    let mut device = Vec::new();
    for _ in 0..setting.runs {
        let (time, cpu) = copy(setting, &ours, on_demand())?;
        copied.push(speed(time));
        used.push(cpu.as_secs_f64());
        let before = tls.cpu_with_programs()?;
        over_tls.push(speed(tls.copy_to_file(place, SIZE)?));
        let after = tls.cpu_with_programs()?;
        used_by_nbdcopy.push((after - before).as_secs_f64());
        let compressed = SettingsChange {
            compression_enabled: Some(true),
            ..on_demand()
        };
        packed.push(speed(copy(setting, &ours, compressed)?.0));
        over_tcp.push(speed(plain.copy_to_file(place, SIZE)?));
        device.push(speed(write_directly(&place.join("direct"))?));
    }
    let (lifeboat, nbdcopy) = ("Lifeboat, uncompressed", "nbdcopy over TLS, with fsync");
    let compared = |name: &str, what: &str, a: &[f64], theirs: &str, b: &[f64], bar| {
        let a = Side::new(what, a.to_vec());
        let b = Side::new(theirs, b.to_vec());
        Measurement::compared(name, Unit::MegabytesPerSecond, a, b, bar)
    };
    Ok(RowReport {
        name: "initial-copy",
        about: "A whole disk of 2 GiB (of each MiB one half random, the other like text) from daemon to daemon over mutual \
                TLS (here and below: two processes of `lifeboat serve` on this machine), from the request until all of it is verified and durable at the replica. Beside it nbdcopy of an equal \
                disk that qemu-storage-daemon serves over TCP, with mutual TLS or without, to a file with fsync: both connections \
                over loopback, both disks in the page cache.",
        measurements: vec![
            compared(
                "against TLS",
                lifeboat,
                &copied,
                nbdcopy,
                &over_tls,
                Bar::RatioAtLeast(2.0),
            )
            .explained(CAUSE),
            compared(
                "against no TLS",
                lifeboat,
                &copied,
                "nbdcopy without TLS, with fsync",
                &over_tcp,
                Bar::RatioAtLeast(0.6),
            )
            .explained(CAUSE),
            compared(
                "zstd 1, against TLS",
                "Lifeboat, zstd 1",
                &packed,
                nbdcopy,
                &over_tls,
                Bar::Record,
            ),
            compared(
                "against the device",
                lifeboat,
                &copied,
                "writing as much past the page cache, with fsync",
                &device,
                Bar::Record,
            ),
            Measurement::compared(
                "processor time of both sides",
                Unit::Seconds,
                Side::new(lifeboat, used),
                Side::new("nbdcopy over TLS and its server", used_by_nbdcopy),
                Bar::Record,
            ),
        ],
        notes: Vec::new(),
    })
}

/// How long the device takes for as much as the disk holds.
fn write_directly(path: &Path) -> Result<Duration> {
    const STEP: usize = 8 << 20;
    let memory = vec![7_u8; STEP + DIRECT_ALIGNMENT];
    let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
    let file = RealDisk.create(path).context("make a file")?;
    let watch = Stopwatch::start();
    for offset in (0..SIZE).step_by(STEP) {
        file.write_past_cache_at(&memory[start..start + STEP], offset)
            .context("write past the page cache")?;
    }
    file.sync().context("sync")?;
    let time = watch.elapsed();
    std::fs::remove_file(path).context("remove a file")?;
    Ok(time)
}

fn speed(time: Duration) -> f64 {
    megabytes_per_second(SIZE, time)
}

/// The first copy between two new hosts: how long it took, and the processor time of both.
fn copy(setting: &Setting, image: &Path, settings: SettingsChange) -> Result<(Duration, Duration)> {
    let mut hosts = Hosts::start(setting, Line::Direct)?;
    hosts.enable(&Plan {
        vm: VM.to_owned(),
        size: SIZE,
        image: Some(image.to_owned()),
        settings,
    })?;
    setting.place.sync()?;
    let before = hosts.cpu()?;
    let time = hosts.copy(VM)?;
    let cpu = hosts.cpu()? - before;
    let head = hosts.beta.disk_file(VM)?;
    ensure!(
        place::have_same_bytes(image, &head)?,
        "the replica is not what was copied"
    );
    hosts.end(&setting.place)?;
    Ok((time, cpu))
}
