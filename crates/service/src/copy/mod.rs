//! Copying whole disks to the replica, piece by piece, while the VM runs.
//!
//! A piece is 64 MiB of one disk. What travels of it is everything that is not zero (first copy),
//! what differs by keyed digests (comparison), or what differs of what the maps name (reversal).
//! It is read as it is sent. The replica answers when a piece is durable, and remembers it: an
//! interrupted copy goes on where it was.

mod body;
mod compare;
mod disk;
mod pieces;
mod verification;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use lifeboat_hypervisor::{HypervisorError, Tracking};
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{CopyPurpose, Event, ResyncCause};
use lifeboat_model::{Consistency, DiskId, Sequence};
use lifeboat_nbd::ConnectError;
use lifeboat_peer::{BeginCopy, ChunkPlace, CopyKind, Link, LinkError, PeerDisk};
use lifeboat_stream::{Disk, EncodeError, Header, Kind, Manifest};
use lifeboat_sys::host;

use self::body::PieceBody;
use self::compare::Comparison;
use self::disk::{OpenDisk, ReadError};
use self::pieces::{Piece, Way, all_pieces, pieces_of};
use crate::activity::Stop;
use crate::api::DiskRanges;
use crate::cycle::{included, stream_options};
use crate::relation::Relation;
use crate::service::{Service, lock, with_causes};
use crate::vm::VmArc;

/// Bytes of a disk that one piece covers.
const PIECE: u64 = 64 << 20;

/// Pieces on their way at once: while the replica writes one, others are sent. A line that is cut
/// costs what they have sent so far.
const STREAMS: usize = 3;

/// The largest frame of data.
const FRAME: u64 = lifeboat_stream::MAX_DATA_LEN as u64;

/// A digest of the comparison, in bytes.
const DIGEST: usize = 16;

/// What digests are keyed with, new for each run of a copy.
type Key = [u8; 32];

/// A copy stopped before its end.
#[derive(Debug, thiserror::Error)]
enum CopyTrouble {
    #[error("ask for the VM's disks")]
    Disks { source: HypervisorError },
    #[error("open disk {disk}")]
    Open {
        disk: DiskId,
        source: Box<ConnectError>,
    },
    #[error("read disk {disk}")]
    Read { disk: DiskId, source: ReadError },
    #[error("encode a piece of disk {disk}")]
    Encode { disk: DiskId, source: EncodeError },
    #[error("draw a key")]
    Key { source: std::io::Error },
    #[error("changes of the disks may have been missed: {why}")]
    Untracked { why: String },
    #[error(
        "the replica answered {found} bytes of digests and {expected} were asked for; it is not believed"
    )]
    Digests { found: usize, expected: usize },
    #[error("the disks may not be what they were thought to be: {why}")]
    Unproved { why: String },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("save how far the comparison has come: {why}")]
    Save { why: String },
    #[error("stopped")]
    Stopped,
}

/// What all pieces of one copy share.
struct Job<'a> {
    service: &'a Service,
    vm: &'a VmArc,
    relation: &'a Relation,
    copy: Sequence,
    disks: &'a [OpenDisk],
    manifest: &'a Manifest,
    comparison: Comparison<'a>,
    link: &'a dyn Link,
    stop: &'a Stop,
}

impl Service {
    /// Copies whole disks, or goes on with it.
    pub(crate) fn copy_disks(&self, vm: &VmArc, copy: Sequence, purpose: CopyPurpose, stop: &Stop) {
        let _place = self.inner.transfers.take();
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        let what = what_of(purpose);
        vm.meter.begin(what, 0);
        let outcome = self.run_copy(vm, &relation, copy, purpose, stop);
        vm.meter.end();
        match outcome {
            Ok(()) => {
                self.note_success(vm);
                self.tell(vm, Event::ChunksDone { copy });
            }
            Err(CopyTrouble::Stopped | CopyTrouble::Link(LinkError::Cancelled)) => {}
            Err(CopyTrouble::Link(error)) => self.note_link_error(vm, what, &error),
            Err(trouble) => {
                let text = format!("{what}: {}", with_causes(&trouble));
                self.note_trouble(vm, ReturnCode::Failed, text);
                if let CopyTrouble::Untracked { why } | CopyTrouble::Unproved { why } = &trouble {
                    if purpose == CopyPurpose::Reverse {
                        self.report_comparison(vm, why);
                    }
                    self.tell(vm, Event::NeedsResync(ResyncCause::TrackingLost));
                }
            }
        }
    }

