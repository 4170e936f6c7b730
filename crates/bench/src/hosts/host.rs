//! One host: a daemon in a process of its own, asked over its unix socket.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lifeboat_model::contract::{JobState, ReplicationState};
use lifeboat_nbd::{Client as NbdClient, ClientOptions, NbdUri};
use lifeboat_rest::client::{Client, ClientError, HostAddress, Outcome, VmRequest};
use lifeboat_rest::wire::{AuthorizationEntry, ServiceSettingsChange};
use lifeboat_sys::clock::Stopwatch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::DISK;
use super::line::{Line, Relay};
use crate::place;
use crate::program;

/// How long anything that a row waits for may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often a row looks.
const LOOK: Duration = Duration::from_millis(3);

/// The longest that a host keeps a question about a job open, in seconds.
const JOB_SECONDS: u64 = 60;

/// The replicas of both hosts belong to one organization.
const TRUST_GROUP: &str = "bench";

/// Certificates prove who a host is (`AllowedAuthenticationType`).
const CERTIFICATE: u32 = 2;

/// A host. Its daemon is killed when this is dropped.
#[derive(Debug)]
pub struct Host {
    name: &'static str,
    root: PathBuf,
    program: PathBuf,
    /// How the other host reaches this one.
    address: String,
    /// Absent where nothing is counted.
    relay: Option<Relay>,
    client: Client,
    daemon: Option<Child>,
}

/// What a daemon uses.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub cpu: Duration,
    /// Resident, in bytes.
    pub memory: u64,
    /// Open files and sockets.
    pub files: usize,
}

impl Host {
    /// Makes a host in the new folder `root`, with an authority and a certificate of its own.
    pub fn make(name: &'static str, root: PathBuf, program: PathBuf, line: Line) -> Result<Self> {
        let (listen, relay) = match line {
            Line::Counted => ("127.0.0.1:0".to_owned(), Some(Relay::start()?)),
            Line::Direct => (format!("127.0.0.1:{}", free_port()?), None),
        };
        let address = match &relay {
            Some(relay) => relay.address().to_string(),
            None => listen.clone(),
        };
        program::output(
            Command::new(&program)
                .args(["init", "--name", name, "--listen", &listen])
                .args(["--address", &address, "--root"])
                .arg(&root),
        )
        .context("make a host")?;
        let socket = HostAddress::Unix(root.join("run/lifeboat.sock"));
        let client = Client::new(socket, None).context("prepare to ask a host")?;
        Ok(Self {
            name,
            root,
            program,
            address,
            relay,
            client,
            daemon: None,
        })
    }

    /// Trusts what the other host's authority says about hosts.
    pub fn trust(&self, other: &Self) -> Result<()> {
        let certificate = |host: &Self, words: &[&str]| {
            let mut command = Command::new(&self.program);
            command.arg("certificate").args(words);
            command.arg("--config").arg(host.config());
            command
        };
        let authority = program::output(&mut certificate(other, &["authority"]))?;
        let file = self.root.join("trusted.pem");
        std::fs::write(&file, authority).with_context(|| format!("write {}", file.display()))?;
        let shown = program::output(&mut certificate(other, &["show", "--output", "json"]))?;
        let shown: Value = serde_json::from_str(&shown).context("understand a certificate")?;
        let fingerprint = shown["authority"]["fingerprint"].as_str().unwrap_or("");
        let mut trust = certificate(self, &["trust", "--fingerprint", fingerprint]);
        program::output(trust.arg(&file)).context("trust the other host")?;
        Ok(())
    }

    fn config(&self) -> PathBuf {
        self.root.join("lifeboat.toml")
    }

    fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// Where the daemon keeps what it knows about changed blocks.
    pub fn maps(&self) -> PathBuf {
        self.root.join("state/maps")
    }

