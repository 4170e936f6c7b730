//! Certificates: who is a host, who is an operator, and who says so.
//!
//! Each site has an authority of its own or trusts others'. A *host certificate* names one
//! host and serves both ends of a connection; an *operator certificate* names a person or
//! program and carries a role. Neither passes for the other. Keys are ECDSA P-256 and never
//! leave the host that made them, except in a backup.
//!
//! [`Pki`] is the folder that holds all of it; [`TlsMaterial`] is what servers and clients
//! load from there. Nothing here opens a connection.

mod backup;
mod certificate;
mod error;
mod files;
mod folder;
mod issue;
mod material;
mod request;
mod revocation;

pub use certificate::{CertificateInfo, Fingerprint, Identity, Role};
pub use error::PkiError;
pub use folder::{Pki, TrustedFor};
pub use issue::{Issued, OperatorCredentials};
pub use material::{Anonymous, TlsMaterial};
pub use request::{HostNames, InvalidHostName};
pub use revocation::{Revocation, RevocationCause};

pub(crate) use certificate::{clean, peer_name_of};
pub(crate) use request::checked_host_name;
