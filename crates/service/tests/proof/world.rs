//! Two hosts, a VM, its guest, and what the guest wrote.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lifeboat_harness::Random;
use lifeboat_model::authorization::UncheckedEntry;
use lifeboat_model::contract::{
    AllowedAuthenticationType, InitialReplicationType, PointKind, ReplicationMode, ReplicationState,
};
use lifeboat_model::retention::UncheckedRetentionFloor;
use lifeboat_model::service_settings::ServiceSettingsChange;
use lifeboat_model::settings::SettingsChange;
use lifeboat_model::{DiskId, DiskSize, Sequence, VmId};
use lifeboat_nbd::{Client, ClientOptions};
use lifeboat_peer::testing::Network;
use lifeboat_service::Clock as _;
use lifeboat_service::api::{
    Accepted, EnableReplication, NewVm, NewVmDisk, Operations, Rejection, ReverseReplication,
    StopHow, VmOperation, VmRef,
};
use tempfile::TempDir;

use crate::gate::Death;
use crate::links::Hosts;
use crate::site::{Site, admin};

pub use ReplicationMode::{Primary, Replica};

/// A goal that is not reached after so many waits of [`WAIT`] never will be.
const WAITS: u32 = 6000;

/// Between two looks, unless something happens sooner.
const WAIT: Duration = Duration::from_millis(5);

/// The bytes of a VM's disks.
pub type Bytes = BTreeMap<String, Vec<u8>>;

pub struct World {
    pub alpha: Site,
    pub beta: Site,
    pub network: Network,
    pub hosts: Arc<Hosts>,
    pub vm: VmId,
    /// What the guest wrote.
    pub shadow: Bytes,
    /// Where the next host that starts again dies once more.
    pub once_more: Option<Death>,
    random: Random,
    _folder: TempDir,
}

/// Which of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Alpha,
    Beta,
}

impl At {
    pub fn other(self) -> Self {
        match self {
            Self::Alpha => Self::Beta,
            Self::Beta => Self::Alpha,
        }
    }
}

impl World {
    /// Two hosts that let each other in, and a VM that runs on alpha.
    pub fn new(seed: u64, disks: &[(&str, u64)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::new();
        let hosts = Arc::new(Hosts::default());
        let site = |name: &'static str| Site::new(name, folder.path().join(name), &network, &hosts);
        let (alpha, beta) = (site("alpha.test"), site("beta.test"));
        let_in(&alpha, beta.name);
        let_in(&beta, alpha.name);
        let new = NewVm {
            id: None,
            name: "web".to_owned(),
            memory_mib: 64,
            processors: 1,
            disks: disks
                .iter()
                .map(|(id, size)| NewVmDisk {
                    id: id.parse::<DiskId>().unwrap(),
                    size: Some(DiskSize::try_from(*size).unwrap()),
                    image: None,
                })
                .collect(),
        };
        let vm = alpha.service.define_vm(&admin(), new).unwrap().id;
        let shadow = disks
            .iter()
            .map(|(id, size)| ((*id).to_owned(), vec![0; *size as usize]))
            .collect();
        let mut world = Self {
            alpha,
            beta,
            network,
            hosts,
            vm,
            shadow,
            once_more: None,
            random: Random::new(seed),
            _folder: folder,
        };
        world.start(At::Alpha);
        world.write(20);
        world
    }

    /// As [`new`](Self::new), replicated to beta, with everything applied there.
    pub fn replicated(seed: u64) -> Self {
        let mut world = Self::new(seed, &[("vda", 1 << 20), ("vdb", 512 << 10)]);
        world.enable(SettingsChange::default());
        world.copy();
        world
    }

    pub fn site(&self, at: At) -> &Site {
        match at {
            At::Alpha => &self.alpha,
            At::Beta => &self.beta,
        }
    }

    pub fn site_mut(&mut self, at: At) -> &mut Site {
        match at {
            At::Alpha => &mut self.alpha,
            At::Beta => &mut self.beta,
        }
    }

    pub fn ask(&self, at: At, operation: VmOperation) -> Result<Accepted, Rejection> {
        self.site(at).ask(self.vm, operation)
    }

    /// Asks until the goal is reached: again after every death, and after every answer that
    /// was a no. Hosts that die are started again.
    pub fn reach(
        &mut self,
        what: &str,
        at: At,
        operation: &VmOperation,
        done: impl Fn(&Self) -> bool,
    ) {
        self.insist(what, at, operation, true, done);
    }

    /// As [`reach`](Self::reach), and whoever is dead stays dead.
    pub fn reach_alone(
        &mut self,
        what: &str,
        at: At,
        operation: &VmOperation,
        done: impl Fn(&Self) -> bool,
    ) {
        self.insist(what, at, operation, false, done);
    }

    fn insist(
        &mut self,
        what: &str,
        at: At,
        operation: &VmOperation,
        revives: bool,
        done: impl Fn(&Self) -> bool,
    ) {
        let mut refused = None;
        for wait in 0..WAITS {
            if revives {
                self.revive();
            }
            if done(self) {
                return;
            }
            if wait % 10 == 0 {
                refused = self.ask(at, operation.clone()).err().or(refused);
                if revives {
                    self.nudge();
                }
            }
            self.rest();
        }
        panic!(
            "not reached: {what}; last refusal: {refused:?}\n{}",
            self.story()
        );
    }

    /// Waits until something is so, without asking for it.
    pub fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for wait in 0..WAITS {
            self.revive();
            if done(self) {
                return;
            }
            if wait % 10 == 9 {
                self.nudge();
            }
            self.rest();
        }
        panic!("waited in vain: {what}\n{}", self.story());
    }

