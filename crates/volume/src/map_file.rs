//! A dirty map of one disk in a file that outlives the process.
//!
//! ```text
//!   0     magic, format, moment, disk size, length and text of the disk id, check sum of these
//!   4096  one bit per block of 4 KiB, lowest first, in words of 64; 0 beyond the disk
//! ```
//!
//! Numbers are little-endian. The file is complete, allocated and durable before the first block
//! is marked, and its header never changes. Whether marks can be believed after a crash is not
//! decided here: see [`Tracker`](crate::Tracker).

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize, Sequence};
use lifeboat_sys::disk::DiskPort;
use lifeboat_sys::mapping::SharedWords;

use crate::map::{BlockMap, mask};

const MAGIC: [u8; 8] = *b"lifebmap";
const FORMAT: u64 = 1;
const HEADER: usize = 4096;
const HEADER_WORDS: usize = HEADER / 8;
const WORD_BITS: u64 = 64;

/// The part of the header that has a meaning, up to its check sum.
const FACTS: usize = 5 * 8 + DiskId::MAX_LEN;

/// How much of an all-marked map is written at once.
const FILL: usize = 1 << 20;

/// Which blocks of a disk have changed since a moment.
#[derive(Debug)]
pub(crate) struct MapFile {
    words: SharedWords,
    blocks: u64,
    marked: AtomicU64,
}

/// With what a new map begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initially {
    Unmarked,
    AllMarked,
}

/// A file that is not the map it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapFileError {
    #[error("open the map")]
    Open { source: io::Error },
    #[error("the map's header is damaged or of another format")]
    Header,
    #[error("the map is of another disk, disk size or moment")]
    Another,
    #[error("the map marks blocks beyond the disk")]
    Beyond,
}

impl MapFile {
    /// Makes the map and its contents durable; its name is durable after its folder is synced.
    /// What fails leaves a file that is no map.
    pub(crate) fn create(
        port: &dyn DiskPort,
        path: &Path,
        disk: &DiskId,
        size: DiskSize,
        moment: Sequence,
        initially: Initially,
    ) -> io::Result<Self> {
        let count = word_count(size);
        let bytes = (count * 8) as u64;
        let file = port.create(path)?;
        file.set_len(bytes)?;
        file.allocate(0, bytes)?;
        file.write_at(&header(disk, size, moment), 0)?;
        if initially == Initially::AllMarked {
            fill(size, |part, at| file.write_at(part, at))?;
        }
        file.sync()?;
        let words = SharedWords::open(path, count)?;
        let marked = match initially {
            Initially::Unmarked => 0,
            Initially::AllMarked => size.blocks(),
        };
        Ok(Self {
            words,
            blocks: size.blocks(),
            marked: AtomicU64::new(marked),
        })
    }

    /// Opens a map that must be of this disk and moment.
    pub(crate) fn open(
        path: &Path,
        disk: &DiskId,
        size: DiskSize,
        moment: Sequence,
    ) -> Result<Self, MapFileError> {
        let words = SharedWords::open(path, word_count(size))
            .map_err(|source| MapFileError::Open { source })?;
        let found: Vec<u8> = words.words()[..HEADER_WORDS]
            .iter()
            .flat_map(|word| word.load(Ordering::SeqCst).to_ne_bytes())
            .collect();
        let facts = &found[..FACTS];
        if facts[..8] != MAGIC
            || facts[8..16] != FORMAT.to_le_bytes()
            || found[FACTS..FACTS + 8] != check_sum(facts).to_le_bytes()
        {
            return Err(MapFileError::Header);
        }
        if found != header(disk, size, moment) {
            return Err(MapFileError::Another);
        }
        let map = Self {
            words,
            blocks: size.blocks(),
            marked: AtomicU64::new(0),
        };
        let ones = |word: &AtomicU64| u64::from(word.load(Ordering::SeqCst).count_ones());
        let marked: u64 = map.bits().iter().map(ones).sum();
        map.marked.store(marked, Ordering::SeqCst);
        let rest = map.blocks % WORD_BITS;
        let last = map.bits().last().map_or(0, load);
        if rest != 0 && last & !mask(0, rest) != 0 {
            return Err(MapFileError::Beyond);
        }
        Ok(map)
    }

