//! The service as front doors use it.

use std::time::Duration;

use lifeboat_catalog::{Activity, JobId as RowId};
use lifeboat_model::authorization::AuthorizationTable;
use lifeboat_model::contract::{FailoverType, ReturnCode};
use lifeboat_model::relationship::{CancelHow, Event, Role, VmPower};
use lifeboat_model::service_settings::{ReplicationServiceSettings, ServiceSettingsChange};
use serde_json::Value;

use crate::api::{
    Accepted, AuditView, AuthorizationEntryView, Caller, CheckView, EventView, HealthView,
    HostView, JobFilter, JobId, JobView, JobWhich, NewVm, Operations, PointView, Rejection,
    RelationshipIndex, RelationshipView, Severity, StatisticsView, VmDiskView, VmOperation, VmRef,
    VmView,
};
use crate::audit::{arguments_of, arguments_of_vm};
use crate::jobs::{Goal, not_saved};
use crate::ledger::SERVICE_SETTINGS;
use crate::rejection::{failed, invalid, not_read, rejection_of_step, unsupported};
use crate::relation::Relation;
use crate::service::{Service, lock, with_causes};
use crate::vm::{Core, DisksPlace, VmArc};

impl Service {
    pub(crate) fn service_settings(&self) -> ReplicationServiceSettings {
        let saved = self.inner.ledger.setting(SERVICE_SETTINGS);
        saved.ok().flatten().unwrap_or_else(|| {
            ReplicationServiceSettings::with_defaults(self.inner.clock.utc_offset())
        })
    }

    fn resolve(&self, vm: &VmRef) -> Result<VmArc, Rejection> {
        let found = match vm {
            VmRef::Id(id) => self.find(*id),
            VmRef::Name(name) => self.all_vms().into_iter().find(|vm| vm.name() == *name),
        };
        found.ok_or_else(|| {
            let named = match vm {
                VmRef::Id(id) => id.to_string(),
                VmRef::Name(name) => format!("{name:?}"),
            };
            Rejection {
                code: ReturnCode::FileNotFound,
                what: format!("this host has no VM {named}"),
                remedy: "see `lifeboat vm list`".to_owned(),
            }
        })
    }

    fn view_vm(&self, vm: &VmArc) -> VmView {
        let health = self.health_value(vm);
        let running = self.power(vm) == VmPower::Running;
        let uris = self.inner.hypervisor.guest_disks(vm.id).unwrap_or_default();
        let activity = vm.meter.view();
        let core = vm.core();
        let record = core.relation().map(Relation::record);
        let mode = match (record, core.test_of) {
            (Some(record), _) => record.mode(),
            (None, Some(_)) => lifeboat_model::contract::ReplicationMode::TestReplica,
            (None, None) => lifeboat_model::contract::ReplicationMode::None,
        };
        let disks = core
            .definition
            .settings()
            .disks
            .iter()
            .map(|disk| VmDiskView {
                id: disk.id.clone(),
                size: disk.size,
                replicated: core
                    .relation()
                    .is_some_and(|relation| relation.settings.included_disks().includes(&disk.id)),
                uri: uris
                    .iter()
                    .find(|source| source.disk == disk.id && running)
                    .map(|source| source.uri.to_string()),
                path: path_of(&core, &disk.id),
            })
            .collect();
        let relationships = core
            .relation()
            .map(|relation| self.view_relation(relation, health, activity))
            .into_iter()
            .collect();
        VmView {
            id: vm.id,
            name: core.definition.name().to_owned(),
            driver: "volume".to_owned(),
            running,
            replication_mode: mode,
            replication_state: record.map_or(
                lifeboat_model::contract::ReplicationState::Disabled,
                |record| record.state(),
            ),
            replication_health: health,
            failed_over_replication_type: failover_type(core.relation()),
            disks,
            test_replica: core.test,
            test_of: core.test_of,
            relationships,
        }
    }

