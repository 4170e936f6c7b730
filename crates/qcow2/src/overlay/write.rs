//! Writing the guest's disk.

use std::io;
use std::ops::Range;

use lifeboat_sys::disk::Access;

use super::flush::FlushError;
use super::map::{Entry, MapError};
use super::{Overlay, ReadBelow};

/// Why a write failed. Of the range, a beginning may have been written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("write to an overlay that is open read-only")]
    ReadOnly,
    #[error("find the place of a write")]
    Map { source: MapError },
    #[error("write {len} bytes to the overlay at {host:#x}")]
    Data {
        host: u64,
        len: u64,
        source: io::Error,
    },
    #[error("read {len} bytes at {offset} of the image below, to fill up a write")]
    Below {
        offset: u64,
        len: u64,
        source: io::Error,
    },
    #[error("flush the overlay, because many changes wait for it")]
    Flush { source: FlushError },
}

impl From<MapError> for WriteError {
    fn from(source: MapError) -> Self {
        Self::Map { source }
    }
}

/// A part of a request that lies within one cluster of the guest.
#[derive(Debug, Clone)]
struct Part {
    cluster: u64,
    /// On the guest's disk.
    range: Range<u64>,
}

impl Overlay {
    /// Writes bytes of the guest's disk. Durable after the next [`Overlay::flush`].
    ///
    /// Where the write covers a part of 4 KiB that the overlay does not have yet, the rest
    /// of it is read through `below`.
    ///
    /// # Errors
    /// If the range lies beyond the end of the disk, or reading or writing fails.
    pub fn write(&self, offset: u64, bytes: &[u8], below: ReadBelow<'_>) -> Result<(), WriteError> {
        for part in self.parts(offset, bytes.len() as u64)? {
            self.make_room()?;
            let start = (part.range.start - offset) as usize;
            let end = (part.range.end - offset) as usize;
            self.write_part(&part, &bytes[start..end], below)?;
        }
        Ok(())
    }

