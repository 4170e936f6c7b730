//! Jobs: what was asked for, until it is reached or cannot be.
//!
//! A job is a goal, saved with its row. Whether it is reached is read off the relationship's
//! record, so a job outlives a restart without anything of its own to resume: the record goes
//! on, and the goal is looked at again.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_catalog::{Document, Job, JobId as RowId};
use lifeboat_model::contract::{JobState, JobType, ReturnCode};
use lifeboat_model::relationship::{
    CriticalCause, Event, Primary, Record, ReplicaPhase, Role, SuspendedFrom,
};
use lifeboat_model::{Sequence, VmId};
use lifeboat_sys::host;
use serde::{Deserialize, Serialize};

use crate::activity::Meter;
use crate::api::{Accepted, Caller, JobId, JobView, Rejection};
use crate::ledger::document;
use crate::rejection::not_replicated;
use crate::service::{Service, with_causes};
use crate::vm::{Core, VmArc};

/// What a job wants to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    InitialReplication,
    Resynchronize,
    Prepare,
    CancelPrepared,
    FailOver,
    Revert,
    Commit,
    /// `asked`: the failover is committed, and the peer is being asked.
    Reverse {
        asked: bool,
    },
    /// The replica has this moment or a later one: what was changed before it was asked for.
    Replicate {
        moment: Sequence,
    },
    /// Work of one thread, without a record: it does not outlive a restart.
    Thread,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pending,
    Done,
    /// An operator's other wish has ended it.
    Terminated,
    Failed,
    /// The next part of the job: an event, and the goal from then on.
    Next(Event, Goal),
}

/// A job that is not final.
#[derive(Debug, Clone)]
pub(crate) struct ActiveJob {
    pub(crate) row: Job,
    pub(crate) goal: Goal,
    pub(crate) began: Duration,
    /// How far it is, if it works in a thread of its own; other jobs wait for the VM's worker.
    pub(crate) meter: Option<Arc<Meter>>,
}

impl Goal {
    /// How the goal stands in a record; without one the relationship is gone.
    pub(crate) fn verdict(self, record: Option<&Record>) -> Verdict {
        let Some(record) = record else {
            return match self {
                Self::Thread => Verdict::Pending,
                _ => Verdict::Terminated,
            };
        };
        match (&record.role, self) {
            (_, Self::Thread) => Verdict::Pending,
            (Role::Primary(primary), goal) => goal.at_primary(primary),
            (Role::Replica(replica), goal) => goal.at_replica(&replica.phase),
        }
    }

    fn at_primary(self, primary: &Primary) -> Verdict {
        match self {
            Self::InitialReplication | Self::Resynchronize => match primary {
                Primary::Replicating { .. }
                | Primary::Preparing { .. }
                | Primary::Prepared { .. }
                | Primary::AskingToGoOn { .. } => Verdict::Done,
                Primary::Ready { start: None } | Primary::ResyncRequired { at: None, .. } => {
                    Verdict::Terminated
                }
                Primary::Suspended { from } => match from {
                    SuspendedFrom::Replicating { .. } | SuspendedFrom::Prepared { .. } => {
                        Verdict::Done
                    }
                    _ => Verdict::Pending,
                },
                Primary::Fenced { .. } => Verdict::Failed,
                Primary::Ready { start: Some(_) }
                | Primary::ResyncRequired { at: Some(_), .. }
                | Primary::Copying(_)
                | Primary::Resyncing(_)
                | Primary::ResyncSuspended(_)
                | Primary::Critical { .. } => Verdict::Pending,
            },
            Self::Prepare => match primary {
                Primary::Prepared { .. } | Primary::Fenced { .. } => Verdict::Done,
                Primary::Preparing { .. } => Verdict::Pending,
                Primary::Replicating { .. } => Verdict::Terminated,
                _ => Verdict::Failed,
            },
            Self::CancelPrepared => match primary {
                Primary::AskingToGoOn { .. } => Verdict::Pending,
                Primary::Replicating { .. } => Verdict::Done,
                Primary::Critical {
                    cause: CriticalCause::WentOnAlone,
                    ..
                } => Verdict::Done,
                _ => Verdict::Failed,
            },
            Self::Reverse { .. } => match primary {
                Primary::Resyncing(_) | Primary::ResyncSuspended(_) | Primary::Critical { .. } => {
                    Verdict::Pending
                }
                Primary::Fenced { .. } => Verdict::Failed,
                Primary::ResyncRequired { .. } => Verdict::Terminated,
                _ => Verdict::Done,
            },
            Self::Replicate { moment } => moment_at_primary(moment, primary),
            // The role was swapped since: the failover was committed.
            Self::Commit => Verdict::Done,
            Self::FailOver | Self::Revert | Self::Thread => Verdict::Failed,
        }
    }

