//! How a command ends: the error in words, what would help, and the exit code.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use lifeboat_capture::CaptureError;
use lifeboat_model::contract::ReturnCode;
use lifeboat_nbd::{BindError, ConnectError, ExportSetError};
use lifeboat_rest::client::{ClientError, ConnectError as HostConnectError};
use lifeboat_rest::wire::Job;
use lifeboat_store::{Refused, StoreError};
use lifeboat_stream::DecodeError;
use serde::Serialize;

use crate::capture_state::StateError;
use crate::commands::catalog::CatalogFailure;
use crate::demo::DemoError;
use crate::output::printable;
use crate::tls::TlsError;

/// The exit codes. Scripts rely on them: a number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// Not in the present state; nothing was changed.
    Refused = 3,
    AccessDenied = 4,
    NotFound = 5,
    /// In use, or cannot be reached.
    Unavailable = 6,
}

impl Exit {
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments contradict each other or this terminal.
    #[error("{what}")]
    Usage { what: String },

    #[error(transparent)]
    Store(#[from] StoreError),

    #[error("read {input}")]
    Stream { input: String, source: DecodeError },

    #[error("{what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("{} exists already, and is left alone", path.display())]
    FileExists { path: PathBuf },

    #[error("another process writes {}", path.display())]
    FileInUse { path: PathBuf },

    #[error("read {input}")]
    Read { input: String, source: io::Error },

    #[error("print the result")]
    Print { source: io::Error },

    #[error("ask the system for {what}")]
    System {
        what: &'static str,
        source: io::Error,
    },

    #[error("set up TLS")]
    Tls { source: TlsError },

    #[error("use the state of the capture")]
    State { source: StateError },

    #[error("read {input} as a receipt")]
    Receipt {
        input: String,
        source: serde_json::Error,
    },

    #[error("there is no receipt yet, so there is nothing that a bitmap could add to")]
    NothingToBuildOn,

    #[error("capture the disks")]
    Capture { source: CaptureError },

    #[error("serve the recovery point")]
    Bind { source: BindError },

    #[error("serve the recovery point")]
    Export { source: ExportSetError },

    #[error("it was not confirmed; nothing was changed")]
    NotConfirmed,

    #[error("{count} things in the store are not as they were written; see the findings")]
    Findings { count: usize },

    #[error("a failover would be refused now: {why}")]
    NotReady { why: String },

    #[error("use the identity")]
    Identity { source: HostConnectError },

    /// The host that was asked refused, or was not reached.
    #[error(transparent)]
    Host(#[from] ClientError),

    #[error("{}", job_failed(.job))]
    Job { job: Box<Job> },

    #[error("the host ended the stream of events")]
    StreamEnded,

    #[error(transparent)]
    Demo(Box<DemoError>),

    #[error(transparent)]
    Catalog(Box<CatalogFailure>),

    /// The daemon, or what it stands on: configuration, certificates, catalog.
    #[error(transparent)]
    Daemon {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a job that failed says of itself.
fn job_failed(job: &Job) -> String {
    let state = job.job_state_text.to_lowercase();
    if job.error_description.is_empty() {
        format!("{}: the job ended as {state}", job.name)
    } else {
        format!("{}: {}", job.name, job.error_description)
    }
}

impl From<CatalogFailure> for Failure {
    fn from(failure: CatalogFailure) -> Self {
        Self::Catalog(Box::new(failure))
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        Self::Demo(Box::new(error))
    }
}

impl Failure {
    /// The exit code that says which kind of failure this is.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::Store(error) => of_store(error),
            Self::Demo(error) => match &**error {
                DemoError::FolderNotEmpty { .. } => Exit::Refused,
                DemoError::File { source, .. } => of_io(source),
                _ => Exit::Failed,
            },
            Self::File { source, .. } | Self::Read { source, .. } => of_io(source),
            Self::FileExists { .. }
            | Self::NotConfirmed
            | Self::NotReady { .. }
            | Self::NothingToBuildOn => Exit::Refused,
            Self::State { source } => of_state(source),
            Self::Capture { source } => of_capture(source),
            Self::FileInUse { .. } => Exit::Unavailable,
            Self::Stream { source, .. } => match source {
                DecodeError::Read { source, .. } => of_io(source),
                _ => Exit::Failed,
            },
            Self::Tls { source } => match source {
                TlsError::Read { source, .. } => of_io(source),
                TlsError::NoCertificate { .. } | TlsError::Config { .. } => Exit::Failed,
            },
            Self::Bind { source } => of_bind(source),
            Self::Identity { source } => of_host_connect(source),
            Self::Host(error) => of_client(error),
            Self::Job { job } => of_job(job),
            Self::StreamEnded => Exit::Unavailable,
            Self::Catalog(failure) => failure.exit(),
            Self::Print { .. }
            | Self::System { .. }
            | Self::Receipt { .. }
            | Self::Export { .. }
            | Self::Findings { .. }
            | Self::Daemon { .. } => Exit::Failed,
        }
    }

    /// What the user can do about it, where the message does not say so itself.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Store(StoreError::Refused(refused)) => refused_hint(refused),
            Self::Store(StoreError::Damaged { .. }) | Self::Findings { .. } => Some(
                "keep a copy of the folder before anything else, then see `lifeboat store verify`",
            ),
            Self::FileExists { .. } => Some("choose another name, or remove the file first"),
            Self::Store(StoreError::Delta { .. }) => {
                Some("nothing was stored; get the delta again from where it was captured")
            }
            Self::Stream { .. } => Some("get the delta again from where it was captured"),
            Self::NothingToBuildOn => Some(
                "capture without --bitmap first, receive that, and give its receipt as --receipt",
            ),
            Self::State { source } => state_hint(source),
            Self::Receipt { .. } => {
                Some("a receipt is what `lifeboat --output json store receive` prints")
            }
            Self::Capture { source } => match source {
                CaptureError::BitmapMissing { .. } => Some(
                    "if the bitmap is lost, capture whole disks: without it nobody knows what changed",
                ),
                _ => Some(
                    "the sequence number drawn stays unused, which does no harm; capture again",
                ),
            },
            Self::StreamEnded => Some("ask again with --since and the last number shown"),
            Self::Host(error) => host_hint(error),
            Self::Catalog(failure) => failure.hint(),
            Self::Job { .. } => None,
            _ if self.exit() == Exit::AccessDenied => {
                Some("run as the user who owns the file or folder")
            }
            Self::Bind { source } => match source {
                BindError::InUse { .. } => Some("stop the other server, or choose another address"),
                BindError::NotASocket { .. }
                | BindError::Unix { .. }
                | BindError::Tcp { .. }
                | BindError::Thread { .. } => None,
            },
            Self::Usage { .. }
            | Self::Store(StoreError::Io { .. } | StoreError::DiskFull { .. })
            | Self::File { .. }
            | Self::FileInUse { .. }
            | Self::Read { .. }
            | Self::Print { .. }
            | Self::System { .. }
            | Self::Tls { .. }
            | Self::Export { .. }
            | Self::NotConfirmed
            | Self::NotReady { .. }
            | Self::Daemon { .. }
            | Self::Identity { .. }
            | Self::Demo(_) => None,
        }
    }

