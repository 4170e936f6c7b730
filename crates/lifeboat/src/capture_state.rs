//! What a primary remembers between captures, in a small file of its own.
//!
//! A sequence number is drawn and saved before the moment it names is frozen, and never again:
//! a capture that fails leaves a gap, which does no harm. The delta to build on is changed by
//! a receipt only. Every save writes the file anew under another name, syncs and renames it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use lifeboat_model::{DeltaId, DiskId, LineageId, MAX_DISKS, Receipt, RelationshipId, Sequence};
use serde::{Deserialize, Serialize};

use crate::exit::Failure;
use crate::new_file::{NewFile, folder_of, sync_folder_of};

/// The version of the file that this build reads and writes.
const VERSION: u32 = 1;

/// The most bytes a state takes, with room to spare.
const MAX_BYTES: u64 = 1 << 20;

/// How many captures without a receipt are remembered with their ids.
const REMEMBERED: usize = 64;

/// The state of a relationship on the primary's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureState {
    version: u32,
    pub relationship: RelationshipId,
    pub lineage: LineageId,
    pub disks: Vec<DiskId>,
    /// The newest receipt of the replica; absent before the first.
    pub receipt: Option<Receipt>,
    /// The highest sequence number ever drawn; zero before the first.
    pub drawn: Sequence,
    /// What was captured since the newest receipt, oldest first.
    captured: Vec<Captured>,
}

/// A delta that was captured, and may or may not have reached the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Captured {
    sequence: Sequence,
    id: DeltaId,
}

/// Why a state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("read {} as the state of a capture", path.display())]
    Format {
        path: PathBuf,
        source: serde_json::Error,
    },

    #[error("{} has version {found} and this build reads version {VERSION}: run the release that wrote it", path.display())]
    Version { path: PathBuf, found: u32 },

    #[error("{} names no disk, or more than {MAX_DISKS}, or one twice", path.display())]
    Disks { path: PathBuf },

    #[error("the receipt is for lineage {theirs}, this state is of {ours}")]
    ReceiptOfOtherLineage { theirs: LineageId, ours: LineageId },

    #[error("the receipt is for moment {sequence}, which was never drawn here")]
    ReceiptForNothing { sequence: Sequence },

    #[error("the receipt is for moment {sequence}, but the receipt for {newest} is here already")]
    ReceiptTooOld {
        sequence: Sequence,
        newest: Sequence,
    },

    #[error("the receipt names moment {sequence} as {theirs}, here it was captured as {ours}")]
    ReceiptForOtherContent {
        sequence: Sequence,
        theirs: DeltaId,
        ours: DeltaId,
    },

    #[error("all sequence numbers are used up")]
    Exhausted,
}

impl CaptureState {
    /// The state before the first capture.
    #[must_use]
    pub fn new(relationship: RelationshipId, lineage: LineageId, disks: Vec<DiskId>) -> Self {
        Self {
            version: VERSION,
            relationship,
            lineage,
            disks,
            receipt: None,
            drawn: Sequence::ZERO,
            captured: Vec::new(),
        }
    }

    /// Writes the state to a new file. Durable on return.
    ///
    /// # Errors
    /// [`Failure::FileExists`], or what the system says.
    pub fn create(&self, path: &Path) -> Result<(), Failure> {
        let new = NewFile::begin(path)?;
        let mut file = new.file();
        let written = file.write_all(&self.to_json());
        written.map_err(|source| new.write_failed(source))?;
        new.publish()
    }

    /// Draws the next sequence number. It counts only once the state is saved.
    ///
    /// # Errors
    /// [`StateError::Exhausted`].
    pub fn draw(&mut self) -> Result<Sequence, StateError> {
        self.drawn = self.drawn.next().ok_or(StateError::Exhausted)?;
        Ok(self.drawn)
    }

    /// Remembers under which id a moment was captured.
    pub fn captured(&mut self, sequence: Sequence, id: DeltaId) {
        self.captured.push(Captured { sequence, id });
        let superfluous = self.captured.len().saturating_sub(REMEMBERED);
        self.captured.drain(..superfluous);
    }

