//! A host whose VM is tracked, and processes on it that come and go.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskId, Sequence};
use lifeboat_nbd::{
    Client, ClientOptions, ExportSet, ListenAddress, NbdUri, Server, ServerOptions,
};
use lifeboat_sys::disk::{DiskPort, RealDisk};
use lifeboat_sys::host::BootId;
use lifeboat_sys::stamp::FileStamp;
use lifeboat_volume::{
    FrozenView, RawImage, TrackedDisk, Tracker, TrackerError, TrackerState, ViewPlan, Volume,
    VolumeDevice, create_disk,
};
use tempfile::TempDir;

use super::fixture::{PATIENCE, PLENTY, differing, id, size};

/// The second disk ends within a block and within a word of the map.
pub const DISKS: [(&str, usize); 2] = [("a", 2 << 20), ("b", (1 << 20) + 1536)];

/// A host with a VM of two disks, whose maps are in a folder.
pub struct Host {
    pub folder: TempDir,
}

/// A process on the host that serves the VM; ends without closing anything when dropped.
pub struct Process {
    pub tracker: Tracker,
    pub volume: Volume,
    _server: Server,
    socket: PathBuf,
}

impl Host {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in DISKS {
            create_disk(&RealDisk, &image(folder.path(), name), size(bytes)).unwrap();
        }
        Self { folder }
    }

    pub fn image(&self, name: &str) -> PathBuf {
        image(self.folder.path(), name)
    }

    pub fn images(&self) -> Vec<Vec<u8>> {
        let read = |(name, _): &(&str, usize)| std::fs::read(self.image(name)).unwrap();
        DISKS.iter().map(read).collect()
    }

    pub fn tracker(&self, port: Arc<dyn DiskPort>, boot: &str) -> Tracker {
        open_tracker(self.folder.path(), port, boot).unwrap()
    }

    pub fn process(&self, boot: &str) -> Process {
        Process::start(self.folder.path(), Arc::new(RealDisk), boot)
    }
}

pub fn image(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.raw"))
}

pub fn tracked(folder: &Path) -> Vec<TrackedDisk> {
    let disk = |(name, _): &(&str, usize)| {
        let stamp = FileStamp::of(&image(folder, name)).unwrap();
        TrackedDisk {
            id: id(name),
            size: size(stamp.size as usize),
            stamp,
        }
    };
    DISKS.iter().map(disk).collect()
}

pub fn open_tracker(
    folder: &Path,
    port: Arc<dyn DiskPort>,
    boot: &str,
) -> Result<Tracker, TrackerError> {
    let maps = folder.join("maps");
    Tracker::open(port, maps, &tracked(folder), BootId::noted(boot))
}

impl Process {
    pub fn start(folder: &Path, port: Arc<dyn DiskPort>, boot: &str) -> Self {
        let mut tracker = open_tracker(folder, port, boot).unwrap();
        tracker.begin_writing().unwrap();
        let devices = DISKS.map(|(name, _)| VolumeDevice {
            id: id(name),
            device: Arc::new(RawImage::open(&RealDisk, &image(folder, name)).unwrap()),
        });
        let exports = ExportSet::new();
        let views = ViewPlan {
            scratch_folder: folder.to_owned(),
            scratch_limit: PLENTY,
            exports: exports.clone(),
            prefix: String::new(),
        };
        let volume =
            Volume::over(Arc::new(RealDisk), devices.into(), views, tracker.marking()).unwrap();
        volume.serve(exports.clone()).unwrap();
        let socket = folder.join("s");
        let address = ListenAddress::Unix(socket.clone());
        let server = Server::bind(&address, exports, ServerOptions::default()).unwrap();
        Self {
            tracker,
            volume,
            _server: server,
            socket,
        }
    }

    pub fn client(&self, export: &str) -> Client {
        let options = ClientOptions {
            deadline: PATIENCE,
            ..ClientOptions::default()
        };
        Client::connect(&NbdUri::unix(&self.socket, export).unwrap(), &options).unwrap()
    }

    /// The blocks that the view's bitmaps mark, by disk.
    pub fn marked_in_view(&self) -> Vec<Vec<u64>> {
        let marked = |(name, _): &(&str, usize)| {
            let bitmap = super::fixture::bitmap();
            let options = ClientOptions {
                contexts: vec![bitmap.clone()],
                deadline: PATIENCE,
                ..ClientOptions::default()
            };
            let export = FrozenView::export_name(&id(name));
            let uri = NbdUri::unix(&self.socket, &export).unwrap();
            let client = Client::connect(&uri, &options).unwrap();
            let extents = client.extents(&bitmap, 0, client.size()).unwrap();
            let dirty = extents
                .map(Result::unwrap)
                .filter(|extent| extent.flags != 0);
            dirty
                .flat_map(|extent| extent.offset / BLOCK_SIZE..extent.end().div_ceil(BLOCK_SIZE))
                .collect()
        };
        DISKS.iter().map(marked).collect()
    }

    pub fn start_tracking(&mut self, moment: u64) -> Result<(), TrackerError> {
        self.tracker.start(Sequence::new(moment))?;
        self.volume.mark_in(self.tracker.marking());
        Ok(())
    }

    pub fn freeze(&mut self, moment: u64) -> Result<FrozenView, TrackerError> {
        let freeze = self.volume.begin_freeze().unwrap();
        let since = self.tracker.since().to_vec();
        self.tracker.begin_moment(Sequence::new(moment))?;
        Ok(freeze.now(self.tracker.marking(), &since).unwrap())
    }

    pub fn close(mut self, folder: &Path) {
        self.volume.withdraw(PATIENCE).unwrap();
        self.tracker.end_writing(&tracked(folder)).unwrap();
    }
}

pub fn state(tracker: &Tracker) -> Result<Vec<u64>, String> {
    match tracker.state() {
        TrackerState::Off => Ok(Vec::new()),
        TrackerState::Since(moments) => Ok(moments.iter().map(|m| m.number()).collect()),
        TrackerState::Unknown(why) => Err(why.to_owned()),
    }
}

pub fn blocks(changed: &[(DiskId, Vec<Range<u64>>)], disk: usize) -> BTreeSet<u64> {
    let ranges = changed[disk].1.iter();
    ranges
        .flat_map(|range| range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE))
        .collect()
}

/// Every block that differs from `then` is among those that the tracker calls changed.
pub fn assert_covers(tracker: &Tracker, then: &[Vec<u8>], now: &[Vec<u8>], what: &str) {
    let changed = tracker.changed().unwrap();
    for (disk, (then, now)) in then.iter().zip(now).enumerate() {
        let marked = blocks(&changed, disk);
        let missed: Vec<u64> = differing(then, now).difference(&marked).copied().collect();
        assert!(missed.is_empty(), "{what}: disk {disk} misses {missed:?}");
    }
}
