//! Opening a store: the same steps after a crash and after an orderly end.
//!
//! The journal says what holds. Files that it speaks of are brought to what it says, files
//! that it does not speak of are left from an operation that never happened or is over, and
//! go. A failover, merge or commit that was begun is completed; a delta that is half applied
//! stands until the next apply, because points can be read meanwhile.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use lifeboat_sys::disk::{Access, DiskFile, DiskPort};

use crate::boundary::Pins;
use crate::commit::Begun;
use crate::damage::Damage;
use crate::error::{IoContext, Refused, StoreError};
use crate::files;
use crate::journal::Journal;
use crate::layout::Layout;
use crate::record::Phase;
use crate::segment::SegmentWriter;
use crate::spool::{self, Reserve};
use crate::store::{Store, open_image, read_state};

/// What a process writes into the lock file is read by others up to this length.
const HOLDER_BYTES: u64 = 256;

impl Store {
    /// Opens the store at `root` (absolute) and brings it into order. `holder` tells another
    /// process that is refused who has the store.
    ///
    /// # Errors
    /// [`Refused::NoStore`], [`Refused::InUse`], [`Refused::ImageInUse`];
    /// [`StoreError::Damaged`] names the file that is not as the store left it.
    pub fn open(disk: Arc<dyn DiskPort>, root: &Path, holder: &str) -> Result<Self, StoreError> {
        let layout = Layout::new(root.to_owned());
        let missing = |path: PathBuf| {
            disk.kind(&path)
                .context("look up", &path)
                .map(|kind| kind.is_none())
        };
        if missing(layout.journal())? && missing(layout.disks())? {
            return Err(Refused::NoStore {
                path: root.to_owned(),
            }
            .into());
        }
        let lock = lock(disk.as_ref(), &layout, holder)?;
        let state = read_state(disk.as_ref(), &layout)?;
        // First, so that its space is there for the new journal on a full disk.
        let reserve = Reserve::open(&disk, &layout)?;
        let journal = Journal::begin(&disk, &layout, &state)?;
        let images = state
            .disks
            .iter()
            .map(|at| open_image(disk.as_ref(), &layout, &at.id));
        let images = images.collect::<Result<Vec<_>, _>>()?;
        let mut store = Self {
            disk,
            layout,
            journal,
            state,
            images,
            spool: Vec::new(),
            broken_spool: Vec::new(),
            reserve,
            pins: Arc::new(Mutex::new(Pins::default())),
            broken: false,
            intakes: AtomicU64::new(0),
            lock,
        };
        store.recover()?;
        Ok(store)
    }

    fn recover(&mut self) -> Result<(), StoreError> {
        match self.state.phase {
            // A guest may be running on overlays over these images.
            Phase::FailedOver(_) => {}
            Phase::Replica | Phase::FailingOver(_) | Phase::Committing(_) => self.guard_images()?,
            // The VM uses the images through the wrapper whenever it likes.
            Phase::Committed(_) => {
                return self.clear_after_commit().and_then(|()| self.empty_trash());
            }
        }
        self.refuse_wrong_length()?;
        self.recover_segment_names()?;
        self.finish_merge()?;
        self.open_segments()?;
        self.remove_strangers()?;
        self.write_missing_manifests()?;
        self.relink_all()?;
        let spooled = spool::load(&self.disk, &self.layout, &self.state)?;
        self.forget_half_written()?;
        self.spool = spooled.deltas;
        self.broken_spool = spooled.broken;
        match self.state.phase {
            Phase::Replica => {
                self.remove_overlays()?;
                self.renew_wrappers()?;
                self.reserve_what_fits()
            }
            Phase::FailingOver(_) => self.complete_failover(),
            Phase::FailedOver(_) => self.renew_wrappers_of_a_moved_store(),
            Phase::Committed(_) => Ok(()),
            Phase::Committing(_) => {
                // A guest of a live commit that did not end would write on what goes away.
                let _overlays = self.guard_overlays()?;
                self.complete_commit(Begun::Before, &mut |_| {})?;
                self.clear_after_commit()?;
                self.empty_trash()
            }
        }
    }

