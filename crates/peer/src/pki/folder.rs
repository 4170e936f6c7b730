//! The folder with the certificates of a host.
//!
//! ```text
//! authority.pem            key and certificate of the local authority      0600
//! issued.json              what the local authority has signed             0600
//! host.pem                 key and certificates of this host               0600
//! joining.pem              key whose request waits for a certificate       0600
//! trust/hosts/F.pem        authorities whose hosts are let in              0644
//! trust/operators/F.pem    authorities whose operators are let in          0644
//! revoked/F.pem            the newest revocation list of authority F       0644
//! lock                     held while something is changed
//! ```
//!
//! `F` is the SHA-256 fingerprint of the authority's certificate. Each file is replaced as a
//! whole, durably; a key and its certificate are in one file, so that they always match.
//! Reading takes no lock. Changes exclude each other across processes.

use std::path::{Path, PathBuf};

use lifeboat_model::Timestamp;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::{self, CertificateInfo, Fingerprint, Identity};
use super::error::PkiError;
use super::files::{self, Lock, Readers};
use super::issue::{self, Issued};
use super::request::{self, HostNames};
use super::{OperatorCredentials, Role};

/// The most authorities that one host trusts.
const MAX_TRUSTED: usize = 64;
/// The longest chain in `host.pem` or a bundle.
const MAX_CHAIN: usize = 8;

/// The folder with the certificates of a host.
#[derive(Debug, Clone)]
pub struct Pki {
    folder: PathBuf,
}

/// What an authority is trusted to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrustedFor {
    /// Who is a host: another organization's authority.
    Hosts,
    /// Who is a host, and who is an operator and in which role.
    HostsAndOperators,
}

/// An authority's key and certificate.
pub(super) struct Authority {
    pub(super) key: KeyPair,
    pub(super) der: CertificateDer<'static>,
    pub(super) info: CertificateInfo,
}

/// A host's key and chain.
#[derive(Debug)]
pub(super) struct HostIdentity {
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) info: CertificateInfo,
}

impl Pki {
    /// Uses `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        files::make_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes an authority of this host's own and trusts it. Valid for ten years.
    ///
    /// # Errors
    /// [`PkiError::AuthorityExists`] when there is one.
    pub fn create_authority(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<CertificateInfo, PkiError> {
        let _lock = Lock::take(&self.folder)?;
        if let Some(authority) = self.authority_info()? {
            // A crash may have come between the authority and the trust in it.
            self.trust_own(&self.required_authority()?)?;
            return Err(PkiError::AuthorityExists {
                fingerprint: authority.fingerprint,
            });
        }
        let (key, der) = issue::authority(name, now)?;
        let text = key.serialize_pem() + &pem("CERTIFICATE", &der);
        files::replace(&self.authority_path(), text.as_bytes(), Readers::Owner)?;
        let authority = self.required_authority()?;
        self.trust_own(&authority)?;
        self.write_revocations(&authority, &[], now)?;
        Ok(authority.info)
    }

    /// The local authority's certificate; `None` where there is no authority.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn authority_info(&self) -> Result<Option<CertificateInfo>, PkiError> {
        Ok(self.authority()?.map(|authority| authority.info))
    }

    /// Makes a key and a certificate for this host with the local authority. The one before
    /// stays valid until it expires or is revoked.
    ///
    /// # Errors
    /// Without an authority.
    pub fn issue_own(
        &self,
        names: &HostNames,
        now: Timestamp,
    ) -> Result<CertificateInfo, PkiError> {
        let _lock = Lock::take(&self.folder)?;
        let authority = self.valid_authority(now)?;
        let key = new_key()?;
        let der = issue::host(&authority, names, &key, now)?;
        let info = CertificateInfo::read(&der)?;
        self.record_issued(&info)?;
        self.write_host(&key.serialize_pem(), &[der])?;
        Ok(info)
    }

    /// Makes a key for this host and the request (PEM) that an authority elsewhere signs.
    /// The key stays here. A request made before is void.
    ///
    /// # Errors
    /// When the key cannot be made or saved.
    pub fn request(&self, names: &HostNames) -> Result<String, PkiError> {
        let _lock = Lock::take(&self.folder)?;
        let key = new_key()?;
        let request = request::write(names, &key)?;
        let text = key.serialize_pem();
        files::replace(&self.joining_path(), text.as_bytes(), Readers::Owner)?;
        Ok(request)
    }

