//! What the encoder promises to its caller.

use std::io::{self, Write};

use lifeboat_stream::{
    BlobKind, Compression, EncodeError, Encoder, Encoding, Entry, Header, Kind, Layout,
    MAX_DATA_LEN, Options, PayloadRef, RuleError, SHARE_MIN_LEN, scan, verify,
};

use crate::sample::{
    COMPACT, DELTA_SIZES, Item, RAW, WHOLE, ZSTD, delta, delta_items, header, manifest, noise,
    read, read_by_scan, text, write,
};

fn payloads(stream: &[u8]) -> Vec<PayloadRef> {
    let mut scan = scan(io::Cursor::new(stream), &WHOLE).unwrap();
    let mut payloads = Vec::new();
    while let Some(entry) = scan.next_entry().unwrap() {
        if let Entry::Data { payload, .. } = entry {
            payloads.push(payload);
        }
    }
    payloads
}

#[test]
fn a_refused_call_leaves_the_stream_as_it_was() {
    let mut encoder = Encoder::new(
        Vec::new(),
        &header(Kind::Delta),
        &manifest(&DELTA_SIZES),
        RAW,
    )
    .unwrap();
    for item in delta_items() {
        assert!(encoder.blob(BlobKind::Tpm, 1, &[]).is_err());
        assert!(encoder.data(3, 0, &[1; 512]).is_err());
        assert!(encoder.data(70_000, 0, &[1; 512]).is_err());
        assert!(encoder.data(0, 1, &[1; 512]).is_err());
        assert!(encoder.data(0, 0, &[]).is_err());
        assert!(matches!(
            encoder.data(0, 0, &vec![1; MAX_DATA_LEN + 512]),
            Err(EncodeError::DataLength { .. })
        ));
        assert!(encoder.zero(2, 0, (1 << 20) + 512).is_err());
        assert!(encoder.zero(70_000, 0, 512).is_err());
        match item {
            Item::Blob(kind, format, bytes) => encoder.blob(kind, format, &bytes).unwrap(),
            Item::Data(disk, offset, bytes) => encoder.data(disk, offset, &bytes).unwrap(),
            Item::Zero(disk, offset, length) => encoder.zero(disk, offset, length).unwrap(),
        }
    }
    assert!(encoder.blob(BlobKind::Definition, 1, b"x").is_err());
    let position = encoder.position();
    let (_, stream) = encoder.finish().unwrap();
    assert_eq!(position + 64 + 96, stream.len() as u64);
    assert_eq!(stream, delta(RAW));
}

#[test]
fn an_initial_stream_is_not_finished_before_the_disks_are_whole() {
    let sizes = [8192, 512];
    let begin =
        || Encoder::new(Vec::new(), &header(Kind::Initial), &manifest(&sizes), RAW).unwrap();
    assert!(matches!(
        begin().finish(),
        Err(EncodeError::Rule {
            source: RuleError::Gap { disk: 0, offset: 0 }
        })
    ));
    let mut encoder = begin();
    encoder.data(0, 0, &[1; 4096]).unwrap();
    encoder.zero(0, 4096, 4096).unwrap();
    encoder.data(1, 0, &[2; 512]).unwrap();
    let (footer, _) = encoder.finish().unwrap();
    assert_eq!((footer.data_bytes, footer.zero_bytes), (4608, 4096));
}

#[test]
fn a_header_that_no_reader_accepts_is_not_written() {
    let wrong = Header {
        base: None,
        ..header(Kind::Delta)
    };
    let mut written = Vec::new();
    let refused = Encoder::new(&mut written, &wrong, &manifest(&[512]), RAW);
    assert!(matches!(refused, Err(EncodeError::Header { .. })));
    assert!(written.is_empty());
}

