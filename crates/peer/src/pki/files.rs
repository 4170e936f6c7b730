//! Files that are replaced whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::error::PkiError;

/// Larger files are none of ours.
const MAX_FILE: u64 = 4 << 20;

/// Who may read a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readers {
    Owner,
    Everybody,
}

/// Replaces `path`. After an error or a crash it has the old content or the new one; a
/// temporary file may stay beside it, which the next replacement takes over.
pub(super) fn replace(path: &Path, content: &[u8], readers: Readers) -> Result<(), PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    // A file that a crash has left may have other permissions, or be a link.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PkiError::file("remove", &temporary, error));
        }
        Ok(()) | Err(_) => {}
    }
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everybody => 0o644,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(|error| PkiError::file("create", &temporary, error))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(|error| PkiError::file("write", &temporary, error))?;
    fs::rename(&temporary, path).map_err(|error| PkiError::file("replace", path, error))?;
    sync_folder_of(path)
}

/// Removes `path`; that it is not there is as good.
pub(super) fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(PkiError::file("remove", path, error)),
    }
}

/// The content of `path`, or `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    let failed = |error| PkiError::file("read", path, error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(PkiError::Damaged {
            path: path.to_owned(),
            why: format!("it has more than {MAX_FILE} bytes"),
        });
    }
    Ok(Some(content))
}

/// The names of the regular files in a folder, sorted; none when there is no such folder.
/// What a crash has left and what is no UTF-8 is passed over.
pub(super) fn list(folder: &Path) -> Result<Vec<String>, PkiError> {
    let failed = |error| PkiError::file("list", folder, error);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_file = entry.file_type().map_err(failed)?.is_file();
        if let (true, Ok(name)) = (is_file, entry.file_name().into_string())
            && !name.ends_with(".new")
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Makes a folder that only its owner enters; that it is there is as good.
pub(super) fn make_folder(folder: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| sync(folder.parent().unwrap_or(folder)))
        .map_err(|error| PkiError::file("create", folder, error))
}

/// Keeps other processes from changing the folder until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn take(folder: &Path) -> Result<Self, PkiError> {
        let path = folder.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| PkiError::file("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(PkiError::InUse {
                path: folder.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(PkiError::file("lock", &path, error)),
        }
    }
}

pub(super) fn sync_folder_of(path: &Path) -> Result<(), PkiError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    sync(folder).map_err(|error| PkiError::file("sync", folder, error))
}

fn sync(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    File::open(folder)?.sync_all()
}
