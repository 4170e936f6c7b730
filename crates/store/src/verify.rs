//! Verification: every byte whose digest is known is read and compared.
//!
//! Segments have a digest per saved run, the spool one per frame, the head one per 64 KiB.
//! What has none is counted as not verifiable, and for the head gets one now.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_model::{BLOCK_SIZE, DiskId, Sequence};
use lifeboat_stream::{Ending, Limits};
use lifeboat_sys::disk::Access;
use serde::Serialize;

use crate::damage::Damage;
use crate::digest::DigestTable;
use crate::error::{IoContext, StoreError};
use crate::files::FileReader;
use crate::image::Image;
use crate::index::{RunDigest, Saved};
use crate::record::Phase;
use crate::recover::index_error;
use crate::segment::Segment;
use crate::store::Store;

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Bytes that were read and are right.
    pub verified_bytes: u64,
    /// Bytes for which no digest was known. Those of heads have one from now on.
    pub not_verifiable_bytes: u64,
    /// Whole disks are being copied: what the heads hold is what was written there, and yet
    /// no moment of the VM.
    pub heads_are_mixed: bool,
    pub findings: Vec<Finding>,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub path: PathBuf,
    pub what: String,
    /// Recovery points that cannot be trusted because of it.
    pub points: Vec<Sequence>,
}

/// What a rescan made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rescanned {
    /// Images by which QEMU uses the disks; they name the folder that the store lies in.
    pub images_made: usize,
    /// Descriptions of recovery points that were missing.
    pub manifests_made: usize,
    /// Whole disks are being copied: the newest state is no moment of the VM.
    pub heads_are_mixed: bool,
}

impl Store {
    /// Brings a store into order that was moved, copied or restored: images name the disks
    /// where they lie now, and every recovery point has its description. What the journal
    /// speaks of was found when the store was opened.
    ///
    /// # Errors
    /// Refused while a failed-over VM runs; else what the operating system says.
    pub fn rescan(&mut self) -> Result<Rescanned, StoreError> {
        let failed_over = matches!(self.state.phase, Phase::FailedOver(_));
        let _overlays = if failed_over {
            self.guard_overlays()?
        } else {
            Vec::new()
        };
        self.change(|store| {
            let mut made = Rescanned {
                images_made: store.renew_wrappers()?,
                manifests_made: 0,
                heads_are_mixed: store.state.mixed.is_some(),
            };
            made.manifests_made = store.write_missing_manifests()?;
            Ok(made)
        })
    }

    /// Describes recovery points whose description is missing, and answers how many.
    pub(crate) fn write_missing_manifests(&self) -> Result<usize, StoreError> {
        let mut made = 0;
        for segment in &self.state.segments {
            let path = self.layout.point(segment.moment.sequence);
            let is_missing = self.disk.kind(&path).context("look up", &path)?.is_none();
            if segment.is_point && is_missing {
                self.write_manifest(segment)?;
                made += 1;
            }
        }
        Ok(made)
    }

