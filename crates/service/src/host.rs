//! What this host does for its peers. Every call is checked against the caller's certificate,
//! the authorization entries and the lineages before it touches anything.

use std::io::Read;

use lifeboat_model::authorization::{AuthorizationEntry, AuthorizationTable};
use lifeboat_model::contract::ReplicationState;
use lifeboat_model::relationship::{
    Event, Hop, Primary, Record, Replica, ReplicaPhase, Role, TakeOverNews, VmPower,
};
use lifeboat_model::{LineageId, Receipt, RelationshipId, Sequence};
use lifeboat_peer::{
    Adopted, Adoption, BeginCopy, ChangeSettings, ChunkPlace, CopyKind, CopyProgress, DeltaPlace,
    DigestQuery, GuestStatus, Host, Introduction, NewReplica, PeerName, PlannedFailover,
    PlannedPhase, Refusal, RefusalCode, Removal, ReplicaReport, ReplicaRole, SessionRequest,
    TakeOver, TakeOverState, Tip, Verified,
};
use lifeboat_store::{DigestUnit, History, NewCopy, Received, StoreError, decode_chunk};

use crate::answers::{
    StoreRefusal, code_of, definition_of, key_of, not_authorized, progress_of, refusal,
    refuse_unless_at, settings_of, store_is_closed, unknown_relationship,
};
use crate::api::Severity;
use crate::replica::ReplicaStore;
use crate::service::{Service, with_causes};
use crate::vm::{Vm, VmArc};

impl Service {
    /// The most specific entry that lets a host in.
    pub(crate) fn entry_for(&self, host: &str) -> Option<AuthorizationEntry> {
        let entries = self.inner.ledger.entries().ok()?;
        let table = AuthorizationTable::try_from(entries).ok()?;
        table.entry_for(&host.parse().ok()?).ok().cloned()
    }

    /// The VM of a relationship whose primary may be the caller.
    fn replica_of(
        &self,
        caller: &PeerName,
        relationship: RelationshipId,
    ) -> Result<VmArc, Refusal> {
        let vm = self.vm_of(relationship)?;
        let group = {
            let core = vm.core();
            let relation = core.relation().ok_or_else(unknown_relationship)?;
            if relation.is_primary() {
                return Err(refusal(
                    RefusalCode::OtherLineage,
                    "this host protects the VM itself now; ask it what it holds",
                ));
            }
            relation.trust_group.clone()
        };
        let entry = self.entry_for(caller.as_str());
        match entry {
            Some(entry) if entry.trust_group.as_str() == group => {
                self.note_contact(&vm);
                Ok(vm)
            }
            Some(entry) => Err(refusal(
                RefusalCode::NotAuthorized,
                &format!(
                    "{caller} belongs to trust group {:?} here, and this VM to {group:?}",
                    entry.trust_group.as_str()
                ),
            )),
            None => Err(not_authorized(caller)),
        }
    }

    /// The VM of a relationship whose other side is the caller.
    fn protected_by(
        &self,
        caller: &PeerName,
        relationship: RelationshipId,
    ) -> Result<VmArc, Refusal> {
        let vm = self.vm_of(relationship)?;
        let is_peer = {
            let core = vm.core();
            let relation = core.relation().ok_or_else(unknown_relationship)?;
            relation.peer.host.eq_ignore_ascii_case(caller.as_str())
        };
        if is_peer {
            self.note_contact(&vm);
            Ok(vm)
        } else {
            Err(refusal(
                RefusalCode::NotAuthorized,
                &format!("{caller} is not the other side of this relationship"),
            ))
        }
    }

    fn vm_of(&self, relationship: RelationshipId) -> Result<VmArc, Refusal> {
        let vms = self.all_vms();
        let found = vms.into_iter().find(|vm| {
            vm.core()
                .relation()
                .is_some_and(|relation| relation.record().relationship == relationship)
        });
        found.ok_or_else(unknown_relationship)
    }

