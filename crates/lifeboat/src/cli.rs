//! The command line: global options and the tree of commands.

use clap::{Parser, Subcommand};

use crate::commands::remote::{
    HostArgs, Remote, VmArgs, authorization, failover, host, job, point, replication, support, vm,
    watch,
};
use crate::commands::{
    backup, catalog, certificate, completions, delta, init, man, reference, serve, store,
};
use crate::demo;
use crate::exit::Failure;
use crate::output::OutputFormat;

/// Replication and disaster recovery for virtual machines
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused in the present state (nothing was
/// changed), 4 access denied, 5 not found, 6 unavailable (in use, or cannot be reached).
#[derive(Debug, Parser)]
#[command(
    name = "lifeboat",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// How to print results
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub output: OutputFormat,

    #[command(flatten)]
    pub host: HostArgs,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make this machine a Lifeboat host
    Init(init::InitArgs),

    /// Run the daemon of this host in the foreground
    Serve(serve::ServeArgs),

    /// This host's certificates, and whom it trusts
    #[command(subcommand)]
    Certificate(certificate::CertificateCommand),

    /// Save what this host cannot make anew, and restore it
    #[command(subcommand)]
    Backup(backup::BackupCommand),

    /// Make a lost catalog again
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),

    /// Gather what somebody who helps needs to see: no keys, nothing of what is on disks
    SupportBundle(support::SupportArgs),

    /// Show and set up the host, and try its connections
    #[command(subcommand)]
    Host(host::HostCommand),

    /// Say who may replicate to the host
    #[command(subcommand)]
    Authorization(authorization::AuthorizationCommand),

    /// List, make, start and stop VMs of the host
    #[command(subcommand)]
    Vm(vm::VmCommand),

    /// Replicate VMs to another host
    #[command(subcommand)]
    Replication(replication::ReplicationCommand),

    /// Run VMs at the other site, for a test or for real
    #[command(subcommand)]
    Failover(failover::FailoverCommand),

    /// List, make, check and remove recovery points of VMs
    #[command(subcommand)]
    Point(point::PointCommand),

    /// Show, wait for and cancel long work of the host
    #[command(subcommand)]
    Job(job::JobCommand),

    /// Show the statistics of a VM's replication
    Stats(watch::StatsArgs),

    /// Show how a VM's replication is doing, and why
    Health(VmArgs),

    /// Say whether a failover of a VM would work now, and what it would lose
    ///
    /// Exits with 3 if it would not work.
    Check(VmArgs),

    /// Show what happened, or what happens
    Events(watch::EventsArgs),

    /// Show who did what
    Audit(watch::AuditArgs),

    /// Capture a VM's disks as a delta, and look at deltas
    #[command(subcommand)]
    Delta(delta::DeltaCommand),

    /// Make, fill, check and repair the folder that holds a VM's replica
    #[command(subcommand)]
    Store(store::StoreCommand),

    /// Show a drill of two hosts on this machine: replication, lost hosts, failovers, with every byte compared
    ///
    /// Makes two hosts and a VM of its own in a folder of its own; needs 1 GiB of space there and as
    /// much memory, and less than two minutes on a quiet machine.
    Demo(demo::Args),

    /// Print this reference as Markdown
    Reference,

    /// Print a script that completes commands in a shell
    Completions(completions::CompletionsArgs),

    /// Print the manual page, or write one for every command
    Man(man::ManArgs),
}

impl Cli {
    /// How to print the result, and the error if there is one.
    #[must_use]
    pub fn output(&self) -> OutputFormat {
        match &self.command {
            Command::Demo(args) => args.output(self.output),
            Command::Init(_)
            | Command::Serve(_)
            | Command::Certificate(_)
            | Command::Backup(_)
            | Command::Catalog(_)
            | Command::SupportBundle(_)
            | Command::Host(_)
            | Command::Authorization(_)
            | Command::Vm(_)
            | Command::Replication(_)
            | Command::Failover(_)
            | Command::Point(_)
            | Command::Job(_)
            | Command::Stats(_)
            | Command::Health(_)
            | Command::Check(_)
            | Command::Events(_)
            | Command::Audit(_)
            | Command::Store(_)
            | Command::Delta(_)
            | Command::Reference
            | Command::Completions(_)
            | Command::Man(_) => self.output,
        }
    }
}

impl Command {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done; [`Failure::exit`] is the exit code.
    pub fn run(self, output: OutputFormat, host: HostArgs) -> Result<(), Failure> {
        let remote = || Remote::new(host.host, host.identity.as_deref(), output);
        match self {
            Self::Init(args) => init::run(&args, output),
            Self::Serve(args) => serve::run(&args),
            Self::Certificate(command) => command.run(output),
            Self::Backup(command) => command.run(output),
            Self::Catalog(command) => command.run(output),
            Self::SupportBundle(args) => support::run(&args, &remote()?),
            Self::Host(command) => command.run(&remote()?),
            Self::Authorization(command) => command.run(&remote()?),
            Self::Vm(command) => command.run(&remote()?),
            Self::Replication(command) => command.run(&remote()?),
            Self::Failover(command) => command.run(&remote()?),
            Self::Point(command) => command.run(&remote()?),
            Self::Job(command) => command.run(&remote()?),
            Self::Stats(args) => watch::stats(&args, &remote()?),
            Self::Health(args) => watch::health(&args, &remote()?),
            Self::Check(args) => watch::check(&args, &remote()?),
            Self::Events(args) => watch::events(&args, &remote()?),
            Self::Audit(args) => watch::audit(&args, &remote()?),
            Self::Delta(command) => command.run(output),
            Self::Store(command) => command.run(output),
            Self::Demo(args) => demo::run(&args, output),
            Self::Reference => reference::run(),
            Self::Completions(args) => completions::run(&args),
            Self::Man(args) => man::run(&args),
        }
    }
}
