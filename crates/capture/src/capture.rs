//! A plan, and what became of it.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use lifeboat_model::{Consistency, DiskId, Timestamp};
use lifeboat_nbd::{NbdUri, RequestError, TlsClient};
use lifeboat_stream::{Disk, EncodeError, Encoder, Footer, Header, Manifest, Options};

use crate::connect::{OpenDisk, open_disks};
use crate::error::CaptureError;
use crate::frames::Frames;
use crate::survey::{Content, Segment, Survey};

/// Reads under way at once: scattered blocks are read six times faster than one by one, and
/// more make no difference.
pub const DEFAULT_DEPTH: usize = 16;

/// How long a server may take for one answer.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// Segments that are looked up before they are read: enough that waiting for the last
/// read of a batch does not count, and 100 KiB of memory.
const BATCH_SEGMENTS: usize = 4096;

/// Small frames are collected to so many bytes before they are written.
const BUFFER: usize = 256 << 10;

/// Progress is told after so many bytes.
const PROGRESS_STEP: u64 = 4 << 20;

/// What to capture.
#[derive(Debug, Clone)]
pub struct CapturePlan {
    pub header: Header,
    /// When the view was frozen.
    pub captured_at: Timestamp,
    pub consistency: Consistency,
    /// All disks of the VM; the manifest lists them in this order.
    pub sources: Vec<Source>,
    pub options: Options,
    /// When present, every server must speak TLS.
    pub tls: Option<TlsClient>,
    /// For connecting, and for each request; see [`DEFAULT_DEADLINE`].
    pub deadline: Duration,
    /// Reads under way at once, at least 1; see [`DEFAULT_DEPTH`].
    pub depth: usize,
}

/// One disk of a frozen view.
#[derive(Debug, Clone)]
pub struct Source {
    pub disk: DiskId,
    pub uri: NbdUri,
    /// The bitmap that marks what has changed since the base. Absent: the whole disk is
    /// captured.
    pub bitmap: Option<String>,
}

/// How far a capture has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which disk is being captured, from 0.
    pub disk: usize,
    pub disks: usize,
    /// Everything of this disk before this byte is in the stream.
    pub position: u64,
    /// The size of this disk in bytes.
    pub size: u64,
    /// Read so far, of all disks.
    pub read_bytes: u64,
    /// The length of the stream so far.
    pub stream_bytes: u64,
}

/// A complete capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    pub footer: Footer,
    /// As the manifest has them.
    pub disks: Vec<Disk>,
    /// The length of the stream.
    pub bytes: u64,
    /// What the bitmaps mark, in whole blocks; a disk without bitmap counts whole.
    pub dirty_bytes: u64,
    /// Read from the view; the rest was known to be zero.
    pub read_bytes: u64,
    /// In the stream as data, before compression.
    pub data_bytes: u64,
    /// In the stream as zeroes.
    pub zero_bytes: u64,
}

/// Writes what the plan names to `writer` as one delta stream, and flushes it. Blocks
/// are read in ascending order, disk by disk. `progress` is called now and then.
///
/// # Errors
/// When the plan contradicts itself, a disk or bitmap is not there, a server fails or
/// breaks the protocol, or `writer` fails. What was written is cut then.
pub fn capture(
    plan: &CapturePlan,
    writer: impl Write,
    progress: &mut dyn FnMut(Progress),
) -> Result<Captured, CaptureError> {
    let opened = open_disks(plan)?;
    let disks: Vec<Disk> = opened
        .iter()
        .map(|disk| Disk {
            id: disk.id.clone(),
            size: disk.size,
        })
        .collect();
    let manifest = Manifest::new(plan.captured_at, plan.consistency, disks.clone())
        .map_err(|source| CaptureError::Plan { source })?;
    let counted = Counted { writer, bytes: 0 };
    let buffered = BufWriter::with_capacity(BUFFER, counted);
    let mut encoder =
        Encoder::new(buffered, &plan.header, &manifest, plan.options).map_err(encode)?;
    let mut totals = Totals::default();
    for (index, disk) in opened.into_iter().enumerate() {
        let report = Report {
            tell: &mut *progress,
            told_at: 0,
            now: Progress {
                disk: index,
                disks: disks.len(),
                position: 0,
                size: disk.size.bytes(),
                read_bytes: totals.read_bytes,
                stream_bytes: encoder.position(),
            },
        };
        let frames = Frames::new(&mut encoder, index);
        let drained = drain(&disk, plan.depth, frames, report)?;
        totals.dirty_bytes += drained.dirty_bytes;
        totals.read_bytes = drained.read_bytes;
    }
    let (footer, buffered) = encoder.finish().map_err(encode)?;
    Ok(Captured {
        footer,
        disks,
        bytes: buffered.get_ref().bytes,
        dirty_bytes: totals.dirty_bytes,
        read_bytes: totals.read_bytes,
        data_bytes: footer.data_bytes,
        zero_bytes: footer.zero_bytes,
    })
}

