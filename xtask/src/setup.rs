//! What the tests need on a Debian machine: programs from its packages and
//! two tools from cargo.
//!
//! Only what is missing is installed, so on a machine that has everything
//! this takes no noticeable time and no network. A package that is installed
//! is never replaced: whoever has QEMU from backports keeps it.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// The real programs that tests talk to, and what each is for.
const PROGRAMS: [(&str, &str); 10] = [
    (
        "qemu-img",
        "reads and checks the images that Lifeboat writes",
    ),
    ("qemu-io", "writes into images and exports as a guest would"),
    ("qemu-nbd", "serves images to the NBD client"),
    (
        "nbdkit",
        "serves disks with faults and odd sizes to the NBD client",
    ),
    ("nbdinfo", "asks the NBD server what it exports"),
    (
        "nbdcopy",
        "copies through the NBD server, with and without TLS",
    ),
    ("mkfs.xfs", "makes the file system that shares blocks"),
    (
        "ip",
        "makes the networks of two hosts with a line between them",
    ),
    ("c++", "builds what the fuzz targets run on"),
    STORAGE_DAEMON,
];

const STORAGE_DAEMON: (&str, &str) = (
    "qemu-storage-daemon",
    "exports disks with dirty bitmaps, as a running QEMU does",
);

/// Another run of apt may hold its lock for minutes, as it does on a machine
/// that has just started.
const LOCK_PATIENCE: &str = "DPkg::Lock::Timeout=300";

/// A tool that cargo runs as a subcommand.
struct CargoTool {
    subcommand: &'static str,
    version: &'static str,
    purpose: &'static str,
    /// On two cores, with the settings of `install_tool`.
    build_time: &'static str,
}

const CARGO_TOOLS: [CargoTool; 2] = [
    CargoTool {
        subcommand: "nextest",
        version: "0.9.143",
        purpose: "runs the tests",
        build_time: "about four minutes",
    },
    CargoTool {
        subcommand: "deny",
        version: "0.20.2",
        purpose: "checks the dependencies' licenses and sources",
        build_time: "about two minutes",
    },
];

/// Installs every program and tool that is missing.
pub fn install_missing() -> Result<()> {
    install_missing_programs()?;
    for tool in &CARGO_TOOLS {
        if !is_installed(tool) {
            install_tool(tool)?;
        }
    }
    Ok(())
}

/// Installs every program that is missing.
pub fn install_missing_programs() -> Result<()> {
    install_programs(&missing_of(&PROGRAMS, STORAGE_DAEMON.0))?;
    // Asked again, because newer qemu-utils bring it and break the package
    // that has it otherwise.
    install_programs(&missing_of(&PROGRAMS, ""))
}

/// The programs that are not on this machine, leaving out `later`.
fn missing_of<'a>(programs: &[(&'a str, &'a str)], later: &str) -> Vec<(&'a str, &'a str)> {
    programs
        .iter()
        .filter(|(program, _)| *program != later && process::find(program).is_none())
        .copied()
        .collect()
}

fn install_programs(missing: &[(&str, &str)]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages = Vec::new();
    for (program, purpose) in missing {
        let Some(package) = process::package_of(program) else {
            bail!("install {program}: no package is known to bring it");
        };
        println!("setup: {program} is missing ({purpose}): package {package}");
        packages.push(package);
    }
    packages.sort_unstable();
    packages.dedup();
    if process::find("apt-get").is_none() {
        bail!(
            "install {}: this machine has no apt-get; install these Debian packages' counterparts by hand",
            packages.join(" ")
        );
    }
    if let Err(error) = apt_get(&["update", "--quiet"]) {
        eprintln!("warning: {error:#}; going on with the package lists that are here");
    }
    let mut install = vec![
        "install",
        "--quiet",
        "--yes",
        "--no-upgrade",
        "--no-install-recommends",
    ];
    install.extend(&packages);
    apt_get(&install).context(
        "install the packages above; if the QEMU that is installed comes from backports, \
         apt needs the backports line in its sources to find the packages that belong to it",
    )?;
    for (program, _) in missing {
        if process::find(program).is_none() {
            bail!(
                "install {program}: its package is installed, but there is no {program} on the path"
            );
        }
    }
    Ok(())
}

/// Runs apt-get as root; it asks no questions and waits for another run of it.
pub fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut command = process::as_root("env")?;
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .args(["--option", LOCK_PATIENCE])
        .args(arguments);
    process::run(&mut command)
}

fn is_installed(tool: &CargoTool) -> bool {
    let mut command = process::cargo();
    command
        .args([tool.subcommand, "--version"])
        .stderr(Stdio::null());
    process::output(&mut command).is_ok()
}

fn install_tool(tool: &CargoTool) -> Result<()> {
    let CargoTool {
        subcommand,
        version,
        purpose,
        build_time,
    } = tool;
    println!(
        "setup: cargo-{subcommand} is missing (it {purpose}): building version {version}, {build_time} on two cores"
    );
    process::run(&mut tool_build(tool))
}

/// The build of a tool for a few seconds' use: without the optimization that
/// its release profile asks for, which takes several times as long.
fn tool_build(tool: &CargoTool) -> Command {
    let mut command = process::cargo();
    command
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .args(["install", "--locked"])
        .arg(format!("cargo-{}@{}", tool.subcommand, tool.version));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_the_tests_has_a_package() {
        for (program, _) in PROGRAMS {
            assert!(process::package_of(program).is_some(), "{program}");
        }
    }

    #[test]
    fn only_what_is_missing_is_installed_and_the_last_program_can_wait() {
        let programs = [("sh", "is there"), ("no-such-a", "x"), ("no-such-b", "y")];
        assert_eq!(missing_of(&programs, "no-such-b"), [("no-such-a", "x")]);
        assert_eq!(
            missing_of(&programs, ""),
            [("no-such-a", "x"), ("no-such-b", "y")]
        );
        assert_eq!(missing_of(&programs[..1], ""), []);
    }

    #[test]
    fn tools_are_built_at_a_pinned_version_from_their_own_lock_file() {
        for tool in &CARGO_TOOLS {
            let build = tool_build(tool);
            let arguments: Vec<_> = build
                .get_args()
                .map(|word| word.to_string_lossy())
                .collect();
            assert_eq!(arguments[..2], ["install", "--locked"]);
            assert_eq!(
                arguments[2],
                format!("cargo-{}@{}", tool.subcommand, tool.version)
            );
        }
    }

    #[test]
    fn an_unknown_subcommand_is_not_installed() {
        let tool = CargoTool {
            subcommand: "no-such-subcommand",
            version: "1.0.0",
            purpose: "is not there",
            build_time: "no time",
        };
        assert!(!is_installed(&tool));
    }
}
