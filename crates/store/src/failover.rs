//! Failover: the VM gets overlays over a recovery point, and nothing below them changes.
//!
//! The overlays take what the guest writes; the heads and segments stay as they are until
//! the failover is reverted (the overlays go) or committed (see `commit.rs`).

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_model::{DiskId, DiskSize, Lineage, LineageId, Sequence, Timestamp};
use lifeboat_qcow2::{Backing, BackingFormat, Below, Overlay, create_overlay, verify_wrapper};
use lifeboat_sys::disk::{Access, GuestDisk, ImageGuard};
use serde::Serialize;

use crate::damage::Damage;
use crate::error::{IoContext, Refused, StoreError};
use crate::files;
use crate::image::Chain;
use crate::layered::Layered;
use crate::reader::View;
use crate::record::{Failover, Phase, Record, Target};
use crate::spool::with_causes;
use crate::store::{Store, make_wrapper};

/// What to fail over to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailoverTarget {
    /// The newest moment received: deltas that wait are applied first.
    Newest,
    /// The newest moment applied, at once; deltas that wait are kept for a revert.
    Applied,
    /// A recovery point.
    Point(Sequence),
}

/// A failover that has begun: the VM may be started on these images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StartedFailover {
    /// The moment that the VM starts from.
    pub sequence: Sequence,
    /// The lineage that it writes from now on.
    pub lineage: Lineage,
    pub disks: Vec<StartedDisk>,
}

/// One disk of a failed-over VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StartedDisk {
    pub id: DiskId,
    pub size: DiskSize,
    /// The qcow2 image to start the VM on.
    pub image: PathBuf,
    /// The images that it stands on, each the backing file of the one before; the last one,
    /// the disk's wrapper, keeps its data in `head`.
    pub below: Vec<PathBuf>,
    /// The raw file that holds the disk's newest state.
    pub head: PathBuf,
}

impl Store {
    /// Fails over: from now on nothing is received or applied, and the VM may run on the
    /// overlays that this answers with. Durable on return; after a crash half way, opening
    /// the store completes it.
    ///
    /// `lineage` must be random; `progress` is told bytes applied, where deltas wait.
    ///
    /// # Errors
    /// Refused when the store is no replica, holds nothing yet, or has no such point.
    pub fn start_failover(
        &mut self,
        target: FailoverTarget,
        lineage: LineageId,
        now: Timestamp,
        progress: &mut dyn FnMut(u64),
    ) -> Result<StartedFailover, StoreError> {
        self.refuse_unless_replica()?;
        if let FailoverTarget::Point(sequence) = target {
            self.point_segment(sequence)?;
        }
        match target {
            FailoverTarget::Newest => while self.apply_next(progress)?.is_some() {},
            FailoverTarget::Applied => self.change(|store| match store.complete_apply() {
                // The last consistent moment does not need it.
                Err(StoreError::Damaged { .. }) if store.state.mixed.is_some() => Ok(()),
                outcome => outcome,
            })?,
            FailoverTarget::Point(_) => {}
        }
        let target = self.target_of(target)?;
        if let Target::Segment(_) = target {
            self.change(|store| {
                store.release_whole_reserve()?;
                store.seal_for_failover()
            })?;
        }
        self.change(|store| {
            // What waits is not applied any more; a revert reserves anew.
            store.release_whole_reserve()?;
            let sizes: Vec<DiskSize> = store.state.disks.iter().map(|disk| disk.size).collect();
            let (sequence, target_sizes) = match target {
                Target::Newest => (store.state.applied_sequence(), sizes.clone()),
                Target::Segment(number) => {
                    let segment = store.state.segment(number);
                    let segment = segment.expect("BUG: a failover's boundary is there");
                    let sizes = segment.disks.iter().map(|disk| disk.size).collect();
                    (segment.moment.sequence, sizes)
                }
            };
            let larger = sizes
                .iter()
                .zip(&target_sizes)
                .map(|(head, point)| *head.max(point));
            let lineage = Lineage {
                counter: store.state.lineage.counter + 1,
                id: lineage,
                forked_from: Some((store.state.lineage.id, sequence)),
            };
            let failover = Failover {
                target,
                lineage,
                started_at: now,
                sizes: larger.collect(),
                target_sizes,
                cancels_copy: store.is_copy_open(),
            };
            store.save(&Record::FailoverStarted(Box::new(failover)))?;
            store.complete_failover()
        })?;
        self.started_failover()
            .ok_or_else(|| Refused::NotFailedOver { purpose: "show" }.into())
    }

