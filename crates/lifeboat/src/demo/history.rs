//! Everything that the guest wrote, request by request, apart from all code that the drill is
//! to prove right.
//!
//! The guest sends one request after the other, and after every few of them it writes a marker:
//! a sector that says how many requests there were before it. Whatever disks a host gives back,
//! their marker says which moment they claim to be, and every byte of both disks can be compared
//! with exactly that moment: all requests before it, none after it, none in part.

use std::sync::Arc;
use std::time::Duration;

use lifeboat_model::SECTOR_SIZE;

use super::random::Random;
use super::shadow::Shadow;

/// The disk with the marker, by its place among the disks.
pub const MARKER_DISK: usize = 1;

/// A marker is a sector at the beginning of its disk, in bytes.
pub const MARKER_BYTES: usize = SECTOR_SIZE as usize;

/// What every marker begins with.
const MAGIC: &[u8; 8] = b"moment\0\0";

/// So many requests lie between two copies of the whole state.
const CHECKPOINT: usize = 512;

/// What a request does to a range.
#[derive(Debug, Clone)]
pub enum Change {
    Write(Arc<[u8]>),
    /// So many bytes read as zeroes from then on.
    Zero(u64),
}

/// One request of the guest.
#[derive(Debug, Clone)]
pub struct Request {
    /// The disk's place among the disks.
    pub disk: usize,
    pub offset: u64,
    pub change: Change,
    /// When the host answered, since the drill began; absent while or if it did not.
    pub answered: Option<Duration>,
}

/// All requests so far, and what the disks hold after them.
#[derive(Debug, Clone)]
pub struct History {
    /// Rises with every failover, so that two ways to go on never look alike.
    branch: u64,
    requests: Vec<Request>,
    /// The disks after so many requests, ascending.
    checkpoints: Vec<(usize, Vec<Shadow>)>,
    /// The disks after all requests that were answered.
    present: Vec<Shadow>,
}

/// A moment that disks claim to be, to be compared with.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Requests up to the marker.
    pub count: usize,
    /// The disks after them.
    pub shadows: Vec<Shadow>,
    /// The requests up to the next marker: the moment may lie between any two of them.
    pub after: Vec<Request>,
}

/// What a failover left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Requests that were answered and are not there.
    pub requests: usize,
    /// What they wrote or zeroed, in bytes.
    pub bytes: u64,
    /// From the first of them to the end of the host.
    pub time: Duration,
}

impl Request {
    /// How many bytes it changes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match &self.change {
            Change::Write(bytes) => bytes.len() as u64,
            Change::Zero(length) => *length,
        }
    }

    /// Does to a shadow what the request does to the disk.
    pub fn apply(&self, shadows: &mut [Shadow]) {
        let shadow = &mut shadows[self.disk];
        match &self.change {
            Change::Write(bytes) => shadow.write(self.offset, bytes),
            Change::Zero(length) => shadow.zero(self.offset, *length),
        }
    }

    fn is_marker(&self) -> bool {
        self.disk == MARKER_DISK && self.offset == 0
    }
}

impl History {
    /// Disks of these sizes, full of zeroes, of which nobody has written a byte.
    #[must_use]
    pub fn new(sizes: &[u64]) -> Self {
        let present: Vec<Shadow> = sizes.iter().map(|&size| Shadow::new(size)).collect();
        Self {
            branch: 0,
            requests: Vec::new(),
            checkpoints: vec![(0, present.clone())],
            present,
        }
    }

    /// The way that a guest goes which starts after the first `count` requests.
    #[must_use]
    pub fn fork(&self, count: usize) -> Self {
        let checkpoints = self.checkpoints.iter().filter(|(at, _)| *at <= count);
        Self {
            branch: self.branch + 1,
            requests: self.requests[..count].to_vec(),
            checkpoints: checkpoints.cloned().collect(),
            present: self.after(count),
        }
    }

    /// Goes on under another branch than `other`, which forked from the same requests.
    #[must_use]
    pub fn beside(mut self, other: &Self) -> Self {
        self.branch = self.branch.max(other.branch + 1);
        self
    }

    /// How many requests there were; one of them may not be answered yet.
    #[must_use]
    pub fn count(&self) -> usize {
        self.requests.len()
    }

