//! Swapping the roles: the survivor becomes the primary, the old primary the replica.
//!
//! The survivor asks; the old primary saves that it is a replica now and which images are to
//! become heads, lets go of its VM, and takes the images over. Whatever crashes when, asking
//! again brings it to its end.

use std::ops::Range;
use std::sync::Arc;

use lifeboat_hypervisor::{HypervisorError, Tracking, VmDefinition};
use lifeboat_model::authorization::AuthorizationEntry;
use lifeboat_model::contract::ReturnCode;
use lifeboat_model::relationship::{Event, Hop, Refused, ReplicaPhase, Role, Step};
use lifeboat_model::{DiskId, Lineage, Sequence};
use lifeboat_peer::{
    Adopted, Adoption, ChangedDisk, ChangedSince, LinkError, NewReplica, PeerDisk, PeerName,
    Refusal, RefusalCode,
};
use lifeboat_store::{Adoption as StoreAdoption, NewStore, Reversal as StoreReversal, Store};

use crate::answers::{definition_of, not_authorized, refusal, settings_of};
use crate::api::{DiskRanges, Severity};
use crate::host::replica_record;
use crate::ledger::document;
use crate::note::Note;
use crate::relation::{Adopting, PeerPlace, Relation, Reversal, Saved};
use crate::service::{Service, with_causes};
use crate::vm::{Core, DisksPlace, Facts, Task, Vm, VmArc};

impl Service {
    /// The survivor's part: asks the old primary to become the replica.
    pub(crate) fn ask_adoption(&self, vm: &VmArc) {
        let Some(relation) = vm.core().relation.clone() else {
            return;
        };
        vm.meter
            .begin("asking the old primary to become the replica", 0);
        let outcome = self.send_adoption(vm, &relation);
        vm.meter.end();
        match outcome {
            Ok(adopted) => {
                self.note_success(vm);
                let drawn = adopted.drawn;
                let reversal = Reversal {
                    changed: adopted.changed,
                    why_unknown: adopted.why_unknown,
                };
                let stepped = self.step_with(vm, Event::Adopted { drawn }, |relation| {
                    relation.saved.reversal = Some(reversal);
                    relation.saved.planned_moment = None;
                });
                if let Err(error) = stepped {
                    self.report_unsaved(vm, &error);
                }
                self.note_beside_store(vm);
            }
            Err(error) => {
                let what = format!("reverse replication: {}", with_causes(&error));
                let code = match &error {
                    LinkError::Refused(refusal) => crate::work::return_code(refusal.code),
                    _ => ReturnCode::NotAvailable,
                };
                self.note_trouble(vm, code, what);
                self.tell(vm, Event::AdoptionFailed);
            }
        }
    }

    fn send_adoption(&self, vm: &VmArc, relation: &Relation) -> Result<Adopted, LinkError> {
        let record = relation.record();
        let (name, definition) = {
            let core = vm.core();
            (
                core.definition.name().to_owned(),
                serde_json::to_value(&core.definition).unwrap_or_default(),
            )
        };
        let disks = self.replicated_disks(vm, relation);
        let message = Adoption {
            old_relationship: record.relationship,
            replica: NewReplica {
                vm: vm.id,
                vm_name: name,
                relationship: record.relationship,
                lineage: record.lineage,
                disks,
                definition,
                settings: serde_json::to_value(&relation.settings).unwrap_or_default(),
                caller_address: self.inner.config.peer_address.clone(),
                extended: false,
            },
            ancestors: record.ancestors.clone(),
        };
        self.link(&relation.peer)?.adopt(message)
    }

    /// Those of the store, or of a VM that has none, those that its settings name.
    fn replicated_disks(&self, vm: &VmArc, relation: &Relation) -> Vec<PeerDisk> {
        if let Some(replica) = vm.store().as_ref() {
            let disks = replica.store.disks().into_iter();
            return disks.map(|(id, size)| PeerDisk { id, size }).collect();
        }
        let core = vm.core();
        let disks = core.definition.settings().disks.iter();
        disks
            .filter(|disk| relation.settings.included_disks().includes(&disk.id))
            .map(|disk| PeerDisk {
                id: disk.id.clone(),
                size: disk.size,
            })
            .collect()
    }

