//! `lifeboat demo`: the drill of two hosts. A VM is replicated, its host dies, it goes on at
//! the other host, and comes back; with every byte compared.
//!
//! The hosts are two daemons of this program in processes of their own, with certificates of
//! their own, that know of each other what two real hosts know. The VM is a writer that uses
//! its disks over NBD only and keeps a [`History`](history::History) of every byte, apart from
//! everything that is shown.
//!
//! ```text
//! guest -NBD-> daemon alpha <-TLS-> relays that count <-TLS-> daemon beta -NBD-> comparison
//!   '-- its own history of every request --------------------------------------------'
//! ```

mod check;
mod compare;
mod crash;
mod disaster;
mod drill;
mod error;
mod folder;
mod guest;
mod history;
mod host;
mod planned;
mod protect;
mod random;
mod report;
mod shadow;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

pub use error::DemoError;

use self::drill::Drill;
use self::folder::{Afterwards, WorkFolder};
use crate::exit::Failure;
use crate::output::OutputFormat;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Work in this new or empty folder; a new one among the temporary files unless given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep both hosts' folders afterwards
    #[arg(long)]
    keep: bool,

    /// Print one JSON value instead of text, as `--output json` does
    #[arg(long)]
    json: bool,
}

impl Args {
    /// How to print the result, where `global` is what every command is told.
    #[must_use]
    pub fn output(&self, global: OutputFormat) -> OutputFormat {
        if self.json {
            OutputFormat::Json
        } else {
            global
        }
    }
}

/// Shows the drill. Whatever becomes of it, no process is left, and no folder unless it is to
/// be kept or something was wrong.
///
/// # Errors
/// When a step fails, any byte is not what the guest wrote, or anything else does not hold.
pub fn run(args: &Args, output: OutputFormat) -> Result<(), Failure> {
    let afterwards = if args.keep {
        Afterwards::Keep
    } else {
        Afterwards::Remove
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(|source| {
            DemoError::System {
                what: "signals",
                source,
            }
        })?;
    }
    let folder = WorkFolder::prepare(args.dir.as_deref(), afterwards)?;
    let mut drill = Drill::prepare(folder, output, &interrupted)?;
    let shown = drill.show();
    if drill.has_failures() {
        // A wrong byte is the worse news, and may be why something failed later.
        return drill.finish();
    }
    match shown {
        // A signal may have ended the daemons, too, and what failed then is no news.
        Err(_) if interrupted.load(Ordering::Relaxed) => Err(DemoError::Interrupted.into()),
        Err(failure) => Err(failure),
        Ok(()) => drill.finish(),
    }
}
