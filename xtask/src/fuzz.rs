//! Fuzzing: builds the targets of `fuzz/` and runs each for a while.
//!
//! `cargo fuzz` builds them if it is installed; otherwise this does, with the
//! same instrumentation. That needs unstable compiler flags: a nightly
//! toolchain, or the stable one told to accept them. Inputs that reached new
//! code stay in `fuzz/corpus/TARGET`, inputs that crashed in
//! `fuzz/artifacts/TARGET`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// What one input may take before it counts as a hang or a leak.
const SECONDS_PER_INPUT: u32 = 10;
const MEMORY_MIB: u32 = 2048;

/// Coverage counters, comparison tracing and the address sanitizer: what
/// libFuzzer needs to find its way and to see a bad access.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Zsanitizer=address -Cdebug-assertions -Coverflow-checks -Cforce-frame-pointers";

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The target to run; all of them if none is named
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Runs the target that was named, or all, and fails if any input crashed one.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let fuzz = Fuzz::load(&workspace.root)?;
    let targets = chosen(&fuzz.targets, arguments.target.as_deref())?;
    let mut crashed = Vec::new();
    for target in targets {
        println!("==> fuzz {target}, {} s", arguments.seconds);
        let program = fuzz.build(target)?;
        if !fuzz.run(target, &program, arguments.seconds)? {
            crashed.push(target);
        }
    }
    if !crashed.is_empty() {
        bail!("fuzz: an input crashed {}; see above", crashed.join(", "));
    }
    Ok(())
}

fn chosen<'a>(all: &'a [String], named: Option<&str>) -> Result<Vec<&'a str>> {
    let chosen: Vec<&str> = all
        .iter()
        .map(String::as_str)
        .filter(|target| named.is_none_or(|named| named == *target))
        .collect();
    match named {
        _ if all.is_empty() => bail!("fuzz: fuzz/Cargo.toml names no target"),
        Some(named) if chosen.is_empty() => {
            bail!(
                "fuzz: there is no target {named}; there are {}",
                all.join(", ")
            )
        }
        _ => Ok(chosen),
    }
}

/// The workspace of fuzz targets, which is apart from the project's own.
#[derive(Debug)]
struct Fuzz {
    directory: PathBuf,
    /// Where its programs are built.
    built: PathBuf,
    targets: Vec<String>,
}

impl Fuzz {
    fn load(root: &Path) -> Result<Self> {
        let directory = root.join("fuzz");
        let manifest = directory.join("Cargo.toml");
        if !manifest.exists() {
            bail!("fuzz: there is no {}", manifest.display());
        }
        let own = Workspace::load_at(&manifest)?;
        let is_program = |kinds: &[String]| kinds.iter().any(|kind| kind == "bin");
        let targets = own
            .crates
            .into_iter()
            .flat_map(|one| one.targets)
            .filter(|target| is_program(&target.kind))
            .map(|target| target.name)
            .collect();
        Ok(Self {
            directory,
            built: own.target,
            targets,
        })
    }

    /// Builds the target and returns the program.
    fn build(&self, target: &str) -> Result<PathBuf> {
        let compiler = Compiler::choose()?;
        let mut cargo = compiler.cargo();
        if has_cargo_fuzz() {
            cargo
                .args(["fuzz", "build", "--fuzz-dir"])
                .arg(&self.directory);
            cargo.args(["--target", &compiler.host]).arg(target);
        } else {
            // A target platform that is named keeps the instrumentation out
            // of build scripts and macros, which run without the fuzzer.
            cargo.args([
                "build",
                "--release",
                "--target",
                &compiler.host,
                "--bin",
                target,
            ]);
            cargo.env("RUSTFLAGS", INSTRUMENTATION);
        }
        // The project's own target directory may be set for this program.
        cargo.env("CARGO_TARGET_DIR", &self.built);
        process::run(cargo.current_dir(&self.directory)).with_context(|| {
            format!("build the fuzz target {target} (libFuzzer needs a C++ compiler: the Debian package g++)")
        })?;
        Ok(self.built.join(&compiler.host).join("release").join(target))
    }

