//! What a store says of itself.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_model::contract::PointKind;
use lifeboat_model::{
    Consistency, DeltaId, DiskId, DiskSize, Lineage, LineageId, RelationshipId, Sequence,
    Timestamp, VmId,
};
use lifeboat_sys::disk::DiskFile;
use serde::Serialize;

use crate::copy::{CopyStatus, Heads};
use crate::error::{IoContext, StoreError};
use crate::record::{Phase, SegmentState};
use crate::spool::SpooledDelta;
use crate::store::Store;

/// What the store is for at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It receives and applies.
    Replica,
    /// The VM may run on overlays; revert and commit are open.
    FailedOver,
    /// The heads are the VM's own disks.
    Committed,
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Point {
    pub sequence: Sequence,
    pub delta: DeltaId,
    pub captured_at: Timestamp,
    pub opened_at: Timestamp,
    pub consistency: Consistency,
    pub kind: PointKind,
    /// The lineage of the moment. Another one than the store's after a reversal: then the point
    /// holds what the side that lost had written.
    pub lineage: LineageId,
    /// Not so where a reversal has relied on maps, and the comparison of everything that follows
    /// had not ended when the point was made.
    pub verified: bool,
    /// Whether stock QEMU tools can open it now, and the file to open per disk.
    pub sealed: bool,
    /// How many readers it has: tests, exports, captures.
    pub users: usize,
    pub disks: Vec<PointDisk>,
}

/// One disk of a recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointDisk {
    pub id: DiskId,
    pub size: DiskSize,
    /// The image that stock tools open once the point is sealed.
    pub image: PathBuf,
}

/// A delta that waits to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    pub sequence: Sequence,
    pub delta: DeltaId,
    pub captured_at: Timestamp,
    /// Length of the delta stream in bytes.
    pub bytes: u64,
}

/// A delta in the spool that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetApart {
    pub sequence: Sequence,
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// A delta that was applied just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedDelta {
    pub sequence: Sequence,
    pub delta: DeltaId,
    pub captured_at: Timestamp,
    pub consistency: Consistency,
    /// Bytes of the disks that changed.
    pub changed_bytes: u64,
}

/// A disk as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskStatus {
    pub id: DiskId,
    pub size: DiskSize,
    /// Disk space that the head occupies, in bytes.
    pub head_bytes: u64,
    /// Disk space that all segments occupy, in bytes.
    pub segment_bytes: u64,
}

/// The whole store at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub vm: VmId,
    pub relationship: RelationshipId,
    pub lineage: Lineage,
    pub role: Role,
    /// The newest moment that can be started from; zero before the first.
    pub applied: Sequence,
    /// What the heads hold.
    pub heads: Heads,
    /// Whether the heads are known to be what the other side holds by more than maps.
    pub verified: bool,
    /// The copy of whole disks that is under way.
    pub copy: Option<CopyStatus>,
    /// The newest moment received.
    pub tip: Sequence,
    /// A delta is half applied; the next apply completes it.
    pub applying: bool,
    pub disks: Vec<DiskStatus>,
    pub points: Vec<Point>,
    pub pending: Vec<Pending>,
    /// Deltas that were acknowledged and are damaged now: each is asked for again by a later
    /// session, or made good by a resynchronization.
    pub set_apart: Vec<SetApart>,
    pub segments: usize,
    /// Held back for the pending deltas and a failover; less than `needed_reserve_bytes`
    /// means that the disk has become too full to receive more.
    pub reserved_bytes: u64,
    pub needed_reserve_bytes: u64,
    pub available_bytes: u64,
}

