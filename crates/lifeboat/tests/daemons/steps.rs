//! A daemon that is killed, or whose disk fails, at steps of each flow: one in its middle unless
//! more are asked for.
//!
//! Each flow leaves the pair as it found it, if with swapped roles, and is done again and again
//! by the same two daemons: once to count the steps of the one that is struck, then with a kill
//! before and after, and with a failed call, at each of those that are tried. Now and then the
//! daemon is killed once more soon after it has started again. Whatever was struck, asking
//! again brings the flow to its end, the replica is what the guest wrote, and no disk travels
//! as a whole.

use std::net::{IpAddr, Ipv4Addr};

use lifeboat_model::contract::{EnabledState, ReplicationMode, ReplicationState};
use lifeboat_rest::client::{Outcome, VmRequest};
use lifeboat_rest::wire::{
    CancelPlannedFailover, InitiateFailover, Resynchronize, ReverseReplication, SettingsChange,
    StopHow, StopVm, TestFailover,
};

use crate::host::{Host, LOOKS};
use crate::pair::{At, Pair, VM};
use crate::relay::Quality;
use crate::tracer::{Followed, Strike};

/// The only disk, of which the guest has written everything.
const DISK: u64 = 2 << 20;

/// What a flow may send at most, whatever is sent again: less than the disk, and than somebody
/// sends who asks again and again without a pause.
const LITTLE: u64 = 512 << 10;

/// Runs of a flow by the same two daemons: each session tells of all the failovers that there
/// were, and is not to be taken for a disk some day.
const LIVES: u64 = 60;

/// Steps of a flow that are tried, of all that there are, unless more are asked for.
const TRIED: u64 = 1;

/// The variable that asks for so many of them.
const STEPS: &str = "LIFEBOAT_TEST_STEPS";

/// Whose steps are struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Primary,
    Replica,
}

/// Two followed daemons, and who is the primary.
struct Struck {
    pair: Pair,
    primary: At,
}

