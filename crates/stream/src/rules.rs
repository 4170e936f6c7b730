//! The order of frames, and what they may say about the disks of the manifest.
//!
//! Writer and readers keep one [`Rules`] each, so what one may write is exactly what
//! the others accept: blobs by kind, then ranges that ascend by disk and offset without
//! overlap, and in an initial stream without a gap.

use crate::footer::Counts;
use crate::frame::{BlobKind, MAX_BLOB_BYTES, MAX_DATA_LEN, Meaning, is_whole_sectors};
use crate::header::Kind;
use crate::manifest::Manifest;

/// A frame that may not stand where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("a stream has one manifest, and this frame would be a second one")]
    SecondManifest,
    #[error("blobs stand before the first range of a disk")]
    BlobAfterRanges,
    #[error("the {kind} is there already or comes after a later kind of blob")]
    BlobOrder { kind: BlobKind },
    #[error("the pieces of the {kind} do not follow one another")]
    BlobPiece { kind: BlobKind },
    #[error("the {kind} has {length} bytes: blobs are not empty and have {max} bytes together", max = MAX_BLOB_BYTES)]
    BlobLength { kind: BlobKind, length: u64 },
    #[error("the {kind} ends after {found} of {total} bytes")]
    BlobCut {
        kind: BlobKind,
        found: u64,
        total: u64,
    },
    #[error("disk {disk} is not one of the {count} disks in the manifest")]
    NoSuchDisk { disk: usize, count: usize },
    #[error(
        "the range of {length} bytes at {offset} is not made of whole sectors of {sector} bytes",
        sector = lifeboat_model::SECTOR_SIZE
    )]
    NotSectors { offset: u64, length: u64 },
    #[error(
        "the range of {length} bytes at {offset} does not lie inside disk {disk}, which has {size} bytes"
    )]
    Outside {
        disk: usize,
        offset: u64,
        length: u64,
        size: u64,
    },
    #[error(
        "the range at {offset} of disk {disk} comes before byte {taken} of disk {taken_disk}, where the last one ended"
    )]
    NotAscending {
        disk: usize,
        offset: u64,
        taken_disk: usize,
        taken: u64,
    },
    #[error("an initial stream carries whole disks, and disk {disk} has a gap from byte {offset}")]
    Gap { disk: usize, offset: u64 },
}

/// Where a stream has got to.
#[derive(Debug)]
pub(crate) struct Rules {
    sizes: Vec<u64>,
    whole_disks: bool,
    blob: Option<Blob>,
    blob_bytes: u64,
    /// Where the last range ended; absent until the first one.
    taken: Option<(usize, u64)>,
    counts: Counts,
}

/// The blob whose pieces are passing, or the last one that passed.
#[derive(Debug, Clone, Copy)]
struct Blob {
    kind: BlobKind,
    format: u16,
    total: u64,
    passed: u64,
}

impl Rules {
    /// The rules for a stream whose manifest has just passed.
    pub(crate) fn new(kind: Kind, manifest: &Manifest) -> Self {
        Self {
            sizes: manifest
                .disks()
                .iter()
                .map(|disk| disk.size.bytes())
                .collect(),
            whole_disks: kind == Kind::Initial,
            blob: None,
            blob_bytes: 0,
            taken: None,
            counts: Counts {
                frames: 1,
                data_bytes: 0,
                zero_bytes: 0,
            },
        }
    }

