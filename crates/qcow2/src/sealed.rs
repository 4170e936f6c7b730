//! Sealing a segment: the file of preimages becomes a qcow2 image.
//!
//! The data clusters are in the file already, appended while the segment was open; the
//! first 128 KiB were left free for the header. Sealing appends L2 tables, L1 table and
//! reference counts, makes them durable, and only then writes the header and makes that
//! durable. A crash anywhere leaves a file that is cut to its data and sealed again, to
//! the same bytes.
//!
//! Two layouts read the same. [`Layout::ExtendedL2`] tells 4 KiB parts of a cluster apart;
//! [`Layout::Plain64K`] cannot, and is therefore possible for dense segments only, but
//! every tool reads it.
//!
//! L2 tables are built one at a time. Memory is bounded by the L1 table and one bit per
//! data cluster: 2 MiB for a segment of 1 TiB.

use std::io;

use lifeboat_model::{DiskSize, InvalidDiskSize};
use lifeboat_sys::disk::DiskFile;

use crate::geometry::{COPIED, Geometry, L2Format, OFFSET_LIMIT};
use crate::header::{self, Backing, InvalidName, Link, Placement};
use crate::refcount_area::RefcountArea;

/// Bytes of a cluster of a segment, and what its host offsets are multiples of.
pub const SEGMENT_CLUSTER: u64 = 128 << 10;

/// Bytes of one part of a cluster: 32 to a cluster.
pub const SUB_BLOCK: u64 = 4096;

const PLAIN_CLUSTER: u64 = SEGMENT_CLUSTER / 2;
const PLAIN_MASK: u32 = 0xFFFF;

/// What a segment holds of one cluster of the guest's disk.
///
/// Sub-block `i` is data if bit `i` of `data` is set, then it lies at `host + i * 4 KiB`;
/// it reads as zeroes if bit `i` of `zero` is set; otherwise the image below has it. No bit
/// is set in both. `host` may be absent if there is no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedCluster {
    /// Index of the cluster on the guest's disk, in units of 128 KiB.
    pub guest: u64,
    /// Offset of the cluster in the file, a multiple of 128 KiB and not 0.
    pub host: Option<u64>,
    pub data: u32,
    pub zero: u32,
}

/// How a sealed segment is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Clusters of 128 KiB whose sub-blocks of 4 KiB are told apart. QEMU 5.2 or newer.
    ExtendedL2,
    /// Clusters of 64 KiB, each wholly data, wholly zero or wholly absent.
    Plain64K,
}

impl Layout {
    /// [`Layout::Plain64K`] if these clusters can be laid out so, else [`Layout::ExtendedL2`].
    pub fn choose(virtual_size: u64, clusters: impl IntoIterator<Item = SealedCluster>) -> Self {
        let plain = clusters.into_iter().all(|cluster| {
            [0, 1]
                .into_iter()
                .all(|half| Half::of(&cluster.clipped(virtual_size), half, virtual_size).is_some())
        });
        if plain {
            Self::Plain64K
        } else {
            Self::ExtendedL2
        }
    }

    fn geometry(self, virtual_size: u64) -> Geometry {
        match self {
            Self::ExtendedL2 => Geometry {
                virtual_size,
                cluster_bits: 17,
                l2_format: L2Format::Extended,
            },
            Self::Plain64K => Geometry {
                virtual_size,
                cluster_bits: 16,
                l2_format: L2Format::Plain,
            },
        }
    }
}

/// What to seal, apart from the clusters.
#[derive(Debug, Clone, Copy)]
pub struct Seal<'a> {
    /// Bytes of the file, which hold the free first cluster and the data and nothing else.
    pub data_len: u64,
    /// Bytes of the guest's disk; a valid [`DiskSize`].
    pub virtual_size: u64,
    pub layout: Layout,
    pub backing: Backing<'a>,
}

/// What became of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedInfo {
    /// Bytes of the image file.
    pub file_len: u64,
    pub l2_tables: u64,
    /// Host clusters with data, in clusters of the layout.
    pub data_clusters: u64,
}

