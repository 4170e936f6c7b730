//! Memory for the bytes of pieces, used again while pieces follow each other.
//!
//! Memory that is new has to be cleared by the kernel, which costs a copy about as much as
//! checking its digests does. Memory is kept only while other pieces are under way, and never
//! more than these hold.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lifeboat_sys::disk::DIRECT_ALIGNMENT;
use lifeboat_sys::memory;

/// Where pieces have their memory from. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ChunkMemory {
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Debug, Default)]
struct Shelf {
    lent: usize,
    /// Never more than are lent.
    free: Vec<AlignedBytes>,
}

/// Bytes that begin at an address from which they can be written past the page cache.
#[derive(Debug)]
struct AlignedBytes {
    /// Has room for everything from the beginning on, so that it never moves.
    memory: Vec<u8>,
    /// Where the bytes begin.
    start: usize,
}

/// The bytes of one piece; they go back when this is dropped.
#[derive(Debug)]
pub(crate) struct LentBytes {
    /// Absent only while it is dropped.
    bytes: Option<AlignedBytes>,
    memory: ChunkMemory,
}

impl ChunkMemory {
    /// Room for `most` bytes, which holds none yet. Memory that is never filled is never taken
    /// from the machine.
    pub(crate) fn lend(&self, most: usize) -> LentBytes {
        let used = {
            let mut shelf = self.shelf();
            shelf.lent += 1;
            let fits = |bytes: &AlignedBytes| bytes.room() >= most;
            let at = shelf.free.iter().position(fits);
            at.map(|at| shelf.free.swap_remove(at))
        };
        LentBytes {
            bytes: Some(used.unwrap_or_else(|| AlignedBytes::with_room(most))),
            memory: self.clone(),
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AlignedBytes {
    fn with_room(most: usize) -> Self {
        let mut memory: Vec<u8> = Vec::with_capacity(most + DIRECT_ALIGNMENT);
        memory::will_be_filled(memory.spare_capacity_mut());
        let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
        memory.resize(start, 0);
        Self { memory, start }
    }

    fn room(&self) -> usize {
        self.memory.capacity() - self.start
    }
}

impl LentBytes {
    pub(crate) fn len(&self) -> usize {
        self.bytes().memory.len() - self.bytes().start
    }

    /// Never beyond the room that was asked for.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let own = self.bytes.as_mut().expect("BUG: it is not dropped");
        assert!(
            bytes.len() <= own.memory.capacity() - own.memory.len(),
            "BUG: more bytes than there was room asked for"
        );
        own.memory.extend_from_slice(bytes);
    }

    pub(crate) fn get(&self, range: Range<usize>) -> &[u8] {
        let own = self.bytes();
        &own.memory[own.start..][range]
    }

    fn bytes(&self) -> &AlignedBytes {
        self.bytes.as_ref().expect("BUG: it is not dropped")
    }
}

impl Drop for LentBytes {
    fn drop(&mut self) {
        let Some(mut bytes) = self.bytes.take() else {
            return;
        };
        bytes.memory.truncate(bytes.start);
        let surplus = {
            let mut shelf = self.memory.shelf();
            shelf.lent -= 1;
            shelf.free.push(bytes);
            let kept = shelf.lent.min(shelf.free.len());
            shelf.free.split_off(kept)
        };
        // Given back to the machine while nobody waits for the shelf.
        drop(surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 3 << 20;

    fn place(bytes: &LentBytes) -> usize {
        bytes.get(0..bytes.len()).as_ptr() as usize
    }

    #[test]
    fn memory_is_used_again_while_other_pieces_are_under_way() {
        let memory = ChunkMemory::default();
        let other = memory.lend(ROOM);
        let mut first = memory.lend(ROOM);
        first.push(&[7; 5000]);
        let at = place(&first);
        assert!(at.is_multiple_of(DIRECT_ALIGNMENT));
        drop(first);
        let mut second = memory.lend(ROOM);
        assert_eq!(second.len(), 0);
        second.push(&[9; 10]);
        assert_eq!(place(&second), at);
        assert_eq!(second.get(0..10), [9; 10]);
        drop((second, other));
        assert_eq!(memory.shelf().free.len(), 0);
    }

    #[test]
    fn no_more_is_kept_than_is_lent() {
        let memory = ChunkMemory::default();
        let mut lent: Vec<_> = (0..8).map(|_| memory.lend(ROOM)).collect();
        while lent.pop().is_some() {
            let shelf = memory.shelf();
            assert!(shelf.free.len() <= shelf.lent, "{shelf:?}");
        }
        assert_eq!(memory.shelf().lent, 0);
    }

    #[test]
    fn a_larger_piece_gets_memory_that_is_large_enough() {
        let memory = ChunkMemory::default();
        let _other = memory.lend(1);
        drop(memory.lend(4096));
        let mut large = memory.lend(ROOM);
        large.push(&vec![1; ROOM]);
        assert_eq!(large.len(), ROOM);
        drop(large);
        let mut small = memory.lend(1);
        small.push(&[2]);
        assert_eq!(small.get(0..1), [2]);
    }
}