    /// Little-endian words, one bit per block.
    fn bits(&self) -> &[AtomicU64] {
        &self.words.words()[HEADER_WORDS..]
    }

    pub(crate) fn marked(&self) -> u64 {
        self.marked.load(Ordering::SeqCst)
    }

    /// How many blocks of one disk any of its maps marks.
    pub(crate) fn marked_in_any(maps: &[&Self]) -> u64 {
        match maps {
            [] => 0,
            [only] => only.marked(),
            [first, rest @ ..] => (0..first.bits().len())
                .map(|at| {
                    let word = |map: &Self| load(&map.bits()[at]);
                    let all = rest.iter().fold(word(first), |all, map| all | word(map));
                    u64::from(all.count_ones())
                })
                .sum(),
        }
    }

    pub(crate) fn mark(&self, blocks: Range<u64>) {
        debug_assert!(blocks.end <= self.blocks, "BUG: a block beyond the disk");
        let bits = self.bits();
        let mut at = blocks.start;
        while at < blocks.end {
            let word = at / WORD_BITS;
            let end = blocks.end.min((word + 1) * WORD_BITS);
            let wanted = mask(at, end);
            let place = &bits[usize::try_from(word).expect("BUG: a map larger than memory")];
            // What is marked stays marked; a page that is not written to need not be saved.
            if load(place) & wanted != wanted {
                let old = u64::from_le(place.fetch_or(wanted.to_le(), Ordering::SeqCst));
                let added = (wanted & !old).count_ones();
                self.marked.fetch_add(u64::from(added), Ordering::SeqCst);
            }
            at = end;
        }
    }

    /// Marks in `map`, of the same disk, everything that is marked here.
    pub(crate) fn add_to(&self, map: &BlockMap) {
        for (word, bits) in (0..).zip(self.bits()) {
            let bits = load(bits);
            if bits != 0 {
                map.mark_word(word, bits);
            }
        }
    }

    /// Returns when every mark made before is durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.words.sync()
    }
}

fn load(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Ordering::SeqCst))
}

fn word_count(size: DiskSize) -> usize {
    let words = size.blocks().div_ceil(WORD_BITS);
    HEADER_WORDS + usize::try_from(words).expect("BUG: a map larger than memory")
}

fn header(disk: &DiskId, size: DiskSize, moment: Sequence) -> Vec<u8> {
    let id = disk.as_str().as_bytes();
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(&MAGIC);
    for number in [FORMAT, moment.number(), size.bytes(), id.len() as u64] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(id);
    header.resize(FACTS, 0);
    let sum = check_sum(&header);
    header.extend_from_slice(&sum.to_le_bytes());
    header.resize(HEADER, 0);
    header
}

