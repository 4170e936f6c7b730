//! What a store is and how it stands, from its journal alone.

use std::path::{Path, PathBuf};

use lifeboat_model::contract::PointKind;
use lifeboat_model::{DiskId, DiskSize, Lineage, RelationshipId, Sequence, VmId};
use lifeboat_sys::disk::{DiskPort, EntryKind};

use crate::damage::Damage;
use crate::error::{IoContext, StoreError};
use crate::layout::Layout;
use crate::note;
use crate::record::{DiskState, Failover, Phase, State, Target};
use crate::recover::holder_of;
use crate::store::{Store, read_state};

/// A store in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub vm: VmId,
    pub relationship: RelationshipId,
    /// The lineage that the store follows, or has begun.
    pub lineage: Lineage,
    /// Oldest first, abandoned lineages included.
    pub ancestors: Vec<Lineage>,
    pub disks: Vec<(DiskId, DiskSize)>,
    pub standing: Standing,
    /// The heads are being copied into, or were until that was given up.
    pub heads_are_mixed: bool,
    /// How many recovery points it has.
    pub points: usize,
    /// No number above this one names anything in the store.
    pub newest: Sequence,
}

/// How a store stands. What opening it would complete counts as complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A replica that never held a moment of all disks.
    Empty,
    /// A replica that holds one.
    Replica,
    FailedOver {
        /// What the VM writes from now on.
        lineage: Lineage,
        /// The recovery point that it was started from; absent for the newest moment.
        point: Option<Sequence>,
        /// What kind of moment that was.
        kind: PointKind,
    },
    /// The heads are the VM's own disks.
    Committed,
}

/// What can be read of a store whoever has it open.
#[derive(Debug)]
pub struct Peek {
    pub summary: Summary,
    /// What its owner noted, or why that cannot be read.
    pub note: Result<Option<Vec<u8>>, StoreError>,
    /// Who has the store open.
    pub holder: Option<String>,
}

impl Store {
    /// The store in short.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let spooled = self.spool.iter().map(|delta| delta.moment.sequence);
        let broken = self.broken_spool.iter().map(|broken| broken.sequence);
        let newest = spooled.chain(broken).max().unwrap_or(Sequence::ZERO);
        let summary = self.state.summary();
        Summary {
            newest: summary.newest.max(newest),
            ..summary
        }
    }

    /// Reads what a store is while another process may have it, and changes nothing. What waits
    /// in its spool is not looked at.
    ///
    /// # Errors
    /// [`Refused::NoStore`](crate::Refused::NoStore); [`StoreError::Damaged`] for a journal that cannot be read, and
    /// where something other than a folder or a file lies where the store has one.
    pub fn peek(disk: &dyn DiskPort, root: &Path) -> Result<Peek, StoreError> {
        let layout = Layout::new(root.to_owned());
        let state = read_state(disk, &layout)?;
        refuse_strange_files(disk, &layout, &state)?;
        Ok(Peek {
            summary: state.summary(),
            note: note::read(disk, &layout),
            holder: holder_of(disk, &layout)?,
        })
    }
}

impl State {
    fn summary(&self) -> Summary {
        let remembered = self.remembered.iter().map(|(sequence, _)| *sequence);
        let boundaries = self.segments.iter().map(|segment| segment.moment.sequence);
        let copy = self.mixed.iter().map(|mixed| mixed.sequence);
        let half_applied = self.applying.iter().map(|applying| applying.sequence);
        let forks = self.ancestors.iter().chain([&self.lineage]);
        let forks = forks.filter_map(|lineage| lineage.forked_from.map(|(_, left_at)| left_at));
        let newest = remembered
            .chain(boundaries)
            .chain(copy)
            .chain(half_applied)
            .chain(forks)
            .fold(self.applied_sequence(), Sequence::max);
        Summary {
            vm: self.vm,
            relationship: self.relationship,
            lineage: self.lineage,
            ancestors: self.ancestors.clone(),
            disks: self
                .disks
                .iter()
                .map(|disk| (disk.id.clone(), disk.size))
                .collect(),
            standing: self.standing(),
            heads_are_mixed: self.mixed.is_some(),
            points: self
                .segments
                .iter()
                .filter(|segment| segment.is_point)
                .count(),
            newest,
        }
    }

    fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Replica if self.applied.is_some() => Standing::Replica,
            Phase::Replica => Standing::Empty,
            Phase::FailingOver(failover) | Phase::FailedOver(failover) => {
                let (point, kind) = self.started_from(failover);
                Standing::FailedOver {
                    lineage: failover.lineage,
                    point,
                    kind,
                }
            }
            Phase::Committing(_) | Phase::Committed(_) => Standing::Committed,
        }
    }

    fn started_from(&self, failover: &Failover) -> (Option<Sequence>, PointKind) {
        let points = self.segments.iter().filter(|segment| segment.is_point);
        match failover.target {
            Target::Segment(number) => points
                .filter(|segment| segment.number == number)
                .map(|segment| (Some(segment.moment.sequence), segment.kind))
                .next()
                .unwrap_or((None, PointKind::Standard)),
            Target::Newest => {
                let applied = self.applied_sequence();
                let same = points.filter(|segment| segment.moment.sequence == applied);
                (
                    None,
                    same.map(|segment| segment.kind)
                        .next_back()
                        .unwrap_or_default(),
                )
            }
        }
    }
}

/// Refuses what was put in the place of the store's own folders and files.
fn refuse_strange_files(
    disk: &dyn DiskPort,
    layout: &Layout,
    state: &State,
) -> Result<(), StoreError> {
    refuse_unless(disk, layout.disks(), EntryKind::Folder)?;
    for DiskState { id, .. } in &state.disks {
        refuse_unless(disk, layout.disk(id), EntryKind::Folder)?;
        refuse_unless(disk, layout.head(id), EntryKind::File)?;
    }
    Ok(())
}

fn refuse_unless(disk: &dyn DiskPort, path: PathBuf, wanted: EntryKind) -> Result<(), StoreError> {
    let damage = match disk.kind(&path).context("look up", &path)? {
        Some(found) if found == wanted => return Ok(()),
        Some(_) => Damage::Strange,
        None => Damage::Missing,
    };
    Err(StoreError::Damaged { path, damage })
}
