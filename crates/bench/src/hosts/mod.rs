//! Two hosts on this machine: two daemons of the program as it is shipped, in processes of
//! their own, with certificates of their own and mutual TLS between them.
//!
//! The VMs are those of the embedded driver; a row is their guest, over NBD.

mod host;
mod line;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lifeboat_model::contract::ReplicationState;
use lifeboat_nbd::Client as NbdClient;
use lifeboat_rest::client::{Client, VmRequest};
use lifeboat_rest::wire::{
    DefineVm, DefineVmDisk, EnableReplication, InitiateFailover, SettingsChange, StartReplication,
    StopHow, StopVm,
};
use lifeboat_sys::clock::Stopwatch;

use crate::guest::{Change, Guest};
use crate::place::{self, Place};
use crate::rows::Setting;

pub use host::{Host, Used, free_port, operate};
pub use line::{Line, Relay};

/// The only disk of every VM.
pub const DISK: &str = "sda";

/// Which of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    Alpha,
    Beta,
}

impl Site {
    pub fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }
}

/// A VM that is to be protected.
#[derive(Debug, Clone)]
pub struct Plan {
    pub vm: String,
    /// Of its disk, in bytes.
    pub size: u64,
    /// An image that holds the disk already; a new one of zeroes unless given.
    pub image: Option<PathBuf>,
    pub settings: SettingsChange,
}

impl Plan {
    /// Defines the VM, starts it, and enables its replication to the host at an address.
    pub fn enable(&self, client: &Client, replica: &str) -> Result<()> {
        let vm = DefineVm {
            name: None,
            element_name: self.vm.clone(),
            memory_mib: 64,
            processors: 1,
            disks: vec![DefineVmDisk {
                disk: DISK.to_owned(),
                size: Some(self.size),
                image: self.image.as_ref().map(|path| path.display().to_string()),
            }],
        };
        client.define_vm(&vm).context("define a VM")?;
        operate(client, &self.vm, &VmRequest::Start)?;
        let enable = VmRequest::EnableReplication(EnableReplication {
            recovery_connection_point: replica.to_owned(),
            recovery_host_name: None,
            kept_replica: None,
            settings: self.settings.clone(),
        });
        operate(client, &self.vm, &enable)
    }
}

/// Starts the first copy of a VM, and returns when its job has ended.
pub fn start_replication(client: &Client, vm: &str) -> Result<()> {
    let start = VmRequest::StartReplication(StartReplication::default());
    operate(client, vm, &start)
}

/// Settings under which a cycle begins only when it is asked for, and nothing is compressed.
pub fn on_demand() -> SettingsChange {
    SettingsChange {
        replication_interval: Some(3600),
        compression_enabled: Some(false),
        ..SettingsChange::default()
    }
}

/// Both hosts. Their daemons are killed when this is dropped.
#[derive(Debug)]
pub struct Hosts {
    pub alpha: Host,
    pub beta: Host,
}

impl Hosts {
    /// Makes two hosts that trust each other and keep each other's replicas, in new folders of
    /// the row's place, and starts them.
    pub fn start(setting: &Setting, line: Line) -> Result<Self> {
        let make = |name, folder: &str| {
            let root = setting.place.join(folder);
            Host::make(name, root, setting.program.clone(), line)
        };
        let mut hosts = Self {
            alpha: make("alpha.test", "alpha")?,
            beta: make("beta.test", "beta")?,
        };
        hosts.alpha.trust(&hosts.beta)?;
        hosts.beta.trust(&hosts.alpha)?;
        hosts.alpha.start()?;
        hosts.beta.start()?;
        hosts.alpha.receive_from(&hosts.beta)?;
        hosts.beta.receive_from(&hosts.alpha)?;
        Ok(hosts)
    }

    /// Ends both daemons and removes what they made.
    pub fn end(self, place: &Place) -> Result<()> {
        drop(self);
        place::remove_tree(&place.join("alpha"))?;
        place::remove_tree(&place.join("beta"))
    }

    pub fn host(&mut self, site: Site) -> &mut Host {
        match site {
            Site::Alpha => &mut self.alpha,
            Site::Beta => &mut self.beta,
        }
    }

