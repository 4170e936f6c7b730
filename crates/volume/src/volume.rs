//! The disks of one VM, and the instant at which they freeze.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize};
use lifeboat_nbd::ExportSet;
use lifeboat_sys::disk::{DiskFile, DiskPort, GuestDisk};
use lifeboat_sys::host;

use crate::error::{FreezeError, VolumeError};
use crate::live::LiveExport;
use crate::map::BlockMap;
use crate::marks::{MapSet, Marking, Marks};
use crate::raw_image::{ImageError, RawImage};
use crate::view::{Changes, FrozenView, Outcome, View};
use crate::view_disk::ViewDisk;

/// The bitmap of a frozen view; its context is `qemu:dirty-bitmap:lifeboat`.
pub const BITMAP: &str = "lifeboat";

/// What is given to clients when a volume is dropped without being closed.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// Raw images as the disks of a volume, and what its views may use.
#[derive(Debug, Clone)]
pub struct VolumePlan {
    pub disks: Vec<VolumeDisk>,
    /// See [`ViewPlan::scratch_folder`].
    pub scratch_folder: PathBuf,
    /// See [`ViewPlan::scratch_limit`].
    pub scratch_limit: u64,
}

/// One raw image of a volume.
#[derive(Debug, Clone)]
pub struct VolumeDisk {
    pub id: DiskId,
    /// A raw image; its length is the disk's size.
    pub path: PathBuf,
}

/// One disk of a volume, whatever it stands on.
#[derive(Debug, Clone)]
pub struct VolumeDevice {
    pub id: DiskId,
    pub device: Arc<dyn GuestDisk>,
}

/// What the views of a volume may use, and where they are offered.
#[derive(Debug, Clone)]
pub struct ViewPlan {
    /// Old blocks of a view are kept in unlinked files here. Not where the disks are, if
    /// a full file system must not stop the guest.
    pub scratch_folder: PathBuf,
    /// The most bytes of old blocks kept for one view, of all disks together. Beyond it
    /// the view breaks.
    pub scratch_limit: u64,
    pub exports: ExportSet,
    /// What comes before `<disk>@frozen` in the names of the exports.
    pub prefix: String,
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

/// The disks of one VM. Dropping it closes it.
#[derive(Debug)]
pub struct Volume {
    shared: Arc<Shared>,
    /// Where the disks are offered to the guest, and how many of them, from the first on.
    offered: Mutex<Option<(ExportSet, usize)>>,
}

/// What the exports and views of a volume share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disks: Vec<Disk>,
    /// Held shared by every change of a disk, alone by the instant of a freeze.
    pub(crate) gate: RwLock<Era>,
    /// Freezes, releases and moves come one after the other; taken before the gate.
    pub(crate) course: Mutex<Course>,
    port: Arc<dyn DiskPort>,
    pub(crate) views: ViewPlan,
}

/// What may be done with a volume next.
#[derive(Debug)]
pub(crate) struct Course {
    /// Of marks that the volume keeps itself.
    changes: Changes,
    pub(crate) moving: Moving,
}

/// Whether the disks are on their way to something else to stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moving {
    No,
    Yes,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
    /// Changed only while the gate is held alone.
    device: RwLock<Arc<dyn GuestDisk>>,
}

/// The time between two freezes.
#[derive(Debug)]
pub(crate) struct Era {
    /// Where changes since the last freeze are marked.
    pub(crate) marks: Marks,
    pub(crate) view: Option<Arc<View>>,
    /// What has changed since the disks were last copied, by disk, while they are moved.
    pub(crate) trail: Option<Arc<Vec<BlockMap>>>,
}

/// A freeze that lacks only its instant; nobody else can freeze or move the volume meanwhile.
/// Dropping it changes nothing.
#[derive(Debug)]
pub struct Freeze<'a> {
    shared: &'a Arc<Shared>,
    course: MutexGuard<'a, Course>,
    disks: Vec<ViewDisk>,
}

