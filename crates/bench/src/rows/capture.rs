//! Capture of a whole disk over NBD, beside nbdcopy.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lifeboat_stream::Options;
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, Setting};
use crate::guest::{COMPACT, Guest};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place::Place;
use crate::qemu::Qemu;
use crate::report::RowReport;
use crate::stock;
use crate::view;

const SIZE: u64 = 2 * GIB;
const EXPORT: &str = "disk";

/// The times of one way to copy the disk, one per run.
type Times = Vec<f64>;

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let mut guest = Guest::new(SIZE)?;
    let image = place.join("disk.raw");
    view::write_mixed(&image, SIZE, &mut guest)?;
    let socket = place.join("nbd.sock");
    let mut qemu = Qemu::start_storage(&image, &socket)?;
    qemu.export(EXPORT)?;
    place.sync()?;

    let address = format!("nbd+unix:///{EXPORT}?socket={}", socket.display());
    let (mut to_null, mut packed_to_null, mut nbdcopy_to_null) =
        (Times::new(), Times::new(), Times::new());
    let (mut to_file, mut packed_to_file, mut nbdcopy_to_file) =
        (Times::new(), Times::new(), Times::new());
    for _ in 0..setting.runs {
        let one = |options, times: &mut Times| -> Result<()> {
            times.push(captured(&socket, options, &mut io::sink())?.as_secs_f64());
            Ok(())
        };
        one(COMPACT, &mut to_null)?;
        nbdcopy_to_null.push(stock::nbdcopy(&address, "null:".as_ref())?.as_secs_f64());
        one(Options::default(), &mut packed_to_null)?;

        to_file.push(to_a_file(place, &socket, COMPACT)?);
        nbdcopy_to_file.push(stock::nbdcopy_to_file(&address, place, SIZE)?.as_secs_f64());
        packed_to_file.push(to_a_file(place, &socket, Options::default())?);
    }
    let record = |name: &str, what: &str, a: &Times, theirs: &str, b: &Times| {
        Measurement::compared(
            name,
            Unit::Seconds,
            Side::new(what, a.clone()),
            Side::new(theirs, b.clone()),
            Bar::Record,
        )
    };
    let (null, file) = ("nbdcopy to null", "nbdcopy to a file, with fsync");
    Ok(RowReport {
        name: "capture",
        about: "A whole disk of 2 GiB (of each MiB one half random, the other like text) from qemu-storage-daemon over a \
                unix socket into a delta stream: verified digests and an identity included, which nbdcopy does not have.",
        measurements: vec![
            record(
                "to nothing, uncompressed",
                "capture",
                &to_null,
                null,
                &nbdcopy_to_null,
            ),
            record(
                "to nothing, zstd 1",
                "capture",
                &packed_to_null,
                null,
                &nbdcopy_to_null,
            ),
            record(
                "to a file, uncompressed",
                "capture, with fsync",
                &to_file,
                file,
                &nbdcopy_to_file,
            ),
            record(
                "to a file, zstd 1",
                "capture, with fsync",
                &packed_to_file,
                file,
                &nbdcopy_to_file,
            ),
        ],
        notes: Vec::new(),
    })
}

fn fresh(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("create {}", path.display()))
}

fn to_a_file(place: &Place, socket: &Path, options: Options) -> Result<f64> {
    let mut file = fresh(&place.join("copy.delta"))?;
    place.sync()?;
    let watch = Stopwatch::start();
    captured(socket, options, &mut file)?;
    file.sync_all().context("sync the delta")?;
    Ok(watch.elapsed().as_secs_f64())
}

/// Captures the whole disk as a first delta.
fn captured(socket: &Path, options: Options, writer: &mut dyn Write) -> Result<Duration> {
    let mut guest = Guest::new(SIZE)?;
    let watch = Stopwatch::start();
    view::capture_export(&mut guest, socket, EXPORT, None, options, writer)?;
    Ok(watch.elapsed())
}
