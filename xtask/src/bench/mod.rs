//! The benchmark: the machine is prepared and checked, the rest is `lifeboat-bench`'s.

mod machine;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup;
use crate::volume::TestVolume;
use crate::workspace::Workspace;

/// Above this load average something else uses the machine.
const QUIET: f64 = 1.5;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Rows to measure; all of them if none is named. A name that does not exist lists them
    rows: Vec<String>,
    /// How often each side of a comparison is measured
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Write every measured value to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write docs/benchmarks.md from this run; rows that are not measured stay as they are there
    #[arg(long)]
    write: bool,
    /// Measure although the machine is loaded: the numbers are worth little
    #[arg(long)]
    anyway: bool,
}

/// Prepares everything, then measures.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let load = load_average()?;
    if load > QUIET && !arguments.anyway {
        bail!(
            "measure on this machine: its load average is {load:.2}, above {QUIET}; wait until it is quiet, or \
             measure with --anyway"
        );
    }
    setup::install_missing_programs()?;
    machine::install_missing(&workspace.target)?;
    println!("bench: building the release profile");
    let mut build = process::cargo();
    build
        .args(["build", "--release", "--locked"])
        .args(["--package=lifeboat-bench", "--package=lifeboat"])
        .current_dir(&workspace.root);
    process::run(&mut build)?;
    let volume = TestVolume::mount(workspace)?;
    let measured = measure(workspace, &volume, arguments);
    let released = volume.release();
    let code = measured?;
    released?;
    Ok(code)
}

fn measure(workspace: &Workspace, volume: &TestVolume, arguments: &Arguments) -> Result<ExitCode> {
    let folder = workspace.target.join("xtask/bench");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut bench = Command::new(workspace.target.join("release/lifeboat-bench"));
    bench
        .arg("--folder")
        .arg(&folder)
        .arg("--shared-folder")
        .arg(volume.path())
        .arg(format!("--runs={}", arguments.runs));
    if let Some(json) = &arguments.json {
        bench.arg("--json").arg(json);
    }
    if arguments.write {
        let page = workspace.root.join("docs/benchmarks.md");
        bench.arg("--document").arg(page);
    }
    bench.arg("--").args(&arguments.rows);
    let status = process::spawn(&mut bench)?
        .wait()
        .context("wait for the benchmark")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Programs that ran or waited for a disk during the last minute, on average.
fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read the load average")?;
    parse_load(&text).context("understand the load average")
}

fn parse_load(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_the_last_minute_counts() {
        assert_eq!(parse_load("1.75 0.50 0.25 1/100 4242\n"), Some(1.75));
        assert_eq!(parse_load(""), None);
        assert_eq!(parse_load("busy"), None);
    }
}
