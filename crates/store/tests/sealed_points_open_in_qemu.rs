//! Sealed points, wrappers and overlays in the hands of stock QEMU tools, on real files.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use lifeboat_harness::{
    Activity, Random, ShadowVm, check_image, compare_image, compare_points, qemu_io, run_tool,
};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{LineageId, Sequence, Timestamp};
use lifeboat_store::{FailoverTarget, Refused, StartedFailover, Store, StoreError};
use lifeboat_sys::disk::{DiskPort, RealDisk};

const NOW: Timestamp = Timestamp::from_micros(1);
const LINEAGE: LineageId = LineageId::from_bytes([0xB0; 16]);

fn port() -> Arc<dyn DiskPort> {
    Arc::new(RealDisk)
}

fn open(root: &Path) -> Store {
    Store::open(port(), root, "test").unwrap()
}

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

fn receive_and_apply(store: &mut Store, shadow: &mut ShadowVm, activity: Activity) {
    shadow.work(activity);
    let stream = shadow.capture();
    store.receive(&stream[..]).unwrap();
    apply_all(store);
}

/// A store with `points` recovery points, and what was captured since.
fn store_with_points(root: &Path, seed: u64, sizes: &[u64], points: u64) -> (Store, ShadowVm) {
    let mut shadow = ShadowVm::new(seed, sizes);
    let mut store = Store::init(port(), root, &shadow.new_store(), "test").unwrap();
    receive_and_apply(&mut store, &mut shadow, Activity::MIXED);
    for _ in 0..points {
        store.make_point(NOW, PointKind::Standard).unwrap();
        receive_and_apply(&mut store, &mut shadow, Activity::MIXED);
    }
    (store, shadow)
}

/// Every image of the closed store as `qemu-img` sees it: sound, and each point right.
fn compare_with_qemu(
    root: &Path,
    points: &[(Sequence, Vec<PathBuf>)],
    shadow: &ShadowVm,
) -> Result<usize, String> {
    let mut compared = 0;
    for name in shadow.names() {
        let folder = root.join(format!("disks/{name}"));
        check_image(&folder.join("disk.qcow2"))?;
        for entry in std::fs::read_dir(folder.join("seg")).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "qcow2")
            {
                check_image(&path)?;
            }
        }
    }
    for (sequence, images) in points {
        for (image, expected) in images.iter().zip(shadow.at(*sequence)) {
            compare_image(image, expected).map_err(|error| format!("point {sequence}: {error}"))?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// What stock tools open for each point.
fn images_of_points(store: &Store) -> Vec<(Sequence, Vec<PathBuf>)> {
    let points = store.points();
    assert!(points.iter().all(|point| point.sealed));
    points
        .into_iter()
        .map(|point| {
            let images = point.disks.into_iter().map(|disk| disk.image);
            (point.sequence, images.collect())
        })
        .collect()
}

#[test]
fn every_sealed_point_of_a_random_life_is_what_qemu_img_reads() {
    let mut compared = 0;
    for seed in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let mut random = Random::new(seed);
        let sizes = [0; 3].map(|_| (1 + random.below(3000)) * 512);
        let mut shadow = ShadowVm::new(seed, &sizes[..1 + random.below(3) as usize]);
        let mut store = Store::init(port(), &root, &shadow.new_store(), "test").unwrap();
        receive_and_apply(&mut store, &mut shadow, Activity::MIXED);
        for step in 0..24 {
            match random.below(8) {
                0..3 => {
                    if random.one_in(3) {
                        let at = random.below(shadow.names().len() as u64) as usize;
                        shadow.resize(at, (1 + random.below(4000)) * 512);
                    }
                    receive_and_apply(&mut store, &mut shadow, Activity::MIXED);
                }
                3..5 => _ = store.make_point(NOW, PointKind::Standard).unwrap(),
                5 if store.points().len() > 2 => {
                    let points = store.points();
                    let victim = random.below(points.len() as u64) as usize;
                    store.remove_point(points[victim].sequence).unwrap();
                }
                _ => {
                    store.seal().unwrap();
                    let points = images_of_points(&store);
                    drop(store);
                    compared += compare_with_qemu(&root, &points, &shadow)
                        .unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
                    store = open(&root);
                }
            }
        }
    }
    println!("{compared} disks of points compared with qemu-img");
    assert!(
        compared > 60,
        "only {compared} disks of points were compared"
    );
}

#[test]
fn points_of_a_disk_that_grew_and_shrank_keep_their_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let (mut store, mut shadow) = store_with_points(&root, 1, &[700 * 512], 1);
    for sectors in [1501, 9, 1, 4097, 800] {
        store.make_point(NOW, PointKind::Standard).unwrap();
        shadow.resize(0, sectors * 512);
        receive_and_apply(&mut store, &mut shadow, Activity::MIXED);
    }
    store.make_point(NOW, PointKind::Standard).unwrap();
    store.seal().unwrap();
    let points = images_of_points(&store);
    drop(store);
    assert_eq!(compare_with_qemu(&root, &points, &shadow), Ok(7));
}

