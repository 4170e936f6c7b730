//! `lifeboat demo` with the real program.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Both disks of the VM together, in bytes.
const VM_BYTES: u64 = (128 << 20) + (64 << 20) + 1536;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.arg("demo").stdin(Stdio::null());
    command
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}\nout: {}\nerr: {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn number(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}

/// Processes that have the folder in their arguments, as daemons of its hosts have.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|arguments| String::from_utf8_lossy(&arguments).replace('\0', " "))
        .filter(|arguments| arguments.contains(folder) && arguments.contains("serve"))
        .collect()
}

#[test]
fn the_drill_loses_nothing_that_was_promised_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    let output = demo()
        .args(["--json", "--dir"])
        .arg(&work)
        .output()
        .unwrap();
    let report = json(&output);
    assert!(output.status.success(), "{report:#}");

    let total = &report["total"];
    assert_eq!(number(total, "wrong_bytes"), 0);
    assert_eq!(number(total, "failed"), 0);
    let comparisons = report["comparisons"].as_array().unwrap();
    assert_eq!(number(total, "comparisons"), comparisons.len() as u64);
    assert_eq!(comparisons.len(), 12);
    for comparison in comparisons {
        assert_eq!(number(comparison, "bytes"), VM_BYTES, "{comparison}");
        assert!(number(comparison, "requests") > 0, "{comparison}");
        assert!(comparison.get("first").is_none(), "{comparison}");
    }
    let proofs = report["proofs"].as_array().unwrap();
    assert_eq!(proofs.len(), 12);
    for proof in proofs {
        assert_eq!(proof["holds"], true, "{proof}");
    }
    the_whole_way_was_shown(&report);

    assert!(report.get("folder").is_none());
    assert!(!work.exists());
    assert_eq!(processes_of(&work), Vec::<String>::new());
}

fn the_whole_way_was_shown(report: &Value) {
    let cycles = report["cycles"].as_array().unwrap();
    assert_eq!(cycles.len(), 4);
    for cycle in cycles {
        assert!(number(cycle, "wire_bytes") > 0, "{cycle}");
        assert!(number(cycle, "wire_bytes") < VM_BYTES / 4, "{cycle}");
    }
    let ends: Vec<(&str, &str)> = report["failovers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failover| {
            let text = |value: &'_ Value| value.as_str().unwrap().to_owned();
            let (to, end) = (&failover["to"], &failover["end"]["decision"]);
            assert!(failover["rto_ms"].as_f64().unwrap() > 0.0, "{}", text(to));
            (to.as_str().unwrap(), end.as_str().unwrap())
        })
        .collect();
    let expected = [
        ("beta.test", "reverted"),
        ("beta.test", "committed_running"),
        ("alpha.test", "committed_off"),
        ("beta.test", "reversed"),
    ];
    assert_eq!(ends, expected);
    let failovers = report["failovers"].as_array().unwrap();
    // The burst that the first host died of was lost, and nothing in the planned failover.
    assert!(number(&failovers[1]["lost"], "bytes") > number(&failovers[0]["lost"], "bytes"));
    assert_eq!(number(&failovers[3]["lost"], "requests"), 0);
    let ways: Vec<&str> = report["reversals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reversal| {
            assert!(number(reversal, "wire_bytes") < VM_BYTES, "{reversal}");
            reversal["by"].as_str().unwrap()
        })
        .collect();
    assert_eq!(ways, ["maps", "digests", "maps"]);
}

#[test]
fn a_byte_that_is_changed_behind_the_replicas_back_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    let mut child = demo()
        .arg("--dir")
        .arg(&work)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    lines
        .by_ref()
        .find(|line| line.starts_with("Initial copy"))
        .expect("the initial copy is shown");
    flip_the_last_byte(&work);
    let rest: Vec<String> = lines
        .by_ref()
        .take_while(|line| !line.contains("test failover while replication goes on"))
        .collect();
    let child_id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(child_id, rustix::process::Signal::INT).unwrap();
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:#?}");
    let error = String::from_utf8(output.stderr).unwrap();
    let found = format!("disk sda, byte {}", (128 << 20) - 1);
    assert!(error.contains(&found), "{error}");
    // What is wrong stays, to be looked at; no process does.
    assert!(work.join("beta/daemon.log").exists());
    assert_eq!(processes_of(&work), Vec::<String>::new());
}

/// Changes the last byte of the replica's first disk.
fn flip_the_last_byte(work: &Path) {
    let replicas = std::fs::read_dir(work.join("beta/replicas")).unwrap();
    let replica = replicas.map(|entry| entry.unwrap().path()).next().unwrap();
    let head = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(replica.join("disks/sda/head.raw"))
        .unwrap();
    let last = (128 << 20) - 1;
    let mut byte = [0];
    head.read_exact_at(&mut byte, last).unwrap();
    head.write_all_at(&[byte[0] ^ 0x10], last).unwrap();
}

#[test]
fn a_folder_that_is_not_empty_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("precious"), "mine").unwrap();
    for json in [["--dir"].as_slice(), &["--json", "--dir"]] {
        let output = demo().args(json).arg(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(3));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("is not empty"), "{error}");
        let is_json = serde_json::from_str::<Value>(&error).is_ok();
        assert_eq!(is_json, json.len() == 2, "{error}");
    }
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["precious"]);
}

#[test]
fn a_folder_whose_sockets_would_have_too_long_a_path_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("d".repeat(120));
    let output = demo().arg("--dir").arg(&work).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("choose a --dir of at most"), "{error}");
    assert!(!work.exists());
}

#[test]
fn an_interrupted_demo_kills_its_daemons_and_takes_its_folder_away() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    let mut child = demo()
        .arg("--dir")
        .arg(&work)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    lines
        .by_ref()
        .find(|line| line.starts_with("VM web runs"))
        .expect("the VM is shown");
    assert_eq!(processes_of(&work).len(), 2);
    let child_id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(child_id, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("interrupted"), "{error}");
    assert!(!work.exists());
    assert_eq!(processes_of(&work), Vec::<String>::new());
}
