//! `lifeboat delta inspect`.

use std::io::{BufReader, BufWriter, Read, Stdout, Write as _};
use std::path::PathBuf;

use lifeboat_model::{DeltaId, DiskId, LineageId, RelationshipId, Sequence};
use lifeboat_stream::{BlobKind, Decoder, Ending, Footer, Frame, Kind, Limits};
use serde::Serialize;

use crate::commands::{consistency, open_input, time};
use crate::exit::Failure;
use crate::output::{OutputFormat, Table, facts};
use crate::progress::Progress;
use crate::size::Bytes;

/// What is read from the input at a time.
const READ_BYTES: usize = 256 << 10;

#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The delta stream; `-` is the standard input
    #[arg(value_name = "FILE")]
    input: PathBuf,

    /// List every frame, too; in JSON as the array `frames` beside the object `delta`
    #[arg(long)]
    frames: bool,
}

#[derive(Serialize)]
struct DeltaView {
    relationship: RelationshipId,
    lineage: LineageId,
    sequence: Sequence,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<BaseView>,
    creation_time: String,
    consistency_level: &'static str,
    disks: Vec<DiskView>,
    blobs: Vec<BlobView>,
    id: DeltaId,
    frames: u64,
    data_bytes: u64,
    zero_bytes: u64,
    stream_bytes: u64,
}

#[derive(Serialize)]
struct BaseView {
    sequence: Sequence,
    id: DeltaId,
}

#[derive(Serialize)]
struct DiskView {
    disk: DiskId,
    size: u64,
    data_frames: u64,
    data_bytes: u64,
    zero_frames: u64,
    zero_bytes: u64,
}

#[derive(Serialize)]
struct BlobView {
    kind: &'static str,
    format: u16,
    bytes: u64,
}

/// One frame as it is listed.
#[derive(Serialize)]
struct FrameView<'a> {
    frame: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<&'a DiskId>,
    offset: u64,
    length: u64,
}

/// Reads the delta to its end and prints what it holds.
///
/// # Errors
/// When any byte of it is not as it was written.
pub fn run(args: &InspectArgs, output: OutputFormat) -> Result<(), Failure> {
    let name = args.input.display().to_string();
    let refused = |source| Failure::Stream {
        input: name.clone(),
        source,
    };
    let input = BufReader::with_capacity(READ_BYTES, open_input(&args.input)?);
    let limits = Limits {
        stream_bytes: u64::MAX,
        ending: Ending::EndOfInput,
    };
    let mut decoder = Decoder::new(input, &limits).map_err(refused)?;
    let mut contents = Contents::new(&decoder);
    let mut listing = args.frames.then(|| Listing::begin(output));
    let progress = Progress::bytes("read");
    let outcome = loop {
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let view = contents.count(&frame);
        if let Some(listing) = &mut listing {
            listing.frame(&view)?;
        }
        progress.set(decoder.position());
    };
    drop(progress);
    let view = match (outcome, decoder.footer()) {
        (Ok(()), Some(footer)) => contents.view(&decoder, footer),
        (Ok(()), None) => unreachable!("BUG: a stream ends with its footer"),
        (Err(error), _) => {
            listing.map_or(Ok(()), Listing::cut)?;
            return Err(refused(error));
        }
    };
    match listing {
        Some(listing) => listing.end(&view),
        None => output.print(&view, text),
    }
}

/// What was seen so far.
struct Contents {
    disks: Vec<DiskView>,
    blobs: Vec<BlobView>,
}

impl Contents {
    fn new<R: Read>(decoder: &Decoder<R>) -> Self {
        let disks = decoder.manifest().disks().iter().map(|disk| DiskView {
            disk: disk.id.clone(),
            size: disk.size.bytes(),
            data_frames: 0,
            data_bytes: 0,
            zero_frames: 0,
            zero_bytes: 0,
        });
        Self {
            disks: disks.collect(),
            blobs: Vec::new(),
        }
    }

