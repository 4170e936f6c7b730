//! Reversal: the side that lost becomes the replica of the side that took over.
//!
//! Its disks become heads as they are, and what they hold becomes a recovery point of the dead
//! lineage before anything is written over it. So whatever the loser's guest had written, and
//! the survivor does not have, stays readable.
//!
//! [`Store::adopt`] makes a store of the raw images of a VM that ran outside of any store;
//! [`Store::rejoin`] takes a store back whose failover was committed once. The VM is off.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::contract::PointKind;
use lifeboat_model::{
    Consistency, DeltaId, DiskId, DiskSize, Lineage, LineageId, MAX_DISKS, RelationshipId,
    Sequence, Timestamp, VmId,
};
use lifeboat_sys::disk::{Access, DiskFile, DiskPort, EntryKind, ImageGuard};

use crate::error::{IoContext, Refused, StoreError};
use crate::files;
use crate::journal::{self, Journal};
use crate::layout::Layout;
use crate::lineage::refuse_unless_descended;
use crate::record::{DiskState, Moment, Phase, Record, SegmentDisk, SegmentState, State};
use crate::segment::SegmentWriter;
use crate::store::{Store, make_beside_head, make_file, make_folders, make_wrapper};

/// How much of an image is copied at a time, where it lies on another file system.
const COPY_BYTES: u64 = 1 << 20;

/// What a moment has for an id that no delta brought: no base can name it.
const NO_DELTA: DeltaId = DeltaId::from_bytes([0; 32]);

/// Whose replica the disks become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reversal {
    pub relationship: RelationshipId,
    /// The survivor's lineage.
    pub lineage: Lineage,
    /// What it descends from, oldest first, abandoned lineages included.
    pub ancestors: Vec<Lineage>,
    /// The number under which what the disks hold now is kept; no moment had it before, and
    /// the survivor draws higher ones.
    pub drawn: Sequence,
}

/// The disks of a VM that become a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    pub vm: VmId,
    pub reversal: Reversal,
    /// The lineage that the disks belong to: the survivor's descends from it.
    pub left: LineageId,
    /// The raw image of each disk. It becomes the head by rename, or by a copy where it lies
    /// on another file system.
    pub images: Vec<(DiskId, PathBuf)>,
}

/// A store made of a VM's disks.
#[derive(Debug)]
pub struct Adopted {
    pub store: Store,
    /// Images that were copied, and so are there still. They are not needed any more.
    pub left_behind: Vec<PathBuf>,
}

impl Reversal {
    fn refuse_unless_descended(&self, left: LineageId) -> Result<(), Refused> {
        refuse_unless_descended(left, &self.lineage, &self.ancestors)
    }

    /// The point of what the disks held when they changed sides.
    fn dead_point(
        &self,
        number: u64,
        left: LineageId,
        sizes: &[DiskSize],
        now: Timestamp,
    ) -> SegmentState {
        SegmentState {
            number,
            moment: Moment {
                sequence: self.drawn,
                id: NO_DELTA,
                captured_at: now,
                consistency: Consistency::Crash,
            },
            opened_at: now,
            is_point: true,
            kind: PointKind::Standard,
            lineage: Some(left),
            unverified: false,
            sealed: false,
            blobs: Vec::new(),
            disks: sizes
                .iter()
                .map(|&size| SegmentDisk {
                    size,
                    lengths: SegmentWriter::EMPTY,
                })
                .collect(),
        }
    }
}

