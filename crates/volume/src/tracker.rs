//! The maps of a VM's disks over the life of processes and the loss of power.
//!
//! A folder has one map file for each disk and moment, `since-<moment>.<disk>`, and a note that
//! says which of them there must be. The changes since the oldest moment are what all maps mark
//! together; only the newest is added to.
//!
//! Promised: [`TrackerState::Since`] is told only when no change since the oldest moment can be
//! missing. That is so
//! - after the end or death of the process within one boot, because the kernel has the marks,
//!   and each was made before its change;
//! - after an orderly close, because disks and maps were durable before the note said `closed`,
//!   and nothing was written before the note said `open` again, if the images are as noted.
//!
//! Everything else is [`TrackerState::Unknown`] with the reason, durably: another boot without an
//! orderly close, an image that is another or was changed while closed, a note or map that is
//! missing, damaged or of something else.
//!
//! Not promised: between the death of the process and the next open nobody sees that another
//! program writes to an image.
//!
//! A crash between two steps: new maps are durable before the note names them, and the note names
//! no map that is then removed. Maps that no note names are removed.

use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize, Sequence};
use lifeboat_sys::disk::DiskPort;
use lifeboat_sys::host::BootId;
use lifeboat_sys::stamp::FileStamp;

use crate::error::TrackerError;
use crate::map::BlockMap;
use crate::map_file::{Initially, MapFile, MapFileError, marked_ranges};
use crate::marks::{MapSet, Marking};
use crate::note::{Found, Note, NotedDisk, Phase};

/// Moments without receipts are merged beyond this many, so that a long outage of the replica
/// fills neither the folder nor the address space.
const MAX_MOMENTS: usize = 16;

/// A disk, and the file by which it is recognized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedDisk {
    pub id: DiskId,
    pub size: DiskSize,
    pub stamp: FileStamp,
}

/// What is known of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrackerState<'a> {
    Off,
    /// By the moments that the maps begin with, ascending; at least one.
    Since(Vec<Sequence>),
    Unknown(&'a str),
}

/// The maps of one VM.
#[derive(Debug)]
pub struct Tracker {
    port: Arc<dyn DiskPort>,
    folder: PathBuf,
    boot: BootId,
    note: Note,
    /// One for each moment of the note, in the same order; their maps as the note's disks.
    sets: Vec<MapSet>,
}

impl Tracker {
    /// Opens the maps in `folder`, which is made if it is missing, for disks to which nobody
    /// writes. What is missing from a disk that is new to the folder is everything.
    ///
    /// # Errors
    /// When the folder cannot be used. Whatever is wrong with what is in it is no error but
    /// [`TrackerState::Unknown`].
    pub fn open(
        port: Arc<dyn DiskPort>,
        folder: PathBuf,
        disks: &[TrackedDisk],
        boot: BootId,
    ) -> Result<Self, TrackerError> {
        let failed = |source| TrackerError::Folder {
            folder: folder.clone(),
            source,
        };
        if port.kind(&folder).map_err(failed)?.is_none() {
            port.create_dir(&folder).map_err(failed)?;
            let parent = folder.parent().unwrap_or(Path::new("."));
            port.sync_dir(parent).map_err(failed)?;
        }
        let found = Note::read(port.as_ref(), &folder).map_err(|source| TrackerError::Read {
            path: Note::path(&folder),
            source,
        })?;
        let mut tracker = Self {
            port,
            folder,
            boot,
            note: Note::new(Phase::Closed, NotedDisk::all(disks)),
            sets: Vec::new(),
        };
        match found {
            Found::Nothing if tracker.map_names()?.is_empty() => {}
            Found::Nothing => tracker.lose("there are maps, but the note about them is missing")?,
            Found::Damaged(why) => {
                tracker.lose(&format!("the note about the maps is damaged: {why}"))?;
            }
            Found::Note(note) => tracker.take_over(note, disks)?,
        }
        tracker.sweep();
        Ok(tracker)
    }

