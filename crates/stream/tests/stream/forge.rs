//! A second writer, made from `docs/delta-stream.md` alone, that can also write what no
//! encoder would.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

pub const MANIFEST: u8 = 1;
pub const BLOB: u8 = 2;
pub const DATA: u8 = 3;
pub const ZERO: u8 = 4;
pub const END: u8 = 5;

pub const ALIGNED: u8 = 1;
pub const ZSTD: u8 = 2;

/// The fields of a frame, and what stands behind its header.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    pub kind: u8,
    pub blob: u8,
    pub index: u16,
    pub plain_len: u32,
    pub offset: u64,
    pub extent: u64,
    pub digest: u128,
    pub encoding: u8,
    pub stored_len: u32,
    pub stored_check: u64,
    pub padding: Vec<u8>,
    pub stored: Vec<u8>,
}

impl Fields {
    /// A frame whose payload is `plain`, stored raw.
    pub fn raw(kind: u8, index: u16, offset: u64, plain: &[u8]) -> Self {
        Self {
            kind,
            index,
            offset,
            plain_len: plain.len() as u32,
            digest: xxh3_128(plain),
            stored_len: plain.len() as u32,
            stored: plain.to_vec(),
            ..Self::default()
        }
    }

    /// A data frame that claims to decode from `stored` to `plain`.
    pub fn zstd(offset: u64, plain: &[u8], stored: Vec<u8>) -> Self {
        Self {
            encoding: ZSTD,
            stored_len: stored.len() as u32,
            stored_check: xxh3_64(&stored),
            stored,
            ..Self::raw(DATA, 0, offset, plain)
        }
    }

    pub fn zero(index: u16, offset: u64, extent: u64) -> Self {
        Self {
            kind: ZERO,
            index,
            offset,
            extent,
            ..Self::default()
        }
    }

    pub fn blob(blob: u8, format: u16, bytes: &[u8]) -> Self {
        Self {
            blob,
            extent: bytes.len() as u64,
            ..Self::raw(BLOB, format, 0, bytes)
        }
    }
}

/// The fields of a footer.
#[derive(Debug, Clone)]
pub struct FooterFields {
    pub frames: u64,
    pub data_bytes: u64,
    pub zero_bytes: u64,
    pub content: [u8; 32],
    pub id: [u8; 32],
}

/// A stream under way, in which every checksum is right.
#[derive(Debug, Clone)]
pub struct Forge {
    pub bytes: Vec<u8>,
    stream_check: u64,
    identity: blake3::Hasher,
    content: blake3::Hasher,
    frames: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

impl Forge {
    /// Begins with the fields of [`sample::header`](crate::sample::header); kind 1 has no base.
    pub fn new(kind: u8) -> Self {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(b"\xd5LBDLTA\n");
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&[kind, 0, 0, 0]);
        bytes.extend_from_slice(b"relationship 16B");
        bytes.extend_from_slice(b"lineage of 16 B.");
        bytes.extend_from_slice(&43_u64.to_le_bytes());
        let (base, id) = if kind == 1 { (0, 0) } else { (41_u64, 0xb5) };
        bytes.extend_from_slice(&base.to_le_bytes());
        bytes.extend_from_slice(&[id; 32]);
        let stream_check = xxh3_64(&bytes);
        bytes.extend_from_slice(&stream_check.to_le_bytes());
        let mut identity = blake3::Hasher::new();
        identity.update(&bytes);
        Self {
            bytes,
            stream_check,
            identity,
            content: blake3::Hasher::new(),
            frames: 0,
            data_bytes: 0,
            zero_bytes: 0,
        }
    }

    /// Begins with one disk of this size.
    pub fn with_disk(kind: u8, size: u64) -> Self {
        let json = format!(
            r#"{{"format":1,"captured_at":7,"consistency":"crash","disks":[{{"id":"sda","size":{size}}}]}}"#
        );
        Self::new(kind).push(&Fields::raw(MANIFEST, 0, 0, json.as_bytes()))
    }

    /// Adds a frame; its payload counts as what it decodes to only when it is raw.
    #[must_use]
    pub fn push(mut self, fields: &Fields) -> Self {
        let mut header = Vec::new();
        header.extend_from_slice(&[fields.kind, fields.blob]);
        header.extend_from_slice(&fields.index.to_le_bytes());
        header.extend_from_slice(&fields.plain_len.to_le_bytes());
        header.extend_from_slice(&fields.offset.to_le_bytes());
        header.extend_from_slice(&fields.extent.to_le_bytes());
        header.extend_from_slice(&fields.digest.to_le_bytes());
        if fields.kind != END {
            self.identity.update(&header);
        }
        header.extend_from_slice(&[fields.encoding, 0, 0, 0]);
        header.extend_from_slice(&fields.stored_len.to_le_bytes());
        header.extend_from_slice(&fields.stored_check.to_le_bytes());
        let seed = self.stream_check.wrapping_add(self.bytes.len() as u64);
        let check = xxh3_64_with_seed(&header, seed);
        header.extend_from_slice(&check.to_le_bytes());
        assert_eq!(header.len(), 64);
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(&fields.padding);
        self.bytes.extend_from_slice(&fields.stored);
        match fields.kind {
            MANIFEST | BLOB => {
                self.identity.update(&fields.stored);
            }
            DATA => {
                self.content.update(&fields.stored);
                self.data_bytes += u64::from(fields.plain_len);
            }
            ZERO => self.zero_bytes = self.zero_bytes.wrapping_add(fields.extent),
            _ => (),
        }
        self.frames += 1;
        self
    }

    /// As many zero bytes as bring the payload of the next frame to a multiple of 4096.
    pub fn padding(&self) -> Vec<u8> {
        vec![0; (4096 - (self.bytes.len() + 64) % 4096) % 4096]
    }

    pub fn finish(self) -> Vec<u8> {
        self.finish_with(|_| ())
    }

    /// Ends the stream with a footer that `change` may make wrong.
    pub fn finish_with(self, change: impl FnOnce(&mut FooterFields)) -> Vec<u8> {
        let mut ended = self.push(&Fields {
            kind: END,
            ..Fields::default()
        });
        let content = *ended.content.finalize().as_bytes();
        ended.identity.update(&content);
        let mut fields = FooterFields {
            frames: ended.frames,
            data_bytes: ended.data_bytes,
            zero_bytes: ended.zero_bytes,
            content,
            id: *ended.identity.finalize().as_bytes(),
        };
        change(&mut fields);
        let mut footer = Vec::new();
        footer.extend_from_slice(&fields.frames.to_le_bytes());
        footer.extend_from_slice(&fields.data_bytes.to_le_bytes());
        footer.extend_from_slice(&fields.zero_bytes.to_le_bytes());
        footer.extend_from_slice(&fields.content);
        footer.extend_from_slice(&fields.id);
        let check = xxh3_64_with_seed(&footer, ended.stream_check);
        footer.extend_from_slice(&check.to_le_bytes());
        ended.bytes.extend_from_slice(&footer);
        ended.bytes
    }
}

/// `length` zero bytes, compressed without saying how many they are.
pub fn bomb(length: u64) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    let mut left = length;
    while left > 0 {
        let step = left.min(1 << 20);
        std::io::Write::write_all(&mut encoder, &vec![0; step as usize]).unwrap();
        left -= step;
    }
    encoder.finish().unwrap()
}