impl Struck {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let host = |name| {
            let mut host = Host::new(name, folder.path(), None, here, Quality::GOOD);
            host.follow();
            host
        };
        let (alpha, beta) = (host("alpha.test"), host("beta.test"));
        let mut pair = Pair::new(folder, alpha, beta, DISK);
        pair.write(At::Alpha, 0, DISK);
        Self {
            pair,
            primary: At::Alpha,
        }
    }

    fn protected() -> Self {
        let mut struck = Self::new();
        struck.protect();
        struck
    }

    fn protect(&mut self) {
        self.pair.enable(SettingsChange {
            replication_interval: Some(3600),
            recovery_history: Some(4),
            ..SettingsChange::default()
        });
        self.pair.copy();
        self.pair.replicate(At::Alpha);
    }

    fn side(&self, side: Side) -> At {
        match side {
            Side::Primary => self.primary,
            Side::Replica => self.primary.other(),
        }
    }

    fn followed(&self, at: At) -> &Followed {
        let followed = self.pair.host(at).followed();
        followed.expect("both daemons are followed")
    }

    /// Does a flow until each step that is tried has been struck.
    fn each(mut self, side: Side, before: fn(&mut Self), flow: fn(&mut Self)) {
        let steps = self.steps(side, before, flow);
        assert!(steps > 0, "the flow changes nothing at the {side:?}");
        let tried = tried().min(steps);
        let mut struck = 0;
        for number in 0..3 * tried {
            if number % LIVES == LIVES - 1 {
                struck += self.pair.struck.len();
                self = Self::protected();
            }
            let strike = match number % 3 {
                0 => Strike::KillBefore,
                1 => Strike::KillAfter,
                _ => Strike::Fail,
            };
            // The middle of each share of them.
            let step = (number / 3 * 2 + 1) * steps / (2 * tried);
            before(&mut self);
            let at = self.side(side);
            self.pair.once_more = (number % 2 == 1).then_some(number % 7);
            self.followed(at).strike_at(step, strike);
            flow(&mut self);
            self.settle();
        }
        println!(
            "the {side:?} makes {steps} steps; it was struck {} times in {} runs",
            struck + self.pair.struck.len(),
            3 * tried
        );
    }

    /// How many steps a flow takes where nothing is struck.
    fn steps(&mut self, side: Side, before: fn(&mut Self), flow: fn(&mut Self)) -> u64 {
        before(self);
        let at = self.side(side);
        let first = self.followed(at).steps();
        self.followed(at).expose();
        flow(self);
        let steps = self.followed(at).steps() - first;
        self.settle();
        steps
    }

    /// Nothing is planned any more, and everybody lives.
    fn settle(&mut self) {
        self.pair.once_more = None;
        for at in At::BOTH {
            self.followed(at).live_on();
        }
        self.pair.revive();
        for at in At::BOTH {
            self.pair.note_what_was_struck(at);
        }
    }

    /// What does not count and is not struck.
    fn spared(&mut self, act: impl FnOnce(&mut Self)) {
        let once_more = self.pair.once_more.take();
        for at in At::BOTH {
            self.followed(at).spare();
        }
        self.pair.revive();
        self.pair.do_as_health_says();
        act(self);
        self.pair.once_more = once_more;
        for at in At::BOTH {
            self.followed(at).expose();
        }
    }

    fn run_vm(&mut self, at: At) {
        self.pair
            .reach("the VM runs", at, &VmRequest::Start, |pair| {
                let vm = pair.host(at).ask(|client| client.vm(VM));
                vm.is_some_and(|vm| vm.enabled_state == EnabledState::Enabled.number())
            });
    }

    fn stop_vm(&mut self, at: At) {
        let how = StopHow::PowerOff;
        let stop = VmRequest::Stop(StopVm { how });
        self.pair.reach("the VM is off", at, &stop, |pair| {
            let vm = pair.host(at).ask(|client| client.vm(VM));
            vm.is_some_and(|vm| vm.enabled_state == EnabledState::Disabled.number())
        });
    }

    /// The guest writes a little. Which bytes of its last write outlive its host is not known,
    /// so its host lives on meanwhile.
    fn write(&mut self, at: At) {
        self.spared(|struck| {
            struck.run_vm(at);
            for _ in 0..3 {
                let block = struck.pair.random.below(DISK / 4096);
                struck.pair.write(at, block * 4096, 4096);
            }
        });
    }

    fn replicate(&mut self) {
        let from = self.primary;
        self.pair.replicate(from);
    }

    /// The replica is what the guest wrote, as a test failover shows.
    fn expect_replica(&mut self) {
        let replica = self.primary.other();
        self.spared(|struck| struck.pair.expect_replica(replica));
    }

    /// A VM with a disk of its own is what the guest wrote.
    fn expect(&mut self, at: At) {
        self.spared(|struck| {
            struck.run_vm(at);
            struck.pair.expect(at, VM);
        });
    }

    /// Does something during which no disk travels as a whole.
    fn sends_little(&mut self, act: impl FnOnce(&mut Self)) {
        let sent = |struck: &Self| struck.pair.alpha.relay.bytes() + struck.pair.beta.relay.bytes();
        let before = sent(self);
        act(self);
        let sent = sent(self) - before;
        assert!(
            sent < LITTLE,
            "{sent} bytes travelled\n{}",
            self.pair.story()
        );
    }

    fn reach_state(&mut self, at: At, request: &VmRequest, state: ReplicationState) {
        let what = format!("{state:?}");
        self.pair
            .reach(&what, at, request, |pair| pair.is(at, state));
    }

    fn fail_over(&mut self) {
        let replica = self.primary.other();
        let fail_over = VmRequest::InitiateFailover(InitiateFailover {
            point: None,
            force: false,
        });
        self.pair.reach("failed over", replica, &fail_over, |pair| {
            pair.is(replica, ReplicationState::Recovered)
                || pair.is(replica, ReplicationState::Committed)
        });
    }

    fn prepare(&mut self) {
        let (from, to) = (self.primary, self.primary.other());
        let before = planned_point(&self.pair, to);
        let state = ReplicationState::SyncedReplicationComplete;
        self.pair
            .reach("prepared", from, &VmRequest::PrepareFailover, |pair| {
                pair.is(from, state) && planned_point(pair, to) > before
            });
    }

    /// The roles are swapped, and what the new primary wrote arrives.
    fn reverse(&mut self) {
        let new = self.primary.other();
        let reverse = VmRequest::Reverse(ReverseReplication::default());
        self.pair
            .reach("the roles are swapped", new, &reverse, |pair| {
                pair.has_mode(new, ReplicationMode::Primary)
                    && pair.is_replicating(new)
                    && pair.is_replicating(new.other())
            });
        self.primary = new;
        self.replicate();
    }
}

