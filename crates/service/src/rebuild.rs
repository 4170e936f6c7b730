//! A lost catalog made again from the stores.
//!
//! Each store's journal says which VM it is of, how it stands and which numbers are used up; the
//! note beside it says the rest. What neither says is given by the caller or assumed, and told.
//! Nothing is guessed: a folder that is no store, that cannot be opened, that somebody has open,
//! or that another folder contradicts, is named and left out.
//!
//! Stores are opened one after the other, which brings them into order as every opening does;
//! apart from that they are not changed. The rows come in one change of the catalog, after the
//! last store was closed: a crash before leaves none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_catalog::{Catalog, CatalogError, DesiredPower, NewEvent, Vm as VmRow};
use lifeboat_hypervisor::{
    DiskBus, DiskSettings, FORMAT, Firmware, InvalidDefinition, VmDefinition, VmSettings,
};
use lifeboat_model::contract::{FailoverType, ReplicationMode, ReplicationState};
use lifeboat_model::relationship::{Before, Failover, Record, Replica, ReplicaPhase, Role};
use lifeboat_model::retention::{HistoryPromises, RecoveryHistory};
use lifeboat_model::settings::{ReplicationSettings, SettingsChange};
use lifeboat_model::{DiskId, HostName, InvalidFields, RelationshipId, Timestamp, VmId};
use lifeboat_peer::PeerAddress;
use lifeboat_store::{Refused, Standing, Store, StoreError, Summary};
use lifeboat_sys::disk::{DiskPort, EntryKind};

use crate::ledger::{document, row_of};
use crate::note::Note;
use crate::relation::{PeerPlace, Relation, Saved};
use crate::service::with_causes;
use crate::vm::DisksPlace;

/// Of a VM whose definition is lost.
const ASSUMED_MEMORY_MIB: u64 = 1024;

/// From where a catalog is made again.
#[derive(Debug)]
pub struct Rebuild {
    pub disk: Arc<dyn DiskPort>,
    /// Storage locations, whose folders are looked at, or folders of single stores.
    pub storage: Vec<PathBuf>,
    /// Where peers reach this host.
    pub own_address: PeerAddress,
    /// The other side of the relationships of stores that do not say it.
    pub other_side: Option<OtherSide>,
    /// Who opens the stores, for others that want them.
    pub holder: String,
}

/// The other host of a relationship.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherSide {
    /// The name that its certificate proves.
    pub host: HostName,
    pub address: PeerAddress,
    /// Of the authorization entry that lets it in.
    pub trust_group: String,
}

/// What stores say, and what was left out.
#[derive(Debug, Default)]
pub struct Rebuilt {
    pub vms: Vec<RebuiltVm>,
    pub left_out: Vec<LeftOut>,
}

/// A VM with its store.
#[derive(Debug)]
pub struct RebuiltVm {
    pub vm: VmId,
    pub name: String,
    pub folder: PathBuf,
    /// Absent for a VM that is not replicated any more.
    pub relationship: Option<RebuiltRelationship>,
    pub points: usize,
    /// What nobody has said, and what was taken instead.
    pub assumed: Vec<String>,
}

/// A relationship as it is in the catalog.
#[derive(Debug)]
pub struct RebuiltRelationship {
    pub id: RelationshipId,
    pub mode: ReplicationMode,
    pub state: ReplicationState,
    /// Absent when nobody has said it.
    pub other_side: Option<RebuiltPeer>,
}

/// The other side as the rows have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuiltPeer {
    pub host: String,
    pub address: String,
    pub trust_group: String,
}

/// A folder that gave no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub path: PathBuf,
    pub why: String,
}

/// Why no catalog was made. Nothing is in it.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("look into {}", path.display())]
    Storage { path: PathBuf, source: io::Error },
    #[error("make settings")]
    Settings { source: InvalidFields },
    #[error("read what the catalog has")]
    Read { source: CatalogError },
    #[error("write the rows")]
    Write { source: CatalogError },
}

/// What the catalog has already.
#[derive(Debug, Default)]
struct Known {
    vms: BTreeSet<VmId>,
    relationships: BTreeSet<RelationshipId>,
    names: BTreeSet<String>,
}

