//! Why a certificate was not believed: as the side says that refuses, and as the side learns
//! that is refused.

use lifeboat_model::Timestamp;
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use crate::pki::CertificateInfo;
use crate::tls::timestamp;

/// Why this host does not believe its peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error(
        "its certificate expired on {not_after}; issue a new one for that host, and check the clock here"
    )]
    Expired { not_after: Timestamp },
    #[error("its certificate is not valid before {not_before}; check the clocks of both hosts")]
    NotYetValid { not_before: Timestamp },
    #[error(
        "no authority that is trusted here has signed its certificate; let that host join this authority, or trust its authority here"
    )]
    UnknownAuthority,
    #[error(
        "its certificate is for {presented}, not for {expected}; check the address, or issue a certificate with the right name",
        presented = presented.join(", ")
    )]
    WrongName {
        expected: String,
        presented: Vec<String>,
    },
    #[error("its certificate was revoked; issue a new one if that host may be believed again")]
    Revoked,
    #[error("its certificate is not a host's; operators' certificates do not serve between hosts")]
    WrongPurpose,
    #[error("it has presented no certificate; only hosts with one are let in")]
    NoCertificate,
    #[error("it does not speak TLS 1.3; check that the address leads to a Lifeboat host")]
    OldTls,
    #[error("its certificate is malformed or its signature wrong; issue a new one")]
    Malformed,
}

impl Distrust {
    /// What a TLS error says of the peer's certificate; `None` when it is about another thing.
    pub(crate) fn of(error: &rustls::Error) -> Option<Self> {
        use rustls::Error;
        match error {
            Error::InvalidCertificate(why) => Some(Self::of_certificate(why)),
            Error::NoCertificatesPresented => Some(Self::NoCertificate),
            Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            ) => Some(Self::OldTls),
            Error::InvalidCertRevocationList(_) => Some(Self::Malformed),
            _ => None,
        }
    }

    fn of_certificate(why: &CertificateError) -> Self {
        match why {
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired {
                not_after: timestamp(*not_after),
            },
            CertificateError::Expired => Self::Expired {
                not_after: Timestamp::from_micros(0),
            },
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                not_before: timestamp(*not_before),
            },
            CertificateError::NotValidYet => Self::NotYetValid {
                not_before: Timestamp::from_micros(u64::MAX),
            },
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnknownIssuer => Self::UnknownAuthority,
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongName {
                expected: expected.to_str().into_owned(),
                presented: presented
                    .iter()
                    .take(8)
                    .map(|name| tidy_name(name))
                    .collect(),
            },
            CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. }
            | CertificateError::ApplicationVerificationFailure => Self::WrongPurpose,
            _ => Self::Malformed,
        }
    }
}

/// The library shows names like `DnsName("a.example")`.
fn tidy_name(shown: &str) -> String {
    let name = shown.split('"').nth(1).unwrap_or(shown);
    crate::pki::clean(name)
}

/// Why a peer does not believe this host, as far as TLS lets it say so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerDistrust {
    #[error("this host's certificate expired on {not_after}; issue a new one for this host")]
    Expired { not_after: Timestamp },
    #[error("this host's certificate is not valid before {not_before}; set the clock of this host")]
    NotYetValid { not_before: Timestamp },
    #[error(
        "by the peer's clock this host's certificate is not valid, though it is from {not_before} to {not_after}; check the clock of the peer"
    )]
    ClocksDiffer {
        not_before: Timestamp,
        not_after: Timestamp,
    },
    #[error(
        "the peer trusts no authority that has signed this host's certificate; let this host join the peer's authority, or let the peer trust this one's"
    )]
    UnknownAuthority,
    #[error("this host's certificate was revoked; let the authority issue a new one")]
    Revoked,
    #[error("this host's certificate is not a host's in the peer's eyes; issue one for this host")]
    WrongPurpose,
    #[error("the peer has received no certificate of this host; install one")]
    NoCertificate,
    #[error("the peer and this host have no version of TLS in common; 1.3 is required")]
    OldTls,
    #[error("the peer ended the handshake: {alert}; its log says why")]
    Other { alert: String },
}

impl PeerDistrust {
    /// What an alert says of our certificate `host`; `None` when it is no refusal of it.
    pub(crate) fn of(error: &rustls::Error, host: &CertificateInfo) -> Option<Self> {
        let rustls::Error::AlertReceived(alert) = error else {
            return None;
        };
        Some(match alert {
            AlertDescription::CertificateExpired => Self::by_time(host, UnixTime::now()),
            AlertDescription::UnknownCA => Self::UnknownAuthority,
            AlertDescription::CertificateRevoked => Self::Revoked,
            AlertDescription::AccessDenied | AlertDescription::UnsupportedCertificate => {
                Self::WrongPurpose
            }
            AlertDescription::CertificateRequired => Self::NoCertificate,
            AlertDescription::ProtocolVersion => Self::OldTls,
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => return None,
            other => Self::Other {
                alert: format!("{other:?}"),
            },
        })
    }

    /// TLS has one alert for all that is wrong with the time.
    fn by_time(host: &CertificateInfo, now: UnixTime) -> Self {
        let now = timestamp(now);
        let (not_before, not_after) = (host.not_before, host.not_after);
        if now > not_after {
            Self::Expired { not_after }
        } else if now < not_before {
            Self::NotYetValid { not_before }
        } else {
            Self::ClocksDiffer {
                not_before,
                not_after,
            }
        }
    }
}

/// Who does not believe whom.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyNotTrusted {
    #[error(transparent)]
    Peer(Distrust),
    #[error(transparent)]
    ThisHost(PeerDistrust),
}
