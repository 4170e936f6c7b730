//! How fast this machine encodes, verifies, copies and scans a delta stream, on one core.
//!
//! Prints for each case the median of seven runs in bytes of the disk per second, and what the
//! stream takes for each changed byte.

#![expect(
    clippy::disallowed_methods,
    reason = "a measurement waits for nothing and reads the monotonic clock"
)]

use std::error::Error;
use std::io::{self, Cursor};
use std::time::Instant;

use lifeboat_model::{
    Consistency, DeltaId, DiskSize, LineageId, RelationshipId, Sequence, Timestamp,
};
use lifeboat_stream::{
    Base, Compression, Disk, Encoder, Ending, Header, Kind, Layout, Limits, Manifest, Options,
    copy_verified, scan, verify,
};

/// How much data each stream carries.
const DATA: usize = 512 << 20;

const RUNS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let random = noise(64 << 20);
    let half = half_compressible(&random);
    let limits = Limits {
        stream_bytes: u64::MAX,
        ending: Ending::EndOfInput,
    };
    let zstd = Compression::Zstd(1);
    for (name, source, frame, compression) in [
        ("1 MiB raw", &random, 1 << 20, Compression::None),
        ("64 KiB raw", &random, 64 << 10, Compression::None),
        ("4 KiB raw", &random, 4 << 10, Compression::None),
        ("1 MiB random, zstd 1", &random, 1 << 20, zstd),
        ("1 MiB half compressible, zstd 1", &half, 1 << 20, zstd),
        ("4 KiB half compressible, zstd 1", &half, 4 << 10, zstd),
    ] {
        let options = Options {
            compression,
            layout: Layout::Shareable,
        };
        let mut stream = Vec::with_capacity(DATA + DATA / 8);
        let encode = median(|| {
            stream.clear();
            encode(&mut stream, source, frame, options)
        })?;
        let verify = median(|| verify(&stream[..], &limits).map(drop).map_err(Into::into))?;
        let copy = median(|| {
            copy_verified(&stream[..], io::sink(), &limits)
                .map(drop)
                .map_err(Into::into)
        })?;
        let scan = median(|| {
            let mut scan = scan(Cursor::new(&stream), &limits)?;
            while scan.next_entry()?.is_some() {}
            Ok(())
        })?;
        let rate = |seconds: f64| DATA as f64 / seconds / 1e9;
        println!(
            "{name:34} encode {:5.2} GB/s, verify {:5.2}, copy {:5.2}, scan {:7.1}; {:.4} stream bytes per byte",
            rate(encode),
            rate(verify),
            rate(copy),
            rate(scan),
            stream.len() as f64 / DATA as f64
        );
    }
    Ok(())
}

/// Every second range of the disk is written, so that no two are neighbors.
fn encode(
    stream: &mut Vec<u8>,
    source: &[u8],
    frame: usize,
    options: Options,
) -> Result<(), Box<dyn Error>> {
    let header = Header {
        relationship: RelationshipId::from_bytes([1; 16]),
        lineage: LineageId::from_bytes([2; 16]),
        base: Some(Base {
            sequence: Sequence::new(1),
            id: DeltaId::from_bytes([3; 32]),
        }),
        sequence: Sequence::new(2),
        kind: Kind::Delta,
    };
    let disk = Disk {
        id: "sda".parse()?,
        size: DiskSize::try_from(2 * DATA as u64)?,
    };
    let manifest = Manifest::new(Timestamp::from_micros(0), Consistency::Crash, vec![disk])?;
    let mut encoder = Encoder::new(stream, &header, &manifest, options)?;
    for (n, bytes) in source
        .chunks_exact(frame)
        .cycle()
        .take(DATA / frame)
        .enumerate()
    {
        encoder.data(0, (2 * n * frame) as u64, bytes)?;
    }
    encoder.finish()?;
    Ok(())
}

fn median(mut run: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut seconds = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[RUNS / 2])
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Of every 64 bytes, 32 repeat.
fn half_compressible(noise: &[u8]) -> Vec<u8> {
    noise
        .chunks(64)
        .flat_map(|piece| {
            let (kept, dropped) = piece.split_at(piece.len() / 2);
            kept.iter().copied().chain(dropped.iter().map(|_| b'x'))
        })
        .collect()
}
