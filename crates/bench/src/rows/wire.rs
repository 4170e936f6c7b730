//! What travels for scattered small writes.

use anyhow::{Context as _, Result};
use lifeboat_nbd::{Client, ClientOptions};

use super::{GIB, MIB, Setting};
use crate::guest::{COMPACT, Change, Guest};
use crate::measure::{Bar, Measurement, Side, Unit};
use crate::qemu::{Qemu, export_uri};
use crate::report::RowReport;
use crate::view;

const CHANGED: u64 = 64 * MIB;
const STEP: usize = 4 << 10;
const BITMAP: &str = "changes";

pub fn measure(setting: &Setting) -> Result<RowReport> {
    let place = &setting.place;
    let mut guest = Guest::new(4 * GIB)?;
    let (image, socket) = (place.join("disk.raw"), place.join("nbd.sock"));
    view::make_sparse(&image, 4 * GIB)?;
    let mut qemu = Qemu::start_storage(&image, &socket)?;
    qemu.track(BITMAP)?;
    qemu.export("guest")?;
    let client = Client::connect(&export_uri(&socket, "guest")?, &ClientOptions::default())
        .context("connect as the guest")?;
    for change in guest.scattered(4 * GIB, CHANGED, STEP) {
        if let Change::Write { offset, len } = change {
            client
                .write(offset, &guest.bytes(len))
                .context("write as the guest")?;
        }
    }
    client.flush().context("flush as the guest")?;
    qemu.freeze(BITMAP)?;
    // The first delta is only what the second builds on.
    guest.whole(0)?;
    let mut stream = Vec::new();
    let captured = view::capture_changes(&mut guest, &socket, BITMAP, COMPACT, &mut stream)?;
    let per_byte = stream.len() as f64 / CHANGED as f64;
    Ok(RowReport {
        name: "wire",
        about: "Length of the delta stream, zstd off, for each byte that the guest changed: 64 MiB at random in pieces of \
                4 KiB on a disk of 4 GiB in qemu-storage-daemon, bitmap of 4 KiB. It does not depend on time.",
        measurements: vec![Measurement::alone(
            "stream",
            Unit::PerChangedByte,
            Side::new("Lifeboat", vec![per_byte]),
            Bar::AtMost(1.05),
        )],
        notes: vec![format!(
            "The bitmap marked {} bytes; {} bytes of data and {} of zeroes are in the stream.",
            captured.dirty_bytes, captured.data_bytes, captured.zero_bytes
        )],
    })
}
