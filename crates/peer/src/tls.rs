//! TLS between hosts: 1.3 only, both sides with certificates, nothing resumed.
//!
//! A resumed session would not be verified again, and a revoked host would stay. Whether a
//! certificate is good is decided when a connection begins, and by the server again for
//! every request.

use std::sync::Arc;

use arc_swap::ArcSwap;
use lifeboat_model::Timestamp;
use rustls::client::Resumption;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};
use tokio::sync::watch;

use crate::distrust::Distrust;
use crate::pki::{Anonymous, CertificateInfo, Identity, Pki, PkiError, TlsMaterial, peer_name_of};
use crate::port::PeerName;

/// The protocol's name within TLS.
const ALPN: &[u8] = b"http/1.1";

/// The one set of cryptographic primitives.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// How one host proves itself to its peers and whom it believes, at one time.
#[derive(Debug)]
pub struct PeerTls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) host: CertificateInfo,
}

impl PeerTls {
    /// Sets TLS up with what a host's folder holds.
    ///
    /// # Errors
    /// When the key does not match the certificate, or nobody is trusted.
    pub fn new(material: &TlsMaterial) -> Result<Self, PkiError> {
        let verifier = material.client_verifier(Admitted::Hosts, Anonymous::Refused)?;
        let (chain, key) = material.identity();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(Arc::clone(&verifier))
                    .with_single_cert(chain.clone(), key.clone_key())
            })
            .map_err(|source| material.tls(source))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.max_early_data_size = 0;
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| material.tls(source))?
            .dangerous()
            .with_custom_certificate_verifier(material.server_verifier()?)
            .with_client_auth_cert(chain, key)
            .map_err(|source| material.tls(source))?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
            verifier,
            host: material.host().clone(),
        })
    }

    /// Whether a certificate that was good when its connection began is good yet, and whose
    /// it is.
    pub(crate) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<PeerName, Distrust> {
        let Some((end, intermediates)) = chain.split_first() else {
            return Err(Distrust::NoCertificate);
        };
        self.verifier
            .verify_client_cert(end, intermediates, UnixTime::now())
            .map_err(|error| Distrust::of(&error).unwrap_or(Distrust::Malformed))?;
        peer_name_of(end).ok_or(Distrust::WrongPurpose)
    }
}

/// The present [`PeerTls`] of a host, shared by its server and its clients.
#[derive(Debug, Clone)]
pub struct ReloadableTls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    present: ArcSwap<PeerTls>,
    changed: watch::Sender<u64>,
}

impl ReloadableTls {
    #[must_use]
    pub fn new(tls: PeerTls) -> Self {
        Self {
            shared: Arc::new(Shared {
                present: ArcSwap::from_pointee(tls),
                changed: watch::Sender::new(0),
            }),
        }
    }

    /// From now on `tls` holds. Connections of peers that it does not believe are cut, those
    /// of others go on.
    pub fn replace(&self, tls: PeerTls) {
        self.shared.present.store(Arc::new(tls));
        self.shared.changed.send_modify(|number| *number += 1);
    }

    /// Loads the folder again, after a renewal or a revocation.
    ///
    /// # Errors
    /// When the folder cannot be used; the present configuration stays.
    pub fn reload(&self, pki: &Pki) -> Result<(), PkiError> {
        self.replace(PeerTls::new(&pki.load()?)?);
        Ok(())
    }

    /// The certificate in use.
    #[must_use]
    pub fn host(&self) -> CertificateInfo {
        self.shared.present.load().host.clone()
    }

    pub(crate) fn present(&self) -> Arc<PeerTls> {
        self.shared.present.load_full()
    }

    /// Grows with each replacement.
    pub(crate) fn number(&self) -> u64 {
        *self.shared.changed.borrow()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

/// Whom a server lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    Hosts,
    Operators,
}

/// Refuses certificates that are good, but for something else.
#[derive(Debug)]
pub(crate) struct OnlyAdmitted {
    chain: Arc<dyn ClientCertVerifier>,
    admitted: Admitted,
}

impl OnlyAdmitted {
    pub(crate) fn new(chain: Arc<dyn ClientCertVerifier>, admitted: Admitted) -> Self {
        Self { chain, admitted }
    }

    fn admits(&self, identity: &Identity) -> bool {
        match (self.admitted, identity) {
            (Admitted::Hosts, Identity::Host(_))
            | (Admitted::Operators, Identity::Operator { .. }) => true,
            (
                Admitted::Hosts | Admitted::Operators,
                Identity::Authority
                | Identity::Host(_)
                | Identity::Operator { .. }
                | Identity::Other,
            ) => false,
        }
    }
}

impl ClientCertVerifier for OnlyAdmitted {
    fn offer_client_auth(&self) -> bool {
        self.chain.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Told the names of our authorities, a client without a fitting certificate would
        // send none, and neither side could say which authority was the wrong one.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let info = CertificateInfo::read(end_entity)
            .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
        if self.admits(&info.identity) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

pub(crate) fn timestamp(time: UnixTime) -> Timestamp {
    Timestamp::from_micros(time.as_secs().saturating_mul(1_000_000))
}