    fn view_relation(
        &self,
        relation: &Relation,
        health: lifeboat_model::contract::ReplicationHealth,
        activity: Option<crate::api::Activity>,
    ) -> RelationshipView {
        let record = relation.record();
        let last = relation.saved.last;
        let ours = self.inner.config.host.clone();
        let theirs = relation.peer.host.clone();
        let (primary, recovery, point) = if relation.is_primary() {
            (ours, theirs, relation.peer.address.clone())
        } else {
            (theirs, ours, self.inner.config.peer_address.clone())
        };
        let last_type = match (last.replicated_at, last.planned) {
            (None, _) => FailoverType::None,
            (Some(_), true) => FailoverType::Planned,
            (Some(_), false) => FailoverType::Regular,
        };
        RelationshipView {
            instance_id: format!("Microsoft:{}\\HVR\\0", guid(record.vm)),
            id: record.relationship,
            index: RelationshipIndex::Primary,
            replication_mode: record.mode(),
            replication_state: record.state(),
            replication_health: health,
            failed_over_replication_type: failover_type(Some(relation)),
            last_replication_type: last_type,
            last_replication_time: last.replicated_at,
            last_apply_time: last.applied_at,
            last_application_consistent_replication_time: last.application_consistent_at,
            last_sequence: relation
                .last_receipt()
                .map(|receipt| receipt.sequence)
                .or_else(|| (!relation.is_primary()).then_some(record.drawn)),
            lineage: record.lineage,
            primary_host_system: primary,
            recovery_host_system: recovery,
            recovery_connection_point: point,
            storage_location: relation.storage.clone(),
            trust_group: (!relation.trust_group.is_empty()).then(|| relation.trust_group.clone()),
            settings: relation.settings.clone(),
            activity,
        }
    }

    fn change_entries(
        &self,
        change: impl FnOnce(AuthorizationTable) -> Result<AuthorizationEntryView, Rejection>,
    ) -> Result<(), Rejection> {
        let entries = self
            .inner
            .ledger
            .entries()
            .map_err(|error| not_saved("the entry", &error))?;
        let table =
            AuthorizationTable::try_from(entries).map_err(|error| failed(with_causes(&error)))?;
        let entry = change(table)?;
        self.inner
            .ledger
            .save_entry(&entry)
            .map_err(|error| not_saved("the entry", &error))
    }
}

impl Operations for Service {
    fn host(&self, _caller: &Caller) -> Result<HostView, Rejection> {
        let standing = lock(&self.inner.standing).clone();
        let vms = self.all_vms();
        Ok(HostView {
            host: self.inner.config.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listeners: standing.listeners,
            settings: self.service_settings(),
            jobs_running: vms.iter().map(|vm| vm.core().jobs.len()).sum(),
            vms: vms.len(),
            certificate_expires_at: standing.certificate_expires_at,
        })
    }

    fn modify_service_settings(
        &self,
        caller: &Caller,
        change: ServiceSettingsChange,
    ) -> Result<(), Rejection> {
        let arguments = arguments_of(&change);
        let outcome = self
            .service_settings()
            .changed(change)
            .map_err(|error| invalid(with_causes(&error)))
            .and_then(|settings| {
                self.inner
                    .ledger
                    .save_setting(SERVICE_SETTINGS, &settings)
                    .map_err(|error| not_saved("the settings", &error))
            });
        self.audited(caller, "modify_service_settings", "", arguments, outcome)
    }

    fn vms(&self, _caller: &Caller) -> Result<Vec<VmView>, Rejection> {
        let mut vms: Vec<VmView> = self.all_vms().iter().map(|vm| self.view_vm(vm)).collect();
        vms.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(vms)
    }

    fn vm(&self, _caller: &Caller, vm: &VmRef) -> Result<VmView, Rejection> {
        Ok(self.view_vm(&self.resolve(vm)?))
    }

    fn define_vm(&self, caller: &Caller, vm: NewVm) -> Result<VmView, Rejection> {
        let outcome = self.make_vm(&vm).map(|vm| self.view_vm(&vm));
        self.audited(caller, "define_vm", &vm.name, arguments_of_vm(&vm), outcome)
    }

    fn undefine_vm(&self, caller: &Caller, vm: &VmRef) -> Result<(), Rejection> {
        let vm = self.resolve(vm)?;
        let outcome = self.forget_vm(&vm);
        self.audited(caller, "undefine_vm", &vm.name(), Value::Null, outcome)
    }

    fn request(
        &self,
        caller: &Caller,
        vm: &VmRef,
        operation: VmOperation,
    ) -> Result<Accepted, Rejection> {
        let vm = self.resolve(vm)?;
        let (name, arguments) = (operation.name(), operation.arguments());
        let outcome = self.run_operation(caller, &vm, operation);
        self.audited(caller, name, &vm.name(), arguments, outcome)
    }

    fn points(&self, _caller: &Caller, vm: &VmRef) -> Result<Vec<PointView>, Rejection> {
        let vm = self.resolve(vm)?;
        let record = vm
            .core()
            .relation()
            .map(|relation| relation.record().clone());
        let status = vm.store_facts().status;
        let points = status.map(|status| status.points).unwrap_or_default();
        Ok(points
            .into_iter()
            .map(|point| PointView {
                sequence: point.sequence,
                kind: point.kind,
                captured_at: point.captured_at,
                opened_at: point.opened_at,
                abandoned: record
                    .as_ref()
                    .is_some_and(|record| !record.has_come_through(point.lineage, point.sequence)),
                verified: point.verified,
                sealed: point.sealed,
                in_use: point.users > 0,
            })
            .collect())
    }

