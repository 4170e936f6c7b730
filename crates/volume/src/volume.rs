//! The disks of one VM, and the instant at which they freeze.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize};
use lifeboat_nbd::ExportSet;
use lifeboat_sys::disk::{Access, DiskFile, DiskPort, ImageGuard};
use lifeboat_sys::host;

use crate::error::{FreezeError, VolumeError};
use crate::live::LiveExport;
use crate::map::BlockMap;
use crate::view::{Changes, FrozenView, Outcome, View};
use crate::view_disk::{Control, ViewDisk};

/// The bitmap of a frozen view; its context is `qemu:dirty-bitmap:lifeboat`.
pub const BITMAP: &str = "lifeboat";

/// What is given to clients when a volume is dropped without being closed.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// The disks of a volume, and what its views may use.
#[derive(Debug, Clone)]
pub struct VolumePlan {
    pub disks: Vec<VolumeDisk>,
    /// Old blocks of a view are kept in unlinked files here. Not where the disks are, if
    /// a full file system must not stop the guest.
    pub scratch_folder: PathBuf,
    /// The most bytes of old blocks kept for one view, of all disks together. Beyond it
    /// the view breaks.
    pub scratch_limit: u64,
}

/// One disk of a volume.
#[derive(Debug, Clone)]
pub struct VolumeDisk {
    pub id: DiskId,
    /// A raw image; its length is the disk's size.
    pub path: PathBuf,
}

/// Makes a new raw image of zeroes that takes no space.
///
/// # Errors
/// When the name is taken or the file cannot be made; what was made is removed then.
pub fn create_disk(port: &dyn DiskPort, path: &Path, size: DiskSize) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Create {
        path: path.to_owned(),
        source,
    };
    let file = port.create(path).map_err(failed)?;
    let made = file.set_len(size.bytes()).and_then(|()| {
        file.sync()?;
        port.sync_dir(path.parent().unwrap_or(Path::new(".")))
    });
    if made.is_err() {
        // The first error says more than a second one would.
        let _ = port.unlink(path);
    }
    made.map_err(failed)
}

/// The disks of one VM, served read-write. Dropping it closes it.
#[derive(Debug)]
pub struct Volume {
    shared: Arc<Shared>,
    /// How many disks are among the exports, from the first on.
    offered: usize,
}

/// What the exports and views of a volume share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disks: Vec<Disk>,
    /// Held shared by every change of a disk, alone by the instant of a freeze.
    pub(crate) gate: RwLock<Era>,
    /// Freezes and releases come one after the other; taken before the gate.
    changes: Mutex<Changes>,
    pub(crate) exports: ExportSet,
    port: Arc<dyn DiskPort>,
    scratch_folder: PathBuf,
    scratch_limit: u64,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
    pub(crate) file: Arc<dyn DiskFile>,
    _guard: ImageGuard,
}

/// The time between two freezes.
#[derive(Debug)]
pub(crate) struct Era {
    /// What has changed since the last freeze, by disk.
    pub(crate) maps: Vec<BlockMap>,
    pub(crate) view: Option<Arc<View>>,
}

impl Volume {
    /// Opens the disks and offers each read-write in `exports` under its id. QEMU's image
    /// locks are held on the files, so that nobody else writes to them.
    ///
    /// # Errors
    /// When there are no disks or one twice, an image cannot be opened, is in use or has an
    /// impossible size, or a name is taken among the exports. Nothing is offered then.
    pub fn open(
        port: Arc<dyn DiskPort>,
        plan: &VolumePlan,
        exports: ExportSet,
    ) -> Result<Self, VolumeError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = plan.disks.iter().find(|disk| !names.insert(&disk.id)) {
            let disk = twice.id.clone();
            return Err(VolumeError::DuplicateDisk { disk });
        }
        if plan.disks.is_empty() {
            return Err(VolumeError::NoDisks);
        }
        let disks = plan
            .disks
            .iter()
            .map(|disk| Disk::open(port.as_ref(), disk))
            .collect::<Result<Vec<Disk>, VolumeError>>()?;
        let maps = disks.iter().map(|disk| BlockMap::new(disk.size)).collect();
        let shared = Arc::new(Shared {
            disks,
            gate: RwLock::new(Era { maps, view: None }),
            changes: Mutex::new(Changes::Unknown),
            exports,
            port,
            scratch_folder: plan.scratch_folder.clone(),
            scratch_limit: plan.scratch_limit,
        });
        // What fails from here on drops the volume, which withdraws what was offered.
        let mut volume = Self { shared, offered: 0 };
        volume.offer()?;
        Ok(volume)
    }

    fn offer(&mut self) -> Result<(), VolumeError> {
        for (index, disk) in self.shared.disks.iter().enumerate() {
            let export = Arc::new(LiveExport::new(Arc::clone(&self.shared), index));
            let added = self.shared.exports.add(disk.id.as_str(), export);
            added.map_err(|source| VolumeError::Export {
                disk: disk.id.clone(),
                source,
            })?;
            self.offered += 1;
        }
        Ok(())
    }

    /// Freezes all disks at one instant and offers them read-only. Every write that was
    /// answered before the call is in the view; none that begins after it returns.
    ///
    /// # Errors
    /// When there is a view already, a scratch file cannot be made, or a name is taken among
    /// the exports. No change is forgotten then.
    pub fn freeze(&self) -> Result<FrozenView, FreezeError> {
        let shared = &self.shared;
        let view = {
            let changes = lock(&shared.changes);
            shared.swap(*changes)?
        };
        // What fails from here on drops the view, and with it merges its map back.
        let mut frozen = FrozenView::new(Arc::clone(shared), view);
        frozen.offer()?;
        Ok(frozen)
    }

    /// What has been written since the last freeze, in whole blocks.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        let era = read_gate(&self.shared.gate);
        let blocks: u64 = era.maps.iter().map(BlockMap::marked).sum();
        blocks * BLOCK_SIZE
    }

    /// Withdraws the exports, cutting connections after `grace`, and makes the disks
    /// durable. A view should be released before.
    ///
    /// # Errors
    /// The first failure; the rest is done nevertheless.
    pub fn close(mut self, grace: Duration) -> Result<(), VolumeError> {
        self.end(grace)
    }

    fn end(&mut self, grace: Duration) -> Result<(), VolumeError> {
        let mut first = Ok(());
        let offered = std::mem::take(&mut self.offered);
        for Disk { id, file, .. } in &self.shared.disks[..offered] {
            let removed = self.shared.exports.remove(id.as_str(), grace);
            let removed = removed.map_err(|source| VolumeError::Export {
                disk: id.clone(),
                source,
            });
            let synced = file.sync().map_err(|source| VolumeError::Sync {
                disk: id.clone(),
                source,
            });
            first = first.and(removed).and(synced);
        }
        first
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Nobody is left to hear of it; after a close there is nothing to do.
        let _ = self.end(DROP_GRACE);
    }
}

