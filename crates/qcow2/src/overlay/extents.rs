//! What the overlay holds, in order.

use std::ops::Range;

use super::Overlay;
use super::map::{Entry, Map, MapError};

/// Who has the bytes of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentState {
    /// The overlay, from offset `host` of its file on. Where the overlay is open read-only,
    /// all of it lies within the file.
    Data { host: u64 },
    /// Nobody: they are zeroes, whatever lies below.
    Zero,
    /// The image below.
    Absent,
}

/// Neighboring bytes of the guest's disk that are in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayExtent {
    pub offset: u64,
    pub len: u64,
    pub state: ExtentState,
}

impl OverlayExtent {
    /// Without what lies beyond the end of the file, which reads as zeroes.
    fn within_file(self, file_end: u64) -> Self {
        match self.state {
            ExtentState::Data { host } if host >= file_end => Self {
                state: ExtentState::Zero,
                ..self
            },
            ExtentState::Data { host } => Self {
                len: self.len.min(file_end - host),
                ..self
            },
            ExtentState::Zero | ExtentState::Absent => self,
        }
    }

    /// Both as one extent, if `next` goes on in the same state.
    fn joined(&self, next: &Self) -> Option<Self> {
        let continues = match (self.state, next.state) {
            (ExtentState::Data { host }, ExtentState::Data { host: next }) => {
                host + self.len == next
            }
            (state, next) => state == next,
        };
        continues.then_some(Self {
            len: self.len + next.len,
            ..*self
        })
    }
}

/// The extents of a range, in ascending order and without gaps; ends after an error.
///
/// Follows writes that happen meanwhile, at any moment before or after them.
#[derive(Debug)]
pub struct Extents<'a> {
    overlay: &'a Overlay,
    next: u64,
    end: u64,
    /// Found, but it may go on.
    open: Option<OverlayExtent>,
    failed: Option<MapError>,
}

impl Overlay {
    /// What the overlay holds of a range of the guest's disk, as long extents as possible.
    ///
    /// Tables that do not exist are skipped without being read, so that an empty overlay
    /// costs nothing; memory does not depend on the length of the range. A range that ends
    /// beyond the end of the disk is cut there.
    #[must_use]
    pub fn extents(&self, range: Range<u64>) -> Extents<'_> {
        Extents {
            overlay: self,
            next: range.start,
            end: range.end.min(self.virtual_size()),
            open: None,
            failed: None,
        }
    }

    /// Like [`Overlay::extents`], without the extents that the image below has.
    pub fn allocated(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = Result<OverlayExtent, MapError>> {
        self.extents(range).filter(|extent| {
            !matches!(
                extent,
                Ok(OverlayExtent {
                    state: ExtentState::Absent,
                    ..
                })
            )
        })
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<OverlayExtent, MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end && self.failed.is_none() {
            let piece = self
                .overlay
                .lock()
                .extent_at(&*self.overlay.file, self.next, self.end);
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            };
            self.next += piece.len;
            let Some(open) = self.open.replace(piece) else {
                continue;
            };
            match open.joined(&piece) {
                Some(longer) => self.open = Some(longer),
                None => return Some(Ok(open)),
            }
        }
        if let Some(whole) = self.open.take() {
            return Some(Ok(whole));
        }
        self.end = self.next;
        self.failed.take().map(Err)
    }
}

impl Map {
    /// The extent at `offset`, as far as one L2 entry or one absent table goes.
    fn extent_at(
        &mut self,
        file: &dyn lifeboat_sys::disk::DiskFile,
        offset: u64,
        end: u64,
    ) -> Result<OverlayExtent, MapError> {
        let geometry = self.geometry;
        let cluster = offset / geometry.cluster_size();
        if !self.has_table(cluster) {
            let table_end =
                (offset / geometry.table_span() + 1).saturating_mul(geometry.table_span());
            return Ok(OverlayExtent {
                offset,
                len: table_end.min(end) - offset,
                state: ExtentState::Absent,
            });
        }
        let entry = self.entry(file, cluster)?;
        let in_cluster = offset % geometry.cluster_size();
        let part = (in_cluster / geometry.subcluster_size()) as u32;
        let (state, parts) = entry.state_at(part, in_cluster);
        let parts = parts.min(geometry.subclusters() - part);
        let run_end = cluster * geometry.cluster_size()
            + u64::from(part + parts) * geometry.subcluster_size();
        let extent = OverlayExtent {
            offset,
            len: run_end.min(end) - offset,
            state,
        };
        Ok(extent.within_file(self.data_end()))
    }
}

impl Entry {
    /// The state of one part of the cluster, and how many parts from there on share it.
    fn state_at(&self, part: u32, in_cluster: u64) -> (ExtentState, u32) {
        let run = |mask: u32| (mask >> part).trailing_ones();
        if run(self.data) > 0 {
            let host = self.host + in_cluster;
            (ExtentState::Data { host }, run(self.data))
        } else if run(self.zero) > 0 {
            (ExtentState::Zero, run(self.zero))
        } else {
            (ExtentState::Absent, run(!(self.data | self.zero)))
        }
    }
}
