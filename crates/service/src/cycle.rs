//! One delta: freeze, drain into the send-spool, release, send, forget.
//!
//! The view is open only while it is read at the disk's speed; the link is fed from the spool.
//! Order on disk: the moment's number is saved (by the step), the map that begins with it
//! is made (by the driver), the delta is written to `N.part`, synced, renamed to `N.delta`, the
//! folder synced, `Sending` saved. A crash before that loses the number and nothing else.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use lifeboat_capture::{CapturePlan, Captured, DEFAULT_DEADLINE, DEFAULT_DEPTH, Source, capture};
use lifeboat_hypervisor::{DiskSource, FrozenView, Tracking};
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{Event, ResyncCause, VmPower};
use lifeboat_model::{Consistency, DeltaId, Receipt, Sequence};
use lifeboat_peer::{DeltaPlace, LinkError};
use lifeboat_stream::{Base, Header, Kind, Options};

use crate::activity::Stop;
use crate::relation::Relation;
use crate::service::{Service, with_causes};
use crate::vm::{Vm, VmArc};

/// What is read of a spooled delta at a time.
const READ_BYTES: usize = 1 << 20;

/// A moment was not captured.
#[derive(Debug, thiserror::Error)]
enum CaptureTrouble {
    #[error("freeze the VM's disks")]
    Freeze {
        source: lifeboat_hypervisor::HypervisorError,
    },
    #[error("changes of the disks may have been missed: {why}")]
    Untracked { why: String },
    #[error("read the frozen disks")]
    Capture {
        source: lifeboat_capture::CaptureError,
    },
    #[error("write the send-spool {}", path.display())]
    Spool { path: PathBuf, source: io::Error },
}

impl Service {
    /// Captures a moment into the send-spool.
    pub(crate) fn capture_moment(
        &self,
        vm: &VmArc,
        sequence: Sequence,
        base: Option<Receipt>,
        planned: bool,
        stop: &Stop,
    ) {
        let _place = self.inner.transfers.take();
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        vm.core().facts.cycle_began = Some(self.inner.clock.monotonic());
        vm.meter.begin("capturing", 0);
        let outcome = self.drain(vm, &relation, sequence, base, planned);
        vm.meter.end();
        match outcome {
            Ok(_) if stop.is_asked() => {
                self.tell(vm, Event::CaptureFailed { sequence });
            }
            Ok(captured) => {
                let id = captured.footer.id;
                self.tell(vm, Event::Captured { sequence, id });
            }
            Err(trouble) => {
                let what = with_causes(&trouble);
                self.note_trouble(vm, ReturnCode::Failed, what);
                self.count_failure(vm);
                self.tell(vm, Event::CaptureFailed { sequence });
                if let CaptureTrouble::Untracked { .. } = trouble {
                    self.tell(vm, Event::NeedsResync(ResyncCause::TrackingLost));
                }
            }
        }
    }

    fn drain(
        &self,
        vm: &Vm,
        relation: &Relation,
        sequence: Sequence,
        base: Option<Receipt>,
        planned: bool,
    ) -> Result<Captured, CaptureTrouble> {
        self.refuse_untracked(vm, base.map(|base| base.sequence))?;
        let consistency = self.wanted_consistency(vm, relation);
        let view = self
            .inner
            .hypervisor
            .freeze(vm.id, sequence, consistency)
            .map_err(|source| CaptureTrouble::Freeze { source })?;
        let sources = included(relation, view.sources());
        if let Some(untracked) = sources.iter().find(|source| source.bitmap.is_none()) {
            let why = format!("disk {} has no map", untracked.disk);
            return Err(CaptureTrouble::Untracked { why });
        }
        let folder = self.send_folder(vm);
        let part = folder.join(format!("{sequence}.part"));
        let whole = spooled(&folder, sequence);
        let spool = |source| CaptureTrouble::Spool {
            path: part.clone(),
            source,
        };
        std::fs::create_dir_all(&folder).map_err(spool)?;
        let file = File::create(&part).map_err(spool)?;
        let kind = match base {
            Some(_) => Kind::Delta,
            None => Kind::Resync,
        };
        let plan = plan(relation, view.as_ref(), &sources, sequence, base, kind);
        let limit = self.inner.config.send_spool_limit;
        let limited = Limited {
            file: &file,
            left: limit,
        };
        let captured = capture(&plan, limited, &mut |progress| {
            vm.meter.set(progress.stream_bytes);
        })
        .map_err(|source| CaptureTrouble::Capture { source })?;
        // From here on the guest is free of us.
        drop(view);
        file.sync_all().map_err(spool)?;
        std::fs::rename(&part, &whole).map_err(spool)?;
        sync_folder(&folder).map_err(spool)?;
        self.note_captured(vm, &plan, planned);
        Ok(captured)
    }

