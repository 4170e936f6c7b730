//! A `qemu-nbd` that serves an image for a test.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::support::text;

/// The server; it is gone, and its locks with it, when this has been dropped.
pub struct QemuNbd {
    process: OwnedFd,
}

impl QemuNbd {
    /// Serves the qcow2 image as the export `sda`. Clients are answered when this returns.
    pub fn serve(image: &Path, socket: &Path, options: &[&str]) -> Self {
        let pid_file = socket.with_extension("pid");
        let status = Command::new("qemu-nbd")
            .args(["--fork", "-t", "-e", "8", "-x", "sda", "-f", "qcow2"])
            .args(["-k", text(socket), "--pid-file", text(&pid_file)])
            .args(options)
            .arg(image)
            .status()
            .expect("qemu-nbd, of the package qemu-utils, is needed");
        assert!(status.success(), "qemu-nbd: {status}");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        Self {
            process: pidfd_open(pid, PidfdFlags::empty()).unwrap(),
        }
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        pidfd_send_signal(&self.process, Signal::TERM).unwrap();
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        while poll(&mut ended, None).is_err() {}
    }
}