    /// What a failover stands on. While whole disks are copied the newest is the boundary that
    /// the copy keeps.
    fn target_of(&self, target: FailoverTarget) -> Result<Target, Refused> {
        let nothing = Refused::NothingApplied {
            purpose: "fail over to",
        };
        let newest = match (&self.state.mixed, self.state.applied) {
            (Some(mixed), _) => mixed.boundary.map(Target::Segment),
            (None, Some(_)) => Some(Target::Newest),
            (None, None) => None,
        };
        match target {
            FailoverTarget::Newest | FailoverTarget::Applied => newest.ok_or(nothing),
            FailoverTarget::Point(sequence) => {
                Ok(Target::Segment(self.point_segment(sequence)?.number))
            }
        }
    }

    /// Whether a commit has begun that is not complete. It goes on beside the guest that it was
    /// begun with; without one, opening the store completes it.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        matches!(self.state.phase, Phase::Committing(_))
    }

    /// The failover that is neither reverted nor committed yet, if there is one.
    #[must_use]
    pub fn started_failover(&self) -> Option<StartedFailover> {
        let Phase::FailedOver(failover) = &self.state.phase else {
            return None;
        };
        let (_, sequence) = failover.lineage.forked_from?;
        let disks = self
            .state
            .disks
            .iter()
            .zip(&failover.sizes)
            .map(|(disk, &size)| StartedDisk {
                id: disk.id.clone(),
                size,
                image: self.layout.overlay(&disk.id),
                below: self.images_below(&disk.id, failover.target),
                head: self.layout.head(&disk.id),
            });
        Some(StartedFailover {
            sequence,
            lineage: failover.lineage,
            disks: disks.collect(),
        })
    }

    /// The disks of a VM whose failover was committed: each is its raw head, which `image`
    /// hands to QEMU. Nothing stands below them any more.
    ///
    /// # Errors
    /// Refused before a failover was committed.
    pub fn committed_disks(&self) -> Result<Vec<StartedDisk>, StoreError> {
        match self.state.phase {
            Phase::Committed(_) => {}
            Phase::Committing(_) => return Err(Refused::Committing.into()),
            Phase::FailingOver(_) | Phase::FailedOver(_) => return Err(Refused::FailedOver.into()),
            Phase::Replica => return Err(Refused::NotCommitted.into()),
        }
        let disks = self.state.disks.iter().map(|disk| StartedDisk {
            id: disk.id.clone(),
            size: disk.size,
            image: self.layout.wrapper(&disk.id),
            below: Vec::new(),
            head: self.layout.head(&disk.id),
        });
        Ok(disks.collect())
    }

    fn images_below(&self, disk: &DiskId, target: Target) -> Vec<PathBuf> {
        let segments = self
            .state
            .segments
            .iter()
            .filter(|segment| match target {
                Target::Newest => false,
                Target::Segment(number) => segment.number >= number,
            })
            .map(|segment| self.layout.sealed_segment(disk, segment.number));
        segments
            .chain(std::iter::once(self.layout.wrapper(disk)))
            .collect()
    }

    /// Makes the overlays of a failover that was journaled.
    pub(crate) fn complete_failover(&mut self) -> Result<(), StoreError> {
        let Phase::FailingOver(failover) = self.state.phase.clone() else {
            return Ok(());
        };
        for (disk, &size) in self.state.disks.iter().zip(&failover.sizes) {
            self.ready_wrapper(&disk.id, disk.size)?;
            let backing = match failover.target {
                Target::Newest => format!("../disks/{}/disk.qcow2", disk.id),
                Target::Segment(number) => format!("../disks/{}/seg/{number}.qcow2", disk.id),
            };
            let path = self.layout.overlay(&disk.id);
            files::remove(self.disk.as_ref(), &path)?;
            let file = self.disk.create(&path).context("create", &path)?;
            let below = Below::Named(Backing {
                name: &backing,
                format: BackingFormat::Qcow2,
            });
            create_overlay(file.as_ref(), size.bytes(), below)
                .map_err(|error| image_error(&path, &error))?;
        }
        let folder = self.layout.failover();
        self.disk.sync_dir(&folder).context("sync", &folder)?;
        self.save(&Record::FailedOver)?;
        self.release_images();
        Ok(())
    }

    /// Makes the wrapper anew unless it is as we write it; a moved store needs that too.
    /// Answers whether it did.
    pub(crate) fn ready_wrapper(&self, disk: &DiskId, size: DiskSize) -> Result<bool, StoreError> {
        let path = self.layout.wrapper(disk);
        let head = self.layout.head(disk);
        let is_ready = self.disk.open(&path, Access::ReadOnly).is_ok_and(|file| {
            head.to_str()
                .is_some_and(|head| verify_wrapper(file.as_ref(), size.bytes(), head).is_ok())
        });
        if !is_ready {
            make_wrapper(self.disk.as_ref(), &self.layout, disk, size)?;
        }
        Ok(!is_ready)
    }

    /// Makes the wrappers of a replica anew where they are not as we write them, and answers
    /// how many. A resize and a moved store need that.
    pub(crate) fn renew_wrappers(&mut self) -> Result<usize, StoreError> {
        let mut made = 0;
        for at in 0..self.images.len() {
            let disk = self.state.disks[at].clone();
            if self.ready_wrapper(&disk.id, disk.size)? {
                made += 1;
                // The locks are on the file that had the name before.
                self.images[at].guards.clear();
            }
        }
        if matches!(self.state.phase, Phase::Replica) {
            self.guard_images()?;
        }
        Ok(made)
    }

    /// Gives up the failover and what the guest wrote since: the store is a replica again.
    ///
    /// # Errors
    /// Refused when there is no failover, when a commit has begun, and while the VM runs.
    pub fn revert_failover(&mut self) -> Result<(), StoreError> {
        match self.state.phase {
            Phase::FailingOver(_) | Phase::FailedOver(_) => {}
            Phase::Replica => return Err(Refused::NotFailedOver { purpose: "revert" }.into()),
            Phase::Committing(_) => return Err(Refused::Committing.into()),
            Phase::Committed(_) => return Err(Refused::Committed.into()),
        }
        let _overlays = self.guard_overlays()?;
        self.change(|store| {
            store.guard_images()?;
            store.save(&Record::Reverted)?;
            store.remove_overlays()?;
            store.reserve_what_fits()
        })
    }

    pub(crate) fn remove_overlays(&self) -> Result<(), StoreError> {
        for disk in &self.state.disks {
            files::remove(self.disk.as_ref(), &self.layout.overlay(&disk.id))?;
        }
        let folder = self.layout.failover();
        self.disk.sync_dir(&folder).context("sync", &folder)
    }

    /// Locks the overlays against QEMU, or refuses because it uses them.
    pub(crate) fn guard_overlays(&self) -> Result<Vec<ImageGuard>, StoreError> {
        let paths = self
            .state
            .disks
            .iter()
            .map(|disk| self.layout.overlay(&disk.id));
        paths.map(|path| self.guard(&path)).collect()
    }

    /// Locks heads and wrappers against QEMU, or refuses because it uses one; then no lock
    /// is left that would keep it from the others.
    pub(crate) fn guard_images(&mut self) -> Result<(), StoreError> {
        let mut taken = Vec::new();
        for (at, image) in self.images.iter().enumerate() {
            if image.guards.is_empty() {
                let paths = [self.layout.head(&image.id), self.layout.wrapper(&image.id)];
                let guards = paths.map(|path| self.guard(&path));
                taken.push((at, guards.into_iter().collect::<Result<Vec<_>, _>>()?));
            }
        }
        for (at, guards) in taken {
            self.images[at].guards = guards;
        }
        Ok(())
    }

    /// Lets QEMU open heads and wrappers.
    pub(crate) fn release_images(&mut self) {
        self.images
            .iter_mut()
            .for_each(|image| image.guards.clear());
    }

    fn guard(&self, path: &Path) -> Result<ImageGuard, StoreError> {
        let file = self
            .disk
            .open(path, Access::ReadWrite)
            .context("open", path)?;
        let guard = ImageGuard::acquire(&file).context("lock", path)?;
        guard.ok_or_else(|| {
            Refused::ImageInUse {
                path: path.to_owned(),
            }
            .into()
        })
    }

    /// Opens one disk of the failed-over VM for reading and writing, for the embedded driver.
    ///
    /// # Errors
    /// Refused when there is no failover or something else uses the overlay.
    pub fn failover_disk(&self, disk: &DiskId) -> Result<FailoverDisk, StoreError> {
        let at = self.disk_index(disk)?;
        let Phase::FailedOver(failover) = &self.state.phase else {
            return Err(Refused::NotFailedOver {
                purpose: "read or write",
            }
            .into());
        };
        let path = self.layout.overlay(disk);
        let file = self
            .disk
            .open(&path, Access::ReadWrite)
            .context("open", &path)?;
        let guard = ImageGuard::acquire(&file).context("lock", &path)?;
        let guard = guard.ok_or_else(|| Refused::ImageInUse { path: path.clone() })?;
        let overlay = Overlay::open(Arc::clone(&file), Access::ReadWrite)
            .map_err(|error| image_error(&path, &error))?;
        let below = self.below(at, failover);
        Ok(FailoverDisk {
            layered: Layered { overlay, below },
            is_retired: AtomicBool::new(false),
            _guard: guard,
        })
    }

    /// What the overlay of a disk stands on.
    pub(crate) fn below(&self, at: usize, failover: &Failover) -> View {
        let boundary = match failover.target {
            Target::Newest => None,
            Target::Segment(number) => Some(number),
        };
        View {
            chain: Arc::clone(&self.images[at].chain),
            boundary,
            size: failover.target_sizes[at].bytes(),
        }
    }
}

