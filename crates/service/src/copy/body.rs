//! A piece on its way: a delta stream that is read from the disk as it is sent.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;

use lifeboat_stream::{EncodeError, Encoder, Header, Layout, Manifest, Options, is_zero};

use super::disk::OpenDisk;
use super::pieces::Way;
use super::{CopyTrouble, FRAME};

/// A piece as its stream. Holds one frame of it at a time.
pub(super) struct PieceBody<'a> {
    disk: &'a OpenDisk,
    /// What is still to be read.
    ranges: VecDeque<Range<u64>>,
    /// Whether zeroes travel.
    tells_zeroes: bool,
    /// Absent once the stream has ended.
    encoder: Option<Encoder<Vec<u8>>>,
    /// Bytes of the stream.
    ready: Vec<u8>,
    taken: usize,
    /// Of what is read of the disk.
    buffer: Vec<u8>,
    sent: u64,
    trouble: Option<CopyTrouble>,
}

impl<'a> PieceBody<'a> {
    /// The stream of these ranges, which ascend.
    pub(super) fn new(
        disk: &'a OpenDisk,
        ranges: &[Range<u64>],
        way: Way,
        header: &Header,
        manifest: &Manifest,
        options: Options,
    ) -> Result<Self, CopyTrouble> {
        // What a piece carries goes to the disk at once: no file system shares it.
        let options = Options {
            layout: Layout::Compact,
            ..options
        };
        let encoder = Encoder::new(Vec::new(), header, manifest, options)
            .map_err(|source| encoding(disk, source))?;
        let mut wanted = VecDeque::new();
        match way {
            Way::Everything => {
                for range in ranges {
                    let parts = disk.parts(range)?.into_iter();
                    wanted.extend(parts.filter(|part| !part.is_hole).map(|part| part.range));
                }
            }
            Way::WhatDiffers | Way::Known => wanted.extend(ranges.iter().cloned()),
        }
        Ok(Self {
            disk,
            ranges: wanted,
            tells_zeroes: way != Way::Everything,
            encoder: Some(encoder),
            ready: Vec::new(),
            taken: 0,
            buffer: vec![0; FRAME as usize],
            sent: 0,
            trouble: None,
        })
    }

    /// How many bytes of the stream were read.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Why the stream broke off, where that was not the reader's doing.
    pub(super) const fn trouble(&mut self) -> Option<CopyTrouble> {
        self.trouble.take()
    }

    /// Makes the next bytes of the stream; none are the end of it.
    fn go_on(&mut self) -> Result<(), CopyTrouble> {
        self.ready.clear();
        self.taken = 0;
        while self.ready.is_empty() {
            let Some(encoder) = &mut self.encoder else {
                return Ok(());
            };
            std::mem::swap(encoder.writer_mut(), &mut self.ready);
            if !self.ready.is_empty() {
                return Ok(());
            }
            let disk = self.disk;
            let encoding = |source| encoding(disk, source);
            let Some(range) = self.ranges.front_mut() else {
                if let Some(encoder) = self.encoder.take() {
                    self.ready = encoder.finish().map_err(encoding)?.1;
                }
                return Ok(());
            };
            let start = range.start;
            let end = range.end.min((start / FRAME + 1) * FRAME);
            range.start = end;
            if range.start >= range.end {
                self.ranges.pop_front();
            }
            let bytes = &mut self.buffer[..(end - start) as usize];
            disk.read(start, bytes)?;
            if !is_zero(bytes) {
                encoder.data(disk.index, start, bytes).map_err(encoding)?;
            } else if self.tells_zeroes {
                encoder
                    .zero(disk.index, start, end - start)
                    .map_err(encoding)?;
            }
        }
        Ok(())
    }
}

fn encoding(disk: &OpenDisk, source: EncodeError) -> CopyTrouble {
    CopyTrouble::Encode {
        disk: disk.id.clone(),
        source,
    }
}

impl Read for PieceBody<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.ready.len()
            && let Err(trouble) = self.go_on()
        {
            let said = io::Error::other(trouble.to_string());
            self.trouble = Some(trouble);
            return Err(said);
        }
        let left = &self.ready[self.taken..];
        let length = into.len().min(left.len());
        into[..length].copy_from_slice(&left[..length]);
        self.taken += length;
        self.sent += length as u64;
        Ok(length)
    }
}
