//! What every reader of a stream does: read within bounds, check the header, the manifest,
//! each frame header and the footer.
//!
//! Nothing is allocated for a length before the header that says it has been proved, and
//! no more than [`MAX_DATA_LEN`](crate::MAX_DATA_LEN) bytes then.

use std::io::{self, Read, Seek};

use crate::footer::{FOOTER_LEN, Footer};
use crate::frame::{
    FRAME_HEADER_LEN, FrameError, FrameHeader, Meaning, Payload, Place, SHARE_ALIGNMENT,
};
use crate::header::{HEADER_LEN, Header, HeaderError, PREFIX_LEN, array};
use crate::identity::Identity;
use crate::manifest::{Manifest, ManifestError};
use crate::payload::{PayloadDecoder, PayloadError};
use crate::rules::{RuleError, Rules};

/// What a reader accepts besides what the format allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes the stream may have, footer included. A stream that would pass it is
    /// refused before the bytes that do so are read.
    pub stream_bytes: u64,
    pub ending: Ending,
}

/// What may follow the footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The input ends with the stream: any further byte is refused.
    EndOfInput,
    /// The input is not read beyond the footer.
    MoreMayFollow,
}

/// Why a stream is refused. Positions are in bytes from the start of the stream.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("read the delta stream at byte {position}")]
    Read { position: u64, source: io::Error },
    #[error("the delta stream is cut after byte {position}, before its footer: ask for it again")]
    Truncated { position: u64 },
    #[error("the delta stream passes its limit of {limit} bytes at byte {position}")]
    TooLong { position: u64, limit: u64 },
    #[error("read the header of a delta stream")]
    Header { source: HeaderError },
    #[error("the delta stream has no manifest after its header")]
    NoManifest,
    #[error("read the manifest of a delta stream")]
    Manifest { source: ManifestError },
    #[error("refuse the frame at byte {position} of the delta stream")]
    Frame { position: u64, source: FrameError },
    #[error("refuse the frame at byte {position} of the delta stream")]
    Rule { position: u64, source: RuleError },
    #[error("the padding before byte {position} of the delta stream is not zero")]
    Padding { position: u64 },
    #[error("refuse the payload at byte {position} of the delta stream")]
    Payload { position: u64, source: PayloadError },
    #[error("prepare for reading a delta stream")]
    Prepare { source: PayloadError },
    #[error("the footer's checksum does not match: the stream is damaged, ask for it again")]
    FooterChecksum,
    #[error("the footer counts other frames or bytes than the stream has")]
    Counts,
    #[error("the data is not what the footer's content digest says")]
    Content,
    #[error("the footer's id is not the id of this stream")]
    Identity,
    #[error("bytes follow the footer, which ends at byte {position}")]
    Trailing { position: u64 },
    #[error("read on after a refused frame: the stream cannot be trusted beyond it")]
    Stopped,
}

/// A stream under way, up to the last frame header that was read.
pub(crate) struct Reading<R> {
    pub header: Header,
    pub header_bytes: [u8; HEADER_LEN],
    pub manifest: Manifest,
    pub rules: Rules,
    pub identity: Identity,
    pub payloads: PayloadDecoder,
    /// The last frame's header as it was read.
    pub frame_bytes: [u8; FRAME_HEADER_LEN],
    stored: Vec<u8>,
    stream_check: u64,
    input: Input<R>,
    ending: Ending,
}

/// A frame whose header is proved and allowed here, and whose payload has not been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Framed {
    pub header: FrameHeader,
    /// How many zero bytes stand between header and payload.
    pub padding: u64,
    /// Where the payload starts.
    pub payload_position: u64,
}

/// How far a reader has got.
#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    Open,
    Ended(Footer),
    Failed,
}

impl State {
    /// Whether there may be more to read.
    pub(crate) const fn is_open(self) -> Result<bool, DecodeError> {
        match self {
            Self::Open => Ok(true),
            Self::Ended(_) => Ok(false),
            Self::Failed => Err(DecodeError::Stopped),
        }
    }

