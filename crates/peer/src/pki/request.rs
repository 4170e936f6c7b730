//! Names of hosts, and requests for certificates.

use std::net::IpAddr;
use std::str::FromStr;

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, SanType};

use super::certificate::MAX_CERTIFICATE;
use super::error::PkiError;

/// The names of one host: the one it is known by, and addresses that lead to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNames {
    name: String,
    addresses: Vec<IpAddr>,
}

/// A text that names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no host name: use labels of letters, digits and '-', joined by '.', up to 253 characters in all"
)]
pub struct InvalidHostName {
    name: String,
}

/// The most addresses that one certificate carries.
const MAX_ADDRESSES: usize = 16;

impl HostNames {
    /// A host by its DNS name. The name is kept in lower case.
    ///
    /// # Errors
    /// When the name is none, an IP address, or has a wildcard.
    pub fn new(name: &str) -> Result<Self, InvalidHostName> {
        Ok(Self {
            name: checked_host_name(name)?,
            addresses: Vec::new(),
        })
    }

    /// Adds an address that leads to the host; beyond 16 they are left out.
    #[must_use]
    pub fn with_address(mut self, address: IpAddr) -> Self {
        if self.addresses.len() < MAX_ADDRESSES && !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
        self
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub(super) fn alternative_names(&self) -> Result<Vec<SanType>, PkiError> {
        let name = self.name.as_str().try_into().map_err(PkiError::Make)?;
        let addresses = self.addresses.iter().copied().map(SanType::IpAddress);
        Ok(std::iter::once(SanType::DnsName(name))
            .chain(addresses)
            .collect())
    }
}

impl FromStr for HostNames {
    type Err = InvalidHostName;

    fn from_str(name: &str) -> Result<Self, InvalidHostName> {
        Self::new(name)
    }
}

/// A DNS name in lower case, without the dot at its end.
pub(crate) fn checked_host_name(name: &str) -> Result<String, InvalidHostName> {
    let invalid = || InvalidHostName {
        name: name.chars().take(80).collect(),
    };
    let stripped = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name of digits and dots only would be taken for an address.
    let is_name = stripped.len() <= 253
        && stripped.split('.').all(label)
        && stripped
            .bytes()
            .any(|c| c.is_ascii_alphabetic() || c == b'-');
    if is_name {
        Ok(stripped.to_ascii_lowercase())
    } else {
        Err(invalid())
    }
}

/// The text of a request for a certificate with these names, signed with the key.
pub(super) fn write(names: &HostNames, key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, names.name());
    params.subject_alt_names = names.alternative_names()?;
    params
        .serialize_request(key)
        .and_then(|request| request.pem())
        .map_err(PkiError::Make)
}

/// Reads a request from outside: its signature is right, its key is of the kind that is
/// used here, and it asks for exactly these names. Nothing else of it is taken over.
pub(super) fn read(
    text: &str,
    approved: &HostNames,
) -> Result<CertificateSigningRequestParams, PkiError> {
    let unusable = |why: String| PkiError::Unusable {
        what: "the request",
        why,
    };
    if text.len() > MAX_CERTIFICATE {
        return Err(unusable(format!(
            "it is longer than {MAX_CERTIFICATE} bytes"
        )));
    }
    let request = CertificateSigningRequestParams::from_pem(text)
        .map_err(|error| unusable(error.to_string()))?;
    if *request.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(unusable("its key is not ECDSA P-256".to_owned()));
    }
    let requested = &request.params.subject_alt_names;
    if *requested != approved.alternative_names()? {
        return Err(PkiError::OtherNames {
            requested: shown(requested),
            approved: shown(&approved.alternative_names()?),
        });
    }
    Ok(request)
}

fn shown(names: &[SanType]) -> String {
    let mut texts: Vec<String> = names
        .iter()
        .take(MAX_ADDRESSES + 1)
        .map(|name| match name {
            SanType::DnsName(name) => super::certificate::clean(name.as_str()),
            SanType::IpAddress(address) => address.to_string(),
            _ => "a name of another kind".to_owned(),
        })
        .collect();
    if texts.is_empty() {
        texts.push("no name".to_owned());
    }
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_host_has_are_refused() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = ["a"; 128].join(".");
        for name in [
            "",
            ".",
            "..",
            "*",
            "*.example.org",
            "a b",
            "a/b",
            "-a",
            "a-",
            "a..b",
            "ä.example",
            "10.0.0.1",
            "127.1",
            "a\n",
            "a_b",
            "a:1",
            "::1",
            &long,
            &longer,
        ] {
            assert!(HostNames::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_host_name_is_kept_in_lower_case_without_its_last_dot() {
        assert_eq!(
            HostNames::new("A1.Example.ORG.").unwrap().name(),
            "a1.example.org"
        );
        assert_eq!(HostNames::new("replica-1").unwrap().name(), "replica-1");
    }
}
