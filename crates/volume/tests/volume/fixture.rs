//! A volume behind a server, and writers with a shadow.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize};
use lifeboat_nbd::{
    Client, ClientOptions, ContextName, ExportSet, ListenAddress, NbdUri, RequestError, Server,
    ServerOptions,
};
use lifeboat_sys::disk::{DiskPort, RealDisk};
use lifeboat_volume::{BITMAP, FrozenView, Outcome, Volume, VolumeDisk, VolumePlan, create_disk};
use tempfile::TempDir;

/// Long enough for a loaded machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// No test keeps so much.
pub const PLENTY: u64 = 1 << 30;

/// Fields are dropped in this order.
pub struct Fixture {
    pub volume: Volume,
    pub server: Server,
    pub exports: ExportSet,
    pub folder: TempDir,
}

pub fn id(name: &str) -> DiskId {
    name.parse().unwrap()
}

pub fn size(bytes: usize) -> DiskSize {
    DiskSize::try_from(bytes as u64).unwrap()
}

/// A plan over new disks of these sizes in `folder`.
pub fn plan(folder: &TempDir, disks: &[(&str, usize)], scratch_limit: u64) -> VolumePlan {
    let disks = disks
        .iter()
        .map(|(name, bytes)| {
            let path = folder.path().join(format!("{name}.raw"));
            create_disk(&RealDisk, &path, size(*bytes)).unwrap();
            VolumeDisk { id: id(name), path }
        })
        .collect();
    VolumePlan {
        disks,
        scratch_folder: folder.path().to_owned(),
        scratch_limit,
    }
}

impl Fixture {
    pub fn new(disks: &[(&str, usize)], scratch_limit: u64) -> Self {
        Self::over(Arc::new(RealDisk), disks, scratch_limit)
    }

    pub fn over(port: Arc<dyn DiskPort>, disks: &[(&str, usize)], scratch_limit: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(&folder, disks, scratch_limit);
        let exports = ExportSet::new();
        let volume = Volume::open(port, &plan, exports.clone()).unwrap();
        let address = ListenAddress::Unix(folder.path().join("s"));
        let server = Server::bind(&address, exports.clone(), ServerOptions::default()).unwrap();
        Self {
            volume,
            server,
            exports,
            folder,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    pub fn uri(&self, export: &str) -> NbdUri {
        NbdUri::unix(self.socket(), export).unwrap()
    }

    pub fn client(&self, export: &str) -> Client {
        self.client_with(export, &[])
    }

    pub fn client_with(&self, export: &str, contexts: &[ContextName]) -> Client {
        let options = ClientOptions {
            contexts: contexts.to_vec(),
            deadline: PATIENCE,
            ..ClientOptions::default()
        };
        Client::connect(&self.uri(export), &options).unwrap()
    }

    /// Everything the view shows of a disk.
    pub fn frozen(&self, disk: &str) -> Vec<u8> {
        read_all(&self.client(&FrozenView::export_name(&id(disk)))).unwrap()
    }

    /// The blocks that the view's bitmap marks.
    pub fn marked(&self, disk: &str) -> BTreeSet<u64> {
        let bitmap = bitmap();
        let contexts = [ContextName::allocation(), bitmap.clone()];
        let client = self.client_with(&FrozenView::export_name(&id(disk)), &contexts);
        let mut blocks = BTreeSet::new();
        for extent in client.extents(&bitmap, 0, client.size()).unwrap() {
            let extent = extent.unwrap();
            if extent.flags != 0 {
                blocks.extend(extent.offset / BLOCK_SIZE..extent.end().div_ceil(BLOCK_SIZE));
            }
        }
        blocks
    }

    /// Lets the next view have a bitmap.
    pub fn begin_tracking(&self) {
        let view = self.volume.freeze().unwrap();
        view.release(Outcome::Received, PATIENCE).unwrap();
    }
}

pub fn bitmap() -> ContextName {
    ContextName::dirty_bitmap(BITMAP).unwrap()
}

pub fn read_all(client: &Client) -> Result<Vec<u8>, RequestError> {
    let mut bytes = vec![1; usize::try_from(client.size()).unwrap()];
    client.read(0, &mut bytes)?;
    Ok(bytes)
}

/// Numbers that look random and are the same each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll(256) as u8).collect()
    }
}

/// Writes, zeroes or trims anywhere in `within`, and does the same to `shadow` if the
/// outcome is defined. Gives the range.
pub fn random_change(
    dice: &mut Dice,
    client: &Client,
    within: std::ops::Range<u64>,
) -> (u64, u64, Change) {
    let length = 1 + match dice.roll(10) {
        0 => dice.roll(700_000),
        1..4 => dice.roll(70_000),
        _ => dice.roll(6000),
    };
    let length = length.min(within.end - within.start);
    let offset = within.start + dice.roll(within.end - within.start - length + 1);
    let change = match dice.roll(6) {
        0 => Change::Trim,
        1 => Change::Zero,
        _ => Change::Data(dice.bytes(1)[0] | 1),
    };
    match change {
        Change::Trim => client.trim(offset, length).unwrap(),
        Change::Zero => client.write_zeroes(offset, length).unwrap(),
        Change::Data(byte) => {
            let mut data = vec![byte; usize::try_from(length).unwrap()];
            // Not all blocks alike, and some of them zero.
            for (index, block) in data.chunks_mut(4096).enumerate() {
                block[0] = index as u8;
                if index % 7 == 3 {
                    block.fill(0);
                }
            }
            client.write(offset, &data).unwrap();
        }
    }
    (offset, length, change)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Data(u8),
    Zero,
    Trim,
}

/// The blocks in which two images of the same disk differ.
pub fn differing(one: &[u8], other: &[u8]) -> BTreeSet<u64> {
    assert_eq!(one.len(), other.len());
    let blocks = one.chunks(4096).zip(other.chunks(4096)).enumerate();
    blocks
        .filter(|(_, (a, b))| a != b)
        .map(|(block, _)| block as u64)
        .collect()
}

/// Tells writers to stop when it is dropped, also by a failing test.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub fn at_end(&self) -> StopAtEnd<'_> {
        StopAtEnd(self)
    }
}

pub struct StopAtEnd<'a>(&'a Stop);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::SeqCst);
    }
}