/// A store that can be read and that nobody has.
#[derive(Debug)]
struct Found {
    folder: PathBuf,
    summary: Summary,
    note: Option<Note>,
    /// Why there is no note, unless there never was one.
    no_note: Option<String>,
}

/// The rows of one store.
#[derive(Debug)]
struct Rows {
    vm: VmRow,
    relation: Option<Relation>,
}

impl Rebuild {
    /// What [`run`](Self::run) would find; nothing is changed. What can only be seen by opening a
    /// store is not.
    ///
    /// # Errors
    /// See [`RebuildError`].
    pub fn look(&self, catalog: Option<&Catalog>, now: Timestamp) -> Result<Rebuilt, RebuildError> {
        let known = catalog.map_or_else(|| Ok(Known::default()), Known::of)?;
        let mut rebuilt = Rebuilt::default();
        let found = self.find(&known, &mut rebuilt.left_out)?;
        self.rows(found, known, now, &mut rebuilt)?;
        Ok(rebuilt)
    }

    /// Opens every store and adds the rows that the catalog does not have: all of them, or with
    /// an error none. Durable on return.
    ///
    /// # Errors
    /// See [`RebuildError`].
    pub fn run(&self, catalog: &Catalog, now: Timestamp) -> Result<Rebuilt, RebuildError> {
        let known = Known::of(catalog)?;
        let mut rebuilt = Rebuilt::default();
        let found = self.find(&known, &mut rebuilt.left_out)?;
        let mut opened = Vec::new();
        for store in found {
            match Store::open(Arc::clone(&self.disk), &store.folder, &self.holder) {
                Ok(open) => opened.push(Found {
                    summary: open.summary(),
                    ..store
                }),
                Err(error) => rebuilt.left_out.push(LeftOut {
                    path: store.folder,
                    why: with_causes(&error),
                }),
            }
        }
        let rows = self.rows(opened, known, now, &mut rebuilt)?;
        catalog
            .change(|change| {
                for Rows { vm, relation } in &rows {
                    change.vm_add(vm)?;
                    if let Some(relation) = relation {
                        change.relationship_add(&row_of(vm.id, relation))?;
                    }
                    change.event_add(&told(vm, relation.as_ref(), now))?;
                }
                Ok(())
            })
            .map_err(|source| RebuildError::Write { source })?;
        Ok(rebuilt)
    }

    /// The stores that may get rows, by folder.
    fn find(&self, known: &Known, left_out: &mut Vec<LeftOut>) -> Result<Vec<Found>, RebuildError> {
        let mut stores = Vec::new();
        for folder in self.folders(left_out)? {
            let peeked = Store::peek(self.disk.as_ref(), &folder);
            let why = match peeked {
                Err(StoreError::Refused(Refused::NoStore { .. })) => "it is no store".to_owned(),
                Err(error) => with_causes(&error),
                Ok(peek) => match known.why_not(&peek.summary, peek.holder.as_deref()) {
                    Some(why) => why,
                    None => {
                        let (note, no_note) = usable(peek.note, &peek.summary);
                        stores.push(Found {
                            folder,
                            summary: peek.summary,
                            note,
                            no_note,
                        });
                        continue;
                    }
                },
            };
            left_out.push(LeftOut { path: folder, why });
        }
        Ok(without_doubles(stores, left_out))
    }

    /// The folders that may be stores, without their other names, in order.
    fn folders(&self, left_out: &mut Vec<LeftOut>) -> Result<BTreeSet<PathBuf>, RebuildError> {
        let mut folders = BTreeSet::new();
        for given in &self.storage {
            let failed = |source| RebuildError::Storage {
                path: given.clone(),
                source,
            };
            let storage = std::fs::canonicalize(given).map_err(failed)?;
            let journal = self.disk.kind(&storage.join("journal"));
            if journal.map_err(failed)?.is_some() {
                folders.insert(storage);
                continue;
            }
            for entry in self.disk.list(&storage).map_err(failed)? {
                let path = storage.join(&entry.name);
                let why = match entry.kind {
                    EntryKind::Folder => {
                        folders.insert(path);
                        continue;
                    }
                    // A label: the folder itself is here, too.
                    EntryKind::Symlink if is_beside(&path, &storage) => continue,
                    EntryKind::Symlink => "it is a link, which is not followed",
                    EntryKind::File | EntryKind::Other => "it is no folder",
                };
                let why = why.to_owned();
                left_out.push(LeftOut { path, why });
            }
        }
        // Rows have paths as text.
        folders.retain(|folder| {
            let is_text = folder.to_str().is_some();
            if !is_text {
                let why = "its path is not UTF-8; move it".to_owned();
                left_out.push(LeftOut {
                    path: folder.clone(),
                    why,
                });
            }
            is_text
        });
        Ok(folders)
    }

