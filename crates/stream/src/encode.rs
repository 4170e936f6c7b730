//! Writing a delta stream.

use std::io::{self, Write};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};
use zstd::bulk::Compressor;

use crate::footer::Footer;
use crate::frame::{
    BlobKind, FRAME_HEADER_LEN, FrameHeader, MAX_DATA_LEN, Meaning, Payload, Place,
    SHARE_ALIGNMENT, SHARE_MIN_LEN,
};
use crate::header::{Header, InvalidHeader};
use crate::identity::{Content, Identity};
use crate::manifest::Manifest;
use crate::payload::Encoding;
use crate::rules::{RuleError, Rules};

/// The zstd levels that [`Compression::Zstd`] may name: beyond them, memory and time
/// grow out of proportion to what is saved.
const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = -7..=19;

/// How a stream is to be written. What it says, and its id, do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub compression: Compression,
    pub layout: Layout,
}

/// Whether payloads are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    /// With this level, -7 to 19. A payload that does not get smaller by a sixteenth stays raw.
    Zstd(i32),
}

/// Where payloads start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Raw payloads of 64 KiB and more start at a multiple of 4 KiB, so that the
    /// receiver's file system can share them with the disk image. Costs up to 4 KiB
    /// for each: 6 % of a payload of 64 KiB, 0.4 % of one of 1 MiB.
    Shareable,
    /// Every payload follows its header: for receivers that cannot share blocks.
    Compact,
}

impl Default for Options {
    /// Fast compression, and what is not compressed can be shared.
    fn default() -> Self {
        Self {
            compression: Compression::Zstd(1),
            layout: Layout::Shareable,
        }
    }
}

/// Why a stream cannot be written on.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("write the delta stream")]
    Write { source: io::Error },
    #[error("begin a delta stream with this header")]
    Header { source: InvalidHeader },
    #[error("compress with zstd level {level}: levels are -7 to 19")]
    Level { level: i32 },
    #[error("prepare zstd for encoding")]
    Prepare { source: io::Error },
    #[error("compress a payload of {length} bytes")]
    Compress { length: usize, source: io::Error },
    #[error("write {length} bytes of data in one frame: {max} are allowed", max = MAX_DATA_LEN)]
    DataLength { length: usize },
    #[error("write a frame that no reader would accept here")]
    Rule { source: RuleError },
    #[error("write on after a failure: the stream is cut where it failed, begin a new one")]
    Broken,
}

/// Writes one delta stream.
///
/// A call that is refused leaves the stream as it was. A call that fails while writing
/// leaves it cut, and every later call is refused with [`EncodeError::Broken`].
/// Every frame takes two or three writes: give it a buffered writer.
pub struct Encoder<W> {
    writer: W,
    position: u64,
    stream_check: u64,
    layout: Layout,
    compressor: Option<Compressor<'static>>,
    compressed: Vec<u8>,
    rules: Rules,
    identity: Identity,
    content: Content,
    health: Health,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Sound,
    Broken,
}

impl<W: Write> Encoder<W> {
    /// Begins a stream: writes its header and its manifest.
    ///
    /// # Errors
    ///
    /// A header that contradicts itself, a zstd level that does not exist, or a failure to write.
    pub fn new(
        writer: W,
        header: &Header,
        manifest: &Manifest,
        options: Options,
    ) -> Result<Self, EncodeError> {
        header
            .validate()
            .map_err(|source| EncodeError::Header { source })?;
        let compressor = match options.compression {
            Compression::None => None,
            Compression::Zstd(level) if ZSTD_LEVELS.contains(&level) => {
                let prepare = |source| EncodeError::Prepare { source };
                Some(Compressor::new(level).map_err(prepare)?)
            }
            Compression::Zstd(level) => return Err(EncodeError::Level { level }),
        };
        let (header_bytes, stream_check) = header.encode();
        let mut encoder = Self {
            writer,
            position: 0,
            stream_check,
            layout: options.layout,
            compressor,
            compressed: Vec::new(),
            rules: Rules::new(header.kind, manifest),
            identity: Identity::new(&header_bytes),
            content: Content::new(),
            health: Health::Sound,
        };
        encoder.write(&header_bytes)?;
        encoder.write_manifest(&manifest.to_json())?;
        Ok(encoder)
    }

    /// Writes a blob whose bytes have the version `format`, a number that belongs to whoever
    /// made them.
    ///
    /// # Errors
    ///
    /// Refused when ranges have been written, when this kind or a later one has been written,
    /// when the blob is empty, or when all blobs together pass 64 MiB.
    pub fn blob(&mut self, kind: BlobKind, format: u16, bytes: &[u8]) -> Result<(), EncodeError> {
        self.check_health()?;
        let total = bytes.len() as u64;
        self.rules
            .check_blob(kind, total)
            .map_err(|source| EncodeError::Rule { source })?;
        for (n, piece) in bytes.chunks(MAX_DATA_LEN).enumerate() {
            let meaning = Meaning::Blob {
                kind,
                format,
                offset: (n * MAX_DATA_LEN) as u64,
                total,
            };
            self.write_payload(meaning, piece)?;
        }
        Ok(())
    }

