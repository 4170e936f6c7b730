//! Applying keeps up with receiving.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use lifeboat_sys::clock::Stopwatch;

use super::{GIB, MIB, POINTS, Setting};
use crate::guest::UNCOMPRESSED;
use crate::measure::{Bar, Measurement, Side, Unit, megabytes_per_second};
use crate::replica::Replica;
use crate::report::RowReport;

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let mut replica = Replica::create(&setting.place.join("store"), GIB, GIB)?;
    replica.make_points(POINTS, GIB, 16 * MIB, 64 << 10)?;
    let mut measurements = Vec::new();
    for (name, bytes, step) in [
        ("256 MiB in pieces of 64 KiB", 256 * MIB, 64 << 10),
        ("64 MiB in pieces of 4 KiB", 64 * MIB, 4 << 10),
    ] {
        let (mut applied, mut received) = (Vec::new(), Vec::new());
        for _ in 0..setting.runs {
            // A new point in place of the oldest, so that every block is saved before it is written.
            let oldest = replica.oldest()?;
            replica.store.remove_point(oldest)?;
            replica.make_point()?;
            let changes = replica.guest.scattered(GIB, bytes, step);
            let stream = replica.guest.delta(&changes, UNCOMPRESSED)?;
            setting.place.sync()?;
            let time = receive_over_loopback(&mut replica, &stream)?;
            received.push(megabytes_per_second(bytes, time));
            applied.push(megabytes_per_second(bytes, replica.apply()?));
        }
        let compared = Measurement::compared(
            name,
            Unit::MegabytesPerSecond,
            Side::new("apply", applied),
            Side::new("receive over loopback", received),
            Bar::Record,
        );
        measurements.push(compared);
    }
    Ok(RowReport {
        name: "apply",
        about: "Changed bytes per second that are applied, against those received (verified, durable) of the same delta over \
                TCP on loopback; one connection without TLS, uncompressed, 24 points, every block touched first. What has to hold is in `keep-up` (decision 0010).",
        measurements,
        notes: Vec::new(),
    })
}

/// From the first byte sent to the receipt.
fn receive_over_loopback(replica: &mut Replica, stream: &[u8]) -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on loopback")?;
    let address = listener.local_addr().context("listen on loopback")?;
    std::thread::scope(|scope| {
        let watch = Stopwatch::start();
        let sender = scope.spawn(move || -> std::io::Result<()> {
            TcpStream::connect(address)?.write_all(stream)
        });
        let (wire, _) = listener.accept().context("accept the sender")?;
        replica.store.receive(wire).context("receive a delta")?;
        let time = watch.elapsed();
        let sent = sender
            .join()
            .map_err(|_| anyhow!("BUG: the sender panicked"))?;
        sent.context("send a delta")?;
        Ok(time)
    })
}
