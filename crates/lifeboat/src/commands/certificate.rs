//! `lifeboat certificate`: the certificates of this host, and whom it trusts.
//!
//! Works on the host's own folder; a running daemon takes changes up when it is sent SIGHUP.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use lifeboat_peer::pki::{
    CertificateInfo, Fingerprint, HostNames, Pki, RevocationCause, Role, TrustedFor,
};
use lifeboat_sys::clock;
use serde::Serialize;

use crate::commands::init::{pki_failure, write_new};
use crate::daemon::{Config, DEFAULT_CONFIG};
use crate::exit::Failure;
use crate::output::{OutputFormat, Table, facts, print};

/// Where the host's configuration is.
#[derive(Debug, Args)]
pub struct Of {
    /// The configuration that `lifeboat init` wrote
    #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Show this host's certificate, its authority, and whom it trusts
    Show(Of),

    /// Print this host's authority certificate, for other hosts to trust
    Authority(Of),

    /// Make a new certificate for this host with its own authority
    Renew(Of),

    /// Make a request that another host's authority signs
    Request {
        #[command(flatten)]
        of: Of,
        /// Where the request is written
        #[arg(value_name = "FILE")]
        into: PathBuf,
    },

    /// Sign another host's request with this host's authority
    Sign {
        #[command(flatten)]
        of: Of,
        /// The request
        #[arg(value_name = "REQUEST")]
        request: PathBuf,
        /// The host that the certificate is for; you have made sure that the request is its own
        #[arg(long, value_name = "NAME")]
        name: String,
        /// An address that the certificate proves besides
        #[arg(long, value_name = "IP")]
        address: Vec<std::net::IpAddr>,
        /// Where the answer is written
        #[arg(long, value_name = "FILE")]
        into: PathBuf,
    },

    /// Install what the other host's authority answered
    Install {
        #[command(flatten)]
        of: Of,
        /// What `certificate sign` wrote there
        #[arg(value_name = "BUNDLE")]
        bundle: PathBuf,
        /// The authority's fingerprint, as its host shows it
        #[arg(long, value_name = "FINGERPRINT")]
        authority: Fingerprint,
    },

    /// Trust another organization's authority
    Trust {
        #[command(flatten)]
        of: Of,
        /// What `certificate authority` printed there
        #[arg(value_name = "FILE")]
        certificate: PathBuf,
        /// Its fingerprint, as its host shows it: compared before anything is trusted
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Fingerprint,
        /// What it is believed about
        #[arg(long = "for", value_enum, default_value = "hosts")]
        purpose: Purpose,
    },

    /// Trust an authority no longer
    Distrust {
        #[command(flatten)]
        of: Of,
        /// The authority's fingerprint, as `lifeboat certificate show` shows it
        #[arg(value_name = "FINGERPRINT")]
        fingerprint: Fingerprint,
    },

    /// Make a certificate for an operator of another machine
    Operator {
        #[command(flatten)]
        of: Of,
        /// Who it is for, as the audit will name them
        #[arg(value_name = "NAME")]
        name: String,
        /// What they may do
        #[arg(long, value_enum)]
        role: RoleArgument,
        /// The folder for the certificate and its key
        #[arg(long, value_name = "DIR")]
        into: PathBuf,
    },

    /// Revoke a certificate that this host's authority has issued
    Revoke {
        #[command(flatten)]
        of: Of,
        /// As `certificate show` lists it
        #[arg(value_name = "SERIAL")]
        serial: String,
    },

    /// Print the revocation list of this host's authority, or take over another's
    Revocations {
        #[command(flatten)]
        of: Of,
        /// A list to take over
        #[arg(long, value_name = "FILE")]
        import: Option<PathBuf>,
    },

    /// Write all certificates and keys of this host into one file
    Backup {
        #[command(flatten)]
        of: Of,
        /// The new file; it holds private keys
        #[arg(value_name = "FILE")]
        into: PathBuf,
    },