#[test]
fn a_moved_store_reads_its_own_disks_and_not_those_it_was_copied_from() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let (mut store, shadow) = store_with_points(&old, 2, &[999 * 512, 4 << 20], 3);
    store.seal().unwrap();
    drop(store);
    std::fs::rename(&old, &new).unwrap();
    // Where the heads lay once there are others now.
    for name in shadow.names() {
        let decoy = old.join(format!("disks/{name}"));
        std::fs::create_dir_all(&decoy).unwrap();
        std::fs::write(decoy.join("head.raw"), vec![0xDD; 4 << 20]).unwrap();
    }
    let store = open(&new);
    let points = images_of_points(&store);
    drop(store);
    assert_eq!(compare_with_qemu(&new, &points, &shadow), Ok(6));
}

#[test]
fn a_store_moved_while_failed_over_names_its_own_disks() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let (mut store, shadow) = store_with_points(&old, 3, &[1 << 20], 2);
    let target = store.points()[0].sequence;
    store
        .start_failover(FailoverTarget::Point(target), LINEAGE, NOW, &mut |_| {})
        .unwrap();
    drop(store);
    std::fs::rename(&old, &new).unwrap();
    let store = open(&new);
    let started = store.started_failover().unwrap();
    compare_image(&started.disks[0].image, &shadow.at(target)[0]).unwrap();
}

/// Lets `qemu-io` do to an overlay what a guest does, and the shadow bytes the same.
fn write_as_a_guest(image: &Path, bytes: &mut [u8], random: &mut Random) {
    let mut commands = Vec::new();
    for number in 0..24 {
        let unit = [1, 8, 128, 256][random.below(4) as usize] * 512;
        let len = ((1 + random.below(6)) * unit).min(bytes.len() as u64);
        let offset = random.below(bytes.len() as u64 - len + 1) / unit * unit;
        let range = offset as usize..(offset + len) as usize;
        // A discarded range of an image with a backing file reads as zeroes afterwards
        // where QEMU discards it, which it does for whole clusters only: zero it first.
        let zero = format!("write -z {offset} {len}");
        match random.below(4) {
            0 => {
                bytes[range].fill(0);
                commands.push(zero);
            }
            1 => {
                bytes[range].fill(0);
                commands.push(zero);
                commands.push(format!("discard {offset} {len}"));
            }
            _ => {
                let pattern = 1 + (number + random.below(200)) as u8;
                bytes[range].fill(pattern);
                commands.push(format!("write -P {pattern} {offset} {len}"));
            }
        }
    }
    commands.push("flush".to_owned());
    qemu_io("qcow2", image, &commands).unwrap();
}