    fn count(&mut self, frame: &Frame<'_>) -> FrameView<'_> {
        match *frame {
            Frame::Blob {
                kind,
                format,
                total,
                offset,
                bytes,
            } => {
                if offset == 0 {
                    self.blobs.push(BlobView {
                        kind: blob_kind(kind),
                        format,
                        bytes: total,
                    });
                }
                FrameView {
                    frame: blob_kind(kind),
                    disk: None,
                    offset,
                    length: bytes.len() as u64,
                }
            }
            Frame::Data {
                disk,
                offset,
                bytes,
            } => {
                let seen = &mut self.disks[disk];
                let length = bytes.len() as u64;
                seen.data_frames += 1;
                seen.data_bytes += length;
                FrameView {
                    frame: "data",
                    disk: Some(&seen.disk),
                    offset,
                    length,
                }
            }
            Frame::Zero {
                disk,
                offset,
                length,
            } => {
                let seen = &mut self.disks[disk];
                seen.zero_frames += 1;
                seen.zero_bytes += length;
                FrameView {
                    frame: "zero",
                    disk: Some(&seen.disk),
                    offset,
                    length,
                }
            }
        }
    }

    fn view<R: Read>(self, decoder: &Decoder<R>, footer: &Footer) -> DeltaView {
        let (header, manifest) = (decoder.header(), decoder.manifest());
        DeltaView {
            relationship: header.relationship,
            lineage: header.lineage,
            sequence: header.sequence,
            kind: match header.kind {
                Kind::Initial => "initial",
                Kind::Delta => "delta",
                Kind::Resync => "resync",
            },
            base: header.base.map(|base| BaseView {
                sequence: base.sequence,
                id: base.id,
            }),
            creation_time: time(manifest.captured_at()),
            consistency_level: consistency(manifest.consistency()),
            disks: self.disks,
            blobs: self.blobs,
            id: footer.id,
            frames: footer.frames,
            data_bytes: footer.data_bytes,
            zero_bytes: footer.zero_bytes,
            stream_bytes: decoder.position(),
        }
    }
}

fn blob_kind(kind: BlobKind) -> &'static str {
    match kind {
        BlobKind::Nvram => "nvram",
        BlobKind::Tpm => "tpm",
        BlobKind::Definition => "definition",
    }
}

fn text(view: &DeltaView) -> String {
    let base = view.base.as_ref().map_or_else(
        || "none".to_owned(),
        |base| format!("{} ({})", base.sequence, base.id),
    );
    let mut text = facts(&[
        ("delta", view.sequence.to_string()),
        ("id", view.id.to_string()),
        ("kind", view.kind.to_owned()),
        ("base", base),
        ("relationship", view.relationship.to_string()),
        ("lineage", view.lineage.to_string()),
        ("taken", view.creation_time.clone()),
        ("consistency", view.consistency_level.to_owned()),
        ("stream", Bytes(view.stream_bytes).to_string()),
        ("frames", view.frames.to_string()),
    ]);
    let mut disks = Table::new(&["DISK", "SIZE", "DATA", "FRAMES", "ZEROES", "FRAMES"]);
    for disk in &view.disks {
        disks.row([
            disk.disk.to_string(),
            Bytes(disk.size).to_string(),
            Bytes(disk.data_bytes).to_string(),
            disk.data_frames.to_string(),
            Bytes(disk.zero_bytes).to_string(),
            disk.zero_frames.to_string(),
        ]);
    }
    text.push_str(&format!("\n{}", disks.render()));
    if !view.blobs.is_empty() {
        let mut blobs = Table::new(&["BLOB", "FORMAT", "SIZE"]);
        for blob in &view.blobs {
            blobs.row([
                blob.kind.to_owned(),
                blob.format.to_string(),
                Bytes(blob.bytes).to_string(),
            ]);
        }
        text.push_str(&format!("\n{}", blobs.render()));
    }
    text
}

/// Frames as they come: a delta may have more than memory should hold.
struct Listing {
    format: OutputFormat,
    printed: u64,
    out: BufWriter<Stdout>,
}

impl Listing {
    fn begin(format: OutputFormat) -> Self {
        Self {
            format,
            printed: 0,
            out: BufWriter::with_capacity(64 << 10, std::io::stdout()),
        }
    }

    fn frame(&mut self, view: &FrameView<'_>) -> Result<(), Failure> {
        let line = match self.format {
            OutputFormat::Table => {
                let disk = view.disk.map_or("-", DiskId::as_str);
                let (offset, length) = (view.offset, view.length);
                format!(
                    "{:<10}  {disk:<8}  {offset:>15}  {length:>15}\n",
                    view.frame
                )
            }
            OutputFormat::Json => {
                let start = if self.printed == 0 {
                    "{\"frames\": [\n"
                } else {
                    ",\n"
                };
                let json = serde_json::to_string(view);
                format!(
                    "{start}{}",
                    json.expect("BUG: a frame can be written as JSON")
                )
            }
        };
        self.printed += 1;
        self.write(&line)
    }

    fn end(mut self, view: &DeltaView) -> Result<(), Failure> {
        let end = match self.format {
            OutputFormat::Table => format!("\n{}", text(view)),
            OutputFormat::Json => {
                let json = serde_json::to_string_pretty(view);
                let json = json.expect("BUG: a result can be written as JSON");
                format!("{}\n],\n\"delta\": {json}}}\n", self.opening())
            }
        };
        self.write(&end)?;
        self.flush()
    }

    /// Ends the list of a delta that was refused: there is no object `delta` then.
    fn cut(mut self) -> Result<(), Failure> {
        if self.format == OutputFormat::Json {
            let end = format!("{}\n]}}\n", self.opening());
            self.write(&end)?;
        }
        self.flush()
    }

    /// What must stand before the end of a list without frames.
    fn opening(&self) -> &'static str {
        if self.printed == 0 {
            "{\"frames\": ["
        } else {
            ""
        }
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.out.write_all(text.as_bytes());
        written.map_err(|source| Failure::Print { source })
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|source| Failure::Print { source })
    }
}
