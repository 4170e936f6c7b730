//! Certificates that are valid no longer, though their time is not over.
//!
//! Each authority has one list, a CRL that it signs, with a number that grows. The list is
//! the truth; nothing else records a revocation. Lists do not expire here: a host that is
//! cut off from the authority's must go on replicating.

use std::time::Duration;

use lifeboat_model::Timestamp;
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificate::{self, Fingerprint};
use super::error::PkiError;
use super::files::{self, Lock, Readers};
use super::folder::{Authority, Pki, pem};
use super::issue;

/// Longer lists are refused.
const MAX_LIST: usize = 2 << 20;
/// A list that names no date for the next one is malformed; nothing waits for this date.
const NEXT_LIST: Duration = Duration::from_secs(3650 * 86_400);

/// Why a certificate was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevocationCause {
    /// Somebody else may have the key.
    KeyCompromised,
    /// The host or operator has a newer certificate.
    Superseded,
    /// The host or operator is no more.
    Retired,
    /// The list gives another cause, or none.
    Other,
}

impl RevocationCause {
    fn reason(self) -> RevocationReason {
        match self {
            Self::KeyCompromised => RevocationReason::KeyCompromise,
            Self::Superseded => RevocationReason::Superseded,
            Self::Retired => RevocationReason::CessationOfOperation,
            Self::Other => RevocationReason::Unspecified,
        }
    }

    fn of_code(code: u8) -> Self {
        match code {
            1 => Self::KeyCompromised,
            4 => Self::Superseded,
            5 => Self::Retired,
            _ => Self::Other,
        }
    }
}

/// One entry of a revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// In hexadecimal digits.
    pub serial: String,
    pub at: Timestamp,
    pub cause: RevocationCause,
}

impl Pki {
    /// Revokes a certificate that the local authority has issued. It takes effect here when
    /// TLS is loaded again, and at other hosts when they have the new list. May be repeated;
    /// the first time and cause stay.
    ///
    /// # Errors
    /// [`PkiError::UnknownSerial`] when no such certificate was issued here.
    pub fn revoke(
        &self,
        serial: &str,
        cause: RevocationCause,
        now: Timestamp,
    ) -> Result<(), PkiError> {
        let _lock = Lock::take(self.folder())?;
        let authority = self.required_authority()?;
        let serial = serial.to_ascii_lowercase();
        if !self.issued()?.iter().any(|issued| issued.serial == serial) {
            return Err(PkiError::UnknownSerial {
                serial: certificate::clean(&serial),
            });
        }
        let mut revoked = self.revoked(&authority.info.fingerprint)?;
        if revoked.iter().any(|entry| entry.serial == serial) {
            return Ok(());
        }
        revoked.push(Revocation {
            serial,
            at: now,
            cause,
        });
        self.write_revocations(&authority, &revoked, now)
    }

    /// The entries of an authority's list; none when there is no list.
    ///
    /// # Errors
    /// When the list is damaged.
    pub fn revoked(&self, authority: &Fingerprint) -> Result<Vec<Revocation>, PkiError> {
        let Some(der) = self.revocation_list(authority)? else {
            return Ok(Vec::new());
        };
        Ok(entries(&parsed(&der)?))
    }

    /// The local authority's list in PEM, for other hosts.
    ///
    /// # Errors
    /// Without an authority.
    pub fn revocations(&self) -> Result<String, PkiError> {
        let authority = self.required_authority()?;
        self.revocation_text(&authority.info.fingerprint)?
            .ok_or_else(|| PkiError::Damaged {
                path: self.revoked_path(&authority.info.fingerprint),
                why: "the authority's revocation list is missing".to_owned(),
            })
    }

    /// Takes over a newer revocation list (PEM) of a trusted authority, and answers which
    /// authority that is. The same list again changes nothing.
    ///
    /// # Errors
    /// When no trusted authority has signed it, or it is older than the one that is here.
    pub fn import_revocations(&self, list: &str) -> Result<Fingerprint, PkiError> {
        let _lock = Lock::take(self.folder())?;
        self.accept_revocations(list)
    }

