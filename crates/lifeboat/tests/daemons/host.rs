//! One host: a daemon of the real program, in a network of its own where there is one.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lifeboat_nbd::{Client as NbdClient, ClientOptions};
use lifeboat_rest::client::{Answer, Client, ClientError, HostAddress, VmRequest};
use lifeboat_rest::wire::{AuthorizationEntry, DefineVm, DefineVmDisk, ServiceSettingsChange, Vm};

use crate::relay::{Quality, Relay};
use crate::space::Space;
use crate::tracer::Followed;

/// Between two looks, unless bytes pass sooner.
const WAIT: Duration = Duration::from_millis(20);

/// A goal that is not reached after so many looks never will be.
pub const LOOKS: u32 = 10_000;

pub struct Host {
    pub name: &'static str,
    root: PathBuf,
    pub space: Option<Space>,
    pub relay: Relay,
    pub client: Client,
    daemon: Option<Daemon>,
    follows: bool,
}

enum Daemon {
    Child(Child),
    Followed(Followed),
}

impl Host {
    /// A host that is found behind a relay, at an address where the other host can reach it.
    pub fn new(
        name: &'static str,
        folder: &Path,
        space: Option<Space>,
        reached_at: IpAddr,
        quality: Quality,
    ) -> Self {
        let root = folder.join(name);
        let relay = Relay::start(reached_at, quality).unwrap();
        let here = space
            .as_ref()
            .map_or(std::net::Ipv4Addr::LOCALHOST, |space| space.far);
        run(&[
            "init",
            "--root",
            text(&root),
            "--name",
            name,
            "--listen",
            &format!("{here}:0"),
            "--address",
            &relay.address.to_string(),
        ]);
        let socket = HostAddress::Unix(root.join("run/lifeboat.sock"));
        Self {
            name,
            root,
            space,
            relay,
            client: Client::new(socket, None).unwrap(),
            daemon: None,
            follows: false,
        }
    }

    /// From its next start on the daemon is followed from call to call.
    pub fn follow(&mut self) {
        self.follows = true;
    }

    fn config(&self) -> PathBuf {
        self.root.join("lifeboat.toml")
    }

