//! QEMU's machine emulator, in the version of the other QEMU programs.
//!
//! Debian's packages of QEMU fit together only within one version. Where the tools come from
//! backports and apt has no line for these, the emulator is installed with a copy of apt's
//! sources that has one; the machine's own sources stay as they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::setup;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Where Debian 12 and later name their mirror.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";
/// In the version of every package from backports.
const FROM_BACKPORTS: &str = "~bpo";

/// Installs the emulator if it is missing; `target` is for files that may go.
pub fn install_missing(target: &Path) -> Result<()> {
    if process::find(PROGRAM).is_some() {
        return Ok(());
    }
    println!("bench: {PROGRAM} is missing (starts recovery points): package {PACKAGE}");
    let mut query = Command::new("dpkg-query");
    let version = process::output(query.args(["-W", "-f", "${Version}", "qemu-utils"]))?;
    let mut options = Vec::new();
    if version.contains(FROM_BACKPORTS) {
        let release = fs::read_to_string("/etc/os-release").context("read the release's name")?;
        let Some(codename) = codename(&release) else {
            bail!("find the backports of this release: /etc/os-release has no VERSION_CODENAME");
        };
        let parts = write_sources(&target.join("xtask/apt"), codename)?;
        options.push(format!("--option=Dir::Etc::sourceparts={parts}"));
        // The emulator's firmware has to come from there too.
        options.push(format!(
            "--option=APT::Default-Release={codename}-backports"
        ));
        // Else apt forgets the lists of all other sources.
        options.push("--option=APT::Get::List-Cleanup=0".to_owned());
    }
    let apt_get = |words: &[&str]| {
        let options = options.iter().map(String::as_str);
        let all: Vec<&str> = options.chain(words.iter().copied()).collect();
        setup::apt_get(&all)
    };
    apt_get(&["update", "--quiet"])?;
    // Its companions have to be named, or apt takes those of another version.
    let wanted = [PACKAGE, "qemu-system-common", "qemu-system-data"]
        .map(|package| format!("{package}={version}"));
    let mut install = vec![
        "install",
        "--quiet",
        "--yes",
        "--no-upgrade",
        "--no-install-recommends",
    ];
    install.extend(wanted.iter().map(String::as_str));
    apt_get(&install).with_context(|| {
        format!("install {PACKAGE} {version}, the version of the QEMU tools that are installed")
    })
}

/// Writes apt's sources with a suite of backports into `folder`, and returns it.
fn write_sources(folder: &Path, codename: &str) -> Result<String> {
    let text = fs::read_to_string(SOURCES).with_context(|| {
        format!("read {SOURCES}: add the backports of this Debian release to apt's sources, or install {PACKAGE}")
    })?;
    let Some(with_backports) = with_backports(&text, codename) else {
        bail!("find the mirror in {SOURCES}: its first entry has no Suites");
    };
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join("debian.sources");
    fs::write(&path, with_backports).with_context(|| format!("write {}", path.display()))?;
    Ok(folder.display().to_string())
}

fn codename(release: &str) -> Option<&str> {
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
}

/// The sources, and the first entry once more for backports.
fn with_backports(sources: &str, codename: &str) -> Option<String> {
    let first = sources.trim_start().split("\n\n").next()?;
    if !first.lines().any(|line| line.starts_with("Suites:")) {
        return None;
    }
    let lines = first.lines().map(|line| {
        if line.starts_with("Suites:") {
            format!("Suites: {codename}-backports")
        } else {
            line.to_owned()
        }
    });
    let backports: Vec<String> = lines.collect();
    Some(format!(
        "{}\n\n{}\n",
        sources.trim_end(),
        backports.join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_are_on_the_mirror_of_the_first_entry() {
        let sources =
            "Types: deb\nURIs: http://m/debian\nSuites: x x-updates\n\nTypes: deb\nSuites: s\n";
        let expected = "Types: deb\nURIs: http://m/debian\nSuites: x x-updates\n\nTypes: deb\nSuites: s\n\n\
                        Types: deb\nURIs: http://m/debian\nSuites: x-backports\n";
        assert_eq!(with_backports(sources, "x").unwrap(), expected);
        assert_eq!(with_backports("deb http://m x main\n", "x"), None);
        assert_eq!(with_backports("", "x"), None);
    }

    #[test]
    fn the_release_is_asked_for_its_codename() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=x\n"), Some("x"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
