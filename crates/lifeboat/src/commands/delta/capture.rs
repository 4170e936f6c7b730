//! `lifeboat delta capture`.

use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};

use lifeboat_capture::{
    CapturePlan, Captured, DEFAULT_DEADLINE, DEFAULT_DEPTH, Progress as Captures, Source, capture,
};
use lifeboat_model::{Consistency, DeltaId, DiskId, LineageId, Receipt, Sequence};
use lifeboat_nbd::NbdUri;
use lifeboat_stream::{Base, Compression, Header, Kind, Layout, Options};
use lifeboat_sys::clock;
use serde::{Deserialize, Serialize};

use crate::capture_state::{CaptureState, StateFile};
use crate::commands::open_input;
use crate::exit::Failure;
use crate::new_file::NewFile;
use crate::output::OutputFormat;
use crate::progress::Progress;
use crate::size::Bytes;
use crate::tls::ClientTls;

/// The most bytes a receipt takes, with room to spare.
const MAX_RECEIPT_BYTES: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub struct CaptureArgs {
    /// The state of the relationship, as `store init --capture-state` wrote it
    #[arg(long, value_name = "FILE")]
    state: PathBuf,

    /// The newest receipt, as `store receive --output json` printed it; `-` is the standard
    /// input. It is checked and saved, and this delta builds on it
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,

    /// Where a disk's frozen view is exported; once for each disk. The name may be left out for
    /// a VM with one disk
    #[arg(long, value_name = "[DISK=]NBD-URI", required = true, value_parser = parse_from)]
    from: Vec<From>,

    /// The dirty bitmap that tells what has changed on a disk; without a name, on every disk. A
    /// disk without one is taken whole
    #[arg(long, value_name = "[DISK=]NAME", value_parser = parse_bitmap)]
    bitmap: Vec<Bitmap>,

    /// What the frozen moment promises to the software in the guest
    #[arg(long, value_enum, default_value = "crash", value_name = "LEVEL")]
    consistency: ConsistencyLevel,

    /// How to compress: none, or zstd with a level from -7 to 19
    #[arg(long, value_name = "none|zstd[:LEVEL]", default_value = "zstd", value_parser = parse_compression, allow_hyphen_values = true)]
    compression: Compression,

    /// The file to write; one that exists is left alone. `-` is the standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    #[command(flatten)]
    tls: ClientTls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ConsistencyLevel {
    /// As after a power cut, all disks at the same instant
    Crash,
    /// File systems and applications in the guest were quiesced
    Application,
}

/// Where one disk, or the only one, is exported.
#[derive(Debug, Clone)]
struct From {
    disk: Option<DiskId>,
    uri: NbdUri,
}

/// The bitmap of one disk, or of every disk.
#[derive(Debug, Clone)]
struct Bitmap {
    disk: Option<DiskId>,
    name: String,
}

/// Splits off a disk's name; a text before `=` that cannot be one belongs to the rest.
fn split_disk(text: &str) -> (Option<DiskId>, &str) {
    let split = text.split_once('=');
    match split.and_then(|(disk, rest)| Some((disk.parse().ok()?, rest))) {
        Some((disk, rest)) => (Some(disk), rest),
        None => (None, text),
    }
}

fn parse_from(text: &str) -> Result<From, lifeboat_nbd::InvalidUri> {
    let (disk, uri) = split_disk(text);
    Ok(From {
        disk,
        uri: uri.parse()?,
    })
}

fn parse_bitmap(text: &str) -> Result<Bitmap, &'static str> {
    let (disk, name) = split_disk(text);
    if name.is_empty() {
        return Err("the name of the bitmap is missing");
    }
    let name = name.to_owned();
    Ok(Bitmap { disk, name })
}

fn parse_compression(text: &str) -> Result<Compression, &'static str> {
    const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;
    match text.split_once(':') {
        None if text == "none" => Ok(Compression::None),
        None if text == "zstd" => Ok(Compression::Zstd(1)),
        Some(("zstd", level)) => match level.parse() {
            Ok(level) if LEVELS.contains(&level) => Ok(Compression::Zstd(level)),
            _ => Err("the level must be a number from -7 to 19"),
        },
        _ => Err("use none, zstd or zstd:LEVEL"),
    }
}

/// A receipt as `store receive` prints it; what else stands there is of no matter.
#[derive(Deserialize)]
struct PrintedReceipt {
    lineage: LineageId,
    sequence: Sequence,
    id: DeltaId,
}

