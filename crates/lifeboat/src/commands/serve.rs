//! `lifeboat serve`: the daemon in the foreground.

use std::path::PathBuf;

use clap::Args;

use crate::daemon::{self, Config, DEFAULT_CONFIG};
use crate::exit::Failure;

/// Run the daemon of this host in the foreground
///
/// SIGTERM stops it in an orderly way, SIGHUP loads the certificates again.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The configuration that `lifeboat init` wrote
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,

    /// How the log is written to the error output
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    log: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let config = Config::read(&args.config).map_err(|source| Failure::Daemon {
        source: Box::new(source),
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::INFO)
        .with_target(false);
    match args.log {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    daemon::serve(&config).map_err(|source| Failure::Daemon {
        source: Box::new(source),
    })
}
