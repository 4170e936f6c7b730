//! The configuration file: `lifeboat init` writes it with comments, `lifeboat serve` reads it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_service::OnBoot;
use serde::{Deserialize, Serialize};

/// Where the configuration is looked for, unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/lifeboat/lifeboat.toml";

/// A host's configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's name, as its certificate proves it.
    pub host: String,
    /// What must outlive a reboot: catalog, certificates, images of new VMs, dirty maps.
    pub state: PathBuf,
    /// Sockets; best on a tmpfs, and with a short path.
    pub run: PathBuf,
    pub peer: PeerConfig,
    #[serde(default)]
    pub operators: OperatorsConfig,
    #[serde(default)]
    pub limits: LimitsConfig,
    #[serde(default)]
    pub on_boot: OnBootConfig,
    #[serde(default)]
    pub quiesce: Option<QuiesceConfig>,
}

/// Where peers reach this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    pub listen: SocketAddr,
    /// `name:port`, as peers are told.
    pub address: String,
}

/// Where operators reach this host, besides the socket of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OperatorsConfig {
    /// Absent: `lifeboat.sock` in the folder for sockets.
    pub socket: Option<PathBuf>,
    /// The number of the group whose members are operators.
    pub group: Option<u32>,
    /// TLS with client certificates; absent: only the socket.
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Captures and transfers at once, 1 to 256.
    pub transfers: usize,
    /// Bytes per second to all peers together; 0 for no limit.
    pub bandwidth: u64,
    /// Bytes of one VM's delta in the send-spool.
    pub send_spool: u64,
    /// Bytes of old blocks kept for one frozen view.
    pub scratch: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            transfers: 4,
            bandwidth: 0,
            send_spool: 64 << 30,
            scratch: 16 << 30,
        }
    }
}

/// What happens to a replicated VM that ran when the host went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnBootConfig {
    pub policy: OnBootPolicy,
    /// For `ask_peer`.
    pub timeout_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBootPolicy {
    AskPeer,
    StartAnyway,
    Hold,
}

impl Default for OnBootConfig {
    fn default() -> Self {
        Self {
            policy: OnBootPolicy::AskPeer,
            timeout_seconds: 60,
        }
    }
}

impl OnBootConfig {
    #[must_use]
    pub const fn policy(self) -> OnBoot {
        match self.policy {
            OnBootPolicy::AskPeer => OnBoot::AskPeer {
                timeout: Duration::from_secs(self.timeout_seconds),
            },
            OnBootPolicy::StartAnyway => OnBoot::StartAnyway,
            OnBootPolicy::Hold => OnBoot::Hold,
        }
    }
}

