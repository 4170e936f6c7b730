//! A program of the administrator that quiesces the guest around a freeze.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use lifeboat_model::VmId;
use lifeboat_sys::process::{self, Ended};

/// A program that is called with `freeze` or `thaw` and the VM's id. It must end with status 0
/// within the time limit; else it is killed, and the view is crash consistent only.
#[derive(Debug, Clone)]
pub struct QuiesceHook {
    pub program: PathBuf,
    /// For each of the two calls.
    pub limit: Duration,
}

/// Whether the guest did what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obeyed {
    Yes,
    No,
}

/// A guest that was asked to be quiet. Thawed when it is dropped, at the latest.
#[derive(Debug)]
pub(crate) struct Quiet<'a> {
    hook: &'a QuiesceHook,
    vm: VmId,
    asked: Obeyed,
    thawed: bool,
}

impl<'a> Quiet<'a> {
    /// Asks the guest to be quiet; it is thawed also if it did not obey.
    pub(crate) fn begin(hook: &'a QuiesceHook, vm: VmId) -> Self {
        let mut quiet = Self {
            hook,
            vm,
            asked: Obeyed::No,
            thawed: false,
        };
        quiet.asked = quiet.call("freeze");
        quiet
    }

    /// Lets the guest go on. It was quiet until now only if both calls were obeyed.
    pub(crate) fn end(mut self) -> Obeyed {
        match (self.thaw(), self.asked) {
            (Obeyed::Yes, Obeyed::Yes) => Obeyed::Yes,
            (Obeyed::No, _) | (_, Obeyed::No) => Obeyed::No,
        }
    }

    fn thaw(&mut self) -> Obeyed {
        self.thawed = true;
        self.call("thaw")
    }

    fn call(&self, what: &str) -> Obeyed {
        let mut command = Command::new(&self.hook.program);
        command.arg(what).arg(self.vm.to_string());
        match process::run(&mut command, self.hook.limit) {
            Ok(Ended::Exited(status)) if status.success() => Obeyed::Yes,
            Ok(Ended::Exited(_) | Ended::TimedOut) | Err(_) => Obeyed::No,
        }
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        if !self.thawed {
            // Whoever dropped it has an error of its own to tell.
            let _ = self.thaw();
        }
    }
}
