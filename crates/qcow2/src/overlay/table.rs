//! Tables of two levels: L1 and L2, refcount table and refcount blocks.
//!
//! The first level is in memory as a whole. The second level is held in *slices* of at most
//! 4 KiB: clean ones up to a bound, changed ones until they were written.
//!
//! A second-level table that was allocated since the last flush is *fresh*: nothing on disk
//! points to it and its cluster reads as zeroes. A flush takes a [`Batch`] of all changes
//! and writes fresh tables, changes of old tables, and pointers to fresh tables at moments
//! of its own choosing.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use lifeboat_sys::disk::DiskFile;

/// Slices of clean content that are kept: 16 MiB, which maps 128 GiB of a disk.
const CLEAN_SLICES: usize = 4096;

const SLICE_SIZE: u64 = 4096;

/// Both levels of one pair of tables.
#[derive(Debug)]
pub(super) struct Tables {
    /// Offset of the first level in the file.
    pub offset: u64,
    /// The entries of the first level as they stand in the file; 0 is absent.
    pub pointers: Vec<u64>,
    /// The bits of a pointer that are the offset of the table.
    pointer_mask: u64,
    cluster_size: u64,
    slices: HashMap<u64, Slice>,
    changed: usize,
    fresh: BTreeSet<u64>,
    /// Fresh tables of a batch that is being written.
    in_batch: BTreeSet<u64>,
    tick: u64,
}

#[derive(Debug)]
struct Slice {
    bytes: Arc<Vec<u8>>,
    /// Differs from the file, and from the batch that is being written.
    changed: bool,
    /// Part of the batch that is being written.
    in_batch: bool,
    used: u64,
}

/// What a flush has to write of one pair of tables.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Parts of tables to which nothing on disk points yet.
    pub fresh: Vec<Piece>,
    /// Parts of tables that are in use.
    pub old: Vec<Piece>,
    /// Entries of the first level that point to fresh tables.
    pub pointers: Vec<Piece>,
    keys: Vec<u64>,
}

/// Bytes and where in the file they go.
#[derive(Debug)]
pub(super) struct Piece {
    pub offset: u64,
    pub bytes: Arc<Vec<u8>>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.old.is_empty() && self.pointers.is_empty()
    }
}

impl Tables {
    pub fn new(offset: u64, pointers: Vec<u64>, pointer_mask: u64, cluster_size: u64) -> Self {
        Self {
            offset,
            pointers,
            pointer_mask,
            cluster_size,
            slices: HashMap::new(),
            changed: 0,
            fresh: BTreeSet::new(),
            in_batch: BTreeSet::new(),
            tick: 0,
        }
    }

    /// Slices that wait for a flush.
    pub fn changed(&self) -> usize {
        self.changed
    }

    /// Offset of a second-level table in the file, or 0 if there is none.
    pub fn table(&self, index: u64) -> u64 {
        self.pointers[index as usize] & self.pointer_mask
    }

    /// Puts a fresh table behind the first-level entry `index`; its cluster reads as zeroes.
    pub fn adopt(&mut self, index: u64, pointer: u64) {
        self.pointers[index as usize] = pointer;
        self.fresh.insert(index);
    }

    /// Reads `out.len()` bytes of an entry of table `index`, which exists.
    pub fn read(
        &mut self,
        file: &dyn DiskFile,
        index: u64,
        at: u64,
        out: &mut [u8],
    ) -> io::Result<()> {
        let (key, start) = self.locate(index, at);
        let slice = self.load(file, index, key)?;
        out.copy_from_slice(&slice.bytes[start..start + out.len()]);
        Ok(())
    }

    /// Changes an entry of table `index`, which exists.
    pub fn write(
        &mut self,
        file: &dyn DiskFile,
        index: u64,
        at: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let (key, start) = self.locate(index, at);
        let slice = self.load(file, index, key)?;
        Arc::make_mut(&mut slice.bytes)[start..start + bytes.len()].copy_from_slice(bytes);
        if !slice.changed {
            slice.changed = true;
            self.changed += 1;
        }
        Ok(())
    }

