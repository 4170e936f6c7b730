//! Our client against servers that break the protocol: each illegal message ends the
//! connection with its own reason.

use std::time::Duration;

use lifeboat_nbd::{
    Client, ClientOptions, ConnectError, ConnectionLost, ProtocolError as P, RequestError,
    RequestKind, list_exports,
};

use super::memory::{options, with_contexts};
use super::script::{
    DATA, DONE, ERROR, ERROR_OFFSET, Framing, HOLE, MORE, NONE, Peer, Request, STATUS, STATUS_EXT,
    server,
};
use crate::bytes;

const SIZE: u64 = 1 << 20;

/// What the client makes of `reply` to a read of 4096 bytes at 8192.
fn read(framing: Framing, reply: impl FnOnce(&mut Peer, Request) + Send + 'static) -> P {
    let scripted = server(move |mut peer| {
        peer.negotiate(framing, SIZE, &[]);
        let request = peer.request();
        reply(&mut peer, request);
        peer.is_closed();
    });
    let client = Client::connect(&scripted.uri, &options()).unwrap();
    let outcome = reason(client.read(8192, &mut [0; 4096]));
    let again = client.read(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(again, RequestError::Lost { .. }), "{again}");
    drop(client);
    scripted.join();
    outcome
}

/// What the client makes of `reply` to a block status of two contexts, 1 and 2, for
/// 4096 bytes at 8192.
fn status(framing: Framing, reply: impl FnOnce(&mut Peer, Request) + Send + 'static) -> P {
    let scripted = server(move |mut peer| {
        peer.negotiate(framing, SIZE, &[(1, "base:allocation"), (2, "x:y")]);
        let request = peer.request();
        reply(&mut peer, request);
        peer.is_closed();
    });
    let options = with_contexts(&["base:allocation", "x:y"]);
    let client = Client::connect(&scripted.uri, &options).unwrap();
    let context = "base:allocation".parse().unwrap();
    let mut extents = client.extents(&context, 8192, 4096).unwrap();
    let outcome = reason(extents.next().unwrap().map(|_| ()));
    assert!(extents.next().is_none());
    drop(client);
    scripted.join();
    outcome
}

fn reason(outcome: Result<(), RequestError>) -> P {
    let RequestError::Lost { source, .. } = outcome.unwrap_err() else {
        panic!("the connection should be lost")
    };
    match &*source {
        ConnectionLost::Protocol { source } => source.clone(),
        other => panic!("lost for another reason: {other:?}"),
    }
}

/// What the client makes of a negotiation.
fn negotiation(script: impl FnOnce(&mut Peer) + Send + 'static) -> P {
    let scripted = server(move |mut peer| {
        script(&mut peer);
        peer.is_closed();
    });
    let options = with_contexts(&["base:allocation"]);
    let outcome = Client::connect(&scripted.uri, &options);
    scripted.join();
    match outcome.map(drop).unwrap_err() {
        ConnectError::Illegal { source } => source,
        other => panic!("refused for another reason: {other:?}"),
    }
}

const CHUNKED: [Framing; 2] = [Framing::Structured, Framing::Extended];

#[test]
fn an_unknown_magic_is_refused() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let got = read(framing, |peer, _| peer.send(&[0xde; 64]));
        assert_eq!(got, P::UnknownMagic { magic: 0xdede_dede });
    }
    // Headers of another framing than the agreed one.
    let got = read(Framing::Extended, |peer, request| peer.simple(&request, 0));
    assert_eq!(got, P::UnknownMagic { magic: 0x6744_6698 });
    let got = read(Framing::Simple, |peer, request| {
        peer.framing = Framing::Structured;
        peer.chunk(&request, DONE, NONE, &[]);
    });
    assert_eq!(got, P::UnknownMagic { magic: 0x668e_33ef });
}

#[test]
fn a_reply_to_nothing_is_refused() {
    for framing in CHUNKED {
        let got = read(framing, |peer, request| {
            let cookie = request.cookie ^ 0xff00;
            peer.chunk(&Request { cookie, ..request }, DONE, NONE, &[]);
        });
        assert!(matches!(got, P::UnknownCookie { .. }), "{got}");
    }
    let got = read(Framing::Simple, |peer, request| {
        let cookie = request.cookie ^ 1 << 63;
        peer.simple(&Request { cookie, ..request }, 5);
    });
    assert!(matches!(got, P::UnknownCookie { .. }), "{got}");
}