    fn run_copy(
        &self,
        vm: &VmArc,
        relation: &Relation,
        copy: Sequence,
        purpose: CopyPurpose,
        stop: &Stop,
    ) -> Result<(), CopyTrouble> {
        self.track_copy(vm, copy, purpose)?;
        let link = self.link(&relation.peer)?;
        let sources = self
            .inner
            .hypervisor
            .present_disks(vm.id)
            .map_err(|source| CopyTrouble::Disks { source })?;
        let sources = included(relation, &sources);
        let disks = sources
            .iter()
            .enumerate()
            .map(|(index, source)| OpenDisk::open(index, source))
            .collect::<Result<Vec<_>, _>>()?;
        let record = relation.record();
        let diverged = match purpose {
            CopyPurpose::Reverse => Some(self.diverged(vm, relation, copy)),
            CopyPurpose::Initial | CopyPurpose::Compare => None,
        };
        let kind = match (purpose, &diverged) {
            (CopyPurpose::Initial, _) => CopyKind::Initial,
            (CopyPurpose::Reverse, Some(Ok(_))) => CopyKind::ByMaps,
            (CopyPurpose::Compare | CopyPurpose::Reverse, _) => CopyKind::Resync,
        };
        self.verify_after(vm, kind)?;
        let manifest = Manifest::new(
            self.now(),
            Consistency::Crash,
            sources
                .iter()
                .map(|source| Disk {
                    id: source.disk.clone(),
                    size: source.size,
                })
                .collect(),
        )
        .expect("BUG: a VM's disks make a manifest");
        let key = host::random_bytes().map_err(|source| CopyTrouble::Key { source })?;
        let progress = link.begin_copy(BeginCopy {
            relationship: record.relationship,
            lineage: record.lineage.id,
            copy,
            kind,
            disks: sources
                .iter()
                .map(|source| PeerDisk {
                    id: source.disk.clone(),
                    size: source.size,
                })
                .collect(),
        })?;
        let job = Job {
            service: self,
            vm,
            relation,
            copy,
            disks: &disks,
            manifest: &manifest,
            comparison: Comparison {
                relationship: record.relationship,
                lineage: record.lineage.id,
                link: link.as_ref(),
                key,
                at: None,
            },
            link: link.as_ref(),
            stop,
        };
        let pieces = match (purpose, diverged) {
            (CopyPurpose::Initial, _) => all_pieces(&disks, &progress, Way::Everything),
            (_, None) => all_pieces(&disks, &progress, Way::WhatDiffers),
            (_, Some(Ok(diverged))) => {
                let differing = job.prove(&diverged)?;
                pieces_of(&disks, &differing, &progress)
            }
            (_, Some(Err(why))) => {
                self.report_comparison(vm, &why);
                all_pieces(&disks, &progress, Way::WhatDiffers)
            }
        };
        let total = pieces.iter().map(Piece::bytes).sum();
        vm.meter.begin(what_of(purpose), total);
        job.run(&pieces)
    }

    /// Says why a reversal compares everything.
    fn report_comparison(&self, vm: &VmArc, why: &str) {
        let name = vm.name();
        let message = format!(
            "{name}: the disks of both sides are compared, because the maps are not believed: {why}"
        );
        let severity = crate::api::Severity::Info;
        self.report(Some(vm.id), severity, "reversal", &message);
    }

    /// Sees to it that changes during the copy are known.
    fn track_copy(
        &self,
        vm: &VmArc,
        copy: Sequence,
        purpose: CopyPurpose,
    ) -> Result<(), CopyTrouble> {
        let hypervisor = &self.inner.hypervisor;
        let tracking = hypervisor
            .tracking(vm.id)
            .map_err(|source| CopyTrouble::Disks { source })?;
        match (tracking, purpose) {
            (Tracking::Since { moments }, CopyPurpose::Initial | CopyPurpose::Compare)
                if moments.first().is_some_and(|first| *first <= copy) =>
            {
                Ok(())
            }
            // The maps since the commit say what differs.
            (Tracking::Since { .. }, CopyPurpose::Reverse) => Ok(()),
            (Tracking::Unknown { why }, _) => Err(CopyTrouble::Untracked { why }),
            (Tracking::Off, _) => Err(CopyTrouble::Untracked {
                why: "nothing tracks them".to_owned(),
            }),
            (Tracking::Since { .. }, _) => Err(CopyTrouble::Untracked {
                why: "they are tracked from a later moment on".to_owned(),
            }),
        }
    }
}

fn what_of(purpose: CopyPurpose) -> &'static str {
    match purpose {
        CopyPurpose::Initial => "initial replication",
        CopyPurpose::Compare => "comparing disks",
        CopyPurpose::Reverse => "reversing replication",
    }
}

impl Job<'_> {
    /// Sends all pieces, a few at once; the first that fails ends the copy.
    fn run(&self, pieces: &[Piece]) -> Result<(), CopyTrouble> {
        let next = AtomicUsize::new(0);
        let first: Mutex<Option<CopyTrouble>> = Mutex::new(None);
        let work = || {
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::SeqCst)) {
                if lock(&first).is_some() {
                    return;
                }
                let sent = self.refuse_if_stopped();
                if let Err(trouble) = sent.and_then(|()| self.send_piece(piece)) {
                    lock(&first).get_or_insert(trouble);
                    return;
                }
                self.vm.meter.add(piece.bytes());
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..STREAMS.min(pieces.len()) {
                scope.spawn(work);
            }
            work();
        });
        match first
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
        {
            Some(trouble) => Err(trouble),
            None => Ok(()),
        }
    }

    fn refuse_if_stopped(&self) -> Result<(), CopyTrouble> {
        if self.stop.is_asked() {
            Err(CopyTrouble::Stopped)
        } else {
            Ok(())
        }
    }

    fn send_piece(&self, piece: &Piece) -> Result<(), CopyTrouble> {
        let disk = &self.disks[piece.disk];
        let record = self.relation.record();
        let ranges = match piece.way {
            Way::Everything | Way::Known => piece.within.clone(),
            Way::WhatDiffers => self.comparison.differing(disk, &piece.within)?,
        };
        let header = Header {
            relationship: record.relationship,
            lineage: record.lineage.id,
            sequence: self.copy,
            base: None,
            kind: Kind::Resync,
        };
        let options = stream_options(self.relation);
        let mut body = PieceBody::new(disk, &ranges, piece.way, &header, self.manifest, options)?;
        let place = ChunkPlace {
            relationship: record.relationship,
            lineage: record.lineage.id,
            copy: self.copy,
            disk: disk.id.clone(),
            range: piece.range.clone(),
        };
        let link = self.link.cancelled_by(self.stop.flag());
        let sent = link.put_chunk(
            place,
            &mut self.service.throttled(self.vm, &mut body, self.stop),
        );
        // What the disk said comes before what the link made of it.
        if let Some(trouble) = body.trouble() {
            return Err(trouble);
        }
        sent?;
        self.service.count_copied(self.vm, body.sent());
        Ok(())
    }
}