/// Why a segment could not be sealed. The file is to be cut to its data and sealed again.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("seal a segment: its disk cannot have that size")]
    Size { source: InvalidDiskSize },
    #[error(
        "seal a segment: its file has {file_len} bytes instead of {data_len}; cut it to its data first"
    )]
    NotCut { file_len: u64, data_len: u64 },
    #[error("seal a segment: cluster {guest} comes after cluster {previous}")]
    Order { guest: u64, previous: u64 },
    #[error("seal a segment: cluster {guest} lies beyond the end of the disk")]
    BeyondEnd { guest: u64 },
    #[error("seal a segment: sub-blocks of cluster {guest} are both data and zero")]
    DataAndZero { guest: u64 },
    #[error("seal a segment: cluster {guest} has its data at {host:?}, which is no place for it")]
    Host { guest: u64, host: Option<u64> },
    #[error("seal a segment: the place of cluster {guest} belongs to another cluster, too")]
    Shared { guest: u64 },
    #[error(
        "seal a segment: cluster {guest} is neither whole nor absent, as clusters of 64 KiB must be"
    )]
    NotPlain { guest: u64 },
    #[error("seal a segment: its backing file cannot be named")]
    Backing { source: InvalidName },
    #[error("write the tables of a segment")]
    Write { source: io::Error },
}

/// Appends the qcow2 metadata to `file`, in the order of the module's description.
///
/// `clusters` come in ascending order of `guest`. Sub-blocks wholly beyond the virtual size
/// are ignored; a cluster wholly beyond it is refused. Durable on return.
///
/// # Errors
/// If the clusters contradict each other or the file, or writing fails. There is no header
/// then, unless writing the header itself failed.
pub fn seal(
    file: &dyn DiskFile,
    plan: &Seal<'_>,
    clusters: impl IntoIterator<Item = SealedCluster>,
) -> Result<SealedInfo, SealError> {
    let mut sealer = Sealer::new(file, plan)?;
    let mut previous = None;
    for cluster in clusters {
        if let Some(previous) = previous.filter(|&previous| previous >= cluster.guest) {
            return Err(SealError::Order {
                guest: cluster.guest,
                previous,
            });
        }
        previous = Some(cluster.guest);
        sealer.add(&cluster)?;
    }
    sealer.finish()
}

impl SealedCluster {
    /// Without the sub-blocks that lie wholly beyond the end of the disk.
    fn clipped(&self, virtual_size: u64) -> Self {
        let mask = valid_mask(self.guest, virtual_size);
        Self {
            data: self.data & mask,
            zero: self.zero & mask,
            ..*self
        }
    }
}

/// The sub-blocks of a cluster that lie at least partly on the disk.
fn valid_mask(guest: u64, virtual_size: u64) -> u32 {
    let start = guest.saturating_mul(SEGMENT_CLUSTER);
    let blocks = virtual_size.saturating_sub(start).div_ceil(SUB_BLOCK);
    match blocks {
        0..32 => (1_u32 << blocks) - 1,
        _ => u32::MAX,
    }
}

/// What 64 KiB of a cluster are as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Data,
    Zero,
    Absent,
}

impl Half {
    /// `None` if the half is a mixture.
    fn of(cluster: &SealedCluster, half: u32, virtual_size: u64) -> Option<Self> {
        let part = |mask: u32| (mask >> (16 * half)) & PLAIN_MASK;
        let valid = part(valid_mask(cluster.guest, virtual_size));
        match (part(cluster.data), part(cluster.zero)) {
            (0, 0) => Some(Self::Absent),
            (data, 0) if data == valid => Some(Self::Data),
            (0, zero) if zero == valid => Some(Self::Zero),
            _ => None,
        }
    }
}

/// The image while its tables are being appended.
struct Sealer<'a> {
    file: &'a dyn DiskFile,
    plan: &'a Seal<'a>,
    geometry: Geometry,
    l1: Vec<u64>,
    /// The L2 table being filled and its index in the L1 table.
    table: Vec<u8>,
    table_index: Option<u64>,
    /// Where the next table goes, in clusters.
    next_cluster: u64,
    used: UsedClusters,
    l2_tables: u64,
}