    fn health(&self, _caller: &Caller, vm: &VmRef) -> Result<HealthView, Rejection> {
        Ok(self.health_of(&self.resolve(vm)?))
    }

    fn check(&self, _caller: &Caller, vm: &VmRef) -> Result<CheckView, Rejection> {
        Ok(self.check_vm(&self.resolve(vm)?))
    }

    fn statistics(&self, _caller: &Caller, vm: &VmRef) -> Result<StatisticsView, Rejection> {
        let vm = self.resolve(vm)?;
        self.refuse_unreplicated(&vm)?;
        let statistics = self.statistics_of(&vm);
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        Ok(StatisticsView {
            start_statistic_time: statistics.start(),
            end_statistic_time: statistics.end(),
            replication_success_count: statistics.success_count(),
            replication_size: statistics.size(),
            max_replication_size: statistics.max_size(),
            replication_latency: seconds(statistics.latency()),
            replication_miss_count: statistics.miss_count(),
            max_replication_latency: seconds(statistics.max_latency()),
            network_failure_count: statistics.network_failure_count(),
            replication_failure_count: statistics.replication_failure_count(),
            pending_replication_size: self.pending_bytes(&vm),
            application_consistent_snapshot_failure_count: statistics
                .application_consistent_failure_count(),
            replication_health: self.health_value(&vm),
            last_test_failover_time: statistics.last_test_failover(),
        })
    }

    fn jobs(&self, _caller: &Caller, filter: &JobFilter) -> Result<Vec<JobView>, Rejection> {
        let activity = match filter.which {
            JobWhich::All => Activity::Any,
            JobWhich::Running => Activity::Unfinished,
        };
        let rows = self
            .inner
            .ledger
            .jobs(filter.vm, activity, 1000)
            .map_err(|error| not_read("the jobs", &error))?;
        Ok(rows.iter().map(|row| self.view_job(row)).collect())
    }

    fn job(&self, _caller: &Caller, job: JobId) -> Result<JobView, Rejection> {
        let row = self
            .inner
            .ledger
            .job(RowId::from_bytes(job.0))
            .map_err(|error| not_read("the job", &error))?;
        row.map(|row| self.view_job(&row)).ok_or_else(|| Rejection {
            code: ReturnCode::FileNotFound,
            what: "there is no such job".to_owned(),
            remedy: "ended jobs are kept for a day; see `lifeboat job list`".to_owned(),
        })
    }

    fn cancel_job(&self, caller: &Caller, job: JobId) -> Result<(), Rejection> {
        let found = self.all_vms().into_iter().find_map(|vm| {
            let goal = vm
                .core()
                .jobs
                .iter()
                .find(|active| *active.row.id.as_bytes() == job.0)
                .map(|active| active.goal);
            goal.map(|goal| (vm, goal))
        });
        let outcome = match found {
            None => Err(Rejection {
                code: ReturnCode::InvalidState,
                what: "the job does not run".to_owned(),
                remedy: "see `lifeboat job show`".to_owned(),
            }),
            Some((vm, Goal::Replicate { .. })) => {
                self.give_up_job(&vm, job);
                Ok(())
            }
            Some((vm, goal)) => {
                let event = match goal {
                    Goal::InitialReplication => Some(Event::CancelInitial),
                    Goal::Resynchronize => Some(Event::CancelResynchronize),
                    Goal::Prepare => Some(Event::CancelPrepared {
                        how: CancelHow::Asking,
                    }),
                    Goal::CancelPrepared
                    | Goal::FailOver
                    | Goal::Revert
                    | Goal::Commit
                    | Goal::Reverse { .. }
                    | Goal::Replicate { .. }
                    | Goal::Thread => None,
                };
                match event {
                    Some(event) => self.step(&vm, event).map_err(rejection_of_step),
                    None => Err(unsupported(
                        "this kind of job cannot be cancelled",
                        "wait for its end: `lifeboat job wait`",
                    )),
                }
            }
        };
        self.audited(caller, "cancel_job", &hex(&job.0), Value::Null, outcome)
    }

