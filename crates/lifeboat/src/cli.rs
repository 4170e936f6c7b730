//! The command line: global options and the tree of commands.

use clap::{Parser, Subcommand};

use crate::commands::{certificate, init, serve, completions, delta, reference, store};
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

    /// Capture a VM's disks as a delta, and look at deltas
    #[command(subcommand)]
    Delta(delta::DeltaCommand),

    /// Make, fill, check and repair the folder that holds a VM's replica
    #[command(subcommand)]
    Store(store::StoreCommand),

    /// Show the whole way on this machine: replication, a lost host, failover, with every byte compared
    ///
    /// Makes a VM of its own in a folder of its own; needs 500 MiB of space there, and less than a minute.
    Demo(demo::Args),

    /// Print this reference as Markdown
    Reference,

    /// Print a script that completes commands in a shell
    Completions(completions::CompletionsArgs),
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
            | Command::Store(_)
            | Command::Delta(_)
            | Command::Reference
            | Command::Completions(_) => self.output,
        }
    }
}

impl Command {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done; [`Failure::exit`] is the exit code.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        match self {
            Self::Init(args) => init::run(&args, output),
            Self::Serve(args) => serve::run(&args),
            Self::Certificate(command) => command.run(output),
            Self::Delta(command) => command.run(output),
            Self::Store(command) => command.run(output),
            Self::Demo(args) => demo::run(&args, output),
            Self::Reference => reference::run(),
            Self::Completions(args) => completions::run(&args),
        }
    }
}
