//! The store as its owner sees it: made, opened, asked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use lifeboat_model::{
    DiskId, DiskSize, Lineage, LineageId, MAX_DISKS, RelationshipId, Sequence, VmId,
};
use lifeboat_sys::disk::{Access, DiskFile, DiskPort};

use crate::boundary::{Pin, Pins};
use crate::copy::Heads;
use crate::digest::DigestTable;
use crate::error::{IoContext, Refused, StoreError};
use crate::failover::image_error;
use crate::files;
use crate::image::{Chain, Image};
use crate::journal::{self, Journal};
use crate::layout::Layout;
use crate::reader::{PointReader, View};
use crate::record::{DiskState, Phase, Record, SegmentState, State, Target};
use crate::spool::{BrokenDelta, Reserve, SpooledDelta};

/// What a new store is made from.
#[derive(Debug, Clone)]
pub struct NewStore {
    pub vm: VmId,
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    pub disks: Vec<(DiskId, DiskSize)>,
}

/// An open store. One process has a store open at a time; dropping it closes it.
#[derive(Debug)]
pub struct Store {
    pub(crate) disk: Arc<dyn DiskPort>,
    pub(crate) layout: Layout,
    pub(crate) journal: Journal,
    pub(crate) state: State,
    pub(crate) images: Vec<Image>,
    /// Received and not applied, oldest first.
    pub(crate) spool: Vec<SpooledDelta>,
    /// Received and not applied, and damaged since.
    pub(crate) broken_spool: Vec<BrokenDelta>,
    pub(crate) reserve: Reserve,
    pub(crate) pins: Arc<Mutex<Pins>>,
    /// An operation failed half way; only opening the store again brings it into order.
    pub(crate) broken: bool,
    /// How many deltas were begun to be received; names their parts.
    pub(crate) intakes: AtomicU64,
    /// Held until the store is dropped.
    pub(crate) lock: Arc<dyn DiskFile>,
}

impl Store {
    /// Makes a store in the new or empty folder `root` and opens it. Durable on return.
    ///
    /// # Errors
    /// [`Refused::NotEmpty`], [`Refused::BadDisks`], or what the operating system says. A
    /// folder in which this failed half way may be given again.
    pub fn init(
        disk: Arc<dyn DiskPort>,
        root: &Path,
        new: &NewStore,
        holder: &str,
    ) -> Result<Self, StoreError> {
        let layout = Layout::new(root.to_owned());
        let mut names: Vec<&DiskId> = new.disks.iter().map(|(id, _)| id).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() || names.len() != new.disks.len() || names.len() > MAX_DISKS {
            return Err(Refused::BadDisks.into());
        }
        make_folders(disk.as_ref(), &layout)?;
        for (id, size) in &new.disks {
            make_disk(disk.as_ref(), &layout, id, *size)?;
        }
        disk.sync_dir(&layout.disks()).context("sync", root)?;
        disk.sync_dir(root).context("sync", root)?;
        if root.parent().is_some() {
            files::sync_parent(disk.as_ref(), root)?;
        }
        let state = State {
            vm: new.vm,
            relationship: new.relationship,
            lineage: Lineage {
                counter: 1,
                id: new.lineage,
                forked_from: None,
            },
            ancestors: Vec::new(),
            disks: new
                .disks
                .iter()
                .map(|(id, size)| DiskState {
                    id: id.clone(),
                    size: *size,
                })
                .collect(),
            applied: None,
            blobs: Vec::new(),
            remembered: Vec::new(),
            applying: None,
            segments: Vec::new(),
            next_segment: 1,
            merging: None,
            mixed: None,
            unverified: false,
            phase: Phase::Replica,
        };
        Journal::begin(&disk, &layout, &state)?;
        Self::open(disk, root, holder)
    }

    /// Makes a record durable, then adopts the state that follows from it.
    pub(crate) fn save(&mut self, record: &Record) -> Result<(), StoreError> {
        let next = self.state.clone().after(record.clone());
        let next = next.unwrap_or_else(|why| {
            panic!("BUG: the store wrote a record that cannot follow: {why}")
        });
        self.journal.append(record, &next)?;
        self.state = next;
        Ok(())
    }

