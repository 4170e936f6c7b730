//! A disk as a guest uses it, whatever it stands on.

use std::fmt::Debug;
use std::io;
use std::ops::Range;

/// A disk of a VM that is served to its guest: a raw file, an overlay over a replica, a test's
/// scratch over a recovery point. Called from many threads at once, with ranges that lie
/// inside the disk.
pub trait GuestDisk: Send + Sync + Debug {
    /// In bytes; does not change while the disk is in use.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// When any byte cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Visible to every reader when it returns, durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// Any part may then have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Lets the range read as zeroes, and gives its space back where it can.
    ///
    /// # Errors
    /// Any part may then have been zeroed.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Takes the space for the range now, so that a later write cannot fail for want of it.
    /// What is read does not change. Where space cannot be taken beforehand this does nothing.
    ///
    /// # Errors
    /// When there is no space.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns when everything written before is durable.
    ///
    /// # Errors
    /// Nothing is then known to be durable; the disk refuses further writes.
    fn flush(&self) -> io::Result<()>;

    /// The first range at or after `offset` that may hold data; what comes before it reads as
    /// zeroes.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
}
