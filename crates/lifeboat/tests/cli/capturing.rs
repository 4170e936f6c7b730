//! Captures of disks that QEMU serves, sent through a pipe into a store.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lifeboat_harness::{Random, qemu_io, run_tool};
use serde_json::{Value, json};

use crate::qemu_nbd::QemuNbd;
use crate::serving::{Serving, write_certificates};
use crate::support::{Run, Scene, lifeboat_json, parse, program, text};

const SIZE: usize = 24 << 20;

/// A disk in a qcow2 image with a dirty bitmap, as a VM that is off, and its replica.
struct Primary {
    folder: tempfile::TempDir,
    random: Random,
    /// What the guest wrote.
    disk: Vec<u8>,
}

impl Primary {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let primary = Self {
            folder,
            random: Random::new(seed),
            disk: vec![0; SIZE],
        };
        let (image, size) = (primary.path("vm.qcow2"), SIZE.to_string());
        tool(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(&image), &size],
        );
        let store = primary.path("store");
        let disk = format!("sda={SIZE}");
        let state = primary.path("state.json");
        let arguments = [
            "store",
            "init",
            text(&store),
            "--disk",
            &disk,
            "--capture-state",
            text(&state),
        ];
        lifeboat_json(&arguments).json();
        primary
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn state(&self) -> Value {
        parse(&std::fs::read_to_string(self.path("state.json")).unwrap())
    }

    /// Writes one run of the same byte, which neither side can guess.
    fn write(&mut self, offset: usize, length: usize) {
        let byte = 1 + self.random.below(254) as u8;
        self.disk[offset..offset + length].fill(byte);
        let write = format!("write -P {byte} {offset} {length}");
        qemu_io("qcow2", &self.path("vm.qcow2"), &[write]).unwrap();
    }

    /// Begins to note what changes from now on.
    fn add_bitmap(&self, name: &str) {
        let image = self.path("vm.qcow2");
        let options = ["bitmap", "--add", "-g", "64k", text(&image), name];
        tool("qemu-img", &options);
    }

    /// Serves the disk read-only.
    fn export(&self, options: &[&str]) -> QemuNbd {
        let mut all = vec!["-r"];
        all.extend(options);
        QemuNbd::serve(&self.path("vm.qcow2"), &self.path("socket"), &all)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///sda?socket={}", text(&self.path("socket")))
    }

    /// The arguments of a capture.
    fn capture(&self, more: &[&str]) -> Command {
        let mut command = program();
        command
            .args(["--output", "json", "delta", "capture", "--state"])
            .arg(self.path("state.json"))
            .args(["--from", &self.uri()])
            .args(more);
        command
    }

    /// Captures into the store through a pipe; answers with the receipt's file.
    fn capture_into_store(&self, more: &[&str]) -> PathBuf {
        let mut capture = self
            .capture(more)
            .args(["--out", "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let receive = program()
            .args(["--output", "json", "store", "receive"])
            .arg(self.path("store"))
            .stdin(capture.stdout.take().unwrap())
            .output()
            .unwrap();
        Run::of(capture.wait_with_output().unwrap()).done();
        let receipt = self.path("receipt.json");
        let printed = Run::of(receive).json().to_string();
        std::fs::write(&receipt, printed).unwrap();
        receipt
    }

    /// Applies what was received and compares the newest point with what the guest wrote.
    fn compare(&self, sequence: u64) {
        let store = self.path("store");
        lifeboat_json(&["store", "apply", text(&store)]).json();
        let (out, number) = (self.path("export.raw"), sequence.to_string());
        let arguments = [
            "store",
            "point",
            "export",
            text(&store),
            &number,
            "--disk",
            "sda",
            "--out",
            text(&out),
        ];
        lifeboat_json(&arguments).json();
        assert!(std::fs::read(&out).unwrap() == self.disk);
        std::fs::remove_file(out).unwrap();
    }
}

fn tool(name: &str, arguments: &[&str]) {
    let done = run_tool(name, arguments).unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{name} {arguments:?}: {said}");
}

fn read(path: &Path) -> Value {
    parse(&std::fs::read_to_string(path).unwrap())
}

#[test]
fn a_disk_that_qemu_serves_arrives_whole_and_then_by_what_its_bitmap_marks() {
    let mut primary = Primary::new(60);
    // More than any pipe or buffer takes at once.
    primary.write(0, 9 << 20);
    primary.write((12 << 20) + 512, 70_144);
    primary.add_bitmap("cp1");
    let export = primary.export(&[]);
    let receipt = primary.capture_into_store(&["--compression", "none"]);
    drop(export);
    assert_eq!(primary.state()["drawn"], 1);
    assert_eq!(read(&receipt)["sequence"], 1);
    primary.compare(1);

    primary.write(4096, 4096);
    primary.write((20 << 20) - 512, 1024);
    let export = primary.export(&["-B", "cp1"]);
    let delta = primary.path("2.delta");
    let options = ["--receipt", text(&receipt), "--bitmap", "sda=cp1"];
    let captured = primary
        .capture(&options)
        .args(["--out", text(&delta), "--consistency", "application"])
        .output();
    let captured = Run::of(captured.unwrap()).json();
    drop(export);
    assert_eq!(captured["sequence"], 2);
    assert_eq!(captured["kind"], "delta");
    assert_eq!(captured["base"], 1);
    assert!(captured["dirty_bytes"].as_u64().unwrap() <= 4 * 65_536);
    assert_eq!(primary.state()["receipt"]["id"], read(&receipt)["id"]);

    let inspected = lifeboat_json(&["delta", "inspect", text(&delta)]).json();
    assert_eq!(inspected["id"], captured["id"]);
    assert_eq!(inspected["base"]["id"], read(&receipt)["id"]);
    assert_eq!(inspected["consistency_level"], "application");
    assert_eq!(
        inspected["stream_bytes"],
        std::fs::metadata(&delta).unwrap().len()
    );
    let store = primary.path("store");
    lifeboat_json(&["store", "receive", text(&store), text(&delta)]).json();
    primary.compare(2);
}

#[test]
fn a_number_is_drawn_before_the_export_is_reached_and_never_again() {
    let primary = Primary::new(61);
    let delta = primary.path("delta");
    let capture = |more: &[&str]| {
        let run = primary.capture(more).args(["--out", text(&delta)]).output();
        Run::of(run.unwrap())
    };
    // Nobody serves there.
    capture(&[]).error(6);
    assert_eq!(primary.state()["drawn"], 1);
    assert!(!delta.exists());

    // What is refused at once draws no number.
    let error = capture(&["--bitmap", "cp1"]).error(3);
    assert!(error["hint"].as_str().unwrap().contains("without --bitmap"));
    capture(&["--bitmap", "sdb=cp1"]).error(2);
    assert_eq!(primary.state()["drawn"], 1);

    let export = primary.export(&[]);
    assert_eq!(capture(&[]).json()["sequence"], 2);
    capture(&[]).error(3);
    assert_eq!(primary.state()["drawn"], 2);
    drop(export);
    assert!(!primary.path("delta.part").exists());
}

#[test]
fn a_bitmap_that_the_server_does_not_have_never_means_no_change() {
    let primary = Primary::new(62);
    let export = primary.export(&[]);
    let receipt = primary.capture_into_store(&[]);
    let delta = primary.path("2.delta");
    let options = ["--receipt", text(&receipt), "--bitmap", "cp1"];
    let run = primary
        .capture(&options)
        .args(["--out", text(&delta)])
        .output();
    Run::of(run.unwrap()).error(3);
    assert!(!delta.exists());
    drop(export);
}

#[test]
fn a_receipt_that_does_not_belong_here_is_refused_and_not_saved() {
    let primary = Primary::new(63);
    let export = primary.export(&[]);
    let good = read(&primary.capture_into_store(&[]));
    let receipt = primary.path("other.json");
    let delta = primary.path("2.delta");
    let capture = || {
        let options = ["--receipt", text(&receipt), "--out", text(&delta)];
        Run::of(primary.capture(&options).output().unwrap())
    };
    let with = |field: &str, value: Value| {
        let mut other = good.clone();
        other[field] = value;
        std::fs::write(&receipt, other.to_string()).unwrap();
    };
    with("sequence", json!(7));
    capture().error(3);
    with("id", json!("00".repeat(32)));
    capture().error(3);
    with("lineage", json!("00".repeat(16)));
    capture().error(3);
    std::fs::write(&receipt, "no receipt").unwrap();
    capture().error(1);
    std::fs::remove_file(&receipt).unwrap();
    capture().error(5);
    assert_eq!(primary.state()["receipt"], Value::Null);
    assert_eq!(primary.state()["drawn"], 1);

    with("repeated", json!(true));
    capture().json();
    assert_eq!(primary.state()["receipt"]["sequence"], 1);
    drop(export);
}

#[test]
fn a_receiver_that_dies_fails_the_capture() {
    let mut primary = Primary::new(64);
    primary.write(0, 9 << 20);
    let export = primary.export(&[]);
    let mut capture = primary
        .capture(&["--compression", "none", "--out", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(capture.stdout.take());
    Run::of(capture.wait_with_output().unwrap()).error(1);
    drop(export);
    let state = primary.state();
    assert_eq!(
        (&state["drawn"], &state["captured"]),
        (&json!(1), &json!([]))
    );
}

#[test]
fn a_capture_over_tls_shows_its_certificate_and_checks_the_servers() {
    let source = Scene::with_points(65, &[SIZE as u64], 1);
    let pki = source.beside("pki");
    std::fs::create_dir(&pki).unwrap();
    write_certificates(&pki);
    let file = |name: &str| pki.join(name).to_str().unwrap().to_owned();
    let ca = file("ca-cert.pem");
    let (cert, key) = (file("server-cert.pem"), file("server-key.pem"));
    let options = [
        "1",
        "--tcp",
        "127.0.0.1:0",
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-ca",
        &ca,
    ];
    let serving = Serving::start(&source, &options);
    let uri = serving.exports[0]["uri"].as_str().unwrap();
    let from = format!("sda={uri}");

    let primary = Primary::new(65);
    let delta = primary.path("delta");
    let capture = |more: &[&str]| {
        let state = primary.path("state.json");
        let mut arguments = vec!["delta", "capture", "--state", text(&state)];
        arguments.extend(["--from", &from, "--out", text(&delta)]);
        arguments.extend(more);
        lifeboat_json(&arguments)
    };
    let (cert, key) = (file("client-cert.pem"), file("client-key.pem"));
    let own = ["--tls-cert", &cert, "--tls-key", &key, "--tls-ca", &ca];
    capture(&[]).error(6);
    capture(&["--tls-ca", &ca, "--tls-server-name", "localhost"]).error(6);
    // The certificate names localhost and no address.
    capture(&own).error(6);
    let mut right = own.to_vec();
    right.extend(["--tls-server-name", "localhost"]);
    assert_eq!(capture(&right).json()["sequence"], 4);
    serving.stop().done();

    let store = primary.path("store");
    lifeboat_json(&["store", "receive", text(&store), text(&delta)]).json();
    let mut primary = primary;
    primary.disk = source.shadow.disks()[0].clone();
    primary.compare(4);
}