    /// How the other host reaches this one.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks the daemon.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Starts the daemon, and returns when it answers and can be found by the other host.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log());
        let daemon = Command::new(&self.program)
            .args(["serve", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.with_context(|| format!("open {}", self.log().display()))?)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.daemon = Some(daemon);
        let host = self.wait("an answer of the daemon", |host| {
            Ok(host.client.host().ok().map(|answer| answer.value))
        })?;
        let peers = host.listeners.iter().find(|one| one.what == "peers");
        let peers = peers.and_then(|one| one.address.parse().ok());
        let peers = peers.context("find where the daemon listens for peers")?;
        if let Some(relay) = &self.relay {
            relay.lead_to(peers);
        }
        Ok(())
    }

    /// Kills the daemon with the signal that cannot be caught.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Fails only when it has ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Stops the daemon in the middle of everything; the system goes on taking connections for
    /// it.
    pub fn halt(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a daemon go on that was halted.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon.as_ref().context("find the daemon")?;
        let process = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw);
        let process = process.context("find the daemon's process")?;
        kill_process(process, signal).context("send a signal to a daemon")
    }

    /// The file that holds the disk of a VM, or its newest state.
    pub fn disk_file(&self, vm: &str) -> Result<PathBuf> {
        let shown = self.ask("show a VM", |client| client.vm(vm))?.value;
        let disk = shown.disks.into_iter().find(|one| one.disk == DISK);
        let disk = disk.with_context(|| format!("find the disk of {vm} at {}", self.name))?;
        Ok(disk.path.into())
    }

    /// Lets the other host keep replicas here.
    pub fn receive_from(&self, other: &Self) -> Result<()> {
        let change = ServiceSettingsChange {
            recovery_server_enabled: Some(true),
            allowed_authentication_type: Some(CERTIFICATE),
            ..ServiceSettingsChange::default()
        };
        self.ask("accept replicas", |client| {
            client.modify_host_settings(&change)
        })?;
        let entry = AuthorizationEntry {
            allowed_primary_host_system: other.name.to_owned(),
            trust_group: TRUST_GROUP.to_owned(),
            replica_storage_location: self.root.join("replicas").display().to_string(),
            retention_floor_points: 0,
            retention_floor_hours: 0,
        };
        self.ask("authorize the other host", |client| {
            client.add_authorization_entry(&entry)
        })
    }

    /// A client of one's own, for a thread of one's own.
    pub fn another_client(&self) -> Result<Client> {
        Client::new(self.client.address().clone(), None).context("prepare to ask a host")
    }

    /// Asks the daemon something. `what` goes on after "ask the host to".
    pub fn ask<T>(
        &self,
        what: &str,
        question: impl FnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T> {
        question(&self.client).with_context(|| format!("ask {} to {what}", self.name))
    }

    /// Has something done with a VM, and returns when it is done.
    pub fn operate(&self, vm: &str, request: &VmRequest) -> Result<()> {
        operate(&self.client, vm, request)
            .with_context(|| format!("at {}; its log ends with: {}", self.name, self.last_lines()))
    }

    /// Asks for a cycle, and does not wait for it.
    pub fn ask_for_cycle(&self, vm: &str) -> Result<()> {
        let now = VmRequest::ReplicateNow;
        self.ask("ask for a cycle", |client| client.request(vm, &now))?;
        Ok(())
    }

    /// The last moment that the replica has for certain; 0 when there is none.
    pub fn last_moment(&self, vm: &str) -> Result<u64> {
        let found = self.ask("show a relationship", |client| client.relationships(vm))?;
        let relationship = found.value.into_iter().next();
        Ok(relationship
            .and_then(|one| one.last_sequence)
            .unwrap_or_default())
    }

    /// What runs for the VM's replication at the moment: its name, and how many bytes of it are
    /// done.
    pub fn activity(&self, vm: &str) -> Result<Option<(String, u64)>> {
        let found = self.ask("show a relationship", |client| client.relationships(vm))?;
        let activity = found.value.into_iter().next().and_then(|one| one.activity);
        Ok(activity.map(|one| (one.what, one.done_bytes)))
    }

    /// Received and not yet applied, in bytes.
    pub fn backlog(&self, vm: &str) -> Result<u64> {
        let health = self.ask("tell the health of a VM", |client| client.health(vm))?;
        Ok(health.value.start.backlog_bytes)
    }

    /// The number of the newest event.
    pub fn newest_event(&self) -> Result<u64> {
        let events = self.ask("tell what happened", |client| client.newest_events(1))?;
        Ok(events.value.last().map_or(0, |event| event.id))
    }

    /// Whether something of this kind happened since an event.
    pub fn has_happened(&self, kind: &str, since: u64) -> Result<bool> {
        let events = self.ask("tell what happened", |client| client.events(since, 1000))?;
        Ok(events.value.iter().any(|event| event.kind == kind))
    }

    /// Connects to the disk of a running VM.
    pub fn disk(&self, vm: &str) -> Result<NbdClient> {
        let shown = self.ask("show a VM", |client| client.vm(vm))?.value;
        let served = shown.disks.iter().find(|one| one.disk == DISK);
        let uri: NbdUri = served
            .and_then(|one| one.uri.as_deref())
            .with_context(|| format!("find the disk of {vm} at {}", self.name))?
            .parse()
            .context("understand where a disk is served")?;
        NbdClient::connect(&uri, &ClientOptions::default()).context("connect to a disk")
    }

    /// Waits for a state of the VM's relationship.
    pub fn wait_for_state(&mut self, vm: &str, wanted: ReplicationState) -> Result<()> {
        self.wait(&format!("state {wanted} of {vm}"), |host| {
            let found = host.ask("show a VM", |client| client.vm(vm))?.value;
            Ok((found.replication_state == wanted.number()).then_some(()))
        })
    }

    /// Looks until there is something.
    pub fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let watch = Stopwatch::start();
        loop {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.try_wait().context("look after a daemon")?
            {
                bail!(
                    "the daemon of {} ended by itself ({status}): {}",
                    self.name,
                    self.last_lines()
                );
            }
            if watch.elapsed() > PATIENCE {
                bail!(
                    "{what} did not come about at {} within {} s; its log ends with: {}",
                    self.name,
                    PATIENCE.as_secs(),
                    self.last_lines()
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What has passed to and from this host's listener, in bytes.
    pub fn bytes(&self) -> u64 {
        self.relay().bytes()
    }

    /// What this host's listener has sent, in bytes.
    pub fn bytes_back(&self) -> u64 {
        self.relay().bytes_back()
    }

    fn relay(&self) -> &Relay {
        let relay = self.relay.as_ref();
        relay.expect("BUG: only a counted line counts")
    }

    /// What the daemon has used so far, and holds now.
    pub fn used(&self) -> Result<Used> {
        let daemon = self.daemon.as_ref().context("find the daemon")?;
        Ok(Used {
            cpu: place::whole_cpu_of(daemon.id())?,
            memory: place::memory_of(daemon.id())?,
            files: place::open_files_of(daemon.id())?,
        })
    }

    fn last_lines(&self) -> String {
        last_lines(&self.log())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has something done with a VM, and returns when it is done.
pub fn operate(client: &Client, vm: &str, request: &VmRequest) -> Result<()> {
    let asked = client.request(vm, request);
    let outcome = asked.with_context(|| format!("ask for {request:?} of {vm}"))?;
    let Outcome::Started(job) = outcome else {
        return Ok(());
    };
    let mut job = job.value;
    while !job.ended {
        let asked = client.wait_for_job(&job.instance_id, JOB_SECONDS);
        job = asked.context("wait for a job")?.value;
    }
    let state = JobState::try_from(u32::from(job.job_state));
    if job.error_code != 0 || state.is_ok_and(JobState::is_failure) {
        bail!("{request:?} of {vm} failed: {}", job.error_description);
    }
    Ok(())
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    let address = listener.local_addr().context("find a free port")?;
    Ok(address.port())
}

/// The end of a log.
fn last_lines(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}
