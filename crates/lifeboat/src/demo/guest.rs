//! The VM of the demo: it changes files and raw blocks through NBD, and keeps a record
//! of its own of every byte that it wrote.
//!
//! Reads of its file systems are answered from the record, as an operating system
//! answers them from its cache. Between two steps every file is whole.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use lifeboat_model::{DiskId, DiskSize, SECTOR_SIZE};
use lifeboat_nbd::{Client, RequestError};

use super::error::DemoError;
use super::fat::{self, Files};
use super::random::Random;
use super::shadow::Shadow;

/// One guest disk, as it is planned.
#[derive(Debug, Clone, Copy)]
pub struct DiskPlan {
    pub name: &'static str,
    pub size: u64,
    /// The file system takes so many bytes from the beginning; behind it are raw blocks,
    /// as databases use them.
    pub file_system: u64,
}

/// The disk with letters and an archive: a file system alone.
pub const FILES: DiskPlan = DiskPlan {
    name: "sda",
    size: 256 << 20,
    file_system: 256 << 20,
};

/// The disk with a ledger and raw blocks; neither whole mebibytes nor whole blocks.
pub const BLOCKS: DiskPlan = DiskPlan {
    name: "sdb",
    size: (96 << 20) + 1536,
    file_system: 32 << 20,
};

/// The disks of the VM; the guest's code relies on this order.
pub const DISKS: [DiskPlan; 2] = [FILES, BLOCKS];

const LETTERS: u64 = 120;
const ARCHIVE_FILES: u64 = 24;
const LEDGER_FILES: u64 = 40;
const LEDGER_BYTES: u64 = 64 << 10;

/// The guest asks for durability once in so many steps.
const FLUSH_EVERY: u64 = 16;

/// All disks of the VM at one instant, as the guest knows them.
#[derive(Debug, Clone)]
pub struct Moment {
    pub disks: Vec<FrozenDisk>,
}

/// One disk at one instant.
#[derive(Debug, Clone)]
pub struct FrozenDisk {
    pub id: DiskId,
    pub shadow: Shadow,
    pub files: Files,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    files: GuestDisk,
    blocks: GuestDisk,
    random: Random,
    steps: u64,
}

/// A disk as the guest has it: the connection, and the record.
#[derive(Debug)]
struct GuestDisk {
    client: Client,
    known: FrozenDisk,
    plan: DiskPlan,
}

impl DiskPlan {
    /// # Panics
    /// Never: the names in this file are valid.
    #[must_use]
    pub fn id(&self) -> DiskId {
        self.name.parse().expect("BUG: the name of a disk is valid")
    }

    /// # Panics
    /// Never: the sizes in this file are whole sectors.
    #[must_use]
    pub fn disk_size(&self) -> DiskSize {
        DiskSize::try_from(self.size).expect("BUG: the size of a disk is whole sectors")
    }
}

impl Moment {
    /// Disks full of zeroes.
    #[must_use]
    pub fn empty() -> Self {
        let disk = |plan: &DiskPlan| FrozenDisk {
            id: plan.id(),
            shadow: Shadow::new(plan.size),
            files: Files::new(),
        };
        Self {
            disks: DISKS.iter().map(disk).collect(),
        }
    }
}

impl Guest {
    /// A guest that goes on from `moment` on the disks that `connect` opens.
    ///
    /// # Errors
    /// What `connect` says.
    pub fn start(
        moment: Moment,
        seed: u64,
        connect: &dyn Fn(&DiskId) -> Result<Client, DemoError>,
    ) -> Result<Self, DemoError> {
        let open = |(plan, known): (DiskPlan, FrozenDisk)| {
            Ok(GuestDisk {
                client: connect(&known.id)?,
                known,
                plan,
            })
        };
        let disks: Result<Vec<GuestDisk>, DemoError> =
            DISKS.into_iter().zip(moment.disks).map(open).collect();
        let [files, blocks]: [GuestDisk; 2] = disks?.try_into().expect("BUG: the VM has two disks");
        Ok(Self {
            files,
            blocks,
            random: Random::new(seed),
            steps: 0,
        })
    }

