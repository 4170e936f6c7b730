//! `lifeboat failover`: the VM runs at the other site, for a test or for real.

use clap::Subcommand;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{
    CancelPlannedFailover, InitiateFailover, Loss, NameSurvivor, Survivor, TestFailover,
};

use super::{Remote, VmEndArgs, VmJobArgs, WaitArgs, duration};
use crate::commands::confirm;
use crate::exit::Failure;
use crate::size::Bytes;

#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Start a copy of the VM beside the replica, which goes on
    Test(TestArgs),

    /// End the test failover, and forget what its VM wrote
    TestEnd(VmJobArgs),

    /// Prepare a planned failover on the primary, with the VM off, or cancel that
    Prepare(PrepareArgs),

    /// Let the VM run from its replica
    ///
    /// No host can know whether the VM still runs at the other site. Make sure that it does not.
    Start(StartArgs),

    /// Give up the failover and what the VM wrote since: a replica again
    Revert(VmEndArgs),

    /// Keep the failover for good: every recovery point goes, there is no way back
    Commit(VmEndArgs),

    /// Say whose history is kept, where both hosts have gone on with the VM
    ///
    /// The other host stands down, and keeps what it holds until replication is resumed or
    /// reversed: then its disks are compared, and what only it wrote is given up.
    Survivor(SurvivorArgs),
}

#[derive(Debug, clap::Args)]
pub struct TestArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Start from this recovery point; from the newest moment unless given
    #[arg(long, value_name = "SEQUENCE")]
    point: Option<u64>,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct PrepareArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Give up the planned failover that is prepared
    #[arg(long)]
    cancel: bool,

    /// Take on the risk that the replica has started already, when it cannot be asked
    #[arg(long, requires = "cancel")]
    force: bool,

    /// Do it without asking
    #[arg(long, requires = "force")]
    yes: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Start from this recovery point; from the newest moment unless given
    #[arg(long, value_name = "SEQUENCE")]
    point: Option<u64>,

    /// Take on what cannot be checked, such as whether the VM still runs at the other site
    #[arg(long)]
    force: bool,

    /// Do it without asking
    #[arg(long, requires = "force")]
    yes: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct SurvivorArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    #[command(flatten)]
    survivor: SurvivorChoice,

    /// Do it without asking
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct SurvivorChoice {
    /// The VM's history on this host is kept
    #[arg(long)]
    this_host: bool,

    /// The VM's history on the other host is kept
    #[arg(long)]
    other_host: bool,
}

impl FailoverCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::Test(args) => {
                let test = VmRequest::TestFailover(TestFailover { point: args.point });
                remote.operate(&args.vm, &test, args.wait, "test failover started")
            }
            Self::TestEnd(args) => {
                let end = VmRequest::EndTestFailover;
                remote.operate(&args.vm, &end, args.wait, "test failover ended")
            }
            Self::Prepare(args) if args.cancel => cancel(&args, remote),
            Self::Prepare(args) => {
                let prepare = VmRequest::PrepareFailover;
                remote.operate(&args.vm, &prepare, args.wait, "planned failover prepared")
            }
            Self::Start(args) => start(&args, remote),
            Self::Revert(args) => revert(&args, remote),
            Self::Commit(args) => commit(&args, remote),
            Self::Survivor(args) => survivor(&args, remote),
        }
    }
}

fn cancel(args: &PrepareArgs, remote: &Remote) -> Result<(), Failure> {
    if args.force && !args.yes {
        let vm = remote.client.vm(&args.vm)?.value.element_name;
        confirm(&format!(
            "If {vm} has started at the other site, it will run twice, and what one of the two writes will be lost."
        ))?;
    }
    let cancel = VmRequest::CancelPlannedFailover(CancelPlannedFailover { force: args.force });
    remote.operate(&args.vm, &cancel, args.wait, "planned failover canceled")
}

fn start(args: &StartArgs, remote: &Remote) -> Result<(), Failure> {
    if args.force && !args.yes {
        let check = remote.client.check(&args.vm)?.value;
        let vm = remote.client.vm(&args.vm)?.value.element_name;
        let lost = match args.point {
            None => what_is_lost(&check.loss),
            Some(point) => format!("What {vm} wrote after recovery point {point} will be lost"),
        };
        confirm(&format!(
            "{lost}, unless the failover is reverted. If {vm} still runs at the other site, it will run twice."
        ))?;
    }
    let start = VmRequest::InitiateFailover(InitiateFailover {
        point: args.point,
        force: args.force,
    });
    remote.operate(&args.vm, &start, args.wait, "failed over")
}

/// What a failover to the newest moment loses, as a sentence without its end.
fn what_is_lost(loss: &Loss) -> String {
    let bytes = loss.bytes.map(|bytes| Bytes(bytes).to_string());
    match (loss.seconds.map(duration), bytes) {
        (Some(time), Some(bytes)) => {
            format!("What was written in the last {time} ({bytes}) will be lost")
        }
        (Some(time), None) => format!("What was written in the last {time} will be lost"),
        (None, Some(bytes)) => format!("{bytes} that were not replicated will be lost"),
        (None, None) => "What was not replicated will be lost; nobody knows how much".to_owned(),
    }
}

fn revert(args: &VmEndArgs, remote: &Remote) -> Result<(), Failure> {
    if !args.yes {
        let vm = remote.client.vm(&args.vm)?.value.element_name;
        confirm(&format!(
            "Everything that {vm} wrote since the failover will be lost."
        ))?;
    }
    remote.operate(
        &args.vm,
        &VmRequest::RevertFailover,
        args.wait,
        "failover reverted",
    )
}

fn commit(args: &VmEndArgs, remote: &Remote) -> Result<(), Failure> {
    if !args.yes {
        let vm = remote.client.vm(&args.vm)?.value.element_name;
        let points = match remote.client.points(&args.vm)?.value.len() {
            1 => "its only recovery point".to_owned(),
            points => format!("its {points} recovery points"),
        };
        confirm(&format!(
            "The failover of {vm} will be kept for good: {points} and the state before the failover will be lost."
        ))?;
    }
    remote.operate(
        &args.vm,
        &VmRequest::CommitFailover,
        args.wait,
        "failover committed",
    )
}

fn survivor(args: &SurvivorArgs, remote: &Remote) -> Result<(), Failure> {
    let (survivor, loser, done) = if args.survivor.this_host {
        (
            Survivor::ThisHost,
            "the other host",
            "this host's history is kept",
        )
    } else {
        (
            Survivor::OtherHost,
            "this host",
            "the other host's history is kept",
        )
    };
    if !args.yes {
        let vm = remote.client.vm(&args.vm)?.value.element_name;
        confirm(&format!(
            "What {vm} wrote on {loser} since the histories parted will be given up."
        ))?;
    }
    let named = VmRequest::NameSurvivor(NameSurvivor { survivor });
    remote.operate(&args.vm, &named, args.wait, done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_as_far_as_it_is_known() {
        let lost = |seconds, bytes| what_is_lost(&Loss { seconds, bytes });
        assert_eq!(
            lost(Some(42), Some(5 << 20)),
            "What was written in the last 42 s (5 MiB) will be lost"
        );
        assert_eq!(
            lost(Some(61), None),
            "What was written in the last 1 min 1 s will be lost"
        );
        assert_eq!(
            lost(None, Some(1)),
            "1 B that were not replicated will be lost"
        );
        assert!(lost(None, None).contains("nobody knows"));
    }
}
