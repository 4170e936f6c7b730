//! One host of a test: its folder, its service, and its lives.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use lifeboat_catalog::{Catalog, Draft, OnMissing};
use lifeboat_hypervisor::{VolumeDriver, VolumeDriverOptions};
use lifeboat_model::contract::{ReplicationMode, ReplicationState, ReturnCode};
use lifeboat_model::{BandwidthLimit, Timestamp, UtcOffset, VmId};
use lifeboat_peer::testing::Network;
use lifeboat_peer::{PeerAddress, PeerName};
use lifeboat_service::api::{
    Accepted, AccessRole, Caller, Operations, PointView, Rejection, RelationshipView, VmOperation,
    VmRef, VmView,
};
use lifeboat_service::{Clock, OnBoot, Rebuild, Rebuilt, Service, ServiceConfig, SystemClock};
use lifeboat_sys::disk::RealDisk;
use lifeboat_sys::host::BootId;

use crate::gate::{CATALOG, Gate, GatedDisk, keep};
use crate::links::{GatedLinks, Hosts};

/// How long a host asks its peer before it holds a VM.
const ASKS_PEER: Duration = Duration::from_secs(5);

/// A clock whose wall time a test moves; time to wait passes as it does.
#[derive(Debug, Default)]
pub struct TestClock {
    real: SystemClock,
    ahead_seconds: AtomicI64,
}

impl TestClock {
    pub fn jump(&self, seconds: i64) {
        self.ahead_seconds.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn wall(&self) -> Timestamp {
        let ahead = self.ahead_seconds.load(Ordering::SeqCst) * 1_000_000;
        Timestamp::from_micros(self.real.wall().as_micros().saturating_add_signed(ahead))
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic()
    }

    fn utc_offset(&self) -> UtcOffset {
        UtcOffset::UTC
    }
}

/// One host.
#[derive(Debug)]
pub struct Site {
    pub name: &'static str,
    pub address: PeerAddress,
    pub clock: Arc<TestClock>,
    /// How fast the host may send from its next life on.
    pub bandwidth: BandwidthLimit,
    root: PathBuf,
    network: Network,
    hosts: Arc<Hosts>,
    life: u32,
    boot: u32,
    pub gate: Arc<Gate>,
    pub service: Service,
    /// What earlier lives have left.
    dead: Vec<(Arc<Gate>, Service)>,
}

impl Site {
    pub fn new(name: &'static str, folder: PathBuf, network: &Network, hosts: &Arc<Hosts>) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let address: PeerAddress = format!("{name}:8473").parse().unwrap();
        let clock = Arc::new(TestClock::default());
        let mut site = Born {
            name,
            address: &address,
            clock: &clock,
            bandwidth: &BandwidthLimit::UNLIMITED,
            root: &folder,
            network,
            hosts,
            boot: 0,
        };
        let (gate, service) = site.live(0);
        Self {
            name,
            address,
            clock,
            bandwidth: BandwidthLimit::UNLIMITED,
            root: folder,
            network: network.clone(),
            hosts: Arc::clone(hosts),
            life: 0,
            boot: 0,
            gate,
            service,
            dead: Vec::new(),
        }
    }

    pub fn root(&self) -> &PathBuf {
        &self.root
    }

    /// How often the host has started again.
    pub fn lives(&self) -> u32 {
        self.life
    }

    /// Ends the service in an orderly way and starts it again.
    pub fn restart(&mut self) {
        self.network.remove(&self.address);
        self.service.stop();
        keep(&self.root, &self.kept()).unwrap();
        // What threads of the old life still do stays with the old catalog.
        self.gate.kill_unkept();
        self.live_again();
    }

    /// As [`restart`](Self::restart), on a host that was booted meanwhile: what it kept track
    /// of in memory is gone.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.kill();
        self.revive();
    }

    /// Ends every thread at its next call, with nothing in order.
    pub fn kill(&mut self) {
        self.gate.kill();
    }

    /// A dead host starts again.
    pub fn revive(&mut self) {
        assert!(self.gate.is_killed(), "{} lives", self.name);
        // Another thread may be at it: what it keeps is what this host starts with.
        self.gate.kill();
        self.network.remove(&self.address);
        self.live_again();
    }

    /// The host dies and its catalog is lost. It lives again with what its stores say.
    pub fn lose_catalog(&mut self) -> Rebuilt {
        self.kill();
        self.network.remove(&self.address);
        let kept = self.kept().join(CATALOG);
        std::fs::remove_file(&kept).unwrap();
        let beside = self.root.with_extension(format!("rebuild{}", self.life));
        let rebuild = Rebuild {
            // Its locks are not those of the dead.
            disk: Arc::new(GatedDisk {
                inner: Arc::new(RealDisk),
                gate: Gate::new(self.root.clone(), beside),
            }),
            storage: vec![self.root.join("replicas")],
            own_address: self.address.clone(),
            other_side: None,
            holder: "the rebuild".to_owned(),
        };
        let draft = Draft::new(&kept).unwrap();
        let rebuilt = rebuild.run(&draft, self.clock.wall()).unwrap();
        draft.finish().unwrap();
        self.live_again();
        rebuilt
    }

    /// A dead host whose catalog is lost, and which has no stores, is made anew.
    pub fn begin_anew(&mut self) {
        self.kill();
        self.network.remove(&self.address);
        let kept = self.kept().join(CATALOG);
        std::fs::remove_file(&kept).unwrap();
        drop(Catalog::open(&kept, OnMissing::Create).unwrap());
        self.live_again();
    }

