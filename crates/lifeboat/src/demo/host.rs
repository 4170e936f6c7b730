//! One of the two hosts: a daemon of this very program in a process of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifeboat_nbd::{Client as NbdClient, ClientOptions, NbdUri};
use lifeboat_rest::client::{Client, ClientError, HostAddress, Outcome, VmRequest};
use lifeboat_rest::wire::{
    AuthorizationEntry, Event, Job, Relationship, ServiceSettingsChange, StopHow, StopVm, Vm,
};
use lifeboat_sys::clock::Stopwatch;
use serde_json::Value;

use super::error::DemoError;
use super::guest::DISKS;
use super::wire::Wire;
use crate::commands::remote::job::has_failed;

/// How long anything that the drill waits for may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often the drill looks.
const LOOK: Duration = Duration::from_millis(40);

/// The replicas of both hosts belong to one organization.
const TRUST_GROUP: &str = "drill";

/// Certificates prove who a host is (`AllowedAuthenticationType`).
const CERTIFICATE: u32 = 2;

/// A host of the drill. Its daemon is killed when this is dropped.
#[derive(Debug)]
pub struct Host {
    /// As its certificate says.
    pub name: &'static str,
    root: PathBuf,
    pub wire: Wire,
    client: Client,
    daemon: Option<Child>,
    interrupted: Arc<AtomicBool>,
}

impl Host {
    /// Makes a host in the new folder `root`, with an authority and a certificate of its own.
    ///
    /// # Errors
    /// When this program cannot be run or refuses.
    pub fn make(
        name: &'static str,
        root: PathBuf,
        interrupted: Arc<AtomicBool>,
    ) -> Result<Self, DemoError> {
        let wire = Wire::start()?;
        let address = wire.address().to_string();
        let folder = root.display().to_string();
        run(&[
            "init",
            "--root",
            &folder,
            "--name",
            name,
            "--listen",
            "127.0.0.1:0",
            "--address",
            &address,
        ])?;
        let socket = root.join("run/lifeboat.sock");
        let client = Client::new(HostAddress::Unix(socket), None);
        let client = client.map_err(|source| DemoError::Host {
            host: name,
            what: "answer",
            source: Box::new(source),
        })?;
        Ok(Self {
            name,
            root,
            wire,
            client,
            daemon: None,
            interrupted,
        })
    }

    /// Trusts what the other host's authority says about hosts.
    ///
    /// # Errors
    /// When this program cannot be run or refuses.
    pub fn trust(&self, other: &Self) -> Result<(), DemoError> {
        let config = |host: &Self| host.config().display().to_string();
        let (ours, theirs) = (config(self), config(other));
        let certificate = run(&["certificate", "authority", "--config", &theirs])?;
        let file = self.root.join("trusted.pem");
        std::fs::write(&file, certificate).map_err(|source| DemoError::File {
            what: "write",
            path: file.clone(),
            source,
        })?;
        let show = [
            "--output",
            "json",
            "certificate",
            "show",
            "--config",
            &theirs,
        ];
        let shown: Value =
            serde_json::from_str(&run(&show)?).map_err(|source| DemoError::Answer {
                command: show.join(" "),
                source,
            })?;
        let fingerprint = shown["authority"]["fingerprint"].as_str().unwrap_or("");
        let file = file.display().to_string();
        run(&[
            "certificate",
            "trust",
            "--config",
            &ours,
            "--fingerprint",
            fingerprint,
            &file,
        ])?;
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.root.join("lifeboat.toml")
    }

    fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Where the daemon keeps what it knows about changed blocks.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.root.join("state/maps")
    }

    /// Starts the daemon, and returns when it answers and can be found by the other host.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(&mut self) -> Result<(), DemoError> {
        let start = || -> std::io::Result<Child> {
            let log = File::options().create(true).append(true).open(self.log())?;
            Command::new(std::env::current_exe()?)
                .arg("serve")
                .arg("--config")
                .arg(self.config())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
        };
        let daemon = start().map_err(|source| DemoError::System {
            what: "another process",
            source,
        })?;
        self.daemon = Some(daemon);
        let host = self.wait("an answer of the daemon", |host| {
            host.refuse_if_ended()?;
            Ok(match host.client.host() {
                Ok(answer) => Seen::AsWanted(answer.value),
                Err(error) => Seen::NotYet(error.to_string()),
            })
        })?;
        let peers = host.listeners.iter().find(|one| one.what == "peers");
        let peers = peers.and_then(|one| one.address.parse().ok());
        self.wire
            .lead_to(peers.ok_or(DemoError::NoPeerAddress { host: self.name })?);
        Ok(())
    }

    fn refuse_if_ended(&mut self) -> Result<(), DemoError> {
        let ended = match &mut self.daemon {
            Some(daemon) => daemon.try_wait(),
            None => return Ok(()),
        };
        let ended = ended.map_err(|source| DemoError::System {
            what: "the daemon's state",
            source,
        })?;
        match ended {
            None => Ok(()),
            Some(status) => Err(DemoError::DaemonEnded {
                host: self.name,
                status,
                said: last_lines(&self.log()),
            }),
        }
    }

    /// Kills the daemon with the signal that cannot be caught.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Fails only when it has ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Lets the host `other` keep replicas here.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn receive_from(&self, other: &'static str) -> Result<(), DemoError> {
        let change = ServiceSettingsChange {
            recovery_server_enabled: Some(true),
            allowed_authentication_type: Some(CERTIFICATE),
            ..ServiceSettingsChange::default()
        };
        self.ask("accept replicas", |client| {
            client.modify_host_settings(&change)
        })?;
        let entry = AuthorizationEntry {
            allowed_primary_host_system: other.to_owned(),
            trust_group: TRUST_GROUP.to_owned(),
            replica_storage_location: self.root.join("replicas").display().to_string(),
            retention_floor_points: 0,
            retention_floor_hours: 0,
        };
        self.ask("authorize the other host", |client| {
            client.add_authorization_entry(&entry)
        })
    }

    /// Asks the daemon something. `what` goes on after "was asked to".
    ///
    /// # Errors
    /// When it refuses, or does not answer.
    pub fn ask<T>(
        &self,
        what: &'static str,
        question: impl FnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, DemoError> {
        question(&self.client).map_err(|source| DemoError::Host {
            host: self.name,
            what,
            source: Box::new(source),
        })
    }

    /// Has something done with a VM, and returns when it is done. `look` sees the job meanwhile.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub fn operate(
        &mut self,
        vm: &str,
        what: &'static str,
        request: &VmRequest,
        mut look: impl FnMut(&Self, &Job),
    ) -> Result<(), DemoError> {
        let outcome = self.ask(what, |client| client.request(vm, request))?;
        let Outcome::Started(job) = outcome else {
            return Ok(());
        };
        let id = job.value.instance_id;
        let job = self.wait(what, |host| {
            let job = host.ask(what, |client| client.job(&id))?.value;
            look(host, &job);
            let seen = format!("{} % {}", job.percent_complete, job.job_status);
            Ok(if job.ended {
                Seen::AsWanted(job)
            } else {
                Seen::NotYet(seen)
            })
        })?;
        if has_failed(&job) {
            return Err(DemoError::Job {
                host: self.name,
                what,
                job: Box::new(job),
            });
        }
        Ok(())
    }

    /// As [`operate`](Self::operate), with nobody watching.
    ///
    /// # Errors
    /// When it is refused or fails.
    pub fn request(
        &mut self,
        vm: &str,
        what: &'static str,
        request: &VmRequest,
    ) -> Result<(), DemoError> {
        self.operate(vm, what, request, |_, _| {})
    }

    /// # Errors
    /// When the daemon refuses.
    pub fn vm(&self, vm: &str) -> Result<Vm, DemoError> {
        Ok(self.ask("show the VM", |client| client.vm(vm))?.value)
    }

    /// The VM's relationship.
    ///
    /// # Errors
    /// When the daemon refuses, or there is none yet.
    pub fn relationship(&self, vm: &str) -> Result<Option<Relationship>, DemoError> {
        Ok(self.vm(vm)?.relationships.into_iter().next())
    }

    /// Everything that happened since an event.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn events_since(&self, id: u64) -> Result<Vec<Event>, DemoError> {
        let events = self.ask("tell what happened", |client| client.events(id, 1000))?;
        Ok(events.value)
    }

    /// The number of the newest event.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn newest_event(&self) -> Result<u64, DemoError> {
        let events = self.ask("tell what happened", |client| client.newest_events(1))?;
        Ok(events.value.last().map_or(0, |event| event.id))
    }

    /// Starts a VM and connects to its disks.
    ///
    /// # Errors
    /// When it does not start, or its disks cannot be used.
    pub fn start_vm(&mut self, vm: &str) -> Result<Vec<NbdClient>, DemoError> {
        self.request(vm, "start the VM", &VmRequest::Start)?;
        self.disks(vm)
    }

    /// Connects to the disks of a running VM.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn disks(&self, vm: &str) -> Result<Vec<NbdClient>, DemoError> {
        let shown = self.vm(vm)?;
        let host = self.name;
        let connect = |plan: &super::guest::DiskPlan| {
            let disk = plan.id();
            let served = shown.disks.iter().find(|one| one.disk == plan.name);
            let uri = served.and_then(|one| one.uri.as_deref());
            let uri = uri.ok_or_else(|| DemoError::NoDisk {
                host,
                vm: vm.to_owned(),
                disk: disk.clone(),
            })?;
            let uri: NbdUri = uri.parse().map_err(|source| DemoError::Uri {
                host,
                disk: disk.clone(),
                source,
            })?;
            NbdClient::connect(&uri, &ClientOptions::default())
                .map_err(|source| DemoError::Connect { disk, source })
        };
        DISKS.iter().map(connect).collect()
    }

    /// Shuts a VM down.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_vm(&mut self, vm: &str) -> Result<(), DemoError> {
        let how = StopVm {
            how: StopHow::ShutDown,
        };
        self.request(vm, "shut the VM down", &VmRequest::Stop(how))
    }

    /// # Errors
    /// [`DemoError::Interrupted`] when the user does not want to see more: a daemon may have
    /// been told, too.
    pub fn refuse_if_interrupted(&self) -> Result<(), DemoError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(DemoError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Looks until something is as wanted.
    ///
    /// # Errors
    /// [`DemoError::TimedOut`], [`DemoError::Interrupted`], or what looking says.
    pub fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Result<Seen<T>, DemoError>,
    ) -> Result<T, DemoError> {
        let watch = Stopwatch::start();
        loop {
            self.refuse_if_interrupted()?;
            let seen = match look(self)? {
                Seen::AsWanted(value) => return Ok(value),
                Seen::NotYet(seen) => seen,
            };
            if watch.elapsed() > PATIENCE {
                return Err(DemoError::TimedOut {
                    what: format!("{}: {what}", self.name),
                    seconds: PATIENCE.as_secs(),
                    seen,
                });
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What was seen of something that is waited for.
#[derive(Debug)]
pub enum Seen<T> {
    AsWanted(T),
    /// What there is instead.
    NotYet(String),
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command of this program to its end, and answers what it printed.
fn run(arguments: &[&str]) -> Result<String, DemoError> {
    let output = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
    });
    let output = output.map_err(|source| DemoError::System {
        what: "another process",
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(DemoError::Command {
        command: arguments.join(" "),
        status: output.status,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The end of a log.
fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}