impl Store {
    /// Makes a store of the disks of a VM that is off, and opens it: a replica under the
    /// survivor's lineage, whose one recovery point is what the disks hold, labelled with the
    /// lineage they belong to. Durable on return.
    ///
    /// May be called again after a crash or an error, with the same values, until it succeeds, and
    /// then answers the same. Until the journal is there an image is either where it was or
    /// the head in `root`; an error moves it back. Space is asked for before anything is copied.
    ///
    /// # Errors
    /// [`Refused::BadDisks`], [`Refused::NotDescended`], [`Refused::NotEmpty`],
    /// [`Refused::NoImage`], [`Refused::BadImage`], [`Refused::ImageInUse`];
    /// [`StoreError::DiskFull`] when a copy would not fit.
    pub fn adopt(
        disk: Arc<dyn DiskPort>,
        root: &Path,
        adoption: &Adoption,
        holder: &str,
        now: Timestamp,
    ) -> Result<Adopted, StoreError> {
        let layout = Layout::new(root.to_owned());
        refuse_bad_images(adoption)?;
        adoption.reversal.refuse_unless_descended(adoption.left)?;
        if disk
            .kind(&layout.journal())
            .context("look up", root)?
            .is_none()
        {
            make_folders(disk.as_ref(), &layout)?;
            let mut moved = Vec::new();
            if let Err(error) = take_over(&disk, &layout, adoption, now, &mut moved) {
                move_back(disk.as_ref(), &layout, adoption, &moved);
                return Err(error);
            }
        } else {
            let state = journal::read(disk.as_ref(), &layout)?;
            let reversal = &adoption.reversal;
            let is_ours = state.vm == adoption.vm
                && state.relationship == reversal.relationship
                && state.lineage.id == reversal.lineage.id;
            if !is_ours {
                let path = root.to_owned();
                return Err(Refused::NotEmpty { path }.into());
            }
        }
        let mut left_behind = Vec::new();
        for (_, image) in &adoption.images {
            if disk.kind(image).context("look up", image)?.is_some() {
                left_behind.push(image.clone());
            }
        }
        let store = Self::open(disk, root, holder)?;
        Ok(Adopted { store, left_behind })
    }

    /// Makes a store whose failover was committed a replica again, under the survivor's lineage.
    /// What the disks hold becomes a recovery point of the lineage they belong to. The VM must
    /// be off. Durable on return; a crash before leaves the VM's disks as they were.
    ///
    /// # Errors
    /// Refused unless the store is committed, while the VM runs, when the survivor's lineage
    /// does not descend from this one, and when the number was used before.
    pub fn rejoin(&mut self, reversal: &Reversal, now: Timestamp) -> Result<(), StoreError> {
        match self.state.phase {
            Phase::Committed(_) => {}
            Phase::Committing(_) => return Err(Refused::Committing.into()),
            Phase::FailingOver(_) | Phase::FailedOver(_) => return Err(Refused::FailedOver.into()),
            Phase::Replica => return Err(Refused::NotCommitted.into()),
        }
        let left = self.state.lineage.id;
        reversal.refuse_unless_descended(left)?;
        let applied = self.state.applied_sequence();
        if reversal.drawn <= applied {
            return Err(Refused::TooOld {
                sequence: reversal.drawn,
                tip: applied,
            }
            .into());
        }
        let sizes = self.head_sizes()?;
        self.guard_images()?;
        let outcome = self.change(|store| store.join(reversal, left, &sizes, now));
        if outcome.is_err() && matches!(self.state.phase, Phase::Committed(_)) {
            // The VM can be started again.
            self.release_images();
        }
        outcome
    }

    fn join(
        &mut self,
        reversal: &Reversal,
        left: LineageId,
        sizes: &[DiskSize],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.empty_trash()?;
        // The guest has left its own marks in the wrappers; what is written to the heads from now
        // on must be seen through them.
        for (at, &size) in sizes.iter().enumerate() {
            let id = self.images[at].id.clone();
            make_wrapper(self.disk.as_ref(), &self.layout, &id, size)?;
            self.images[at].guards.clear();
            let image = &self.images[at];
            let path = self.layout.head(&id);
            image
                .digests
                .resized(self.state.disks[at].size.bytes(), size.bytes())
                .context("forget digests of", &path)?;
            image.digests.forget(0..size.bytes());
            image.digests.sync().context("sync digests of", &path)?;
        }
        self.guard_images()?;
        let mut segment = reversal.dead_point(self.state.next_segment, left, sizes, now);
        segment.blobs.clone_from(&self.state.blobs);
        let mut writers = Vec::new();
        for image in &self.images {
            writers.push(self.create_segment(&image.id, segment.number)?);
            let folder = self.layout.segments(&image.id);
            self.disk.sync_dir(&folder).context("sync", &folder)?;
        }
        self.save(&Record::Rejoined {
            relationship: reversal.relationship,
            lineage: reversal.lineage,
            ancestors: reversal.ancestors.clone(),
            sizes: sizes.to_vec(),
            segment: Box::new(segment),
        })?;
        for (image, writer) in self.images.iter_mut().zip(writers) {
            let segment = Arc::clone(writer.segment());
            image.chain.change(|segments| *segments = vec![segment]);
            image.writer = Some(writer);
        }
        self.write_missing_manifests()?;
        self.reserve_what_fits()
    }

