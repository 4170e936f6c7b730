//! A set of blocks, marked from many threads at once.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_model::{BLOCK_SIZE, DiskSize};

const WORD_BITS: u64 = 64;

/// A page takes 4 KiB of memory and covers 128 MiB of disk.
const PAGE_WORDS: usize = 512;

const PAGE_BLOCKS: u64 = PAGE_WORDS as u64 * WORD_BITS;

type Page = Box<[AtomicU64; PAGE_WORDS]>;

/// Blocks of one disk. Memory follows what is marked: 16 bytes per 128 MiB of disk, and
/// 4 KiB for each of those that has a mark; 32 MiB per TiB at most.
///
/// Marks are only ever added, and all operations are sequentially consistent.
pub(crate) struct BlockMap {
    pages: Box<[OnceLock<Page>]>,
    blocks: u64,
    marked: AtomicU64,
}

/// The blocks that a range of bytes touches. Empty for an empty range.
pub(crate) fn blocks_of(offset: u64, length: u64) -> Range<u64> {
    let first = offset / BLOCK_SIZE;
    if length == 0 {
        return first..first;
    }
    first..(offset + length).div_ceil(BLOCK_SIZE)
}

impl BlockMap {
    pub(crate) fn new(size: DiskSize) -> Self {
        let blocks = size.blocks();
        let pages = (0..blocks.div_ceil(PAGE_BLOCKS))
            .map(|_| OnceLock::new())
            .collect();
        Self {
            pages,
            blocks,
            marked: AtomicU64::new(0),
        }
    }

    /// How many blocks are marked.
    pub(crate) fn marked(&self) -> u64 {
        self.marked.load(Ordering::SeqCst)
    }

    pub(crate) fn mark(&self, blocks: Range<u64>) {
        debug_assert!(blocks.end <= self.blocks, "BUG: a block beyond the disk");
        let mut at = blocks.start;
        while at < blocks.end {
            let word = at / WORD_BITS;
            let end = blocks.end.min((word + 1) * WORD_BITS);
            self.mark_word(word, mask(at, end));
            at = end;
        }
    }

    pub(crate) fn mark_word(&self, word: u64, bits: u64) {
        let (page, index) = place(word);
        let page =
            self.pages[page].get_or_init(|| Box::new([const { AtomicU64::new(0) }; PAGE_WORDS]));
        let old = page[index].fetch_or(bits, Ordering::SeqCst);
        let added = (bits & !old).count_ones();
        self.marked.fetch_add(u64::from(added), Ordering::SeqCst);
    }

    fn word(&self, word: u64) -> u64 {
        let (page, index) = place(word);
        match self.pages[page].get() {
            Some(page) => page[index].load(Ordering::SeqCst),
            None => 0,
        }
    }

    /// Marks everything that `other`, a map of the same disk, has marked.
    pub(crate) fn mark_all_of(&self, other: &Self) {
        assert_eq!(self.blocks, other.blocks, "BUG: maps of different disks");
        for (number, page) in other.pages.iter().enumerate() {
            let Some(page) = page.get() else { continue };
            for (index, bits) in page.iter().enumerate() {
                let bits = bits.load(Ordering::SeqCst);
                if bits != 0 {
                    self.mark_word((number * PAGE_WORDS + index) as u64, bits);
                }
            }
        }
    }

    /// Whether the first of `blocks` is marked, and up to where in `blocks` the others
    /// are the same.
    pub(crate) fn run(&self, blocks: Range<u64>) -> (bool, u64) {
        let marked = self.word(blocks.start / WORD_BITS) >> (blocks.start % WORD_BITS) & 1 == 1;
        (
            marked,
            self.first(!marked, blocks.clone()).unwrap_or(blocks.end),
        )
    }

    /// The first marked block of `blocks`.
    pub(crate) fn first_marked(&self, blocks: Range<u64>) -> Option<u64> {
        self.first(true, blocks)
    }

    /// The first block of `blocks` that is not marked.
    pub(crate) fn first_unmarked(&self, blocks: Range<u64>) -> Option<u64> {
        self.first(false, blocks)
    }

    fn first(&self, marked: bool, blocks: Range<u64>) -> Option<u64> {
        let mut at = blocks.start;
        while at < blocks.end {
            let (page, _) = place(at / WORD_BITS);
            let page_end = (at / PAGE_BLOCKS + 1) * PAGE_BLOCKS;
            if marked && self.pages[page].get().is_none() {
                at = page_end;
                continue;
            }
            let word = at / WORD_BITS;
            let end = blocks.end.min((word + 1) * WORD_BITS);
            let bits = self.word(word);
            let alike = if marked { bits } else { !bits };
            let wanted = alike & mask(at, end);
            if wanted != 0 {
                return Some(word * WORD_BITS + u64::from(wanted.trailing_zeros()));
            }
            at = end;
        }
        None
    }
}