    /// What helps, in the words of the host that refused or in ours.
    fn advice(&self) -> Option<&str> {
        match self {
            Self::Host(ClientError::Refused { problem }) if !problem.remedy.is_empty() => {
                Some(&problem.remedy)
            }
            other => other.hint(),
        }
    }

    /// The return code of the contract, if a host gave one.
    fn return_code(&self) -> Option<u16> {
        match self {
            Self::Host(ClientError::Refused { problem }) => Some(problem.return_code),
            Self::Job { job } => Some(job.error_code),
            _ => None,
        }
    }

    /// Whether whoever reads our output has gone away: there is nobody to tell.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Print { source } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The error as people read it: what, why, what to do.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("error: {}\n", printable(&self.to_string()));
        for cause in causes(self) {
            text.push_str(&format!("  because: {}\n", printable(&cause)));
        }
        if let Some(hint) = self.advice() {
            text.push_str(&format!("  hint: {}\n", printable(hint)));
        }
        text
    }

    /// The error as programs read it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let report = ErrorReport {
            error: ErrorObject {
                message: self.to_string(),
                because: causes(self),
                hint: self.advice(),
                return_code: self.return_code(),
                exit_code: self.exit().code(),
            },
        };
        let text = serde_json::to_string_pretty(&report);
        text.expect("BUG: an error can be written as JSON") + "\n"
    }
}

#[derive(Serialize)]
struct ErrorReport<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: String,
    because: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    return_code: Option<u16>,
    exit_code: u8,
}

/// The sources of an error, outermost first.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes
}

/// The exit code for what the operating system says.
pub(crate) fn of_io(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::AccessDenied,
        io::ErrorKind::NotFound => Exit::NotFound,
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Exit::Unavailable,
        _ => Exit::Failed,
    }
}

fn of_state(error: &StateError) -> Exit {
    match error {
        StateError::Format { .. } | StateError::Version { .. } | StateError::Disks { .. } => {
            Exit::Failed
        }
        StateError::ReceiptOfOtherLineage { .. }
        | StateError::ReceiptForNothing { .. }
        | StateError::ReceiptTooOld { .. }
        | StateError::ReceiptForOtherContent { .. }
        | StateError::Exhausted => Exit::Refused,
    }
}

