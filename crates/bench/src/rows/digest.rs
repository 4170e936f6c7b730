//! Digests, and the verification of a store.

use std::hint::black_box;

use anyhow::{Context as _, Result};
use lifeboat_sys::clock::Stopwatch;
use xxhash_rust::xxh3::xxh3_128;

use super::{GIB, MIB, Setting};
use crate::guest::Guest;
use crate::measure::{Bar, Measurement, Side, Unit, megabytes_per_second};
use crate::replica::Replica;
use crate::report::RowReport;

/// What one digest covers, as in the store's own table.
const CHUNK: usize = 64 << 10;
const SIZE: u64 = 512 * MIB;

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let bytes = Guest::new(SIZE)?.bytes(SIZE as usize);
    let mut replica = Replica::create(&setting.place.join("store"), GIB, GIB)?;
    replica.make_points(2, GIB, 64 * MIB, 64 << 10)?;
    let (mut one, mut two) = (Digests::default(), Digests::default());
    let (mut warm, mut cold) = (Vec::new(), Vec::new());
    for _ in 0..setting.runs {
        one.push(&bytes, 1);
        two.push(&bytes, 2);
        setting.place.sync()?;
        setting.place.warm()?;
        warm.push(verify(&replica)?);
        setting.place.sync_and_forget()?;
        cold.push(verify(&replica)?);
    }
    let mut measurements = Vec::new();
    for (name, digests) in [("1 thread", one), ("2 threads", two)] {
        measurements.push(Measurement::compared(
            name,
            Unit::MegabytesPerSecond,
            Side::new("XXH3-128", digests.xxh3),
            Side::new("BLAKE3", digests.blake3),
            Bar::Record,
        ));
    }
    measurements.push(Measurement::compared(
        "verify a store of 1 GiB with 2 points",
        Unit::MegabytesPerSecond,
        Side::new("in the page cache", warm),
        Side::new("from the device", cold),
        Bar::Record,
    ));
    Ok(RowReport {
        name: "digest",
        about: "Digests of 64 KiB each over 512 MiB of memory, and the verification of a whole store.",
        measurements,
        notes: Vec::new(),
    })
}

/// Speeds of both digests, one per run.
#[derive(Default)]
struct Digests {
    xxh3: Vec<f64>,
    blake3: Vec<f64>,
}

impl Digests {
    fn push(&mut self, bytes: &[u8], threads: usize) {
        self.xxh3.push(speed(bytes, threads, |chunk| {
            black_box(xxh3_128(chunk));
        }));
        self.blake3.push(speed(bytes, threads, |chunk| {
            black_box(blake3::hash(chunk));
        }));
    }
}

fn speed(bytes: &[u8], threads: usize, digest: impl Fn(&[u8]) + Sync) -> f64 {
    let watch = Stopwatch::start();
    std::thread::scope(|scope| {
        for part in bytes.chunks(bytes.len().div_ceil(threads)) {
            scope.spawn(|| part.chunks(CHUNK).for_each(&digest));
        }
    });
    megabytes_per_second(bytes.len() as u64, watch.elapsed())
}

fn verify(replica: &Replica) -> Result<f64> {
    let watch = Stopwatch::start();
    let found = replica
        .store
        .verify(&mut |_| {})
        .context("verify the store")?;
    let time = watch.elapsed();
    anyhow::ensure!(
        found.findings.is_empty(),
        "the store of this row is damaged: {:?}",
        found.findings
    );
    Ok(megabytes_per_second(
        found.verified_bytes + found.not_verifiable_bytes,
        time,
    ))
}
