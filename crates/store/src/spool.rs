//! Deltas that were received and are not applied yet, and the space that is kept for them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DeltaId, DiskId, Sequence};
use lifeboat_stream::{
    Base, DecodeError, Ending, Entry, Header, Kind, Limits, Manifest, PayloadError, PayloadRef,
    Scan, scan,
};
use lifeboat_sys::disk::{Access, DiskFile, DiskPort, EntryKind};

use crate::damage::Damage;
use crate::error::{IoContext, StoreError};
use crate::files::{self, FileReader};
use crate::index::RECORD_LEN;
use crate::layout::{self, Layout};
use crate::record::{Moment, State};

/// Kept free beyond what the deltas need: journal, overlays, image metadata.
pub(crate) const HEADROOM: u64 = 1 << 20;

/// One delta in the spool: complete, verified, durable.
#[derive(Debug, Clone)]
pub(crate) struct SpooledDelta {
    pub(crate) moment: Moment,
    /// The moment that it builds on; a delta of whole disks needs none.
    pub(crate) base: Option<Base>,
    pub(crate) manifest: Manifest,
    /// Length of the file.
    pub(crate) bytes: u64,
    /// What applying it can take from the file system at most.
    pub(crate) need: u64,
}

/// A delta that was acknowledged and cannot be applied.
#[derive(Debug, Clone)]
pub(crate) struct BrokenDelta {
    pub(crate) sequence: Sequence,
    pub(crate) path: PathBuf,
    pub(crate) damage: Damage,
}

impl BrokenDelta {
    pub(crate) fn error(&self) -> StoreError {
        StoreError::Damaged {
            path: self.path.clone(),
            damage: self.damage.clone(),
        }
    }
}

/// What the spool holds beyond what is applied, each oldest first.
#[derive(Debug, Default)]
pub(crate) struct Spooled {
    pub(crate) deltas: Vec<SpooledDelta>,
    pub(crate) broken: Vec<BrokenDelta>,
}

/// Reads a spooled delta's frame headers.
pub(crate) fn open_scan(file: &Arc<dyn DiskFile>) -> Result<Scan<FileReader>, ScanError> {
    let limits = Limits {
        stream_bytes: file.len()?,
        ending: Ending::EndOfInput,
    };
    Ok(scan(FileReader::new(Arc::clone(file))?, &limits)?)
}

/// Why a spooled delta cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] lifeboat_stream::DecodeError),
}

impl ScanError {
    /// As damage of a file that was intact when it was received.
    pub(crate) fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Io(source) => StoreError::Io {
                what: "read",
                path: path.to_owned(),
                source,
            },
            Self::Decode(source) => {
                let why = with_causes(&source);
                StoreError::Damaged {
                    path: path.to_owned(),
                    damage: Damage::Spool { why },
                }
            }
        }
    }
}

