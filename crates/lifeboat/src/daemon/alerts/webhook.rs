//! Alerts as JSON by HTTP POST.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::notice::{Alert, AlertKind};
use crate::daemon::config::WebhookConfig;
use crate::tls::{TlsError, roots};

/// How long one attempt may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Where alerts go.
pub(super) struct Webhook {
    host: String,
    target: Uri,
    server: String,
    port: u16,
    /// The server as the request names it.
    named: String,
    /// Absent for plain HTTP.
    tls: Option<Arc<ClientConfig>>,
    authorization: Option<header::HeaderValue>,
}

impl std::fmt::Debug for Webhook {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// A webhook was not set up, or not called.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("use {url:?} as a URL; it takes http:// or https:// and a host")]
    Url { url: String },
    #[error("trust the authorities of the webhook")]
    Authorities { source: TlsError },
    #[error("read the token in {}", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("use the token in {}; a header cannot have it", path.display())]
    TokenText { path: PathBuf },
    #[error("connect to {server}")]
    Connect { server: String, source: io::Error },
    #[error("talk to {server}")]
    Exchange {
        server: String,
        source: hyper::Error,
    },
    #[error("make the request")]
    Request { source: http::Error },
    #[error("it answered with {status}")]
    Status { status: StatusCode },
    #[error("it did not answer in time")]
    TimedOut,
}

/// What is posted.
#[derive(Debug, Serialize)]
struct Posted<'a> {
    kind: AlertKind,
    severity: &'static str,
    host: &'a str,
    vm: Option<&'a str>,
    vm_id: Option<String>,
    at: String,
    message: &'a str,
    remedy: &'a str,
}

impl Webhook {
    pub(super) fn new(config: &WebhookConfig, host: &str) -> Result<Self, WebhookError> {
        let wrong = || WebhookError::Url {
            url: config.url.clone(),
        };
        let target: Uri = config.url.parse().map_err(|_| wrong())?;
        let server = target.host().ok_or_else(wrong)?.to_owned();
        let (tls, usual) = match target.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => (None, 80),
            Some(scheme) if *scheme == Scheme::HTTPS => {
                let roots = roots(&config.ca_file)
                    .map_err(|source| WebhookError::Authorities { source })?;
                let tls = ClientConfig::builder()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                (Some(Arc::new(tls)), 443)
            }
            Some(_) | None => return Err(wrong()),
        };
        let authorization = match &config.token_file {
            None => None,
            Some(path) => {
                let token =
                    std::fs::read_to_string(path).map_err(|source| WebhookError::Token {
                        path: path.clone(),
                        source,
                    })?;
                let value = header::HeaderValue::try_from(format!("Bearer {}", token.trim()));
                let mut value =
                    value.map_err(|_| WebhookError::TokenText { path: path.clone() })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let named = match target.port_u16() {
            Some(port) => format!("{server}:{port}"),
            None => server.clone(),
        };
        Ok(Self {
            host: host.to_owned(),
            named,
            port: target.port_u16().unwrap_or(usual),
            server,
            target,
            tls,
            authorization,
        })
    }

    /// Makes one attempt. Redirects are not followed.
    pub(super) async fn send(&self, alert: &Alert) -> Result<(), WebhookError> {
        match tokio::time::timeout(PATIENCE, self.attempt(alert)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(WebhookError::TimedOut),
        }
    }

    async fn attempt(&self, alert: &Alert) -> Result<(), WebhookError> {
        let failed = |source| WebhookError::Connect {
            server: self.server.clone(),
            source,
        };
        let bare = self.server.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, self.port))
            .await
            .map_err(failed)?;
        match &self.tls {
            None => self.exchange(stream, alert).await,
            Some(tls) => {
                let name = ServerName::try_from(bare.to_owned())
                    .map_err(|error| failed(io::Error::other(error)))?;
                let connector = TlsConnector::from(Arc::clone(tls));
                let stream = connector.connect(name, stream).await.map_err(failed)?;
                self.exchange(stream, alert).await
            }
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        alert: &Alert,
    ) -> Result<(), WebhookError> {
        let failed = |source| WebhookError::Exchange {
            server: self.server.clone(),
            source,
        };
        let request = self
            .request(alert)
            .map_err(|source| WebhookError::Request { source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let driven = tokio::spawn(connection);
        let answer = sender.send_request(request).await;
        drop(sender);
        driven.abort();
        let status = answer.map_err(failed)?.status();
        if status.is_success() {
            return Ok(());
        }
        Err(WebhookError::Status { status })
    }

    fn request(&self, alert: &Alert) -> Result<Request<Full<Bytes>>, http::Error> {
        let posted = Posted {
            kind: alert.kind,
            severity: super::mail::word(alert.severity),
            host: &self.host,
            vm: alert.vm_name.as_deref(),
            vm_id: alert.vm.map(|vm| vm.to_string()),
            at: alert.at.to_string(),
            message: &alert.message,
            remedy: &alert.remedy,
        };
        let body = serde_json::to_vec(&posted).expect("BUG: an alert can be written as JSON");
        let path = self.target.path_and_query();
        let mut request = Request::post(path.map_or("/", http::uri::PathAndQuery::as_str))
            .header(header::HOST, &self.named)
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("lifeboat/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.body(Full::new(Bytes::from(body)))
    }
}
