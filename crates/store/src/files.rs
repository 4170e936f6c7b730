//! Small files and names, changed so that a crash leaves the old or the new.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use lifeboat_sys::disk::{DiskFile, DiskPort};

use crate::error::{IoContext, StoreError};

/// Writes `bytes` under the name `new`, then gives them the name `path`. Durable on return.
pub(crate) fn replace(
    disk: &dyn DiskPort,
    new: &Path,
    path: &Path,
    bytes: &[u8],
) -> Result<(), StoreError> {
    remove(disk, new)?;
    let file = disk.create(new).context("create", new)?;
    file.write_at(bytes, 0).context("write", new)?;
    file.sync().context("sync", new)?;
    disk.rename(new, path).context("rename", new)?;
    sync_parent(disk, path)
}

/// Removes a name that may not exist. Not durable until the folder is synced.
pub(crate) fn remove(disk: &dyn DiskPort, path: &Path) -> Result<(), StoreError> {
    match disk.unlink(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.context("remove", path),
    }
}

/// Makes the names in the folder of `path` durable.
pub(crate) fn sync_parent(disk: &dyn DiskPort, path: &Path) -> Result<(), StoreError> {
    let folder = path
        .parent()
        .expect("BUG: a file of the store lies in a folder");
    disk.sync_dir(folder).context("sync", folder)
}

/// Makes a folder unless it exists. Not durable until its parent is synced.
pub(crate) fn ensure_dir(disk: &dyn DiskPort, path: &Path) -> Result<(), StoreError> {
    match disk.create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome.context("create", path),
    }
}

/// Makes `link` a symlink with the text `target`, replacing another one by rename.
/// Returns whether anything had to be done; durable only after a sync of the folder.
pub(crate) fn point_link(
    disk: &dyn DiskPort,
    new: &Path,
    link: &Path,
    target: &str,
) -> Result<bool, StoreError> {
    if disk.kind(link).context("look up", link)?.is_some()
        && disk
            .read_link(link)
            .is_ok_and(|text| text.to_str() == Some(target))
    {
        return Ok(false);
    }
    remove(disk, new)?;
    disk.symlink(target, new).context("create", new)?;
    disk.rename(new, link).context("rename", new)?;
    Ok(true)
}

/// Reads a file from its beginning, as a stream decoder wants it.
#[derive(Debug)]
pub(crate) struct FileReader {
    file: Arc<dyn DiskFile>,
    position: u64,
    len: u64,
}

impl FileReader {
    pub(crate) fn new(file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self {
            file,
            position: 0,
            len,
        })
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.len.saturating_sub(self.position);
        let count = (buffer.len() as u64).min(available) as usize;
        self.file.read_at(&mut buffer[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for FileReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
