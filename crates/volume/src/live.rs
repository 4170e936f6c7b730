//! The disk that the guest writes to.

use std::io;
use std::sync::Arc;

use lifeboat_nbd::{Access, ContextName, Export, Extent, Granularity, Holes};
use lifeboat_sys::disk::GuestDisk;

use crate::extents::allocation;
use crate::map::blocks_of;
use crate::volume::{Disk, Shared, read_gate};

/// A long discard or zeroing is done in steps, so that a freeze, and every write that
/// waits behind it, waits for one step at most.
const EFFECT_STEP: u64 = 16 << 20;

/// One disk of a volume, read-write.
pub(crate) struct LiveExport {
    shared: Arc<Shared>,
    index: usize,
}

impl LiveExport {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { shared, index }
    }

    fn disk(&self) -> &Disk {
        &self.shared.disks[self.index]
    }

    /// Changes a range while no freeze can happen: marked, old blocks kept, then done. What
    /// fails midway has been marked, too.
    fn change(
        &self,
        offset: u64,
        length: u64,
        act: impl FnOnce(&dyn GuestDisk) -> io::Result<()>,
    ) -> io::Result<()> {
        let blocks = blocks_of(offset, length);
        if blocks.is_empty() {
            return Ok(());
        }
        let era = read_gate(&self.shared.gate);
        era.marks.mark(self.index, blocks.clone());
        if let Some(trail) = &era.trail {
            trail[self.index].mark(blocks.clone());
        }
        if let Some(view) = &era.view {
            view.disks[self.index].preserve(&view.control, blocks);
        }
        act(self.disk().device().as_ref())
    }

    fn change_in_steps(
        &self,
        offset: u64,
        length: u64,
        act: impl Fn(&dyn GuestDisk, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let stop = end.min((at / EFFECT_STEP + 1) * EFFECT_STEP);
            self.change(at, stop - at, |device| act(device, at, stop - at))?;
            at = stop;
        }
        Ok(())
    }
}

impl Export for LiveExport {
    fn size(&self) -> u64 {
        self.disk().size.bytes()
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        vec![ContextName::allocation()]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk().device().read_at(into, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(offset, data.len() as u64, |device| {
            device.write_at(data, offset)
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, holes: Holes) -> io::Result<()> {
        self.change_in_steps(offset, length, |device, at, length| {
            device.zero(at, length)?;
            match holes {
                Holes::Allowed => Ok(()),
                Holes::Forbidden => device.allocate(at, length),
            }
        })
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change_in_steps(offset, length, |device, at, length| device.zero(at, length))
    }

    fn flush(&self) -> io::Result<()> {
        self.shared.flush(self.index)
    }

    fn extents(
        &self,
        _context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let device = self.disk().device();
        let next_data = |at| device.next_data(at);
        allocation(next_data, offset..offset + length, limit)
    }
}
