//! Boundaries between segments: opened, made recovery points, sealed, dropped; see `merge.rs` for merged.
//!
//! A boundary is needed while something refers to it: a recovery point, a reader, a
//! failover. Segments older than the oldest reference are unlinked; a boundary in the
//! middle that nothing refers to is merged away. Sealing turns an open segment into an
//! image that stock QEMU tools open, with the next newer segment as its backing file.

use std::sync::{Arc, Mutex, PoisonError};

use lifeboat_model::contract::PointKind;
use lifeboat_model::{DiskId, DiskSize, Sequence, Timestamp};
use lifeboat_qcow2::{
    Backing, BackingFormat, Layout as ClusterLayout, SEGMENT_CLUSTER, Seal, seal,
};
use lifeboat_sys::disk::{Access, DiskFile};

use crate::error::{IoContext, Refused, StoreError};
use crate::failover::image_error;
use crate::files;
use crate::record::{Lengths, Phase, Record, SegmentDisk, SegmentState};
use crate::segment::{Segment, SegmentWriter};
use crate::store::{PinCounts, Store};

/// The longest chain that QEMU opens well: the time to open grows with the square.
const MAX_SEGMENTS: usize = 32;

/// Applying to sealed segments needs one more that is no point.
const MAX_POINTS: usize = MAX_SEGMENTS - 1;

/// Who uses which boundary.
#[derive(Debug, Default)]
pub(crate) struct Pins(PinCounts);

/// Keeps a boundary, and with it a recovery point, in the store until dropped.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Mutex<Pins>>,
    boundary: u64,
}

impl Pin {
    pub(crate) fn new(pins: &Arc<Mutex<Pins>>, boundary: u64) -> Self {
        *pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .entry(boundary)
            .or_default() += 1;
        Self {
            pins: Arc::clone(pins),
            boundary,
        }
    }

    pub(crate) fn boundary(&self) -> u64 {
        self.boundary
    }

    /// Whether it is a reference to a boundary of the store with these pins.
    pub(crate) fn is_of(&self, pins: &Arc<Mutex<Pins>>) -> bool {
        Arc::ptr_eq(&self.pins, pins)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.0.get_mut(&self.boundary) {
            *count -= 1;
            if *count == 0 {
                pins.0.remove(&self.boundary);
            }
        }
    }
}

impl Store {
    /// Makes the newest applied moment a recovery point of this kind. Durable on return. If it
    /// is one already, it takes on the kind unless that is the standard one.
    ///
    /// # Errors
    /// Refused unless the store is a replica that holds something, and when the chain of
    /// segments has reached its limit.
    pub fn make_point(&mut self, now: Timestamp, kind: PointKind) -> Result<Sequence, StoreError> {
        self.refuse_unless_replica()?;
        self.change(|store| {
            store.complete_apply()?;
            store.refuse_mixed("make a recovery point of")?;
            let moment = store.state.applied.ok_or(Refused::NothingApplied {
                purpose: "make a recovery point of",
            })?;
            let sequence = moment.sequence;
            if let Ok(segment) = store.point_segment(sequence).cloned() {
                match kind {
                    PointKind::Standard => {}
                    PointKind::ApplicationConsistent | PointKind::PlannedFailover => {
                        store.mark_point(&segment, kind)?;
                    }
                }
                return Ok(sequence);
            }
            store.refuse_too_many_points()?;
            let last = store.state.segments.last().cloned();
            match last.filter(|segment| segment.moment.sequence == sequence) {
                Some(segment) => store.mark_point(&segment, kind)?,
                None => store.open_boundary(now, Some(kind))?,
            }
            store.reserve_what_fits()?;
            Ok(sequence)
        })
    }

    /// Makes an existing boundary a recovery point of this kind.
    fn mark_point(&mut self, segment: &SegmentState, kind: PointKind) -> Result<(), StoreError> {
        self.write_manifest(&SegmentState {
            is_point: true,
            kind,
            ..segment.clone()
        })?;
        self.save(&Record::Point {
            segment: segment.number,
            is_point: true,
            kind,
        })
    }

