//! What a certificate says, read without believing it.
//!
//! Reading proves nothing: whether to believe a certificate is decided by TLS with the
//! trusted authorities. Texts in it come from outside and are cut and cleaned.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use lifeboat_model::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::error::PkiError;
use super::request::checked_host_name;
use crate::port::PeerName;

/// The larger one of two certificates that anybody needs; larger ones are refused unread.
pub(super) const MAX_CERTIFICATE: usize = 64 << 10;

/// How the organizational unit of an operator certificate begins; the role follows.
const ROLE_PREFIX: &str = "lifeboat-role:";

/// What an operator may do: each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Viewer,
    Operator,
    Administrator,
}

impl Role {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
    }

    /// The organizational unit that a certificate of this role has.
    pub(super) fn organizational_unit(self) -> String {
        format!("{ROLE_PREFIX}{}", self.as_str())
    }

    fn from_organizational_unit(text: &str) -> Option<Self> {
        match text.strip_prefix(ROLE_PREFIX)? {
            "viewer" => Some(Self::Viewer),
            "operator" => Some(Self::Operator),
            "administrator" => Some(Self::Administrator),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The SHA-256 of a certificate: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

/// A text that is no [`Fingerprint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 64 hexadecimal digits, with or without colons between the bytes")]
pub struct InvalidFingerprint;

impl Fingerprint {
    /// The fingerprint of a certificate in its binary form.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(sha256(der).as_ref());
        Self(bytes)
    }
}

/// SHA-256 by the same library that TLS uses.
fn sha256(bytes: &[u8]) -> rustls::crypto::hash::Output {
    let rustls::SupportedCipherSuite::Tls13(suite) =
        rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
    else {
        unreachable!("BUG: a suite of TLS 1.3 is one of TLS 1.3")
    };
    suite.common.hash_provider.hash(bytes)
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = InvalidFingerprint;

    fn from_str(text: &str) -> Result<Self, InvalidFingerprint> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').take(65).collect();
        if digits.len() != 64 {
            return Err(InvalidFingerprint);
        }
        let nibble = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
                .ok_or(InvalidFingerprint)
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = InvalidFingerprint;

    fn try_from(text: String) -> Result<Self, InvalidFingerprint> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Authority,
    Host(PeerName),
    Operator {
        name: String,
        role: Role,
    },
    /// Neither: a certificate of another purpose, or with names that no host has.
    Other,
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    pub identity: Identity,
    /// For people; cut and cleaned.
    pub subject: String,
    pub issuer: String,
    /// In hexadecimal digits.
    pub serial: String,
    pub fingerprint: Fingerprint,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// Host names and addresses, in the certificate's order.
    pub names: Vec<String>,
}

impl CertificateInfo {
    /// Reads a certificate in its binary form.
    ///
    /// # Errors
    /// When the bytes are no certificate, or one that is too large.
    pub fn read(der: &[u8]) -> Result<Self, PkiError> {
        parsed(der).map(|certificate| Self::of(&certificate, der))
    }

    /// Reads a certificate in its text form (PEM).
    ///
    /// # Errors
    /// When the text holds no certificate.
    pub fn read_pem(text: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| {
            PkiError::Unusable {
                what: "the certificate",
                why: error.to_string(),
            }
        })?;
        Self::read(&der)
    }

    /// How long it is valid yet; zero when it is no more.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> std::time::Duration {
        std::time::Duration::from_micros(self.not_after.as_micros().saturating_sub(now.as_micros()))
    }

    fn of(certificate: &X509Certificate<'_>, der: &[u8]) -> Self {
        Self {
            identity: identity(certificate),
            subject: clean(&certificate.subject().to_string()),
            issuer: clean(&certificate.issuer().to_string()),
            serial: hex(certificate.raw_serial()),
            fingerprint: Fingerprint::of(der),
            not_before: timestamp(certificate.validity().not_before),
            not_after: timestamp(certificate.validity().not_after),
            names: names(certificate),
        }
    }
}