fn state_hint(error: &StateError) -> Option<&'static str> {
    match error {
        StateError::ReceiptOfOtherLineage { .. } => {
            Some("one side has taken over; see `lifeboat store status` on the replica")
        }
        StateError::ReceiptTooOld { .. } => Some("leave --receipt out: the newer one is saved"),
        StateError::ReceiptForNothing { .. } | StateError::ReceiptForOtherContent { .. } => Some(
            "the receipt is of another relationship, or the state was restored from a copy; capture whole disks",
        ),
        StateError::Format { .. }
        | StateError::Version { .. }
        | StateError::Disks { .. }
        | StateError::Exhausted => None,
    }
}

fn of_capture(error: &CaptureError) -> Exit {
    match error {
        CaptureError::Connect { source, .. } => match source.as_ref() {
            ConnectError::Connect { source, .. } if of_io(source) == Exit::AccessDenied => {
                Exit::AccessDenied
            }
            _ => Exit::Unavailable,
        },
        CaptureError::InitialByBitmap { .. } | CaptureError::BitmapName { .. } => Exit::Usage,
        CaptureError::BitmapMissing { .. } => Exit::Refused,
        CaptureError::Plan { .. }
        | CaptureError::Size { .. }
        | CaptureError::Changes { .. }
        | CaptureError::Allocation { .. }
        | CaptureError::Read { .. }
        | CaptureError::Encode { .. } => Exit::Failed,
    }
}

fn of_bind(error: &BindError) -> Exit {
    match error {
        BindError::InUse { .. } => Exit::Unavailable,
        BindError::NotASocket { .. } => Exit::Refused,
        BindError::Unix { source, .. } | BindError::Tcp { source, .. } => of_io(source),
        BindError::Thread { .. } => Exit::Failed,
    }
}

/// The exit code for what a host answers.
fn of_return_code(code: ReturnCode) -> Exit {
    match code {
        ReturnCode::Completed => Exit::Done,
        ReturnCode::InvalidParameter | ReturnCode::IncorrectDataType => Exit::Usage,
        ReturnCode::InvalidState | ReturnCode::NotSupported => Exit::Refused,
        ReturnCode::AccessDenied => Exit::AccessDenied,
        ReturnCode::FileNotFound => Exit::NotFound,
        ReturnCode::InUse | ReturnCode::NotAvailable | ReturnCode::Timeout => Exit::Unavailable,
        ReturnCode::JobStarted
        | ReturnCode::Failed
        | ReturnCode::UnknownStatus
        | ReturnCode::OutOfMemory => Exit::Failed,
    }
}

fn of_client(error: &ClientError) -> Exit {
    match error {
        ClientError::Refused { problem } => problem.code().map_or(Exit::Failed, of_return_code),
        ClientError::Connect { source, .. } => of_host_connect(source),
        ClientError::TimedOut { .. } => Exit::Unavailable,
        ClientError::Runtime { .. }
        | ClientError::Send { .. }
        | ClientError::Receive { .. }
        | ClientError::Unexpected { .. } => Exit::Failed,
    }
}

fn of_host_connect(error: &HostConnectError) -> Exit {
    match error {
        HostConnectError::Read { source, .. } => of_io(source),
        HostConnectError::NoIdentity => Exit::Usage,
        HostConnectError::Pem { .. }
        | HostConnectError::Certificates { .. }
        | HostConnectError::Name { .. } => Exit::Failed,
        HostConnectError::Socket { source } => match of_io(source) {
            Exit::AccessDenied => Exit::AccessDenied,
            _ => Exit::Unavailable,
        },
        HostConnectError::Tls { .. } | HostConnectError::Http { .. } => Exit::Unavailable,
    }
}

/// The exit code of a job that failed, by the return code that it ended with.
fn of_job(job: &Job) -> Exit {
    let code = ReturnCode::try_from(u32::from(job.error_code)).ok();
    match code.map(of_return_code) {
        // A job that was ended early has no error of its own.
        None | Some(Exit::Done) => Exit::Failed,
        Some(exit) => exit,
    }
}

fn host_hint(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Connect { source, .. } => match source {
            HostConnectError::Socket { source } if of_io(source) == Exit::AccessDenied => {
                Some("run as root or as a member of the operators' group")
            }
            HostConnectError::Socket { .. } => {
                Some("see whether `lifeboat serve` runs there, or name another host with --host")
            }
            HostConnectError::NoIdentity => {
                Some("give the folder of your certificate as --identity")
            }
            HostConnectError::Tls { .. } => Some(
                "see whether your certificate is still valid, and whether trust.pem has the authority of the host",
            ),
            HostConnectError::Read { .. }
            | HostConnectError::Pem { .. }
            | HostConnectError::Certificates { .. }
            | HostConnectError::Name { .. }
            | HostConnectError::Http { .. } => None,
        },
        ClientError::Unexpected { .. } => {
            Some("see whether it is a host of Lifeboat, of this program's version")
        }
        ClientError::TimedOut { .. } => {
            Some("look at the VM and its jobs before asking for a change again")
        }
        ClientError::Runtime { .. }
        | ClientError::Send { .. }
        | ClientError::Receive { .. }
        | ClientError::Refused { .. } => None,
    }
}

