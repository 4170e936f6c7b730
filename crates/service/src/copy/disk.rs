//! A disk of the VM as a copy reads it.

use std::io;
use std::ops::Range;

use lifeboat_hypervisor::DiskSource;
use lifeboat_model::{BLOCK_SIZE, DiskId};
use lifeboat_nbd::{Client, ClientOptions, ContextName, Extent, LocalExport, RequestError, ZERO};

use super::{CopyTrouble, DIGEST, FRAME, Key};

/// The most extents of one range that are looked at.
const EXTENTS: usize = 16_384;

/// One disk of the copy.
pub(super) struct OpenDisk {
    pub(super) id: DiskId,
    /// Its place in the manifest.
    pub(super) index: usize,
    pub(super) size: u64,
    way: ReadWay,
    has_allocation: bool,
}

/// How a disk is read.
enum ReadWay {
    /// Of whoever serves it.
    Socket(Client),
    /// This process serves it.
    Here(LocalExport),
}

/// A disk could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Socket(#[from] RequestError),
    #[error(transparent)]
    Here(#[from] io::Error),
}

impl ReadWay {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        match self {
            Self::Socket(client) => Ok(client.read(offset, into)?),
            Self::Here(export) => Ok(export.read(offset, into)?),
        }
    }

    /// What is allocated of a range, if that is in few parts.
    fn extents(&self, range: &Range<u64>) -> Result<Option<Vec<Extent>>, ReadError> {
        let (allocation, length) = (ContextName::allocation(), range.end - range.start);
        match self {
            Self::Socket(client) => {
                Ok(client.collect_extents(&allocation, range.start, length, EXTENTS)?)
            }
            Self::Here(export) => {
                Ok(export.collect_extents(&allocation, range.start, length, EXTENTS)?)
            }
        }
    }
}

/// A range of a disk that was asked for.
pub(super) struct Part {
    pub(super) range: Range<u64>,
    /// It is known to be zero.
    pub(super) is_hole: bool,
}

impl OpenDisk {
    pub(super) fn open(index: usize, source: &DiskSource) -> Result<Self, CopyTrouble> {
        let allocation = ContextName::allocation();
        let way = match &source.local {
            Some(export) => ReadWay::Here(export.clone()),
            None => {
                let options = ClientOptions {
                    contexts: vec![allocation.clone()],
                    ..ClientOptions::default()
                };
                let client = Client::connect(&source.uri, &options);
                ReadWay::Socket(client.map_err(|error| CopyTrouble::Open {
                    disk: source.disk.clone(),
                    source: Box::new(error),
                })?)
            }
        };
        let has_allocation = match &way {
            ReadWay::Socket(client) => client.contexts().any(|context| *context == allocation),
            ReadWay::Here(export) => export.contexts().any(|context| *context == allocation),
        };
        Ok(Self {
            id: source.disk.clone(),
            index,
            size: source.size.bytes(),
            way,
            has_allocation,
        })
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CopyTrouble> {
        let read = self.way.read(offset, into);
        read.map_err(|source| self.trouble(source))
    }

    fn trouble(&self, source: ReadError) -> CopyTrouble {
        CopyTrouble::Read {
            disk: self.id.clone(),
            source,
        }
    }

    /// Cuts a range into what may hold data and what is known to be zero, at whole blocks.
    pub(super) fn parts(&self, range: &Range<u64>) -> Result<Vec<Part>, CopyTrouble> {
        let all_data = |range: Range<u64>| Part {
            range,
            is_hole: false,
        };
        if !self.has_allocation {
            return Ok(vec![all_data(range.clone())]);
        }
        let extents = self.way.extents(range);
        let extents = extents.map_err(|source| self.trouble(source))?;
        // A range in more parts than that is read whole: blocks of zeroes are found anyway.
        let Some(extents) = extents else {
            return Ok(vec![all_data(range.clone())]);
        };
        let mut parts: Vec<Part> = Vec::new();
        // Where the part begins that comes next, and where the extent does.
        let (mut taken, mut at) = (range.start, range.start);
        for extent in extents {
            let (start, end) = (at, range.end.min(at + extent.length));
            at = end;
            if extent.flags & ZERO == 0 {
                continue;
            }
            // Whole blocks of zeroes only, so that no frame begins within one.
            let hole = start.div_ceil(BLOCK_SIZE) * BLOCK_SIZE..if end == self.size {
                end
            } else {
                end / BLOCK_SIZE * BLOCK_SIZE
            };
            if hole.start >= hole.end {
                continue;
            }
            if taken < hole.start {
                parts.push(all_data(taken..hole.start));
            }
            taken = hole.end;
            parts.push(Part {
                range: hole,
                is_hole: true,
            });
        }
        if taken < range.end {
            parts.push(all_data(taken..range.end));
        }
        Ok(parts)
    }

    /// The keyed digests of the units of a range, one after the other. Holes are not read.
    pub(super) fn digests(
        &self,
        range: &Range<u64>,
        unit: u64,
        key: &Key,
        into: &mut Vec<[u8; DIGEST]>,
    ) -> Result<(), CopyTrouble> {
        let zeroes = vec![0; unit as usize];
        let of_zeroes = digest(key, &zeroes);
        let mut buffer = vec![0; FRAME as usize];
        let mut at = range.start;
        for part in self.parts(range)? {
            if part.is_hole {
                // Whole units, that at the end of the disk not among them.
                let units = part.range.end.saturating_sub(at) / unit;
                into.extend(std::iter::repeat_n(of_zeroes, units as usize));
                at += units * unit;
                continue;
            }
            // What a hole left over of its last unit is read with what follows it.
            let end = (part.range.end - range.start).div_ceil(unit) * unit + range.start;
            let end = end.min(range.end);
            self.read_digests(at..end, unit, key, &mut buffer, into)?;
            at = at.max(end);
        }
        self.read_digests(at..range.end, unit, key, &mut buffer, into)
    }

    fn read_digests(
        &self,
        range: Range<u64>,
        unit: u64,
        key: &Key,
        buffer: &mut [u8],
        into: &mut Vec<[u8; DIGEST]>,
    ) -> Result<(), CopyTrouble> {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + FRAME);
            let bytes = &mut buffer[..(end - start) as usize];
            self.read(start, bytes)?;
            into.extend(bytes.chunks(unit as usize).map(|part| digest(key, part)));
            start = end;
        }
        Ok(())
    }
}

