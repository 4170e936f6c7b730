//! Moving the disks of a VM, during which it can be asked other things.

use std::io;
use std::ops::Range;

use lifeboat_model::{DiskId, VmId};
use lifeboat_sys::disk::DiskPort;
use lifeboat_volume::{Mover, VolumeDevice};

use super::disks::open_backing;
use super::{Slot, lock};
use crate::error::HypervisorError;
use crate::port::{Backing, DiskMover};

/// Moves the disks of the machine in `slot`. It can be asked other things meanwhile.
pub(crate) fn move_disks(
    slot: &Slot,
    vm: VmId,
    port: &dyn DiskPort,
    mover: &mut dyn DiskMover,
) -> Result<(), HypervisorError> {
    let volume = {
        let mut place = lock(slot);
        let machine = place.as_mut().ok_or(HypervisorError::Unknown { vm })?;
        machine.begin_move()?
    };
    let ending = MoveEnds(slot);
    let mut adapter = Adapter {
        mover,
        vm,
        port,
        backings: Vec::new(),
    };
    let moved = volume.move_disks(&mut adapter);
    drop(volume);
    moved.map_err(|source| HypervisorError::Move { vm, source })?;
    let backings = adapter.backings;
    if let Some(machine) = lock(slot).as_mut() {
        machine.moved(backings);
    }
    drop(ending);
    Ok(())
}

/// Lets a machine be used again when a move has ended, however it did.
struct MoveEnds<'a>(&'a Slot);

impl Drop for MoveEnds<'_> {
    fn drop(&mut self) {
        if let Some(machine) = lock(self.0).as_mut() {
            machine.activity_has_ended();
        }
    }
}

/// A mover of the port as one of a volume.
struct Adapter<'a> {
    mover: &'a mut dyn DiskMover,
    vm: VmId,
    port: &'a dyn DiskPort,
    /// What it has answered.
    backings: Vec<(DiskId, Backing)>,
}

impl Mover for Adapter<'_> {
    fn copy(&mut self, changed: Option<&[(DiskId, Range<u64>)]>) -> io::Result<()> {
        self.mover.copy(changed)
    }

    fn finish(&mut self, changed: &[(DiskId, Range<u64>)]) -> io::Result<Vec<VolumeDevice>> {
        self.backings = self.mover.finish(changed)?;
        let device = |(id, backing): &(DiskId, Backing)| {
            let device = open_backing(self.port, self.vm, id, backing);
            Ok(VolumeDevice {
                id: id.clone(),
                device: device.map_err(io::Error::other)?,
            })
        };
        self.backings.iter().map(device).collect()
    }
}
