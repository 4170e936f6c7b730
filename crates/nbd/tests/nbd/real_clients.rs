//! nbdcopy, nbdinfo, qemu-img and qemu-io against our server.

use std::sync::Arc;

use lifeboat_nbd::Export;
use serde_json::Value;

use super::memory::{Call, Memory, Served, pattern, serve, sparse};
use super::peers::{at, json_output, output, run};

fn served(bytes: &[u8]) -> Served {
    serve(Arc::new(Memory::read_only(bytes.to_vec())))
}

#[test]
fn nbdcopy_reads_the_export() {
    let bytes = sparse(20 << 20);
    let served = served(&bytes);
    let target = at(served.folder.path(), "copy");
    for connections in ["1", "4"] {
        output(
            "nbdcopy",
            &["-C", connections, &served.uri.to_string(), &target],
        );
        assert!(std::fs::read(&target).unwrap() == bytes);
    }
}

#[test]
fn nbdcopy_writes_the_export() {
    let memory = Arc::new(Memory::writable(pattern(8 << 20)));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let bytes = sparse(8 << 20);
    let source = at(served.folder.path(), "source");
    std::fs::write(&source, &bytes).unwrap();
    output("nbdcopy", &["--flush", &source, &served.uri.to_string()]);
    assert!(memory.bytes() == bytes);
    assert_eq!(memory.calls.lock().unwrap().last(), Some(&Call::Flush));
}

#[test]
fn nbdinfo_sees_both_maps_and_the_list() {
    let memory = Arc::new(Memory::writable(sparse(1 << 20)));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    served.client().write(8192, &[1; 10]).unwrap();
    let uri = served.uri.to_string();
    let map = |context: &str| {
        let map = json_output("nbdinfo", &[&format!("--map={context}"), "--json", &uri]);
        let extents = map.as_array().unwrap().clone();
        let number = |value: &Value| value.as_u64().unwrap();
        extents
            .iter()
            .map(|e| {
                (
                    number(&e["offset"]),
                    number(&e["length"]),
                    number(&e["type"]),
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        map("qemu:dirty-bitmap:cp0"),
        [
            (0, 8192, 0),
            (8192, 4096, 1),
            (12_288, (1 << 20) - 12_288, 0)
        ]
    );
    let allocation = map("base:allocation");
    assert_eq!(allocation[0], (0, 98_304, 0));
    assert_eq!(allocation[1], (98_304, 98_304, 3));

    let exports = served.server.exports();
    exports
        .add("böse name", Arc::new(Memory::read_only(vec![0; 512])))
        .unwrap();
    let list = json_output("nbdinfo", &["--list", "--json", &uri]);
    let list = list["exports"].as_array().unwrap();
    let names: Vec<_> = list
        .iter()
        .map(|e| e["export-name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["böse name", "disk"]);
    assert_eq!(list[1]["export-size"], 1 << 20);
    assert_eq!(list[1]["is_read_only"], false);
    assert_eq!(list[1]["can_multi_conn"], true);
    assert_eq!(list[1]["can_fua"], true);
    let contexts: Vec<_> = list[1]["contexts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|context| context.as_str().unwrap())
        .collect();
    assert_eq!(contexts, ["base:allocation", "qemu:dirty-bitmap:cp0"]);
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    let bytes = sparse(6 << 20);
    let served = served(&bytes);
    let uri = served.uri.to_string();
    let target = at(served.folder.path(), "raw");
    output(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &uri, &target],
    );
    assert!(std::fs::read(&target).unwrap() == bytes);
    output(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, &target],
    );
    let map = json_output("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map = map.as_array().unwrap();
    assert_eq!(map[0]["length"], 98_304);
    assert_eq!(
        (&map[0]["data"], &map[0]["zero"]),
        (&true.into(), &false.into())
    );
    assert_eq!(
        (&map[1]["data"], &map[1]["zero"]),
        (&false.into(), &true.into())
    );

    let mut other = bytes;
    other[5 << 20] ^= 1;
    std::fs::write(&target, &other).unwrap();
    let compared = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &uri, &target],
    );
    assert_eq!(compared.status.code(), Some(1), "one byte differs");
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    let memory = Arc::new(Memory::writable(pattern(4 << 20)));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let uri = served.uri.to_string();
    let commands = [
        "write -P 0xab 64k 100k",
        "write -f -P 0xcd 1M 4k",
        "write -z 2M 64k",
        "write -z -u 2112k 64k",
        "discard 3M 64k",
        "aio_write -P 5 0 32k",
        "aio_flush",
        "flush",
        "read -P 0xab 64k 100k",
    ];
    let mut arguments = vec!["-f", "raw", "-d", "unmap"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let printed = output("qemu-io", &arguments);
    assert!(
        !printed.contains("Pattern verification failed"),
        "{printed}"
    );
    let mut expected = pattern(4 << 20);
    expected[64 << 10..164 << 10].fill(0xab);
    expected[1 << 20..(1 << 20) + 4096].fill(0xcd);
    expected[2 << 20..(2 << 20) + (128 << 10)].fill(0);
    expected[3 << 20..(3 << 20) + (64 << 10)].fill(0);
    expected[..32 << 10].fill(5);
    assert!(memory.bytes() == expected);
    let calls = memory.calls.lock().unwrap();
    let durable = calls
        .windows(2)
        .any(|pair| pair == [Call::Write, Call::Flush]);
    assert!(durable && calls.contains(&Call::Trim), "{calls:?}");
}

#[test]
fn a_read_only_export_stays_as_it_is() {
    let bytes = pattern(1 << 20);
    let memory = Arc::new(Memory::read_only(bytes.clone()));
    let served = serve(Arc::clone(&memory) as Arc<dyn Export>);
    let uri = served.uri.to_string();
    assert!(
        !run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri])
            .status
            .success()
    );
    assert!(memory.bytes() == bytes && memory.calls.lock().unwrap().is_empty());
}