/// Points of planned failovers, of which a store has a limited number.
fn planned_points(pair: &Pair, at: At) -> Vec<u64> {
    let points = pair.host(at).ask(|client| client.points(VM));
    let points = points.into_iter().flatten();
    points
        .filter(|point| point.kind == "planned_failover")
        .map(|point| point.sequence)
        .collect()
}

/// The newest of them: everything that the primary had is there.
fn planned_point(pair: &Pair, at: At) -> Option<u64> {
    planned_points(pair, at).into_iter().max()
}

/// How many steps are struck at most. More than the default takes long, so only when asked.
fn tried() -> u64 {
    if std::env::var_os("LIFEBOAT_TEST_EVERY_DEATH").is_some() {
        return u64::MAX;
    }
    let asked = std::env::var(STEPS).ok();
    asked.map_or(TRIED, |asked| {
        asked.parse().expect("the number of steps is a number")
    })
}

fn write_and_replicate(struck: &mut Struck) {
    let primary = struck.primary;
    struck.write(primary);
    struck.replicate();
}

/// A VM that is off, with writes that are not replicated.
fn write_and_stop(struck: &mut Struck) {
    let primary = struck.primary;
    let replica = struck.pair.host(primary.other());
    for point in planned_points(&struck.pair, primary.other()) {
        replica.request(VM, &VmRequest::RemovePoint(point));
    }
    struck.write(primary);
    struck.stop_vm(primary);
}

/// A VM that is off, with everything replicated.
fn replicate_and_stop(struck: &mut Struck) {
    write_and_replicate(struck);
    struck.stop_vm(struck.primary);
}

fn write(struck: &mut Struck) {
    struck.write(struck.primary);
}

fn cycle(struck: &mut Struck) {
    struck.sends_little(Struck::replicate);
    struck.expect_replica();
}

fn go_on(struck: &mut Struck) {
    write(struck);
    cycle(struck);
}

fn planned_failover(struck: &mut Struck) {
    struck.sends_little(|struck| {
        let new = struck.primary.other();
        struck.prepare();
        struck.fail_over();
        struck.expect(new);
        struck.write(new);
        struck.reverse();
    });
    struck.expect_replica();
}

fn disaster(struck: &mut Struck) {
    struck.sends_little(|struck| {
        let new = struck.primary.other();
        struck.fail_over();
        struck.reach_state(new, &VmRequest::CommitFailover, ReplicationState::Committed);
        struck.expect(new);
        struck.write(new);
        struck.reverse();
    });
    struck.expect_replica();
}

fn cancelled_failover(struck: &mut Struck) {
    struck.prepare();
    let cancel = VmRequest::CancelPlannedFailover(CancelPlannedFailover { force: false });
    struck.reach_state(struck.primary, &cancel, ReplicationState::Replicating);
    go_on(struck);
}

fn reverted_failover(struck: &mut Struck) {
    let replica = struck.primary.other();
    struck.fail_over();
    let replicated = struck.pair.shadow.clone();
    struck.write(replica);
    struck.pair.shadow = replicated;
    struck.stop_vm(replica);
    struck.reach_state(
        replica,
        &VmRequest::RevertFailover,
        ReplicationState::Replicating,
    );
    go_on(struck);
}

fn tested_failover(struck: &mut Struck) {
    let replica = struck.primary.other();
    let has_test = move |pair: &Pair| {
        let vm = pair.host(replica).ask(|client| client.vm(VM));
        vm.map(|vm| vm.test_replica_system.is_some())
    };
    let test = VmRequest::TestFailover(TestFailover { point: None });
    struck.pair.reach("tested", replica, &test, |pair| {
        has_test(pair) == Some(true)
    });
    write(struck);
    struck.sends_little(Struck::replicate);
    let end = VmRequest::EndTestFailover;
    struck
        .pair
        .reach("the test is ended", replica, &end, |pair| {
            has_test(pair) == Some(false)
        });
    go_on(struck);
}

fn paused_and_compared(struck: &mut Struck) {
    let primary = struck.primary;
    struck.reach_state(primary, &VmRequest::Suspend, ReplicationState::Suspended);
    write(struck);
    let again = VmRequest::Resynchronize(Resynchronize { start_time: None });
    struck.sends_little(|struck| {
        struck.reach_state(primary, &again, ReplicationState::Replicating);
        struck.replicate();
    });
    struck.expect_replica();
}

