//! `lifeboat replication`: relationships of VMs.

use clap::Subcommand;
use lifeboat_model::RelationshipId;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{
    EnableReplication, Relationship, Resynchronize, ReverseReplication, SettingsChange,
    StartReplication, Time,
};

use super::settings::{SettingsArgs, settings_text};
use super::vm::relationship_text;
use super::{Remote, VmArgs, VmEndArgs, VmJobArgs, WaitArgs};
use crate::commands::confirm;
use crate::exit::Failure;

#[derive(Debug, Subcommand)]
pub enum ReplicationCommand {
    /// Show a VM's relationships
    Show(VmArgs),

    /// Replicate a VM to another host; `replication start` makes the first copy
    Enable(Box<EnableArgs>),

    /// Make the first copy, now or later, or cancel that
    Start(StartArgs),

    /// Stop sending for a while; what changes is remembered
    Suspend(VmJobArgs),

    /// Go on sending
    Resume(VmJobArgs),

    /// Compare both sides and send what differs, now or later, or cancel that
    Resync(ResyncArgs),

    /// Replicate the other way round after a failover
    Reverse(Box<ReverseArgs>),

    /// End replication on this host; the VM stays
    Remove(VmEndArgs),

    /// Change settings; without options, show them
    Settings(Box<ModifyArgs>),

    /// Send what has changed now, without waiting for the next cycle, and wait until the replica
    /// has it
    Now(VmJobArgs),
}

#[derive(Debug, clap::Args)]
pub struct EnableArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Where the other host answers
    #[arg(value_name = "HOST:PORT")]
    to: String,

    /// The name that the other host must prove; the host of the address unless given
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,

    /// Take up the replica of this relationship, which the other host has kept and this host's
    /// lost catalog knew: `replication resync` then compares both sides
    #[arg(long, value_name = "RELATIONSHIP")]
    onto_kept_replica: Option<RelationshipId>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Cancel the first copy that is made or planned
    #[arg(long, conflicts_with_all = ["by", "at"])]
    cancel: bool,

    /// How the first copy gets to the other host
    #[arg(long, value_enum, value_name = "WAY", default_value = "network")]
    by: Way,

    /// Begin at this time, within a week, such as 2026-12-01T22:00:00Z; at once unless given
    #[arg(long, value_name = "TIME")]
    at: Option<Time>,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    /// All of it travels
    Network,
    /// To media that are carried
    Export,
    /// The other host has a copy, and what differs travels
    Seed,
}

impl Way {
    /// The number in the schema (`InitialReplicationType`).
    const fn number(self) -> u32 {
        match self {
            Self::Network => 1,
            Self::Export => 2,
            Self::Seed => 3,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct ResyncArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Cancel the resynchronization that runs or is planned
    #[arg(long, conflicts_with = "at")]
    cancel: bool,

    /// Begin at this time, such as 2026-12-01T22:00:00Z; at once unless given
    #[arg(long, value_name = "TIME")]
    at: Option<Time>,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct ReverseArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Where the new replica's host answers; the former primary unless given
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub struct ModifyArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// The host that keeps the replica
    #[arg(long, value_name = "HOST")]
    recovery_server: Option<String>,

    /// The port at which that host answers
    #[arg(long, value_name = "PORT")]
    recovery_port: Option<u64>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    wait: WaitArgs,
}

impl ReplicationCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::Show(args) => {
                let shown = remote.client.relationships(&args.vm)?;
                remote.show(&shown, |all| of_each(all, relationship_text))
            }
            Self::Enable(args) => {
                let enable = VmRequest::EnableReplication(EnableReplication {
                    recovery_connection_point: args.to,
                    recovery_host_name: args.host_name,
                    kept_replica: args.onto_kept_replica.map(|id| id.to_string()),
                    settings: args.settings.into(),
                });
                let done = match args.onto_kept_replica {
                    None => "replication enabled",
                    Some(_) => {
                        "the kept replica is taken up; compare both sides with `lifeboat replication resync`"
                    }
                };
                remote.operate(&args.vm, &enable, args.wait, done)
            }
            Self::Start(args) if args.cancel => {
                let cancel = VmRequest::CancelInitialReplication;
                remote.operate(&args.vm, &cancel, args.wait, "initial replication canceled")
            }
            Self::Start(args) => {
                let start = VmRequest::StartReplication(StartReplication {
                    initial_replication_type: Some(args.by.number()),
                    start_time: args.at,
                });
                let done = planned_or(args.at, "initial replication complete");
                remote.operate(&args.vm, &start, args.wait, &done)
            }
            Self::Suspend(args) => remote.operate(
                &args.vm,
                &VmRequest::Suspend,
                args.wait,
                "replication suspended",
            ),
            Self::Resume(args) => remote.operate(
                &args.vm,
                &VmRequest::Resume,
                args.wait,
                "replication resumed",
            ),
            Self::Resync(args) if args.cancel => {
                let cancel = VmRequest::CancelResynchronize;
                remote.operate(&args.vm, &cancel, args.wait, "resynchronization canceled")
            }
            Self::Resync(args) => {
                let resync = VmRequest::Resynchronize(Resynchronize {
                    start_time: args.at,
                });
                let done = planned_or(args.at, "resynchronized");
                remote.operate(&args.vm, &resync, args.wait, &done)
            }
            Self::Reverse(args) => {
                let reverse = VmRequest::Reverse(ReverseReplication {
                    recovery_connection_point: args.to,
                    settings: args.settings.into(),
                });
                remote.operate(&args.vm, &reverse, args.wait, "replication reversed")
            }
            Self::Remove(args) => remove(&args, remote),
            Self::Settings(args) => modify(*args, remote),
            Self::Now(args) => remote.operate(
                &args.vm,
                &VmRequest::ReplicateNow,
                args.wait,
                "the replica has what had changed",
            ),
        }
    }
}

/// What is so when the host has accepted: what was asked for, or a plan to do it.
fn planned_or(at: Option<Time>, done: &str) -> String {
    match at {
        Some(at) => format!("planned for {}", super::when(at)),
        None => done.to_owned(),
    }
}

fn of_each(all: &[Relationship], text: impl Fn(&Relationship) -> String) -> String {
    if all.is_empty() {
        return "the VM is not replicated\n".to_owned();
    }
    let texts: Vec<String> = all.iter().map(text).collect();
    texts.join("\n")
}

fn modify(args: ModifyArgs, remote: &Remote) -> Result<(), Failure> {
    let mut change = SettingsChange::from(args.settings);
    change.recovery_connection_point = args.recovery_server;
    change.recovery_server_port_number = args.recovery_port;
    if change == SettingsChange::default() {
        let shown = remote.client.relationships(&args.vm)?;
        return remote.show(&shown, |all| {
            of_each(all, |one| settings_text(&one.settings))
        });
    }
    let modify = VmRequest::ModifySettings(change);
    remote.operate(&args.vm, &modify, args.wait, "settings changed")
}

fn remove(args: &VmEndArgs, remote: &Remote) -> Result<(), Failure> {
    if !args.yes {
        let vm = remote.client.vm(&args.vm)?.value;
        let points = remote.client.points(&args.vm)?.value.len();
        let points = match points {
            0 => String::new(),
            1 => " Its only recovery point will be lost.".to_owned(),
            points => format!(" Its {points} recovery points will be lost."),
        };
        confirm(&format!(
            "Replication of {} will end on this host; to replicate it again, all of its disks have to be copied or compared.{points}",
            vm.element_name
        ))?;
    }
    remote.operate(
        &args.vm,
        &VmRequest::RemoveReplication,
        args.wait,
        "replication removed",
    )
}
