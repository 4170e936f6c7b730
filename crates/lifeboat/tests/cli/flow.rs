//! From an empty folder to a failover, as an operator goes.

use std::path::{Path, PathBuf};

use lifeboat_harness::{compare_image, qemu_io, run_tool};
use lifeboat_model::Sequence;
use serde_json::{Value, json};

use crate::support::{Scene, lifeboat, lifeboat_json, text};

const SIZES: [u64; 2] = [6 << 20, (1 << 20) + 512];

fn path(value: &Value) -> PathBuf {
    value.as_str().unwrap().into()
}

/// Reads an image as QEMU does when it is given nothing but this `-blockdev` value, from a folder
/// where a relative name would lead nowhere.
fn read_through_blockdev(blockdev: &Value, folder: &Path) -> Vec<u8> {
    let raw = folder.join("through-blockdev.raw");
    let mut blockdev = blockdev.clone();
    blockdev.as_object_mut().unwrap().remove("node-name");
    let source = format!("json:{blockdev}");
    let copied = run_tool("qemu-img", &["convert", "-O", "raw", &source, text(&raw)]).unwrap();
    let said = String::from_utf8_lossy(&copied.stderr);
    assert!(copied.status.success(), "{said}");
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

#[test]
fn every_point_reads_as_the_guest_was_by_export_and_by_stock_tools() {
    let mut scene = Scene::new(1, &SIZES);
    let receipt = scene.receive();
    let first = scene.shadow.newest().unwrap();
    assert_eq!(receipt["sequence"], 1);
    assert_eq!(receipt["id"], first.1.to_string());
    assert_eq!(receipt["lineage"], scene.shadow.lineage.to_string());
    assert_eq!(receipt["repeated"], false);
    for _ in 0..3 {
        scene.receive();
    }
    let applied = scene.run("store apply", &["--point", "each"]).json();
    assert_eq!(applied["applied"].as_array().unwrap().len(), 4);
    assert_eq!(applied["points_made"], json!([1, 2, 3, 4]));
    assert_eq!(applied["sealed"], true);

    let points = scene.run("store point list", &[]).json();
    let points = points.as_array().unwrap();
    assert_eq!(points.len(), 4);
    for (at, point) in points.iter().enumerate() {
        let sequence = at as u64 + 1;
        assert_eq!(point["sequence"], sequence);
        assert_eq!(point["sealed"], true);
        let expected = scene.shadow.at(Sequence::new(sequence));
        for (disk, expected) in point["disks"].as_array().unwrap().iter().zip(expected) {
            compare_image(&path(&disk["image"]), expected).unwrap();
        }
        scene.compare_exports(sequence);
    }
    for command in ["store verify", "store status", "store check", "store seal"] {
        scene.run(command, &[]).json();
    }
    let verified = scene.run("store point verify", &["2"]).json();
    assert_eq!(verified["findings"], json!([]));
}

#[test]
fn the_same_delta_again_gets_the_same_receipt() {
    let mut scene = Scene::new(2, &SIZES);
    scene.shadow.write(0, 0, &[1; 512]);
    let stream = scene.shadow.capture();
    let file = scene.beside("1.delta");
    std::fs::write(&file, stream).unwrap();
    let first = scene.run("store receive", &[text(&file)]).json();
    let again = scene.run("store receive", &[text(&file)]).json();
    assert_eq!(first["repeated"], false);
    assert_eq!(again["repeated"], true);
    for field in ["lineage", "sequence", "id", "bytes"] {
        assert_eq!(first[field], again[field]);
    }
}

#[test]
fn points_beyond_the_number_to_keep_go_oldest_first() {
    let mut scene = Scene::with_points(3, &SIZES, 3);
    scene.receive();
    scene.receive();
    let options = ["--point", "each", "--keep-points", "2"];
    let applied = scene.run("store apply", &options).json();
    assert_eq!(applied["points_made"], json!([4, 5]));
    assert_eq!(applied["points_removed"], json!([1, 2, 3]));
    let removed = scene.run("store point remove", &["4"]).json();
    assert_eq!(removed["points"], 1);
    scene.compare_exports(5);
}

#[test]
fn a_moment_becomes_a_point_later_if_it_was_applied_without() {
    let mut scene = Scene::new(4, &SIZES);
    scene.receive();
    let options = ["--point", "none", "--no-seal"];
    let applied = scene.run("store apply", &options).json();
    assert_eq!(applied["points_made"], json!([]));
    let applied = scene.run("store apply", &[]).json();
    assert_eq!(applied["applied"], json!([]));
    assert_eq!(applied["points_made"], json!([1]));
    let applied = scene.run("store apply", &[]).json();
    assert_eq!(applied["points_made"], json!([]));
}

#[test]
fn a_reverted_failover_leaves_the_replica_as_it_was() {
    let mut scene = Scene::with_points(5, &SIZES, 2);
    scene.receive();
    let started = scene.run("store failover start", &[]).json();
    assert_eq!(started["sequence"], 3);
    assert_eq!(scene.run("store failover show", &[]).json(), started);
    let newest = scene.shadow.at(Sequence::new(3)).to_vec();
    for (disk, expected) in started["disks"].as_array().unwrap().iter().zip(&newest) {
        compare_image(&path(&disk["image"]), expected).unwrap();
        let write = ["write -P 7 0 64k".to_owned(), "flush".to_owned()];
        qemu_io("qcow2", &path(&disk["image"]), &write).unwrap();
        let read = read_through_blockdev(&disk["blockdev"], scene.folder.path());
        let mut written = expected.clone();
        written[..64 << 10].fill(7);
        assert!(read == written);
    }
    scene.run("store failover revert", &["--yes"]).json();
    for sequence in [1, 2] {
        scene.compare_exports(sequence);
    }
    // It goes on as if nothing had been.
    scene.receive();
    scene.run("store apply", &[]).json();
    scene.compare_exports(4);
}

#[test]
fn a_committed_failover_holds_the_point_and_what_the_guest_wrote() {
    let scene = Scene::with_points(6, &SIZES, 4);
    let started = scene.run("store failover start", &["--to", "2"]).json();
    assert_eq!(started["sequence"], 2);
    let mut expected = scene.shadow.at(Sequence::new(2)).to_vec();
    for (disk, expected) in started["disks"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&mut expected)
    {
        let read = read_through_blockdev(&disk["blockdev"], scene.folder.path());
        assert!(read == *expected, "the chain of {}", disk["disk"]);
        let write = ["write -P 9 128k 4k".to_owned(), "flush".to_owned()];
        qemu_io("qcow2", &path(&disk["image"]), &write).unwrap();
        expected[128 << 10..132 << 10].fill(9);
    }
    let committed = scene.run("store failover commit", &["--yes"]).json();
    assert_eq!(committed["sequence"], 2);
    assert_eq!(committed["points_removed"], 4);
    for (disk, expected) in committed["disks"].as_array().unwrap().iter().zip(&expected) {
        assert!(std::fs::read(path(&disk["raw_image"])).unwrap() == *expected);
        compare_image(&path(&disk["image"]), expected).unwrap();
    }
    assert_eq!(scene.run("store status", &[]).json()["role"], "committed");
    scene.run("store receive", &["/dev/null"]).error(3);
    scene.run("store failover show", &[]).error(3);
}

#[test]
fn a_failover_to_what_is_applied_keeps_what_waits() {
    let mut scene = Scene::with_points(7, &SIZES, 1);
    scene.receive();
    let started = scene
        .run("store failover start", &["--to", "applied"])
        .json();
    assert_eq!(started["sequence"], 1);
    let reverted = scene.run("store failover revert", &["--yes"]).json();
    assert_eq!(reverted, json!({ "applied": 1, "pending_deltas": 1 }));
}

#[test]
fn a_moved_store_works_at_its_new_place() {
    let mut scene = Scene::with_points(8, &SIZES, 2);
    let moved = scene.beside("elsewhere");
    std::fs::rename(&scene.store, &moved).unwrap();
    std::fs::remove_file(moved.join("points/1.json")).unwrap();
    scene.store = moved.canonicalize().unwrap();
    let rescanned = scene.run("store rescan", &[]).json();
    // Descriptions that are missing are written as soon as the store is opened.
    assert!(moved.join("points/1.json").is_file());
    assert_eq!(rescanned["manifests_made"], 0);
    assert_eq!(rescanned["folder"], text(&scene.store));
    let again = scene.run("store rescan", &[]).json();
    assert_eq!(again["images_made"], 0);
    assert_eq!(again["manifests_made"], 0);
    let points = scene.run("store point list", &[]).json();
    for point in points.as_array().unwrap() {
        let sequence = Sequence::new(point["sequence"].as_u64().unwrap());
        let expected = scene.shadow.at(sequence);
        for (disk, expected) in point["disks"].as_array().unwrap().iter().zip(expected) {
            compare_image(&path(&disk["image"]), expected).unwrap();
        }
    }
}

#[test]
fn a_store_may_be_named_by_a_symlink_or_from_the_folder_beside_it() {
    let scene = Scene::with_points(9, &SIZES, 1);
    let label = scene.beside("label");
    std::os::unix::fs::symlink(&scene.store, &label).unwrap();
    let by_path = scene.run("store point list", &[]).json();
    assert_eq!(
        lifeboat_json(&["store", "point", "list", text(&label)]).json(),
        by_path
    );
    let relative = crate::support::program()
        .current_dir(scene.folder.path())
        .args(["--output", "json", "store", "point", "list", "vm"])
        .output();
    assert_eq!(crate::support::Run::of(relative.unwrap()).json(), by_path);
}

#[test]
fn a_check_says_what_a_failover_would_lose() {
    let mut scene = Scene::new(10, &SIZES);
    let error = scene.run("store check", &[]).error(3);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("nothing was received")
    );
    scene.receive();
    scene.run("store apply", &[]).json();
    scene.receive();
    let check = scene.run("store check", &[]).json();
    assert_eq!(check["failover_ready"], true);
    assert_eq!(check["pending_deltas"], 1);
    assert_eq!(check["newest_point"]["sequence"], 1);
    assert_eq!(check["last_replication_time"], "2023-11-14T22:13:22Z");
    scene.run("store failover start", &[]).json();
    let error = scene.run("store check", &[]).error(3);
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("failed over already")
    );
}

