//! A connection to a host.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::HostAddress;

/// The largest file of certificates that is read.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no connection, or no identity to use on one.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("find what belongs there in {}", path.display())]
    Pem { path: PathBuf, source: pem::Error },

    #[error("use the certificates in {}", folder.display())]
    Certificates {
        folder: PathBuf,
        source: rustls::Error,
    },

    #[error("a host across the network is reached with a certificate only")]
    NoIdentity,

    #[error("open the socket")]
    Socket { source: io::Error },

    #[error("use {host:?} as the name that the host must prove")]
    Name {
        host: String,
        source: InvalidDnsNameError,
    },

    #[error("agree on TLS")]
    Tls { source: io::Error },

    #[error("speak HTTP")]
    Http { source: hyper::Error },
}

/// Who this client is, and which hosts it trusts.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// The files of a folder, all in PEM.
    pub const CERTIFICATE: &'static str = "certificate.pem";
    pub const KEY: &'static str = "key.pem";
    /// The authorities that sign the certificates of hosts.
    pub const TRUST: &'static str = "trust.pem";

    /// The identity in a folder: [`CERTIFICATE`](Self::CERTIFICATE) with its chain,
    /// [`KEY`](Self::KEY), and [`TRUST`](Self::TRUST).
    ///
    /// # Errors
    /// When a file is missing or does not hold what it must.
    pub fn load(folder: &Path) -> Result<Self, ConnectError> {
        let mut trusted = RootCertStore::empty();
        let unusable = |source| ConnectError::Certificates {
            folder: folder.to_owned(),
            source,
        };
        for certificate in certificates(&folder.join(Self::TRUST))? {
            trusted.add(certificate).map_err(unusable)?;
        }
        let chain = certificates(&folder.join(Self::CERTIFICATE))?;
        let key_path = folder.join(Self::KEY);
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|source| {
            ConnectError::Pem {
                path: key_path,
                source,
            }
        })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_root_certificates(trusted)
                    .with_client_auth_cert(chain, key)
            });
        Ok(Self {
            config: Arc::new(config.map_err(unusable)?),
        })
    }
}

/// The certificates of a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let unusable = |source| ConnectError::Pem {
        path: path.to_owned(),
        source,
    };
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(unusable)?;
    if found.is_empty() {
        return Err(unusable(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map_err(|source| ConnectError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// Connects to a host.
pub(super) async fn connect(
    address: &HostAddress,
    identity: Option<&Identity>,
) -> Result<SendRequest<Full<Bytes>>, ConnectError> {
    let socket = |source| ConnectError::Socket { source };
    match address {
        HostAddress::Unix(path) => speak(UnixStream::connect(path).await.map_err(socket)?).await,
        HostAddress::Https { host, port } => {
            let identity = identity.ok_or(ConnectError::NoIdentity)?;
            let name = ServerName::try_from(host.clone()).map_err(|source| ConnectError::Name {
                host: host.clone(),
                source,
            })?;
            let stream = TcpStream::connect((host.as_str(), *port))
                .await
                .map_err(socket)?;
            let connector = TlsConnector::from(Arc::clone(&identity.config));
            let stream = connector.connect(name, stream).await;
            speak(stream.map_err(|source| ConnectError::Tls { source })?).await
        }
    }
}

async fn speak<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let spoken = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = spoken.map_err(|source| ConnectError::Http { source })?;
    // It ends with the sender or the answer; what goes wrong is told there.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