/// The host that a certificate is for, or `None` if it is for no host.
pub(crate) fn peer_name_of(der: &[u8]) -> Option<PeerName> {
    match CertificateInfo::read(der).ok()?.identity {
        Identity::Host(name) => Some(name),
        Identity::Authority | Identity::Operator { .. } | Identity::Other => None,
    }
}

pub(super) fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    let unusable = |why: String| PkiError::Unusable {
        what: "the certificate",
        why,
    };
    if der.len() > MAX_CERTIFICATE {
        return Err(unusable(format!(
            "it has {} bytes, and {MAX_CERTIFICATE} are the limit",
            der.len()
        )));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(unusable("something follows it".to_owned())),
        Err(error) => Err(unusable(clean(&error.to_string()))),
    }
}

/// The purposes decide first, so that no certificate can be two things.
fn identity(certificate: &X509Certificate<'_>) -> Identity {
    if certificate.is_ca() {
        return Identity::Authority;
    }
    let Ok(Some(usage)) = certificate.extended_key_usage() else {
        return Identity::Other;
    };
    let role = certificate
        .subject()
        .iter_organizational_unit()
        .find_map(|unit| Role::from_organizational_unit(unit.as_str().ok()?));
    match (usage.value.server_auth, usage.value.client_auth, role) {
        (true, true, None) => first_host_name(certificate)
            .map_or(Identity::Other, |name| Identity::Host(PeerName::new(name))),
        (false, true, Some(role)) => {
            let name = certificate.subject().iter_common_name().next();
            match name.and_then(|name| name.as_str().ok()) {
                Some(name) if is_operator_name(name) => Identity::Operator {
                    name: name.to_owned(),
                    role,
                },
                _ => Identity::Other,
            }
        }
        _ => Identity::Other,
    }
}

/// The first name of the certificate is the host; further ones are only other ways to it.
fn first_host_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    let first = names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })?;
    checked_host_name(first).ok()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    names
        .value
        .general_names
        .iter()
        .take(32)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(clean(name)),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// An operator's name goes into logs and audit rows as it is.
pub(super) fn is_operator_name(name: &str) -> bool {
    let length = name.chars().count();
    (1..=64).contains(&length) && name.trim() == name && !name.chars().any(char::is_control)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn timestamp(time: ASN1Time) -> Timestamp {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    Timestamp::from_micros(seconds.saturating_mul(1_000_000))
}

/// Text from outside, fit for a log line: printable and short.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_sha_256() {
        assert_eq!(
            Fingerprint::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_fingerprint_is_read_with_and_without_colons() {
        let print = Fingerprint::of(b"abc");
        let colons = print
            .to_string()
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
            .collect::<Vec<_>>()
            .join(":");
        assert_eq!(colons.parse(), Ok(print));
        assert_eq!(print.to_string().parse(), Ok(print));
        for text in ["", "00", &"0".repeat(63), &"0".repeat(66), &"g".repeat(64)] {
            assert_eq!(
                text.parse::<Fingerprint>(),
                Err(InvalidFingerprint),
                "{text:?}"
            );
        }
    }

    #[test]
    fn each_role_is_read_from_the_unit_it_writes() {
        for role in [Role::Viewer, Role::Operator, Role::Administrator] {
            let unit = role.organizational_unit();
            assert_eq!(Role::from_organizational_unit(&unit), Some(role));
        }
        for unit in [
            "administrator",
            "lifeboat-role:",
            "lifeboat-role:Administrator",
            "root",
        ] {
            assert_eq!(Role::from_organizational_unit(unit), None, "{unit}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"garbage",
            &[0x30; 4000],
            &vec![0; MAX_CERTIFICATE + 1],
        ] {
            assert!(CertificateInfo::read(bytes).is_err());
        }
    }
}
