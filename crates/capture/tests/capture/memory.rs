//! Memory stays bounded, whatever the size of the disks and the number of changes.

use std::process::{Command, Output};

use lifeboat_capture::capture;
use lifeboat_nbd::{Client, ClientOptions, ContextName, DIRTY, Extent, ZERO};
use lifeboat_stream::Kind;

use super::replica::{PATIENCE, plan, source};
use super::shaped::{Map, Served, Shaped, everywhere, serve};

const THIS_TEST: &str = "memory::sixteen_million_extents_and_a_gigabyte_need_64_mib";

/// Names the scenario to a copy of this process, whose memory is its own.
const SCENARIO: &str = "LIFEBOAT_CAPTURE_MEMORY_SCENARIO";

/// Server and client together, with everything under way between them.
const ALLOWANCE_KIB: u64 = 64 << 10;

const DISK: u64 = 1 << 40;

const EXTENTS: u64 = 16 << 20;

const SCENARIOS: [(&str, fn()); 3] = [
    ("many extents", many_extents),
    ("a gigabyte of data", a_gigabyte),
    (CONTROL, collect_them_all),
];

/// Must need more, or the measurement proves nothing.
const CONTROL: &str = "collect all extents";

#[test]
fn sixteen_million_extents_and_a_gigabyte_need_64_mib() {
    if let Ok(name) = std::env::var(SCENARIO) {
        let scenario = SCENARIOS.iter().find(|(known, _)| *known == name).unwrap();
        let before = peak_kib();
        scenario.1();
        println!("scenario needs {} KiB", peak_kib() - before);
        return;
    }
    for (name, _) in SCENARIOS {
        let output = spawn(name);
        assert!(output.status.success(), "{name}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        let needed: u64 = text
            .split("scenario needs ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {output:?}"));
        assert_eq!(
            needed > ALLOWANCE_KIB,
            name == CONTROL,
            "{name}: {needed} KiB"
        );
    }
}

fn spawn(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", THIS_TEST, "--nocapture"])
        .env(SCENARIO, name)
        .output()
        .unwrap()
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse().ok())
        .expect("Linux says how much memory a process has used")
}

/// Of the first sectors every second one is dirty, then every second 64 MiB.
fn striped() -> Map {
    let border = EXTENTS * 512;
    Box::new(move |offset, length, limit| {
        let mut extents = Vec::new();
        let mut next = offset;
        while extents.len() < limit && next < offset + length {
            let unit = if next < border { 512 } else { 64 << 20 };
            let stripe = next / unit;
            let end = (stripe + 1) * unit;
            extents.push(Extent {
                offset: next,
                length: end - next,
                flags: if stripe % 2 == 1 { DIRTY } else { 0 },
            });
            next = end;
        }
        extents
    })
}

fn striped_disk() -> Served {
    serve(Shaped {
        size: DISK,
        minimum: 1,
        content: Box::new(|_, into| into.fill(0)),
        dirty: striped(),
        allocation: Some(everywhere(DISK, ZERO)),
        allocation_asked: Default::default(),
    })
}

fn many_extents() {
    let served = striped_disk();
    let plan = plan(Kind::Delta, vec![source("a", &served.uri, Some("m"))]);
    let captured = capture(&plan, std::io::sink(), &mut |_| {}).unwrap();
    let border = EXTENTS * 512;
    assert_eq!(captured.zero_bytes, border + (DISK - border) / 2);
}

fn a_gigabyte() {
    let size = 1 << 30;
    let served = serve(Shaped {
        size,
        minimum: 1,
        content: Box::new(|offset, into| {
            for (index, block) in into.chunks_mut(4096).enumerate() {
                block.fill(((offset / 4096 + index as u64) % 255) as u8 + 1);
            }
        }),
        dirty: everywhere(size, DIRTY),
        allocation: Some(everywhere(size, 0)),
        allocation_asked: Default::default(),
    });
    let plan = plan(Kind::Delta, vec![source("a", &served.uri, Some("m"))]);
    let captured = capture(&plan, std::io::sink(), &mut |_| {}).unwrap();
    assert_eq!(captured.data_bytes, size);
}

fn collect_them_all() {
    let served = striped_disk();
    let bitmap = ContextName::dirty_bitmap("m").unwrap();
    let options = ClientOptions {
        contexts: vec![bitmap.clone()],
        deadline: PATIENCE,
        ..ClientOptions::default()
    };
    let client = Client::connect(&served.uri, &options).unwrap();
    let all = client
        .collect_extents(&bitmap, 0, EXTENTS * 512, usize::MAX)
        .unwrap();
    assert_eq!(all.map(|list| list.len() as u64), Some(EXTENTS));
}
