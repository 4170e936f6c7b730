//! The whole folder in one file, and back.
//!
//! The file holds every key, the authority's too: whoever has it can be any host. It is
//! written with mode 0600, and belongs where nobody else reads it.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::error::PkiError;
use super::files::{self, Lock, Readers};
use super::folder::Pki;

const FORMAT: &str = "lifeboat-certificates-1";
/// The folders that hold files, besides the top.
const FOLDERS: [&str; 4] = ["", "trust/hosts", "trust/operators", "revoked"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Backup {
    format: String,
    files: Vec<Saved>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// Relative to the folder.
    path: String,
    /// Base64.
    content: String,
    /// BLAKE3 of the content.
    digest: String,
}

impl Pki {
    /// Writes everything in the folder into the file `into`, which is replaced.
    ///
    /// # Errors
    /// When a file cannot be read or the backup cannot be written; the one before stays.
    pub fn back_up(&self, into: &Path) -> Result<(), PkiError> {
        let _lock = Lock::take(self.folder())?;
        let mut saved = Vec::new();
        for folder in FOLDERS {
            for name in files::list(&self.folder().join(folder))? {
                let path = Path::new(folder).join(&name);
                let path = path.to_string_lossy().into_owned();
                if !is_ours(&path) {
                    continue;
                }
                if let Some(content) = files::read(&self.folder().join(&path))? {
                    saved.push(Saved {
                        path,
                        content: STANDARD.encode(&content),
                        digest: blake3::hash(&content).to_string(),
                    });
                }
            }
        }
        let backup = Backup {
            format: FORMAT.to_owned(),
            files: saved,
        };
        let text =
            serde_json::to_vec_pretty(&backup).map_err(|error| damaged(into, error.to_string()))?;
        files::replace(into, &text, Readers::Owner)
    }

    /// Makes `folder` anew from a backup. All of it is there afterwards, or nothing: a crash
    /// leaves at most a folder beside it that ends in `.restoring`, which the next attempt
    /// replaces.
    ///
    /// # Errors
    /// When the folder has anything in it, or the backup is damaged.
    pub fn restore(from: &Path, folder: &Path) -> Result<Self, PkiError> {
        let empty = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => return Err(PkiError::file("list", folder, error)),
        };
        if !empty {
            return Err(PkiError::NotEmpty {
                path: folder.to_owned(),
            });
        }
        let content = files::read(from)?
            .ok_or_else(|| PkiError::file("read", from, std::io::ErrorKind::NotFound.into()))?;
        let checked = checked(from, &content)?;
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(".restoring");
        let temporary = folder.with_file_name(name);
        if let Err(error) = fs::remove_dir_all(&temporary)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(PkiError::file("remove", &temporary, error));
        }
        for sub in FOLDERS {
            files::make_folder(&temporary.join(sub))?;
        }
        for (path, content) in checked {
            let readers = if path.components().count() == 1 {
                Readers::Owner
            } else {
                Readers::Everybody
            };
            files::replace(&temporary.join(path), &content, readers)?;
        }
        // An empty folder gives way to the rename.
        fs::rename(&temporary, folder).map_err(|error| PkiError::file("replace", folder, error))?;
        files::sync_folder_of(folder)?;
        Self::open(folder)
    }
}

/// The files of a backup, each of which belongs into the folder and is as it was saved.
fn checked(from: &Path, content: &[u8]) -> Result<Vec<(PathBuf, Vec<u8>)>, PkiError> {
    let backup: Backup = serde_json::from_slice(content)
        .map_err(|error| damaged(from, format!("it is no backup: {error}")))?;
    if backup.format != FORMAT {
        return Err(damaged(from, format!("its format is not {FORMAT}")));
    }
    let mut files = Vec::new();
    for saved in backup.files {
        if !is_ours(&saved.path) {
            return Err(damaged(
                from,
                format!("{:?} does not belong in it", saved.path),
            ));
        }
        let content = STANDARD
            .decode(&saved.content)
            .map_err(|error| damaged(from, format!("{}: {error}", saved.path)))?;
        if blake3::hash(&content).to_string() != saved.digest {
            return Err(damaged(
                from,
                format!("{} does not have its digest", saved.path),
            ));
        }
        files.push((PathBuf::from(saved.path), content));
    }
    Ok(files)
}

/// Only the paths of the layout: a backup from outside names no others.
fn is_ours(path: &str) -> bool {
    match path.rsplit_once('/') {
        None => matches!(
            path,
            "authority.pem" | "issued.json" | "host.pem" | "joining.pem"
        ),
        Some((folder, name)) => {
            FOLDERS[1..].contains(&folder)
                && name
                    .strip_suffix(".pem")
                    .is_some_and(|digits| digits.len() == 64)
                && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.')
        }
    }
}

fn damaged(path: &Path, why: String) -> PkiError {
    PkiError::Damaged {
        path: path.to_owned(),
        why,
    }
}
