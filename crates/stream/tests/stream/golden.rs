//! Streams of version 1 as they were written when it was fixed: they stay readable, and what is
//! written without compression stays the same byte for byte.
//!
//! A change that makes one of these fail is a new version of the format. The files are
//! never written again.

use lifeboat_model::DeltaId;
use lifeboat_stream::{BlobKind, Header, HeaderError, Kind};

use crate::sample::{
    DELTA_SIZES, Item, RAW, delta_items, header, manifest, noise, read, read_by_scan, text, write,
};

struct Golden {
    stream: &'static [u8],
    id: &'static str,
    kind: Kind,
    sizes: &'static [u64],
    items: Vec<Item>,
}

fn raw_delta() -> Golden {
    let mut items = delta_items();
    items[7] = Item::Data(2, 64 << 10, noise(6, 64 << 10));
    items.push(Item::Data(2, (1 << 20) - 512, noise(5, 512)));
    Golden {
        stream: include_bytes!("../golden/v1-delta.delta"),
        id: "a70fc8c9114ece8ec3eefe157422059f094c2aa80e58b1a49e870a65215722e3",
        kind: Kind::Delta,
        sizes: &DELTA_SIZES,
        items,
    }
}

fn compressed_delta() -> Golden {
    Golden {
        stream: include_bytes!("../golden/v1-delta-zstd.delta"),
        ..raw_delta()
    }
}

fn empty_delta() -> Golden {
    Golden {
        stream: include_bytes!("../golden/v1-empty.delta"),
        id: "b277c62c7b8fc7079457dadf940ebf1f3e523e37d655d3e0628e8f142d0c98e5",
        kind: Kind::Delta,
        sizes: &DELTA_SIZES,
        items: Vec::new(),
    }
}

fn initial() -> Golden {
    Golden {
        stream: include_bytes!("../golden/v1-initial.delta"),
        id: "42de9de2577920e13dd4d05e9bbe2f0cc691dd2f6cf2106b2512123c2ff0b37e",
        kind: Kind::Initial,
        sizes: &[8192, 512],
        items: vec![
            Item::Blob(BlobKind::Definition, 1, b"{}".to_vec()),
            Item::Zero(0, 0, 4096),
            Item::Data(0, 4096, text(4096)),
            Item::Data(1, 0, noise(7, 512)),
        ],
    }
}

#[test]
fn streams_of_version_1_stay_readable() {
    for golden in [raw_delta(), compressed_delta(), empty_delta(), initial()] {
        let id: DeltaId = golden.id.parse().unwrap();
        let (found_header, found_manifest, items, footer) = read(golden.stream).unwrap();
        assert_eq!(found_header, header(golden.kind));
        assert_eq!(found_manifest, manifest(golden.sizes));
        assert_eq!(items, golden.items);
        assert_eq!(footer.id, id);
        assert_eq!(read_by_scan(golden.stream).unwrap(), (golden.items, footer));
    }
}

#[test]
fn streams_without_compression_are_written_as_they_were() {
    for golden in [raw_delta(), empty_delta(), initial()] {
        let (_, stream) = write(&header(golden.kind), golden.sizes, RAW, &golden.items);
        assert!(stream == golden.stream, "{:?}", golden.kind);
    }
}

#[test]
fn the_compressed_golden_stream_has_compressed_frames() {
    let golden = compressed_delta();
    assert!(golden.stream != raw_delta().stream);
    let magic_of_zstd = [0x28, 0xb5, 0x2f, 0xfd];
    let frames = golden
        .stream
        .windows(4)
        .filter(|window| *window == magic_of_zstd)
        .count();
    assert!(frames >= 2, "{frames}");
}

#[test]
fn a_stream_of_version_2_is_refused_naming_both_versions() {
    let mut stream = empty_delta().stream.to_vec();
    stream[8] = 2;
    // A later version may be shorter or laid out differently: the first 12 bytes decide.
    for length in [12, stream.len()] {
        let error = read(&stream[..length]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap();
        assert!(
            matches!(
                error,
                lifeboat_stream::DecodeError::Header {
                    source: HeaderError::Version { found: 2 }
                }
            ),
            "{error}"
        );
        assert!(source.to_string().contains("version 2"), "{source}");
        assert!(source.to_string().contains("version 1"), "{source}");
    }
}

#[test]
fn the_header_of_a_golden_stream_says_where_it_belongs() {
    let (found, ..) = read(initial().stream).unwrap();
    let Header { base, sequence, .. } = found;
    assert_eq!(base, None);
    assert_eq!(sequence.number(), 43);
}
