//! Threads read old points, and every byte is compared, while the store works on: deltas,
//! other points, seals, merges, resizes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat_harness::{Activity, Random, ShadowVm, compare_points, run_tool};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{Sequence, Timestamp};
use lifeboat_nbd::{
    Access, ContextName, Export, ExportSet, Extent, Granularity, HOLE, Holes, ListenAddress,
    Server, ServerOptions, ZERO,
};
use lifeboat_store::{PointReader, RangeKind, Refused, Store, StoreError};
use lifeboat_sys::disk::{DiskPort, RealDisk, Recorder};

const NOW: Timestamp = Timestamp::from_micros(1);

/// Reads that must have begun and ended while the store was at work.
const READS: u64 = 20_000;

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm, activity: Activity) {
    shadow.work(activity);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(store);
}

/// Reads at random until told to stop, or until a byte is wrong.
fn read_and_compare(
    reader: &PointReader,
    expected: &[u8],
    seed: u64,
    stop: &AtomicBool,
    reads: &AtomicU64,
) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut buffer = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let offset = random.below(expected.len() as u64);
        let most = [512, 4096, 65536, 400_000][random.below(4) as usize];
        let len = (1 + random.below(most)).min(expected.len() as u64 - offset);
        let range = offset as usize..(offset + len) as usize;
        if random.one_in(4) {
            for (part, kind) in reader
                .ranges(offset..offset + len)
                .map_err(|error| error.to_string())?
            {
                let bytes = &expected[part.start as usize..part.end as usize];
                if kind == RangeKind::Zero && bytes.iter().any(|&byte| byte != 0) {
                    return Err(format!("{part:?} holds data and is said to be zero"));
                }
            }
        } else {
            buffer.resize(len as usize, 0xA5);
            buffer.fill(0xA5);
            reader
                .read_at(offset, &mut buffer)
                .map_err(|error| format!("read {len} at {offset}: {error}"))?;
            if buffer != expected[range] {
                let at = buffer
                    .iter()
                    .zip(&expected[offset as usize..])
                    .position(|(found, expected)| found != expected);
                return Err(format!("read {len} at {offset}: wrong from {at:?} on"));
            }
        }
        reads.fetch_add(1, Ordering::AcqRel);
    }
    Ok(())
}

/// One step of the store's life that leaves the points in `kept` alone.
fn work(store: &mut Store, shadow: &mut ShadowVm, random: &mut Random, kept: &[Sequence]) {
    match random.below(10) {
        0..6 => {
            if random.one_in(5) {
                shadow.resize(0, (200 + random.below(3000)) * 512);
            }
            let activity = if random.one_in(2) {
                Activity::MIXED
            } else {
                Activity::BLOCKS
            };
            deliver(store, shadow, activity);
        }
        6 | 7 if store.points().len() < 12 => {
            store.make_point(NOW, PointKind::Standard).unwrap();
        }
        8 => store.seal().unwrap(),
        _ => {
            let points = store.points();
            let mut others = points
                .iter()
                .map(|point| point.sequence)
                .filter(|sequence| !kept.contains(sequence));
            if let Some(victim) = others.next_back() {
                store.remove_point(victim).unwrap();
            }
        }
    }
}

/// Reads two points by four threads while the store works, until there were enough reads.
fn read_during_work(disk: Arc<dyn DiskPort>, root: &Path, seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let mut shadow = ShadowVm::new(seed, &[3000 * 512, 700 * 512]);
    let mut store = Store::init(disk, root, &shadow.new_store(), "test").unwrap();
    let mut kept = Vec::new();
    for _ in 0..2 {
        deliver(&mut store, &mut shadow, Activity::MIXED);
        kept.push(store.make_point(NOW, PointKind::Standard).unwrap());
    }
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut steps = 0;
    std::thread::scope(|scope| {
        let mut readers = Vec::new();
        for (number, &sequence) in kept.iter().enumerate() {
            for (at, name) in shadow.names().to_vec().into_iter().enumerate() {
                let reader = store.reader(sequence, &name).unwrap();
                let expected = shadow.at(sequence)[at].clone();
                let (stop, reads) = (&stop, &reads);
                let seed = seed * 100 + number as u64 * 10 + at as u64;
                readers.push(scope.spawn(move || {
                    let outcome = read_and_compare(&reader, &expected, seed, stop, reads);
                    outcome.map_err(|error| format!("point {sequence}, {name}: {error}"))
                }));
            }
        }
        while (reads.load(Ordering::Acquire) < READS || steps < 60)
            && readers.iter().all(|reader| !reader.is_finished())
        {
            work(&mut store, &mut shadow, &mut random, &kept);
            steps += 1;
        }
        let refusals: Vec<_> = kept
            .iter()
            .map(|&point| store.remove_point(point))
            .collect();
        // Whoever panics here waits for the readers first.
        stop.store(true, Ordering::Release);
        for reader in readers {
            reader
                .join()
                .unwrap()
                .unwrap_or_else(|error| panic!("seed {seed}, step {steps}: {error}"));
        }
        for refusal in refusals {
            assert!(matches!(
                refusal,
                Err(StoreError::Refused(Refused::PointInUse { users: 2, .. }))
            ));
        }
    });
    compare_points(&store, &shadow).unwrap();
    for sequence in kept {
        store.remove_point(sequence).unwrap();
    }
    (reads.load(Ordering::Acquire), steps)
}

