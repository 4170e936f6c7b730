//! Plans, and what a replica does with their streams.

use std::time::Duration;

use lifeboat_capture::{
    CaptureError, CapturePlan, Captured, DEFAULT_DEPTH, Progress, Source, capture,
};
use lifeboat_model::{
    BLOCK_SIZE, Consistency, DeltaId, LineageId, RelationshipId, Sequence, Timestamp,
};
use lifeboat_nbd::NbdUri;
use lifeboat_stream::{
    Base, Decoder, Ending, Frame, Header, Kind, Limits, MAX_DATA_LEN, Options, SHARE_MIN_LEN,
    is_zero,
};

/// Long enough for a loaded machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn source(disk: &str, uri: &NbdUri, bitmap: Option<&str>) -> Source {
    Source {
        disk: disk.parse().unwrap(),
        uri: uri.clone(),
        bitmap: bitmap.map(ToOwned::to_owned),
    }
}

pub fn plan(kind: Kind, sources: Vec<Source>) -> CapturePlan {
    let base = Base {
        sequence: Sequence::new(1),
        id: DeltaId::from_bytes([3; 32]),
    };
    CapturePlan {
        header: Header {
            relationship: RelationshipId::from_bytes([1; 16]),
            lineage: LineageId::from_bytes([2; 16]),
            base: (kind == Kind::Delta).then_some(base),
            sequence: Sequence::new(2),
            kind,
        },
        captured_at: Timestamp::from_micros(1),
        consistency: Consistency::Crash,
        sources,
        options: Options::default(),
        tls: None,
        deadline: PATIENCE,
        depth: DEFAULT_DEPTH,
    }
}

/// A complete stream, and what was said of it.
#[derive(Debug)]
pub struct Taken {
    pub stream: Vec<u8>,
    pub captured: Captured,
    pub progress: Vec<Progress>,
}

pub fn take(plan: &CapturePlan) -> Result<Taken, CaptureError> {
    let mut stream = Vec::new();
    let mut progress = Vec::new();
    let captured = capture(plan, &mut stream, &mut |now| progress.push(now))?;
    Ok(Taken {
        stream,
        captured,
        progress,
    })
}

/// One range of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub disk: usize,
    pub offset: u64,
    pub length: u64,
    pub zero: bool,
}

impl Taken {
    /// Applies the stream to the disks, checks what holds of every stream, and gives its
    /// ranges.
    pub fn apply(&self, disks: &mut [Vec<u8>]) -> Vec<Range> {
        let limits = Limits {
            stream_bytes: self.captured.bytes,
            ending: Ending::EndOfInput,
        };
        assert_eq!(self.captured.bytes, self.stream.len() as u64);
        let mut decoder = Decoder::new(&self.stream[..], &limits).unwrap();
        assert_eq!(decoder.manifest().disks(), self.captured.disks);
        let mut ranges = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            match frame {
                Frame::Blob { .. } => panic!("nobody gave a blob"),
                Frame::Data {
                    disk,
                    offset,
                    bytes,
                } => {
                    assert_data_frame(offset, bytes);
                    disks[disk][offset as usize..][..bytes.len()].copy_from_slice(bytes);
                    ranges.push(Range {
                        disk,
                        offset,
                        length: bytes.len() as u64,
                        zero: false,
                    });
                }
                Frame::Zero {
                    disk,
                    offset,
                    length,
                } => {
                    disks[disk][offset as usize..][..length as usize].fill(0);
                    ranges.push(Range {
                        disk,
                        offset,
                        length,
                        zero: true,
                    });
                }
            }
        }
        assert_eq!(decoder.footer(), Some(&self.captured.footer));
        for pair in ranges.windows(2) {
            let joined = pair[0].disk == pair[1].disk
                && pair[0].zero
                && pair[1].zero
                && pair[0].offset + pair[0].length == pair[1].offset;
            assert!(
                !joined,
                "zeroes that follow one another are one frame: {pair:?}"
            );
        }
        let sum = |zero| {
            let alike = ranges.iter().filter(|range| range.zero == zero);
            alike.map(|range| range.length).sum::<u64>()
        };
        assert_eq!(self.captured.data_bytes, sum(false));
        assert_eq!(self.captured.zero_bytes, sum(true));
        ranges
    }
}

/// No block of zeroes travels as data, and large frames begin where they can be shared.
fn assert_data_frame(offset: u64, bytes: &[u8]) {
    assert_eq!(offset % BLOCK_SIZE, 0);
    assert!(bytes.len() <= MAX_DATA_LEN);
    for block in bytes.chunks(BLOCK_SIZE as usize) {
        assert!(!is_zero(block), "a block of zeroes at or after {offset}");
    }
    let unit = SHARE_MIN_LEN as u64;
    let end = offset + bytes.len() as u64;
    let holds_a_whole_unit = offset.next_multiple_of(unit) + unit <= end;
    assert!(
        !holds_a_whole_unit || offset.is_multiple_of(unit),
        "{offset}..{end}"
    );
}

/// Bytes that differ everywhere, so that nothing misplaced looks right.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&dice.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Numbers that look random and are the same each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        (self.next() >> 11) % sides
    }
}