    fn at_replica(self, phase: &ReplicaPhase) -> Verdict {
        match self {
            Self::FailOver => match phase {
                ReplicaPhase::FailingOver(_) => Verdict::Pending,
                ReplicaPhase::FailedOver { .. }
                | ReplicaPhase::Reverting { .. }
                | ReplicaPhase::Committing { .. }
                | ReplicaPhase::Committed { .. }
                | ReplicaPhase::Reversing { .. } => Verdict::Done,
                _ => Verdict::Failed,
            },
            Self::Revert => match phase {
                ReplicaPhase::Reverting { .. } => Verdict::Pending,
                ReplicaPhase::FailedOver { .. } => Verdict::Failed,
                _ => Verdict::Done,
            },
            Self::Commit => match phase {
                ReplicaPhase::Committing { .. } => Verdict::Pending,
                ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. } => Verdict::Done,
                _ => Verdict::Failed,
            },
            Self::Reverse { asked } => match phase {
                ReplicaPhase::Committing { .. } | ReplicaPhase::Reversing { .. } => {
                    Verdict::Pending
                }
                ReplicaPhase::Committed { .. } if !asked => {
                    Verdict::Next(Event::Reverse, Self::Reverse { asked: true })
                }
                _ => Verdict::Failed,
            },
            Self::InitialReplication
            | Self::Resynchronize
            | Self::Prepare
            | Self::CancelPrepared
            | Self::Replicate { .. }
            | Self::Thread => Verdict::Failed,
        }
    }
}

/// Whether the replica has a moment, or will have it without anybody's further wish.
fn moment_at_primary(moment: Sequence, primary: &Primary) -> Verdict {
    let last = primary.last_receipt();
    if last.is_some_and(|last| last.sequence >= moment) {
        return Verdict::Done;
    }
    match primary {
        // Nothing was changed since: the VM is off.
        Primary::Prepared { .. } => Verdict::Done,
        Primary::Replicating { .. }
        | Primary::Preparing { .. }
        | Primary::AskingToGoOn { .. }
        | Primary::Copying(_)
        | Primary::Resyncing(_)
        | Primary::Critical { .. } => Verdict::Pending,
        Primary::Ready { .. } | Primary::Suspended { .. } | Primary::ResyncSuspended(_) => {
            Verdict::Terminated
        }
        Primary::ResyncRequired { .. } | Primary::Fenced { .. } => Verdict::Failed,
    }
}