    /// Removes a recovery point. Its space comes back at once if nothing older needs it.
    ///
    /// # Errors
    /// [`Refused::NoPoint`]; [`Refused::PointInUse`] while it is read; refused after a failover.
    pub fn remove_point(&mut self, sequence: Sequence) -> Result<(), StoreError> {
        self.refuse_unless_replica()?;
        let (segment, kind) = {
            let point = self.point_segment(sequence)?;
            (point.number, point.kind)
        };
        let users = self.users(segment);
        if users > 0 {
            return Err(Refused::PointInUse { sequence, users }.into());
        }
        self.change(|store| {
            store.save(&Record::Point {
                segment,
                is_point: false,
                kind,
            })?;
            files::remove(store.disk.as_ref(), &store.layout.point(sequence))?;
            store.drop_unreferenced()?;
            store.merge_unreferenced()
        })
    }

    /// Seals every segment, so that stock QEMU tools open every recovery point. Durable on return.
    ///
    /// # Errors
    /// What the operating system says; the store then has to be opened again.
    pub fn seal(&mut self) -> Result<(), StoreError> {
        self.change(|store| {
            store.complete_apply()?;
            store.release_for_sealing()?;
            store.seal_all()?;
            store.merge_unreferenced()?;
            if matches!(store.state.phase, Phase::Replica) {
                // The chains end at the wrappers, whose size a resize has left behind.
                store.renew_wrappers()?;
                store.reserve_what_fits()?;
            }
            Ok(())
        })
    }

    /// Seals every segment whose delta may be damaged: a point does not need what is newer.
    pub(crate) fn seal_for_failover(&mut self) -> Result<(), StoreError> {
        match self.complete_apply() {
            // All that it has written to the heads is saved in the segments.
            Err(StoreError::Damaged { .. }) => {}
            outcome => outcome?,
        }
        self.seal_all()
    }

    /// Lets images have the space that was kept for sealing in a failover.
    fn release_for_sealing(&mut self) -> Result<(), StoreError> {
        let rest = self.reserve.held().saturating_sub(self.failover_need());
        let path = self.layout.reserve();
        self.reserve.hold(rest).context("release", &path)
    }

    fn seal_all(&mut self) -> Result<(), StoreError> {
        while let Some(segment) = self.state.segments.iter().find(|segment| !segment.sealed) {
            let number = segment.number;
            self.seal_segment(number)?;
        }
        Ok(())
    }

    /// Refuses one more point unless applying to sealed segments still works with it.
    pub(crate) fn refuse_too_many_points(&self) -> Result<(), Refused> {
        let segments = self.state.segments.iter();
        let referenced = segments.filter(|segment| self.is_referenced(segment));
        if referenced.count() < MAX_POINTS {
            Ok(())
        } else {
            Err(Refused::TooManySegments { limit: MAX_POINTS })
        }
    }

    pub(crate) fn users(&self, boundary: u64) -> usize {
        self.pinned().get(&boundary).copied().unwrap_or(0)
    }

