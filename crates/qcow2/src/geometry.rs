//! How an image divides the guest's disk and its own file.

use crate::header::MAX_L1_BYTES;

/// Set in a pointer to a table or cluster that nothing else points to.
pub(crate) const COPIED: u64 = 1 << 63;

/// The bits of an L1 or L2 entry that hold an offset in the file.
pub(crate) const OFFSET_MASK: u64 = 0x00FF_FFFF_FFFF_FE00;

/// Nothing that an L1 or L2 entry points to can lie at or beyond this offset.
pub(crate) const OFFSET_LIMIT: u64 = 1 << 56;

/// The format of the second-level entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L2Format {
    /// 8 bytes: a cluster is data, zero or absent as a whole.
    Plain,
    /// 16 bytes: each of 32 parts of a cluster is data, zero or absent.
    Extended,
}

/// Sizes that follow from the header of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub virtual_size: u64,
    pub cluster_bits: u32,
    pub l2_format: L2Format,
}

impl Geometry {
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of one L2 entry.
    pub fn entry_size(&self) -> u64 {
        match self.l2_format {
            L2Format::Plain => 8,
            L2Format::Extended => 16,
        }
    }

    /// Parts of a cluster that are data, zero or absent on their own.
    pub fn subclusters(&self) -> u32 {
        match self.l2_format {
            L2Format::Plain => 1,
            L2Format::Extended => 32,
        }
    }

    pub fn subcluster_size(&self) -> u64 {
        self.cluster_size() / u64::from(self.subclusters())
    }

    /// Bytes of the guest's disk that one L2 table maps.
    pub fn table_span(&self) -> u64 {
        self.cluster_size() / self.entry_size() * self.cluster_size()
    }

    /// L1 entries that map the guest's disk, or `None` if that is more than QEMU opens.
    pub fn l1_entries(&self) -> Option<u64> {
        let entries = self.virtual_size.div_ceil(self.table_span());
        (entries <= MAX_L1_BYTES / 8).then_some(entries)
    }

    /// L1 entries of an image that Lifeboat makes, for a disk of a valid size.
    pub fn l1_entries_of_a_disk(&self) -> u64 {
        self.l1_entries()
            .expect("BUG: our clusters cannot map the largest disk")
    }

    /// Clusters that hold `bytes` bytes.
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }
}