    /// As [`wait`](Self::wait), and whoever dies stays dead.
    pub fn wait_for(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..WAITS {
            if done(self) {
                return;
            }
            self.rest();
        }
        panic!("waited in vain: {what}\n{}", self.story());
    }

    /// Something is so and stays so, however often the hosts are nudged.
    pub fn stays(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..50 {
            self.nudge();
            self.rest();
            assert!(so(self), "it did not stay so: {what}\n{}", self.story());
        }
    }

    /// How often the hosts call each other while their VMs are looked at so often.
    pub fn calls_during(&self, looks: u32) -> u64 {
        let before = self.hosts.calls.load(Ordering::SeqCst);
        for _ in 0..looks {
            for at in [At::Alpha, At::Beta] {
                self.site(at).view(self.vm);
            }
        }
        self.hosts.calls.load(Ordering::SeqCst) - before
    }

    /// Hosts that died live again.
    pub fn revive(&mut self) {
        for at in [At::Alpha, At::Beta] {
            if self.site(at).gate.is_killed() {
                self.site_mut(at).revive();
                if let Some(death) = self.once_more.take() {
                    self.site(at).gate.die_at(death);
                }
            }
        }
    }

    /// Has whoever waits for its next try, try now.
    pub fn nudge(&self) {
        for at in [At::Alpha, At::Beta] {
            if self.site(at).state(self.vm).0 == Primary {
                // A VM that is not replicated yet says no.
                let _ = self.ask(at, VmOperation::ReplicateNow);
            }
        }
    }

    fn rest(&self) {
        let newest = self.beta.service.wait_for_events(0, Duration::ZERO);
        self.beta.service.wait_for_events(newest, WAIT);
    }

    /// What both hosts say, for the reader of a failure.
    pub fn story(&self) -> String {
        let mut story = String::new();
        for at in [At::Alpha, At::Beta] {
            let site = self.site(at);
            story.push_str(&format!("{}: {:?}\n", site.name, site.state(self.vm)));
            if let Ok(health) = site.service.health(&admin(), &VmRef::Id(self.vm)) {
                story.push_str(&format!("  {:?}\n", health.reasons));
            }
            for told in site.told() {
                story.push_str(&format!("  {told}\n"));
            }
        }
        story
    }

    pub fn start(&mut self, at: At) {
        self.reach("the VM runs", at, &VmOperation::StartVm, |world| {
            world.site(at).view(world.vm).running
        });
    }