    /// Takes in a receipt: the next delta builds on it. The same one again changes nothing.
    ///
    /// # Errors
    /// When it is not for a delta that was captured with this state, or older than the newest.
    pub fn accept(&mut self, receipt: Receipt) -> Result<(), StateError> {
        let sequence = receipt.sequence;
        if receipt.lineage != self.lineage {
            return Err(StateError::ReceiptOfOtherLineage {
                theirs: receipt.lineage,
                ours: self.lineage,
            });
        }
        if sequence == Sequence::ZERO || sequence > self.drawn {
            return Err(StateError::ReceiptForNothing { sequence });
        }
        if let Some(newest) = self.receipt.map(|newest| newest.sequence)
            && sequence < newest
        {
            return Err(StateError::ReceiptTooOld { sequence, newest });
        }
        let known = self.captured.iter().find(|one| one.sequence == sequence);
        let known = known.map(|captured| captured.id);
        let accepted = self.receipt.filter(|newest| newest.sequence == sequence);
        // A capture that was cut off after its stream was out is not remembered.
        if let Some(ours) = accepted.map(|newest| newest.id).or(known)
            && ours != receipt.id
        {
            return Err(StateError::ReceiptForOtherContent {
                sequence,
                theirs: receipt.id,
                ours,
            });
        }
        self.receipt = Some(receipt);
        self.captured
            .retain(|captured| captured.sequence > sequence);
        Ok(())
    }

    fn to_json(&self) -> Vec<u8> {
        let mut text =
            serde_json::to_vec_pretty(self).expect("BUG: a state can be written as JSON");
        text.push(b'\n');
        text
    }
}

/// The file that a state is kept in.
#[derive(Debug)]
pub struct StateFile {
    /// Without symlinks: saving replaces the file by rename.
    path: PathBuf,
}

impl StateFile {
    /// The file of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(path: &Path) -> Result<Self, Failure> {
        match std::fs::canonicalize(path) {
            Ok(path) => Ok(Self { path }),
            Err(source) => Err(Failure::File {
                what: "find",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Reads the state.
    ///
    /// # Errors
    /// When the file is no state of this version.
    pub fn load(&self) -> Result<CaptureState, Failure> {
        let read = || {
            let mut text = Vec::new();
            let file = File::open(&self.path)?;
            file.take(MAX_BYTES).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|source| self.failed("read", source))?;
        parse(&text, &self.path).map_err(|source| Failure::State { source })
    }

    /// Reads the state, lets `change` change it, and saves it. Nobody else changes it meanwhile;
    /// if `change` fails, nothing is saved. Durable on return.
    ///
    /// # Errors
    /// Those of `change`, or what the system says.
    pub fn change<T>(
        &self,
        change: impl FnOnce(&mut CaptureState) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // The folder is locked, not the file: the file is replaced.
        let folder = File::open(folder_of(&self.path));
        let folder = folder.map_err(|source| self.failed("lock the folder of", source))?;
        folder
            .lock()
            .map_err(|source| self.failed("lock the folder of", source))?;
        let mut state = self.load()?;
        let outcome = change(&mut state)?;
        self.save(&state)?;
        Ok(outcome)
    }

    fn save(&self, state: &CaptureState) -> Result<(), Failure> {
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&state.to_json())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)
        };
        write().map_err(|source| self.failed("save", source))?;
        sync_folder_of(&self.path)
    }

    fn failed(&self, what: &'static str, source: io::Error) -> Failure {
        Failure::File {
            what,
            path: self.path.clone(),
            source,
        }
    }
}