    /// Runs an operation that changes the store; a failure half way closes it for others.
    pub(crate) fn change<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.broken {
            return Err(Refused::Reopen.into());
        }
        let outcome = operation(self);
        if let Err(error) = &outcome
            && !matches!(error, StoreError::Refused(_))
        {
            self.broken = true;
        }
        outcome
    }

    /// Whether a change failed half way: the store takes no more until it is opened again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.broken
    }

    /// The lineage that the store follows, or has begun.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.state.lineage
    }

    /// The lineages that the store's own descends from, oldest first, and those that were
    /// abandoned.
    #[must_use]
    pub fn ancestors(&self) -> &[Lineage] {
        &self.state.ancestors
    }

    #[must_use]
    pub fn vm(&self) -> VmId {
        self.state.vm
    }

    #[must_use]
    pub fn relationship(&self) -> RelationshipId {
        self.state.relationship
    }

    /// The disks with their present sizes.
    #[must_use]
    pub fn disks(&self) -> Vec<(DiskId, DiskSize)> {
        self.state
            .disks
            .iter()
            .map(|disk| (disk.id.clone(), disk.size))
            .collect()
    }

    /// The newest moment that can be started from: what the heads hold, or while they are
    /// being copied into the last moment before that. Zero before the first.
    #[must_use]
    pub fn applied(&self) -> Sequence {
        match self.heads() {
            Heads::Empty => Sequence::ZERO,
            Heads::Consistent(sequence) => sequence,
            Heads::Mixed(last) => last.unwrap_or(Sequence::ZERO),
        }
    }

    /// The newest moment received.
    #[must_use]
    pub fn tip(&self) -> Sequence {
        self.spool
            .last()
            .map_or(self.state.applied_sequence(), |delta| delta.moment.sequence)
    }

    /// Opens one disk of a recovery point for reading. It stays readable while deltas are applied.
    ///
    /// # Errors
    /// [`Refused::NoPoint`], [`Refused::NoDisk`], [`Refused::Committed`].
    pub fn reader(&self, sequence: Sequence, disk: &DiskId) -> Result<PointReader, StoreError> {
        let at = self.disk_index(disk)?;
        let segment = self.point_segment(sequence)?;
        let view = View {
            chain: Arc::clone(&self.images[at].chain),
            boundary: Some(segment.number),
            size: segment.disks[at].size.bytes(),
        };
        let pin = Pin::new(&self.pins, segment.number);
        Ok(PointReader::new(view, pin, Arc::clone(&self.lock)))
    }

    pub(crate) fn disk_index(&self, disk: &DiskId) -> Result<usize, Refused> {
        let position = self.state.disks.iter().position(|other| other.id == *disk);
        position.ok_or_else(|| Refused::NoDisk { disk: disk.clone() })
    }

    pub(crate) fn point_segment(&self, sequence: Sequence) -> Result<&SegmentState, Refused> {
        if let Phase::Committed(_) = self.state.phase {
            return Err(Refused::Committed);
        }
        let segment = self
            .state
            .segments
            .iter()
            .find(|segment| segment.is_point && segment.moment.sequence == sequence);
        segment.ok_or(Refused::NoPoint { sequence })
    }

    /// Refuses unless the store is a replica.
    pub(crate) fn refuse_unless_replica(&self) -> Result<(), Refused> {
        match self.state.phase {
            Phase::Replica => Ok(()),
            Phase::FailingOver(_) | Phase::FailedOver(_) => Err(Refused::FailedOver),
            Phase::Committing(_) => Err(Refused::Committing),
            Phase::Committed(_) => Err(Refused::Committed),
        }
    }

    /// The boundary that a failover stands on, which nothing may remove.
    pub(crate) fn failover_boundary(&self) -> Option<u64> {
        match &self.state.phase {
            Phase::Replica | Phase::Committed(_) => None,
            Phase::FailingOver(failover)
            | Phase::FailedOver(failover)
            | Phase::Committing(failover) => match failover.target {
                Target::Newest => None,
                Target::Segment(number) => Some(number),
            },
        }
    }
}

