//! Other programs, run to their end.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lifeboat_sys::clock::Stopwatch;

/// Runs the command, throws away what it prints, and tells how long it took.
pub fn timed(command: &mut Command) -> Result<Duration> {
    let watch = Stopwatch::start();
    output(command)?;
    Ok(watch.elapsed())
}

/// Runs the command and returns what it printed; its errors are in the error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {name}: is it installed?"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_fails_says_why() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): broken");
        assert!(output(&mut Command::new("no-such-program-anywhere")).is_err());
    }
}