    /// Refuses to call a delta complete whose map does not reach back to its base.
    fn refuse_untracked(&self, vm: &Vm, base: Option<Sequence>) -> Result<(), CaptureTrouble> {
        let tracking = self
            .inner
            .hypervisor
            .tracking(vm.id)
            .map_err(|source| CaptureTrouble::Freeze { source })?;
        let why = match tracking {
            Tracking::Unknown { why } => why,
            Tracking::Off => "nothing tracks them".to_owned(),
            Tracking::Since { moments } => match (moments.first(), base) {
                (Some(first), Some(base)) if *first > base => {
                    format!("they are known since moment {first}, and the replica has {base}")
                }
                (Some(_), _) => return Ok(()),
                (None, _) => "no map is there".to_owned(),
            },
        };
        Err(CaptureTrouble::Untracked { why })
    }

    /// Sends what is in the send-spool.
    pub(crate) fn send_delta(
        &self,
        vm: &VmArc,
        sequence: Sequence,
        id: DeltaId,
        planned: bool,
        stop: &Stop,
    ) {
        let _place = self.inner.transfers.take();
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        let path = spooled(&self.send_folder(vm), sequence);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                // The maps still hold everything; the next cycle carries it.
                let what = format!("open {}: {error}", path.display());
                self.note_trouble(vm, ReturnCode::Failed, what);
                self.give_up_delta(vm, sequence, id);
                return;
            }
        };
        let total = file.metadata().map_or(0, |metadata| metadata.len());
        vm.meter.begin("sending", total);
        let began = self.inner.clock.monotonic();
        let outcome = self.send_file(vm, &relation, sequence, planned, file, stop);
        vm.meter.end();
        match outcome {
            Ok(receipt) if receipt.sequence == sequence && receipt.id == id => {
                let took = self.inner.clock.monotonic().saturating_sub(began);
                self.note_success(vm);
                self.count_success(vm, total, took);
                self.count_skipped(vm);
                let now = self.now();
                let stepped = self.step_with(vm, Event::Received(receipt), |relation| {
                    relation.saved.last.replicated_at = Some(now);
                    relation.saved.last.planned = planned;
                });
                if let Err(error) = stepped {
                    self.report_unsaved(vm, &error);
                }
                self.refresh_report(vm);
            }
            Ok(receipt) => {
                let what = format!(
                    "the replica gave a receipt for moment {} as {}, and {sequence} as {id} was sent; it is not believed",
                    receipt.sequence, receipt.id
                );
                self.note_trouble(vm, ReturnCode::Failed, what);
                self.count_failure(vm);
            }
            Err(error) => {
                self.count_failure(vm);
                self.note_link_error(vm, "send changes", &error);
            }
        }
    }

    fn send_file(
        &self,
        vm: &Vm,
        relation: &Relation,
        sequence: Sequence,
        planned: bool,
        file: File,
        stop: &Stop,
    ) -> Result<Receipt, LinkError> {
        let link = self.link(&relation.peer)?;
        let place = DeltaPlace {
            relationship: relation.record().relationship,
            lineage: relation.record().lineage.id,
            sequence,
            planned,
        };
        let metered = Metered {
            reader: BufReader::with_capacity(READ_BYTES, file),
            vm,
        };
        let mut body = self.throttled(vm, metered, stop);
        link.cancelled_by(stop.flag()).put_delta(place, &mut body)
    }

    /// A spooled delta that cannot be read any more: captured anew, with another number.
    fn give_up_delta(&self, vm: &VmArc, sequence: Sequence, _id: DeltaId) {
        self.tell(vm, Event::SpoolLost { sequence });
    }

    /// The replica has it: the maps before it may go.
    pub(crate) fn forget(&self, vm: &VmArc, receipt: Receipt) {
        if let Err(error) = self.inner.hypervisor.received(vm.id, receipt.sequence) {
            // Maps that stay only make the next delta larger.
            tracing::warn!(vm = %vm.id, "forget maps: {}", with_causes(&error));
        }
        self.drop_spooled(vm, receipt.sequence);
        self.want_verification(vm);
    }

    pub(crate) fn drop_spooled(&self, vm: &VmArc, sequence: Sequence) {
        let folder = self.send_folder(vm);
        let part = folder.join(format!("{sequence}.part"));
        for path in [part, spooled(&folder, sequence)] {
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(vm = %vm.id, "remove {}: {error}", path.display());
                }
            }
        }
    }

    pub(crate) fn start_tracking(&self, vm: &VmArc, moment: Sequence) {
        if let Err(error) = self.inner.hypervisor.start_tracking(vm.id, moment) {
            let what = format!("track changes: {}", with_causes(&error));
            self.note_trouble(vm, ReturnCode::Failed, what);
        }
    }

    pub(crate) fn stop_tracking(&self, vm: &VmArc) {
        if let Err(error) = self.inner.hypervisor.stop_tracking(vm.id) {
            tracing::warn!(vm = %vm.id, "stop tracking: {}", with_causes(&error));
        }
    }

    pub(crate) fn send_folder(&self, vm: &Vm) -> PathBuf {
        self.inner.config.state.join("send").join(vm.id.to_string())
    }

    pub(crate) fn power(&self, vm: &Vm) -> VmPower {
        match self.inner.hypervisor.power_state(vm.id) {
            Ok(lifeboat_hypervisor::PowerState::Running) => VmPower::Running,
            // A VM that its driver does not know cannot run.
            Ok(lifeboat_hypervisor::PowerState::Off) | Err(_) => VmPower::Off,
        }
    }
}

