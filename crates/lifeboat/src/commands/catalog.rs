//! `lifeboat catalog`: a lost catalog made again from the stores.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use lifeboat_catalog::{BackupError, Catalog, Draft, OnMissing, OpenError};
use lifeboat_model::{HostName, RelationshipId, VmId};
use lifeboat_peer::PeerAddress;
use lifeboat_service::{
    LeftOut, OtherSide, Rebuild, RebuildError, Rebuilt, RebuiltPeer, RebuiltVm,
};
use lifeboat_sys::clock;
use lifeboat_sys::disk::RealDisk;
use serde::Serialize;

use super::{holder, shown};
use crate::daemon::{Config, DEFAULT_CONFIG};
use crate::exit::{Exit, Failure, of_io};
use crate::output::{OutputFormat, Table, printable};

#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Make the catalog of this host again from the stores that it has
    ///
    /// For a host whose catalog is lost and that has no backup. The daemon must not run. Each store
    /// says which VM it is of, how far it is and who its other host is; what no store says is
    /// assumed, and printed. Whom this host lets in, jobs, statistics and events are not in any
    /// store. VMs with disks of their own are defined again with `lifeboat vm define --id ID`.
    Rebuild(RebuildArgs),
}

#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// The host's configuration
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,

    /// A folder in which replicas are kept, or that of one store; may be given again
    #[arg(long, required = true, value_name = "DIR")]
    storage: Vec<PathBuf>,

    /// Add to the catalog that is there what it does not know, such as after an old backup
    #[arg(long)]
    add: bool,

    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,

    /// The other host of stores that do not name theirs, as its certificate does
    #[arg(long, value_name = "NAME", requires_all = ["peer_address", "trust_group"])]
    peer_host: Option<HostName>,

    /// Where that host answers
    #[arg(long, value_name = "NAME:PORT", requires = "peer_host")]
    peer_address: Option<PeerAddress>,

    /// The trust group of that host's authorization entry here
    #[arg(long, value_name = "NAME", requires = "peer_host")]
    trust_group: Option<String>,
}

/// Why no catalog was made.
#[derive(Debug, thiserror::Error)]
pub enum CatalogFailure {
    #[error("make the catalog again")]
    Open { source: OpenError },

    #[error("make the catalog again")]
    Rebuild { source: RebuildError },

    #[error("make the catalog again")]
    Finish { source: BackupError },

    #[error("there is no store that can be used in {folders}; no catalog was made")]
    NoStores { folders: String },
}

impl CatalogFailure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Open { source } => match source {
                OpenError::Exists { .. } => Exit::Refused,
                OpenError::Missing { .. } => Exit::NotFound,
                OpenError::InUse { .. } => Exit::Unavailable,
                OpenError::Io { source, .. } => of_io(source),
                OpenError::NotACatalog { .. }
                | OpenError::TooNew { .. }
                | OpenError::Damaged { .. }
                | OpenError::CopyBeforeMigration { .. }
                | OpenError::Migrate { .. }
                | OpenError::NoLog { .. }
                | OpenError::Database { .. } => Exit::Failed,
            },
            Self::Rebuild { source } => match source {
                RebuildError::Storage { source, .. } => of_io(source),
                RebuildError::Settings { .. }
                | RebuildError::Read { .. }
                | RebuildError::Write { .. } => Exit::Failed,
            },
            Self::Finish { .. } => Exit::Failed,
            Self::NoStores { .. } => Exit::NotFound,
        }
    }

    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open { source } => match source {
                OpenError::Exists { .. } => Some(
                    "give --add to add what it does not know, or move it and the files beside it away if it is not to be used",
                ),
                OpenError::Missing { .. }
                | OpenError::InUse { .. }
                | OpenError::NotACatalog { .. }
                | OpenError::TooNew { .. }
                | OpenError::Damaged { .. }
                | OpenError::CopyBeforeMigration { .. }
                | OpenError::Migrate { .. }
                | OpenError::NoLog { .. }
                | OpenError::Io { .. }
                | OpenError::Database { .. } => None,
            },
            Self::Rebuild { .. } | Self::Finish { .. } => None,
            Self::NoStores { .. } => Some(
                "check that their file systems are mounted, and name the folders that authorization entries have as storage",
            ),
        }
    }
}

