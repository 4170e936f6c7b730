//! The guest's own record of a disk: every byte that it wrote, kept apart from all
//! code that the demo is to prove right.
//!
//! A clone costs one pointer for each block of 4 KiB, so a copy for every recovery
//! point is taken in an instant and costs the memory of what changes afterwards.

use std::sync::Arc;

const BLOCK: usize = 4096;

/// The bytes of one disk.
#[derive(Debug, Clone)]
pub struct Shadow {
    size: u64,
    /// Absent where nothing but zeroes was written.
    blocks: Vec<Option<Arc<[u8; BLOCK]>>>,
}

/// The part of one block that a range touches: block, first byte in it, length.
type Part = (usize, usize, usize);

impl Shadow {
    /// A disk full of zeroes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            blocks: vec![None; size.div_ceil(BLOCK as u64) as usize],
        }
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `into` from `offset`; the range lies within the disk.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let mut done = 0;
        for (block, start, length) in self.parts(offset, into.len()) {
            let part = &mut into[done..done + length];
            match &self.blocks[block] {
                Some(bytes) => part.copy_from_slice(&bytes[start..start + length]),
                None => part.fill(0),
            }
            done += length;
        }
    }

    /// Notes that `bytes` were written at `offset`; the range lies within the disk.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        for (block, start, length) in self.parts(offset, bytes.len()) {
            let block = self.blocks[block].get_or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[start..start + length]
                .copy_from_slice(&bytes[done..done + length]);
            done += length;
        }
    }

    /// Notes that a range within the disk was zeroed.
    pub fn zero(&mut self, offset: u64, length: u64) {
        for (block, start, length) in self.parts(offset, length as usize) {
            if length == BLOCK {
                self.blocks[block] = None;
            } else if let Some(bytes) = &mut self.blocks[block] {
                Arc::make_mut(bytes)[start..start + length].fill(0);
            }
        }
    }

    fn parts(&self, offset: u64, length: usize) -> impl Iterator<Item = Part> + use<> {
        assert!(
            offset
                .checked_add(length as u64)
                .is_some_and(|end| end <= self.size),
            "BUG: the guest wrote beyond its disk"
        );
        let end = offset as usize + length;
        let mut position = offset as usize;
        std::iter::from_fn(move || {
            let start = position % BLOCK;
            let part = (BLOCK - start).min(end - position);
            let found = (part > 0).then_some((position / BLOCK, start, part));
            position += part;
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::random::Random;

    #[test]
    fn a_shadow_reads_as_a_plain_array_does_and_its_clones_stay_as_they_were() {
        let mut random = Random::new(3);
        let size = 10 * BLOCK as u64 + 1536;
        let (mut shadow, mut plain) = (Shadow::new(size), vec![0u8; size as usize]);
        let mut clones = Vec::new();
        for _ in 0..400 {
            let offset = random.below(size);
            let length = random.below((size - offset).min(3 * BLOCK as u64) + 1);
            let range = offset as usize..(offset + length) as usize;
            if random.below(3) == 0 {
                shadow.zero(offset, length);
                plain[range].fill(0);
            } else {
                let bytes = random.bytes(length as usize);
                shadow.write(offset, &bytes);
                plain[range].copy_from_slice(&bytes);
            }
            if random.below(20) == 0 {
                clones.push((shadow.clone(), plain.clone()));
            }
        }
        clones.push((shadow, plain));
        for (shadow, plain) in clones {
            let mut bytes = vec![0xA5; size as usize];
            shadow.read(0, &mut bytes);
            assert_eq!(bytes, plain);
            let mut part = vec![0xA5; 5000];
            shadow.read(777, &mut part);
            assert_eq!(part, plain[777..5777]);
        }
    }
}