    /// Runs the target; false means that an input crashed it.
    fn run(&self, target: &str, program: &Path, seconds: u32) -> Result<bool> {
        let corpus = self.made("corpus", target)?;
        let artifacts = self.made("artifacts", target)?;
        let before = files_in(&artifacts)?;
        let mut fuzzer = Command::new(program);
        fuzzer
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={SECONDS_PER_INPUT}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg("-print_final_stats=1")
            .arg(&corpus)
            .current_dir(&self.directory);
        let status = process::spawn(&mut fuzzer)?
            .wait()
            .with_context(|| format!("wait for the fuzz target {target}"))?;
        if status.success() {
            return Ok(true);
        }
        let found: Vec<PathBuf> = files_in(&artifacts)?
            .into_iter()
            .filter(|file| !before.contains(file))
            .collect();
        if found.is_empty() {
            bail!("fuzz {target}: the fuzzer failed without a crashing input: {status}");
        }
        for file in &found {
            println!("fuzz {target}: crashed by {}", file.display());
            println!("  reproduce: {} {}", program.display(), file.display());
        }
        Ok(false)
    }

    /// The target's directory among those of this kind.
    fn made(&self, kind: &str, target: &str) -> Result<PathBuf> {
        let directory = self.directory.join(kind).join(target);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        Ok(directory)
    }
}

fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        files.push(
            entry
                .with_context(|| format!("list {}", directory.display()))?
                .path(),
        );
    }
    files.sort();
    Ok(files)
}

fn has_cargo_fuzz() -> bool {
    let mut cargo = process::cargo();
    cargo.args(["fuzz", "--version"]).stderr(Stdio::null());
    process::output(&mut cargo).is_ok()
}

/// A compiler that accepts unstable flags.
#[derive(Debug)]
struct Compiler {
    origin: Origin,
    /// The platform it runs on.
    host: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// `rustup run nightly`.
    Nightly,
    /// The toolchain in use, told to accept unstable flags.
    InUse,
}

impl Compiler {
    fn choose() -> Result<Self> {
        let mut nightly = Command::new("rustup");
        nightly
            .args(["run", "nightly", "rustc", "-vV"])
            .stderr(Stdio::null());
        let (origin, version) = match process::output(&mut nightly) {
            Ok(version) => (Origin::Nightly, version),
            Err(_) => {
                let version = process::output(process::cargo().args(["-vV"]))?;
                (Origin::InUse, version)
            }
        };
        let host =
            host_of(&version).context("ask the compiler for its platform: it names no host")?;
        Ok(Self { origin, host })
    }

    fn cargo(&self) -> Command {
        match self.origin {
            Origin::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Origin::InUse => {
                let mut command = process::cargo();
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }
}

fn host_of(version: &str) -> Option<String> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn all_targets_run_unless_one_is_named() {
        let all = names(&["frame", "nbd"]);
        assert_eq!(chosen(&all, None).unwrap(), ["frame", "nbd"]);
        assert_eq!(chosen(&all, Some("nbd")).unwrap(), ["nbd"]);
        let said = chosen(&all, Some("nbdd")).unwrap_err().to_string();
        assert_eq!(said, "fuzz: there is no target nbdd; there are frame, nbd");
        assert!(chosen(&[], None).is_err(), "no target at all is no success");
    }

    #[test]
    fn the_host_is_read_from_the_version() {
        assert_eq!(
            host_of("rustc 1.0\nhost: x86_64-unknown-linux-gnu\nrelease: 1\n").as_deref(),
            Some("x86_64-unknown-linux-gnu")
        );
        assert_eq!(host_of("rustc 1.0\n"), None);
    }

    #[test]
    fn only_inputs_that_are_new_are_blamed_on_a_run() {
        let directory = std::env::temp_dir().join(format!("xtask-fuzz-{}", std::process::id()));
        let fuzz = Fuzz {
            directory: directory.clone(),
            built: directory.clone(),
            targets: names(&["t"]),
        };
        let artifacts = fuzz.made("artifacts", "t").unwrap();
        fs::write(artifacts.join("crash-old"), b"").unwrap();
        let with_new_crash = directory.join("crashes");
        let script = "#!/bin/sh\n: > artifacts/t/crash-new\nexit 77\n";
        write_program(&with_new_crash, script);
        let crashed = fuzz.run("t", &with_new_crash, 1).unwrap();
        let without = fuzz.run("t", &with_new_crash, 1).unwrap_err().to_string();
        let clean = directory.join("clean");
        write_program(&clean, "#!/bin/sh\nexit 0\n");
        let passed = fuzz.run("t", &clean, 1).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert!(!crashed && passed);
        assert!(without.contains("without a crashing input"), "{without}");
    }

    fn write_program(path: &Path, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}
