//! The system calls no safe wrapper offers: open-file-description locks,
//! `FICLONERANGE`, `sync_file_range`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

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

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
