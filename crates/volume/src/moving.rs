//! Letting disks stand on something else while the guest uses them.
//!
//! A trail marks what the guest changes since the disks were last copied. Passes copy it until
//! little is left or enough passes have been made; then the guest waits while the rest is copied,
//! and the disks are exchanged. Until that instant nothing has happened to the volume.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskId};
use lifeboat_sys::disk::GuestDisk;

use crate::error::MoveError;
use crate::map::BlockMap;
use crate::map_file::marked_ranges;
use crate::volume::{Moving, Shared, Volume, VolumeDevice, lock, read_gate, write_gate};

/// A guest that writes faster than it is copied gets no more than this many passes.
const MAX_PASSES: u32 = 8;

/// As much is copied while the guest waits: less than half a second of a disk at 200 MB/s.
const FEW_BYTES: u64 = 32 << 20;

/// Copies the contents of a volume's disks to where they shall stand.
pub trait Mover {
    /// Copies everything, or again what has changed since the copy before, in ascending ranges
    /// of bytes by disk. The guest runs meanwhile.
    ///
    /// # Errors
    /// Nothing is moved then.
    fn copy(&mut self, changed: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()>;

    /// Copies the rest, makes everything durable, and answers what each disk stands on from now
    /// on. The guest waits meanwhile.
    ///
    /// # Errors
    /// Nothing is moved then.
    fn finish(&mut self, changed: &[(DiskId, Range<u64>)]) -> io::Result<Vec<VolumeDevice>>;
}

impl Volume {
    /// Moves all disks. Connections of the guest stay; marks of changes stay valid.
    ///
    /// # Errors
    /// When there is a view or another move, a copy fails, or what is answered does not fit the
    /// disks. They stand on what they stood on.
    pub fn move_disks(&self, mover: &mut dyn Mover) -> Result<(), MoveError> {
        let trail = Trail::begin(self.shared())?;
        let copy = |pass, source| MoveError::Copy { pass, source };
        mover.copy(None).map_err(|source| copy(0, source))?;
        for pass in 1..=MAX_PASSES {
            if trail.bytes() <= FEW_BYTES {
                break;
            }
            let changed = trail.take();
            mover
                .copy(Some(&changed))
                .map_err(|source| copy(pass, source))?;
        }
        let shared = self.shared();
        let mut era = write_gate(&shared.gate);
        let left = era.trail.take();
        let left = left.map_or_else(Vec::new, |maps| shared.ranges(&maps));
        let moved = mover
            .finish(&left)
            .map_err(|source| MoveError::Finish { source })?;
        let devices = shared.in_order(moved)?;
        for (disk, device) in shared.disks.iter().zip(devices) {
            disk.stand_on(device);
        }
        Ok(())
    }
}

/// The trail of a move, until it is dropped.
struct Trail<'a> {
    shared: &'a Shared,
}

impl<'a> Trail<'a> {
    fn begin(shared: &'a Shared) -> Result<Self, MoveError> {
        let mut course = lock(&shared.course);
        if course.moving == Moving::Yes {
            return Err(MoveError::Moving);
        }
        let maps = shared.new_maps();
        let mut era = write_gate(&shared.gate);
        if era.view.is_some() {
            return Err(MoveError::Frozen);
        }
        era.trail = Some(maps);
        course.moving = Moving::Yes;
        Ok(Self { shared })
    }

    fn bytes(&self) -> u64 {
        let era = read_gate(&self.shared.gate);
        let maps = era.trail.iter().flat_map(|maps| maps.iter());
        maps.map(BlockMap::marked).sum::<u64>() * BLOCK_SIZE
    }

    /// What has changed so far; a new trail begins.
    fn take(&self) -> Vec<(DiskId, Range<u64>)> {
        let maps = self.shared.new_maps();
        let old = write_gate(&self.shared.gate).trail.replace(maps);
        old.map_or_else(Vec::new, |maps| self.shared.ranges(&maps))
    }
}

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        write_gate(&self.shared.gate).trail = None;
        lock(&self.shared.course).moving = Moving::No;
    }
}

impl Shared {
    fn new_maps(&self) -> Arc<Vec<BlockMap>> {
        Arc::new(
            self.disks
                .iter()
                .map(|disk| BlockMap::new(disk.size))
                .collect(),
        )
    }

    fn ranges(&self, maps: &[BlockMap]) -> Vec<(DiskId, Range<u64>)> {
        let mut ranges = Vec::new();
        for (disk, map) in self.disks.iter().zip(maps) {
            let marked = marked_ranges(map, disk.size).into_iter();
            ranges.extend(marked.map(|range| (disk.id.clone(), range)));
        }
        ranges
    }

    /// The devices in the order of the disks, if there is exactly one of the right size for each.
    fn in_order(&self, mut moved: Vec<VolumeDevice>) -> Result<Vec<Arc<dyn GuestDisk>>, MoveError> {
        let mut devices = Vec::new();
        for disk in &self.disks {
            let place = moved.iter().position(|device| device.id == disk.id);
            let place = place.ok_or(MoveError::WrongDisks)?;
            let device = moved.swap_remove(place).device;
            if device.size() != disk.size.bytes() {
                return Err(MoveError::Size {
                    disk: disk.id.clone(),
                    size: disk.size,
                    moved: device.size(),
                });
            }
            devices.push(device);
        }
        if moved.is_empty() {
            Ok(devices)
        } else {
            Err(MoveError::WrongDisks)
        }
    }
}