impl Volume {
    /// Opens raw images and offers each read-write in `exports` under its id. Marks are kept in
    /// memory by the volume itself.
    ///
    /// # Errors
    /// When there are no disks or one twice, an image cannot be opened, is in use or has an
    /// impossible size, or a name is taken among the exports. Nothing is offered then.
    pub fn open(
        port: Arc<dyn DiskPort>,
        plan: &VolumePlan,
        exports: ExportSet,
    ) -> Result<Self, VolumeError> {
        // A disk that is there twice would be in use by itself.
        check_names(plan.disks.iter().map(|disk| &disk.id))?;
        let devices = plan
            .disks
            .iter()
            .map(|disk| open_image(port.as_ref(), disk))
            .collect::<Result<Vec<VolumeDevice>, VolumeError>>()?;
        let views = ViewPlan {
            scratch_folder: plan.scratch_folder.clone(),
            scratch_limit: plan.scratch_limit,
            exports: exports.clone(),
            prefix: String::new(),
        };
        let volume = Self::assemble(port, devices, views, |sizes| {
            Marks::Memory(sizes.map(BlockMap::new).collect())
        })?;
        // What fails from here on drops the volume, which withdraws what was offered.
        volume.serve(exports)?;
        Ok(volume)
    }

    /// A volume of these disks, whose changes are marked in `marking`. It is not offered to a
    /// guest yet.
    ///
    /// # Errors
    /// When there are no disks or one twice, or one has an impossible size.
    pub fn over(
        port: Arc<dyn DiskPort>,
        devices: Vec<VolumeDevice>,
        views: ViewPlan,
        marking: Marking,
    ) -> Result<Self, VolumeError> {
        check_names(devices.iter().map(|disk| &disk.id))?;
        Self::assemble(port, devices, views, |_| Marks::from(marking))
    }