    /// The peer is there again: what waits for it is tried at once.
    fn note_contact(&self, vm: &VmArc) {
        let waits = {
            let mut core = vm.core();
            let failed = core.facts.failures > 0;
            let is_primary = core
                .relation()
                .is_some_and(crate::relation::Relation::is_primary);
            core.facts.wanted |= failed && is_primary;
            failed && is_primary
        };
        if waits {
            self.set_alarm(vm);
        }
    }

    fn refuse_other_lineage(vm: &VmArc, lineage: LineageId) -> Result<(), Refusal> {
        let core = vm.core();
        let relation = core.relation().ok_or_else(unknown_relationship)?;
        if relation.record().lineage.id == lineage {
            Ok(())
        } else {
            Err(refusal(
                RefusalCode::OtherLineage,
                "this replica follows another history of the VM; ask it what it holds",
            ))
        }
    }

    /// Refuses unless the replica takes in what a primary sends.
    fn refuse_unless_receiving(&self, vm: &VmArc) -> Result<(), Refusal> {
        let core = vm.core();
        let relation = core.relation().ok_or_else(unknown_relationship)?;
        let Role::Replica(replica) = &relation.record().role else {
            return Err(unknown_relationship());
        };
        if !self.receives() {
            return Err(refusal(
                RefusalCode::Busy,
                "this host does not accept replication at the moment; see `lifeboat host settings` there",
            ));
        }
        match &replica.phase {
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Resyncing
            | ReplicaPhase::Critical(_) => Ok(()),
            ReplicaPhase::Suspended => Err(refusal(
                RefusalCode::Busy,
                "the replica was paused by an operator of its host",
            )),
            ReplicaPhase::FailingOver(_)
            | ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Reverting { .. }
            | ReplicaPhase::Committing { .. }
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. } => Err(refusal(
                RefusalCode::OtherLineage,
                "the replica has failed over",
            )),
        }
    }

    pub(crate) fn receives(&self) -> bool {
        self.service_settings().recovery_server()
            == lifeboat_model::service_settings::RecoveryServer::Enabled
    }

    fn is_backlogged(&self, vm: &VmArc) -> bool {
        let facts = vm.store_facts();
        let limit = self.backlog_limit(vm);
        let waiting: u64 = facts
            .status
            .iter()
            .flat_map(|status| &status.pending)
            .map(|pending| pending.bytes)
            .sum();
        waiting > limit
    }

    /// What applying manages in as many seconds as the settings allow, at least 64 MiB.
    pub(crate) fn backlog_limit(&self, vm: &VmArc) -> u64 {
        let facts = vm.store_facts();
        let seconds = vm.core().relation().map_or(60, |relation| {
            relation.settings.apply_backlog_limit().as_secs()
        });
        let speed = facts.speed_or_default();
        speed.saturating_mul(seconds).max(64 << 20)
    }

    fn report_for(&self, vm: &VmArc) -> Result<ReplicaReport, Refusal> {
        let status = vm.store_facts().status;
        let (relation, refusal) = {
            let core = vm.core();
            (
                core.relation.clone().ok_or_else(unknown_relationship)?,
                core.facts.trouble.clone(),
            )
        };
        let record = relation.record();
        let is_replica = !relation.is_primary() && relation.saved.adopting.is_none();
        if is_replica && !self.open_if_failed(vm) {
            // Nothing must be concluded from what a closed store does not say.
            return Err(store_is_closed(vm));
        }
        let role = match &record.role {
            Role::Primary(_) => ReplicaRole::Primary,
            Role::Replica(replica) => role_of(&replica.phase),
        };
        let (lineage, ancestors) = told_lineage(record);
        let held = vm.store();
        // What is received is applied: nobody need fear for a copy that has its end.
        let copy = held
            .as_ref()
            .filter(|replica| !replica.store.is_copy_closed())
            .and_then(|replica| replica.store.copy_status())
            .map(|status| progress_of(&status));
        let tip = held.as_ref().and_then(|replica| replica.store.tip_moment());
        let applied = held
            .as_ref()
            .map_or(Sequence::ZERO, |replica| replica.store.applied());
        drop(held);
        let backlog_bytes = status
            .iter()
            .flat_map(|status| &status.pending)
            .map(|pending| pending.bytes)
            .sum();
        Ok(ReplicaReport {
            lineage,
            ancestors,
            role,
            tip: tip.map(|(sequence, id)| Tip { sequence, id }),
            applied,
            copy,
            suspended: record.state() == ReplicationState::Suspended,
            backlog_bytes,
            backlog_limit_bytes: self.backlog_limit(vm),
            start_seconds: self.start_of_replica(vm).seconds,
            free_bytes: status.map_or(0, |status| status.available_bytes),
            refusal: self
                .refuse_unless_receiving(vm)
                .err()
                .map(|refusal| refusal.message)
                .or(refusal
                    .filter(|_| record.state() == ReplicationState::Critical)
                    .map(|trouble| trouble.what)),
            wall_clock: self.now(),
        })
    }
}

