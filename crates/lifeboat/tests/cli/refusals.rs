//! What is refused, with which exit code, and that nothing changes by it.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat_harness::Activity;

use crate::qemu_nbd::QemuNbd;
use crate::support::{Run, Scene, lifeboat, lifeboat_fed, lifeboat_json, parse, text};

const SIZES: [u64; 1] = [1 << 20];

/// The files of a store with their contents, but for the journal: opening a store begins it anew
/// with the same state.
fn everything(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(everything(&path));
        } else if kind.is_file() && !path.ends_with("lock") && !path.ends_with("journal") {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path, bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_not_there_is_not_found() {
    let scene = Scene::with_points(20, &SIZES, 1);
    let missing = scene.beside("missing");
    for command in ["status", "apply", "verify", "check", "rescan", "seal"] {
        lifeboat_json(&["store", command, text(&missing)]).error(5);
    }
    lifeboat_json(&["store", "point", "list", text(&missing)]).error(5);
    lifeboat_json(&["store", "failover", "show", text(&missing)]).error(5);
    lifeboat_json(&["store", "status", text(scene.folder.path())]).error(5);
    scene.run("store receive", &[text(&missing)]).error(5);
    lifeboat_json(&["delta", "inspect", text(&missing)]).error(5);
    let far = missing.join("vm");
    lifeboat_json(&["store", "init", text(&far), "--disk", "sda=1M"]).error(5);
    assert!(!missing.exists());

    let out = scene.beside("out.raw");
    let export = |sequence, disk| {
        let options = [sequence, "--disk", disk, "--out", text(&out)];
        scene.run("store point export", &options)
    };
    export("7", "disk0").error(5);
    export("1", "disk9").error(5);
    let far = missing.join("out.raw");
    let options = ["1", "--disk", "disk0", "--out", text(&far)];
    scene.run("store point export", &options).error(5);
    assert!(!out.exists());
    scene.run("store point verify", &["7"]).error(5);
    scene.run("store point remove", &["7"]).error(5);
    scene.run("store failover start", &["--to", "7"]).error(5);
}

#[test]
fn arguments_that_make_no_sense_are_wrong_usage() {
    let scene = Scene::with_points(21, &SIZES, 1);
    let other = scene.beside("other");
    let cases: [&[&str]; 16] = [
        &[],
        &["nonsense"],
        &["store"],
        &["store", "init"],
        &["store", "init", text(&other)],
        &["store", "init", text(&other), "--disk", "sda"],
        &["store", "init", text(&other), "--disk", "../sda=1M"],
        &["store", "init", text(&other), "--disk", "sda=1"],
        &["store", "init", text(&other), "--disk", "sda=99999T"],
        &[
            "store",
            "init",
            text(&other),
            "--disk",
            "sda=1M",
            "--disk",
            "sda=1M",
        ],
        &[
            "store",
            "init",
            text(&other),
            "--disk",
            "sda=1M",
            "--vm",
            "xyz",
        ],
        &["store", "apply", text(&scene.store), "--keep-points", "0"],
        &["store", "apply", text(&scene.store), "--keep-points", "32"],
        &[
            "store",
            "point",
            "export",
            text(&scene.store),
            "one",
            "--disk",
            "disk0",
            "--out",
            "x",
        ],
        &["store", "point", "serve", text(&scene.store), "1"],
        &[
            "store",
            "failover",
            "start",
            text(&scene.store),
            "--to",
            "latest",
        ],
    ];
    for arguments in cases {
        assert_eq!(lifeboat(arguments).code, 2, "{arguments:?}");
        let run = lifeboat_json(arguments);
        assert_eq!(run.code, 2, "{arguments:?}");
        assert!(run.stdout.is_empty(), "{arguments:?}");
    }
    lifeboat_json(&["store", "init", text(&other), "--disk", "sda=1"]).error(2);
    assert!(!other.exists());
}

#[test]
fn what_cannot_be_undone_needs_a_yes_when_nobody_can_be_asked() {
    let scene = Scene::with_points(22, &SIZES, 1);
    scene.run("store failover start", &[]).json();
    for command in ["store failover revert", "store failover commit"] {
        let error = scene.run(command, &[]).error(2);
        assert!(error["message"].as_str().unwrap().contains("--yes"));
        assert_eq!(scene.run("store status", &[]).json()["role"], "failed_over");
    }
}

/// Runs a command on a terminal of its own and types one line. Answers with the exit code.
fn on_a_terminal(scene: &Scene, command: &str, line: &str) -> i32 {
    let program = env!("CARGO_BIN_EXE_lifeboat");
    let command = format!("'{program}' {command} '{}'", text(&scene.store));
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("script, of the package bsdutils, is needed");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(line.as_bytes()).unwrap();
    // The terminal stays open until the command has ended.
    let code = child.wait().unwrap().code().unwrap();
    drop(stdin);
    code
}

#[test]
fn on_a_terminal_only_yes_is_a_yes() {
    let scene = Scene::with_points(28, &SIZES, 1);
    scene.run("store failover start", &[]).json();
    for line in ["no\n", "\n", "y\n"] {
        assert_eq!(on_a_terminal(&scene, "store failover revert", line), 3);
        assert_eq!(on_a_terminal(&scene, "store failover commit", line), 3);
        assert_eq!(scene.run("store status", &[]).json()["role"], "failed_over");
    }
    assert_eq!(on_a_terminal(&scene, "store failover revert", "yes\n"), 0);
    assert_eq!(scene.run("store status", &[]).json()["role"], "replica");
}

#[test]
fn what_the_state_does_not_allow_is_refused_and_changes_nothing() {
    let mut scene = Scene::new(23, &SIZES);
    let store = scene.store.clone();
    scene.run("store failover start", &[]).error(3);
    for command in ["store failover revert", "store failover commit"] {
        scene.run(command, &["--yes"]).error(3);
    }
    scene.run("store failover show", &[]).error(3);
    lifeboat_json(&["store", "init", text(&store), "--disk", "sda=1M"]).error(3);
    let state = scene.beside("state.json");
    let other = scene.beside("other");
    let arguments = [
        "store",
        "init",
        text(&other),
        "--disk",
        "sda=1M",
        "--capture-state",
        text(&state),
    ];
    lifeboat_json(&arguments).error(3);
    assert!(!other.exists());

    scene.receive();
    scene.run("store apply", &[]).json();
    let before = everything(&store);
    let out = scene.beside("exists.raw");
    std::fs::write(&out, "mine").unwrap();
    let options = ["1", "--disk", "disk0", "--out", text(&out)];
    scene.run("store point export", &options).error(3);
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");

    // A gap: a delta was lost on the way.
    scene.shadow.work(Activity::MIXED);
    let lost = scene.shadow.capture();
    scene.shadow.work(Activity::MIXED);
    let next = scene.shadow.capture();
    lifeboat_fed(&["store", "receive", text(&store)], &next).error(3);
    let mut foreign = lifeboat_harness::ShadowVm::new(99, &SIZES);
    let other = foreign.capture();
    lifeboat_fed(&["store", "receive", text(&store)], &other).error(3);
    assert!(everything(&store) == before, "a refusal changed the store");
    lifeboat_fed(&["store", "receive", text(&store)], &lost).json();
    lifeboat_fed(&["store", "receive", text(&store)], &next).json();

    scene.run("store failover start", &[]).json();
    for command in ["store apply", "store failover start"] {
        scene.run(command, &[]).error(3);
    }
    scene.run("store point remove", &["1"]).error(3);
}

#[test]
fn a_broken_stream_fails_and_nothing_of_it_stays() {
    let mut scene = Scene::with_points(24, &SIZES, 1);
    scene.shadow.work(Activity::MIXED);
    let stream = scene.shadow.capture();
    let before = everything(&scene.store);
    let receive = ["store", "receive", text(&scene.store)];
    let mut flipped = stream.clone();
    flipped[stream.len() / 2] ^= 1;
    let mut long = stream.clone();
    long.push(0);
    let broken: [&[u8]; 6] = [
        b"",
        b"this is no delta at all, however long the text may be",
        &stream[..stream.len() - 1],
        &stream[..stream.len() / 3],
        &flipped,
        &long,
    ];
    for bytes in broken {
        lifeboat_fed(&receive, bytes).error(1);
        lifeboat_fed(&["delta", "inspect", "-"], bytes).error(1);
        lifeboat_fed(&["delta", "inspect", "-", "--frames"], bytes).error(1);
    }
    assert!(everything(&scene.store) == before);
    lifeboat_fed(&receive, &stream).json();
}

#[test]
fn a_store_of_another_user_is_access_denied() {
    let scene = Scene::with_points(25, &SIZES, 1);
    if rustix::process::geteuid().is_root() {
        // The superuser may do everything: run as nobody, from where nobody may.
        let folder = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        let program = folder.path().join("lifeboat");
        std::fs::copy(env!("CARGO_BIN_EXE_lifeboat"), &program).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(scene.folder.path(), mode).unwrap();
        let run = |path: &Path| {
            let run = Command::new(&program)
                .args(["--output", "json", "store", "status", text(path)])
                .uid(65534)
                .gid(65534)
                .current_dir("/")
                .output();
            Run::of(run.unwrap())
        };
        run(&scene.store).error(4);
    } else {
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&scene.store, mode(0o000)).unwrap();
        scene.run("store status", &[]).error(4);
        std::fs::set_permissions(&scene.store, mode(0o700)).unwrap();
    }
}

