//! A cycle in which nothing changed, on a large disk.

use anyhow::{Context as _, Result};
use lifeboat_stream::Options;
use lifeboat_sys::clock::Stopwatch;

use super::Setting;
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place;
use crate::qemu::Qemu;
use crate::replica::Replica;
use crate::report::RowReport;
use crate::view;

const TIB: u64 = 1 << 40;
const BITMAP: &str = "changes";

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let (image, socket) = (place.join("disk.raw"), place.join("nbd.sock"));
    view::make_sparse(&image, TIB)?;
    let mut replica = Replica::create(&place.join("store"), TIB, 0)?;
    replica.make_point()?;
    let mut qemu = Qemu::start_storage(&image, &socket)?;
    qemu.track(BITMAP)?;
    qemu.freeze(BITMAP)?;
    let (mut cpu, mut bytes, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        let (ours, theirs) = (place::own_cpu(), place::cpu_of(qemu.process())?);
        let watch = Stopwatch::start();
        let mut stream = Vec::new();
        view::capture_changes(
            &mut replica.guest,
            &socket,
            BITMAP,
            Options::default(),
            &mut stream,
        )?;
        replica.take(&stream).context("follow an idle guest")?;
        times.push(watch.elapsed().as_secs_f64());
        let used = (place::own_cpu() - ours) + (place::cpu_of(qemu.process())? - theirs);
        cpu.push(used.as_secs_f64());
        bytes.push(stream.len() as f64);
    }
    let alone = |name: &str, unit, values, bar| {
        Measurement::alone(name, unit, Side::new("Lifeboat and QEMU", values), bar)
    };
    Ok(RowReport {
        name: "idle",
        about: "A cycle of a disk of 1 TiB whose bitmap of 4 KiB marks nothing: capture from qemu-storage-daemon over a new \
                connection, receive, apply. Processor time is of both processes, all threads.",
        measurements: vec![
            alone("processor time", Unit::Seconds, cpu, Bar::AtMost(0.1)),
            alone(
                "bytes that travel",
                Unit::Bytes,
                bytes,
                Bar::AtMost(20.0 * 1024.0),
            ),
            alone("time", Unit::Seconds, times, Bar::Record),
        ],
        notes: Vec::new(),
    })
}
