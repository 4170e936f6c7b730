//! A frozen view of a VM of the volume driver.

use std::sync::Arc;

use lifeboat_model::{Consistency, Timestamp};
use lifeboat_volume::FrozenView as VolumeView;

use super::{Slot, lock};
use crate::port::{DiskSource, FrozenView};

/// A view before it knows its slot.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) view: VolumeView,
    pub(crate) captured_at: Timestamp,
    pub(crate) consistency: Consistency,
    pub(crate) sources: Vec<DiskSource>,
}

/// A view that lets its machine know of its end.
#[derive(Debug)]
pub(crate) struct KeptView {
    /// Absent only while it is dropped.
    view: Option<VolumeView>,
    captured_at: Timestamp,
    consistency: Consistency,
    sources: Vec<DiskSource>,
    slot: Slot,
}

impl Frozen {
    pub(crate) fn kept_in(self, slot: &Slot) -> KeptView {
        KeptView {
            view: Some(self.view),
            captured_at: self.captured_at,
            consistency: self.consistency,
            sources: self.sources,
            slot: Arc::clone(slot),
        }
    }
}

impl FrozenView for KeptView {
    fn captured_at(&self) -> Timestamp {
        self.captured_at
    }

    fn consistency(&self) -> Consistency {
        self.consistency
    }

    fn sources(&self) -> &[DiskSource] {
        &self.sources
    }
}

impl Drop for KeptView {
    fn drop(&mut self) {
        // Its readers end first, which may take a while: not under the lock.
        drop(self.view.take());
        if let Some(machine) = lock(&self.slot).as_mut() {
            machine.activity_has_ended();
        }
    }
}
