//! What a tracker knows, in one small file that is replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use lifeboat_model::{DiskId, DiskSize, MAX_DISKS, Sequence};
use lifeboat_sys::disk::{Access, DiskPort};
use lifeboat_sys::stamp::FileStamp;
use serde::{Deserialize, Serialize};

use crate::tracker::TrackedDisk;

const NAME: &str = "tracking.json";
const NEW_NAME: &str = "tracking.json.new";

/// Of the file; read by nobody who does not know it.
const FORMAT: u32 = 1;

/// Far more than the most disks and moments take.
const MAX_BYTES: u64 = 1 << 20;

/// Which maps there must be, and when they may be believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Note {
    pub(crate) format: u32,
    pub(crate) phase: Phase,
    /// Why changes before the oldest moment may have been missed; absent when none were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) unknown: Option<String>,
    /// Ascending. There is a map of every disk for each.
    pub(crate) moments: Vec<Sequence>,
    pub(crate) disks: Vec<NotedDisk>,
}

/// Whether disks and maps may differ from what was last made durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Phase {
    /// They are durable, and nobody may write to the disks.
    Closed,
    /// A guest may write; what is in the page cache is lost when this boot ends.
    Open { boot: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotedDisk {
    pub(crate) id: DiskId,
    pub(crate) size: DiskSize,
    device: u64,
    inode: u64,
    length: u64,
    modified: i64,
}

/// What was found where a note should be.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    Note(Note),
    /// Something that is no note; why not.
    Damaged(String),
}

impl Note {
    pub(crate) fn new(phase: Phase, disks: Vec<NotedDisk>) -> Self {
        Self {
            format: FORMAT,
            phase,
            unknown: None,
            moments: Vec::new(),
            disks,
        }
    }

    /// # Errors
    /// When the file cannot be read, whatever is in it.
    pub(crate) fn read(port: &dyn DiskPort, folder: &Path) -> io::Result<Found> {
        let path = folder.join(NAME);
        if port.kind(&path)?.is_none() {
            return Ok(Found::Nothing);
        }
        let file = port.open(&path, Access::ReadOnly)?;
        let length = file.len()?;
        if length > MAX_BYTES {
            return Ok(Found::Damaged(format!("{length} bytes are too many")));
        }
        let mut text = vec![0; length as usize];
        file.read_at(&mut text, 0)?;
        Ok(match serde_json::from_slice::<Self>(&text) {
            Ok(note) => match note.check() {
                Ok(()) => Found::Note(note),
                Err(what) => Found::Damaged(what.to_owned()),
            },
            Err(error) => Found::Damaged(error.to_string()),
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.format != FORMAT {
            return Err("its format is not known");
        }
        if !self.moments.is_sorted_by(|one, next| one < next) {
            return Err("its moments do not ascend");
        }
        if self.disks.len() > MAX_DISKS {
            return Err("it has too many disks");
        }
        let twice = |(index, disk): (usize, &NotedDisk)| {
            self.disks[..index].iter().any(|other| other.id == disk.id)
        };
        if self.disks.iter().enumerate().any(twice) {
            return Err("it has a disk twice");
        }
        Ok(())
    }

    /// Replaces the note in `folder` durably. After an error either is there.
    pub(crate) fn write(&self, port: &dyn DiskPort, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let new = folder.join(NEW_NAME);
        if port.kind(&new)?.is_some() {
            port.unlink(&new)?;
        }
        let file = port.create(&new)?;
        file.write_at(&text, 0)?;
        file.sync()?;
        port.rename(&new, &Self::path(folder))?;
        port.sync_dir(folder)
    }

    /// Removes the note durably; it may be gone already.
    pub(crate) fn remove(port: &dyn DiskPort, folder: &Path) -> io::Result<()> {
        for name in [NAME, NEW_NAME] {
            let path = folder.join(name);
            if port.kind(&path)?.is_some() {
                port.unlink(&path)?;
            }
        }
        port.sync_dir(folder)
    }

    pub(crate) fn path(folder: &Path) -> PathBuf {
        folder.join(NAME)
    }
}

impl NotedDisk {
    pub(crate) fn all(disks: &[TrackedDisk]) -> Vec<Self> {
        disks.iter().map(Self::new).collect()
    }

    fn new(disk: &TrackedDisk) -> Self {
        let stamp = disk.stamp;
        Self {
            id: disk.id.clone(),
            size: disk.size,
            device: stamp.device,
            inode: stamp.inode,
            length: stamp.size,
            modified: stamp.modified,
        }
    }

    pub(crate) fn stamp(&self) -> FileStamp {
        FileStamp {
            device: self.device,
            inode: self.inode,
            size: self.length,
            modified: self.modified,
        }
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_sys::disk::RealDisk;

    use super::*;

    fn note() -> Note {
        let stamp = FileStamp {
            device: 1,
            inode: 2,
            size: 4096,
            modified: -5,
        };
        let size = DiskSize::try_from(4096).unwrap();
        let disk = NotedDisk::new(&TrackedDisk {
            id: "sda".parse().unwrap(),
            size,
            stamp,
        });
        let boot = "b".to_owned();
        let mut note = Note::new(Phase::Open { boot }, vec![disk]);
        note.moments = vec![Sequence::new(3), Sequence::new(9)];
        note
    }

    const GOLDEN: &str = r#"{"format":1,"phase":{"open":{"boot":"b"}},"moments":[3,9],"disks":[{"id":"sda","size":4096,"device":1,"inode":2,"length":4096,"modified":-5}]}"#;

    #[test]
    fn a_note_is_read_as_it_was_written_and_the_format_is_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Note::read(&RealDisk, folder.path()).unwrap(),
            Found::Nothing
        ));
        note().write(&RealDisk, folder.path()).unwrap();
        note().write(&RealDisk, folder.path()).unwrap();
        let text = std::fs::read_to_string(Note::path(folder.path())).unwrap();
        assert_eq!(text, GOLDEN);
        let found = Note::read(&RealDisk, folder.path()).unwrap();
        assert!(
            matches!(&found, Found::Note(found) if *found == note()),
            "{found:?}"
        );
    }

    #[test]
    fn a_note_that_is_cut_foreign_or_contradicts_itself_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = Note::path(folder.path());
        let mut bad: Vec<String> = (0..GOLDEN.len())
            .map(|end| GOLDEN[..end].to_owned())
            .collect();
        bad.push(GOLDEN.replace("[3,9]", "[9,3]"));
        bad.push(GOLDEN.replace("[3,9]", "[3,3]"));
        bad.push(GOLDEN.replace("\"format\":1", "\"format\":2"));
        bad.push(GOLDEN.replace("\"format\":1", "\"format\":1,\"more\":1"));
        bad.push(GOLDEN.replace("\"sda\"", "\"../sda\""));
        bad.push(GOLDEN.replace("4096,\"device\"", "4097,\"device\""));
        bad.push(GOLDEN.replace("}]}", "}]}x"));
        bad.push(" ".repeat(2 << 20));
        let disk = &GOLDEN[GOLDEN.find("{\"id\"").unwrap()..GOLDEN.len() - 2];
        bad.push(GOLDEN.replace(disk, &format!("{disk},{disk}")));
        for text in bad {
            std::fs::write(&path, &text).unwrap();
            let found = Note::read(&RealDisk, folder.path()).unwrap();
            assert!(matches!(found, Found::Damaged(_)), "{text:.200}");
        }
    }
}