    /// Defines the VM at alpha, starts it, and enables its replication to beta.
    pub fn enable(&self, plan: &Plan) -> Result<()> {
        plan.enable(self.alpha.client(), self.beta.address())
    }

    /// Makes the first copy, and returns when all of it is durable at beta.
    pub fn copy(&mut self, vm: &str) -> Result<Duration> {
        let watch = Stopwatch::start();
        start_replication(self.alpha.client(), vm)?;
        self.alpha
            .wait_for_state(vm, ReplicationState::Replicating)?;
        Ok(watch.elapsed())
    }

    /// Defines, starts and copies the VM.
    pub fn protect(&mut self, plan: &Plan) -> Result<()> {
        self.enable(plan)?;
        self.copy(&plan.vm)?;
        self.wait_until_applied(Site::Beta, &plan.vm)
    }

    /// One cycle of the VM whose primary is alpha, from the wish to the receipt.
    pub fn cycle(&mut self, vm: &str) -> Result<Duration> {
        let known = self.alpha.last_moment(vm)?;
        let watch = Stopwatch::start();
        self.alpha.ask_for_cycle(vm)?;
        self.alpha.wait("a newer moment at the replica", |host| {
            Ok((host.last_moment(vm)? > known).then_some(()))
        })?;
        Ok(watch.elapsed())
    }

    /// Waits until the replica at `site` has applied all that it received.
    pub fn wait_until_applied(&mut self, site: Site, vm: &str) -> Result<()> {
        self.host(site).wait("an empty backlog", |host| {
            Ok((host.backlog(vm)? == 0).then_some(()))
        })
    }

    /// What has passed between the hosts in both directions, in bytes.
    pub fn bytes(&self) -> u64 {
        self.alpha.bytes() + self.beta.bytes()
    }

    /// What both daemons have used of the processors.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(self.alpha.used()?.cpu + self.beta.used()?.cpu)
    }

    /// Moves the VM from `site` to the other host as planned, and starts it there.
    pub fn move_as_planned(&mut self, site: Site, vm: &str) -> Result<()> {
        let old = self.host(site);
        old.operate(vm, &shut_down())?;
        old.operate(vm, &VmRequest::PrepareFailover)?;
        self.host(site.other()).fail_over(vm)?;
        Ok(())
    }
}

impl Host {
    /// Fails over to the newest moment, starts the VM, and reads its disk. Tells how long that
    /// took from the first request on.
    pub fn fail_over(&self, vm: &str) -> Result<Duration> {
        let watch = Stopwatch::start();
        let initiate = VmRequest::InitiateFailover(InitiateFailover::default());
        self.operate(vm, &initiate)?;
        self.operate(vm, &VmRequest::Start)?;
        let client = self.disk(vm)?;
        client
            .read(0, &mut [0; 4096])
            .context("read the disk of a failed-over VM")?;
        Ok(watch.elapsed())
    }

    /// Makes a failover final, the VM running.
    pub fn commit(&self, vm: &str) -> Result<()> {
        self.operate(vm, &VmRequest::CommitFailover)
    }

    /// Gives a failover up again.
    pub fn revert(&self, vm: &str) -> Result<()> {
        self.operate(vm, &shut_down())?;
        self.operate(vm, &VmRequest::RevertFailover)
    }
}

pub fn shut_down() -> VmRequest {
    VmRequest::Stop(StopVm {
        how: StopHow::ShutDown,
    })
}

/// Lets the guest make these changes on a disk that it uses over NBD, durably.
pub fn write(client: &NbdClient, guest: &mut Guest, changes: &[Change]) -> Result<()> {
    for &change in changes {
        write_one(client, guest, change)?;
    }
    client.flush().context("let the guest flush")
}

/// Lets the guest make one change on a disk that it uses over NBD.
pub fn write_one(client: &NbdClient, guest: &mut Guest, change: Change) -> Result<()> {
    match change {
        Change::Write { offset, len } => client.write(offset, &guest.bytes(len)),
        Change::Zero { offset, len } => client.write_zeroes(offset, len),
    }
    .context("let the guest write")
}