#[derive(Serialize)]
struct CaptureView {
    sequence: Sequence,
    id: DeltaId,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<Sequence>,
    stream_bytes: u64,
    dirty_bytes: u64,
    read_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

/// Where the stream goes.
enum Target {
    File(NewFile),
    Stdout,
}

/// Captures once.
///
/// # Errors
/// Refused when there is no receipt to build on; unavailable when an export cannot be reached.
pub fn run(args: &CaptureArgs, output: OutputFormat) -> Result<(), Failure> {
    let file = StateFile::find(&args.state)?;
    let sources = sources(&file.load()?.disks, &args.from, &args.bitmap)?;
    let tls = args.tls.load().map_err(|source| Failure::Tls { source })?;
    let receipt = args.receipt.as_deref().map(read_receipt).transpose()?;
    let target = Target::open(&args.out)?;
    let builds_on_receipt = !args.bitmap.is_empty();
    let header = file.change(|state| draw(state, receipt, builds_on_receipt))?;
    let plan = CapturePlan {
        header,
        captured_at: clock::wall(),
        consistency: match args.consistency {
            ConsistencyLevel::Crash => Consistency::Crash,
            ConsistencyLevel::Application => Consistency::Application,
        },
        sources,
        options: Options {
            compression: args.compression,
            layout: Layout::Shareable,
        },
        tls,
        deadline: DEFAULT_DEADLINE,
        depth: DEFAULT_DEPTH,
    };
    let captured = target.fill(&plan)?;
    file.change(|state| {
        state.captured(plan.header.sequence, captured.footer.id);
        Ok(())
    })?;
    let view = view(&plan.header, &captured);
    match target {
        Target::File(file) => {
            file.publish()?;
            output.print(&view, text)
        }
        Target::Stdout => {
            if output == OutputFormat::Table && io::stderr().is_terminal() {
                // Only for whoever watches.
                let _ = io::stderr().write_all(text(&view).as_bytes());
            }
            Ok(())
        }
    }
}

/// Takes in the receipt and draws the number of the moment to be captured.
fn draw(
    state: &mut CaptureState,
    receipt: Option<Receipt>,
    builds_on_receipt: bool,
) -> Result<Header, Failure> {
    let refused = |source| Failure::State { source };
    if let Some(receipt) = receipt {
        state.accept(receipt).map_err(refused)?;
    }
    let (kind, base) = match (builds_on_receipt, state.receipt) {
        (false, _) => (Kind::Initial, None),
        (true, None) => return Err(Failure::NothingToBuildOn),
        (true, Some(receipt)) => {
            let base = Base {
                sequence: receipt.sequence,
                id: receipt.id,
            };
            (Kind::Delta, Some(base))
        }
    };
    Ok(Header {
        relationship: state.relationship,
        lineage: state.lineage,
        base,
        sequence: state.draw().map_err(refused)?,
        kind,
    })
}

/// For each disk of the VM, where it is read and by which bitmap.
fn sources(disks: &[DiskId], from: &[From], bitmaps: &[Bitmap]) -> Result<Vec<Source>, Failure> {
    let usage = |what: String| Failure::Usage { what };
    let known = |disk: &Option<DiskId>| match disk {
        Some(disk) if !disks.contains(disk) => Err(usage(format!(
            "the VM has no disk {disk}; the state names {}",
            names(disks)
        ))),
        _ => Ok(()),
    };
    from.iter().try_for_each(|from| known(&from.disk))?;
    bitmaps.iter().try_for_each(|bitmap| known(&bitmap.disk))?;
    if disks.len() > 1 && from.iter().any(|from| from.disk.is_none()) {
        return Err(usage(format!(
            "the VM has several disks ({}): give --from DISK=NBD-URI for each",
            names(disks)
        )));
    }
    let source = |disk: &DiskId| {
        let is_of = |of: &Option<DiskId>| of.as_ref().is_none_or(|of| of == disk);
        let mut uris = from.iter().filter(|from| is_of(&from.disk));
        let uri = match (uris.next(), uris.next()) {
            (Some(from), None) => from.uri.clone(),
            (None, _) => return Err(usage(format!("--from is missing for the disk {disk}"))),
            (Some(_), Some(_)) => {
                return Err(usage(format!("--from is given twice for the disk {disk}")));
            }
        };
        let mut names = bitmaps.iter().filter(|bitmap| is_of(&bitmap.disk));
        let bitmap = match (names.next(), names.next()) {
            (bitmap, None) => bitmap.map(|bitmap| bitmap.name.clone()),
            (_, Some(_)) => {
                return Err(usage(format!(
                    "--bitmap is given twice for the disk {disk}"
                )));
            }
        };
        Ok(Source {
            disk: disk.clone(),
            uri,
            bitmap,
        })
    };
    disks.iter().map(source).collect()
}

fn names(disks: &[DiskId]) -> String {
    let names: Vec<&str> = disks.iter().map(DiskId::as_str).collect();
    names.join(", ")
}

fn read_receipt(path: &Path) -> Result<Receipt, Failure> {
    let input = path.display().to_string();
    let mut text = Vec::new();
    let read = open_input(path)?
        .take(MAX_RECEIPT_BYTES)
        .read_to_end(&mut text);
    read.map_err(|source| Failure::Read {
        input: input.clone(),
        source,
    })?;
    let printed: PrintedReceipt =
        serde_json::from_slice(&text).map_err(|source| Failure::Receipt { input, source })?;
    Ok(Receipt {
        lineage: printed.lineage,
        sequence: printed.sequence,
        id: printed.id,
    })
}

impl Target {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() != "-" {
            return NewFile::begin(path).map(Self::File);
        }
        if io::stdout().is_terminal() {
            let what = "a delta is not for the screen: name a file, or send it into a pipe";
            return Err(Failure::Usage { what: what.into() });
        }
        Ok(Self::Stdout)
    }

