//! Other programs: finding them, starting them, and saying what is missing.
//!
//! No program that is started here gets a standard input: a step that would
//! ask a question fails instead of waiting for an answer.

use std::env;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Result, anyhow, bail};

/// Programs that are started here or by the tests, with the Debian package of each.
const PACKAGES: [(&str, &str); 17] = [
    ("apt-get", "apt"),
    ("c++", "g++"),
    ("dpkg", "dpkg"),
    ("dpkg-deb", "dpkg"),
    ("gzip", "gzip"),
    ("ip", "iproute2"),
    ("mkfs.xfs", "xfsprogs"),
    ("mount", "mount"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdkit", "nbdkit"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    // Debian 12 has it here; its backports and later releases in qemu-utils.
    ("qemu-storage-daemon", "qemu-system-common"),
    ("strip", "binutils"),
    ("umount", "mount"),
];

/// The Debian package that brings `program`, if it is one that the project uses.
pub fn package_of(program: &str) -> Option<&'static str> {
    let (_, package) = PACKAGES.iter().find(|(name, _)| *name == program)?;
    Some(package)
}

/// The cargo that started this program, or the one on the path.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The first executable file of this name on the path or in the directories
/// for administration, which an ordinary user's path leaves out.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// A command that runs `program` as root: directly, or through `sudo`.
pub fn as_root(program: &str) -> Result<Command> {
    let file = find(program).ok_or_else(|| missing(program.as_ref()))?;
    let owner = std::fs::metadata("/proc/self")
        .map_err(|error| anyhow!("ask /proc who runs this: {error}"))?
        .uid();
    if owner == 0 {
        return Ok(Command::new(file));
    }
    let Some(sudo) = find("sudo") else {
        bail!("run {program} as root: this is not root and there is no sudo; run it as root");
    };
    let mut command = Command::new(sudo);
    command.arg(file);
    Ok(command)
}

/// Runs the command with this program's output and fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let status = spawn(command)?
        .wait()
        .map_err(|error| anyhow!("wait for {}: {error}", line(command)))?;
    check(command, status)
}

/// Runs the command and returns what it printed; its errors go to this program's.
pub fn output(command: &mut Command) -> Result<String> {
    let output = spawn(command.stdout(Stdio::piped()))?
        .wait_with_output()
        .map_err(|error| anyhow!("wait for {}: {error}", line(command)))?;
    check(command, output.status)?;
    String::from_utf8(output.stdout)
        .map_err(|_| anyhow!("read the output of {}: it is not UTF-8", line(command)))
}

/// Starts the command without a standard input.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null());
    command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing(command.get_program()),
        _ => anyhow!("start {}: {error}", line(command)),
    })
}

/// Fails, naming the command, unless it succeeded.
pub fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// The command as it would be typed, for messages.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    format!("`{}`", words.join(" "))
}

fn missing(program: &OsStr) -> anyhow::Error {
    let program = program.to_string_lossy();
    match package_of(&program) {
        Some(package) => anyhow!(
            "start {program}: it is not installed; run `cargo xtask setup` or install the Debian package {package}"
        ),
        None => anyhow!("start {program}: it is not installed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let said = missing("nbdinfo".as_ref()).to_string();
        assert!(said.contains("libnbd-bin"), "{said}");
        let said = spawn(&mut Command::new("no-such-program-anywhere"))
            .unwrap_err()
            .to_string();
        assert_eq!(said, "start no-such-program-anywhere: it is not installed");
    }

    #[test]
    fn a_failed_command_is_named_with_its_status() {
        let said = run(Command::new("sh").args(["-c", "exit 3"]))
            .unwrap_err()
            .to_string();
        assert_eq!(said, "`sh -c exit 3` failed: exit status: 3");
    }

    #[test]
    fn output_is_what_the_program_printed() {
        assert_eq!(output(Command::new("echo").arg("a b")).unwrap(), "a b\n");
    }

    #[test]
    fn a_program_gets_no_input() {
        assert_eq!(output(&mut Command::new("cat")).unwrap(), "");
    }

    #[test]
    fn only_an_executable_file_is_a_program() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
        assert!(find("../share").is_none(), "a directory is not a program");
    }
}
