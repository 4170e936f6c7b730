//! The budgets, measured: `cargo xtask bench` builds and starts this.
//!
//! Every row does what its bar is about with the store, stream and capture themselves, and
//! runs the stock tool beside it in turn. Nothing here is part of the product.

mod guest;
mod hosts;
mod machine;
mod measure;
mod page;
mod place;
mod program;
mod qemu;
mod replica;
mod report;
mod rows;
mod stock;
mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use lifeboat_sys::clock::Stopwatch;

use crate::machine::Machine;
use crate::page::Page;
use crate::place::Place;
use crate::report::{FailedRow, Report};
use crate::rows::{Row, Setting};

#[derive(Debug, Parser)]
#[command(
    name = "lifeboat-bench",
    about = "Measures the budgets; `cargo xtask bench` prepares the machine and starts this"
)]
struct Arguments {
    /// Rows to measure; all of them if none is named
    rows: Vec<Row>,
    /// Folder for the rows' files: on ext4, with 20 GB free
    #[arg(long)]
    folder: PathBuf,
    /// Folder on a file system that shares blocks
    #[arg(long)]
    shared_folder: PathBuf,
    /// The program whose daemons are measured [default: `lifeboat` beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
    /// How often each side is measured
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Write every value to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the page about the benchmark to this file; rows that are not measured stay as they
    /// are there
    #[arg(long)]
    document: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.runs == 0 {
        bail!("measure 0 times: give --runs at least 1");
    }
    let machine = Machine::describe(&arguments.folder)?;
    println!("{}", machine.sentence());
    let mut report = Report {
        machine,
        runs: arguments.runs,
        rows: Vec::new(),
        failed: Vec::new(),
    };
    let rows = if arguments.rows.is_empty() {
        Row::all()
    } else {
        arguments.rows.clone()
    };
    for row in rows {
        let watch = Stopwatch::start();
        match measure(row, arguments) {
            Ok(measured) => {
                println!("\n{}", measured.text());
                println!("  ({} s)", watch.elapsed().as_secs());
                report.rows.push(measured);
            }
            Err(error) => {
                println!("\n{}: FAILED: {error:#}\n", row.name());
                report.failed.push(FailedRow {
                    name: row.name(),
                    why: format!("{error:#}"),
                });
            }
        }
    }
    println!("{}", report.summary());
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &arguments.document {
        let page = if arguments.rows.is_empty() {
            report.page()
        } else {
            updated(path, report.page())?
        };
        std::fs::write(path, page.text()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The page in this file, with what was measured now.
fn updated(path: &Path, measured: Page) -> Result<Page> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let order: Vec<&str> = Row::all().into_iter().map(Row::name).collect();
    Page::parse(&text)
        .and_then(|page| page.updated_by(measured, &order))
        .with_context(|| format!("update {}", path.display()))
}

/// Measures one row in folders of its own, which go afterwards whatever happened.
fn measure(row: Row, arguments: &Arguments) -> Result<report::RowReport> {
    let setting = Setting {
        place: Place::new(&arguments.folder, "row")?,
        shared: Place::new(&arguments.shared_folder, "bench")?,
        program: program(arguments)?,
        runs: arguments.runs,
    };
    let measured = row.measure(&setting);
    setting.place.remove().and(setting.shared.remove())?;
    measured
}

/// The program whose daemons are measured.
fn program(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(program) = &arguments.program {
        return Ok(program.clone());
    }
    let this = std::env::current_exe().context("find this program")?;
    Ok(this.with_file_name("lifeboat"))
}