    pub(crate) const fn footer(&self) -> Option<&Footer> {
        match self {
            Self::Ended(footer) => Some(footer),
            Self::Open | Self::Failed => None,
        }
    }
}

impl<R: Read> Reading<R> {
    /// Reads the header and the manifest.
    pub(crate) fn open(reader: R, limits: &Limits) -> Result<Self, DecodeError> {
        let mut input = Input {
            reader,
            position: 0,
            limit: limits.stream_bytes,
        };
        let header_error = |source| DecodeError::Header { source };
        let mut header_bytes = [0; HEADER_LEN];
        input.read(&mut header_bytes[..PREFIX_LEN])?;
        Header::check_prefix(&array(&header_bytes[..PREFIX_LEN])).map_err(header_error)?;
        input.read(&mut header_bytes[PREFIX_LEN..])?;
        let (header, stream_check) = Header::decode(&header_bytes).map_err(header_error)?;

        let (frame_bytes, framed) = input.read_frame_header(stream_check)?;
        let (Meaning::Manifest, Some(payload)) = (framed.header.meaning, framed.header.payload)
        else {
            return Err(DecodeError::NoManifest);
        };
        let prepare = |source| DecodeError::Prepare { source };
        let mut payloads = PayloadDecoder::new().map_err(prepare)?;
        let mut stored = Vec::new();
        input.read_payload(&framed, &payload, &mut stored)?;
        let json = payloads
            .decode(&payload.at(framed.payload_position), &stored)
            .map_err(|source| DecodeError::Payload {
                position: framed.payload_position,
                source,
            })?;
        let manifest =
            Manifest::from_json(json).map_err(|source| DecodeError::Manifest { source })?;
        let mut identity = Identity::new(&header_bytes);
        identity.frame(&frame_bytes);
        identity.described(json);
        Ok(Self {
            rules: Rules::new(header.kind, &manifest),
            header,
            header_bytes,
            manifest,
            identity,
            payloads,
            frame_bytes,
            stored,
            stream_check,
            input,
            ending: limits.ending,
        })
    }

    /// Reads the next frame header, proves it and lets it pass the rules.
    pub(crate) fn read_frame_header(&mut self) -> Result<Framed, DecodeError> {
        let position = self.input.position;
        let (bytes, framed) = self.input.read_frame_header(self.stream_check)?;
        let plain_len = framed.header.payload.map_or(0, |payload| payload.plain_len);
        self.rules
            .pass(framed.header.meaning, u64::from(plain_len))
            .map_err(|source| DecodeError::Rule { position, source })?;
        if framed.header.meaning != Meaning::End {
            self.identity.frame(&bytes);
        }
        self.frame_bytes = bytes;
        Ok(framed)
    }

    /// Reads the payload that follows the frame header and returns its proved plain bytes.
    ///
    /// The delta's id takes them in unless they are data, which has a digest of its own.
    pub(crate) fn read_payload(
        &mut self,
        framed: &Framed,
        payload: &Payload,
    ) -> Result<&[u8], DecodeError> {
        self.input.read_payload(framed, payload, &mut self.stored)?;
        let plain = self
            .payloads
            .decode(&payload.at(framed.payload_position), &self.stored)
            .map_err(|source| DecodeError::Payload {
                position: framed.payload_position,
                source,
            })?;
        if !matches!(framed.header.meaning, Meaning::Data { .. }) {
            self.identity.described(plain);
        }
        Ok(plain)
    }

    /// Reads the footer behind the end frame and what the limits say must follow it.
    ///
    /// `content` gives the digest of all data from the footer: what a reader that saw the
    /// data found, or what the footer says where it did not look.
    pub(crate) fn read_footer(
        &mut self,
        content: impl FnOnce(&Footer) -> [u8; 32],
    ) -> Result<Footer, DecodeError> {
        let mut bytes = [0; FOOTER_LEN];
        self.input.read(&mut bytes)?;
        let footer =
            Footer::decode(&bytes, self.stream_check).ok_or(DecodeError::FooterChecksum)?;
        if footer.counts() != self.rules.counts() {
            return Err(DecodeError::Counts);
        }
        let content = content(&footer);
        if footer.content != content {
            return Err(DecodeError::Content);
        }
        if footer.id != self.identity.finish(&content) {
            return Err(DecodeError::Identity);
        }
        match self.ending {
            Ending::EndOfInput => self.input.expect_end()?,
            Ending::MoreMayFollow => (),
        }
        Ok(footer)
    }

