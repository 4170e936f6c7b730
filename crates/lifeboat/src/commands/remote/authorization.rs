//! `lifeboat authorization`: who may replicate to the host.

use clap::Subcommand;
use lifeboat_rest::wire::AuthorizationEntry;

use super::Remote;
use crate::exit::Failure;
use crate::output::Table;

#[derive(Debug, Subcommand)]
pub enum AuthorizationCommand {
    /// List the entries
    List,

    /// Let more hosts replicate to this one
    Add(EntryArgs),

    /// Replace an entry; a new folder counts for replicas that are made later
    Modify(EntryArgs),

    /// Remove an entry; replicas that exist stay
    Remove(RemoveArgs),
}

#[derive(Debug, clap::Args)]
pub struct EntryArgs {
    /// Which hosts: a full name, `*.` and a domain, or `*`
    #[arg(value_name = "HOSTS")]
    hosts: String,

    /// Whoever has the same group may take over each other's VMs
    #[arg(long, value_name = "NAME")]
    trust_group: String,

    /// The folder on the host in which their replicas are kept
    #[arg(long, value_name = "DIR")]
    storage: String,

    /// Keep so many of the newest recovery points, whatever the primary asks for
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_points: u64,

    /// Keep recovery points for so many hours, whatever the primary asks for
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_hours: u64,
}

impl From<EntryArgs> for AuthorizationEntry {
    fn from(args: EntryArgs) -> Self {
        Self {
            allowed_primary_host_system: args.hosts,
            trust_group: args.trust_group,
            replica_storage_location: args.storage,
            retention_floor_points: args.keep_points,
            retention_floor_hours: args.keep_hours,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// Which hosts, as the entry says it
    #[arg(value_name = "HOSTS")]
    hosts: String,
}

impl AuthorizationCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::List => {
                let entries = remote.client.authorization_entries()?;
                remote.show(&entries, |entries| entries_text(entries))
            }
            Self::Add(args) => {
                remote.client.add_authorization_entry(&args.into())?;
                remote.done("entry added")
            }
            Self::Modify(args) => {
                remote.client.modify_authorization_entry(&args.into())?;
                remote.done("entry replaced")
            }
            Self::Remove(args) => {
                remote.client.remove_authorization_entry(&args.hosts)?;
                remote.done("entry removed")
            }
        }
    }
}

fn entries_text(entries: &[AuthorizationEntry]) -> String {
    if entries.is_empty() {
        return "nobody may replicate to this host\n".to_owned();
    }
    let mut table = Table::new(&["HOSTS", "TRUST GROUP", "STORAGE", "KEEPS AT LEAST"]);
    for entry in entries {
        table.row([
            entry.allowed_primary_host_system.clone(),
            entry.trust_group.clone(),
            entry.replica_storage_location.clone(),
            match (entry.retention_floor_points, entry.retention_floor_hours) {
                (0, 0) => "-".to_owned(),
                (points, hours) => format!("{points} points, {hours} h"),
            },
        ]);
    }
    table.render()
}
