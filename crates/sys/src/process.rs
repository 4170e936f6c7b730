//! Programs of the administrator, held to a time limit.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::clock::Stopwatch;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(ExitStatus),
    /// It was killed, with all that belongs to its process group.
    TimedOut,
}

/// Runs a program without input and output in a process group of its own, and kills the group
/// when it has not ended within `limit`.
///
/// # Errors
/// When it cannot be started or watched; it does not run then.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Ended> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    match wait(&child, limit) {
        Ok(true) => Ok(Ended::Exited(child.wait()?)),
        Ok(false) => {
            kill(&mut child)?;
            Ok(Ended::TimedOut)
        }
        Err(error) => {
            kill(&mut child)?;
            Err(error)
        }
    }
}

/// Whether the child has ended within `limit`.
fn wait(child: &Child, limit: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let watch = Stopwatch::start();
    loop {
        let left = limit.saturating_sub(watch.elapsed());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn kill(child: &mut Child) -> io::Result<()> {
    // The group is gone already when its last member has just ended.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_ends_tells_how() {
        let long = Duration::from_secs(60);
        let ended = run(&mut shell("exit 3"), long).unwrap();
        assert!(matches!(ended, Ended::Exited(status) if status.code() == Some(3)));
        assert!(run(&mut Command::new("/nonexistent"), long).is_err());
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let noted = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", noted.display());
        let ended = run(&mut shell(&script), Duration::from_secs(2)).unwrap();
        assert_eq!(ended, Ended::TimedOut);
        let child = std::fs::read_to_string(noted).unwrap();
        let status = format!("/proc/{}/stat", child.trim());
        // A signal takes effect soon, not at once; one that was not sent never does.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::yield_now();
        }
    }
}
