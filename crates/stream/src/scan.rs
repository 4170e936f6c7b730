//! Listing a stream that lies in a file, without reading its data.

use std::io::{BufReader, Read, Seek};

use crate::footer::Footer;
use crate::frame::{BlobKind, Meaning};
use crate::header::Header;
use crate::manifest::Manifest;
use crate::payload::PayloadRef;
use crate::reading::{DecodeError, Limits, Reading, State};

/// How much is read at a time: enough for the headers between small payloads, little
/// where payloads are large and skipped.
const READ_LEN: usize = 16 << 10;

/// One thing a stream says, with the place of its payload. `disk` is an index into the
/// manifest's disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A piece of a blob, whose bytes have been proved.
    Blob {
        kind: BlobKind,
        format: u16,
        total: u64,
        offset: u64,
        payload: PayloadRef,
    },
    /// The disk holds what the payload decodes to from `offset` on.
    Data {
        disk: usize,
        offset: u64,
        payload: PayloadRef,
    },
    /// The disk holds `length` zero bytes from `offset` on.
    Zero {
        disk: usize,
        offset: u64,
        length: u64,
    },
}

/// Lists the frames of a stream in order.
///
/// Proves the header, manifest, blobs, every frame header, the order and bounds of
/// ranges, the counts, and that all of these and the content digest in the footer make up the delta's
/// id. Does not read the data and its padding: use [`verify`](crate::verify) for those, or let a
/// [`PayloadDecoder`](crate::PayloadDecoder) prove each payload when it is used.
pub struct Scan<S> {
    reading: Reading<BufReader<S>>,
    state: State,
}

/// Begins to list the stream that starts where `source` stands.
///
/// # Errors
///
/// The source cannot be read, does not hold a delta stream of this version, or is damaged.
pub fn scan<S: Read + Seek>(source: S, limits: &Limits) -> Result<Scan<S>, DecodeError> {
    let reading = Reading::open(BufReader::with_capacity(READ_LEN, source), limits)?;
    Ok(Scan {
        reading,
        state: State::Open,
    })
}

impl<S: Read + Seek> Scan<S> {
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.reading.header
    }

    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.reading.manifest
    }

    /// The next entry, or `None` once the footer has been proved.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with the stream; every later call is refused with
    /// [`DecodeError::Stopped`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, DecodeError> {
        if !self.state.is_open()? {
            return Ok(None);
        }
        self.state = State::Failed;
        let framed = self.reading.read_frame_header()?;
        let entry = match (framed.header.meaning, framed.header.payload) {
            (Meaning::Data { disk, offset }, Some(payload)) => {
                self.reading.skip_payload(&framed, &payload)?;
                Entry::Data {
                    disk: usize::from(disk),
                    offset,
                    payload: payload.at(framed.payload_position),
                }
            }
            (
                Meaning::Blob {
                    kind,
                    format,
                    offset,
                    total,
                },
                Some(payload),
            ) => {
                self.reading.read_payload(&framed, &payload)?;
                Entry::Blob {
                    kind,
                    format,
                    total,
                    offset,
                    payload: payload.at(framed.payload_position),
                }
            }
            (
                Meaning::Zero {
                    disk,
                    offset,
                    length,
                },
                None,
            ) => Entry::Zero {
                disk: usize::from(disk),
                offset,
                length,
            },
            (Meaning::End, None) => {
                let footer = self.reading.read_footer(|footer| footer.content)?;
                self.state = State::Ended(footer);
                return Ok(None);
            }
            (meaning, payload) => {
                unreachable!("BUG: {meaning:?} passed the rules with {payload:?}")
            }
        };
        self.state = State::Open;
        Ok(Some(entry))
    }

    /// The footer, once it has been proved.
    #[must_use]
    pub const fn footer(&self) -> Option<&Footer> {
        self.state.footer()
    }

    /// How many bytes of the stream have been passed.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.reading.position()
    }
}

impl<S> std::fmt::Debug for Scan<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan")
            .field("header", &self.reading.header)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
