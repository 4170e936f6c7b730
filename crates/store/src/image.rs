//! One disk of the replica while the store is open: the head and the segments over it.
//!
//! The chain is shared with readers. The applier makes preimages visible in it before it
//! overwrites the head; see `reader.rs` for why that is enough.

use std::sync::{Arc, PoisonError, RwLock};

use lifeboat_model::DiskId;
use lifeboat_sys::disk::{DiskFile, ImageGuard};

use crate::digest::DigestTable;
use crate::segment::{Segment, SegmentWriter};

/// What readers of a disk share with its writer.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) head: Arc<dyn DiskFile>,
    segments: RwLock<Vec<Arc<Segment>>>,
}

impl Chain {
    pub(crate) fn new(head: Arc<dyn DiskFile>, segments: Vec<Arc<Segment>>) -> Self {
        Self {
            head,
            segments: RwLock::new(segments),
        }
    }

    /// The segments from a boundary on, oldest first.
    pub(crate) fn from(&self, boundary: u64) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments
            .iter()
            .filter(|segment| segment.number() >= boundary)
            .cloned()
            .collect()
    }

    pub(crate) fn segment(&self, number: u64) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments
            .iter()
            .find(|segment| segment.number() == number)
            .cloned()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<Arc<Segment>>)) {
        change(
            &mut self
                .segments
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

/// One disk of the replica.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) id: DiskId,
    pub(crate) chain: Arc<Chain>,
    /// Takes preimages; absent while there is no open segment.
    pub(crate) writer: Option<SegmentWriter>,
    pub(crate) digests: Arc<DigestTable>,
    /// Keeps QEMU away while the store is open and the VM is off.
    pub(crate) guards: Vec<ImageGuard>,
}
