//! The folder that the demo works in.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use lifeboat_sys::host;

use super::error::DemoError;

/// The longest folder, in bytes. A socket's path has 107 at most, and a VM's is
/// `HOST/run/vm/ID.sock` in the folder.
const MAX_PATH: usize = 107 - "/alpha/run/vm/.sock".len() - 32;

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
        let absolute = std::path::absolute(&path).map_err(|source| DemoError::File {
            what: "find",
            path: path.clone(),
            source,
        })?;
        if absolute.as_os_str().len() > MAX_PATH {
            return Err(DemoError::FolderTooLong {
                path,
                most: MAX_PATH,
            });
        }
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
                let made = fs::DirBuilder::new().mode(0o700).create(&path);
                made.map_err(failed("make the folder"))?;
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

    /// Everything of one host.
    #[must_use]
    pub fn of(&self, host: &str) -> PathBuf {
        self.path.join(host)
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        if self.afterwards == Afterwards::Keep {
            return;
        }
        // What cannot be removed stays, and harms nobody: the folder is private.
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}
