//! `lifeboat vm`: VMs of the host.

use clap::Subcommand;
use lifeboat_model::VmId;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{DefineVm, DefineVmDisk, Relationship, StopHow, StopVm, Vm};

use super::settings::settings_text;
use super::{Remote, VmArgs, VmJobArgs, WaitArgs, or_dash, when_if};
use crate::exit::Failure;
use crate::output::{Table, facts, yes_no};
use crate::size::{self, Bytes};

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List the VMs, and how their replication is
    List,

    /// Show a VM with its disks and relationships
    Show(VmArgs),

    /// Make a VM of the embedded driver
    Define(DefineArgs),

    /// Forget a VM that is off and not replicated; its disks stay
    Undefine(VmArgs),

    /// Start a VM
    Start(VmJobArgs),

    /// Shut a VM down
    Stop(StopArgs),
}

#[derive(Debug, clap::Args)]
pub struct DefineArgs {
    /// What people call the VM
    #[arg(value_name = "NAME")]
    name: String,

    /// The id that it had on this host, or on the host of its replica, before a catalog was lost
    #[arg(long, value_name = "ID")]
    id: Option<VmId>,

    /// Its memory, in bytes or with a suffix such as 2G; a multiple of 1 MiB
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    memory: u32,

    /// How many processors it has
    #[arg(long, value_name = "N", default_value_t = 1)]
    processors: u32,

    /// A new disk of zeroes; may be given several times
    #[arg(long = "disk", value_name = "NAME=SIZE", value_parser = parse_disk)]
    disks: Vec<DefineVmDisk>,

    /// An existing raw image on the host, used in place; may be given several times
    #[arg(long = "image", value_name = "NAME=PATH", value_parser = parse_image)]
    images: Vec<DefineVmDisk>,
}

/// Memory in MiB.
fn parse_memory(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    let mebibytes = u32::try_from(bytes >> 20).ok();
    let whole = mebibytes.filter(|&mebibytes| mebibytes > 0 && bytes.is_multiple_of(1 << 20));
    whole.ok_or_else(|| "use a multiple of 1 MiB, such as 512M".to_owned())
}

fn parse_disk(text: &str) -> Result<DefineVmDisk, String> {
    let (disk, size) = text
        .split_once('=')
        .ok_or("use NAME=SIZE, such as vda=20G")?;
    Ok(DefineVmDisk {
        disk: disk.to_owned(),
        size: Some(size::parse(size)?),
        image: None,
    })
}

fn parse_image(text: &str) -> Result<DefineVmDisk, String> {
    let (disk, image) = text
        .split_once('=')
        .ok_or("use NAME=PATH, such as vda=/srv/vda.raw")?;
    Ok(DefineVmDisk {
        disk: disk.to_owned(),
        size: None,
        image: Some(image.to_owned()),
    })
}

#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// The VM: its name, or its id
    #[arg(value_name = "VM")]
    vm: String,

    /// Cut the power instead of shutting down
    #[arg(long)]
    power_off: bool,

    #[command(flatten)]
    wait: WaitArgs,
}

impl VmCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::List => remote.show(&remote.client.vms()?, |vms| list_text(vms)),
            Self::Show(args) => remote.show(&remote.client.vm(&args.vm)?, vm_text),
            Self::Define(args) => {
                let vm = remote.client.define_vm(&DefineVm {
                    name: args.id.map(|id| id.to_string()),
                    element_name: args.name,
                    memory_mib: args.memory,
                    processors: args.processors,
                    disks: args.disks.into_iter().chain(args.images).collect(),
                })?;
                remote.show(&vm, |vm| format!("{} is {}\n", vm.element_name, vm.name))
            }
            Self::Undefine(args) => {
                remote.client.undefine_vm(&args.vm)?;
                remote.done(&format!(
                    "{} is forgotten; its disks are where they were",
                    args.vm
                ))
            }
            Self::Start(args) => {
                remote.operate(&args.vm, &VmRequest::Start, args.wait, "VM started")
            }
            Self::Stop(args) => {
                let how = if args.power_off {
                    StopHow::PowerOff
                } else {
                    StopHow::ShutDown
                };
                let stop = VmRequest::Stop(StopVm { how });
                remote.operate(&args.vm, &stop, args.wait, "VM stopped")
            }
        }
    }
}

