//! The wrapper: the qcow2 image through which QEMU uses a raw head.
//!
//! All clusters are allocated at their own offsets of the data file, so that what is
//! written into the head directly is what the guest reads. That holds only until a guest
//! has run on the wrapper, which is why it is made anew each time; see [`verify_wrapper`].
//!
//! Touches the wrapper's own file only. (QEMU's tools, asked to create such an image, empty
//! the data file.)

use std::io;

use lifeboat_model::{DiskSize, InvalidDiskSize};
use lifeboat_sys::disk::DiskFile;

use crate::geometry::{COPIED, Geometry, L2Format};
use crate::header::{
    self, EXTERNAL_DATA, Header, HeaderError, InvalidName, Link, Placement, RAW_DATA,
};
use crate::refcount_area::RefcountArea;

/// The widest clusters there are: 4 MiB of tables map 1 TiB.
const CLUSTER_BITS: u32 = 21;

/// Why a wrapper could not be made, or is not one to start a guest on.
#[derive(Debug, thiserror::Error)]
pub enum WrapperError {
    #[error("make a wrapper: its disk cannot have that size")]
    Size { source: InvalidDiskSize },
    #[error("make a wrapper: its data file cannot be named")]
    DataFile { source: InvalidName },
    #[error("write a wrapper")]
    Write { source: io::Error },
    #[error("verify a wrapper: its header is refused")]
    Header { source: HeaderError },
    #[error("verify a wrapper: read its tables")]
    Read { source: io::Error },
    #[error(
        "verify a wrapper: the disk has {found} bytes instead of {expected}; make the wrapper anew"
    )]
    OtherSize { found: u64, expected: u64 },
    #[error(
        "verify a wrapper: it is not the image of the raw data file {expected:?}; make the wrapper anew"
    )]
    OtherDataFile { expected: String },
    #[error("verify a wrapper: it names a backing file; make the wrapper anew")]
    Backing,
    #[error("verify a wrapper: it holds bitmaps; make the wrapper anew")]
    Bitmaps,
    #[error(
        "verify a wrapper: the guest's data at {offset:#x} is not mapped to its own place; make the wrapper anew"
    )]
    Mapping { offset: u64 },
}

/// Writes the wrapper of the raw image `data_file` into `file`, whatever `file` held.
///
/// `data_file` is absolute: QEMU would take a relative name from its own working directory.
/// It is neither opened nor looked at. Memory: one table of 2 MiB. Durable on return.
///
/// # Errors
/// If the size is no [`DiskSize`], the name is not absolute, or writing fails.
pub fn write_wrapper(
    file: &dyn DiskFile,
    virtual_size: u64,
    data_file: &str,
) -> Result<(), WrapperError> {
    DiskSize::try_from(virtual_size).map_err(|source| WrapperError::Size { source })?;
    let geometry = Geometry {
        virtual_size,
        cluster_bits: CLUSTER_BITS,
        l2_format: L2Format::Plain,
    };
    header::validate_data_file(data_file).map_err(|source| WrapperError::DataFile { source })?;
    write_image(file, &geometry, data_file).map_err(|source| WrapperError::Write { source })
}

fn write_image(file: &dyn DiskFile, geometry: &Geometry, data_file: &str) -> io::Result<()> {
    let cluster_size = geometry.cluster_size();
    let l1_entries = geometry.l1_entries_of_a_disk();
    let l1_clusters = geometry.clusters_for(l1_entries * 8);
    let first_table = 1 + l1_clusters;
    file.set_len(0)?;

    let mut l1 = Vec::with_capacity(cluster_size as usize);
    let mut table = vec![0; cluster_size as usize];
    for index in 0..l1_entries {
        let offset = (first_table + index) * cluster_size;
        let mut guest = index * geometry.table_span();
        for entry in table.chunks_exact_mut(8) {
            let descriptor = if guest < geometry.virtual_size {
                guest | COPIED
            } else {
                0
            };
            entry.copy_from_slice(&descriptor.to_be_bytes());
            guest += cluster_size;
        }
        file.write_at(&table, offset)?;
        file.start_writeback(offset, cluster_size);
        l1.extend((offset | COPIED).to_be_bytes());
    }
    file.write_at(&l1, cluster_size)?;
    let area = RefcountArea::after(geometry, first_table + l1_entries);
    area.write(file, geometry, |_| true)?;
    file.sync()?;

    let placement = Placement {
        l1_offset: cluster_size,
        l1_entries,
        refcount_table_offset: area.table_offset(geometry),
        refcount_table_clusters: area.table_clusters,
    };
    let link = Link::DataFile(data_file);
    file.write_at(&header::encode(geometry, &placement, link), 0)?;
    file.sync()
}

/// Checks that a guest would read the head through this wrapper, byte for byte: same size,
/// this data file and raw, every cluster allocated at its own offset, no backing file, no
/// bitmaps, no snapshots.
///
/// Memory: the L1 table (at most 32 MiB) and one L2 table (at most 2 MiB).
///
/// # Errors
/// At the first contradiction, or if reading fails.
pub fn verify_wrapper(
    file: &dyn DiskFile,
    virtual_size: u64,
    data_file: &str,
) -> Result<(), WrapperError> {
    let header = Header::read(file).map_err(|source| WrapperError::Header { source })?;
    let found = header.geometry.virtual_size;
    if found != virtual_size {
        return Err(WrapperError::OtherSize {
            found,
            expected: virtual_size,
        });
    }
    if header.incompatible != EXTERNAL_DATA
        || header.autoclear & RAW_DATA == 0
        || header.data_file.as_deref() != Some(data_file.as_bytes())
    {
        return Err(WrapperError::OtherDataFile {
            expected: data_file.to_owned(),
        });
    }
    if header.has_backing {
        return Err(WrapperError::Backing);
    }
    if header.has_bitmaps {
        return Err(WrapperError::Bitmaps);
    }
    verify_mapping(file, &header)
}

fn verify_mapping(file: &dyn DiskFile, header: &Header) -> Result<(), WrapperError> {
    let geometry = &header.geometry;
    let cluster_size = geometry.cluster_size();
    let read = |buffer: &mut [u8], offset| {
        file.read_at(buffer, offset)
            .map_err(|source| WrapperError::Read { source })
    };
    let mut l1 = vec![0; header.l1_entries as usize * 8];
    read(&mut l1, header.l1_offset)?;
    let mut table = vec![0; cluster_size as usize];
    for (index, pointer) in l1.chunks_exact(8).enumerate() {
        let mut guest = index as u64 * geometry.table_span();
        let pointer = header::be_u64(pointer, 0).unwrap_or_default();
        let offset = pointer & !COPIED;
        if pointer & COPIED == 0 || offset < cluster_size || !offset.is_multiple_of(cluster_size) {
            return Err(WrapperError::Mapping { offset: guest });
        }
        // What lies beyond the disk's end has no meaning.
        let left = geometry
            .virtual_size
            .saturating_sub(guest)
            .div_ceil(cluster_size)
            * 8;
        let table = &mut table[..left.min(cluster_size) as usize];
        read(table, offset)?;
        for entry in table.chunks_exact(8) {
            if entry != (guest | COPIED).to_be_bytes() {
                return Err(WrapperError::Mapping { offset: guest });
            }
            guest += cluster_size;
        }
    }
    Ok(())
}
