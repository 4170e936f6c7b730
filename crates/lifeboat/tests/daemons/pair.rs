//! Two daemons that let each other in, a VM, its guest, and what the guest wrote.

use lifeboat_harness::Random;
use lifeboat_model::contract::{ReplicationMode, ReplicationState};
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{
    EnableReplication, SettingsChange, StartReplication, StopHow, StopVm, TestFailover,
};
use tempfile::TempDir;

use crate::host::{Host, LOOKS};
use crate::tracer::{Followed, Strike};

pub const VM: &str = "web";

/// Bytes read at a time when a disk is compared.
const COMPARED: usize = 8 << 20;

/// Which of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Alpha,
    Beta,
}

impl At {
    pub const BOTH: [Self; 2] = [Self::Alpha, Self::Beta];

    pub fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }
}

pub struct Pair {
    pub alpha: Host,
    pub beta: Host,
    /// What the guest wrote.
    pub shadow: Vec<u8>,
    pub random: Random,
    /// The step at which a daemon that starts again is killed once more.
    pub once_more: Option<u64>,
    /// What was struck.
    pub struck: Vec<String>,
    _folder: TempDir,
}

impl Pair {
    /// Two hosts in a folder, and a VM that runs on alpha.
    pub fn new(folder: TempDir, mut alpha: Host, mut beta: Host, size: u64) -> Self {
        alpha.trust(&beta);
        beta.trust(&alpha);
        alpha.start();
        beta.start();
        alpha.let_in(&beta);
        beta.let_in(&alpha);
        alpha.define(VM, size);
        alpha.request(VM, &VmRequest::Start);
        Self {
            alpha,
            beta,
            shadow: vec![0; size as usize],
            random: Random::new(91),
            once_more: None,
            struck: Vec::new(),
            _folder: folder,
        }
    }

    pub fn host(&self, at: At) -> &Host {
        match at {
            At::Alpha => &self.alpha,
            At::Beta => &self.beta,
        }
    }

    pub fn host_mut(&mut self, at: At) -> &mut Host {
        match at {
            At::Alpha => &mut self.alpha,
            At::Beta => &mut self.beta,
        }
    }

    /// The guest on a host writes bytes that nothing makes smaller.
    pub fn write(&mut self, host: At, at: u64, length: u64) {
        let guest = self.host(host).disk(VM);
        let known = &mut self.shadow[at as usize..(at + length) as usize];
        self.random.fill(known);
        for (number, part) in known.chunks(1 << 20).enumerate() {
            guest.write(at + (number << 20) as u64, part).unwrap();
        }
        guest.flush().unwrap();
    }

    /// Whether a host, which may be dead, says that this is the state of its VM.
    pub fn is(&self, at: At, state: ReplicationState) -> bool {
        let vm = self.host(at).ask(|client| client.vm(VM));
        let relationship = vm.and_then(|vm| vm.relationships.into_iter().next());
        relationship.is_some_and(|one| one.replication_state == state.number())
    }

    pub fn is_replicating(&self, at: At) -> bool {
        self.is(at, ReplicationState::Replicating)
    }

    /// The newest moment that a primary, which may be dead, knows to have arrived.
    fn last_sequence(&self, at: At) -> Option<u64> {
        let vm = self.host(at).ask(|client| client.vm(VM))?;
        vm.relationships.first()?.last_sequence
    }

    /// The same of one that lives.
    fn surely_last_sequence(&mut self, at: At) -> u64 {
        for _ in 0..LOOKS {
            self.revive();
            if let Some(last) = self.last_sequence(at) {
                return last;
            }
            self.beta.rest();
        }
        panic!("nothing has arrived\n{}", self.story());
    }

    /// Whether a replica has applied everything that it received.
    pub fn has_applied_all(&self, at: At) -> bool {
        let health = self.host(at).ask(|client| client.health(VM));
        health.is_some_and(|health| health.start.backlog_bytes == 0)
    }

    /// Looks until something is so, asks for it now and then, and starts daemons that died.
    pub fn reach(&mut self, what: &str, at: At, request: &VmRequest, done: impl Fn(&Self) -> bool) {
        let mut refused = None;
        for look in 0..LOOKS {
            self.revive();
            if done(self) {
                return;
            }
            if look % 8 == 0 {
                let answer = self.host(at).client.request(VM, request);
                refused = answer.err().map(|error| error.to_string()).or(refused);
                self.nudge();
                self.do_as_health_says();
            }
            self.beta.rest();
        }
        panic!(
            "not reached: {what}; last refusal: {refused:?}\n{}",
            self.story()
        );
    }

    /// Daemons that died are started again.
    pub fn revive(&mut self) {
        for at in At::BOTH {
            while self.host_mut(at).has_ended() {
                self.note_what_was_struck(at);
                self.host_mut(at).launch();
                self.kill_once_more(at);
                self.host_mut(at).comes_up();
            }
        }
    }

