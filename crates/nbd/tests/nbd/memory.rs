//! An export in memory that knows which blocks are zero and which were written.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use lifeboat_nbd::{
    Access, Client, ClientOptions, ConnectionEnd, ContextName, DIRTY, Export, ExportSet, Extent,
    Granularity, HOLE, Holes, ListenAddress, NbdUri, Server, ServerOptions, ZERO,
};
use tempfile::TempDir;

/// The unit of both maps, in bytes.
pub const BLOCK: usize = 4096;

/// What was done to an export, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Write,
    WriteZeroes(Holes),
    Trim,
    Flush,
}

pub struct Memory {
    bytes: RwLock<Vec<u8>>,
    dirty: Mutex<BTreeSet<u64>>,
    pub calls: Mutex<Vec<Call>>,
    access: Access,
    granularity: Granularity,
}

impl Memory {
    pub fn writable(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
            dirty: Mutex::default(),
            calls: Mutex::default(),
            access: Access::ReadWrite,
            granularity: Granularity::default(),
        }
    }

    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self {
            access: Access::ReadOnly,
            ..Self::writable(bytes)
        }
    }

    pub fn with_minimum(self, minimum: u32) -> Self {
        Self {
            granularity: Granularity {
                minimum,
                preferred: 4096,
            },
            ..self
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.read().unwrap().clone()
    }

    fn change(&self, call: Call, offset: u64, length: u64, with: impl Fn(&mut [u8])) {
        let start = usize::try_from(offset).unwrap();
        let end = start + usize::try_from(length).unwrap();
        with(&mut self.bytes.write().unwrap()[start..end]);
        let mut dirty = self.dirty.lock().unwrap();
        dirty.extend((start / BLOCK..end.div_ceil(BLOCK)).map(|block| block as u64));
        self.calls.lock().unwrap().push(call);
    }

    fn flags(&self, context: &ContextName, block: u64) -> u64 {
        if context.as_str() != "base:allocation" {
            let dirty = self.dirty.lock().unwrap();
            return if dirty.contains(&block) { DIRTY } else { 0 };
        }
        let bytes = self.bytes.read().unwrap();
        let start = usize::try_from(block).unwrap() * BLOCK;
        let end = bytes.len().min(start + BLOCK);
        if bytes[start..end].iter().all(|byte| *byte == 0) {
            HOLE | ZERO
        } else {
            0
        }
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.bytes.read().unwrap().len() as u64
    }

    fn access(&self) -> Access {
        self.access
    }

    fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn contexts(&self) -> Vec<ContextName> {
        vec![
            ContextName::allocation(),
            ContextName::dirty_bitmap("cp0").unwrap(),
        ]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        into.copy_from_slice(&self.bytes.read().unwrap()[start..start + into.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Call::Write, offset, data.len() as u64, |bytes| {
            bytes.copy_from_slice(data);
        });
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, holes: Holes) -> io::Result<()> {
        self.change(Call::WriteZeroes(holes), offset, length, |bytes| {
            bytes.fill(0);
        });
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(Call::Trim, offset, length, |bytes| bytes.fill(0));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.calls.lock().unwrap().push(Call::Flush);
        Ok(())
    }

    fn extents(
        &self,
        context: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let (block, size, end) = (BLOCK as u64, self.size(), offset + length);
        let mut extents: Vec<Extent> = Vec::new();
        let mut next = offset;
        while next < end {
            let flags = self.flags(context, next / block);
            let stop = ((next / block + 1) * block).min(size);
            let full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.length += stop - next,
                _ if full => break,
                _ => extents.push(Extent {
                    offset: next,
                    length: stop - next,
                    flags,
                }),
            }
            next = stop;
        }
        Ok(extents)
    }
}

/// Bytes that differ everywhere, so that nothing misplaced looks right.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A pattern in which some runs of blocks are zero.
pub fn sparse(length: usize) -> Vec<u8> {
    let mut bytes = pattern(length);
    for (index, run) in bytes.chunks_mut(24 * BLOCK).enumerate() {
        if index % 2 == 1 {
            run.fill(0);
        }
    }
    bytes
}

/// A server on a unix socket of its own.
pub struct Served {
    pub server: Server,
    pub uri: NbdUri,
    pub ends: Arc<Mutex<Vec<ConnectionEnd>>>,
    pub changed: Arc<std::sync::Condvar>,
    pub folder: TempDir,
}

pub fn serve(export: Arc<dyn Export>) -> Served {
    serve_with(export, ServerOptions::default())
}

pub fn serve_with(export: Arc<dyn Export>, mut options: ServerOptions) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let exports = ExportSet::new();
    exports.add("disk", export).unwrap();
    let ends: Arc<Mutex<Vec<ConnectionEnd>>> = Arc::default();
    let changed = Arc::new(std::sync::Condvar::new());
    let (list, signal) = (Arc::clone(&ends), Arc::clone(&changed));
    options.observer = Some(Arc::new(move |end| {
        list.lock().unwrap().push(end);
        signal.notify_all();
    }));
    let server = Server::bind(&ListenAddress::Unix(socket.clone()), exports, options).unwrap();
    Served {
        server,
        uri: NbdUri::unix(socket, "disk").unwrap(),
        ends,
        changed,
        folder,
    }
}

impl Served {
    pub fn client(&self) -> Client {
        Client::connect(&self.uri, &options()).unwrap()
    }

    /// Waits for the end of the `count`th connection to end.
    pub fn end(&self, count: usize) -> ConnectionEnd {
        let (mut ends, timeout) = self
            .changed
            .wait_timeout_while(self.ends.lock().unwrap(), PATIENCE, |ends| {
                ends.len() < count
            })
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "only {} connections ended",
            ends.len()
        );
        ends.remove(count - 1)
    }
}

/// Long enough for a loaded machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn options() -> ClientOptions {
    ClientOptions {
        deadline: PATIENCE,
        ..ClientOptions::default()
    }
}

pub fn with_contexts(names: &[&str]) -> ClientOptions {
    ClientOptions {
        contexts: names.iter().map(|name| name.parse().unwrap()).collect(),
        ..options()
    }
}
