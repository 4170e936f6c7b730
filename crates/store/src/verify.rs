//! Verification: every byte whose digest is known is read and compared.
//!
//! Segments have a digest per saved run, the spool one per frame, the head one per 64 KiB.
//! What has none is counted as not verifiable, and for the head gets one now. In which order
//! things are read, and what may change meanwhile, is in `verifier.rs`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_model::{BLOCK_SIZE, DiskId, Sequence};
use serde::Serialize;

use crate::damage::Damage;
use crate::digest::DigestTable;
use crate::error::{IoContext, StoreError};
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
