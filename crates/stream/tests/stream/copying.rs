//! Passing a stream on.

use std::io::{self, Write};

use lifeboat_stream::{CopyError, Decoder, Kind, copy_rest, copy_verified, verify};

use crate::sample::{COMPACT, DELTA_SIZES, Item, RAW, WHOLE, ZSTD, delta, header, noise, write};

#[test]
fn a_copy_has_exactly_the_bytes_of_the_stream() {
    for options in [RAW, ZSTD, COMPACT] {
        let stream = delta(options);
        let mut copy = Vec::new();
        let summary = copy_verified(&stream[..], &mut copy, &WHOLE).unwrap();
        assert_eq!(copy, stream);
        assert_eq!(summary.bytes, stream.len() as u64);
        assert_eq!(summary, verify(&stream[..], &WHOLE).unwrap());
        assert_eq!(summary.header, header(Kind::Delta));
    }
}

#[test]
fn a_stream_whose_manifest_was_looked_at_is_copied_whole() {
    let stream = delta(ZSTD);
    let decoder = Decoder::new(&stream[..], &WHOLE).unwrap();
    assert_eq!(decoder.manifest().disks().len(), DELTA_SIZES.len());
    let mut copy = Vec::new();
    let summary = copy_rest(decoder, &mut copy).unwrap();
    assert_eq!(copy, stream);
    assert_eq!(summary, verify(&stream[..], &WHOLE).unwrap());
}

#[test]
#[should_panic(expected = "BUG: a frame was read before")]
fn a_stream_of_which_a_frame_was_read_is_not_copied() {
    let stream = delta(RAW);
    let mut decoder = Decoder::new(&stream[..], &WHOLE).unwrap();
    assert!(decoder.next_frame().unwrap().is_some());
    drop(copy_rest(decoder, io::sink()));
}

#[test]
fn no_byte_of_a_frame_is_written_before_the_frame_is_proved() {
    const FRAME: usize = 1 << 20;
    let sizes = [8 * FRAME as u64];
    let items: Vec<_> = (0..4)
        .map(|n| Item::Data(0, u64::from(n) * FRAME as u64, noise(n, FRAME)))
        .collect();
    let stream = write(&header(Kind::Delta), &sizes, COMPACT, &items).1;
    let first = stream.len() - 96 - 64 - 4 * (64 + FRAME);
    for damaged in 0..4 {
        let start = first + damaged * (64 + FRAME);
        // The header's first byte, its checksum, the payload's first, middle and last byte.
        for within in [0, 63, 64, 64 + FRAME / 2, 64 + FRAME - 1] {
            let mut input = stream.clone();
            input[start + within] ^= 1;
            let mut written = Vec::new();
            let refused = copy_verified(&input[..], &mut written, &WHOLE);
            assert!(matches!(refused, Err(CopyError::Decode { .. })));
            assert!(
                written.len() <= start,
                "frame {damaged}, byte {within}: {} bytes written, the frame starts at {start}",
                written.len()
            );
            assert_eq!(written, stream[..written.len()]);
            assert!(
                damaged < 2 || !written.is_empty(),
                "proved frames are passed on"
            );
        }
    }
}

#[test]
fn a_full_output_is_an_error_of_the_output() {
    struct Full {
        room: usize,
    }
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let written = bytes.len().min(self.room);
            self.room -= written;
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let stream = delta(RAW);
    for room in [0, 1, 104, stream.len() - 1] {
        let error = copy_verified(&stream[..], Full { room }, &WHOLE).unwrap_err();
        assert!(
            matches!(&error, CopyError::Write { source } if source.kind() == io::ErrorKind::StorageFull),
            "{error}"
        );
    }
    let room = stream.len();
    assert!(copy_verified(&stream[..], Full { room }, &WHOLE).is_ok());
}

#[test]
fn an_output_that_cannot_flush_is_an_error() {
    struct Unflushable;
    impl Write for Unflushable {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::Error::other("lost"))
        }
    }
    let error = copy_verified(&delta(RAW)[..], Unflushable, &WHOLE).unwrap_err();
    assert!(matches!(error, CopyError::Write { .. }), "{error}");
}

#[test]
fn a_copy_takes_bytes_one_at_a_time() {
    struct Dribble<'a>(&'a [u8]);
    impl io::Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
    }
    let stream = write(
        &header(Kind::Delta),
        &DELTA_SIZES,
        ZSTD,
        &crate::sample::delta_items(),
    )
    .1;
    let mut copy = Vec::new();
    copy_verified(Dribble(&stream), &mut copy, &WHOLE).unwrap();
    assert_eq!(copy, stream);
}