fn digest(key: &Key, bytes: &[u8]) -> [u8; DIGEST] {
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(&blake3::keyed_hash(key, bytes).as_bytes()[..DIGEST]);
    digest
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use lifeboat_model::DiskSize;
    use lifeboat_nbd::{
        Access, Export, ExportSet, Extent, Granularity, Holes, ListenAddress, NbdUri, Server,
        ServerOptions,
    };

    use super::*;

    const KEY: Key = [7; 32];
    const UNITS: [u64; 2] = [BLOCK_SIZE, 64 << 10];

    /// A disk with holes that notes what is read of it.
    struct Holed {
        bytes: Vec<u8>,
        holes: Vec<Range<u64>>,
        read: Arc<Mutex<Vec<Range<u64>>>>,
    }

    impl Export for Holed {
        fn size(&self) -> u64 {
            self.bytes.len() as u64
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
            let range = offset..offset + into.len() as u64;
            into.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
            self.read.lock().unwrap().push(range);
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn write_zeroes(&self, _: u64, _: u64, _: Holes) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn trim(&self, _: u64, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }

        fn extents(
            &self,
            _: &ContextName,
            offset: u64,
            length: u64,
            limit: usize,
        ) -> io::Result<Vec<Extent>> {
            let mut edges = vec![offset, offset + length];
            let inside = |edge: &u64| (offset..offset + length).contains(edge);
            edges.extend(
                self.holes
                    .iter()
                    .flat_map(|hole| [hole.start, hole.end])
                    .filter(inside),
            );
            edges.sort_unstable();
            edges.dedup();
            let extents = edges.windows(2).map(|pair| Extent {
                offset: pair[0],
                length: pair[1] - pair[0],
                flags: match self.holes.iter().any(|hole| hole.contains(&pair[0])) {
                    true => ZERO,
                    false => 0,
                },
            });
            Ok(extents.take(limit).collect())
        }
    }

    /// The digests of a range of a disk, and what was read for them. Over a socket they are the
    /// same; its server reads no part of a hole.
    fn digests(
        bytes: &[u8],
        holes: &[Range<u64>],
        range: &Range<u64>,
        unit: u64,
    ) -> (Vec<[u8; DIGEST]>, Vec<Range<u64>>) {
        let (over_socket, _) = digests_in_way(bytes, holes, range, unit, false);
        let (found, read) = digests_in_way(bytes, holes, range, unit, true);
        assert_eq!(found, over_socket);
        (found, read)
    }

    fn digests_in_way(
        bytes: &[u8],
        holes: &[Range<u64>],
        range: &Range<u64>,
        unit: u64,
        is_here: bool,
    ) -> (Vec<[u8; DIGEST]>, Vec<Range<u64>>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let read = Arc::new(Mutex::new(Vec::new()));
        let holed = Holed {
            bytes: bytes.to_vec(),
            holes: holes.to_vec(),
            read: Arc::clone(&read),
        };
        let exports = ExportSet::new();
        exports.add("d", Arc::new(holed)).unwrap();
        let address = ListenAddress::Unix(socket.clone());
        let local = exports.local("d").filter(|_| is_here);
        let _server = Server::bind(&address, exports, ServerOptions::default()).unwrap();
        let source = DiskSource {
            disk: "vda".parse().unwrap(),
            size: DiskSize::try_from(bytes.len() as u64).unwrap(),
            uri: NbdUri::unix(socket, "d").unwrap(),
            bitmap: None,
            local,
        };
        let disk = OpenDisk::open(0, &source).unwrap();
        let mut digests = Vec::new();
        disk.digests(range, unit, &KEY, &mut digests).unwrap();
        let read = read.lock().unwrap().clone();
        (digests, read)
    }

    /// Bytes that are zero in the holes and nowhere else.
    fn disk_with(holes: &[Range<u64>], size: u64) -> Vec<u8> {
        let byte = |at: u64| match holes.iter().any(|hole| hole.contains(&at)) {
            true => 0,
            false => (at / 512 % 255 + 1) as u8,
        };
        (0..size).map(byte).collect()
    }

    #[test]
    fn holes_are_not_read_and_count_as_zeroes() {
        const SIZE: u64 = 1 << 20;
        // At the borders of units, within one, over several, and at both ends.
        let holes = [
            0..64 << 10,
            100_000..100_500,
            (192 << 10) + 4096..(448 << 10) + 512,
            (512 << 10)..(576 << 10),
            (576 << 10) + 512..(640 << 10) - 512,
            (900 << 10)..SIZE,
        ];
        let bytes = disk_with(&holes, SIZE);
        for unit in UNITS {
            for range in [0..SIZE, 64 << 10..960 << 10, 512 << 10..576 << 10] {
                let (of_holes, read) = digests(&bytes, &holes, &range, unit);
                let (of_zeroes, all) = digests(&bytes, &[], &range, unit);
                assert_eq!(of_holes, of_zeroes, "{range:?} by {unit}");
                let wanted = bytes[range.start as usize..range.end as usize]
                    .chunks(unit as usize)
                    .map(|bytes| digest(&KEY, bytes));
                assert_eq!(of_holes, wanted.collect::<Vec<_>>());
                let count = |read: &[Range<u64>]| -> u64 {
                    read.iter().map(|range| range.end - range.start).sum()
                };
                assert_eq!(count(&all), range.end - range.start);
                // Whole units of a hole are left alone, and parts of them are read.
                for hole in &holes {
                    let start = hole.start.max(range.start).next_multiple_of(unit);
                    let end = hole.end.min(range.end) / unit * unit;
                    let is_read = |at: u64| read.iter().any(|read| read.contains(&at));
                    assert!((start..end).step_by(512).all(|at| !is_read(at)), "{hole:?}");
                }
            }
        }
    }

    #[test]
    fn the_last_unit_ends_with_the_disk() {
        for beyond in [512, 4096, 12_800] {
            let size = (256 << 10) + beyond;
            for hole in [
                None,
                Some(128 << 10..size),
                Some(256 << 10..size),
                Some((256 << 10) + 512..size),
                Some(0..(256 << 10) + 512),
            ] {
                let holes = Vec::from_iter(hole);
                let bytes = disk_with(&holes, size);
                for unit in UNITS {
                    let (found, _) = digests(&bytes, &holes, &(0..size), unit);
                    let wanted = bytes.chunks(unit as usize).map(|bytes| digest(&KEY, bytes));
                    assert_eq!(found, wanted.collect::<Vec<_>>(), "{holes:?} by {unit}");
                }
            }
        }
    }
}
