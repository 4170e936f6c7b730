//! Our client against qemu-nbd, qemu-storage-daemon and nbdkit.

use std::time::Duration;

use lifeboat_nbd::{
    Client, ClientOptions, ConnectError, ContextName, DIRTY, Errno, Extent, Piece, RequestError,
    ZERO, export_info, list_exports,
};
use serde_json::{Value, json};

use super::memory::{options, pattern, sparse, with_contexts};
use super::peers::{Background, Qmp, at, json_output, nbdkit, output, qemu_nbd};

fn read_all(client: &Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    client
        .read_ranges([(0, client.size())], 16, |offset, piece| {
            assert_eq!(offset, bytes.len() as u64);
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(data),
                Piece::Hole { length } => {
                    bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 0);
                }
            }
            Ok::<(), RequestError>(())
        })
        .unwrap();
    bytes
}

fn map(client: &Client, context: &str) -> Vec<Extent> {
    client
        .extents(&context.parse().unwrap(), 0, client.size())
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap()
}

/// Neighbors with the same flags as one, so that maps can be compared.
fn merged(extents: impl IntoIterator<Item = (u64, u64, u64)>) -> Vec<(u64, u64, u64)> {
    let mut merged: Vec<(u64, u64, u64)> = Vec::new();
    for (offset, length, flags) in extents {
        match merged.last_mut() {
            Some(last) if last.2 == flags => last.1 += length,
            _ => merged.push((offset, length, flags)),
        }
    }
    merged
}

fn nbdinfo_map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let map = json_output("nbdinfo", &[&format!("--map={context}"), "--json", uri]);
    let number = |value: &Value| value.as_u64().unwrap();
    merged(map.as_array().unwrap().iter().map(|extent| {
        (
            number(&extent["offset"]),
            number(&extent["length"]),
            number(&extent["type"]),
        )
    }))
}

fn triples(extents: &[Extent]) -> Vec<(u64, u64, u64)> {
    merged(extents.iter().map(|e| (e.offset, e.length, e.flags)))
}

#[test]
fn qemu_nbd_raw_is_read_and_its_holes_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sparse(5 << 20);
    std::fs::write(folder.path().join("raw"), &bytes).unwrap();
    let server = qemu_nbd(
        folder,
        &[
            "-r",
            "-x",
            "d",
            "-f",
            "raw",
            "--detect-zeroes=off",
            "{}/raw",
        ],
    );
    let uri = server.uri("d");
    let client = Client::connect(&uri, &with_contexts(&["base:allocation"])).unwrap();
    assert!(client.read_only());
    assert_eq!(client.contexts().count(), 1);
    assert!(read_all(&client) == bytes);
    assert_eq!(
        triples(&map(&client, "base:allocation")),
        nbdinfo_map(&uri.to_string(), "base:allocation")
    );
    assert_eq!(list_exports(&uri, &options()).unwrap(), ["d"]);
    let info = export_info(&uri, &options()).unwrap();
    assert_eq!(info.size, bytes.len() as u64);
    assert!(info.contexts.iter().any(|name| name == "base:allocation"));
    let absent = Client::connect(&server.uri("e"), &options()).unwrap_err();
    assert!(matches!(absent, ConnectError::Export { .. }), "{absent}");
}

#[test]
fn qemu_nbd_bitmaps_of_any_name_and_several_contexts_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let image = at(folder.path(), "i.qcow2");
    output("qemu-img", &["create", "-q", "-f", "qcow2", &image, "8G"]);
    for command in ["write -P 1 0 1M", "write -P 2 5G 64k"] {
        output("qemu-io", &["-f", "qcow2", "-c", command, &image]);
    }
    let bitmap = "cp 0/a:b";
    output(
        "qemu-img",
        &[
            "bitmap", "--add", "-g", "64k", "-f", "qcow2", &image, bitmap,
        ],
    );
    for command in [
        "write -P 3 128k 64k",
        "write -z 5G 128k",
        "write -P 4 8388544k 64k",
    ] {
        output("qemu-io", &["-f", "qcow2", "-c", command, &image]);
    }
    let server = qemu_nbd(
        folder,
        &["-r", "-f", "qcow2", "-A", "-B", bitmap, "{}/i.qcow2"],
    );
    let uri = server.uri("");
    let name = format!("qemu:dirty-bitmap:{bitmap}");
    let names = ["base:allocation", &name, "qemu:allocation-depth"];
    let client = Client::connect(&uri, &with_contexts(&names)).unwrap();
    assert_eq!(client.contexts().count(), 3);

    let k = 1024;
    let g = k * k * k;
    assert_eq!(
        triples(&map(&client, &name)),
        [
            (0, 128 * k, 0),
            (128 * k, 64 * k, DIRTY),
            (192 * k, 5 * g - 192 * k, 0),
            (5 * g, 128 * k, DIRTY),
            (5 * g + 128 * k, 3 * g - 192 * k, 0),
            (8 * g - 64 * k, 64 * k, DIRTY),
        ]
    );
    for context in names {
        assert_eq!(
            triples(&map(&client, context)),
            nbdinfo_map(&uri.to_string(), context),
            "{context}"
        );
    }
    // A range that begins and ends anywhere.
    let part: Vec<_> = client
        .extents(&name.parse().unwrap(), 131_072 + 512, 70_000 / 512 * 512)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        part.first().map(|e| (e.offset, e.flags)),
        Some((131_584, DIRTY))
    );
    assert_eq!(part.last().map(Extent::end), Some(131_584 + 69_632));
    let zero = client
        .extents(&ContextName::allocation(), 5 * g, 128 * k)
        .unwrap();
    assert!(zero.map(Result::unwrap).all(|e| e.flags & ZERO != 0));
}

