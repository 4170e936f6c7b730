//! An export whose maps a test shapes. What they call zero must be zero: the server itself
//! believes them when it reads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_nbd::{
    Access, ContextName, Export, ExportSet, Extent, Granularity, Holes, ListenAddress, NbdUri,
    Server, ServerOptions,
};
use tempfile::TempDir;

/// Tells one map: the first extents from an offset on.
pub type Map = Box<dyn Fn(u64, u64, usize) -> Vec<Extent> + Send + Sync>;

/// Fills a buffer from an offset on.
pub type Content = Box<dyn Fn(u64, &mut [u8]) + Send + Sync>;

/// The bitmap of a shaped export is called `m`.
pub struct Shaped {
    pub size: u64,
    pub minimum: u32,
    pub content: Content,
    pub dirty: Map,
    /// Absent when the server cannot tell.
    pub allocation: Option<Map>,
    pub allocation_asked: Arc<AtomicU64>,
}

/// A map from a list that covers the disk, told as oddly as the protocol allows: at most
/// `at_once` extents, and the last one beyond what was asked.
pub fn listed(list: Vec<Extent>, at_once: usize) -> Map {
    Box::new(move |offset, _, limit| {
        let from = list.partition_point(|extent| extent.end() <= offset);
        let mut found: Vec<_> = list[from..]
            .iter()
            .take(limit.min(at_once))
            .copied()
            .collect();
        if let Some(first) = found.first_mut() {
            first.length = first.end() - offset;
            first.offset = offset;
        }
        found
    })
}

/// One extent for everything.
pub fn everywhere(size: u64, flags: u64) -> Map {
    let all = Extent {
        offset: 0,
        length: size,
        flags,
    };
    listed(vec![all], 1)
}

pub fn image(bytes: Vec<u8>) -> Content {
    Box::new(move |offset, into| {
        into.copy_from_slice(&bytes[offset as usize..][..into.len()]);
    })
}

impl Export for Shaped {
    fn size(&self) -> u64 {
        self.size
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn granularity(&self) -> Granularity {
        Granularity {
            minimum: self.minimum,
            preferred: self.minimum.max(4096),
        }
    }

    fn contexts(&self) -> Vec<ContextName> {
        let dirty = ContextName::dirty_bitmap("m").unwrap();
        match self.allocation {
            Some(_) => vec![dirty, ContextName::allocation()],
            None => vec![dirty],
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        (self.content)(offset, into);
        Ok(())
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
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        match &self.allocation {
            Some(map) if *context == ContextName::allocation() => {
                self.allocation_asked.fetch_add(1, Ordering::SeqCst);
                Ok(map(offset, length, limit))
            }
            _ => Ok((self.dirty)(offset, length, limit)),
        }
    }
}

/// A server on a socket of its own; the server goes first.
pub struct Served {
    _server: Server,
    pub uri: NbdUri,
    _folder: TempDir,
}

pub fn serve(export: Shaped) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let exports = ExportSet::new();
    exports.add("d", Arc::new(export)).unwrap();
    let address = ListenAddress::Unix(socket.clone());
    let server = Server::bind(&address, exports, ServerOptions::default()).unwrap();
    Served {
        _server: server,
        uri: NbdUri::unix(socket, "d").unwrap(),
        _folder: folder,
    }
}
