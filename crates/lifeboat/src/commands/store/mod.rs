//! `lifeboat store`: the folder that holds a VM's replica.

mod apply;
mod check;
mod failover;
mod init;
mod point;
mod receive;
mod status;
mod verify;

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::open_store;
use crate::exit::Failure;
use crate::output::OutputFormat;

pub use verify::{VerificationView, verification_text};

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Make a store in a new or empty folder
    Init(init::InitArgs),

    /// Take in one delta; the receipt printed says that it is safe here
    ///
    /// The delta is verified and durable, and space to apply it is reserved, before the receipt
    /// is printed. Give the receipt to `delta capture --receipt` on the primary.
    Receive(receive::ReceiveArgs),

    /// Apply every delta that was received, and make recovery points
    Apply(apply::ApplyArgs),

    /// Seal every segment, so that stock QEMU tools open every recovery point
    Seal(StoreArgs),

    /// Read everything and compare it with its digests
    ///
    /// Exits with 1 if anything is not as it was written, and says which recovery points
    /// cannot be trusted because of it.
    Verify(StoreArgs),

    /// Say whether a failover would work now, what it would lose, and what stops it
    ///
    /// Reads no disk contents. Exits with 3 if a failover would be refused.
    Check(StoreArgs),

    /// Bring a store into order that was moved, copied or restored
    ///
    /// Images name the disks where they lie now, and missing descriptions of recovery points are
    /// written anew from the journal.
    Rescan(StoreArgs),

    /// Show what the store holds
    Status(StoreArgs),

    /// List, read, check and remove recovery points
    #[command(subcommand)]
    Point(point::PointCommand),

    /// Make images to start the VM on from its replica, and decide what becomes of it
    #[command(subcommand)]
    Failover(failover::FailoverCommand),
}

/// A command that needs nothing but the store.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

impl StoreCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        match self {
            Self::Init(args) => init::run(&args, output),
            Self::Receive(args) => receive::run(&args, output),
            Self::Apply(args) => apply::run(&args, output),
            Self::Seal(args) => seal(&args, output),
            Self::Verify(args) => verify::run(&args, output),
            Self::Check(args) => check::run(&args, output),
            Self::Rescan(args) => status::rescan(&args, output),
            Self::Status(args) => status::run(&args, output),
            Self::Point(command) => command.run(output),
            Self::Failover(command) => command.run(output),
        }
    }
}

#[derive(Serialize)]
struct SealView {
    segments: usize,
    points: usize,
}

fn seal(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store seal")?;
    store.seal()?;
    let view = SealView {
        segments: store.status()?.segments,
        points: store.points().len(),
    };
    output.print(&view, |view| {
        format!(
            "sealed: {} recovery points in {} segments\n",
            view.points, view.segments
        )
    })
}
