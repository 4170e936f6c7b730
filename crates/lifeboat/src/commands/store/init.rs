//! `lifeboat store init`.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat_model::{DiskId, DiskSize, LineageId, RelationshipId, VmId};
use lifeboat_store::{NewStore, Store};
use lifeboat_sys::disk::RealDisk;
use lifeboat_sys::host;
use serde::Serialize;

use crate::capture_state::CaptureState;
use crate::commands::{absolute, holder, shown};
use crate::exit::Failure;
use crate::new_file::refuse_existing;
use crate::output::{OutputFormat, facts};
use crate::size::{self, Bytes};

#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// The folder to make; one that exists must be empty
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// A disk of the VM and its size in bytes, or with the suffix K, M, G or T (powers of
    /// 1024); once for each disk
    #[arg(long = "disk", value_name = "NAME=SIZE", required = true, value_parser = parse_disk)]
    disks: Vec<(DiskId, DiskSize)>,

    /// The VM's id, 32 hexadecimal digits; random unless given
    #[arg(long, value_name = "ID")]
    vm: Option<VmId>,

    /// Write the state that `delta capture` needs on the primary to this new file
    #[arg(long, value_name = "FILE")]
    capture_state: Option<PathBuf>,
}

fn parse_disk(text: &str) -> Result<(DiskId, DiskSize), String> {
    let (name, size) = text
        .split_once('=')
        .ok_or("a disk is given as NAME=SIZE, such as sda=20G")?;
    let id = name
        .parse()
        .map_err(|error: lifeboat_model::InvalidDiskId| error.to_string())?;
    let size = DiskSize::try_from(size::parse(size)?).map_err(|error| error.to_string())?;
    Ok((id, size))
}

#[derive(Serialize)]
struct InitView {
    folder: String,
    vm: VmId,
    relationship: RelationshipId,
    lineage: LineageId,
    disks: Vec<DiskView>,
}

#[derive(Serialize)]
struct DiskView {
    disk: DiskId,
    size: u64,
}

/// Makes the store, then the state for the primary.
///
/// # Errors
/// Refused when the folder is not empty or the state's file exists.
pub fn run(args: &InitArgs, output: OutputFormat) -> Result<(), Failure> {
    refuse_repeated(&args.disks)?;
    if let Some(path) = &args.capture_state {
        refuse_existing(path)?;
    }
    let folder = absolute(&args.folder)?;
    let new = NewStore {
        vm: match args.vm {
            Some(vm) => vm,
            None => VmId::from_bytes(random()?),
        },
        relationship: RelationshipId::from_bytes(random()?),
        lineage: LineageId::from_bytes(random()?),
        disks: args.disks.clone(),
    };
    Store::init(Arc::new(RealDisk), &folder, &new, &holder("store init"))?;
    if let Some(path) = &args.capture_state {
        let disks = new.disks.iter().map(|(id, _)| id.clone()).collect();
        CaptureState::new(new.relationship, new.lineage, disks).create(path)?;
    }
    let view = InitView {
        folder: shown(&folder),
        vm: new.vm,
        relationship: new.relationship,
        lineage: new.lineage,
        disks: new
            .disks
            .into_iter()
            .map(|(disk, size)| DiskView {
                disk,
                size: size.bytes(),
            })
            .collect(),
    };
    output.print(&view, text)
}

fn text(view: &InitView) -> String {
    let disks: Vec<String> = view
        .disks
        .iter()
        .map(|disk| format!("{} {}", disk.disk, Bytes(disk.size)))
        .collect();
    facts(&[
        ("store", view.folder.clone()),
        ("vm", view.vm.to_string()),
        ("relationship", view.relationship.to_string()),
        ("lineage", view.lineage.to_string()),
        ("disks", disks.join(", ")),
    ])
}

fn refuse_repeated(disks: &[(DiskId, DiskSize)]) -> Result<(), Failure> {
    let mut names: Vec<&DiskId> = disks.iter().map(|(id, _)| id).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Failure::Usage {
            what: format!("the disk {} is given twice", pair[0]),
        }),
        None => Ok(()),
    }
}

fn random() -> Result<[u8; 16], Failure> {
    host::random_bytes().map_err(|source| Failure::System {
        what: "random bytes",
        source,
    })
}
