//! The journal: an append-only file of checksummed records, the store's only commit point.
//!
//! A record is durable when [`Journal::append`] returns. A record that a power loss tore is
//! the last one and is ignored; an unreadable record with intact ones behind it is damage,
//! because then something that was promised is gone.
//!
//! ```text
//! 0   4  magic "LBJ1"
//! 4   4  payload length in bytes, little endian, as all numbers
//! 8   8  record number within this file, from 0
//! 16 16  BLAKE3 of bytes 0..16 and the payload, first 16 bytes
//! 32  n  payload: one record as JSON
//!     -  zeroes up to a multiple of 8
//! ```
//!
//! Opening a store writes a new journal that begins with a checkpoint of the state. So what
//! was read is durable before anything is built on it, even if the page cache held more
//! than the disk after a failed sync.

use std::io::ErrorKind;
use std::sync::Arc;

use lifeboat_sys::disk::{Access, DiskFile, DiskPort};

use crate::damage::Damage;
use crate::error::{IoContext, StoreError};
use crate::layout::Layout;
use crate::record::{Record, State};

const MAGIC: [u8; 4] = *b"LBJ1";
const HEADER: usize = 32;
const ALIGNMENT: usize = 8;

/// A longer journal than this is not ours: a checkpoint is written long before.
const MAX_LEN: u64 = 64 << 20;

/// After so many bytes a new journal is begun.
const ROTATE_AT: u64 = 1 << 20;

/// The journal of an open store.
#[derive(Debug)]
pub(crate) struct Journal {
    disk: Arc<dyn DiskPort>,
    layout: Layout,
    file: Arc<dyn DiskFile>,
    len: u64,
    next: u64,
}

impl Journal {
    /// Begins a new journal that holds `state` alone, in place of any that exists.
    pub(crate) fn begin(
        disk: &Arc<dyn DiskPort>,
        layout: &Layout,
        state: &State,
    ) -> Result<Self, StoreError> {
        let new = layout.new_journal();
        match disk.unlink(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context("remove", &new);
            }
            _ => {}
        }
        let file = disk.create(&new).context("create", &new)?;
        let record = encode(0, &Record::Checkpoint(Box::new(state.clone())));
        file.write_at(&record, 0).context("write", &new)?;
        file.sync().context("sync", &new)?;
        disk.rename(&new, &layout.journal())
            .context("rename", &new)?;
        disk.sync_dir(layout.root())
            .context("sync", layout.root())?;
        Ok(Self {
            disk: Arc::clone(disk),
            layout: layout.clone(),
            file,
            len: record.len() as u64,
            next: 1,
        })
    }

    /// Makes a record durable. `state` is what follows from it.
    pub(crate) fn append(&mut self, record: &Record, state: &State) -> Result<(), StoreError> {
        if self.len >= ROTATE_AT {
            *self = Self::begin(&self.disk, &self.layout, state)?;
            return Ok(());
        }
        let bytes = encode(self.next, record);
        let path = self.layout.journal();
        self.file
            .write_at(&bytes, self.len)
            .context("write", &path)?;
        self.file.sync().context("sync", &path)?;
        self.len += bytes.len() as u64;
        self.next += 1;
        Ok(())
    }
}

/// Reads the state that the journal on disk leads to.
pub(crate) fn read(disk: &dyn DiskPort, layout: &Layout) -> Result<State, StoreError> {
    let path = layout.journal();
    let damaged = |damage| StoreError::Damaged {
        path: path.clone(),
        damage,
    };
    let file = match disk.open(&path, Access::ReadOnly) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged(Damage::Missing)),
        outcome => outcome.context("open", &path)?,
    };
    let len = file.len().context("measure", &path)?;
    if len > MAX_LEN {
        return Err(damaged(Damage::Length {
            found: len,
            expected: MAX_LEN,
        }));
    }
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).context("read", &path)?;
    replay(&bytes).map_err(damaged)
}

fn replay(bytes: &[u8]) -> Result<State, Damage> {
    let mut position = 0;
    let mut number = 0;
    let mut state: Option<State> = None;
    while let Some((payload, end)) = record_at(bytes, position, number) {
        let record: Record = serde_json::from_slice(payload).map_err(|_| Damage::JournalOrder {
            number,
            why: "it has an unknown form",
        })?;
        let next = match (state, record) {
            (None, Record::Checkpoint(checkpoint)) => Ok(*checkpoint),
            (None, _) => Err("the first record is no checkpoint"),
            (Some(state), record) => state.after(record),
        };
        state = Some(next.map_err(|why| Damage::JournalOrder { number, why })?);
        position = end;
        number += 1;
    }
    let later_is_intact = (position + ALIGNMENT..bytes.len())
        .step_by(ALIGNMENT)
        .any(|later| {
            (number..=number + 64).any(|number| record_at(bytes, later, number).is_some())
        });
    if later_is_intact {
        return Err(Damage::JournalRecord { number });
    }
    state.ok_or(Damage::EmptyJournal)
}

