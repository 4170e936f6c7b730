//! The configuration file: `lifeboat init` writes it with comments, `lifeboat serve` reads it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lifeboat_model::{
    BandwidthLimit, InvalidFields, UncheckedBandwidthLimit, UncheckedBandwidthWindow,
};
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
    #[serde(default)]
    pub alerts: AlertsConfig,
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
    /// Other limits in parts of the day, by local time; the first that is open counts.
    pub bandwidth_windows: Vec<UncheckedBandwidthWindow>,
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
            bandwidth_windows: Vec::new(),
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

/// Who is told when something needs people. Without a webhook and mail, nobody is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlertsConfig {
    /// The same about the same VM is told once in this time, 60 to 604800.
    pub repeat_seconds: u64,
    pub webhook: Option<WebhookConfig>,
    pub mail: Option<MailConfig>,
}

impl Default for AlertsConfig {
    fn default() -> Self {
        Self {
            repeat_seconds: 3600,
            webhook: None,
            mail: None,
        }
    }
}

/// Alerts as JSON by HTTP POST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    pub url: String,
    /// Whom `https://` trusts (PEM).
    #[serde(default = "system_authorities")]
    pub ca_file: PathBuf,
    /// Holds a bearer token; absent: the request has none.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

/// Alerts by mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    pub server: String,
    pub port: u16,
    #[serde(default)]
    pub tls: MailTls,
    /// Whom TLS trusts (PEM).
    #[serde(default = "system_authorities")]
    pub ca_file: PathBuf,
    pub from: String,
    pub to: Vec<String>,
    /// With `password_file`; absent: the server is not told who sends.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// How the connection to a mail server is kept from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MailTls {
    /// TLS from within SMTP, or no mail.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// Not at all: for a server on this machine.
    None,
}

fn system_authorities() -> PathBuf {
    "/etc/ssl/certs/ca-certificates.crt".into()
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
    #[error("{}: the limits cannot be", path.display())]
    Bandwidth {
        path: PathBuf,
        source: InvalidFields,
    },
    #[error("{}: {field} is {given}: {remedy}", path.display())]
    Field {
        path: PathBuf,
        field: &'static str,
        given: String,
        remedy: &'static str,
    },
}

