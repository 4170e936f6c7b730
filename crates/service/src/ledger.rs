//! The catalog in the words of the service.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use lifeboat_catalog::{
    Activity, AuthorizationEntry as EntryRow, Catalog, CatalogError, DesiredPower, Document,
    EventFilter, EventId, EventRetention, Job, JobFilter, JobId, JobPage, JobRetention,
    NewAuditRow, NewEvent, NewRelationship, OpenError, Place, RecordVersion, Side, Vm as VmRow,
};
use lifeboat_model::authorization::AuthorizationEntry;
use lifeboat_model::relationship::Role;
use lifeboat_model::statistics::ReplicationStatistics;
use lifeboat_model::{RelationshipId, Timestamp, VmId};
use serde::Serialize;

use crate::api::Severity;
use crate::relation::{FORMAT, Relation};
use crate::service::{lock, with_causes};

/// Jobs are kept for a day after their end, the newest 10,000 of them.
const JOBS_KEPT: Duration = Duration::from_secs(24 * 3600);
const MOST_JOBS: u32 = 10_000;

/// Events are kept for 90 days, the newest 100,000 of them.
const EVENTS: EventRetention = EventRetention {
    age: Duration::from_secs(90 * 24 * 3600),
    most: 100_000,
};

/// Monitoring cycles kept of each relationship.
const CYCLES: u32 = 62;

/// What the service keeps of itself, by key.
pub(crate) const SERVICE_SETTINGS: &str = "service";

#[derive(Debug)]
pub(crate) struct Ledger {
    catalog: Catalog,
    /// Jobs that have ended, which the catalog could not be told yet.
    ended_jobs: Mutex<Vec<Job>>,
}

/// A document of this build's format.
pub(crate) fn document<T: Serialize>(value: &T) -> Document {
    Document::of(FORMAT, value).expect("BUG: what the service saves can be written as JSON")
}

