//! What TLS needs of the folder, loaded once.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::certificate::{CertificateInfo, Fingerprint};
use super::error::PkiError;
use super::folder::{HostIdentity, Pki};
use crate::tls::{Admitted, OnlyAdmitted, provider};

/// Whether somebody without a certificate may open a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    Refused,
    /// The server asks who it is in another way.
    Allowed,
}

/// A host's own certificate and whom it trusts, as the folder had it when it was loaded.
#[derive(Debug)]
pub struct TlsMaterial {
    folder: PathBuf,
    host: HostIdentity,
    hosts: Arc<RootCertStore>,
    operators: Arc<RootCertStore>,
    revocations: Vec<CertificateRevocationListDer<'static>>,
}

impl Pki {
    /// Loads what servers and clients need.
    ///
    /// # Errors
    /// Before the host has a certificate, or when a file is damaged.
    pub fn load(&self) -> Result<TlsMaterial, PkiError> {
        let host = self.host()?.ok_or(PkiError::NoHostCertificate)?;
        let hosts = self.authorities("hosts")?;
        let mut revocations = Vec::new();
        for authority in &hosts {
            revocations.extend(self.revocation_list(&Fingerprint::of(authority))?);
        }
        Ok(TlsMaterial {
            folder: self.folder().to_owned(),
            host,
            hosts: Arc::new(roots(hosts)?),
            operators: Arc::new(roots(self.authorities("operators")?)?),
            revocations,
        })
    }
}

impl TlsMaterial {
    /// The certificate by which this host proves itself.
    #[must_use]
    pub fn host(&self) -> &CertificateInfo {
        &self.host.info
    }

    /// The configuration of a server for operators, for instance of a REST interface: TLS
    /// 1.2 or newer. Who the operator is, [`CertificateInfo::read`] says of the certificate
    /// that the connection was verified with. Certificates of hosts are refused.
    ///
    /// # Errors
    /// When the host's key does not match its certificate, or no authority is trusted for
    /// operators.
    pub fn operator_server(&self, anonymous: Anonymous) -> Result<ServerConfig, PkiError> {
        let verifier = self.client_verifier(Admitted::Operators, anonymous)?;
        let (chain, key) = self.identity();
        ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(chain, key)
            })
            .map_err(|source| self.tls(source))
    }

    pub(crate) fn client_verifier(
        &self,
        admitted: Admitted,
        anonymous: Anonymous,
    ) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
        let roots = match admitted {
            Admitted::Hosts => &self.hosts,
            Admitted::Operators => &self.operators,
        };
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
            .with_crls(self.revocations.iter().cloned())
            // An authority of another organization may have published no list.
            .allow_unknown_revocation_status();
        let builder = match anonymous {
            Anonymous::Refused => builder,
            Anonymous::Allowed => builder.allow_unauthenticated(),
        };
        let verifier = builder.build().map_err(PkiError::Verifier)?;
        Ok(Arc::new(OnlyAdmitted::new(verifier, admitted)))
    }

    pub(crate) fn server_verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, PkiError> {
        let verifier: Arc<dyn ServerCertVerifier> =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.hosts), provider())
                .with_crls(self.revocations.iter().cloned())
                .allow_unknown_revocation_status()
                .build()
                .map_err(PkiError::Verifier)?;
        Ok(verifier)
    }

    pub(crate) fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.host.chain.clone(), self.host.key.clone_key())
    }

    pub(crate) fn tls(&self, source: rustls::Error) -> PkiError {
        PkiError::Tls {
            path: self.folder.clone(),
            source,
        }
    }
}

fn roots(authorities: Vec<CertificateDer<'static>>) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    for der in authorities {
        roots.add(der).map_err(|error| PkiError::Unusable {
            what: "the authority's certificate",
            why: error.to_string(),
        })?;
    }
    Ok(roots)
}