/// What a peer is told: while failed over, the lineage that began with it.
fn told_lineage(record: &Record) -> (lifeboat_model::Lineage, Vec<lifeboat_model::Lineage>) {
    let mut ancestors = record.ancestors.clone();
    if let Role::Replica(replica) = &record.role {
        match &replica.phase {
            ReplicaPhase::FailedOver { lineage, .. }
            | ReplicaPhase::Reverting { lineage, .. }
            | ReplicaPhase::Committing { lineage, .. } => {
                ancestors.push(record.lineage);
                return (*lineage, ancestors);
            }
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. } => {}
        }
    }
    (record.lineage, ancestors)
}

fn role_of(phase: &ReplicaPhase) -> ReplicaRole {
    match phase {
        ReplicaPhase::WaitingInitial
        | ReplicaPhase::Replicating
        | ReplicaPhase::Suspended
        | ReplicaPhase::Critical(_)
        | ReplicaPhase::Resyncing
        | ReplicaPhase::FailingOver(_) => ReplicaRole::Replica,
        ReplicaPhase::FailedOver { .. }
        | ReplicaPhase::Reverting { .. }
        | ReplicaPhase::Committing { .. } => ReplicaRole::FailedOver,
        ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => ReplicaRole::Committed,
    }
}

impl Host for Service {
    fn introduce(&self, caller: &PeerName) -> Result<Introduction, Refusal> {
        let refusal = if !self.receives() {
            Some("this host does not accept replication: enable it with `lifeboat host settings --recovery-server on --authentication certificate`".to_owned())
        } else if self.entry_for(caller.as_str()).is_none() {
            Some(not_authorized(caller).message)
        } else {
            None
        };
        Ok(Introduction {
            version: lifeboat_peer::VERSION,
            software: format!("lifeboat {}", env!("CARGO_PKG_VERSION")),
            host: self.inner.config.host.clone(),
            refusal,
            wall_clock: self.now(),
        })
    }

    fn make_replica(&self, caller: &PeerName, message: NewReplica) -> Result<(), Refusal> {
        let entry = self.accept_replica(caller, &message)?;
        if let Some(vm) = self.find(message.vm) {
            let known = vm.core().relation.clone();
            match known {
                Some(relation)
                    if relation.record().relationship == message.relationship
                        && !relation.is_primary() =>
                {
                    return Ok(());
                }
                Some(_) => self.make_room(caller, &vm)?,
                None => {
                    return Err(refusal(
                        RefusalCode::InvalidState,
                        "this host has a VM with this id that is no replica",
                    ));
                }
            }
        }
        self.create_replica(caller, &message, &entry)
    }

    fn begin_session(
        &self,
        caller: &PeerName,
        message: SessionRequest,
    ) -> Result<ReplicaReport, Refusal> {
        // Also a host that was left behind must hear that it was.
        let vm = self.vm_of(message.relationship)?;
        let allowed = self.protected_by(caller, message.relationship).is_ok()
            || self.replica_of(caller, message.relationship).is_ok();
        if !allowed {
            return Err(not_authorized(caller));
        }
        let address_changed = {
            let core = vm.core();
            core.relation().is_some_and(|relation| {
                !relation.is_primary() && relation.peer.host != caller.as_str()
            })
        };
        if address_changed {
            tracing::info!(vm = %vm.id, "{caller} sends this VM's changes now");
        }
        self.report_for(&vm)
    }

