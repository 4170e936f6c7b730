//! `lifeboat job`: long work of the host.

use clap::Subcommand;
use lifeboat_model::contract::JobState;
use lifeboat_rest::wire::Job;

use super::{Remote, duration, or_dash, when, when_if};
use crate::exit::Failure;
use crate::output::{Table, facts, yes_no};

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// List the jobs
    List(ListArgs),

    /// Show a job
    Show(JobArgs),

    /// Wait for the end of a job
    ///
    /// Exits as the operation would that the job does.
    Wait(JobArgs),

    /// Ask a job to end early
    Cancel(JobArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only those that have not ended
    #[arg(long)]
    running: bool,
}

#[derive(Debug, clap::Args)]
pub struct JobArgs {
    /// The job: 32 hexadecimal digits
    #[arg(value_name = "JOB")]
    job: String,
}

impl JobCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done, or why the job failed that was waited for.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::List(args) => {
                let jobs = if args.running {
                    remote.client.running_jobs()?
                } else {
                    remote.client.jobs()?
                };
                remote.show(&jobs, |jobs| jobs_text(jobs))
            }
            Self::Show(args) => remote.show(&remote.client.job(&args.job)?, job_text),
            Self::Wait(args) => {
                let job = remote.client.job(&args.job)?;
                remote.see_through(job, "completed")
            }
            Self::Cancel(args) => {
                remote.client.cancel_job(&args.job)?;
                remote.done("the job was asked to end")
            }
        }
    }
}

/// Whether a job ended without doing what it was for.
pub fn has_failed(job: &Job) -> bool {
    match JobState::try_from(u32::from(job.job_state)) {
        Ok(state) => state.is_failure(),
        // A state of a later version: all that is known is whether it ended with an error.
        Err(_) => job.error_code != 0,
    }
}

fn jobs_text(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "there are no jobs\n".to_owned();
    }
    let mut table = Table::new(&["JOB", "DOES", "VM", "STATE", "DONE", "SUBMITTED"]);
    for job in jobs {
        table.row([
            job.instance_id.clone(),
            job.name.clone(),
            or_dash(job.vm.as_ref()),
            job.job_state_text.clone(),
            format!("{} %", job.percent_complete),
            when(job.time_submitted),
        ]);
    }
    table.render()
}

fn job_text(job: &Job) -> String {
    let mut about = vec![
        ("job", job.instance_id.clone()),
        ("does", job.name.clone()),
        ("vm", or_dash(job.vm.as_ref())),
        ("type", job.job_type_text.clone()),
        ("state", job.job_state_text.clone()),
        ("done", format!("{} %", job.percent_complete)),
        ("status", job.job_status.clone()),
        ("owner", job.owner.clone()),
        ("submitted", when(job.time_submitted)),
        ("started", when_if(job.start_time)),
        ("took", duration(job.elapsed_micros / 1_000_000)),
        ("can be canceled", yes_no(job.cancellable).to_owned()),
    ];
    if job.error_code != 0 {
        about.push((
            "error",
            format!("{} ({})", job.error_description, job.error_code),
        ));
    }
    facts(&about)
}
