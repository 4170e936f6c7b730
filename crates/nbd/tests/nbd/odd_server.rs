//! Our client against servers that keep to the protocol in unusual ways.

use lifeboat_nbd::{Client, ClientOptions, ConnectError, Errno, Extent, Piece, RequestError};

use super::memory::{options, pattern, with_contexts};
use super::script::{DONE, ERROR, ERROR_OFFSET, Framing, HOLE, MORE, NONE, server};
use crate::bytes;

const CHUNKED: [Framing; 2] = [Framing::Structured, Framing::Extended];

fn part(bytes: &[u8], offset: u64, length: u64) -> &[u8] {
    let start = usize::try_from(offset).unwrap();
    &bytes[start..start + usize::try_from(length).unwrap()]
}

#[test]
fn sixteen_requests_are_sent_before_any_reply_and_replies_come_backwards() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let bytes = pattern(32 * 4096);
        let copy = bytes.clone();
        let scripted = server(move |mut peer| {
            peer.negotiate(framing, 32 * 4096, &[]);
            for _ in 0..2 {
                let requests: Vec<_> = (0..16).map(|_| peer.request()).collect();
                for request in requests.iter().rev() {
                    let data = part(&copy, request.offset, request.length);
                    if framing == Framing::Simple {
                        peer.simple(request, 0);
                        peer.send(data);
                    } else {
                        peer.data(request, DONE, request.offset, data);
                    }
                }
            }
            assert_eq!(peer.request().command, 2, "a good-bye");
        });
        let client = Client::connect(
            &scripted.uri,
            &ClientOptions {
                request_size: 4096,
                ..options()
            },
        )
        .unwrap();
        let mut read = Vec::new();
        // The client refills one by one, so the second half needs all of the first.
        for half in [0, 16 * 4096] {
            client
                .read_ranges([(half, 16 * 4096)], 16, |offset, piece| {
                    assert_eq!(offset, read.len() as u64);
                    if let Piece::Data(data) = piece {
                        read.extend_from_slice(data);
                    }
                    Ok::<(), RequestError>(())
                })
                .unwrap();
        }
        assert!(read == bytes);
        drop(client);
        scripted.join();
    }
}

#[test]
fn chunks_may_be_interleaved_between_requests_and_in_any_order() {
    for framing in CHUNKED {
        let bytes = pattern(8192);
        let copy = bytes.clone();
        let scripted = server(move |mut peer| {
            peer.negotiate(framing, 8192, &[]);
            let (a, b) = (peer.request(), peer.request());
            peer.data(&b, MORE, 6000, &copy[6000..8192]);
            peer.data(&a, MORE, 100, &copy[100..2000]);
            peer.data(&b, MORE, 4096, &copy[4096..5000]);
            peer.data(&a, MORE, 0, &copy[..100]);
            peer.chunk(&b, MORE, HOLE, &bytes![5000u64, 1000u32]);
            peer.data(&a, MORE, 2000, &copy[2000..4096]);
            peer.chunk(&b, DONE, NONE, &[]);
            peer.chunk(&a, DONE, NONE, &[]);
            assert_eq!(peer.request().command, 2);
        });
        let client = Client::connect(
            &scripted.uri,
            &ClientOptions {
                request_size: 4096,
                ..options()
            },
        )
        .unwrap();
        let mut pieces = Vec::new();
        client
            .read_ranges([(0, 8192)], 2, |offset, piece| {
                let data = match piece {
                    Piece::Data(data) => Some(data.to_vec()),
                    Piece::Hole { .. } => None,
                };
                pieces.push((offset, piece.length(), data));
                Ok::<(), RequestError>(())
            })
            .unwrap();
        let expected = [
            (0, 4096, Some(bytes[..4096].to_vec())),
            (4096, 904, Some(bytes[4096..5000].to_vec())),
            (5000, 1000, None),
            (6000, 2192, Some(bytes[6000..].to_vec())),
        ];
        assert!(pieces == expected);
        drop(client);
        scripted.join();
    }
}