impl Ledger {
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            ended_jobs: Mutex::default(),
        }
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Whether nothing can be remembered any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.catalog.is_stopped()
    }

    /// Has a catalog that failed take changes again, and saves what ended meanwhile; answers
    /// whether it does since now.
    pub(crate) fn mend(&self) -> Result<bool, OpenError> {
        let is_mended = self.catalog.mend()?;
        if is_mended {
            for job in std::mem::take(&mut *lock(&self.ended_jobs)) {
                self.save_ended_job(job);
            }
        }
        Ok(is_mended)
    }

    pub(crate) fn add_vm(&self, row: &VmRow) -> Result<(), CatalogError> {
        self.catalog.change(|change| change.vm_add(row))
    }

    pub(crate) fn save_power(
        &self,
        vm: VmId,
        power: DesiredPower,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        self.catalog
            .change(|change| change.vm_save_desired_power(vm, power, now))
    }

    pub(crate) fn remove_vm(&self, vm: VmId) -> Result<(), CatalogError> {
        self.catalog.change(|change| change.vm_remove(vm))
    }

    pub(crate) fn add_relation(
        &self,
        vm: VmId,
        relation: &Relation,
    ) -> Result<RecordVersion, CatalogError> {
        self.catalog
            .change(|change| change.relationship_add(&row_of(vm, relation)))
    }

    /// A VM that is the replica of another host's, from the first moment on.
    pub(crate) fn add_replica(&self, vm: &VmRow, relation: &Relation) -> Result<(), CatalogError> {
        self.catalog.change(|change| {
            change.vm_add(vm)?;
            change.relationship_add(&row_of(vm.id, relation))?;
            Ok(())
        })
    }

    /// A replica goes, and its VM with it.
    pub(crate) fn remove_replica(&self, vm: VmId, id: RelationshipId) -> Result<(), CatalogError> {
        self.catalog.change(|change| {
            change.relationship_remove(id)?;
            change.vm_remove(vm)
        })
    }

    /// Saves a relation whose version nobody has raised meanwhile.
    pub(crate) fn save_relation(&self, relation: &Relation) -> Result<RecordVersion, CatalogError> {
        let vm = relation.record().vm;
        self.catalog
            .change(|change| change.relationship_save(&row_of(vm, relation), relation.version))
    }

    /// A VM that changes its role: its disks and its relation, together.
    pub(crate) fn save_role(
        &self,
        row: &VmRow,
        relation: &Relation,
    ) -> Result<RecordVersion, CatalogError> {
        self.catalog.change(|change| {
            change.vm_save(row)?;
            change.relationship_save(&row_of(row.id, relation), relation.version)
        })
    }

    pub(crate) fn remove_relation(&self, id: RelationshipId) -> Result<(), CatalogError> {
        self.catalog.change(|change| change.relationship_remove(id))
    }

    pub(crate) fn add_job(&self, job: &Job) -> Result<(), CatalogError> {
        self.catalog.change(|change| {
            change.job_purge(
                JobRetention::new(JOBS_KEPT, MOST_JOBS)
                    .expect("BUG: a day is longer than the contract asks for"),
                job.time_submitted,
            )?;
            change.job_add(job)
        })
    }

    /// The end of a job that cannot be saved is known here, and saved when that can be done again.
    pub(crate) fn save_ended_job(&self, job: Job) {
        if let Err(error) = self.catalog.change(|change| change.job_save(&job)) {
            tracing::error!("save the end of a job: {}", with_causes(&error));
            if self.is_stopped() {
                lock(&self.ended_jobs).push(job);
            }
        }
    }

    pub(crate) fn job(&self, id: JobId) -> Result<Option<Job>, CatalogError> {
        let ended = lock(&self.ended_jobs);
        if let Some(job) = ended.iter().find(|job| job.id == id) {
            return Ok(Some(job.clone()));
        }
        drop(ended);
        self.catalog.read(|reader| reader.job(id))
    }

    pub(crate) fn jobs(
        &self,
        vm: Option<VmId>,
        activity: Activity,
        limit: usize,
    ) -> Result<Vec<Job>, CatalogError> {
        let filter = JobFilter {
            vm,
            activity,
            ..JobFilter::ALL
        };
        let mut jobs = self
            .catalog
            .read(|reader| Ok(reader.jobs(&filter, JobPage::newest(limit))?.0))?;
        for ended in lock(&self.ended_jobs).iter() {
            match (jobs.iter().position(|job| job.id == ended.id), activity) {
                (Some(at), Activity::Unfinished) => {
                    jobs.remove(at);
                }
                (Some(at), Activity::Any | Activity::Ended) => jobs[at] = ended.clone(),
                (None, Activity::Ended) if vm.is_none_or(|vm| ended.vm == Some(vm)) => {
                    jobs.insert(0, ended.clone());
                }
                (None, _) => {}
            }
        }
        Ok(jobs)
    }

    pub(crate) fn add_event(
        &self,
        at: Timestamp,
        vm: Option<VmId>,
        severity: Severity,
        kind: &str,
        message: &str,
    ) -> Result<u64, CatalogError> {
        let event = NewEvent {
            at,
            severity: match severity {
                Severity::Info => lifeboat_catalog::Severity::Information,
                Severity::Warning => lifeboat_catalog::Severity::Warning,
                Severity::Error => lifeboat_catalog::Severity::Error,
            },
            vm,
            relationship: None,
            kind: kind.to_owned(),
            message: message.chars().take(2000).collect(),
            document: None,
        };
        self.catalog.change(|change| {
            let id = change.event_add(&event)?;
            if id.number().is_multiple_of(1000) {
                change.event_purge(EVENTS, at)?;
            }
            Ok(id.number())
        })
    }

    pub(crate) fn events(
        &self,
        since: u64,
        limit: usize,
    ) -> Result<Vec<lifeboat_catalog::Event>, CatalogError> {
        self.catalog
            .read(|reader| reader.events_after(EventId::new(since), &EventFilter::ALL, limit))
    }

    pub(crate) fn newest_event(&self) -> Result<u64, CatalogError> {
        self.catalog
            .read(|reader| Ok(reader.event_last_id()?.number()))
    }

    pub(crate) fn add_audit(&self, row: &NewAuditRow) -> Result<u64, CatalogError> {
        self.catalog.change(|change| change.audit_add(row))
    }

    pub(crate) fn audit(
        &self,
        limit: usize,
    ) -> Result<Vec<lifeboat_catalog::AuditRow>, CatalogError> {
        self.catalog
            .read(|reader| reader.audit_before(u64::MAX, limit))
    }

    pub(crate) fn entries(&self) -> Result<Vec<AuthorizationEntry>, CatalogError> {
        let rows = self.catalog.read(|reader| reader.authorization_entries())?;
        // An entry that a newer build wrote lets nobody in.
        let known = rows.into_iter().filter_map(|row| row.document.to().ok());
        Ok(known.collect())
    }

    pub(crate) fn save_entry(&self, entry: &AuthorizationEntry) -> Result<(), CatalogError> {
        let row = EntryRow {
            allowed_primary: entry.allowed_primary_host_system.to_string(),
            document: document(entry),
        };
        self.catalog
            .change(|change| change.authorization_entry_save(&row))
    }

    pub(crate) fn remove_entry(&self, allowed: &str) -> Result<bool, CatalogError> {
        self.catalog
            .change(|change| change.authorization_entry_remove(allowed))
    }

    pub(crate) fn setting<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>, CatalogError> {
        let saved = self.catalog.read(|reader| reader.setting(key))?;
        Ok(saved.and_then(|document| document.to().ok()))
    }

    pub(crate) fn save_setting<T: Serialize>(
        &self,
        key: &str,
        value: &T,
    ) -> Result<(), CatalogError> {
        let value = document(value);
        self.catalog
            .change(|change| change.setting_save(key, &value))
    }

    pub(crate) fn save_statistics(
        &self,
        relationship: RelationshipId,
        statistics: &ReplicationStatistics,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        let statistics = document(statistics);
        self.catalog
            .change(|change| change.statistics_save(relationship, &statistics, now))
    }

    pub(crate) fn end_cycle(
        &self,
        relationship: RelationshipId,
        ended: &ReplicationStatistics,
        next: &ReplicationStatistics,
        at: Timestamp,
    ) -> Result<(), CatalogError> {
        let (ended, next) = (document(ended), document(next));
        let end = lifeboat_catalog::CycleEnd {
            at,
            ended: &ended,
            next: &next,
            most: CYCLES,
        };
        self.catalog
            .change(|change| change.statistics_next_cycle(relationship, end))
    }

    pub(crate) fn statistics(
        &self,
        relationship: RelationshipId,
    ) -> Result<Option<ReplicationStatistics>, CatalogError> {
        let running = self
            .catalog
            .read(|reader| reader.statistics_running(relationship))?;
        Ok(running.and_then(|cycle| cycle.document.to().ok()))
    }
}

pub(crate) fn row_of(vm: VmId, relation: &Relation) -> NewRelationship {
    NewRelationship {
        id: relation.record().relationship,
        vm,
        place: Place::First,
        side: match relation.record().role {
            Role::Primary(_) => Side::Primary,
            Role::Replica(_) => Side::Replica,
        },
        record: document(&relation.saved),
        settings: document(&relation.settings),
        peer_host: relation.peer.host.clone(),
        peer_address: relation.peer.address.clone(),
        storage_folder: relation
            .storage
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default(),
        trust_group: relation.trust_group.clone(),
    }
}

/// A row of the catalog as a relation.
pub(crate) fn relation_of(
    row: &lifeboat_catalog::Relationship,
) -> Result<Relation, serde_json::Error> {
    let storage = &row.row.storage_folder;
    Ok(Relation {
        saved: row.row.record.to()?,
        version: row.record_version,
        settings: row.row.settings.to()?,
        peer: crate::relation::PeerPlace {
            host: row.row.peer_host.clone(),
            address: row.row.peer_address.clone(),
        },
        storage: (!storage.is_empty()).then(|| PathBuf::from(storage)),
        trust_group: row.row.trust_group.clone(),
    })
}