    /// Believes a note, or not.
    fn take_over(&mut self, note: Note, disks: &[TrackedDisk]) -> Result<(), TrackerError> {
        let doubt = self.doubt(&note, disks);
        let before = note.clone();
        self.note = Note {
            disks: NotedDisk::all(disks),
            ..note
        };
        if before.moments.is_empty() {
            return Ok(());
        }
        let opened = match doubt {
            Some(why) => Err(why),
            None => self.open_sets(&before),
        };
        match opened {
            Ok(sets) => {
                self.sets = sets;
                if self.note != before {
                    self.complete_sets(&before)?;
                    self.save(self.note.clone())?;
                }
                Ok(())
            }
            Err(why) => self.lose(&why),
        }
    }

    /// Why the maps that `note` names cannot be believed, as far as it can be seen without them.
    fn doubt(&self, note: &Note, disks: &[TrackedDisk]) -> Option<String> {
        if let Phase::Open { boot } = &note.phase
            && boot != self.boot.as_str()
        {
            return Some("the host went down while changes were being tracked".to_owned());
        }
        disks.iter().find_map(|disk| {
            let noted = note.disks.iter().find(|noted| noted.id == disk.id)?;
            let id = &disk.id;
            if noted.size != disk.size {
                return Some(format!(
                    "disk {id} has {} bytes, and had {} before",
                    disk.size, noted.size
                ));
            }
            if !noted.stamp().same_file(&disk.stamp) {
                return Some(format!("disk {id} stands on another file than before"));
            }
            let touched = note.phase == Phase::Closed && noted.stamp() != disk.stamp;
            touched.then(|| format!("the image of disk {id} was changed while it was closed"))
        })
    }

    /// The maps that `before` names of the disks that are still there.
    fn open_sets(&self, before: &Note) -> Result<Vec<MapSet>, String> {
        let open = |moment: Sequence, disk: &NotedDisk| {
            let path = self.map_path(moment, &disk.id);
            MapFile::open(&path, &disk.id, disk.size, moment)
                .map_err(|error| describe(&disk.id, moment, &error))
        };
        // A disk that is new gets its maps afterwards.
        let known = |disk: &&NotedDisk| before.disks.iter().any(|old| old.id == disk.id);
        before
            .moments
            .iter()
            .map(|moment| {
                let disks = self.note.disks.iter().filter(known);
                let maps = disks.map(|disk| open(*moment, disk));
                Ok(MapSet::new(*moment, maps.collect::<Result<_, String>>()?))
            })
            .collect()
    }

    /// Makes maps that mark everything for disks that `before` does not have.
    fn complete_sets(&mut self, before: &Note) -> Result<(), TrackerError> {
        let new = |disk: &NotedDisk| before.disks.iter().all(|old| old.id != disk.id);
        if !self.note.disks.iter().any(new) {
            return Ok(());
        }
        let mut sets = Vec::new();
        for moment in &before.moments {
            let maps = self.note.disks.iter().map(|disk| {
                if new(disk) {
                    return self.create_map(*moment, disk, Initially::AllMarked);
                }
                let path = self.map_path(*moment, &disk.id);
                let opened = MapFile::open(&path, &disk.id, disk.size, *moment);
                opened.map_err(|error| TrackerError::Map {
                    path,
                    source: io::Error::other(error),
                })
            });
            sets.push(MapSet::new(*moment, maps.collect::<Result<_, _>>()?));
        }
        self.sync_folder()?;
        self.sets = sets;
        Ok(())
    }