    /// The bytes that the last payload takes in the stream.
    pub(crate) fn stored(&self) -> &[u8] {
        &self.stored
    }

    /// The checksum of the stream's header, which frames and footer are tied to.
    pub(crate) const fn stream_check(&self) -> u64 {
        self.stream_check
    }

    pub(crate) const fn position(&self) -> u64 {
        self.input.position
    }

    pub(crate) fn into_inner(self) -> R {
        self.input.reader
    }
}

impl<S: Read + Seek> Reading<io::BufReader<S>> {
    /// Goes past padding and payload without reading them.
    pub(crate) fn skip_payload(
        &mut self,
        framed: &Framed,
        payload: &Payload,
    ) -> Result<(), DecodeError> {
        let length = framed.padding + u64::from(payload.stored_len);
        let end = self.input.reserve(length)?;
        // At most 4 KiB and 1 MiB: far within an i64.
        self.input
            .reader
            .seek_relative(length.cast_signed())
            .map_err(|source| DecodeError::Read {
                position: self.input.position,
                source,
            })?;
        self.input.position = end;
        Ok(())
    }
}

/// The reader, where it stands, and how far it may go.
struct Input<R> {
    reader: R,
    position: u64,
    limit: u64,
}

impl<R> Input<R> {
    /// Where `length` more bytes end, if they are within the limit.
    fn reserve(&self, length: u64) -> Result<u64, DecodeError> {
        self.position
            .checked_add(length)
            .filter(|&end| end <= self.limit)
            .ok_or(DecodeError::TooLong {
                position: self.position,
                limit: self.limit,
            })
    }
}

impl<R: Read> Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<(), DecodeError> {
        let end = self.reserve(buffer.len() as u64)?;
        self.reader.read_exact(buffer).map_err(|source| {
            let position = self.position;
            if source.kind() == io::ErrorKind::UnexpectedEof {
                DecodeError::Truncated { position }
            } else {
                DecodeError::Read { position, source }
            }
        })?;
        self.position = end;
        Ok(())
    }

    fn read_frame_header(
        &mut self,
        stream: u64,
    ) -> Result<([u8; FRAME_HEADER_LEN], Framed), DecodeError> {
        let position = self.position;
        let mut bytes = [0; FRAME_HEADER_LEN];
        self.read(&mut bytes)?;
        let header = FrameHeader::decode(&bytes, Place { stream, position })
            .map_err(|source| DecodeError::Frame { position, source })?;
        let padding = header.padding(position);
        let framed = Framed {
            header,
            padding,
            payload_position: self.position + padding,
        };
        Ok((bytes, framed))
    }

    /// Reads padding, which must be zero, and as many bytes as the payload takes.
    fn read_payload(
        &mut self,
        framed: &Framed,
        payload: &Payload,
        stored: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        let stored_len = payload.stored_len as usize;
        if framed.padding > 0 {
            self.read_padding(framed.padding as usize)?;
        }
        stored.resize(stored_len, 0);
        self.read(stored)
    }

    fn read_padding(&mut self, length: usize) -> Result<(), DecodeError> {
        let mut padding = [0; SHARE_ALIGNMENT as usize];
        let padding = &mut padding[..length];
        self.read(padding)?;
        if crate::is_zero(padding) {
            Ok(())
        } else {
            Err(DecodeError::Padding {
                position: self.position,
            })
        }
    }

    fn expect_end(&mut self) -> Result<(), DecodeError> {
        match self.reader.read_exact(&mut [0]) {
            Ok(()) => Err(DecodeError::Trailing {
                position: self.position,
            }),
            Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(source) => Err(DecodeError::Read {
                position: self.position,
                source,
            }),
        }
    }
}
