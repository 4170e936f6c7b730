//! What the local authority signs.

use std::time::Duration;

use lifeboat_model::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::certificate::{self, CertificateInfo, Fingerprint, Identity, Role};
use super::error::PkiError;
use super::folder::Authority;
use super::request::HostNames;

const DAY: Duration = Duration::from_secs(86_400);
const AUTHORITY_DAYS: u32 = 3650;
/// Hosts outlive a forgotten year; the service warns long before.
const HOST_DAYS: u32 = 825;
const OPERATOR_DAYS: u32 = 365;
/// Certificates are valid from a little before they are made, because clocks differ.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(3600);

/// A certificate that the local authority has signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    pub serial: String,
    pub fingerprint: Fingerprint,
    /// The host or operator.
    pub name: String,
    /// The operator's role; absent for a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Issued {
    pub(super) fn of(info: &CertificateInfo) -> Self {
        let (name, role) = match &info.identity {
            Identity::Host(name) => (name.to_string(), None),
            Identity::Operator { name, role } => (name.clone(), Some(*role)),
            Identity::Authority | Identity::Other => (info.subject.clone(), None),
        };
        Self {
            serial: info.serial.clone(),
            fingerprint: info.fingerprint,
            name,
            role,
            not_before: info.not_before,
            not_after: info.not_after,
        }
    }
}

/// What an operator needs to prove who they are, in PEM.
#[derive(Clone)]
pub struct OperatorCredentials {
    pub certificate: String,
    pub key: String,
    pub info: CertificateInfo,
}

impl std::fmt::Debug for OperatorCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorCredentials")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// A new authority: its key, and the certificate it signed itself.
pub(super) fn authority(
    name: &str,
    now: Timestamp,
) -> Result<(KeyPair, CertificateDer<'static>), PkiError> {
    if !certificate::is_operator_name(name) {
        return Err(PkiError::Unusable {
            what: "the authority's name",
            why: format!(
                "{:?} is not 1 to 64 printable characters",
                certificate::clean(name)
            ),
        });
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)?;
    let serial = serial()?;
    let mut params = valid(now, AUTHORITY_DAYS, Timestamp::from_micros(u64::MAX));
    params.distinguished_name.push(DnType::CommonName, name);
    // Two authorities with one name must not be taken for each other: the issuer's name is
    // how a certificate finds its authority and its revocation list.
    let number: String = certificate::hex(&serial.to_bytes())
        .chars()
        .take(16)
        .collect();
    params.distinguished_name.push(
        DnType::OrganizationalUnitName,
        format!("lifeboat-authority:{number}"),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial);
    let certificate = params.self_signed(&key).map_err(PkiError::Make)?;
    Ok((key, certificate.der().clone()))
}

/// A certificate by which a host proves itself to others, as client and as server.
pub(super) fn host(
    authority: &Authority,
    names: &HostNames,
    key: &impl PublicKeyData,
    now: Timestamp,
) -> Result<CertificateDer<'static>, PkiError> {
    let mut params = valid(now, HOST_DAYS, authority.info.not_after);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name(names.name()));
    params.subject_alt_names = names.alternative_names()?;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    sign(authority, params, key)
}

/// A certificate by which an operator proves who they are and what they may do.
pub(super) fn operator(
    authority: &Authority,
    name: &str,
    role: Role,
    key: &impl PublicKeyData,
    now: Timestamp,
) -> Result<CertificateDer<'static>, PkiError> {
    if !certificate::is_operator_name(name) {
        return Err(PkiError::OperatorName {
            name: certificate::clean(name),
        });
    }
    let mut params = valid(now, OPERATOR_DAYS, authority.info.not_after);
    params.distinguished_name.push(DnType::CommonName, name);
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, role.organizational_unit());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(authority, params, key)
}

/// Checks that `authority` has signed `host`, and that this is a host's certificate.
pub(super) fn signed_host(
    host: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
) -> Result<CertificateInfo, PkiError> {
    let unusable = |why: &str| PkiError::Unusable {
        what: "the bundle",
        why: why.to_owned(),
    };
    let signer = certificate::parsed(authority)?;
    certificate::parsed(host)?
        .verify_signature(Some(signer.public_key()))
        .map_err(|_| unusable("the authority has not signed the host's certificate"))?;
    let info = CertificateInfo::read(host)?;
    match info.identity {
        Identity::Host(_) => Ok(info),
        Identity::Authority | Identity::Operator { .. } | Identity::Other => {
            Err(unusable("its first certificate is for no host"))
        }
    }
}

pub(super) fn issuer(authority: &Authority) -> Result<Issuer<'static, &KeyPair>, PkiError> {
    Issuer::from_ca_cert_der(&authority.der, &authority.key).map_err(PkiError::Make)
}

/// Signs an end certificate.
fn sign(
    authority: &Authority,
    mut params: CertificateParams,
    key: &impl PublicKeyData,
) -> Result<CertificateDer<'static>, PkiError> {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(serial()?);
    params.use_authority_key_identifier_extension = true;
    params
        .signed_by(key, &issuer(authority)?)
        .map(|certificate| certificate.der().clone())
        .map_err(PkiError::Make)
}

/// Valid from a little before `now` for so many days, but not beyond `end`.
fn valid(now: Timestamp, days: u32, end: Timestamp) -> CertificateParams {
    let now = since_epoch(now);
    let last = (now + DAY * days).min(since_epoch(end));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(CLOCK_DIFFERENCE);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + last;
    params
}

/// Whole seconds: certificates know no fractions.
pub(super) fn since_epoch(moment: Timestamp) -> Duration {
    Duration::from_secs(moment.as_micros() / 1_000_000)
}

/// A common name has 64 characters at most; the whole name is in the alternative names.
fn common_name(host: &str) -> String {
    host.chars().take(64).collect()
}

/// Drawn, so that no two certificates share a number even if the record of them is lost.
fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| PkiError::Random)?;
    // Positive, and of the full length.
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
