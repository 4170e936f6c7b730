//! The bytes that stock tools of any age depend on.

use std::path::Path;
use std::sync::Arc;

use lifeboat_qcow2::{
    Backing, BackingFormat, Below, Layout, SEGMENT_CLUSTER, Seal, SealedCluster, create_overlay,
    seal, write_wrapper,
};
use lifeboat_sys::disk::{DiskFile, DiskPort, Recorder};

fn new_file() -> Arc<dyn DiskFile> {
    Recorder::new().create(Path::new("x")).expect("create")
}

fn hex(file: &dyn DiskFile, offset: u64, len: usize) -> String {
    let mut bytes = vec![0; len];
    file.read_at(&mut bytes, offset).expect("read");
    let words = bytes.chunks(8).map(|word| {
        let digits: Vec<String> = word.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.concat()
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_header_of_an_overlay_stays_as_it_is() {
    let file = new_file();
    let backing = Backing {
        name: "7.next",
        format: BackingFormat::Qcow2,
    };
    create_overlay(&*file, 5 << 30, Below::Named(backing)).expect("create");
    let header = [
        "514649fb00000003", // magic, version
        "0000000000000080", // where the backing file's name is
        "0000000600000011", // its length; clusters of 128 KiB
        "0000000140000000", // size
        "0000000000000005", // no encryption; L1 entries
        "0000000000020000", // L1 table
        "0000000000040000", // refcount table
        "0000000100000000", // its clusters; no snapshots
        "0000000000000000",
        "0000000000000010", // incompatible: extended L2
        "0000000000000000", // compatible
        "0000000000000000", // autoclear
        "0000000400000068", // counts of 16 bits; 104 bytes of header
        "e2792aca00000005", // extension: backing format
        "71636f7732000000", // qcow2
        "0000000000000000", // end of extensions
        "372e6e6578740000", // 7.next
    ];
    assert_eq!(hex(&*file, 0, 136), header.join(" "));
    // Header, L1 table, refcount table and the block have one reference each.
    assert_eq!(
        hex(&*file, 0x40000, 16),
        "0000000000060000 0000000000000000"
    );
    assert_eq!(
        hex(&*file, 0x60000, 16),
        "0001000100010001 0000000000000000"
    );
}

#[test]
fn the_entries_of_a_sealed_segment_stay_as_they_are() {
    let file = new_file();
    file.set_len(2 * SEGMENT_CLUSTER).expect("extend");
    let cluster = SealedCluster {
        guest: 3,
        host: Some(SEGMENT_CLUSTER),
        data: 0x8000_0001,
        zero: 0x0000_0002,
    };
    let plan = Seal {
        data_len: 2 * SEGMENT_CLUSTER,
        virtual_size: 1 << 30,
        layout: Layout::ExtendedL2,
        backing: Backing {
            name: "8.next",
            format: BackingFormat::Qcow2,
        },
    };
    seal(&*file, &plan, [cluster]).expect("seal");
    assert_eq!(
        hex(&*file, 2 * SEGMENT_CLUSTER + 3 * 16, 32),
        "8000000000020000 0000000280000001 0000000000000000 0000000000000000"
    );
    assert_eq!(hex(&*file, 3 * SEGMENT_CLUSTER, 8), "8000000000040000");

    let file = new_file();
    file.set_len(2 * SEGMENT_CLUSTER).expect("extend");
    let plan = Seal {
        layout: Layout::Plain64K,
        ..plan
    };
    let cluster = SealedCluster {
        data: 0xFFFF_0000,
        zero: 0x0000_FFFF,
        ..cluster
    };
    seal(&*file, &plan, [cluster]).expect("seal");
    assert_eq!(
        hex(&*file, 2 * SEGMENT_CLUSTER + 6 * 8, 24),
        "0000000000000001 8000000000030000 0000000000000000"
    );
}

#[test]
fn the_header_of_a_wrapper_stays_as_it_is() {
    let file = new_file();
    write_wrapper(&*file, 3 << 20, "/a/head.raw").expect("write");
    let header = [
        "514649fb00000003", // magic, version
        "0000000000000000", // no backing file
        "0000000000000015", // clusters of 2 MiB
        "0000000000300000", // size
        "0000000000000001", // no encryption; L1 entries
        "0000000000200000", // L1 table
        "0000000000600000", // refcount table
        "0000000100000000", // its clusters; no snapshots
        "0000000000000000",
        "0000000000000004", // incompatible: external data file
        "0000000000000000", // compatible
        "0000000000000002", // autoclear: the data file is raw
        "0000000400000068", // counts of 16 bits; 104 bytes of header
        "444154410000000b", // extension: data file
        "2f612f686561642e", // /a/head.
        "7261770000000000", // raw
        "0000000000000000", // end of extensions
    ];
    assert_eq!(hex(&*file, 0, 136), header.join(" "));
    assert_eq!(
        hex(&*file, 0x40_0000, 24),
        "8000000000000000 8000000000200000 0000000000000000"
    );
}
