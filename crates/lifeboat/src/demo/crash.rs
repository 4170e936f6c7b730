//! A process that applies a delta and is killed in the middle of it.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use lifeboat_store::Store;
use lifeboat_sys::disk::{Fault, FaultDisk, RealDisk};

use super::error::DemoError;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By the signal that cannot be caught.
    Killed,
    /// It had applied the delta before its time came.
    Applied,
}

/// Starts this program again to apply what waits in the store, and to be killed at its
/// change number `call` to the file system.
///
/// # Errors
/// When it cannot be started, or failed in another way.
pub fn apply_and_be_killed(store: &Path, call: u64) -> Result<Ended, DemoError> {
    let start = || -> std::io::Result<ExitStatus> {
        Command::new(std::env::current_exe()?)
            .args(["demo", "--kill-at", &call.to_string(), "--apply"])
            .arg(store)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
    };
    let status = start().map_err(|source| DemoError::System {
        what: "another process",
        source,
    })?;
    match (status.signal(), status.success()) {
        (Some(SIGKILL), _) => Ok(Ended::Killed),
        (None, true) => Ok(Ended::Applied),
        _ => Err(DemoError::Child { status }),
    }
}

/// The signal that ends a process at once, whatever it does.
const SIGKILL: i32 = 9;

/// What the other process does: applies everything that waits, until it is killed.
///
/// # Errors
/// When the store cannot be opened or the delta not be applied.
pub fn apply_until_killed(store: &Path, call: u64) -> Result<(), DemoError> {
    let port = FaultDisk::failing_at(Arc::new(RealDisk), call, Fault::Kill);
    let holder = format!("the demo's process to be killed, {}", std::process::id());
    let mut store = Store::open(Arc::new(port), store, &holder)?;
    while store.apply_next(&mut |_| {})?.is_some() {}
    Ok(())
}