impl Service {
    /// Saves a job before what it waits for is begun.
    pub(crate) fn new_job(
        &self,
        caller: &Caller,
        vm: VmId,
        job_type: JobType,
        goal: Goal,
    ) -> Result<ActiveJob, Rejection> {
        let id = host::random_bytes().map_err(|error| Rejection {
            code: ReturnCode::Failed,
            what: format!("draw a number for the job: {error}"),
            remedy: String::new(),
        })?;
        let now = self.now();
        let row = Job {
            id: RowId::from_bytes(id),
            job_type: job_type.number(),
            vm: Some(vm),
            relationship: None,
            name: job_type.label().to_owned(),
            job_state: JobState::Running.number(),
            percent_complete: 0,
            error_code: 0,
            error_description: String::new(),
            errors: None,
            time_submitted: now,
            scheduled_start: None,
            start_time: Some(now),
            elapsed: Duration::ZERO,
            time_of_last_state_change: now,
            cancellable: is_cancellable(goal),
            owner: caller.name.clone(),
            request: document(&goal),
            result: None,
            final_at: None,
        };
        self.inner
            .ledger
            .add_job(&row)
            .map_err(|error| not_saved("the job", &error))?;
        Ok(ActiveJob {
            row,
            goal,
            began: self.inner.clock.monotonic(),
            meter: None,
        })
    }

    /// Runs an event whose end a job waits for.
    pub(crate) fn start_job(
        &self,
        caller: &Caller,
        vm: &VmArc,
        job_type: JobType,
        goal: Goal,
        event: Event,
    ) -> Result<Accepted, Rejection> {
        // Refused wishes leave no job behind.
        let allowed = vm.core().decide(self.now(), event.clone());
        if let Err(error) = allowed {
            return Err(crate::rejection::rejection_of_step(error));
        }
        let job = self.new_job(caller, vm.id, job_type, goal)?;
        let id = JobId(*job.row.id.as_bytes());
        vm.core().jobs.push(job);
        if let Err(error) = self.step(vm, event) {
            let rejection = crate::rejection::rejection_of_step(error);
            let mut core = vm.core();
            if let Some(at) = position(&core, id) {
                let job = core.jobs.remove(at);
                self.end_job(
                    job,
                    &Verdict::Failed,
                    Some((rejection.code, &rejection.what)),
                );
            }
            return Err(rejection);
        }
        Ok(Accepted::JobStarted(id))
    }

    /// Begins a cycle as soon as nothing else is under way. The job ends when the replica has what
    /// was changed until now; who asks again before a cycle has begun is given the same job.
    pub(crate) fn replicate_now(&self, caller: &Caller, vm: &VmArc) -> Result<Accepted, Rejection> {
        let record = vm
            .core()
            .relation()
            .map(|relation| relation.record().clone());
        let record = record.ok_or_else(not_replicated)?;
        let Role::Primary(primary) = &record.role else {
            return Err(Rejection {
                code: ReturnCode::InvalidState,
                what: "this host keeps the replica, and the other one sends".to_owned(),
                remedy: "ask the host that runs the VM: use --host".to_owned(),
            });
        };
        // Who waits for its next attempt makes it now, be it only to hear whether that is changed.
        vm.core().facts.wanted = true;
        self.set_alarm(vm);
        let moment = record.drawn.next().unwrap_or(record.drawn);
        let goal = Goal::Replicate { moment };
        match goal.at_primary(primary) {
            Verdict::Pending => {}
            Verdict::Done => return Ok(Accepted::Completed),
            Verdict::Terminated | Verdict::Failed | Verdict::Next(..) => {
                return Err(Rejection {
                    code: ReturnCode::InvalidState,
                    what: format!("nothing is sent in this state: {}", record.state()),
                    remedy: "`lifeboat health` says why, and what helps".to_owned(),
                });
            }
        }
        let known = vm.core().jobs.iter().find_map(|job| {
            let is_same = job.goal == goal;
            is_same.then(|| JobId(*job.row.id.as_bytes()))
        });
        if let Some(known) = known {
            return Ok(Accepted::JobStarted(known));
        }
        let job = self.new_job(caller, vm.id, JobType::SendingDelta, goal)?;
        let id = JobId(*job.row.id.as_bytes());
        let mut core = vm.core();
        core.jobs.push(job);
        // It may have travelled while the job was saved.
        self.update_jobs(vm, &mut core);
        Ok(Accepted::JobStarted(id))
    }

