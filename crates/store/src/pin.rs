//! References to boundaries, and the disks of a test failover that stand on one.
//!
//! A reference lasts as long as its value: nothing of it is on the disk. Who keeps one over a
//! restart notes its number, and takes it again after opening the store and before anything is
//! applied or removed. A boundary that nothing refers to goes sooner or later.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{DiskId, DiskSize, Sequence, Timestamp};
use lifeboat_qcow2::{Below, Overlay, create_overlay};
use lifeboat_sys::disk::{Access, DiskFile, GuestDisk, ImageGuard};

use crate::boundary::Pin;
use crate::damage::Damage;
use crate::error::{IoContext, Refused, StoreError};
use crate::failover::image_error;
use crate::files;
use crate::layered::Layered;
use crate::reader::{PointReader, View};
use crate::record::{Phase, SegmentState};
use crate::store::Store;

/// A reference to one moment of all disks, which keeps it in the store until dropped.
#[derive(Debug)]
pub struct BoundaryPin {
    pin: Pin,
    sequence: Sequence,
    disks: Vec<(DiskId, DiskSize)>,
}

impl BoundaryPin {
    /// The number by which [`Store::pin_boundary`] takes the reference again.
    #[must_use]
    pub fn boundary(&self) -> u64 {
        self.pin.boundary()
    }

    /// The moment.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// The disks, with their sizes at that moment.
    #[must_use]
    pub fn disks(&self) -> &[(DiskId, DiskSize)] {
        &self.disks
    }
}

impl Store {
    /// Takes a reference to the newest moment that can be started from: the applied one, or
    /// while whole disks are copied the last one before that. A boundary is opened for it if
    /// need be, which is no recovery point.
    ///
    /// # Errors
    /// Refused unless the store is a replica that holds something, and when the chain of
    /// segments has reached its limit.
    pub fn pin_newest(&mut self, now: Timestamp) -> Result<BoundaryPin, StoreError> {
        self.refuse_unless_replica()?;
        let nothing = Refused::NothingApplied { purpose: "keep" };
        let number = self.change(|store| {
            match store.complete_apply() {
                // The last consistent moment does not need it.
                Err(StoreError::Damaged { .. }) if store.state.mixed.is_some() => {}
                outcome => outcome?,
            }
            match (&store.state.mixed, store.state.applied) {
                (Some(mixed), _) => Ok(mixed.boundary.ok_or(nothing)?),
                (None, None) => Err(nothing.into()),
                (None, Some(_)) => {
                    store.refuse_too_many_points()?;
                    let number = store.boundary_now(now)?;
                    store.reserve_what_fits()?;
                    Ok(number)
                }
            }
        })?;
        self.pin_boundary(number)
    }

    /// Takes a reference to a recovery point.
    ///
    /// # Errors
    /// [`Refused::NoPoint`], [`Refused::Committed`].
    pub fn pin_point(&self, sequence: Sequence) -> Result<BoundaryPin, StoreError> {
        Ok(self.pin(self.point_segment(sequence)?))
    }

    /// Takes a reference again that was held before a restart.
    ///
    /// # Errors
    /// [`Refused::NoBoundary`] when something has removed the boundary meanwhile.
    pub fn pin_boundary(&self, number: u64) -> Result<BoundaryPin, StoreError> {
        if let Phase::Committed(_) = self.state.phase {
            return Err(Refused::Committed.into());
        }
        let segment = self.state.segment(number);
        Ok(self.pin(segment.ok_or(Refused::NoBoundary { number })?))
    }

    fn pin(&self, segment: &SegmentState) -> BoundaryPin {
        let disks = self.state.disks.iter().zip(&segment.disks);
        BoundaryPin {
            pin: Pin::new(&self.pins, segment.number),
            sequence: segment.moment.sequence,
            disks: disks.map(|(disk, at)| (disk.id.clone(), at.size)).collect(),
        }
    }

    /// Opens one disk of a moment for reading. It stays readable while deltas are applied.
    ///
    /// # Errors
    /// [`Refused::NoDisk`]; [`Refused::NoBoundary`] for a reference to another store.
    pub fn reader_at(&self, pin: &BoundaryPin, disk: &DiskId) -> Result<PointReader, StoreError> {
        let at = self.disk_index(disk)?;
        let number = pin.boundary();
        let segment = self.state.segment(number);
        let segment = segment.filter(|_| pin.pin.is_of(&self.pins));
        let segment = segment.ok_or(Refused::NoBoundary { number })?;
        let view = View {
            chain: Arc::clone(&self.images[at].chain),
            boundary: Some(number),
            size: segment.disks[at].size.bytes(),
        };
        let pin = Pin::new(&self.pins, number);
        Ok(PointReader::new(view, pin, Arc::clone(&self.lock)))
    }

    /// Opens one disk of a test failover: what its guest writes goes to `<disk>.qcow2` in
    /// `folder`, which is made unless it is there. Whoever owns the folder removes the file when
    /// the test is over. What the guest flushed is there after a crash.
    ///
    /// # Errors
    /// As [`reader_at`](Self::reader_at); [`Refused::ImageInUse`]; [`StoreError::Damaged`]
    /// when the file is not one for this disk at this moment.
    pub fn scratch_disk(
        &self,
        pin: &BoundaryPin,
        disk: &DiskId,
        folder: &Path,
    ) -> Result<ScratchDisk, StoreError> {
        let reader = self.reader_at(pin, disk)?;
        let path = folder.join(format!("{disk}.qcow2"));
        if self.disk.kind(&path).context("look up", &path)?.is_none() {
            let new = folder.join(format!("{disk}.qcow2.new"));
            files::remove(self.disk.as_ref(), &new)?;
            let file = self.disk.create(&new).context("create", &new)?;
            create_overlay(file.as_ref(), reader.size(), Below::GivenOnOpen)
                .map_err(|error| image_error(&new, &error))?;
            self.disk.rename(&new, &path).context("rename", &new)?;
            files::sync_parent(self.disk.as_ref(), &path)?;
        }
        let file = self
            .disk
            .open(&path, Access::ReadWrite)
            .context("open", &path)?;
        let guard = ImageGuard::acquire(&file).context("lock", &path)?;
        let guard = guard.ok_or_else(|| Refused::ImageInUse { path: path.clone() })?;
        let overlay =
            Overlay::open(file, Access::ReadWrite).map_err(|error| image_error(&path, &error))?;
        if overlay.virtual_size() != reader.size() {
            let why = format!(
                "its disk has {} bytes, and {} at this moment",
                overlay.virtual_size(),
                reader.size()
            );
            let damage = Damage::Image { why };
            return Err(StoreError::Damaged { path, damage });
        }
        let (below, pin, lock) = reader.into_parts();
        Ok(ScratchDisk {
            path,
            layered: Layered { overlay, below },
            _pin: pin,
            _lock: lock,
            _guard: guard,
        })
    }
}

/// One disk of a test failover. Keeps its moment in the store, as a [`PointReader`] does.
#[derive(Debug)]
pub struct ScratchDisk {
    path: PathBuf,
    layered: Layered,
    _pin: Pin,
    _lock: Arc<dyn DiskFile>,
    _guard: ImageGuard,
}

impl ScratchDisk {
    /// The file that takes what the guest writes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl GuestDisk for ScratchDisk {
    fn size(&self) -> u64 {
        self.layered.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.layered.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.layered.write_at(bytes, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
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