    /// In which ranges the two sides may differ after a swap, by the maps of both; or why the
    /// maps are not believed. `copy` is the moment of the reversal itself: maps that begin with
    /// it say nothing of what the VM wrote before.
    pub(crate) fn diverged(
        &self,
        vm: &VmArc,
        relation: &Relation,
        copy: Sequence,
    ) -> Result<DiskRanges, String> {
        let reversal = relation
            .saved
            .reversal
            .as_ref()
            .ok_or("nothing is known of the old primary's changes")?;
        let theirs = reversal.changed.as_ref().ok_or_else(|| {
            reversal
                .why_unknown
                .clone()
                .unwrap_or_else(|| "the old primary's maps are not whole".to_owned())
        })?;
        let tip = relation
            .saved
            .tip_at_failover
            .ok_or("the newest moment before the failover is not known")?;
        if theirs.moment > tip {
            return Err(format!(
                "the old primary's maps begin at moment {}, and the survivor had {tip}",
                theirs.moment
            ));
        }
        let survivor = {
            let held = vm.store();
            let replica = held.as_ref().ok_or("the store is not open")?;
            replica
                .store
                .divergence()
                .map_err(|error| with_causes(&error))?
                .ok_or("the survivor's divergence map is gone")?
        };
        let tracking = self.inner.hypervisor.tracking(vm.id);
        match tracking.map_err(|error| with_causes(&error))? {
            Tracking::Since { moments } if moments.first().is_some_and(|first| *first < copy) => {}
            Tracking::Since { .. } | Tracking::Off | Tracking::Unknown { .. } => {
                return Err("what the VM wrote since the commit is not known".to_owned());
            }
        }
        let written = self
            .inner
            .hypervisor
            .changed_ranges(vm.id)
            .map_err(|error| with_causes(&error))?
            .ok_or("what the VM wrote since the commit is not known")?;
        let mut diverged: DiskRanges = survivor;
        let mut add = |id: &DiskId, ranges: &[Range<u64>]| match diverged
            .iter_mut()
            .find(|(known, _)| known == id)
        {
            Some((_, known)) => known.extend_from_slice(ranges),
            None => diverged.push((id.clone(), ranges.to_vec())),
        };
        for (id, ranges) in &written {
            add(id, ranges);
        }
        for disk in &theirs.disks {
            add(&disk.id, &disk.ranges);
        }
        for (_, ranges) in &mut diverged {
            ranges.sort_by_key(|range| range.start);
        }
        Ok(diverged)
    }

    /// Whether a host may put a replica here, and under which entry.
    pub(crate) fn accept_replica(
        &self,
        caller: &PeerName,
        message: &NewReplica,
    ) -> Result<AuthorizationEntry, Refusal> {
        if !self.receives() {
            return Err(refusal(
                RefusalCode::NotAuthorized,
                "this host does not accept replication: enable it here with `lifeboat host settings --recovery-server on --authentication certificate`",
            ));
        }
        let entry = self
            .entry_for(caller.as_str())
            .ok_or_else(|| not_authorized(caller))?;
        settings_of(&message.settings)?;
        let definition = definition_of(&message.definition)?;
        if definition.vm() != message.vm {
            return Err(refusal(
                RefusalCode::Invalid,
                "the definition is of another VM than the message",
            ));
        }
        Ok(entry)
    }

    /// Makes an empty replica: the store first, then what speaks of it.
    pub(crate) fn create_replica(
        &self,
        caller: &PeerName,
        message: &NewReplica,
        entry: &AuthorizationEntry,
    ) -> Result<(), Refusal> {
        let folder = entry
            .replica_storage_location
            .as_path()
            .join(message.vm.to_string());
        let failed = |error: &dyn std::error::Error| {
            refusal(
                RefusalCode::Failed,
                &format!("make the replica's store: {}", with_causes(error)),
            )
        };
        std::fs::create_dir_all(entry.replica_storage_location.as_path())
            .map_err(|error| failed(&error))?;
        let new = new_store(message);
        let disk = Arc::clone(&self.inner.disk);
        let holder = self.store_holder();
        let store = match Store::init(Arc::clone(&disk), &folder, &new, &holder) {
            Err(lifeboat_store::StoreError::Refused(lifeboat_store::Refused::NotEmpty {
                ..
            })) => self.empty_store(&folder, message)?,
            outcome => outcome.map_err(|error| failed(&error))?,
        };
        let relation = Relation {
            saved: Saved::new(replica_record(message)),
            version: lifeboat_catalog::RecordVersion::FIRST,
            settings: settings_of(&message.settings)?,
            peer: PeerPlace {
                host: caller.as_str().to_owned(),
                address: message.caller_address.clone(),
            },
            storage: Some(folder.clone()),
            trust_group: entry.trust_group.as_str().to_owned(),
        };
        let definition = self.replica_definition(message)?;
        // Before the rows: whoever loses them finds in the store what they said.
        store
            .keep_note(&Note::new(&definition, Some(&relation)).to_bytes())
            .map_err(|error| failed(&error))?;
        let vm = self.add_replica_vm(definition, relation, DisksPlace::Store(folder))?;
        self.hold_store(&vm, store);
        let text = format!(
            "{}: {caller} replicates this VM to here from now on",
            vm.name()
        );
        self.report(Some(vm.id), Severity::Info, "replica_made", &text);
        Ok(())
    }

