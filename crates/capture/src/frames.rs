//! Cutting what was read into frames.
//!
//! Bytes are collected in a window that ends at a multiple of its size on the disk, so
//! that pieces of any length become the same frames. Blocks of zeroes are told there.

use std::io::Write;
use std::ops::Range;

use lifeboat_model::BLOCK_SIZE;
use lifeboat_nbd::Piece;
use lifeboat_stream::{EncodeError, Encoder, MAX_DATA_LEN, SHARE_MIN_LEN, is_zero};

/// The size of the window: one frame of data at most.
const WINDOW: u64 = MAX_DATA_LEN as u64;

/// Data frames of at least this length start at multiples of it where they can: they may
/// be shared with the receiver's image, and the receiver keeps digests of such units.
const ALIGNMENT: u64 = SHARE_MIN_LEN as u64;

/// Writes the frames of one disk. Ranges come in ascending order and start at whole
/// blocks, except where they continue one another.
pub(crate) struct Frames<'a, W: Write> {
    encoder: &'a mut Encoder<W>,
    disk: usize,
    start: u64,
    window: Vec<u8>,
    /// Zeroes that may go on.
    zeroes: Option<Range<u64>>,
}

impl<'a, W: Write> Frames<'a, W> {
    pub(crate) fn new(encoder: &'a mut Encoder<W>, disk: usize) -> Self {
        Self {
            encoder,
            disk,
            start: 0,
            window: Vec::with_capacity(MAX_DATA_LEN),
            zeroes: None,
        }
    }

    /// How long the stream is.
    pub(crate) fn position(&self) -> u64 {
        self.encoder.position()
    }

    /// Takes a part of what was read.
    pub(crate) fn piece(&mut self, offset: u64, piece: Piece<'_>) -> Result<(), EncodeError> {
        let mut at = offset;
        let end = offset + piece.length();
        while at < end {
            if self.end() != at {
                self.close_window()?;
                self.start = at;
            }
            let boundary = (self.start / WINDOW + 1) * WINDOW;
            let step = end.min(boundary) - at;
            let length = index(step);
            match piece {
                Piece::Data(data) => {
                    let from = index(at - offset);
                    self.window.extend_from_slice(&data[from..from + length]);
                }
                Piece::Hole { .. } => self.window.resize(self.window.len() + length, 0),
            }
            at += step;
            if at == boundary {
                self.close_window()?;
                self.start = at;
            }
        }
        Ok(())
    }

    /// Takes whole blocks that are zero.
    pub(crate) fn zeroes(&mut self, range: Range<u64>) -> Result<(), EncodeError> {
        self.close_window()?;
        self.add_zeroes(range)
    }

    /// Writes what is left.
    pub(crate) fn finish(&mut self) -> Result<(), EncodeError> {
        self.close_window()?;
        self.flush_zeroes()
    }

    fn end(&self) -> u64 {
        self.start + self.window.len() as u64
    }

    fn close_window(&mut self) -> Result<(), EncodeError> {
        let window = std::mem::take(&mut self.window);
        let mut data: Option<Range<usize>> = None;
        let mut at = 0;
        for block in window.chunks(index(BLOCK_SIZE)) {
            let end = at + block.len();
            if is_zero(block) {
                if let Some(run) = data.take() {
                    self.add_data(&window, run)?;
                }
                self.add_zeroes(self.start + at as u64..self.start + end as u64)?;
            } else {
                data.get_or_insert(at..at).end = end;
            }
            at = end;
        }
        if let Some(run) = data {
            self.add_data(&window, run)?;
        }
        self.window = window;
        self.window.clear();
        Ok(())
    }

    fn add_zeroes(&mut self, range: Range<u64>) -> Result<(), EncodeError> {
        match &mut self.zeroes {
            Some(zeroes) if zeroes.end == range.start => zeroes.end = range.end,
            _ => {
                self.flush_zeroes()?;
                self.zeroes = Some(range);
            }
        }
        Ok(())
    }

    fn flush_zeroes(&mut self) -> Result<(), EncodeError> {
        match self.zeroes.take() {
            Some(zeroes) => {
                let length = zeroes.end - zeroes.start;
                self.encoder.zero(self.disk, zeroes.start, length)
            }
            None => Ok(()),
        }
    }

    fn add_data(&mut self, window: &[u8], run: Range<usize>) -> Result<(), EncodeError> {
        self.flush_zeroes()?;
        let offset = self.start + run.start as u64;
        let bytes = &window[run];
        let head = offset.next_multiple_of(ALIGNMENT) - offset;
        let head = if bytes.len() as u64 >= head + ALIGNMENT {
            index(head)
        } else {
            0
        };
        if head > 0 {
            self.encoder.data(self.disk, offset, &bytes[..head])?;
        }
        self.encoder
            .data(self.disk, offset + head as u64, &bytes[head..])
    }
}

/// A number that the window bounds.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("BUG: a part of the window does not fit in memory")
}
