//! Passing a stream on, and reading one through, with every byte proved.

use std::io::{self, Read, Write};

use crate::decode::Decoder;
use crate::footer::Footer;
use crate::frame::SHARE_ALIGNMENT;
use crate::header::Header;
use crate::manifest::Manifest;
use crate::reading::{DecodeError, Limits};

/// How many proved bytes are collected before they are written: small frames are far smaller
/// than what a file takes well.
const WRITE_LEN: usize = 256 << 10;

/// What a complete and proved stream was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub header: Header,
    pub manifest: Manifest,
    pub footer: Footer,
    /// The length of the stream.
    pub bytes: u64,
}

/// Why a stream was not passed on to its end.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("receive a delta stream")]
    Decode { source: DecodeError },
    #[error("store a delta stream")]
    Write { source: io::Error },
}

/// Reads a whole stream from `reader` and writes exactly its bytes to `writer`, which is flushed
/// at the end.
///
/// No byte of a frame is written before the whole frame has been proved, and the
/// footer only when the delta's id has. After an error, what was written is the
/// beginning of a stream that every reader refuses as cut.
/// Takes a few MiB of memory whatever the input says. Small frames take two small reads: give it
/// a buffered reader.
///
/// # Errors
///
/// The input is refused, or the output cannot be written.
pub fn copy_verified<R: Read, W: Write>(
    reader: R,
    writer: W,
    limits: &Limits,
) -> Result<Summary, CopyError> {
    let decoder = Decoder::new(reader, limits).map_err(|source| CopyError::Decode { source })?;
    copy_rest(decoder, writer)
}

/// As [`copy_verified`], for a stream whose header and manifest the caller has already
/// looked at.
///
/// # Errors
///
/// The input is refused, or the output cannot be written.
///
/// # Panics
///
/// If the caller has read a frame: it would be missing in the copy.
pub fn copy_rest<R: Read, W: Write>(
    mut decoder: Decoder<R>,
    writer: W,
) -> Result<Summary, CopyError> {
    assert!(
        decoder.is_at_first_frame(),
        "BUG: a frame was read before the stream is copied"
    );
    let decoding = |source| CopyError::Decode { source };
    let writing = |source| CopyError::Write { source };
    let mut output = Output {
        writer,
        pending: Vec::with_capacity(WRITE_LEN),
    };
    for bytes in decoder.opening() {
        output.write(bytes).map_err(writing)?;
    }
    while let Some(framed) = decoder.advance().map_err(decoding)? {
        let (header, stored) = decoder.last_frame(&framed);
        let padding = &[0; SHARE_ALIGNMENT as usize][..framed.padding as usize];
        for bytes in [header, padding, stored] {
            output.write(bytes).map_err(writing)?;
        }
    }
    let (end, footer) = decoder.ending().ok_or(CopyError::Decode {
        source: DecodeError::Stopped,
    })?;
    for bytes in [&end[..], &footer[..]] {
        output.write(bytes).map_err(writing)?;
    }
    output.finish().map_err(writing)?;
    summary(&decoder).map_err(decoding)
}

/// Reads a whole stream and proves every byte of it.
///
/// # Errors
///
/// The input is refused.
pub fn verify<R: Read>(reader: R, limits: &Limits) -> Result<Summary, DecodeError> {
    let mut decoder = Decoder::new(reader, limits)?;
    while decoder.advance()?.is_some() {}
    summary(&decoder)
}

fn summary<R: Read>(decoder: &Decoder<R>) -> Result<Summary, DecodeError> {
    let footer = decoder.footer().ok_or(DecodeError::Stopped)?;
    Ok(Summary {
        header: *decoder.header(),
        manifest: decoder.manifest().clone(),
        footer: *footer,
        bytes: decoder.position(),
    })
}

/// Collects small writes. Unlike a buffered writer of the standard library it writes nothing more
/// when it is dropped.
struct Output<W> {
    writer: W,
    pending: Vec<u8>,
}

impl<W: Write> Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.pending.len() + bytes.len() > WRITE_LEN {
            self.writer.write_all(&self.pending)?;
            self.pending.clear();
        }
        if bytes.len() >= WRITE_LEN {
            return self.writer.write_all(bytes);
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.writer.write_all(&self.pending)?;
        self.writer.flush()
    }
}