/// One disk of a failed-over VM, open for the embedded driver. Many threads may share it.
#[derive(Debug)]
pub struct FailoverDisk {
    pub(crate) layered: Layered,
    /// Set once the head has taken over: what came later would be lost.
    is_retired: AtomicBool,
    _guard: ImageGuard,
}

impl FailoverDisk {
    /// Whether the disk stands on this chain.
    pub(crate) fn is_over(&self, chain: &Arc<Chain>) -> bool {
        Arc::ptr_eq(&self.layered.below.chain, chain)
    }

    /// Takes no more writes from now on.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
    }

    fn refuse_if_retired(&self) -> io::Result<()> {
        if self.is_retired.load(Ordering::Acquire) {
            let why = "the failover was committed; the VM's disk is the head now";
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, why));
        }
        Ok(())
    }
}

impl GuestDisk for FailoverDisk {
    fn size(&self) -> u64 {
        self.layered.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.layered.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.refuse_if_retired()?;
        self.layered.write_at(bytes, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.refuse_if_retired()?;
        self.layered.zero(offset, len)
    }

    /// Does nothing: where a write goes in the overlay is decided when it comes.
    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.layered.flush()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.layered.next_data(offset)
    }
}

/// An image that cannot be made or used, as an error of the store.
pub(crate) fn image_error(path: &Path, error: &(dyn std::error::Error + 'static)) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            let source = match io.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(io.kind(), with_causes(error)),
            };
            return Err::<(), _>(source)
                .context("write image", path)
                .expect_err("BUG: an error stays one");
        }
        cause = error.source();
    }
    StoreError::Damaged {
        path: path.to_owned(),
        damage: Damage::Image {
            why: with_causes(error),
        },
    }
}
