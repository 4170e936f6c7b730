//! A disk that QEMU exports, captured whole or by its bitmap.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lifeboat_capture::{CapturePlan, Captured, DEFAULT_DEADLINE, DEFAULT_DEPTH, Source, capture};
use lifeboat_model::Consistency;
use lifeboat_stream::Options;
use lifeboat_sys::clock;

use crate::guest::Guest;
use crate::place::Place;
use crate::qemu::{VIEW, export_uri};

/// Makes an empty image of `size` bytes.
pub fn make_sparse(path: &Path, size: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    file.set_len(size)
        .with_context(|| format!("size {}", path.display()))
}

/// Makes an image of `size` bytes, whole mebibytes: of each the first half is random and the
/// second a text that repeats.
pub fn write_mixed(path: &Path, size: u64, guest: &mut Guest) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let half = (MIB / 2) as usize;
    let text: Vec<u8> = b"Nothing here is worth a second look. "
        .iter()
        .copied()
        .cycle()
        .take(half)
        .collect();
    for _ in 0..size / MIB {
        file.write_all(&guest.bytes(half))
            .and_then(|()| file.write_all(&text))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Makes two such images that are the same, one for each side of a comparison.
pub fn write_pair(place: &Place, size: u64, guest: &mut Guest) -> Result<(PathBuf, PathBuf)> {
    let (ours, theirs) = (place.join("ours.raw"), place.join("theirs.raw"));
    write_mixed(&ours, size, guest)?;
    std::fs::copy(&ours, &theirs).context("copy the disk for the other side")?;
    Ok((ours, theirs))
}

/// Captures an export: what its bitmap marks, or all of it where no bitmap is named.
pub fn capture_export(
    guest: &mut Guest,
    socket: &Path,
    export: &str,
    bitmap: Option<&str>,
    options: Options,
    writer: &mut dyn Write,
) -> Result<Captured> {
    let header = guest.next_header()?;
    let plan = CapturePlan {
        header,
        captured_at: clock::wall(),
        consistency: Consistency::Crash,
        sources: vec![Source {
            disk: guest.disk().clone(),
            uri: export_uri(socket, export)?,
            bitmap: bitmap.map(str::to_owned),
        }],
        options,
        tls: None,
        deadline: DEFAULT_DEADLINE,
        depth: DEFAULT_DEPTH,
    };
    let captured = capture(&plan, writer, &mut |_| {}).context("capture the disk")?;
    guest.captured(&header, &captured.footer);
    Ok(captured)
}

/// Captures what the bitmap of the frozen view marks.
pub fn capture_changes(
    guest: &mut Guest,
    socket: &Path,
    bitmap: &str,
    options: Options,
    writer: &mut dyn Write,
) -> Result<Captured> {
    capture_export(guest, socket, VIEW, Some(bitmap), options, writer)
}
