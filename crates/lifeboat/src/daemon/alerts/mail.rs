//! Alerts by mail.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport as _};
use lifeboat_service::api::Severity;
use rustls::pki_types::CertificateDer;

use super::notice::Alert;
use crate::daemon::config::{MailConfig, MailTls};
use crate::tls::{TlsError, certificates};

/// How long the server may take with each answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest subject, in characters.
const SUBJECT: usize = 150;

/// The longest message of an alert, in characters.
const MESSAGE: usize = 2000;

/// Whom alerts are sent to.
#[derive(Debug)]
pub(super) struct Mail {
    host: String,
    from: Mailbox,
    to: Vec<Mailbox>,
    transport: Arc<SmtpTransport>,
}

/// Mail was not set up, or not sent.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    #[error("use {text:?} as an address of mail")]
    Address {
        text: String,
        source: lettre::address::AddressError,
    },
    #[error("trust the authorities of the mail server")]
    Authorities { source: TlsError },
    #[error("set up TLS to the mail server")]
    Tls {
        source: lettre::transport::smtp::Error,
    },
    #[error("read the password in {}", path.display())]
    Password { path: PathBuf, source: io::Error },
    #[error("write the message")]
    Message { source: lettre::error::Error },
    #[error("give the message to the mail server")]
    Send {
        source: lettre::transport::smtp::Error,
    },
    #[error("wait for the thread that sends")]
    Thread { source: tokio::task::JoinError },
}

impl Mail {
    pub(super) fn new(config: &MailConfig, host: &str) -> Result<Self, MailError> {
        let mailbox = |text: &String| {
            text.parse().map_err(|source| MailError::Address {
                text: text.clone(),
                source,
            })
        };
        let to: Result<Vec<Mailbox>, MailError> = config.to.iter().map(mailbox).collect();
        let mut transport = SmtpTransport::builder_dangerous(&config.server)
            .port(config.port)
            .timeout(Some(PATIENCE))
            .tls(tls(config)?);
        if let (Some(user), Some(path)) = (&config.user, &config.password_file) {
            let password = std::fs::read_to_string(path).map_err(|source| MailError::Password {
                path: path.clone(),
                source,
            })?;
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            transport = transport.credentials(Credentials::new(user.clone(), password));
        }
        Ok(Self {
            host: host.to_owned(),
            from: mailbox(&config.from)?,
            to: to?,
            transport: Arc::new(transport.build()),
        })
    }

    /// Makes one attempt, on a connection of its own.
    pub(super) async fn send(&self, alert: &Alert) -> Result<(), MailError> {
        let message = self
            .message(alert)
            .map_err(|source| MailError::Message { source })?;
        let transport = Arc::clone(&self.transport);
        let sent = tokio::task::spawn_blocking(move || transport.send(&message)).await;
        sent.map_err(|source| MailError::Thread { source })?
            .map(drop)
            .map_err(|source| MailError::Send { source })
    }

    fn message(&self, alert: &Alert) -> Result<Message, lettre::error::Error> {
        let about = match &alert.vm_name {
            Some(vm) => format!("{}: {vm}: {}", self.host, alert.kind.title()),
            None => format!("{}: {}", self.host, alert.kind.title()),
        };
        let mut message = Message::builder()
            .from(self.from.clone())
            .subject(one_line(&about, SUBJECT))
            .header(ContentType::TEXT_PLAIN);
        for recipient in &self.to {
            message = message.to(recipient.clone());
        }
        let mut text = format!(
            "{}\n\nhost      {}\nseverity  {}\nat        {}\n",
            one_line(&alert.message, MESSAGE),
            self.host,
            word(alert.severity),
            alert.at
        );
        if !alert.remedy.is_empty() {
            text.push_str(&format!("\nWhat helps: {}\n", alert.remedy));
        }
        message.body(text)
    }
}

fn tls(config: &MailConfig) -> Result<Tls, MailError> {
    let parameters = || {
        let authorities =
            certificates(&config.ca_file).map_err(|source| MailError::Authorities { source })?;
        let failed = |source| MailError::Tls { source };
        let mut parameters =
            TlsParameters::builder(config.server.clone()).certificate_store(CertificateStore::None);
        for authority in &authorities {
            parameters = parameters.add_root_certificate(certificate(authority).map_err(failed)?);
        }
        parameters.build_rustls().map_err(failed)
    };
    match config.tls {
        MailTls::None => Ok(Tls::None),
        MailTls::Starttls => Ok(Tls::Required(parameters()?)),
        MailTls::Tls => Ok(Tls::Wrapper(parameters()?)),
    }
}

fn certificate(
    authority: &CertificateDer<'_>,
) -> Result<Certificate, lettre::transport::smtp::Error> {
    Certificate::from_der(authority.to_vec())
}

/// The beginning of a text on one line.
fn one_line(text: &str, longest: usize) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(longest)
        .collect()
}

/// A severity in one word.
pub(super) const fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}