    fn events(
        &self,
        _caller: &Caller,
        since: u64,
        limit: usize,
    ) -> Result<Vec<EventView>, Rejection> {
        let events = self
            .inner
            .ledger
            .events(since, limit)
            .map_err(|error| not_read("the events", &error))?;
        Ok(events
            .into_iter()
            .map(|event| EventView {
                id: event.id.number(),
                at: event.event.at,
                severity: match event.event.severity {
                    lifeboat_catalog::Severity::Information => Severity::Info,
                    lifeboat_catalog::Severity::Warning => Severity::Warning,
                    lifeboat_catalog::Severity::Error => Severity::Error,
                },
                vm: event.event.vm,
                kind: event.event.kind,
                message: event.event.message,
            })
            .collect())
    }

    fn wait_for_events(&self, since: u64, patience: Duration) -> u64 {
        self.inner.news.wait(since, patience)
    }

    fn audit(&self, _caller: &Caller, limit: usize) -> Result<Vec<AuditView>, Rejection> {
        self.audit_rows(limit)
    }

    fn authorization_entries(
        &self,
        _caller: &Caller,
    ) -> Result<Vec<AuthorizationEntryView>, Rejection> {
        self.inner
            .ledger
            .entries()
            .map_err(|error| not_read("the entries", &error))
    }

    fn add_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection> {
        let target = entry.allowed_primary_host_system.to_string();
        let arguments = arguments_of(&entry);
        let outcome = self.change_entries(|table| {
            table
                .with_added(entry.clone())
                .map_err(|error| invalid(with_causes(&error)))?;
            Ok(entry)
        });
        self.audited(
            caller,
            "add_authorization_entry",
            &target,
            arguments,
            outcome,
        )
    }

    fn modify_authorization_entry(
        &self,
        caller: &Caller,
        entry: AuthorizationEntryView,
    ) -> Result<(), Rejection> {
        let target = entry.allowed_primary_host_system.to_string();
        let arguments = arguments_of(&entry);
        let outcome = self.change_entries(|table| {
            table
                .with_changed(entry.clone())
                .map_err(|error| invalid(with_causes(&error)))?;
            Ok(entry)
        });
        self.audited(
            caller,
            "modify_authorization_entry",
            &target,
            arguments,
            outcome,
        )
    }

    fn remove_authorization_entry(
        &self,
        caller: &Caller,
        allowed_primary_host_system: &str,
    ) -> Result<(), Rejection> {
        let outcome = match self.inner.ledger.remove_entry(allowed_primary_host_system) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Rejection {
                code: ReturnCode::FileNotFound,
                what: format!("there is no entry for {allowed_primary_host_system}"),
                remedy: "see `lifeboat authorization list`".to_owned(),
            }),
            Err(error) => Err(not_saved("the removal", &error)),
        };
        let target = allowed_primary_host_system;
        self.audited(
            caller,
            "remove_authorization_entry",
            target,
            Value::Null,
            outcome,
        )
    }

    fn test_connection(
        &self,
        _caller: &Caller,
        recovery_connection_point: &str,
    ) -> Result<String, Rejection> {
        let introduction = self.introduction_of(recovery_connection_point, None)?;
        match introduction.refusal {
            Some(refusal) => Err(Rejection {
                code: ReturnCode::AccessDenied,
                what: refusal,
                remedy: "mend that on the other host".to_owned(),
            }),
            None => Ok(format!(
                "{} ({}) would take replicas of this host's VMs",
                introduction.host, introduction.software
            )),
        }
    }
}

fn path_of(core: &Core, disk: &lifeboat_model::DiskId) -> std::path::PathBuf {
    match &core.place {
        DisksPlace::Images(images) => images
            .iter()
            .find(|(id, _)| id == disk)
            .map(|(_, path)| path.clone())
            .unwrap_or_default(),
        DisksPlace::Store(folder) => folder.join("disks").join(disk.as_str()).join("head.raw"),
        DisksPlace::Test { folder, .. } => folder.join(format!("{disk}.qcow2")),
    }
}

fn failover_type(relation: Option<&Relation>) -> FailoverType {
    match relation.map(|relation| &relation.record().role) {
        Some(Role::Replica(replica)) => replica.failover_type(),
        Some(Role::Primary(_)) | None => FailoverType::None,
    }
}

/// A VM's id as the schema writes it.
fn guid(vm: lifeboat_model::VmId) -> String {
    let hex = vm.to_string().to_uppercase();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn split_point(point: &str) -> Result<(String, u64), Rejection> {
    let wrong = || invalid(format!("{point:?} is not HOST:PORT"));
    let (host, port) = point.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = port.parse().map_err(|_| wrong())?;
    Ok((host.to_owned(), port))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
