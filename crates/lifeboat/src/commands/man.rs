//! `lifeboat man`: manual pages.

use std::path::PathBuf;

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::exit::Failure;
use crate::output;

#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write a page for every command into this folder, instead of printing the first
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the page of the program, or writes all pages.
///
/// # Errors
/// When they cannot be written.
pub fn run(args: &ManArgs) -> Result<(), Failure> {
    if let Some(folder) = &args.dir {
        let written = clap_mangen::generate_to(Cli::command(), folder);
        return written.map_err(|source| Failure::File {
            what: "write manual pages to",
            path: folder.clone(),
            source,
        });
    }
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
    rendered.expect("BUG: memory takes all that is written");
    output::print(&String::from_utf8_lossy(&page))
}