    /// Installs the VM: file systems, first files, first raw blocks.
    ///
    /// # Errors
    /// When a disk cannot be written.
    pub fn install(&mut self) -> Result<(), DemoError> {
        for disk in [&mut self.files, &mut self.blocks] {
            let size = disk.plan.file_system;
            disk.use_files("/", |disk| fat::format(disk, size))?;
        }
        for number in 1..=LETTERS {
            self.write_letter(number)?;
        }
        for number in 1..=ARCHIVE_FILES {
            self.write_archive(number)?;
        }
        for number in 1..=LEDGER_FILES {
            let page = self.random.bytes(LEDGER_BYTES as usize);
            self.blocks.write_file(ledger_path(number), page)?;
        }
        for _ in 0..24 {
            let bytes = self.random.bytes(1 << 20);
            let offset = self.raw_offset(1 << 20, 4096);
            self.blocks.write(offset, &bytes)?;
        }
        self.flush()
    }

    /// Does `count` things.
    ///
    /// # Errors
    /// When a disk cannot be written.
    pub fn work(&mut self, count: u64) -> Result<(), DemoError> {
        (0..count).try_for_each(|_| self.step())
    }

    /// Does one thing: changes a file, or raw blocks.
    ///
    /// # Errors
    /// When a disk cannot be written.
    pub fn step(&mut self) -> Result<(), DemoError> {
        self.steps += 1;
        match self.random.below(100) {
            0..27 => {
                let number = 1 + self.random.below(LETTERS + self.steps / 20);
                self.write_letter(number)
            }
            27..29 => {
                let number = 1 + self.random.below(ARCHIVE_FILES);
                self.write_archive(number)
            }
            29..31 => self.remove_letter(),
            31..42 => self.write_ledger(),
            42..80 => {
                let bytes = self.random.bytes(4096);
                let offset = self.raw_offset(4096, 4096);
                self.blocks.write(offset, &bytes)
            }
            80..88 => {
                let length = SECTOR_SIZE * (1 + self.random.below(200));
                let bytes = self.random.bytes(length as usize);
                let offset = self.raw_offset(length, SECTOR_SIZE);
                self.blocks.write(offset, &bytes)
            }
            88..94 => {
                let length = SECTOR_SIZE * (1 + self.random.below(512));
                let offset = self.raw_offset(length, SECTOR_SIZE);
                self.blocks.write_zeroes(offset, length)
            }
            _ => {
                let length = 4096 * (1 + self.random.below(64));
                let offset = self.raw_offset(length, 4096);
                self.blocks.trim(offset, length)
            }
        }?;
        if self.steps.is_multiple_of(FLUSH_EVERY) {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes one more file, of a name that no step uses.
    ///
    /// # Errors
    /// When the disk cannot be written.
    pub fn write_note(&mut self, name: &str, text: &str) -> Result<(), DemoError> {
        self.files
            .write_file(name.to_owned(), text.as_bytes().to_vec())?;
        self.flush()
    }

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// When a disk cannot promise it.
    pub fn flush(&self) -> Result<(), DemoError> {
        for disk in [&self.files, &self.blocks] {
            disk.client.flush().map_err(|source| disk.failed(source))?;
        }
        Ok(())
    }

    /// What the guest wrote so far; takes a few milliseconds at most.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            disks: vec![self.files.known.clone(), self.blocks.known.clone()],
        }
    }

    fn write_letter(&mut self, number: u64) -> Result<(), DemoError> {
        let heading = format!("Letter {number}, written at step {}.", self.steps);
        let text = self.random.letter(&heading);
        let path = format!("letter-{number:04}.txt");
        self.files.write_file(path, text)
    }

    fn remove_letter(&mut self) -> Result<(), DemoError> {
        let letters = self.files.known.files.range("letter-".to_owned()..);
        let count = letters.clone().count() as u64;
        let chosen = self.random.below(count.max(1)) as usize;
        let Some(path) = letters.map(|(path, _)| path.clone()).nth(chosen) else {
            return Ok(());
        };
        self.files
            .use_files(&path, |disk| fat::remove_file(disk, &path))?;
        self.files.known.files.remove(&path);
        Ok(())
    }