    /// Does what health asks an operator to do once what failed is mended.
    pub fn do_as_health_says(&mut self) {
        for at in At::BOTH {
            let health = self.host(at).ask(|client| client.health(VM));
            for reason in health.into_iter().flat_map(|health| health.reasons) {
                match reason.kind.as_str() {
                    // It goes on by itself, at the latest when something is asked for.
                    "catalog_stopped" => self.note_what_was_struck(at),
                    "operation_unfinished" => {
                        // It need not run.
                        let how = StopHow::PowerOff;
                        let stop = VmRequest::Stop(StopVm { how });
                        let _ = self.host(at).client.request(VM, &stop);
                    }
                    "replication_error" => {
                        if reason.what.contains("end the test failover") {
                            let end = VmRequest::EndTestFailover;
                            let _ = self.host(at).client.request(VM, &end);
                        }
                        // Another side of it may be mended first.
                        let _ = self.host(at).client.request(VM, &VmRequest::Resume);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Remembers what was struck at a host whose daemon is followed.
    pub fn note_what_was_struck(&mut self, at: At) {
        let struck = self.host(at).followed().and_then(Followed::take_struck);
        self.struck.extend(struck);
    }

    fn kill_once_more(&mut self, at: At) {
        if let Some(followed) = self.host(at).followed()
            && let Some(step) = self.once_more
        {
            followed.strike_at(step, Strike::KillBefore);
            self.once_more = None;
        }
    }

    /// Whether a host says that this is its VM's part.
    pub fn has_mode(&self, at: At, mode: ReplicationMode) -> bool {
        let vm = self.host(at).ask(|client| client.vm(VM));
        vm.is_some_and(|vm| vm.replication_mode == mode.number())
    }

    /// Has whoever waits for its next try, try now.
    fn nudge(&self) {
        for at in At::BOTH {
            // A VM that is not replicated from here says no.
            let _ = self.host(at).client.request(VM, &VmRequest::ReplicateNow);
        }
    }

    /// What both hosts say, for the reader of a failure.
    pub fn story(&self) -> String {
        let mut story = format!("struck: {:?}\n", self.struck.last());
        for at in At::BOTH {
            let host = self.host(at);
            let health = host.ask(|client| client.health(VM));
            let events = host.ask(|client| client.newest_events(20));
            story.push_str(&format!("{}: {health:?}\n", host.name));
            for event in events.into_iter().flatten() {
                story.push_str(&format!("  {event:?}\n"));
            }
            let said = host.said();
            let from = said.len().saturating_sub(4000);
            story.push_str(said.get(from..).unwrap_or_default());
        }
        story
    }

    /// The request that has a VM of a host replicated to the other one.
    pub fn enabling(&self, from: At, settings: SettingsChange) -> VmRequest {
        let to = self.host(from.other());
        VmRequest::EnableReplication(EnableReplication {
            recovery_connection_point: to.relay.address.to_string(),
            recovery_host_name: Some(to.name.to_owned()),
            kept_replica: None,
            settings,
        })
    }

    pub fn enable(&mut self, settings: SettingsChange) {
        let enable = self.enabling(At::Alpha, settings);
        self.reach("replication is enabled", At::Alpha, &enable, |pair| {
            let vm = pair.alpha.ask(|client| client.vm(VM));
            vm.is_some_and(|vm| !vm.relationships.is_empty())
        });
    }

    pub fn copy(&mut self) {
        let start = VmRequest::StartReplication(StartReplication::default());
        self.reach("the copy is made", At::Alpha, &start, |pair| {
            pair.is_replicating(At::Alpha)
        });
    }

    /// Everything written so far arrives and is applied.
    pub fn replicate(&mut self, from: At) {
        // A cycle under way may have begun before the last write; the next one has not.
        for _ in 0..2 {
            let before = self.surely_last_sequence(from);
            let now = VmRequest::ReplicateNow;
            self.reach("a moment arrives", from, &now, |pair| {
                pair.is_replicating(from)
                    && pair.is_replicating(from.other())
                    && pair.last_sequence(from) > Some(before)
                    && pair.has_applied_all(from.other())
            });
        }
    }

    /// The replica's newest point is what the guest wrote.
    pub fn expect_replica(&self, at: At) {
        let host = self.host(at);
        host.request(VM, &VmRequest::TestFailover(TestFailover { point: None }));
        let test = host.vm(VM).test_replica_system.unwrap();
        host.request(&test, &VmRequest::Start);
        self.expect(at, &test);
        host.request(VM, &VmRequest::EndTestFailover);
    }

    /// A VM that runs on a host reads what the guest wrote.
    pub fn expect(&self, at: At, vm: &str) {
        let disk = self.host(at).disk(vm);
        let mut found = vec![0; COMPARED.min(self.shadow.len())];
        for (number, wanted) in self.shadow.chunks(found.len()).enumerate() {
            let found = &mut found[..wanted.len()];
            let at = (number * COMPARED) as u64;
            disk.read(at, found).unwrap();
            let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
            assert_eq!(differs, None, "from {at} on it differs first at this byte");
        }
    }
}
