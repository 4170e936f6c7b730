//! `lifeboat store status` and `lifeboat store rescan`.

use lifeboat_model::{DeltaId, DiskId, Lineage, RelationshipId, Sequence, VmId};
use lifeboat_store::{Pending, Role, Status, Store};
use serde::Serialize;

use super::StoreArgs;
use super::point::{PointView, point_table};
use crate::commands::{absolute, open_store, shown, time};
use crate::exit::Failure;
use crate::output::{OutputFormat, Table, facts, yes_no};
use crate::size::Bytes;

#[derive(Serialize)]
struct StatusView {
    vm: VmId,
    relationship: RelationshipId,
    lineage: Lineage,
    role: &'static str,
    /// The newest moment that the disks hold; zero before the first.
    applied: Sequence,
    /// The newest moment received.
    received: Sequence,
    applying: bool,
    disks: Vec<DiskView>,
    points: Vec<PointView>,
    pending: Vec<PendingView>,
    segments: usize,
    reserved_bytes: u64,
    available_bytes: u64,
}

#[derive(Serialize)]
struct DiskView {
    disk: DiskId,
    size: u64,
    head_bytes: u64,
    segment_bytes: u64,
}

#[derive(Serialize)]
pub(super) struct PendingView {
    sequence: Sequence,
    id: DeltaId,
    creation_time: String,
    bytes: u64,
}

impl PendingView {
    pub(super) fn new(pending: &Pending) -> Self {
        Self {
            sequence: pending.sequence,
            id: pending.delta,
            creation_time: time(pending.captured_at),
            bytes: pending.bytes,
        }
    }
}

impl StatusView {
    fn of(store: &Store) -> Result<Self, Failure> {
        let status: Status = store.status()?;
        let disks = status.disks.into_iter().map(|disk| DiskView {
            disk: disk.id,
            size: disk.size.bytes(),
            head_bytes: disk.head_bytes,
            segment_bytes: disk.segment_bytes,
        });
        Ok(Self {
            vm: status.vm,
            relationship: status.relationship,
            lineage: status.lineage,
            role: role(status.role),
            applied: status.applied,
            received: status.tip,
            applying: status.applying,
            disks: disks.collect(),
            points: status.points.iter().map(PointView::new).collect(),
            pending: status.pending.iter().map(PendingView::new).collect(),
            segments: status.segments,
            reserved_bytes: status.reserved_bytes,
            available_bytes: status.available_bytes,
        })
    }
}

/// What the store is for, in one word.
pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Replica => "replica",
        Role::FailedOver => "failed_over",
        Role::Committed => "committed",
    }
}

/// Prints what the store holds.
///
/// # Errors
/// When the store cannot be opened.
pub fn run(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store status")?;
    output.print(&StatusView::of(&store)?, text)
}

fn text(view: &StatusView) -> String {
    let mut text = facts(&[
        ("vm", view.vm.to_string()),
        ("relationship", view.relationship.to_string()),
        (
            "lineage",
            format!("{} ({})", view.lineage.id, view.lineage.counter),
        ),
        ("role", view.role.replace('_', " ")),
        ("received", view.received.to_string()),
        ("applied", view.applied.to_string()),
        ("half applied", yes_no(view.applying).to_owned()),
        ("segments", view.segments.to_string()),
        ("reserved", Bytes(view.reserved_bytes).to_string()),
        ("available", Bytes(view.available_bytes).to_string()),
    ]);
    let mut disks = Table::new(&["DISK", "SIZE", "NEWEST STATE", "RECOVERY POINTS"]);
    for disk in &view.disks {
        disks.row([
            disk.disk.to_string(),
            Bytes(disk.size).to_string(),
            Bytes(disk.head_bytes).to_string(),
            Bytes(disk.segment_bytes).to_string(),
        ]);
    }
    text.push_str(&format!("\n{}", disks.render()));
    if !view.points.is_empty() {
        text.push_str(&format!("\n{}", point_table(&view.points)));
    }
    if !view.pending.is_empty() {
        let mut pending = Table::new(&["WAITING", "TAKEN", "DELTA"]);
        for delta in &view.pending {
            pending.row([
                delta.sequence.to_string(),
                delta.creation_time.clone(),
                Bytes(delta.bytes).to_string(),
            ]);
        }
        text.push_str(&format!("\n{}", pending.render()));
    }
    text
}

#[derive(Serialize)]
struct RescanView {
    folder: String,
    images_made: usize,
    manifests_made: usize,
    status: StatusView,
}

/// Brings the store into order and prints what is there.
///
/// # Errors
/// Refused while a failed-over VM runs on the store's images.
pub fn rescan(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let mut store = open_store(&args.folder, "store rescan")?;
    let rescanned = store.rescan()?;
    let view = RescanView {
        folder: shown(&absolute(&args.folder)?),
        images_made: rescanned.images_made,
        manifests_made: rescanned.manifests_made,
        status: StatusView::of(&store)?,
    };
    output.print(&view, |view| {
        let done = facts(&[
            ("store", view.folder.clone()),
            ("images made anew", view.images_made.to_string()),
            ("descriptions made anew", view.manifests_made.to_string()),
        ]);
        format!("{done}\n{}", text(&view.status))
    })
}