    fn begin_copy(&self, caller: &PeerName, message: BeginCopy) -> Result<CopyProgress, Refusal> {
        let vm = self.replica_of(caller, message.relationship)?;
        Self::refuse_other_lineage(&vm, message.lineage)?;
        self.refuse_unless_receiving(&vm)?;
        if vm.core().test.is_some() && message.kind != CopyKind::Initial {
            return Err(refusal(
                RefusalCode::Busy,
                "a test failover is under way; a resynchronization waits for its end",
            ));
        }
        let kind = match message.kind {
            CopyKind::Initial => lifeboat_store::CopyKind::Initial,
            CopyKind::Resync => lifeboat_store::CopyKind::Resync,
            CopyKind::ByMaps => lifeboat_store::CopyKind::ByMaps,
        };
        let sequence = message.copy;
        let history = {
            let core = vm.core();
            let record = core.relation().ok_or_else(unknown_relationship)?.record();
            History {
                lineage: record.lineage,
                ancestors: record.ancestors.clone(),
            }
        };
        let status = self.with_store(&vm, |service, replica| {
            service.refuse_other_disks(replica, &message.disks)?;
            let now = service.now();
            let copy = NewCopy { sequence, kind };
            Ok(replica
                .store
                .begin_copy_following(copy, Some(history), now)?)
        })?;
        self.tell(&vm, Event::ResyncBegun);
        Ok(progress_of(&status))
    }

    fn digests(&self, caller: &PeerName, message: DigestQuery) -> Result<Vec<u8>, Refusal> {
        let vm = self.replica_of(caller, message.relationship)?;
        Self::refuse_other_lineage(&vm, message.lineage)?;
        self.refuse_unless_receiving(&vm)?;
        let key = key_of(&message.key)?;
        let unit = DigestUnit::try_from(message.unit)
            .map_err(|error| refusal(RefusalCode::Invalid, &error.to_string()))?;
        if message.at.is_some() && vm.is_store_busy() {
            return Err(refusal(
                RefusalCode::Busy,
                "changes are being applied; ask again when that has ended",
            ));
        }
        let digester = self.with_store(&vm, |_, replica| {
            refuse_unless_at(&replica.store, message.at)?;
            Ok(replica.store.head_digester()?)
        })?;
        digester
            .digests(&message.disk, &message.ranges, unit, &key)
            .map_err(|error| {
                let code = match error.kind() {
                    std::io::ErrorKind::InvalidInput => RefusalCode::Invalid,
                    _ => RefusalCode::Failed,
                };
                refusal(code, &format!("read the replica's disk: {error}"))
            })
    }

    fn verified(&self, caller: &PeerName, message: Verified) -> Result<(), Refusal> {
        let vm = self.replica_of(caller, message.relationship)?;
        Self::refuse_other_lineage(&vm, message.lineage)?;
        self.refuse_unless_receiving(&vm)?;
        self.with_store(&vm, |service, replica| {
            if replica.store.is_verified() {
                return Ok(());
            }
            refuse_unless_at(&replica.store, Some(message.at))?;
            replica.store.mark_verified()?;
            service.note_store(&vm, replica);
            Ok(())
        })
    }

    fn put_chunk(
        &self,
        caller: &PeerName,
        place: ChunkPlace,
        body: &mut dyn Read,
    ) -> Result<(), Refusal> {
        let vm = self.replica_of(caller, place.relationship)?;
        Self::refuse_other_lineage(&vm, place.lineage)?;
        self.refuse_unless_receiving(&vm)?;
        let place = lifeboat_store::ChunkPlace {
            relationship: place.relationship,
            lineage: place.lineage,
            sequence: place.copy,
            disk: place.disk,
            range: place.range,
        };
        // Read and verified whole before anybody has to wait for the store.
        let chunk = decode_chunk(body, &place, &self.inner.chunk_memory)
            .map_err(|error| refusal(RefusalCode::Invalid, &with_causes(&error)))?;
        self.with_store(&vm, |_, replica| Ok(replica.store.write_chunk(&chunk)?))
    }