    /// What all requests changed together, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.requests.iter().map(Request::length).sum()
    }

    /// The marker that the next request writes.
    #[must_use]
    pub fn marker(&self) -> Vec<u8> {
        let count = self.requests.len() as u64 + 1;
        let mut random = Random::new(self.branch ^ count.rotate_left(32));
        let mut marker = MAGIC.to_vec();
        marker.extend_from_slice(&self.branch.to_le_bytes());
        marker.extend_from_slice(&count.to_le_bytes());
        marker.extend_from_slice(&random.bytes(MARKER_BYTES - marker.len()));
        marker
    }

    /// Notes a request that is about to be sent.
    pub fn begin(&mut self, disk: usize, offset: u64, change: Change) {
        self.requests.push(Request {
            disk,
            offset,
            change,
            answered: None,
        });
    }

    /// Notes that the last request was answered. `left` is what its range holds, where that was
    /// the disk's choice.
    pub fn end(&mut self, at: Duration, left: Option<Change>) {
        let count = self.requests.len();
        let Some(request) = self.requests.last_mut() else {
            return;
        };
        request.answered = Some(at);
        if let Some(change) = left {
            request.change = change;
        }
        request.apply(&mut self.present);
        if count.is_multiple_of(CHECKPOINT) {
            self.checkpoints.push((count, self.present.clone()));
        }
    }

    /// The moment that a disk's marker claims; none if the guest never wrote that marker on
    /// this way.
    #[must_use]
    pub fn claim(&self, marker: &[u8]) -> Option<Claim> {
        let count = marker.strip_prefix(MAGIC)?.get(8..16)?;
        let count = usize::try_from(u64::from_le_bytes(count.try_into().ok()?)).ok()?;
        let request = self.requests.get(count.checked_sub(1)?)?;
        let is_ours = match &request.change {
            Change::Write(bytes) => request.is_marker() && **bytes == *marker,
            Change::Zero(_) => false,
        };
        let rest = self.requests[count..].iter();
        is_ours.then(|| Claim {
            count,
            shadows: self.after(count),
            after: rest
                .take_while(|request| !request.is_marker())
                .cloned()
                .collect(),
        })
    }

    /// What is not there on disks that end after the first `count` requests, when the host died
    /// at `end`.
    #[must_use]
    pub fn lost_after(&self, count: usize, end: Duration) -> Lost {
        let lost = self.requests[count..].iter();
        let lost: Vec<&Request> = lost.filter(|one| one.answered.is_some()).collect();
        let first = lost.first().and_then(|request| request.answered);
        Lost {
            requests: lost.len(),
            bytes: lost.iter().map(|request| request.length()).sum(),
            time: first.map_or(Duration::ZERO, |first| end.saturating_sub(first)),
        }
    }

    /// The disks after the first `count` requests.
    fn after(&self, count: usize) -> Vec<Shadow> {
        let checkpoint = self.checkpoints.iter().rfind(|(at, _)| *at <= count);
        let (at, shadows) = checkpoint.expect("BUG: the first checkpoint is before all requests");
        let mut shadows = shadows.clone();
        for request in &self.requests[*at..count] {
            request.apply(&mut shadows);
        }
        shadows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u64; 2] = [64 << 10, 32 << 10];

    fn write(history: &mut History, disk: usize, offset: u64, bytes: &[u8]) {
        history.begin(disk, offset, Change::Write(bytes.into()));
        history.end(Duration::from_secs(history.count() as u64), None);
    }

    fn mark(history: &mut History) -> Vec<u8> {
        let marker = history.marker();
        write(history, MARKER_DISK, 0, &marker);
        marker
    }

    fn byte(shadows: &[Shadow], offset: u64) -> u8 {
        let mut byte = [0];
        shadows[0].read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn a_marker_names_its_moment_whatever_was_written_later() {
        let mut history = History::new(&SIZES);
        let mut markers = Vec::new();
        for number in 0..=255 {
            for at in 0..8 {
                write(&mut history, 0, at * 4096, &[number; 100]);
            }
            markers.push(mark(&mut history));
        }
        for (number, marker) in markers.iter().enumerate() {
            let claim = history.claim(marker).unwrap();
            assert_eq!(claim.count, (number + 1) * 9);
            assert_eq!(byte(&claim.shadows, 7 * 4096 + 99), number as u8);
            assert_eq!(claim.after.len(), if number == 255 { 0 } else { 8 });
        }
    }

    #[test]
    fn a_marker_of_another_way_is_no_moment_of_this_one() {
        let mut history = History::new(&SIZES);
        let first = mark(&mut history);
        let mut other = history.fork(1);
        let left = mark(&mut history);
        let right = mark(&mut other);
        assert_ne!(left, right);
        assert!(history.claim(&right).is_none());
        assert!(other.claim(&left).is_none());
        assert_eq!(other.claim(&first).unwrap().count, 1);
        let third = mark(&mut history.fork(1).beside(&other));
        assert!(other.claim(&third).is_none());
        assert!(history.claim(&[0; MARKER_BYTES]).is_none());
    }

    #[test]
    fn what_was_answered_and_is_not_there_is_lost() {
        let mut history = History::new(&SIZES);
        for _ in 0..4 {
            write(&mut history, 0, 0, &[1; 10]);
        }
        // Nobody was told that this one is safe.
        history.begin(0, 0, Change::Zero(512));
        let lost = history.lost_after(1, Duration::from_secs(9));
        let expected = Lost {
            requests: 3,
            bytes: 30,
            time: Duration::from_secs(7),
        };
        assert_eq!(lost, expected);
        let none = history.lost_after(4, Duration::from_secs(9));
        assert_eq!((none.requests, none.time), (0, Duration::ZERO));
    }
}