/// Each side keeps a VM with everything that was replicated; then all begins anew.
fn removed_and_protected_anew(struck: &mut Struck) {
    for at in At::BOTH {
        struck
            .pair
            .reach("removed", at, &VmRequest::RemoveReplication, |pair| {
                let vm = pair.host(at).ask(|client| client.vm(VM));
                vm.is_some_and(|vm| vm.relationships.is_empty())
            });
        struck.expect(at);
    }
    struck.spared(|struck| {
        struck.stop_vm(At::Beta);
        let id = struck.pair.beta.vm(VM).name;
        struck.pair.beta.client.undefine_vm(VM).unwrap();
        // Its disks are kept.
        struck.pair.beta.remove_replica(&id);
    });
    struck.protect();
    struck.expect_replica();
}

/// Whatever is asked is refused, before anything is begun here or at the other host; only a VM
/// is stopped, because somebody may have to be kept from writing on. When the disk is mended, the
/// host goes on by itself.
#[test]
fn a_host_whose_catalog_has_failed_begins_nothing_but_stops_a_vm() {
    let mut struck = Struck::protected();
    let at = struck.primary;
    struck.pair.host(at).define("mail", DISK);
    struck.write(at);
    struck.followed(at).fail_at(Some("/catalog.db"));
    let settings = VmRequest::ModifySettings(SettingsChange {
        recovery_history: Some(5),
        ..SettingsChange::default()
    });
    let ask = |struck: &Struck, request| {
        let answer = struck.pair.host(at).client.request(VM, request);
        answer.err().map(|error| error.to_string())
    };
    assert!(ask(&struck, &settings).is_some(), "nothing was struck");
    let health = struck.pair.host(at).client.health(VM).unwrap().value;
    let mut kinds = health.reasons.iter().map(|reason| reason.kind.as_str());
    assert!(kinds.any(|kind| kind == "catalog_stopped"), "{health:?}");
    for request in [
        &settings,
        &VmRequest::Start,
        &VmRequest::ReplicateNow,
        &VmRequest::Suspend,
        &VmRequest::RemoveReplication,
    ] {
        let refused = ask(&struck, request).expect("it takes no changes");
        assert!(
            refused.contains("the catalog takes no changes"),
            "{refused}"
        );
    }
    let enable = struck.pair.enabling(at, SettingsChange::default());
    let refused = struck.pair.host(at).client.request("mail", &enable);
    let refused = refused.expect_err("it could not be remembered").to_string();
    assert!(
        refused.contains("the catalog takes no changes"),
        "{refused}"
    );
    let there = struck.pair.host(at.other()).client.vms().unwrap().value;
    assert_eq!(there.len(), 1, "a replica of nothing");
    let how = StopHow::PowerOff;
    let stop = VmRequest::Stop(StopVm { how });
    let told = ask(&struck, &stop).expect("it cannot be saved");
    assert!(told.contains("the VM is off, but starts again"), "{told}");
    let state = |struck: &Struck| struck.pair.host(at).vm(VM).enabled_state;
    assert_eq!(state(&struck), EnabledState::Disabled.number());
    struck.settle();
    let is_mended = |struck: &Struck| {
        let events = struck.pair.host(at).ask(|client| client.newest_events(100));
        let mut kinds = events.into_iter().flatten().map(|event| event.kind);
        kinds.any(|kind| kind == "catalog_mended")
    };
    // Nothing is asked for meanwhile.
    let mended = (0..LOOKS).any(|_| {
        struck.pair.host(at).rest();
        is_mended(&struck)
    });
    assert!(mended, "{}", struck.pair.story());
    let health = struck.pair.host(at).client.health(VM).unwrap().value;
    let mut kinds = health.reasons.iter().map(|reason| reason.kind.as_str());
    assert!(!kinds.any(|kind| kind == "catalog_stopped"), "{health:?}");
    // What was stopped meanwhile stays off from now on.
    struck.pair.host_mut(at).start();
    // A VM that shall run is started once the other host was asked.
    struck.pair.replicate(at);
    assert_eq!(state(&struck), EnabledState::Disabled.number());
    struck.run_vm(at);
    cycle(&mut struck);
}

