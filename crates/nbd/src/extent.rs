//! A run of an export with one status.

/// Flag of `base:allocation`: nothing is allocated here.
pub const HOLE: u64 = 1;

/// Flag of `base:allocation`: reads as zeroes.
pub const ZERO: u64 = 2;

/// Flag of `qemu:dirty-bitmap:NAME`: written since the bitmap began.
pub const DIRTY: u64 = 1;

/// `length` bytes (never 0) from `offset`, all with the same `flags`, whose meaning
/// the context defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    pub flags: u64,
}

impl Extent {
    /// The first byte after the extent; the largest number if that does not fit.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}
