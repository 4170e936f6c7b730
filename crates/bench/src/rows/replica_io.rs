//! What the replica's device reads and writes for each byte that the guest changed.

use anyhow::Result;

use super::{GIB, MIB, Setting};
use crate::guest::{Change, UNCOMPRESSED};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::place::{DeviceBytes, Place};
use crate::replica::Replica;
use crate::report::RowReport;

/// What the guest writes in one cycle.
const PER_CYCLE: u64 = 64 * MIB;

/// What the device may read and write for each changed byte.
struct Bars {
    writes: Bar,
    reads: Bar,
}

const FIRST: Bars = Bars {
    writes: Bar::AtMost(3.3),
    reads: Bar::AtMost(2.1),
};
const SECOND: Bars = Bars {
    writes: Bar::AtMost(2.2),
    reads: Bar::AtMost(1.1),
};
const SHARED: Bars = Bars {
    writes: Bar::AtMost(1.3),
    reads: Bar::AtMost(1.1),
};
const RECORD: Bars = Bars {
    writes: Bar::Record,
    reads: Bar::Record,
};

/// Device bytes for each changed byte, one value per run.
#[derive(Default)]
struct Amplified {
    writes: Vec<f64>,
    reads: Vec<f64>,
}

impl Amplified {
    fn push(&mut self, moved: DeviceBytes) {
        self.writes.push(moved.written as f64 / PER_CYCLE as f64);
        self.reads.push(moved.read as f64 / PER_CYCLE as f64);
    }

    fn measurements(self, name: &str, bars: &Bars) -> [Measurement; 2] {
        let alone = |what: &str, values, bar| {
            Measurement::alone(
                format!("{name}: {what}"),
                Unit::PerChangedByte,
                Side::new("Lifeboat", values),
                bar,
            )
        };
        [
            alone("writes", self.writes, bars.writes),
            alone("reads", self.reads, bars.reads),
        ]
    }
}

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let mut measurements = Vec::new();
    for (name, step) in [("4 KiB", 4 << 10), ("64 KiB", 64 << 10)] {
        let [first, second] = touches(&setting.place, setting.runs, step)?;
        measurements.extend(first.measurements(&format!("{name}, first touch"), &FIRST));
        measurements.extend(second.measurements(&format!("{name}, second touch"), &SECOND));
    }
    let [first, second] = touches(&setting.shared, setting.runs, 64 << 10)?;
    measurements.extend(first.measurements("64 KiB, first touch, blocks shared (XFS)", &SHARED));
    measurements.extend(second.measurements("64 KiB, second touch, blocks shared (XFS)", &RECORD));
    Ok(RowReport {
        name: "replica-io",
        about: "Sectors that the device of the store moved from the first byte received until everything is applied and \
                synced, for each changed byte: 64 MiB at random in a full head of 1 GiB, uncompressed, page cache dropped \
                before. A block is touched first when no segment since the newest point holds it.",
        measurements,
        notes: Vec::new(),
    })
}

/// First and second touch of the same blocks.
fn touches(place: &Place, runs: usize, step: usize) -> Result<[Amplified; 2]> {
    let mut replica = Replica::create(&place.join("store"), GIB, GIB)?;
    let (mut first, mut second) = (Amplified::default(), Amplified::default());
    for _ in 0..runs {
        let point = replica.make_point()?;
        let changes = replica.guest.scattered(GIB, PER_CYCLE, step);
        first.push(cycle(place, &mut replica, &changes)?);
        second.push(cycle(place, &mut replica, &changes)?);
        replica.store.remove_point(point)?;
    }
    drop(replica);
    place.clear()?;
    Ok([first, second])
}

/// What the device moves while the replica follows the changes.
fn cycle(place: &Place, replica: &mut Replica, changes: &[Change]) -> Result<DeviceBytes> {
    let stream = replica.guest.delta(changes, UNCOMPRESSED)?;
    place.sync_and_forget()?;
    let before = place.device_bytes()?;
    replica.take(&stream)?;
    place.sync()?;
    Ok(place.device_bytes()?.since(before))
}
