//! Damage anywhere in a stream is refused.

use std::io::Cursor;

use lifeboat_stream::{DecodeError, Ending, Kind, Limits, copy_verified, scan, verify};

use crate::sample::{
    DELTA_SIZES, Item, RAW, WHOLE, ZSTD, delta, header, noise, read, read_by_scan, write,
};

/// A stream with an aligned payload, so with padding.
fn padded() -> Vec<u8> {
    let items = [
        Item::Data(0, 0, noise(3, 512)),
        Item::Data(0, 4096, noise(4, 64 << 10)),
    ];
    write(&header(Kind::Delta), &DELTA_SIZES, RAW, &items).1
}

fn assert_refused(stream: &[u8], what: &dyn std::fmt::Display) {
    assert!(verify(stream, &WHOLE).is_err(), "verify: {what}");
    assert!(
        copy_verified(stream, Vec::new(), &WHOLE).is_err(),
        "copy: {what}"
    );
}

#[test]
fn a_flip_of_any_bit_of_any_byte_is_refused() {
    for options in [RAW, ZSTD] {
        let mut stream = delta(options);
        assert!(verify(&stream[..], &WHOLE).is_ok());
        for position in 0..stream.len() {
            for mask in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                stream[position] ^= mask;
                assert_refused(&stream, &format_args!("byte {position} ^ {mask:#x}"));
                stream[position] ^= mask;
            }
        }
    }
}

#[test]
fn a_flip_of_any_byte_of_an_aligned_stream_is_refused() {
    let mut stream = padded();
    assert!(stream.len() > 68 << 10, "there is padding");
    assert!(verify(&stream[..], &WHOLE).is_ok());
    for position in 0..stream.len() {
        stream[position] ^= 0x10;
        assert!(verify(&stream[..], &WHOLE).is_err(), "byte {position}");
        stream[position] ^= 0x10;
    }
}

#[test]
fn a_flip_that_a_scan_does_not_see_is_refused_with_the_payload() {
    for options in [RAW, ZSTD] {
        let mut stream = delta(options);
        assert!(read_by_scan(&stream).is_ok());
        for position in 0..stream.len() {
            for mask in [0x01, 0x80] {
                stream[position] ^= mask;
                assert!(
                    read_by_scan(&stream).is_err(),
                    "byte {position} ^ {mask:#x}"
                );
                stream[position] ^= mask;
            }
        }
    }
}

#[test]
fn a_stream_cut_anywhere_is_refused_as_cut() {
    for stream in [delta(RAW), delta(ZSTD), padded()] {
        for length in 0..stream.len() {
            let cut = &stream[..length];
            assert!(
                matches!(verify(cut, &WHOLE), Err(DecodeError::Truncated { position }) if position <= length as u64),
                "{length}"
            );
            let scanned = scan(Cursor::new(cut), &WHOLE).and_then(|mut scan| {
                while scan.next_entry()?.is_some() {}
                Ok(())
            });
            assert!(
                matches!(scanned, Err(DecodeError::Truncated { .. })),
                "{length}"
            );
        }
    }
}

#[test]
fn bytes_behind_the_footer_are_refused_unless_more_may_follow() {
    let mut stream = delta(RAW);
    let length = stream.len() as u64;
    stream.push(0);
    let refused = |error| matches!(error, DecodeError::Trailing { position } if position == length);
    assert!(refused(verify(&stream[..], &WHOLE).unwrap_err()));
    let mut listing = scan(Cursor::new(&stream), &WHOLE).unwrap();
    let error = loop {
        match listing.next_entry() {
            Ok(entry) => assert!(entry.is_some(), "the end must be refused"),
            Err(error) => break error,
        }
    };
    assert!(refused(error));
    assert!(listing.footer().is_none());

    let more = Limits {
        ending: Ending::MoreMayFollow,
        ..WHOLE
    };
    let mut rest = &stream[..];
    assert_eq!(verify(&mut rest, &more).unwrap().bytes, length);
    assert_eq!(rest, [0], "nothing is read beyond the footer");
}

