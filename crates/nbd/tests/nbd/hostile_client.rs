//! Our server against clients that break the protocol or stall.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use lifeboat_nbd::{EndReason, Export, ServerOptions};

use super::memory::{BLOCK, Memory, Served, pattern, serve, serve_with, sparse};
use super::script::{DATA, ERROR, Framing, HOLE, NONE, Peer, STATUS, STATUS_EXT};
use crate::bytes;

const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const EINVAL: u32 = 22;

impl Served {
    fn peer(&self) -> Peer {
        Peer::connect(&self.folder.path().join("s"))
    }
}

impl Peer {
    fn greeted(mut self) -> Self {
        assert_eq!(self.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&3u32.to_be_bytes());
        self
    }

    fn ask(&mut self, option: u32, data: &[u8]) {
        self.send(b"IHAVEOPT");
        self.send(&bytes![option, u32::try_from(data.len()).unwrap()]);
        self.send(data);
    }

    fn answered(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        assert_eq!(self.u32(), option);
        let kind = self.u32();
        let length = self.u32();
        (kind, self.take(length as usize))
    }

    /// The last answer to an option.
    fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        self.ask(option, data);
        loop {
            let (kind, _) = self.answered(option);
            if kind == ACK || kind & 0x8000_0000 != 0 {
                return kind;
            }
        }
    }

    fn opened(self, framing: Framing) -> Self {
        let mut peer = self.greeted();
        peer.framing = framing;
        match framing {
            Framing::Simple => {}
            Framing::Structured => assert_eq!(peer.verdict(8, &[]), ACK),
            Framing::Extended => assert_eq!(peer.verdict(11, &[]), ACK),
        }
        assert_eq!(peer.verdict(7, &named("disk", &[0, 1, 0, 3])), ACK);
        peer
    }

    fn demand(&mut self, flags: u16, command: u16, offset: u64, length: u64) {
        let cookie = 0xc00c_1e00_u64;
        let message = match self.framing {
            Framing::Extended => {
                bytes![0x21e4_1c71_u32, flags, command, cookie, offset, length]
            }
            _ => {
                let length = u32::try_from(length).unwrap();
                bytes![0x2560_9513_u32, flags, command, cookie, offset, length]
            }
        };
        self.send(&message);
    }

    /// Type and payload of a reply in one chunk.
    fn reply(&mut self) -> (u16, Vec<u8>) {
        let magic = self.u32();
        let (_flags, kind) = (self.u16(), self.u16());
        assert_eq!(self.u64(), 0xc00c_1e00);
        let length = if self.framing == Framing::Extended {
            assert_eq!(magic, 0x6e8a_278c);
            let _offset = self.u64();
            self.u64()
        } else {
            assert_eq!(magic, 0x668e_33ef);
            u64::from(self.u32())
        };
        (kind, self.take(usize::try_from(length).unwrap()))
    }

    /// The error of a reply that must be one.
    fn errno(&mut self) -> u32 {
        let (kind, payload) = self.reply();
        assert_eq!(kind, ERROR);
        u32::from_be_bytes(payload[..4].try_into().unwrap())
    }
}

/// An export's name with its length, and what follows.
fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = bytes![u32::try_from(name.len()).unwrap()];
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(rest);
    data
}

fn disk() -> Served {
    serve(Arc::new(Memory::writable(pattern(1 << 20))))
}

/// The server serves others after whatever a client did to it.
fn still_serves(served: &Served) {
    served.client().read(0, &mut [0; 512]).unwrap();
}

#[test]
fn what_is_no_client_is_cut() {
    let served = disk();
    let mut peer = served.peer();
    peer.send(b"GET / HTTP/1.1\r\n\r\n");
    peer.is_closed();
    assert!(matches!(
        served.end(1).reason,
        EndReason::ClientFlags { .. }
    ));
    let mut peer = served.peer().greeted();
    peer.send(&[0x55; 16]);
    peer.is_closed();
    assert!(matches!(served.end(1).reason, EndReason::OptionMagic));
    still_serves(&served);
}

