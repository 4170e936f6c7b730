//! Memory does not grow with what travels.

use std::io::{self, Read};

use crate::calls::pair;
use crate::support::{Scripted, delta_place, failed, receipt};

const MIB: usize = 1 << 20;

/// Memory of this process that is resident, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// One transfer, with a reader that is as slow as `pause` says.
fn transfer(length: u64, pause: fn()) -> usize {
    let host = Scripted::on_delta(move |_, place, body| {
        let mut buffer = vec![0; MIB];
        let mut all = 0;
        loop {
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => all += read as u64,
                Err(error) => return Err(failed(&error)),
            }
            pause();
        }
        assert_eq!(all, length);
        Ok(receipt(place))
    });
    let pair = pair(host);
    pair.link
        .put_delta(delta_place(), &mut io::repeat(7).take(32 << 20))
        .ok();
    let before = resident();
    pair.link
        .put_delta(delta_place(), &mut io::repeat(7).take(length))
        .unwrap();
    resident() - before
}

#[test]
fn a_gibibyte_travels_in_a_few_mebibytes_of_memory() {
    let grown = transfer(1 << 30, || {});
    assert!(grown < 24 * MIB, "{} MiB", grown / MIB);
}

#[test]
fn a_host_that_reads_slower_than_the_network_does_not_gather_a_backlog() {
    let grown = transfer(256 << 20, std::thread::yield_now);
    assert!(grown < 24 * MIB, "{} MiB", grown / MIB);
}
