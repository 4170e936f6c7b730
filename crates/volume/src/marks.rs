//! Where the changes of a volume's disks are marked.

use std::ops::Range;
use std::sync::Arc;

use lifeboat_model::Sequence;

use crate::map::BlockMap;
use crate::map_file::MapFile;

/// The maps of all disks of a VM that begin with one moment. Clones are the same maps.
#[derive(Debug, Clone)]
pub struct MapSet {
    moment: Sequence,
    maps: Arc<[MapFile]>,
}

impl MapSet {
    /// `maps` are in the order of the volume's disks.
    pub(crate) fn new(moment: Sequence, maps: Vec<MapFile>) -> Self {
        Self {
            moment,
            maps: maps.into(),
        }
    }

    /// The moment since which these maps mark every change.
    #[must_use]
    pub fn moment(&self) -> Sequence {
        self.moment
    }

    pub(crate) fn maps(&self) -> &[MapFile] {
        &self.maps
    }
}

/// Where a volume marks changes, if its maps are kept by a [`Tracker`](crate::Tracker).
#[derive(Debug, Clone)]
pub enum Marking {
    Nowhere,
    In(MapSet),
}

/// Where a volume marks changes.
#[derive(Debug)]
pub(crate) enum Marks {
    Nothing,
    /// By disk, kept by the volume itself.
    Memory(Vec<BlockMap>),
    Files(MapSet),
}

impl Marks {
    pub(crate) fn mark(&self, disk: usize, blocks: Range<u64>) {
        match self {
            Self::Nothing => {}
            Self::Memory(maps) => maps[disk].mark(blocks),
            Self::Files(set) => set.maps[disk].mark(blocks),
        }
    }
}

impl From<Marking> for Marks {
    fn from(marking: Marking) -> Self {
        match marking {
            Marking::Nowhere => Self::Nothing,
            Marking::In(set) => Self::Files(set),
        }
    }
}