    /// Looks at every job of a VM; called whenever its record has changed.
    pub(crate) fn update_jobs(&self, vm: &VmArc, core: &mut Core) {
        let record = core.relation().map(|relation| relation.record().clone());
        let trouble = core.facts.trouble.clone();
        let mut follow = Vec::new();
        let mut kept = Vec::new();
        for mut job in std::mem::take(&mut core.jobs) {
            match job.goal.verdict(record.as_ref()) {
                Verdict::Pending => kept.push(job),
                Verdict::Next(event, goal) => {
                    job.goal = goal;
                    follow.push(event);
                    kept.push(job);
                }
                verdict => {
                    let why = trouble
                        .as_ref()
                        .filter(|_| verdict == Verdict::Failed)
                        .map(|trouble| (trouble.code, trouble.what.as_str()));
                    self.end_job(job, &verdict, why);
                }
            }
        }
        core.jobs = kept;
        for event in follow {
            let (service, vm) = (self.clone(), Arc::clone(vm));
            // The core is locked here; the event follows when it is free.
            let spawned = std::thread::Builder::new()
                .name("job".to_owned())
                .spawn(move || service.tell(&vm, event));
            if let Err(error) = spawned {
                tracing::error!("go on with a job: {error}; it goes on after a restart");
            }
        }
    }

    pub(crate) fn end_job(
        &self,
        mut job: ActiveJob,
        verdict: &Verdict,
        why: Option<(ReturnCode, &str)>,
    ) {
        let now = self.now();
        let state = match verdict {
            Verdict::Done => JobState::Completed,
            Verdict::Terminated => JobState::Terminated,
            Verdict::Failed | Verdict::Pending | Verdict::Next(..) => JobState::Exception,
        };
        job.row.job_state = state.number();
        if state == JobState::Completed {
            job.row.percent_complete = 100;
        }
        if state == JobState::Exception {
            let (code, what) = why.unwrap_or((
                ReturnCode::Failed,
                "the state that was asked for was not reached",
            ));
            job.row.error_code = code.number();
            job.row.error_description = what.chars().take(4000).collect();
        }
        let elapsed = self.inner.clock.monotonic().saturating_sub(job.began);
        job.row.elapsed += elapsed;
        job.row.time_of_last_state_change = now;
        job.row.final_at = Some(now);
        job.row.cancellable = false;
        self.inner.ledger.save_ended_job(job.row);
    }

    /// Ends a job at its operator's wish. What it waits for goes on.
    pub(crate) fn give_up_job(&self, vm: &VmArc, id: JobId) {
        let mut core = vm.core();
        if let Some(at) = position(&core, id) {
            let job = core.jobs.remove(at);
            self.end_job(job, &Verdict::Terminated, None);
        }
        drop(core);
        vm.tell_changed();
    }

    /// Runs work in a thread of its own as a job.
    pub(crate) fn run_as_job(
        &self,
        caller: &Caller,
        vm: &VmArc,
        job_type: JobType,
        work: impl FnOnce(&VmArc, &Meter) -> Result<Document, (ReturnCode, String)> + Send + 'static,
    ) -> Result<Accepted, Rejection> {
        let mut job = self.new_job(caller, vm.id, job_type, Goal::Thread)?;
        let meter = Arc::new(Meter::default());
        job.meter = Some(Arc::clone(&meter));
        let id = JobId(*job.row.id.as_bytes());
        vm.core().jobs.push(job);
        let (service, worked) = (self.clone(), Arc::clone(vm));
        let spawned = std::thread::Builder::new()
            .name("job".to_owned())
            .spawn(move || {
                let outcome = work(&worked, &meter);
                service.end_thread_job(&worked, id, outcome);
            });
        if let Err(error) = spawned {
            let what = format!("start a thread: {error}");
            self.end_thread_job(vm, id, Err((ReturnCode::OutOfMemory, what)));
        }
        Ok(Accepted::JobStarted(id))
    }