fn list_text(vms: &[Vm]) -> String {
    if vms.is_empty() {
        return "there are no VMs\n".to_owned();
    }
    let mut table = Table::new(&[
        "VM",
        "STATE",
        "MODE",
        "REPLICATION",
        "HEALTH",
        "LAST REPLICATED",
    ]);
    for vm in vms {
        let last = vm
            .relationships
            .iter()
            .find_map(|one| one.last_replication_time);
        table.row([
            vm.element_name.clone(),
            vm.enabled_state_text.clone(),
            vm.replication_mode_text.clone(),
            vm.replication_state_text.clone(),
            vm.replication_health_text.clone(),
            when_if(last),
        ]);
    }
    table.render()
}

fn vm_text(vm: &Vm) -> String {
    let mut about = vec![
        ("vm", vm.element_name.clone()),
        ("id", vm.name.clone()),
        ("driver", vm.driver.clone()),
        ("state", vm.enabled_state_text.clone()),
        ("replication", vm.replication_state_text.clone()),
        ("mode", vm.replication_mode_text.clone()),
        ("health", vm.replication_health_text.clone()),
        (
            "failed over from",
            vm.failed_over_replication_type_text.clone(),
        ),
    ];
    if let Some(test) = &vm.test_replica_system {
        about.push(("test failover's VM", test.clone()));
    }
    if let Some(of) = &vm.test_of {
        about.push(("test of", of.clone()));
    }
    let mut text = facts(&about);
    let mut disks = Table::new(&["DISK", "SIZE", "REPLICATED", "FILE", "URI"]);
    for disk in &vm.disks {
        disks.row([
            disk.disk.clone(),
            Bytes(disk.size).to_string(),
            yes_no(disk.replicated).to_owned(),
            disk.path.clone(),
            or_dash(disk.uri.as_ref()),
        ]);
    }
    text.push_str(&format!("\n{}", disks.render()));
    for relationship in &vm.relationships {
        text.push_str(&format!("\n{}", relationship_text(relationship)));
    }
    text
}

/// A relationship for people.
pub fn relationship_text(relationship: &Relationship) -> String {
    let last = match relationship.last_sequence {
        Some(sequence) => format!(
            "moment {sequence}, {}",
            when_if(relationship.last_replication_time)
        ),
        None => "never".to_owned(),
    };
    let mut about = vec![
        ("relationship", relationship.relationship_id.clone()),
        ("state", relationship.replication_state_text.clone()),
        ("health", relationship.replication_health_text.clone()),
        ("primary", relationship.primary_host_system.clone()),
        ("replica", relationship.recovery_host_system.clone()),
        ("last replicated", last),
        ("last applied", when_if(relationship.last_apply_time)),
        (
            "last application-consistent",
            when_if(relationship.last_application_consistent_replication_time),
        ),
        (
            "lineage",
            format!(
                "{} ({})",
                relationship.lineage.id, relationship.lineage.counter
            ),
        ),
    ];
    if let Some(location) = &relationship.replica_storage_location {
        about.push(("storage", location.clone()));
    }
    if let Some(group) = &relationship.trust_group {
        about.push(("trust group", group.clone()));
    }
    if let Some(activity) = &relationship.activity {
        let (done, total) = (Bytes(activity.done_bytes), Bytes(activity.total_bytes));
        about.push(("now", format!("{}, {done} of {total}", activity.what)));
    }
    format!(
        "{}\n{}",
        facts(&about),
        settings_text(&relationship.settings)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_mebibytes() {
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("2G"), Ok(2048));
        for text in ["0", "1", "1537K", "4T0", "8192T"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
    }
}
