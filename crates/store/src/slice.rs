//! A delta cut into slices that are applied one after the other.
//!
//! A slice bounds memory and, where much is zeroed, space: its preimages are saved before
//! the space of the next slice's is needed. Where a slice ends depends on the delta alone,
//! so that a restart cuts the same way. No block of 4 KiB is touched by two slices.

use std::io::{Read, Seek};

use lifeboat_model::BLOCK_SIZE;
use lifeboat_stream::{DecodeError, Entry, PayloadRef, Scan};

/// A slice is full at so many bytes of the disks ...
const SLICE_BYTES: u64 = 64 << 20;

/// ... or at so many changes.
const SLICE_CHANGES: usize = 32 << 10;

/// One changed range of one disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    /// Index into the delta's own list of disks.
    pub(crate) disk: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) content: Content,
}

impl Change {
    /// What is left without the first `cut` bytes.
    fn after(&self, cut: u64) -> Self {
        let content = match self.content {
            Content::Zero => Content::Zero,
            Content::Data { payload, skip } => Content::Data {
                payload,
                skip: skip + cut,
            },
        };
        Self {
            offset: self.offset + cut,
            len: self.len - cut,
            content,
            ..*self
        }
    }
}

/// What the range holds from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    /// What the payload decodes to, from byte `skip` on.
    Data {
        payload: PayloadRef,
        skip: u64,
    },
    Zero,
}

/// The slices of a scanned delta, in order.
pub(crate) struct Slices<S> {
    scan: Scan<S>,
    /// Read from the scan and not yet in a slice.
    carried: Option<Change>,
    limit_bytes: u64,
    limit_changes: usize,
}

impl<S: Read + Seek> Slices<S> {
    pub(crate) fn of(scan: Scan<S>) -> Self {
        Self {
            scan,
            carried: None,
            limit_bytes: SLICE_BYTES,
            limit_changes: SLICE_CHANGES,
        }
    }

    /// The next slice, or `None` when the whole delta, its footer included, has been read.
    pub(crate) fn next_slice(&mut self) -> Result<Option<Vec<Change>>, DecodeError> {
        let mut slice: Vec<Change> = Vec::new();
        let mut bytes = 0;
        while let Some(mut change) = self.next_change()? {
            let shares_a_block = slice.last().is_some_and(|last| {
                last.disk == change.disk
                    && (last.offset + last.len).div_ceil(BLOCK_SIZE) > change.offset / BLOCK_SIZE
            });
            let is_full = bytes >= self.limit_bytes || slice.len() >= self.limit_changes;
            if is_full && !shares_a_block {
                self.carried = Some(change);
                return Ok(Some(slice));
            }
            // A full slice takes the rest of its last block and no more.
            let most = if is_full { 1 } else { self.limit_bytes };
            let cut = (change.offset + most).next_multiple_of(BLOCK_SIZE) - change.offset;
            if cut < change.len {
                self.carried = Some(change.after(cut));
                change.len = cut;
            }
            bytes += change.len;
            slice.push(change);
        }
        Ok((!slice.is_empty()).then_some(slice))
    }