    /// A store of an earlier try is taken up if it is this relationship's and empty.
    fn empty_store(
        &self,
        folder: &std::path::Path,
        message: &NewReplica,
    ) -> Result<Store, Refusal> {
        let taken = || {
            refusal(
                RefusalCode::InvalidState,
                &format!(
                    "{} holds something else already; move it away, or remove the replica it belongs to",
                    folder.display()
                ),
            )
        };
        let disk = Arc::clone(&self.inner.disk);
        let store =
            Store::open(Arc::clone(&disk), folder, &self.store_holder()).map_err(|_| taken())?;
        if store.vm() != message.vm || !is_unused(&store) {
            return Err(taken());
        }
        if store.relationship() == message.relationship {
            return Ok(store);
        }
        // The primary has drawn another relationship since. Nothing ever came to this one.
        let aside = folder.with_extension(format!("unused-{}", store.relationship()));
        drop(store);
        let failed = |error: std::io::Error| {
            refusal(
                RefusalCode::Failed,
                &format!("move {} away: {error}", folder.display()),
            )
        };
        self.inner.disk.rename(folder, &aside).map_err(failed)?;
        self.remove_test_files(&aside);
        let new = new_store(message);
        Store::init(disk, folder, &new, &self.store_holder())
            .map_err(|error| refusal(RefusalCode::Failed, &with_causes(&error)))
    }

    /// A replica that nothing ever came to makes room for another try of the same primary,
    /// which has lost the answer to the first.
    pub(crate) fn make_room(&self, caller: &PeerName, vm: &VmArc) -> Result<(), Refusal> {
        let in_use = || {
            refusal(
                RefusalCode::InvalidState,
                "this VM has another relationship here already; remove that first, or take its replica up: `lifeboat replication enable --onto-kept-replica ID`",
            )
        };
        let relation = vm.core().relation.clone().ok_or_else(in_use)?;
        let waits = match &relation.record().role {
            Role::Replica(replica) => matches!(replica.phase, ReplicaPhase::WaitingInitial),
            Role::Primary(_) => false,
        };
        let mut held = vm.store();
        let is_unused = held
            .as_ref()
            .is_some_and(|replica| is_unused(&replica.store));
        if !waits || !is_unused || !relation.peer.host.eq_ignore_ascii_case(caller.as_str()) {
            return Err(in_use());
        }
        *held = None;
        self.inner
            .ledger
            .remove_replica(vm.id, relation.record().relationship)
            .map_err(|error| refusal(RefusalCode::Failed, &with_causes(&error)))?;
        self.remove(vm.id);
        Ok(())
    }

    /// What a replica holds of the VM, under a name that is free here.
    fn replica_definition(&self, message: &NewReplica) -> Result<VmDefinition, Refusal> {
        let definition = definition_of(&message.definition)?;
        let definition = crate::manage::with_disks(&definition, &message.disks)?;
        let name = self.free_name(definition.name());
        Ok(crate::manage::renamed(&definition, message.vm, &name))
    }

