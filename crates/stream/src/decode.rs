//! Reading a delta stream from the first byte to the last.

use std::io::Read;

use crate::footer::{FOOTER_LEN, Footer};
use crate::frame::{BlobKind, FRAME_HEADER_LEN, FrameHeader, Meaning};
use crate::header::Header;
use crate::identity::Content;
use crate::manifest::Manifest;
use crate::payload::Encoding;
use crate::reading::{DecodeError, Framed, Limits, Reading, State};

/// One thing a stream says. `disk` is an index into the manifest's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of a blob: pieces follow one another until `offset` and the number of `bytes`
    /// make up `total`.
    Blob {
        kind: BlobKind,
        format: u16,
        total: u64,
        offset: u64,
        bytes: &'a [u8],
    },
    /// The disk holds `bytes` from `offset` on.
    Data {
        disk: usize,
        offset: u64,
        bytes: &'a [u8],
    },
    /// The disk holds `length` zero bytes from `offset` on.
    Zero {
        disk: usize,
        offset: u64,
        length: u64,
    },
}

/// Reads a stream in order and hands out only what has been proved.
///
/// Each frame is proved when it is handed out; that it belongs to the delta with the footer's id
/// is proved when [`Decoder::next_frame`] returns `None`. Takes a few MiB of memory
/// whatever the input says. Small frames take two small reads: give it a buffered reader.
pub struct Decoder<R> {
    reading: Reading<R>,
    content: Content,
    state: State,
}

impl<R: Read> Decoder<R> {
    /// Reads the header and the manifest.
    ///
    /// # Errors
    ///
    /// The input cannot be read, is no delta stream of this version, or is damaged.
    pub fn new(reader: R, limits: &Limits) -> Result<Self, DecodeError> {
        Ok(Self {
            reading: Reading::open(reader, limits)?,
            content: Content::new(),
            state: State::Open,
        })
    }

    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.reading.header
    }

    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.reading.manifest
    }

    /// The next frame, or `None` once the footer has been proved.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with the stream; every later call is refused with
    /// [`DecodeError::Stopped`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, DecodeError> {
        let Some(Framed { header, .. }) = self.advance()? else {
            return Ok(None);
        };
        Ok(match header.meaning {
            Meaning::Blob {
                kind,
                format,
                offset,
                total,
            } => Some(Frame::Blob {
                kind,
                format,
                total,
                offset,
                bytes: self.plain(&header),
            }),
            Meaning::Data { disk, offset } => Some(Frame::Data {
                disk: usize::from(disk),
                offset,
                bytes: self.plain(&header),
            }),
            Meaning::Zero {
                disk,
                offset,
                length,
            } => Some(Frame::Zero {
                disk: usize::from(disk),
                offset,
                length,
            }),
            Meaning::Manifest | Meaning::End => None,
        })
    }

    /// The footer, once it has been proved.
    #[must_use]
    pub const fn footer(&self) -> Option<&Footer> {
        self.state.footer()
    }

    /// How many bytes of the stream have been read.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.reading.position()
    }

    /// The reader, which stands where the decoder stopped reading.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.reading.into_inner()
    }

    /// Whether nothing has been read beyond the manifest.
    pub(crate) const fn is_at_first_frame(&self) -> bool {
        self.reading.rules.counts().frames == 1
    }

    /// The stream's header and manifest as they were read, before the first frame is.
    pub(crate) fn opening(&self) -> [&[u8]; 3] {
        [
            &self.reading.header_bytes,
            &self.reading.frame_bytes,
            self.reading.stored(),
        ]
    }

    /// The header and the stored payload of the last frame as they were read.
    pub(crate) fn last_frame(&self, framed: &Framed) -> (&[u8], &[u8]) {
        let stored: &[u8] = match framed.header.payload {
            Some(_) => self.reading.stored(),
            None => &[],
        };
        (&self.reading.frame_bytes, stored)
    }

    /// The end frame and the footer as they were read, once they have been proved.
    pub(crate) fn ending(&self) -> Option<([u8; FRAME_HEADER_LEN], [u8; FOOTER_LEN])> {
        self.footer().map(|footer| {
            let stream_check = self.reading.stream_check();
            (self.reading.frame_bytes, footer.encode(stream_check))
        })
    }

    /// Reads and proves one frame with its payload; at the end, the footer.
    pub(crate) fn advance(&mut self) -> Result<Option<Framed>, DecodeError> {
        if !self.state.is_open()? {
            return Ok(None);
        }
        self.state = State::Failed;
        let framed = self.reading.read_frame_header()?;
        if framed.header.meaning == Meaning::End {
            let content = self.content.finish();
            self.state = State::Ended(self.reading.read_footer(|_| content)?);
            return Ok(None);
        }
        if let Some(payload) = &framed.header.payload {
            let plain = self.reading.read_payload(&framed, payload)?;
            if matches!(framed.header.meaning, Meaning::Data { .. }) {
                self.content.update(plain);
            }
        }
        self.state = State::Open;
        Ok(Some(framed))
    }

    fn plain(&self, header: &FrameHeader) -> &[u8] {
        match header.payload {
            Some(payload) if payload.encoding == Encoding::Zstd => self
                .reading
                .payloads
                .decompressed(payload.plain_len as usize),
            Some(_) => self.reading.stored(),
            None => &[],
        }
    }
}

impl<R> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("header", &self.reading.header)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
