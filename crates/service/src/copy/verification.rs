//! The comparison of everything that follows a reversal by maps.
//!
//! Maps were believed because a sample agreed with them. Afterwards, between the cycles, all of
//! both sides is compared piece by piece with the moment that the replica has applied; what the VM
//! has written since then is in the maps and may differ. Until the end health says that the
//! replica is not verified, and points that are made carry it. A restart goes on where it was.

use std::ops::Range;
use std::time::Duration;

use lifeboat_hypervisor::Tracking;
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{Event, Primary, ResyncCause, Role};
use lifeboat_model::{Receipt, Sequence};
use lifeboat_peer::{CopyKind, LinkError, RefusalCode, Verified};
use lifeboat_sys::host;

use super::compare::{Comparison, first_outside, written};
use super::disk::OpenDisk;
use super::{CopyTrouble, PIECE};
use crate::activity::Stop;
use crate::api::Severity;
use crate::cycle::included;
use crate::relation::{Relation, Verifying};
use crate::service::{Service, with_causes};
use crate::vm::{Task, VmArc};

/// How long the replica is asked again whether it has applied the last moment.
const APPLIES: Duration = Duration::from_secs(60);

/// How long is waited between two such questions.
const ASKS_AGAIN: Duration = Duration::from_millis(200);

/// The longest rest after a piece; else it is as long as the piece took, so that the guest has its
/// disks for itself in between.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How a run of the comparison came to its end.
enum Outcome {
    All,
    /// Other work waits.
    Interrupted,
}

impl Service {
    /// Saves whether a comparison of everything has to follow a copy of this kind.
    pub(super) fn verify_after(&self, vm: &VmArc, kind: CopyKind) -> Result<(), CopyTrouble> {
        let verifying = match kind {
            CopyKind::ByMaps => Some(Verifying::default()),
            CopyKind::Initial | CopyKind::Resync => None,
        };
        self.note_verifying(vm, verifying)
    }

    fn note_verifying(&self, vm: &VmArc, verifying: Option<Verifying>) -> Result<(), CopyTrouble> {
        self.label(vm, |saved| saved.verifying = verifying)
            .map_err(|refusal| CopyTrouble::Save {
                why: refusal.message,
            })
    }

    /// The replica has got a moment: the comparison may go on with it.
    pub(crate) fn want_verification(&self, vm: &VmArc) {
        let is_wanted = vm
            .core()
            .relation()
            .is_some_and(|relation| relation.saved.verifying.is_some());
        if is_wanted {
            self.work_on(vm, [Task::Verify]);
        }
    }

    /// Compares until all is compared or something else waits.
    pub(crate) fn verify_on(&self, vm: &VmArc, stop: &Stop) {
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        let Some(verifying) = relation.saved.verifying.clone() else {
            return;
        };
        let Some(receipt) = receipt_while_replicating(&relation) else {
            return;
        };
        match self.is_tracked_since(vm, receipt.sequence) {
            Ok(true) => {}
            // Another receipt comes, or the maps are lost and everything is compared anyway.
            Ok(false) => return,
            Err(trouble) => {
                tracing::warn!(vm = %vm.id, "verify the replica: {}", with_causes(&trouble));
                return;
            }
        }
        let outcome = self.compare_everything(vm, &relation, receipt, verifying, stop);
        vm.meter.end();
        let name = vm.name();
        match outcome {
            Ok(Outcome::All) => {
                let message = format!(
                    "{name}: both sides were compared whole and are equal; recovery points made from now on are verified"
                );
                self.report(Some(vm.id), Severity::Info, "verified", &message);
            }
            Ok(Outcome::Interrupted) => self.work_on(vm, [Task::Verify]),
            Err(CopyTrouble::Stopped | CopyTrouble::Link(LinkError::Cancelled)) => {}
            // Whatever the link has, the next cycle meets and tells; its receipt leads here again.
            Err(CopyTrouble::Link(error)) => {
                tracing::info!(vm = %vm.id, "verify the replica: {}", with_causes(&error));
            }
            Err(CopyTrouble::Unproved { why }) => {
                let message = format!(
                    "{name}: {why}; no changes are sent until `lifeboat replication resync {name}` has compared and mended everything, or the automatic resynchronization has"
                );
                self.report(Some(vm.id), Severity::Error, "replica_differs", &message);
                self.tell(vm, Event::NeedsResync(ResyncCause::Differs));
            }
            Err(trouble) => {
                let what = format!("verify the replica: {}", with_causes(&trouble));
                self.note_trouble(vm, ReturnCode::Failed, what);
            }
        }
    }