    /// The sizes that the VM has given its disks.
    fn head_sizes(&self) -> Result<Vec<DiskSize>, StoreError> {
        let size = |disk: &DiskState| {
            let path = self.layout.head(&disk.id);
            let file = self
                .disk
                .open(&path, Access::ReadOnly)
                .context("open", &path)?;
            let bytes = file.len().context("measure", &path)?;
            size_of_image(&path, bytes)
        };
        self.state.disks.iter().map(size).collect()
    }
}

fn refuse_bad_images(adoption: &Adoption) -> Result<(), Refused> {
    let mut names: Vec<&DiskId> = adoption.images.iter().map(|(id, _)| id).collect();
    let mut paths: Vec<&PathBuf> = adoption.images.iter().map(|(_, path)| path).collect();
    names.sort_unstable();
    names.dedup();
    paths.sort_unstable();
    paths.dedup();
    let count = adoption.images.len();
    let is_right = count > 0 && names.len() == count && paths.len() == count && count <= MAX_DISKS;
    if is_right {
        Ok(())
    } else {
        Err(Refused::BadDisks)
    }
}

/// Makes everything of the store but the journal, then the journal. `moved` is told which images
/// were renamed.
fn take_over(
    disk: &Arc<dyn DiskPort>,
    layout: &Layout,
    adoption: &Adoption,
    now: Timestamp,
    moved: &mut Vec<usize>,
) -> Result<(), StoreError> {
    let reversal = &adoption.reversal;
    // All of them are looked at before one is touched.
    let mut guards = Vec::new();
    for (id, image) in &adoption.images {
        guards.push(look_at(disk.as_ref(), layout, id, image)?);
    }
    // A folder whose own name is lost takes with it what was moved into it.
    for (id, _) in &adoption.images {
        files::ensure_dir(disk.as_ref(), &layout.disk(id))?;
    }
    for folder in [layout.disks(), layout.root().to_owned()] {
        disk.sync_dir(&folder).context("sync", &folder)?;
    }
    if layout.root().parent().is_some() {
        files::sync_parent(disk.as_ref(), layout.root())?;
    }
    let mut disks = Vec::new();
    for (at, (id, image)) in adoption.images.iter().enumerate() {
        let head = layout.head(id);
        if disk.kind(image).context("look up", image)?.is_some() {
            match disk.rename(image, &head) {
                Ok(()) => moved.push(at),
                Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                    copy_image(disk.as_ref(), layout, id, image)?;
                }
                Err(error) => return Err(error).context("rename", image),
            }
        }
        // Durable where it is before it is where it was.
        files::sync_parent(disk.as_ref(), &head)?;
        if moved.contains(&at) {
            files::sync_parent(disk.as_ref(), image)?;
        }
        let file = disk.open(&head, Access::ReadWrite).context("open", &head)?;
        // What the VM has written may not have reached the disk.
        file.sync().context("sync", &head)?;
        let size = size_of_image(&head, file.len().context("measure", &head)?)?;
        make_beside_head(disk.as_ref(), layout, id)?;
        make_file(
            disk.as_ref(),
            &layout.open_segment(id, 1),
            SegmentWriter::EMPTY.data,
        )?;
        make_file(disk.as_ref(), &layout.segment_index(id, 1), 0)?;
        make_wrapper(disk.as_ref(), layout, id, size)?;
        for folder in [layout.segments(id), layout.disk(id)] {
            disk.sync_dir(&folder).context("sync", &folder)?;
        }
        disks.push(DiskState {
            id: id.clone(),
            size,
        });
    }
    let sizes: Vec<DiskSize> = disks.iter().map(|disk| disk.size).collect();
    let point = reversal.dead_point(1, adoption.left, &sizes, now);
    let state = State {
        vm: adoption.vm,
        relationship: reversal.relationship,
        lineage: reversal.lineage,
        ancestors: reversal.ancestors.clone(),
        disks,
        applied: Some(point.moment),
        blobs: Vec::new(),
        remembered: Vec::new(),
        applying: None,
        next_segment: point.number + 1,
        segments: vec![point],
        merging: None,
        mixed: None,
        unverified: false,
        phase: Phase::Replica,
    };
    Journal::begin(disk, layout, &state).map(|_| ())
}

