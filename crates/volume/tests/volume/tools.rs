//! Stock tools as clients.

use std::process::Command;

use serde_json::Value;

use super::fixture::{Fixture, PLENTY, read_all};

/// Runs a program that must succeed, and gives what it printed.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {program} ({error}): these tests need qemu-utils and libnbd-bin")
        });
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn nbdinfo_map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let text = output("nbdinfo", &[&format!("--map={context}"), "--json", uri]);
    let map: Value = serde_json::from_str(&text).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let extents = map.as_array().unwrap().iter();
    extents
        .map(|e| {
            (
                number(&e["offset"]),
                number(&e["length"]),
                number(&e["type"]),
            )
        })
        .collect()
}

#[test]
fn qemu_writes_and_reads_a_volume_and_its_view() {
    let fixture = Fixture::new(&[("a", 8 << 20)], PLENTY);
    fixture.begin_tracking();
    let live = fixture.uri("a").to_string();
    for command in [
        "write -P 1 0 1M",
        "write -P 2 3M 64k",
        "write -z 512k 64k",
        "discard 0 128k",
        "flush",
    ] {
        output(
            "qemu-io",
            &["-f", "raw", "-d", "unmap", "-c", command, &live],
        );
    }
    let before = read_all(&fixture.client("a")).unwrap();
    let _view = fixture.volume.freeze().unwrap();
    output("qemu-io", &["-f", "raw", "-c", "write -P 9 0 4M", &live]);

    let frozen = fixture.uri("a@frozen").to_string();
    let copy = fixture.folder.path().join("copy");
    let copy = copy.to_str().unwrap();
    output(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &frozen, copy],
    );
    assert!(std::fs::read(copy).unwrap() == before);
    std::fs::remove_file(copy).unwrap();
    output("nbdcopy", &[&frozen, copy]);
    assert!(std::fs::read(copy).unwrap() == before);

    let (k, m) = (1 << 10, 1 << 20);
    assert_eq!(
        nbdinfo_map(&frozen, "qemu:dirty-bitmap:lifeboat"),
        [
            (0, m, 1),
            (m, 2 * m, 0),
            (3 * m, 64 * k, 1),
            (3 * m + 64 * k, 5 * m - 64 * k, 0)
        ]
    );
    let holes: Vec<_> = nbdinfo_map(&frozen, "base:allocation")
        .into_iter()
        .filter(|(_, _, flags)| *flags == 3)
        .map(|(offset, length, _)| (offset, length))
        .collect();
    assert_eq!(
        holes,
        [
            (0, 128 * k),
            (512 * k, 64 * k),
            (m, 2 * m),
            (3 * m + 64 * k, 5 * m - 64 * k)
        ]
    );
}

#[test]
fn qemu_does_not_open_an_image_that_is_served() {
    let fixture = Fixture::new(&[("a", 1 << 20)], PLENTY);
    let path = fixture.folder.path().join("a.raw");
    let opened = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512"])
        .arg(path)
        .output()
        .unwrap();
    assert!(!opened.status.success());
    let said = String::from_utf8_lossy(&opened.stderr).into_owned();
    assert!(said.contains("lock"), "{said}");
}