impl LimitsConfig {
    /// How fast this host may send, by time of day.
    ///
    /// # Errors
    /// A rate or a window is out of range.
    pub fn bandwidth_limit(&self) -> Result<BandwidthLimit, InvalidFields> {
        let unchecked = UncheckedBandwidthLimit {
            bytes_per_second: (self.bandwidth > 0).then_some(self.bandwidth),
            windows: self.bandwidth_windows.clone(),
        };
        unchecked.validate()
    }
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
        self.limits
            .bandwidth_limit()
            .map_err(|source| ConfigError::Bandwidth {
                path: path.to_owned(),
                source,
            })?;
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
        self.check_alerts()
            .or_else(|(field, given, remedy)| wrong(field, given, remedy))
    }

    fn check_alerts(&self) -> Result<(), (&'static str, String, &'static str)> {
        let alerts = &self.alerts;
        if !(60..=604_800).contains(&alerts.repeat_seconds) {
            let given = alerts.repeat_seconds.to_string();
            return Err(("alerts.repeat_seconds", given, "use 60 to 604800"));
        }
        if let Some(webhook) = &alerts.webhook
            && !["http://", "https://"]
                .iter()
                .any(|scheme| webhook.url.starts_with(scheme))
        {
            let given = webhook.url.clone();
            return Err(("alerts.webhook.url", given, "use http:// or https://"));
        }
        let Some(mail) = &alerts.mail else {
            return Ok(());
        };
        if !(1..=50).contains(&mail.to.len()) {
            let given = format!("a list of {}", mail.to.len());
            return Err(("alerts.mail.to", given, "name 1 to 50 addresses"));
        }
        if mail.user.is_some() != mail.password_file.is_some() {
            let given = "without its other half".to_owned();
            let remedy = "give both user and password_file, or none";
            return Err(("alerts.mail.user", given, remedy));
        }
        if mail.user.is_some() && mail.tls == MailTls::None {
            let given = "none, and there is a password".to_owned();
            return Err(("alerts.mail.tls", given, "use \"starttls\" or \"tls\""));
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
# Other limits in parts of the day, by local time; without bytes_per_second, none.
# bandwidth_windows = [{{ start = \"08:00\", end = \"17:59\", bytes_per_second = 2000000 }}]
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

# Who is told when replication is critical or late, the replica's disk fills, the certificate
# expires, changes cannot be applied, or both sides have gone on (split brain).
[alerts]
# The same about the same VM is told once in this time.
repeat_seconds = {repeat}
# JSON by HTTP POST. https:// trusts the authorities in ca_file; a token is sent as a bearer's.
# [alerts.webhook]
# url = \"https://alerts.example.com/lifeboat\"
# ca_file = \"/etc/ssl/certs/ca-certificates.crt\"
# token_file = \"/etc/lifeboat/webhook.token\"
# Mail. tls is \"starttls\", \"tls\", or \"none\" for a server on this machine.
# [alerts.mail]
# server = \"mail.example.com\"
# port = 587
# tls = \"starttls\"
# ca_file = \"/etc/ssl/certs/ca-certificates.crt\"
# from = \"Lifeboat <lifeboat@example.com>\"
# to = [\"operators@example.com\"]
# user = \"lifeboat\"
# password_file = \"/etc/lifeboat/mail.password\"
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
            repeat = self.alerts.repeat_seconds,
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
            alerts: AlertsConfig::default(),
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
    fn the_host_s_bandwidth_has_windows_as_the_comment_shows_them() {
        let written = config().commented();
        let text = written
            .replace("bandwidth = 0", "bandwidth = 5000000")
            .replace("# bandwidth_windows", "bandwidth_windows");
        let limit = read(&text).unwrap().limits.bandwidth_limit().unwrap();
        let rate_at = |time: &str| match limit.rate_at(time.parse().unwrap()) {
            lifeboat_model::Rate::Limited(bytes) => bytes.get(),
            lifeboat_model::Rate::Unlimited => 0,
        };
        assert_eq!(rate_at("07:59:59"), 5_000_000);
        assert_eq!(rate_at("08:00"), 2_000_000);
        assert_eq!(rate_at("17:59:59"), 2_000_000);
        assert_eq!(rate_at("18:00"), 5_000_000);
    }

    #[test]
    fn a_configuration_that_cannot_be_is_refused_with_the_field() {
        let good = config().commented();
        for (from, to, says) in [
            ("state = \"/var", "state = \"var", "state"),
            ("transfers = 4", "transfers = 0", "limits.transfers"),
            ("alpha.example:6440", "alpha.example:x", "peer.address"),
            ("transfers = 4", "transfer = 4", "not a configuration"),
            ("bandwidth = 0", "bandwidth = 7", "the limits cannot be"),
            ("= 3600", "= 59", "alerts.repeat_seconds"),
        ] {
            let text = good.replace(from, to);
            assert_ne!(text, good, "{from}");
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let missing = Config::read(Path::new("/nonexistent/lifeboat.toml")).unwrap_err();
        assert!(missing.to_string().contains("lifeboat init"), "{missing}");
    }

    #[test]
    fn the_ways_of_alerts_that_the_comments_show_can_be_used() {
        let shown = config().commented();
        let (head, alerts) = shown.split_once("# [alerts.webhook]").unwrap();
        let uncommented = alerts.lines().filter(|line| !line.starts_with("# Mail."));
        let uncommented: Vec<&str> = uncommented
            .map(|line| line.strip_prefix("# ").unwrap_or(line))
            .collect();
        let text = format!("{head}[alerts.webhook]{}", uncommented.join("\n"));
        let alerts = read(&text).unwrap().alerts;
        let mail = alerts.mail.unwrap();
        assert_eq!((mail.port, mail.tls), (587, MailTls::Starttls));
        assert_eq!(mail.to, ["operators@example.com"]);
        let token = alerts.webhook.unwrap().token_file.unwrap();
        assert_eq!(token, Path::new("/etc/lifeboat/webhook.token"));
    }

    #[test]
    fn a_password_is_never_sent_in_the_open() {
        let mail = "[alerts.mail]\nserver = \"m\"\nport = 25\nfrom = \"a@b.c\"\nto = [\"a@b.c\"]\n\
                    tls = \"none\"\nuser = \"u\"\npassword_file = \"/p\"\n";
        let text = format!("{}{mail}", config().commented());
        let error = read(&text).unwrap_err().to_string();
        assert!(error.contains("alerts.mail.tls"), "{error}");
    }
}