    /// How many readers each boundary has.
    pub(crate) fn pinned(&self) -> PinCounts {
        self.pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    pub(crate) fn is_referenced(&self, segment: &SegmentState) -> bool {
        segment.is_point
            || self.users(segment.number) > 0
            || self.failover_boundary() == Some(segment.number)
            || self.copy_boundary() == Some(segment.number)
    }

    /// The boundary that a copy of whole disks keeps.
    fn copy_boundary(&self) -> Option<u64> {
        self.state.mixed.as_ref()?.boundary
    }

    /// The boundary after what the heads hold now, which is one moment; opened if need be.
    pub(crate) fn boundary_now(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        let applied = self.state.applied.map(|moment| moment.sequence);
        let newest = self.state.segments.last();
        if newest.is_none_or(|newest| Some(newest.moment.sequence) != applied) {
            self.open_boundary(now, None)?;
        }
        let newest = self.state.segments.last();
        Ok(newest.expect("BUG: a boundary was opened above").number)
    }

    /// Leaves an open segment for preimages, or none at all if nothing refers to any.
    pub(crate) fn ready_segments(&mut self, now: Timestamp) -> Result<(), StoreError> {
        self.drop_unreferenced()?;
        if self
            .state
            .segments
            .last()
            .is_some_and(|segment| segment.sealed)
        {
            self.open_boundary(now, None)?;
        }
        Ok(())
    }

    /// Opens a boundary after what the heads hold now; a recovery point if it has a kind.
    pub(crate) fn open_boundary(
        &mut self,
        now: Timestamp,
        point: Option<PointKind>,
    ) -> Result<(), StoreError> {
        if self.state.segments.len() >= MAX_SEGMENTS {
            // Fewer are referred to; sealed, the others can be merged away.
            self.release_for_sealing()?;
            self.seal_all()?;
            self.merge_unreferenced()?;
        }
        let moment = self
            .state
            .applied
            .expect("BUG: a boundary follows an applied moment");
        let number = self.state.next_segment;
        let disks = self.state.disks.iter().map(|disk| SegmentDisk {
            size: disk.size,
            lengths: SegmentWriter::EMPTY,
        });
        let segment = SegmentState {
            number,
            moment,
            opened_at: now,
            is_point: point.is_some(),
            kind: point.unwrap_or_default(),
            lineage: Some(self.state.lineage.id),
            unverified: self.state.unverified,
            sealed: false,
            blobs: self.state.blobs.clone(),
            disks: disks.collect(),
        };
        let mut writers = Vec::new();
        for image in &self.images {
            writers.push(self.create_segment(&image.id, number)?);
            self.relink_newest(&image.id, Some(number))?;
            let folder = self.layout.segments(&image.id);
            self.disk.sync_dir(&folder).context("sync", &folder)?;
        }
        if point.is_some() {
            self.write_manifest(&segment)?;
        }
        self.save(&Record::Boundary(Box::new(segment)))?;
        for (image, writer) in self.images.iter_mut().zip(writers) {
            image
                .chain
                .change(|segments| segments.push(Arc::clone(writer.segment())));
            image.writer = Some(writer);
        }
        Ok(())
    }

    /// Makes the files of a new segment; their names are not durable yet.
    pub(crate) fn create_segment(
        &self,
        disk: &DiskId,
        number: u64,
    ) -> Result<SegmentWriter, StoreError> {
        let (data_path, index_path) = (
            self.layout.open_segment(disk, number),
            self.layout.segment_index(disk, number),
        );
        let data = self.create_new(&data_path, SEGMENT_CLUSTER)?;
        let index = self.create_new(&index_path, 0)?;
        let segment = Segment::on_disk(number, data, index, SegmentWriter::EMPTY);
        SegmentWriter::resume(Arc::new(segment)).context("prepare", &data_path)
    }

    pub(crate) fn create_new(
        &self,
        path: &std::path::Path,
        len: u64,
    ) -> Result<Arc<dyn DiskFile>, StoreError> {
        files::remove(self.disk.as_ref(), path)?;
        let file = self.disk.create(path).context("create", path)?;
        file.set_len(len).context("size", path)?;
        file.sync().context("sync", path)?;
        Ok(file)
    }

    /// Lets the newest sealed segment have `next` as its backing file, or the head where there is none.
    pub(crate) fn relink_newest(&self, disk: &DiskId, next: Option<u64>) -> Result<(), StoreError> {
        match self.state.segments.last().filter(|segment| segment.sealed) {
            Some(segment) => self.relink(disk, segment.number, next),
            None => Ok(()),
        }
    }

    /// Points `number`'s link at the image that stands below it.
    pub(crate) fn relink(
        &self,
        disk: &DiskId,
        number: u64,
        next: Option<u64>,
    ) -> Result<(), StoreError> {
        let target = next.map_or_else(
            || "../disk.qcow2".to_owned(),
            |next| format!("{next}.qcow2"),
        );
        let (link, new) = (
            self.layout.next_link(disk, number),
            self.layout.new_next_link(disk, number),
        );
        files::point_link(self.disk.as_ref(), &new, &link, &target).map(|_| ())
    }

    /// Writes what the recovery point is, for people and for a rescan.
    pub(crate) fn write_manifest(&self, segment: &SegmentState) -> Result<(), StoreError> {
        let sequence = segment.moment.sequence;
        let manifest = PointManifest {
            vm: self.state.vm,
            relationship: self.state.relationship,
            lineage: self.state.lineage_of(segment),
            segment,
            disks: self.state.disks.iter().map(|disk| &disk.id).collect(),
        };
        let text =
            serde_json::to_vec_pretty(&manifest).expect("BUG: a manifest can be written as JSON");
        files::replace(
            self.disk.as_ref(),
            &self.layout.new_point(sequence),
            &self.layout.point(sequence),
            &text,
        )
    }

    /// Turns an open segment into an image.
    fn seal_segment(&mut self, number: u64) -> Result<(), StoreError> {
        let position = self
            .state
            .position(number)
            .expect("BUG: a segment to be sealed is there");
        let next = self
            .state
            .segments
            .get(position + 1)
            .map(|next| next.number);
        for at in 0..self.images.len() {
            let id = self.images[at].id.clone();
            let SegmentDisk { size, lengths } = self.state.segments[position].disks[at];
            let path = self.layout.open_segment(&id, number);
            let segment = self.images[at]
                .chain
                .segment(number)
                .expect("BUG: a segment of the state is in the chain");
            self.write_metadata(&segment, &path, size, lengths, number)?;
            self.relink(&id, number, next)?;
            self.disk
                .rename(&path, &self.layout.sealed_segment(&id, number))
                .context("rename", &path)?;
            files::sync_parent(self.disk.as_ref(), &path)?;
        }
        self.save(&Record::Sealed { segment: number })?;
        if next.is_none() {
            self.images.iter_mut().for_each(|image| image.writer = None);
        }
        Ok(())
    }

    /// Appends qcow2 metadata to a segment's data file.
    pub(crate) fn write_metadata(
        &self,
        segment: &Segment,
        path: &std::path::Path,
        size: DiskSize,
        lengths: Lengths,
        number: u64,
    ) -> Result<(), StoreError> {
        let clusters = segment
            .sealed_clusters(size.bytes())
            .context("read the index of", path)?;
        let backing = format!("{number}.next");
        let plan = Seal {
            data_len: lengths.data,
            virtual_size: size.bytes(),
            layout: ClusterLayout::choose(size.bytes(), clusters.iter().copied()),
            backing: Backing {
                name: &backing,
                format: BackingFormat::Qcow2,
            },
        };
        segment.data().set_len(lengths.data).context("cut", path)?;
        seal(segment.data().as_ref(), &plan, clusters)
            .map_err(|error| image_error(path, &error))?;
        Ok(())
    }

    /// Unlinks the segments that are older than everything that is referred to.
    pub(crate) fn drop_unreferenced(&mut self) -> Result<(), StoreError> {
        while let Some(oldest) = self.state.segments.first().cloned() {
            if self.is_referenced(&oldest) {
                break;
            }
            self.save(&Record::Dropped {
                segment: oldest.number,
            })?;
            for image in &mut self.images {
                image.chain.change(|segments| {
                    segments.retain(|segment| segment.number() != oldest.number);
                });
            }
            if self.state.segments.is_empty() {
                self.images.iter_mut().for_each(|image| image.writer = None);
            }
            for image in &self.images {
                self.unlink_segment(&image.id, oldest.number)?;
            }
        }
        Ok(())
    }

    /// Removes every name that a segment may have. A crash leaves some; opening removes them.
    pub(crate) fn unlink_segment(&self, disk: &DiskId, number: u64) -> Result<(), StoreError> {
        for path in [
            self.layout.open_segment(disk, number),
            self.layout.sealed_segment(disk, number),
            self.layout.segment_index(disk, number),
            self.layout.next_link(disk, number),
        ] {
            files::remove(self.disk.as_ref(), &path)?;
        }
        Ok(())
    }

    /// Opens the files of a segment as the journal says they are.
    pub(crate) fn open_segment_files(
        &self,
        disk: &DiskId,
        number: u64,
        sealed: bool,
        lengths: Lengths,
    ) -> Result<Segment, StoreError> {
        let (data_path, access) = if sealed {
            (self.layout.sealed_segment(disk, number), Access::ReadOnly)
        } else {
            (self.layout.open_segment(disk, number), Access::ReadWrite)
        };
        let index_path = self.layout.segment_index(disk, number);
        let data = self
            .disk
            .open(&data_path, access)
            .context("open", &data_path)?;
        let index = self
            .disk
            .open(&index_path, access)
            .context("open", &index_path)?;
        Ok(Segment::on_disk(number, data, index, lengths))
    }
}

/// What stands in a recovery point's own file.
#[derive(serde::Serialize)]
struct PointManifest<'a> {
    vm: lifeboat_model::VmId,
    relationship: lifeboat_model::RelationshipId,
    lineage: lifeboat_model::Lineage,
    segment: &'a SegmentState,
    disks: Vec<&'a DiskId>,
}
