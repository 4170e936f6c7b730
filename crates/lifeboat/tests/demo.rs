//! `lifeboat demo` with the real program.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

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

#[test]
fn the_demo_finds_no_wrong_byte_and_leaves_what_it_is_told_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    let output = demo()
        .args(["--json", "--keep", "--dir"])
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
    let vm: u64 = report["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| number(disk, "size"))
        .sum();
    for comparison in comparisons {
        assert_eq!(number(comparison, "bytes"), vm, "{comparison}");
        assert!(comparison.get("first").is_none(), "{comparison}");
    }
    assert!(number(total, "files") > 1000, "{total}");

    the_whole_way_was_shown(&report);
    let compared = |what: &str| {
        comparisons
            .iter()
            .filter(|comparison| comparison["what"].as_str().unwrap().contains(what))
            .count()
    };
    assert_eq!(compared("over NBD"), 10);
    assert_eq!(compared("after the revert"), 10);
    assert_eq!(compared("disks committed at 7"), 1);
    assert_eq!(
        compared("after kill -9"),
        5 * report["kills"].as_array().unwrap().len()
    );

    assert_eq!(
        report["folder"].as_str().map(Path::new),
        Some(work.canonicalize().unwrap()).as_deref()
    );
    for (disk, size) in [("sda", 256 << 20), ("sdb", (96 << 20) + 1536)] {
        let head = work.join(format!("replica/disks/{disk}/head.raw"));
        assert_eq!(head.metadata().unwrap().len(), size);
        let original = work.join(format!("primary/{disk}.raw"));
        assert_eq!(original.metadata().unwrap().len(), size);
    }
}

fn the_whole_way_was_shown(report: &Value) {
    let cycles = report["cycles"].as_array().unwrap();
    assert_eq!(cycles.len(), 11);
    for (at, cycle) in cycles.iter().enumerate() {
        assert_eq!(number(cycle, "sequence"), at as u64 + 1);
        assert!(number(cycle, "changed_bytes") > 0, "{cycle}");
        assert!(number(cycle, "travelled_bytes") > 0, "{cycle}");
        assert_eq!(cycle.get("apply_ms").is_some(), at < 10, "{cycle}");
    }
    // What travels is what has changed: far less than the disks.
    let deltas = &cycles[1..];
    let largest = deltas.iter().map(|cycle| number(cycle, "travelled_bytes"));
    assert!(largest.max().unwrap() < 64 << 20);
    assert!(!report["kills"].as_array().unwrap().is_empty());
    assert!(number(report, "unreplicated_bytes") > 0);
    let failovers = report["failovers"].as_array().unwrap();
    let ends: Vec<(u64, &str)> = failovers
        .iter()
        .map(|failover| {
            let decision = failover["end"]["decision"].as_str().unwrap();
            (number(failover, "sequence"), decision)
        })
        .collect();
    assert_eq!(ends, [(11, "reverted"), (7, "committed")]);
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
    // The line of the first cycle: its recovery point is made, and reads what the head holds.
    lines
        .by_ref()
        .find(|line| line.trim_start().starts_with("1 "))
        .expect("the first cycle is shown");
    let last = (256 << 20) - 1;
    let head = std::fs::OpenOptions::new()
        .write(true)
        .open(work.join("replica/disks/sda/head.raw"))
        .unwrap();
    head.write_all_at(&[0x10], last).unwrap();
    let rest: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:#?}");
    let found = format!("disk sda, byte {last}: 0x10 where the guest wrote 0x00");
    let told = |what: &str| {
        let line = format!("{what}: {found}");
        rest.iter().any(|told| told.trim() == line)
    };
    assert!(told("point 1, over NBD"), "{rest:#?}");
    assert!(told("disks committed at 7"), "{rest:#?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&found), "{error}");
    // What is wrong stays, to be looked at.
    assert!(work.join("replica/disks/sda/head.raw").exists());
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
    assert!(error.contains("a --dir with a shorter path"), "{error}");
    assert!(!work.exists());
}

#[test]
fn an_interrupted_demo_takes_its_folder_away() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join("work");
    let mut child = demo()
        .arg("--dir")
        .arg(&work)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("Lifeboat demo"), "{first}");
    let child_id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(child_id, rustix::process::Signal::INT).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("interrupted"), "{error}");
    assert!(!work.exists());
}