    /// Makes a range of the guest's disk read as zeroes, whatever lies below, and gives back
    /// its space. Durable after the next [`Overlay::flush`]; may be so before.
    ///
    /// # Errors
    /// As for [`Overlay::write`].
    pub fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        below: ReadBelow<'_>,
    ) -> Result<(), WriteError> {
        for part in self.parts(offset, len)? {
            self.make_room()?;
            self.zero_part(&part, below)?;
        }
        Ok(())
    }

    /// Flushes if many changes wait for it. Before a write, not after: a write that cannot
    /// be flushed adds nothing to what waits.
    fn make_room(&self) -> Result<(), WriteError> {
        self.flush_if_many()
            .map_err(|source| WriteError::Flush { source })
    }

    /// Cuts a request at the borders of clusters.
    fn parts(&self, offset: u64, len: u64) -> Result<impl Iterator<Item = Part>, WriteError> {
        if self.access == Access::ReadOnly {
            return Err(WriteError::ReadOnly);
        }
        self.check_range(offset, len)?;
        let cluster_size = self.geometry.cluster_size();
        let end = offset + len;
        let clusters = if len == 0 {
            0..0
        } else {
            offset / cluster_size..end.div_ceil(cluster_size)
        };
        Ok(clusters.map(move |cluster| Part {
            cluster,
            range: offset.max(cluster * cluster_size)..end.min((cluster + 1) * cluster_size),
        }))
    }

    fn write_part(
        &self,
        part: &Part,
        bytes: &[u8],
        below: ReadBelow<'_>,
    ) -> Result<(), WriteError> {
        let mask = self.touched(part);
        let entry = self.sole_entry(part.cluster)?;
        if entry.data & mask == mask {
            return self.write_data(&entry, part.range.start, bytes);
        }
        let _claim = self.claims.claim(part.cluster);
        let entry = self.reserve(part.cluster)?;
        let whole = self.filled_range(part, &entry);
        if whole == part.range {
            self.write_data(&entry, whole.start, bytes)?;
        } else {
            let filled = self.fill_up(part, &whole, &entry, bytes, below)?;
            self.write_data(&entry, whole.start, &filled)?;
        }
        if entry.data & mask == mask {
            return Ok(());
        }
        let entry = Entry {
            data: entry.data | mask,
            zero: entry.zero & !mask,
            ..entry
        };
        Ok(self.lock().set_entry(&*self.file, part.cluster, entry)?)
    }

    /// The sub-clusters that a part of a request touches.
    fn touched(&self, part: &Part) -> u32 {
        let size = self.geometry.subcluster_size();
        let start = part.cluster * self.geometry.cluster_size();
        let first = (part.range.start - start) / size;
        let end = (part.range.end - start).div_ceil(size);
        mask(first, end)
    }

    /// What is mapped for a cluster that will be written in place where it has data.
    fn sole_entry(&self, cluster: u64) -> Result<Entry, MapError> {
        let entry = self.lock().entry(&*self.file, cluster)?;
        if entry.host != 0 && !entry.is_sole {
            return Err(MapError::Damaged {
                offset: cluster * self.geometry.cluster_size(),
                found: entry.host,
                what: "is a cluster not marked as referred to once",
            });
        }
        Ok(entry)
    }

    /// Gives the cluster a place in the file if it has none. Holds the claim.
    fn reserve(&self, cluster: u64) -> Result<Entry, MapError> {
        let entry = self.sole_entry(cluster)?;
        if entry.host != 0 {
            return Ok(entry);
        }
        let mut map = self.lock();
        let entry = Entry {
            host: map.allocate(&*self.file)?,
            is_sole: true,
            ..entry
        };
        map.set_entry(&*self.file, cluster, entry)?;
        Ok(entry)
    }

    /// What has to be written so that every sub-cluster touched is data in whole.
    fn filled_range(&self, part: &Part, entry: &Entry) -> Range<u64> {
        let size = self.geometry.subcluster_size();
        let is_data = |offset: u64| entry.data & self.sub_bit(part.cluster, offset) != 0;
        let Range { start, end } = part.range;
        let from = if is_data(start) {
            start
        } else {
            start / size * size
        };
        let to = if is_data(end - 1) {
            end
        } else {
            end.next_multiple_of(size).min(self.geometry.virtual_size)
        };
        from..to
    }

    fn sub_bit(&self, cluster: u64, offset: u64) -> u32 {
        let in_cluster = offset - cluster * self.geometry.cluster_size();
        1 << (in_cluster / self.geometry.subcluster_size())
    }

    /// The bytes of a part, with what surrounds them in `whole` taken from below.
    fn fill_up(
        &self,
        part: &Part,
        whole: &Range<u64>,
        entry: &Entry,
        bytes: &[u8],
        below: ReadBelow<'_>,
    ) -> Result<Vec<u8>, WriteError> {
        let mut filled = vec![0; (whole.end - whole.start) as usize];
        let start = (part.range.start - whole.start) as usize;
        filled[start..start + bytes.len()].copy_from_slice(bytes);
        let (head, rest) = filled.split_at_mut(start);
        let tail = &mut rest[bytes.len()..];
        for (offset, gap) in [(whole.start, head), (part.range.end, tail)] {
            if gap.is_empty() || entry.zero & self.sub_bit(part.cluster, offset) != 0 {
                continue;
            }
            let len = gap.len() as u64;
            below(offset, gap).map_err(|source| WriteError::Below {
                offset,
                len,
                source,
            })?;
        }
        Ok(filled)
    }

    fn write_data(&self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let host = entry.host + offset % self.geometry.cluster_size();
        self.file
            .write_at(bytes, host)
            .map_err(|source| WriteError::Data {
                host,
                len: bytes.len() as u64,
                source,
            })
    }

    fn zero_part(&self, part: &Part, below: ReadBelow<'_>) -> Result<(), WriteError> {
        let size = self.geometry.subcluster_size();
        let Range { start, end } = part.range;
        let whole_start = start.next_multiple_of(size);
        let whole_end = if end == self.geometry.virtual_size {
            end
        } else {
            end / size * size
        };
        if whole_start >= whole_end {
            // At most two pieces of sub-clusters, neither of them whole.
            let border = whole_start.min(end);
            self.zero_piece(part.cluster, start..border, below)?;
            return self.zero_piece(part.cluster, border..end, below);
        }
        self.zero_piece(part.cluster, start..whole_start, below)?;
        self.zero_piece(part.cluster, whole_end..end, below)?;
        let cluster_start = part.cluster * self.geometry.cluster_size();
        let first = (whole_start - cluster_start) / size;
        let last = (whole_end - cluster_start).div_ceil(size);
        self.zero_subclusters(part.cluster, mask(first, last))
    }

    /// Zeroes a piece of one sub-cluster.
    fn zero_piece(
        &self,
        cluster: u64,
        range: Range<u64>,
        below: ReadBelow<'_>,
    ) -> Result<(), WriteError> {
        if range.is_empty() {
            return Ok(());
        }
        let entry = self.sole_entry(cluster)?;
        if entry.zero & self.sub_bit(cluster, range.start) != 0 {
            return Ok(());
        }
        let zeroes = vec![0; (range.end - range.start) as usize];
        self.write_part(&Part { cluster, range }, &zeroes, below)
    }

    fn zero_subclusters(&self, cluster: u64, mask: u32) -> Result<(), WriteError> {
        let _claim = self.claims.claim(cluster);
        let entry = self.sole_entry(cluster)?;
        if entry.zero & mask == mask {
            return Ok(());
        }
        let zeroed = Entry {
            data: entry.data & !mask,
            zero: entry.zero | mask,
            ..entry
        };
        self.lock().set_entry(&*self.file, cluster, zeroed)?;
        self.punch(&entry, entry.data & mask)
    }

    /// Gives back the space of sub-clusters that were data. If that becomes durable before
    /// their mapping does, they read as the zeroes that were asked for.
    fn punch(&self, entry: &Entry, mut parts: u32) -> Result<(), WriteError> {
        let size = self.geometry.subcluster_size();
        while parts != 0 {
            let first = parts.trailing_zeros();
            let count = (parts >> first).trailing_ones();
            let host = entry.host + u64::from(first) * size;
            let len = u64::from(count) * size;
            self.file
                .punch(host, len)
                .map_err(|source| WriteError::Data { host, len, source })?;
            parts &= !self::mask(u64::from(first), u64::from(first + count));
        }
        Ok(())
    }
}

/// The bits `first..end`, of 32.
fn mask(first: u64, end: u64) -> u32 {
    (((1_u64 << end) - 1) & !((1_u64 << first) - 1)) as u32
}