    /// The rows of all stores; what is told of each is added to `rebuilt`.
    fn rows(
        &self,
        stores: Vec<Found>,
        known: Known,
        now: Timestamp,
        rebuilt: &mut Rebuilt,
    ) -> Result<Vec<Rows>, RebuildError> {
        let mut names = known.names;
        let mut all = Vec::new();
        for store in stores {
            let mut assumed = Vec::new();
            let definition = match definition_of(&store, &mut names, &mut assumed) {
                Ok(definition) => definition,
                Err(error) => {
                    rebuilt.left_out.push(LeftOut {
                        path: store.folder,
                        why: format!("no VM can have these disks: {error}"),
                    });
                    continue;
                }
            };
            let relation = self.relation_of(&store, &mut assumed)?;
            let place = DisksPlace::Store(store.folder.clone());
            let vm = VmRow {
                id: store.summary.vm,
                name: definition.name().to_owned(),
                driver: "volume".to_owned(),
                definition: document(&definition),
                disks: document(&place),
                desired_power: DesiredPower::Off,
                created_at: now,
                updated_at: now,
            };
            rebuilt.vms.push(RebuiltVm {
                vm: vm.id,
                name: vm.name.clone(),
                folder: store.folder,
                relationship: relation.as_ref().map(view_of),
                points: store.summary.points,
                assumed,
            });
            all.push(Rows { vm, relation });
        }
        Ok(all)
    }

    fn relation_of(
        &self,
        store: &Found,
        assumed: &mut Vec<String>,
    ) -> Result<Option<Relation>, RebuildError> {
        let summary = &store.summary;
        let noted = match &store.note {
            Some(note) if note.relationship.is_none() && is_own(summary) => return Ok(None),
            Some(note) => note.relationship.as_ref(),
            None => None,
        };
        let noted = noted.filter(|noted| noted.id == summary.relationship);
        let saved = Saved::new(record_of(summary));
        let (saved, settings, peer, trust_group) = match noted {
            Some(noted) => (
                Saved {
                    promises: noted.promises.clone(),
                    ..saved
                },
                noted.settings.clone(),
                noted.peer(),
                noted.trust_group.clone(),
            ),
            None => {
                let settings = self.assumed_settings()?;
                assumed.push(format!(
                    "its settings are not noted: at most {} recovery points are kept, each for {} hours; change them on the primary",
                    settings.recovery_history().points(),
                    settings.recovery_history().points(),
                ));
                let (peer, trust_group) = self.assumed_peer(assumed);
                let promises = HistoryPromises::default();
                (Saved { promises, ..saved }, settings, peer, trust_group)
            }
        };
        Ok(Some(Relation {
            saved,
            version: lifeboat_catalog::RecordVersion::FIRST,
            settings,
            peer,
            storage: Some(store.folder.clone()),
            trust_group,
        }))
    }

    /// As many points as can be asked for: nothing goes that a primary may want.
    fn assumed_settings(&self) -> Result<ReplicationSettings, RebuildError> {
        let change = SettingsChange {
            recovery_connection_point: Some(self.own_address.host()),
            recovery_server_port_number: Some(self.own_address.port().into()),
            recovery_history: Some(RecoveryHistory::MAX.into()),
            ..SettingsChange::default()
        };
        ReplicationSettings::new(change).map_err(|source| RebuildError::Settings { source })
    }

    fn assumed_peer(&self, assumed: &mut Vec<String>) -> (PeerPlace, String) {
        match &self.other_side {
            Some(given) => {
                assumed.push(format!(
                    "its other host is not noted: taken to be {}, as given",
                    given.host
                ));
                let peer = PeerPlace {
                    host: given.host.to_string(),
                    address: given.address.to_string(),
                };
                (peer, given.trust_group.clone())
            }
            None => {
                assumed.push(
                    "its other host is not known: it cannot send until the catalog is made with --peer-host, --peer-address and --trust-group"
                        .to_owned(),
                );
                let nobody = PeerPlace {
                    host: String::new(),
                    address: String::new(),
                };
                (nobody, String::new())
            }
        }
    }
}

