//! The system calls no safe wrapper offers: open-file-description locks,
//! `FICLONERANGE`, `sync_file_range`, shared mappings, advice about memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Shares `len` bytes of `source` at `source_offset` with `target` at `offset`.
pub(crate) fn clone_range(
    source: &File,
    source_offset: u64,
    len: u64,
    target: &File,
    offset: u64,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: source_offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: both descriptors are open for the whole call, and the kernel only reads
    // `range`, which has the layout that FICLONERANGE expects.
    check(unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &raw const range) })
}

/// Asks the kernel to begin writing dirty pages of the range to the disk. Promises nothing.
pub(crate) fn start_writeback(file: &File, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE)
    })
}

/// What a byte lock does.
#[derive(Clone, Copy)]
pub(crate) enum ByteLock {
    Shared,
    Exclusive,
    None,
}

impl ByteLock {
    fn kind(self) -> libc::c_short {
        let kind = match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
            Self::None => libc::F_UNLCK,
        };
        kind as libc::c_short
    }
}

/// Sets the lock of one byte for this open file description, without waiting.
pub(crate) fn set_byte_lock(file: &File, byte: i64, lock: ByteLock) -> io::Result<()> {
    let mut request = lock_request(byte, lock);
    // SAFETY: `request` is a valid `flock` for the whole call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) })
}

/// Whether another open file description holds any lock on the byte.
pub(crate) fn byte_is_locked_by_another(file: &File, byte: i64) -> io::Result<bool> {
    let mut request = lock_request(byte, ByteLock::Exclusive);
    // SAFETY: `request` is a valid `flock` for the whole call, which may overwrite it.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) })?;
    Ok(request.l_type != ByteLock::None.kind())
}

fn lock_request(byte: i64, lock: ByteLock) -> libc::flock {
    // SAFETY: `flock` is a plain C structure for which all zeroes are valid.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = lock.kind();
    request.l_whence = libc::SEEK_SET as libc::c_short;
    request.l_start = byte;
    request.l_len = 1;
    request
}

/// The beginning of a file, mapped shared and writable until dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only used as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `count` words, which must not be 0 and lie inside the file.
    pub(crate) fn new(file: &File, count: usize) -> io::Result<Self> {
        let bytes = count
            .checked_mul(size_of::<AtomicU64>())
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel chooses the place, so nothing that is mapped is replaced.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, count })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `count` words from `start`, which is aligned to a page, are mapped readable and
        // writable as long as `self` lives. Whoever else changes the file changes atomics.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        let bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: the range is exactly what was mapped.
        check(unsafe { libc::msync(self.start.as_ptr().cast(), bytes, libc::MS_SYNC) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let bytes = self.count * size_of::<AtomicU64>();
        // SAFETY: the range is exactly what was mapped, and nobody borrows from it any more.
        // It cannot fail for such a range.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Asks for huge pages behind the whole pages of this memory.
pub(crate) fn advise_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    const PAGE: usize = 4096;
    let skipped = memory.as_ptr().align_offset(PAGE);
    let Some(pages) = memory.get_mut(skipped..) else {
        return;
    };
    let bytes = pages.len() / PAGE * PAGE;
    if bytes > 0 {
        // SAFETY: the range is whole pages of memory that the caller has for itself, and this
        // advice changes neither its content nor its protection. A kernel without huge pages
        // says no, which costs speed only.
        let _ = unsafe { libc::madvise(pages.as_mut_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
}