#[test]
fn qemu_storage_daemon_with_a_live_bitmap_over_qmp() {
    let folder = tempfile::tempdir().unwrap();
    let image = at(folder.path(), "i.qcow2");
    output("qemu-img", &["create", "-q", "-f", "qcow2", &image, "64M"]);
    let server = Background::start_in(folder, "qemu-storage-daemon", |folder| {
        let of = |text: &str| text.replace("{}", folder.to_str().unwrap());
        vec![
            "--daemonize".to_owned(),
            "--pidfile".to_owned(),
            at(folder, "pid"),
            "--chardev".to_owned(),
            of("socket,id=q,path={}/q,server=on,wait=off"),
            "--monitor".to_owned(),
            "chardev=q".to_owned(),
            "--blockdev".to_owned(),
            of("driver=file,node-name=f,filename={}/i.qcow2,discard=unmap"),
            "--blockdev".to_owned(),
            "driver=qcow2,node-name=disk0,file=f,discard=unmap".to_owned(),
            "--nbd-server".to_owned(),
            of("addr.type=unix,addr.path={}/s"),
            "--export".to_owned(),
            "type=nbd,id=w,node-name=disk0,name=w,writable=on".to_owned(),
        ]
    });
    let mut qmp = Qmp::connect(&server.folder.path().join("q"));
    let writer = Client::connect(&server.uri("w"), &options()).unwrap();
    assert!(!writer.read_only() && writer.can_write_zeroes() && writer.can_trim());
    let bytes = pattern(1 << 20);
    writer.write(0, &bytes).unwrap();
    writer.flush().unwrap();
    qmp.ask(
        "block-dirty-bitmap-add",
        &json!({"node": "disk0", "name": "cp0"}),
    );
    writer.write_durably(3 << 20, &bytes[..65_536]).unwrap();
    writer.write_zeroes(512 << 10, 64 << 10).unwrap();
    writer.trim(32 << 20, 1 << 20).unwrap();
    writer.flush().unwrap();
    qmp.ask(
        "block-dirty-bitmap-disable",
        &json!({"node": "disk0", "name": "cp0"}),
    );
    qmp.ask(
        "block-export-add",
        &json!({"type": "nbd", "id": "r", "node-name": "disk0", "name": "r",
            "bitmaps": ["cp0"]}),
    );
    let names = ["qemu:dirty-bitmap:cp0", "base:allocation"];
    let reader = Client::connect(&server.uri("r"), &with_contexts(&names)).unwrap();
    let dirty: Vec<_> = map(&reader, names[0])
        .into_iter()
        .filter(|extent| extent.flags & DIRTY != 0)
        .map(|extent| (extent.offset, extent.length))
        .collect();
    assert_eq!(
        dirty,
        [
            (512 << 10, 64 << 10),
            (3 << 20, 64 << 10),
            (32 << 20, 1 << 20)
        ]
    );
    let mut expected = bytes;
    expected[512 << 10..576 << 10].fill(0);
    let mut read = vec![1; 1 << 20];
    reader.read(0, &mut read).unwrap();
    assert!(read == expected);
    assert!(matches!(
        reader.write(0, &[1]),
        Err(RequestError::ReadOnly { .. })
    ));
}