#[test]
fn levels_that_zstd_should_not_use_are_refused() {
    for level in [-8, 20, i32::MAX, i32::MIN] {
        let options = Options {
            compression: Compression::Zstd(level),
            layout: Layout::Compact,
        };
        let refused = Encoder::new(Vec::new(), &header(Kind::Delta), &manifest(&[512]), options);
        assert!(
            matches!(refused, Err(EncodeError::Level { level: named }) if named == level),
            "{level}"
        );
    }
    for level in [-7, 0, 19] {
        let options = Options {
            compression: Compression::Zstd(level),
            layout: Layout::Compact,
        };
        assert_eq!(
            read(&delta(options)[..]).unwrap().2,
            delta_items(),
            "{level}"
        );
    }
}

#[test]
fn a_stream_that_failed_to_be_written_cannot_be_finished() {
    struct FullOnce {
        room: usize,
        written: Vec<u8>,
    }
    impl Write for FullOnce {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                self.room = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            let length = bytes.len().min(self.room);
            self.room -= length;
            self.written.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let opening = {
        let begun = Encoder::new(
            Vec::new(),
            &header(Kind::Delta),
            &manifest(&DELTA_SIZES),
            RAW,
        );
        begun.unwrap().position() as usize
    };
    // In the frame header, and in the payload.
    for room in [opening + 10, opening + 64 + 100] {
        let output = FullOnce {
            room,
            written: Vec::new(),
        };
        let mut encoder =
            Encoder::new(output, &header(Kind::Delta), &manifest(&DELTA_SIZES), RAW).unwrap();
        assert!(matches!(
            encoder.data(0, 0, &noise(1, 512)),
            Err(EncodeError::Write { .. })
        ));
        assert!(matches!(
            encoder.data(0, 512, &noise(1, 512)),
            Err(EncodeError::Broken)
        ));
        assert!(matches!(
            encoder.zero(0, 512, 512),
            Err(EncodeError::Broken)
        ));
        assert!(matches!(
            encoder.blob(BlobKind::Tpm, 1, b"x"),
            Err(EncodeError::Broken)
        ));
        assert!(matches!(encoder.finish(), Err(EncodeError::Broken)));
    }
}

#[test]
fn the_id_does_not_depend_on_how_the_stream_was_written() {
    let items = [
        Item::Blob(BlobKind::Nvram, 2, text(5000)),
        Item::Data(0, 0, text(SHARE_MIN_LEN)),
        Item::Data(2, 0, noise(1, SHARE_MIN_LEN)),
    ];
    let footer = |options| write(&header(Kind::Delta), &DELTA_SIZES, options, &items).0;
    assert_eq!(footer(RAW), footer(ZSTD));
    assert_eq!(footer(RAW), footer(COMPACT));
}

#[test]
fn the_id_depends_on_everything_the_stream_says() {
    let id = |header: &Header, items: &[Item]| write(header, &DELTA_SIZES, RAW, items).0.id;
    let usual = header(Kind::Delta);
    let items = delta_items();
    let mut ids = vec![
        id(&usual, &items),
        id(
            &Header {
                sequence: lifeboat_model::Sequence::new(44),
                ..usual
            },
            &items,
        ),
        id(&header(Kind::Resync), &items),
        id(&usual, &items[..items.len() - 1]),
    ];
    for n in 0..items.len() {
        let mut changed = items.clone();
        match &mut changed[n] {
            Item::Blob(_, _, bytes) | Item::Data(_, _, bytes) => bytes[0] ^= 1,
            Item::Zero(_, _, length) => *length -= 512,
        }
        // A zero frame of one sector is left out instead of emptied.
        changed.retain(|item| !matches!(item, Item::Zero(_, _, 0)));
        ids.push(id(&usual, &changed));
    }
    let mut other_format = items;
    other_format[0] = Item::Blob(BlobKind::Nvram, 2, noise(1, 100));
    ids.push(id(&usual, &other_format));
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn scattered_changes_of_4_kib_cost_less_than_a_twentieth_on_top() {
    let changes = 500;
    let items: Vec<_> = (0..changes)
        .map(|n| Item::Data(0, n * 8192, noise(n as u8, 4096)))
        .collect();
    for options in [RAW, COMPACT] {
        let stream = write(&header(Kind::Delta), &[1 << 30], options, &items).1;
        assert!((stream.len() as u64) < changes * 4096 * 105 / 100);
    }
    // 64 KiB apiece stay within the same bound when they are not aligned.
    let clusters: Vec<_> = (0..20)
        .map(|n| Item::Data(0, n * 131_072, noise(n as u8, 65_536)))
        .collect();
    let stream = write(&header(Kind::Delta), &[1 << 30], COMPACT, &clusters).1;
    assert!(stream.len() < 20 * 65_536 * 105 / 100);
}

#[test]
fn long_raw_payloads_can_be_shared_and_short_ones_are_not_padded() {
    let items = [
        Item::Data(0, 0, noise(1, SHARE_MIN_LEN - 512)),
        Item::Data(0, 1 << 20, noise(2, SHARE_MIN_LEN)),
        Item::Data(0, 2 << 20, noise(3, MAX_DATA_LEN)),
        Item::Data(0, 3 << 20, text(MAX_DATA_LEN)),
    ];
    let sizes = [4 << 20];
    let written = |options| write(&header(Kind::Delta), &sizes, options, &items).1;
    let shareable = |stream: &[u8]| -> Vec<bool> {
        payloads(stream)
            .iter()
            .map(PayloadRef::is_shareable)
            .collect()
    };
    assert_eq!(shareable(&written(RAW)), [false, true, true, true]);
    let compressed = written(ZSTD);
    assert_eq!(shareable(&compressed), [false, true, true, false]);
    for payload in payloads(&compressed) {
        let aligned = payload.encoding == Encoding::RawAligned;
        assert_eq!(aligned, payload.is_shareable());
        if aligned {
            assert_eq!(payload.position % 4096, 0);
        }
    }
    let compact = written(COMPACT);
    let data: usize = payloads(&compact)
        .iter()
        .map(|payload| payload.stored_len as usize + 64)
        .sum();
    let opening = payloads(&compact)[0].position as usize - 64;
    assert_eq!(compact.len(), opening + data + 64 + 96, "nothing is padded");
}

#[test]
fn a_payload_stays_raw_unless_it_gets_smaller_by_a_sixteenth() {
    // Noise with a run of zeroes shrinks by about the length of the run.
    let shrinking_by = |run: usize| {
        let mut bytes = noise(1, 16 << 10);
        bytes[..run].fill(0);
        let items = [Item::Data(0, 0, bytes)];
        let stream = write(&header(Kind::Delta), &DELTA_SIZES, ZSTD, &items).1;
        payloads(&stream)[0]
    };
    let little = shrinking_by(512);
    assert_eq!(
        (little.encoding, little.stored_len),
        (Encoding::Raw, 16 << 10)
    );
    let enough = shrinking_by(2048);
    assert_eq!(enough.encoding, Encoding::Zstd);
    assert!(enough.stored_len <= 15 << 10);
}

#[test]
fn blobs_of_any_length_up_to_the_bound_arrive_whole() {
    for length in [
        1,
        MAX_DATA_LEN - 1,
        MAX_DATA_LEN,
        MAX_DATA_LEN + 1,
        3 * MAX_DATA_LEN + 5,
    ] {
        for options in [RAW, ZSTD] {
            let items = [
                Item::Blob(BlobKind::Nvram, 1, noise(1, length)),
                Item::Blob(BlobKind::Definition, 7, text(length)),
            ];
            let stream = write(&header(Kind::Resync), &DELTA_SIZES, options, &items).1;
            assert_eq!(read(&stream[..]).unwrap().2, items);
            assert_eq!(read_by_scan(&stream).unwrap().0, items);
        }
    }
}

#[test]
fn a_stream_of_nothing_is_a_stream() {
    let (footer, stream) = write(&header(Kind::Delta), &DELTA_SIZES, ZSTD, &[]);
    let summary = verify(&stream[..], &WHOLE).unwrap();
    assert_eq!(summary.footer, footer);
    assert_eq!(
        (footer.frames, footer.data_bytes, footer.zero_bytes),
        (2, 0, 0)
    );
    assert!(
        stream.len() < 600,
        "an idle cycle costs {} bytes",
        stream.len()
    );
}
