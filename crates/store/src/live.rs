//! Commit while the guest runs on the failover disks of this process.
//!
//! The heads take on, in the background, what overlay and segments hold. They change only where
//! the overlay or a segment stands before them, and neither ever gives way again; so what the
//! guest reads stays right, and a crash at any place finds the overlay as the guest flushed it
//! and does the work again without a guest. The record `Committing` is the point of no return,
//! here as there. What the guest writes meanwhile goes to the overlay; its caller notes where,
//! has it copied again, and at the end once more with the guest paused.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use lifeboat_model::DiskId;
use lifeboat_qcow2::Overlay;
use lifeboat_sys::disk::GuestDisk;

use crate::commit::{Committed, HeadWriter, Moved, OverlayBytes, WINDOW, plan};
use crate::digest::DigestTable;
use crate::error::{IoContext, Refused, StoreError};
use crate::failover::{FailoverDisk, image_error};
use crate::image::Chain;
use crate::record::{Failover, Phase, Record, Target};
use crate::store::Store;

/// A commit under way beside a running guest. Dropping it stops the work and undoes nothing.
#[derive(Debug)]
pub struct LiveCommit {
    disks: Vec<LiveDisk>,
    target: Target,
    moved: Mutex<Moved>,
}

/// One disk of it.
#[derive(Debug)]
struct LiveDisk {
    id: DiskId,
    guest: Arc<FailoverDisk>,
    chain: Arc<Chain>,
    digests: Arc<DigestTable>,
    head: PathBuf,
}

impl Store {
    /// Begins to commit a failover whose guest runs on these disks, which are all that it has.
    /// Durable on return; from then on the commit can only go forward, if need be when the
    /// store is opened again after the guest has ended.
    ///
    /// From before this call on, the caller notes what the guest changes. It may be called again
    /// for a commit that has begun.
    ///
    /// # Errors
    /// Refused when there is no failover, when the disks are not those of this failover, while
    /// points are read, and while QEMU uses an image. Damage in a segment is found before the
    /// point of no return: nothing is changed then.
    pub fn begin_live_commit(
        &mut self,
        disks: &[(DiskId, Arc<FailoverDisk>)],
    ) -> Result<LiveCommit, StoreError> {
        let failover = self.live_failover()?;
        let live = self.live_disks(disks, &failover)?;
        self.refuse_readers()?;
        self.guard_images()?;
        if matches!(self.state.phase, Phase::Committing(_)) {
            return Ok(live);
        }
        if let Target::Segment(number) = failover.target
            && let Err(error) = self.verify_segments_from(number)
        {
            // The VM can be started in another way.
            self.release_images();
            return Err(error);
        }
        self.change(|store| {
            store.write_divergence_map(&failover, &live.overlays())?;
            store.save(&Record::Committing)
        })?;
        Ok(live)
    }

    /// Ends a live commit: copies what the guest has changed since the last copy, and makes the
    /// heads the VM's disks. The caller has paused the guest, and lets it go on afterwards on
    /// [`committed_disks`](Self::committed_disks); the failover disks take no more writes.
    /// Durable on return.
    ///
    /// # Errors
    /// What the operating system says. The store then has to be opened again, which completes the
    /// commit as soon as the guest's disks are closed.
    pub fn finish_live_commit(
        &mut self,
        live: &LiveCommit,
        changed: &[(DiskId, Range<u64>)],
    ) -> Result<Committed, StoreError> {
        let failover = match &self.state.phase {
            Phase::Committing(failover) => failover.clone(),
            Phase::Committed(_) => return Err(Refused::Committed.into()),
            Phase::Replica | Phase::FailingOver(_) | Phase::FailedOver(_) => {
                return Err(Refused::NotFailedOver { purpose: "commit" }.into());
            }
        };
        let points = self.points_kept();
        self.change(|store| {
            live.copy(Some(changed))?;
            for disk in &live.disks {
                disk.guest.flush().context("flush", &disk.head)?;
                let head = &disk.chain.head;
                head.sync().context("sync", &disk.head)?;
                disk.digests.sync().context("sync digests of", &disk.head)?;
            }
            store.write_divergence_map(&failover, &live.overlays())?;
            store.save(&Record::Committed)?;
            live.disks.iter().for_each(|disk| disk.guest.retire());
            store.clear_after_commit()?;
            Ok(Committed::of(&failover, points, live.moved()))
        })
    }