#[test]
fn an_oversize_option_is_cut_without_reading_it() {
    let served = disk();
    let mut peer = served.peer().greeted();
    peer.send(b"IHAVEOPT");
    peer.send(&bytes![7u32, u32::MAX]);
    peer.is_closed();
    let end = served.end(1);
    assert!(
        matches!(
            end.reason,
            EndReason::OversizeOption {
                option: 7,
                length: u32::MAX
            }
        ),
        "{:?}",
        end.reason
    );
}

#[test]
fn malformed_options_are_refused_and_the_negotiation_goes_on() {
    let served = disk();
    let mut peer = served.peer().greeted();
    for (option, data, verdict) in [
        (99, vec![1, 2, 3], UNSUP),
        (3, vec![0], INVALID),
        (8, vec![0], INVALID),
        (11, vec![0], INVALID),
        (7, vec![], INVALID),
        (7, vec![0xff; 10], INVALID),
        (7, named("disk", &[0xff, 0xff]), INVALID),
        (6, named("disk", &[0, 0, 0]), INVALID),
        (7, named("other", &[0, 0]), UNKNOWN),
        (5, vec![], 0x8000_0002),
        // Contexts need structured replies.
        (10, named("disk", &[0; 4]), INVALID),
        (8, vec![], ACK),
        (10, named("disk", &[0xff; 4]), INVALID),
        (
            10,
            named("disk", &bytes![1u32, 3u32, b'b', b'a', b'd']),
            INVALID,
        ),
        (9, named("other", &[0; 4]), UNKNOWN),
        (10, named("disk", &[0; 4]), ACK),
        (11, vec![], ACK),
        (8, vec![], 0x8000_000a),
        (7, named("disk", &[0, 0]), ACK),
    ] {
        assert_eq!(
            peer.verdict(option, &data),
            verdict,
            "option {option} {data:?}"
        );
    }
    peer.framing = Framing::Extended;
    peer.demand(0, 0, 0, 512);
    assert_eq!(peer.reply().0, DATA);
}

#[test]
fn a_missing_export_opened_by_name_is_cut() {
    let served = disk();
    let mut peer = served.peer().greeted();
    peer.ask(1, b"other");
    peer.is_closed();
    assert!(matches!(served.end(1).reason, EndReason::ExportName { .. }));
    let mut peer = served.peer().greeted();
    peer.ask(1, b"disk");
    assert_eq!(peer.u64(), 1 << 20);
    assert_eq!(peer.u16() & 1, 1);
    peer.demand(0, 0, 0, 16);
    assert_eq!(peer.u32(), 0x6744_6698);
    assert_eq!(peer.u32(), 0);
    peer.u64();
    assert_eq!(peer.take(16), pattern(16));
}

#[test]
fn zeroes_follow_for_a_client_that_wants_them() {
    let served = disk();
    let mut peer = served.peer();
    peer.take(18);
    peer.send(&1u32.to_be_bytes());
    peer.ask(1, b"disk");
    peer.take(10);
    assert_eq!(peer.take(124), [0; 124]);
}

#[test]
fn an_export_with_block_sizes_is_opened_only_by_who_asks_for_them() {
    let served = serve(Arc::new(Memory::writable(pattern(8192)).with_minimum(512)));
    let mut peer = served.peer().greeted();
    assert_eq!(peer.verdict(7, &named("disk", &[0, 0])), 0x8000_0008);
    assert_eq!(peer.verdict(8, &[]), ACK);
    assert_eq!(peer.verdict(7, &named("disk", &[0, 1, 0, 3])), ACK);
    peer.framing = Framing::Structured;
    peer.demand(0, 0, 1, 512);
    assert_eq!(peer.errno(), EINVAL);
    peer.demand(0, 0, 512, 100);
    assert_eq!(peer.errno(), EINVAL);
    peer.demand(0, 0, 512, 512);
    assert_eq!(peer.reply().0, DATA);
}