    fn assemble(
        port: Arc<dyn DiskPort>,
        devices: Vec<VolumeDevice>,
        views: ViewPlan,
        marks: impl FnOnce(&mut dyn Iterator<Item = DiskSize>) -> Marks,
    ) -> Result<Self, VolumeError> {
        let disks = devices
            .into_iter()
            .map(Disk::new)
            .collect::<Result<Vec<Disk>, VolumeError>>()?;
        let marks = marks(&mut disks.iter().map(|disk| disk.size));
        let era = Era {
            marks,
            view: None,
            trail: None,
        };
        let shared = Shared {
            disks,
            gate: RwLock::new(era),
            course: Mutex::new(Course {
                changes: Changes::Unknown,
                moving: Moving::No,
            }),
            port,
            views,
        };
        Ok(Self {
            shared: Arc::new(shared),
            offered: Mutex::new(None),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Offers each disk read-write in `exports` under its id, after withdrawing what was offered
    /// before.
    ///
    /// # Errors
    /// When a name is taken; nothing is offered then. When what was offered before could not be
    /// withdrawn.
    pub fn serve(&self, exports: ExportSet) -> Result<(), VolumeError> {
        self.withdraw(DROP_GRACE)?;
        for (index, disk) in self.shared.disks.iter().enumerate() {
            let export = Arc::new(LiveExport::new(Arc::clone(&self.shared), index));
            let added = exports.add(disk.id.as_str(), export);
            if let Err(source) = added {
                *lock(&self.offered) = Some((exports, index));
                // The first error says more than a second one would.
                let _ = self.withdraw(DROP_GRACE);
                return Err(VolumeError::Export {
                    disk: disk.id.clone(),
                    source,
                });
            }
        }
        *lock(&self.offered) = Some((exports, self.shared.disks.len()));
        Ok(())
    }

    /// Withdraws what is offered to the guest, cutting connections after `grace`, and makes the
    /// disks durable. Nothing is done when nothing is offered.
    ///
    /// # Errors
    /// The first failure; the rest is done nevertheless.
    pub fn withdraw(&self, grace: Duration) -> Result<(), VolumeError> {
        let Some((exports, count)) = lock(&self.offered).take() else {
            return Ok(());
        };
        let mut first = Ok(());
        for (index, disk) in self.shared.disks[..count].iter().enumerate() {
            let removed = exports.remove(disk.id.as_str(), grace);
            let removed = removed.map_err(|source| VolumeError::Export {
                disk: disk.id.clone(),
                source,
            });
            first = first.and(removed).and(self.shared.make_durable(index));
        }
        first
    }

    /// Makes all disks durable as they are now.
    ///
    /// # Errors
    /// The first failure; the rest is done nevertheless.
    pub fn flush(&self) -> Result<(), VolumeError> {
        let disks = 0..self.shared.disks.len();
        let flushed = disks.map(|index| self.shared.make_durable(index));
        flushed.fold(Ok(()), Result::and)
    }

    /// What a disk stands on now, for reading it as it is.
    #[must_use]
    pub fn device(&self, disk: &DiskId) -> Option<Arc<dyn GuestDisk>> {
        let mut disks = self.shared.disks.iter();
        disks.find(|own| own.id == *disk).map(Disk::device)
    }

    /// Marks changes in `marking` from now on: every change that begins after the call, and
    /// those under way.
    pub fn mark_in(&self, marking: Marking) {
        write_gate(&self.shared.gate).marks = Marks::from(marking);
    }

    /// Freezes all disks at one instant and offers them read-only. Every write that was
    /// answered before the call is in the view; none that begins after it returns. The view's
    /// bitmap, if it has one, is of the marks that the volume keeps itself.
    ///
    /// # Errors
    /// When there is a view already, a scratch file cannot be made, or a name is taken among
    /// the exports. No change is forgotten then.
    pub fn freeze(&self) -> Result<FrozenView, FreezeError> {
        let freeze = self.begin_freeze()?;
        let changes = freeze.changes();
        let fresh = Marks::Memory(self.new_maps());
        freeze.at_once(fresh, |old| match old {
            Marks::Memory(maps) => (changes, maps),
            Marks::Nothing | Marks::Files(_) => (Changes::Unknown, Vec::new()),
        })
    }

    fn new_maps(&self) -> Vec<BlockMap> {
        let disks = self.shared.disks.iter();
        disks.map(|disk| BlockMap::new(disk.size)).collect()
    }

    /// Prepares everything for a freeze that takes time.
    ///
    /// # Errors
    /// When there is a view already, the disks are being moved, or a scratch file cannot be
    /// made.
    pub fn begin_freeze(&self) -> Result<Freeze<'_>, FreezeError> {
        let shared = &self.shared;
        let course = lock(&shared.course);
        if course.moving == Moving::Yes {
            return Err(FreezeError::Moving);
        }
        if read_gate(&shared.gate).view.is_some() {
            return Err(FreezeError::AlreadyFrozen);
        }
        let disks = shared.disks.iter().map(|disk| shared.view_disk(disk));
        let disks = disks.collect::<Result<Vec<_>, FreezeError>>()?;
        Ok(Freeze {
            shared,
            course,
            disks,
        })
    }

    /// What has been written since the last freeze, in whole blocks, by the marks that the
    /// volume keeps itself.
    #[must_use]
    pub fn dirty_bytes(&self) -> u64 {
        match &read_gate(&self.shared.gate).marks {
            Marks::Memory(maps) => maps.iter().map(BlockMap::marked).sum::<u64>() * BLOCK_SIZE,
            Marks::Nothing | Marks::Files(_) => 0,
        }
    }

    /// Withdraws the exports, cutting connections after `grace`, and makes the disks
    /// durable. A view should be released before.
    ///
    /// # Errors
    /// The first failure; the rest is done nevertheless.
    pub fn close(self, grace: Duration) -> Result<(), VolumeError> {
        self.withdraw(grace)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Nobody is left to hear of it; after a close there is nothing to do.
        let _ = self.withdraw(DROP_GRACE);
    }
}

impl Freeze<'_> {
    fn changes(&self) -> Changes {
        self.course.changes
    }

    /// Freezes now: from this instant on changes are marked in `next`. The view has a bitmap of
    /// what `since` mark together, the last of which is where changes were marked until
    /// now; no bitmap if there are none.
    ///
    /// # Errors
    /// When a name is taken among the exports. Changes are marked in `next` nevertheless.
    pub fn now(self, next: Marking, since: &[MapSet]) -> Result<FrozenView, FreezeError> {
        let sizes: Vec<DiskSize> = self.disks.iter().map(|disk| disk.size).collect();
        self.at_once(Marks::from(next), |_| {
            if since.is_empty() {
                return (Changes::Unknown, Vec::new());
            }
            let maps = sizes.iter().enumerate().map(|(index, size)| {
                let map = BlockMap::new(*size);
                for set in since {
                    set.maps()[index].add_to(&map);
                }
                map
            });
            (Changes::Tracked, maps.collect())
        })
    }

    /// Swaps the marks and puts the view in place in one instant; what the old marks mean for
    /// the view is found out afterwards, when nobody adds to them any more.
    fn at_once(
        self,
        next: Marks,
        dirty: impl FnOnce(Marks) -> (Changes, Vec<BlockMap>),
    ) -> Result<FrozenView, FreezeError> {
        let shared = self.shared;
        let view = Arc::new(View::new(self.disks, shared.views.scratch_limit));
        let old = {
            let mut era = write_gate(&shared.gate);
            era.view = Some(Arc::clone(&view));
            std::mem::replace(&mut era.marks, next)
        };
        let (changes, maps) = dirty(old);
        view.tell(changes, maps);
        // A failure from here on drops the view, which waits for the course.
        drop(self.course);
        let mut frozen = FrozenView::new(Arc::clone(shared), view);
        frozen.offer()?;
        Ok(frozen)
    }
}

fn check_names<'a>(disks: impl Iterator<Item = &'a DiskId>) -> Result<(), VolumeError> {
    let mut names = BTreeSet::new();
    for disk in disks {
        if !names.insert(disk) {
            return Err(VolumeError::DuplicateDisk { disk: disk.clone() });
        }
    }
    if names.is_empty() {
        return Err(VolumeError::NoDisks);
    }
    Ok(())
}