    /// Signs a joining host's request and answers with the bundle (PEM) that the host
    /// installs: its certificate, then the authority's, then the revocation list. Of the
    /// request only the key is used; the names must be exactly those that were approved.
    ///
    /// # Errors
    /// When the request is not acceptable, or without an authority.
    pub fn sign(
        &self,
        request: &str,
        approved: &HostNames,
        now: Timestamp,
    ) -> Result<(CertificateInfo, String), PkiError> {
        let _lock = Lock::take(&self.folder)?;
        let authority = self.valid_authority(now)?;
        let request = request::read(request, approved)?;
        let der = issue::host(&authority, approved, &request.public_key, now)?;
        let info = CertificateInfo::read(&der)?;
        self.record_issued(&info)?;
        let mut bundle = pem("CERTIFICATE", &der) + &pem("CERTIFICATE", &authority.der);
        if let Some(list) = self.revocation_text(&authority.info.fingerprint)? {
            bundle += &list;
        }
        Ok((info, bundle))
    }

    /// Installs what [`sign`](Self::sign) answered on the host that made the request, and
    /// trusts the authority for hosts and operators. `expected` comes from a person who has
    /// it from the authority's host by another way. May be repeated.
    ///
    /// # Errors
    /// When the bundle is from another authority or for another key.
    pub fn install(
        &self,
        bundle: &str,
        expected: &Fingerprint,
    ) -> Result<CertificateInfo, PkiError> {
        let _lock = Lock::take(&self.folder)?;
        let chain = certificates(bundle.as_bytes(), "the bundle")?;
        let [host, authority] = chain.as_slice() else {
            return Err(PkiError::Unusable {
                what: "the bundle",
                why: format!(
                    "it has {} certificates instead of the host's and the authority's",
                    chain.len()
                ),
            });
        };
        let found = Fingerprint::of(authority);
        if found != *expected {
            return Err(PkiError::OtherAuthority {
                expected: Box::new(*expected),
                found: Box::new(found),
            });
        }
        let info = issue::signed_host(host, authority)?;
        let key = self.key_of(host)?;
        self.add_trust(authority, TrustedFor::HostsAndOperators)?;
        if bundle.contains("X509 CRL") {
            self.accept_revocations(bundle)?;
        }
        self.write_host(&key, std::slice::from_ref(host))?;
        files::remove(&self.joining_path())?;
        Ok(info)
    }

    /// Issues a certificate with its key for an operator. Neither is kept here.
    ///
    /// # Errors
    /// When the name cannot be used, or without an authority.
    pub fn issue_operator(
        &self,
        name: &str,
        role: Role,
        now: Timestamp,
    ) -> Result<OperatorCredentials, PkiError> {
        let _lock = Lock::take(&self.folder)?;
        let authority = self.valid_authority(now)?;
        let key = new_key()?;
        let der = issue::operator(&authority, name, role, &key, now)?;
        let info = CertificateInfo::read(&der)?;
        self.record_issued(&info)?;
        Ok(OperatorCredentials {
            certificate: pem("CERTIFICATE", &der),
            key: key.serialize_pem(),
            info,
        })
    }

