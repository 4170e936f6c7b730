//! A disk of a VM: its name and its size.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The unit of change: what a dirty map, a delta and a preimage count in.
pub const BLOCK_SIZE: u64 = 4096;

/// Every disk size is a multiple of this, as guests and QEMU demand.
pub const SECTOR_SIZE: u64 = 512;

/// The largest disk: 64 TiB, as the contract has it.
pub const MAX_DISK_SIZE: u64 = 64 << 40;

/// The most disks one VM may have: 4 controllers of 64.
pub const MAX_DISKS: usize = 256;

/// The name of a disk within its VM; always usable as a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskId(String);

/// A name that is no [`DiskId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} cannot name a disk: use 1 to 64 of the characters a-z, 0-9, '-', '_' and '.', starting with a letter or digit"
)]
pub struct InvalidDiskId {
    name: String,
}

impl DiskId {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DiskId {
    type Err = InvalidDiskId;

    fn from_str(name: &str) -> Result<Self, InvalidDiskId> {
        let starts_well = name
            .bytes()
            .next()
            .is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let allowed =
            |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.');
        if starts_well && name.len() <= Self::MAX_LEN && name.bytes().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            Err(InvalidDiskId {
                name: name.chars().take(80).collect(),
            })
        }
    }
}

impl TryFrom<String> for DiskId {
    type Error = InvalidDiskId;

    fn try_from(name: String) -> Result<Self, InvalidDiskId> {
        name.parse()
    }
}

impl From<DiskId> for String {
    fn from(id: DiskId) -> String {
        id.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskId({})", self.0)
    }
}

/// The size of a disk in bytes: whole sectors, at least one, at most [`MAX_DISK_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskSize(u64);

/// A number that is no [`DiskSize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes cannot be a disk's size: use a multiple of {SECTOR_SIZE} from {SECTOR_SIZE} to {MAX_DISK_SIZE}"
)]
pub struct InvalidDiskSize {
    bytes: u64,
}

impl DiskSize {
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// How many blocks hold the disk; the last one may be partial.
    #[must_use]
    pub const fn blocks(self) -> u64 {
        self.0.div_ceil(BLOCK_SIZE)
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = InvalidDiskSize;

    fn try_from(bytes: u64) -> Result<Self, InvalidDiskSize> {
        if bytes > 0 && bytes <= MAX_DISK_SIZE && bytes.is_multiple_of(SECTOR_SIZE) {
            Ok(Self(bytes))
        } else {
            Err(InvalidDiskSize { bytes })
        }
    }
}

impl From<DiskSize> for u64 {
    fn from(size: DiskSize) -> u64 {
        size.0
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_folder_are_refused() {
        let long = "a".repeat(300);
        for name in [
            "",
            ".",
            "..",
            "../head",
            "a/b",
            "a\0b",
            "-a",
            "_a",
            "A",
            "ä",
            "a b",
            "a\n",
            long.as_str(),
        ] {
            assert!(name.parse::<DiskId>().is_err(), "{name:?}");
        }
        for name in ["sda", "0", "disk-1", "a.b_c", &"a".repeat(64)] {
            assert_eq!(
                name.parse::<DiskId>().map(|id| id.to_string()).as_deref(),
                Ok(name)
            );
        }
    }

    #[test]
    fn sizes_that_no_disk_has_are_refused() {
        for bytes in [0, 1, 511, 513, MAX_DISK_SIZE + 512, 1 << 63, u64::MAX] {
            assert!(DiskSize::try_from(bytes).is_err(), "{bytes}");
        }
        assert_eq!(DiskSize::try_from(512).map(DiskSize::blocks), Ok(1));
        assert_eq!(DiskSize::try_from(4608).map(DiskSize::blocks), Ok(2));
        assert_eq!(
            DiskSize::try_from(MAX_DISK_SIZE).map(DiskSize::bytes),
            Ok(MAX_DISK_SIZE)
        );
    }

    #[test]
    fn a_refused_name_is_quoted_with_its_beginning_only() {
        let error = "x"
            .repeat(5000)
            .to_uppercase()
            .parse::<DiskId>()
            .unwrap_err();
        assert!(error.to_string().len() < 300);
    }
}
