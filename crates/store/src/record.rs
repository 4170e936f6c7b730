//! What the journal says, and the state that follows from it.
//!
//! [`State::after`] is the only way a state changes. It is pure: the same records give the
//! same state, on every host and after every crash.

use lifeboat_model::contract::PointKind;
use lifeboat_model::{
    Consistency, DeltaId, DiskId, DiskSize, Lineage, LineageId, RelationshipId, Sequence,
    Timestamp, VmId,
};
use lifeboat_qcow2::SEGMENT_CLUSTER;
use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::index::RECORD_LEN;
use crate::mixed::{CopyKind, DoneRanges, Mixed, Piece};

/// How many of the newest (sequence, id) pairs are remembered to recognize bases and repeats.
const REMEMBERED: usize = 64;

/// Everything the store knows of itself that is not in a delta or a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) vm: VmId,
    pub(crate) relationship: RelationshipId,
    pub(crate) lineage: Lineage,
    /// Lineages this one descends from, oldest first, and those that were abandoned.
    pub(crate) ancestors: Vec<Lineage>,
    pub(crate) disks: Vec<DiskState>,
    /// The newest moment that the heads hold; absent before the first delta.
    pub(crate) applied: Option<Moment>,
    /// The blobs that belong to what the heads hold.
    pub(crate) blobs: Vec<BlobRef>,
    /// The newest moments ever applied, newest last.
    pub(crate) remembered: Vec<(Sequence, DeltaId)>,
    /// Set from the first preimages of a delta until it is applied: only forward from here.
    pub(crate) applying: Option<Applying>,
    /// Oldest first; the boundary of each lies at its beginning.
    pub(crate) segments: Vec<SegmentState>,
    pub(crate) next_segment: u64,
    /// A merge whose files may not all have their final names.
    pub(crate) merging: Option<Merging>,
    /// Set from the first byte of a copy of whole disks until a delta closes it; while it is,
    /// `applied` is not what the heads hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mixed: Option<Mixed>,
    /// The heads were made equal to the other side's disks by maps of what differs, and nothing
    /// has compared all of them since.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) unverified: bool,
    pub(crate) phase: Phase,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over references"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskState {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
}

/// One frozen moment of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Moment {
    pub(crate) sequence: Sequence,
    pub(crate) id: DeltaId,
    pub(crate) captured_at: Timestamp,
    pub(crate) consistency: Consistency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Applying {
    pub(crate) sequence: Sequence,
    pub(crate) id: DeltaId,
    /// The last slice whose preimages are saved; it and those before may be half written.
    pub(crate) slice: u64,
}

/// The preimages since one boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentState {
    pub(crate) number: u64,
    /// What the heads held when the boundary was opened.
    pub(crate) moment: Moment,
    /// When the boundary was opened, by this host's clock.
    pub(crate) opened_at: Timestamp,
    /// Whether the boundary is a recovery point.
    pub(crate) is_point: bool,
    /// The point's kind; stores of before have standard ones only.
    #[serde(default)]
    pub(crate) kind: PointKind,
    /// The lineage of the moment; absent in stores of before, where it is the store's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lineage: Option<LineageId>,
    /// The boundary was opened while the heads were unverified.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) unverified: bool,
    pub(crate) sealed: bool,
    /// The blobs that belong to the boundary.
    pub(crate) blobs: Vec<BlobRef>,
    pub(crate) disks: Vec<SegmentDisk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentDisk {
    /// The disk's size at the boundary.
    pub(crate) size: DiskSize,
    /// How much of the segment's files is valid.
    pub(crate) lengths: Lengths,
}

/// The valid lengths of a segment's data and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lengths {
    pub(crate) data: u64,
    pub(crate) index: u64,
}

/// A lineage and what it descends from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    pub lineage: Lineage,
    /// Oldest first, abandoned lineages included.
    pub ancestors: Vec<Lineage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Merging {
    pub(crate) into: u64,
    pub(crate) from: u64,
}

/// What the store is for at the moment.
///
/// ```text
/// Replica --FailoverStarted--> FailingOver --FailedOver--> FailedOver --Committing--> Committing --Committed--> Committed
///    ^                              |                          |
///    +----------Reverted------------+----------Reverted--------+
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Phase {
    /// Receives and applies.
    Replica,
    /// The overlays are being made; nothing is received or applied any more.
    FailingOver(Failover),
    /// The VM may run on the overlays.
    FailedOver(Failover),
    /// Past the point of no return.
    Committing(Failover),
    /// The heads are the VM's own disks.
    Committed(Failover),
}