    pub fn stop(&mut self, at: At) {
        let how = StopHow::PowerOff;
        self.reach("the VM is off", at, &VmOperation::StopVm { how }, |world| {
            !world.site(at).view(world.vm).running
        });
    }

    pub fn enable(&mut self, settings: SettingsChange) {
        let enable = VmOperation::EnableReplication(EnableReplication {
            recovery_connection_point: "beta.test:8473".to_owned(),
            recovery_host_name: None,
            kept_replica: None,
            settings: SettingsChange {
                replication_interval: Some(3600),
                recovery_history: Some(8),
                ..settings
            },
        });
        self.reach("replication is enabled", At::Alpha, &enable, |world| {
            world.alpha.state(world.vm).0 == Primary
        });
    }

    /// The first copy, until it is applied.
    pub fn copy(&mut self) {
        let start = VmOperation::StartReplication {
            kind: InitialReplicationType::NetworkTransfer,
            at: None,
        };
        self.reach("the first copy", At::Alpha, &start, Self::is_replicating);
        self.replicate(At::Alpha);
    }

    pub fn is_replicating(&self) -> bool {
        let state = |at| self.site(at).state(self.vm);
        let modes = [state(At::Alpha).0, state(At::Beta).0];
        let states = [state(At::Alpha).1, state(At::Beta).1];
        modes.contains(&Primary)
            && modes.contains(&Replica)
            && states == [ReplicationState::Replicating; 2]
    }

    /// A VM that is off is prepared for a planned failover: everything it wrote is at the
    /// other host, as a point of its own.
    pub fn prepare(&mut self, from: At) {
        let prepare = VmOperation::PreparePlannedFailover;
        let state = ReplicationState::SyncedReplicationComplete;
        let before = self.planned_points(from.other());
        self.reach("prepared", from, &prepare, |world| {
            world.site(from).state(world.vm).1 == state
                && world.planned_points(from.other()) > before
        });
    }

    pub fn planned_points(&self, at: At) -> usize {
        let points = self.site(at).points(self.vm).into_iter();
        points
            .filter(|point| point.kind == PointKind::PlannedFailover)
            .count()
    }

    /// Everything written so far travels from `from` and is applied.
    pub fn replicate(&mut self, from: At) {
        // A cycle under way may have begun before the last write; the next one has not.
        for _ in 0..2 {
            let before = self.site(from).relation(self.vm).last_sequence;
            let now = VmOperation::ReplicateNow;
            self.reach("everything is replicated", from, &now, |world| {
                let (primary, replica) = (world.site(from), world.site(from.other()));
                world.is_replicating()
                    && primary.relation(world.vm).last_sequence > before
                    && replica.backlog(world.vm) == 0
            });
        }
    }

    /// A recovery point of the replica's newest state.
    pub fn make_point(&self, at: At) -> Sequence {
        self.ask(at, VmOperation::MakePoint).unwrap();
        let points = self.site(at).points(self.vm).into_iter();
        points.map(|point| point.sequence).max().unwrap()
    }

    /// The clocks of both hosts go on to this second of the day.
    pub fn jump_to(&self, second: u64) {
        const DAY: u64 = 24 * 3600;
        let now = self.alpha.clock.wall().as_micros() / 1_000_000 % DAY;
        let ahead = i64::try_from((second + DAY - now) % DAY).unwrap();
        for at in [At::Alpha, At::Beta] {
            self.site(at).clock.jump(ahead);
        }
    }

    /// The guest on alpha writes.
    pub fn write(&mut self, times: u32) {
        self.write_at(At::Alpha, times);
    }

    /// As [`write_at`](Self::write_at), while the host that may die does not: it is not known
    /// which bytes of a guest's last write outlive its host.
    pub fn write_surely(&mut self, at: At, times: u32) {
        let once_more = self.once_more.take();
        self.site(at).gate.spare();
        self.start(at);
        self.write_at(at, times);
        self.site(at).gate.expose();
        self.once_more = once_more;
    }