/// Fails over and lets a guest write to every disk; answers with what it sees then.
fn run_guest(
    store: &mut Store,
    shadow: &ShadowVm,
    target: FailoverTarget,
    random: &mut Random,
) -> (StartedFailover, Vec<Vec<u8>>) {
    let started = store
        .start_failover(target, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    let mut disks = shadow.at(started.sequence).to_vec();
    for (disk, bytes) in started.disks.iter().zip(&mut disks) {
        bytes.resize(disk.size.bytes() as usize, 0);
        compare_image(&disk.image, bytes).unwrap();
        write_as_a_guest(&disk.image, bytes, random);
        check_image(&disk.image).unwrap();
        compare_image(&disk.image, bytes).unwrap();
    }
    (started, disks)
}

#[test]
fn what_qemu_wrote_to_the_overlays_is_what_a_commit_leaves_in_the_heads() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let sizes = [
            (600 + random.below(4000)) * 512,
            (600 + random.below(900)) * 512,
        ];
        let (mut store, mut shadow) = store_with_points(&root, seed, &sizes, 2);
        if seed % 3 == 0 {
            shadow.resize(0, (600 + random.below(6000)) * 512);
            receive_and_apply(&mut store, &mut shadow, Activity::MIXED);
        }
        let target = if seed % 2 == 0 {
            FailoverTarget::Newest
        } else {
            FailoverTarget::Point(store.points()[0].sequence)
        };
        let (started, disks) = run_guest(&mut store, &shadow, target, &mut random);
        if seed % 4 < 2 {
            drop(store);
            store = open(&root);
        }
        let committed = store.commit(&mut |_| {}).unwrap();
        assert_eq!(committed.sequence, started.sequence);
        for (disk, expected) in started.disks.iter().zip(&disks) {
            assert!(
                std::fs::read(&disk.head).unwrap() == *expected,
                "seed {seed}: the head of {} is not what the guest wrote",
                disk.id
            );
            // The VM runs on the wrapper from now on, and the store may stay open.
            let wrapper = disk.below.last().unwrap();
            check_image(wrapper).unwrap();
            compare_image(wrapper, expected).unwrap();
            qemu_io("qcow2", wrapper, &["write -P 7 0 512".to_owned()]).unwrap();
        }
    }
}

