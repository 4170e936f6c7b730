//! What a power loss leaves.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::tree::{Content, FolderId, Inode, Tree};
use super::{Change, PAGE, Recorder};

const SECTOR: u64 = 512;

/// Which of the changes that no sync covered became durable all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashChoice {
    /// None of them.
    Nothing,
    /// All of them.
    Everything,
    /// Each with this chance in 256, drawn from `seed`.
    Some { seed: u64, chance: u8 },
}

/// The machine after the restart.
#[derive(Debug)]
pub struct CrashState {
    /// The files as found, all of them durable.
    pub disk: Recorder,
    /// Names the state: two states with the same fingerprint hold the same files.
    pub fingerprint: u64,
}

/// A stretch of recorded changes from which power losses can be drawn.
#[derive(Debug)]
pub struct Recording {
    durable: Tree,
    log: Vec<Change>,
    from: usize,
    shares_blocks: bool,
}

impl Recording {
    pub(super) fn new(durable: Tree, log: Vec<Change>, from: usize, shares_blocks: bool) -> Self {
        Self {
            durable,
            log,
            from,
            shares_blocks,
        }
    }

    /// Number of changes and syncs in the stretch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.log.len() - self.from
    }

    /// Whether nothing was recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The state after a power loss when the first `calls` changes of the stretch had been made.
    #[must_use]
    pub fn crash_after(&self, calls: usize, choice: CrashChoice) -> CrashState {
        let log = &self.log[..self.from + calls.min(self.len())];
        let synced = Synced::of(log);
        let mut tree = self.durable.clone();
        let mut fingerprint = DefaultHasher::new();
        for (index, change) in log.iter().enumerate() {
            if synced.covers(index) {
                apply_durable(&mut tree, change);
                index.hash(&mut fingerprint);
            } else {
                apply_in_doubt(
                    &mut tree,
                    change,
                    &mut Draw::new(choice, index, &mut fingerprint),
                );
            }
        }
        let disk = Recorder::with_tree(tree);
        let disk = if self.shares_blocks {
            disk.sharing_blocks()
        } else {
            disk
        };
        CrashState {
            disk,
            fingerprint: fingerprint.finish(),
        }
    }
}

/// Which changes of a log are durable for certain.
struct Synced(Vec<bool>);

impl Synced {
    fn of(log: &[Change]) -> Self {
        // Going back, what the next sync of each file and folder was.
        let mut files: HashMap<Inode, bool> = HashMap::new();
        let mut folders: HashSet<FolderId> = HashSet::new();
        let mut covered = vec![true; log.len()];
        for (index, change) in log.iter().enumerate().rev() {
            match change {
                Change::SyncFile { inode } => _ = files.insert(*inode, true),
                Change::FailedSync { inode } => _ = files.insert(*inode, false),
                Change::SyncFolder { folder } => _ = folders.insert(*folder),
                Change::Write { inode, .. }
                | Change::Punch { inode, .. }
                | Change::SetLen { inode, .. } => {
                    covered[index] = files.get(inode).copied().unwrap_or(false);
                }
                Change::Names { slots } => {
                    covered[index] = slots.iter().all(|(folder, _, _)| folders.contains(folder));
                }
            }
        }
        Self(covered)
    }

    fn covers(&self, index: usize) -> bool {
        self.0[index]
    }
}

/// Moves what is durable for certain from the log into the tree; the rest stays in the log.
///
/// A durable change of names overwrites an earlier one in doubt of the same name, so the
/// earlier one must not come back later: it is dropped with it.
pub(super) fn fold_durable(durable: &mut Tree, log: &mut Vec<Change>) {
    if log
        .iter()
        .any(|change| matches!(change, Change::FailedSync { .. }))
    {
        // What such a sync lost stays in doubt beneath later changes: their order must be kept.
        return;
    }
    let synced = Synced::of(log);
    let mut kept = Vec::new();
    let mut settled: HashSet<(FolderId, String)> = HashSet::new();
    for (index, change) in std::mem::take(log).into_iter().enumerate().rev() {
        let covered = synced.covers(index);
        match change {
            Change::SyncFile { .. } | Change::FailedSync { .. } | Change::SyncFolder { .. } => {}
            Change::Names { mut slots } => {
                if covered {
                    settled.extend(
                        slots
                            .iter()
                            .map(|(folder, name, _)| (*folder, name.clone())),
                    );
                } else {
                    slots.retain(|(folder, name, _)| !settled.contains(&(*folder, name.clone())));
                }
                kept.push((Change::Names { slots }, covered));
            }
            change @ (Change::Write { .. } | Change::Punch { .. } | Change::SetLen { .. }) => {
                kept.push((change, covered));
            }
        }
    }
    for (change, covered) in kept.into_iter().rev() {
        if covered {
            apply_durable(durable, &change);
        } else {
            log.push(change);
        }
    }
}