#[test]
fn a_verification_names_the_file_and_the_points_that_suffer() {
    let scene = Scene::with_points(11, &SIZES, 3);
    let points = scene.run("store point list", &[]).json();
    let damaged = path(&points[1]["disks"][0]["image"]);
    // Every image begins with a cluster of header; then comes data, with gaps between its blocks.
    let mut bytes = std::fs::read(&damaged).unwrap();
    let cluster = 1usize << u32::from_be_bytes(bytes[20..24].try_into().unwrap());
    let data = bytes[cluster..].iter().position(|&byte| byte != 0).unwrap();
    bytes[cluster + data] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();

    let run = scene.run("store verify", &[]);
    let found = crate::support::parse(&run.stdout);
    assert_eq!(found["findings"].as_array().unwrap().len(), 1);
    assert_eq!(found["findings"][0]["path"], text(&damaged));
    assert_eq!(found["findings"][0]["affected_points"], json!([1, 2]));
    run.error(1);
    scene.run("store point verify", &["2"]).error(1);
    scene.run("store point verify", &["3"]).json();
    let said = lifeboat(&["store", "verify", text(&scene.store)]);
    assert_eq!(said.code, 1);
    assert!(said.stdout.contains("recovery points affected: 1, 2\n"));
    // A failover to the newest does not need the damaged file, one to 1 refuses in the commit.
    scene.run("store failover start", &["--to", "1"]).json();
    scene.run("store failover commit", &["--yes"]).error(1);
    scene.run("store failover revert", &["--yes"]).json();
    scene.run("store failover start", &[]).json();
}