    /// Trusts what the other host's authority says about hosts.
    pub fn trust(&self, other: &Self) {
        let theirs = other.config();
        let file = self.root.join("trusted.pem");
        let certificate = run(&["certificate", "authority", "--config", text(&theirs)]);
        std::fs::write(&file, certificate).unwrap();
        let shown = run(&[
            "--output",
            "json",
            "certificate",
            "show",
            "--config",
            text(&theirs),
        ]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        run(&[
            "certificate",
            "trust",
            "--config",
            text(&self.config()),
            "--fingerprint",
            shown["authority"]["fingerprint"].as_str().unwrap(),
            text(&file),
        ]);
    }

    /// Starts the daemon, which answers when this returns.
    pub fn start(&mut self) {
        self.launch();
        assert!(self.comes_up(), "{} ended: {}", self.name, self.said());
    }

    /// Starts the daemon, which has done nothing yet.
    pub fn launch(&mut self) {
        // One that still runs is killed.
        self.daemon = None;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        self.daemon = Some(self.daemon(log));
    }

    /// Whether the daemon answers before it ends. From then on its peer finds it.
    pub fn comes_up(&mut self) -> bool {
        for _ in 0..LOOKS {
            if let Some(host) = self.ask(Client::host) {
                let peers = host.listeners.iter().find(|one| one.what == "peers");
                self.relay.lead_to(peers.unwrap().address.parse().unwrap());
                return true;
            }
            if self.has_ended() {
                return false;
            }
            self.rest();
        }
        panic!("{} neither answers nor ends: {}", self.name, self.said());
    }

    fn daemon(&self, log: File) -> Daemon {
        let program = Path::new(env!("CARGO_BIN_EXE_lifeboat"));
        let config = self.config();
        let arguments = ["serve", "--config", text(&config)];
        if self.follows {
            return Daemon::Followed(Followed::start(program, &arguments, log).unwrap());
        }
        let mut command = match &self.space {
            Some(space) => space.command(program),
            None => Command::new(program),
        };
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Daemon::Child(child.unwrap())
    }

    /// Lets the other host in.
    pub fn let_in(&self, other: &Self) {
        let change = ServiceSettingsChange {
            recovery_server_enabled: Some(true),
            allowed_authentication_type: Some(2),
            ..ServiceSettingsChange::default()
        };
        self.client.modify_host_settings(&change).unwrap();
        let entry = AuthorizationEntry {
            allowed_primary_host_system: other.name.to_owned(),
            trust_group: "pair".to_owned(),
            replica_storage_location: self.root.join("replicas").display().to_string(),
            retention_floor_points: 0,
            retention_floor_hours: 0,
        };
        self.client.add_authorization_entry(&entry).unwrap();
    }

    /// The daemon is killed and the catalog is lost; a rebuild finds one VM in the stores.
    pub fn lose_catalog(&mut self) {
        self.daemon = None;
        for entry in std::fs::read_dir(self.root.join("state")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("catalog") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let made = run(&[
            "--output",
            "json",
            "catalog",
            "rebuild",
            "--config",
            text(&self.config()),
            "--storage",
            text(&self.root.join("replicas")),
        ]);
        let made: serde_json::Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made["vms"].as_array().unwrap().len(), 1, "{made}");
        assert_eq!(made["left_out"], serde_json::json!([]));
    }

    fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Removes the folder of a replica that nothing knows any more.
    pub fn remove_replica(&self, vm: &str) {
        std::fs::remove_dir_all(self.root.join("replicas").join(vm)).unwrap();
    }

    /// Whether the daemon was started and has ended since.
    pub fn has_ended(&mut self) -> bool {
        match &mut self.daemon {
            Some(Daemon::Child(child)) => child.try_wait().unwrap().is_some(),
            Some(Daemon::Followed(followed)) => followed.ended().is_some(),
            None => false,
        }
    }

    /// The daemon, if it is followed.
    pub fn followed(&self) -> Option<&Followed> {
        match &self.daemon {
            Some(Daemon::Followed(followed)) => Some(followed),
            Some(Daemon::Child(_)) | None => None,
        }
    }

    /// Looks until something is so.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..LOOKS {
            if done(self) {
                return;
            }
            assert!(!self.has_ended(), "{} ended: {}", self.name, self.said());
            self.rest();
        }
        panic!("{}: waited in vain: {what}\n{}", self.name, self.said());
    }

    /// Waits a little, and less when bytes pass.
    pub fn rest(&self) {
        self.relay.wait(WAIT);
    }

    /// Its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Makes a VM of one disk.
    pub fn define(&self, vm: &str, size: u64) {
        let vm = DefineVm {
            name: None,
            element_name: vm.to_owned(),
            memory_mib: 64,
            processors: 1,
            disks: vec![DefineVmDisk {
                disk: "vda".to_owned(),
                size: Some(size),
                image: None,
            }],
        };
        self.client.define_vm(&vm).unwrap();
    }

    pub fn request(&self, vm: &str, request: &VmRequest) {
        self.client.request(vm, request).unwrap();
    }

    pub fn vm(&self, vm: &str) -> Vm {
        self.client.vm(vm).unwrap().value
    }

    /// The answer, if there is a daemon that gives one.
    pub fn ask<T>(
        &self,
        question: impl FnOnce(&Client) -> Result<Answer<T>, ClientError>,
    ) -> Option<T> {
        question(&self.client).ok().map(|answer| answer.value)
    }

    /// The only disk of a running VM.
    pub fn disk(&self, vm: &str) -> NbdClient {
        let uri = self.vm(vm).disks[0].uri.clone().unwrap();
        NbdClient::connect(&uri.parse().unwrap(), &ClientOptions::default()).unwrap()
    }
}

impl Drop for Daemon {
    /// It is killed.
    fn drop(&mut self) {
        match self {
            Self::Child(child) => {
                // Fails only when it has ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
            Self::Followed(_) => {}
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command of the program, and answers what it printed.
fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