fn of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::Refused(refused) => of_refused(refused),
        StoreError::Io { source, .. } => match of_io(source) {
            Exit::AccessDenied => Exit::AccessDenied,
            // A file that is missing inside a store is no wrong name of the user's.
            _ => Exit::Failed,
        },
        StoreError::Delta { source } => match source {
            DecodeError::Read { source, .. } => of_io(source),
            _ => Exit::Failed,
        },
        StoreError::DiskFull { .. } | StoreError::Damaged { .. } => Exit::Failed,
    }
}

fn of_refused(refused: &Refused) -> Exit {
    match refused {
        Refused::NoStore { .. }
        | Refused::NoPoint { .. }
        | Refused::NoBoundary { .. }
        | Refused::NoImage { .. }
        | Refused::NoDisk { .. } => Exit::NotFound,
        Refused::InUse { .. } | Refused::ImageInUse { .. } | Refused::PointInUse { .. } => {
            Exit::Unavailable
        }
        Refused::NotEmpty { .. }
        | Refused::Reopen
        | Refused::NoteTooLong { .. }
        | Refused::BadDisks
        | Refused::OtherRelationship { .. }
        | Refused::OtherLineage { .. }
        | Refused::UnknownBase { .. }
        | Refused::OtherBase { .. }
        | Refused::OtherContent { .. }
        | Refused::TooOld { .. }
        | Refused::NotInitial
        | Refused::OtherDisks { .. }
        | Refused::NothingApplied { .. }
        | Refused::TooManySegments { .. }
        | Refused::FailedOver
        | Refused::NotFailedOver { .. }
        | Refused::OldCopy { .. }
        | Refused::NotEmptyForCopy { .. }
        | Refused::NotCopying
        | Refused::OtherCopy { .. }
        | Refused::CopyClosing
        | Refused::BadPiece { .. }
        | Refused::ScatteredCopy
        | Refused::Mixed { .. }
        | Refused::Copying { .. }
        | Refused::CopyIncomplete { .. }
        | Refused::CopyNeeded
        | Refused::NotCommitted
        | Refused::NotDescended { .. }
        | Refused::BadImage { .. }
        | Refused::OtherFailoverDisks
        | Refused::Committing
        | Refused::Committed => Exit::Refused,
    }
}

fn refused_hint(refused: &Refused) -> Option<&'static str> {
    match refused {
        Refused::NoDisk { .. } => Some("see `lifeboat store status` for the disks"),
        Refused::NothingApplied { .. } => {
            Some("receive a delta with `lifeboat store receive`, then run `lifeboat store apply`")
        }
        Refused::TooManySegments { .. } => {
            Some("`lifeboat store apply --keep-points N` removes the oldest beyond N")
        }
        Refused::FailedOver => Some("see `lifeboat store failover show`"),
        Refused::NotFailedOver { .. } => Some("begin one with `lifeboat store failover start`"),
        Refused::Committed => Some("make a new replica elsewhere with `lifeboat store init`"),
        Refused::OtherRelationship { .. } | Refused::OtherDisks { .. } => {
            Some("capture with the state that `lifeboat store init --capture-state` wrote")
        }
        Refused::ImageInUse { .. } => Some("shut the VM down, or end the program that reads it"),
        Refused::NoStore { .. }
        | Refused::NotEmpty { .. }
        | Refused::InUse { .. }
        | Refused::Reopen
        | Refused::BadDisks
        | Refused::OtherLineage { .. }
        | Refused::UnknownBase { .. }
        | Refused::OtherBase { .. }
        | Refused::OtherContent { .. }
        | Refused::TooOld { .. }
        | Refused::NotInitial
        | Refused::NoPoint { .. }
        | Refused::NoBoundary { .. }
        | Refused::NoImage { .. }
        | Refused::OldCopy { .. }
        | Refused::NotEmptyForCopy { .. }
        | Refused::NotCopying
        | Refused::OtherCopy { .. }
        | Refused::CopyClosing
        | Refused::BadPiece { .. }
        | Refused::ScatteredCopy
        | Refused::Mixed { .. }
        | Refused::Copying { .. }
        | Refused::CopyIncomplete { .. }
        | Refused::CopyNeeded
        | Refused::NotCommitted
        | Refused::NotDescended { .. }
        | Refused::BadImage { .. }
        | Refused::OtherFailoverDisks
        | Refused::PointInUse { .. }
        | Refused::NoteTooLong { .. }
        | Refused::Committing => None,
    }
}

#[cfg(test)]
mod tests;
