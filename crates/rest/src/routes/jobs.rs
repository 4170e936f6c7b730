//! Jobs.

use std::time::Duration;

use axum::Json;
use http::StatusCode;
use lifeboat_model::VmId;
use lifeboat_service::api::{JobFilter, JobId, JobWhich};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout_at};
use utoipa::IntoParams;

use super::{Changed, Refused};
use crate::front::{Asked, Body, Call, InPath};
use crate::problem::Problem;
use crate::wire::{InvalidRequest, Job, Nothing, parse_job_id};

/// The longest that anybody may wait for a job in one request, in seconds.
const MAX_WAIT: u64 = 60;

/// How often a job that is waited for is looked at, besides when an event tells of a change.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often it is looked at however many events there are.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);

/// Which jobs are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Those of one VM, by its id.
    #[serde(default)]
    vm: Option<String>,
    /// Only those that have not ended.
    #[serde(default)]
    running: bool,
}

/// A job in a path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct JobInPath {
    /// The job's identity: 32 hexadecimal digits.
    job: String,
}

impl JobInPath {
    fn id(&self) -> Result<JobId, InvalidRequest> {
        let remedy = "use the 32 hexadecimal digits of a job's instance_id";
        parse_job_id(&self.job).ok_or_else(|| InvalidRequest::new("job", &self.job, remedy))
    }
}

/// How long to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// 0 to 60.
    #[serde(default = "default_wait")]
    #[param(default = 30, maximum = 60)]
    seconds: u64,
}

const fn default_wait() -> u64 {
    30
}

/// Jobs, the newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", operation_id = "job_list", params(ListQuery),
    responses((status = 200, body = [Job]), Refused))]
pub(super) async fn list(
    call: Call,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<Vec<Job>>, Problem> {
    let vm = query.vm.map(|text| {
        let parsed = text.parse::<VmId>();
        parsed.map_err(|_| InvalidRequest::new("vm", &text, "use the id of a VM"))
    });
    let filter = JobFilter {
        vm: vm.transpose()?,
        which: if query.running {
            JobWhich::Running
        } else {
            JobWhich::All
        },
    };
    let jobs = call
        .ask(move |operations, caller| operations.jobs(caller, &filter))
        .await?;
    Ok(Json(jobs.into_iter().map(Job::from).collect()))
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs", operation_id = "job_show",
    params(JobInPath), responses((status = 200, body = Job), Refused))]
pub(super) async fn show(call: Call, InPath(job): InPath<JobInPath>) -> Result<Json<Job>, Problem> {
    let id = job.id()?;
    let job = call
        .ask(move |operations, caller| operations.job(caller, id))
        .await?;
    Ok(Json(job.into()))
}

/// Asks a job to end early. That it did is seen in its state.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/cancel",
    tag = "jobs",
    operation_id = "job_cancel",
    params(JobInPath),
    responses(Changed)
)]
pub(super) async fn cancel(
    call: Call,
    InPath(job): InPath<JobInPath>,
    _: Body<Nothing>,
) -> Result<StatusCode, Problem> {
    let id = job.id()?;
    call.change(move |operations, caller| operations.cancel_job(caller, id))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Waits until a job has ended or the time is over, and answers with the job as it is then.
#[utoipa::path(get, path = "/v1/jobs/{job}/wait", tag = "jobs", operation_id = "job_wait",
    params(JobInPath, WaitQuery), responses((status = 200, body = Job), Refused))]
pub(super) async fn wait(
    Call { front, caller }: Call,
    InPath(job): InPath<JobInPath>,
    Asked(query): Asked<WaitQuery>,
) -> Result<Json<Job>, Problem> {
    let id = job.id()?;
    if query.seconds > MAX_WAIT {
        let remedy = format!("use 0 to {MAX_WAIT}, and ask again");
        return Err(InvalidRequest::new("seconds", &query.seconds.to_string(), remedy).into());
    }
    let deadline = Instant::now() + Duration::from_secs(query.seconds);
    let mut feed = front.feed.subscribe();
    let mut closing = front.closing.clone();
    // Not every end of a job is an event, and most jobs are short.
    let mut patience = LOOK_AT_MOST_EVERY;
    loop {
        let caller = caller.clone();
        let job = front
            .ask(move |operations| operations.job(&caller, id))
            .await?;
        let ended = job.job_state.is_final();
        if ended || Instant::now() >= deadline || *closing.borrow_and_update() {
            return Ok(Json(job.into()));
        }
        let looked = Instant::now();
        let next_look = async {
            sleep_until(deadline.min(looked + LOOK_AT_MOST_EVERY)).await;
            // Whether an event came or the time is over, the job is looked at again.
            let _ = timeout_at(deadline.min(looked + patience), feed.changed()).await;
        };
        tokio::select! {
            () = next_look => {}
            _ = closing.changed() => {}
        }
        patience = LOOK_EVERY.min(patience * 2);
    }
}