    fn live_again(&mut self) {
        let buried = self.root.with_extension(format!("life{}", self.life));
        std::fs::create_dir(&buried).unwrap();
        for entry in std::fs::read_dir(&self.root).unwrap() {
            let name = entry.unwrap().file_name();
            if name.to_string_lossy().starts_with("catalog") {
                std::fs::rename(self.root.join(&name), buried.join(&name)).unwrap();
            }
        }
        std::fs::rename(self.kept().join(CATALOG), self.root.join(CATALOG)).unwrap();
        self.life += 1;
        let mut born = Born {
            name: self.name,
            address: &self.address,
            clock: &self.clock,
            bandwidth: &self.bandwidth,
            root: &self.root,
            network: &self.network,
            hosts: &self.hosts,
            boot: self.boot,
        };
        let (gate, service) = born.live(self.life);
        let dead = std::mem::replace(&mut self.service, service);
        // Nothing of it may be put in order: its threads end at their next call, and what it
        // had open stays open until nobody looks any more.
        let its_gate = std::mem::replace(&mut self.gate, gate);
        self.dead.push((its_gate, dead));
    }

    fn kept(&self) -> PathBuf {
        self.root.with_extension(format!("kept{}", self.life))
    }

    /// Asks as an administrator; a host that dies meanwhile has said nothing.
    pub fn ask(&self, vm: VmId, operation: VmOperation) -> Result<Accepted, Rejection> {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            self.service.request(&admin(), &VmRef::Id(vm), operation)
        }));
        match asked {
            Ok(answer) => answer,
            Err(_) if self.gate.is_killed() => Err(Rejection {
                code: ReturnCode::NotAvailable,
                what: format!("{} died", self.name),
                remedy: String::new(),
            }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub fn view(&self, vm: VmId) -> VmView {
        self.service.vm(&admin(), &VmRef::Id(vm)).unwrap()
    }

    pub fn relation(&self, vm: VmId) -> RelationshipView {
        self.view(vm).relationships.remove(0)
    }

    /// How the VM's replication stands; disabled where the VM is not known.
    pub fn state(&self, vm: VmId) -> (ReplicationMode, ReplicationState) {
        match self.service.vm(&admin(), &VmRef::Id(vm)) {
            Ok(view) => (view.replication_mode, view.replication_state),
            Err(_) => (ReplicationMode::None, ReplicationState::Disabled),
        }
    }

    pub fn points(&self, vm: VmId) -> Vec<PointView> {
        self.service.points(&admin(), &VmRef::Id(vm)).unwrap()
    }

    /// Bytes received and not applied.
    pub fn backlog(&self, vm: VmId) -> u64 {
        let health = self.service.health(&admin(), &VmRef::Id(vm)).unwrap();
        health.start.backlog_bytes
    }

    /// Everything that was told to people, oldest first.
    pub fn told(&self) -> Vec<String> {
        let events = self.service.events(&admin(), 0, 10_000).unwrap();
        events.into_iter().map(|event| event.message).collect()
    }
}

impl Drop for Site {
    /// Threads end, and what every life had open is closed, with nothing written.
    fn drop(&mut self) {
        let last = (Arc::clone(&self.gate), self.service.clone());
        for (gate, service) in self.dead.drain(..).chain([last]) {
            gate.close();
            service.stop();
        }
    }
}

/// What a host begins a life with.
struct Born<'a> {
    name: &'static str,
    address: &'a PeerAddress,
    clock: &'a Arc<TestClock>,
    bandwidth: &'a BandwidthLimit,
    root: &'a PathBuf,
    network: &'a Network,
    hosts: &'a Arc<Hosts>,
    boot: u32,
}

impl Born<'_> {
    fn live(&mut self, life: u32) -> (Arc<Gate>, Service) {
        let kept = self.root.with_extension(format!("kept{life}"));
        let gate = Gate::new(self.root.clone(), kept);
        let catalog = Catalog::open(&self.root.join("catalog"), OnMissing::Create).unwrap();
        let disk = Arc::new(GatedDisk {
            inner: Arc::new(RealDisk),
            gate: Arc::clone(&gate),
        });
        let options = VolumeDriverOptions {
            state_folder: self.root.join("maps"),
            // Sockets are not kept; a life has its own.
            socket_folder: self.root.with_extension(format!("run{life}")),
            scratch_folder: self.root.join("scratch"),
            scratch_limit: 1 << 30,
            shutdown_grace: Duration::from_secs(5),
            quiesce: None,
            boot: BootId::noted(&format!("boot-{}", self.boot)),
        };
        let driver = VolumeDriver::new(disk.clone(), options).unwrap();
        let config = ServiceConfig {
            host: self.name.to_owned(),
            peer_address: self.address.to_string(),
            state: self.root.join("state"),
            transfers: 4,
            send_spool_limit: 1 << 30,
            bandwidth: self.bandwidth.clone(),
            on_boot: OnBoot::AskPeer { timeout: ASKS_PEER },
        };
        let links = GatedLinks {
            inner: self.network.links(PeerName::new(self.name.to_owned())),
            own: Arc::clone(&gate),
            hosts: Arc::clone(self.hosts),
        };
        self.hosts.lives(self.address, &gate);
        let service = Service::start(
            config,
            catalog,
            Arc::new(driver),
            Arc::new(links),
            disk,
            Arc::clone(self.clock) as Arc<dyn Clock>,
        )
        .unwrap();
        let host = Arc::new(service.clone());
        self.network
            .add(self.address, PeerName::new(self.name.to_owned()), host);
        (gate, service)
    }
}

pub fn admin() -> Caller {
    Caller {
        name: "test".to_owned(),
        role: AccessRole::Administrator,
    }
}
