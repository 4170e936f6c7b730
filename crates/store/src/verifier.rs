//! A verification in parts, so that whoever changes the store does not wait for what is read.
//!
//! The store is needed for a moment to take out the next part and to take in what the part has
//! shown; in between it may change. Heads are read before segments: what a delta overwrites in a
//! head that was not read yet is in a segment by the time that segments are. Segments are read as
//! they were at one instant; one that is merged or removed meanwhile stays readable.
//!
//! A chunk of a head that is not what its digest says may just be written: it is read again while
//! nobody changes the store, and only then believed.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_model::{DeltaId, DiskId, Sequence};
use lifeboat_stream::{Ending, Limits};
use lifeboat_sys::disk::{Access, DiskFile};

use crate::damage::Damage;
use crate::digest::DigestTable;
use crate::error::{IoContext, StoreError};
use crate::files::FileReader;
use crate::image::{Chain, Image};
use crate::record::Phase;
use crate::recover::index_error;
use crate::segment::Segment;
use crate::store::Store;
use crate::verify::{CheckedRun, Finding, Verification};

/// What of a head is read at a time; all of it may have to be read again with the store at hand.
const HEAD_PART: u64 = 16 << 20;

/// A verification under way.
#[derive(Debug)]
pub struct Verifier {
    point: Option<Sequence>,
    stage: Stage,
    found: Verification,
    progress: VerifyProgress,
}

/// How far a verification is, in bytes of what there was to look at when it began: holes of heads
/// included, which take no time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Never falls, and never exceeds `total`.
    pub done: u64,
    pub total: u64,
}

impl VerifyProgress {
    fn add(&mut self, bytes: u64) {
        self.done = self.total.min(self.done.saturating_add(bytes));
    }
}

/// What comes next.
#[derive(Debug)]
enum Stage {
    Begin,
    /// Deltas, and the length of each.
    Spool(VecDeque<(Sequence, u64)>),
    /// From this byte of this disk on.
    Heads {
        disk: usize,
        offset: u64,
    },
    Segments(VecDeque<SegmentPart>),
}

/// What is read next. It needs the store no more.
#[derive(Debug)]
pub struct Unread(Part);

#[derive(Debug)]
enum Part {
    Delta(DeltaPart),
    Head(HeadPart),
    Segment(SegmentPart),
}

#[derive(Debug)]
struct DeltaPart {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    id: DeltaId,
}

/// Whole chunks that hold data.
#[derive(Debug)]
struct HeadPart {
    disk: DiskId,
    chain: Arc<Chain>,
    digests: Arc<DigestTable>,
    range: Range<u64>,
}

#[derive(Debug)]
struct SegmentPart {
    path: PathBuf,
    index_path: PathBuf,
    segment: Arc<Segment>,
}

/// What a part has shown.
#[derive(Debug, Default)]
pub struct Checked {
    verified_bytes: u64,
    not_verifiable_bytes: u64,
    wrong: Vec<Wrong>,
    /// Chunks of a disk's head that are read again.
    doubtful: Option<(DiskId, Vec<Range<u64>>)>,
}

/// Something that is not as it was written, and the newest segment that reads through it;
/// nothing where no point does.
#[derive(Debug)]
struct Wrong {
    path: PathBuf,
    what: String,
    spoils_up_to: Option<u64>,
}

impl Store {
    /// Reads and compares everything: spool, heads, segments. Goes on after a finding.
    ///
    /// # Errors
    /// Only when reading fails in a way that is no finding.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Verification, StoreError> {
        Verifier::of_everything().run(self, progress)
    }

    /// Verifies what one recovery point reads: the heads, and its segments from the boundary on.
    ///
    /// # Errors
    /// [`Refused::NoPoint`](crate::Refused::NoPoint), or reading fails.
    pub fn verify_point(
        &self,
        sequence: Sequence,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Verification, StoreError> {
        Verifier::of_point(sequence).run(self, progress)
    }

    /// The points that read through a segment: those at its boundary and before.
    fn points_up_to(&self, number: u64) -> Vec<Sequence> {
        let points = self
            .state
            .segments
            .iter()
            .filter(|segment| segment.is_point && segment.number <= number);
        points.map(|segment| segment.moment.sequence).collect()
    }

    /// While a guest runs on the heads, or one half of a delta is in them, nothing can be said.
    fn has_settled_heads(&self) -> bool {
        self.state.applying.is_none()
            && match self.state.phase {
                Phase::Replica | Phase::FailedOver(_) => true,
                Phase::FailingOver(_) | Phase::Committing(_) | Phase::Committed(_) => false,
            }
    }
}