    fn end_thread_job(
        &self,
        vm: &VmArc,
        id: JobId,
        outcome: Result<Document, (ReturnCode, String)>,
    ) {
        let mut core = vm.core();
        let Some(at) = position(&core, id) else {
            return;
        };
        let mut job = core.jobs.remove(at);
        match outcome {
            Ok(result) => {
                job.row.result = Some(result);
                self.end_job(job, &Verdict::Done, None);
            }
            Err((code, what)) => self.end_job(job, &Verdict::Failed, Some((code, &what))),
        }
        drop(core);
        vm.tell_changed();
    }

    /// A job's row as it is now.
    pub(crate) fn view_job(&self, row: &Job) -> JobView {
        let mut percent = u16::from(row.percent_complete);
        let mut elapsed = row.elapsed;
        let mut status = String::new();
        if row.final_at.is_none()
            && let Some(vm) = row.vm.and_then(|vm| self.find(vm))
        {
            let core = vm.core();
            let job = core.jobs.iter().find(|job| job.row.id == row.id);
            if let Some(job) = job {
                elapsed += self.inner.clock.monotonic().saturating_sub(job.began);
            }
            let own = job.and_then(|job| job.meter.as_deref());
            let meter = own.unwrap_or(&vm.meter);
            percent = meter.percent();
            if let Some(activity) = meter.view() {
                status = activity.what;
            }
            if let (Some(trouble), None) = (&core.facts.trouble, own) {
                status = trouble.what.clone();
            }
        }
        JobView {
            id: JobId(*row.id.as_bytes()),
            vm: row.vm,
            job_type: JobType::try_from(u32::from(row.job_type)).unwrap_or(JobType::Unknown),
            name: row.name.clone(),
            job_state: JobState::try_from(u32::from(row.job_state)).unwrap_or(JobState::Exception),
            percent_complete: percent,
            job_status: status,
            error_code: row.error_code,
            error_description: row.error_description.clone(),
            time_submitted: row.time_submitted,
            start_time: row.start_time,
            elapsed_micros: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            time_of_last_state_change: row.time_of_last_state_change,
            cancellable: row.cancellable,
            owner: row.owner.clone(),
        }
    }

    /// Jobs that were running when the last daemon ended.
    pub(crate) fn take_up_jobs(&self, rows: Vec<Job>) {
        let began = self.inner.clock.monotonic();
        for row in rows {
            let goal: Option<Goal> = row.request.to().ok();
            let vm = row.vm.and_then(|vm| self.find(vm));
            match (goal, vm) {
                (Some(goal), Some(vm)) if goal != Goal::Thread => {
                    let mut core = vm.core();
                    core.jobs.push(ActiveJob {
                        row,
                        goal,
                        began,
                        meter: None,
                    });
                    self.update_jobs(&vm, &mut core);
                }
                (goal, _) => {
                    let job = ActiveJob {
                        row,
                        goal: goal.unwrap_or(Goal::Thread),
                        began,
                        meter: None,
                    };
                    let why = "the daemon was restarted while it ran; ask for it again";
                    self.end_job(job, &Verdict::Failed, Some((ReturnCode::Failed, why)));
                }
            }
        }
    }
}

pub(crate) fn not_saved(what: &str, error: &lifeboat_catalog::CatalogError) -> Rejection {
    Rejection {
        code: ReturnCode::Failed,
        what: format!("save {what}: {}", with_causes(error)),
        remedy: String::new(),
    }
}

fn position(core: &Core, id: JobId) -> Option<usize> {
    core.jobs
        .iter()
        .position(|job| *job.row.id.as_bytes() == id.0)
}

const fn is_cancellable(goal: Goal) -> bool {
    match goal {
        Goal::InitialReplication | Goal::Resynchronize | Goal::Prepare | Goal::Replicate { .. } => {
            true
        }
        Goal::CancelPrepared
        | Goal::FailOver
        | Goal::Revert
        | Goal::Commit
        | Goal::Reverse { .. }
        | Goal::Thread => false,
    }
}