/// One failover, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failover {
    pub(crate) target: Target,
    /// The lineage that the VM writes from now on.
    pub(crate) lineage: Lineage,
    pub(crate) started_at: Timestamp,
    /// The overlays' sizes: the larger of point and head, per disk.
    pub(crate) sizes: Vec<DiskSize>,
    /// The disks' sizes at the target.
    pub(crate) target_sizes: Vec<DiskSize>,
    /// The copy of whole disks under way is given up; the heads stay as it has left them.
    #[serde(default)]
    pub(crate) cancels_copy: bool,
}

/// What a failover starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// The heads as they are.
    Newest,
    /// The boundary of this segment.
    Segment(u64),
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Record {
    /// The whole state; the first record of every journal.
    Checkpoint(Box<State>),
    /// What slices up to `slice` overwrite is saved. From here on only forward.
    Preimages {
        sequence: Sequence,
        id: DeltaId,
        slice: u64,
        lengths: Option<Vec<Lengths>>,
    },
    /// The heads hold this moment, all of them.
    Applied {
        moment: Moment,
        sizes: Vec<DiskSize>,
        blobs: Vec<BlobRef>,
    },
    /// A new segment collects preimages from now on.
    Boundary(Box<SegmentState>),
    /// A boundary became, or is no longer, a recovery point.
    Point {
        segment: u64,
        is_point: bool,
        #[serde(default)]
        kind: PointKind,
    },
    Sealed {
        segment: u64,
    },
    /// The oldest segment is gone.
    Dropped {
        segment: u64,
    },
    /// A segment took in the next newer one.
    Merged {
        into: u64,
        from: u64,
        lengths: Vec<Lengths>,
    },
    MergeFinished,
    /// From here on the heads hold no single moment. `boundary` is the last consistent one.
    CopyBegun {
        sequence: Sequence,
        kind: CopyKind,
        boundary: Option<u64>,
        /// The history that the store follows from now on, if it is another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<Box<History>>,
    },
    /// All of the heads was compared with the other side's disks.
    Verified,
    /// What the piece overwrites is saved; it may be half written from now on.
    CopySaved {
        piece: Piece,
        lengths: Option<Vec<Lengths>>,
    },
    /// The heads hold the piece.
    Copied {
        piece: Piece,
    },
    FailoverStarted(Box<Failover>),
    FailedOver,
    /// The failover's lineage is abandoned, the store is a replica again.
    Reverted,
    /// The point of no return.
    Committing,
    Committed,
    /// The VM's own disks are a replica again, of the side that took over.
    Rejoined {
        relationship: RelationshipId,
        lineage: Lineage,
        ancestors: Vec<Lineage>,
        sizes: Vec<DiskSize>,
        segment: Box<SegmentState>,
    },
    /// The heads are the VM's own disks, as they are; all that was kept besides is worthless.
    Flattened,
}