#[test]
fn an_image_that_qemu_has_open_is_in_use() {
    let scene = Scene::with_points(26, &SIZES, 1);
    let started = scene.run("store failover start", &[]).json();
    let image = started["disks"][0]["image"].as_str().unwrap();
    let socket = scene.beside("nbd");
    let vm = QemuNbd::serve(Path::new(image), &socket, &[]);
    scene.run("store failover commit", &["--yes"]).error(6);
    scene.run("store rescan", &[]).error(6);
    let error = scene.run("store failover revert", &["--yes"]).error(6);
    assert!(error["message"].as_str().unwrap().contains(image));
    drop(vm);
    scene.run("store failover revert", &["--yes"]).json();
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let scene = Scene::with_points(27, &SIZES, 1);
    let mut child = crate::support::program()
        .args(["store", "point", "list", text(&scene.store)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = Run::of(child.wait_with_output().unwrap());
    assert!(!run.stderr.contains("panicked"), "{run:?}");
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let run = crate::support::program()
        .args([
            "--output",
            "json",
            "store",
            "point",
            "list",
            text(&scene.store),
        ])
        .stdout(full)
        .output();
    let run = Run::of(run.unwrap());
    assert_eq!(run.code, 1);
    assert_eq!(parse(&run.stderr)["error"]["message"], "print the result");
}
