//! Checks, tests, benchmarks and fuzzing of the project itself: `cargo xtask --help`.
//!
//! Everything here runs on a developer's machine exactly as it runs in CI.
//! Nothing here is part of the product, and no crate depends on it.

#![allow(
    clippy::disallowed_methods,
    reason = "how long a step took is what this program reports; no rule of the product depends on it"
)]

mod bench;
mod ci;
mod fuzz;
mod package;
mod process;
mod setup;
mod tidy;
mod volume;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::volume::TestVolume;
use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Checks, tests, benchmarks and fuzzing of the project itself"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the tests need and mount the file system they use
    Setup,
    /// Unmount the file system that setup mounted (before `target` is deleted)
    Unmount,
    /// Set up, then run every check and every test: what CI runs
    #[command(alias = "ci")]
    Test,
    /// Check crate arrows, file sizes, forbidden words, decision records, links and generated references
    Tidy,
    /// Build the Debian package from the release program, and try it
    Package,
    /// Run fuzz targets
    Fuzz(fuzz::Arguments),
    /// Measure the budgets, side by side with stock tools
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    match run(&task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<ExitCode> {
    let workspace = Workspace::load()?;
    match task {
        Task::Setup => setup_by_hand(&workspace)?,
        Task::Unmount => TestVolume::unmount(&workspace)?,
        Task::Test => return Ok(ci::run(&workspace)),
        Task::Tidy => tidy::run(&workspace)?,
        Task::Package => package::run(&workspace)?,
        Task::Fuzz(arguments) => fuzz::run(&workspace, arguments)?,
        Task::Bench(arguments) => return bench::run(&workspace, arguments),
    }
    Ok(ExitCode::SUCCESS)
}

fn setup_by_hand(workspace: &Workspace) -> Result<()> {
    setup::install_missing()?;
    let mounted = TestVolume::mount(workspace)?.keep()?;
    println!(
        "setup: ready; for tests started by hand: export {}={}",
        volume::VARIABLE,
        mounted.display()
    );
    Ok(())
}