    /// Reads and compares everything: spool, segments, heads. Goes on after a finding.
    ///
    /// # Errors
    /// Only when reading fails in a way that is no finding.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Verification, StoreError> {
        let mut result = self.new_verification();
        self.verify_spool(&mut result)?;
        for image in &self.images {
            for segment in image.chain.from(0) {
                self.verify_segment(image, &segment, &mut result)?;
                progress(result.verified_bytes);
            }
            self.verify_head(image, &mut result, progress)?;
        }
        Ok(result)
    }

    fn new_verification(&self) -> Verification {
        Verification {
            heads_are_mixed: self.state.mixed.is_some(),
            ..Verification::default()
        }
    }

    fn verify_spool(&self, result: &mut Verification) -> Result<(), StoreError> {
        for broken in &self.broken_spool {
            result.findings.push(Finding {
                path: broken.path.clone(),
                what: broken.damage.to_string(),
                points: Vec::new(),
            });
        }
        for delta in &self.spool {
            let path = self
                .layout
                .delta(&self.state.lineage.id, delta.moment.sequence);
            let file = self
                .disk
                .open(&path, Access::ReadOnly)
                .context("open", &path)?;
            let limits = Limits {
                stream_bytes: delta.bytes,
                ending: Ending::EndOfInput,
            };
            match lifeboat_stream::verify(FileReader::new(file).context("read", &path)?, &limits) {
                Ok(summary) if summary.footer.id == delta.moment.id => {
                    result.verified_bytes += summary.bytes;
                }
                Ok(_) => result.findings.push(Finding {
                    path,
                    what: "it is another delta".to_owned(),
                    points: Vec::new(),
                }),
                Err(error) => {
                    let what = crate::spool::with_causes(&error);
                    result.findings.push(Finding {
                        path,
                        what,
                        points: Vec::new(),
                    });
                }
            }
        }
        Ok(())
    }

    fn verify_segment(
        &self,
        image: &Image,
        segment: &Segment,
        result: &mut Verification,
    ) -> Result<(), StoreError> {
        let number = segment.number();
        let sealed = self
            .state
            .segment(number)
            .is_some_and(|segment| segment.sealed);
        let path = if sealed {
            self.layout.sealed_segment(&image.id, number)
        } else {
            self.layout.open_segment(&image.id, number)
        };
        let mut found = Vec::new();
        let outcome = segment.check_runs(|run| {
            match run {
                CheckedRun::Right { bytes } => result.verified_bytes += bytes,
                CheckedRun::Unknown { bytes } => result.not_verifiable_bytes += bytes,
                CheckedRun::Wrong(damage) => found.push(damage.to_string()),
            }
            Ok(())
        });
        if let Err(error) = outcome {
            match index_error(&self.layout.segment_index(&image.id, number), error) {
                StoreError::Damaged { path, damage } => {
                    result.findings.push(Finding {
                        path,
                        what: damage.to_string(),
                        points: self.points_up_to(number),
                    });
                }
                other => return Err(other),
            }
        }
        for what in found {
            result.findings.push(Finding {
                path: path.clone(),
                what,
                points: self.points_up_to(number),
            });
        }
        Ok(())
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

    fn verify_head(
        &self,
        image: &Image,
        result: &mut Verification,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        // While a guest runs on the head, or one half of a delta is in it, nothing can be said.
        let settled = self.state.applying.is_none()
            && match self.state.phase {
                Phase::Replica | Phase::FailedOver(_) => true,
                Phase::FailingOver(_) | Phase::Committing(_) | Phase::Committed(_) => false,
            };
        let path = self.layout.head(&image.id);
        let size = image.chain.head.len().context("measure", &path)?;
        if !settled {
            result.not_verifiable_bytes += size;
            return Ok(());
        }
        let mut buffer = vec![0; DigestTable::CHUNK as usize];
        let mut offset = 0;
        let all_points = self.points_up_to(u64::MAX);
        while offset < size {
            let Some(data) = image
                .chain
                .head
                .next_data(offset)
                .context("search", &path)?
            else {
                break;
            };
            offset = data.start - data.start % DigestTable::CHUNK;
            while offset < data.end.min(size) {
                let len = DigestTable::CHUNK.min(size - offset);
                let bytes = &mut buffer[..len as usize];
                image
                    .chain
                    .head
                    .read_at(bytes, offset)
                    .context("read", &path)?;
                let chunk = offset / DigestTable::CHUNK;
                match image.digests.known(chunk) {
                    Some(digest) if digest == DigestTable::digest(bytes) => {
                        result.verified_bytes += len;
                    }
                    Some(_) => result.findings.push(Finding {
                        path: path.clone(),
                        what: Damage::HeadDigest { offset }.to_string(),
                        points: all_points.clone(),
                    }),
                    None => {
                        image
                            .digests
                            .set(chunk, bytes)
                            .context("note digests of", &path)?;
                        result.not_verifiable_bytes += len;
                    }
                }
                offset += len;
            }
            progress(result.verified_bytes);
        }
        image.digests.sync().context("sync digests of", &path)
    }

    /// Verifies every block that a commit of this boundary may read from segments, with as
    /// many threads as there are processors, up to four.
    pub(crate) fn verify_segments_from(&self, boundary: u64) -> Result<(), StoreError> {
        let of_image = |image: &Image| {
            let id = image.id.clone();
            let segments = image.chain.from(boundary);
            segments
                .into_iter()
                .map(move |segment| (id.clone(), segment))
        };
        let work: Vec<_> = self.images.iter().flat_map(of_image).collect();
        let next = AtomicUsize::new(0);
        let verify_some = || {
            while let Some((id, segment)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = self.layout.sealed_segment(id, segment.number());
                let mut wrong = None;
                let outcome = segment.check_runs(|run| {
                    if let CheckedRun::Wrong(damage) = run {
                        wrong.get_or_insert(damage);
                    }
                    Ok(())
                });
                outcome.map_err(|error| index_error(&path, error))?;
                if let Some(damage) = wrong {
                    return Err(StoreError::Damaged { path, damage });
                }
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
        std::thread::scope(|scope| {
            let verifiers: Vec<_> = (1..threads).map(|_| scope.spawn(verify_some)).collect();
            let mine = verify_some();
            let others = verifiers
                .into_iter()
                .map(|verifier| verifier.join().expect("BUG: a verifier panicked"));
            others.fold(mine, Result::and)
        })
    }

    /// Verifies what one recovery point reads: its segments from the boundary on, and the heads.
    ///
    /// # Errors
    /// [`Refused::NoPoint`](crate::Refused::NoPoint), or reading fails.
    pub fn verify_point(
        &self,
        sequence: Sequence,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Verification, StoreError> {
        let boundary = self.point_segment(sequence)?.number;
        let mut result = self.new_verification();
        for image in &self.images {
            for segment in image.chain.from(boundary) {
                self.verify_segment(image, &segment, &mut result)?;
                progress(result.verified_bytes);
            }
            self.verify_head(image, &mut result, progress)?;
        }
        Ok(result)
    }

    /// The ids of the disks, as they are named in the folder.
    #[must_use]
    pub fn disk_ids(&self) -> Vec<DiskId> {
        self.state
            .disks
            .iter()
            .map(|disk| disk.id.clone())
            .collect()
    }
}

/// The outcome for one run of a segment.
pub(crate) enum CheckedRun {
    Right { bytes: u64 },
    Unknown { bytes: u64 },
    Wrong(Damage),
}

impl Segment {
    /// Reads every run whose digest is known and tells `each` how it is.
    pub(crate) fn check_runs(
        &self,
        mut each: impl FnMut(CheckedRun) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        self.records(|record| {
            let bytes = u64::from(record.blocks) * BLOCK_SIZE;
            let run = match (record.saved, record.digest) {
                (Saved::Zero, _) => CheckedRun::Right { bytes: 0 },
                (Saved::Lost, _) => CheckedRun::Wrong(Damage::Lost {
                    block: record.first,
                    blocks: u64::from(record.blocks),
                }),
                (Saved::Data { .. }, RunDigest::Unknown) => CheckedRun::Unknown { bytes },
                (Saved::Data { host }, RunDigest::Known(digest)) => {
                    buffer.resize(bytes as usize, 0);
                    self.data().read_at(&mut buffer, host)?;
                    // Digests taken over from a head's table are never zero.
                    if digest.max(1) == DigestTable::digest(&buffer) {
                        CheckedRun::Right { bytes }
                    } else {
                        CheckedRun::Wrong(Damage::Digest {
                            block: record.first,
                        })
                    }
                }
            };
            each(run)
        })
    }
}