impl Verifier {
    /// Verifies the spool, the heads and all segments.
    #[must_use]
    pub fn of_everything() -> Self {
        Self::of(None)
    }

    /// Verifies what a recovery point reads.
    #[must_use]
    pub fn of_point(sequence: Sequence) -> Self {
        Self::of(Some(sequence))
    }

    fn of(point: Option<Sequence>) -> Self {
        Self {
            point,
            stage: Stage::Begin,
            found: Verification::default(),
            progress: VerifyProgress::default(),
        }
    }

    fn run(
        mut self,
        store: &Store,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Verification, StoreError> {
        while let Some(unread) = self.next(store)? {
            self.take_in(store, unread.read()?)?;
            progress(self.found.verified_bytes);
        }
        self.finish(store)
    }

    /// What is to be read next; nothing at the end.
    ///
    /// # Errors
    /// [`Refused::NoPoint`](crate::Refused::NoPoint) if the point is gone, or a file cannot be
    /// opened.
    pub fn next(&mut self, store: &Store) -> Result<Option<Unread>, StoreError> {
        self.refuse_without_point(store)?;
        loop {
            let part = match &mut self.stage {
                Stage::Begin => {
                    self.progress.total = self.extent(store)?;
                    self.stage = self.begin(store);
                    continue;
                }
                Stage::Spool(deltas) => match deltas.pop_front() {
                    Some((sequence, bytes)) => {
                        self.progress.add(bytes);
                        delta_part(store, sequence)?.map(Part::Delta)
                    }
                    None => {
                        self.stage = Stage::Heads { disk: 0, offset: 0 };
                        continue;
                    }
                },
                Stage::Heads { disk, offset } => {
                    let Some(image) = store.images.get(*disk) else {
                        self.stage = Stage::Segments(self.segments_of(store)?);
                        continue;
                    };
                    let part = head_part(store, image, *offset)?;
                    let end = match &part {
                        Some(part) => part.range.end,
                        None => head_bytes(store, image)?,
                    };
                    self.progress.add(end.saturating_sub(*offset));
                    match part {
                        Some(part) if store.has_settled_heads() => {
                            *offset = part.range.end;
                            Some(Part::Head(part))
                        }
                        Some(part) => {
                            self.found.not_verifiable_bytes += part.range.end - part.range.start;
                            *offset = part.range.end;
                            None
                        }
                        None => {
                            (*disk, *offset) = (*disk + 1, 0);
                            None
                        }
                    }
                }
                Stage::Segments(segments) => match segments.pop_front() {
                    Some(part) => {
                        self.progress.add(part.bytes()?);
                        Some(Part::Segment(part))
                    }
                    None => return Ok(None),
                },
            };
            if let Some(part) = part {
                return Ok(Some(Unread(part)));
            }
        }
    }

    /// The spool belongs to no point.
    fn begin(&mut self, store: &Store) -> Stage {
        if self.point.is_some() {
            return Stage::Heads { disk: 0, offset: 0 };
        }
        let broken = store.broken_spool.iter().map(|broken| Finding {
            path: broken.path.clone(),
            what: broken.damage.to_string(),
            points: Vec::new(),
        });
        self.found.findings.extend(broken);
        let spool = store.spool.iter();
        Stage::Spool(
            spool
                .map(|delta| (delta.moment.sequence, delta.bytes))
                .collect(),
        )
    }

    /// How many bytes there are to look at.
    fn extent(&self, store: &Store) -> Result<u64, StoreError> {
        let mut bytes = match self.point {
            Some(_) => 0,
            None => store.spool.iter().map(|delta| delta.bytes).sum(),
        };
        for image in &store.images {
            bytes += head_bytes(store, image)?;
        }
        for part in self.segments_of(store)? {
            bytes += part.bytes()?;
        }
        Ok(bytes)
    }

    /// How far it is.
    #[must_use]
    pub const fn progress(&self) -> VerifyProgress {
        self.progress
    }

    fn segments_of(&self, store: &Store) -> Result<VecDeque<SegmentPart>, StoreError> {
        let boundary = match self.point {
            Some(sequence) => store.point_segment(sequence)?.number,
            None => 0,
        };
        let of_image = |image: &Image| {
            let part = |segment| segment_part(store, image, segment);
            let parts: Vec<_> = image.chain.from(boundary).into_iter().map(part).collect();
            parts
        };
        Ok(store.images.iter().flat_map(of_image).collect())
    }

    /// Takes in what a part has shown.
    ///
    /// # Errors
    /// Reading again what was doubtful fails.
    pub fn take_in(&mut self, store: &Store, checked: Checked) -> Result<(), StoreError> {
        self.found.verified_bytes += checked.verified_bytes;
        self.found.not_verifiable_bytes += checked.not_verifiable_bytes;
        let wrong = checked.wrong.into_iter().map(|wrong| Finding {
            path: wrong.path,
            what: wrong.what,
            points: wrong
                .spoils_up_to
                .map_or_else(Vec::new, |number| store.points_up_to(number)),
        });
        self.found.findings.extend(wrong);
        match checked.doubtful {
            Some((disk, chunks)) => self.read_again(store, &disk, &chunks),
            None => Ok(()),
        }
    }

    /// Chunks that were not what their digests say, or had none, while nobody writes them.
    fn read_again(
        &mut self,
        store: &Store,
        disk: &DiskId,
        chunks: &[Range<u64>],
    ) -> Result<(), StoreError> {
        let Some(image) = store.images.iter().find(|image| image.id == *disk) else {
            return Ok(());
        };
        let path = store.layout.head(disk);
        let size = image.chain.head.len().context("measure", &path)?;
        let mut buffer = vec![0; DigestTable::CHUNK as usize];
        for range in chunks {
            // A disk that became smaller has no such chunk, or only a part of it.
            let range = range.start..range.end.min(size);
            if range.start >= range.end {
                continue;
            }
            let length = range.end - range.start;
            if !store.has_settled_heads() {
                self.found.not_verifiable_bytes += length;
                continue;
            }
            let bytes = &mut buffer[..length as usize];
            let head = &image.chain.head;
            head.read_at(bytes, range.start).context("read", &path)?;
            let chunk = range.start / DigestTable::CHUNK;
            match image.digests.known(chunk) {
                Some(digest) if digest == DigestTable::digest(bytes) => {
                    self.found.verified_bytes += length;
                }
                Some(_) => self.found.findings.push(Finding {
                    path: path.clone(),
                    what: Damage::HeadDigest {
                        offset: range.start,
                    }
                    .to_string(),
                    points: store.points_up_to(u64::MAX),
                }),
                None => {
                    let digests = &image.digests;
                    digests
                        .set(chunk, bytes)
                        .context("note digests of", &path)?;
                    self.found.not_verifiable_bytes += length;
                }
            }
        }
        Ok(())
    }

    /// Everything was read: what was found.
    ///
    /// # Errors
    /// [`Refused::NoPoint`](crate::Refused::NoPoint) if the point is gone, or digests cannot be
    /// made durable.
    pub fn finish(mut self, store: &Store) -> Result<Verification, StoreError> {
        self.refuse_without_point(store)?;
        for image in &store.images {
            let path = store.layout.head(&image.id);
            image.digests.sync().context("sync digests of", &path)?;
        }
        self.found.heads_are_mixed = store.state.mixed.is_some();
        Ok(self.found)
    }

    /// What was removed meanwhile is not called right.
    fn refuse_without_point(&self, store: &Store) -> Result<(), StoreError> {
        if let Some(sequence) = self.point {
            store.point_segment(sequence)?;
        }
        Ok(())
    }
}

/// A delta of the spool, unless it was applied meanwhile: then it is in the heads.
fn delta_part(store: &Store, sequence: Sequence) -> Result<Option<DeltaPart>, StoreError> {
    let mut spool = store.spool.iter();
    let Some(delta) = spool.find(|delta| delta.moment.sequence == sequence) else {
        return Ok(None);
    };
    let path = store.layout.delta(&store.state.lineage.id, sequence);
    let file = store.disk.open(&path, Access::ReadOnly);
    Ok(Some(DeltaPart {
        file: file.context("open", &path)?,
        path,
        bytes: delta.bytes,
        id: delta.moment.id,
    }))
}

fn head_bytes(store: &Store, image: &Image) -> Result<u64, StoreError> {
    let path = store.layout.head(&image.id);
    image.chain.head.len().context("measure", &path)
}

/// The next chunks of a head that hold data.
fn head_part(store: &Store, image: &Image, offset: u64) -> Result<Option<HeadPart>, StoreError> {
    let path = store.layout.head(&image.id);
    let head = &image.chain.head;
    let size = head_bytes(store, image)?;
    if offset >= size {
        return Ok(None);
    }
    let Some(data) = head.next_data(offset).context("search", &path)? else {
        return Ok(None);
    };
    let start = data.start / DigestTable::CHUNK * DigestTable::CHUNK;
    let end = data.end.next_multiple_of(DigestTable::CHUNK);
    let end = end.min(start + HEAD_PART).min(size);
    Ok((start < end).then(|| HeadPart {
        disk: image.id.clone(),
        chain: Arc::clone(&image.chain),
        digests: Arc::clone(&image.digests),
        range: start..end,
    }))
}

fn segment_part(store: &Store, image: &Image, segment: Arc<Segment>) -> SegmentPart {
    let number = segment.number();
    let is_sealed = store
        .state
        .segment(number)
        .is_some_and(|segment| segment.sealed);
    SegmentPart {
        path: if is_sealed {
            store.layout.sealed_segment(&image.id, number)
        } else {
            store.layout.open_segment(&image.id, number)
        },
        index_path: store.layout.segment_index(&image.id, number),
        segment,
    }
}

impl Unread {
    /// Reads it and compares it with its digests.
    ///
    /// # Errors
    /// Reading fails in a way that is no finding.
    pub fn read(self) -> Result<Checked, StoreError> {
        match self.0 {
            Part::Delta(part) => part.read(),
            Part::Head(part) => part.read(),
            Part::Segment(part) => part.read(),
        }
    }
}

impl DeltaPart {
    fn read(self) -> Result<Checked, StoreError> {
        let path = self.path;
        let limits = Limits {
            stream_bytes: self.bytes,
            ending: Ending::EndOfInput,
        };
        let reader = FileReader::new(self.file).context("read", &path)?;
        let what = match lifeboat_stream::verify(reader, &limits) {
            Ok(summary) if summary.footer.id == self.id => {
                return Ok(Checked {
                    verified_bytes: summary.bytes,
                    ..Checked::default()
                });
            }
            Ok(_) => "it is another delta".to_owned(),
            Err(error) => crate::spool::with_causes(&error),
        };
        Ok(Checked {
            wrong: vec![Wrong {
                path,
                what,
                spoils_up_to: None,
            }],
            ..Checked::default()
        })
    }
}

impl HeadPart {
    fn read(self) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        let mut doubtful = Vec::new();
        let mut buffer = vec![0; DigestTable::CHUNK as usize];
        let mut offset = self.range.start;
        while offset < self.range.end {
            let end = self.range.end.min(offset + DigestTable::CHUNK);
            let bytes = &mut buffer[..(end - offset) as usize];
            let known = self.digests.known(offset / DigestTable::CHUNK);
            // A disk that became smaller meanwhile ends too early. What has no digest is read all
            // the same: whoever reads it again with the store at hand finds it in memory.
            let is_read = self.chain.head.read_at(bytes, offset).is_ok();
            if is_read && known == Some(DigestTable::digest(bytes)) {
                checked.verified_bytes += end - offset;
            } else {
                doubtful.push(offset..end);
            }
            offset = end;
        }
        checked.doubtful = Some((self.disk, doubtful));
        Ok(checked)
    }
}

impl SegmentPart {
    fn bytes(&self) -> Result<u64, StoreError> {
        self.segment.data().len().context("measure", &self.path)
    }

    fn read(self) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        let spoils_up_to = Some(self.segment.number());
        let mut wrong = Vec::new();
        let outcome = self.segment.check_runs(|run| {
            match run {
                CheckedRun::Right { bytes } => checked.verified_bytes += bytes,
                CheckedRun::Unknown { bytes } => checked.not_verifiable_bytes += bytes,
                CheckedRun::Wrong(damage) => wrong.push(damage.to_string()),
            }
            Ok(())
        });
        if let Err(error) = outcome {
            match index_error(&self.index_path, error) {
                StoreError::Damaged { path, damage } => checked.wrong.push(Wrong {
                    path,
                    what: damage.to_string(),
                    spoils_up_to,
                }),
                other => return Err(other),
            }
        }
        let in_data = wrong.into_iter().map(|what| Wrong {
            path: self.path.clone(),
            what,
            spoils_up_to,
        });
        checked.wrong.extend(in_data);
        Ok(checked)
    }
}
