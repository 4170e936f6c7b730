//! `lifeboat host`: the host that is asked.

use clap::Subcommand;
use lifeboat_rest::wire::{Host, ServiceSettings, ServiceSettingsChange, TestConnection};

use super::{Remote, Switch, duration, when_if};
use crate::exit::Failure;
use crate::output::{Table, facts};

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Show the host, its settings and its listeners
    Show,

    /// Change the host's settings; without options, show them
    Settings(SettingsArgs),

    /// Try whether replication to another host could be enabled now
    TestConnection(TestConnectionArgs),
}

#[derive(Debug, clap::Args)]
pub struct SettingsArgs {
    /// Let other hosts replicate to this one
    #[arg(long, value_enum, value_name = "SWITCH")]
    recovery_server: Option<Switch>,

    /// How other hosts may prove who they are
    #[arg(long, value_enum, value_name = "TYPE")]
    authentication: Option<Authentication>,

    /// The port for Kerberos
    #[arg(long, value_name = "PORT")]
    http_port: Option<u64>,

    /// The port for certificates
    #[arg(long, value_name = "PORT")]
    https_port: Option<u64>,

    /// When monitoring cycles begin, as a time of day in UTC
    #[arg(long, value_name = "HH:MM")]
    monitoring_start: Option<String>,

    /// How long a monitoring cycle is
    #[arg(long, value_name = "SECONDS")]
    monitoring_interval: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Authentication {
    Kerberos,
    Certificate,
    Both,
}

impl Authentication {
    /// The number in the schema (`AllowedAuthenticationType`).
    const fn number(self) -> u32 {
        match self {
            Self::Kerberos => 1,
            Self::Certificate => 2,
            Self::Both => 3,
        }
    }
}

impl From<SettingsArgs> for ServiceSettingsChange {
    fn from(args: SettingsArgs) -> Self {
        Self {
            recovery_server_enabled: args.recovery_server.map(bool::from),
            allowed_authentication_type: args.authentication.map(Authentication::number),
            http_port: args.http_port,
            https_port: args.https_port,
            monitoring_start_time: args.monitoring_start,
            monitoring_interval: args.monitoring_interval,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct TestConnectionArgs {
    /// Where the other host answers
    #[arg(value_name = "HOST:PORT")]
    to: String,
}

impl HostCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, remote: &Remote) -> Result<(), Failure> {
        match self {
            Self::Show => remote.show(&remote.client.host()?, host_text),
            Self::Settings(args) => {
                let change = ServiceSettingsChange::from(args);
                if change == ServiceSettingsChange::default() {
                    return remote.show(&remote.client.host_settings()?, settings_text);
                }
                remote.client.modify_host_settings(&change)?;
                remote.done("settings changed")
            }
            Self::TestConnection(args) => {
                let test = TestConnection {
                    recovery_connection_point: args.to,
                };
                let connection = remote.client.test_connection(&test)?;
                remote.show(&connection, |connection| format!("{}\n", connection.what))
            }
        }
    }
}

fn host_text(host: &Host) -> String {
    let mut text = facts(&[
        ("host", host.host.clone()),
        ("version", host.version.clone()),
        ("VMs", host.vms.to_string()),
        ("jobs running", host.jobs_running.to_string()),
        ("certificate until", when_if(host.certificate_expires_at)),
    ]);
    let mut listeners = Table::new(&["LISTENER", "ADDRESS", "STATE"]);
    for listener in &host.listeners {
        let state = match &listener.trouble {
            Some(trouble) => format!("does not run: {trouble}"),
            None => "runs".to_owned(),
        };
        listeners.row([listener.what.clone(), listener.address.clone(), state]);
    }
    text.push_str(&format!(
        "\n{}\n{}",
        listeners.render(),
        settings_text(&host.settings)
    ));
    text
}

fn settings_text(settings: &ServiceSettings) -> String {
    let recovery = if settings.recovery_server_enabled {
        "on"
    } else {
        "off"
    };
    facts(&[
        ("recovery server", recovery.to_owned()),
        (
            "authentication",
            settings.allowed_authentication_type_text.clone(),
        ),
        ("port for Kerberos", settings.http_port.to_string()),
        ("port for certificates", settings.https_port.to_string()),
        (
            "monitoring cycle",
            format!(
                "{}, beginning at {} UTC",
                duration(settings.monitoring_interval),
                settings.monitoring_start_time
            ),
        ),
    ])
}