/// Locks an image, or finds that an earlier attempt has taken it.
fn look_at(
    disk: &dyn DiskPort,
    layout: &Layout,
    id: &DiskId,
    image: &Path,
) -> Result<ImageGuard, StoreError> {
    let head = layout.head(id);
    let path = match disk.kind(image).context("look up", image)? {
        Some(EntryKind::File) => image,
        Some(EntryKind::Folder | EntryKind::Symlink | EntryKind::Other) => {
            let path = image.to_owned();
            return Err(Refused::BadImage { path, bytes: 0 }.into());
        }
        None if disk.kind(&head).context("look up", &head)?.is_some() => &head,
        None => {
            let path = image.to_owned();
            return Err(Refused::NoImage { path }.into());
        }
    };
    let file = disk.open(path, Access::ReadWrite).context("open", path)?;
    size_of_image(path, file.len().context("measure", path)?)?;
    let guard = ImageGuard::acquire(&file).context("lock", path)?;
    guard.ok_or_else(|| {
        let path = path.to_owned();
        Refused::ImageInUse { path }.into()
    })
}

fn size_of_image(path: &Path, bytes: u64) -> Result<DiskSize, StoreError> {
    DiskSize::try_from(bytes).map_err(|_| {
        let path = path.to_owned();
        Refused::BadImage { path, bytes }.into()
    })
}

/// Copies an image that lies on another file system, without its holes. Durable but for the
/// name.
fn copy_image(
    disk: &dyn DiskPort,
    layout: &Layout,
    id: &DiskId,
    image: &Path,
) -> Result<(), StoreError> {
    let (head, new) = (layout.head(id), layout.new_head(id));
    files::remove(disk, &new)?;
    // An earlier attempt of another kind may have left one.
    files::remove(disk, &head)?;
    let from = disk.open(image, Access::ReadOnly).context("open", image)?;
    let needed = from.occupied().context("measure", image)?;
    let root = layout.root();
    if disk.available(root).context("measure", root)? < needed {
        let full = std::io::Error::from(ErrorKind::StorageFull);
        return Err(full).context("copy an image into", root);
    }
    let to = disk.create(&new).context("create", &new)?;
    let len = from.len().context("measure", image)?;
    to.set_len(len).context("size", &new)?;
    copy_data(from.as_ref(), to.as_ref(), len).context("copy an image to", &new)?;
    to.sync().context("sync", &new)?;
    disk.rename(&new, &head).context("rename", &new)
}

fn copy_data(from: &dyn DiskFile, to: &dyn DiskFile, len: u64) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let mut position = 0;
    while position < len
        && let Some(data) = from.next_data(position)?
    {
        position = data.start.max(position);
        let end = data.end.min(len);
        while position < end {
            buffer.resize((end - position).min(COPY_BYTES) as usize, 0);
            from.read_at(&mut buffer, position)?;
            to.write_at(&buffer, position)?;
            position += buffer.len() as u64;
        }
    }
    Ok(())
}

/// Lets the VM have its images where they were, as far as that goes. The journal decides: a
/// store that has one keeps them.
fn move_back(disk: &dyn DiskPort, layout: &Layout, adoption: &Adoption, moved: &[usize]) {
    if !matches!(disk.kind(&layout.journal()), Ok(None)) {
        return;
    }
    for &at in moved {
        let (id, image) = &adoption.images[at];
        // What cannot be moved back is found in the store's folder by the next attempt.
        if disk.rename(&layout.head(id), image).is_ok() {
            let _ = files::sync_parent(disk, image);
            let _ = files::sync_parent(disk, &layout.head(id));
        }
    }
}