    /// What has passed so far.
    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) const fn no_such_disk(&self, disk: usize) -> RuleError {
        RuleError::NoSuchDisk {
            disk,
            count: self.sizes.len(),
        }
    }

    /// Lets a frame pass whose payload has `plain_len` bytes, or refuses it and stays as it was.
    pub(crate) fn pass(&mut self, meaning: Meaning, plain_len: u64) -> Result<(), RuleError> {
        match meaning {
            Meaning::Manifest => return Err(RuleError::SecondManifest),
            Meaning::Blob {
                kind,
                format,
                offset,
                total,
            } => self.pass_piece(
                Blob {
                    kind,
                    format,
                    total,
                    passed: offset,
                },
                plain_len,
            )?,
            Meaning::Data { disk, offset } => {
                self.pass_range(usize::from(disk), offset, plain_len)?;
                self.counts.data_bytes += plain_len;
            }
            Meaning::Zero {
                disk,
                offset,
                length,
            } => {
                self.pass_range(usize::from(disk), offset, length)?;
                self.counts.zero_bytes += length;
            }
            Meaning::End => self.check_end()?,
        }
        self.counts.frames += 1;
        Ok(())
    }

    /// Refuses a blob of `length` bytes that cannot come next, before its first piece.
    pub(crate) fn check_blob(&self, kind: BlobKind, length: u64) -> Result<(), RuleError> {
        if self.taken.is_some() {
            return Err(RuleError::BlobAfterRanges);
        }
        self.check_blob_complete()?;
        if self.blob.is_some_and(|last| last.kind >= kind) {
            return Err(RuleError::BlobOrder { kind });
        }
        if length == 0 || length > MAX_BLOB_BYTES - self.blob_bytes {
            return Err(RuleError::BlobLength { kind, length });
        }
        Ok(())
    }

    /// `piece.passed` is where the piece starts in its blob.
    fn pass_piece(&mut self, piece: Blob, plain_len: u64) -> Result<(), RuleError> {
        let kind = piece.kind;
        match self.blob {
            Some(open) if open.passed < open.total => {
                let follows = (open.kind, open.format, open.total, open.passed)
                    == (piece.kind, piece.format, piece.total, piece.passed);
                if !follows {
                    return Err(RuleError::BlobPiece { kind });
                }
            }
            Some(_) | None => {
                self.check_blob(kind, piece.total)?;
                if piece.passed != 0 {
                    return Err(RuleError::BlobPiece { kind });
                }
            }
        }
        // Only the last piece is shorter than the others, so a blob has one way to be cut.
        if plain_len != (piece.total - piece.passed).min(MAX_DATA_LEN as u64) {
            return Err(RuleError::BlobPiece { kind });
        }
        if piece.passed == 0 {
            self.blob_bytes += piece.total;
        }
        self.blob = Some(Blob {
            passed: piece.passed + plain_len,
            ..piece
        });
        Ok(())
    }

    fn pass_range(&mut self, disk: usize, offset: u64, length: u64) -> Result<(), RuleError> {
        self.check_blob_complete()?;
        let Some(&size) = self.sizes.get(disk) else {
            return Err(self.no_such_disk(disk));
        };
        if !is_whole_sectors(offset, length) {
            return Err(RuleError::NotSectors { offset, length });
        }
        let Some(end) = offset.checked_add(length).filter(|&end| end <= size) else {
            return Err(RuleError::Outside {
                disk,
                offset,
                length,
                size,
            });
        };
        let (taken_disk, taken) = self.taken.unwrap_or((0, 0));
        if (disk, offset) < (taken_disk, taken) {
            return Err(RuleError::NotAscending {
                disk,
                offset,
                taken_disk,
                taken,
            });
        }
        if self.whole_disks
            && let Some((missing_disk, missing)) = self.first_missing()
            && (disk, offset) != (missing_disk, missing)
        {
            return Err(RuleError::Gap {
                disk: missing_disk,
                offset: missing,
            });
        }
        self.taken = Some((disk, end));
        Ok(())
    }

    fn check_end(&self) -> Result<(), RuleError> {
        self.check_blob_complete()?;
        match self.first_missing() {
            Some((disk, offset)) if self.whole_disks => Err(RuleError::Gap { disk, offset }),
            Some(_) | None => Ok(()),
        }
    }

    fn check_blob_complete(&self) -> Result<(), RuleError> {
        match self.blob {
            Some(blob) if blob.passed < blob.total => Err(RuleError::BlobCut {
                kind: blob.kind,
                found: blob.passed,
                total: blob.total,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The first byte behind the last range, if the disks have one.
    fn first_missing(&self) -> Option<(usize, u64)> {
        let (disk, taken) = self.taken.unwrap_or((0, 0));
        if taken < self.sizes[disk] {
            Some((disk, taken))
        } else {
            (disk + 1 < self.sizes.len()).then_some((disk + 1, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_model::{Consistency, DiskSize, Timestamp};

    use super::*;
    use crate::manifest::Disk;

    fn rules(kind: Kind, sizes: &[u64]) -> Rules {
        let disks = sizes
            .iter()
            .enumerate()
            .map(|(n, &size)| Disk {
                id: n.to_string().parse().unwrap(),
                size: DiskSize::try_from(size).unwrap(),
            })
            .collect();
        let manifest = Manifest::new(Timestamp::from_micros(0), Consistency::Crash, disks).unwrap();
        Rules::new(kind, &manifest)
    }

    fn zero(disk: u16, offset: u64, length: u64) -> Meaning {
        Meaning::Zero {
            disk,
            offset,
            length,
        }
    }

    fn piece(kind: BlobKind, offset: u64, total: u64) -> Meaning {
        Meaning::Blob {
            kind,
            format: 1,
            offset,
            total,
        }
    }

    #[test]
    fn ranges_ascend_by_disk_and_offset_and_never_overlap() {
        let mut rules = rules(Kind::Delta, &[8192, 8192]);
        assert_eq!(rules.pass(zero(0, 512, 1024), 0), Ok(()));
        assert!(matches!(
            rules.pass(zero(0, 1024, 512), 0),
            Err(RuleError::NotAscending { .. })
        ));
        assert_eq!(rules.pass(zero(0, 1536, 512), 0), Ok(()));
        assert_eq!(rules.pass(zero(1, 0, 512), 0), Ok(()));
        assert!(matches!(
            rules.pass(zero(0, 4096, 512), 0),
            Err(RuleError::NotAscending { .. })
        ));
        assert!(matches!(
            rules.pass(zero(1, 0, 512), 0),
            Err(RuleError::NotAscending { .. })
        ));
    }

    #[test]
    fn ranges_lie_inside_their_disk() {
        let mut rules = rules(Kind::Delta, &[8192]);
        for (offset, length) in [
            (0, 8704),
            (8192, 512),
            (u64::MAX - 511, 512),
            (512, 1 << 63),
        ] {
            assert!(
                matches!(
                    rules.pass(zero(0, offset, length), 0),
                    Err(RuleError::Outside { .. })
                ),
                "{offset} {length}"
            );
        }
        for (offset, length) in [(0, 0), (1, 512), (0, 513), (256, 256)] {
            assert_eq!(
                rules.pass(zero(0, offset, length), 0),
                Err(RuleError::NotSectors { offset, length })
            );
        }
        assert_eq!(
            rules.pass(zero(1, 0, 512), 0),
            Err(RuleError::NoSuchDisk { disk: 1, count: 1 })
        );
        assert_eq!(rules.counts().frames, 1);
        assert_eq!(rules.pass(zero(0, 7680, 512), 0), Ok(()));
    }

    #[test]
    fn an_initial_stream_has_no_gap() {
        let mut rules = rules(Kind::Initial, &[8192, 512]);
        let gap = |disk, offset| Err(RuleError::Gap { disk, offset });
        assert_eq!(rules.pass(zero(0, 512, 512), 0), gap(0, 0));
        assert_eq!(rules.pass(Meaning::End, 0), gap(0, 0));
        assert_eq!(rules.pass(zero(0, 0, 4096), 0), Ok(()));
        assert_eq!(rules.pass(zero(1, 0, 512), 0), gap(0, 4096));
        assert_eq!(rules.pass(zero(0, 4096, 4096), 0), Ok(()));
        assert_eq!(rules.pass(Meaning::End, 0), gap(1, 0));
        assert_eq!(rules.pass(zero(1, 0, 512), 0), Ok(()));
        assert_eq!(rules.pass(Meaning::End, 0), Ok(()));
    }

    #[test]
    fn blobs_stand_once_each_in_order_and_before_the_ranges() {
        let mut rules = rules(Kind::Delta, &[8192]);
        assert_eq!(rules.pass(piece(BlobKind::Tpm, 0, 10), 10), Ok(()));
        for kind in [BlobKind::Nvram, BlobKind::Tpm] {
            assert_eq!(
                rules.pass(piece(kind, 0, 10), 10),
                Err(RuleError::BlobOrder { kind })
            );
        }
        assert_eq!(rules.pass(zero(0, 0, 512), 0), Ok(()));
        assert_eq!(
            rules.pass(piece(BlobKind::Definition, 0, 10), 10),
            Err(RuleError::BlobAfterRanges)
        );
        assert_eq!(
            rules.pass(Meaning::Manifest, 10),
            Err(RuleError::SecondManifest)
        );
    }

    #[test]
    fn the_pieces_of_a_blob_are_complete_and_of_one_size() {
        const PIECE: u64 = MAX_DATA_LEN as u64;
        let kind = BlobKind::Nvram;
        let wrong = Err(RuleError::BlobPiece { kind });
        let mut rules = rules(Kind::Delta, &[8192]);
        assert_eq!(rules.pass(piece(kind, PIECE, PIECE + 5), 5), wrong);
        assert_eq!(rules.pass(piece(kind, 0, PIECE + 5), 5), wrong);
        assert_eq!(rules.pass(piece(kind, 0, PIECE + 5), PIECE), Ok(()));
        let cut = Err(RuleError::BlobCut {
            kind,
            found: PIECE,
            total: PIECE + 5,
        });
        assert_eq!(rules.pass(zero(0, 0, 512), 0), cut);
        assert_eq!(rules.pass(Meaning::End, 0), cut);
        assert_eq!(rules.pass(piece(kind, 0, PIECE + 5), PIECE), wrong);
        assert_eq!(rules.pass(piece(kind, PIECE, PIECE + 6), 6), wrong);
        assert_eq!(rules.pass(piece(kind, PIECE, PIECE + 5), 4), wrong);
        assert_eq!(rules.pass(piece(kind, PIECE, PIECE + 5), 5), Ok(()));
        assert_eq!(rules.pass(Meaning::End, 0), Ok(()));
    }

    #[test]
    fn blobs_are_bounded_together() {
        let mut rules = rules(Kind::Delta, &[8192]);
        let length = MAX_BLOB_BYTES - 10;
        let mut passed = 0;
        while passed < length {
            let step = (length - passed).min(MAX_DATA_LEN as u64);
            let next = piece(BlobKind::Nvram, passed, length);
            assert_eq!(rules.pass(next, step), Ok(()));
            passed += step;
        }
        for length in [0, 11, u64::MAX] {
            assert_eq!(
                rules.pass(piece(BlobKind::Tpm, 0, length), length),
                Err(RuleError::BlobLength {
                    kind: BlobKind::Tpm,
                    length
                })
            );
        }
        assert_eq!(rules.pass(piece(BlobKind::Tpm, 0, 10), 10), Ok(()));
    }
}
