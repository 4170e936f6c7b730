//! What all parts of the drill share: the two hosts, the report, and the steps that recur.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lifeboat_model::contract::ReplicationState;
use lifeboat_nbd::Client as NbdClient;
use lifeboat_rest::client::{ClientError, VmRequest};
use lifeboat_rest::wire::{InitiateFailover, ReverseReplication, TestFailover};
use lifeboat_sys::clock::Stopwatch;
use lifeboat_sys::host as system;

use super::check::{Comparison, claim, compare_claim, nothing_right};
use super::error::DemoError;
use super::folder::{Afterwards, WorkFolder};
use super::guest::{DISKS, Guest, Running};
use super::history::{Claim, History};
use super::host::{Host, Seen};
use super::random::Random;
use super::report::{By, Phase, Proof, Report, Reversal, ms};
use crate::exit::Failure;
use crate::output::{self, OutputFormat};

/// What people call the VM.
pub const VM: &str = "web";

/// The VM of its test failover.
const TEST_VM: &str = "web - Test";

/// What the guest does at a host before something else happens to it.
pub const STEPS: usize = 60;

/// What the guest writes at once before its host dies, in mebibytes: the cycle that sends it
/// lasts long enough to be cut.
const BURST: u64 = 32;

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    Alpha,
    Beta,
}

impl Site {
    pub const fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }

    /// As the host's certificate says.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alpha => "alpha.test",
            Self::Beta => "beta.test",
        }
    }

    /// The host's folder.
    const fn folder(self) -> &'static str {
        match self {
            Self::Alpha => "alpha",
            Self::Beta => "beta",
        }
    }
}

/// The drill under way.
#[derive(Debug)]
pub struct Drill {
    // The hosts end before their folder is removed.
    alpha: Host,
    beta: Host,
    folder: WorkFolder,
    output: OutputFormat,
    pub watch: Stopwatch,
    random: Random,
    pub report: Report,
}

/// A VM that was failed over to, running.
#[derive(Debug)]
pub struct TakenOver {
    pub clients: Vec<NbdClient>,
    /// How many requests of the guest its disks hold.
    pub requests: usize,
    pub rto_ms: f64,
}

impl Drill {
    /// Makes both hosts; no daemon runs yet.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn prepare(
        folder: WorkFolder,
        output: OutputFormat,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self, DemoError> {
        let watch = Stopwatch::start();
        let seed = system::random_bytes().map_err(|source| DemoError::System {
            what: "random bytes",
            source,
        })?;
        let make = |site: Site| {
            let root = folder.of(site.folder());
            Host::make(site.name(), root, Arc::clone(interrupted))
        };
        Ok(Self {
            alpha: make(Site::Alpha)?,
            beta: make(Site::Beta)?,
            folder,
            output,
            watch,
            random: Random::new(u64::from_ne_bytes(seed)),
            report: Report::default(),
        })
    }

    /// Goes through everything.
    ///
    /// # Errors
    /// When a step fails.
    pub fn show(&mut self) -> Result<(), Failure> {
        self.say(&format!(
            "Lifeboat demo: a drill of two hosts, {} and {}. Both are daemons of this program in\n\
             processes of their own; the VM is a writer that never rests and keeps a history of\n\
             every byte. All that a host gives back is compared with that history.\n\
             Folder: {}\n",
            Site::Alpha.name(),
            Site::Beta.name(),
            self.folder.path().display()
        ))?;
        let guest = self.protect()?;
        let guest = self.disaster(guest)?;
        let guest = self.crash(guest)?;
        self.planned(guest)
    }

    #[must_use]
    pub fn has_failures(&self) -> bool {
        !self.report.failures().is_empty()
    }

