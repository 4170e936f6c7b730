//! `lifeboat store point`: recovery points.

mod export;
mod serve;

use std::path::PathBuf;

use clap::Subcommand;
use lifeboat_model::{DeltaId, DiskId, Sequence};
use lifeboat_store::Point;
use serde::Serialize;

use super::{StoreArgs, VerificationView, verification_text};
use crate::commands::{consistency, open_store, shown, time};
use crate::exit::Failure;
use crate::output::{OutputFormat, Table, yes_no};
use crate::progress::Progress;
use crate::size::Bytes;

#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// List the recovery points, oldest first
    List(StoreArgs),

    /// Serve the disks of a recovery point over NBD, read-only, until told to stop
    ///
    /// Stops at SIGINT or SIGTERM. The store can be used by nobody else meanwhile.
    Serve(serve::ServeArgs),

    /// Copy one disk of a recovery point to a new raw image with holes
    ///
    /// For other formats, seal the store and use `qemu-img convert` on the image that `store
    /// point list --output json` names.
    Export(export::ExportArgs),

    /// Read what a recovery point is made of and compare it with its digests
    ///
    /// Exits with 1 if anything is not as it was written.
    Verify(PointArgs),

    /// Remove a recovery point
    Remove(PointArgs),
}

/// A command that needs nothing but a recovery point.
#[derive(Debug, clap::Args)]
pub struct PointArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// The recovery point
    #[arg(value_name = "SEQUENCE")]
    sequence: Sequence,
}

impl PointCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        match self {
            Self::List(args) => list(&args, output),
            Self::Serve(args) => serve::run(&args, output),
            Self::Export(args) => export::run(&args, output),
            Self::Verify(args) => verify(&args, output),
            Self::Remove(args) => remove(&args, output),
        }
    }
}

/// A recovery point as it is printed.
#[derive(Debug, Serialize)]
pub struct PointView {
    sequence: Sequence,
    id: DeltaId,
    creation_time: String,
    opened_time: String,
    consistency_level: &'static str,
    sealed: bool,
    disks: Vec<DiskView>,
}

#[derive(Debug, Serialize)]
struct DiskView {
    disk: DiskId,
    size: u64,
    image: String,
}

impl PointView {
    #[must_use]
    pub fn new(point: &Point) -> Self {
        let disks = point.disks.iter().map(|disk| DiskView {
            disk: disk.id.clone(),
            size: disk.size.bytes(),
            image: shown(&disk.image),
        });
        Self {
            sequence: point.sequence,
            id: point.delta,
            creation_time: time(point.captured_at),
            opened_time: time(point.opened_at),
            consistency_level: consistency(point.consistency),
            sealed: point.sealed,
            disks: disks.collect(),
        }
    }
}

/// Recovery points for people.
#[must_use]
pub fn point_table(points: &[PointView]) -> String {
    let mut table = Table::new(&["POINT", "TAKEN", "CONSISTENCY", "SEALED", "DISKS"]);
    for point in points {
        let disks: Vec<String> = point
            .disks
            .iter()
            .map(|disk| format!("{} {}", disk.disk, Bytes(disk.size)))
            .collect();
        table.row([
            point.sequence.to_string(),
            point.creation_time.clone(),
            point.consistency_level.to_owned(),
            yes_no(point.sealed).to_owned(),
            disks.join(", "),
        ]);
    }
    table.render()
}

fn list(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store point list")?;
    let points: Vec<PointView> = store.points().iter().map(PointView::new).collect();
    output.print(&points, |points| {
        if points.is_empty() {
            "there are no recovery points\n".to_owned()
        } else {
            point_table(points)
        }
    })
}

fn verify(args: &PointArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store point verify")?;
    let progress = Progress::bytes("verified");
    let verification = store.verify_point(args.sequence, &mut |bytes| progress.set(bytes))?;
    drop(progress);
    let view = VerificationView::new(verification);
    output.print(&view, verification_text)?;
    view.outcome()
}

#[derive(Serialize)]
struct RemoveView {
    sequence: Sequence,
    points: usize,
}

fn remove(args: &PointArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store point remove")?;
    store.remove_point(args.sequence)?;
    let view = RemoveView {
        sequence: args.sequence,
        points: store.points().len(),
    };
    output.print(&view, |view| {
        let (sequence, points) = (view.sequence, view.points);
        format!("recovery point {sequence} removed, {points} left\n")
    })
}