fn open_image(port: &dyn DiskPort, disk: &VolumeDisk) -> Result<VolumeDevice, VolumeError> {
    let id = disk.id.clone();
    match RawImage::open(port, &disk.path) {
        Ok(image) => Ok(VolumeDevice {
            id,
            device: Arc::new(image),
        }),
        Err(ImageError::Open { path, source }) => Err(VolumeError::Open {
            disk: id,
            path,
            source,
        }),
        Err(ImageError::InUse { path }) => Err(VolumeError::InUse { disk: id, path }),
        Err(ImageError::Size { path, source }) => Err(VolumeError::Size {
            disk: id,
            path,
            source,
        }),
    }
}

impl Disk {
    fn new(disk: VolumeDevice) -> Result<Self, VolumeError> {
        let VolumeDevice { id, device } = disk;
        match DiskSize::try_from(device.size()) {
            Ok(size) => Ok(Self {
                id,
                size,
                device: RwLock::new(device),
            }),
            Err(source) => Err(VolumeError::DeviceSize { disk: id, source }),
        }
    }

    /// What the disk stands on at this instant. A change must ask while it holds the gate.
    pub(crate) fn device(&self) -> Arc<dyn GuestDisk> {
        let device = self.device.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&device)
    }

    /// Called with the gate held alone.
    pub(crate) fn stand_on(&self, device: Arc<dyn GuestDisk>) {
        *self.device.write().unwrap_or_else(PoisonError::into_inner) = device;
    }
}

impl Shared {
    /// Makes a disk durable. When that fails, what was written may be gone, and blocks hold what
    /// they held long ago: everything is marked.
    pub(crate) fn flush(&self, index: usize) -> io::Result<()> {
        let disk = &self.disks[index];
        let flushed = disk.device().flush();
        if flushed.is_err() {
            read_gate(&self.gate)
                .marks
                .mark(index, 0..disk.size.blocks());
        }
        flushed
    }

    fn make_durable(&self, index: usize) -> Result<(), VolumeError> {
        self.flush(index).map_err(|source| VolumeError::Sync {
            disk: self.disks[index].id.clone(),
            source,
        })
    }

    /// A view of one disk in which nothing is kept or marked yet. Old blocks go into a
    /// sparse file without a name.
    fn view_disk(&self, disk: &Disk) -> Result<ViewDisk, FreezeError> {
        let folder = &self.views.scratch_folder;
        let make = || -> io::Result<Arc<dyn DiskFile>> {
            let random = u64::from_le_bytes(host::random_bytes()?);
            let path = folder.join(format!("scratch-{random:016x}"));
            let file = self.port.create(&path)?;
            self.port.unlink(&path)?;
            file.set_len(disk.size.bytes())?;
            Ok(file)
        };
        let scratch = make().map_err(|source| FreezeError::Scratch {
            disk: disk.id.clone(),
            folder: folder.clone(),
            source,
        })?;
        let live = disk.device();
        Ok(ViewDisk::new(disk.id.clone(), disk.size, live, scratch))
    }

    pub(crate) fn is_current(&self, view: &Arc<View>) -> bool {
        let era = read_gate(&self.gate);
        era.view
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, view))
    }

    /// Ends `view`, which is the current one. What it marked by the volume's own marks is
    /// forgotten or merged back.
    pub(crate) fn settle(&self, view: &View, outcome: Outcome) {
        let mut course = lock(&self.course);
        match outcome {
            Outcome::Received => course.changes = Changes::Tracked,
            Outcome::Failed => {
                // Marks are added while the guest goes on: no freeze can come between, as
                // there still is a view.
                if let Marks::Memory(maps) = &read_gate(&self.gate).marks {
                    for (map, dirty) in maps.iter().zip(view.dirty()) {
                        map.mark_all_of(dirty);
                    }
                }
            }
        }
        write_gate(&self.gate).view = None;
    }
}

pub(crate) fn read_gate(gate: &RwLock<Era>) -> RwLockReadGuard<'_, Era> {
    gate.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write_gate(gate: &RwLock<Era>) -> RwLockWriteGuard<'_, Era> {
    gate.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