impl Disk {
    fn open(port: &dyn DiskPort, disk: &VolumeDisk) -> Result<Self, VolumeError> {
        let VolumeDisk { id, path } = disk;
        let failed = |source| VolumeError::Open {
            disk: id.clone(),
            path: path.clone(),
            source,
        };
        let file = port.open(path, Access::ReadWrite).map_err(failed)?;
        let guard = ImageGuard::acquire(&file).map_err(failed)?;
        let guard = guard.ok_or_else(|| VolumeError::InUse {
            disk: id.clone(),
            path: path.clone(),
        })?;
        let length = file.len().map_err(failed)?;
        let size = DiskSize::try_from(length).map_err(|source| VolumeError::Size {
            disk: id.clone(),
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            id: id.clone(),
            size,
            file,
            _guard: guard,
        })
    }
}

impl Shared {
    /// Begins a new era with a view of this instant.
    fn swap(&self, changes: Changes) -> Result<Arc<View>, FreezeError> {
        if read_gate(&self.gate).view.is_some() {
            return Err(FreezeError::AlreadyFrozen);
        }
        // Everything that takes time comes before the instant.
        let mut disks = self
            .disks
            .iter()
            .map(|disk| self.view_disk(disk))
            .collect::<Result<Vec<_>, FreezeError>>()?;
        let control = Control::new(self.scratch_limit);
        let mut era = write_gate(&self.gate);
        for (map, disk) in era.maps.iter_mut().zip(&mut disks) {
            std::mem::swap(map, &mut disk.dirty);
        }
        let view = Arc::new(View {
            disks,
            control,
            changes,
        });
        era.view = Some(Arc::clone(&view));
        Ok(view)
    }

    /// A view of one disk in which nothing is kept or marked yet. Old blocks go into a
    /// sparse file without a name.
    fn view_disk(&self, disk: &Disk) -> Result<ViewDisk, FreezeError> {
        let make = || -> io::Result<Arc<dyn DiskFile>> {
            let random = u64::from_le_bytes(host::random_bytes()?);
            let path = self.scratch_folder.join(format!("scratch-{random:016x}"));
            let file = self.port.create(&path)?;
            self.port.unlink(&path)?;
            file.set_len(disk.size.bytes())?;
            Ok(file)
        };
        let scratch = make().map_err(|source| FreezeError::Scratch {
            disk: disk.id.clone(),
            folder: self.scratch_folder.clone(),
            source,
        })?;
        let live = Arc::clone(&disk.file);
        Ok(ViewDisk::new(disk.id.clone(), disk.size, live, scratch))
    }

    pub(crate) fn is_current(&self, view: &Arc<View>) -> bool {
        let era = read_gate(&self.gate);
        era.view
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, view))
    }

    /// Ends `view`, which is the current one, and forgets its map or merges it back.
    pub(crate) fn settle(&self, view: &View, outcome: Outcome) {
        let mut changes = lock(&self.changes);
        match outcome {
            Outcome::Received => *changes = Changes::Tracked,
            Outcome::Failed => {
                // Marks are added while the guest goes on: no freeze can come between, as
                // there still is a view.
                let era = read_gate(&self.gate);
                for (map, disk) in era.maps.iter().zip(&view.disks) {
                    map.mark_all_of(&disk.dirty);
                }
            }
        }
        write_gate(&self.gate).view = None;
    }
}

pub(crate) fn read_gate(gate: &RwLock<Era>) -> RwLockReadGuard<'_, Era> {
    gate.read().unwrap_or_else(PoisonError::into_inner)
}

fn write_gate(gate: &RwLock<Era>) -> RwLockWriteGuard<'_, Era> {
    gate.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
