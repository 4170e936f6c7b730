//! TLS from certificate files in PEM form.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_nbd::TlsClient;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("find what belongs there in {}", path.display())]
    NoCertificate { path: PathBuf, source: pem::Error },

    #[error("use the certificates: {why}")]
    Config { why: String },
}

/// Certificate files of a server, as they are given on the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerTls {
    /// Serve with TLS only, and show this certificate (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "TLS")]
    tls_cert: Option<PathBuf>,

    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// Serve only clients that show a certificate which one of these signed (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    tls_ca: Option<PathBuf>,
}

impl ServerTls {
    /// The server's side of TLS, or `None` when no certificate was given.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it must.
    pub fn load(&self) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        let (chain, key) = (certificates(cert)?, private_key(key)?);
        let config = |error: &dyn std::fmt::Display| TlsError::Config {
            why: error.to_string(),
        };
        let builder = ServerConfig::builder();
        let builder = match &self.tls_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?)).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| config(&error))?)
            }
        };
        let server = builder.with_single_cert(chain, key);
        Ok(Some(Arc::new(server.map_err(|error| config(&error))?)))
    }
}

/// Certificate files of a client, as they are given on the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct ClientTls {
    /// Use TLS only, with servers whose certificate one of these signed (PEM)
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_ca: Option<PathBuf>,

    /// Show this certificate to the server (PEM, with its chain)
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"], help_heading = "TLS")]
    tls_cert: Option<PathBuf>,

    /// The key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "TLS")]
    tls_key: Option<PathBuf>,

    /// Whom the server's certificate must name; the host of the URI unless given
    #[arg(long, value_name = "HOST", requires = "tls_ca", help_heading = "TLS")]
    tls_server_name: Option<String>,
}

impl ClientTls {
    /// The client's side of TLS, or `None` when no authority was given.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it must.
    pub fn load(&self) -> Result<Option<TlsClient>, TlsError> {
        let Some(ca) = &self.tls_ca else {
            return Ok(None);
        };
        let builder = ClientConfig::builder().with_root_certificates(roots(ca)?);
        let config = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => builder
                .with_client_auth_cert(certificates(cert)?, private_key(key)?)
                .map_err(|error| TlsError::Config {
                    why: error.to_string(),
                })?,
            _ => builder.with_no_client_auth(),
        };
        Ok(Some(TlsClient {
            config: Arc::new(config),
            server_name: self.tls_server_name.clone(),
        }))
    }
}

/// The certificates of a file; at least one.
///
/// # Errors
/// When the file cannot be read or has none.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(missing(path, pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(source) => Err(missing(path, source)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|source| missing(path, source))
}

/// The authorities of a file.
///
/// # Errors
/// When the file cannot be read, or has none that can be used.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| TlsError::Config {
            why: format!("{}: {error}", path.display()),
        })?;
    }
    Ok(roots)
}

fn missing(path: &Path, source: pem::Error) -> TlsError {
    TlsError::NoCertificate {
        path: path.to_owned(),
        source,
    }
}

/// Reads a file of certificates; a larger one is none.
fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    const MAX_BYTES: u64 = 4 << 20;
    let read = || {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}
