//! A disk as it is at the moment of each read, read-only.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use lifeboat_model::DiskSize;
use lifeboat_nbd::{Access, ContextName, Export, Extent, Granularity, HOLE, Holes, ZERO};
use lifeboat_sys::disk::{self, DiskFile, DiskPort, GuestDisk};
use lifeboat_sys::stamp::FileStamp;

use super::lock;
use crate::port::Backing;

/// What a disk stands on now, and the image as it was when that was found out. Shared by the
/// machine, which may change it, and the export.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) backing: Backing,
    pub(crate) stamp: FileStamp,
}

/// One disk. An image is opened for each request, so that an export that nobody reads takes
/// no file, and no lock.
#[derive(Debug)]
pub(crate) struct PresentExport {
    port: Arc<dyn DiskPort>,
    size: DiskSize,
    place: Arc<Mutex<Place>>,
}

enum Source {
    File(Arc<dyn DiskFile>),
    Device(Arc<dyn GuestDisk>),
}

impl PresentExport {
    pub(crate) fn new(port: Arc<dyn DiskPort>, size: DiskSize, place: Arc<Mutex<Place>>) -> Self {
        Self { port, size, place }
    }

    fn source(&self) -> io::Result<Source> {
        let (path, stamp) = {
            let place = lock(&self.place);
            match &place.backing {
                Backing::Device { device, image: _ } => {
                    return Ok(Source::Device(Arc::clone(device)));
                }
                Backing::Raw { path } => (path.clone(), place.stamp),
            }
        };
        let file = self.open(&path)?;
        // Looked at after it was opened: a path that has not changed by then was not changed before.
        if FileStamp::of(&path)?.same_file(&stamp) {
            Ok(Source::File(file))
        } else {
            Err(io::Error::other("the image has been replaced by another"))
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.port.open(path, disk::Access::ReadOnly)
    }
}

impl Source {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_at(into, offset),
            Self::Device(device) => device.read_at(into, offset),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        match self {
            Self::File(file) => file.next_data(offset),
            Self::Device(device) => device.next_data(offset),
        }
    }
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

impl Export for PresentExport {
    fn size(&self) -> u64 {
        self.size.bytes()
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
        self.source()?.read_at(into, offset)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _holes: Holes) -> io::Result<()> {
        Err(read_only())
    }

    fn trim(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(read_only())
    }

    /// Whoever writes makes it durable.
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
        let source = self.source()?;
        let end = offset + length;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < limit {
            let (flags, stop) = match source.next_data(at)? {
                Some(data) if data.start <= at => (0, data.end.clamp(at + 1, end)),
                Some(data) => (HOLE | ZERO, data.start.min(end)),
                None => (HOLE | ZERO, end),
            };
            extents.push(Extent {
                offset: at,
                length: stop - at,
                flags,
            });
            at = stop;
        }
        Ok(extents)
    }
}
