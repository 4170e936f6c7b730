//! What can go wrong with the folder of certificates.

use std::io;
use std::path::PathBuf;

use lifeboat_model::Timestamp;

use super::certificate::Fingerprint;
use super::request::InvalidHostName;

/// Why an operation on the certificates failed. Whatever it was, the folder holds what it
/// held before, or a part of the operation that repeating it completes.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{verb} {path}", path = path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error(
        "another process is changing the certificates in {path}; try again when it is done",
        path = path.display()
    )]
    InUse { path: PathBuf },

    #[error("{path} is damaged: {why}; restore the folder from a backup", path = path.display())]
    Damaged { path: PathBuf, why: String },

    #[error("{what} is not usable: {why}")]
    Unusable { what: &'static str, why: String },

    #[error("name a host")]
    HostName(#[source] InvalidHostName),

    #[error("{name:?} cannot name an operator: use 1 to 64 printable characters")]
    OperatorName { name: String },

    #[error(
        "this host has an authority already, {fingerprint}; certificates of a second one would not match those that are out"
    )]
    AuthorityExists { fingerprint: Fingerprint },

    #[error(
        "this host has no authority; create one here, or let the host that has one sign a request"
    )]
    NoAuthority,

    #[error("the authority expired on {not_after}; create a new one and let every host join it")]
    AuthorityExpired { not_after: Timestamp },

    #[error(
        "this host has no certificate; issue one with the local authority, or make a request and let an authority sign it"
    )]
    NoHostCertificate,

    #[error("no request of this host waits for a certificate; make a request first")]
    NoRequest,

    #[error(
        "the certificate belongs to another key than the request that waits here; let the authority sign the newest request"
    )]
    OtherKey,

    #[error(
        "the request asks for {requested}, but {approved} was approved; check which host sent it, and approve its addresses with --address if it is the right one"
    )]
    OtherNames { requested: String, approved: String },

    #[error(
        "the authority is {found}, not {expected} as stated; do not go on before you know who sent this"
    )]
    OtherAuthority {
        expected: Box<Fingerprint>,
        found: Box<Fingerprint>,
    },

    #[error("no authority with the fingerprint {fingerprint} is trusted here")]
    NotTrusted { fingerprint: Fingerprint },

    #[error(
        "{fingerprint} is this host's own authority; what it signed would be refused here: remove the authority's other hosts instead"
    )]
    OwnAuthority { fingerprint: Fingerprint },

    #[error("no certificate with the serial number {serial} was issued here; list the issued ones")]
    UnknownSerial { serial: String },

    #[error("the revocation list has number {offered}, older than {present} which is known here")]
    OlderRevocations { offered: String, present: String },

    #[error(
        "no trusted authority has signed the revocation list; trust the authority that wrote it first"
    )]
    StrangeRevocations,

    #[error("{path} exists and is not empty; restore into a new folder", path = path.display())]
    NotEmpty { path: PathBuf },

    #[error("make a key or certificate")]
    Make(#[source] rcgen::Error),

    #[error("set up TLS with the certificates in {path}", path = path.display())]
    Tls {
        path: PathBuf,
        source: rustls::Error,
    },

    #[error("set up the verification of certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),

    #[error("draw a random number")]
    Random,
}

impl PkiError {
    pub(super) fn file(verb: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::File {
            verb,
            path: path.to_owned(),
            source,
        }
    }
}