/// The end of a job is not lost with the catalog's failure, and who asks for something need not
/// wait until it is tried again anyway.
#[test]
fn a_job_that_ends_while_the_catalog_has_failed_has_ended_after_a_restart_too() {
    let mut struck = Struck::protected();
    let at = struck.primary;
    struck.write(at);
    struck.pair.host(at.other()).relay.cut();
    let outcome = struck
        .pair
        .host(at)
        .client
        .request(VM, &VmRequest::ReplicateNow);
    let Outcome::Started(job) = outcome.unwrap() else {
        panic!("without a line it ends at once");
    };
    let job = job.value.instance_id;
    struck.pair.host_mut(at).wait("the peer is missed", |host| {
        let job = host.client.job(&job).unwrap().value;
        job.job_status.contains("cannot reach")
    });
    struck.followed(at).fail_at(Some("/catalog.db"));
    struck.pair.host(at).client.cancel_job(&job).unwrap();
    let ended = struck.pair.host(at).client.wait_for_job(&job, 30);
    let ended = ended.unwrap().value;
    assert!(ended.ended, "{ended:?}");
    struck.settle();
    struck.pair.host(at).request(VM, &VmRequest::Suspend);
    struck.pair.host_mut(at).start();
    let known = struck.pair.host(at).client.job(&job).unwrap().value;
    assert_eq!(
        (known.job_state, known.error_code, known.error_description),
        (ended.job_state, ended.error_code, ended.error_description)
    );
    struck.pair.host(at.other()).relay.mend();
    struck.pair.host(at).request(VM, &VmRequest::Resume);
    cycle(&mut struck);
}

#[test]
fn a_primary_that_is_struck_at_a_step_of_a_cycle_sends_only_changes() {
    Struck::protected().each(Side::Primary, write, cycle);
}

#[test]
fn a_replica_that_is_struck_at_a_step_of_a_cycle_is_sent_only_changes() {
    Struck::protected().each(Side::Replica, write, cycle);
}

#[test]
fn a_primary_that_is_struck_at_a_step_of_a_planned_failover_brings_it_to_its_end() {
    Struck::protected().each(Side::Primary, write_and_stop, planned_failover);
}

#[test]
fn a_replica_that_is_struck_at_a_step_of_a_planned_failover_brings_it_to_its_end() {
    Struck::protected().each(Side::Replica, write_and_stop, planned_failover);
}

#[test]
fn a_primary_that_is_struck_at_a_step_of_a_cancelled_failover_goes_on() {
    Struck::protected().each(Side::Primary, write_and_stop, cancelled_failover);
}

#[test]
fn a_replica_that_is_struck_at_a_step_of_a_cancelled_failover_goes_on() {
    Struck::protected().each(Side::Replica, write_and_stop, cancelled_failover);
}

#[test]
fn an_old_primary_that_is_struck_at_a_step_of_a_reversal_brings_it_to_its_end() {
    Struck::protected().each(Side::Primary, replicate_and_stop, disaster);
}

#[test]
fn a_survivor_that_is_struck_at_a_step_of_failover_commit_or_reversal_brings_it_to_its_end() {
    Struck::protected().each(Side::Replica, replicate_and_stop, disaster);
}

#[test]
fn a_primary_that_is_struck_while_its_replica_reverts_goes_on() {
    Struck::protected().each(Side::Primary, replicate_and_stop, reverted_failover);
}

#[test]
fn a_replica_that_is_struck_at_a_step_of_a_revert_follows_its_primary_again() {
    Struck::protected().each(Side::Replica, replicate_and_stop, reverted_failover);
}

#[test]
fn a_replica_that_is_struck_at_a_step_of_a_test_failover_ends_it() {
    Struck::protected().each(Side::Replica, write_and_replicate, tested_failover);
}

#[test]
fn a_primary_that_is_struck_at_a_step_of_a_comparison_sends_what_differs() {
    Struck::protected().each(Side::Primary, write, paused_and_compared);
}

#[test]
fn a_replica_that_is_struck_at_a_step_of_a_comparison_is_sent_what_differs() {
    Struck::protected().each(Side::Replica, write, paused_and_compared);
}

#[test]
fn a_primary_that_is_struck_while_it_is_removed_or_protected_keeps_its_vm() {
    Struck::protected().each(
        Side::Primary,
        write_and_replicate,
        removed_and_protected_anew,
    );
}

#[test]
fn a_replica_that_is_struck_while_it_is_removed_or_made_keeps_the_vm() {
    Struck::protected().each(
        Side::Replica,
        write_and_replicate,
        removed_and_protected_anew,
    );
}