    /// Whether all that was written since the moment is known.
    fn is_tracked_since(&self, vm: &VmArc, moment: Sequence) -> Result<bool, CopyTrouble> {
        let tracking = self.inner.hypervisor.tracking(vm.id);
        match tracking.map_err(|source| CopyTrouble::Disks { source })? {
            Tracking::Since { moments } => {
                Ok(moments.first().is_some_and(|first| *first <= moment))
            }
            Tracking::Off | Tracking::Unknown { .. } => Ok(false),
        }
    }

    fn compare_everything(
        &self,
        vm: &VmArc,
        relation: &Relation,
        receipt: Receipt,
        mut verifying: Verifying,
        stop: &Stop,
    ) -> Result<Outcome, CopyTrouble> {
        let record = relation.record();
        let link = self.link(&relation.peer)?.cancelled_by(stop.flag());
        let sources = self.inner.hypervisor.present_disks(vm.id);
        let sources = included(
            relation,
            &sources.map_err(|source| CopyTrouble::Disks { source })?,
        );
        let total = sources.iter().map(|source| source.size.bytes()).sum();
        vm.meter.begin("verifying the replica", total);
        vm.meter.set(verifying.done.values().sum());
        let comparison = Comparison {
            relationship: record.relationship,
            lineage: record.lineage.id,
            link: link.as_ref(),
            key: host::random_bytes().map_err(|source| CopyTrouble::Key { source })?,
            at: Some(receipt.sequence),
        };
        for (index, source) in sources.iter().enumerate() {
            let disk = OpenDisk::open(index, source)?;
            let mut at = verifying.done.get(&disk.id).copied().unwrap_or(0);
            while at < disk.size {
                let begun = self.inner.clock.monotonic();
                let piece = at..disk.size.min(at + PIECE);
                at = piece.end;
                if !self.is_equal(vm, &comparison, &disk, piece.clone(), stop)? {
                    return Ok(Outcome::Interrupted);
                }
                verifying.done.insert(disk.id.clone(), at);
                self.note_verifying(vm, Some(verifying.clone()))?;
                vm.meter.add(piece.end - piece.start);
                let took = self.inner.clock.monotonic().saturating_sub(begun);
                vm.wait_until(took.min(LONGEST_REST), |_| {
                    stop.is_asked() || vm.has_waiting()
                });
            }
        }
        link.verified(Verified {
            relationship: record.relationship,
            lineage: record.lineage.id,
            at: receipt.sequence,
        })?;
        self.note_verifying(vm, None)?;
        Ok(Outcome::All)
    }

    /// Compares one piece; `false` when other work waits and it was not compared.
    fn is_equal(
        &self,
        vm: &VmArc,
        comparison: &Comparison<'_>,
        disk: &OpenDisk,
        piece: Range<u64>,
        stop: &Stop,
    ) -> Result<bool, CopyTrouble> {
        let begun = self.inner.clock.monotonic();
        let piece = [piece];
        let mut suspects: Option<Vec<Range<u64>>> = None;
        loop {
            if stop.is_asked() {
                return Err(CopyTrouble::Stopped);
            }
            if vm.has_waiting() {
                return Ok(false);
            }
            let found = match &suspects {
                None => comparison.differing(disk, &piece),
                Some(suspects) => comparison.differing_blocks(disk, suspects),
            };
            let differing = match found {
                Ok(differing) => differing,
                Err(CopyTrouble::Link(LinkError::Refused(refusal)))
                    if refusal.code == RefusalCode::Busy
                        && self.inner.clock.monotonic().saturating_sub(begun) < APPLIES =>
                {
                    vm.wait_until(ASKS_AGAIN, |_| stop.is_asked());
                    continue;
                }
                Err(trouble) => return Err(trouble),
            };
            let known = written(self, vm, &disk.id)?;
            let Some(at) = first_outside(&differing, &known, disk.size) else {
                return Ok(true);
            };
            // What is written just now may be seen before it is noted: looked at once more.
            if suspects.replace(differing).is_some() {
                return Err(CopyTrouble::Unproved {
                    why: format!(
                        "disk {} of the replica differs at {at}, where nothing was written since moment {}",
                        disk.id,
                        comparison.at.unwrap_or_default()
                    ),
                });
            }
        }
    }
}

/// The last moment that the replica has, while nothing but cycles is under way.
fn receipt_while_replicating(relation: &Relation) -> Option<Receipt> {
    match &relation.record().role {
        Role::Primary(Primary::Replicating { .. }) => relation.last_receipt(),
        Role::Primary(
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::Preparing { .. }
            | Primary::Prepared { .. }
            | Primary::AskingToGoOn { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. },
        )
        | Role::Replica(_) => None,
    }
}