    fn add_replica_vm(
        &self,
        definition: VmDefinition,
        relation: Relation,
        place: DisksPlace,
    ) -> Result<VmArc, Refusal> {
        let now = self.now();
        let id = definition.vm();
        let saved = |error: &lifeboat_catalog::CatalogError| {
            refusal(RefusalCode::Failed, &with_causes(error))
        };
        let row = lifeboat_catalog::Vm {
            id,
            name: definition.name().to_owned(),
            driver: "volume".to_owned(),
            definition: document(&definition),
            disks: document(&place),
            desired_power: lifeboat_catalog::DesiredPower::Off,
            created_at: now,
            updated_at: now,
        };
        self.inner
            .ledger
            .add_replica(&row, &relation)
            .map_err(|error| saved(&error))?;
        let vm = Arc::new(Vm::new(
            id,
            Core {
                definition,
                place,
                desired: lifeboat_catalog::DesiredPower::Off,
                created_at: now,
                relation: Some(relation),
                jobs: Vec::new(),
                test_of: None,
                test: None,
                facts: Facts::default(),
                statistics: None,
            },
        ));
        self.insert(Arc::clone(&vm));
        Ok(vm)
    }

    /// A name that no VM of this host has.
    pub(crate) fn free_name(&self, wanted: &str) -> String {
        let names: Vec<String> = self.all_vms().iter().map(|vm| vm.name()).collect();
        let mut name = wanted.to_owned();
        let mut number = 2;
        while names.contains(&name) {
            name = format!("{wanted} ({number})");
            number += 1;
        }
        name
    }

    /// The old primary's part: becomes the replica.
    pub(crate) fn become_replica(
        &self,
        caller: &PeerName,
        message: &Adoption,
    ) -> Result<Adopted, Refusal> {
        let entry = self.accept_replica(caller, &message.replica)?;
        let Some(vm) = self.find(message.replica.vm) else {
            // The old primary's host was made anew: an empty replica, and everything travels.
            self.create_replica(caller, &message.replica, &entry)?;
            return Ok(Adopted {
                drawn: Sequence::ZERO,
                changed: None,
                why_unknown: Some("the old primary has no disks of this VM any more".to_owned()),
            });
        };
        let relation = vm.core().relation.clone();
        let relation = relation.ok_or_else(|| {
            refusal(
                RefusalCode::InvalidState,
                "replication of this VM was removed here; enable it on the host where the VM runs now",
            )
        })?;
        if !relation.peer.host.eq_ignore_ascii_case(caller.as_str()) {
            return Err(refusal(
                RefusalCode::NotAuthorized,
                &format!("{caller} is not the other side of this relationship"),
            ));
        }
        let record = relation.record();
        if message.replica.relationship != record.relationship {
            return Err(refusal(
                RefusalCode::OtherLineage,
                "this VM is replicated here in another relationship",
            ));
        }
        let adopt = Event::Adopt {
            lineage: message.replica.lineage,
            ancestors: message.ancestors.clone(),
            vm: self.power(&vm),
            hop: if message.replica.extended {
                Hop::Second
            } else {
                Hop::First
            },
        };
        let step = record
            .decide(self.now(), adopt)
            .map_err(|refused| not_adopted(&refused))?;
        if step.next == *record {
            self.adopt_again(&vm, &relation)
        } else {
            self.adopt_first(caller, &vm, &relation, step, message, &entry)
        }
    }

    fn adopt_first(
        &self,
        caller: &PeerName,
        vm: &VmArc,
        relation: &Relation,
        step: Step,
        message: &Adoption,
        entry: &AuthorizationEntry,
    ) -> Result<Adopted, Refusal> {
        let record = relation.record().clone();
        let moment = step.next.drawn;
        if moment <= record.drawn {
            return Err(refusal(RefusalCode::Failed, "all moments are used up"));
        }
        let (changed, why_unknown) = self.own_changes(vm);
        let definition = crate::manage::with_disks(&vm.core().definition, &message.replica.disks)?;
        let (images, storage) = {
            let core = vm.core();
            match &core.place {
                // A disk that was never replicated stays where it is.
                DisksPlace::Images(images) => (
                    images
                        .iter()
                        .filter(|(id, _)| message.replica.disks.iter().any(|disk| disk.id == *id))
                        .cloned()
                        .collect(),
                    entry
                        .replica_storage_location
                        .as_path()
                        .join(vm.id.to_string()),
                ),
                DisksPlace::Store(folder) => (Vec::new(), folder.clone()),
                DisksPlace::Test { .. } => {
                    return Err(refusal(
                        RefusalCode::InvalidState,
                        "a test's VM is never a replica",
                    ));
                }
            }
        };
        let reversal = Reversal {
            changed,
            why_unknown,
        };
        let next = Relation {
            saved: Saved {
                reversal: Some(reversal.clone()),
                adopting: Some(Adopting {
                    images,
                    moment,
                    abandoned: record.lineage,
                }),
                ..Saved::new(step.next)
            },
            settings: settings_of(&message.replica.settings)?,
            peer: PeerPlace {
                host: caller.as_str().to_owned(),
                address: message.replica.caller_address.clone(),
            },
            storage: Some(storage.clone()),
            trust_group: entry.trust_group.as_str().to_owned(),
            version: relation.version,
        };
        self.save_role(vm, next, DisksPlace::Store(storage), definition)?;
        self.work_on(vm, step.effects.into_iter().map(Task::Effect));
        self.finish_adoption(vm)?;
        let name = vm.name();
        let text = format!("{name}: this host keeps the replica now, {caller} runs the VM");
        self.report(Some(vm.id), Severity::Info, "role_swapped", &text);
        Ok(Adopted {
            drawn: moment,
            changed: reversal.changed,
            why_unknown: reversal.why_unknown,
        })
    }