#[test]
fn impossible_requests_are_refused_and_the_connection_goes_on() {
    for framing in [Framing::Structured, Framing::Extended] {
        let memory = Arc::new(Memory::writable(pattern(1 << 20)));
        let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
        let mut peer = served.peer().opened(framing);
        let end = 1 << 20;
        for (flags, command, offset, length, errno) in [
            (0, 99, 0, 0, EINVAL),
            (0, 5, 0, 512, EINVAL),
            (0x8000, 0, 0, 512, EINVAL),
            (2, 0, 0, 512, EINVAL),
            (0, 0, end, 1, EINVAL),
            (0, 0, u64::MAX, 1, EINVAL),
            (0, 0, end - 10, 0xffff_ffff, EINVAL),
            (0, 4, end, 1, EINVAL),
            (0, 6, end - 1, 2, 28),
            (16, 6, 0, 2, EINVAL),
            // No context was selected.
            (0, 7, 0, 512, EINVAL),
        ] {
            peer.demand(flags, command, offset, length);
            assert_eq!(peer.errno(), errno, "{command} at {offset}, {length}");
        }
        // A write that does not fit is taken whole before it is refused.
        let flags = if framing == Framing::Extended { 32 } else { 0 };
        peer.demand(flags, 1, end - 10, 100);
        peer.send(&[1; 100]);
        assert_eq!(peer.errno(), 28);
        if framing == Framing::Extended {
            // QEMU does not announce the data of a write, and sends them.
            peer.demand(0, 1, end - 10, 100);
            peer.send(&[1; 100]);
            assert_eq!(peer.errno(), 28);
            peer.demand(32, 0, 0, 10);
            peer.send(&[1; 10]);
            assert_eq!(peer.errno(), EINVAL);
        }
        for (command, kind) in [(0, NONE), (6, NONE), (4, NONE), (3, NONE)] {
            peer.demand(0, command, 0, 0);
            assert_eq!(peer.reply().0, kind, "nothing at all is no error");
        }
        assert!(memory.bytes() == pattern(1 << 20));
    }
}

#[test]
fn a_choice_of_contexts_must_be_among_the_selected() {
    let served = disk();
    let mut peer = served.peer().greeted();
    assert_eq!(peer.verdict(11, &[]), ACK);
    let mut query = bytes![1u32];
    query.extend(named("base:allocation", &[]));
    assert_eq!(peer.verdict(10, &named("disk", &query)), ACK);
    assert_eq!(peer.verdict(7, &named("disk", &[0, 0])), ACK);
    peer.framing = Framing::Extended;
    for payload in [
        bytes![4096u64, 7u32],
        bytes![4096u64, 1u32],
        bytes![4096u64, 0u32, 0u32],
        bytes![4096u64, 0u16],
        bytes![4096u32],
        bytes![4096u64],
        bytes![u64::MAX, 0u32],
        bytes![0u64, 0u32],
    ] {
        peer.demand(32, 7, 0, payload.len() as u64);
        peer.send(&payload);
        assert_eq!(peer.errno(), EINVAL, "{payload:?}");
    }
    let payload = bytes![4096u64, 0u32];
    peer.demand(32, 7, 0, 12);
    peer.send(&payload);
    assert_eq!(peer.reply().0, STATUS_EXT);
}

/// A client of this framing that has selected `base:allocation`.
fn selecting(served: &Served, framing: Framing) -> Peer {
    let mut peer = served.peer().greeted();
    let option = if framing == Framing::Extended { 11 } else { 8 };
    assert_eq!(peer.verdict(option, &[]), ACK);
    let mut query = bytes![1u32];
    query.extend(named("base:allocation", &[]));
    assert_eq!(peer.verdict(10, &named("disk", &query)), ACK);
    assert_eq!(peer.verdict(7, &named("disk", &[0, 0])), ACK);
    peer.framing = framing;
    peer
}

#[test]
fn a_read_that_must_not_be_split_comes_in_one_chunk() {
    let bytes = sparse(1 << 20);
    for framing in [Framing::Structured, Framing::Extended] {
        let served = serve(Arc::new(Memory::read_only(bytes.clone())));
        let mut peer = selecting(&served, framing);
        peer.demand(4, 0, 0, 1 << 20);
        let (kind, payload) = peer.reply();
        assert_eq!(kind, DATA);
        assert!(payload[8..] == bytes);
        peer.demand(0, 0, 24 * BLOCK as u64, 24 * BLOCK as u64);
        assert_eq!(
            peer.reply().0,
            HOLE,
            "without the flag, zeroes are not sent"
        );
    }
}

