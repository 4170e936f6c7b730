//! A first copy and cycles over a line that is cut in the middle of each.

use lifeboat_harness::Random;
use lifeboat_model::contract::ReplicationState;
use lifeboat_nbd::Client as NbdClient;
use lifeboat_rest::client::VmRequest;
use lifeboat_rest::wire::{
    DefineVm, DefineVmDisk, EnableReplication, SettingsChange, StartReplication, TestFailover,
};

use crate::host::Host;
use crate::space::spaces;

const VM: &str = "web";

/// Pieces of a copy, and what is written to each of them.
const PIECES: u64 = 5;
const PIECE: u64 = 64 << 20;
const WRITTEN: u64 = 5 << 20;

/// What the three pieces that are under way hold, and everything that is no data.
const SENT_AGAIN: u64 = 3 * WRITTEN + (3 << 20);

/// What the guest writes before a cycle.
const CHANGED: u64 = 6 << 20;

struct Pair {
    alpha: Host,
    beta: Host,
    guest: NbdClient,
    shadow: Vec<u8>,
    random: Random,
    _folder: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = spaces().map_or((None, None), |[one, other]| (Some(one), Some(other)));
        let near = |space: &Option<crate::space::Space>| space.as_ref().map(|space| space.near);
        let (to_alpha, to_beta) = (near(&other), near(&one));
        let mut alpha = Host::new("alpha.test", folder.path(), one, to_alpha);
        let mut beta = Host::new("beta.test", folder.path(), other, to_beta);
        alpha.trust(&beta);
        beta.trust(&alpha);
        alpha.start(beta.name);
        beta.start(alpha.name);
        let vm = DefineVm {
            name: None,
            element_name: VM.to_owned(),
            memory_mib: 64,
            processors: 1,
            disks: vec![DefineVmDisk {
                disk: "vda".to_owned(),
                size: Some(PIECES * PIECE),
                image: None,
            }],
        };
        alpha.client.define_vm(&vm).unwrap();
        alpha.request(VM, &VmRequest::Start);
        let guest = alpha.disk(VM);
        Self {
            alpha,
            beta,
            guest,
            shadow: vec![0; (PIECES * PIECE) as usize],
            random: Random::new(91),
            _folder: folder,
        }
    }

    /// The guest writes bytes that nothing makes smaller.
    fn write(&mut self, at: u64, length: u64) {
        let known = &mut self.shadow[at as usize..(at + length) as usize];
        self.random.fill(known);
        for (number, part) in known.chunks(1 << 20).enumerate() {
            self.guest.write(at + (number << 20) as u64, part).unwrap();
        }
        self.guest.flush().unwrap();
    }

    fn is_replicating(host: &Host) -> bool {
        let state = ReplicationState::Replicating.number();
        let relationship = host.vm(VM).relationships.into_iter().next();
        relationship.is_some_and(|one| one.replication_state == state)
    }

    /// Cuts the line when so many bytes more have passed, and mends it when the primary has
    /// noticed.
    fn cut_after(&mut self, bytes: u64) {
        let before = self.beta.relay.bytes();
        self.beta
            .wait("bytes pass", |host| host.relay.bytes() - before >= bytes);
        self.beta.relay.cut();
        let address = self.beta.relay.address.to_string();
        self.alpha.wait("the cut is noticed", |host| {
            let reasons = host.client.health(VM).unwrap().value.reasons;
            reasons.iter().any(|reason| reason.what.contains(&address))
        });
        self.beta.relay.mend();
    }

    /// Nothing gets through, without anybody being told, until nothing is under way any more.
    fn unplug_for_a_while(&mut self) {
        let Some(space) = &self.beta.space else {
            println!("no cable can be pulled here: the line is cut instead");
            self.beta.relay.cut();
            self.beta.relay.mend();
            return;
        };
        space.unplug();
        let (mut before, mut still) = (0, 0);
        self.alpha.wait("nothing is under way", |_| {
            let now = self.beta.relay.bytes();
            still = if now == before { still + 1 } else { 0 };
            before = now;
            still == 20
        });
        space.plug_in();
    }

    fn enable(&self) {
        self.alpha.request(
            VM,
            &VmRequest::EnableReplication(EnableReplication {
                recovery_connection_point: self.beta.relay.address.to_string(),
                recovery_host_name: Some("beta.test".to_owned()),
                kept_replica: None,
                settings: SettingsChange {
                    replication_interval: Some(5),
                    recovery_history: Some(4),
                    ..SettingsChange::default()
                },
            }),
        );
    }

    /// Everything written so far arrives.
    fn replicate(&mut self) {
        for _ in 0..2 {
            let before = self.alpha.relationship(VM).last_sequence;
            self.alpha.wait("a moment arrives", |host| {
                // It may wait for its next try.
                host.request(VM, &VmRequest::ReplicateNow);
                host.relationship(VM).last_sequence > before && Self::is_replicating(host)
            });
        }
        self.beta.wait("everything is applied", |host| {
            let start = host.client.health(VM).unwrap().value.start;
            Self::is_replicating(host) && start.backlog_bytes == 0
        });
    }

    /// The replica's newest point is what the guest wrote.
    fn expect_replica(&mut self) {
        self.beta
            .request(VM, &VmRequest::TestFailover(TestFailover { point: None }));
        let test = self.beta.vm(VM).test_replica_system.unwrap();
        self.beta.request(&test, &VmRequest::Start);
        let disk = self.beta.disk(&test);
        let mut found = vec![0; PIECE as usize];
        for (number, wanted) in self.shadow.chunks(PIECE as usize).enumerate() {
            for (at, part) in found.chunks_mut(8 << 20).enumerate() {
                let at = number as u64 * PIECE + (at as u64 * (8 << 20));
                disk.read(at, part).unwrap();
            }
            let differs = found.iter().zip(wanted).position(|(a, b)| a != b);
            assert_eq!(differs, None, "piece {number} differs first at this byte");
        }
        drop(disk);
        self.beta.request(VM, &VmRequest::EndTestFailover);
    }
}

