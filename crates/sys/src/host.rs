//! Facts of this host: randomness, the identity of the running boot, limits.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes from the kernel's generator.
///
/// # Errors
/// Only when the kernel has no generator or a sandbox forbids it.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Names one boot of one kernel. State kept in memory or in the page cache is lost
/// whenever this changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootId(String);

impl BootId {
    /// The running kernel's boot id.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|text| Self(text.trim().to_owned()))
    }

    /// The boot with this id, as it was once noted.
    #[must_use]
    pub fn noted(id: &str) -> Self {
        Self(id.to_owned())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Ends this process as `kill -9` does: no destructor runs, no buffer is flushed.
pub fn kill_this_process() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

/// Lets this process open as many files as the administrator allows it at most: each
/// recovery point takes two per disk, and the usual limit to begin with is 1024.
///
/// A process that may not raise its limit keeps the one it has.
pub fn raise_open_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_differ_between_calls() {
        assert_ne!(random_bytes::<16>().unwrap(), random_bytes::<16>().unwrap());
    }

    #[test]
    fn the_boot_id_is_stable_within_a_boot() {
        let id = BootId::current().unwrap();
        assert_eq!(id.as_str().len(), 36);
        assert_eq!(BootId::current().unwrap(), id);
    }
}