#[test]
fn a_second_reply_is_refused() {
    for framing in CHUNKED {
        let scripted = server(move |mut peer| {
            peer.negotiate(framing, SIZE, &[]);
            let request = peer.request();
            peer.chunk(&request, DONE, NONE, &[]);
            let next = peer.request();
            peer.chunk(&request, DONE, NONE, &[]);
            assert!(next.cookie != request.cookie);
            peer.is_closed();
        });
        let client = Client::connect(&scripted.uri, &options()).unwrap();
        client.write_zeroes(0, 512).unwrap();
        let got = reason(client.write_zeroes(0, 512));
        assert!(matches!(got, P::UnknownCookie { .. }), "{got}");
        drop(client);
        scripted.join();
    }
}

#[test]
fn data_outside_the_request_is_refused() {
    for framing in CHUNKED {
        for (offset, length) in [
            (8191, 10),
            (12_280, 10),
            (0, 512),
            (u64::MAX, 512),
            (8192, 4097),
        ] {
            let got = read(framing, move |peer, request| {
                peer.chunk_header(&request, DONE, DATA, 8 + length);
                peer.send(&bytes![offset]);
            });
            assert_eq!(got, P::OutsideRequest { offset, length });
        }
        for (offset, length) in [(8191u64, 10), (8192, 0), (8192, u32::MAX)] {
            let got = read(framing, move |peer, request| {
                peer.chunk(&request, DONE, HOLE, &bytes![offset, length]);
            });
            let length = u64::from(length);
            assert_eq!(got, P::OutsideRequest { offset, length });
        }
    }
}

#[test]
fn overlapping_chunks_are_refused() {
    for framing in CHUNKED {
        let got = read(framing, |peer, request| {
            peer.data(&request, MORE, 8192, &[0; 1000]);
            peer.data(&request, MORE, 9191, &[0; 1000]);
        });
        assert_eq!(got, P::Overlap { offset: 9191 });
        let got = read(framing, |peer, request| {
            peer.data(&request, MORE, 9000, &[0; 1000]);
            peer.chunk(&request, DONE, HOLE, &bytes![8192u64, 4096u32]);
        });
        assert_eq!(got, P::Overlap { offset: 8192 });
    }
}

#[test]
fn a_reply_with_parts_missing_is_refused() {
    for framing in CHUNKED {
        let got = read(framing, |peer, request| {
            peer.data(&request, MORE, 8192, &[0; 1000]);
            peer.data(&request, DONE, 9193, &[0; 3095]);
        });
        assert_eq!(got, P::MissingData { offset: 9192 });
        let got = read(framing, |peer, request| {
            peer.chunk(&request, DONE, NONE, &[]);
        });
        assert_eq!(got, P::MissingData { offset: 8192 });
    }
}

#[test]
fn a_chunk_of_impossible_length_is_refused_without_reading_it() {
    let length = u64::from(u32::MAX);
    for framing in CHUNKED {
        for (kind, length) in [
            (NONE, 1),
            (NONE, length),
            (DATA, 0),
            (DATA, 8),
            (HOLE, 11),
            (HOLE, 13),
            (ERROR, length),
            (ERROR_OFFSET, 1 << 20),
        ] {
            let got = read(framing, move |peer, request| {
                peer.chunk_header(&request, DONE, kind, length);
            });
            assert_eq!(got, P::ChunkLength { kind, length });
        }
    }
    let got = read(Framing::Extended, |peer, request| {
        peer.chunk_header(&request, DONE, DATA, u64::MAX);
        peer.send(&bytes![8192u64]);
    });
    let length = u64::MAX - 8;
    assert_eq!(
        got,
        P::OutsideRequest {
            offset: 8192,
            length
        }
    );
}

#[test]
fn a_chunk_that_does_not_fit_its_request_is_refused() {
    for framing in CHUNKED {
        for kind in [3, 4, STATUS, STATUS_EXT, 0x7fff] {
            let got = read(framing, move |peer, request| {
                peer.chunk(&request, DONE, kind, &[0; 24]);
            });
            let request = RequestKind::Read;
            assert_eq!(got, P::UnexpectedChunk { kind, request });
        }
        let got = status(framing, |peer, request| {
            peer.data(&request, DONE, 8192, &[0; 10]);
        });
        let request = RequestKind::BlockStatus;
        assert_eq!(
            got,
            P::UnexpectedChunk {
                kind: DATA,
                request
            }
        );
    }
    // Each framing has its own form of extents.
    let got = status(Framing::Extended, |peer, request| {
        peer.chunk(&request, DONE, STATUS, &bytes![1u32, 4096u32, 0u32]);
    });
    assert!(
        matches!(got, P::UnexpectedChunk { kind: STATUS, .. }),
        "{got}"
    );
}