    /// The guest on a host writes, and every byte is known.
    pub fn write_at(&mut self, at: At, times: u32) {
        for disk in self.site(at).view(self.vm).disks {
            let uri = disk.uri.expect("the VM runs");
            let client = connect(&uri);
            let known = self.shadow.get_mut(disk.id.as_str()).unwrap();
            for _ in 0..times {
                let length = 512 * self.random.below(32) as usize + 512;
                let at = 512 * self.random.below(((known.len() - length) / 512) as u64) as usize;
                let mut bytes = vec![0; length];
                if self.random.below(8) != 0 {
                    self.random.fill(&mut bytes);
                }
                client.write(at as u64, &bytes).unwrap();
                known[at..at + length].copy_from_slice(&bytes);
            }
            client.flush().unwrap();
        }
    }

    /// The guest on alpha writes the first bytes of a disk, in large pieces.
    pub fn fill(&mut self, disk: &str, bytes: usize) {
        const PIECE: usize = 1 << 20;
        let view = self.alpha.view(self.vm);
        let disk = view
            .disks
            .into_iter()
            .find(|known| known.id.as_str() == disk);
        let disk = disk.expect("the VM has the disk");
        let client = connect(&disk.uri.expect("the VM runs"));
        let known = self.shadow.get_mut(disk.id.as_str()).unwrap();
        for (piece, bytes) in known[..bytes].chunks_mut(PIECE).enumerate() {
            self.random.fill(bytes);
            client.write((piece * PIECE) as u64, bytes).unwrap();
        }
        client.flush().unwrap();
    }

    /// Every byte of a running VM's disks.
    pub fn read(&self, at: At, vm: VmId) -> Bytes {
        let disks = self.site(at).view(vm).disks.into_iter();
        disks
            .filter_map(|disk| {
                let client = connect(&disk.uri?);
                let mut bytes = vec![0; disk.size.bytes() as usize];
                client.read(0, &mut bytes).unwrap();
                Some((disk.id.as_str().to_owned(), bytes))
            })
            .collect()
    }

    /// The VM that runs at a host has exactly these bytes.
    pub fn expect(&self, at: At, bytes: &Bytes) {
        expect_same(&self.read(at, self.vm), bytes);
    }

    /// The replica's newest state is what the guest wrote, by a test failover.
    pub fn expect_replica(&mut self, at: At) {
        let bytes = self.test(at);
        expect_same(&bytes, &self.shadow);
    }

    /// As [`expect_replica`](Self::expect_replica), after whoever had yet to die has.
    pub fn expect_replica_surely(&mut self, at: At) {
        self.settle();
        self.expect_replica(at);
    }

    /// As [`expect`](Self::expect), after whoever had yet to die has.
    pub fn expect_surely(&mut self, at: At, bytes: &Bytes) {
        self.settle();
        self.start(at);
        self.expect(at, bytes);
    }

    /// The test failover at beta, whose VM may have to be started, reads these bytes.
    pub fn expect_test(&mut self, bytes: &Bytes) {
        let test = self.beta.view(self.vm).test_replica.unwrap();
        if !self.beta.view(test).running {
            self.beta.ask(test, VmOperation::StartVm).unwrap();
        }
        expect_same(&self.read(At::Beta, test), bytes);
    }

    /// No death is planned any more, and nobody is dead.
    pub fn settle(&mut self) {
        self.once_more = None;
        for at in [At::Alpha, At::Beta] {
            self.site(at).gate.live_on();
        }
        self.revive();
        self.wait("both sides stand still", |world| {
            [At::Alpha, At::Beta].iter().all(|at| {
                let site = world.site(*at);
                site.state(world.vm).0 != Replica || site.backlog(world.vm) == 0
            })
        });
    }

    /// What a test failover of the newest state reads.
    pub fn test(&mut self, at: At) -> Bytes {
        let vm = self.vm;
        self.ask(at, VmOperation::TestFailover { point: None })
            .unwrap();
        let test = self.site(at).view(vm).test_replica.unwrap();
        self.site(at).ask(test, VmOperation::StartVm).unwrap();
        let bytes = self.read(at, test);
        self.ask(at, VmOperation::EndTestFailover).unwrap();
        bytes
    }