/// Checks a state from outside.
fn parse(text: &[u8], path: &Path) -> Result<CaptureState, StateError> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: u32,
    }
    let format = |source| StateError::Format {
        path: path.to_owned(),
        source,
    };
    let VersionOnly { version } = serde_json::from_slice(text).map_err(format)?;
    if version != VERSION {
        return Err(StateError::Version {
            path: path.to_owned(),
            found: version,
        });
    }
    let state: CaptureState = serde_json::from_slice(text).map_err(format)?;
    let mut disks = state.disks.clone();
    disks.sort_unstable();
    disks.dedup();
    if disks.is_empty() || disks.len() > MAX_DISKS || disks.len() != state.disks.len() {
        return Err(StateError::Disks {
            path: path.to_owned(),
        });
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> DeltaId {
        DeltaId::from_bytes([byte; 32])
    }

    fn receipt(sequence: u64, byte: u8) -> Receipt {
        Receipt {
            lineage: LineageId::from_bytes([1; 16]),
            sequence: Sequence::new(sequence),
            id: id(byte),
        }
    }

    /// A state after the captures 1 and 2.
    fn state() -> CaptureState {
        let (relationship, lineage) = (
            RelationshipId::from_bytes([2; 16]),
            LineageId::from_bytes([1; 16]),
        );
        let mut state = CaptureState::new(relationship, lineage, vec!["sda".parse().unwrap()]);
        for byte in [1, 2] {
            let sequence = state.draw().unwrap();
            state.captured(sequence, id(byte));
        }
        state
    }

    #[test]
    fn a_number_is_drawn_once() {
        let mut state = state();
        assert_eq!(state.draw().unwrap(), Sequence::new(3));
        assert_eq!(state.draw().unwrap(), Sequence::new(4));
        state.drawn = Sequence::new(u64::MAX);
        assert!(matches!(state.draw(), Err(StateError::Exhausted)));
    }

    #[test]
    fn a_receipt_is_taken_in_and_may_be_repeated() {
        let mut state = state();
        state.accept(receipt(1, 1)).unwrap();
        state.accept(receipt(1, 1)).unwrap();
        state.accept(receipt(2, 2)).unwrap();
        assert_eq!(state.receipt, Some(receipt(2, 2)));
        assert!(state.captured.is_empty());
    }

    #[test]
    fn a_receipt_that_matches_nothing_captured_here_is_refused() {
        let mut state = state();
        let foreign = Receipt {
            lineage: LineageId::from_bytes([9; 16]),
            ..receipt(1, 1)
        };
        let refused = |state: &mut CaptureState, receipt| state.accept(receipt).unwrap_err();
        assert!(matches!(
            refused(&mut state, foreign),
            StateError::ReceiptOfOtherLineage { .. }
        ));
        for sequence in [0, 3, u64::MAX] {
            assert!(matches!(
                refused(&mut state, receipt(sequence, 1)),
                StateError::ReceiptForNothing { .. }
            ));
        }
        assert!(matches!(
            refused(&mut state, receipt(1, 2)),
            StateError::ReceiptForOtherContent { .. }
        ));
        assert_eq!(state.receipt, None);
        state.accept(receipt(2, 2)).unwrap();
        assert!(matches!(
            refused(&mut state, receipt(1, 1)),
            StateError::ReceiptTooOld { .. }
        ));
        assert!(matches!(
            refused(&mut state, receipt(2, 3)),
            StateError::ReceiptForOtherContent { .. }
        ));
    }

    #[test]
    fn a_state_reads_back_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        state().create(&path).unwrap();
        let file = StateFile::find(&path).unwrap();
        assert_eq!(file.load().unwrap(), state());
        let drawn = file.change(|state| Ok(state.draw().unwrap())).unwrap();
        assert_eq!(drawn, Sequence::new(3));
        assert_eq!(file.load().unwrap().drawn, drawn);
        let failed = file.change::<()>(|state| {
            state.draw().unwrap();
            Err(Failure::NotConfirmed)
        });
        assert!(failed.is_err());
        assert_eq!(file.load().unwrap().drawn, drawn);
    }

    #[test]
    fn numbers_drawn_at_the_same_time_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        state().create(&path).unwrap();
        let draw = || {
            let file = StateFile::find(&path).unwrap();
            let draw = |_| file.change(|state| Ok(state.draw().unwrap())).unwrap();
            (0..10).map(draw).collect::<Vec<_>>()
        };
        let mut drawn = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(draw)).collect();
            let drawn = threads.into_iter().flat_map(|one| one.join().unwrap());
            drawn.collect::<Vec<_>>()
        });
        drawn.sort_unstable();
        let expected: Vec<_> = (3..43).map(Sequence::new).collect();
        assert_eq!(drawn, expected);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let path = Path::new("state.json");
        let good = String::from_utf8(state().to_json()).unwrap();
        assert!(parse(good.as_bytes(), path).is_ok());
        let with = |from: &str, to: &str| {
            assert!(good.contains(from), "{from}");
            parse(good.replace(from, to).as_bytes(), path)
        };
        assert!(matches!(
            with("\"version\": 1", "\"version\": 2"),
            Err(StateError::Version { found: 2, .. })
        ));
        assert!(matches!(
            with("\"sda\"", "\"sda\", \"sda\""),
            Err(StateError::Disks { .. })
        ));
        assert!(matches!(
            with("\"sda\"", "\"../sda\""),
            Err(StateError::Format { .. })
        ));
        assert!(matches!(
            with("\"drawn\"", "\"other\": 1, \"drawn\""),
            Err(StateError::Format { .. })
        ));
        for cut in [0, 1, good.len() / 2] {
            assert!(parse(&good.as_bytes()[..cut], path).is_err());
        }
    }
}
