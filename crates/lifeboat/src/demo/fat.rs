//! A FAT file system on a disk that is reached through a few functions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use fatfs::{Dir, FileSystem, FormatVolumeOptions, FsOptions};
use lifeboat_model::{DiskId, SECTOR_SIZE};

use super::compare::{Difference, ReadDisk};

/// What files hold, by their paths.
pub type Files = BTreeMap<String, Arc<[u8]>>;

/// Entries of the only folder; a file takes two or three. Folders are left out because a
/// checker of file systems finds fault with those that the library makes.
const ROOT_ENTRIES: u16 = 2048;

/// How much [`ReadOnlyDisk`] reads at a time: the file system asks for single bytes.
const CHUNK: u64 = 64 << 10;

/// Makes an empty file system in the first `size` bytes of a disk.
///
/// # Errors
/// What the disk says.
pub fn format(disk: &mut (impl Read + Write + Seek), size: u64) -> io::Result<()> {
    let sectors = u32::try_from(size / SECTOR_SIZE).map_err(io::Error::other)?;
    // About 32,000 clusters: far from where one kind of FAT ends and another begins.
    let cluster = u32::try_from((size >> 15).next_power_of_two()).map_err(io::Error::other)?;
    let options = FormatVolumeOptions::new()
        .total_sectors(sectors)
        .bytes_per_cluster(cluster.clamp(512, 32 << 10))
        .max_root_dir_entries(ROOT_ENTRIES)
        .volume_label(*b"LIFEBOAT   ");
    fatfs::format_volume(disk, options)
}

/// Makes a file, or replaces all that it holds.
///
/// # Errors
/// What the disk says, or that the file system is full or damaged.
pub fn write_file(
    disk: &mut (impl Read + Write + Seek),
    path: &str,
    content: &[u8],
) -> io::Result<()> {
    let system = mount(disk)?;
    let mut file = system.root_dir().create_file(path)?;
    file.truncate()?;
    file.write_all(content)?;
    file.flush()?;
    drop(file);
    system.unmount()
}

/// Writes into a file that is there, without changing its length.
///
/// # Errors
/// As [`write_file`], or that there is no such file.
pub fn overwrite(
    disk: &mut (impl Read + Write + Seek),
    path: &str,
    offset: u64,
    content: &[u8],
) -> io::Result<()> {
    let system = mount(disk)?;
    let mut file = system.root_dir().open_file(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(content)?;
    file.flush()?;
    drop(file);
    system.unmount()
}

/// Removes a file.
///
/// # Errors
/// As [`overwrite`].
pub fn remove_file(disk: &mut (impl Read + Write + Seek), path: &str) -> io::Result<()> {
    let system = mount(disk)?;
    system.root_dir().remove(path)?;
    system.unmount()
}

fn mount<D: Read + Write + Seek>(mut disk: D) -> io::Result<FileSystem<D>> {
    disk.rewind()?;
    FileSystem::new(disk, FsOptions::new())
}

/// Reads one file.
///
/// # Errors
/// As [`overwrite`].
pub fn read_file(content: ReadOnlyDisk<'_>, path: &str) -> io::Result<Vec<u8>> {
    let system = mount(content)?;
    let mut file = system.root_dir().open_file(path)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// What reading all files of a disk found.
#[derive(Debug)]
pub struct FilesChecked {
    pub files: usize,
    pub bytes: u64,
    /// The first file that is missing, new, or not as it was written.
    pub first: Option<Difference>,
}

/// Reads every file of a disk and compares them with what the guest wrote.
pub fn check_files(disk: &DiskId, content: ReadOnlyDisk<'_>, expected: &Files) -> FilesChecked {
    let mut checked = FilesChecked {
        files: 0,
        bytes: 0,
        first: None,
    };
    let mut found = BTreeSet::new();
    let mut differs = |path: &str, why: &str| {
        checked.first.get_or_insert_with(|| Difference::File {
            disk: disk.clone(),
            path: path.to_owned(),
            why: why.to_owned(),
        });
    };
    let read = mount(content).and_then(|system| {
        visit(&system.root_dir(), "", &mut |path, content| {
            match expected.get(&path) {
                Some(expected) if **expected == content => {
                    checked.files += 1;
                    checked.bytes += content.len() as u64;
                }
                Some(_) => differs(&path, "it is not as it was written"),
                None => differs(&path, "it was never written"),
            }
            found.insert(path);
        })
    });
    if let Err(error) = read {
        differs("/", &format!("the file system cannot be read: {error}"));
    }
    if let Some(missing) = expected.keys().find(|path| !found.contains(*path)) {
        differs(missing, "it is missing");
    }
    checked
}

/// Reads the files below a folder, one after the other.
fn visit<D: Read + Write + Seek>(
    folder: &Dir<'_, D>,
    path: &str,
    each: &mut dyn FnMut(String, Vec<u8>),
) -> io::Result<()> {
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == "." || name == ".." {
            continue;
        }
        let below = if path.is_empty() {
            name
        } else {
            format!("{path}/{name}")
        };
        if entry.is_dir() {
            visit(&entry.to_dir(), &below, each)?;
        } else {
            let mut content = Vec::new();
            entry.to_file().read_to_end(&mut content)?;
            each(below, content);
        }
    }
    Ok(())
}

/// A disk of which a file system is read, with what was read before kept in memory.
pub struct ReadOnlyDisk<'a> {
    read: &'a mut ReadDisk<'a>,
    size: u64,
    position: u64,
    chunks: BTreeMap<u64, Vec<u8>>,
}