    /// Writes what the disk with this index in the manifest holds from `offset` on.
    ///
    /// # Errors
    ///
    /// Refused unless `bytes` are 512 to [`MAX_DATA_LEN`], both `offset` and their
    /// number are multiples of 512, and the range lies inside the disk and behind the last one.
    pub fn data(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> Result<(), EncodeError> {
        self.check_health()?;
        if bytes.len() > MAX_DATA_LEN {
            return Err(EncodeError::DataLength {
                length: bytes.len(),
            });
        }
        let disk = self.disk_index(disk)?;
        self.write_payload(Meaning::Data { disk, offset }, bytes)
    }

    /// Writes that the disk with this index in the manifest holds `length` zero bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// Refused unless `offset` and `length` are multiples of 512 and the range is not empty, lies
    /// inside the disk and behind the last one.
    pub fn zero(&mut self, disk: usize, offset: u64, length: u64) -> Result<(), EncodeError> {
        self.check_health()?;
        let disk = self.disk_index(disk)?;
        let meaning = Meaning::Zero {
            disk,
            offset,
            length,
        };
        self.pass(meaning, 0)?;
        self.write_frame(FrameHeader {
            meaning,
            payload: None,
        })
    }

    /// Ends the stream, flushes the writer and gives it back.
    ///
    /// # Errors
    ///
    /// Refused when an initial stream does not carry whole disks; or a failure to write.
    pub fn finish(mut self) -> Result<(Footer, W), EncodeError> {
        self.check_health()?;
        self.pass(Meaning::End, 0)?;
        self.write_frame(FrameHeader {
            meaning: Meaning::End,
            payload: None,
        })?;
        let content = self.content.finish();
        let id = self.identity.finish(&content);
        let footer = Footer::new(self.rules.counts(), content, id);
        self.write(&footer.encode(self.stream_check))?;
        self.writer
            .flush()
            .map_err(|source| EncodeError::Write { source })?;
        Ok((footer, self.writer))
    }

    /// The writer. Bytes that it holds may be taken out; nothing else may be written to it.
    pub const fn writer_mut(&mut self) -> &mut W {
        &mut self.writer
    }

    /// How many bytes of the stream have been handed to the writer.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    fn check_health(&self) -> Result<(), EncodeError> {
        match self.health {
            Health::Sound => Ok(()),
            Health::Broken => Err(EncodeError::Broken),
        }
    }

    fn disk_index(&self, disk: usize) -> Result<u16, EncodeError> {
        u16::try_from(disk).map_err(|_| EncodeError::Rule {
            source: self.rules.no_such_disk(disk),
        })
    }

    fn pass(&mut self, meaning: Meaning, plain_len: u64) -> Result<(), EncodeError> {
        self.rules
            .pass(meaning, plain_len)
            .map_err(|source| EncodeError::Rule { source })
    }

    fn write_manifest(&mut self, json: &[u8]) -> Result<(), EncodeError> {
        let header = FrameHeader {
            meaning: Meaning::Manifest,
            payload: Some(raw_payload(json, Encoding::Raw)),
        };
        self.write_frame(header)?;
        self.identity.described(json);
        self.write(json)
    }

    fn write_payload(&mut self, meaning: Meaning, plain: &[u8]) -> Result<(), EncodeError> {
        self.pass(meaning, plain.len() as u64)?;
        let payload = self.compress(plain)?;
        self.write_frame(FrameHeader {
            meaning,
            payload: Some(payload),
        })?;
        match meaning {
            Meaning::Data { .. } => self.content.update(plain),
            Meaning::Manifest | Meaning::Blob { .. } | Meaning::Zero { .. } | Meaning::End => {
                self.identity.described(plain);
            }
        }
        match payload.encoding {
            Encoding::Raw | Encoding::RawAligned => self.write(plain),
            Encoding::Zstd => {
                let compressed = std::mem::take(&mut self.compressed);
                let written = self.write(&compressed[..payload.stored_len as usize]);
                self.compressed = compressed;
                written
            }
        }
    }

    /// Describes how `plain` will be stored; what is stored compressed is left in `compressed`.
    fn compress(&mut self, plain: &[u8]) -> Result<Payload, EncodeError> {
        let Some(compressor) = &mut self.compressor else {
            return Ok(raw_payload(plain, self.raw_encoding(plain.len())));
        };
        let room = zstd::zstd_safe::compress_bound(plain.len());
        if self.compressed.len() < room {
            self.compressed.resize(room, 0);
        }
        let stored_len = compressor
            .compress_to_buffer(plain, &mut self.compressed[..])
            .map_err(|source| {
                self.health = Health::Broken;
                EncodeError::Compress {
                    length: plain.len(),
                    source,
                }
            })?;
        if stored_len > plain.len() - plain.len().div_ceil(16) {
            return Ok(raw_payload(plain, self.raw_encoding(plain.len())));
        }
        Ok(Payload {
            encoding: Encoding::Zstd,
            stored_len: stored_len as u32,
            stored_check: xxh3_64(&self.compressed[..stored_len]),
            ..raw_payload(plain, Encoding::Raw)
        })
    }

    fn raw_encoding(&self, length: usize) -> Encoding {
        match self.layout {
            Layout::Shareable if length >= SHARE_MIN_LEN => Encoding::RawAligned,
            Layout::Shareable | Layout::Compact => Encoding::Raw,
        }
    }

    /// Writes a frame header and the padding behind it.
    fn write_frame(&mut self, header: FrameHeader) -> Result<(), EncodeError> {
        let bytes: [u8; FRAME_HEADER_LEN] = header.encode(Place {
            stream: self.stream_check,
            position: self.position,
        });
        if header.meaning != Meaning::End {
            self.identity.frame(&bytes);
        }
        let padding = header.padding(self.position) as usize;
        self.write(&bytes)?;
        self.write(&[0; SHARE_ALIGNMENT as usize][..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.writer.write_all(bytes).map_err(|source| {
            self.health = Health::Broken;
            EncodeError::Write { source }
        })?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

fn raw_payload(plain: &[u8], encoding: Encoding) -> Payload {
    Payload {
        plain_len: plain.len() as u32,
        digest: xxh3_128(plain),
        encoding,
        stored_len: plain.len() as u32,
        stored_check: 0,
    }
}

impl<W> std::fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("position", &self.position)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}
