//! Arbitrary calls of the encoder: it refuses or accepts, and what it accepted is read back
//! exactly.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use lifeboat_model::{
    Consistency, DeltaId, DiskSize, LineageId, RelationshipId, Sequence, Timestamp,
};
use lifeboat_stream::{
    Base, BlobKind, Compression, Decoder, Disk, Encoder, Ending, Entry, Frame, Header, Kind,
    Layout, Limits, Manifest, Options, copy_verified, scan,
};

const LIMITS: Limits = Limits {
    stream_bytes: u64::MAX,
    ending: Ending::EndOfInput,
};

#[derive(Debug, Arbitrary)]
struct Input {
    kind: u8,
    base: Option<(u64, u8)>,
    sequence: u64,
    sizes: Vec<u16>,
    level: Option<i8>,
    shareable: bool,
    calls: Vec<Call>,
}

#[derive(Debug, Arbitrary)]
enum Call {
    Blob {
        kind: u8,
        format: u16,
        bytes: Vec<u8>,
    },
    Data {
        disk: u8,
        sector: u16,
        sectors: u8,
        seed: u8,
    },
    /// Offsets and lengths that are mostly wrong.
    OddData {
        disk: u8,
        offset: u64,
        bytes: Vec<u8>,
    },
    Zero {
        disk: u8,
        sector: u16,
        sectors: u16,
    },
    OddZero {
        disk: u8,
        offset: u64,
        length: u64,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Accepted {
    Blob(BlobKind, u16, Vec<u8>),
    Data(usize, u64, Vec<u8>),
    Zero(usize, u64, u64),
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(bytes)) {
        run(&input);
    }
});

fn run(input: &Input) -> Option<()> {
    let (header, manifest) = (header(input), manifest(input)?);
    let options = Options {
        compression: match input.level {
            Some(level) => Compression::Zstd(i32::from(level)),
            None => Compression::None,
        },
        layout: match input.shareable {
            true => Layout::Shareable,
            false => Layout::Compact,
        },
    };
    let mut encoder = Encoder::new(Vec::new(), &header, &manifest, options).ok()?;
    let accepted: Vec<_> = input
        .calls
        .iter()
        .filter_map(|call| apply(&mut encoder, call))
        .collect();
    let (footer, stream) = encoder.finish().ok()?;

    let mut copy = Vec::new();
    let summary =
        copy_verified(&stream[..], &mut copy, &LIMITS).expect("what was written is accepted");
    assert_eq!(copy, stream);
    assert_eq!(summary.header, header);
    assert_eq!(summary.manifest, manifest);
    assert_eq!(summary.footer, footer);
    assert_eq!(decode(&stream), accepted);

    let mut scan = scan(Cursor::new(&stream), &LIMITS).expect("what was written can be listed");
    let mut listed = 0;
    while let Some(entry) = scan.next_entry().expect("what was written can be listed") {
        listed += 1;
        if let Entry::Data { payload, .. } = entry {
            assert!(payload.position + u64::from(payload.stored_len) <= stream.len() as u64);
        }
    }
    assert_eq!(listed + 2, footer.frames);
    Some(())
}

fn header(input: &Input) -> Header {
    Header {
        relationship: RelationshipId::from_bytes([1; 16]),
        lineage: LineageId::from_bytes([2; 16]),
        base: input.base.map(|(sequence, byte)| Base {
            sequence: Sequence::new(sequence),
            id: DeltaId::from_bytes([byte; 32]),
        }),
        sequence: Sequence::new(input.sequence),
        kind: match input.kind % 3 {
            0 => Kind::Initial,
            1 => Kind::Delta,
            _ => Kind::Resync,
        },
    }
}

fn manifest(input: &Input) -> Option<Manifest> {
    let disks = input
        .sizes
        .iter()
        .enumerate()
        .filter_map(|(n, &sectors)| {
            Some(Disk {
                id: n.to_string().parse().ok()?,
                size: DiskSize::try_from(u64::from(sectors) * 512).ok()?,
            })
        })
        .collect();
    Manifest::new(Timestamp::from_micros(0), Consistency::Crash, disks).ok()
}

fn apply(encoder: &mut Encoder<Vec<u8>>, call: &Call) -> Option<Accepted> {
    match call {
        Call::Blob {
            kind,
            format,
            bytes,
        } => {
            let kind = match kind % 3 {
                0 => BlobKind::Nvram,
                1 => BlobKind::Tpm,
                _ => BlobKind::Definition,
            };
            encoder.blob(kind, *format, bytes).ok()?;
            Some(Accepted::Blob(kind, *format, bytes.clone()))
        }
        Call::Data {
            disk,
            sector,
            sectors,
            seed,
        } => {
            let bytes: Vec<u8> = (0..usize::from(*sectors) * 512)
                .map(|n| seed.wrapping_mul((n % 253) as u8))
                .collect();
            data(encoder, *disk, u64::from(*sector) * 512, &bytes)
        }
        Call::OddData {
            disk,
            offset,
            bytes,
        } => data(encoder, *disk, *offset, bytes),
        Call::Zero {
            disk,
            sector,
            sectors,
        } => zero(
            encoder,
            *disk,
            u64::from(*sector) * 512,
            u64::from(*sectors) * 512,
        ),
        Call::OddZero {
            disk,
            offset,
            length,
        } => zero(encoder, *disk, *offset, *length),
    }
}

fn data(encoder: &mut Encoder<Vec<u8>>, disk: u8, offset: u64, bytes: &[u8]) -> Option<Accepted> {
    let disk = usize::from(disk);
    encoder.data(disk, offset, bytes).ok()?;
    Some(Accepted::Data(disk, offset, bytes.to_vec()))
}

fn zero(encoder: &mut Encoder<Vec<u8>>, disk: u8, offset: u64, length: u64) -> Option<Accepted> {
    let disk = usize::from(disk);
    encoder.zero(disk, offset, length).ok()?;
    Some(Accepted::Zero(disk, offset, length))
}

fn decode(stream: &[u8]) -> Vec<Accepted> {
    let mut decoder = Decoder::new(stream, &LIMITS).expect("what was written is accepted");
    let mut found = Vec::new();
    while let Some(frame) = decoder.next_frame().expect("what was written is accepted") {
        found.push(match frame {
            // Inputs are far shorter than one piece, so every piece is a whole blob.
            Frame::Blob {
                kind,
                format,
                bytes,
                ..
            } => Accepted::Blob(kind, format, bytes.to_vec()),
            Frame::Data {
                disk,
                offset,
                bytes,
            } => Accepted::Data(disk, offset, bytes.to_vec()),
            Frame::Zero {
                disk,
                offset,
                length,
            } => Accepted::Zero(disk, offset, length),
        });
    }
    found
}
