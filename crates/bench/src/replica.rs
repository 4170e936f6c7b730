//! A replica's store as a row needs it, and its copy for the next run.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Sequence};
use lifeboat_store::{Committed, FailoverTarget, StartedFailover, Store};
use lifeboat_stream::Options;
use lifeboat_sys::clock::{self, Stopwatch};
use lifeboat_sys::disk::{GuestDisk, RealDisk};
use lifeboat_sys::host;

use crate::guest::{Change, Guest, UNCOMPRESSED};
use crate::place::{self, Place};

const HOLDER: &str = "lifeboat-bench";

/// A store and the guest that it is a replica of.
#[derive(Debug)]
pub struct Replica {
    pub store: Store,
    pub guest: Guest,
}

impl Replica {
    /// Makes a store in `folder` for a disk of `size` bytes, of which the first `data` hold
    /// random bytes.
    pub fn create(folder: &Path, size: u64, data: u64) -> Result<Self> {
        let guest = Guest::new(size)?;
        let store = Store::init(Arc::new(RealDisk), folder, &guest.new_store(), HOLDER)
            .context("make a store")?;
        let mut replica = Self { store, guest };
        let whole = replica.guest.whole(data)?;
        replica.take(&whole)?;
        Ok(replica)
    }

    /// Receives and applies a stream.
    pub fn take(&mut self, stream: &[u8]) -> Result<()> {
        self.store.receive(stream).context("receive a delta")?;
        self.apply().map(|_| ())
    }

    /// Applies what was received, and tells how long that took.
    pub fn apply(&mut self) -> Result<Duration> {
        let watch = Stopwatch::start();
        while self
            .store
            .apply_next(&mut |_| {})
            .context("apply a delta")?
            .is_some()
        {}
        Ok(watch.elapsed())
    }

    /// Lets the guest make these changes, and the replica follow.
    pub fn follow(&mut self, changes: &[Change], options: Options) -> Result<()> {
        let stream = self.guest.delta(changes, options)?;
        self.take(&stream)
    }

    /// Makes the newest moment a recovery point.
    pub fn make_point(&mut self) -> Result<Sequence> {
        self.store
            .make_point(clock::wall(), PointKind::Standard)
            .context("make a recovery point")
    }

    /// `count` recovery points, after each of which the guest wrote `len` bytes below `data`
    /// in pieces of `step`.
    pub fn make_points(&mut self, count: usize, data: u64, len: u64, step: usize) -> Result<()> {
        for _ in 0..count {
            self.make_point()?;
            let changes = self.guest.scattered(data, len, step);
            self.follow(&changes, UNCOMPRESSED)?;
        }
        Ok(())
    }

    /// The oldest recovery point.
    pub fn oldest(&self) -> Result<Sequence> {
        let points = self.store.points();
        points
            .first()
            .map(|point| point.sequence)
            .context("find a recovery point")
    }

    pub fn start_failover(&mut self, target: FailoverTarget) -> Result<StartedFailover> {
        let lineage = host::random_bytes().context("draw a lineage")?;
        let lineage = LineageId::from_bytes(lineage);
        self.store
            .start_failover(target, lineage, clock::wall(), &mut |_| {})
            .context("start the failover")
    }

    /// Lets the failed-over guest write these changes into its overlay.
    pub fn write_overlay(&mut self, changes: &[Change]) -> Result<()> {
        let disk = self
            .store
            .failover_disk(self.guest.disk())
            .context("open the overlay")?;
        for &change in changes {
            match change {
                Change::Write { offset, len } => disk.write_at(&self.guest.bytes(len), offset),
                Change::Zero { offset, len } => disk.zero(offset, len),
            }
            .context("write into the overlay")?;
        }
        disk.flush().context("flush the overlay")
    }
}

/// A failed-over store that can be committed again and again: images of which nothing is lost
/// in a commit are shared with the copy, everything else is copied anew for every run.
#[derive(Debug)]
pub struct Rehearsal {
    place: Place,
    name: String,
    guest: Guest,
    pub started: StartedFailover,
}

impl Rehearsal {
    /// Closes the store in `place` below `name` and keeps a copy of it.
    pub fn of(replica: Replica, place: &Place, name: &str) -> Result<Self> {
        let started = replica
            .store
            .started_failover()
            .context("find the failover")?;
        let Replica { store, guest } = replica;
        drop(store);
        let rehearsal = Self {
            place: place.clone(),
            name: name.to_owned(),
            guest,
            started,
        };
        place::link_tree(&rehearsal.folder(), &rehearsal.kept(), &is_image)?;
        Ok(rehearsal)
    }

    fn folder(&self) -> PathBuf {
        self.place.join(&self.name)
    }

    fn kept(&self) -> PathBuf {
        self.place.join(&format!("{}.kept", self.name))
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Puts the store back to where it was before the commit.
    pub fn restore(&self) -> Result<()> {
        place::remove_tree(&self.folder())?;
        place::link_tree(&self.kept(), &self.folder(), &is_image)
    }

    /// Puts the store back, opens it, and forgets the copy.
    pub fn reopen(self) -> Result<Replica> {
        self.restore()?;
        place::remove_tree(&self.kept())?;
        Ok(Replica {
            store: self.open()?,
            guest: self.guest,
        })
    }

    fn open(&self) -> Result<Store> {
        Store::open(Arc::new(RealDisk), &self.folder(), HOLDER).context("open the store")
    }

    /// Restores the store, lets `prepare` ready the machine, and commits.
    pub fn commit(
        &self,
        prepare: impl FnOnce(&Place) -> Result<()>,
    ) -> Result<(Duration, Committed)> {
        self.restore()?;
        let mut store = self.open()?;
        prepare(&self.place)?;
        let watch = Stopwatch::start();
        let committed = store.commit(&mut |_| {}).context("commit")?;
        Ok((watch.elapsed(), committed))
    }

    /// The overlay that the guest wrote to.
    pub fn overlay(&self) -> &Path {
        &self.started.disks[0].image
    }

    /// The image that keeps its data in the head, the last of the chain.
    pub fn wrapper(&self) -> &Path {
        let below = &self.started.disks[0].below;
        below.last().expect("BUG: every chain ends at the head")
    }
}

/// Whether a commit only reads the file, or only writes what it would write again.
fn is_image(path: &Path) -> bool {
    let in_folder = |name: &str| path.components().any(|part| part.as_os_str() == name);
    path.file_name().is_some_and(|name| name == "head.raw")
        || in_folder("seg")
        || in_folder("failover")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsed_commit_moves_the_same_bytes_every_time() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::new(home.path(), "bench").unwrap();
        let mut replica = Replica::create(&place.join("store"), 8 << 20, 4 << 20).unwrap();
        replica.make_points(3, 4 << 20, 256 << 10, 4096).unwrap();
        let oldest = replica.oldest().unwrap();
        replica
            .start_failover(FailoverTarget::Point(oldest))
            .unwrap();
        let changes = replica.guest.scattered(4 << 20, 128 << 10, 65536);
        replica.write_overlay(&changes).unwrap();
        let rehearsal = Rehearsal::of(replica, &place, "store").unwrap();
        let commit = || rehearsal.commit(|_| Ok(())).unwrap().1;
        let first = commit();
        assert!(first.written_bytes + first.shared_bytes > 256 << 10);
        assert_eq!(commit(), first);
        let replica = rehearsal.reopen().unwrap();
        assert!(replica.store.started_failover().is_some());
    }
}