/// Refuses a folder that holds anything but what an unfinished `init` leaves.
fn refuse_foreign_content(disk: &dyn DiskPort, layout: &Layout) -> Result<(), StoreError> {
    const OURS: [&str; 9] = [
        "disks",
        "points",
        "blobs",
        "spool",
        "failover",
        "divergence",
        "trash",
        "journal.new",
        "lock",
    ];
    let root = layout.root();
    let foreign = |name: &str| !OURS.contains(&name);
    if disk
        .list(root)
        .context("list", root)?
        .iter()
        .any(|entry| foreign(&entry.name))
    {
        return Err(Refused::NotEmpty {
            path: root.to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Makes the folders of a store in a folder that is new or empty, or holds what an unfinished
/// attempt left.
pub(crate) fn make_folders(disk: &dyn DiskPort, layout: &Layout) -> Result<(), StoreError> {
    files::ensure_dir(disk, layout.root())?;
    refuse_foreign_content(disk, layout)?;
    for folder in [
        layout.disks(),
        layout.points(),
        layout.blobs(),
        layout.spool(),
        layout.failover(),
        layout.divergence(),
        layout.trash(),
    ] {
        files::ensure_dir(disk, &folder)?;
    }
    Ok(())
}

/// Makes a disk's folder with an empty head. Durable on return but for the folder's own name.
fn make_disk(
    disk: &dyn DiskPort,
    layout: &Layout,
    id: &DiskId,
    size: DiskSize,
) -> Result<(), StoreError> {
    files::ensure_dir(disk, &layout.disk(id))?;
    make_file(disk, &layout.head(id), size.bytes())?;
    make_beside_head(disk, layout, id)?;
    make_wrapper(disk, layout, id, size)?;
    let folder = layout.disk(id);
    disk.sync_dir(&folder).context("sync", &folder)
}

/// Makes what a disk's folder holds besides its head and its wrapper.
pub(crate) fn make_beside_head(
    disk: &dyn DiskPort,
    layout: &Layout,
    id: &DiskId,
) -> Result<(), StoreError> {
    files::ensure_dir(disk, &layout.segments(id))?;
    make_file(disk, &layout.digests(id), 0)?;
    make_file(disk, &layout.stale_digests(id), 0)
}

/// Makes a file anew that holds nothing. Its content is durable, its name is not.
pub(crate) fn make_file(disk: &dyn DiskPort, path: &Path, len: u64) -> Result<(), StoreError> {
    files::remove(disk, path)?;
    let file = disk.create(path).context("create", path)?;
    file.set_len(len).context("size", path)?;
    file.sync().context("sync", path)
}

/// Makes the image by which QEMU uses a head: written aside, verified, renamed.
pub(crate) fn make_wrapper(
    disk: &dyn DiskPort,
    layout: &Layout,
    id: &DiskId,
    size: DiskSize,
) -> Result<(), StoreError> {
    let (new, path, head) = (layout.new_wrapper(id), layout.wrapper(id), layout.head(id));
    let failed = |error: lifeboat_qcow2::WrapperError| image_error(&new, &error);
    let head = head.to_str().ok_or_else(|| {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidFilename, "the path is not UTF-8");
        StoreError::Io {
            what: "name in an image",
            path: head.clone(),
            source: why,
        }
    })?;
    files::remove(disk, &new)?;
    let file = disk.create(&new).context("create", &new)?;
    lifeboat_qcow2::write_wrapper(file.as_ref(), size.bytes(), head).map_err(failed)?;
    lifeboat_qcow2::verify_wrapper(file.as_ref(), size.bytes(), head).map_err(failed)?;
    disk.rename(&new, &path).context("rename", &new)?;
    files::sync_parent(disk, &path)
}

/// Opens the files of one disk.
pub(crate) fn open_image(
    disk: &dyn DiskPort,
    layout: &Layout,
    id: &DiskId,
) -> Result<Image, StoreError> {
    let open = |path: PathBuf| disk.open(&path, Access::ReadWrite).context("open", &path);
    let head = open(layout.head(id))?;
    let stale_path = layout.stale_digests(id);
    let digests = DigestTable::open(open(layout.digests(id))?, open(stale_path.clone())?)
        .context("read", &stale_path)?;
    let chain = Arc::new(Chain::new(head, Vec::new()));
    Ok(Image {
        id: id.clone(),
        chain,
        writer: None,
        digests: Arc::new(digests),
        guards: Vec::new(),
    })
}

/// Reads a store's state without opening it for changes.
pub(crate) fn read_state(disk: &dyn DiskPort, layout: &Layout) -> Result<State, StoreError> {
    let root = layout.root();
    let missing = disk
        .kind(&layout.journal())
        .context("look up", root)?
        .is_none();
    if missing
        && disk
            .kind(&layout.disks())
            .context("look up", root)?
            .is_none()
    {
        return Err(Refused::NoStore {
            path: root.to_owned(),
        }
        .into());
    }
    journal::read(disk, layout)
}

/// Counts the users of each boundary.
pub(crate) type PinCounts = BTreeMap<u64, usize>;
