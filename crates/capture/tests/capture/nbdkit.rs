//! Captures from nbdkit, with and without failures.

use lifeboat_capture::CaptureError;
use lifeboat_nbd::{Client, ClientOptions, NbdUri};
use lifeboat_stream::Kind;

use super::peers::Background;
use super::replica::{PATIENCE, plan, source, take};

fn read_all(uri: &NbdUri) -> Vec<u8> {
    let options = ClientOptions {
        deadline: PATIENCE,
        ..ClientOptions::default()
    };
    let client = Client::connect(uri, &options).unwrap();
    let mut bytes = vec![0; client.size() as usize];
    client.read(0, &mut bytes).unwrap();
    bytes
}

/// Captures a whole disk and compares. Gives the bytes that were read.
fn whole(arguments: &[&str]) -> u64 {
    let server = Background::nbdkit(arguments);
    let uri = server.uri("");
    let expected = read_all(&uri);
    let taken = take(&plan(Kind::Initial, vec![source("a", &uri, None)])).unwrap();
    let mut disks = [vec![0xee; expected.len()]];
    taken.apply(&mut disks);
    assert!(disks[0] == expected, "{arguments:?}");
    taken.captured.read_bytes
}

#[test]
fn whole_disks_are_captured_and_their_holes_are_not_read() {
    let size = 64 << 20;
    let read = whole(&["sparse-random", "64M", "percent=10", "seed=5"]);
    assert!(read < size / 2, "{read}");
    assert_eq!(whole(&["pattern", "3145728"]), 3 << 20);
}

#[test]
fn servers_that_know_no_maps_are_read_whole() {
    let all = 8 << 20;
    let sparse = ["sparse-random", "8M", "percent=30", "seed=6"];
    assert_eq!(whole(&[&["--no-sr"], &sparse[..]].concat()), all);
    assert_eq!(whole(&[&["--filter=noextents"], &sparse[..]].concat()), all);
}

#[test]
fn servers_with_large_blocks_are_asked_for_whole_blocks() {
    let read = whole(&[
        "--filter=blocksize-policy",
        "sparse-random",
        "8M",
        "percent=30",
        "seed=7",
        "blocksize-minimum=64k",
        "blocksize-preferred=64k",
        "blocksize-maximum=128k",
        "blocksize-error-policy=error",
    ]);
    assert_eq!(read % 65_536, 0);
}

#[test]
fn a_read_error_in_the_middle_fails_the_capture_and_says_where() {
    // One sector in the middle of the disk is bad.
    let server = Background::nbdkit(&[
        "eval",
        "get_size=echo 33554432",
        "can_extents=exit 3",
        "pread=if [ $4 -le 20000000 ] && [ $(($4 + $3)) -gt 20000000 ]; then echo 'EIO bad sector' >&2; exit 1; fi; head -c $3 /dev/zero | tr '\\0' x",
    ]);
    let error = take(&plan(
        Kind::Initial,
        vec![source("vda", &server.uri(""), None)],
    ));
    let error = error.unwrap_err();
    let CaptureError::Read { disk, source } = &error else {
        panic!("{error}")
    };
    assert_eq!(disk.as_str(), "vda");
    let text = source.to_string();
    assert!(
        text.starts_with("read at 19") && text.contains("EIO"),
        "{text}"
    );
}

#[test]
fn a_server_that_fails_now_and_then_fails_the_capture() {
    let server = Background::nbdkit(&[
        "--filter=error",
        "pattern",
        "256M",
        "error-pread=EIO",
        "error-pread-rate=20%",
    ]);
    let error = take(&plan(
        Kind::Initial,
        vec![source("a", &server.uri(""), None)],
    ))
    .unwrap_err();
    assert!(matches!(error, CaptureError::Read { .. }), "{error}");
}

#[test]
fn a_map_that_cannot_be_had_fails_the_capture() {
    let server = Background::nbdkit(&[
        "--filter=error",
        "sparse-random",
        "64M",
        "error-extents=EIO",
        "error-extents-rate=100%",
    ]);
    let error = take(&plan(
        Kind::Initial,
        vec![source("a", &server.uri(""), None)],
    ))
    .unwrap_err();
    assert!(matches!(error, CaptureError::Allocation { .. }), "{error}");
}

#[test]
fn a_server_that_dies_in_the_middle_fails_the_capture() {
    let server = Background::nbdkit(&["pattern", "1G"]);
    let plan = plan(Kind::Initial, vec![source("a", &server.uri(""), None)]);
    let mut server = Some(server);
    let outcome = lifeboat_capture::capture(&plan, std::io::sink(), &mut |progress| {
        if progress.position > 64 << 20 {
            drop(server.take());
        }
    });
    let error = outcome.unwrap_err();
    assert!(matches!(error, CaptureError::Read { .. }), "{error}");
    assert!(server.is_none());
}
