//! Whatever a server answers, the client ends with pieces in order and within what was
//! asked, or with an error: it never panics, waits for ever or takes memory without bound.

#![no_main]

use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use lifeboat_nbd::{Client, ClientOptions, ContextName, Deadline, RequestError, Wire};

const SIZE: u64 = 1 << 20;
const REQUESTS: usize = 4;
const REQUEST: u64 = 4096;

#[derive(Debug, Arbitrary)]
enum Input {
    /// Everything a server says.
    Bytes(Vec<u8>),
    /// A sound negotiation, and then this.
    Replies {
        framing: Framing,
        ask: Ask,
        replies: Vec<Reply>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Framing {
    Simple,
    Structured,
    Extended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Ask {
    Read,
    Extents,
}

#[derive(Debug, Arbitrary)]
enum Reply {
    /// Part of the data of a request, as large as it says.
    Data {
        request: u8,
        start: u16,
        length: u16,
        done: bool,
    },
    Hole {
        request: u8,
        start: u16,
        length: u16,
        done: bool,
    },
    Extents {
        context: u8,
        list: Vec<(u16, u8)>,
        done: bool,
    },
    Chunk {
        request: u8,
        flags: u8,
        kind: u16,
        payload: Vec<u8>,
    },
    Simple {
        request: u8,
        error: u8,
    },
    Bytes(Vec<u8>),
}

/// Answers are ready before they are asked for, except that replies wait for the
/// requests that the test sends at once.
#[derive(Debug)]
struct Script {
    state: Mutex<State>,
    changed: Condvar,
    needed: usize,
}

#[derive(Debug)]
struct State {
    greeting: Vec<u8>,
    replies: Vec<u8>,
    requests: usize,
    closed: bool,
}

fn take(from: &mut Vec<u8>, into: &mut [u8]) -> usize {
    let count = from.len().min(into.len());
    into[..count].copy_from_slice(&from[..count]);
    from.drain(..count);
    count
}

impl Wire for Script {
    fn receive(&self, into: &mut [u8], _deadline: Deadline) -> io::Result<usize> {
        let mut state = self.state.lock().expect("lock the script");
        if !state.greeting.is_empty() {
            return Ok(take(&mut state.greeting, into));
        }
        while state.requests < self.needed && !state.closed {
            state = self.changed.wait(state).expect("lock the script");
        }
        Ok(take(&mut state.replies, into))
    }

    fn send(&self, parts: &[IoSlice<'_>], _deadline: Deadline) -> io::Result<usize> {
        let magics = [[0x25, 0x60, 0x95, 0x13], [0x21, 0xe4, 0x1c, 0x71]];
        let mut state = self.state.lock().expect("lock the script");
        if parts
            .first()
            .is_some_and(|part| magics.iter().any(|magic| part.starts_with(magic)))
        {
            state.requests += 1;
            self.changed.notify_all();
        }
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn finish(&self, _deadline: Deadline) -> io::Result<()> {
        Ok(())
    }

    fn stop_receiving(&self) {
        self.close();
    }

    fn close(&self) {
        self.state.lock().expect("lock the script").closed = true;
        self.changed.notify_all();
    }
}

fn answer(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn greeting(framing: Framing, ask: Ask) -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let refused = 0x8000_0001;
    bytes.extend(answer(
        11,
        if framing == Framing::Extended {
            1
        } else {
            refused
        },
        &[],
    ));
    if framing != Framing::Extended {
        bytes.extend(answer(
            8,
            if framing == Framing::Structured {
                1
            } else {
                refused
            },
            &[],
        ));
    }
    if ask == Ask::Extents {
        for (id, name) in [(1u32, "base:allocation"), (2, "x:y")] {
            bytes.extend(answer(
                10,
                4,
                &[&id.to_be_bytes(), name.as_bytes()].concat(),
            ));
        }
        bytes.extend(answer(10, 1, &[]));
    }
    let fact = [&[0, 0][..], &SIZE.to_be_bytes(), &[0, 0x6d]].concat();
    bytes.extend(answer(7, 3, &fact));
    bytes.extend(answer(7, 1, &[]));
    bytes
}

fn chunk(framing: Framing, request: u8, flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let number = u64::from(request) % (REQUESTS as u64 + 1);
    let mut bytes = if framing == Framing::Extended {
        vec![0x6e, 0x8a, 0x27, 0x8c]
    } else {
        vec![0x66, 0x8e, 0x33, 0xef]
    };
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    // Cookies count up from 1.
    bytes.extend((number + 1).to_be_bytes());
    if framing == Framing::Extended {
        bytes.extend((number * REQUEST).to_be_bytes());
        bytes.extend((payload.len() as u64).to_be_bytes());
    } else {
        bytes.extend((payload.len() as u32).to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

impl Reply {
    fn bytes(&self, framing: Framing) -> Vec<u8> {
        let place = |request: u8, start: u16| {
            u64::from(request) % (REQUESTS as u64 + 1) * REQUEST + u64::from(start) % (REQUEST + 8)
        };
        match self {
            Self::Data {
                request,
                start,
                length,
                done,
            } => {
                let mut payload = place(*request, *start).to_be_bytes().to_vec();
                payload.resize(8 + usize::from(*length) % 4200, 0xda);
                chunk(framing, *request, u16::from(*done), 1, &payload)
            }
            Self::Hole {
                request,
                start,
                length,
                done,
            } => {
                let mut payload = place(*request, *start).to_be_bytes().to_vec();
                payload.extend((u32::from(*length) % 4200).to_be_bytes());
                chunk(framing, *request, u16::from(*done), 2, &payload)
            }
            Self::Extents {
                context,
                list,
                done,
            } => {
                let mut payload = u32::from(*context % 4).to_be_bytes().to_vec();
                let wide = framing == Framing::Extended;
                if wide {
                    payload.extend((list.len() as u32).to_be_bytes());
                }
                for (length, flags) in list {
                    if wide {
                        payload.extend(u64::from(*length).to_be_bytes());
                        payload.extend(u64::from(*flags).to_be_bytes());
                    } else {
                        payload.extend(u32::from(*length).to_be_bytes());
                        payload.extend(u32::from(*flags).to_be_bytes());
                    }
                }
                let kind = if wide { 6 } else { 5 };
                chunk(framing, 0, u16::from(*done), kind, &payload)
            }
            Self::Chunk {
                request,
                flags,
                kind,
                payload,
            } => chunk(framing, *request, u16::from(*flags), *kind, payload),
            Self::Simple { request, error } => {
                let mut bytes = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, *error];
                bytes.extend((u64::from(*request) % 5 + 1).to_be_bytes());
                if *error == 0 && framing == Framing::Simple {
                    bytes.resize(bytes.len() + 4096, 0xda);
                }
                bytes
            }
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

fuzz_target!(|input: Input| {
    let (greeting, replies, ask) = match &input {
        Input::Bytes(bytes) => (bytes.clone(), Vec::new(), Ask::Extents),
        Input::Replies {
            framing,
            ask,
            replies,
        } => {
            let replies = replies
                .iter()
                .flat_map(|reply| reply.bytes(*framing))
                .collect();
            (greeting(*framing, *ask), replies, *ask)
        }
    };
    let script = Arc::new(Script {
        state: Mutex::new(State {
            greeting,
            replies,
            requests: 0,
            closed: false,
        }),
        changed: Condvar::new(),
        needed: match (&input, ask) {
            (Input::Bytes(_), _) => 0,
            (_, Ask::Read) => REQUESTS,
            (_, Ask::Extents) => 1,
        },
    });
    let contexts = match ask {
        Ask::Read => Vec::new(),
        Ask::Extents => vec![ContextName::allocation(), "x:y".parse().expect("a context")],
    };
    let options = ClientOptions {
        contexts,
        request_size: REQUEST as u32,
        deadline: Duration::from_secs(20),
        ..ClientOptions::default()
    };
    let Ok(client) = Client::over(script, "localhost", "disk", &options) else {
        return;
    };
    match ask {
        Ask::Read => read(&client),
        Ask::Extents => extents(&client),
    }
});

fn read(client: &Client) {
    let mut next = 0;
    let length = (REQUESTS as u64 * REQUEST).min(client.size());
    let outcome = client.read_ranges([(0, length)], REQUESTS, |offset, piece| {
        assert_eq!(offset, next, "pieces in order and without gaps");
        assert!(piece.length() > 0);
        next += piece.length();
        Ok::<(), RequestError>(())
    });
    assert!(next <= length);
    if outcome.is_ok() {
        assert_eq!(next, length, "nothing is missing");
    }
}

fn extents(client: &Client) {
    let length = REQUEST.min(client.size());
    let Ok(extents) = client.extents(&ContextName::allocation(), 0, length) else {
        return;
    };
    let mut next = 0;
    for extent in extents {
        let Ok(extent) = extent else { return };
        assert_eq!(extent.offset, next, "extents in order and without gaps");
        assert!(extent.length > 0 && extent.end() <= length);
        next = extent.end();
    }
    assert_eq!(next, length, "nothing is missing");
}