    fn put_delta(
        &self,
        caller: &PeerName,
        place: DeltaPlace,
        body: &mut dyn Read,
    ) -> Result<Receipt, Refusal> {
        let vm = self.replica_of(caller, place.relationship)?;
        Self::refuse_other_lineage(&vm, place.lineage)?;
        self.refuse_unless_receiving(&vm)?;
        if self.is_backlogged(&vm) {
            return Err(refusal(
                RefusalCode::Busy,
                "more changes wait to be applied than the settings allow; they are taken again when some are applied",
            ));
        }
        if place.planned {
            // Saved first: once the delta is durable it may be applied at any time. A number that
            // never comes is never another moment's.
            self.label(&vm, |saved| saved.planned_moment = Some(place.sequence))?;
        }
        let received = self.receive_delta(&vm, body)?;
        let now = self.now();
        let bytes = received.bytes;
        let receipt = received.receipt;
        // It is durable, so it is applied, whatever becomes of the rest.
        self.apply_soon(&vm);
        self.label(&vm, |saved| {
            saved.last.replicated_at = Some(now);
            saved.last.planned = place.planned;
            saved.record.drawn = saved.record.drawn.max(receipt.sequence);
        })?;
        self.count_received(&vm, bytes);
        Ok(receipt)
    }

    fn planned_failover(&self, caller: &PeerName, message: PlannedFailover) -> Result<(), Refusal> {
        let vm = self.replica_of(caller, message.relationship)?;
        Self::refuse_other_lineage(&vm, message.lineage)?;
        self.refuse_unless_receiving(&vm)?;
        match message.phase {
            PlannedPhase::Prepared => {
                let tip = vm.store().as_ref().map(|replica| replica.store.tip());
                if tip != Some(message.sequence) {
                    return Err(refusal(
                        RefusalCode::NotContinuous,
                        "the last moment of the planned failover is not here",
                    ));
                }
                let sequence = message.sequence;
                self.step(&vm, Event::Prepared { sequence })
            }
            PlannedPhase::Cancelled => self.step(
                &vm,
                Event::PreparedCancelled {
                    sequence: message.sequence,
                },
            ),
        }
        .map_err(|error| refusal(RefusalCode::Failed, &with_causes(&error)))
    }

    fn guest_status(
        &self,
        caller: &PeerName,
        relationship: RelationshipId,
    ) -> Result<GuestStatus, Refusal> {
        let vm = self.protected_by(caller, relationship)?;
        let (prepared, preparing) = {
            let core = vm.core();
            match core.relation().map(|relation| &relation.record().role) {
                Some(Role::Primary(Primary::Prepared { last })) => (Some(last.sequence), false),
                Some(Role::Primary(Primary::Preparing { .. })) => (None, true),
                Some(Role::Primary(_) | Role::Replica(_)) | None => (None, false),
            }
        };
        Ok(GuestStatus {
            running: self.power(&vm) == VmPower::Running,
            prepared,
            preparing,
            unsent_bytes: self.inner.hypervisor.dirty_bytes(vm.id).unwrap_or(0),
        })
    }

    fn take_over(&self, caller: &PeerName, message: TakeOver) -> Result<(), Refusal> {
        let vm = self.protected_by(caller, message.relationship)?;
        let news = match message.state {
            TakeOverState::FailedOver | TakeOverState::Committed => TakeOverNews::TakenOver {
                lineage: message.lineage,
                ancestors: message.ancestors,
                hop: hop_of(&vm),
            },
            TakeOverState::Reverted => TakeOverNews::Reverted,
        };
        self.step(&vm, Event::Peer(news))
            .map_err(|error| refusal(RefusalCode::Failed, &with_causes(&error)))
    }

    fn adopt(&self, caller: &PeerName, message: Adoption) -> Result<Adopted, Refusal> {
        self.become_replica(caller, &message)
    }

    fn change_settings(&self, caller: &PeerName, message: ChangeSettings) -> Result<(), Refusal> {
        let vm = self.replica_of(caller, message.relationship)?;
        let settings = settings_of(&message.settings)?;
        let definition = definition_of(&message.definition)?;
        self.take_settings(&vm, settings, &definition)
    }