    fn write_archive(&mut self, number: u64) -> Result<(), DemoError> {
        let length = (512 << 10) + self.random.below(512 << 10);
        let content = self.random.bytes(length as usize);
        self.files
            .write_file(format!("archive-{number:04}.bin"), content)
    }

    fn write_ledger(&mut self) -> Result<(), DemoError> {
        let path = ledger_path(1 + self.random.below(LEDGER_FILES));
        let line = self.random.bytes(256);
        let offset = 256 * self.random.below(LEDGER_BYTES / 256);
        self.blocks
            .use_files(&path, |disk| fat::overwrite(disk, &path, offset, &line))?;
        let mut content = self.blocks.known.files[&path].to_vec();
        content[offset as usize..offset as usize + line.len()].copy_from_slice(&line);
        self.blocks.known.files.insert(path, content.into());
        Ok(())
    }

    /// A place for `length` raw bytes, at a multiple of `alignment`.
    fn raw_offset(&mut self, length: u64, alignment: u64) -> u64 {
        let plan = self.blocks.plan;
        let places = (plan.size - plan.file_system - length) / alignment + 1;
        plan.file_system + alignment * self.random.below(places)
    }
}

fn ledger_path(number: u64) -> String {
    format!("ledger-{number:04}.dat")
}

impl GuestDisk {
    fn failed(&self, source: RequestError) -> DemoError {
        DemoError::Request {
            disk: self.known.id.clone(),
            source,
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DemoError> {
        let written = self.client.write(offset, bytes);
        written.map_err(|source| self.failed(source))?;
        self.known.shadow.write(offset, bytes);
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<(), DemoError> {
        let zeroed = self.client.write_zeroes(offset, length);
        zeroed.map_err(|source| self.failed(source))?;
        self.known.shadow.zero(offset, length);
        Ok(())
    }

    /// Gives a range up. What it reads as afterwards is the disk's choice, so the guest
    /// looks once; it must not change from then on.
    fn trim(&mut self, offset: u64, length: u64) -> Result<(), DemoError> {
        let mut left = vec![0; length as usize];
        let trimmed = self.client.trim(offset, length);
        trimmed
            .and_then(|()| self.client.read(offset, &mut left))
            .map_err(|source| self.failed(source))?;
        if left.iter().all(|&byte| byte == 0) {
            self.known.shadow.zero(offset, length);
        } else {
            self.known.shadow.write(offset, &left);
        }
        Ok(())
    }

    fn write_file(&mut self, path: String, content: Vec<u8>) -> Result<(), DemoError> {
        self.use_files(&path, |disk| fat::write_file(disk, &path, &content))?;
        self.known.files.insert(path, Arc::from(content));
        Ok(())
    }

    /// Lets the file system do something about `path`.
    fn use_files(
        &mut self,
        path: &str,
        change: impl FnOnce(&mut Cursor<'_>) -> io::Result<()>,
    ) -> Result<(), DemoError> {
        let mut cursor = Cursor {
            client: &self.client,
            shadow: &mut self.known.shadow,
            size: self.plan.file_system,
            position: 0,
        };
        change(&mut cursor).map_err(|source| DemoError::FileSystem {
            disk: self.known.id.clone(),
            path: path.to_owned(),
            source,
        })
    }
}

/// The part of a disk that holds the file system, as the file system uses it.
struct Cursor<'a> {
    client: &'a Client,
    shadow: &'a mut Shadow,
    size: u64,
    position: u64,
}

impl Cursor<'_> {
    /// How much of `length` bytes is left before the end.
    fn within(&self, length: usize) -> usize {
        let left = self.size.saturating_sub(self.position);
        usize::try_from(left).map_or(length, |left| left.min(length))
    }
}

impl Read for Cursor<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.within(into.len());
        self.shadow.read(self.position, &mut into[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Cursor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.within(bytes.len());
        let bytes = &bytes[..count];
        let written = self.client.write(self.position, bytes);
        written.map_err(io::Error::other)?;
        self.shadow.write(self.position, bytes);
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = fat::seek(self.position, self.size, to)?;
        Ok(self.position)
    }
}
