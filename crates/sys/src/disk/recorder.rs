//! A disk port in memory that records every call, and the states a power loss may leave.
//!
//! The model is stricter than any real file system:
//! - content that was not synced is lost or kept by sectors of 512 bytes, each on its own,
//!   in any combination, and the length by itself;
//! - names that were not synced are lost or kept one change at a time, in any combination;
//!   a file's content being durable does not make its name durable;
//! - a move between two folders is kept for certain only when both were synced.
//!
//! [`Recorder::start_recording`] begins the stretch of interest. A [`Recording`] of it yields
//! [`CrashState`]s: for a number of calls that were still made and a [`CrashChoice`] of what
//! became durable without a sync, a new `Recorder` as the machine would find it after the restart.

mod crash;
mod tree;

use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::poison::Poison;
use super::{Access, Cloned, DiskFile, DiskPort, Entry, EntryKind};
pub use crash::{CrashChoice, CrashState, Recording};
use tree::{Content, FolderId, Inode, Node, Tree};

const PAGE: u64 = 4096;

/// One recorded change, or one sync.
#[derive(Debug, Clone)]
enum Change {
    Write {
        inode: Inode,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Punch {
        inode: Inode,
        offset: u64,
        len: u64,
    },
    SetLen {
        inode: Inode,
        len: u64,
    },
    SyncFile {
        inode: Inode,
    },
    /// The kernel gave up on what was written since the last sync.
    FailedSync {
        inode: Inode,
    },
    /// Some names change together, all or none.
    Names {
        slots: Vec<(FolderId, String, Option<Node>)>,
    },
    SyncFolder {
        folder: FolderId,
    },
}

#[derive(Debug)]
struct State {
    /// What a running process sees.
    tree: Tree,
    /// What is durable for certain, as of the beginning of `log`.
    durable: Tree,
    /// Changes since then, in order.
    log: Vec<Change>,
    /// Where in `log` the stretch of interest began.
    recording_from: usize,
    /// Bytes all files together may occupy.
    capacity: Option<u64>,
    /// Whether ranges can be shared.
    shares_blocks: bool,
    locks: BTreeMap<(Inode, u64), Vec<Holder>>,
    next_handle: u64,
    /// Which sync of a file, counted from now, fails and loses what it should have written.
    failing_sync: Option<u64>,
}

impl State {
    /// Changes what a file holds, unless all files together would then exceed the capacity.
    fn change_content(
        &mut self,
        inode: Inode,
        change: impl FnOnce(&mut Content),
    ) -> io::Result<()> {
        let Some(capacity) = self.capacity else {
            change(self.tree.content_mut(inode));
            return Ok(());
        };
        let before = self.tree.content(inode).clone();
        change(self.tree.content_mut(inode));
        let grew = self.tree.content(inode).occupied() > before.occupied();
        if grew && self.tree.occupied() > capacity {
            *self.tree.content_mut(inode) = before;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    handle: u64,
    exclusive: bool,
}

/// Files in memory, with every change recorded.
#[derive(Debug, Clone)]
pub struct Recorder {
    state: Arc<Mutex<State>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// An empty file system with nothing in its root folder.
    #[must_use]
    pub fn new() -> Self {
        Self::with_tree(Tree::new())
    }

    fn with_tree(tree: Tree) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                durable: tree.clone(),
                tree,
                log: Vec::new(),
                recording_from: 0,
                capacity: None,
                shares_blocks: false,
                locks: BTreeMap::new(),
                next_handle: 0,
                failing_sync: None,
            })),
        }
    }

    /// Lets ranges be shared, as XFS and btrfs do.
    #[must_use]
    pub fn sharing_blocks(self) -> Self {
        self.lock().shares_blocks = true;
        self
    }

    /// Limits what all files together may occupy, in bytes.
    pub fn limit_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// Bytes that all files together occupy.
    #[must_use]
    pub fn occupied(&self) -> u64 {
        self.lock().tree.occupied()
    }

    /// Lets the sync of a file that comes after `others` further ones fail, losing what
    /// was written to that file since its last sync.
    pub fn fail_sync_after(&self, others: u64) {
        self.lock().failing_sync = Some(others);
    }

    /// Begins the stretch of interest: states after a power loss lie within it.
    ///
    /// Changes before it that no sync has made durable are still in doubt.
    pub fn start_recording(&self) {
        let mut state = self.lock();
        let State { durable, log, .. } = &mut *state;
        crash::fold_durable(durable, log);
        state.recording_from = state.log.len();
    }

    /// What was recorded since [`start_recording`](Self::start_recording).
    #[must_use]
    pub fn recording(&self) -> Recording {
        let state = self.lock();
        Recording::new(
            state.durable.clone(),
            state.log.clone(),
            state.recording_from,
            state.shares_blocks,
        )
    }

    /// Number of changes and syncs recorded in the stretch of interest.
    #[must_use]
    pub fn recorded(&self) -> usize {
        let state = self.lock();
        state.log.len() - state.recording_from
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: Inode, access: Access) -> Arc<dyn DiskFile> {
        let mut state = self.lock();
        state.next_handle += 1;
        let handle = state.next_handle;
        drop(state);
        Arc::new(RecordedFile {
            recorder: self.clone(),
            inode,
            access,
            handle,
            poison: Poison::default(),
        })
    }

    /// Changes names, in the tree and in the log.
    fn change_names(
        &self,
        mut change: impl FnMut(&mut State) -> io::Result<Vec<(FolderId, String, Option<Node>)>>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        let slots = change(&mut state)?;
        for (folder, name, node) in &slots {
            state.tree.set_name(*folder, name, node.clone());
        }
        state.log.push(Change::Names { slots });
        Ok(())
    }
}