    /// The certificate by which this host proves itself; `None` before it has one.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn host_info(&self) -> Result<Option<CertificateInfo>, PkiError> {
        Ok(self.host()?.map(|host| host.info))
    }

    /// Trusts an authority (one certificate in PEM). The person who calls has compared its
    /// fingerprint. May be repeated; a wider trust stays.
    ///
    /// # Errors
    /// When it is no authority's certificate.
    pub fn trust(&self, authority: &str, purpose: TrustedFor) -> Result<CertificateInfo, PkiError> {
        let _lock = Lock::take(&self.folder)?;
        let found = certificates(authority.as_bytes(), "the authority's certificate")?;
        let [der] = found.as_slice() else {
            return Err(PkiError::Unusable {
                what: "the authority's certificate",
                why: format!("there are {} certificates instead of one", found.len()),
            });
        };
        self.add_trust(der, purpose)
    }

    /// Trusts an authority no longer.
    ///
    /// # Errors
    /// When it is not trusted, or is this host's own.
    pub fn distrust(&self, fingerprint: &Fingerprint) -> Result<(), PkiError> {
        let _lock = Lock::take(&self.folder)?;
        if self
            .authority_info()?
            .is_some_and(|own| own.fingerprint == *fingerprint)
        {
            return Err(PkiError::OwnAuthority {
                fingerprint: *fingerprint,
            });
        }
        if !self
            .trusted()?
            .iter()
            .any(|(info, _)| info.fingerprint == *fingerprint)
        {
            return Err(PkiError::NotTrusted {
                fingerprint: *fingerprint,
            });
        }
        files::remove(&self.trust_path("operators", fingerprint))?;
        files::remove(&self.trust_path("hosts", fingerprint))?;
        files::remove(&self.revoked_path(fingerprint))
    }

    /// The trusted authorities.
    ///
    /// # Errors
    /// When one of the files is damaged.
    pub fn trusted(&self) -> Result<Vec<(CertificateInfo, TrustedFor)>, PkiError> {
        let operators = self.authorities("operators")?;
        self.authorities("hosts")?
            .iter()
            .map(|der| {
                let purpose = if operators.contains(der) {
                    TrustedFor::HostsAndOperators
                } else {
                    TrustedFor::Hosts
                };
                Ok((CertificateInfo::read(der)?, purpose))
            })
            .collect()
    }

    /// The local authority's certificate in PEM, to be trusted elsewhere.
    ///
    /// # Errors
    /// Without an authority.
    pub fn authority_certificate(&self) -> Result<String, PkiError> {
        Ok(pem("CERTIFICATE", &self.required_authority()?.der))
    }

    /// What the local authority has signed, oldest first.
    ///
    /// # Errors
    /// When the record is damaged.
    pub fn issued(&self) -> Result<Vec<Issued>, PkiError> {
        let path = self.issued_path();
        let Some(content) = files::read(&path)? else {
            return Ok(Vec::new());
        };
        serde_json::from_slice(&content).map_err(|error| PkiError::Damaged {
            path,
            why: error.to_string(),
        })
    }

    fn record_issued(&self, info: &CertificateInfo) -> Result<(), PkiError> {
        let mut issued = self.issued()?;
        issued.push(Issued::of(info));
        let path = self.issued_path();
        let text = serde_json::to_vec_pretty(&issued).map_err(|error| PkiError::Damaged {
            path: path.clone(),
            why: error.to_string(),
        })?;
        files::replace(&path, &text, Readers::Owner)
    }

    fn add_trust(
        &self,
        der: &CertificateDer<'_>,
        purpose: TrustedFor,
    ) -> Result<CertificateInfo, PkiError> {
        let info = CertificateInfo::read(der)?;
        if info.identity != Identity::Authority {
            return Err(PkiError::Unusable {
                what: "the authority's certificate",
                why: format!("{} is no authority", info.subject),
            });
        }
        if self.authorities("hosts")?.len() >= MAX_TRUSTED {
            return Err(PkiError::Unusable {
                what: "the authority's certificate",
                why: format!("{MAX_TRUSTED} authorities are trusted already, which is the limit"),
            });
        }
        let text = pem("CERTIFICATE", der);
        let folders: &[&str] = match purpose {
            TrustedFor::Hosts => &["hosts"],
            TrustedFor::HostsAndOperators => &["hosts", "operators"],
        };
        for folder in folders {
            files::make_folder(&self.folder.join("trust").join(folder))?;
            let path = self.trust_path(folder, &info.fingerprint);
            files::replace(&path, text.as_bytes(), Readers::Everybody)?;
        }
        Ok(info)
    }

    fn trust_own(&self, authority: &Authority) -> Result<(), PkiError> {
        self.add_trust(&authority.der, TrustedFor::HostsAndOperators)
            .map(|_| ())
    }

    fn write_host(&self, key: &str, chain: &[CertificateDer<'_>]) -> Result<(), PkiError> {
        let mut text = key.to_owned();
        for der in chain {
            text += &pem("CERTIFICATE", der);
        }
        files::replace(&self.host_path(), text.as_bytes(), Readers::Owner)
    }

    /// The key, in PEM, that `certificate` belongs to: the one that waits for it, or, when
    /// the installation is repeated, the one in use.
    fn key_of(&self, certificate: &CertificateDer<'_>) -> Result<String, PkiError> {
        let parsed = certificate::parsed(certificate)?;
        let public = &parsed.public_key().subject_public_key.data;
        let mut waits = false;
        for path in [self.joining_path(), self.host_path()] {
            let Some(content) = files::read(&path)? else {
                continue;
            };
            let key = key(&path, &content)?;
            if key.public_key_raw() == public.as_ref() {
                return Ok(key.serialize_pem());
            }
            waits |= path == self.joining_path();
        }
        Err(if waits {
            PkiError::OtherKey
        } else {
            PkiError::NoRequest
        })
    }

    pub(super) fn authority(&self) -> Result<Option<Authority>, PkiError> {
        let path = self.authority_path();
        let Some(content) = files::read(&path)? else {
            return Ok(None);
        };
        let chain = certificates(&content, "the authority's file")?;
        let [der] = chain.as_slice() else {
            return Err(PkiError::Damaged {
                path,
                why: "it does not hold one certificate".to_owned(),
            });
        };
        Ok(Some(Authority {
            key: key(&path, &content)?,
            der: der.clone(),
            info: CertificateInfo::read(der)?,
        }))
    }

    pub(super) fn required_authority(&self) -> Result<Authority, PkiError> {
        self.authority()?.ok_or(PkiError::NoAuthority)
    }

    fn valid_authority(&self, now: Timestamp) -> Result<Authority, PkiError> {
        let authority = self.required_authority()?;
        if authority.info.not_after <= now {
            return Err(PkiError::AuthorityExpired {
                not_after: authority.info.not_after,
            });
        }
        Ok(authority)
    }

    pub(super) fn host(&self) -> Result<Option<HostIdentity>, PkiError> {
        let path = self.host_path();
        let Some(content) = files::read(&path)? else {
            return Ok(None);
        };
        let damaged = |why: String| PkiError::Damaged {
            path: path.clone(),
            why,
        };
        let chain = certificates(&content, "the host's file")?;
        let key = PrivateKeyDer::from_pem_slice(&content)
            .map_err(|error| damaged(format!("no key in it: {error}")))?;
        let Some(first) = chain.first() else {
            return Err(damaged("no certificate in it".to_owned()));
        };
        let info = CertificateInfo::read(first)?;
        Ok(Some(HostIdentity { key, chain, info }))
    }

    /// The authorities in one of the folders below `trust`.
    pub(super) fn authorities(
        &self,
        folder: &str,
    ) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        let folder = self.folder.join("trust").join(folder);
        let mut found = Vec::new();
        for name in files::list(&folder)? {
            let path = folder.join(name);
            if let Some(content) = files::read(&path)? {
                found.extend(certificates(&content, "a trusted authority's file")?);
            }
        }
        Ok(found)
    }

    fn authority_path(&self) -> PathBuf {
        self.folder.join("authority.pem")
    }

    fn issued_path(&self) -> PathBuf {
        self.folder.join("issued.json")
    }

    pub(super) fn host_path(&self) -> PathBuf {
        self.folder.join("host.pem")
    }

    fn joining_path(&self) -> PathBuf {
        self.folder.join("joining.pem")
    }

    fn trust_path(&self, folder: &str, fingerprint: &Fingerprint) -> PathBuf {
        let folder = self.folder.join("trust").join(folder);
        folder.join(format!("{fingerprint}.pem"))
    }

    pub(super) fn revoked_path(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.folder
            .join("revoked")
            .join(format!("{fingerprint}.pem"))
    }
}

fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Make)
}

fn key(path: &Path, content: &[u8]) -> Result<KeyPair, PkiError> {
    let damaged = |why: String| PkiError::Damaged {
        path: path.to_owned(),
        why,
    };
    let der = PrivateKeyDer::from_pem_slice(content)
        .map_err(|error| damaged(format!("no key in it: {error}")))?;
    KeyPair::from_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| damaged(format!("its key is not usable: {error}")))
}

/// The certificates in a PEM text, bounded in number and size.
pub(super) fn certificates(
    text: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let unusable = |why: String| PkiError::Unusable { what, why };
    let mut found = Vec::new();
    for der in CertificateDer::pem_slice_iter(text) {
        let der = der.map_err(|error| unusable(format!("it is no PEM: {error}")))?;
        if found.len() == MAX_CHAIN {
            return Err(unusable(format!(
                "it has more than {MAX_CHAIN} certificates"
            )));
        }
        certificate::parsed(&der)?;
        found.push(der);
    }
    Ok(found)
}

/// PEM text of binary content.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let digits = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in digits.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}
