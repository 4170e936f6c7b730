//! A raw image file as a disk.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{DiskSize, InvalidDiskSize};
use lifeboat_sys::disk::{Access, DiskFile, DiskPort, GuestDisk, ImageGuard};

/// A raw image, opened for reading and writing; its length is the disk's size. As long as it is
/// open, QEMU's image locks keep everybody else out who respects them.
#[derive(Debug)]
pub struct RawImage {
    file: Arc<dyn DiskFile>,
    size: DiskSize,
    _guard: ImageGuard,
}

/// A raw image could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("open {}: another program uses the image, stop it first", path.display())]
    InUse { path: PathBuf },
    #[error("take the size of a disk from {}", path.display())]
    Size {
        path: PathBuf,
        source: InvalidDiskSize,
    },
}

impl RawImage {
    /// # Errors
    /// When the file cannot be opened, is in use, or has a length that no disk has.
    pub fn open(port: &dyn DiskPort, path: &Path) -> Result<Self, ImageError> {
        let path_owned = || path.to_owned();
        let failed = |source| ImageError::Open {
            path: path_owned(),
            source,
        };
        let file = port.open(path, Access::ReadWrite).map_err(failed)?;
        let guard = ImageGuard::acquire(&file).map_err(failed)?;
        let guard = guard.ok_or_else(|| ImageError::InUse { path: path_owned() })?;
        let length = file.len().map_err(failed)?;
        let size = DiskSize::try_from(length).map_err(|source| ImageError::Size {
            path: path_owned(),
            source,
        })?;
        Ok(Self {
            file,
            size,
            _guard: guard,
        })
    }

    #[must_use]
    pub fn disk_size(&self) -> DiskSize {
        self.size
    }
}

impl GuestDisk for RawImage {
    fn size(&self) -> u64 {
        self.size.bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }
}