    fn remove(&self, caller: &PeerName, message: Removal) -> Result<(), Refusal> {
        let vm = self.replica_of(caller, message.relationship)?;
        let message = format!(
            "{}: {caller} does not protect this VM any more; the replica and its recovery points stay until replication is removed here",
            vm.name()
        );
        self.report(Some(vm.id), Severity::Warning, "primary_removed", &message);
        Ok(())
    }
}

impl Service {
    /// Does something with the VM's store; a failure half way lets the store be opened again.
    pub(crate) fn with_store<T>(
        &self,
        vm: &VmArc,
        act: impl FnOnce(&Self, &mut ReplicaStore) -> Result<T, StoreRefusal>,
    ) -> Result<T, Refusal> {
        if !self.open_if_failed(vm) {
            return Err(store_is_closed(vm));
        }
        let outcome = match vm.store().as_mut() {
            Some(replica) => act(self, replica),
            None => return Err(store_is_closed(vm)),
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(StoreRefusal::Said(refusal)) => Err(refusal),
            Err(StoreRefusal::Store(error)) => {
                self.reopen_if_needed(vm, &error);
                // It may hold changes that are on the disk although their storing failed, and that
                // their sender need not send again.
                self.apply_soon(vm);
                Err(refusal(code_of(&error), &with_causes(&error)))
            }
        }
    }

    /// Receives a delta at the sender's pace; nobody waits for the store meanwhile.
    fn receive_delta(&self, vm: &VmArc, body: &mut dyn Read) -> Result<Received, Refusal> {
        let refused = |error: StoreError| refusal(code_of(&error), &with_causes(&error));
        let intake = self.with_store(vm, |_, replica| Ok(replica.store.intake()?))?;
        let mut receiving = intake.open(body).map_err(refused)?;
        self.with_store(vm, |_, replica| {
            Ok(replica.store.refuse_unwanted(&mut receiving)?)
        })?;
        let part = receiving.take_in().map_err(refused)?;
        self.with_store(vm, |service, replica| {
            let received = replica.store.admit(part)?;
            service.note_store(vm, replica);
            Ok(received)
        })
    }

    /// Saves labels without an event.
    pub(crate) fn label(
        &self,
        vm: &VmArc,
        change: impl FnOnce(&mut crate::relation::Saved),
    ) -> Result<(), Refusal> {
        let mut core = vm.core();
        let Some(relation) = core.relation.as_mut() else {
            return Err(unknown_relationship());
        };
        let mut next = relation.clone();
        change(&mut next.saved);
        if next.saved == relation.saved {
            return Ok(());
        }
        next.version = self
            .inner
            .ledger
            .save_relation(&next)
            .map_err(|error| refusal(RefusalCode::Failed, &with_causes(&error)))?;
        *relation = next;
        Ok(())
    }

    fn refuse_other_disks(
        &self,
        replica: &ReplicaStore,
        theirs: &[lifeboat_peer::PeerDisk],
    ) -> Result<(), StoreRefusal> {
        let ours = replica.store.disks();
        let same = ours.len() == theirs.len()
            && ours.iter().all(|(id, size)| {
                theirs
                    .iter()
                    .any(|disk| disk.id == *id && disk.size == *size)
            });
        if same {
            Ok(())
        } else {
            Err(StoreRefusal::Said(refusal(
                RefusalCode::Invalid,
                "the disks are not those that the replica was made with, or have other sizes",
            )))
        }
    }
}

/// How this host is replicated to: a take-over's news do not say, and change nothing of it.
fn hop_of(vm: &Vm) -> Hop {
    match vm.core().relation().map(|relation| &relation.record().role) {
        Some(Role::Replica(replica)) if replica.extended => Hop::Second,
        Some(Role::Replica(_) | Role::Primary(_)) | None => Hop::First,
    }
}

/// A new replica's record.
pub(crate) fn replica_record(message: &NewReplica) -> Record {
    Record {
        vm: message.vm,
        relationship: message.relationship,
        lineage: message.lineage,
        ancestors: Vec::new(),
        drawn: Sequence::ZERO,
        role: Role::Replica(Replica::waiting(message.extended)),
        forwards: None,
    }
}
