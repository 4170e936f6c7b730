//! `lifeboat backup`: what a host cannot make anew, in one folder, and back.
//!
//! A backup has the configuration, the catalog and all certificates with their keys: whoever has
//! it can be this host. It has no disks and no replicas. It is whole under its name, or not there.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lifeboat_catalog::{Catalog, Checked};
use lifeboat_peer::pki::Pki;
use lifeboat_sys::clock;
use serde::{Deserialize, Serialize};

use super::init::{make_folder, pki_failure, write_secret};
use crate::daemon::{Config, DEFAULT_CONFIG};
use crate::exit::Failure;
use crate::new_file::{refuse_existing, sync_folder_of};
use crate::output::{OutputFormat, facts};

const FORMAT: &str = "lifeboat-backup-1";
const CONFIG: &str = "lifeboat.toml";
const CATALOG: &str = "catalog.db";
const CERTIFICATES: &str = "certificates.json";
const MANIFEST: &str = "backup.json";

/// The largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Copy configuration, catalog and certificates of this host into a new folder
    ///
    /// The daemon may run. The folder holds every key: keep it where nobody else reads it.
    Create {
        /// The host's configuration
        #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
        config: PathBuf,
        /// The folder to make
        #[arg(value_name = "DIR")]
        into: PathBuf,
    },

    /// Read a backup whole, and say whether it can be restored
    Check(BackupArgs),

    /// Make this host anew from a backup, on a machine that has none
    ///
    /// Nothing that exists is overwritten. The daemon must not run; start it afterwards.
    Restore {
        #[command(flatten)]
        from: BackupArgs,
        /// Where the configuration is written
        #[arg(long, default_value = DEFAULT_CONFIG, value_name = "FILE")]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The folder of the backup
    #[arg(value_name = "DIR")]
    from: PathBuf,
}

/// What a backup says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    host: String,
    made_at: String,
    version: String,
    files: Vec<Saved>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    name: String,
    bytes: u64,
    /// BLAKE3, in hexadecimal.
    digest: String,
}

/// What a command found or made.
#[derive(Debug, Serialize)]
struct Told {
    backup: PathBuf,
    host: String,
    made_at: String,
    version: String,
    vms: u64,
    relationships: u64,
    /// Where the host is now; absent unless it was restored.
    config: Option<PathBuf>,
    state: Option<PathBuf>,
}

/// Why a folder is no backup that can be used.
#[derive(Debug, thiserror::Error)]
enum BackupError {
    #[error("{} is not a backup: {why}", path.display())]
    NotOne { path: PathBuf, why: String },
    #[error("{} is not as it was written ({what}); use another backup", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("there is a host already: {} exists; restore onto a machine that has none, or move that away", path.display())]
    HostExists { path: PathBuf },
}

impl BackupCommand {
    /// Does what the command says.
    ///
    /// # Errors
    /// Why it was not done.
    pub fn run(self, output: OutputFormat) -> Result<(), Failure> {
        let told = match self {
            Self::Create { config, into } => create(&config, &into)?,
            Self::Check(BackupArgs { from }) => {
                let (manifest, checked) = check(&from)?;
                told(&from, &manifest, checked)
            }
            Self::Restore { from, config } => restore(&from.from, &config)?,
        };
        output.print(&told, describe)
    }
}

/// A crash leaves a folder `DIR.part` at most, which the next attempt replaces.
fn create(config_path: &Path, into: &Path) -> Result<Told, Failure> {
    refuse_existing(into)?;
    let config = Config::read(config_path).map_err(daemon)?;
    let pki = Pki::open(&config.pki()).map_err(pki_failure)?;
    let mut part = into.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    match fs::remove_dir_all(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("remove", &part, error));
        }
        Ok(()) | Err(_) => {}
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&part)
        .map_err(|error| file("make the folder", &part, error))?;
    let text = fs::read(config_path).map_err(|error| file("read", config_path, error))?;
    write_secret(&part.join(CONFIG), &text)?;
    Catalog::copy(&config.catalog(), &part.join(CATALOG)).map_err(daemon)?;
    pki.back_up(&part.join(CERTIFICATES)).map_err(pki_failure)?;
    let files: Result<Vec<Saved>, Failure> = [CONFIG, CATALOG, CERTIFICATES]
        .iter()
        .map(|name| digest(&part, name))
        .collect();
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        host: config.host,
        made_at: clock::wall().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: files?,
    };
    let text = serde_json::to_vec_pretty(&manifest);
    let text = text.expect("BUG: a manifest can be written as JSON");
    write_secret(&part.join(MANIFEST), &text)?;
    let (manifest, checked) = check(&part)?;
    // The names in the folder, then the name of the folder.
    sync_folder_of(&part.join(MANIFEST))?;
    refuse_existing(into)?;
    fs::rename(&part, into).map_err(|error| file("name", into, error))?;
    sync_folder_of(into)?;
    Ok(told(into, &manifest, checked))
}

