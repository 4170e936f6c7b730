//! What every driver under test needs around it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lifeboat_hypervisor::{
    Backing, DiskBus, DiskSettings, DiskSource, FORMAT, Firmware, FrozenView, Hypervisor,
    VmDefinition, VmSettings,
};
use lifeboat_model::{BLOCK_SIZE, Consistency, DiskId, DiskSize, Sequence, VmId};
use lifeboat_nbd::{Client, ClientOptions, ContextName};

/// Long enough for a loaded machine; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The second disk ends within a block.
pub const DISKS: [(&str, usize); 2] = [("sda", 2 << 20), ("sdb", (1 << 20) + 512)];

pub const BLOCK: usize = BLOCK_SIZE as usize;

/// A driver and a folder for images.
pub trait Rig {
    fn hypervisor(&self) -> &dyn Hypervisor;

    fn folder(&self) -> &Path;
}

pub fn vm(number: u8) -> VmId {
    VmId::from_bytes([number; 16])
}

pub fn disk(name: &str) -> DiskId {
    name.parse().unwrap()
}

pub fn moment(number: u64) -> Sequence {
    Sequence::new(number)
}

pub fn definition(vm: VmId, disks: &[(&str, usize)]) -> VmDefinition {
    let disk = |(name, bytes): &(&str, usize)| DiskSettings {
        id: disk(name),
        size: DiskSize::try_from(*bytes as u64).unwrap(),
        bus: DiskBus::Virtio,
    };
    let settings = VmSettings {
        format: FORMAT,
        vm,
        name: "a VM".to_owned(),
        memory_mib: 512,
        processors: 1,
        firmware: Firmware::Bios,
        adapters: Vec::new(),
        disks: disks.iter().map(disk).collect(),
    };
    VmDefinition::try_from(settings).unwrap()
}

/// A new image of ones, of which no other test knows.
pub fn new_image(folder: &Path, bytes: usize) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    let path = folder.join(format!("image-{number}.raw"));
    std::fs::write(&path, vec![1; bytes]).unwrap();
    path
}

/// A VM of [`DISKS`].
pub struct Guest<'a> {
    pub hypervisor: &'a dyn Hypervisor,
    pub vm: VmId,
    pub images: Vec<PathBuf>,
}

impl<'a> Guest<'a> {
    /// Defined and off.
    pub fn new(rig: &'a dyn Rig) -> Self {
        let guest = Self {
            hypervisor: rig.hypervisor(),
            vm: vm(1),
            images: DISKS
                .map(|(_, bytes)| new_image(rig.folder(), bytes))
                .into(),
        };
        guest.define();
        guest
    }

    pub fn running(rig: &'a dyn Rig) -> Self {
        let guest = Self::new(rig);
        guest.hypervisor.start(guest.vm).unwrap();
        guest
    }

    pub fn define(&self) {
        let definition = definition(self.vm, &DISKS);
        self.hypervisor
            .define(&definition, &self.backings())
            .unwrap();
    }

    pub fn backings(&self) -> Vec<(DiskId, Backing)> {
        let backing = |((name, _), path): (&(&str, usize), &PathBuf)| {
            let path = path.clone();
            (disk(name), Backing::Raw { path })
        };
        DISKS.iter().zip(&self.images).map(backing).collect()
    }

    /// The guest's own connection to a disk.
    pub fn client(&self, index: usize) -> Client {
        connect(&self.hypervisor.guest_disks(self.vm).unwrap()[index])
    }

    pub fn write(&self, index: usize, block: usize, byte: u8) {
        let at = (block * BLOCK) as u64;
        self.client(index).write(at, &[byte; BLOCK]).unwrap();
    }

    pub fn freeze(&self, number: u64) -> Box<dyn FrozenView> {
        self.hypervisor
            .freeze(self.vm, moment(number), Consistency::Crash)
            .unwrap()
    }

    /// The blocks that are known to have changed, by disk.
    pub fn changed(&self) -> Vec<Vec<u64>> {
        let changed = self.hypervisor.changed_ranges(self.vm).unwrap().unwrap();
        let blocks = |ranges: Vec<std::ops::Range<u64>>| {
            let ranges = ranges.into_iter();
            ranges
                .flat_map(|range| range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE))
                .collect()
        };
        changed
            .into_iter()
            .map(|(_, ranges)| blocks(ranges))
            .collect()
    }
}

pub fn connect(source: &DiskSource) -> Client {
    let mut contexts = vec![ContextName::allocation()];
    contexts.extend(
        source
            .bitmap
            .iter()
            .map(|name| ContextName::dirty_bitmap(name).unwrap()),
    );
    let options = ClientOptions {
        contexts,
        deadline: PATIENCE,
        ..ClientOptions::default()
    };
    let client = Client::connect(&source.uri, &options).unwrap();
    assert_eq!(client.size(), source.size.bytes());
    client
}

pub fn read_all(source: &DiskSource) -> Vec<u8> {
    let client = connect(source);
    let mut bytes = vec![0; client.size() as usize];
    client.read(0, &mut bytes).unwrap();
    bytes
}

/// The blocks that a source's bitmap marks.
pub fn marked(source: &DiskSource) -> Vec<u64> {
    let client = connect(source);
    let bitmap = ContextName::dirty_bitmap(source.bitmap.as_ref().unwrap()).unwrap();
    let mut blocks = Vec::new();
    for extent in client.extents(&bitmap, 0, client.size()).unwrap() {
        let extent = extent.unwrap();
        if extent.flags & lifeboat_nbd::DIRTY != 0 {
            blocks.extend(extent.offset / BLOCK_SIZE..extent.end().div_ceil(BLOCK_SIZE));
        }
    }
    blocks
}