    fn live_failover(&self) -> Result<Failover, Refused> {
        match &self.state.phase {
            Phase::FailedOver(failover) | Phase::Committing(failover) => Ok(failover.clone()),
            Phase::Replica | Phase::FailingOver(_) => {
                Err(Refused::NotFailedOver { purpose: "commit" })
            }
            Phase::Committed(_) => Err(Refused::Committed),
        }
    }

    /// The disks in the store's order; refuses others than the failover's.
    fn live_disks(
        &self,
        disks: &[(DiskId, Arc<FailoverDisk>)],
        failover: &Failover,
    ) -> Result<LiveCommit, Refused> {
        let find = |at: usize| {
            let image = &self.images[at];
            let given = disks.iter().find(|(id, _)| *id == image.id);
            let (id, guest) = given.filter(|(_, guest)| guest.is_over(&image.chain))?;
            Some(LiveDisk {
                id: id.clone(),
                guest: Arc::clone(guest),
                chain: Arc::clone(&image.chain),
                digests: Arc::clone(&image.digests),
                head: self.layout.head(id),
            })
        };
        let found: Option<Vec<LiveDisk>> = (0..self.images.len()).map(find).collect();
        let found = found.filter(|found| found.len() == disks.len());
        Ok(LiveCommit {
            disks: found.ok_or(Refused::OtherFailoverDisks)?,
            target: failover.target,
            moved: Mutex::new(Moved::default()),
        })
    }
}

impl LiveCommit {
    /// Copies into the heads what overlays and segments hold: all of it where `changed` is
    /// `None`, else again what the guest has changed since it was copied. May run beside the
    /// guest and beside a caller who notes what changes. Not durable before
    /// [`finish_live_commit`](Store::finish_live_commit).
    ///
    /// # Errors
    /// What the operating system says; it may be called again.
    pub fn copy(&self, changed: Option<&[(DiskId, Range<u64>)]>) -> Result<(), StoreError> {
        for disk in &self.disks {
            let size = disk.guest.size();
            let head = &disk.chain.head;
            let path = &disk.head;
            let old = head.len().context("measure", path)?;
            if old != size {
                head.set_len(size).context("resize", path)?;
                disk.digests
                    .resized(old, size)
                    .context("forget digests of", path)?;
            }
            match changed {
                None => self.copy_range(disk, 0..size)?,
                Some(changed) => {
                    for (_, range) in changed.iter().filter(|(id, _)| *id == disk.id) {
                        self.copy_range(disk, range.start..range.end.min(size))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn copy_range(&self, disk: &LiveDisk, range: Range<u64>) -> Result<(), StoreError> {
        let path = &disk.head;
        let layered = &disk.guest.layered;
        let mut moved = Moved::default();
        let mut writer = HeadWriter {
            head: &disk.chain.head,
            digests: &disk.digests,
            size: disk.guest.size(),
            overlay: OverlayBytes::Live(&layered.overlay),
            moved: &mut moved,
            unwritten: 0,
            buffer: Vec::new(),
            shares: true,
        };
        let mut start = range.start;
        while start < range.end {
            let end = (start + WINDOW).min(range.end);
            let plan = plan(&layered.overlay, &layered.below, self.target, start..end)
                .map_err(|error| image_error(path, error.as_ref()))?;
            // The head may change only where the overlay stands before it for ever, a crash
            // included.
            disk.guest.flush().context("flush the overlay over", path)?;
            for (range, source) in plan {
                writer.put(range, &source).context("write", path)?;
            }
            start = end;
        }
        let mut all = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        all.add(moved);
        Ok(())
    }

    fn moved(&self) -> Moved {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overlays(&self) -> Vec<&Overlay> {
        let disks = self.disks.iter();
        disks.map(|disk| &disk.guest.layered.overlay).collect()
    }
}
