//! `lifeboat init`: a usable host in one command.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Args;
use lifeboat_catalog::{Catalog, OnMissing};
use lifeboat_peer::pki::{HostNames, Pki};
use lifeboat_sys::clock;
use serde::Serialize;

use crate::daemon::config::{
    AlertsConfig, LimitsConfig, OnBootConfig, OperatorsConfig, PeerConfig,
};
use crate::daemon::{Config, DEFAULT_CONFIG};
use crate::exit::Failure;
use crate::output::{OutputFormat, facts};

/// Make this machine a Lifeboat host: configuration, certificates, catalog
///
/// Without --join the host gets a certificate authority of its own, which can sign for other
/// hosts. With --join it makes a request that another host's authority signs.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where the configuration is written
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,

    /// Keep everything below this folder, the configuration too: for trying it out
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "state", "run"])]
    root: Option<PathBuf>,

    /// This host's name, as peers will know it [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// What must outlive a reboot
    #[arg(long, default_value = "/var/lib/lifeboat", value_name = "DIR")]
    state: PathBuf,

    /// Sockets
    #[arg(long, default_value = "/run/lifeboat", value_name = "DIR")]
    run: PathBuf,

    /// Where to listen for peers
    #[arg(long, default_value = "0.0.0.0:6440", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,

    /// How peers reach this host [default: its name and the port it listens on]
    #[arg(long, value_name = "NAME:PORT")]
    address: Option<String>,

    /// Where to listen for operators of other machines (TLS)
    #[arg(long, value_name = "ADDRESS:PORT")]
    operators: Option<SocketAddr>,

    /// Join the authority of another host: write a request to this file
    #[arg(long, value_name = "FILE")]
    join: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    host: String,
    config: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    /// Of the host's own authority; absent when it joins another.
    authority_fingerprint: Option<String>,
    /// What another host has to sign.
    request: Option<PathBuf>,
}

/// Makes the host. A part that exists already is left alone and refused.
///
/// # Errors
/// When there is a configuration already, a name cannot be used, or a file cannot be written.
pub fn run(args: &InitArgs, output: OutputFormat) -> Result<(), Failure> {
    let (path, config) = plan(args)?;
    if path.exists() {
        return Err(Failure::FileExists { path });
    }
    let names = HostNames::new(&config.host).map_err(|error| Failure::Usage {
        what: error.to_string(),
    })?;
    let names = match args.listen.ip() {
        ip if ip.is_unspecified() => names,
        ip => names.with_address(ip),
    };
    make_folder(&config.state)?;
    let pki = Pki::open(&config.pki()).map_err(pki_failure)?;
    let now = clock::wall();
    let (authority_fingerprint, request) = match &args.join {
        None => {
            let authority = match pki.authority_info().map_err(pki_failure)? {
                Some(authority) => authority,
                None => pki
                    .create_authority(&format!("{} authority", config.host), now)
                    .map_err(pki_failure)?,
            };
            pki.issue_own(&names, now).map_err(pki_failure)?;
            (Some(authority.fingerprint.to_string()), None)
        }
        Some(file) => {
            let request = pki.request(&names).map_err(pki_failure)?;
            write_new(file, request.as_bytes())?;
            (None, Some(file.clone()))
        }
    };
    Catalog::open(&config.catalog(), OnMissing::Create).map_err(|source| Failure::Daemon {
        source: Box::new(source),
    })?;
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    write_new(&path, config.commented().as_bytes())?;
    let made = Made {
        host: config.host.clone(),
        socket: config.socket(),
        state: config.state,
        config: path,
        authority_fingerprint,
        request,
    };
    output.print(&made, describe)
}

fn plan(args: &InitArgs) -> Result<(PathBuf, Config), Failure> {
    let host = match &args.name {
        Some(name) => name.clone(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    let (path, state, run) = match &args.root {
        Some(root) => {
            let root = std::path::absolute(root).map_err(|source| Failure::File {
                what: "find",
                path: root.clone(),
                source,
            })?;
            (
                root.join("lifeboat.toml"),
                root.join("state"),
                root.join("run"),
            )
        }
        None => (args.config.clone(), args.state.clone(), args.run.clone()),
    };
    let address = args
        .address
        .clone()
        .unwrap_or_else(|| format!("{host}:{}", args.listen.port()));
    let config = Config {
        host,
        state,
        run,
        peer: PeerConfig {
            listen: args.listen,
            address,
        },
        operators: OperatorsConfig {
            listen: args.operators,
            ..OperatorsConfig::default()
        },
        limits: LimitsConfig::default(),
        on_boot: OnBootConfig::default(),
        quiesce: None,
        alerts: AlertsConfig::default(),
    };
    Ok((path, config))
}

fn describe(made: &Made) -> String {
    let mut rows = vec![
        ("host", made.host.clone()),
        ("configuration", made.config.display().to_string()),
        ("state", made.state.display().to_string()),
        ("socket", made.socket.display().to_string()),
    ];
    if let Some(fingerprint) = &made.authority_fingerprint {
        rows.push(("authority", fingerprint.clone()));
    }
    let mut text = facts(&rows);
    match &made.request {
        None => text.push_str(&format!(
            "\nStart it:                    lifeboat serve --config {}\nLet it accept replicas:      lifeboat host settings --recovery-server on\n",
            made.config.display()
        )),
        Some(request) => text.push_str(&format!(
            "\nSign {} on the host that has the authority, then install what it answers:\n  there: lifeboat certificate sign {} --name {}\n  here:  lifeboat certificate install BUNDLE --authority FINGERPRINT\n",
            request.display(),
            request.display(),
            made.host
        )),
    }
    text
}

pub(crate) fn make_folder(path: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Failure::File {
            what: "make the folder",
            path: path.to_owned(),
            source,
        })
}

/// Writes a file that does not exist yet, readable by others of the group.
pub(crate) fn write_new(path: &Path, text: &[u8]) -> Result<(), Failure> {
    write_with_mode(path, text, 0o640)
}

/// As [`write_new`], for the owner's eyes only.
pub(crate) fn write_secret(path: &Path, text: &[u8]) -> Result<(), Failure> {
    write_with_mode(path, text, 0o600)
}

fn write_with_mode(path: &Path, text: &[u8], mode: u32) -> Result<(), Failure> {
    let failed = |source| Failure::File {
        what: "write",
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(text)
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

pub(crate) fn pki_failure(source: lifeboat_peer::pki::PkiError) -> Failure {
    Failure::Daemon {
        source: Box::new(source),
    }
}