impl CatalogCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        match self {
            Self::Rebuild(args) => rebuild(&args, output),
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Made,
    Added,
    /// It was only looked.
    WouldBeMade,
    WouldBeAdded,
}

#[derive(Debug, Serialize)]
struct View {
    outcome: Outcome,
    catalog: PathBuf,
    vms: Vec<VmView>,
    left_out: Vec<LeftOutView>,
    /// What no store knows, as commands to type.
    next: Vec<String>,
}

#[derive(Debug, Serialize)]
struct VmView {
    vm: VmId,
    name: String,
    folder: String,
    relationship: Option<RelationshipId>,
    replication_state: Option<String>,
    peer_host: Option<String>,
    peer_address: Option<String>,
    trust_group: Option<String>,
    points: usize,
    assumed: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LeftOutView {
    path: String,
    why: String,
}

/// A crash leaves no catalog, or with `--add` the one before; or the new one, whole.
fn rebuild(args: &RebuildArgs, output: OutputFormat) -> Result<(), Failure> {
    let config = Config::read(&args.config).map_err(|source| Failure::Daemon {
        source: Box::new(source),
    })?;
    let path = config.catalog();
    let from = Rebuild {
        disk: Arc::new(RealDisk),
        storage: args.storage.clone(),
        own_address: config.peer.address.parse().map_err(
            |error: lifeboat_peer::InvalidPeerAddress| Failure::Usage {
                what: error.to_string(),
            },
        )?,
        other_side: other_side(args),
        holder: holder("catalog rebuild"),
    };
    let (outcome, rebuilt) = if args.add {
        let catalog = Catalog::open(&path, OnMissing::Refuse).map_err(open_failure)?;
        add(&from, &catalog, args.dry_run)?
    } else if args.dry_run {
        refuse_existing(&path)?;
        let rebuilt = from.look(None, clock::wall()).map_err(rebuild_failure)?;
        (Outcome::WouldBeMade, rebuilt)
    } else {
        make(&from, &path)?
    };
    let none = rebuilt.vms.is_empty() && !args.add;
    let view = View {
        outcome,
        next: next_steps(&rebuilt.vms),
        vms: rebuilt.vms.into_iter().map(VmView::of).collect(),
        left_out: rebuilt.left_out.into_iter().map(LeftOutView::of).collect(),
        catalog: path,
    };
    if none {
        if !view.left_out.is_empty() {
            output.print(&view, |view| left_out_text(&view.left_out))?;
        }
        let folders: Vec<String> = args.storage.iter().map(|folder| shown(folder)).collect();
        let folders = folders.join(", ");
        return Err(CatalogFailure::NoStores { folders }.into());
    }
    output.print(&view, describe)
}

fn add(
    from: &Rebuild,
    catalog: &Catalog,
    dry_run: bool,
) -> Result<(Outcome, Rebuilt), CatalogFailure> {
    let now = clock::wall();
    if dry_run {
        let rebuilt = from.look(Some(catalog), now).map_err(rebuild_failure)?;
        return Ok((Outcome::WouldBeAdded, rebuilt));
    }
    let rebuilt = from.run(catalog, now).map_err(rebuild_failure)?;
    Ok((Outcome::Added, rebuilt))
}

/// Without a store there is no catalog either: its file system may not be mounted.
fn make(from: &Rebuild, path: &Path) -> Result<(Outcome, Rebuilt), CatalogFailure> {
    let draft = Draft::new(path).map_err(open_failure)?;
    let rebuilt = from.run(&draft, clock::wall()).map_err(rebuild_failure)?;
    if !rebuilt.vms.is_empty() {
        draft
            .finish()
            .map_err(|source| CatalogFailure::Finish { source })?;
    }
    Ok((Outcome::Made, rebuilt))
}

/// As the draft does it, without leaving anything.
fn refuse_existing(path: &Path) -> Result<(), CatalogFailure> {
    let path = path.to_owned();
    let source = match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(_) => OpenError::Exists { path },
        Err(source) => OpenError::Io {
            doing: "look at",
            path,
            source,
        },
    };
    Err(open_failure(source))
}

fn other_side(args: &RebuildArgs) -> Option<OtherSide> {
    Some(OtherSide {
        host: args.peer_host.clone()?,
        address: args.peer_address.clone()?,
        trust_group: args.trust_group.clone()?,
    })
}

