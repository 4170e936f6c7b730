//! What the delta's id commits to.

use lifeboat_model::DeltaId;

use crate::frame::{FRAME_HEADER_LEN, FrameHeader};
use crate::header::HEADER_LEN;

/// How many bytes are hashed at a time: BLAKE3 is at its best from 64 KiB on, and a
/// change is often no more than 4 KiB.
const BATCH: usize = 64 << 10;

/// The hash over what a stream says, apart from the bytes of the disks.
///
/// BLAKE3 over the stream's header, then for each frame but the end the bytes that
/// say what it means, each manifest and blob frame followed by its plain payload,
/// then the digest of the content. Encoding, stored length, padding and position are
/// left out: the same changes have the same id however they were compressed.
#[derive(Debug)]
pub(crate) struct Identity(blake3::Hasher);

impl Identity {
    pub(crate) fn new(header: &[u8; HEADER_LEN]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(header);
        Self(hasher)
    }

    pub(crate) fn frame(&mut self, header: &[u8; FRAME_HEADER_LEN]) {
        self.0.update(FrameHeader::meaning_bytes(header));
    }

    pub(crate) fn described(&mut self, plain: &[u8]) {
        self.0.update(plain);
    }

    pub(crate) fn finish(&mut self, content: &[u8; 32]) -> DeltaId {
        self.0.update(content);
        DeltaId::from_bytes(*self.0.finalize().as_bytes())
    }
}

/// The hash over the plain bytes of all data frames, one after the other.
///
/// Hands them to BLAKE3 in whole batches at multiples of the batch size, however
/// small the pieces are: hashing 4 KiB at a time is half as fast.
#[derive(Debug)]
pub(crate) struct Content {
    hasher: blake3::Hasher,
    pending: Vec<u8>,
}

impl Content {
    pub(crate) fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            pending: Vec::with_capacity(BATCH),
        }
    }

    pub(crate) fn update(&mut self, mut plain: &[u8]) {
        if !self.pending.is_empty() {
            let (fill, rest) = plain.split_at(plain.len().min(BATCH - self.pending.len()));
            self.pending.extend_from_slice(fill);
            plain = rest;
            if self.pending.len() < BATCH {
                return;
            }
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
        let (whole, rest) = plain.split_at(plain.len() - plain.len() % BATCH);
        self.hasher.update(whole);
        self.pending.extend_from_slice(rest);
    }

    pub(crate) fn finish(&mut self) -> [u8; 32] {
        self.hasher.update(&self.pending);
        self.pending.clear();
        *self.hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batching_does_not_change_what_is_hashed() {
        let bytes: Vec<u8> = (0..400_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let whole = *blake3::hash(&bytes).as_bytes();
        for step in [
            512,
            4096,
            BATCH - 512,
            BATCH,
            BATCH + 512,
            3 * BATCH,
            400_000,
        ] {
            let mut content = Content::new();
            bytes.chunks(step).for_each(|piece| content.update(piece));
            assert_eq!(content.finish(), whole, "{step}");
        }
        assert_eq!(Content::new().finish(), *blake3::hash(b"").as_bytes());
    }
}