    /// A recovery point at beta reads as the VM was then.
    pub fn expect_point(&mut self, point: Sequence, bytes: &Bytes) {
        let test = VmOperation::TestFailover { point: Some(point) };
        self.ask(At::Beta, test).unwrap();
        self.expect_test(bytes);
        self.ask(At::Beta, VmOperation::EndTestFailover).unwrap();
    }

    /// Whether a reversal did not believe the maps.
    pub fn says_that_disks_are_compared(&self, at: At) -> bool {
        let told = self.site(at).told();
        told.iter()
            .any(|told| told.contains("the disks of both sides are compared"))
    }

    /// Bytes of copies and of deltas so far.
    pub fn traffic(&self) -> (u64, u64) {
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::SeqCst);
        (load(&self.hosts.copied), load(&self.hosts.sent))
    }

    /// Alpha, which was booted, finds that it knows no changes any more, and compares.
    pub fn compare_after_a_boot(&mut self) {
        self.wait("the lost maps are found", |world| {
            let state = world.alpha.state(world.vm).1;
            state == ReplicationState::WaitingToStartResynchronization
        });
        let again = VmOperation::Resynchronize { at: None };
        self.reach("compared", At::Alpha, &again, Self::is_replicating);
    }

    /// Whether a side knows that nothing but maps has compared the disks.
    pub fn is_unverified(&self, at: At) -> bool {
        self.has_reason(at, "unverified")
    }

    /// Whether a side gives this reason for its health.
    pub fn has_reason(&self, at: At, kind: &str) -> bool {
        let health = self.site(at).service.health(&admin(), &VmRef::Id(self.vm));
        let reasons = health.unwrap().reasons;
        reasons.iter().any(|reason| reason.kind == kind)
    }

    /// After a reversal from `from` everything is compared, and both sides know it.
    pub fn verify(&mut self, from: At) {
        let now = VmOperation::ReplicateNow;
        self.reach("both sides are verified", from, &now, |world| {
            ![At::Alpha, At::Beta]
                .into_iter()
                .any(|at| world.is_unverified(at))
        });
    }

    /// The roles are swapped, and everything is in step again.
    pub fn reverse(&mut self, at: At) {
        let reverse = VmOperation::ReverseReplication(ReverseReplication::default());
        self.reach("the roles are swapped", at, &reverse, |world| {
            world.site(at).state(world.vm).0 == Primary && world.is_replicating()
        });
    }
}

impl Drop for World {
    /// What the hosts still do ends with its next call.
    fn drop(&mut self) {
        for site in [&self.alpha, &self.beta] {
            site.gate.kill_unkept();
            self.network.remove(&site.address);
        }
    }
}

pub fn expect_same(found: &Bytes, wanted: &Bytes) {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>()
    );
    for (disk, bytes) in wanted {
        let differs = bytes.iter().zip(&found[disk]).position(|(a, b)| a != b);
        assert_eq!(differs, None, "disk {disk} differs first at this byte");
        assert_eq!(bytes.len(), found[disk].len());
    }
}

/// A host accepts replication from another.
pub fn let_in(site: &Site, peer: &str) {
    let change = ServiceSettingsChange {
        recovery_server_enabled: Some(true),
        allowed_authentication_type: Some(AllowedAuthenticationType::Certificate),
        ..ServiceSettingsChange::default()
    };
    site.service
        .modify_service_settings(&admin(), change)
        .unwrap();
    let entry = entry(site, peer, "pair");
    site.service
        .add_authorization_entry(&admin(), entry)
        .unwrap();
}

/// An entry that lets a host in.
pub fn entry(
    site: &Site,
    peer: &str,
    group: &str,
) -> lifeboat_service::api::AuthorizationEntryView {
    let entry = UncheckedEntry {
        allowed_primary_host_system: peer.to_owned(),
        trust_group: group.to_owned(),
        replica_storage_location: site.root().join("replicas").display().to_string(),
        retention_floor: UncheckedRetentionFloor {
            points: 4,
            hours: 48,
        },
    };
    entry.validate().unwrap()
}

fn connect(uri: &str) -> Client {
    Client::connect(&uri.parse().unwrap(), &ClientOptions::default()).unwrap()
}
