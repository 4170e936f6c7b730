//! Running the daemon: the listeners, the service behind them, signals, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_catalog::{Catalog, OnMissing, OpenError};
use lifeboat_hypervisor::{
    Hypervisor, HypervisorError, QuiesceHook, VolumeDriver, VolumeDriverOptions,
};
use lifeboat_model::Timestamp;
use lifeboat_peer::pki::{Anonymous, CertificateInfo, Identity, Pki, PkiError, Role};
use lifeboat_peer::{
    Limits as PeerLimits, Observer, Patience, PeerServer, PeerTls, ReloadableTls, ServerEvent,
    TlsLinks,
};
use lifeboat_rest::{AlertCounters, BindUnixError, Limits as RestLimits, Listener, UnixAccess};
use lifeboat_service::api::{AccessRole, Caller, ListenerView};
use lifeboat_service::{HostStanding, Service, ServiceConfig, StartError, SystemClock};
use lifeboat_sys::clock;
use lifeboat_sys::disk::{DiskPort, RealDisk};
use lifeboat_sys::host::BootId;
use rustls::ServerConfig;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Config;
use super::alerts::{Alerts, AlertsError};

/// How long clients of a VM's disks have to end when the VM is shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// How long requests of peers have to end when the daemon stops.
const PEER_GRACE: Duration = Duration::from_secs(20);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("start threads")]
    Runtime { source: io::Error },
    #[error("use the certificates of this host")]
    Pki { source: Box<PkiError> },
    #[error("open the catalog")]
    Catalog { source: Box<OpenError> },
    #[error("prepare the driver of VMs")]
    Driver { source: Box<HypervisorError> },
    #[error("ask for this boot's identity")]
    Boot { source: io::Error },
    #[error("make the folder {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("limit what is sent")]
    Bandwidth {
        source: lifeboat_model::InvalidFields,
    },
    #[error("start the service")]
    Service { source: Box<StartError> },
    #[error("listen for peers")]
    Peers { source: lifeboat_peer::StartError },
    #[error("listen for the programs of this machine")]
    Socket { source: BindUnixError },
    #[error("listen for operators on {address}")]
    Operators {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Alerts { source: AlertsError },
    #[error("wait for signals")]
    Signals { source: io::Error },
}

/// Runs the daemon until it is told to stop (SIGTERM or SIGINT). SIGHUP loads the certificates
/// again.
///
/// # Errors
/// When something that it needs is not there; nothing was changed then.
pub fn serve(config: &Config) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("net")
        .build()
        .map_err(|source| ServeError::Runtime { source })?;
    let pki = Pki::open(&config.pki()).map_err(pki_error)?;
    let tls = PeerTls::new(&pki.load().map_err(pki_error)?).map_err(pki_error)?;
    let tls = ReloadableTls::new(tls);
    let started = clock::wall();
    let service = start_service(config, &runtime, &tls)?;
    let outcome = run(config, &runtime, &pki, &tls, &service, started);
    service.stop();
    runtime.shutdown_timeout(Duration::from_secs(5));
    outcome
}

