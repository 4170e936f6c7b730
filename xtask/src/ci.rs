//! Every check that a change must pass, the fastest first.
//!
//! The first step that fails ends the run. Whatever happened, a table of the
//! steps and their times follows, and the test runner's own summary is the
//! last line.

use std::io::{self, BufRead, BufReader, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::package;
use crate::process;
use crate::setup;
use crate::tidy;
use crate::volume::{self, TestVolume};
use crate::workspace::Workspace;

/// How long the advisory database may take to arrive, in seconds.
const ADVISORY_PATIENCE: &str = "60";

/// The fuzz targets, which are a workspace of their own.
const FUZZ: [&str; 2] = ["--manifest-path", "fuzz/Cargo.toml"];

const WITHOUT_ADVISORIES: &str = "NOT CHECKED: the advisory database cannot be fetched here";

/// Runs all steps and reports them, what went wrong included.
pub fn run(workspace: &Workspace) -> ExitCode {
    let mut report = Report::default();
    let result = run_steps(workspace, &mut report);
    println!("\n{}", report.table());
    if let Err(error) = &result {
        println!("\nerror: {error:#}");
    }
    if let Some(summary) = &report.test_summary {
        println!("\n{summary}");
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run_steps(workspace: &Workspace, report: &mut Report) -> Result<()> {
    let volume = report.step("setup", || {
        setup::install_missing()?;
        TestVolume::mount(workspace)
    })?;
    let result = run_checks(workspace, &volume, report);
    let released = report.step("unmount", || volume.release());
    result.and(released)
}

fn run_checks(workspace: &Workspace, volume: &TestVolume, report: &mut Report) -> Result<()> {
    let cargo = |arguments: &[&str]| {
        let mut command = process::cargo();
        command.args(arguments).current_dir(&workspace.root);
        command
    };
    report.step("tidy", || tidy::check_tree(workspace))?;
    report.step("format", || {
        process::run(&mut cargo(&["fmt", "--all", "--check"]))?;
        process::run(cargo(&["fmt", "--check"]).args(FUZZ))
    })?;
    // Everything the lock file names, for every platform: what follows needs
    // no network, and a lock file that does not fit fails here.
    report.step("fetch", || {
        process::run(&mut cargo(&["fetch", "--locked"]))?;
        process::run(cargo(&["fetch", "--locked"]).args(FUZZ))
    })?;
    report.step("dependencies", || {
        let checks = ["deny", "--offline", "check", "licenses", "bans", "sources"];
        process::run(&mut cargo(&checks))
    })?;
    check_advisories(&cargo, report)?;
    report.step("clippy", || {
        // In the tests' profile: what builds of C code and build scripts give is used again.
        let scope = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--release",
        ];
        process::run(cargo(&scope).args(["--", "-D", "warnings"]))
    })?;
    report.step("fuzz targets", || {
        // Checked only; `cargo xtask fuzz` runs them.
        let scope = ["clippy", "--locked", "--release", "--bins", "--target-dir"];
        let mut clippy = cargo(&scope);
        clippy.arg(&workspace.target).args(FUZZ);
        process::run(clippy.args(["--", "-D", "warnings"]))
    })?;
    report.step("documentation", || {
        let arguments = [
            "doc",
            "--workspace",
            "--no-deps",
            "--locked",
            "--release",
            "--document-private-items",
        ];
        process::run(cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    let mut summary = None;
    let tested = report.step("tests", || {
        // What ships is what is tested: compilers err in optimized code, too.
        let arguments = [
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--release",
            "--profile=ci",
        ];
        run_tests(
            cargo(&arguments).env(volume::VARIABLE, volume.path()),
            &mut summary,
        )
    });
    report.test_summary = summary;
    tested?;
    report.step("store on XFS", || {
        // The same tests of real files once more, where the file system shares blocks.
        let arguments = [
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--release",
            "--profile=ci",
            "--filterset",
            "package(lifeboat-store) - test(/(^|::)power_loss/)",
        ];
        let mut command = cargo(&arguments);
        command.env(volume::VARIABLE, volume.path());
        process::run(command.env("TMPDIR", volume.path()))
    })?;
    report.step("doc tests", || {
        let arguments = [
            "test",
            "--doc",
            "--workspace",
            "--locked",
            "--release",
            "--quiet",
        ];
        process::run(cargo(&arguments).env(volume::VARIABLE, volume.path()))
    })?;
    report.step("package", || package::run(workspace))?;
    report.step("references", || tidy::check_references(workspace))
}

/// Advisories live in a database elsewhere. A machine that cannot reach it
/// goes on without, and the table says so.
fn check_advisories(cargo: &dyn Fn(&[&str]) -> Command, report: &mut Report) -> Result<()> {
    let fetch = cargo(&["deny", "fetch", "db"]);
    let mut patient = Command::new("timeout");
    patient
        .arg(ADVISORY_PATIENCE)
        .arg(fetch.get_program())
        .args(fetch.get_args());
    if let Some(directory) = fetch.get_current_dir() {
        patient.current_dir(directory);
    }
    let fetched = report.step("advisory fetch", || Ok(process::run(&mut patient).is_ok()))?;
    if !fetched {
        eprintln!("\nWARNING: advisories {WITHOUT_ADVISORIES}\n");
        report.note(WITHOUT_ADVISORIES);
        return Ok(());
    }
    report.step("advisories", || {
        let check = ["deny", "--offline", "check", "advisories"];
        process::run(&mut cargo(&check))
    })
}

/// Runs the test runner, passing on what it prints, and keeps its summary
/// even when tests fail.
fn run_tests(command: &mut Command, summary: &mut Option<String>) -> Result<()> {
    let mut child = process::spawn(command.stderr(Stdio::piped()))?;
    let printed = child
        .stderr
        .take()
        .context("read what the test runner prints")?;
    let passed_on = pass_on(BufReader::new(printed), &mut io::stderr(), summary);
    let status = child.wait().context("wait for the test runner")?;
    passed_on?;
    process::check(command, status)
}

fn pass_on(
    mut from: impl BufRead,
    to: &mut impl io::Write,
    summary: &mut Option<String>,
) -> Result<()> {
    let mut line = Vec::new();
    while from
        .read_until(b'\n', &mut line)
        .context("read what the test runner prints")?
        > 0
    {
        to.write_all(&line)
            .context("pass on what the test runner prints")?;
        let text = String::from_utf8_lossy(&line);
        if text.trim_start().starts_with("Summary [") {
            *summary = Some(text.trim_end().to_owned());
        }
        line.clear();
    }
    Ok(())
}

/// What has run so far.
#[derive(Debug, Default)]
struct Report {
    rows: Vec<Row>,
    test_summary: Option<String>,
}

#[derive(Debug)]
struct Row {
    name: &'static str,
    took: Duration,
    outcome: &'static str,
}

impl Report {
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {name}");
        let _ = io::stdout().flush();
        let start = Instant::now();
        let result = work();
        self.rows.push(Row {
            name,
            took: start.elapsed(),
            outcome: if result.is_ok() { "passed" } else { "FAILED" },
        });
        result.with_context(|| format!("step `{name}`"))
    }

    /// Replaces the outcome of the last step.
    fn note(&mut self, outcome: &'static str) {
        if let Some(row) = self.rows.last_mut() {
            row.outcome = outcome;
        }
    }

    fn table(&self) -> String {
        let mut table = format!("{:<16} {:>9}  outcome", "step", "time");
        for Row {
            name,
            took,
            outcome,
        } in &self.rows
        {
            let seconds = took.as_secs_f64();
            table.push_str(&format!("\n{name:<16} {seconds:>7.1} s  {outcome}"));
        }
        let total: Duration = self.rows.iter().map(|row| row.took).sum();
        table.push_str(&format!("\n{:<16} {:>7.1} s", "total", total.as_secs_f64()));
        table
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_runners_last_summary_is_kept_and_everything_is_passed_on() {
        let printed = "   PASS [ 0.1s] a\n     Summary [   0.5s] 1 test run: 1 passed, 0 skipped\n\
            \x20    Summary [  12.3s] 2 tests run: 2 passed, 0 skipped\nno newline at the end";
        let (mut copy, mut summary) = (Vec::new(), None);
        pass_on(printed.as_bytes(), &mut copy, &mut summary).unwrap();
        assert_eq!(copy, printed.as_bytes());
        assert_eq!(
            summary.as_deref(),
            Some("     Summary [  12.3s] 2 tests run: 2 passed, 0 skipped")
        );
    }

    #[test]
    fn failed_tests_leave_a_summary_too() {
        let script =
            "echo '     Summary [ 1s] 3 tests run: 2 passed, 1 failed, 0 skipped' >&2; exit 100";
        let mut summary = None;
        let said = run_tests(Command::new("sh").args(["-c", script]), &mut summary).unwrap_err();
        assert!(said.to_string().contains("exit status: 100"), "{said}");
        assert!(summary.unwrap().ends_with("1 failed, 0 skipped"));
    }

    #[test]
    fn the_table_has_every_step_that_ran_and_says_which_failed() {
        let mut report = Report::default();
        report.step("one", || Ok(())).unwrap();
        report.note("NOT CHECKED");
        let error = report.step::<()>("two", || bail!("broken")).unwrap_err();
        assert_eq!(format!("{error:#}"), "step `two`: broken");
        let table = report.table();
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows.len(), 4);
        assert!(rows[1].starts_with("one") && rows[1].ends_with("NOT CHECKED"));
        assert!(rows[2].starts_with("two") && rows[2].ends_with("FAILED"));
        assert!(rows[3].starts_with("total"));
    }
}