    /// Make this host's certificates anew from a backup
    Restore {
        #[command(flatten)]
        of: Of,
        /// The file that `certificate backup` wrote
        #[arg(value_name = "FILE")]
        from: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Who is a host
    Hosts,
    /// Who is a host, and who is an operator in which role
    HostsAndOperators,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArgument {
    /// May look
    Viewer,
    /// May do what a drill or a disaster takes
    Operator,
    /// May change settings and trust, and destroy
    Administrator,
}

/// A certificate, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    subject: String,
    fingerprint: String,
    serial: String,
    names: Vec<String>,
    not_after: String,
}

impl Shown {
    fn of(info: &CertificateInfo) -> Self {
        Self {
            subject: info.subject.clone(),
            fingerprint: info.fingerprint.to_string(),
            serial: info.serial.clone(),
            names: info.names.clone(),
            not_after: info.not_after.to_string(),
        }
    }
}

/// Everything about this host's certificates.
#[derive(Debug, Serialize)]
struct Overview {
    host: Option<Shown>,
    authority: Option<Shown>,
    trusted: Vec<TrustedAuthority>,
    issued: Vec<IssuedCertificate>,
}

#[derive(Debug, Serialize)]
struct TrustedAuthority {
    subject: String,
    fingerprint: String,
    trusted_for: &'static str,
}

#[derive(Debug, Serialize)]
struct IssuedCertificate {
    serial: String,
    name: String,
    role: String,
    not_after: String,
    revoked: bool,
}

impl CertificateCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        let now = clock::wall();
        match self {
            Self::Show(of) => output.print(&overview(&open(&of)?)?, describe),
            Self::Authority(of) => print(&open(&of)?.authority_certificate().map_err(pki_failure)?),
            Self::Renew(of) => {
                let (config, pki) = open_both(&of)?;
                let names = names_of(&config.host, &[])?;
                let info = pki.issue_own(&names, now).map_err(pki_failure)?;
                output.print(&Shown::of(&info), describe_one)
            }
            Self::Request { of, into } => {
                let (config, pki) = open_both(&of)?;
                let names = names_of(&config.host, &[])?;
                let request = pki.request(&names).map_err(pki_failure)?;
                write_new(&into, request.as_bytes())?;
                done(output, &into)
            }
            Self::Sign {
                of,
                request,
                name,
                address,
                into,
            } => {
                let pki = open(&of)?;
                let names = names_of(&name, &address)?;
                let text = read(&request)?;
                let (info, bundle) = pki.sign(&text, &names, now).map_err(pki_failure)?;
                write_new(&into, bundle.as_bytes())?;
                output.print(&Shown::of(&info), describe_one)
            }
            Self::Install {
                of,
                bundle,
                authority,
            } => {
                let pki = open(&of)?;
                let info = pki
                    .install(&read(&bundle)?, &authority)
                    .map_err(pki_failure)?;
                output.print(&Shown::of(&info), describe_one)
            }
            Self::Trust {
                of,
                certificate,
                fingerprint,
                purpose,
            } => trust(&open(&of)?, &certificate, &fingerprint, purpose, output),
            Self::Distrust { of, fingerprint } => {
                open(&of)?.distrust(&fingerprint).map_err(pki_failure)?;
                output.print(&(), |()| String::new())
            }
            Self::Operator {
                of,
                name,
                role,
                into,
            } => operator(&open(&of)?, &name, role, &into, output),
            Self::Revoke { of, serial } => {
                open(&of)?
                    .revoke(&serial, RevocationCause::Other, now)
                    .map_err(pki_failure)?;
                output.print(&(), |()| {
                    "Revoked. Send the daemon SIGHUP, and give other hosts the new list.\n"
                        .to_owned()
                })
            }
            Self::Revocations { of, import: None } => {
                print(&open(&of)?.revocations().map_err(pki_failure)?)
            }
            Self::Revocations {
                of,
                import: Some(list),
            } => {
                open(&of)?
                    .import_revocations(&read(&list)?)
                    .map_err(pki_failure)?;
                output.print(&(), |()| String::new())
            }
            Self::Backup { of, into } => {
                open(&of)?.back_up(&into).map_err(pki_failure)?;
                done(output, &into)
            }
            Self::Restore { of, from } => {
                let config = config_of(&of)?;
                Pki::restore(&from, &config.pki()).map_err(pki_failure)?;
                output.print(&(), |()| String::new())
            }
        }
    }
}

fn config_of(of: &Of) -> Result<Config, Failure> {
    Config::read(&of.config).map_err(|source| Failure::Daemon {
        source: Box::new(source),
    })
}

fn open_both(of: &Of) -> Result<(Config, Pki), Failure> {
    let config = config_of(of)?;
    let pki = Pki::open(&config.pki()).map_err(pki_failure)?;
    Ok((config, pki))
}

fn open(of: &Of) -> Result<Pki, Failure> {
    Ok(open_both(of)?.1)
}

fn names_of(host: &str, addresses: &[std::net::IpAddr]) -> Result<HostNames, Failure> {
    let names = HostNames::new(host).map_err(|error| Failure::Usage {
        what: error.to_string(),
    })?;
    Ok(addresses
        .iter()
        .fold(names, |names, &address| names.with_address(address)))
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|source| Failure::File {
        what: "read",
        path: path.to_owned(),
        source,
    })
}

