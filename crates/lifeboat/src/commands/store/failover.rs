//! `lifeboat store failover`: the VM starts from its replica; later that is kept or given up.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use lifeboat_model::{DiskId, Lineage, LineageId, Sequence};
use lifeboat_store::{FailoverTarget, Refused, StartedDisk, StartedFailover, StoreError};
use lifeboat_sys::{clock, host};
use serde::Serialize;
use serde_json::json;

use super::StoreArgs;
use crate::commands::{confirm, open_store, shown};
use crate::exit::Failure;
use crate::output::{OutputFormat, facts};
use crate::progress::Progress;
use crate::size::Bytes;

#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Make images to start the VM on; nothing below them changes until revert or commit
    ///
    /// No host can know whether the VM still runs at the other site. Make sure that it does not,
    /// or keep this one off the network.
    Start(StartArgs),

    /// Give up the failover and what the VM wrote since: the store is a replica again
    Revert(EndArgs),

    /// Keep the failover: the VM's state becomes the disks, every recovery point goes
    ///
    /// The VM must be off. Once begun it is always completed: after a crash, by whichever
    /// command opens the store next.
    Commit(EndArgs),

    /// Show the failover that is neither reverted nor committed yet
    Show(StoreArgs),
}

#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The moment to start from: `newest` applies what waits first, `applied` starts at once from
    /// what is applied, a number names a recovery point
    #[arg(long, value_name = "MOMENT", default_value = "newest", value_parser = parse_target)]
    to: FailoverTarget,
}

#[derive(Debug, clap::Args)]
pub struct EndArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

fn parse_target(text: &str) -> Result<FailoverTarget, &'static str> {
    match text {
        "newest" => Ok(FailoverTarget::Newest),
        "applied" => Ok(FailoverTarget::Applied),
        number => number
            .parse()
            .map(FailoverTarget::Point)
            .map_err(|_| "use newest, applied, or the sequence of a recovery point"),
    }
}

#[derive(Serialize)]
struct FailoverView {
    sequence: Sequence,
    lineage: Lineage,
    disks: Vec<DiskView>,
}

#[derive(Serialize)]
struct DiskView {
    disk: DiskId,
    size: u64,
    image: String,
    /// The value of QEMU's option -blockdev that opens the image.
    blockdev: serde_json::Value,
}

impl FailoverCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        match self {
            Self::Start(args) => start(&args, output),
            Self::Revert(args) => revert(&args, output),
            Self::Commit(args) => commit(&args, output),
            Self::Show(args) => show(&args, output),
        }
    }
}

fn start(args: &StartArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store failover start")?;
    let lineage = host::random_bytes().map_err(|source| Failure::System {
        what: "random bytes",
        source,
    })?;
    let progress = Progress::bytes("applied");
    let started = store.start_failover(
        args.to,
        LineageId::from_bytes(lineage),
        clock::wall(),
        &mut |bytes| progress.set(bytes),
    )?;
    drop(progress);
    output.print(&view(started), text)
}

fn show(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store failover show")?;
    let started = store
        .started_failover()
        .ok_or(StoreError::Refused(Refused::NotFailedOver {
            purpose: "show",
        }))?;
    output.print(&view(started), text)
}

fn view(started: StartedFailover) -> FailoverView {
    FailoverView {
        sequence: started.sequence,
        lineage: started.lineage,
        disks: started
            .disks
            .into_iter()
            .map(|disk| DiskView {
                blockdev: blockdev(&disk),
                disk: disk.id,
                size: disk.size.bytes(),
                image: shown(&disk.image),
            })
            .collect(),
    }
}

/// Every node with its driver and its file, down to the data file: QEMU probes nothing, and looks
/// nothing up in a folder of its own.
fn blockdev(disk: &StartedDisk) -> serde_json::Value {
    let file = |path: &Path| json!({ "driver": "file", "filename": shown(path) });
    let mut below = None;
    for image in disk.below.iter().rev() {
        let mut node = json!({ "driver": "qcow2", "read-only": true, "file": file(image) });
        node["file"]["read-only"] = true.into();
        match below {
            None => {
                node["data-file"] = file(&disk.head);
                node["data-file"]["read-only"] = true.into();
            }
            Some(backing) => node["backing"] = backing,
        }
        below = Some(node);
    }
    json!({
        "driver": "qcow2",
        "node-name": disk.id,
        "file": file(&disk.image),
        "backing": below,
    })
}

fn text(view: &FailoverView) -> String {
    let mut text = facts(&[
        ("started from", view.sequence.to_string()),
        (
            "lineage",
            format!("{} ({})", view.lineage.id, view.lineage.counter),
        ),
    ]);
    for disk in &view.disks {
        text.push_str(&format!(
            "\n{} {}\n  image: {}\n  QEMU:  -blockdev '{}'\n",
            disk.disk,
            Bytes(disk.size),
            disk.image,
            // So that a shell reads it as one word.
            disk.blockdev.to_string().replace('\'', r"'\''"),
        ));
    }
    text
}

#[derive(Serialize)]
struct RevertView {
    applied: Sequence,
    pending_deltas: usize,
}

fn revert(args: &EndArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store failover revert")?;
    if !args.yes && store.started_failover().is_some() {
        confirm("Everything the VM wrote since the failover will be lost.")?;
    }
    store.revert_failover()?;
    let view = RevertView {
        applied: store.applied(),
        pending_deltas: store.pending().len(),
    };
    output.print(&view, |view| {
        let (applied, pending) = (view.applied, view.pending_deltas);
        format!("reverted: a replica at moment {applied} again, {pending} deltas waiting\n")
    })
}

#[derive(Serialize)]
struct CommitView {
    sequence: Sequence,
    lineage: Lineage,
    points_removed: usize,
    written_bytes: u64,
    shared_bytes: u64,
    disks: Vec<CommittedDisk>,
}

#[derive(Serialize)]
struct CommittedDisk {
    disk: DiskId,
    size: u64,
    image: String,
    raw_image: String,
}

fn commit(args: &EndArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store failover commit")?;
    let started = store.started_failover();
    if !args.yes && started.is_some() {
        let points = store.points().len();
        confirm(&format!(
            "The failover will be kept for good, and {points} recovery points will go."
        ))?;
    }
    let progress = Progress::bytes("committed");
    let committed = store.commit(&mut |bytes| progress.set(bytes))?;
    drop(progress);
    store.empty_trash()?;
    let disks = started.into_iter().flat_map(|started| started.disks);
    let view = CommitView {
        sequence: committed.sequence,
        lineage: committed.lineage,
        points_removed: committed.points,
        written_bytes: committed.written_bytes,
        shared_bytes: committed.shared_bytes,
        disks: disks
            .filter_map(|disk| {
                Some(CommittedDisk {
                    image: shown(disk.below.last()?),
                    disk: disk.id,
                    size: disk.size.bytes(),
                    raw_image: shown(&disk.head),
                })
            })
            .collect(),
    };
    output.print(&view, commit_text)
}

fn commit_text(view: &CommitView) -> String {
    let mut text = format!(
        "committed: {} written, {} shared, {} recovery points removed\n",
        Bytes(view.written_bytes),
        Bytes(view.shared_bytes),
        view.points_removed,
    );
    for disk in &view.disks {
        let raw = &disk.raw_image;
        text.push_str(&format!("{}  the VM's disk is {raw} (raw)\n", disk.disk));
    }
    text
}
