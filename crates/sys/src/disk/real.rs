//! The disk port on the kernel's file system.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::poison::Poison;
use super::{Access, Cloned, DIRECT_ALIGNMENT, DiskFile, DiskPort, Entry, EntryKind};
use crate::raw::{self, ByteLock};

/// Files and folders of this host.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl RealDisk {
    fn open_with(options: &OpenOptions, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = options.clone();
        // Without O_NONBLOCK opening a FIFO that somebody put there would wait for ever.
        let file = options
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "open something that is not a regular file",
            ));
        }
        Ok(Arc::new(RealFile {
            file,
            direct: OnceLock::new(),
            poison: Poison::default(),
        }))
    }
}

impl DiskPort for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Self::open_with(
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600),
            path,
        )
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Self::open_with(
            OpenOptions::new()
                .read(true)
                .write(access == Access::ReadWrite),
            path,
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, path)
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        fs::read_link(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry {
                    name,
                    kind: entry_kind(entry.file_type()?),
                });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(entry_kind(metadata.file_type()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn available(&self, path: &Path) -> io::Result<u64> {
        let space = rustix::fs::statvfs(path)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

fn entry_kind(file_type: fs::FileType) -> EntryKind {
    if file_type.is_file() {
        EntryKind::File
    } else if file_type.is_dir() {
        EntryKind::Folder
    } else if file_type.is_symlink() {
        EntryKind::Symlink
    } else {
        EntryKind::Other
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// The same file, past the page cache; nothing where that cannot be had.
    direct: OnceLock<Option<File>>,
    poison: Poison,
}

impl RealFile {
    fn direct(&self) -> Option<&File> {
        let direct = self.direct.get_or_init(|| {
            // By its descriptor: its name may be another file's by now.
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let mut options = OpenOptions::new();
            options.write(true);
            options.custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | libc::O_NONBLOCK);
            options.open(path).ok()
        });
        direct.as_ref()
    }

    /// Zeroes a range where the file system cannot punch holes.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let end = offset + len;
        let mut position = offset;
        while position < end {
            let step = (end - position).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..step as usize], position)?;
            position += step;
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.poison.check()?;
        self.file.write_all_at(bytes, offset)
    }

    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.poison.check()?;
        let whole = bytes.len() / DIRECT_ALIGNMENT * DIRECT_ALIGNMENT;
        let is_aligned = offset.is_multiple_of(DIRECT_ALIGNMENT as u64)
            && bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT);
        let direct = self.direct().filter(|_| is_aligned && whole > 0);
        let Some(direct) = direct else {
            return self.file.write_all_at(bytes, offset);
        };
        match direct.write_all_at(&bytes[..whole], offset) {
            Ok(()) => self
                .file
                .write_all_at(&bytes[whole..], offset + whole as u64),
            // The file system takes the flag and not the write.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.file.write_all_at(bytes, offset)
            }
            Err(error) => Err(error),
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.poison.check()?;
        // A hole beyond the end is there already, and the length must not change.
        let len = self.len()?.saturating_sub(offset).min(len);
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            offset,
            len,
        ) {
            Err(Errno::OPNOTSUPP) => self.write_zeroes(offset, len),
            outcome => Ok(outcome?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.poison.check()?;
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.poison.check()?;
        if len == 0 {
            return Ok(());
        }
        Ok(rustix::fs::fallocate(
            &self.file,
            FallocateFlags::KEEP_SIZE,
            offset,
            len,
        )?)
    }

    fn occupied(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn sync(&self) -> io::Result<()> {
        self.poison.check()?;
        self.poison.after_sync(self.file.sync_data())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        loop {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(None),
                // A file system that cannot tell holds data everywhere.
                Err(Errno::INVAL) => {
                    let len = self.len()?;
                    return Ok((offset < len).then_some(offset..len));
                }
                Err(error) => return Err(error.into()),
            };
            match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
                Ok(end) => return Ok(Some(start..end)),
                // The file has become shorter than that since.
                Err(Errno::NXIO) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn clone_range(
        &self,
        source: &dyn DiskFile,
        source_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<Cloned> {
        self.poison.check()?;
        let source = source
            .as_any()
            .downcast_ref::<Self>()
            .expect("BUG: files of two disk ports were mixed");
        match raw::clone_range(&source.file, source_offset, len, &self.file, offset) {
            Ok(()) => Ok(Cloned::Shared),
            Err(error) => match error.raw_os_error() {
                Some(
                    libc::EOPNOTSUPP | libc::ENOTTY | libc::EXDEV | libc::EINVAL | libc::ETXTBSY,
                ) => Ok(Cloned::Unsupported),
                _ => Err(error),
            },
        }
    }

    fn prefetch(&self, offset: u64, len: u64) {
        if let Some(len) = std::num::NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, offset, Some(len), Advice::WillNeed);
        }
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        if let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) {
            let _ = raw::start_writeback(&self.file, offset, len);
        }
    }

    fn try_lock(&self) -> io::Result<bool> {
        locked_or_busy(raw::set_byte_lock(&self.file, 0, ByteLock::Exclusive))
    }

    fn try_lock_bytes(&self, held: &[u64], refused: &[u64]) -> io::Result<bool> {
        for &byte in held {
            if !locked_or_busy(raw::set_byte_lock(
                &self.file,
                byte.cast_signed(),
                ByteLock::Shared,
            ))? {
                self.unlock_bytes(held)?;
                return Ok(false);
            }
        }
        for &byte in refused {
            if raw::byte_is_locked_by_another(&self.file, byte.cast_signed())? {
                self.unlock_bytes(held)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn unlock_bytes(&self, held: &[u64]) -> io::Result<()> {
        held.iter().try_for_each(|&byte| {
            raw::set_byte_lock(&self.file, byte.cast_signed(), ByteLock::None)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn locked_or_busy(outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