impl<'a> Sealer<'a> {
    fn new(file: &'a dyn DiskFile, plan: &'a Seal<'a>) -> Result<Self, SealError> {
        let virtual_size = plan.virtual_size;
        DiskSize::try_from(virtual_size).map_err(|source| SealError::Size { source })?;
        plan.backing
            .validate()
            .map_err(|source| SealError::Backing { source })?;
        let file_len = file.len().map_err(|source| SealError::Write { source })?;
        if file_len != plan.data_len || plan.data_len >= OFFSET_LIMIT {
            return Err(SealError::NotCut {
                file_len,
                data_len: plan.data_len,
            });
        }
        let geometry = plan.layout.geometry(virtual_size);
        let l1_entries = geometry.l1_entries_of_a_disk();
        // Data ends with whole clusters of a segment, whatever the layout.
        let data_len = plan
            .data_len
            .max(SEGMENT_CLUSTER)
            .next_multiple_of(SEGMENT_CLUSTER);
        let data_clusters = geometry.clusters_for(data_len);
        Ok(Self {
            file,
            plan,
            geometry,
            l1: vec![0; l1_entries as usize],
            table: vec![0; geometry.cluster_size() as usize],
            table_index: None,
            next_cluster: data_clusters,
            used: UsedClusters::new(data_clusters),
            l2_tables: 0,
        })
    }

    fn add(&mut self, cluster: &SealedCluster) -> Result<(), SealError> {
        let guest = cluster.guest;
        let valid = valid_mask(guest, self.plan.virtual_size);
        if valid == 0 {
            return Err(SealError::BeyondEnd { guest });
        }
        let cluster = cluster.clipped(self.plan.virtual_size);
        if cluster.data & cluster.zero != 0 {
            return Err(SealError::DataAndZero { guest });
        }
        let host = self.host_of(&cluster)?;
        match self.plan.layout {
            Layout::ExtendedL2 => self.add_extended(&cluster, host),
            Layout::Plain64K => {
                self.add_half(&cluster, host, 0)?;
                self.add_half(&cluster, host, 1)
            }
        }
    }

    /// The place of the cluster's data; 0 if it has none.
    fn host_of(&self, cluster: &SealedCluster) -> Result<u64, SealError> {
        if cluster.data == 0 {
            return Ok(0);
        }
        let start = cluster.guest * SEGMENT_CLUSTER;
        let blocks = u64::from(u32::BITS - cluster.data.leading_zeros());
        let len = (blocks * SUB_BLOCK).min(self.plan.virtual_size - start);
        cluster
            .host
            .filter(|host| {
                *host >= SEGMENT_CLUSTER
                    && host.is_multiple_of(SEGMENT_CLUSTER)
                    && host
                        .checked_add(len)
                        .is_some_and(|end| end <= self.plan.data_len)
            })
            .ok_or(SealError::Host {
                guest: cluster.guest,
                host: cluster.host,
            })
    }

    fn add_extended(&mut self, cluster: &SealedCluster, host: u64) -> Result<(), SealError> {
        if cluster.data | cluster.zero == 0 {
            return Ok(());
        }
        let descriptor = self.descriptor(cluster.guest, host)?;
        let bitmap = u64::from(cluster.zero) << 32 | u64::from(cluster.data);
        let at = self.turn_to(cluster.guest)?;
        self.table[at..at + 8].copy_from_slice(&descriptor.to_be_bytes());
        self.table[at + 8..at + 16].copy_from_slice(&bitmap.to_be_bytes());
        Ok(())
    }

    fn add_half(&mut self, cluster: &SealedCluster, host: u64, half: u32) -> Result<(), SealError> {
        const READS_AS_ZEROES: u64 = 1;
        let guest = cluster.guest;
        let descriptor = match Half::of(cluster, half, self.plan.virtual_size) {
            Some(Half::Absent) => return Ok(()),
            Some(Half::Zero) => READS_AS_ZEROES,
            Some(Half::Data) => self.descriptor(guest, host + u64::from(half) * PLAIN_CLUSTER)?,
            None => return Err(SealError::NotPlain { guest }),
        };
        let at = self.turn_to(guest * 2 + u64::from(half))?;
        self.table[at..at + 8].copy_from_slice(&descriptor.to_be_bytes());
        Ok(())
    }