fn start_service(
    config: &Config,
    runtime: &Runtime,
    tls: &ReloadableTls,
) -> Result<Service, ServeError> {
    let catalog = Catalog::open(&config.catalog(), OnMissing::Refuse).map_err(|source| {
        ServeError::Catalog {
            source: Box::new(source),
        }
    })?;
    std::fs::create_dir_all(&config.run).map_err(|source| ServeError::Folder {
        path: config.run.clone(),
        source,
    })?;
    let disk: Arc<dyn DiskPort> = Arc::new(RealDisk);
    let boot = BootId::current().map_err(|source| ServeError::Boot { source })?;
    let options = VolumeDriverOptions {
        state_folder: config.state.join("maps"),
        socket_folder: config.run.join("vm"),
        scratch_folder: config.state.join("scratch"),
        scratch_limit: config.limits.scratch,
        shutdown_grace: SHUTDOWN_GRACE,
        quiesce: config.quiesce.as_ref().map(|quiesce| QuiesceHook {
            program: quiesce.program.clone(),
            limit: Duration::from_secs(quiesce.timeout_seconds),
        }),
        boot,
    };
    let driver =
        VolumeDriver::new(Arc::clone(&disk), options).map_err(|source| ServeError::Driver {
            source: Box::new(source),
        })?;
    let hypervisor: Arc<dyn Hypervisor> = Arc::new(driver);
    let links = TlsLinks::new(runtime.handle().clone(), tls.clone(), Patience::default());
    let service_config = ServiceConfig {
        host: config.host.clone(),
        peer_address: config.peer.address.clone(),
        state: config.state.clone(),
        transfers: config.limits.transfers,
        send_spool_limit: config.limits.send_spool,
        bandwidth: config
            .limits
            .bandwidth_limit()
            .map_err(|source| ServeError::Bandwidth { source })?,
        on_boot: config.on_boot.policy(),
    };
    Service::start(
        service_config,
        catalog,
        hypervisor,
        Arc::new(links),
        disk,
        Arc::new(SystemClock::new()),
    )
    .map_err(|source| ServeError::Service {
        source: Box::new(source),
    })
}

fn run(
    config: &Config,
    runtime: &Runtime,
    pki: &Pki,
    tls: &ReloadableTls,
    service: &Service,
    started: Timestamp,
) -> Result<(), ServeError> {
    let counters = Arc::new(AlertCounters::default());
    let alerts = Alerts::start(
        &config.alerts,
        &config.host,
        runtime.handle(),
        Arc::new(service.clone()),
        Arc::clone(&counters),
        started,
    )
    .map_err(|source| ServeError::Alerts { source })?;
    let outcome = run_listeners(config, runtime, pki, tls, service, counters);
    alerts.stop();
    outcome
}

fn run_listeners(
    config: &Config,
    runtime: &Runtime,
    pki: &Pki,
    tls: &ReloadableTls,
    service: &Service,
    counters: Arc<AlertCounters>,
) -> Result<(), ServeError> {
    let observer: Observer = Arc::new(|event: &ServerEvent| log_peer(event));
    let peers = PeerServer::start(
        runtime.handle(),
        config.peer.listen,
        Arc::new(service.clone()),
        tls.clone(),
        PeerLimits::default(),
        observer,
    )
    .map_err(|source| ServeError::Peers { source })?;
    let served = runtime.block_on(serve_operators(
        config,
        pki,
        tls,
        service,
        peers.address(),
        counters,
    ));
    peers.stop(PEER_GRACE);
    served
}

/// Serves operators until a signal says stop.
async fn serve_operators(
    config: &Config,
    pki: &Pki,
    tls: &ReloadableTls,
    service: &Service,
    peer_address: SocketAddr,
    counters: Arc<AlertCounters>,
) -> Result<(), ServeError> {
    let access = UnixAccess {
        daemon_uid: rustix::process::geteuid().as_raw(),
        operators_gid: config.operators.group,
    };
    let socket = config.socket();
    let unix = lifeboat_rest::bind_unix(&socket, access)
        .map_err(|source| ServeError::Socket { source })?;
    let mut views = vec![
        listener("peers", peer_address.to_string()),
        listener("socket", socket.display().to_string()),
    ];
    let mut listeners = vec![Listener::Unix {
        listener: unix,
        access,
    }];
    if let Some(address) = config.operators.listen {
        let failed = |source| ServeError::Operators { address, source };
        let tcp = tokio::net::TcpListener::bind(address)
            .await
            .map_err(failed)?;
        let bound = tcp.local_addr().map_err(failed)?;
        views.push(listener("operators", bound.to_string()));
        let present = OperatorTls::load(pki)?;
        listeners.push(Listener::Tls {
            listener: tcp,
            config: Arc::new(move || present.present()),
            caller: Arc::new(caller_of),
        });
    }
    show_standing(service, tls, &views);
    let rest =
        lifeboat_rest::rest(Arc::new(service.clone()), RestLimits::default()).with_alerts(counters);
    let mut reload =
        signal(SignalKind::hangup()).map_err(|source| ServeError::Signals { source })?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| ServeError::Signals { source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| ServeError::Signals { source })?;
    // A service manager waits for this; without one nobody hears it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(host = %config.host, peers = %peer_address, "lifeboat serves");
    let told_to_stop = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = reload.recv() => {
                    match tls.reload(pki) {
                        Ok(()) => tracing::info!("the certificates were loaded again"),
                        Err(error) => tracing::error!("load the certificates again: {error}; those before stay in use"),
                    }
                    show_standing(service, tls, &views);
                }
            }
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("lifeboat stops");
    };
    lifeboat_rest::serve(listeners, rest, told_to_stop).await;
    Ok(())
}