/// FNV-1a: finds accidents, and is not meant to find more.
fn check_sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Writes the bits of a map in which every block is marked.
fn fill(size: DiskSize, write: impl Fn(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    let words = size.blocks() / WORD_BITS;
    let ones = vec![0xff; FILL];
    let (mut at, end) = (HEADER as u64, HEADER as u64 + words * 8);
    while at < end {
        let length = (end - at).min(FILL as u64);
        write(&ones[..length as usize], at)?;
        at += length;
    }
    let rest = size.blocks() % WORD_BITS;
    if rest != 0 {
        write(&mask(0, rest).to_le_bytes(), end)?;
    }
    Ok(())
}

/// The ranges of bytes that `map`, of a disk of this size, marks.
pub(crate) fn marked_ranges(map: &BlockMap, size: DiskSize) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(start) = map.first_marked(at..size.blocks()) {
        let (_, end) = map.run(start..size.blocks());
        ranges.push(start * BLOCK_SIZE..size.bytes().min(end * BLOCK_SIZE));
        at = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use lifeboat_sys::disk::RealDisk;

    use super::*;

    fn size(bytes: u64) -> DiskSize {
        DiskSize::try_from(bytes).unwrap()
    }

    fn disk() -> DiskId {
        "sda".parse().unwrap()
    }

    fn create(path: &Path, initially: Initially) -> MapFile {
        let moment = Sequence::new(7);
        MapFile::create(&RealDisk, path, &disk(), size(1_000_448), moment, initially).unwrap()
    }

    fn open(path: &Path) -> Result<MapFile, MapFileError> {
        MapFile::open(path, &disk(), size(1_000_448), Sequence::new(7))
    }

    fn ranges(map: &MapFile) -> Vec<Range<u64>> {
        let size = size(1_000_448);
        let memory = BlockMap::new(size);
        map.add_to(&memory);
        marked_ranges(&memory, size)
    }

    #[test]
    fn the_format_is_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        create(&path, Initially::Unmarked).mark(3..70);
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len(), 4096 + 4 * 8);
        let mut golden = b"lifebmap".to_vec();
        golden.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0, 0x44, 0x0f, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(b"sda");
        assert_eq!(bytes[..golden.len()], golden);
        let bits = [
            0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes[4096..4112], bits);
    }

    #[test]
    fn marks_are_there_when_the_map_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let map = create(&path, Initially::Unmarked);
        map.mark(0..1);
        map.mark(60..70);
        map.mark(65..245);
        assert_eq!(map.marked(), 186);
        drop(map);
        let map = open(&path).unwrap();
        assert_eq!(map.marked(), 186);
        assert_eq!(ranges(&map), [0..4096, 60 * 4096..1_000_448]);
    }

    #[test]
    fn a_block_that_several_maps_mark_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let map = |name, blocks| {
            let map = create(&folder.path().join(name), Initially::Unmarked);
            map.mark(blocks);
            map
        };
        let maps = [map("a", 0..70), map("b", 60..100), map("c", 244..245)];
        assert_eq!(MapFile::marked_in_any(&maps.each_ref()), 101);
        assert_eq!(MapFile::marked_in_any(&[&maps[1]]), 40);
        assert_eq!(MapFile::marked_in_any(&[]), 0);
    }

    #[test]
    fn a_map_that_begins_with_everything_marks_no_block_beyond_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let map = create(&path, Initially::AllMarked);
        assert_eq!(map.marked(), 245);
        assert_eq!(ranges(&map), vec![0..1_000_448; 1]);
        assert_eq!(open(&path).unwrap().marked(), 245);
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        create(&path, Initially::Unmarked);
        let good = std::fs::read(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let spare = (FACTS + 8..HEADER).map(|byte| 8 * byte + byte % 8);
        for bit in (0..8 * (FACTS + 8)).chain(spare) {
            let (at, old) = ((bit / 8) as u64, good[bit / 8]);
            file.write_all_at(&[old ^ 1 << (bit % 8)], at).unwrap();
            assert!(open(&path).is_err(), "bit {bit}");
            file.write_all_at(&[old], at).unwrap();
        }
        open(&path).unwrap();
    }

    #[test]
    fn a_map_of_something_else_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        create(&path, Initially::Unmarked);
        let moment = Sequence::new(7);
        let other = "sdb".parse().unwrap();
        let opened = MapFile::open(&path, &other, size(1_000_448), moment);
        assert!(matches!(opened, Err(MapFileError::Another)), "{opened:?}");
        let opened = MapFile::open(&path, &disk(), size(1_000_448), Sequence::new(8));
        assert!(matches!(opened, Err(MapFileError::Another)), "{opened:?}");
        let opened = MapFile::open(&path, &disk(), size(1_000_960), moment);
        assert!(matches!(opened, Err(MapFileError::Another)), "{opened:?}");
        let opened = MapFile::open(&path, &disk(), size(10 << 20), moment);
        assert!(
            matches!(opened, Err(MapFileError::Open { .. })),
            "{opened:?}"
        );
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] = 0x80;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(open(&path), Err(MapFileError::Beyond)));
    }
}