fn trust(
    pki: &Pki,
    certificate: &Path,
    fingerprint: &Fingerprint,
    purpose: Purpose,
    output: OutputFormat,
) -> Result<(), Failure> {
    let text = read(certificate)?;
    let found = CertificateInfo::read_pem(&text).map_err(pki_failure)?;
    if found.fingerprint != *fingerprint {
        return Err(Failure::Usage {
            what: format!(
                "{} has the fingerprint {}, and {fingerprint} was expected: it is not trusted",
                certificate.display(),
                found.fingerprint
            ),
        });
    }
    let purpose = match purpose {
        Purpose::Hosts => TrustedFor::Hosts,
        Purpose::HostsAndOperators => TrustedFor::HostsAndOperators,
    };
    let info = pki.trust(&text, purpose).map_err(pki_failure)?;
    output.print(&Shown::of(&info), describe_one)
}

fn operator(
    pki: &Pki,
    name: &str,
    role: RoleArgument,
    into: &Path,
    output: OutputFormat,
) -> Result<(), Failure> {
    let role = match role {
        RoleArgument::Viewer => Role::Viewer,
        RoleArgument::Operator => Role::Operator,
        RoleArgument::Administrator => Role::Administrator,
    };
    let credentials = pki
        .issue_operator(name, role, clock::wall())
        .map_err(pki_failure)?;
    crate::commands::init::make_folder(into)?;
    write_new(
        &into.join("certificate.pem"),
        credentials.certificate.as_bytes(),
    )?;
    crate::commands::init::write_secret(&into.join("key.pem"), credentials.key.as_bytes())?;
    let authority = pki.authority_certificate().map_err(pki_failure)?;
    write_new(&into.join("trust.pem"), authority.as_bytes())?;
    output.print(&Shown::of(&credentials.info), describe_one)
}

fn overview(pki: &Pki) -> Result<Overview, Failure> {
    let host = pki.host_info().map_err(pki_failure)?;
    let authority = pki.authority_info().map_err(pki_failure)?;
    let revoked = match &authority {
        Some(authority) => pki.revoked(&authority.fingerprint).map_err(pki_failure)?,
        None => Vec::new(),
    };
    let trusted = pki.trusted().map_err(pki_failure)?;
    let issued = pki.issued().map_err(pki_failure)?;
    Ok(Overview {
        host: host.as_ref().map(Shown::of),
        authority: authority.as_ref().map(Shown::of),
        trusted: trusted
            .into_iter()
            .map(|(info, purpose)| TrustedAuthority {
                subject: info.subject,
                fingerprint: info.fingerprint.to_string(),
                trusted_for: match purpose {
                    TrustedFor::Hosts => "hosts",
                    TrustedFor::HostsAndOperators => "hosts and operators",
                },
            })
            .collect(),
        issued: issued
            .into_iter()
            .map(|issued| IssuedCertificate {
                revoked: revoked.iter().any(|entry| entry.serial == issued.serial),
                serial: issued.serial,
                name: issued.name,
                role: issued.role.map_or("host", Role::as_str).to_owned(),
                not_after: issued.not_after.to_string(),
            })
            .collect(),
    })
}

fn describe(overview: &Overview) -> String {
    let mut text = String::new();
    for (what, shown) in [("host", &overview.host), ("authority", &overview.authority)] {
        text.push_str(&format!("{what}\n"));
        match shown {
            Some(shown) => text.push_str(&describe_one(shown)),
            None => text.push_str("  none\n"),
        }
    }
    text.push('\n');
    let mut trusted = Table::new(&["TRUSTED AUTHORITY", "FOR", "FINGERPRINT"]);
    for authority in &overview.trusted {
        trusted.row([
            authority.subject.clone(),
            authority.trusted_for.to_owned(),
            authority.fingerprint.clone(),
        ]);
    }
    text.push_str(&trusted.render());
    if !overview.issued.is_empty() {
        text.push('\n');
        let mut issued = Table::new(&["ISSUED TO", "ROLE", "UNTIL", "SERIAL", "REVOKED"]);
        for certificate in &overview.issued {
            issued.row([
                certificate.name.clone(),
                certificate.role.clone(),
                certificate.not_after.clone(),
                certificate.serial.clone(),
                crate::output::yes_no(certificate.revoked).to_owned(),
            ]);
        }
        text.push_str(&issued.render());
    }
    text
}

fn describe_one(shown: &Shown) -> String {
    facts(&[
        ("  subject", shown.subject.clone()),
        ("  names", shown.names.join(", ")),
        ("  fingerprint", shown.fingerprint.clone()),
        ("  serial", shown.serial.clone()),
        ("  valid until", shown.not_after.clone()),
    ])
}

fn done(output: OutputFormat, path: &Path) -> Result<(), Failure> {
    let path = path.display().to_string();
    output.print(&path, |path| format!("written to {path}\n"))
}