fn no_entry(what: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("find {what}"))
}

fn exists(path: &Path) -> io::Error {
    io::Error::new(
        ErrorKind::AlreadyExists,
        format!("create {}: the name exists", path.display()),
    )
}

impl DiskPort for Recorder {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inode = None;
        self.change_names(|state| {
            let (folder, name) = state.tree.parent(path)?;
            if state.tree.node(folder, &name).is_some() {
                return Err(exists(path));
            }
            // The inode comes into being in both trees; only its name may be lost.
            let new = state.tree.new_file();
            state.durable.adopt_file(new);
            inode = Some(new);
            Ok(vec![(folder, name, Some(Node::File(new)))])
        })?;
        Ok(self.file(
            inode.expect("BUG: a created file has an inode"),
            Access::ReadWrite,
        ))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.lock();
        let (folder, name) = state.tree.parent(path)?;
        let node = state.tree.node(folder, &name).cloned();
        drop(state);
        match node {
            Some(Node::File(inode)) => Ok(self.file(inode, access)),
            Some(Node::Folder(_) | Node::Symlink(_)) => Err(io::Error::new(
                ErrorKind::InvalidInput,
                "open something that is not a regular file",
            )),
            None => Err(no_entry(&path.display().to_string())),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change_names(|state| {
            let (from_folder, from_name) = state.tree.parent(from)?;
            let (to_folder, to_name) = state.tree.parent(to)?;
            let node = state
                .tree
                .node(from_folder, &from_name)
                .cloned()
                .ok_or_else(|| no_entry(&from_name))?;
            if matches!(state.tree.node(to_folder, &to_name), Some(Node::Folder(_))) {
                return Err(exists(to));
            }
            Ok(vec![
                (from_folder, from_name, None),
                (to_folder, to_name, Some(node)),
            ])
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.change_names(|state| {
            let (folder, name) = state.tree.parent(path)?;
            match state.tree.node(folder, &name) {
                Some(Node::File(_) | Node::Symlink(_)) => Ok(vec![(folder, name, None)]),
                Some(Node::Folder(_)) => {
                    Err(io::Error::new(ErrorKind::IsADirectory, "unlink a folder"))
                }
                None => Err(no_entry(&name)),
            }
        })
    }

    fn symlink(&self, target: &str, path: &Path) -> io::Result<()> {
        self.change_names(|state| {
            let (folder, name) = state.tree.parent(path)?;
            if state.tree.node(folder, &name).is_some() {
                return Err(exists(path));
            }
            Ok(vec![(folder, name, Some(Node::Symlink(target.to_owned())))])
        })
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let state = self.lock();
        let (folder, name) = state.tree.parent(path)?;
        match state.tree.node(folder, &name) {
            Some(Node::Symlink(target)) => Ok(PathBuf::from(target)),
            Some(Node::File(_) | Node::Folder(_)) => Err(io::Error::new(
                ErrorKind::InvalidInput,
                "read the text of something that is not a symlink",
            )),
            None => Err(no_entry(&name)),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change_names(|state| {
            let (folder, name) = state.tree.parent(path)?;
            if state.tree.node(folder, &name).is_some() {
                return Err(exists(path));
            }
            let new = state.tree.new_folder();
            state.durable.adopt_folder(new);
            Ok(vec![(folder, name, Some(Node::Folder(new)))])
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change_names(|state| {
            let (folder, name) = state.tree.parent(path)?;
            match state.tree.node(folder, &name) {
                Some(Node::Folder(inner)) if state.tree.names(*inner).is_empty() => {
                    Ok(vec![(folder, name, None)])
                }
                Some(Node::Folder(_)) => Err(io::Error::new(
                    ErrorKind::DirectoryNotEmpty,
                    "remove a folder that is not empty",
                )),
                Some(Node::File(_) | Node::Symlink(_)) => Err(io::Error::new(
                    ErrorKind::NotADirectory,
                    "remove a file as a folder",
                )),
                None => Err(no_entry(&name)),
            }
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let state = self.lock();
        let folder = state.tree.folder(path)?;
        let entry = |(name, node): (&String, &Node)| Entry {
            name: name.clone(),
            kind: node.kind(),
        };
        Ok(state.tree.names(folder).iter().map(entry).collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Option<EntryKind>> {
        let state = self.lock();
        match state.tree.parent(path) {
            Ok((folder, name)) => Ok(state.tree.node(folder, &name).map(Node::kind)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let folder = state.tree.folder(path)?;
        state.log.push(Change::SyncFolder { folder });
        Ok(())
    }

    fn available(&self, _path: &Path) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.map_or(1 << 50, |capacity| {
            capacity.saturating_sub(state.tree.occupied())
        }))
    }
}

#[derive(Debug)]
struct RecordedFile {
    recorder: Recorder,
    inode: Inode,
    access: Access,
    handle: u64,
    poison: Poison,
}

impl RecordedFile {
    fn writable(&self) -> io::Result<()> {
        self.poison.check()?;
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// Applies a change to what the process sees and records it, if there is room for it.
    fn change(&self, change: Change) -> io::Result<()> {
        self.writable()?;
        let mut state = self.recorder.lock();
        state.change_content(self.inode, |content| crash::apply_whole(content, &change))?;
        state.log.push(change);
        Ok(())
    }
}

impl DiskFile for RecordedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.recorder.lock();
        let content = state.tree.content(self.inode);
        if offset.saturating_add(buffer.len() as u64) > content.len() {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "read beyond the end of a file",
            ));
        }
        content.read(buffer, offset);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(Change::Write {
            inode: self.inode,
            offset,
            bytes: bytes.into(),
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Change::Punch {
            inode: self.inode,
            offset,
            len,
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen {
            inode: self.inode,
            len,
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.recorder.lock().tree.content(self.inode).len())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.writable()?;
        let mut state = self.recorder.lock();
        state.change_content(self.inode, |content| content.reserve(offset, len))
    }

    fn occupied(&self) -> io::Result<u64> {
        Ok(self.recorder.lock().tree.content(self.inode).occupied())
    }

    fn sync(&self) -> io::Result<()> {
        self.poison.check()?;
        let mut state = self.recorder.lock();
        let fails = state.failing_sync == Some(0);
        state.failing_sync = state.failing_sync.and_then(|others| others.checked_sub(1));
        if fails {
            state.log.push(Change::FailedSync { inode: self.inode });
            drop(state);
            return self
                .poison
                .after_sync(Err(io::Error::from_raw_os_error(libc::EIO)));
        }
        state.log.push(Change::SyncFile { inode: self.inode });
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self
            .recorder
            .lock()
            .tree
            .content(self.inode)
            .next_data(offset))
    }

    fn clone_range(
        &self,
        source: &dyn DiskFile,
        source_offset: u64,
        len: u64,
        offset: u64,
    ) -> io::Result<Cloned> {
        let source = source
            .as_any()
            .downcast_ref::<Self>()
            .expect("BUG: files of two disk ports were mixed");
        if !self.recorder.lock().shares_blocks
            || !(source_offset | offset | len).is_multiple_of(PAGE)
        {
            return Ok(Cloned::Unsupported);
        }
        let mut bytes = vec![0; usize::try_from(len).expect("BUG: a cloned range fits in memory")];
        source.read_at(&mut bytes, source_offset)?;
        self.write_at(&bytes, offset)?;
        Ok(Cloned::Shared)
    }

    fn prefetch(&self, _offset: u64, _len: u64) {}

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.recorder.lock();
        let holders = state.locks.entry((self.inode, 0)).or_default();
        if holders.iter().any(|holder| holder.handle != self.handle) {
            return Ok(false);
        }
        *holders = vec![Holder {
            handle: self.handle,
            exclusive: true,
        }];
        Ok(true)
    }

    fn try_lock_bytes(&self, held: &[u64], refused: &[u64]) -> io::Result<bool> {
        let mut state = self.recorder.lock();
        let mine = |holder: &Holder| holder.handle == self.handle;
        let busy = |state: &State, byte: u64, any: bool| {
            state.locks.get(&(self.inode, byte)).is_some_and(|holders| {
                holders
                    .iter()
                    .any(|holder| !mine(holder) && (any || holder.exclusive))
            })
        };
        if held.iter().any(|&byte| busy(&state, byte, false))
            || refused.iter().any(|&byte| busy(&state, byte, true))
        {
            return Ok(false);
        }
        for &byte in held {
            let holders = state.locks.entry((self.inode, byte)).or_default();
            if !holders.iter().any(mine) {
                holders.push(Holder {
                    handle: self.handle,
                    exclusive: false,
                });
            }
        }
        Ok(true)
    }

    fn unlock_bytes(&self, held: &[u64]) -> io::Result<()> {
        let mut state = self.recorder.lock();
        for &byte in held {
            if let Some(holders) = state.locks.get_mut(&(self.inode, byte)) {
                holders.retain(|holder| holder.handle != self.handle);
            }
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for RecordedFile {
    fn drop(&mut self) {
        let mut state = self.recorder.lock();
        for holders in state.locks.values_mut() {
            holders.retain(|holder| holder.handle != self.handle);
        }
        state.locks.retain(|_, holders| !holders.is_empty());
    }
}