    /// As above, for a caller that holds the lock.
    pub(super) fn accept_revocations(&self, list: &str) -> Result<Fingerprint, PkiError> {
        if list.len() > MAX_LIST {
            return Err(unusable(format!("it is longer than {MAX_LIST} bytes")));
        }
        let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes())
            .map_err(|error| unusable(format!("it is no PEM: {error}")))?;
        let offered = parsed(&der)?;
        let mut signer = None;
        for authority in self.authorities("hosts")? {
            let parsed = certificate::parsed(&authority)?;
            if parsed.subject().as_raw() == offered.issuer().as_raw()
                && offered.verify_signature(parsed.public_key()).is_ok()
            {
                signer = Some(Fingerprint::of(&authority));
            }
        }
        let signer = signer.ok_or(PkiError::StrangeRevocations)?;
        if let Some(present) = self.revocation_list(&signer)? {
            let present = parsed(&present)?;
            if offered.crl_number() < present.crl_number() {
                return Err(PkiError::OlderRevocations {
                    offered: number(&offered),
                    present: number(&present),
                });
            }
        }
        self.store_revocations(&signer, &pem("X509 CRL", &der))?;
        Ok(signer)
    }

    /// Signs a new list with these entries and the next number.
    pub(super) fn write_revocations(
        &self,
        authority: &Authority,
        revoked: &[Revocation],
        now: Timestamp,
    ) -> Result<(), PkiError> {
        let last = match self.revocation_list(&authority.info.fingerprint)? {
            None => 0,
            Some(der) => {
                let digits = parsed(&der)?
                    .crl_number()
                    .map(|number| number.to_u64_digits());
                digits
                    .and_then(|digits| digits.first().copied())
                    .unwrap_or(0)
            }
        };
        let mut entries = Vec::with_capacity(revoked.len());
        for entry in revoked {
            entries.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&bytes(&entry.serial)),
                revocation_time: rcgen::date_time_ymd(1970, 1, 1) + issue::since_epoch(entry.at),
                reason_code: Some(entry.cause.reason()),
                invalidity_date: None,
            });
        }
        let now = issue::since_epoch(now);
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(1970, 1, 1) + now,
            next_update: rcgen::date_time_ymd(1970, 1, 1) + now + NEXT_LIST,
            crl_number: SerialNumber::from(last.saturating_add(1)),
            issuing_distribution_point: None,
            revoked_certs: entries,
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&issue::issuer(authority)?)
        .and_then(|list| list.pem())
        .map_err(PkiError::Make)?;
        self.store_revocations(&authority.info.fingerprint, &list)
    }

    fn store_revocations(&self, authority: &Fingerprint, text: &str) -> Result<(), PkiError> {
        files::make_folder(&self.folder().join("revoked"))?;
        let path = self.revoked_path(authority);
        files::replace(&path, text.as_bytes(), Readers::Everybody)
    }

    pub(super) fn revocation_text(
        &self,
        authority: &Fingerprint,
    ) -> Result<Option<String>, PkiError> {
        Ok(self
            .revocation_list(authority)?
            .map(|der| pem("X509 CRL", &der)))
    }

    pub(super) fn revocation_list(
        &self,
        authority: &Fingerprint,
    ) -> Result<Option<CertificateRevocationListDer<'static>>, PkiError> {
        let path = self.revoked_path(authority);
        let Some(content) = files::read(&path)? else {
            return Ok(None);
        };
        CertificateRevocationListDer::from_pem_slice(&content)
            .map(Some)
            .map_err(|error| PkiError::Damaged {
                path,
                why: format!("it is no PEM: {error}"),
            })
    }
}

fn parsed(der: &[u8]) -> Result<CertificateRevocationList<'_>, PkiError> {
    match CertificateRevocationList::from_der(der) {
        Ok(([], list)) => Ok(list),
        Ok(_) => Err(unusable("something follows it".to_owned())),
        Err(error) => Err(unusable(certificate::clean(&error.to_string()))),
    }
}

fn entries(list: &CertificateRevocationList<'_>) -> Vec<Revocation> {
    list.iter_revoked_certificates()
        .map(|entry| Revocation {
            serial: certificate::hex(entry.raw_serial()),
            at: certificate::timestamp(entry.revocation_date),
            cause: entry
                .reason_code()
                .map_or(RevocationCause::Other, |(_, code)| {
                    RevocationCause::of_code(code.0)
                }),
        })
        .collect()
}

fn number(list: &CertificateRevocationList<'_>) -> String {
    list.crl_number()
        .map_or_else(|| "none".to_owned(), ToString::to_string)
}

/// The bytes of hexadecimal digits that [`certificate::hex`] wrote.
fn bytes(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks_exact(2)
        .filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

fn unusable(why: String) -> PkiError {
    PkiError::Unusable {
        what: "the revocation list",
        why,
    }
}