impl<'a> ReadOnlyDisk<'a> {
    /// A disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64, read: &'a mut ReadDisk<'a>) -> Self {
        Self {
            read,
            size,
            position: 0,
            chunks: BTreeMap::new(),
        }
    }
}

impl Read for ReadOnlyDisk<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.size {
            return Ok(0);
        }
        let start = self.position - self.position % CHUNK;
        let length = CHUNK.min(self.size - start) as usize;
        let chunk = match self.chunks.entry(start) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let mut chunk = vec![0; length];
                (self.read)(start, &mut chunk)?;
                new.insert(chunk)
            }
        };
        let there = &chunk[(self.position - start) as usize..];
        let count = there.len().min(into.len());
        into[..count].copy_from_slice(&there[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for ReadOnlyDisk<'_> {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for ReadOnlyDisk<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = seek(self.position, self.size, to)?;
        Ok(self.position)
    }
}

/// The position that `to` means on a disk of `size` bytes.
///
/// # Errors
/// When it lies before the disk or beyond any number.
pub fn seek(position: u64, size: u64, to: SeekFrom) -> io::Result<u64> {
    let position = match to {
        SeekFrom::Start(position) => Some(position),
        SeekFrom::Current(step) => position.checked_add_signed(step),
        SeekFrom::End(step) => size.checked_add_signed(step),
    };
    position.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn written() -> (Vec<u8>, Files) {
        let mut disk = Cursor::new(vec![0; 8 << 20]);
        format(&mut disk, 8 << 20).unwrap();
        let mut files = Files::new();
        for number in 0..30 {
            let path = format!("letter-{number:04}.txt");
            let content = vec![number; 700 * usize::from(number)];
            write_file(&mut disk, &path, &content).unwrap();
            files.insert(path, content.into());
        }
        (disk.into_inner(), files)
    }

    fn check(bytes: &[u8], files: &Files) -> FilesChecked {
        let mut read = |offset: u64, into: &mut [u8]| {
            into.copy_from_slice(&bytes[offset as usize..offset as usize + into.len()]);
            Ok(())
        };
        let content = ReadOnlyDisk::new(bytes.len() as u64, &mut read);
        check_files(&"sda".parse().unwrap(), content, files)
    }

    #[test]
    fn files_read_as_they_were_written() {
        let (bytes, files) = written();
        let checked = check(&bytes, &files);
        assert_eq!((checked.files, checked.first), (30, None));
    }

    #[test]
    fn a_file_that_is_wrong_missing_or_new_is_named() {
        let (bytes, files) = written();
        let path = "letter-0007.txt".to_owned();
        let name = |checked: FilesChecked| match checked.first {
            Some(Difference::File { path, why, .. }) => (path, why),
            other => panic!("{other:?}"),
        };

        let mut changed = files.clone();
        changed.insert(path.clone(), vec![9; 4900].into());
        let wrong = (path.clone(), "it is not as it was written".to_owned());
        assert_eq!(name(check(&bytes, &changed)), wrong);

        changed.remove(&path);
        let new = (path.clone(), "it was never written".to_owned());
        assert_eq!(name(check(&bytes, &changed)), new);

        let mut disk = Cursor::new(bytes);
        remove_file(&mut disk, &path).unwrap();
        let missing = (path, "it is missing".to_owned());
        assert_eq!(name(check(disk.get_ref(), &files)), missing);
    }

    #[test]
    fn a_disk_without_a_file_system_is_no_success() {
        let checked = check(&vec![0; 1 << 20], &Files::new());
        assert_eq!(checked.files, 0);
        assert!(matches!(checked.first, Some(Difference::File { .. })));
    }

    #[test]
    fn an_overwritten_part_leaves_the_rest_of_the_file() {
        let (bytes, mut files) = written();
        let mut disk = Cursor::new(bytes);
        overwrite(&mut disk, "letter-0020.txt", 9000, &[0xEE; 300]).unwrap();
        assert!(check(disk.get_ref(), &files).first.is_some());
        let mut content = files["letter-0020.txt"].to_vec();
        content[9000..9300].fill(0xEE);
        files.insert("letter-0020.txt".to_owned(), content.into());
        assert_eq!(check(disk.get_ref(), &files).first, None);
    }
}