    fn slice_size(&self) -> u64 {
        self.cluster_size.min(SLICE_SIZE)
    }

    fn slices_per_table(&self) -> u64 {
        self.cluster_size / self.slice_size()
    }

    fn locate(&self, index: u64, at: u64) -> (u64, usize) {
        let key = index * self.slices_per_table() + at / self.slice_size();
        (key, (at % self.slice_size()) as usize)
    }

    fn offset_of(&self, key: u64) -> u64 {
        self.table(key / self.slices_per_table())
            + key % self.slices_per_table() * self.slice_size()
    }

    fn load(&mut self, file: &dyn DiskFile, index: u64, key: u64) -> io::Result<&mut Slice> {
        self.tick += 1;
        let used = self.tick;
        if !self.slices.contains_key(&key) {
            let mut bytes = vec![0; self.slice_size() as usize];
            if !self.fresh.contains(&index) && !self.in_batch.contains(&index) {
                file.read_at(&mut bytes, self.offset_of(key))?;
            }
            self.make_room();
            self.slices.insert(
                key,
                Slice {
                    bytes: Arc::new(bytes),
                    changed: false,
                    in_batch: false,
                    used,
                },
            );
        }
        let slice = self
            .slices
            .get_mut(&key)
            .expect("BUG: the slice was put there");
        slice.used = used;
        Ok(slice)
    }

    /// Drops the half of the clean slices that was used longest ago, when there are too many.
    fn make_room(&mut self) {
        if self.slices.len() < CLEAN_SLICES + self.changed {
            return;
        }
        let clean = |slice: &Slice| !slice.changed && !slice.in_batch;
        let mut ages: Vec<u64> = self
            .slices
            .values()
            .filter(|slice| clean(slice))
            .map(|slice| slice.used)
            .collect();
        if ages.len() < CLEAN_SLICES / 2 {
            return;
        }
        let middle = ages.len() / 2;
        let (_, &mut median, _) = ages.select_nth_unstable(middle);
        self.slices
            .retain(|_, slice| !clean(slice) || slice.used > median);
    }

    /// Takes all changes; they count as written unless [`Self::give_back`] says otherwise.
    pub fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut changed: Vec<u64> = self
            .slices
            .iter()
            .filter(|(_, slice)| slice.changed)
            .map(|(&key, _)| key)
            .collect();
        changed.sort_unstable();
        for &key in &changed {
            let offset = self.offset_of(key);
            let is_fresh = self.fresh.contains(&(key / self.slices_per_table()));
            let slice = self
                .slices
                .get_mut(&key)
                .expect("BUG: a changed slice is held");
            slice.changed = false;
            slice.in_batch = true;
            let piece = Piece {
                offset,
                bytes: Arc::clone(&slice.bytes),
            };
            if is_fresh {
                batch.fresh.push(piece);
            } else {
                batch.old.push(piece);
            }
        }
        for &index in &self.fresh {
            batch.pointers.push(Piece {
                offset: self.offset + index * 8,
                bytes: Arc::new(self.pointers[index as usize].to_be_bytes().to_vec()),
            });
        }
        self.in_batch = std::mem::take(&mut self.fresh);
        self.changed = 0;
        batch.keys = changed;
        batch
    }

    /// The batch is on disk.
    pub fn settle(&mut self, batch: &Batch) {
        for key in &batch.keys {
            if let Some(slice) = self.slices.get_mut(key) {
                slice.in_batch = false;
            }
        }
        self.in_batch.clear();
    }

    /// The batch is not, or not wholly, on disk: its changes wait for the next flush.
    pub fn give_back(&mut self, batch: &Batch) {
        for key in &batch.keys {
            let slice = self
                .slices
                .get_mut(key)
                .expect("BUG: slices of a batch are held");
            slice.in_batch = false;
            if !slice.changed {
                slice.changed = true;
                self.changed += 1;
            }
        }
        self.fresh.append(&mut self.in_batch);
    }
}
