//! One host: a daemon of the real program, in a network of its own where there is one.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lifeboat_nbd::{Client as NbdClient, ClientOptions};
use lifeboat_rest::client::{Client, HostAddress, VmRequest};
use lifeboat_rest::wire::{AuthorizationEntry, Relationship, ServiceSettingsChange, Vm};

use crate::relay::Relay;
use crate::space::Space;

/// Between two looks, unless bytes pass sooner.
const WAIT: Duration = Duration::from_millis(50);

/// A goal that is not reached after so many looks never will be.
const LOOKS: u32 = 20_000;

pub struct Host {
    pub name: &'static str,
    root: PathBuf,
    pub space: Option<Space>,
    pub relay: Relay,
    pub client: Client,
    daemon: Option<Child>,
}

impl Host {
    pub fn new(
        name: &'static str,
        folder: &Path,
        space: Option<Space>,
        other: Option<Ipv4Addr>,
    ) -> Self {
        let root = folder.join(name);
        let here = |address: Option<Ipv4Addr>| IpAddr::V4(address.unwrap_or(Ipv4Addr::LOCALHOST));
        // It is found at the end of the other host's cable.
        let relay = Relay::start(here(other)).unwrap();
        let listen = format!("{}:0", here(space.as_ref().map(|space| space.far)));
        run(&[
            "init",
            "--root",
            text(&root),
            "--name",
            name,
            "--listen",
            &listen,
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
        }
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

    /// Starts the daemon, and lets the other host in.
    pub fn start(&mut self, other: &'static str) {
        let program = Path::new(env!("CARGO_BIN_EXE_lifeboat"));
        let mut command = match &self.space {
            Some(space) => space.command(program),
            None => Command::new(program),
        };
        let log = File::create(self.log()).unwrap();
        let daemon = command
            .args(["serve", "--config", text(&self.config())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.daemon = Some(daemon.unwrap());
        self.wait("it answers", |host| host.client.host().is_ok());
        let listeners = self.client.host().unwrap().value.listeners;
        let peers = listeners.iter().find(|one| one.what == "peers").unwrap();
        self.relay.lead_to(peers.address.parse().unwrap());
        let change = ServiceSettingsChange {
            recovery_server_enabled: Some(true),
            allowed_authentication_type: Some(2),
            ..ServiceSettingsChange::default()
        };
        self.client.modify_host_settings(&change).unwrap();
        let entry = AuthorizationEntry {
            allowed_primary_host_system: other.to_owned(),
            trust_group: "pair".to_owned(),
            replica_storage_location: self.root.join("replicas").display().to_string(),
            retention_floor_points: 0,
            retention_floor_hours: 0,
        };
        self.client.add_authorization_entry(&entry).unwrap();
    }

    /// The daemon is killed and the catalog is lost; a rebuild finds one VM in the stores.
    pub fn lose_catalog(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
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

    /// Looks until something is so.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..LOOKS {
            if done(self) {
                return;
            }
            let ended = self.daemon.as_mut().map(Child::try_wait);
            assert!(
                matches!(ended, Some(Ok(None)) | None),
                "{} ended: {}",
                self.name,
                self.said()
            );
            self.relay.wait(WAIT);
        }
        panic!("{}: waited in vain: {what}\n{}", self.name, self.said());
    }

    /// Its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub fn request(&self, vm: &str, request: &VmRequest) {
        self.client.request(vm, request).unwrap();
    }

    pub fn vm(&self, vm: &str) -> Vm {
        self.client.vm(vm).unwrap().value
    }

    pub fn relationship(&self, vm: &str) -> Relationship {
        self.vm(vm).relationships.remove(0)
    }

    /// The only disk of a running VM.
    pub fn disk(&self, vm: &str) -> NbdClient {
        let uri = self.vm(vm).disks[0].uri.clone().unwrap();
        NbdClient::connect(&uri.parse().unwrap(), &ClientOptions::default()).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Fails only when it has ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
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