    fn next_change(&mut self) -> Result<Option<Change>, DecodeError> {
        if let Some(change) = self.carried.take() {
            return Ok(Some(change));
        }
        loop {
            match self.scan.next_entry()? {
                None => return Ok(None),
                Some(Entry::Blob { .. }) => {}
                Some(Entry::Data {
                    disk,
                    offset,
                    payload,
                }) => {
                    let len = u64::from(payload.plain_len);
                    return Ok(Some(Change {
                        disk,
                        offset,
                        len,
                        content: Content::Data { payload, skip: 0 },
                    }));
                }
                Some(Entry::Zero {
                    disk,
                    offset,
                    length,
                }) => {
                    return Ok(Some(Change {
                        disk,
                        offset,
                        len: length,
                        content: Content::Zero,
                    }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use lifeboat_model::{Consistency, DeltaId, LineageId, RelationshipId, Sequence, Timestamp};
    use lifeboat_stream::{
        Base, Compression, Disk, Encoder, Ending, Header, Kind, Layout, Limits, Manifest, Options,
        scan,
    };
    use proptest::prelude::*;

    use super::*;

    fn delta(changes: &[(u64, u64, bool)]) -> Vec<u8> {
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
            id: "sda".parse().unwrap(),
            size: (1_u64 << 30).try_into().unwrap(),
        };
        let manifest =
            Manifest::new(Timestamp::from_micros(0), Consistency::Crash, vec![disk]).unwrap();
        let options = Options {
            compression: Compression::None,
            layout: Layout::Compact,
        };
        let mut encoder = Encoder::new(Vec::new(), &header, &manifest, options).unwrap();
        for &(offset, len, zero) in changes {
            if zero {
                encoder.zero(0, offset, len).unwrap();
            } else {
                encoder.data(0, offset, &vec![7; len as usize]).unwrap();
            }
        }
        encoder.finish().unwrap().1
    }

    proptest! {
        #[test]
        fn slices_hold_every_change_once_and_share_no_block(
            steps in prop::collection::vec((0_u64..40, 1_u64..40, any::<bool>()), 1..60),
        ) {
            let mut offset = 0;
            let mut changes = Vec::new();
            for (gap, sectors, zero) in steps {
                offset += gap * 512;
                changes.push((offset, sectors * 512, zero));
                offset += sectors * 512;
            }
            let limits = Limits { stream_bytes: 1 << 30, ending: Ending::EndOfInput };
            let stream = delta(&changes);
            let mut slices = Slices::of(scan(Cursor::new(&stream), &limits).unwrap());
            slices.limit_bytes = 16 << 10;
            slices.limit_changes = 3;
            let mut covered = Vec::new();
            let mut last_block = None;
            while let Some(slice) = slices.next_slice().unwrap() {
                prop_assert!(!slice.is_empty());
                if let Some(last) = last_block {
                    prop_assert!(slice[0].offset / BLOCK_SIZE > last, "two slices touch block {last}");
                }
                last_block = slice.last().map(|change| (change.offset + change.len - 1) / BLOCK_SIZE);
                covered.extend(slice.iter().flat_map(|change| (change.offset / 512..(change.offset + change.len) / 512).map(|sector| (sector, matches!(change.content, Content::Zero)))));
            }
            let expected: Vec<_> = changes.iter().flat_map(|&(offset, len, zero)| (offset / 512..(offset + len) / 512).map(move |sector| (sector, zero))).collect();
            prop_assert_eq!(covered, expected);
        }
    }

    #[test]
    fn data_that_never_ends_at_a_block_is_cut_all_the_same() {
        let limits = Limits {
            stream_bytes: 1 << 30,
            ending: Ending::EndOfInput,
        };
        let frames: Vec<_> = (0..1000)
            .map(|at| (512 + at * 4096, 4096, at % 7 == 0))
            .collect();
        let stream = delta(&frames);
        let mut slices = Slices::of(scan(Cursor::new(&stream), &limits).unwrap());
        slices.limit_bytes = 64 << 10;
        let mut next = 512;
        while let Some(slice) = slices.next_slice().unwrap() {
            let from = next;
            for change in slice {
                assert_eq!(change.offset, next);
                if let Content::Data { payload, skip } = change.content {
                    let frame = (change.offset - 512) % 4096;
                    assert_eq!(skip, frame);
                    assert!(skip + change.len <= u64::from(payload.plain_len));
                }
                next += change.len;
            }
            assert!(
                next - from <= (64 << 10) + 2 * BLOCK_SIZE,
                "{}",
                next - from
            );
        }
        assert_eq!(next, 512 + 1000 * 4096);
    }

    #[test]
    fn a_large_zeroed_range_is_cut() {
        let limits = Limits {
            stream_bytes: 1 << 30,
            ending: Ending::EndOfInput,
        };
        let stream = delta(&[(512, (1 << 30) - 512, true)]);
        let mut slices = Slices::of(scan(Cursor::new(&stream), &limits).unwrap());
        let mut next = 512;
        let mut count = 0;
        while let Some(slice) = slices.next_slice().unwrap() {
            for change in slice {
                assert_eq!(change.offset, next);
                next += change.len;
            }
            count += 1;
        }
        assert_eq!(next, 1 << 30);
        assert!(count >= 16, "{count}");
    }
}
