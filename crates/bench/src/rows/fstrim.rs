//! A large discard: little travels, the space comes back, and it takes none meanwhile.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use super::{GIB, MIB, Setting};
use crate::guest::{Change, UNCOMPRESSED};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place::occupied;
use crate::replica::Replica;
use crate::report::RowReport;

const SIZE: u64 = 2 * GIB;
/// What is applied at once: until it is, its blocks are there twice.
const SLICE: u64 = 64 * MIB;
/// How often the store's size is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let folder = setting.place.join("store");
    let mut replica = Replica::create(&folder, SIZE, SIZE)?;
    replica.make_point()?;
    let all = [Change::Zero {
        offset: 0,
        len: SIZE,
    }];
    let stream = replica.guest.delta(&all, UNCOMPRESSED)?;
    setting.place.sync()?;
    let (before, head_before) = (occupied(&folder)?, head_bytes(&replica)?);
    let peak = largest_while(&folder, || replica.take(&stream))?;
    let (after, head_after) = (occupied(&folder)?, head_bytes(&replica)?);
    let alone = |name: &str, value: u64, bar| {
        Measurement::alone(
            name,
            Unit::Bytes,
            Side::new("Lifeboat", vec![value as f64]),
            bar,
        )
    };
    let allowed = before as f64 * 1.01 + SLICE as f64;
    Ok(RowReport {
        name: "fstrim",
        about: "The guest discards all of a disk of 2 GiB (scaled from 38 GB) of which a recovery point needs every block. It \
                depends little on time.",
        measurements: vec![
            alone(
                "bytes that travel",
                stream.len() as u64,
                Bar::AtMost(10.0 * MIB as f64),
            ),
            alone("head afterwards", head_after, Bar::AtMost(MIB as f64)),
            alone(
                "largest size of the store meanwhile",
                peak,
                Bar::AtMost(allowed),
            ),
        ],
        notes: vec![format!(
            "The store occupied {} MiB before and {} MiB after, the head {} MiB before. The bar is 1.01 times before and one \
             slice of 64 MiB.",
            before / MIB,
            after / MIB,
            head_before / MIB
        )],
    })
}

fn head_bytes(replica: &Replica) -> Result<u64> {
    let status = replica.store.status().context("measure the store")?;
    Ok(status.disks.iter().map(|disk| disk.head_bytes).sum())
}

/// The largest disk space that the folder takes while `work` is done.
fn largest_while(folder: &Path, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<u64> {
            let mut largest = 0;
            while !done.load(Ordering::Acquire) {
                largest = largest.max(occupied(folder)?);
                std::thread::sleep(LOOK_EVERY);
            }
            Ok(largest)
        });
        let worked = work();
        done.store(true, Ordering::Release);
        let largest = watcher
            .join()
            .map_err(|_| anyhow!("BUG: the watcher panicked"))?;
        worked?;
        largest
    })
}
