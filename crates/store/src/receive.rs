//! Receiving a delta: verified, durable, and certain to be applicable before anyone is told.
//!
//! Order: `.part` is written with every frame verified, and synced; the space that applying
//! can need is reserved; the file gets its name; the folder is synced; the receipt is given.
//! A crash before the name leaves a `.part` that opening removes; after it, the same delta
//! sent again gets the same receipt.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lifeboat_model::{DeltaId, DiskId, LineageId, Receipt, Sequence};
use lifeboat_qcow2::SEGMENT_CLUSTER;
use lifeboat_stream::{
    CopyError, DecodeError, Decoder, Ending, Header, Kind, Limits, Manifest, copy_rest,
};
use lifeboat_sys::disk::{DiskFile, DiskPort};

use crate::error::{IoContext, Refused, StoreError};
use crate::files;
use crate::layout::Layout;
use crate::record::SegmentDisk;
use crate::spool::{self, Reserve, SpooledDelta};
use crate::store::Store;

/// What is read from the sender at a time.
const READ_BYTES: usize = 256 << 10;

/// What a stream of whole disks may hold besides their bytes, twice over.
const FRAMES_BYTES: u64 = 64 << 20;

/// A delta that is safe here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    pub receipt: Receipt,
    /// It was here already; nothing was stored.
    pub repeated: bool,
    /// Length of the stream in bytes.
    pub bytes: u64,
}

/// What has to be known of a store to receive a delta without having it.
#[derive(Debug)]
pub struct Intake {
    disk: Arc<dyn DiskPort>,
    layout: Layout,
    lineage: LineageId,
    limits: Limits,
    number: u64,
}

/// A stream whose beginning was read.
#[derive(Debug)]
pub struct Receiving<R: Read> {
    intake: Intake,
    decoder: Decoder<BufReader<R>>,
    /// It is here already: read again, and not stored.
    is_known: bool,
}

/// A delta that is whole, verified and durable under a temporary name, which goes when this is
/// dropped.
#[derive(Debug)]
pub struct Part {
    disk: Arc<dyn DiskPort>,
    header: Header,
    manifest: Manifest,
    id: DeltaId,
    bytes: u64,
    /// Absent for a delta that is here already.
    stored: Option<(PathBuf, SpooledDelta)>,
}

impl Intake {
    /// Reads the beginning of a stream. The sender may take its time: nobody waits for it.
    ///
    /// # Errors
    /// [`StoreError::Delta`] when it is no delta.
    pub fn open<R: Read>(self, reader: R) -> Result<Receiving<R>, StoreError> {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        let decoder = Decoder::new(reader, &self.limits)
            .map_err(|source| decode_error(source, self.layout.root()))?;
        Ok(Receiving {
            intake: self,
            decoder,
            is_known: false,
        })
    }
}