#[derive(Debug, Default)]
struct Totals {
    dirty_bytes: u64,
    /// Of all disks so far.
    read_bytes: u64,
}

/// Captures one disk.
fn drain<W: Write>(
    disk: &OpenDisk,
    depth: usize,
    mut frames: Frames<'_, W>,
    mut report: Report<'_>,
) -> Result<Totals, CaptureError> {
    let mut survey = Survey::new(disk)?;
    loop {
        let batch = survey
            .by_ref()
            .take(BATCH_SEGMENTS)
            .collect::<Result<Vec<Segment>, CaptureError>>()?;
        if batch.is_empty() {
            break;
        }
        read_batch(disk, depth, &batch, &mut frames, &mut report).map_err(
            |failure| match failure {
                Failure::Encode(source) => CaptureError::Encode { source },
                Failure::Request(source) => CaptureError::Read {
                    disk: disk.id.clone(),
                    source,
                },
            },
        )?;
    }
    frames.finish().map_err(encode)?;
    report.finish(frames.position());
    Ok(Totals {
        dirty_bytes: survey.run_bytes(),
        read_bytes: report.now.read_bytes,
    })
}

/// Reads what must be read, and takes known zeroes in between at their place.
fn read_batch<W: Write>(
    disk: &OpenDisk,
    depth: usize,
    batch: &[Segment],
    frames: &mut Frames<'_, W>,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let (unknown, zero): (Vec<_>, Vec<_>) = batch
        .iter()
        .map(|segment| (segment.range.clone(), segment.content))
        .partition(|(_, content)| *content == Content::Unknown);
    let mut zeroes: VecDeque<_> = zero.into_iter().map(|(range, _)| range).collect();
    let reads = unknown
        .into_iter()
        .map(|(range, _)| (range.start, range.end - range.start));
    disk.client
        .read_ranges(reads, depth, |offset, piece| -> Result<(), Failure> {
            while let Some(range) = zeroes.pop_front_if(|range| range.start < offset) {
                frames.zeroes(range)?;
            }
            frames.piece(offset, piece)?;
            report.read(offset, piece.length(), frames.position());
            Ok(())
        })?;
    for range in zeroes {
        frames.zeroes(range)?;
    }
    Ok(())
}

/// Why a batch was not read to its end.
enum Failure {
    Request(RequestError),
    Encode(EncodeError),
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

fn encode(source: EncodeError) -> CaptureError {
    CaptureError::Encode { source }
}

/// Tells progress, but not too often.
struct Report<'a> {
    tell: &'a mut dyn FnMut(Progress),
    told_at: u64,
    now: Progress,
}

impl Report<'_> {
    fn read(&mut self, offset: u64, length: u64, stream_bytes: u64) {
        self.now.read_bytes += length;
        self.now.position = offset + length;
        self.now.stream_bytes = stream_bytes;
        if self.now.read_bytes >= self.told_at + PROGRESS_STEP {
            self.told_at = self.now.read_bytes;
            (self.tell)(self.now);
        }
    }

    fn finish(&mut self, stream_bytes: u64) {
        self.now.position = self.now.size;
        self.now.stream_bytes = stream_bytes;
        (self.tell)(self.now);
    }
}

/// Counts what reaches the writer.
struct Counted<W> {
    writer: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