#[test]
fn a_revert_leaves_nothing_of_what_qemu_wrote() {
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("store");
        let (mut store, mut shadow) = store_with_points(&root, seed, &[1777 * 512], 3);
        shadow.work(Activity::MIXED);
        let waiting = shadow.capture();
        store.receive(&waiting[..]).unwrap();
        let target = if seed % 2 == 0 {
            FailoverTarget::Applied
        } else {
            FailoverTarget::Point(store.points()[1].sequence)
        };
        let (started, _) = run_guest(&mut store, &shadow, target, &mut random);
        store.revert_failover().unwrap();
        assert!(started.disks.iter().all(|disk| !disk.image.exists()));
        compare_points(&store, &shadow).unwrap();
        apply_all(&mut store);
        store.make_point(NOW, PointKind::Standard).unwrap();
        store.seal().unwrap();
        let points = images_of_points(&store);
        drop(store);
        compare_with_qemu(&root, &points, &shadow)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// Whether `qemu-io` is refused because of a lock.
fn is_locked(format: &str, image: &Path) -> bool {
    let image = image.to_str().unwrap();
    let output = run_tool("qemu-io", &["-f", format, "-c", "read 0 512", image]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let refused = !output.status.success();
    assert!(
        !refused || said.contains("lock"),
        "qemu-io fails for another reason than a lock: {said}"
    );
    refused
}

#[test]
fn qemu_is_kept_away_from_the_images_of_an_open_replica() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let (mut store, _) = store_with_points(&root, 5, &[1 << 20, 1 << 20], 1);
    let images: Vec<_> = ["disk0", "disk1"]
        .iter()
        .flat_map(|disk| {
            let folder = root.join("disks").join(disk);
            [
                ("raw", folder.join("head.raw")),
                ("qcow2", folder.join("disk.qcow2")),
            ]
        })
        .collect();
    let locked = || {
        images
            .iter()
            .map(|(format, image)| is_locked(format, image))
            .collect::<Vec<_>>()
    };
    assert_eq!(locked(), [true; 4], "while deltas may be applied");
    store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    assert_eq!(locked(), [false; 4], "when the VM is to be started");
    store.revert_failover().unwrap();
    assert_eq!(locked(), [true; 4], "after the revert");
    drop(store);
    assert_eq!(locked(), [false; 4], "when the store is closed");
    let store = open(&root);
    assert_eq!(locked(), [true; 4], "when the store was opened again");
    drop(store);
}

/// `qemu-io` with an image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn of(image: &Path) -> Self {
        use std::io::{BufRead, BufReader, Write};
        let mut child = Command::new("qemu-io")
            .args(["-f", "qcow2"])
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start qemu-io, which this test needs");
        // Its answer shows that it has the image open.
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(b"length\n").unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.as_mut().unwrap());
        while !line.contains("iB") {
            line.clear();
            assert!(
                output.read_line(&mut line).unwrap() > 0,
                "qemu-io has ended"
            );
        }
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn neither_commit_nor_revert_begins_while_a_guest_has_an_overlay_open() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let (mut store, shadow) = store_with_points(&root, 6, &[1 << 20, 1 << 20], 2);
    let point = store.points()[0].sequence;
    let started = store
        .start_failover(FailoverTarget::Point(point), LINEAGE, NOW, &mut |_| {})
        .unwrap();
    let in_use = |outcome: Result<(), StoreError>, path: &Path| match outcome {
        Err(StoreError::Refused(Refused::ImageInUse { path: found })) => assert_eq!(found, path),
        other => panic!("not refused for {}: {other:?}", path.display()),
    };
    // Disk by disk: the refusal for one must not keep the guest from the other.
    for disk in &started.disks {
        let guest = Holder::of(&disk.image);
        in_use(store.commit(&mut |_| {}).map(|_| ()), &disk.image);
        in_use(store.revert_failover(), &disk.image);
        in_use(store.rescan().map(|_| ()), &disk.image);
        drop(guest);
        for (disk, expected) in started.disks.iter().zip(shadow.at(point)) {
            compare_image(&disk.image, expected).unwrap();
        }
    }
    // A reader of the images below keeps a commit away as well, and leaves no lock behind.
    let disk = &started.disks[1];
    let reader = Holder::of(disk.below.last().unwrap());
    in_use(store.commit(&mut |_| {}).map(|_| ()), &disk.head);
    in_use(store.revert_failover(), &disk.head);
    drop(reader);
    for (disk, expected) in started.disks.iter().zip(shadow.at(point)) {
        compare_image(&disk.image, expected).unwrap();
    }
    store.commit(&mut |_| {}).unwrap();
}

#[test]
fn an_overlay_under_qemu_nbd_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let (mut store, _) = store_with_points(&root, 7, &[1 << 20], 1);
    let started = store
        .start_failover(FailoverTarget::Newest, LINEAGE, NOW, &mut |_| {})
        .unwrap();
    let image = started.disks[0].image.to_str().unwrap();
    let socket = folder.path().join("nbd");
    let pid_file = folder.path().join("pid");
    // With --fork it returns when it serves.
    let output = run_tool(
        "qemu-nbd",
        &[
            "--fork",
            "--persistent",
            "--pid-file",
            pid_file.to_str().unwrap(),
            "-k",
            socket.to_str().unwrap(),
            "-f",
            "qcow2",
            image,
        ],
    )
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    let commit = store.commit(&mut |_| {});
    let revert = store.revert_failover();
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(
        run_tool("kill", &["-9", pid.trim()])
            .unwrap()
            .status
            .success()
    );
    assert!(
        matches!(commit, Err(StoreError::Refused(Refused::ImageInUse { .. }))),
        "{commit:?}"
    );
    assert!(
        matches!(revert, Err(StoreError::Refused(Refused::ImageInUse { .. }))),
        "{revert:?}"
    );
}