    /// Lets the wrappers of a failed-over VM name the heads where they lie now.
    fn renew_wrappers_of_a_moved_store(&mut self) -> Result<(), StoreError> {
        match self.guard_overlays() {
            Ok(_overlays) => self.renew_wrappers().map(|_| ()),
            // The VM runs, so the store was not moved.
            Err(StoreError::Refused(Refused::ImageInUse { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Refuses a head that somebody else has resized.
    fn refuse_wrong_length(&self) -> Result<(), StoreError> {
        let settled =
            self.state.applying.is_none() && !matches!(self.state.phase, Phase::Committing(_));
        for (image, disk) in self.images.iter().zip(&self.state.disks) {
            let path = self.layout.head(&disk.id);
            let (found, expected) = (
                image.chain.head.len().context("measure", &path)?,
                disk.size.bytes(),
            );
            if settled && found != expected {
                return Err(StoreError::Damaged {
                    path,
                    damage: Damage::Length { found, expected },
                });
            }
        }
        Ok(())
    }

    /// Gives segments that were being sealed the names of open ones again.
    fn recover_segment_names(&self) -> Result<(), StoreError> {
        for disk in &self.state.disks {
            for segment in self.state.segments.iter().filter(|segment| !segment.sealed) {
                let (open, sealed) = (
                    self.layout.open_segment(&disk.id, segment.number),
                    self.layout.sealed_segment(&disk.id, segment.number),
                );
                if self.disk.kind(&open).context("look up", &open)?.is_none() {
                    self.disk
                        .rename(&sealed, &open)
                        .context("rename", &sealed)?;
                    files::sync_parent(self.disk.as_ref(), &open)?;
                }
            }
        }
        Ok(())
    }

    /// Opens the files of all segments and cuts the open ones to what the journal says.
    fn open_segments(&mut self) -> Result<(), StoreError> {
        for (at, id) in self
            .state
            .disks
            .iter()
            .map(|disk| disk.id.clone())
            .enumerate()
            .collect::<Vec<_>>()
        {
            let mut segments = Vec::new();
            let mut writer = None;
            for segment in &self.state.segments {
                let lengths = segment.disks[at].lengths;
                let files =
                    self.open_segment_files(&id, segment.number, segment.sealed, lengths)?;
                let index_path = self.layout.segment_index(&id, segment.number);
                let data_path = if segment.sealed {
                    self.layout.sealed_segment(&id, segment.number)
                } else {
                    self.layout.open_segment(&id, segment.number)
                };
                files.refuse_short(&data_path, &index_path)?;
                let files = Arc::new(files);
                if !segment.sealed {
                    writer = Some(
                        SegmentWriter::resume(Arc::clone(&files))
                            .map_err(|e| index_error(&index_path, e))?,
                    );
                }
                segments.push(files);
            }
            self.images[at].chain.change(|chain| *chain = segments);
            // Only the newest takes preimages; older open ones wait to be sealed.
            self.images[at].writer = if self.state.open_segment().is_some() {
                writer
            } else {
                None
            };
        }
        Ok(())
    }

    /// Removes files in the folders of segments and points that the journal does not speak of.
    fn remove_strangers(&self) -> Result<(), StoreError> {
        for disk in &self.state.disks {
            let mut ours = Vec::new();
            for segment in &self.state.segments {
                ours.push(if segment.sealed {
                    self.layout.sealed_segment(&disk.id, segment.number)
                } else {
                    self.layout.open_segment(&disk.id, segment.number)
                });
                ours.push(self.layout.segment_index(&disk.id, segment.number));
                ours.push(self.layout.next_link(&disk.id, segment.number));
            }
            self.remove_others(&self.layout.segments(&disk.id), &ours)?;
            files::remove(self.disk.as_ref(), &self.layout.new_wrapper(&disk.id))?;
        }
        let points = self
            .state
            .segments
            .iter()
            .filter(|segment| segment.is_point);
        let ours: Vec<PathBuf> = points
            .map(|segment| self.layout.point(segment.moment.sequence))
            .collect();
        self.remove_others(&self.layout.points(), &ours)?;
        self.remove_others(&self.layout.blobs(), &self.blobs_in_use())
    }

    fn remove_others(&self, folder: &Path, ours: &[PathBuf]) -> Result<(), StoreError> {
        for entry in self.disk.list(folder).context("list", folder)? {
            let path = folder.join(&entry.name);
            if !ours.contains(&path) {
                files::remove(self.disk.as_ref(), &path)?;
            }
        }
        Ok(())
    }

    /// Lets every sealed segment name the one that follows it.
    fn relink_all(&self) -> Result<(), StoreError> {
        for disk in &self.state.disks {
            for (at, segment) in self
                .state
                .segments
                .iter()
                .enumerate()
                .filter(|(_, segment)| segment.sealed)
            {
                let next = self.state.segments.get(at + 1).map(|next| next.number);
                self.relink(&disk.id, segment.number, next)?;
            }
            if !self.state.segments.is_empty() {
                let folder = self.layout.segments(&disk.id);
                self.disk.sync_dir(&folder).context("sync", &folder)?;
            }
        }
        Ok(())
    }
}

/// An index that cannot be read, as damage where it is that.
pub(crate) fn index_error(path: &Path, error: std::io::Error) -> StoreError {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Damage>())
    {
        Some(damage) => StoreError::Damaged {
            path: path.to_owned(),
            damage: damage.clone(),
        },
        None => StoreError::Io {
            what: "read",
            path: path.to_owned(),
            source: error,
        },
    }
}

/// Takes the store's lock and leaves a note who has it.
fn lock(
    disk: &dyn DiskPort,
    layout: &Layout,
    holder: &str,
) -> Result<Arc<dyn DiskFile>, StoreError> {
    let path = layout.lock();
    let file = match disk.create(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            disk.open(&path, Access::ReadWrite)
        }
        outcome => outcome,
    };
    let file = file.context("open", &path)?;
    if !file.try_lock().context("lock", &path)? {
        let holder = who_wrote(file.as_ref(), &path)?;
        return Err(Refused::InUse { holder }.into());
    }
    // The note helps people; a full disk must not keep anybody from a failover.
    let _ = file
        .set_len(0)
        .and_then(|()| file.write_at(holder.as_bytes(), 0));
    Ok(file)
}

/// Who has the store open, if anybody has; the lock stays as it is.
pub(crate) fn holder_of(
    disk: &dyn DiskPort,
    layout: &Layout,
) -> Result<Option<String>, StoreError> {
    let path = layout.lock();
    let file = match disk.open(&path, Access::ReadWrite) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        outcome => outcome.context("open", &path)?,
    };
    if file.try_lock().context("lock", &path)? {
        return Ok(None);
    }
    who_wrote(file.as_ref(), &path).map(Some)
}

/// What the holder of a lock has written into its file.
fn who_wrote(file: &dyn DiskFile, path: &Path) -> Result<String, StoreError> {
    let len = file.len().context("measure", path)?.min(HOLDER_BYTES);
    let mut bytes = vec![0; len as usize];
    file.read_at(&mut bytes, 0).context("read", path)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.chars().filter(|c| !c.is_control()).collect())
}