#[test]
fn an_empty_chunk_in_the_middle_is_refused() {
    for framing in CHUNKED {
        let got = read(framing, |peer, request| {
            peer.chunk(&request, MORE, NONE, &[]);
        });
        assert_eq!(got, P::EmptyChunk);
    }
}

#[test]
fn a_simple_reply_to_a_read_is_refused_once_chunks_are_agreed() {
    for error in [0, 5] {
        let got = read(Framing::Structured, move |peer, request| {
            peer.simple(&request, error);
        });
        let request = RequestKind::Read;
        assert_eq!(got, P::SimpleReply { request });
    }
    let got = read(Framing::Structured, |peer, request| {
        peer.data(&request, MORE, 8192, &[0; 10]);
        peer.simple(&request, 0);
    });
    assert!(matches!(got, P::UnknownCookie { .. }), "{got}");
    let got = status(Framing::Structured, |peer, request| {
        peer.simple(&request, 0);
    });
    let request = RequestKind::BlockStatus;
    assert_eq!(got, P::SimpleReply { request });
}

#[test]
fn an_extended_reply_with_another_offset_is_refused() {
    let got = read(Framing::Extended, |peer, request| {
        let offset = 8193;
        peer.chunk(&Request { offset, ..request }, DONE, NONE, &[]);
    });
    let (asked, answered) = (8192, 8193);
    assert_eq!(got, P::WrongOffset { asked, answered });
}

#[test]
fn a_malformed_error_is_refused() {
    for framing in CHUNKED {
        for payload in [bytes![0u32, 0u16], bytes![5u32], bytes![5u32, 4u16, 0u16]] {
            let got = read(framing, move |peer, request| {
                peer.chunk(&request, DONE, ERROR, &payload);
            });
            assert_eq!(got, P::MalformedError);
        }
        let got = read(framing, |peer, request| {
            peer.chunk(&request, DONE, ERROR_OFFSET, &bytes![5u32, 0u16, 1u64]);
        });
        assert_eq!(
            got,
            P::OutsideRequest {
                offset: 1,
                length: 1
            }
        );
    }
}

#[test]
fn extents_without_length_make_no_progress_and_are_refused() {
    for framing in CHUNKED {
        let got = status(framing, |peer, request| {
            peer.status(&request, DONE, 1, &[(0, 0)]);
        });
        assert_eq!(got, P::EmptyExtent);
        let got = status(framing, |peer, request| {
            peer.status(&request, DONE, 1, &[(10, 0), (0, 1)]);
        });
        assert_eq!(got, P::EmptyExtent);
    }
    let no_extents = status(Framing::Structured, |peer, request| {
        peer.chunk(&request, DONE, STATUS, &bytes![1u32]);
    });
    let (kind, length) = (STATUS, 4);
    assert_eq!(no_extents, P::ChunkLength { kind, length });
}

#[test]
fn extents_after_the_end_of_the_request_are_refused() {
    for framing in CHUNKED {
        let got = status(framing, |peer, request| {
            peer.status(&request, DONE, 1, &[(4096, 0), (1, 1)]);
        });
        assert_eq!(got, P::ExtentBeyondRequest { offset: 12_288 });
    }
}

#[test]
fn more_extents_than_the_limit_are_refused_without_reading_them() {
    let count = (1 << 20) + 1;
    let got = status(Framing::Structured, move |peer, request| {
        peer.chunk_header(&request, DONE, STATUS, 4 + 8 * count);
    });
    assert_eq!(got, P::TooManyExtents { count });
    let got = status(Framing::Extended, move |peer, request| {
        peer.chunk_header(&request, DONE, STATUS_EXT, 8 + 16 * count);
    });
    assert_eq!(got, P::TooManyExtents { count });
    let got = status(Framing::Extended, |peer, request| {
        peer.chunk_header(&request, DONE, STATUS_EXT, u64::MAX);
    });
    assert!(
        matches!(
            got,
            P::ChunkLength {
                length: u64::MAX,
                ..
            }
        ),
        "{got}"
    );
    let got = status(Framing::Extended, |peer, request| {
        peer.chunk(&request, DONE, STATUS_EXT, &bytes![1u32, 7u32, 9u64, 0u64]);
    });
    let (announced, present) = (7, 1);
    assert_eq!(got, P::ExtentCount { announced, present });
}