#[test]
fn a_copy_and_cycles_over_a_line_that_is_cut_arrive_whole_and_once() {
    let mut pair = Pair::new();
    for piece in 0..PIECES {
        pair.write(piece * PIECE + (7 << 20), WRITTEN);
    }
    pair.enable();
    let before = pair.beta.relay.bytes();
    pair.alpha.request(
        VM,
        &VmRequest::StartReplication(StartReplication::default()),
    );
    // In the middle of a piece.
    pair.cut_after(2 * WRITTEN + WRITTEN / 2);
    pair.write(PIECE, 1 << 20);
    pair.alpha.wait("the copy is made", |host| {
        host.request(VM, &VmRequest::ReplicateNow);
        Pair::is_replicating(host)
    });
    pair.replicate();
    let copied = pair.beta.relay.bytes() - before;
    let all = PIECES * WRITTEN + (1 << 20);
    assert!(copied < all + SENT_AGAIN, "{copied} of {all} travelled");
    pair.expect_replica();

    let before = pair.beta.relay.bytes();
    pair.write(3 * PIECE, CHANGED);
    pair.alpha.request(VM, &VmRequest::ReplicateNow);
    pair.cut_after(CHANGED / 2);
    pair.replicate();
    pair.expect_replica();

    pair.write(2 * PIECE, CHANGED);
    pair.alpha.request(VM, &VmRequest::ReplicateNow);
    let half = pair.beta.relay.bytes() + CHANGED / 2;
    pair.beta
        .wait("bytes pass", |host| host.relay.bytes() >= half);
    pair.unplug_for_a_while();
    pair.write(PIECE + (20 << 20), 1 << 20);
    pair.replicate();
    pair.expect_replica();
    let sent = pair.beta.relay.bytes() - before;
    // Each delta may have to be sent once more.
    assert!(sent < 4 * CHANGED + (4 << 20), "{sent} travelled");
    println!(
        "{copied} bytes for a copy of {all}, {sent} for cycles of {}",
        2 * CHANGED
    );
}

#[test]
fn a_catalog_that_is_lost_and_made_again_costs_what_has_changed_and_no_copy() {
    let mut pair = Pair::new();
    for piece in 0..PIECES {
        pair.write(piece * PIECE + (7 << 20), WRITTEN);
    }
    pair.enable();
    pair.alpha.request(
        VM,
        &VmRequest::StartReplication(StartReplication::default()),
    );
    pair.alpha.wait("the copy is made", Pair::is_replicating);
    pair.replicate();
    pair.beta.lose_catalog();
    let before = pair.beta.relay.bytes();
    pair.write(3 * PIECE, CHANGED);
    let alpha = pair.alpha.name;
    pair.beta.start(alpha);
    pair.replicate();
    let sent = pair.beta.relay.bytes() - before;
    assert!(sent < CHANGED + (3 << 20), "{sent} of {CHANGED} travelled");
    pair.expect_replica();
}