/// Reads everything and compares it with what was written.
fn check(from: &Path) -> Result<(Manifest, Checked), Failure> {
    let path = from.join(MANIFEST);
    let mut text = String::new();
    fs::File::open(&path)
        .and_then(|file| file.take(MAX_MANIFEST).read_to_string(&mut text))
        .map_err(|error| file("read", &path, error))?;
    let not_one = |why: String| {
        daemon(BackupError::NotOne {
            path: from.to_owned(),
            why,
        })
    };
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|error| not_one(error.to_string()))?;
    if manifest.format != FORMAT {
        let why = format!(
            "its format is {:?}, and this version knows {FORMAT}",
            manifest.format
        );
        return Err(not_one(why));
    }
    let damaged = |path: PathBuf, what| Err(daemon(BackupError::Damaged { path, what }));
    for name in [CONFIG, CATALOG, CERTIFICATES] {
        let Some(saved) = manifest.files.iter().find(|saved| saved.name == name) else {
            return Err(not_one(format!("it has no {name}")));
        };
        let found = digest(from, name)?;
        if found.bytes != saved.bytes {
            return damaged(from.join(name), "it has another length");
        }
        if found.digest != saved.digest {
            return damaged(from.join(name), "it has another content");
        }
    }
    Config::read(&from.join(CONFIG)).map_err(daemon)?;
    let checked = Catalog::check(&from.join(CATALOG)).map_err(daemon)?;
    Ok((manifest, checked))
}

/// The configuration comes last: without it nothing serves what is half there. A crash leaves
/// parts, which the next attempt refuses and names.
fn restore(from: &Path, config_path: &Path) -> Result<Told, Failure> {
    let (manifest, checked) = check(from)?;
    let config = Config::read(&from.join(CONFIG)).map_err(daemon)?;
    for path in [config_path.to_owned(), config.catalog(), config.pki()] {
        match refuse_existing(&path) {
            Err(Failure::FileExists { path }) => {
                return Err(daemon(BackupError::HostExists { path }));
            }
            other => other?,
        }
    }
    make_folder(&config.state)?;
    Pki::restore(&from.join(CERTIFICATES), &config.pki()).map_err(pki_failure)?;
    Catalog::restore(&from.join(CATALOG), &config.catalog()).map_err(daemon)?;
    if let Some(folder) = config_path.parent() {
        make_folder(folder)?;
    }
    let text = fs::read(from.join(CONFIG)).map_err(|error| file("read", from, error))?;
    super::init::write_new(config_path, &text)?;
    sync_folder_of(config_path)?;
    let mut told = told(from, &manifest, checked);
    told.config = Some(config_path.to_owned());
    told.state = Some(config.state);
    Ok(told)
}

fn digest(folder: &Path, name: &str) -> Result<Saved, Failure> {
    let path = folder.join(name);
    let failed = |error| file("read", &path, error);
    let mut hasher = blake3::Hasher::new();
    let opened = fs::File::open(&path).map_err(failed)?;
    hasher.update_reader(opened).map_err(failed)?;
    Ok(Saved {
        name: name.to_owned(),
        bytes: hasher.count(),
        digest: hasher.finalize().to_hex().to_string(),
    })
}

fn told(backup: &Path, manifest: &Manifest, checked: Checked) -> Told {
    Told {
        backup: backup.to_owned(),
        host: manifest.host.clone(),
        made_at: manifest.made_at.clone(),
        version: manifest.version.clone(),
        vms: checked.vms,
        relationships: checked.relationships,
        config: None,
        state: None,
    }
}

fn describe(told: &Told) -> String {
    let mut rows = vec![
        ("backup", told.backup.display().to_string()),
        ("host", told.host.clone()),
        ("made", told.made_at.clone()),
        ("version", told.version.clone()),
        ("VMs", told.vms.to_string()),
        ("relationships", told.relationships.to_string()),
    ];
    if let (Some(config), Some(state)) = (&told.config, &told.state) {
        rows.push(("configuration", config.display().to_string()));
        rows.push(("state", state.display().to_string()));
    }
    facts(&rows)
}

fn file(what: &'static str, path: &Path, source: io::Error) -> Failure {
    Failure::File {
        what,
        path: path.to_owned(),
        source,
    }
}

fn daemon(source: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Daemon {
        source: Box::new(source),
    }
}
