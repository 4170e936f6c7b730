//! The header cluster: what Lifeboat writes into it, and what it accepts from others.

use std::io;

use lifeboat_sys::disk::DiskFile;

use crate::geometry::{Geometry, L2Format, OFFSET_LIMIT};

pub(crate) const DIRTY: u64 = 1 << 0;
pub(crate) const CORRUPT: u64 = 1 << 1;
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
pub(crate) const COMPRESSION_TYPE: u64 = 1 << 3;
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// Autoclear: the data file alone is the disk.
pub(crate) const RAW_DATA: u64 = 1 << 1;

/// The widest L1 table that QEMU opens.
pub(crate) const MAX_L1_BYTES: u64 = 32 << 20;
/// The widest refcount table that QEMU opens.
pub(crate) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Reference counts of 16 bits, as QEMU makes by default.
pub(crate) const REFCOUNT_ORDER: u32 = 4;

const MAGIC: u32 = 0x5146_49FB;
const VERSION: u32 = 3;
/// The fields of version 3, up to and including the header's own length.
const LENGTH: usize = 104;
const MAX_BACKING_NAME: usize = 1023;
const MAX_DATA_FILE_NAME: usize = 4095;

const END_OF_EXTENSIONS: u32 = 0;
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;

/// The format of the image below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackingFormat {
    Qcow2,
    Raw,
}

impl BackingFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// The image below, as named in a header.
///
/// The name is 1 to 1,023 bytes without NUL and without a `:` before its first `/`: QEMU
/// would take that for a protocol. A relative name starts at the folder of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backing<'a> {
    pub name: &'a str,
    pub format: BackingFormat,
}

/// A file name that cannot stand in a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("name a file in an image: the name has {len} bytes, 1 to {limit} are possible")]
    Length { len: usize, limit: usize },
    #[error("name a file in an image: the name contains a NUL byte")]
    Nul,
    #[error(
        "name a file in an image: QEMU takes {name:?} for a protocol; put ./ or the folder before it"
    )]
    Protocol { name: String },
    #[error(
        "name a data file in an image: {name:?} is not absolute, and QEMU would start at its own working directory"
    )]
    Relative { name: String },
}

impl Backing<'_> {
    pub(crate) fn validate(&self) -> Result<(), InvalidName> {
        check_name(self.name, MAX_BACKING_NAME)?;
        let first = self.name.split('/').next().unwrap_or_default();
        if first.contains(':') {
            return Err(InvalidName::Protocol {
                name: self.name.to_owned(),
            });
        }
        Ok(())
    }
}

/// Checks the name of an external data file: absolute, at most 4,095 bytes, no NUL.
pub(crate) fn validate_data_file(name: &str) -> Result<(), InvalidName> {
    check_name(name, MAX_DATA_FILE_NAME)?;
    if name.starts_with('/') {
        Ok(())
    } else {
        Err(InvalidName::Relative {
            name: name.to_owned(),
        })
    }
}

fn check_name(name: &str, limit: usize) -> Result<(), InvalidName> {
    if name.is_empty() || name.len() > limit {
        return Err(InvalidName::Length {
            len: name.len(),
            limit,
        });
    }
    if name.contains('\0') {
        return Err(InvalidName::Nul);
    }
    Ok(())
}

/// What the guest's data lies in or over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Link<'a> {
    Nothing,
    Backing(Backing<'a>),
    DataFile(&'a str),
}

/// Where the tables of an image that Lifeboat makes lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement {
    pub l1_offset: u64,
    pub l1_entries: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u64,
}