#[test]
fn a_failed_read_reports_the_first_error_and_the_connection_goes_on() {
    for framing in CHUNKED {
        let scripted = server(move |mut peer| {
            peer.negotiate(framing, 4096, &[]);
            let request = peer.request();
            peer.data(&request, MORE, 0, &[1; 100]);
            let mut error = bytes![5u32, 3u16];
            error.extend_from_slice(b"b\nd");
            error.extend(bytes![512u64]);
            peer.chunk(&request, MORE, ERROR_OFFSET, &error);
            peer.data(&request, MORE, 3000, &[1; 100]);
            peer.chunk(&request, MORE, ERROR, &bytes![28u32, 0u16]);
            // An error type from the future, with a tail of unknown meaning.
            peer.chunk(&request, DONE, 0x8fff, &bytes![1u32, 0u16, 99u64]);
            let request = peer.request();
            peer.data(&request, DONE, 0, &[7; 4096]);
            assert_eq!(peer.request().command, 2);
        });
        let client = Client::connect(&scripted.uri, &options()).unwrap();
        let mut buffer = [0; 4096];
        let error = client.read(0, &mut buffer).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Io));
        assert!(error.to_string().ends_with("(b d)"), "{error}");
        client.read(0, &mut buffer).unwrap();
        assert_eq!(buffer, [7; 4096]);
        drop(client);
        scripted.join();
    }
}

#[test]
fn one_short_extent_per_answer_is_enough() {
    for framing in CHUNKED {
        let scripted = server(move |mut peer| {
            peer.negotiate(framing, 10_000, &[(9, "base:allocation")]);
            for step in 0..10 {
                let request = peer.request();
                assert_eq!(
                    (request.offset, request.length),
                    (step * 1000, 10_000 - step * 1000)
                );
                peer.status(&request, DONE, 9, &[(1000, step % 2)]);
            }
            assert_eq!(peer.request().command, 2);
        });
        let options = with_contexts(&["base:allocation"]);
        let client = Client::connect(&scripted.uri, &options).unwrap();
        let context = "base:allocation".parse().unwrap();
        let extents: Vec<_> = client
            .extents(&context, 0, 10_000)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let expected: Vec<_> = (0..10)
            .map(|step| Extent {
                offset: step * 1000,
                length: 1000,
                flags: step % 2,
            })
            .collect();
        assert_eq!(extents, expected);
        drop(client);
        scripted.join();
    }
}