impl<R: Read> Receiving<R> {
    /// Reads the stream to its end, and verifies it as it comes.
    ///
    /// # Errors
    /// [`StoreError::Delta`] when the stream is not intact, [`StoreError::DiskFull`] when it does
    /// not fit. Nothing of it stays behind.
    pub fn take_in(self) -> Result<Part, StoreError> {
        let Intake {
            disk,
            layout,
            lineage,
            number,
            ..
        } = self.intake;
        let header = *self.decoder.header();
        let manifest = self.decoder.manifest().clone();
        if self.is_known {
            let root = layout.root();
            let summary =
                copy_rest(self.decoder, io::sink()).map_err(|error| copy_error(error, root))?;
            return Ok(Part {
                disk,
                header,
                manifest,
                id: summary.footer.id,
                bytes: summary.bytes,
                stored: None,
            });
        }
        let path = layout.part(&lineage, header.sequence, number);
        let stored = store_part(disk.as_ref(), self.decoder, &path);
        let (delta, bytes) = match stored {
            Ok(stored) => stored,
            Err(error) => {
                // What stays goes when the store is opened; the first error says more.
                let _ = files::remove(disk.as_ref(), &path);
                return Err(error);
            }
        };
        Ok(Part {
            disk,
            header,
            manifest,
            id: delta.moment.id,
            bytes,
            stored: Some((path, delta)),
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.stored {
            // It was never admitted. What stays goes when the store is opened.
            let _ = files::remove(self.disk.as_ref(), path);
        }
    }
}

impl Store {
    /// Takes in one delta stream to its end and answers when it is durable and can be applied.
    ///
    /// Memory stays below a few MiB whatever is sent. Nothing of a refused or broken stream
    /// stays behind.
    ///
    /// # Errors
    /// Refused when the delta does not continue what is here; [`StoreError::Delta`] when
    /// the stream is not intact; [`StoreError::DiskFull`] when it or its application would
    /// not fit. The store can be used on after each of these.
    pub fn receive(&mut self, reader: impl Read) -> Result<Received, StoreError> {
        let mut receiving = self.intake()?.open(reader)?;
        self.refuse_unwanted(&mut receiving)?;
        let part = receiving.take_in()?;
        self.admit(part)
    }

    /// What is needed to receive a delta while others use the store: open the stream, ask
    /// whether it is [unwanted](Self::refuse_unwanted), take it in, and [admit](Self::admit) it.
    ///
    /// # Errors
    /// Refused unless the store is a replica.
    pub fn intake(&self) -> Result<Intake, StoreError> {
        self.refuse_unless_replica()?;
        if self.broken {
            return Err(Refused::Reopen.into());
        }
        let root = self.layout.root();
        let available = self.disk.available(root).context("measure", root)?;
        // What is here already is read again even if the disk has no room at all.
        let disks: u64 = self.state.disks.iter().map(|disk| disk.size.bytes()).sum();
        let limits = Limits {
            stream_bytes: available.max(2 * disks + FRAMES_BYTES),
            ending: Ending::EndOfInput,
        };
        Ok(Intake {
            disk: Arc::clone(&self.disk),
            layout: self.layout.clone(),
            lineage: self.state.lineage.id,
            limits,
            number: self.intakes.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Refuses a stream that would be refused at its end, before more of it is read.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn refuse_unwanted<R: Read>(&self, receiving: &mut Receiving<R>) -> Result<(), StoreError> {
        let decoder = &receiving.decoder;
        self.refuse_unless_welcome(decoder.header(), decoder.manifest())?;
        receiving.is_known = self.known_id(decoder.header().sequence).is_some();
        Ok(())
    }

    fn refuse_unless_welcome(&self, header: &Header, manifest: &Manifest) -> Result<(), Refused> {
        self.refuse_unless_replica()?;
        self.refuse_foreign(header, manifest)?;
        match self.known_id(header.sequence) {
            Some(_) => Ok(()),
            None => self.refuse_unless_it_continues(header),
        }
    }

    /// Makes a delta that was taken in one of this store's: its space is reserved, it gets its
    /// name, durably, and a receipt. One that is here already gets the receipt again.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn admit(&mut self, mut part: Part) -> Result<Received, StoreError> {
        if self.broken {
            return Err(Refused::Reopen.into());
        }
        self.refuse_unless_welcome(&part.header, &part.manifest)?;
        let sequence = part.header.sequence;
        if let Some(known) = self.known_id(sequence) {
            return self.repeated(&part, known);
        }
        let Some((from, delta)) = part.stored.take() else {
            // It was here when it began to be received, and is not any more.
            return Err(Refused::TooOld {
                sequence,
                tip: self.tip(),
            }
            .into());
        };
        let outcome = self.reserve_for(&delta).and_then(|()| {
            let path = self.layout.delta(&self.state.lineage.id, sequence);
            self.disk.rename(&from, &path).context("rename", &from)?;
            // From here on the delta may survive a crash, so a failure must not forget it.
            let synced = files::sync_parent(self.disk.as_ref(), &path);
            self.broken |= synced.is_err();
            synced
        });
        if let Err(error) = outcome {
            let cleaned =
                files::remove(self.disk.as_ref(), &from).and_then(|()| self.reserve_what_fits());
            self.broken |= cleaned.is_err();
            return Err(error);
        }
        let receipt = Receipt {
            lineage: self.state.lineage.id,
            sequence,
            id: part.id,
        };
        self.broken_spool
            .retain(|broken| broken.sequence != sequence);
        self.spool.push(delta);
        Ok(Received {
            receipt,
            repeated: false,
            bytes: part.bytes,
        })
    }

    /// Refuses what is not for this store at all.
    fn refuse_foreign(&self, header: &Header, manifest: &Manifest) -> Result<(), Refused> {
        let state = &self.state;
        if header.relationship != state.relationship {
            return Err(Refused::OtherRelationship {
                theirs: header.relationship,
                ours: state.relationship,
            });
        }
        if header.lineage != state.lineage.id {
            return Err(Refused::OtherLineage {
                theirs: header.lineage,
                ours: state.lineage.id,
            });
        }
        let mut theirs: Vec<&str> = manifest
            .disks()
            .iter()
            .map(|disk| disk.id.as_str())
            .collect();
        let mut ours: Vec<&str> = state.disks.iter().map(|disk| disk.id.as_str()).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        if theirs != ours {
            return Err(Refused::OtherDisks {
                theirs: theirs.join(", "),
                ours: ours.join(", "),
            });
        }
        Ok(())
    }

    /// Refuses what would leave a gap: a base must be known here and be the same moment.
    fn refuse_unless_it_continues(&self, header: &Header) -> Result<(), Refused> {
        let tip = self.tip();
        if header.sequence <= tip {
            return Err(Refused::TooOld {
                sequence: header.sequence,
                tip,
            });
        }
        if let Some(mixed) = &self.state.mixed
            && self.spool.is_empty()
        {
            return self.refuse_unless_it_closes(header, mixed.sequence);
        }
        let Some(base) = header.base else {
            let whole = spool::is_whole(header.kind);
            return if whole {
                Ok(())
            } else {
                Err(Refused::NotInitial)
            };
        };
        if tip == Sequence::ZERO {
            return Err(Refused::NotInitial);
        }
        match self.known_id(base.sequence) {
            None => Err(Refused::UnknownBase {
                base: base.sequence,
                tip,
            }),
            Some(ours) if ours != base.id => Err(Refused::OtherBase {
                sequence: base.sequence,
                theirs: base.id,
                ours,
            }),
            Some(_) => Ok(()),
        }
    }

    /// Refuses what does not bring the heads to one moment again.
    fn refuse_unless_it_closes(&self, header: &Header, copy: Sequence) -> Result<(), Refused> {
        if header.sequence <= copy {
            return Err(Refused::TooOld {
                sequence: header.sequence,
                tip: copy,
            });
        }
        match (header.kind, header.base) {
            (Kind::Initial, None) => Ok(()),
            (Kind::Resync, None) => self.refuse_incomplete_copy(),
            (Kind::Initial | Kind::Delta | Kind::Resync, _) => {
                Err(Refused::Copying { sequence: copy })
            }
        }
    }

    /// The id under which a moment is known here: applied of late, or in the spool.
    fn known_id(&self, sequence: Sequence) -> Option<DeltaId> {
        let applied = self.state.remembered.iter().copied();
        let spooled = self
            .spool
            .iter()
            .map(|delta| (delta.moment.sequence, delta.moment.id));
        applied
            .chain(spooled)
            .find(|(known, _)| *known == sequence)
            .map(|(_, id)| id)
    }

    fn repeated(&self, part: &Part, known: DeltaId) -> Result<Received, StoreError> {
        let (sequence, id) = (part.header.sequence, part.id);
        if id != known {
            return Err(Refused::OtherContent {
                sequence,
                theirs: id,
                ours: known,
            }
            .into());
        }
        let receipt = Receipt {
            lineage: self.state.lineage.id,
            sequence,
            id,
        };
        Ok(Received {
            receipt,
            repeated: true,
            bytes: part.bytes,
        })
    }

    /// Reserves what applying one more delta can need.
    fn reserve_for(&mut self, delta: &SpooledDelta) -> Result<(), StoreError> {
        let path = self.layout.reserve();
        let waiting = self.spool.iter().chain(std::iter::once(delta));
        let total = self.failover_need() + self.needs(waiting).iter().sum::<u64>();
        self.reserve.hold(total).context("reserve space in", &path)
    }

    /// What should be reserved: for a failover at any time, and for the deltas in the spool.
    pub(crate) fn needed_reserve(&self) -> u64 {
        self.failover_need() + self.needs(self.spool.iter()).iter().sum::<u64>()
    }

    /// What a failover to any point can need: journal, overlays, and sealing what is open.
    pub(crate) fn failover_need(&self) -> u64 {
        /// Header, map and reference counts of an empty overlay, with some to spare.
        const OVERLAY: u64 = 6 * SEGMENT_CLUSTER;
        let open = self.state.segments.iter().filter(|segment| !segment.sealed);
        let sealing: u64 = open
            .flat_map(|segment| &segment.disks)
            .map(SegmentDisk::sealing_need)
            .sum();
        Reserve::FLOOR + OVERLAY * self.state.disks.len() as u64 + sealing
    }

    /// What applying each of the deltas, one after the other, can need: where a disk becomes
    /// smaller, the tail that is cut off is saved first.
    pub(crate) fn needs<'a>(&self, deltas: impl Iterator<Item = &'a SpooledDelta>) -> Vec<u64> {
        let mut sizes: BTreeMap<&DiskId, u64> = self
            .state
            .disks
            .iter()
            .map(|disk| (&disk.id, disk.size.bytes()))
            .collect();
        let mut needs = Vec::new();
        for delta in deltas {
            let mut need = delta.need;
            for disk in delta.manifest.disks() {
                if let Some(size) = sizes.get_mut(&disk.id) {
                    need += spool::cut_off(disk.size.bytes(), *size);
                    *size = disk.size.bytes();
                }
            }
            needs.push(need);
        }
        needs
    }

    /// Reserves what should be reserved, or nothing where the disk has become too full for
    /// it: then no further delta is received, but the store can be used.
    pub(crate) fn reserve_what_fits(&mut self) -> Result<(), StoreError> {
        let path = self.layout.reserve();
        let needed = self.needed_reserve();
        match self.reserve.hold(needed).context("reserve space in", &path) {
            Err(StoreError::DiskFull { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Gives back all space that was reserved, to a failover or to the VM.
    pub(crate) fn release_whole_reserve(&mut self) -> Result<(), StoreError> {
        let path = self.layout.reserve();
        self.reserve.hold(0).context("release", &path)
    }
}

/// Writes the stream to its temporary name, verified and synced.
fn store_part<R: Read>(
    disk: &dyn DiskPort,
    decoder: Decoder<R>,
    part: &Path,
) -> Result<(SpooledDelta, u64), StoreError> {
    files::remove(disk, part)?;
    let file = disk.create(part).context("create", part)?;
    let writer = PartWriter {
        file: Arc::clone(&file),
        position: 0,
        written_back: 0,
    };
    let summary = copy_rest(decoder, writer).map_err(|error| copy_error(error, part))?;
    file.sync().context("sync", part)?;
    let (_, delta) = spool::survey(&file).map_err(|error| error.at(part))?;
    Ok((delta, summary.bytes))
}

/// A stream that is longer than the room for it is a matter of the disk.
fn decode_error(source: DecodeError, path: &Path) -> StoreError {
    match source {
        DecodeError::TooLong { .. } => StoreError::DiskFull {
            what: "receive a delta in",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::StorageFull, source),
        },
        source => StoreError::Delta { source },
    }
}

fn copy_error(error: CopyError, part: &Path) -> StoreError {
    match error {
        CopyError::Decode { source } => decode_error(source, part),
        CopyError::Write { source } => Err::<(), _>(source)
            .context("write", part)
            .expect_err("BUG: an error stays one"),
    }
}

impl From<DecodeError> for StoreError {
    fn from(source: DecodeError) -> Self {
        Self::Delta { source }
    }
}

/// Appends to a part, and lets the kernel begin writing long before the sync.
struct PartWriter {
    file: Arc<dyn DiskFile>,
    position: u64,
    written_back: u64,
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const WRITEBACK_BYTES: u64 = 8 << 20;
        self.file.write_at(bytes, self.position)?;
        self.position += bytes.len() as u64;
        if self.position - self.written_back >= WRITEBACK_BYTES {
            self.file
                .start_writeback(self.written_back, self.position - self.written_back);
            self.written_back = self.position;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
