//! Disks, maps, deltas and stores, as small as they can be without losing what may go wrong.

use lifeboat_model::{DeltaId, Lineage, LineageId, Receipt, Sequence};

/// Blocks of a disk. Two, so that a delta can lack one.
pub const BLOCKS: usize = 2;
/// Recovery points that a store keeps.
pub const POINTS: usize = 3;

/// What each block holds: the number of the guest write that it took last, 0 before any.
pub type Disk = [u8; BLOCKS];

/// Blocks, one bit each.
pub type Blocks = u8;

/// The blocks in which two disks differ.
#[must_use]
pub fn difference(one: &Disk, other: &Disk) -> Blocks {
    (0..BLOCKS)
        .filter(|&block| one[block] != other[block])
        .fold(0, |blocks, block| blocks | 1 << block)
}

/// Which blocks changed since which moment; oldest map first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Maps(Vec<(Sequence, Blocks)>);

impl Maps {
    #[must_use]
    pub fn since(moment: Sequence) -> Self {
        Self(vec![(moment, 0)])
    }

    /// As the port of the hypervisor promises: whatever was tracked before `moment` is dropped.
    pub fn start(maps: &mut Option<Self>, moment: Sequence) {
        match maps {
            Some(known) if known.0.iter().any(|(begun, _)| *begun == moment) => {
                known.forget(moment);
            }
            Some(_) | None => *maps = Some(Self::since(moment)),
        }
    }

    pub fn freeze(&mut self, moment: Sequence) {
        self.0.push((moment, 0));
    }

    pub fn mark(&mut self, block: usize) {
        if let Some((_, blocks)) = self.0.last_mut() {
            *blocks |= 1 << block;
        }
    }

    pub fn mark_all(&mut self, changed: Blocks) {
        if let Some((_, blocks)) = self.0.last_mut() {
            *blocks |= changed;
        }
    }

    /// The maps that lie before the moment are not needed any more.
    pub fn forget(&mut self, moment: Sequence) {
        if self.0.iter().any(|(begun, _)| *begun == moment) {
            self.0.retain(|(begun, _)| *begun >= moment);
        }
    }

    #[must_use]
    pub fn first(&self) -> Option<Sequence> {
        self.0.first().map(|(begun, _)| *begun)
    }

    /// All that changed since the moment, or since tracking began.
    #[must_use]
    pub fn changed(&self, since: Option<Sequence>) -> Blocks {
        self.0
            .iter()
            .filter(|(begun, _)| since.is_none_or(|since| *begun >= since))
            .fold(0, |all, (_, blocks)| all | blocks)
    }
}

/// A delta, and what the disk was when it was frozen, which only the test knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Delta {
    pub lineage: LineageId,
    pub sequence: Sequence,
    /// Absent for a delta that closes a copy.
    pub base: Option<Sequence>,
    pub blocks: Blocks,
    pub frozen: Disk,
}

impl Delta {
    /// Of everything that the delta says.
    #[must_use]
    pub fn id(&self) -> DeltaId {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(self.lineage.as_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.number().to_le_bytes());
        bytes[24] = self.blocks;
        for block in 0..BLOCKS {
            if self.blocks & (1 << block) != 0 {
                bytes[25 + block] = self.frozen[block];
            }
        }
        let base = self.base.map_or(u64::MAX, Sequence::number);
        bytes[28..32].copy_from_slice(&base.to_le_bytes()[..4]);
        DeltaId::from_bytes(bytes)
    }

    #[must_use]
    pub fn receipt(&self) -> Receipt {
        Receipt {
            lineage: self.lineage,
            sequence: self.sequence,
            id: self.id(),
        }
    }

    pub fn apply(&self, disk: &mut Disk) {
        for (block, (held, frozen)) in disk.iter_mut().zip(self.frozen).enumerate() {
            if self.blocks & (1 << block) != 0 {
                *held = frozen;
            }
        }
    }
}

/// What a store says no to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreRefused {
    OtherLineage,
    NotContinuous,
}

/// What a store is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoreRole {
    Replica,
    FailedOver { lineage: Lineage, guest: Disk },
    Committed,
}

/// What a replica's disk was at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    pub lineage: LineageId,
    pub sequence: Sequence,
    pub disk: Disk,
}

/// A replica's folder; its head is the host's disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    pub lineage: LineageId,
    pub role: StoreRole,
    /// The newest moment applied, and what the disk was then.
    pub applied: Option<(Sequence, Disk)>,
    /// A copy is under way: the head holds no moment.
    pub copy: Option<Sequence>,
    pub tip: Option<(Sequence, DeltaId)>,
    pub pending: Vec<Delta>,
    pub points: Vec<Point>,
}

impl Store {
    #[must_use]
    pub const fn empty(lineage: LineageId) -> Self {
        Self {
            lineage,
            role: StoreRole::Replica,
            applied: None,
            copy: None,
            tip: None,
            pending: Vec::new(),
            points: Vec::new(),
        }
    }

    /// # Errors
    /// When the number is out of date, or a first copy finds something.
    pub fn begin_copy(
        &mut self,
        head: &mut Disk,
        copy: Sequence,
        first: bool,
    ) -> Result<(), StoreRefused> {
        if self.copy == Some(copy) {
            return Ok(());
        }
        let newest = self.tip.map(|(tip, _)| tip).max(self.copy);
        if newest.is_some_and(|newest| copy <= newest) || (first && self.applied.is_some()) {
            return Err(StoreRefused::NotContinuous);
        }
        while self.apply_next(head).is_some() {}
        self.copy = Some(copy);
        Ok(())
    }

    /// # Errors
    /// When it does not continue what is here.
    pub fn receive(&mut self, delta: &Delta) -> Result<Receipt, StoreRefused> {
        if delta.lineage != self.lineage {
            return Err(StoreRefused::OtherLineage);
        }
        if self.tip == Some((delta.sequence, delta.id())) {
            return Ok(delta.receipt());
        }
        let newest = self.tip.map(|(tip, _)| tip).max(self.copy);
        let continues = match (delta.base, self.copy) {
            (Some(base), copy) => self
                .tip
                .is_some_and(|(tip, _)| base <= tip && copy.is_none_or(|copy| copy < tip)),
            (None, Some(_)) => true,
            (None, None) => false,
        };
        if !continues || newest.is_some_and(|newest| delta.sequence <= newest) {
            return Err(StoreRefused::NotContinuous);
        }
        self.tip = Some((delta.sequence, delta.id()));
        self.pending.push(delta.clone());
        Ok(delta.receipt())
    }

    /// A copy that no delta here closes.
    #[must_use]
    pub fn open_copy(&self) -> Option<Sequence> {
        self.copy
            .filter(|copy| self.tip.is_none_or(|(tip, _)| tip < *copy))
    }

    /// Applies the oldest delta that waits, makes a point of it, and returns it.
    pub fn apply_next(&mut self, head: &mut Disk) -> Option<Delta> {
        if self.pending.is_empty() {
            return None;
        }
        let delta = self.pending.remove(0);
        delta.apply(head);
        if delta.base.is_none() {
            self.copy = None;
        }
        self.applied = Some((delta.sequence, *head));
        self.points.push(Point {
            lineage: delta.lineage,
            sequence: delta.sequence,
            disk: *head,
        });
        if self.points.len() > POINTS {
            self.points.remove(0);
        }
        Some(delta)
    }
}