/// The disks of the relationship; all where none are named.
pub(crate) fn included(relation: &Relation, sources: &[DiskSource]) -> Vec<DiskSource> {
    let included = relation.settings.included_disks();
    let is_included = |source: &&DiskSource| included.includes(&source.disk);
    sources.iter().filter(is_included).cloned().collect()
}

fn plan(
    relation: &Relation,
    view: &dyn FrozenView,
    sources: &[DiskSource],
    sequence: Sequence,
    base: Option<Receipt>,
    kind: Kind,
) -> CapturePlan {
    let record = relation.record();
    let source = |source: &DiskSource| Source {
        disk: source.disk.clone(),
        uri: source.uri.clone(),
        bitmap: source.bitmap.clone(),
    };
    CapturePlan {
        header: Header {
            relationship: record.relationship,
            lineage: record.lineage.id,
            sequence,
            base: base.map(|base| Base {
                sequence: base.sequence,
                id: base.id,
            }),
            kind,
        },
        captured_at: view.captured_at(),
        consistency: view.consistency(),
        sources: sources.iter().map(source).collect(),
        options: stream_options(relation),
        tls: None,
        deadline: DEFAULT_DEADLINE,
        depth: DEFAULT_DEPTH,
    }
}

/// How deltas of the relationship are written.
pub(crate) fn stream_options(relation: &Relation) -> Options {
    let mut options = Options::default();
    if !relation.settings.compression_enabled() {
        options.compression = lifeboat_stream::Compression::None;
    }
    options
}

fn spooled(folder: &Path, sequence: Sequence) -> PathBuf {
    folder.join(format!("{sequence}.delta"))
}

pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Refuses to write more than the spool may hold.
struct Limited<'a> {
    file: &'a File,
    left: u64,
}

impl io::Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the delta is larger than the send-spool may be",
            ));
        }
        let written = self.file.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells how much was read.
struct Metered<'a, R> {
    reader: R,
    vm: &'a Vm,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.vm.meter.add(read as u64);
        Ok(read)
    }
}

impl Service {
    fn wanted_consistency(&self, vm: &Vm, relation: &Relation) -> Consistency {
        let interval = relation.settings.application_consistent_snapshot_interval();
        let hours = u64::from(interval);
        if hours == 0 {
            return Consistency::Crash;
        }
        let last = relation.saved.last.application_consistent_at;
        let due = last.is_none_or(|last| {
            self.now().as_micros().saturating_sub(last.as_micros()) >= hours * 3_600_000_000
        });
        let _ = vm;
        if due {
            Consistency::Application
        } else {
            Consistency::Crash
        }
    }

    fn note_captured(&self, vm: &Vm, plan: &CapturePlan, planned: bool) {
        let mut core = vm.core();
        if let Some(relation) = core.relation.as_mut() {
            let last = &mut relation.saved.last;
            last.captured_at = Some(plan.captured_at);
            last.planned = planned;
            if plan.consistency == Consistency::Application {
                last.application_consistent_at = Some(plan.captured_at);
            }
        }
    }
}
