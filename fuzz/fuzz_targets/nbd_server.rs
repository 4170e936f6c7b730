//! Whatever a client asks, the server answers or hangs up: it never panics, and never
//! asks an export for anything outside it.

#![no_main]

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use lifeboat_nbd::{
    Access, ContextName, Deadline, EndReason, Export, ExportSet, Extent, Granularity, Holes,
    Server, ServerOptions, Wire, ZERO,
};

const SIZE: u64 = 100_000;

#[derive(Debug, Arbitrary)]
enum Input {
    /// Everything a client says.
    Bytes(Vec<u8>),
    /// After a sound greeting.
    Options { options: Vec<(u8, Vec<u8>)> },
    Requests {
        framing: Framing,
        select: bool,
        requests: Vec<Request>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

#[derive(Debug, Arbitrary)]
struct Request {
    flags: u8,
    command: u8,
    offset: u32,
    length: u32,
    is_wild: bool,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct Script(Mutex<Vec<u8>>);

impl Wire for Script {
    fn receive(&self, into: &mut [u8], _deadline: Deadline) -> io::Result<usize> {
        let mut bytes = self.0.lock().expect("lock the script");
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        bytes.drain(..count);
        Ok(count)
    }

    fn send(&self, parts: &[IoSlice<'_>], _deadline: Deadline) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn finish(&self, _deadline: Deadline) -> io::Result<()> {
        Ok(())
    }

    fn stop_receiving(&self) {
        self.0.lock().expect("lock the script").clear();
    }

    fn close(&self) {
        self.stop_receiving();
    }
}

/// Zero in every other 4 KiB.
struct Striped;

fn check(offset: u64, length: u64) -> io::Result<()> {
    let end = offset.checked_add(length).expect("a range that overflows");
    assert!(end <= SIZE, "{length} bytes at {offset}");
    Ok(())
}

impl Export for Striped {
    fn size(&self) -> u64 {
        SIZE
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        vec![ContextName::allocation(), "x:y".parse().expect("a context")]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        check(offset, into.len() as u64)?;
        into.fill(1);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check(offset, data.len() as u64)
    }

    fn write_zeroes(&self, offset: u64, length: u64, _holes: Holes) -> io::Result<()> {
        check(offset, length)
    }

    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        check(offset, length)
    }

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
        check(offset, length)?;
        assert!(length > 0 && limit > 0);
        let mut extents = Vec::new();
        let mut next = offset;
        while next < offset + length && extents.len() < limit {
            // The last one goes beyond the export: the server clips it.
            let end = (next / 4096 + 1) * 4096;
            extents.push(Extent {
                offset: next,
                length: end - next,
                flags: next / 4096 % 2 * ZERO,
            });
            next = end;
        }
        Ok(extents)
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

impl Request {
    fn bytes(&self, framing: Framing) -> Vec<u8> {
        let command = u16::from(self.command % 9);
        let extended = framing == Framing::Extended;
        let flags = u16::from(self.flags);
        let carries = command == 1 || (extended && flags & 32 != 0);
        let (offset, length) = if self.is_wild {
            (u64::from(self.offset) << 32, u64::from(self.length))
        } else {
            (
                u64::from(self.offset) % (SIZE + 2),
                u64::from(self.length) % (SIZE + 2),
            )
        };
        let length = if carries {
            self.payload.len() as u64
        } else {
            length
        };
        let mut bytes = if extended {
            vec![0x21, 0xe4, 0x1c, 0x71]
        } else {
            vec![0x25, 0x60, 0x95, 0x13]
        };
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend((length as u32).to_be_bytes());
        }
        if carries {
            bytes.extend(&self.payload);
        }
        bytes
    }
}

fn script(input: Input) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    match input {
        Input::Bytes(bytes) => return bytes,
        Input::Options { options } => {
            for (number, data) in options {
                bytes.extend(option(u32::from(number % 13), &data));
            }
        }
        Input::Requests {
            framing,
            select,
            requests,
        } => {
            match framing {
                Framing::Simple => {}
                Framing::Structured => bytes.extend(option(8, &[])),
                Framing::Extended => bytes.extend(option(11, &[])),
            }
            if select {
                let query = b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x03x:y";
                bytes.extend(option(10, query));
            }
            bytes.extend(option(7, b"\0\0\0\x04disk\0\0"));
            for request in requests {
                bytes.extend(request.bytes(framing));
            }
        }
    }
    bytes
}

fuzz_target!(|input: Input| {
    let exports = ExportSet::new();
    exports
        .add("disk", Arc::new(Striped))
        .expect("add the export");
    let wire: Arc<dyn Wire> = Arc::new(Script(Mutex::new(script(input))));
    let options = ServerOptions {
        workers: 2,
        ..ServerOptions::default()
    };
    let end = Server::serve_wire(&wire, exports, options);
    assert!(!matches!(end.reason, EndReason::Panicked), "{end:?}");
});
