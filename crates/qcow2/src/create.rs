//! Making an empty overlay.

use std::io;

use lifeboat_model::{DiskSize, InvalidDiskSize};
use lifeboat_sys::disk::DiskFile;

use crate::geometry::{Geometry, L2Format};
use crate::header::{self, Backing, InvalidName, Link, Placement};
use crate::refcount_area::RefcountArea;

/// What lies below an overlay.
#[derive(Debug, Clone, Copy)]
pub enum Below<'a> {
    /// The image of this name.
    Named(Backing<'a>),
    /// Whatever the one who opens the overlay puts below it; the overlay names nothing.
    GivenOnOpen,
}

/// Why no overlay was made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("create an overlay: its disk cannot have that size")]
    Size { source: InvalidDiskSize },
    #[error("create an overlay: its backing file cannot be named")]
    Backing { source: InvalidName },
    #[error("create an overlay: the file is not empty")]
    NotEmpty,
    #[error("write an empty overlay")]
    Write { source: io::Error },
}

/// Makes an overlay without data in an empty file: clusters of 128 KiB whose parts of 4 KiB
/// are told apart, so that a write of 4 KiB never copies from below.
///
/// Durable on return; a crash before leaves a file that is no image.
///
/// # Errors
/// If the size is no [`DiskSize`], the name below cannot stand in a header, the file is not
/// empty, or writing fails.
pub fn create_overlay(
    file: &dyn DiskFile,
    virtual_size: u64,
    below: Below<'_>,
) -> Result<(), CreateError> {
    DiskSize::try_from(virtual_size).map_err(|source| CreateError::Size { source })?;
    let geometry = Geometry {
        virtual_size,
        cluster_bits: 17,
        l2_format: L2Format::Extended,
    };
    let link = match below {
        Below::Named(backing) => {
            backing
                .validate()
                .map_err(|source| CreateError::Backing { source })?;
            Link::Backing(backing)
        }
        Below::GivenOnOpen => Link::Nothing,
    };
    let write_error = |source| CreateError::Write { source };
    if file.len().map_err(write_error)? != 0 {
        return Err(CreateError::NotEmpty);
    }
    write_empty(file, &geometry, link).map_err(write_error)
}

fn write_empty(file: &dyn DiskFile, geometry: &Geometry, link: Link<'_>) -> io::Result<()> {
    let l1_entries = geometry.l1_entries_of_a_disk();
    let l1_clusters = geometry.clusters_for(l1_entries * 8);
    let area = RefcountArea::after(geometry, 1 + l1_clusters);
    area.write(file, geometry, |_| true)?;
    file.sync()?;
    let placement = Placement {
        l1_offset: geometry.cluster_size(),
        l1_entries,
        refcount_table_offset: area.table_offset(geometry),
        refcount_table_clusters: area.table_clusters,
    };
    file.write_at(&header::encode(geometry, &placement, link), 0)?;
    file.sync()
}