#[test]
fn frames_that_are_left_out_repeated_or_swapped_are_refused() {
    let items: Vec<_> = (0..4)
        .map(|n| Item::Data(0, u64::from(n) * 8192, noise(n, 512)))
        .collect();
    let stream = write(&header(Kind::Delta), &DELTA_SIZES, RAW, &items).1;
    let frame = 64 + 512;
    let end = stream.len() - 64 - 96;
    let start = end - 4 * frame;
    let (opening, rest) = stream.split_at(start);
    let (frames, ending) = rest.split_at(4 * frame);
    let build = |order: &[usize]| {
        let mut built = opening.to_vec();
        for &n in order {
            built.extend_from_slice(&frames[n * frame..][..frame]);
        }
        built.extend_from_slice(ending);
        built
    };
    assert!(verify(&build(&[0, 1, 2, 3])[..], &WHOLE).is_ok());
    for order in [
        &[0, 1, 2][..],
        &[1, 2, 3],
        &[0, 2, 3],
        &[0, 1, 1, 2, 3],
        &[0, 2, 1, 3],
        &[],
    ] {
        assert_refused(&build(order), &format_args!("{order:?}"));
    }
}

#[test]
fn a_frame_of_another_stream_is_refused_where_it_would_fit() {
    let stream = |sequence| {
        let header = lifeboat_stream::Header {
            sequence: lifeboat_model::Sequence::new(sequence),
            ..header(Kind::Delta)
        };
        let items = [Item::Zero(0, 0, 512), Item::Zero(0, 8192, 512)];
        write(&header, &DELTA_SIZES, RAW, &items).1
    };
    let (mut ours, theirs) = (stream(50), stream(51));
    let last_zero = ours.len() - 96 - 64 - 64;
    ours[last_zero..][..64].copy_from_slice(&theirs[last_zero..][..64]);
    assert!(matches!(
        verify(&ours[..], &WHOLE),
        Err(DecodeError::Frame { position, .. }) if position == last_zero as u64
    ));
}

#[test]
fn nothing_is_handed_out_after_a_refusal() {
    let mut stream = delta(RAW);
    let length = stream.len();
    stream[length - 200] ^= 1;
    let mut decoder = lifeboat_stream::Decoder::new(&stream[..], &WHOLE).unwrap();
    let refused = loop {
        match decoder.next_frame() {
            Ok(frame) => assert!(frame.is_some(), "the damage must be refused"),
            Err(error) => break error,
        }
    };
    assert!(!matches!(refused, DecodeError::Stopped), "{refused}");
    for _ in 0..3 {
        assert!(matches!(decoder.next_frame(), Err(DecodeError::Stopped)));
        assert!(decoder.footer().is_none());
    }
}

#[test]
fn a_stream_longer_than_its_limit_is_refused_before_it_passes() {
    let stream = delta(ZSTD);
    let limits = |stream_bytes| Limits {
        stream_bytes,
        ending: Ending::EndOfInput,
    };
    let exact = stream.len() as u64;
    assert!(verify(&stream[..], &limits(exact)).is_ok());
    for limit in 0..exact {
        let mut written = Vec::new();
        let refused = copy_verified(&stream[..], &mut written, &limits(limit));
        assert!(
            matches!(
                refused,
                Err(lifeboat_stream::CopyError::Decode {
                    source: DecodeError::TooLong { limit: named, .. }
                }) if named == limit
            ),
            "{limit}"
        );
        assert!(written.len() as u64 <= limit);
        let listed = scan(Cursor::new(&stream), &limits(limit)).and_then(|mut scan| {
            while scan.next_entry()?.is_some() {}
            Ok(())
        });
        assert!(
            matches!(listed, Err(DecodeError::TooLong { limit: named, .. }) if named == limit),
            "{limit}"
        );
    }
}

#[test]
fn errors_of_the_reader_are_told_apart_from_damage() {
    struct Failing<'a>(&'a [u8]);
    impl std::io::Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::other("cable")),
                read => Ok(read),
            }
        }
    }
    let stream = delta(RAW);
    for length in [0, 50, 104, 300, stream.len() - 1, stream.len()] {
        let error = read(Failing(&stream[..length])).unwrap_err();
        assert!(
            matches!(error, DecodeError::Read { position, .. } if position <= length as u64),
            "{length}: {error}"
        );
    }
}
