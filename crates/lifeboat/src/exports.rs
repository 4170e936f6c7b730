//! What the store holds, as exports of the NBD server.

use std::io;
use std::ops::Range;

use lifeboat_nbd::{Access, ContextName, Export, Extent, Granularity, HOLE, Holes, ZERO};
use lifeboat_store::{PointReader, RangeKind};

/// How much of a disk is looked at for one answer; clients ask again from where it ends.
const EXTENT_WINDOW: u64 = 256 << 20;

/// One disk of a recovery point, read-only.
#[derive(Debug)]
pub struct PointExport {
    reader: PointReader,
}

impl PointExport {
    #[must_use]
    pub fn new(reader: PointReader) -> Self {
        Self { reader }
    }
}

impl Export for PointExport {
    fn size(&self) -> u64 {
        self.reader.size()
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        vec![ContextName::allocation()]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.reader.read_at(offset, into)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _holes: Holes) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn trim(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        _context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let end = offset + length.min(EXTENT_WINDOW);
        let extent = |(range, kind): (Range<u64>, RangeKind)| Extent {
            offset: range.start,
            length: range.end - range.start,
            flags: match kind {
                RangeKind::Data => 0,
                RangeKind::Zero => HOLE | ZERO,
            },
        };
        let ranges = self.reader.ranges(offset..end)?.into_iter();
        Ok(ranges.map(extent).take(limit).collect())
    }
}