impl Known {
    fn of(catalog: &Catalog) -> Result<Self, RebuildError> {
        let read = catalog.read(|reader| Ok((reader.vms()?, reader.relationships()?)));
        let (vms, relationships) = read.map_err(|source| RebuildError::Read { source })?;
        Ok(Self {
            relationships: relationships.iter().map(|one| one.row.id).collect(),
            vms: vms.iter().map(|vm| vm.id).collect(),
            names: vms.into_iter().map(|vm| vm.name).collect(),
        })
    }

    /// Why a store gets no rows.
    fn why_not(&self, summary: &Summary, holder: Option<&str>) -> Option<String> {
        if self.vms.contains(&summary.vm) {
            return Some(format!("the catalog knows VM {} already", summary.vm));
        }
        if self.relationships.contains(&summary.relationship) {
            return Some(format!(
                "the catalog knows its relationship {} already",
                summary.relationship
            ));
        }
        holder.map(|holder| format!("it is in use by {holder}; end that first"))
    }
}

/// Whether a link leads to something that lies in the same folder.
fn is_beside(link: &Path, storage: &Path) -> bool {
    std::fs::canonicalize(link).is_ok_and(|target| target.parent() == Some(storage))
}

/// The note, if it is whole and about this store; or why it is not used.
fn usable(
    note: Result<Option<Vec<u8>>, StoreError>,
    summary: &Summary,
) -> (Option<Note>, Option<String>) {
    let bytes = match note {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return (None, None),
        Err(error) => return (None, Some(with_causes(&error))),
    };
    match Note::from_bytes(&bytes) {
        Ok(note) if note.definition.vm() == summary.vm => (Some(note), None),
        Ok(note) => (None, Some(format!("it is of VM {}", note.definition.vm()))),
        Err(error) => (None, Some(with_causes(&error))),
    }
}

/// Leaves out all stores of a VM or a relationship that has more than one.
fn without_doubles(stores: Vec<Found>, left_out: &mut Vec<LeftOut>) -> Vec<Found> {
    let mut vms: BTreeMap<VmId, u32> = BTreeMap::new();
    let mut relationships: BTreeMap<RelationshipId, u32> = BTreeMap::new();
    for store in &stores {
        *vms.entry(store.summary.vm).or_default() += 1;
        *relationships.entry(store.summary.relationship).or_default() += 1;
    }
    let mut single = Vec::new();
    for store in stores {
        let (vm, relationship) = (store.summary.vm, store.summary.relationship);
        if vms[&vm] == 1 && relationships[&relationship] == 1 {
            single.push(store);
            continue;
        }
        left_out.push(LeftOut {
            path: store.folder,
            why: format!(
                "another folder has VM {vm} or relationship {relationship}, too; move the one that does not count out of the storage locations"
            ),
        });
    }
    single
}

/// The VM as the note has it, with the disks as the store has them, under a name that is free.
fn definition_of(
    store: &Found,
    names: &mut BTreeSet<String>,
    assumed: &mut Vec<String>,
) -> Result<VmDefinition, InvalidDefinition> {
    let summary = &store.summary;
    let noted = store.note.as_ref().map(|note| note.definition.settings());
    let bus_of = |id: &DiskId| {
        let disks = noted.into_iter().flat_map(|settings| &settings.disks);
        disks
            .filter(|disk| disk.id == *id)
            .map(|disk| disk.bus)
            .next()
            .unwrap_or(DiskBus::Virtio)
    };
    let disks: Vec<DiskSettings> = summary
        .disks
        .iter()
        .map(|(id, size)| DiskSettings {
            id: id.clone(),
            size: *size,
            bus: bus_of(id),
        })
        .collect();
    let settings = match noted {
        Some(noted) => VmSettings {
            disks,
            ..noted.clone()
        },
        None => {
            let why = store.no_note.as_deref();
            let what = match why {
                Some(why) => format!("its note cannot be used ({why})"),
                None => "it has no note, as stores of before".to_owned(),
            };
            assumed.push(format!(
                "{what}: its name, {ASSUMED_MEMORY_MIB} MiB of memory and one processor are assumed"
            ));
            VmSettings {
                format: FORMAT,
                vm: summary.vm,
                name: label_of(&store.folder).unwrap_or_else(|| short_name(summary.vm)),
                memory_mib: ASSUMED_MEMORY_MIB,
                processors: 1,
                firmware: Firmware::Bios,
                adapters: Vec::new(),
                disks,
            }
        }
    };
    let definition = VmDefinition::try_from(settings)?;
    let wanted = definition.name().to_owned();
    let mut name = wanted.clone();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{wanted} ({number})");
        number += 1;
    }
    if name == wanted {
        return Ok(definition);
    }
    assumed.push(format!("there is another VM named {wanted:?}"));
    VmDefinition::try_from(VmSettings {
        name,
        ..definition.settings().clone()
    })
}