#[test]
fn readers_of_old_points_never_see_a_newer_byte_on_real_files() {
    for seed in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let (reads, steps) = read_during_work(Arc::new(RealDisk), &root, seed);
        println!("{reads} reads during {steps} steps of the store");
    }
}

#[test]
fn readers_of_old_points_never_see_a_newer_byte_where_blocks_are_shared() {
    let disk = Arc::new(Recorder::new().sharing_blocks());
    let (reads, steps) = read_during_work(disk, Path::new("/store"), 7);
    println!("{reads} reads during {steps} steps of the store");
}

/// A point as the NBD server offers it.
struct PointExport(PointReader);

impl PointExport {
    fn refuse<T>() -> io::Result<T> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

impl Export for PointExport {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn granularity(&self) -> Granularity {
        Granularity::default()
    }

    fn contexts(&self) -> Vec<ContextName> {
        vec![ContextName::allocation()]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Self::refuse()
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Holes) -> io::Result<()> {
        Self::refuse()
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        Self::refuse()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        _: &ContextName,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> io::Result<Vec<Extent>> {
        let ranges = self.0.ranges(offset..offset + length)?.into_iter();
        let extents = ranges.map(|(range, kind)| Extent {
            offset: range.start,
            length: range.end - range.start,
            flags: match kind {
                RangeKind::Data => 0,
                RangeKind::Zero => HOLE | ZERO,
            },
        });
        Ok(extents.take(limit).collect())
    }
}

/// Copies an export with a stock tool, and compares what arrives.
fn copy_and_compare(tool: &str, uri: &str, copy: &Path, expected: &[u8]) -> Result<(), String> {
    let target = copy.to_str().ok_or("a temporary path is not UTF-8")?;
    let _ = std::fs::remove_file(copy);
    let arguments = match tool {
        "qemu-img" => vec!["convert", "-f", "raw", "-O", "raw", uri, target],
        _ => vec!["--request-size=65536", uri, target],
    };
    let output = run_tool(tool, &arguments)?;
    if !output.status.success() {
        return Err(format!("{tool}: {output:?}"));
    }
    let found = std::fs::read(copy).map_err(|error| error.to_string())?;
    if found == expected {
        Ok(())
    } else {
        Err(format!("{tool} read other bytes than the point has"))
    }
}

#[test]
fn stock_nbd_clients_copy_a_point_rightly_while_deltas_are_applied() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let mut random = Random::new(11);
    let mut shadow = ShadowVm::new(11, &[8000 * 512]);
    let mut store = Store::init(Arc::new(RealDisk), &root, &shadow.new_store(), "test").unwrap();
    for _ in 0..4 {
        deliver(&mut store, &mut shadow, Activity::MIXED);
    }
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    let expected = shadow.at(point)[0].clone();
    let reader = store.reader(point, &shadow.names()[0]).unwrap();
    let exports = ExportSet::new();
    exports.add("", Arc::new(PointExport(reader))).unwrap();
    let socket = folder.path().join("nbd");
    let address = ListenAddress::Unix(socket.clone());
    let server = Server::bind(&address, exports, ServerOptions::default()).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    // Each copies until both tools have copied, and the store has worked, often enough.
    let (stop, tools) = (AtomicBool::new(false), ["nbdcopy", "qemu-img"]);
    let copies = tools.map(|_| AtomicU64::new(0));
    let mut steps = 0;
    std::thread::scope(|scope| {
        let mut clients = Vec::new();
        for (tool, copies) in tools.into_iter().zip(&copies) {
            let (uri, expected, stop) = (&uri, &expected, &stop);
            let copy = folder.path().join(tool);
            clients.push(scope.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    copy_and_compare(tool, uri, &copy, expected)?;
                    copies.fetch_add(1, Ordering::AcqRel);
                }
                Ok::<(), String>(())
            }));
        }
        let enough = || copies.iter().all(|one| one.load(Ordering::Acquire) >= 12);
        while !(enough() && steps >= 10) && clients.iter().all(|client| !client.is_finished()) {
            work(&mut store, &mut shadow, &mut random, &[point]);
            steps += 1;
        }
        stop.store(true, Ordering::Release);
        for client in clients {
            client.join().unwrap().unwrap();
        }
    });
    drop(server);
    println!("{copies:?} copies over NBD during {steps} steps of the store");
    compare_points(&store, &shadow).unwrap();
}

#[test]
fn a_store_is_not_opened_again_while_a_reader_of_the_old_one_is_left() {
    let disk: Arc<dyn DiskPort> = Arc::new(Recorder::new());
    let root = Path::new("/store");
    let mut shadow = ShadowVm::new(1, &[100 * 512]);
    let mut store = Store::init(Arc::clone(&disk), root, &shadow.new_store(), "first").unwrap();
    deliver(&mut store, &mut shadow, Activity::MIXED);
    let point = store.make_point(NOW, PointKind::Standard).unwrap();
    let reader = store.reader(point, &shadow.names()[0]).unwrap();
    drop(store);
    // Another owner would apply to the head that this reader reads.
    assert!(matches!(
        Store::open(Arc::clone(&disk), root, "second"),
        Err(StoreError::Refused(Refused::InUse { holder })) if holder == "first"
    ));
    let mut bytes = vec![0; 100 * 512];
    reader.read_at(0, &mut bytes).unwrap();
    assert!(bytes == shadow.at(point)[0]);
    drop(reader);
    Store::open(disk, root, "second").unwrap();
}
