//! Arbitrary bytes: no reader panics, and all readers agree.
//!
//! Nearly no input survives the checksums, so each one is also tried with its checksums,
//! digests and footer put right, and once more as a description of frames between a sound
//! opening and a sound end: that leads past them to every rule behind.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use lifeboat_model::{Consistency, DiskSize, LineageId, RelationshipId, Sequence, Timestamp};
use lifeboat_stream::{
    Compression, Decoder, Disk, Encoder, Ending, Entry, Frame, Header, Kind, Layout, Limits,
    Manifest, Options, PayloadDecoder, Summary, copy_verified, scan, verify,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

const HEADER: usize = 104;
const FRAME: usize = 64;
const FOOTER: usize = 96;

/// A small input can say that it decompresses to very much.
const LIMITS: Limits = Limits {
    stream_bytes: 1 << 20,
    ending: Ending::EndOfInput,
};

fuzz_target!(|input: &[u8]| {
    check(input);
    check(&repair(input));
    check(&repair(&stream_of(input)));
});

/// A stream of two disks whose frames are told, and here and there spoiled, by the input.
fn stream_of(input: &[u8]) -> Vec<u8> {
    let kind = match input.len() % 4 {
        0 => Kind::Initial,
        _ => Kind::Resync,
    };
    let header = Header {
        relationship: RelationshipId::from_bytes([1; 16]),
        lineage: LineageId::from_bytes([2; 16]),
        base: None,
        sequence: Sequence::new(3),
        kind,
    };
    let disk = |id: &str, size| Disk {
        id: id.parse().expect("a disk id"),
        size: DiskSize::try_from(size).expect("a disk size"),
    };
    let disks = vec![disk("sda", 1 << 20), disk("sdb", 512)];
    let manifest = Manifest::new(Timestamp::from_micros(0), Consistency::Crash, disks)
        .expect("a manifest of two disks");
    let mut stream = Vec::new();
    Encoder::new(&mut stream, &header, &manifest, RAW).expect("a sound opening");
    for told in input.chunks_exact(8) {
        push_frame(&mut stream, told);
    }
    stream.push(5);
    stream.resize(stream.len() - 1 + FRAME + FOOTER, 0);
    stream
}

fn push_frame(stream: &mut Vec<u8>, told: &[u8]) {
    let (kind, encoding) = (1 + told[0] % 5, told[0] / 5 % 4);
    let place = u64::from(told[2]) * 512;
    let length = match kind {
        1 | 2 => usize::from(told[3]),
        _ => usize::from(told[3]) * 512,
    };
    let plain = match kind {
        1..=3 => vec![told[4]; length],
        _ => Vec::new(),
    };
    let mut header = [0; FRAME];
    header[0] = kind;
    match kind {
        2 => {
            header[1] = told[1] % 4;
            header[16..24].copy_from_slice(&(length as u64).to_le_bytes());
        }
        3 | 4 => {
            header[2] = told[1] % 3;
            header[8..16].copy_from_slice(&place.to_le_bytes());
        }
        _ => (),
    }
    if kind == 4 {
        header[16..24].copy_from_slice(&(length as u64).to_le_bytes());
    }
    let mut stored = plain.clone();
    if kind <= 3 {
        header[4..8].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        header[40] = encoding;
        if encoding == 2 {
            stored = zstd::bulk::compress(&plain, 1).expect("a short payload");
        }
        header[44..48].copy_from_slice(&(stored.len() as u32).to_le_bytes());
    }
    if told[5] >= 0xf0 {
        header[usize::from(told[6]) % 56] ^= told[7];
    }
    stream.extend_from_slice(&header);
    if kind <= 3 && encoding == 1 {
        stream.resize(stream.len().next_multiple_of(4096), 0);
    }
    stream.extend_from_slice(&stored);
}

fn check(stream: &[u8]) {
    let mut copy = Vec::new();
    let verified = verify(stream, &LIMITS);
    let copied = copy_verified(stream, &mut copy, &LIMITS);
    assert!(stream.starts_with(&copy));
    let scanned = scan_through(stream);
    let Ok(summary) = verified else {
        assert!(copied.is_err());
        return;
    };
    assert_eq!(copied.expect("what verifies can be copied"), summary);
    assert_eq!(copy, stream);
    assert!(scanned.is_some(), "what verifies can be listed");
    let again = encode_again(stream);
    let repeated = verify(&again[..], &LIMITS_OF_RAW).expect("what was encoded verifies");
    assert_same_content(&summary, &repeated);
}

const RAW: Options = Options {
    compression: Compression::None,
    layout: Layout::Compact,
};

/// Decompressed, the stream may be far longer.
const LIMITS_OF_RAW: Limits = Limits {
    stream_bytes: u64::MAX,
    ending: Ending::EndOfInput,
};

fn scan_through(stream: &[u8]) -> Option<()> {
    let mut scan = scan(Cursor::new(stream), &LIMITS).ok()?;
    let mut payloads = PayloadDecoder::new().ok()?;
    while let Some(entry) = scan.next_entry().ok()? {
        match entry {
            Entry::Data { payload, .. } | Entry::Blob { payload, .. } => {
                let start = usize::try_from(payload.position).ok()?;
                let stored = stream.get(start..start + payload.stored_len as usize)?;
                payloads.decode(&payload, stored).ok()?;
            }
            Entry::Zero { .. } => (),
        }
    }
    Some(())
}

fn encode_again(stream: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(stream, &LIMITS).expect("the stream verified");
    let (header, manifest) = (*decoder.header(), decoder.manifest().clone());
    let mut encoder =
        Encoder::new(Vec::new(), &header, &manifest, RAW).expect("a header that was read");
    let mut blob = Vec::new();
    while let Some(frame) = decoder.next_frame().expect("the stream verified") {
        match frame {
            Frame::Blob {
                kind,
                format,
                total,
                bytes,
                ..
            } => {
                blob.extend_from_slice(bytes);
                if blob.len() as u64 == total {
                    encoder
                        .blob(kind, format, &blob)
                        .expect("a blob that was read");
                    blob.clear();
                }
            }
            Frame::Data {
                disk,
                offset,
                bytes,
            } => encoder
                .data(disk, offset, bytes)
                .expect("a range that was read"),
            Frame::Zero {
                disk,
                offset,
                length,
            } => encoder
                .zero(disk, offset, length)
                .expect("a range that was read"),
        }
    }
    encoder.finish().expect("a stream that was read").1
}

/// The ids may differ: another writer may put spaces into its manifest.
fn assert_same_content(one: &Summary, other: &Summary) {
    assert_eq!(one.header, other.header);
    assert_eq!(one.manifest, other.manifest);
    assert_eq!(one.footer.content, other.footer.content);
    assert_eq!(one.footer.frames, other.footer.frames);
    assert_eq!(one.footer.data_bytes, other.footer.data_bytes);
    assert_eq!(one.footer.zero_bytes, other.footer.zero_bytes);
}

/// The same stream with everything put right that can be computed from the rest.
fn repair(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    if bytes.len() < HEADER {
        return bytes;
    }
    bytes[..12].copy_from_slice(b"\xd5LBDLTA\n\x01\0\0\0");
    let stream_check = xxh3_64(&bytes[..96]);
    bytes[96..HEADER].copy_from_slice(&stream_check.to_le_bytes());
    let mut identity = blake3::Hasher::new();
    identity.update(&bytes[..HEADER]);
    let mut content = blake3::Hasher::new();
    let (mut frames, mut data_bytes, mut zero_bytes) = (0_u64, 0_u64, 0_u64);
    let mut at = HEADER;
    while at + FRAME <= bytes.len() {
        let kind = bytes[at];
        let payload = repair_payload(&mut bytes, at);
        let seed = stream_check.wrapping_add(at as u64);
        let check = xxh3_64_with_seed(&bytes[at..at + 56], seed);
        bytes[at + 56..at + FRAME].copy_from_slice(&check.to_le_bytes());
        frames += 1;
        let Some((end, plain)) = payload else {
            return bytes;
        };
        if kind == 5 {
            break;
        }
        identity.update(&bytes[at..at + 40]);
        match kind {
            1 | 2 => {
                identity.update(&plain);
            }
            3 => {
                content.update(&plain);
                data_bytes += plain.len() as u64;
            }
            _ => zero_bytes = zero_bytes.wrapping_add(number(&bytes[at + 16..at + 24])),
        }
        at = end;
    }
    let footer = at + FRAME;
    if footer + FOOTER > bytes.len() {
        return bytes;
    }
    let content = content.finalize();
    identity.update(content.as_bytes());
    let fields = &mut bytes[footer..footer + FOOTER];
    fields[..8].copy_from_slice(&frames.to_le_bytes());
    fields[8..16].copy_from_slice(&data_bytes.to_le_bytes());
    fields[16..24].copy_from_slice(&zero_bytes.to_le_bytes());
    fields[24..56].copy_from_slice(content.as_bytes());
    fields[56..88].copy_from_slice(identity.finalize().as_bytes());
    let check = xxh3_64_with_seed(&fields[..88], stream_check);
    fields[88..].copy_from_slice(&check.to_le_bytes());
    bytes
}

/// Puts the digests of a frame right. Returns where the frame ends and what it decodes to, or
/// nothing when the input ends before.
fn repair_payload(bytes: &mut [u8], at: usize) -> Option<(usize, Vec<u8>)> {
    let (kind, encoding) = (bytes[at], bytes[at + 40]);
    if kind == 4 || kind == 5 {
        return Some((at + FRAME, Vec::new()));
    }
    let plain_len = number(&bytes[at + 4..at + 8]) as usize;
    let stored_len = number(&bytes[at + 44..at + 48]) as usize;
    let padding = match encoding {
        1 => (4096 - (at + FRAME) % 4096) % 4096,
        _ => 0,
    };
    let start = at + FRAME + padding;
    let stored = bytes.get(start..start.checked_add(stored_len)?)?.to_vec();
    let plain = if encoding == 2 {
        let check = xxh3_64(&stored);
        bytes[at + 48..at + 56].copy_from_slice(&check.to_le_bytes());
        zstd::bulk::decompress(&stored, plain_len.min(1 << 20)).unwrap_or_default()
    } else {
        stored
    };
    bytes[at + 24..at + 40].copy_from_slice(&xxh3_128(&plain).to_le_bytes());
    Some((start + stored_len, plain))
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}