impl State {
    /// The state after one more record, or why it cannot follow.
    pub(crate) fn after(mut self, record: Record) -> Result<Self, &'static str> {
        match record {
            Record::Checkpoint(state) => return Ok(*state),
            Record::Preimages {
                sequence,
                id,
                slice,
                lengths,
            } => {
                self.applying = Some(Applying {
                    sequence,
                    id,
                    slice,
                });
                self.set_lengths_of_open(lengths)?;
            }
            Record::Applied {
                moment,
                sizes,
                blobs,
            } => {
                if sizes.len() != self.disks.len() {
                    return Err("sizes of other disks");
                }
                for (disk, size) in self.disks.iter_mut().zip(sizes) {
                    disk.size = size;
                }
                self.applying = None;
                self.mixed = None;
                self.blobs = blobs;
                self.applied = Some(moment);
                self.remembered.push((moment.sequence, moment.id));
                let superfluous = self.remembered.len().saturating_sub(REMEMBERED);
                self.remembered.drain(..superfluous);
            }
            Record::Boundary(segment) => {
                if segment.number < self.next_segment || segment.disks.len() != self.disks.len() {
                    return Err("a boundary that was there before");
                }
                self.next_segment = segment.number + 1;
                self.segments.push(*segment);
            }
            Record::Point {
                segment,
                is_point,
                kind,
            } => {
                let segment = self.segment_mut(segment)?;
                segment.is_point = is_point;
                segment.kind = kind;
            }
            Record::Sealed { segment } => self.segment_mut(segment)?.sealed = true,
            Record::Dropped { segment } => {
                if self.segments.first().map(|first| first.number) != Some(segment) {
                    return Err("dropping a segment that is not the oldest");
                }
                self.segments.remove(0);
            }
            Record::Merged {
                into,
                from,
                lengths,
            } => {
                let position = self.position(into)?;
                if self.segments.get(position + 1).map(|next| next.number) != Some(from) {
                    return Err("merging segments that do not follow each other");
                }
                self.segments.remove(position + 1);
                self.segments[position].set_lengths(&lengths)?;
                self.merging = Some(Merging { into, from });
            }
            Record::MergeFinished => self.merging = None,
            Record::CopyBegun {
                sequence,
                kind,
                boundary,
                follows,
            } => {
                if let Some(number) = boundary {
                    self.segment_mut(number)?;
                }
                if let Some(history) = follows {
                    self.follow(*history);
                }
                self.applying = None;
                self.unverified = kind == CopyKind::ByMaps;
                self.mixed = Some(Mixed {
                    boundary,
                    sequence,
                    kind,
                    done: Some(vec![DoneRanges::default(); self.disks.len()]),
                    writing: self.mixed.and_then(|mixed| mixed.writing),
                });
            }
            Record::Verified => self.unverified = false,
            Record::CopySaved { piece, lengths } => {
                self.set_lengths_of_open(lengths)?;
                let mixed = self.mixed.as_mut().ok_or("a piece of no copy")?;
                mixed.writing = Some(piece);
            }
            Record::Copied { piece } => {
                let mixed = self.mixed.as_mut().ok_or("a piece of no copy")?;
                let done = mixed.done.as_mut().ok_or("a piece of a cancelled copy")?;
                let done = done.get_mut(piece.disk).ok_or("a piece of no disk")?;
                done.add(piece.range);
                mixed.writing = None;
            }
            Record::FailoverStarted(failover) => {
                if let Some(mixed) = self.mixed.as_mut().filter(|_| failover.cancels_copy) {
                    mixed.done = None;
                }
                self.phase = Phase::FailingOver(*failover);
            }
            Record::FailedOver => match self.phase {
                Phase::FailingOver(failover) => self.phase = Phase::FailedOver(failover),
                _ => return Err("a failover that was not started"),
            },
            Record::Reverted => match self.phase {
                Phase::FailingOver(failover) | Phase::FailedOver(failover) => {
                    self.ancestors.push(failover.lineage);
                    self.phase = Phase::Replica;
                }
                _ => return Err("a revert without a failover"),
            },
            Record::Committing => match self.phase {
                Phase::FailedOver(failover) => self.phase = Phase::Committing(failover),
                _ => return Err("a commit without a failover"),
            },
            Record::Committed => match self.phase {
                Phase::Committing(failover) => {
                    for (disk, &size) in self.disks.iter_mut().zip(&failover.sizes) {
                        disk.size = size;
                    }
                    if let Target::Segment(number) = failover.target {
                        let target = self
                            .segments
                            .iter()
                            .find(|segment| segment.number == number);
                        let target = target.ok_or("a commit of a segment that is gone")?;
                        self.applied = Some(target.moment);
                        self.blobs.clone_from(&target.blobs);
                    }
                    self.segments.clear();
                    self.remembered.clear();
                    self.applying = None;
                    self.mixed = None;
                    self.ancestors.push(self.lineage);
                    self.lineage = failover.lineage;
                    self.phase = Phase::Committed(failover);
                }
                _ => return Err("a commit that did not begin"),
            },
            Record::Rejoined {
                relationship,
                lineage,
                ancestors,
                sizes,
                segment,
            } => {
                let Phase::Committed(_) = self.phase else {
                    return Err("joining with disks that are no VM's own");
                };
                let disks = self.disks.len();
                if sizes.len() != disks || segment.disks.len() != disks {
                    return Err("joining with other disks");
                }
                if segment.number < self.next_segment {
                    return Err("a boundary that was there before");
                }
                for (disk, size) in self.disks.iter_mut().zip(sizes) {
                    disk.size = size;
                }
                self.relationship = relationship;
                self.lineage = lineage;
                self.ancestors = ancestors;
                self.applied = Some(segment.moment);
                self.next_segment = segment.number + 1;
                self.segments = vec![*segment];
                self.phase = Phase::Replica;
            }
            Record::Flattened => {
                let Phase::Replica = self.phase else {
                    return Err("flattening what is no replica");
                };
                let moment = self.applied.ok_or("flattening what holds nothing")?;
                let sizes: Vec<DiskSize> = self.disks.iter().map(|disk| disk.size).collect();
                self.segments.clear();
                self.remembered.clear();
                self.applying = None;
                self.merging = None;
                self.phase = Phase::Committed(Failover {
                    target: Target::Newest,
                    lineage: self.lineage,
                    started_at: moment.captured_at,
                    target_sizes: sizes.clone(),
                    sizes,
                    cancels_copy: false,
                });
            }
        }
        Ok(self)
    }

    /// What is here stays labelled with the lineage that it came under.
    fn follow(&mut self, history: History) {
        let left = self.lineage;
        for segment in &mut self.segments {
            segment.lineage.get_or_insert(left.id);
        }
        for ancestor in history.ancestors.into_iter().chain([left]) {
            if self.ancestors.iter().all(|known| known.id != ancestor.id) {
                self.ancestors.push(ancestor);
            }
        }
        self.lineage = history.lineage;
    }

    fn set_lengths_of_open(&mut self, lengths: Option<Vec<Lengths>>) -> Result<(), &'static str> {
        let Some(lengths) = lengths else {
            return Ok(());
        };
        let segment = self.segments.last_mut().filter(|segment| !segment.sealed);
        segment
            .ok_or("preimages without an open segment")?
            .set_lengths(&lengths)
    }

    pub(crate) fn segment(&self, number: u64) -> Option<&SegmentState> {
        self.segments
            .iter()
            .find(|segment| segment.number == number)
    }

    fn segment_mut(&mut self, number: u64) -> Result<&mut SegmentState, &'static str> {
        self.segments
            .iter_mut()
            .find(|segment| segment.number == number)
            .ok_or("a segment that is not there")
    }

    pub(crate) fn position(&self, number: u64) -> Result<usize, &'static str> {
        self.segments
            .iter()
            .position(|segment| segment.number == number)
            .ok_or("a segment that is not there")
    }

    /// The newest segment, if it still takes preimages.
    pub(crate) fn open_segment(&self) -> Option<&SegmentState> {
        self.segments.last().filter(|segment| !segment.sealed)
    }

    /// The lineage of a segment's moment.
    pub(crate) fn lineage_of(&self, segment: &SegmentState) -> Lineage {
        let mut ancestors = self.ancestors.iter();
        let dead = ancestors.find(|ancestor| Some(ancestor.id) == segment.lineage);
        dead.copied().unwrap_or(self.lineage)
    }

    /// The segment at whose boundary the heads were consistent last, while they are not.
    pub(crate) fn last_consistent(&self) -> Option<&SegmentState> {
        self.segment(self.mixed.as_ref()?.boundary?)
    }

    /// The newest moment applied; zero before the first.
    pub(crate) fn applied_sequence(&self) -> Sequence {
        self.applied
            .map_or(Sequence::ZERO, |moment| moment.sequence)
    }
}

impl SegmentDisk {
    /// Bytes that sealing can take at most: a table for each GiB of the disk that the index
    /// speaks of, and what every image has.
    pub(crate) fn sealing_need(&self) -> u64 {
        // A record spans no more than a slice of a delta, so two tables at most.
        let spoken_of = self.lengths.index / RECORD_LEN as u64 * 2;
        let tables = self.size.bytes().div_ceil(1 << 30).min(spoken_of);
        (tables + tables / 4 + 6) * SEGMENT_CLUSTER
    }
}

impl SegmentState {
    fn set_lengths(&mut self, lengths: &[Lengths]) -> Result<(), &'static str> {
        if lengths.len() != self.disks.len() {
            return Err("lengths of other disks");
        }
        for (disk, &lengths) in self.disks.iter_mut().zip(lengths) {
            disk.lengths = lengths;
        }
        Ok(())
    }
}