#[test]
fn nbdkit_memory_keeps_what_is_written() {
    let server = nbdkit(&["memory", "4M"]);
    let client = Client::connect(&server.uri(""), &with_contexts(&["base:allocation"])).unwrap();
    let bytes = pattern(100_000);
    client.write_durably(1_000_001, &bytes).unwrap();
    client.write_zeroes(1_010_000, 5000).unwrap();
    client.trim(3 << 20, 4096).unwrap();
    client.flush().unwrap();
    let mut expected = bytes;
    expected[9999..14_999].fill(0);
    let mut read = vec![0; expected.len()];
    client.read(1_000_001, &mut read).unwrap();
    assert!(read == expected);
    let extents = map(&client, "base:allocation");
    assert!(extents.iter().any(|e| e.flags & ZERO == 0));
    assert_eq!(extents.last().map(Extent::end), Some(4 << 20));
}

#[test]
fn nbdkit_pattern_beyond_4_gib_is_addressed_right() {
    let server = nbdkit(&["pattern", "20G"]);
    let client = Client::connect(&server.uri(""), &options()).unwrap();
    // The plugin's data are the offsets themselves.
    for offset in [0, (4 << 30) - 512, 4 << 30, (20 << 30) - 4096] {
        let mut read = [0; 4096];
        let read = &mut read[..4096.min(usize::try_from((20 << 30) - offset).unwrap())];
        client.read(offset, read).unwrap();
        for (index, word) in read.chunks_exact(8).enumerate() {
            let expected = offset + 8 * index as u64;
            assert_eq!(u64::from_be_bytes(word.try_into().unwrap()), expected);
        }
    }
}

#[test]
fn nbdkit_sparse_random_has_the_map_that_nbdinfo_sees() {
    let server = nbdkit(&["sparse-random", "6G", "percent=1", "seed=7"]);
    let uri = server.uri("");
    let client = Client::connect(&uri, &with_contexts(&["base:allocation"])).unwrap();
    assert_eq!(
        triples(&map(&client, "base:allocation")),
        nbdinfo_map(&uri.to_string(), "base:allocation")
    );
}

#[test]
fn nbdkit_errors_are_told_and_survived() {
    let server = nbdkit(&[
        "--filter=error",
        "memory",
        "1M",
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
    ]);
    let client = Client::connect(&server.uri(""), &options()).unwrap();
    for _ in 0..3 {
        let error = client.write(0, &[1; 512]).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NoSpace), "{error}");
        client.read(0, &mut [0; 512]).unwrap();
    }
}

#[test]
fn nbdkit_block_sizes_are_kept() {
    let server = nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=512",
        "blocksize-preferred=4096",
        "blocksize-maximum=64k",
        "blocksize-error-policy=error",
    ]);
    let client = Client::connect(&server.uri(""), &options()).unwrap();
    let sizes = client.block_sizes();
    assert_eq!((sizes.minimum, sizes.maximum), (512, 65_536));
    let bytes = pattern(1 << 20);
    client.write(0, &bytes).unwrap();
    assert!(read_all(&client) == bytes);
    let mut whole = vec![0; 1 << 20];
    client.read(0, &mut whole).unwrap();
    assert!(whole == bytes);
    assert!(matches!(
        client.read(1, &mut [0; 512]),
        Err(RequestError::Misaligned { minimum: 512, .. })
    ));
}

#[test]
fn nbdkit_that_takes_too_long_meets_the_deadline() {
    let server = nbdkit(&["--filter=delay", "memory", "1M", "delay-read=60"]);
    let impatient = ClientOptions {
        deadline: Duration::from_millis(500),
        ..ClientOptions::default()
    };
    let client = Client::connect(&server.uri(""), &impatient).unwrap();
    let error = client.read(0, &mut [0; 512]).unwrap_err();
    assert!(matches!(error, RequestError::Lost { .. }), "{error}");
}

#[test]
fn nbdkit_with_simple_replies_only_is_read_but_has_no_contexts() {
    let server = nbdkit(&["--no-sr", "pattern", "1M"]);
    let client = Client::connect(&server.uri(""), &options()).unwrap();
    let bytes = read_all(&client);
    assert_eq!(bytes[8..16], 8u64.to_be_bytes());
    assert_eq!(bytes.len(), 1 << 20);
    let error = Client::connect(&server.uri(""), &with_contexts(&["base:allocation"])).unwrap_err();
    assert!(matches!(error, ConnectError::SimpleRepliesOnly), "{error}");
}

#[test]
fn nbdkit_eval_exports_are_opened_by_name() {
    let server = nbdkit(&[
        "eval",
        "list_exports=printf 'NAMES\\nfirst\\nsecond\\n'",
        "open=echo \"$3\"",
        "get_size=echo 8192",
        "pread=printf '%*s' $3 \"\" | tr ' ' \"$2\"",
    ]);
    let uri = server.uri("second");
    assert_eq!(list_exports(&uri, &options()).unwrap(), ["first", "second"]);
    let client = Client::connect(&uri, &options()).unwrap();
    assert_eq!(read_all(&client), vec![b's'; 8192]);
}
