//! `lifeboat delta`: delta streams, made and looked at.

mod capture;
mod inspect;

use clap::Subcommand;

use crate::exit::Failure;
use crate::output::OutputFormat;

#[derive(Debug, Subcommand)]
pub enum DeltaCommand {
    /// Read a frozen view of the VM's disks over NBD and write it as one delta
    ///
    /// Without --bitmap the delta holds the whole disks. With it, what the bitmap marks: the bitmap
    /// must have begun no later than the moment of the newest receipt. A sequence number is drawn
    /// and saved in the state first; one whose capture fails is never used again.
    Capture(capture::CaptureArgs),

    /// Show what a delta holds, and prove every byte of it
    Inspect(inspect::InspectArgs),
}

impl DeltaCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        match self {
            Self::Capture(args) => capture::run(&args, output),
            Self::Inspect(args) => inspect::run(&args, output),
        }
    }
}