#[test]
fn contexts_that_are_unknown_repeated_or_missing_are_refused() {
    for framing in CHUNKED {
        let got = status(framing, |peer, request| {
            peer.status(&request, MORE, 3, &[(4096, 0)]);
        });
        assert_eq!(got, P::UnexpectedContext { id: 3 });
        let got = status(framing, |peer, request| {
            peer.status(&request, MORE, 1, &[(4096, 0)]);
            peer.status(&request, MORE, 1, &[(4096, 0)]);
        });
        assert_eq!(got, P::UnexpectedContext { id: 1 });
        let got = status(framing, |peer, request| {
            peer.status(&request, DONE, 1, &[(4096, 0)]);
        });
        assert_eq!(got, P::MissingContext { id: 2 });
    }
}

#[test]
fn what_is_no_nbd_server_is_recognized() {
    assert_eq!(
        negotiation(|peer| peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")),
        P::NoGreeting
    );
    assert_eq!(
        negotiation(|peer| peer.send(b"NBDMAGICnonsense")),
        P::NoGreeting
    );
    let oldstyle = bytes![0x4e42_444d_4147_4943_u64, 0x0000_4202_8186_1253_u64];
    assert_eq!(negotiation(move |peer| peer.send(&oldstyle)), P::Oldstyle);
    assert_eq!(
        negotiation(|peer| peer.send(b"NBDMAGICIHAVEOPT\0\0")),
        P::NotFixedNewstyle
    );
}

#[test]
fn illegal_answers_in_the_negotiation_are_refused() {
    /// Greets, reads the first option (extended headers) and answers with this.
    fn first(answer: Vec<u8>) -> P {
        negotiation(move |peer| {
            peer.greet();
            assert_eq!(peer.option().0, 11);
            peer.send(&answer);
        })
    }
    let magic = 0x0003_e889_0455_65a9_u64;
    assert_eq!(first(vec![1; 20]), P::OptionReplyMagic);
    let got = first(bytes![magic, 8u32, 1u32, 0u32]);
    assert_eq!(
        got,
        P::WrongOption {
            asked: 11,
            answered: 8
        }
    );
    let got = first(bytes![magic, 11u32, 1u32, u32::MAX]);
    let (option, length) = (11, u32::MAX);
    assert_eq!(got, P::OversizeOptionReply { option, length });
    let got = first(bytes![magic, 11u32, 2u32, 0u32]);
    assert_eq!(got, P::UnexpectedOptionReply { option, kind: 2 });
}

#[test]
fn illegal_contexts_and_facts_in_the_negotiation_are_refused() {
    /// Agrees to structured replies, then answers option 10 or 7 with these.
    fn late(option: u32, answers: Vec<(u32, Vec<u8>)>) -> P {
        negotiation(move |peer| {
            peer.greet();
            loop {
                let (asked, _) = peer.option();
                if asked == option {
                    break;
                }
                let kind = if asked == 11 { 0x8000_0001 } else { 1 };
                peer.answer(asked, kind, &[]);
            }
            for (kind, data) in &answers {
                peer.answer(option, *kind, data);
            }
        })
    }
    let named = |id: u32, name: &str| {
        let mut data = bytes![id];
        data.extend_from_slice(name.as_bytes());
        (4, data)
    };
    let got = late(10, vec![named(1, "x:unasked")]);
    assert!(matches!(got, P::UnaskedContext { .. }), "{got}");
    let twice = vec![named(1, "base:allocation"), named(2, "base:allocation")];
    let got = late(10, twice);
    assert!(matches!(got, P::UnaskedContext { .. }), "{got}");
    let got = late(10, vec![(4, vec![0; 3])]);
    assert_eq!(
        got,
        P::MalformedOptionReply {
            option: 10,
            kind: 4
        }
    );
    let got = late(10, vec![(4, bytes![1u32, 0xffff_ffff_u32])]);
    assert_eq!(
        got,
        P::MalformedOptionReply {
            option: 10,
            kind: 4
        }
    );

    let got = late(7, vec![(1, vec![])]);
    assert_eq!(got, P::NoExportInfo);
    let size = 1u64 << 63;
    let got = late(7, vec![(3, bytes![0u16, size, 1u16]), (1, vec![])]);
    assert_eq!(got, P::ImpossibleSize { size });
    let got = late(7, vec![(3, bytes![0u16, 5u32])]);
    assert_eq!(got, P::MalformedOptionReply { option: 7, kind: 3 });
    for (minimum, preferred, maximum) in [
        (0u32, 512u32, 512u32),
        (3, 512, 512),
        (1 << 17, 1 << 17, 1 << 20),
        (4096, 512, 4096),
        (512, 1000, 4096),
        (512, 512, 100),
    ] {
        let got = late(7, vec![(3, bytes![3u16, minimum, preferred, maximum])]);
        let sizes = P::ImpossibleBlockSizes {
            minimum,
            preferred,
            maximum,
        };
        assert_eq!(got, sizes);
    }
}

#[test]
fn an_endless_list_is_cut() {
    let scripted = server(|mut peer| {
        peer.greet();
        assert_eq!(peer.option().0, 3);
        let entry = bytes![0x0003_e889_0455_65a9_u64, 3u32, 2u32, 5u32, 1u32, b'x'];
        let many = entry.repeat(1000);
        use std::io::Write;
        while peer.stream.write_all(&many).is_ok() {}
    });
    let error = list_exports(&scripted.uri, &options()).unwrap_err();
    let ConnectError::Illegal { source } = error else {
        panic!("{error}")
    };
    assert_eq!(source, P::TooManyOptionReplies { option: 3 });
    scripted.join();
}

#[test]
fn a_server_that_dribbles_meets_the_deadline() {
    let impatient = ClientOptions {
        deadline: Duration::from_millis(300),
        ..ClientOptions::default()
    };
    // In the negotiation, byte by byte.
    let scripted = server(|mut peer| {
        use std::io::Write;
        peer.greet();
        peer.option();
        let answer = bytes![0x0003_e889_0455_65a9_u64, 11u32];
        for byte in answer.iter().chain(std::iter::repeat(&0)) {
            if peer.stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let error = Client::connect(&scripted.uri, &impatient).unwrap_err();
    assert!(matches!(error, ConnectError::Negotiate { .. }), "{error}");
    scripted.join();

    // In a reply that never ends.
    let scripted = server(|mut peer| {
        use std::io::Write;
        peer.negotiate(Framing::Structured, SIZE, &[]);
        let request = peer.request();
        peer.chunk_header(&request, DONE, DATA, 8 + 4096);
        peer.send(&bytes![8192u64]);
        while peer.stream.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let client = Client::connect(&scripted.uri, &impatient).unwrap();
    let error = client.read(8192, &mut [0; 4096]).unwrap_err();
    let RequestError::Lost { source, .. } = error else {
        panic!("{error}")
    };
    assert!(
        matches!(*source, ConnectionLost::Deadline { .. }),
        "{source}"
    );
    drop(client);
    scripted.join();
}

#[test]
fn a_server_that_takes_nothing_meets_the_deadline_of_a_write() {
    let scripted = server(|mut peer| {
        peer.negotiate(Framing::Structured, 64 << 20, &[]);
        peer.request();
        // The payload is left where it is until the client has given up.
        let mut byte = [0];
        let peeked = rustix::net::recv(&peer.stream, &mut byte, rustix::net::RecvFlags::PEEK);
        assert!(peeked.is_ok());
        let mut polled = [rustix::event::PollFd::new(
            &peer.stream,
            rustix::event::PollFlags::RDHUP,
        )];
        rustix::event::poll(&mut polled, None).unwrap();
    });
    let impatient = ClientOptions {
        deadline: Duration::from_millis(300),
        ..ClientOptions::default()
    };
    let client = Client::connect(&scripted.uri, &impatient).unwrap();
    let error = client.write(0, &vec![0; 32 << 20]).unwrap_err();
    let RequestError::Lost { source, .. } = error else {
        panic!("{error}")
    };
    assert!(
        matches!(*source, ConnectionLost::Deadline { .. }),
        "{source}"
    );
    drop(client);
    scripted.join();
}