fn listener(what: &str, address: String) -> ListenerView {
    ListenerView {
        what: what.to_owned(),
        address,
        trouble: None,
    }
}

fn show_standing(service: &Service, tls: &ReloadableTls, listeners: &[ListenerView]) {
    service.set_standing(HostStanding {
        listeners: listeners.to_vec(),
        certificate_expires_at: Some(tls.host().not_after),
    });
}

/// The TLS configuration for operators, loaded again when the files have changed.
#[derive(Debug)]
struct OperatorTls {
    pki: Pki,
    present: std::sync::Mutex<Arc<ServerConfig>>,
}

impl OperatorTls {
    fn load(pki: &Pki) -> Result<Arc<Self>, ServeError> {
        let config = Self::read(pki).map_err(pki_error)?;
        Ok(Arc::new(Self {
            pki: pki.clone(),
            present: std::sync::Mutex::new(config),
        }))
    }

    fn read(pki: &Pki) -> Result<Arc<ServerConfig>, PkiError> {
        Ok(Arc::new(pki.load()?.operator_server(Anonymous::Refused)?))
    }

    /// As the files are now; a revocation holds from the next connection on.
    fn present(&self) -> Arc<ServerConfig> {
        let mut present = self
            .present
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match Self::read(&self.pki) {
            Ok(config) => *present = config,
            Err(error) => tracing::error!("load the certificates: {error}"),
        }
        Arc::clone(&present)
    }
}

/// Whom a verified chain of certificates proves.
fn caller_of(chain: &[rustls::pki_types::CertificateDer<'_>]) -> Option<Caller> {
    let info = CertificateInfo::read(chain.first()?).ok()?;
    match info.identity {
        Identity::Operator { name, role } => Some(Caller {
            name,
            role: match role {
                Role::Viewer => AccessRole::Viewer,
                Role::Operator => AccessRole::Operator,
                Role::Administrator => AccessRole::Administrator,
            },
        }),
        _ => None,
    }
}

fn log_peer(event: &ServerEvent) {
    match event {
        ServerEvent::Distrusted { address, why } => {
            tracing::warn!(%address, "somebody was not let in: {why}");
        }
        ServerEvent::DistrustsUs { address, alert } => {
            tracing::warn!(%address, "a peer does not believe this host: {alert}");
        }
        ServerEvent::NoHandshake { address, why } => {
            tracing::info!(%address, "no peer: {why}");
        }
        ServerEvent::TurnedAway { address, .. } => {
            tracing::warn!(%address, "too many connections, one was turned away");
        }
        ServerEvent::CutOff { peer, why } => {
            tracing::warn!(%peer, "the peer was cut off: {why}");
        }
        ServerEvent::Panicked { peer, call } => {
            tracing::error!(%peer, call, "answering a peer failed with a panic");
        }
    }
}

fn pki_error(source: PkiError) -> ServeError {
    ServeError::Pki {
        source: Box::new(source),
    }
}