    /// Captures into the target.
    fn fill(&self, plan: &CapturePlan) -> Result<Captured, Failure> {
        let progress = Progress::bytes("read");
        let mut tell = |captures: Captures| progress.set(captures.read_bytes);
        let captured = match self {
            Self::File(file) => capture(plan, file.file(), &mut tell),
            Self::Stdout => capture(plan, io::stdout().lock(), &mut tell),
        };
        captured.map_err(|source| Failure::Capture { source })
    }
}

fn view(header: &Header, captured: &Captured) -> CaptureView {
    CaptureView {
        sequence: header.sequence,
        id: captured.footer.id,
        kind: match header.kind {
            Kind::Initial => "initial",
            Kind::Delta => "delta",
            Kind::Resync => "resync",
        },
        base: header.base.map(|base| base.sequence),
        stream_bytes: captured.bytes,
        dirty_bytes: captured.dirty_bytes,
        read_bytes: captured.read_bytes,
        data_bytes: captured.data_bytes,
        zero_bytes: captured.zero_bytes,
    }
}

fn text(view: &CaptureView) -> String {
    format!(
        "captured {} ({}): {} data, {} zeroes, {} in the stream, id {}\n",
        view.sequence,
        view.kind,
        Bytes(view.data_bytes),
        Bytes(view.zero_bytes),
        Bytes(view.stream_bytes),
        view.id,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(names: &[&str]) -> Vec<DiskId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn plan(disks_: &[&str], from: &[&str], bitmaps: &[&str]) -> Result<Vec<Source>, Failure> {
        let from: Vec<From> = from.iter().map(|text| parse_from(text).unwrap()).collect();
        let bitmaps: Vec<Bitmap> = bitmaps
            .iter()
            .map(|text| parse_bitmap(text).unwrap())
            .collect();
        sources(&disks(disks_), &from, &bitmaps)
    }

    #[test]
    fn an_equals_sign_within_a_uri_does_not_begin_a_disk() {
        let from = parse_from("nbd+unix:///sda?socket=/run/s").unwrap();
        assert_eq!(from.disk, None);
        let from = parse_from("sda=nbd+unix:///x?socket=/run/s").unwrap();
        assert_eq!(from.disk.unwrap().as_str(), "sda");
        assert_eq!(from.uri.export(), "x");
    }

    #[test]
    fn every_disk_is_read_once_and_a_bitmap_without_a_disk_is_for_all() {
        let sources = plan(
            &["sda", "sdb"],
            &["sdb=nbd://h/b", "sda=nbd://h/a"],
            &["cp0"],
        )
        .unwrap();
        assert_eq!(sources[0].disk.as_str(), "sda");
        assert_eq!(sources[0].uri.export(), "a");
        assert!(sources.iter().all(|s| s.bitmap.as_deref() == Some("cp0")));

        let sources = plan(&["sda"], &["nbd://h/a"], &[]).unwrap();
        assert_eq!(sources[0].bitmap, None);
    }

    #[test]
    fn a_plan_that_leaves_something_open_is_refused() {
        let two: &[&str] = &["sda", "sdb"];
        let both: &[&str] = &["sda=nbd://h/a", "sdb=nbd://h/b"];
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (two, &["sda=nbd://h/a"], &[]),
            (two, &["nbd://h/a", "sdb=nbd://h/b"], &[]),
            (two, &["sda=nbd://h/a", "sda=nbd://h/b"], &[]),
            (two, both, &["sdc=cp0"]),
            (two, both, &["cp0", "sda=cp1"]),
            (&["sda"], &["sda=nbd://h/a", "nbd://h/a"], &[]),
        ];
        for (disks, from, bitmaps) in cases {
            let refused = plan(disks, from, bitmaps);
            assert!(
                matches!(refused, Err(Failure::Usage { .. })),
                "{from:?} {bitmaps:?}"
            );
        }
    }

    #[test]
    fn compression_has_the_levels_of_the_format() {
        assert_eq!(parse_compression("none"), Ok(Compression::None));
        assert_eq!(parse_compression("zstd"), Ok(Compression::Zstd(1)));
        assert_eq!(parse_compression("zstd:-7"), Ok(Compression::Zstd(-7)));
        assert_eq!(parse_compression("zstd:19"), Ok(Compression::Zstd(19)));
        for text in ["", "gzip", "zstd:", "zstd:20", "zstd:-8", "none:1"] {
            assert!(parse_compression(text).is_err(), "{text:?}");
        }
    }
}
