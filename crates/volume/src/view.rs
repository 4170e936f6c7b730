//! A frozen view of all disks, from its freeze to its release.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lifeboat_model::{BLOCK_SIZE, DiskId};
use lifeboat_nbd::{Access, ContextName, Export, Extent, Granularity, Holes};

use crate::error::{BreakReason, FreezeError, ReleaseError};
use crate::map::BlockMap;
use crate::view_disk::{Control, ViewDisk};
use crate::volume::{BITMAP, Shared};

/// What is given to readers when a view is dropped without a release.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// Whether it is known what has changed before a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// No view of this volume has been received yet. The view offers no bitmap, and must
    /// be captured whole.
    Unknown,
    /// The view's bitmap marks everything that has changed since the last view that was
    /// received.
    Tracked,
}

/// What became of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The replica has given a receipt for it: its map is forgotten.
    Received,
    /// There is no receipt: its map is merged back, and the next view carries it.
    Failed,
}

/// The disks of a volume at one instant, offered read-only until it is released.
/// Dropping it is a release with [`Outcome::Failed`].
#[derive(Debug)]
pub struct FrozenView {
    shared: Arc<Shared>,
    view: Arc<View>,
    /// How many disks are among the exports, from the first on.
    offered: usize,
}

/// What writers and readers of a view share.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) disks: Vec<ViewDisk>,
    pub(crate) control: Control,
    /// What is known of changes before the view; told between its instant and its offer.
    changes: OnceLock<(Changes, Vec<BlockMap>)>,
}

impl View {
    pub(crate) fn new(disks: Vec<ViewDisk>, scratch_limit: u64) -> Self {
        Self {
            disks,
            control: Control::new(scratch_limit),
            changes: OnceLock::new(),
        }
    }

    /// What has changed before the view, by disk, and whether that is everything.
    pub(crate) fn tell(&self, changes: Changes, dirty: Vec<BlockMap>) {
        let told = self.changes.set((changes, dirty));
        assert!(told.is_ok(), "BUG: a view was told of changes twice");
    }

    fn changes(&self) -> Changes {
        let told = self.changes.get();
        told.map_or(Changes::Unknown, |(changes, _)| *changes)
    }

    /// By disk; empty when nothing is marked.
    pub(crate) fn dirty(&self) -> &[BlockMap] {
        self.changes.get().map_or(&[], |(_, dirty)| dirty)
    }
}

impl FrozenView {
    pub(crate) fn new(shared: Arc<Shared>, view: Arc<View>) -> Self {
        Self {
            shared,
            view,
            offered: 0,
        }
    }

    pub(crate) fn offer(&mut self) -> Result<(), FreezeError> {
        for (index, disk) in self.view.disks.iter().enumerate() {
            let export = Arc::new(FrozenExport::new(Arc::clone(&self.view), index));
            let added = self
                .shared
                .views
                .exports
                .add(&self.offered_as(&disk.id), export);
            added.map_err(|source| FreezeError::Export {
                disk: disk.id.clone(),
                source,
            })?;
            self.offered += 1;
        }
        Ok(())
    }

    /// The export of `disk` as long as the view is there, after the prefix of the plan.
    #[must_use]
    pub fn export_name(disk: &DiskId) -> String {
        format!("{disk}@frozen")
    }

    fn offered_as(&self, disk: &DiskId) -> String {
        format!("{}{}", self.shared.views.prefix, Self::export_name(disk))
    }

    #[must_use]
    pub fn changes(&self) -> Changes {
        self.view.changes()
    }

    /// What the bitmaps mark, in whole blocks; has no meaning for [`Changes::Unknown`].
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        let blocks: u64 = self.view.dirty().iter().map(BlockMap::marked).sum();
        blocks * BLOCK_SIZE
    }

    /// What is kept in scratch files of blocks that were written since the freeze.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.view.control.kept()
    }

    /// Why the view cannot be read any more; absent while it can.
    #[must_use]
    pub fn broken(&self) -> Option<&BreakReason> {
        self.view.control.broken()
    }

    /// Ends the view: its exports are withdrawn, requests under way fail, and connections
    /// are cut after `grace`.
    ///
    /// # Errors
    /// When a call into an export does not return. The view is released nevertheless.
    pub fn release(mut self, outcome: Outcome, grace: Duration) -> Result<(), ReleaseError> {
        self.end(outcome, grace)
    }

    fn end(&mut self, outcome: Outcome, grace: Duration) -> Result<(), ReleaseError> {
        self.view.control.close();
        let mut first = Ok(());
        let offered = std::mem::take(&mut self.offered);
        for disk in &self.view.disks[..offered] {
            let removed = self
                .shared
                .views
                .exports
                .remove(&self.offered_as(&disk.id), grace);
            if let (Err(source), true) = (removed, first.is_ok()) {
                first = Err(ReleaseError {
                    disk: disk.id.clone(),
                    source,
                });
            }
        }
        self.shared.settle(&self.view, outcome);
        first
    }
}

impl Drop for FrozenView {
    fn drop(&mut self) {
        if self.shared.is_current(&self.view) {
            // Nobody is left to hear of readers that stay.
            let _ = self.end(Outcome::Failed, DROP_GRACE);
        }
    }
}

/// One disk of a view, read-only.
pub(crate) struct FrozenExport {
    view: Arc<View>,
    index: usize,
    bitmap: ContextName,
}

impl FrozenExport {
    pub(crate) fn new(view: Arc<View>, index: usize) -> Self {
        let bitmap = ContextName::dirty_bitmap(BITMAP).expect("BUG: the name of our own bitmap");
        Self {
            view,
            index,
            bitmap,
        }
    }

    fn disk(&self) -> &ViewDisk {
        &self.view.disks[self.index]
    }
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

impl Export for FrozenExport {
    fn size(&self) -> u64 {
        self.disk().size.bytes()
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        match self.view.changes() {
            Changes::Unknown => vec![ContextName::allocation()],
            Changes::Tracked => vec![ContextName::allocation(), self.bitmap.clone()],
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk().read(&self.view.control, offset, into)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _holes: Holes) -> io::Result<()> {
        Err(read_only())
    }

    fn trim(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(read_only())
    }

    /// A view never becomes durable: it ends with its volume.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let (disk, control) = (self.disk(), &self.view.control);
        let range = offset..offset + length;
        if *context == self.bitmap {
            disk.changes(control, &self.view.dirty()[self.index], range, limit)
        } else {
            disk.allocation(control, range, limit)
        }
    }
}