    /// The same again: after a lost answer or a crash half way.
    fn adopt_again(&self, vm: &VmArc, relation: &Relation) -> Result<Adopted, Refusal> {
        self.finish_adoption(vm)?;
        let reversal = relation.saved.reversal.clone();
        let (changed, why_unknown) = match reversal {
            Some(reversal) => (reversal.changed, reversal.why_unknown),
            None => (None, Some("it is a replica already".to_owned())),
        };
        Ok(Adopted {
            drawn: relation.record().drawn,
            changed,
            why_unknown,
        })
    }

    /// Takes images over that a saved record says shall be heads. May be done again.
    pub(crate) fn finish_adoption(&self, vm: &VmArc) -> Result<(), Refusal> {
        let (adopting, relation) = {
            let core = vm.core();
            let Some(relation) = core.relation.clone() else {
                return Ok(());
            };
            let Some(adopting) = relation.saved.adopting.clone() else {
                return Ok(());
            };
            (adopting, relation)
        };
        match self.inner.hypervisor.undefine(vm.id) {
            Ok(()) | Err(HypervisorError::Unknown { .. }) => {}
            Err(error) => {
                return Err(refusal(RefusalCode::Failed, &with_causes(&error)));
            }
        }
        let failed = |error: &lifeboat_store::StoreError| {
            refusal(
                RefusalCode::Failed,
                &format!("take the VM's disks over: {}", with_causes(error)),
            )
        };
        let record = relation.record();
        let folder = relation.storage.clone().unwrap_or_default();
        let reversal = StoreReversal {
            relationship: record.relationship,
            lineage: record.lineage,
            ancestors: record.ancestors.clone(),
            drawn: adopting.moment,
        };
        let now = self.now();
        let disk = Arc::clone(&self.inner.disk);
        let holder = self.store_holder();
        let store = if adopting.images.is_empty() {
            let held = vm.store().take();
            let mut store = match held {
                Some(replica) => replica.store,
                None => Store::open(disk, &folder, &holder).map_err(|error| failed(&error))?,
            };
            if store.role() == lifeboat_store::Role::Committed {
                store
                    .rejoin(&reversal, now)
                    .map_err(|error| failed(&error))?;
            }
            store
        } else {
            std::fs::create_dir_all(folder.parent().unwrap_or(&folder)).map_err(|error| {
                refusal(
                    RefusalCode::Failed,
                    &format!("make {}: {error}", folder.display()),
                )
            })?;
            let adoption = StoreAdoption {
                vm: vm.id,
                reversal,
                left: adopting.abandoned.id,
                images: adopting.images,
            };
            let adopted = Store::adopt(disk, &folder, &adoption, &holder, now)
                .map_err(|error| failed(&error))?;
            for image in &adopted.left_behind {
                tracing::info!(vm = %vm.id, "{} was copied and is not needed any more", image.display());
            }
            adopted.store
        };
        self.hold_store(vm, store);
        self.note_beside_store(vm);
        self.label(vm, |saved| saved.adopting = None)
    }