impl Store {
    /// What the store holds, and what it is for at the moment.
    ///
    /// # Errors
    /// When the file system cannot say how much space is left or taken.
    pub fn status(&self) -> Result<Status, StoreError> {
        let root = self.layout.root();
        let disks = self
            .images
            .iter()
            .zip(&self.state.disks)
            .map(|(image, disk)| {
                let occupied = |file: &Arc<dyn DiskFile>| file.occupied().context("measure", root);
                let segments = image.chain.from(0);
                let segment_bytes = segments
                    .iter()
                    .map(|segment| occupied(segment.data()))
                    .sum::<Result<u64, _>>()?;
                let head_bytes = occupied(&image.chain.head)?;
                Ok(DiskStatus {
                    id: disk.id.clone(),
                    size: disk.size,
                    head_bytes,
                    segment_bytes,
                })
            });
        Ok(Status {
            vm: self.state.vm,
            relationship: self.state.relationship,
            lineage: self.state.lineage,
            role: self.role(),
            applied: self.applied(),
            heads: self.heads(),
            verified: self.is_verified(),
            copy: self.copy_status(),
            tip: self.tip(),
            applying: self.state.applying.is_some(),
            disks: disks.collect::<Result<_, StoreError>>()?,
            points: self.points(),
            pending: self.pending(),
            set_apart: self.set_apart_deltas(),
            segments: self.state.segments.len(),
            reserved_bytes: self.reserve.held(),
            needed_reserve_bytes: self.needed_reserve(),
            available_bytes: self.disk.available(root).context("measure", root)?,
        })
    }

    /// What the store is for at the moment.
    #[must_use]
    pub fn role(&self) -> Role {
        match self.state.phase {
            Phase::Replica => Role::Replica,
            Phase::FailingOver(_) | Phase::FailedOver(_) | Phase::Committing(_) => Role::FailedOver,
            Phase::Committed(_) => Role::Committed,
        }
    }

    /// The newest moment received, with its id; `None` before the first.
    #[must_use]
    pub fn tip_moment(&self) -> Option<(Sequence, DeltaId)> {
        let moment = match self.spool.last() {
            Some(delta) => Some(delta.moment),
            None => self.state.applied,
        };
        moment.map(|moment| (moment.sequence, moment.id))
    }

    /// The deltas that wait to be applied, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<Pending> {
        let pending = |delta: &SpooledDelta| Pending {
            sequence: delta.moment.sequence,
            delta: delta.moment.id,
            captured_at: delta.moment.captured_at,
            bytes: delta.bytes,
        };
        self.spool.iter().map(pending).collect()
    }

    /// The deltas in the spool that are damaged, oldest first.
    fn set_apart_deltas(&self) -> Vec<SetApart> {
        let broken = self.broken_spool.iter();
        let mut set_apart: Vec<SetApart> = broken
            .map(|broken| SetApart {
                sequence: broken.sequence,
                path: broken.path.clone(),
                what: broken.damage.to_string(),
            })
            .collect();
        set_apart.sort_by_key(|delta| delta.sequence);
        set_apart
    }

    /// The recovery points, oldest first.
    #[must_use]
    pub fn points(&self) -> Vec<Point> {
        let all_sealed_from = self
            .state
            .segments
            .iter()
            .rposition(|segment| !segment.sealed)
            .map_or(0, |at| at + 1);
        let points = self
            .state
            .segments
            .iter()
            .enumerate()
            .filter(|(_, segment)| segment.is_point);
        points
            .map(|(at, segment)| self.point_of(segment, at >= all_sealed_from))
            .collect()
    }

    fn point_of(&self, segment: &SegmentState, sealed: bool) -> Point {
        let disks = self
            .state
            .disks
            .iter()
            .zip(&segment.disks)
            .map(|(disk, at)| PointDisk {
                id: disk.id.clone(),
                size: at.size,
                image: self.layout.sealed_segment(&disk.id, segment.number),
            });
        Point {
            sequence: segment.moment.sequence,
            delta: segment.moment.id,
            captured_at: segment.moment.captured_at,
            opened_at: segment.opened_at,
            consistency: segment.moment.consistency,
            kind: segment.kind,
            lineage: segment.lineage.unwrap_or(self.state.lineage.id),
            verified: !segment.unverified,
            sealed,
            users: self.users(segment.number),
            disks: disks.collect(),
        }
    }
}
