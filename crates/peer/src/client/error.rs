//! Why a call to a peer did not succeed.

use std::error::Error as _;
use std::io;

use crate::address::PeerAddress;
use crate::distrust::{Distrust, PeerDistrust, WhyNotTrusted};
use crate::message::Refusal;
use crate::pki::CertificateInfo;

/// What became of a call. Only after [`Refused`](Self::Refused),
/// [`Unreachable`](Self::Unreachable), [`NotTrusted`](Self::NotTrusted),
/// [`HostName`](Self::HostName) and [`Unsendable`](Self::Unsendable) is it sure that the
/// peer has not done what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer has heard the call and says no.
    #[error("the peer refused: {0}")]
    Refused(Refusal),

    #[error(
        "cannot reach {address}; check that the host is up, the address right, and no firewall between"
    )]
    Unreachable {
        address: PeerAddress,
        source: io::Error,
    },

    #[error("{address} and this host do not trust each other: {why}")]
    NotTrusted {
        address: PeerAddress,
        why: WhyNotTrusted,
    },

    /// The name that the certificate should prove is none.
    #[error("{name:?} is no host name that a certificate could prove")]
    HostName { name: String },

    /// The connection ended before the answer.
    #[error(
        "the connection to {address} ended before the answer; what was asked may have been done"
    )]
    Interrupted {
        address: PeerAddress,
        source: io::Error,
    },

    #[error("{address} did not {what} in time; what was asked may have been done")]
    TimedOut {
        address: PeerAddress,
        what: &'static str,
    },

    /// What came back is not what the protocol says.
    #[error("{address} does not keep to the protocol: {why}; compare the releases of both hosts")]
    Protocol { address: PeerAddress, why: String },

    /// Nothing was sent: the message breaks the protocol's bounds.
    #[error("the message to the peer cannot be sent: {why}")]
    Unsendable { why: String },

    /// The caller's own body could not be read; the peer has thrown away what it had of it.
    #[error("read what is sent to the peer")]
    Source(#[source] io::Error),

    #[error("the call was cancelled")]
    Cancelled,
}

/// Errors below a call, as they are found; `to` makes what the caller sees of them.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(Refusal),
    Connect(io::Error),
    Exchange(hyper::Error),
    TimedOut(&'static str),
    Protocol(String),
    Source(io::Error),
    Cancelled,
}

impl Failure {
    pub(super) fn to(self, address: &PeerAddress, host: &CertificateInfo) -> LinkError {
        let address = address.clone();
        match self {
            Self::Refused(refusal) => LinkError::Refused(refusal),
            Self::Connect(source) => match distrust(source.get_ref().map(|e| e as _), host) {
                Some(why) => LinkError::NotTrusted { address, why },
                None => LinkError::Unreachable { address, source },
            },
            Self::Exchange(error) => match distrust(Some(&error), host) {
                Some(why) => LinkError::NotTrusted { address, why },
                None if error.is_parse() || error.is_parse_too_large() => LinkError::Protocol {
                    address,
                    why: error.to_string(),
                },
                None => LinkError::Interrupted {
                    address,
                    source: io_error(error),
                },
            },
            Self::TimedOut(what) => LinkError::TimedOut { address, what },
            Self::Protocol(why) => LinkError::Protocol { address, why },
            Self::Source(source) => LinkError::Source(source),
            Self::Cancelled => LinkError::Cancelled,
        }
    }

    /// The connection was closed by the other side; on one that was kept for long, mostly
    /// before it heard anything.
    pub(super) fn is_stale_connection(&self, host: &CertificateInfo) -> bool {
        match self {
            Self::Exchange(error) => {
                distrust(Some(error), host).is_none()
                    && !error.is_parse()
                    && !error.is_parse_too_large()
                    && !error.is_user()
            }
            Self::Refused(_)
            | Self::Connect(_)
            | Self::TimedOut(_)
            | Self::Protocol(_)
            | Self::Source(_)
            | Self::Cancelled => false,
        }
    }
}

/// Looks through the causes of an error for one of TLS that is about trust.
fn distrust(
    mut error: Option<&(dyn std::error::Error + 'static)>,
    host: &CertificateInfo,
) -> Option<WhyNotTrusted> {
    while let Some(cause) = error {
        let inside = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .and_then(|inside| inside.downcast_ref::<rustls::Error>());
        if let Some(tls) = cause.downcast_ref::<rustls::Error>().or(inside) {
            return Distrust::of(tls)
                .map(WhyNotTrusted::Peer)
                .or_else(|| PeerDistrust::of(tls, host).map(WhyNotTrusted::ThisHost));
        }
        error = cause.source();
    }
    None
}

/// The I/O error inside an error of an exchange, with the rest as its text.
fn io_error(error: hyper::Error) -> io::Error {
    let kind = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .map_or(io::ErrorKind::ConnectionAborted, io::Error::kind);
    io::Error::new(kind, error)
}