/// The beginning of the header cluster, a multiple of 4 KiB long; the rest of it is zero.
pub(crate) fn encode(geometry: &Geometry, placement: &Placement, link: Link<'_>) -> Vec<u8> {
    let narrow = |n: u64| u32::try_from(n).expect("BUG: a table of ours is too wide");
    let mut incompatible = match geometry.l2_format {
        L2Format::Plain => 0,
        L2Format::Extended => EXTENDED_L2,
    };
    let mut autoclear = 0;
    let mut extensions = Vec::new();
    let mut backing_name = "";
    match link {
        Link::Nothing => {}
        Link::Backing(backing) => {
            push_extension(&mut extensions, BACKING_FORMAT, backing.format.name());
            backing_name = backing.name;
        }
        Link::DataFile(name) => {
            incompatible |= EXTERNAL_DATA;
            autoclear |= RAW_DATA;
            push_extension(&mut extensions, DATA_FILE, name);
        }
    }
    push_extension(&mut extensions, END_OF_EXTENSIONS, "");
    let name_offset = if backing_name.is_empty() {
        0
    } else {
        (LENGTH + extensions.len()) as u64
    };

    let mut bytes = Vec::with_capacity(8192);
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend(name_offset.to_be_bytes());
    bytes.extend(narrow(backing_name.len() as u64).to_be_bytes());
    bytes.extend(geometry.cluster_bits.to_be_bytes());
    bytes.extend(geometry.virtual_size.to_be_bytes());
    bytes.extend(0_u32.to_be_bytes()); // not encrypted
    bytes.extend(narrow(placement.l1_entries).to_be_bytes());
    bytes.extend(placement.l1_offset.to_be_bytes());
    bytes.extend(placement.refcount_table_offset.to_be_bytes());
    bytes.extend(narrow(placement.refcount_table_clusters).to_be_bytes());
    bytes.extend(0_u32.to_be_bytes()); // no snapshots
    bytes.extend(0_u64.to_be_bytes());
    bytes.extend(incompatible.to_be_bytes());
    bytes.extend(0_u64.to_be_bytes()); // no compatible features
    bytes.extend(autoclear.to_be_bytes());
    bytes.extend(REFCOUNT_ORDER.to_be_bytes());
    bytes.extend((LENGTH as u32).to_be_bytes());
    assert_eq!(bytes.len(), LENGTH, "BUG: header fields do not add up");
    bytes.extend(extensions);
    bytes.extend(backing_name.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}

fn push_extension(extensions: &mut Vec<u8>, kind: u32, text: &str) {
    extensions.extend(kind.to_be_bytes());
    extensions.extend((text.len() as u32).to_be_bytes());
    extensions.extend(text.as_bytes());
    extensions.resize(extensions.len().next_multiple_of(8), 0);
}

/// A header that was read and found sound: sizes are bounded, tables lie in the file.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub geometry: Geometry,
    /// L1 entries that map the guest's disk; the table may be longer.
    pub l1_entries: u64,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u64,
    pub refcount_order: u32,
    pub incompatible: u64,
    pub autoclear: u64,
    pub has_backing: bool,
    pub has_bitmaps: bool,
    pub data_file: Option<Vec<u8>>,
}

/// Why a header was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("read the header of the image")]
    Read { source: io::Error },
    #[error("read the image: it is not qcow2")]
    NotQcow2,
    #[error(
        "read the image: its version is {version}, only 3 is supported; convert it with qemu-img amend -o compat=1.1"
    )]
    Version { version: u32 },
    #[error("read the image: it is encrypted, which is not supported")]
    Encrypted,
    #[error(
        "read the image: it holds {count} internal snapshots; delete them with qemu-img snapshot -d"
    )]
    Snapshots { count: u32 },
    #[error("read the image: it was not closed in order; repair it with qemu-img check -r all")]
    Dirty,
    #[error("read the image: it is marked corrupt; repair it with qemu-img check -r all")]
    Corrupt,
    #[error("read the image: it uses features that are not known here (bits {bits:#x})")]
    UnknownFeatures { bits: u64 },
    #[error("read the image: cluster_bits is {bits}, possible are {least} to 21")]
    ClusterBits { bits: u32, least: u32 },
    #[error("read the image: its size of {size} bytes cannot be mapped by a table that QEMU opens")]
    VirtualSize { size: u64 },
    #[error(
        "read the image: the {table} at {offset:#x} with {len} bytes is misplaced; the image is damaged"
    )]
    Misplaced {
        table: &'static str,
        offset: u64,
        len: u64,
    },
    #[error(
        "read the image: its reference counts are 2^{order} bits wide, at most 2^6 are possible"
    )]
    RefcountOrder { order: u32 },
    #[error("read the image: the header claims a length of {length} bytes")]
    HeaderLength { length: u32 },
    #[error("read the image: the header extension at {offset:#x} does not fit in the header")]
    Extension { offset: u64 },
    #[error("read the image: the name of the backing file does not lie in the header")]
    BackingName,
}

impl Header {
    /// Reads and checks the header of `file`; nothing that it points to is read.
    pub fn read(file: &dyn DiskFile) -> Result<Self, HeaderError> {
        let read_error = |source| HeaderError::Read { source };
        let file_len = file.len().map_err(read_error)?;
        if file_len < LENGTH as u64 {
            return Err(HeaderError::NotQcow2);
        }
        let mut fields = [0; LENGTH];
        file.read_at(&mut fields, 0).map_err(read_error)?;
        let raw = RawFields(&fields);
        raw.check_kind()?;
        let geometry = raw.geometry()?;
        let mut cluster = vec![0; geometry.cluster_size().min(file_len) as usize];
        file.read_at(&mut cluster, 0).map_err(read_error)?;
        raw.check_tables(geometry, file_len, &cluster)
    }
}

/// The fixed part of a header as it stands in the file.
struct RawFields<'a>(&'a [u8; LENGTH]);

