//! What people read, word for word.

use lifeboat_model::{Consistency, DiskSize, LineageId, RelationshipId, Sequence, Timestamp};
use lifeboat_stream::{
    Base, BlobKind, Compression, Disk, Encoder, Header, Kind, Layout, Manifest, Options,
};

use crate::support::{Scene, lifeboat, lifeboat_json, text};

fn delta() -> Vec<u8> {
    let header = Header {
        relationship: RelationshipId::from_bytes([0x11; 16]),
        lineage: LineageId::from_bytes([0x22; 16]),
        base: Some(Base {
            sequence: Sequence::new(6),
            id: lifeboat_model::DeltaId::from_bytes([0x33; 32]),
        }),
        sequence: Sequence::new(7),
        kind: Kind::Delta,
    };
    let disk = |name: &str, size: u64| Disk {
        id: name.parse().unwrap(),
        size: DiskSize::try_from(size).unwrap(),
    };
    let manifest = Manifest::new(
        Timestamp::from_micros(1_700_000_000_000_000),
        Consistency::Application,
        vec![disk("sda", 20 << 30), disk("sdb", 3 << 29)],
    );
    let options = Options {
        compression: Compression::None,
        layout: Layout::Compact,
    };
    let mut encoder = Encoder::new(Vec::new(), &header, &manifest.unwrap(), options).unwrap();
    encoder.blob(BlobKind::Nvram, 3, &[5; 1000]).unwrap();
    encoder.data(0, 4096, &[1; 4096]).unwrap();
    encoder.data(0, 1 << 20, &[2; 65_536]).unwrap();
    encoder.zero(1, 0, 1 << 29).unwrap();
    encoder.finish().unwrap().1
}

/// What a command prints, with the folder of the test replaced.
#[track_caller]
fn printed(arguments: &[&str], folder: &str) -> String {
    lifeboat(arguments).done().replace(folder, "FOLDER")
}

#[track_caller]
fn complained(code: i32, arguments: &[&str], folder: &str) -> String {
    let run = lifeboat(arguments);
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{run:?}");
    run.stderr.replace(folder, "FOLDER")
}

#[test]
fn a_delta_as_it_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("7.delta");
    std::fs::write(&file, delta()).unwrap();
    let shown = printed(&["delta", "inspect", text(&file)], "\0");
    let facts = "\
delta         7
id            ID
kind          delta
base          6 (3333333333333333333333333333333333333333333333333333333333333333)
relationship  11111111111111111111111111111111
lineage       22222222222222222222222222222222
taken         2023-11-14T22:13:20Z
consistency   application
stream        69.6 KiB
frames        6

DISK  SIZE     DATA    FRAMES  ZEROES   FRAMES
sda   20 GiB   68 KiB  2       0 B      0
sdb   1.5 GiB  0 B     0       512 MiB  1

BLOB   FORMAT  SIZE
nvram  3       1000 B
";
    let json = lifeboat_json(&["delta", "inspect", text(&file)]).json();
    let id = json["id"].as_str().unwrap();
    assert_eq!(shown, facts.replace("ID\n", &format!("{id}\n")));

    let frames = "\
nvram       -                       0             1000
data        sda                  4096             4096
data        sda               1048576            65536
zero        sdb                     0        536870912

";
    let shown = lifeboat(&["delta", "inspect", "--frames", text(&file)]).done();
    assert!(shown.starts_with(frames), "{shown}");
    let listed = lifeboat_json(&["delta", "inspect", "--frames", text(&file)]).json();
    assert_eq!(listed["delta"], json);
    assert_eq!(listed["frames"].as_array().unwrap().len(), 4);
    assert_eq!(listed["frames"][3]["length"], 1u64 << 29);
}

#[test]
fn recovery_points_as_they_are_listed() {
    let scene = Scene::with_points(80, &[1 << 20, 1536 << 10], 2);
    let listed = printed(&["store", "point", "list", text(&scene.store)], "\0");
    assert_eq!(
        listed,
        "\
POINT  TAKEN                 CONSISTENCY  SEALED  DISKS
1      2023-11-14T22:13:21Z  crash        yes     disk0 1 MiB, disk1 1.5 MiB
2      2023-11-14T22:13:22Z  crash        yes     disk0 1 MiB, disk1 1.5 MiB
"
    );
    let none = Scene::new(81, &[1 << 20]);
    let listed = printed(&["store", "point", "list", text(&none.store)], "\0");
    assert_eq!(listed, "there are no recovery points\n");
}

#[test]
fn errors_say_what_why_and_what_to_do() {
    let scene = Scene::with_points(82, &[1 << 20], 1);
    let folder = scene.folder.path().canonicalize().unwrap();
    let store = text(&scene.store);
    let complain = |code: i32, arguments: &[&str]| complained(code, arguments, text(&folder));
    assert_eq!(
        complain(5, &["store", "point", "verify", store, "9"]),
        "error: there is no recovery point 9; see `lifeboat point list`\n"
    );
    assert_eq!(
        complain(3, &["store", "failover", "commit", store, "--yes"]),
        "\
error: there is no failover to commit
  hint: begin one with `lifeboat store failover start`
"
    );
    let missing = folder.join("missing.delta");
    assert_eq!(
        complain(5, &["store", "receive", store, text(&missing)]),
        "\
error: open FOLDER/missing.delta
  because: No such file or directory (os error 2)
"
    );
    let no_delta = folder.join("no.delta");
    std::fs::write(&no_delta, "This is a letter and no delta stream.").unwrap();
    assert_eq!(
        complain(1, &["store", "receive", store, text(&no_delta)]),
        "\
error: read the delta
  because: read the header of a delta stream
  because: the input does not start as a delta stream does
  hint: nothing was stored; get the delta again from where it was captured
"
    );
    assert_eq!(
        complain(5, &["store", "status", text(&folder)]),
        "error: FOLDER is no store; make one with `lifeboat store init`\n"
    );
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lifeboat(&["completions", shell]).done();
        assert!(script.contains("keep-points"), "{shell}");
    }
}