    fn save_role(
        &self,
        vm: &VmArc,
        mut next: Relation,
        place: DisksPlace,
        definition: VmDefinition,
    ) -> Result<(), Refusal> {
        let now = self.now();
        let mut core = vm.core();
        let row = lifeboat_catalog::Vm {
            id: vm.id,
            name: core.definition.name().to_owned(),
            driver: "volume".to_owned(),
            definition: document(&definition),
            disks: document(&place),
            desired_power: lifeboat_catalog::DesiredPower::Off,
            created_at: core.created_at,
            updated_at: now,
        };
        let failed = |error: &lifeboat_catalog::CatalogError| {
            refusal(RefusalCode::Failed, &with_causes(error))
        };
        next.version = self
            .inner
            .ledger
            .save_role(&row, &next)
            .map_err(|error| failed(&error))?;
        core.relation = Some(next);
        core.definition = definition;
        core.place = place;
        core.desired = lifeboat_catalog::DesiredPower::Off;
        drop(core);
        vm.tell_changed();
        self.set_alarm(vm);
        Ok(())
    }

    /// What this host's VM has changed since the last moment that its replica has, if the maps
    /// are whole.
    fn own_changes(&self, vm: &VmArc) -> (Option<ChangedSince>, Option<String>) {
        let moment = match self.inner.hypervisor.tracking(vm.id) {
            Ok(Tracking::Since { moments }) => match moments.first() {
                Some(first) => *first,
                None => return (None, Some("no map is there".to_owned())),
            },
            Ok(Tracking::Off) => return (None, Some("nothing was tracked".to_owned())),
            Ok(Tracking::Unknown { why }) => return (None, Some(why)),
            Err(error) => return (None, Some(with_causes(&error))),
        };
        match self.inner.hypervisor.changed_ranges(vm.id) {
            Ok(Some(disks)) => {
                let disks = disks
                    .into_iter()
                    .map(|(id, ranges)| ChangedDisk {
                        id,
                        ranges: coarse(ranges),
                    })
                    .collect();
                (Some(ChangedSince { moment, disks }), None)
            }
            Ok(None) => (None, Some("the maps are not whole".to_owned())),
            Err(error) => (None, Some(with_causes(&error))),
        }
    }
}

/// Why this host does not become the replica, for the one that asked.
fn not_adopted(refused: &Refused) -> Refusal {
    match refused {
        Refused::SplitBrain { .. } => refusal(
            RefusalCode::OtherLineage,
            "both hosts have gone on with this VM from the same moment: nothing is overwritten before an operator says which one survives",
        ),
        Refused::VmRunning { .. } => refusal(
            RefusalCode::InvalidState,
            "the VM runs on its old primary host; stop it there first",
        ),
        _ => refusal(RefusalCode::InvalidState, &with_causes(refused)),
    }
}

/// At most so many ranges, by telling larger ones: they have to fit one message.
fn coarse(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    const MOST: usize = 2000;
    let mut coarse = ranges;
    let mut gap = lifeboat_model::BLOCK_SIZE;
    while coarse.len() > MOST {
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in coarse {
            match merged.last_mut() {
                Some(last) if range.start <= last.end.saturating_add(gap) => {
                    last.end = last.end.max(range.end);
                }
                _ => merged.push(range),
            }
        }
        coarse = merged;
        gap *= 2;
    }
    coarse
}

/// Whether nothing was ever received.
fn is_unused(store: &Store) -> bool {
    store.tip() == Sequence::ZERO && store.copy_status().is_none()
}

fn new_store(message: &NewReplica) -> NewStore {
    NewStore {
        vm: message.vm,
        relationship: message.relationship,
        lineage: message.lineage.id,
        disks: message
            .disks
            .iter()
            .map(|disk| (disk.id.clone(), disk.size))
            .collect(),
    }
}

/// The lineage that a new relationship begins with.
pub(crate) fn first_lineage(id: lifeboat_model::LineageId) -> Lineage {
    Lineage {
        counter: 1,
        id,
        forked_from: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranges_become_few_that_hold_them_all() {
        let ranges: Vec<Range<u64>> = (0..100_000u64)
            .map(|n| n * 64 * 4096..n * 64 * 4096 + 4096)
            .collect();
        let few = coarse(ranges.clone());
        assert!(few.len() <= 2000, "{}", few.len());
        assert!(ranges.iter().all(|range| {
            few.iter()
                .any(|wide| wide.start <= range.start && range.end <= wide.end)
        }));
        let small = vec![0..4096, 1 << 30..(1 << 30) + 4096];
        assert_eq!(coarse(small.clone()), small);
    }
}