/// A program around an application-consistent freeze: called with `freeze` or `thaw`, and the
/// VM's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuiesceConfig {
    pub program: PathBuf,
    /// For each of the two calls.
    pub timeout_seconds: u64,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no configuration at {}; make a host with `lifeboat init`", path.display())]
    Missing { path: PathBuf },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a configuration", path.display())]
    Parse {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("{}: {field} is {given}: {remedy}", path.display())]
    Field {
        path: PathBuf,
        field: &'static str,
        given: String,
        remedy: &'static str,
    },
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// The file is missing, is no configuration, or has a value that cannot be.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ConfigError::Missing {
                path: path.to_owned(),
            },
            _ => ConfigError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let wrong = |field, given: String, remedy| {
            Err(ConfigError::Field {
                path: path.to_owned(),
                field,
                given,
                remedy,
            })
        };
        for (field, folder) in [("state", &self.state), ("run", &self.run)] {
            if !folder.is_absolute() {
                let given = folder.display().to_string();
                return wrong(field, given, "use an absolute path");
            }
        }
        if !(1..=256).contains(&self.limits.transfers) {
            let given = self.limits.transfers.to_string();
            return wrong("limits.transfers", given, "use 1 to 256");
        }
        if self
            .peer
            .address
            .parse::<lifeboat_peer::PeerAddress>()
            .is_err()
        {
            let given = self.peer.address.clone();
            return wrong(
                "peer.address",
                given,
                "use NAME:PORT, as peers reach this host",
            );
        }
        if self
            .quiesce
            .as_ref()
            .is_some_and(|quiesce| !quiesce.program.is_absolute() || quiesce.timeout_seconds == 0)
        {
            let given = "incomplete".to_owned();
            return wrong(
                "quiesce",
                given,
                "give the program's absolute path and a timeout",
            );
        }
        Ok(())
    }

    #[must_use]
    pub fn catalog(&self) -> PathBuf {
        self.state.join("catalog.db")
    }

    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// The socket for the programs of this machine.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.operators
            .socket
            .clone()
            .unwrap_or_else(|| self.run.join("lifeboat.sock"))
    }

    /// The configuration as a file with comments.
    #[must_use]
    pub fn commented(&self) -> String {
        let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
        let path = |value: &Path| text(&value.to_string_lossy());
        format!(
            "# The configuration of a Lifeboat host. `lifeboat serve` reads it when it starts.

# This host's name, as its certificate proves it. Peers name it in their authorization entries.
host = {host}

# What must outlive a reboot: the catalog, certificates, images of new VMs, dirty maps.
state = {state}

# Sockets. Best on a tmpfs, and with a short path.
run = {run}

[peer]
# Where this host listens for its peers (mutual TLS 1.3).
listen = {listen}
# How peers reach it: name and port.
address = {address}

[operators]
# Programs of this machine use this socket; root and the daemon's own user are administrators.
socket = {socket}
# Members of the group with this number are operators.
# group = 998
# Remote administration: TLS with client certificates (`lifeboat certificate operator`).
# listen = \"0.0.0.0:6441\"

[limits]
# Captures and transfers of all VMs at once.
transfers = {transfers}
# Bytes per second to all peers together; 0 for no limit.
bandwidth = {bandwidth}
# The most bytes of one VM's delta that wait to be sent.
send_spool = {send_spool}
# The most bytes of old blocks kept while a frozen view is read.
scratch = {scratch}

[on_boot]
# A replicated VM that ran when this host went down: \"ask_peer\" starts it after the peer has
# said that it has not taken over, \"hold\" waits for an operator, \"start_anyway\" risks that
# both hosts run it.
policy = \"ask_peer\"
# How long the peer is asked before the VM is held.
timeout_seconds = 60

# A program around an application-consistent freeze, called with \"freeze\" or \"thaw\" and the
# VM's id. Thawing always happens.
# [quiesce]
# program = \"/usr/local/sbin/quiesce\"
# timeout_seconds = 10
",
            host = text(&self.host),
            state = path(&self.state),
            run = path(&self.run),
            listen = text(&self.peer.listen.to_string()),
            address = text(&self.peer.address),
            socket = path(&self.socket()),
            transfers = self.limits.transfers,
            bandwidth = self.limits.bandwidth,
            send_spool = self.limits.send_spool,
            scratch = self.limits.scratch,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            host: "alpha.example".to_owned(),
            state: "/var/lib/lifeboat".into(),
            run: "/run/lifeboat".into(),
            peer: PeerConfig {
                listen: "0.0.0.0:6440".parse().unwrap(),
                address: "alpha.example:6440".to_owned(),
            },
            operators: OperatorsConfig::default(),
            limits: LimitsConfig::default(),
            on_boot: OnBootConfig::default(),
            quiesce: None,
        }
    }

    fn read(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lifeboat.toml");
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    }

    #[test]
    fn the_file_that_init_writes_reads_back_as_it_was_meant() {
        let written = config();
        let read = read(&written.commented()).unwrap();
        let expected = Config {
            operators: OperatorsConfig {
                socket: Some("/run/lifeboat/lifeboat.sock".into()),
                ..OperatorsConfig::default()
            },
            ..written
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused_with_the_field() {
        let good = config().commented();
        for (from, to, says) in [
            ("state = \"/var", "state = \"var", "state"),
            ("transfers = 4", "transfers = 0", "limits.transfers"),
            ("alpha.example:6440", "alpha.example", "peer.address"),
            ("transfers = 4", "transfer = 4", "not a configuration"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good, "{from}");
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let missing = Config::read(Path::new("/nonexistent/lifeboat.toml")).unwrap_err();
        assert!(missing.to_string().contains("lifeboat init"), "{missing}");
    }
}
