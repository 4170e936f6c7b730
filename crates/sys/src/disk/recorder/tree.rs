//! Folders and files in memory.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Component, Path};
use std::sync::Arc;

use super::super::EntryKind;
use super::{PAGE, no_entry};

pub(super) type Inode = usize;
pub(super) type FolderId = usize;

const ROOT: FolderId = 0;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    File(Inode),
    Folder(FolderId),
    Symlink(String),
}

impl Node {
    pub(super) fn kind(&self) -> EntryKind {
        match self {
            Self::File(_) => EntryKind::File,
            Self::Folder(_) => EntryKind::Folder,
            Self::Symlink(_) => EntryKind::Symlink,
        }
    }
}

/// All folders and files. Cheap to clone: content is shared until it changes.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    folders: Vec<BTreeMap<String, Node>>,
    files: Vec<Arc<Content>>,
}

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            folders: vec![BTreeMap::new()],
            files: Vec::new(),
        }
    }

    pub(super) fn new_file(&mut self) -> Inode {
        self.files.push(Arc::default());
        self.files.len() - 1
    }

    pub(super) fn new_folder(&mut self) -> FolderId {
        self.folders.push(BTreeMap::new());
        self.folders.len() - 1
    }

    /// Makes room for a file that another tree has made.
    pub(super) fn adopt_file(&mut self, inode: Inode) {
        while self.files.len() <= inode {
            self.new_file();
        }
    }

    /// Makes room for a folder that another tree has made.
    pub(super) fn adopt_folder(&mut self, folder: FolderId) {
        while self.folders.len() <= folder {
            self.new_folder();
        }
    }

    pub(super) fn content(&self, inode: Inode) -> &Content {
        &self.files[inode]
    }

    pub(super) fn content_mut(&mut self, inode: Inode) -> &mut Content {
        Arc::make_mut(&mut self.files[inode])
    }

    pub(super) fn names(&self, folder: FolderId) -> &BTreeMap<String, Node> {
        &self.folders[folder]
    }

    pub(super) fn node(&self, folder: FolderId, name: &str) -> Option<&Node> {
        self.folders[folder].get(name)
    }

    pub(super) fn set_name(&mut self, folder: FolderId, name: &str, node: Option<Node>) {
        match node {
            Some(node) => self.folders[folder].insert(name.to_owned(), node),
            None => self.folders[folder].remove(name),
        };
    }

    /// The folder at `path`, and no symlink on the way.
    pub(super) fn folder(&self, path: &Path) -> io::Result<FolderId> {
        let mut folder = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let name = name
                .to_str()
                .ok_or_else(|| io::Error::from(ErrorKind::InvalidFilename))?;
            match self.node(folder, name) {
                Some(Node::Folder(inner)) => folder = *inner,
                Some(Node::File(_) | Node::Symlink(_)) => {
                    return Err(io::Error::from(ErrorKind::NotADirectory));
                }
                None => return Err(no_entry(name)),
            }
        }
        Ok(folder)
    }

    /// The folder that holds `path`, and the name in it.
    pub(super) fn parent(&self, path: &Path) -> io::Result<(FolderId, String)> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| io::Error::from(ErrorKind::InvalidFilename))?;
        Ok((
            self.folder(path.parent().unwrap_or(Path::new("/")))?,
            name.to_owned(),
        ))
    }

    /// Bytes occupied by all files that still have a name.
    pub(super) fn occupied(&self) -> u64 {
        self.folders
            .iter()
            .flat_map(BTreeMap::values)
            .map(|node| match node {
                Node::File(inode) => self.content(*inode).occupied(),
                Node::Folder(_) | Node::Symlink(_) => 0,
            })
            .sum()
    }
}

/// What a file holds: a length and the pages that are not holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE as usize]>>,
    /// Pages that are paid for and hold nothing yet: ascending ranges, none touching another.
    reserved: Vec<Range<u64>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn occupied(&self) -> u64 {
        let reserved: u64 = self
            .reserved
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        (self.pages.len() as u64 + reserved) * PAGE
    }

    pub(super) fn reserve(&mut self, offset: u64, len: u64) {
        let wanted = offset / PAGE..(offset + len).div_ceil(PAGE);
        self.release(wanted.clone());
        let mut start = wanted.start;
        for &page in self.pages.range(wanted.clone()).map(|(page, _)| page) {
            self.reserved.push(start..page);
            start = page + 1;
        }
        self.reserved.push(start..wanted.end);
        self.reserved.retain(|range| !range.is_empty());
        self.reserved.sort_by_key(|range| range.start);
    }

    /// Gives up what is reserved of these pages.
    fn release(&mut self, pages: Range<u64>) {
        let kept = self.reserved.iter().flat_map(|range| {
            let before = range.start..range.end.min(pages.start);
            let after = range.start.max(pages.end)..range.end;
            [before, after]
        });
        self.reserved = kept.filter(|range| !range.is_empty()).collect();
    }

    /// Copies out; holes and what lies beyond the end read as zeroes.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) {
        buffer.fill(0);
        let end = offset + buffer.len() as u64;
        for (&page, bytes) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let from = offset.max(page * PAGE);
            let to = end.min((page + 1) * PAGE);
            let within = (from - page * PAGE) as usize..(to - page * PAGE) as usize;
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[within]);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let end = offset + bytes.len() as u64;
        let mut position = offset;
        while position < end {
            let page = position / PAGE;
            let stop = end.min((page + 1) * PAGE);
            self.release(page..page + 1);
            let target = Arc::make_mut(
                self.pages
                    .entry(page)
                    .or_insert_with(|| Arc::new([0; PAGE as usize])),
            );
            let within = (position - page * PAGE) as usize..(stop - page * PAGE) as usize;
            target[within]
                .copy_from_slice(&bytes[(position - offset) as usize..(stop - offset) as usize]);
            position = stop;
        }
        self.len = self.len.max(end);
    }

    /// Zeroes a range without changing the length; takes time for what is there alone.
    pub(super) fn punch(&mut self, offset: u64, len: u64) {
        let end = offset
            .saturating_add(len)
            .min(self.len.next_multiple_of(PAGE));
        if offset >= end {
            return;
        }
        let whole = offset.div_ceil(PAGE)..end / PAGE;
        if !whole.is_empty() {
            let mut beyond = self.pages.split_off(&whole.start);
            self.pages.append(&mut beyond.split_off(&whole.end));
            self.release(whole.clone());
        }
        for page in [offset / PAGE, end / PAGE] {
            let from = offset.max(page * PAGE);
            let to = end.min((page + 1) * PAGE);
            if let (Some(bytes), true) = (self.pages.get_mut(&page), from < to) {
                Arc::make_mut(bytes)[(from - page * PAGE) as usize..(to - page * PAGE) as usize]
                    .fill(0);
            }
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let beyond = self.len.next_multiple_of(PAGE) - len;
            self.punch(len, beyond);
            self.release(len.div_ceil(PAGE)..u64::MAX);
        }
        self.len = len;
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let mut pages = self.pages.range(offset / PAGE..).map(|(&page, _)| page);
        let first = pages.next().filter(|page| page * PAGE < self.len)?;
        let end = pages
            .zip(first + 1..)
            .take_while(|(page, expected)| page == expected)
            .last()
            .map_or(first, |(page, _)| page)
            + 1;
        Some((first * PAGE).max(offset)..(end * PAGE).min(self.len))
    }
}
