//! A new file that gets its name when it is whole and durable.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::exit::Failure;

/// A file under way. It lies beside its later place, under the name with `.part` added; if it is
/// dropped before [`publish`](Self::publish), it goes.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    is_published: bool,
}

impl NewFile {
    /// Begins a file, readable by its owner only. What an earlier run left half done is replaced.
    ///
    /// # Errors
    /// [`Failure::FileExists`]; [`Failure::FileInUse`] while another process writes it.
    pub fn begin(path: &Path) -> Result<Self, Failure> {
        refuse_existing(path)?;
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let failed = |source| failed("create", &part, source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&part)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Failure::FileInUse { path: part }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // Between opening and locking, another process may have given the file its name.
        if !is_still_at(&file, &part).map_err(failed)? {
            return Err(Failure::FileInUse { path: part });
        }
        file.set_len(0).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            part,
            file,
            is_published: false,
        })
    }

    /// The file to write.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What failed while writing the file.
    #[must_use]
    pub fn write_failed(&self, source: io::Error) -> Failure {
        failed("write", &self.part, source)
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Failure::FileExists`] when the name was taken meanwhile, or what the system says.
    pub fn publish(mut self) -> Result<(), Failure> {
        let at = |source| failed("write", &self.part, source);
        self.file.sync_all().map_err(at)?;
        refuse_existing(&self.path)?;
        std::fs::rename(&self.part, &self.path).map_err(at)?;
        self.is_published = true;
        sync_folder_of(&self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_published {
            // Left behind, it is replaced by the next run.
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

/// Refuses a name that is taken, whatever by.
///
/// # Errors
/// [`Failure::FileExists`], or what the system says.
pub fn refuse_existing(path: &Path) -> Result<(), Failure> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Err(Failure::FileExists {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed("look up", path, source)),
    }
}

/// The folder that a file lies in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the name of a file durable.
///
/// # Errors
/// What the system says.
pub fn sync_folder_of(path: &Path) -> Result<(), Failure> {
    let folder = folder_of(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| failed("sync", folder, source))
}

fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> Failure {
    Failure::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let new = NewFile::begin(&path).unwrap();
        new.file().write_all(b"whole").unwrap();
        assert_eq!(names(folder.path()), ["disk.raw.part"]);
        new.publish().unwrap();
        assert_eq!(names(folder.path()), ["disk.raw"]);
        assert_eq!(std::fs::read(path).unwrap(), b"whole");
    }

    #[test]
    fn a_file_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(NewFile::begin(&folder.path().join("disk.raw")).unwrap());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_an_interrupted_run_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(folder.path().join("disk.raw.part"), b"half done and long").unwrap();
        let new = NewFile::begin(&path).unwrap();
        new.file().write_all(b"new").unwrap();
        new.publish().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"new");
    }

    #[test]
    fn an_existing_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let new = NewFile::begin(&path).unwrap();
        std::fs::write(&path, b"older").unwrap();
        assert!(matches!(
            NewFile::begin(&path),
            Err(Failure::FileExists { .. })
        ));
        assert!(matches!(new.publish(), Err(Failure::FileExists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"older");
    }

    #[test]
    fn two_do_not_write_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let first = NewFile::begin(&path).unwrap();
        assert!(matches!(
            NewFile::begin(&path),
            Err(Failure::FileInUse { .. })
        ));
        first.publish().unwrap();
    }
}
