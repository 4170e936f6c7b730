//! Small streams that have every kind of frame.

use std::io::{Cursor, Read};

use lifeboat_model::{
    Consistency, DeltaId, DiskSize, LineageId, RelationshipId, Sequence, Timestamp,
};
use lifeboat_stream::{
    Base, BlobKind, Compression, DecodeError, Decoder, Disk, Encoder, Ending, Entry, Footer, Frame,
    Header, Kind, Layout, Limits, Manifest, Options, PayloadDecoder, scan,
};

/// No bound but the format's own, and nothing behind the footer.
pub const WHOLE: Limits = Limits {
    stream_bytes: u64::MAX,
    ending: Ending::EndOfInput,
};

pub const RAW: Options = Options {
    compression: Compression::None,
    layout: Layout::Shareable,
};

pub const COMPACT: Options = Options {
    compression: Compression::None,
    layout: Layout::Compact,
};

pub const ZSTD: Options = Options {
    compression: Compression::Zstd(1),
    layout: Layout::Shareable,
};

/// One thing to put into a stream, or taken out of one; blobs are whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Blob(BlobKind, u16, Vec<u8>),
    Data(usize, u64, Vec<u8>),
    Zero(usize, u64, u64),
}

pub fn header(kind: Kind) -> Header {
    let base = Base {
        sequence: Sequence::new(41),
        id: DeltaId::from_bytes([0xb5; 32]),
    };
    Header {
        relationship: RelationshipId::from_bytes(*b"relationship 16B"),
        lineage: LineageId::from_bytes(*b"lineage of 16 B."),
        base: (kind != Kind::Initial).then_some(base),
        sequence: Sequence::new(43),
        kind,
    }
}

/// A manifest of disks called `sda`, `sdb` and so on.
pub fn manifest(sizes: &[u64]) -> Manifest {
    let disks = sizes
        .iter()
        .zip('a'..='z')
        .map(|(&size, letter)| Disk {
            id: format!("sd{letter}").parse().unwrap(),
            size: DiskSize::try_from(size).unwrap(),
        })
        .collect();
    Manifest::new(
        Timestamp::from_micros(1_790_000_000_123_456),
        Consistency::Application,
        disks,
    )
    .unwrap()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Bytes that compress well and are not all the same.
pub fn text(length: usize) -> Vec<u8> {
    b"lifeboat keeps a copy ready. "
        .iter()
        .copied()
        .cycle()
        .take(length)
        .collect()
}

/// The disks of [`delta_items`].
pub const DELTA_SIZES: [u64; 3] = [1 << 20, 512, 1 << 20];

/// Every kind of frame and blob, with payloads that compress and some that do not.
pub fn delta_items() -> Vec<Item> {
    vec![
        Item::Blob(BlobKind::Nvram, 1, noise(1, 100)),
        Item::Blob(BlobKind::Tpm, 0, text(300)),
        Item::Blob(BlobKind::Definition, 65_535, b"{}".to_vec()),
        Item::Zero(0, 0, 4096),
        Item::Data(0, 4096, noise(2, 512)),
        Item::Data(0, 8192, text(1024)),
        Item::Zero(1, 0, 512),
        Item::Data(2, (1 << 20) - 1024, text(1024)),
    ]
}

pub fn write(
    header: &Header,
    sizes: &[u64],
    options: Options,
    items: &[Item],
) -> (Footer, Vec<u8>) {
    let mut encoder = Encoder::new(Vec::new(), header, &manifest(sizes), options).unwrap();
    for item in items {
        match item {
            Item::Blob(kind, format, bytes) => encoder.blob(*kind, *format, bytes).unwrap(),
            Item::Data(disk, offset, bytes) => encoder.data(*disk, *offset, bytes).unwrap(),
            Item::Zero(disk, offset, length) => encoder.zero(*disk, *offset, *length).unwrap(),
        }
    }
    let (footer, stream) = encoder.finish().unwrap();
    (footer, stream)
}

/// The stream of [`delta_items`].
pub fn delta(options: Options) -> Vec<u8> {
    write(&header(Kind::Delta), &DELTA_SIZES, options, &delta_items()).1
}

/// Everything a decoder hands out.
pub fn read<R: Read>(reader: R) -> Result<(Header, Manifest, Vec<Item>, Footer), DecodeError> {
    let mut decoder = Decoder::new(reader, &WHOLE)?;
    let mut items = Vec::new();
    while let Some(frame) = decoder.next_frame()? {
        match frame {
            Frame::Blob {
                kind,
                format,
                offset,
                bytes,
                ..
            } => push_piece(&mut items, kind, format, offset, bytes),
            Frame::Data {
                disk,
                offset,
                bytes,
            } => items.push(Item::Data(disk, offset, bytes.to_vec())),
            Frame::Zero {
                disk,
                offset,
                length,
            } => items.push(Item::Zero(disk, offset, length)),
        }
    }
    let footer = *decoder.footer().expect("the stream has ended");
    assert!(decoder.next_frame()?.is_none(), "the end is final");
    Ok((*decoder.header(), decoder.manifest().clone(), items, footer))
}

/// The same by listing the stream and fetching each payload where the list says it is.
pub fn read_by_scan(stream: &[u8]) -> Result<(Vec<Item>, Footer), Box<dyn std::error::Error>> {
    let mut entries = Vec::new();
    let mut scan = scan(Cursor::new(stream), &WHOLE)?;
    while let Some(entry) = scan.next_entry()? {
        entries.push(entry);
    }
    let footer = *scan.footer().expect("the stream has ended");
    let mut payloads = PayloadDecoder::new()?;
    let mut items = Vec::new();
    for entry in entries {
        let mut fetch = |payload: &lifeboat_stream::PayloadRef| {
            let start = payload.position as usize;
            let stored = &stream[start..start + payload.stored_len as usize];
            payloads.decode(payload, stored).map(<[u8]>::to_vec)
        };
        match entry {
            Entry::Blob {
                kind,
                format,
                offset,
                payload,
                ..
            } => push_piece(&mut items, kind, format, offset, &fetch(&payload)?),
            Entry::Data {
                disk,
                offset,
                payload,
            } => items.push(Item::Data(disk, offset, fetch(&payload)?)),
            Entry::Zero {
                disk,
                offset,
                length,
            } => items.push(Item::Zero(disk, offset, length)),
        }
    }
    Ok((items, footer))
}

fn push_piece(items: &mut Vec<Item>, kind: BlobKind, format: u16, offset: u64, bytes: &[u8]) {
    match items.last_mut() {
        Some(Item::Blob(last, _, whole)) if *last == kind => {
            assert_eq!(whole.len() as u64, offset, "pieces follow one another");
            whole.extend_from_slice(bytes);
        }
        _ => {
            assert_eq!(offset, 0, "a blob starts at its start");
            items.push(Item::Blob(kind, format, bytes.to_vec()));
        }
    }
}