fn apply_durable(tree: &mut Tree, change: &Change) {
    match change {
        Change::Write { inode, .. }
        | Change::Punch { inode, .. }
        | Change::SetLen { inode, .. } => {
            apply_whole(tree.content_mut(*inode), change);
        }
        Change::Names { slots } => {
            for (folder, name, node) in slots {
                tree.set_name(*folder, name, node.clone());
            }
        }
        Change::SyncFile { .. } | Change::FailedSync { .. } | Change::SyncFolder { .. } => {}
    }
}

/// Applies a change of content as the running process sees it.
pub(super) fn apply_whole(content: &mut Content, change: &Change) {
    match change {
        Change::Write { offset, bytes, .. } => content.write(bytes, *offset),
        Change::Punch { offset, len, .. } => content.punch(*offset, *len),
        Change::SetLen { len, .. } => content.set_len(*len),
        Change::Names { .. }
        | Change::SyncFile { .. }
        | Change::FailedSync { .. }
        | Change::SyncFolder { .. } => {}
    }
}

/// Applies the parts of a change that the draw keeps.
fn apply_in_doubt(tree: &mut Tree, change: &Change, draw: &mut Draw<'_>) {
    match change {
        Change::Write {
            inode,
            offset,
            bytes,
        } => {
            let content = tree.content_mut(*inode);
            let end = offset + bytes.len() as u64;
            let mut position = *offset;
            while position < end {
                let stop = end.min((position / PAGE + 1) * PAGE);
                write_page(content, *offset, bytes, position, stop, draw);
                position = stop;
            }
            // The new length may become durable without the data that caused it.
            if content.len() < end && draw.keeps(Part::Length) {
                content.set_len(end);
            }
        }
        Change::Punch { inode, .. } | Change::SetLen { inode, .. } => {
            if draw.keeps(Part::All) {
                apply_whole(tree.content_mut(*inode), change);
            }
        }
        Change::Names { .. } => {
            if draw.keeps(Part::All) {
                apply_durable(tree, change);
            }
        }
        Change::SyncFile { .. } | Change::FailedSync { .. } | Change::SyncFolder { .. } => {}
    }
}

/// Writes a page whole, torn at sector boundaries, or not at all.
fn write_page(
    content: &mut Content,
    offset: u64,
    bytes: &[u8],
    from: u64,
    to: u64,
    draw: &mut Draw<'_>,
) {
    let slice = |from: u64, to: u64| &bytes[(from - offset) as usize..(to - offset) as usize];
    if !draw.tears() {
        if draw.keeps(Part::Page(from)) {
            content.write(slice(from, to), from);
        }
        return;
    }
    let mut position = from;
    while position < to {
        let stop = to.min((position / SECTOR + 1) * SECTOR);
        if draw.keeps(Part::Sector(position)) {
            content.write(slice(position, stop), position);
        }
        position = stop;
    }
}

/// What of a change is kept or lost by itself.
#[derive(Debug, Hash)]
enum Part {
    All,
    Length,
    Page(u64),
    Sector(u64),
}

/// Decides for one change what of it is kept, and notes the decisions.
struct Draw<'a> {
    choice: CrashChoice,
    state: u64,
    fingerprint: &'a mut DefaultHasher,
    index: usize,
}

impl<'a> Draw<'a> {
    fn new(choice: CrashChoice, index: usize, fingerprint: &'a mut DefaultHasher) -> Self {
        let seed = match choice {
            CrashChoice::Some { seed, .. } => seed,
            CrashChoice::Nothing | CrashChoice::Everything => 0,
        };
        let state = seed ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self {
            choice,
            state,
            fingerprint,
            index,
        }
    }

    fn keeps(&mut self, part: Part) -> bool {
        let kept = match self.choice {
            CrashChoice::Nothing => false,
            CrashChoice::Everything => true,
            CrashChoice::Some { chance, .. } => (self.next() & 0xFF) < u64::from(chance),
        };
        if kept {
            (self.index, part).hash(self.fingerprint);
        }
        kept
    }

    /// Whether a page is torn; one in four is, where anything is drawn at all.
    fn tears(&mut self) -> bool {
        match self.choice {
            CrashChoice::Nothing | CrashChoice::Everything => false,
            CrashChoice::Some { .. } => self.next().is_multiple_of(4),
        }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