    /// Ends both daemons, prints the report, and fails if anything was wrong.
    ///
    /// # Errors
    /// [`DemoError::Wrong`], or when the report cannot be printed.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.alpha.kill();
        self.beta.kill();
        self.report.add_up(self.watch.elapsed());
        let failures = self.report.failures();
        if !failures.is_empty() {
            self.folder.afterwards = Afterwards::Keep;
        }
        let kept = self.folder.afterwards == Afterwards::Keep;
        if kept {
            self.report.folder = Some(self.folder.path().to_owned());
        }
        let seconds = self.report.total.seconds;
        self.output.print(&self.report, |report| {
            let folder = match &report.folder {
                Some(folder) => format!("Both hosts are kept in {}.\n", folder.display()),
                None => {
                    "Both hosts are gone again; `lifeboat demo --keep` leaves them to look at.\n"
                        .to_owned()
                }
            };
            format!(
                "\nReport, after {seconds:.0} s\n\n{}\n{folder}",
                report.summary()
            )
        })?;
        match failures.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(DemoError::Wrong {
                wrong: self.report.total.failed,
                all: self.report.total.comparisons + self.report.total.proofs,
                first,
                folder: self.folder.path().to_owned(),
            }
            .into()),
        }
    }

    /// Prints text for people at once.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn say(&self, text: &str) -> Result<(), Failure> {
        match self.output {
            OutputFormat::Table => output::print(text),
            OutputFormat::Json => Ok(()),
        }
    }

    pub fn host(&mut self, site: Site) -> &mut Host {
        match site {
            Site::Alpha => &mut self.alpha,
            Site::Beta => &mut self.beta,
        }
    }

    /// Has each host trust the other's authority.
    ///
    /// # Errors
    /// When a certificate cannot be handed over.
    pub fn exchange_authorities(&self) -> Result<(), DemoError> {
        self.alpha.trust(&self.beta)?;
        self.beta.trust(&self.alpha)
    }

    pub fn is_for_people(&self) -> bool {
        self.output == OutputFormat::Table
    }

    /// What has passed between the hosts, in bytes.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.alpha.wire.bytes() + self.beta.wire.bytes()
    }

    /// Does a part of the drill, and notes how long it took and what travelled.
    ///
    /// # Errors
    /// What the part says.
    pub fn phase<T>(
        &mut self,
        name: &'static str,
        part: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (watch, before) = (Stopwatch::start(), self.wire_bytes());
        let done = part(self);
        self.report.phases.push(Phase {
            name,
            seconds: watch.elapsed().as_secs_f64(),
            wire_bytes: self.wire_bytes() - before,
        });
        done
    }

    /// Notes whether something holds.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn prove(&mut self, what: &'static str, holds: bool, found: String) -> Result<(), Failure> {
        self.alpha.refuse_if_interrupted()?;
        let word = if holds { "" } else { "FAILED: " };
        self.say(&format!("  {word}{what}: {}\n", output::printable(&found)))?;
        self.report.proofs.push(Proof { what, holds, found });
        Ok(())
    }

    /// A guest that goes on after `history` on the disks of `clients`.
    pub fn guest(&mut self, clients: Vec<NbdClient>, history: History) -> Guest {
        Guest::new(clients, history, self.random.next(), self.watch)
    }

    /// Compares the disks with the moment that they claim, and notes what was found.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn compare(
        &mut self,
        what: &str,
        clients: &[NbdClient],
        claimed: Result<Claim, super::compare::Difference>,
    ) -> Result<Comparison, Failure> {
        let comparison = match claimed {
            Ok(claim) => compare_claim(what, clients, claim),
            Err(difference) => nothing_right(what, difference),
        };
        self.alpha.refuse_if_interrupted()?;
        self.say(&format!(
            "  {what}: both disks hold {} requests, {}\n",
            comparison.requests,
            comparison.verdict()
        ))?;
        self.report.comparisons.push(comparison.clone());
        Ok(comparison)
    }

    /// Compares the disks of a VM that a guest uses with all that the guest has written, while
    /// it holds still.
    ///
    /// # Errors
    /// When the disks cannot be opened.
    pub fn compare_present(
        &mut self,
        what: &'static str,
        site: Site,
        guest: &Running,
    ) -> Result<(), Failure> {
        let clients = self.host(site).disks(VM)?;
        let (all, comparison) = guest.hold(|_| {
            let (all, claimed) = {
                let history = guest.history();
                (history.count(), claim(&clients, &history))
            };
            (all, self.compare(what, &clients, claimed))
        });
        let found = comparison?.requests;
        self.prove(
            what,
            found == all,
            format!("{found} of {all} requests are there"),
        )
    }

    /// Runs the replica of a host in a VM beside, and compares that. `meanwhile` is done while
    /// the VM runs.
    ///
    /// # Errors
    /// When a step fails.
    pub fn test_failover(
        &mut self,
        what: &'static str,
        site: Site,
        guest: &Running,
        meanwhile: impl FnOnce(&mut Self) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let test = VmRequest::TestFailover(TestFailover { point: None });
        self.host(site).request(VM, "test a failover", &test)?;
        let clients = self.host(site).start_vm(TEST_VM)?;
        let claimed = claim(&clients, &guest.history());
        self.compare(what, &clients, claimed)?;
        meanwhile(self)?;
        drop(clients);
        self.host(site).stop_vm(TEST_VM)?;
        let end = VmRequest::EndTestFailover;
        Ok(self.host(site).request(VM, "end the test failover", &end)?)
    }

    /// Kills the daemon that runs the VM while a cycle is under way. Answers what the guest
    /// had written, and when the host died.
    ///
    /// # Errors
    /// When no cycle comes.
    pub fn kill_in_a_cycle(
        &mut self,
        site: Site,
        guest: Running,
    ) -> Result<(History, std::time::Duration), Failure> {
        guest.hold(|guest| guest.burst(BURST))?;
        let now = VmRequest::ReplicateNow;
        self.host(site)
            .ask("replicate now", |client| client.request(VM, &now))?;
        let doing = self.host(site).wait("a cycle under way", |host| {
            let relationship = host.relationship(VM)?;
            let activity = relationship.and_then(|one| one.activity);
            Ok(match activity {
                Some(activity) => Seen::AsWanted(activity.what),
                None => Seen::NotYet("nothing under way".to_owned()),
            })
        })?;
        self.host(site).kill();
        let end = self.watch.elapsed();
        let history = guest.lost();
        self.say(&format!(
            "\nThe daemon of {} is killed in mid-cycle ({doing}); the VM dies with it.\n",
            site.name()
        ))?;
        Ok((history, end))
    }

    /// Fails over, starts the VM, and compares its disks.
    ///
    /// # Errors
    /// When a step fails.
    pub fn fail_over(
        &mut self,
        what: &'static str,
        site: Site,
        point: Option<u64>,
        history: &History,
    ) -> Result<TakenOver, Failure> {
        let watch = Stopwatch::start();
        let request = VmRequest::InitiateFailover(InitiateFailover {
            point,
            force: false,
        });
        self.host(site).request(VM, "fail over", &request)?;
        let clients = self.host(site).start_vm(VM)?;
        for (plan, client) in DISKS.iter().zip(&clients) {
            let read = client.read(0, &mut [0; 4096]);
            read.map_err(|source| DemoError::Request {
                disk: plan.id(),
                source,
            })?;
        }
        let rto_ms = ms(watch.elapsed());
        self.say(&format!(
            "\n{what}: {} runs the VM {rto_ms:.0} ms after the order.\n",
            site.name()
        ))?;
        let claimed = claim(&clients, history);
        let comparison = self.compare(what, &clients, claimed)?;
        Ok(TakenOver {
            clients,
            requests: comparison.requests,
            rto_ms,
        })
    }

    /// Starts the host again that died, and shows that it stands down.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn return_fenced(&mut self, what: &'static str, site: Site) -> Result<(), Failure> {
        self.host(site).start()?;
        let told = self.host(site).wait("to be told of the takeover", |host| {
            let events = host.events_since(0)?;
            let fenced = events
                .into_iter()
                .rev()
                .find(|event| event.kind == "fenced");
            Ok(match fenced {
                Some(event) => Seen::AsWanted(event.message),
                None => Seen::NotYet("no such event".to_owned()),
            })
        })?;
        self.say(&format!(
            "\n{} is back and was told: {}\n",
            site.name(),
            output::printable(&told)
        ))?;
        let start = self
            .host(site)
            .request(VM, "start the VM", &VmRequest::Start);
        let (holds, found) = match start {
            Err(DemoError::Host { source, .. })
                if matches!(*source, ClientError::Refused { .. }) =>
            {
                (true, source.to_string())
            }
            Err(error) => return Err(error.into()),
            Ok(()) => (false, "it started the VM".to_owned()),
        };
        self.prove(what, holds, found)
    }

    /// Swaps the roles: the host that runs the VM replicates to the other one.
    ///
    /// # Errors
    /// When a step fails.
    pub fn reverse(&mut self, what: &'static str, site: Site, expected: By) -> Result<(), Failure> {
        let (watch, before) = (Stopwatch::start(), self.wire_bytes());
        let since = self.host(site).newest_event()?;
        let reverse = VmRequest::Reverse(ReverseReplication::default());
        self.host(site)
            .request(VM, "reverse replication", &reverse)?;
        self.wait_for_state(site, ReplicationState::Replicating)?;
        let events = self.host(site).events_since(since)?;
        let compared = events.iter().find(|event| event.kind == "reversal");
        let by = compared.map_or(By::Maps, |_| By::Digests);
        let reversal = Reversal {
            what,
            by,
            seconds: watch.elapsed().as_secs_f64(),
            wire_bytes: self.wire_bytes() - before,
            disk_bytes: DISKS.iter().map(|plan| plan.size).sum(),
        };
        let found = match compared {
            Some(event) => event.message.clone(),
            None => format!(
                "by the maps of both sides; {} of {} travelled",
                crate::size::Bytes(reversal.wire_bytes),
                crate::size::Bytes(reversal.disk_bytes)
            ),
        };
        self.report.reversals.push(reversal);
        self.prove(what, by == expected, found)
    }

    /// Waits for a state of the VM's relationship.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_for_state(
        &mut self,
        site: Site,
        wanted: ReplicationState,
    ) -> Result<(), DemoError> {
        self.host(site).wait(&format!("state {wanted}"), |host| {
            let vm = host.vm(VM)?;
            Ok(if vm.replication_state == wanted.number() {
                Seen::AsWanted(())
            } else {
                Seen::NotYet(vm.replication_state_text)
            })
        })
    }

    /// Waits until the other host has a newer moment than now, twice: the second began after
    /// this was called.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait_for_cycles(&mut self, site: Site) -> Result<(), DemoError> {
        let mut known = last_moment(self.host(site))?;
        for _ in 0..2 {
            let now = VmRequest::ReplicateNow;
            let host = self.host(site);
            host.ask("replicate now", |client| client.request(VM, &now))?;
            known = host.wait("a newer moment at the replica", |host| {
                let last = last_moment(host)?;
                Ok(if last > known {
                    Seen::AsWanted(last)
                } else {
                    Seen::NotYet(format!("moment {last}"))
                })
            })?;
        }
        Ok(())
    }
}

/// The last moment that the replica has for certain; 0 when there is none.
///
/// # Errors
/// When the daemon refuses.
pub fn last_moment(host: &Host) -> Result<u64, DemoError> {
    let relationship = host.relationship(VM)?;
    Ok(relationship
        .and_then(|one| one.last_sequence)
        .unwrap_or_default())
}