    #[must_use]
    pub fn state(&self) -> TrackerState<'_> {
        match &self.note.unknown {
            Some(why) => TrackerState::Unknown(why),
            None if self.note.moments.is_empty() => TrackerState::Off,
            None => TrackerState::Since(self.note.moments.clone()),
        }
    }

    /// Where changes must be marked.
    #[must_use]
    pub fn marking(&self) -> Marking {
        let newest = self.sets.last().cloned();
        newest.map_or(Marking::Nowhere, Marking::In)
    }

    /// The maps that together mark every change since the oldest moment; none when that is not
    /// known.
    #[must_use]
    pub fn since(&self) -> &[MapSet] {
        match self.state() {
            TrackerState::Since(_) => &self.sets,
            TrackerState::Off | TrackerState::Unknown(_) => &[],
        }
    }

    /// What has changed since the oldest moment, in bytes of whole blocks; each block counts once.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        let disks = 0..self.note.disks.len();
        let of_disk = |index: usize| {
            let maps: Vec<&MapFile> = self.sets.iter().map(|set| &set.maps()[index]).collect();
            MapFile::marked_in_any(&maps)
        };
        match &self.sets[..] {
            [] => 0,
            _ => disks.map(of_disk).sum::<u64>() * BLOCK_SIZE,
        }
    }

    /// What has changed since the oldest moment, by disk in ascending ranges of bytes; nothing
    /// when that is not known.
    #[must_use]
    pub fn changed(&self) -> Option<Vec<(DiskId, Vec<Range<u64>>)>> {
        let since = self.since();
        if since.is_empty() {
            return None;
        }
        let disks = self.note.disks.iter().enumerate();
        let changed = disks.map(|(index, disk)| {
            let map = BlockMap::new(disk.size);
            for set in since {
                set.maps()[index].add_to(&map);
            }
            (disk.id.clone(), marked_ranges(&map, disk.size))
        });
        Some(changed.collect())
    }

    /// Whether the note says that a guest may be writing, as after the death of a process.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        match self.note.phase {
            Phase::Open { .. } => true,
            Phase::Closed => false,
        }
    }

    /// Compares closed images with what is noted; tracking becomes unknown if they were touched.
    ///
    /// # Errors
    /// When the doubt cannot be noted; tracking is unknown nevertheless.
    pub fn check(&mut self, disks: &[TrackedDisk]) -> Result<(), TrackerError> {
        if self.is_writing() {
            return Ok(());
        }
        if self.note.moments.is_empty() {
            // Nothing is to be doubted, and tracking may begin with the images as they are now.
            self.note.disks = NotedDisk::all(disks);
            return Ok(());
        }
        match self.doubt(&self.note, disks) {
            Some(why) => {
                self.note.disks = NotedDisk::all(disks);
                self.lose(&why)
            }
            None => Ok(()),
        }
    }

    /// Notes that disks are about to be written to. Durable on return.
    ///
    /// # Errors
    /// Nothing may be written then.
    pub fn begin_writing(&mut self) -> Result<(), TrackerError> {
        self.save(Note {
            phase: self.open_phase(),
            ..self.note.clone()
        })
    }

    fn open_phase(&self) -> Phase {
        Phase::Open {
            boot: self.boot.as_str().to_owned(),
        }
    }

    /// Notes that nobody writes to the disks any more. They are durable as they are now, and
    /// `disks` says so of their images. Durable on return.
    ///
    /// # Errors
    /// Maps are believed only as long as this boot lasts.
    pub fn end_writing(&mut self, disks: &[TrackedDisk]) -> Result<(), TrackerError> {
        for set in &self.sets {
            sync_set(set)?;
        }
        self.save(Note {
            phase: Phase::Closed,
            disks: NotedDisk::all(disks),
            ..self.note.clone()
        })
    }

    /// Makes maps that begin with `moment`, durably; the volume must mark in them before the
    /// caller counts on the moment. Whatever was tracked before is forgotten, unless
    /// `moment` is among it: then only what came before.
    ///
    /// # Errors
    /// What was tracked before still is.
    pub fn start(&mut self, moment: Sequence) -> Result<(), TrackerError> {
        if self.note.moments.contains(&moment) {
            return self.received(moment);
        }
        let set = self.create_set(moment)?;
        self.save(Note {
            unknown: None,
            moments: vec![moment],
            ..self.note.clone()
        })?;
        self.sets = vec![set];
        self.sweep();
        Ok(())
    }

    /// Makes maps that begin with `moment` beside the others, durably, if changes are tracked
    /// or have been missed. The volume must mark in them from that instant on.
    ///
    /// # Errors
    /// When the moment is no new one, or the maps cannot be made. What was tracked before still
    /// is.
    pub fn begin_moment(&mut self, moment: Sequence) -> Result<(), TrackerError> {
        if self.state() == TrackerState::Off {
            return Ok(());
        }
        if let Some(newest) = self.newest().filter(|newest| moment <= *newest) {
            return Err(TrackerError::OldMoment { moment, newest });
        }
        self.merge_oldest()?;
        let set = self.create_set(moment)?;
        let mut note = self.note.clone();
        note.moments.push(moment);
        self.save(note)?;
        self.sets.push(set);
        Ok(())
    }

    /// Makes room for one more moment: the oldest maps take in what the next ones mark.
    fn merge_oldest(&mut self) -> Result<(), TrackerError> {
        if self.sets.len() < MAX_MOMENTS {
            return Ok(());
        }
        let (oldest, next) = (&self.sets[0], &self.sets[1]);
        for (index, disk) in self.note.disks.iter().enumerate() {
            let marked = BlockMap::new(disk.size);
            next.maps()[index].add_to(&marked);
            for range in marked_ranges(&marked, disk.size) {
                let blocks = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
                oldest.maps()[index].mark(blocks);
            }
        }
        sync_set(oldest)?;
        let mut note = self.note.clone();
        note.moments.remove(1);
        self.save(note)?;
        self.sets.remove(1);
        self.sweep();
        Ok(())
    }

    /// Forgets changes that lie before `moment`. Durable on return.
    ///
    /// # Errors
    /// When the moment lies after the newest, or the note cannot be written; nothing is
    /// forgotten then.
    pub fn received(&mut self, moment: Sequence) -> Result<(), TrackerError> {
        let Some(newest) = self.newest() else {
            return Ok(());
        };
        if moment > newest {
            return Err(TrackerError::FutureMoment { moment, newest });
        }
        // The maps of a moment mark what has changed up to the next one.
        let moments = &self.note.moments;
        let old = moments[1..].iter().take_while(|next| **next <= moment);
        let old = old.count();
        let mut note = self.note.clone();
        note.moments.drain(..old);
        if note.moments[0] <= moment {
            note.unknown = None;
        }
        if note != self.note {
            self.save(note)?;
            self.sets.drain(..old);
        }
        self.sweep();
        Ok(())
    }

    /// Forgets everything; changes are not tracked any more. Durable on return.
    ///
    /// # Errors
    /// When the note cannot be written; nothing is forgotten then.
    pub fn stop(&mut self) -> Result<(), TrackerError> {
        if self.state() != TrackerState::Off {
            self.save(Note {
                unknown: None,
                moments: Vec::new(),
                ..self.note.clone()
            })?;
            self.sets.clear();
        }
        self.sweep();
        Ok(())
    }

    /// Notes that changes may have been missed. What was tracked is forgotten.
    ///
    /// # Errors
    /// When that cannot be noted, nor the note be removed. It holds in this process
    /// nevertheless.
    pub fn lose(&mut self, why: &str) -> Result<(), TrackerError> {
        self.note.unknown = Some(why.to_owned());
        self.note.moments.clear();
        self.sets.clear();
        let saved = self.save(self.note.clone());
        if saved.is_err() && Note::remove(self.port.as_ref(), &self.folder).is_ok() {
            // Maps without a note are not believed; they stay.
            return Ok(());
        }
        saved?;
        self.sweep();
        Ok(())
    }

    /// Notes that the disks stand on other files now, with the same contents.
    ///
    /// # Errors
    /// When that cannot be noted; a later open will not believe the maps then.
    pub fn moved(&mut self, disks: &[TrackedDisk]) -> Result<(), TrackerError> {
        self.save(Note {
            disks: NotedDisk::all(disks),
            ..self.note.clone()
        })
    }

    /// Removes everything, the folder as well. Durable on return.
    ///
    /// # Errors
    /// What is left is not believed by anybody.
    pub fn remove(mut self) -> Result<(), TrackerError> {
        self.stop()?;
        let folder = self.folder.clone();
        let failed = |source| TrackerError::Folder {
            folder: folder.clone(),
            source,
        };
        Note::remove(self.port.as_ref(), &folder).map_err(failed)?;
        self.port.remove_dir(&folder).map_err(failed)?;
        let parent = folder.parent().unwrap_or(Path::new("."));
        self.port.sync_dir(parent).map_err(failed)
    }

    fn newest(&self) -> Option<Sequence> {
        self.note.moments.last().copied()
    }

    fn map_path(&self, moment: Sequence, disk: &DiskId) -> PathBuf {
        self.folder.join(map_name(moment, disk))
    }

    /// New maps of all disks, durable with their names.
    fn create_set(&self, moment: Sequence) -> Result<MapSet, TrackerError> {
        let disks = self.note.disks.iter();
        let maps = disks.map(|disk| self.create_map(moment, disk, Initially::Unmarked));
        let set = MapSet::new(moment, maps.collect::<Result<_, TrackerError>>()?);
        self.sync_folder()?;
        Ok(set)
    }

    fn create_map(
        &self,
        moment: Sequence,
        disk: &NotedDisk,
        initially: Initially,
    ) -> Result<MapFile, TrackerError> {
        let path = self.map_path(moment, &disk.id);
        let create = || {
            // No note names it, or this would not be a new moment.
            if self.port.kind(&path)?.is_some() {
                self.port.unlink(&path)?;
            }
            let port = self.port.as_ref();
            MapFile::create(port, &path, &disk.id, disk.size, moment, initially)
        };
        create().map_err(|source| TrackerError::Map {
            path: path.clone(),
            source,
        })
    }

    fn sync_folder(&self) -> Result<(), TrackerError> {
        let synced = self.port.sync_dir(&self.folder);
        synced.map_err(|source| self.folder_error(source))
    }

    fn folder_error(&self, source: io::Error) -> TrackerError {
        TrackerError::Folder {
            folder: self.folder.clone(),
            source,
        }
    }

    fn save(&mut self, note: Note) -> Result<(), TrackerError> {
        let written = note.write(self.port.as_ref(), &self.folder);
        written.map_err(|source| TrackerError::Save {
            path: Note::path(&self.folder),
            source,
        })?;
        self.note = note;
        Ok(())
    }

    fn map_names(&self) -> Result<Vec<String>, TrackerError> {
        let entries = self.port.list(&self.folder);
        let entries = entries.map_err(|source| self.folder_error(source))?;
        let names = entries.into_iter().map(|entry| entry.name);
        Ok(names.filter(|name| name.starts_with("since-")).collect())
    }

    /// Removes maps that the note does not name. Called when the note in the folder is ours. What
    /// cannot be removed is in nobody's way, and is tried again the next time.
    fn sweep(&self) {
        let Ok(names) = self.map_names() else {
            return;
        };
        let named = |name: &String| {
            let moments = self.note.moments.iter();
            moments
                .flat_map(|moment| self.note.disks.iter().map(move |disk| (moment, disk)))
                .any(|(moment, disk)| map_name(*moment, &disk.id) == *name)
        };
        let mut old = names.into_iter().filter(|name| !named(name)).peekable();
        if old.peek().is_none() {
            return;
        }
        for name in old {
            let _ = self.port.unlink(&self.folder.join(name));
        }
        let _ = self.port.sync_dir(&self.folder);
    }
}

fn map_name(moment: Sequence, disk: &DiskId) -> String {
    format!("since-{moment}.{disk}")
}

fn sync_set(set: &MapSet) -> Result<(), TrackerError> {
    let synced = set.maps().iter().try_for_each(MapFile::sync);
    synced.map_err(|source| TrackerError::Sync {
        moment: set.moment(),
        source,
    })
}

/// For people, with the causes.
fn describe(disk: &DiskId, moment: Sequence, error: &MapFileError) -> String {
    let mut text = format!("the changes of disk {disk} since moment {moment}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
