//! A file as an array of words that threads and processes share.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use rustix::fs::FallocateFlags;

use crate::raw::Mapping;

/// A regular file, mapped shared and writable, as words in the byte order of this host.
///
/// What is stored is in the page cache at once: it outlives this process, also one that is
/// killed, and is seen by everybody who maps or reads the file. It outlives a power loss only
/// after [`sync`](Self::sync).
///
/// The space of the whole file is allocated before it is mapped. On file systems that overwrite
/// in place (ext4, XFS, tmpfs) a store therefore never fails for want of space. Whoever cuts the
/// file while it is mapped ends this process with SIGBUS.
#[derive(Debug)]
pub struct SharedWords {
    mapping: Mapping,
}

impl SharedWords {
    /// Maps the existing file at `path`, which has exactly `count` words. A symlink is not
    /// followed.
    ///
    /// # Errors
    /// When the file is not there, is no regular file or has another length, or there is no
    /// space for its holes.
    pub fn open(path: &Path, count: usize) -> io::Result<Self> {
        // Without O_NONBLOCK opening a FIFO that somebody put there would wait for ever.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if !metadata.is_file() {
            return invalid("map something that is not a regular file".to_owned());
        }
        let expected = (count as u64).checked_mul(8).filter(|bytes| *bytes > 0);
        let Some(bytes) = expected.filter(|bytes| *bytes == metadata.len()) else {
            return invalid(format!(
                "map a file of {} bytes as {count} words",
                metadata.len()
            ));
        };
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes)?;
        Ok(Self {
            mapping: Mapping::new(&file, count)?,
        })
    }

    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.mapping.words()
    }

    /// Returns when everything stored before is durable.
    ///
    /// # Errors
    /// Nothing is then known to be durable, nor after a later success: the kernel may have
    /// dropped what it could not write.
    pub fn sync(&self) -> io::Result<()> {
        self.mapping.sync()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file_and_seen_by_another_mapping() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        std::fs::write(&path, [0; 8 * 1024]).unwrap();
        let one = SharedWords::open(&path, 1024).unwrap();
        let other = SharedWords::open(&path, 1024).unwrap();
        one.words()[1023].store(7, Ordering::SeqCst);
        assert_eq!(other.words()[1023].load(Ordering::SeqCst), 7);
        one.sync().unwrap();
        drop(one);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[8 * 1023..], 7u64.to_ne_bytes());
    }

    #[test]
    fn a_file_of_another_length_or_kind_is_not_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        std::fs::write(&path, [0; 16]).unwrap();
        for count in [0, 1, 3, usize::MAX / 4] {
            assert!(SharedWords::open(&path, count).is_err(), "{count}");
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(SharedWords::open(&link, 2).is_err());
        assert!(SharedWords::open(folder.path(), 2).is_err());
        assert!(SharedWords::open(&path, 2).is_ok());
    }

    #[test]
    fn holes_are_filled_before_the_file_is_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let words = SharedWords::open(&path, 1 << 17).unwrap();
        let occupied = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!(occupied >= 1 << 20, "{occupied}");
        assert_eq!(words.words().len(), 1 << 17);
    }
}
