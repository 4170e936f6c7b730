//! Streams whose checksums are all right and that say what no stream may say.

use std::error::Error;
use std::io::Cursor;

use lifeboat_stream::{DecodeError, FrameError, PayloadError, RuleError, scan, verify};

use crate::forge::{self, ALIGNED, BLOB, DATA, Fields, Forge, MANIFEST, bomb};
use crate::sample::{self, DELTA_SIZES, WHOLE, delta_items, manifest, noise, text};

const DELTA: u8 = 2;
const SIZE: u64 = 1 << 30;

fn delta() -> Forge {
    Forge::with_disk(DELTA, SIZE)
}

fn refusal(stream: &[u8]) -> DecodeError {
    verify(stream, &WHOLE).expect_err("the stream must be refused")
}

/// A scan does not read data, and refuses everything else as a decoder does.
fn assert_scan_refuses(stream: &[u8]) {
    let mut scan = match scan(Cursor::new(stream), &WHOLE) {
        Ok(scan) => scan,
        Err(_) => return,
    };
    loop {
        match scan.next_entry() {
            Ok(entry) => assert!(entry.is_some(), "the scan must refuse the stream"),
            Err(_) => return,
        }
    }
}

fn rule(stream: &[u8]) -> RuleError {
    assert_scan_refuses(stream);
    match refusal(stream) {
        DecodeError::Rule { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

fn frame(stream: &[u8]) -> FrameError {
    assert_scan_refuses(stream);
    match refusal(stream) {
        DecodeError::Frame { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

fn payload(stream: &[u8]) -> PayloadError {
    match refusal(stream) {
        DecodeError::Payload { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_encoder_writes_what_the_document_says() {
    let long = noise(9, 70_000 / 512 * 512);
    let mut items = delta_items();
    items.insert(5, sample::Item::Data(0, 16_384, long));
    items.remove(6);
    let (_, encoded) = sample::write(
        &sample::header(lifeboat_stream::Kind::Delta),
        &DELTA_SIZES,
        sample::RAW,
        &items,
    );
    let json = r#"{"format":1,"captured_at":1790000000123456,"consistency":"application","disks":[{"id":"sda","size":1048576},{"id":"sdb","size":512},{"id":"sdc","size":1048576}]}"#;
    let mut forged = Forge::new(DELTA).push(&Fields::raw(MANIFEST, 0, 0, json.as_bytes()));
    for item in &items {
        let fields = match item {
            sample::Item::Blob(kind, format, bytes) => {
                Fields::blob(*kind as u8 + 1, *format, bytes)
            }
            sample::Item::Data(disk, offset, bytes) => {
                let fields = Fields::raw(DATA, *disk as u16, *offset, bytes);
                if bytes.len() < 65_536 {
                    fields
                } else {
                    Fields {
                        encoding: ALIGNED,
                        padding: forged.padding(),
                        ..fields
                    }
                }
            }
            sample::Item::Zero(disk, offset, length) => {
                Fields::zero(*disk as u16, *offset, *length)
            }
        };
        forged = forged.push(&fields);
    }
    assert_eq!(forged.finish(), encoded);
    assert_eq!(
        manifest(&DELTA_SIZES).disks().len(),
        DELTA_SIZES.len(),
        "the manifest is the one that was forged"
    );
}

#[test]
fn a_forged_stream_that_breaks_no_rule_is_accepted() {
    let stream = delta()
        .push(&Fields::blob(1, 3, b"vars"))
        .push(&Fields::raw(DATA, 0, 512, &noise(1, 512)))
        .push(&Fields::zero(0, 1024, SIZE - 1024))
        .finish();
    assert_eq!(verify(&stream[..], &WHOLE).unwrap().footer.frames, 5);
}

#[test]
fn ranges_outside_of_the_disk_are_refused() {
    for (offset, length) in [
        (SIZE, 512),
        (SIZE - 512, 1024),
        (0, SIZE + 512),
        (u64::MAX - 511, 512),
        (512, u64::MAX - 511),
    ] {
        let stream = delta().push(&Fields::zero(0, offset, length)).finish();
        assert!(
            matches!(rule(&stream), RuleError::Outside { disk: 0, .. }),
            "{offset} {length}"
        );
    }
    let data = Fields::raw(DATA, 0, SIZE, &[7; 512]);
    let stream = delta().push(&data).finish();
    assert!(matches!(rule(&stream), RuleError::Outside { .. }));
    for disk in [1, 255, u16::MAX] {
        let stream = delta().push(&Fields::zero(disk, 0, 512)).finish();
        assert!(matches!(
            rule(&stream),
            RuleError::NoSuchDisk { count: 1, .. }
        ));
    }
}

#[test]
fn ranges_that_are_not_whole_sectors_are_refused() {
    for fields in [
        Fields::zero(0, 1, 512),
        Fields::zero(0, 0, 511),
        Fields::zero(0, 0, 0),
        Fields::raw(DATA, 0, 256, &[7; 512]),
        Fields::raw(DATA, 0, 0, &[7; 100]),
    ] {
        let stream = delta().push(&fields).finish();
        assert!(matches!(rule(&stream), RuleError::NotSectors { .. }));
    }
}

#[test]
fn ranges_that_overlap_or_go_back_are_refused() {
    for (offset, length) in [(4096, 512), (4608, 512), (0, 512), (0, 1 << 20)] {
        let stream = delta()
            .push(&Fields::zero(0, 4096, 1024))
            .push(&Fields::zero(0, offset, length))
            .finish();
        assert!(matches!(rule(&stream), RuleError::NotAscending { .. }));
    }
}

#[test]
fn an_initial_stream_with_a_gap_is_refused() {
    let initial = || Forge::with_disk(1, 8192);
    let streams = [
        initial().finish(),
        initial().push(&Fields::zero(0, 0, 4096)).finish(),
        initial().push(&Fields::zero(0, 512, 7680)).finish(),
    ];
    for stream in &streams {
        assert!(matches!(rule(stream), RuleError::Gap { disk: 0, .. }));
    }
    let whole = initial().push(&Fields::zero(0, 0, 8192)).finish();
    assert!(verify(&whole[..], &WHOLE).is_ok());
}

#[test]
fn the_manifest_is_first_and_only_once() {
    let json =
        br#"{"format":1,"captured_at":7,"consistency":"crash","disks":[{"id":"sda","size":512}]}"#;
    let twice = delta().push(&Fields::raw(MANIFEST, 0, 0, json)).finish();
    assert_eq!(rule(&twice), RuleError::SecondManifest);
    for stream in [
        Forge::new(DELTA).finish(),
        Forge::new(DELTA).push(&Fields::zero(0, 0, 512)).finish(),
        Forge::new(DELTA).push(&Fields::blob(1, 1, b"x")).finish(),
    ] {
        assert!(matches!(refusal(&stream), DecodeError::NoManifest));
    }
    let damaged = Forge::new(DELTA)
        .push(&Fields::raw(MANIFEST, 0, 0, b"[]"))
        .finish();
    assert!(matches!(refusal(&damaged), DecodeError::Manifest { .. }));
}

#[test]
fn blobs_that_are_too_long_cut_or_misplaced_are_refused() {
    for total in [(64 << 20) + 1, 1 << 63, u64::MAX] {
        let fields = Fields {
            extent: total,
            ..Fields::blob(1, 1, &vec![7; 1 << 20])
        };
        let stream = delta().push(&fields).finish();
        assert!(
            matches!(rule(&stream), RuleError::BlobLength { .. }),
            "{total}"
        );
    }
    let cut = Fields {
        extent: (1 << 20) + 1,
        ..Fields::blob(2, 1, &vec![7; 1 << 20])
    };
    assert!(matches!(
        rule(&delta().push(&cut).finish()),
        RuleError::BlobCut { .. }
    ));
    let late = delta()
        .push(&Fields::zero(0, 0, 512))
        .push(&Fields::blob(1, 1, b"x"))
        .finish();
    assert_eq!(rule(&late), RuleError::BlobAfterRanges);
    for kind in [0, 4, 255] {
        let stream = delta().push(&Fields::blob(kind, 1, b"x")).finish();
        assert_eq!(frame(&stream), FrameError::Blob { kind });
    }
}

#[test]
fn kinds_and_encodings_of_other_versions_are_refused() {
    for kind in [0, 6, 255] {
        let stream = delta()
            .push(&Fields {
                kind,
                ..Fields::default()
            })
            .finish();
        assert_eq!(frame(&stream), FrameError::Kind { kind });
    }
    for encoding in [3, 255] {
        let fields = Fields {
            encoding,
            ..Fields::raw(DATA, 0, 0, &[7; 512])
        };
        let stream = delta().push(&fields).finish();
        assert_eq!(frame(&stream), FrameError::Encoding { encoding });
    }
}

#[test]
fn lengths_beyond_the_bounds_are_refused() {
    for (kind, max) in [(MANIFEST, 64 << 10), (BLOB, 1 << 20), (DATA, 1 << 20)] {
        for length in [0, max + 1, u32::MAX] {
            let fields = Fields {
                kind,
                blob: u8::from(kind == BLOB),
                plain_len: length,
                stored_len: length,
                ..Fields::default()
            };
            let stream = delta().push(&fields).finish();
            assert_eq!(frame(&stream), FrameError::PayloadLength { length, max });
        }
    }
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    let plain = noise(1, 64 << 10);
    let begun = delta();
    let aligned = Fields {
        encoding: ALIGNED,
        padding: begun.padding(),
        ..Fields::raw(DATA, 0, 0, &plain)
    };
    let good = begun.clone().push(&aligned).finish();
    assert!(verify(&good[..], &WHOLE).is_ok());
    for position in [0, 1, aligned.padding.len() - 1] {
        let mut padding = aligned.padding.clone();
        padding[position] = 1;
        let stream = begun
            .clone()
            .push(&Fields {
                padding,
                ..aligned.clone()
            })
            .finish();
        assert!(matches!(refusal(&stream), DecodeError::Padding { .. }));
    }
}

#[test]
fn a_payload_that_decompresses_to_more_than_it_says_is_refused() {
    let plain = vec![0; 1 << 20];
    for length in [(1 << 20) + 1, 1 << 24, 1 << 30] {
        let fields = Fields::zstd(0, &plain, bomb(length));
        let stream = delta().push(&fields).finish();
        assert!(
            matches!(payload(&stream), PayloadError::Decompress { .. }),
            "{length}"
        );
    }
}

#[test]
fn a_payload_that_decompresses_to_something_else_is_refused() {
    let plain = text(4096);
    let compressed = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let stream = |stored| delta().push(&Fields::zstd(0, &plain, stored)).finish();
    assert!(matches!(
        payload(&stream(compressed(&plain[..4095]))),
        PayloadError::PlainLength {
            expected: 4096,
            found: 4095
        }
    ));
    let mut other = plain.clone();
    other[4095] ^= 1;
    assert!(matches!(
        payload(&stream(compressed(&other))),
        PayloadError::Digest
    ));
    assert!(matches!(
        payload(&stream(vec![7; 100])),
        PayloadError::Decompress { .. }
    ));
    let mut fields = Fields::zstd(0, &plain, compressed(&plain));
    fields.stored_check ^= 1;
    assert!(matches!(
        payload(&delta().push(&fields).finish()),
        PayloadError::StoredCheck
    ));
}

#[test]
fn a_footer_that_counts_wrongly_is_refused() {
    let begun = delta()
        .push(&Fields::raw(DATA, 0, 0, &noise(1, 512)))
        .push(&Fields::zero(0, 512, 512));
    for change in [
        |footer: &mut forge::FooterFields| footer.frames += 1,
        |footer: &mut forge::FooterFields| footer.data_bytes += 512,
        |footer: &mut forge::FooterFields| footer.zero_bytes = 0,
    ] {
        let stream = begun.clone().finish_with(change);
        assert!(matches!(refusal(&stream), DecodeError::Counts));
        assert_scan_refuses(&stream);
    }
}

#[test]
fn a_footer_with_another_identity_is_refused() {
    let begun = delta().push(&Fields::raw(DATA, 0, 0, &noise(1, 512)));
    let other_id = begun.clone().finish_with(|footer| footer.id[31] ^= 1);
    assert!(matches!(refusal(&other_id), DecodeError::Identity));
    assert_scan_refuses(&other_id);
    let other_content = begun.finish_with(|footer| footer.content[0] ^= 1);
    assert!(matches!(refusal(&other_content), DecodeError::Content));
    assert_scan_refuses(&other_content);
}

#[test]
fn data_that_only_its_weak_digest_vouches_for_is_refused_by_the_strong_one() {
    // Whoever can make two blocks with one XXH3 digest can swap them without any frame
    // header noticing. The content digest does: here it is that of another block.
    let mut other = blake3::Hasher::new();
    other.update(&noise(2, 512));
    let stream = delta()
        .push(&Fields::raw(DATA, 0, 0, &noise(1, 512)))
        .finish_with(|footer| footer.content = *other.finalize().as_bytes());
    assert!(matches!(refusal(&stream), DecodeError::Content));
}

#[test]
fn every_refusal_says_what_and_why() {
    let stream = delta().push(&Fields::zero(0, SIZE, 512)).finish();
    let error = refusal(&stream);
    let source = error
        .source()
        .expect("the reason is the source")
        .to_string();
    assert!(
        error.to_string().starts_with("refuse the frame at byte "),
        "{error}"
    );
    assert_eq!(
        source,
        "the range of 512 bytes at 1073741824 does not lie inside disk 0, which has 1073741824 bytes"
    );
}