#[test]
fn block_status_of_one_extent_stays_within_the_request() {
    let served = serve(Arc::new(Memory::read_only(sparse(1 << 20))));
    for (framing, kind, head) in [
        (Framing::Structured, STATUS, 4),
        (Framing::Extended, STATUS_EXT, 8),
    ] {
        let mut peer = selecting(&served, framing);
        for length in [512, (1 << 20) - 4096] {
            peer.demand(8, 7, 4096, length);
            let (answered, payload) = peer.reply();
            assert_eq!(answered, kind);
            let half = (payload.len() - head) / 2;
            let number = payload[head..head + half]
                .iter()
                .fold(0, |number, byte| number << 8 | u64::from(*byte));
            assert_eq!(number, length.min(23 * BLOCK as u64));
        }
    }
}

#[test]
fn a_request_without_its_magic_is_cut() {
    let served = disk();
    let mut peer = served.peer().opened(Framing::Structured);
    peer.send(&[0x77; 28]);
    peer.is_closed();
    assert!(matches!(served.end(1).reason, EndReason::RequestMagic));
    still_serves(&served);
}

#[test]
fn an_oversize_payload_is_cut_without_reading_it() {
    let served = disk();
    let mut peer = served.peer().opened(Framing::Extended);
    peer.demand(32, 1, 0, u64::MAX);
    peer.is_closed();
    let end = served.end(1);
    assert!(
        matches!(end.reason, EndReason::OversizePayload { length: u64::MAX }),
        "{:?}",
        end.reason
    );
    let mut peer = served.peer().opened(Framing::Structured);
    peer.demand(0, 1, 0, (32 << 20) + 1);
    peer.is_closed();
    assert!(matches!(
        served.end(1).reason,
        EndReason::OversizePayload { .. }
    ));
    still_serves(&served);
}

fn impatient() -> ServerOptions {
    ServerOptions {
        handshake_deadline: Duration::from_millis(200),
        transfer_deadline: Duration::from_millis(200),
        ..ServerOptions::default()
    }
}

#[test]
fn a_client_that_dribbles_in_the_negotiation_is_cut() {
    let served = serve_with(Arc::new(Memory::read_only(pattern(4096))), impatient());
    let mut peer = served.peer();
    peer.take(18);
    // An option so long that it cannot be complete before the deadline.
    let start = bytes![3u32, 0x4948_4156_454f_5054_u64, 3u32, 65_536u32];
    for byte in start.into_iter().chain(std::iter::repeat(0)) {
        if peer.stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let end = served.end(1);
    assert!(
        matches!(end.reason, EndReason::HandshakeDeadline),
        "{:?}",
        end.reason
    );
    let silent = served.peer();
    assert!(matches!(served.end(1).reason, EndReason::HandshakeDeadline));
    drop(silent);
}

#[test]
fn a_client_that_stalls_in_a_payload_is_cut() {
    let served = serve_with(Arc::new(Memory::writable(pattern(4096))), impatient());
    let mut peer = served.peer().opened(Framing::Structured);
    peer.demand(0, 1, 0, 4096);
    peer.send(&[0; 4095]);
    peer.is_closed();
    assert!(matches!(served.end(1).reason, EndReason::TransferDeadline));
}

#[test]
fn a_client_that_takes_no_replies_is_cut() {
    let served = serve_with(Arc::new(Memory::read_only(pattern(16 << 20))), impatient());
    let mut peer = served.peer().opened(Framing::Structured);
    peer.demand(0, 0, 0, 16 << 20);
    assert!(matches!(served.end(1).reason, EndReason::TransferDeadline));
}

#[test]
fn an_idle_client_is_cut_when_the_options_say_so() {
    let served = serve_with(
        Arc::new(Memory::read_only(pattern(4096))),
        ServerOptions {
            idle_deadline: Some(Duration::from_millis(100)),
            ..ServerOptions::default()
        },
    );
    let mut peer = served.peer().opened(Framing::Structured);
    peer.is_closed();
    assert!(matches!(served.end(1).reason, EndReason::Idle));
}