/// The name of a link beside the store that leads to it.
fn label_of(folder: &Path) -> Option<String> {
    let entries = std::fs::read_dir(folder.parent()?).ok()?;
    let links = entries.flatten().filter(|entry| {
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        is_link && std::fs::canonicalize(entry.path()).is_ok_and(|target| target == folder)
    });
    let mut names: Vec<String> = links
        .filter_map(|link| link.file_name().into_string().ok())
        .filter(|name| {
            let count = name.chars().count();
            count <= lifeboat_hypervisor::MAX_LABEL && !name.chars().any(char::is_control)
        })
        .collect();
    names.sort_unstable();
    names.into_iter().next()
}

fn short_name(vm: VmId) -> String {
    let id = vm.to_string();
    format!("vm-{}", &id[..8])
}

/// Whether the disks are the VM's own.
fn is_own(summary: &Summary) -> bool {
    match summary.standing {
        Standing::Committed => true,
        Standing::Empty | Standing::Replica | Standing::FailedOver { .. } => false,
    }
}

/// Where a relationship stands by its store, whose journal is the truth.
fn record_of(summary: &Summary) -> Record {
    Record {
        vm: summary.vm,
        relationship: summary.relationship,
        lineage: summary.lineage,
        ancestors: summary.ancestors.clone(),
        drawn: summary.newest,
        role: Role::Replica(Replica {
            phase: phase_of(summary),
            ..Replica::waiting(false)
        }),
        forwards: None,
    }
}

fn phase_of(summary: &Summary) -> ReplicaPhase {
    match summary.standing {
        Standing::Empty => ReplicaPhase::WaitingInitial,
        Standing::Replica if summary.heads_are_mixed => ReplicaPhase::Resyncing,
        Standing::Replica => ReplicaPhase::Replicating,
        Standing::FailedOver {
            lineage,
            point,
            kind,
        } => ReplicaPhase::FailedOver {
            failover: Failover {
                point,
                kind: kind.failover_type(),
                lineage: lineage.id,
                before: if summary.heads_are_mixed {
                    Before::Resyncing
                } else {
                    Before::Replicating
                },
            },
            lineage,
        },
        // Of what kind it was is forgotten with the points.
        Standing::Committed => ReplicaPhase::Committed {
            kind: FailoverType::Regular,
        },
    }
}

fn view_of(relation: &Relation) -> RebuiltRelationship {
    let is_known = !relation.peer.host.is_empty();
    RebuiltRelationship {
        id: relation.record().relationship,
        mode: relation.record().mode(),
        state: relation.record().state(),
        other_side: is_known.then(|| RebuiltPeer {
            host: relation.peer.host.clone(),
            address: relation.peer.address.clone(),
            trust_group: relation.trust_group.clone(),
        }),
    }
}

fn told(vm: &VmRow, relation: Option<&Relation>, now: Timestamp) -> NewEvent {
    NewEvent {
        at: now,
        severity: lifeboat_catalog::Severity::Warning,
        vm: Some(vm.id),
        relationship: relation.map(|relation| relation.record().relationship),
        kind: "catalog_rebuilt".to_owned(),
        message: format!(
            "{}: the catalog has been made again from the VM's store; its jobs, statistics and events of before are lost",
            vm.name
        ),
        document: None,
    }
}
