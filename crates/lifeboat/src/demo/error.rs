//! Why the drill could not be shown to its end.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use lifeboat_model::DiskId;
use lifeboat_nbd::{ConnectError, InvalidUri, RequestError};
use lifeboat_rest::client::ClientError;
use lifeboat_rest::wire::Job;

/// The drill failed, or proved something wrong.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("{} is not empty; the demo needs a new or empty folder", path.display())]
    FolderNotEmpty { path: PathBuf },

    #[error("{} is too long for the sockets in it; choose a --dir of at most {most} bytes", path.display())]
    FolderTooLong { path: PathBuf, most: usize },

    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("ask the system for {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },

    #[error("`lifeboat {command}` ended with {status}: {said}")]
    Command {
        command: String,
        status: ExitStatus,
        said: String,
    },

    #[error("read what `lifeboat {command}` printed")]
    Answer {
        command: String,
        source: serde_json::Error,
    },

    #[error("the daemon of {host} ended by itself with {status}: {said}")]
    DaemonEnded {
        host: &'static str,
        status: ExitStatus,
        said: String,
    },

    #[error("{host} was asked to {what}")]
    Host {
        host: &'static str,
        what: &'static str,
        source: Box<ClientError>,
    },

    #[error("{host} was to {what}: {}: {}", .job.job_state_text, .job.error_description)]
    Job {
        host: &'static str,
        what: &'static str,
        job: Box<Job>,
    },

    #[error("{what} did not come about within {seconds} s; last seen: {seen}")]
    TimedOut {
        what: String,
        seconds: u64,
        seen: String,
    },

    #[error("{host} serves no disk {disk} of {vm}")]
    NoDisk {
        host: &'static str,
        vm: String,
        disk: DiskId,
    },

    #[error("understand where {host} serves disk {disk}")]
    Uri {
        host: &'static str,
        disk: DiskId,
        source: InvalidUri,
    },

    #[error("{host} does not say where it listens for peers")]
    NoPeerAddress { host: &'static str },

    #[error("connect to disk {disk}")]
    Connect { disk: DiskId, source: ConnectError },

    #[error("let the guest use disk {disk}")]
    Request { disk: DiskId, source: RequestError },

    #[error("interrupted")]
    Interrupted,

    #[error("{wrong} of {all} proofs failed; first: {first}; everything is kept in {}", folder.display())]
    Wrong {
        wrong: usize,
        all: usize,
        first: String,
        folder: PathBuf,
    },
}
