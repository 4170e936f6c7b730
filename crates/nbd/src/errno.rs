//! The errors that NBD can carry.

use std::fmt;
use std::io;

use rustix::io::Errno as Os;

/// An error as NBD names it; the numbers on the wire are fixed by the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errno {
    /// `EPERM`: not permitted, for example a write to a read-only export.
    Permission,
    /// `EIO`
    Io,
    /// `ENOMEM`
    NoMemory,
    /// `EINVAL`: also stands for every number the protocol does not define.
    Invalid,
    /// `ENOSPC`
    NoSpace,
    /// `EOVERFLOW`: the request is too large for the server.
    Overflow,
    /// `ENOTSUP`
    NotSupported,
    /// `ESHUTDOWN`: the server is about to go.
    Shutdown,
}

impl Errno {
    pub(crate) fn from_wire(number: u32) -> Self {
        match number {
            1 => Self::Permission,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::Permission => 1,
            Self::Io => 5,
            Self::NoMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }

    /// What a client is told when an export fails with `error`.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        let number = error.raw_os_error();
        let is = |os: Os| number == Some(os.raw_os_error());
        if is(Os::PERM) || is(Os::ACCESS) || is(Os::ROFS) {
            return Self::Permission;
        }
        if is(Os::NOSPC) || is(Os::DQUOT) || is(Os::FBIG) {
            return Self::NoSpace;
        }
        if is(Os::SHUTDOWN) {
            return Self::Shutdown;
        }
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Permission,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NoSpace,
            io::ErrorKind::OutOfMemory => Self::NoMemory,
            io::ErrorKind::InvalidInput => Self::Invalid,
            io::ErrorKind::Unsupported => Self::NotSupported,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permission => "not permitted (EPERM)",
            Self::Io => "input/output error (EIO)",
            Self::NoMemory => "out of memory (ENOMEM)",
            Self::Invalid => "invalid argument (EINVAL)",
            Self::NoSpace => "no space left (ENOSPC)",
            Self::Overflow => "request too large (EOVERFLOW)",
            Self::NotSupported => "not supported (ENOTSUP)",
            Self::Shutdown => "the server is shutting down (ESHUTDOWN)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire_and_unknown_numbers_are_invalid() {
        for errno in [
            Errno::Permission,
            Errno::Io,
            Errno::NoMemory,
            Errno::Invalid,
            Errno::NoSpace,
            Errno::Overflow,
            Errno::NotSupported,
            Errno::Shutdown,
        ] {
            assert_eq!(Errno::from_wire(errno.to_wire()), errno);
        }
        for number in [0, 2, 13, 99, 1000, u32::MAX] {
            assert_eq!(Errno::from_wire(number), Errno::Invalid);
        }
    }

    #[test]
    fn a_full_disk_stays_a_full_disk() {
        for os in [Os::NOSPC, Os::DQUOT, Os::FBIG] {
            assert_eq!(
                Errno::of_io(&io::Error::from_raw_os_error(os.raw_os_error())),
                Errno::NoSpace
            );
        }
        assert_eq!(Errno::of_io(&io::Error::other("odd")), Errno::Io);
    }
}