#[test]
fn more_points_than_qemu_opens_well_are_refused_and_what_was_applied_stays() {
    let mut scene = Scene::new(12, &[1 << 20]);
    for _ in 0..34 {
        scene.receive();
    }
    let run = scene.run("store apply", &["--point", "each"]);
    let done = crate::support::parse(&run.stdout);
    let error = run.error(3);
    assert!(error["hint"].as_str().unwrap().contains("--keep-points"));
    let made = done["points_made"].as_array().unwrap().len();
    assert!((30..=32).contains(&made), "{made}");
    let points = scene.run("store point list", &[]).json();
    assert_eq!(points.as_array().unwrap().len(), made);
    assert!(
        points
            .as_array()
            .unwrap()
            .iter()
            .all(|point| point["sealed"] == true)
    );

    // The most that may be kept can be kept, over and over.
    let options = ["--point", "each", "--keep-points", "30"];
    scene.run("store apply", &options).json();
    for sequence in 35..=38 {
        scene.receive();
        let applied = scene.run("store apply", &options).json();
        assert_eq!(applied["points_made"], json!([sequence]));
    }
    let points = scene.run("store point list", &[]).json();
    assert_eq!(points.as_array().unwrap().len(), 30);
    for sequence in [9, 20, 38] {
        scene.compare_exports(sequence);
    }
}

#[test]
fn names_that_are_not_utf_8_are_no_crash() {
    use std::os::unix::ffi::OsStrExt as _;
    let scene = Scene::with_points(13, &[1 << 20], 1);
    let odd = |name: &[u8]| scene.folder.path().join(std::ffi::OsStr::from_bytes(name));
    let run = |arguments: &[&str], path: &Path| {
        let run = crate::support::program()
            .args(["--output", "json"])
            .args(arguments)
            .arg(path)
            .output();
        crate::support::Run::of(run.unwrap())
    };
    let out = odd(b"out-\xff.raw");
    let export = [
        "store",
        "point",
        "export",
        text(&scene.store),
        "1",
        "--disk",
        "disk0",
        "--out",
    ];
    run(&export, &out).json();
    assert!(std::fs::read(&out).unwrap() == scene.shadow.at(Sequence::new(1))[0]);
    run(&["store", "status"], &odd(b"store-\xff")).error(5);
    run(&["store", "init", "--disk", "sda=1M"], &odd(b"new-\xff")).error(1);
    run(&["delta", "inspect"], &out).error(1);
}

#[test]
fn a_vm_with_many_disks_is_not_held_up_by_the_usual_limit_of_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let disks = (0..40).flat_map(|at| ["--disk".to_owned(), format!("disk{at}=1M")]);
    let made = std::process::Command::new("sh")
        .args(["-c", "ulimit -S -n 64; exec \"$0\" \"$@\""])
        .arg(crate::support::program().get_program())
        .args(["store", "init"])
        .arg(&store)
        .args(disks)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
}