#[test]
fn contexts_that_end_at_different_places_have_cursors_of_their_own() {
    for framing in CHUNKED {
        let scripted = server(move |mut peer| {
            let contexts = [(1, "base:allocation"), (2, "qemu:dirty-bitmap:b")];
            peer.negotiate(framing, 10_000, &contexts);
            let end_of = |id: u32, offset: u64| if id == 1 { 10_000 } else { offset + 2500 };
            for _ in 0..5 {
                let request = peer.request();
                let offset = request.offset;
                // The order of the contexts is the server's choice.
                for (id, flags) in [(2, MORE), (1, DONE)] {
                    let length = end_of(id, offset) - offset;
                    peer.status(&request, flags, id, &[(length, u64::from(id))]);
                }
            }
            assert_eq!(peer.request().command, 2);
        });
        let names = ["base:allocation", "qemu:dirty-bitmap:b"];
        let client = Client::connect(&scripted.uri, &with_contexts(&names)).unwrap();
        let map = |name: &str| {
            client
                .extents(&name.parse().unwrap(), 0, 10_000)
                .unwrap()
                .map(|extent| extent.map(|e| (e.offset, e.length, e.flags)).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(map(names[0]), [(0, 10_000, 1)]);
        assert_eq!(
            map(names[1]),
            [
                (0, 2500, 2),
                (2500, 2500, 2),
                (5000, 2500, 2),
                (7500, 2500, 2)
            ]
        );
        drop(client);
        scripted.join();
    }
}

#[test]
fn an_extent_beyond_the_request_is_clipped() {
    for (framing, longest) in [
        (Framing::Structured, u64::from(u32::MAX)),
        (Framing::Extended, u64::MAX),
    ] {
        let scripted = server(move |mut peer| {
            peer.negotiate(framing, 1 << 40, &[(1, "base:allocation")]);
            let request = peer.request();
            peer.status(&request, DONE, 1, &[(4096, 0), (longest, 3)]);
            assert_eq!(peer.request().command, 2);
        });
        let options = with_contexts(&["base:allocation"]);
        let client = Client::connect(&scripted.uri, &options).unwrap();
        let context = "base:allocation".parse().unwrap();
        let extents: Vec<_> = client
            .extents(&context, 1 << 30, 8192)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let ends: Vec<_> = extents.iter().map(Extent::end).collect();
        assert_eq!(ends, [(1 << 30) + 4096, (1 << 30) + 8192]);
        drop(client);
        scripted.join();
    }
}

#[test]
fn replies_are_received_while_a_request_is_being_sent() {
    let scripted = server(|mut peer| {
        peer.negotiate(Framing::Structured, 64 << 20, &[]);
        let read = peer.request();
        let write = peer.request();
        assert_eq!((read.command, write.command), (0, 1));
        assert_eq!((read.flags, write.flags), (0, 0));
        // Nothing of the payload is taken until the whole reply has gone out: more
        // than any socket buffers.
        let length = usize::try_from(read.length).unwrap();
        peer.data(&read, DONE, read.offset, &vec![7; length]);
        let payload = peer.take(usize::try_from(write.length).unwrap());
        assert!(payload.iter().all(|byte| *byte == 9));
        peer.simple(&write, 0);
        assert_eq!(peer.request().command, 2);
    });
    let client = Client::connect(
        &scripted.uri,
        &ClientOptions {
            request_size: 16 << 20,
            ..options()
        },
    )
    .unwrap();
    let payload = vec![9; 16 << 20];
    let mut pieces = 0;
    let ranges = [(0, 16 << 20)].into_iter();
    std::thread::scope(|scope| {
        let (begun, wait) = std::sync::mpsc::channel();
        let (client, payload) = (&client, &payload);
        let writer = scope.spawn(move || {
            wait.recv().unwrap();
            client.write(32 << 20, payload)
        });
        // The writer starts once the read is on its way: the ranges end after it.
        let mut begun = Some(begun);
        let ranges = ranges.chain(std::iter::from_fn(|| {
            begun
                .take()
                .into_iter()
                .for_each(|begun| begun.send(()).unwrap());
            None
        }));
        client
            .read_ranges(ranges, 2, |_, _| {
                pieces += 1;
                Ok::<(), RequestError>(())
            })
            .unwrap();
        writer.join().unwrap().unwrap();
    });
    assert_eq!(pieces, 1);
    drop(client);
    scripted.join();
}

#[test]
fn a_server_too_old_for_go_is_asked_by_name() {
    for no_zeroes in [0u16, 2] {
        let scripted = server(move |mut peer| {
            peer.send(b"NBDMAGICIHAVEOPT");
            peer.send(&(1 | no_zeroes).to_be_bytes());
            assert_eq!(peer.u32(), 1 | u32::from(no_zeroes));
            loop {
                let (option, data) = peer.option();
                if option == 1 {
                    assert_eq!(data, b"disk");
                    break;
                }
                peer.answer(option, 0x8000_0001, &[]);
            }
            peer.send(&bytes![4096u64, 3u16]);
            if no_zeroes == 0 {
                peer.send(&[0; 124]);
            }
            let request = peer.request();
            peer.simple(&request, 0);
            peer.send(&[5; 512]);
            assert_eq!(peer.request().command, 2);
        });
        let client = Client::connect(&scripted.uri, &options()).unwrap();
        assert_eq!((client.size(), client.read_only()), (4096, true));
        let mut read = [0; 512];
        client.read(0, &mut read).unwrap();
        assert_eq!(read, [5; 512]);
        drop(client);
        scripted.join();
    }
}

#[test]
fn a_refusal_is_quoted_in_the_error() {
    let scripted = server(|mut peer| {
        peer.greet();
        loop {
            let (option, _) = peer.option();
            if option == 7 {
                peer.answer(7, 0x8000_0006, b"try\x1bagain later");
                break;
            }
            peer.answer(option, 1, &[]);
        }
        peer.is_closed();
    });
    let error = Client::connect(&scripted.uri, &options()).unwrap_err();
    assert!(matches!(error, ConnectError::Export { .. }));
    assert_eq!(
        error.to_string(),
        "open export \"disk\", refused: no such export (try again later)"
    );
    scripted.join();
}

#[test]
fn a_server_that_hangs_up_is_reported_to_everybody_who_waits() {
    let scripted = server(|mut peer| {
        peer.negotiate(Framing::Extended, 4096, &[]);
        peer.request();
        peer.request();
    });
    let client = Client::connect(&scripted.uri, &options()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let error = client.read(0, &mut [0; 512]).unwrap_err();
                assert!(matches!(error, RequestError::Lost { .. }), "{error}");
            });
        }
    });
    scripted.join();
}