/// The payload of an intact record with this number, and where the next one begins.
fn record_at(bytes: &[u8], position: usize, number: u64) -> Option<(&[u8], usize)> {
    let header = bytes.get(position..position.checked_add(HEADER)?)?;
    if header[..4] != MAGIC || header[8..16] != number.to_le_bytes() {
        return None;
    }
    let len = u32::from_le_bytes(
        header[4..8]
            .try_into()
            .expect("BUG: four bytes are four bytes"),
    ) as usize;
    let payload = bytes.get(position + HEADER..(position + HEADER).checked_add(len)?)?;
    let end = (position + HEADER + len).next_multiple_of(ALIGNMENT);
    (digest(&header[..16], payload) == header[16..32]).then_some((payload, end))
}

fn encode(number: u64, record: &Record) -> Vec<u8> {
    let payload = serde_json::to_vec(record).expect("BUG: a record can be written as JSON");
    let len = u32::try_from(payload.len()).expect("BUG: a record is below 4 GiB");
    let mut bytes = Vec::with_capacity(HEADER + payload.len() + ALIGNMENT);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    let digest = digest(&bytes, &payload);
    bytes.extend_from_slice(&digest);
    bytes.extend_from_slice(&payload);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

fn digest(header: &[u8], payload: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header).update(payload);
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

#[cfg(test)]
mod tests {
    use lifeboat_model::{Lineage, LineageId, RelationshipId, VmId};

    use super::*;
    use crate::record::Phase;

    fn state() -> State {
        State {
            vm: VmId::from_bytes([1; 16]),
            relationship: RelationshipId::from_bytes([2; 16]),
            lineage: Lineage {
                counter: 1,
                id: LineageId::from_bytes([3; 16]),
                forked_from: None,
            },
            ancestors: Vec::new(),
            disks: Vec::new(),
            applied: None,
            blobs: Vec::new(),
            remembered: Vec::new(),
            applying: None,
            segments: Vec::new(),
            next_segment: 1,
            merging: None,
            mixed: None,
            unverified: false,
            phase: Phase::Replica,
        }
    }

    fn three_records() -> (Vec<u8>, [usize; 3]) {
        let mut bytes = encode(0, &Record::Checkpoint(Box::new(state())));
        let first = bytes.len();
        bytes.extend(encode(1, &Record::MergeFinished));
        let second = bytes.len();
        bytes.extend(encode(2, &Record::MergeFinished));
        let third = bytes.len();
        (bytes, [first, second, third])
    }

    #[test]
    fn a_torn_last_record_is_ignored() {
        let (bytes, [_, second, third]) = three_records();
        for len in second..third {
            assert_eq!(replay(&bytes[..len]), Ok(state()), "cut at {len}");
        }
        for position in second..third - ALIGNMENT {
            let mut torn = bytes.clone();
            torn[position] ^= 0x10;
            assert_eq!(replay(&torn), Ok(state()), "changed at {position}");
        }
    }

    #[test]
    fn an_unreadable_record_before_an_intact_one_is_damage() {
        let (bytes, [first, second, _]) = three_records();
        for position in first..first + HEADER + 4 {
            let mut rotten = bytes.clone();
            rotten[position] ^= 0x10;
            assert_eq!(
                replay(&rotten),
                Err(Damage::JournalRecord { number: 1 }),
                "changed at {position}"
            );
        }
        assert!(second > first);
    }

    #[test]
    fn a_journal_without_a_checkpoint_is_damage() {
        assert_eq!(replay(&[]), Err(Damage::EmptyJournal));
        assert!(matches!(
            replay(&encode(0, &Record::MergeFinished)),
            Err(Damage::JournalOrder { number: 0, .. })
        ));
    }

    #[test]
    fn a_record_that_cannot_follow_is_damage() {
        let mut bytes = encode(0, &Record::Checkpoint(Box::new(state())));
        bytes.extend(encode(1, &Record::Committed));
        assert!(matches!(
            replay(&bytes),
            Err(Damage::JournalOrder { number: 1, .. })
        ));
    }
}
