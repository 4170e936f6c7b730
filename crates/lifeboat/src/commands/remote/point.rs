//! `lifeboat point`: recovery points of VMs.

use clap::Subcommand;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::Point;

use super::{Remote, VmArgs, VmJobArgs, WaitArgs, when};
use crate::commands::confirm;
use crate::exit::Failure;
use crate::output::{Table, yes_no};

#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// List a VM's recovery points, oldest first
    List(VmArgs),

    /// Make a recovery point now, besides the schedule
    Make(VmJobArgs),

    /// Read everything that a recovery point stands on and compare it with its digests
    Verify(VerifyArgs),

    /// Remove a recovery point
    Remove(RemoveArgs),
}

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// The recovery point; the newest moment unless given
    #[arg(value_name = "SEQUENCE")]
    sequence: Option<u64>,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// The recovery point
    #[arg(value_name = "SEQUENCE")]
    sequence: u64,

    /// Do it without asking
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

impl PointCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::List(args) => remote.show(&remote.client.points(&args.vm)?, |points| {
                points_text(points)
            }),
            Self::Make(args) => remote.operate(
                &args.vm,
                &VmRequest::MakePoint,
                args.wait,
                "recovery point made",
            ),
            Self::Verify(args) => {
                let verify = VmRequest::VerifyPoint(args.sequence);
                remote.operate(
                    &args.vm,
                    &verify,
                    args.wait,
                    "everything is as it was written",
                )
            }
            Self::Remove(args) => {
                if !args.yes {
                    let (vm, sequence) = (remote.client.vm(&args.vm)?.value, args.sequence);
                    confirm(&format!(
                        "Recovery point {sequence} of {} will be lost.",
                        vm.element_name
                    ))?;
                }
                let remove = VmRequest::RemovePoint(args.sequence);
                remote.operate(&args.vm, &remove, args.wait, "recovery point removed")
            }
        }
    }
}

fn points_text(points: &[Point]) -> String {
    if points.is_empty() {
        return "there are no recovery points\n".to_owned();
    }
    let mut table = Table::new(&[
        "POINT",
        "TAKEN",
        "KIND",
        "SEALED",
        "IN USE",
        "ABANDONED",
        "VERIFIED",
    ]);
    for point in points {
        table.row([
            point.sequence.to_string(),
            when(point.creation_time),
            point.kind.replace('_', " "),
            yes_no(point.sealed).to_owned(),
            yes_no(point.in_use).to_owned(),
            yes_no(point.abandoned).to_owned(),
            yes_no(point.verified).to_owned(),
        ]);
    }
    table.render()
}
