//! Where everything lies in a store's folder.

use std::path::{Path, PathBuf};

use lifeboat_model::{DeltaId, DiskId, LineageId, Sequence};

/// The paths within one store.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// `root` must be absolute: image headers name files below it.
    pub(crate) fn new(root: PathBuf) -> Self {
        assert!(
            root.is_absolute(),
            "BUG: a store's folder is named by an absolute path"
        );
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    pub(crate) fn new_journal(&self) -> PathBuf {
        self.root.join("journal.new")
    }

    /// What the store's owner notes of the VM.
    pub(crate) fn note(&self) -> PathBuf {
        self.root.join("note")
    }

    pub(crate) fn new_note(&self) -> PathBuf {
        self.root.join("note.new")
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(crate) fn disk(&self, disk: &DiskId) -> PathBuf {
        self.disks().join(disk.as_str())
    }

    pub(crate) fn head(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("head.raw")
    }

    /// A head that is being copied from elsewhere.
    pub(crate) fn new_head(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("head.raw.new")
    }

    pub(crate) fn wrapper(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("disk.qcow2")
    }

    pub(crate) fn new_wrapper(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("disk.qcow2.new")
    }

    pub(crate) fn digests(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("digests")
    }

    pub(crate) fn stale_digests(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("digests.stale")
    }

    pub(crate) fn segments(&self, disk: &DiskId) -> PathBuf {
        self.disk(disk).join("seg")
    }

    /// The open segment's preimages.
    pub(crate) fn open_segment(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.open"))
    }

    /// What the segment holds and where, with digests.
    pub(crate) fn segment_index(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.idx"))
    }

    pub(crate) fn sealed_segment(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.qcow2"))
    }

    /// The symlink that a sealed segment names as its backing file.
    pub(crate) fn next_link(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.next"))
    }

    pub(crate) fn new_next_link(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.next.new"))
    }

    pub(crate) fn merged_segment(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.merge"))
    }

    pub(crate) fn merged_index(&self, disk: &DiskId, number: u64) -> PathBuf {
        self.segments(disk).join(format!("{number}.merge.idx"))
    }

    pub(crate) fn points(&self) -> PathBuf {
        self.root.join("points")
    }

    pub(crate) fn point(&self, sequence: Sequence) -> PathBuf {
        self.points().join(format!("{sequence}.json"))
    }

    pub(crate) fn new_point(&self, sequence: Sequence) -> PathBuf {
        self.points().join(format!("{sequence}.json.new"))
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn blob(&self, digest: &DeltaId) -> PathBuf {
        self.blobs().join(digest.to_string())
    }

    pub(crate) fn new_blob(&self) -> PathBuf {
        self.blobs().join("new")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    pub(crate) fn reserve(&self) -> PathBuf {
        self.spool().join("reserve")
    }

    pub(crate) fn delta(&self, lineage: &LineageId, sequence: Sequence) -> PathBuf {
        self.spool().join(delta_name(lineage, sequence))
    }

    /// Where a delta is received; `number` tells apart those that are received at once.
    pub(crate) fn part(&self, lineage: &LineageId, sequence: Sequence, number: u64) -> PathBuf {
        self.spool()
            .join(format!("{lineage}-{sequence}.{number}.part"))
    }

    pub(crate) fn failover(&self) -> PathBuf {
        self.root.join("failover")
    }

    pub(crate) fn overlay(&self, disk: &DiskId) -> PathBuf {
        self.failover().join(format!("{disk}.qcow2"))
    }

    pub(crate) fn divergence(&self) -> PathBuf {
        self.root.join("divergence")
    }

    pub(crate) fn divergence_map(&self, lineage: &LineageId) -> PathBuf {
        self.divergence().join(format!("{lineage}.map"))
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Where a disk's segments go when a commit has made them useless.
    pub(crate) fn trashed_segments(&self, disk: &DiskId) -> PathBuf {
        self.trash().join(format!("{disk}-seg"))
    }
}

fn delta_name(lineage: &LineageId, sequence: Sequence) -> String {
    format!("{lineage}-{sequence}.delta")
}

/// The sequence that a spool file's name speaks of, if it is one of ours.
pub(crate) fn sequence_of_delta(name: &str, lineage: &LineageId) -> Option<Sequence> {
    let sequence: Sequence = name
        .strip_suffix(".delta")?
        .strip_prefix(&lineage.to_string())?
        .strip_prefix('-')?
        .parse()
        .ok()?;
    // A number can be written in several ways, and only one of them is our name for it.
    (name == delta_name(lineage, sequence)).then_some(sequence)
}