impl RawFields<'_> {
    fn u32(&self, at: usize) -> u32 {
        be_u32(self.0, at).expect("BUG: a header field beyond the header")
    }

    fn u64(&self, at: usize) -> u64 {
        be_u64(self.0, at).expect("BUG: a header field beyond the header")
    }

    fn check_kind(&self) -> Result<(), HeaderError> {
        if self.u32(0) != MAGIC {
            return Err(HeaderError::NotQcow2);
        }
        let version = self.u32(4);
        if version != VERSION {
            return Err(HeaderError::Version { version });
        }
        let incompatible = self.u64(72);
        if incompatible & CORRUPT != 0 {
            return Err(HeaderError::Corrupt);
        }
        if incompatible & DIRTY != 0 {
            return Err(HeaderError::Dirty);
        }
        let bits = incompatible & !(EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2);
        if bits != 0 {
            return Err(HeaderError::UnknownFeatures { bits });
        }
        if self.u32(32) != 0 {
            return Err(HeaderError::Encrypted);
        }
        match self.u32(60) {
            0 => Ok(()),
            count => Err(HeaderError::Snapshots { count }),
        }
    }

    fn geometry(&self) -> Result<Geometry, HeaderError> {
        let (l2_format, least) = if self.u64(72) & EXTENDED_L2 == 0 {
            (L2Format::Plain, 9)
        } else {
            (L2Format::Extended, 14)
        };
        let bits = self.u32(20);
        if !(least..=21).contains(&bits) {
            return Err(HeaderError::ClusterBits { bits, least });
        }
        Ok(Geometry {
            virtual_size: self.u64(24),
            cluster_bits: bits,
            l2_format,
        })
    }

    fn check_tables(
        &self,
        geometry: Geometry,
        file_len: u64,
        cluster: &[u8],
    ) -> Result<Header, HeaderError> {
        let size = geometry.virtual_size;
        let l1_entries = geometry
            .l1_entries()
            .filter(|_| size < OFFSET_LIMIT)
            .ok_or(HeaderError::VirtualSize { size })?;
        let place = |table, offset: u64, len: u64, limit: u64| {
            let fits = offset.is_multiple_of(geometry.cluster_size())
                && offset >= geometry.cluster_size()
                && len <= limit
                && offset
                    .checked_add(len)
                    .is_some_and(|end| end <= file_len && end <= OFFSET_LIMIT);
            if fits {
                Ok(offset..offset + geometry.clusters_for(len) * geometry.cluster_size())
            } else {
                Err(HeaderError::Misplaced { table, offset, len })
            }
        };
        let l1_offset = self.u64(40);
        if u64::from(self.u32(36)) < l1_entries {
            return Err(HeaderError::VirtualSize { size });
        }
        let l1 = place("L1 table", l1_offset, l1_entries * 8, MAX_L1_BYTES)?;
        let refcount_table_offset = self.u64(48);
        let refcount_table_clusters = u64::from(self.u32(56));
        let len = refcount_table_clusters * geometry.cluster_size();
        let table = "refcount table";
        let refcounts = place(table, refcount_table_offset, len, MAX_REFCOUNT_TABLE_BYTES)?;
        if refcounts.is_empty() || (l1.start < refcounts.end && refcounts.start < l1.end) {
            return Err(HeaderError::Misplaced {
                table,
                offset: refcount_table_offset,
                len,
            });
        }
        let refcount_order = self.u32(96);
        if refcount_order > 6 {
            return Err(HeaderError::RefcountOrder {
                order: refcount_order,
            });
        }
        let extensions = self.extensions(cluster)?;
        Ok(Header {
            geometry,
            l1_entries,
            l1_offset,
            refcount_table_offset,
            refcount_table_clusters,
            refcount_order,
            incompatible: self.u64(72),
            autoclear: self.u64(88),
            has_backing: self.has_backing(cluster)?,
            has_bitmaps: extensions.has_bitmaps,
            data_file: extensions.data_file,
        })
    }

    fn has_backing(&self, cluster: &[u8]) -> Result<bool, HeaderError> {
        let offset = self.u64(8);
        let len = self.u32(16) as usize;
        if offset == 0 {
            return Ok(false);
        }
        let inside = offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= cluster.len() as u64);
        if inside && (1..=MAX_BACKING_NAME).contains(&len) {
            Ok(true)
        } else {
            Err(HeaderError::BackingName)
        }
    }

    fn extensions(&self, cluster: &[u8]) -> Result<Extensions, HeaderError> {
        let length = self.u32(100);
        let mut at = length as usize;
        if at < LENGTH || at > cluster.len() || !at.is_multiple_of(8) {
            return Err(HeaderError::HeaderLength { length });
        }
        // The area ends where the backing file's name begins.
        let end = match self.u64(8) {
            0 => cluster.len(),
            name => cluster
                .len()
                .min(usize::try_from(name).unwrap_or(usize::MAX)),
        };
        let mut found = Extensions::default();
        while at + 8 <= end {
            let misfit = HeaderError::Extension { offset: at as u64 };
            let (Some(kind), Some(len)) = (be_u32(cluster, at), be_u32(cluster, at + 4)) else {
                return Err(misfit);
            };
            let len = len as usize;
            let Some(body) = cluster[..end].get(at + 8..at + 8 + len) else {
                return Err(misfit);
            };
            match kind {
                END_OF_EXTENSIONS => break,
                BITMAPS => found.has_bitmaps = true,
                DATA_FILE => found.data_file = Some(body.to_vec()),
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(found)
    }
}

#[derive(Default)]
struct Extensions {
    has_bitmaps: bool,
    data_file: Option<Vec<u8>>,
}

pub(crate) fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_be_bytes)
}

pub(crate) fn be_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    field.try_into().ok().map(u64::from_be_bytes)
}
