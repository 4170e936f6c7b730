//! The folder that the demo works in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lifeboat_sys::host;

use super::error::DemoError;
use super::primary::make_folder;

/// What becomes of the folder afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    Keep,
    Remove,
}

/// The folder; what the demo made in it is removed when this is dropped, unless it is to
/// be kept.
#[derive(Debug)]
pub struct WorkFolder {
    path: PathBuf,
    /// It was not there before.
    is_new: bool,
    pub afterwards: Afterwards,
}

impl WorkFolder {
    /// Uses the new or empty folder `given`, or makes one among the temporary files.
    ///
    /// # Errors
    /// [`DemoError::FolderNotEmpty`], or what the operating system says.
    pub fn prepare(given: Option<&Path>, afterwards: Afterwards) -> Result<Self, DemoError> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => {
                let random = host::random_bytes().map_err(|source| DemoError::System {
                    what: "random bytes",
                    source,
                })?;
                let name = format!("lifeboat-demo-{:08x}", u32::from_ne_bytes(random));
                std::env::temp_dir().join(name)
            }
        };
        let failed = |what| {
            let path = path.clone();
            move |source| DemoError::File { what, path, source }
        };
        let is_new = match fs::read_dir(&path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(DemoError::FolderNotEmpty { path });
                }
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_folder(&path)?;
                true
            }
            Err(error) => return Err(failed("list")(error)),
        };
        Ok(Self {
            path: fs::canonicalize(&path).map_err(failed("find"))?,
            is_new,
            afterwards,
        })
    }

    /// Absolute, without symlinks.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the primary keeps the VM's disks.
    #[must_use]
    pub fn primary(&self) -> PathBuf {
        self.path.join("primary")
    }

    /// The replica's store.
    #[must_use]
    pub fn replica(&self) -> PathBuf {
        self.path.join("replica")
    }

    /// The socket of the replica's NBD server.
    #[must_use]
    pub fn replica_socket(&self) -> PathBuf {
        self.path.join("replica.sock")
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if self.afterwards == Afterwards::Keep {
            return;
        }
        // What cannot be removed stays, and harms nobody: the folder is private.
        for folder in [self.primary(), self.replica()] {
            let _ = fs::remove_dir_all(folder);
        }
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}
