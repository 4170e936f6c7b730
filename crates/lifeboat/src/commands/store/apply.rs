//! `lifeboat store apply`.

use std::path::PathBuf;

use lifeboat_model::contract::PointKind;
use lifeboat_model::{DeltaId, Sequence};
use lifeboat_store::{AppliedDelta, Store, StoreError};
use lifeboat_sys::clock;
use serde::Serialize;

use crate::commands::{open_store, time};
use crate::exit::Failure;
use crate::output::OutputFormat;
use crate::progress::Progress;
use crate::size::Bytes;

#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// The store's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// Which of the moments applied become recovery points
    #[arg(long, value_enum, default_value = "last", value_name = "WHICH")]
    point: PointPolicy,

    /// Remove the oldest recovery points beyond this number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=30))]
    keep_points: Option<u64>,

    /// Leave the newest segment open: quicker, but stock QEMU tools cannot open every point
    #[arg(long)]
    no_seal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PointPolicy {
    /// No recovery point is made
    None,
    /// The newest moment becomes one
    Last,
    /// Every moment becomes one
    Each,
}

#[derive(Serialize)]
struct ApplyView {
    applied: Vec<AppliedView>,
    points_made: Vec<Sequence>,
    points_removed: Vec<Sequence>,
    sealed: bool,
}

#[derive(Serialize)]
struct AppliedView {
    sequence: Sequence,
    id: DeltaId,
    creation_time: String,
    changed_bytes: u64,
}

impl ApplyView {
    fn has_changes(&self) -> bool {
        !(self.applied.is_empty() && self.points_made.is_empty() && self.points_removed.is_empty())
    }
}

/// Applies what was received, and keeps the recovery points as asked.
///
/// # Errors
/// Refused unless the store is a replica. What was applied before a failure stays applied.
pub fn run(args: &ApplyArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store apply")?;
    let mut view = ApplyView {
        applied: Vec::new(),
        points_made: Vec::new(),
        points_removed: Vec::new(),
        sealed: false,
    };
    let outcome = apply(&mut store, args, &mut view);
    let is_refused = matches!(outcome, Err(Failure::Store(StoreError::Refused(_))));
    if outcome.is_err() && !(is_refused && view.has_changes()) {
        return outcome;
    }
    if !args.no_seal {
        store.seal()?;
        view.sealed = true;
    }
    output.print(&view, text)?;
    outcome
}

fn apply(store: &mut Store, args: &ApplyArgs, view: &mut ApplyView) -> Result<(), Failure> {
    // First of all: a store that is full of points has no room to apply anything.
    trim(store, args.keep_points, view)?;
    let progress = Progress::bytes("applied");
    let mut done = 0;
    while let Some(applied) = store.apply_next(&mut |bytes| progress.set(done + bytes))? {
        done += applied.changed_bytes;
        view.applied.push(applied_view(&applied));
        if args.point == PointPolicy::Each {
            make_point(store, args.keep_points, view)?;
        }
    }
    drop(progress);
    // Also for a moment that was applied earlier, by a run that did not get this far.
    if args.point != PointPolicy::None && store.applied() > Sequence::ZERO {
        make_point(store, args.keep_points, view)?;
    }
    Ok(())
}

fn applied_view(applied: &AppliedDelta) -> AppliedView {
    AppliedView {
        sequence: applied.sequence,
        id: applied.delta,
        creation_time: time(applied.captured_at),
        changed_bytes: applied.changed_bytes,
    }
}

/// Makes the newest moment a recovery point unless it is one; then points beyond the limit go.
fn make_point(store: &mut Store, keep: Option<u64>, view: &mut ApplyView) -> Result<(), Failure> {
    let is_point = |store: &Store| {
        let newest = store.points().last().map(|point| point.sequence);
        newest == Some(store.applied())
    };
    if !is_point(store) {
        view.points_made
            .push(store.make_point(clock::wall(), PointKind::Standard)?);
    }
    trim(store, keep, view)
}

/// Removes the oldest points beyond the limit.
fn trim(store: &mut Store, keep: Option<u64>, view: &mut ApplyView) -> Result<(), Failure> {
    let Some(keep) = keep else {
        return Ok(());
    };
    let points = store.points();
    let superfluous = points.len().saturating_sub(keep as usize);
    for point in &points[..superfluous] {
        store.remove_point(point.sequence)?;
        view.points_removed.push(point.sequence);
    }
    Ok(())
}

fn text(view: &ApplyView) -> String {
    let mut text = String::new();
    if view.applied.is_empty() {
        text.push_str("nothing was waiting to be applied\n");
    }
    for applied in &view.applied {
        let (sequence, bytes) = (applied.sequence, Bytes(applied.changed_bytes));
        text.push_str(&format!("applied {sequence}: {bytes} changed\n"));
    }
    for sequence in &view.points_made {
        text.push_str(&format!("recovery point {sequence} made\n"));
    }
    for sequence in &view.points_removed {
        text.push_str(&format!("recovery point {sequence} removed\n"));
    }
    text
}