/// A payload that is no longer what its frame says.
pub(crate) fn damaged_payload(payload: &PayloadRef, source: PayloadError) -> ScanError {
    let position = payload.position;
    ScanError::Decode(DecodeError::Payload { position, source })
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Looks through a spooled delta from its first to its last frame header.
pub(crate) fn survey(file: &Arc<dyn DiskFile>) -> Result<(Header, SpooledDelta), ScanError> {
    let mut scan = open_scan(file)?;
    let mut need = HEADROOM;
    while let Some(entry) = scan.next_entry()? {
        need += match entry {
            Entry::Blob {
                total, offset: 0, ..
            } => total,
            Entry::Blob { .. } => 0,
            Entry::Data {
                offset, payload, ..
            } => preimages_and_head(offset, u64::from(payload.plain_len)),
            Entry::Zero { offset, length, .. } => zeroed(offset, length),
        };
    }
    let (header, manifest) = (*scan.header(), scan.manifest().clone());
    let footer = *scan
        .footer()
        .expect("BUG: a scan that has ended has its footer");
    let moment = Moment {
        sequence: header.sequence,
        id: footer.id,
        captured_at: manifest.captured_at(),
        consistency: manifest.consistency(),
    };
    Ok((
        header,
        SpooledDelta {
            moment,
            base: header.base,
            manifest,
            bytes: file.len()?,
            need,
        },
    ))
}

/// What data of this length can cost: its preimages, their index, and room in the head.
pub(crate) fn preimages_and_head(offset: u64, len: u64) -> u64 {
    let blocks = (offset + len).div_ceil(BLOCK_SIZE) - offset / BLOCK_SIZE;
    2 * blocks * BLOCK_SIZE + blocks * RECORD_LEN as u64
}

/// What the tail costs that a disk loses with its new size: all of it is saved at once.
pub(crate) fn cut_off(new: u64, old: u64) -> u64 {
    let blocks = old.div_ceil(BLOCK_SIZE).saturating_sub(new / BLOCK_SIZE);
    blocks * BLOCK_SIZE + (blocks / 16 + 2) * RECORD_LEN as u64
}

/// What zeroing costs: the head gives back what the preimages take, one slice later.
pub(crate) fn zeroed(offset: u64, len: u64) -> u64 {
    let blocks = (offset + len).div_ceil(BLOCK_SIZE) - offset / BLOCK_SIZE;
    (blocks * BLOCK_SIZE).min(128 << 20) + (blocks / 16 + 2) * RECORD_LEN as u64
}

/// What the spool holds of the state's lineage beyond what is applied.
///
/// Removes parts of deltas that never became complete, and deltas that are applied. A delta
/// that is damaged, and one that builds on a delta which is damaged or gone, is set apart.
pub(crate) fn load(
    disk: &Arc<dyn DiskPort>,
    layout: &Layout,
    state: &State,
) -> Result<Spooled, StoreError> {
    let folder = layout.spool();
    let lineage = &state.lineage.id;
    let mut deltas = Vec::new();
    let mut broken = Vec::new();
    for entry in disk.list(&folder).context("list", &folder)? {
        let path = folder.join(&entry.name);
        if entry.kind != EntryKind::File {
            continue;
        }
        if entry.name.ends_with(".part") {
            files::remove(disk.as_ref(), &path)?;
        }
        let Some(sequence) = layout::sequence_of_delta(&entry.name, lineage) else {
            continue;
        };
        let superseded = state.mixed.as_ref().is_some_and(|m| sequence < m.sequence);
        if sequence <= state.applied_sequence() || superseded {
            files::remove(disk.as_ref(), &path)?;
            continue;
        }
        let file = disk.open(&path, Access::ReadOnly).context("open", &path)?;
        let damage = match survey(&file) {
            Ok((header, delta)) if is_ours(&header, &delta.manifest, sequence, state) => {
                deltas.push((path, delta));
                continue;
            }
            Ok(_) => "it is not the delta that its name says".to_owned(),
            Err(ScanError::Decode(error)) => with_causes(&error),
            Err(error) => return Err(error.at(&path)),
        };
        broken.push(BrokenDelta {
            sequence,
            path,
            damage: Damage::Spool { why: damage },
        });
    }
    deltas.sort_by_key(|(_, delta)| delta.moment.sequence);
    let mut spooled = Spooled {
        deltas: Vec::new(),
        broken,
    };
    for (path, delta) in deltas {
        match delta.base.filter(|base| !has_base(base, &spooled, state)) {
            None => spooled.deltas.push(delta),
            Some(base) => spooled.broken.push(BrokenDelta {
                sequence: delta.moment.sequence,
                path,
                damage: Damage::Spool {
                    why: format!("moment {}, on which it builds, is not here", base.sequence),
                },
            }),
        }
    }
    spooled.broken.sort_by_key(|broken| broken.sequence);
    Ok(spooled)
}

fn is_ours(header: &Header, manifest: &Manifest, sequence: Sequence, state: &State) -> bool {
    let mut theirs: Vec<&DiskId> = manifest.disks().iter().map(|disk| &disk.id).collect();
    let mut ours: Vec<&DiskId> = state.disks.iter().map(|disk| &disk.id).collect();
    theirs.sort_unstable();
    ours.sort_unstable();
    header.sequence == sequence
        && header.lineage == state.lineage.id
        && header.relationship == state.relationship
        && theirs == ours
}

/// Whether what a delta builds on is applied, or comes before it in the spool.
fn has_base(base: &Base, spooled: &Spooled, state: &State) -> bool {
    let moment = (base.sequence, base.id);
    let is_other = |known: &(Sequence, DeltaId)| known.0 == moment.0 && known.1 != moment.1;
    let mut before = spooled.deltas.iter().map(|delta| &delta.moment);
    if base.sequence <= state.applied_sequence() && state.mixed.is_none() {
        // It was known when the delta was received; only the newest are remembered.
        !state.remembered.iter().any(is_other)
    } else if base.sequence <= state.applied_sequence() {
        // The delta that closes the copy stands below it, and above what it builds on.
        before.next().is_some()
    } else {
        before.any(|before| (before.sequence, before.id) == moment)
    }
}

/// Whether a delta holds whole disks and so needs nothing beneath it.
pub(crate) fn is_whole(kind: Kind) -> bool {
    match kind {
        Kind::Initial => true,
        Kind::Delta | Kind::Resync => false,
    }
}

/// A file that occupies the space which the spooled deltas will need.
#[derive(Debug)]
pub(crate) struct Reserve {
    file: Arc<dyn DiskFile>,
    held: u64,
}

impl Reserve {
    /// Held for as long as there is room, whatever the spool holds: the journal of a failover
    /// must fit on a full disk.
    pub(crate) const FLOOR: u64 = 4 << 20;

    /// Opens the reserve, or makes it. It holds nothing until [`hold`](Self::hold) says so.
    pub(crate) fn open(disk: &Arc<dyn DiskPort>, layout: &Layout) -> Result<Self, StoreError> {
        let path = layout.reserve();
        let file = match disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.open(&path, Access::ReadWrite)
            }
            outcome => outcome,
        };
        let file = file.context("open", &path)?;
        file.set_len(0).context("cut", &path)?;
        Ok(Self { file, held: 0 })
    }

    /// Holds exactly `bytes`. When that fails, what was held before is still held.
    pub(crate) fn hold(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.held {
            let outcome = self
                .file
                .set_len(bytes)
                .and_then(|()| self.file.allocate(0, bytes));
            if outcome.is_err() {
                self.file.set_len(self.held)?;
            }
            outcome?;
        } else if bytes < self.held {
            self.file.set_len(bytes)?;
        }
        self.held = bytes;
        Ok(())
    }

    pub(crate) fn held(&self) -> u64 {
        self.held
    }
}
