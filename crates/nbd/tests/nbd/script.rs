//! A peer that says exactly what a test wants, byte by byte. It shares no code with
//! the crate.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use lifeboat_nbd::NbdUri;
use tempfile::TempDir;

pub const NONE: u16 = 0;
pub const DATA: u16 = 1;
pub const HOLE: u16 = 2;
pub const STATUS: u16 = 5;
pub const STATUS_EXT: u16 = 6;
pub const ERROR: u16 = 0x8001;
pub const ERROR_OFFSET: u16 = 0x8002;
pub const DONE: u16 = 1;
pub const MORE: u16 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Simple,
    Structured,
    Extended,
}

#[derive(Debug, Clone, Copy)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u64,
}

pub struct Peer {
    pub stream: UnixStream,
    pub framing: Framing,
}

/// A server on a socket of its own that plays `script` for one client.
pub struct Scripted {
    pub uri: NbdUri,
    thread: Option<JoinHandle<()>>,
    _folder: TempDir,
}

pub fn server(script: impl FnOnce(Peer) + Send + 'static) -> Scripted {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        script(Peer {
            stream,
            framing: Framing::Simple,
        });
    });
    Scripted {
        uri: NbdUri::unix(path, "disk").unwrap(),
        thread: Some(thread),
        _folder: folder,
    }
}

impl Scripted {
    /// Waits for the script's end; what failed in it fails here.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Big-endian bytes of numbers, one after the other.
#[macro_export]
macro_rules! bytes {
    ($($number:expr),* $(,)?) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend_from_slice(&$number.to_be_bytes());)*
        bytes
    }};
}

impl Peer {
    pub fn connect(path: &Path) -> Self {
        Self {
            stream: UnixStream::connect(path).unwrap(),
            framing: Framing::Simple,
        }
    }

    /// Being cut in the middle is what many scripts provoke; what must arrive is
    /// checked by what the other side does next.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            let cut = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(cut.contains(&error.kind()), "{error}");
        }
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    /// Whether the other side has closed; bytes still to come are dropped.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = self.stream.read_to_end(&mut rest);
        true
    }

    pub fn greet(&mut self) {
        self.send(b"NBDMAGICIHAVEOPT");
        self.send(&3u16.to_be_bytes());
        assert_eq!(self.u32(), 3);
    }

    /// The number and data of the client's next option.
    pub fn option(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(self.take(8), b"IHAVEOPT");
        let option = self.u32();
        let length = self.u32();
        (option, self.take(length as usize))
    }

    pub fn answer(&mut self, option: u32, kind: u32, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&bytes![0x0003_e889_0455_65a9_u64, option, kind, length]);
        self.send(data);
    }

    /// Negotiates as a server of this framing with one export of `size` bytes.
    pub fn negotiate(&mut self, framing: Framing, size: u64, contexts: &[(u32, &str)]) {
        self.greet();
        self.framing = framing;
        loop {
            let (option, _) = self.option();
            match (option, framing) {
                (11, Framing::Extended) | (8, Framing::Structured) => self.answer(option, 1, &[]),
                (10, Framing::Structured | Framing::Extended) => {
                    for (id, name) in contexts {
                        let mut data = bytes![*id];
                        data.extend_from_slice(name.as_bytes());
                        self.answer(10, 4, &data);
                    }
                    self.answer(10, 1, &[]);
                }
                (7, _) => {
                    // Flush, FUA, trim, zeroes: a writable export.
                    self.answer(7, 3, &bytes![0u16, size, 0x6d_u16]);
                    self.answer(7, 1, &[]);
                    return;
                }
                _ => self.answer(option, 0x8000_0001, b"unknown"),
            }
        }
    }

    pub fn request(&mut self) -> Request {
        let magic = self.u32();
        let extended = self.framing == Framing::Extended;
        assert_eq!(magic, if extended { 0x21e4_1c71 } else { 0x2560_9513 });
        Request {
            flags: self.u16(),
            command: self.u16(),
            cookie: self.u64(),
            offset: self.u64(),
            length: if extended {
                self.u64()
            } else {
                u64::from(self.u32())
            },
        }
    }

    /// One chunk of a reply to `request`.
    pub fn chunk(&mut self, request: &Request, flags: u16, kind: u16, payload: &[u8]) {
        self.chunk_header(request, flags, kind, payload.len() as u64);
        self.send(payload);
    }

    pub fn chunk_header(&mut self, request: &Request, flags: u16, kind: u16, length: u64) {
        let Request { cookie, offset, .. } = *request;
        let header = match self.framing {
            Framing::Extended => bytes![0x6e8a_278c_u32, flags, kind, cookie, offset, length],
            _ => {
                let length = u32::try_from(length).unwrap();
                bytes![0x668e_33ef_u32, flags, kind, cookie, length]
            }
        };
        self.send(&header);
    }

    pub fn simple(&mut self, request: &Request, error: u32) {
        self.send(&bytes![0x6744_6698_u32, error, request.cookie]);
    }

    /// Sends `data` for `offset` as part of a read.
    pub fn data(&mut self, request: &Request, flags: u16, offset: u64, data: &[u8]) {
        let mut payload = bytes![offset];
        payload.extend_from_slice(data);
        self.chunk(request, flags, DATA, &payload);
    }

    /// Extents (length, flags) in the form of the framing.
    pub fn status(&mut self, request: &Request, flags: u16, id: u32, extents: &[(u64, u64)]) {
        let mut payload = bytes![id];
        if self.framing == Framing::Extended {
            payload.extend(bytes![u32::try_from(extents.len()).unwrap()]);
            for (length, flags) in extents {
                payload.extend(bytes![*length, *flags]);
            }
            self.chunk(request, flags, STATUS_EXT, &payload);
        } else {
            for (length, flags) in extents {
                let compact = |number: u64| u32::try_from(number).unwrap();
                payload.extend(bytes![compact(*length), compact(*flags)]);
            }
            self.chunk(request, flags, STATUS, &payload);
        }
    }
}
