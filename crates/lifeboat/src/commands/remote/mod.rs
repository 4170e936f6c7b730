//! Commands that ask a host's service, over its REST interface.

pub mod authorization;
pub mod failover;
pub mod host;
pub mod job;
pub mod point;
pub mod replication;
mod settings;
pub mod support;
pub mod vm;
pub mod watch;

use std::path::{Path, PathBuf};

use lifeboat_rest::client::{Answer, Client, HostAddress, Identity, Outcome, VmRequest};
use lifeboat_rest::wire::{Job, Time};
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::output::{OutputFormat, facts, print};
use crate::progress::Progress;

/// How long one request waits for a job; as many follow as it takes.
const WAIT_SECONDS: u64 = 30;

/// The host that a command asks, and how its answers are printed.
#[derive(Debug)]
pub struct Remote {
    client: Client,
    output: OutputFormat,
}

/// Whether a command ends before its job does.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct WaitArgs {
    /// Print the job and do not wait for its end
    #[arg(long)]
    no_wait: bool,
}

/// A command that needs nothing but a VM.
#[derive(Debug, clap::Args)]
pub struct VmArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,
}

/// A command that needs nothing but a VM, and may take long.
#[derive(Debug, clap::Args)]
pub struct VmJobArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    #[command(flatten)]
    wait: WaitArgs,
}

/// Something of a VM that cannot be undone.
#[derive(Debug, clap::Args)]
pub struct VmEndArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Do it without asking
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

/// A switch that a setting turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl From<Switch> for bool {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::On => true,
            Switch::Off => false,
        }
    }
}

impl Remote {
    /// # Errors
    /// When the identity cannot be read.
    pub fn new(
        address: HostAddress,
        identity: Option<&Path>,
        output: OutputFormat,
    ) -> Result<Self, Failure> {
        let identity = identity.map(Identity::load).transpose();
        let identity = identity.map_err(|source| Failure::Identity { source })?;
        Ok(Self {
            client: Client::new(address, identity)?,
            output,
        })
    }

    /// Prints an answer: as the host sent it, or as text.
    fn show<T>(&self, answer: &Answer<T>, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        self.output.print(&answer.json, |_| text(&answer.value))
    }

    /// Says that a change was made. The host has nothing to add.
    fn done(&self, what: &str) -> Result<(), Failure> {
        self.output.print(&json!({}), |_| format!("{what}\n"))
    }

    /// Asks for an operation and sees it through. `done` says what is so afterwards.
    fn operate(
        &self,
        vm: &str,
        request: &VmRequest,
        wait: WaitArgs,
        done: &str,
    ) -> Result<(), Failure> {
        match self.client.request(vm, request)? {
            Outcome::Done => self.done(done),
            Outcome::Started(job) if wait.no_wait => self.show(&job, started_text),
            Outcome::Started(job) => self.see_through(*job, done),
        }
    }

    /// Waits for the end of a job, with a progress indicator, and prints the job.
    fn see_through(&self, mut job: Answer<Job>, done: &str) -> Result<(), Failure> {
        let progress = Progress::percent(&job.value.name);
        while !job.value.ended {
            progress.set(job.value.percent_complete.into());
            progress.say(&job.value.job_status);
            let id = job.value.instance_id.clone();
            job = self.client.wait_for_job(&id, WAIT_SECONDS)?;
        }
        drop(progress);
        self.print_ended(&job, done)
    }

    /// Prints a job that has ended; one that failed is a failure.
    fn print_ended(&self, job: &Answer<Job>, done: &str) -> Result<(), Failure> {
        if job::has_failed(&job.value) {
            match self.output {
                OutputFormat::Table => {}
                OutputFormat::Json => self.output.print(&job.json, |_| String::new())?,
            }
            return Err(Failure::Job {
                job: Box::new(job.value.clone()),
            });
        }
        self.show(job, |job| {
            format!(
                "{done} (job {}, {})\n",
                job.instance_id,
                duration(job.elapsed_micros / 1_000_000)
            )
        })
    }
}

fn started_text(job: &Job) -> String {
    facts(&[
        ("job", job.instance_id.clone()),
        ("does", job.name.clone()),
        ("state", job.job_state_text.clone()),
    ])
}

/// A time as it is printed: RFC 3339, UTC, to the second.
fn when(time: Time) -> String {
    time.0.to_string()
}

/// A time that may not have come yet.
fn when_if(time: Option<Time>) -> String {
    time.map_or_else(|| "-".to_owned(), when)
}

/// What may not be there.
fn or_dash(text: Option<&String>) -> String {
    text.map_or_else(|| "-".to_owned(), Clone::clone)
}

/// A duration in the largest units that say enough.
fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let largest = UNITS
        .iter()
        .position(|(unit, _)| seconds >= *unit)
        .unwrap_or(3);
    let (unit, name) = UNITS[largest];
    let (whole, rest) = (seconds / unit, seconds % unit);
    match UNITS.get(largest + 1) {
        Some((smaller, smaller_name)) if rest >= *smaller => {
            format!("{whole} {name} {} {smaller_name}", rest / smaller)
        }
        Some(_) | None => format!("{whole} {name}"),
    }
}

/// One line for a program that reads them as they come, or for people.
fn print_line(output: OutputFormat, json: &Value, text: &str) -> Result<(), Failure> {
    match output {
        OutputFormat::Table => print(&format!("{text}\n")),
        OutputFormat::Json => print(&format!("{json}\n")),
    }
}

/// Where a host's identity is, for those who reach hosts across the network.
#[derive(Debug, Clone, clap::Args)]
pub struct HostArgs {
    /// The host to ask: `unix:PATH`, or `https://HOST:PORT`
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        default_value_t = default_host(),
        help_heading = "Host"
    )]
    pub host: HostAddress,

    /// The folder with certificate.pem, key.pem and trust.pem, to ask a host across the network
    #[arg(long, global = true, value_name = "DIR", help_heading = "Host")]
    pub identity: Option<PathBuf>,
}

fn default_host() -> HostAddress {
    HostAddress::Unix(PathBuf::from(lifeboat_rest::DEFAULT_SOCKET))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_in_two_units_at_most() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min 59 s"),
            (3600, "1 h"),
            (3659, "1 h"),
            (86_399, "23 h 59 min"),
            (86_400, "1 d"),
            (1_000_000, "11 d 13 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