impl std::fmt::Debug for BlockMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockMap")
            .field("blocks", &self.blocks)
            .field("marked", &self.marked())
            .finish_non_exhaustive()
    }
}

/// The bits of blocks `start` to `end`, which lie in one word and are not empty.
pub(crate) fn mask(start: u64, end: u64) -> u64 {
    let ones = u64::MAX >> (WORD_BITS - (end - start));
    ones << (start % WORD_BITS)
}

/// Page and index of a word.
fn place(word: u64) -> (usize, usize) {
    let word = usize::try_from(word).expect("BUG: a map larger than memory");
    (word / PAGE_WORDS, word % PAGE_WORDS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lifeboat_model::MAX_DISK_SIZE;
    use proptest::prelude::*;

    use super::*;

    /// Three pages, the last one partial, and a last block that is partial.
    const BLOCKS: u64 = 2 * PAGE_BLOCKS + 100;

    fn map() -> BlockMap {
        BlockMap::new(DiskSize::try_from(BLOCKS * BLOCK_SIZE - 512).unwrap())
    }

    fn around_borders() -> impl Strategy<Value = Range<u64>> {
        let near = prop_oneof![
            0..200u64,
            PAGE_BLOCKS - 70..PAGE_BLOCKS + 70,
            2 * PAGE_BLOCKS - 70..BLOCKS
        ];
        (near, 0u64..200).prop_map(|(start, length)| start..(start + length).min(BLOCKS))
    }

    proptest! {
        #[test]
        fn a_map_is_the_set_of_blocks_that_were_marked(
            marks in prop::collection::vec(around_borders(), 0..20),
            others in prop::collection::vec(around_borders(), 0..20),
            asked in prop::collection::vec(around_borders(), 1..20),
        ) {
            let (map, other) = (map(), map());
            let mut set = BTreeSet::new();
            for range in marks {
                map.mark(range.clone());
                set.extend(range);
            }
            for range in others {
                other.mark(range.clone());
                set.extend(range);
            }
            map.mark_all_of(&other);
            prop_assert_eq!(map.marked(), set.len() as u64);
            for range in asked {
                let marked = range.clone().find(|block| set.contains(block));
                let unmarked = range.clone().find(|block| !set.contains(block));
                prop_assert_eq!(map.first_marked(range.clone()), marked);
                prop_assert_eq!(map.first_unmarked(range.clone()), unmarked);
                if !range.is_empty() {
                    let first = set.contains(&range.start);
                    let end = if first { unmarked } else { marked };
                    prop_assert_eq!(map.run(range.clone()), (first, end.unwrap_or(range.end)));
                }
            }
        }
    }

    #[test]
    fn a_range_of_bytes_touches_every_block_it_has_a_byte_in() {
        assert_eq!(blocks_of(0, 0), 0..0);
        assert_eq!(blocks_of(4095, 1), 0..1);
        assert_eq!(blocks_of(4095, 2), 0..2);
        assert_eq!(blocks_of(4096, 4096), 1..2);
        assert_eq!(blocks_of(5000, 0), 1..1);
    }

    #[test]
    fn the_largest_disk_without_marks_is_asked_quickly_and_holds_no_pages() {
        let map = BlockMap::new(DiskSize::try_from(MAX_DISK_SIZE).unwrap());
        let blocks = MAX_DISK_SIZE / BLOCK_SIZE;
        assert_eq!(map.first_marked(0..blocks), None);
        map.mark(blocks - 1..blocks);
        assert_eq!(map.run(0..blocks), (false, blocks - 1));
        let pages = map.pages.iter().filter(|page| page.get().is_some());
        assert_eq!(pages.count(), 1);
    }

    #[test]
    fn marks_from_many_threads_are_all_kept_and_counted_once() {
        let map = map();
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let map = &map;
                scope.spawn(move || {
                    for block in (0..BLOCKS).filter(|block| block % 8 == thread || block % 3 == 0) {
                        map.mark(block..block + 1);
                    }
                });
            }
        });
        assert_eq!(map.marked(), BLOCKS);
        assert_eq!(map.first_unmarked(0..BLOCKS), None);
    }
}
