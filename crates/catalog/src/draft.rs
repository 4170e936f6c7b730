//! A catalog that gets its name when it is whole.

use std::ffi::OsString;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use crate::backup::{self, BackupError};
use crate::catalog::Catalog;
use crate::open::{self, Found, OnMissing, OpenError, beside, io_error};

/// A new catalog that is being filled, where there is none yet. Nobody else can open or begin
/// one there meanwhile.
///
/// It lies in files `PATH.draft` beside its place until [`finish`](Self::finish). Dropped before,
/// or after a crash, nothing stands at the place; what a crash left of it goes with the next draft.
#[derive(Debug)]
pub struct Draft {
    /// Absent only while it is dropped.
    catalog: Option<Catalog>,
    files: PathBuf,
    path: PathBuf,
    /// Of the place, not of the draft.
    _lock: File,
}

impl Draft {
    /// Begins a draft for a catalog at `path`; its directory must exist.
    ///
    /// # Errors
    /// [`OpenError::Exists`] when there is a catalog already, and the others as for
    /// [`Catalog::open`].
    pub fn new(path: &Path) -> Result<Self, OpenError> {
        let path = std::path::absolute(path).map_err(io_error("find", path))?;
        refuse_existing(&path)?;
        let lock = open::lock(&path)?;
        refuse_existing(&path)?;
        let files = beside(&path, ".draft");
        remove(&files).map_err(io_error("remove", &files))?;
        let catalog = Catalog::open(&files, OnMissing::Create)?;
        Ok(Self {
            catalog: Some(catalog),
            files,
            path,
            _lock: lock,
        })
    }

    /// Gives the catalog its name, whole, checked and durable; with an error it has none.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn finish(self) -> Result<(), BackupError> {
        self.backup(&self.path)
    }
}

impl Deref for Draft {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        self.catalog.as_ref().expect("BUG: a draft has its catalog")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.catalog = None;
        // What stays is removed by the next draft.
        let _ = remove(&self.files);
    }
}

/// Refuses if anything is at the path but an empty file, which opening takes for nothing, too.
fn refuse_existing(path: &Path) -> Result<(), OpenError> {
    match Found::at(path)? {
        Found::Nothing => Ok(()),
        Found::Database => Err(OpenError::Exists {
            path: path.to_owned(),
        }),
    }
}

fn remove(files: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal", ".lock"] {
        let mut name = OsString::from(files);
        name.push(suffix);
        backup::remove(Path::new(&name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_draft_is_the_catalog_when_it_is_finished_and_nothing_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.db");
        let fill = |draft: &Draft| {
            let removed = draft.change(|change| change.authorization_entry_remove("nobody"));
            assert!(!removed.unwrap());
        };
        let given_up = Draft::new(&path).unwrap();
        fill(&given_up);
        let second = Draft::new(&path).unwrap_err();
        assert!(matches!(second, OpenError::InUse { .. }), "{second}");
        let other = Catalog::open(&path, OnMissing::Create).unwrap_err();
        assert!(matches!(other, OpenError::InUse { .. }), "{other}");
        drop(given_up);
        assert_eq!(names(folder.path()), ["catalog.db.lock"]);
        // What a crash leaves.
        std::fs::write(folder.path().join("catalog.db.draft"), "half").unwrap();
        let draft = Draft::new(&path).unwrap();
        fill(&draft);
        draft.finish().unwrap();
        assert_eq!(names(folder.path()), ["catalog.db", "catalog.db.lock"]);
        Catalog::check(&path).unwrap();
        Catalog::open(&path, OnMissing::Refuse).unwrap();
    }

    #[test]
    fn no_draft_is_begun_over_a_catalog_or_what_is_left_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.db");
        drop(Catalog::open(&path, OnMissing::Create).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let exists = Draft::new(&path).unwrap_err();
        assert!(matches!(exists, OpenError::Exists { .. }), "{exists}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        std::fs::write(&path, "something else").unwrap();
        let foreign = Draft::new(&path).unwrap_err();
        assert!(
            matches!(foreign, OpenError::NotACatalog { .. }),
            "{foreign}"
        );
        std::fs::remove_file(&path).unwrap();
        std::fs::write(beside(&path, "-wal"), "the log of a lost file").unwrap();
        let log = Draft::new(&path).unwrap_err();
        assert!(matches!(log, OpenError::Damaged { .. }), "{log}");
    }
}