    /// The first word of an L2 entry for data at `host`, which is marked as used.
    fn descriptor(&mut self, guest: u64, host: u64) -> Result<u64, SealError> {
        if host == 0 {
            return Ok(0);
        }
        if self.used.insert(host >> self.geometry.cluster_bits) {
            Ok(host | COPIED)
        } else {
            Err(SealError::Shared { guest })
        }
    }

    /// Makes the table that maps a cluster of the layout the current one and answers where
    /// in it the entry lies.
    fn turn_to(&mut self, guest_cluster: u64) -> Result<usize, SealError> {
        let entries = self.geometry.cluster_size() / self.geometry.entry_size();
        let index = guest_cluster / entries;
        if self.table_index != Some(index) {
            self.write_table()?;
            self.table_index = Some(index);
        }
        Ok((guest_cluster % entries * self.geometry.entry_size()) as usize)
    }

    fn write_table(&mut self) -> Result<(), SealError> {
        let Some(index) = self.table_index.take() else {
            return Ok(());
        };
        let offset = self.next_cluster * self.geometry.cluster_size();
        self.write_where_not_zero(&self.table, offset)?;
        self.table.fill(0);
        self.l1[index as usize] = offset | COPIED;
        self.next_cluster += 1;
        self.l2_tables += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<SealedInfo, SealError> {
        self.write_table()?;
        let cluster_size = self.geometry.cluster_size();
        let l1_offset = self.next_cluster * cluster_size;
        let mut l1: Vec<u8> = self
            .l1
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect();
        l1.resize(l1.len().next_multiple_of(cluster_size as usize), 0);
        self.write(&l1, l1_offset)?;
        self.next_cluster += self.geometry.clusters_for(l1.len() as u64);

        let area = RefcountArea::after(&self.geometry, self.next_cluster);
        let write_error = |source| SealError::Write { source };
        area.write(self.file, &self.geometry, |cluster| {
            self.used.contains(cluster)
        })
        .map_err(write_error)?;
        self.file.sync().map_err(write_error)?;

        let placement = Placement {
            l1_offset,
            l1_entries: self.l1.len() as u64,
            refcount_table_offset: area.table_offset(&self.geometry),
            refcount_table_clusters: area.table_clusters,
        };
        let link = Link::Backing(self.plan.backing);
        self.write(&header::encode(&self.geometry, &placement, link), 0)?;
        self.file.sync().map_err(write_error)?;
        Ok(SealedInfo {
            file_len: area.end_cluster() * cluster_size,
            l2_tables: self.l2_tables,
            data_clusters: self.used.data,
        })
    }

    /// Writes into a hole: what is zero there stays one. The table of a segment with few
    /// scattered blocks is nearly all zero.
    fn write_where_not_zero(&self, bytes: &[u8], offset: u64) -> Result<(), SealError> {
        for (number, page) in bytes.chunks(SUB_BLOCK as usize).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                self.write(page, offset + number as u64 * SUB_BLOCK)?;
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), SealError> {
        self.file
            .write_at(bytes, offset)
            .map_err(|source| SealError::Write { source })
    }
}

/// Which clusters of the data have a reference; header and tables always have one.
struct UsedClusters {
    words: Vec<u64>,
    /// Clusters before the tables.
    clusters: u64,
    /// Clusters with data.
    data: u64,
}

impl UsedClusters {
    fn new(clusters: u64) -> Self {
        Self {
            words: vec![0; clusters.div_ceil(64) as usize],
            clusters,
            data: 0,
        }
    }

    /// Answers whether the cluster was free.
    fn insert(&mut self, cluster: u64) -> bool {
        let word = &mut self.words[(cluster / 64) as usize];
        let bit = 1 << (cluster % 64);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.data += 1;
        true
    }

    fn contains(&self, cluster: u64) -> bool {
        cluster == 0
            || cluster >= self.clusters
            || self.words[(cluster / 64) as usize] & (1 << (cluster % 64)) != 0
    }
}