fn open_failure(source: OpenError) -> CatalogFailure {
    CatalogFailure::Open { source }
}

fn rebuild_failure(source: RebuildError) -> CatalogFailure {
    CatalogFailure::Rebuild { source }
}

/// The commands that let the other hosts in again.
fn next_steps(vms: &[RebuiltVm]) -> Vec<String> {
    let mut entries = BTreeSet::new();
    for vm in vms {
        let Some(relationship) = &vm.relationship else {
            continue;
        };
        let storage = vm.folder.parent().unwrap_or(&vm.folder);
        if let Some(RebuiltPeer {
            host, trust_group, ..
        }) = &relationship.other_side
        {
            entries.insert(format!(
                "lifeboat authorization add {} --storage {} --trust-group {}",
                quoted(host),
                quoted(&shown(storage)),
                quoted(trust_group)
            ));
        }
    }
    if entries.is_empty() {
        return Vec::new();
    }
    let mut steps =
        vec!["lifeboat host settings --recovery-server on --authentication certificate".to_owned()];
    steps.extend(entries);
    steps
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

impl VmView {
    fn of(vm: RebuiltVm) -> Self {
        let other_side = vm
            .relationship
            .as_ref()
            .and_then(|relationship| relationship.other_side.clone());
        Self {
            vm: vm.vm,
            name: vm.name,
            folder: shown(&vm.folder),
            relationship: vm.relationship.as_ref().map(|relationship| relationship.id),
            replication_state: vm
                .relationship
                .as_ref()
                .map(|relationship| format!("{} ({})", relationship.state, relationship.mode)),
            peer_host: other_side.as_ref().map(|side| side.host.clone()),
            peer_address: other_side.as_ref().map(|side| side.address.clone()),
            trust_group: other_side.map(|side| side.trust_group),
            points: vm.points,
            assumed: vm.assumed,
        }
    }
}

impl LeftOutView {
    fn of(left_out: LeftOut) -> Self {
        Self {
            path: shown(&left_out.path),
            why: left_out.why,
        }
    }
}

fn describe(view: &View) -> String {
    let mut text = String::new();
    if !view.vms.is_empty() {
        let mut table = Table::new(&["NAME", "STATE", "POINTS", "OTHER HOST", "FOLDER"]);
        for vm in &view.vms {
            let or = |text: &Option<String>, none: &str| text.clone().unwrap_or(none.to_owned());
            let other = match vm.relationship {
                Some(_) => or(&vm.peer_host, "not known"),
                None => "-".to_owned(),
            };
            table.row([
                vm.name.clone(),
                or(&vm.replication_state, "not replicated"),
                vm.points.to_string(),
                other,
                vm.folder.clone(),
            ]);
        }
        text.push_str(&table.render());
        text.push('\n');
    }
    for vm in &view.vms {
        for assumed in &vm.assumed {
            text.push_str(&printable(&format!("{}: {assumed}", vm.name)));
            text.push('\n');
        }
    }
    text.push_str(&left_out_text(&view.left_out));
    let (count, catalog) = (view.vms.len(), view.catalog.display());
    text.push_str(&match view.outcome {
        Outcome::Made => {
            format!("the catalog {catalog} was made, VMs: {count}; none of them is started\n")
        }
        Outcome::Added => {
            format!("added to the catalog {catalog}, VMs: {count}; none of them is started\n")
        }
        Outcome::WouldBeMade => {
            format!("nothing was changed; the catalog {catalog} would be made, VMs: {count}\n")
        }
        Outcome::WouldBeAdded => {
            format!("nothing was changed; would be added to the catalog {catalog}, VMs: {count}\n")
        }
    });
    if !view.next.is_empty() {
        text.push_str("\nWhom this host lets in is in no store; start the daemon, then:\n");
        for step in &view.next {
            text.push_str(&format!("  {}\n", printable(step)));
        }
    }
    text
}

fn left_out_text(left_out: &[LeftOutView]) -> String {
    let line = |one: &LeftOutView| {
        let line = format!("left out: {}: {}", one.path, one.why);
        printable(&line) + "\n"
    };
    left_out.iter().map(line).collect()
}
