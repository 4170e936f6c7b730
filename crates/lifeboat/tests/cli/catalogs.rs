//! A lost catalog that is made again from folders, whatever lies in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lifeboat_catalog::{Catalog, OnMissing};
use lifeboat_harness::copy_folder;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Run, Scene, lifeboat, lifeboat_json, text};

/// A host without a catalog, and a storage location that may have stores.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let root = host.path("host");
        let init = ["init", "--name", "beta.test", "--root", text(&root)];
        lifeboat(&init).done();
        fs::remove_file(host.catalog()).unwrap();
        fs::create_dir(host.storage()).unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn catalog(&self) -> PathBuf {
        self.path("host/state/catalog.db")
    }

    fn storage(&self) -> PathBuf {
        self.path("replicas")
    }

    /// Copies a store into the storage location, under its VM's id or another name.
    fn take(&self, scene: &Scene, name: &str) -> PathBuf {
        let folder = self.storage().join(name);
        copy_folder(&scene.store, &folder).unwrap();
        folder
    }

    fn arguments<'a>(&self, config: &'a str, storage: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec![
            "catalog",
            "rebuild",
            "--config",
            config,
            "--storage",
            storage,
        ];
        arguments.extend(more);
        arguments
    }

    fn rebuild(&self, more: &[&str]) -> Run {
        let (config, storage) = (self.path("host/lifeboat.toml"), self.storage());
        lifeboat_json(&self.arguments(text(&config), text(&storage), more))
    }

    fn rebuild_as_text(&self, more: &[&str]) -> Run {
        let (config, storage) = (self.path("host/lifeboat.toml"), self.storage());
        lifeboat(&self.arguments(text(&config), text(&storage), more))
    }

    /// How many VMs and relationships the catalog has.
    fn counts(&self) -> (u64, u64) {
        let checked = Catalog::check(&self.catalog()).unwrap();
        (checked.vms, checked.relationships)
    }
}

/// A folder left out of the result, by its name: why.
fn why(result: &Value, name: &str) -> String {
    let left_out = result["left_out"].as_array().unwrap();
    let is_named = |one: &&Value| Path::new(one["path"].as_str().unwrap()).ends_with(name);
    let found: Vec<&Value> = left_out.iter().filter(is_named).collect();
    assert_eq!(found.len(), 1, "{name}: {result}");
    found[0]["why"].as_str().unwrap().to_owned()
}

fn names(result: &Value) -> Vec<&str> {
    let vms = result["vms"].as_array().unwrap();
    vms.iter().map(|vm| vm["name"].as_str().unwrap()).collect()
}

/// Every file below a folder with its bytes, and every link.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                all.push((path, target.into_os_string().into_encoded_bytes()));
            } else {
                let bytes = fs::read(&path).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn a_store_gives_its_vm_and_what_nobody_says_is_told() {
    let scene = Scene::with_points(201, &[1 << 20, 512 << 10], 3);
    let host = Host::new();
    let folder = host.take(&scene, "web1-folder");
    symlink("web1-folder", host.storage().join("web1")).unwrap();

    let before = contents(&host.path(""));
    let looked = host.rebuild(&["--dry-run"]).json();
    assert_eq!(looked["outcome"], "would_be_made");
    assert_eq!(
        contents(&host.path("")),
        before,
        "looking changed something"
    );

    let made = host.rebuild(&[]).json();
    assert_eq!(made["outcome"], "made");
    assert_eq!(made["vms"], looked["vms"]);
    assert_eq!(made["left_out"], json!([]));
    assert_eq!(made["next"], json!([]));
    let vm = &made["vms"][0];
    assert_eq!(vm["name"], "web1");
    assert_eq!(vm["vm"], json!(scene.shadow.vm));
    assert_eq!(vm["relationship"], json!(scene.shadow.relationship));
    assert_eq!(vm["folder"], text(&folder));
    assert_eq!(vm["points"], 3);
    assert_eq!(vm["peer_host"], Value::Null);
    assert_eq!(vm["assumed"].as_array().unwrap().len(), 3);
    assert_eq!(host.counts(), (1, 1));
    let store = scene.shadow.vm.to_string();
    assert!(host.storage().join("web1").exists(), "{store}");
}

#[test]
fn the_other_side_of_stores_that_do_not_name_it_can_be_given() {
    let scene = Scene::with_points(202, &[1 << 20], 1);
    let host = Host::new();
    host.take(&scene, "one");
    let peer = [
        "--peer-host",
        "alpha.test",
        "--peer-address",
        "alpha.test:6440",
        "--trust-group",
        "pair of hosts",
    ];
    host.rebuild(&peer[..2]).error(2);
    host.rebuild(&peer[2..]).error(2);
    let made = host.rebuild(&peer).json();
    let vm = &made["vms"][0];
    assert_eq!(vm["peer_host"], "alpha.test");
    assert_eq!(vm["peer_address"], "alpha.test:6440");
    let storage = host.storage();
    assert_eq!(
        made["next"],
        json!([
            "lifeboat host settings --recovery-server on --authentication certificate",
            format!(
                "lifeboat authorization add alpha.test --storage {} --trust-group 'pair of hosts'",
                text(&storage)
            ),
        ])
    );
}

#[test]
fn what_is_no_store_or_cannot_be_trusted_is_named_and_left_as_it_is() {
    let host = Host::new();
    let storage = host.storage();
    let good = Scene::with_points(210, &[1 << 20], 2);
    host.take(&good, "good");
    // Nothing that has to do with stores.
    fs::create_dir_all(storage.join("lost+found")).unwrap();
    fs::write(storage.join("readme"), "hello").unwrap();
    symlink("/etc", storage.join("etc")).unwrap();
    symlink("nowhere", storage.join("dangling")).unwrap();
    // A journal with a bit that has turned in its middle, one that is cut, none at all.
    for (name, seed) in [("flipped", 211), ("cut", 212), ("without", 213)] {
        let folder = host.take(&Scene::with_points(seed, &[1 << 20], 1), name);
        let journal = folder.join("journal");
        let mut bytes = fs::read(&journal).unwrap();
        match name {
            "flipped" => bytes[40] ^= 1,
            "cut" => bytes.truncate(20),
            _ => {}
        }
        fs::write(&journal, bytes).unwrap();
        if name == "without" {
            fs::remove_file(journal).unwrap();
        }
    }
    // A disk that is somebody else's file.
    let stolen = host.take(&Scene::with_points(214, &[1 << 20], 1), "stolen");
    let head = stolen.join("disks/disk0/head.raw");
    fs::remove_file(&head).unwrap();
    fs::write(host.path("precious"), vec![7; 1 << 20]).unwrap();
    symlink(host.path("precious"), &head).unwrap();
    // A disk that has another length.
    let short = host.take(&Scene::with_points(215, &[1 << 20], 1), "short");
    let head = fs::OpenOptions::new()
        .write(true)
        .open(short.join("disks/disk0/head.raw"))
        .unwrap();
    head.set_len(4096).unwrap();
    // Two folders of one VM.
    let twice = Scene::with_points(216, &[1 << 20], 1);
    host.take(&twice, "twice");
    host.take(&twice, "twice-before");
    // One that somebody has open.
    let used = host.take(&Scene::with_points(217, &[1 << 20], 1), "used");
    let socket = host.path("socket");
    let mut server = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .args(["store", "point", "serve", text(&used), "1", "--unix"])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(server.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    let untouched = [
        "lost+found",
        "flipped",
        "cut",
        "without",
        "stolen",
        "twice",
        "twice-before",
        "used",
    ];
    let all = || untouched.map(|name| contents(&storage.join(name)));
    let before = all();

    let made = host.rebuild(&[]).json();
    assert_eq!(names(&made).len(), 1, "{made}");
    assert_eq!(made["vms"][0]["vm"], json!(good.shadow.vm));
    assert_eq!(host.counts(), (1, 1));
    assert!(all() == before, "something that was left out has changed");
    assert_eq!(fs::read(host.path("precious")).unwrap(), vec![7; 1 << 20]);
    for (name, part) in [
        ("lost+found", "it is no store"),
        ("readme", "it is no folder"),
        ("etc", "it is a link"),
        ("dangling", "it is a link"),
        ("flipped", "journal is damaged"),
        ("cut", "journal is damaged"),
        ("without", "the file is missing"),
        ("stolen", "head.raw is damaged: something else lies there"),
        ("short", "it is 4096 bytes long"),
        ("twice", "another folder has VM"),
        ("twice-before", "another folder has VM"),
        ("used", "in use by lifeboat store point serve"),
    ] {
        let why = why(&made, name);
        assert!(why.contains(part), "{name}: {why}");
    }

    // What was in the way is out of it: the rest comes in.
    server.kill().unwrap();
    server.wait().unwrap();
    fs::rename(storage.join("twice-before"), host.path("aside")).unwrap();
    let added = host.rebuild(&["--add"]).json();
    assert_eq!(added["outcome"], "added");
    assert_eq!(names(&added).len(), 2, "{added}");
    assert!(why(&added, "good").contains("the catalog knows VM"));
    assert_eq!(host.counts(), (3, 3));
}

#[test]
fn a_note_that_nobody_can_have_written_is_not_believed() {
    let scene = Scene::with_points(220, &[1 << 20], 1);
    let definition = |name: &str, vm: &str, disk: &str| {
        json!({
            "format": 1, "vm": vm, "name": name, "memory_mib": 64, "processors": 1,
            "firmware": "bios", "adapters": [],
            "disks": [{"id": disk, "size": 4096, "bus": "sata"}],
        })
    };
    let vm = scene.shadow.vm.to_string();
    let other = "00112233445566778899aabbccddeeff";
    for (note, is_used) in [
        (
            json!({"format": 1, "definition": definition("web", &vm, "disk0"), "relationship": null}),
            true,
        ),
        // A label is never a path; it may look like one.
        (
            json!({"format": 1, "definition": definition("../../etc/web", &vm, "disk0"), "relationship": null}),
            true,
        ),
        (
            json!({"format": 1, "definition": definition("web", &vm, "../../etc"), "relationship": null}),
            false,
        ),
        (
            json!({"format": 1, "definition": definition("web\u{1b}[2J", &vm, "disk0"), "relationship": null}),
            false,
        ),
        (
            json!({"format": 1, "definition": definition("web", other, "disk0"), "relationship": null}),
            false,
        ),
        (json!({"format": 2, "definition": {}}), false),
        (json!([]), false),
    ] {
        let host = Host::new();
        let folder = host.take(&scene, "one");
        let text = note.to_string();
        let digest = blake3::hash(text.as_bytes()).to_hex();
        fs::write(
            folder.join("note"),
            format!("lifeboat-note-1 {digest}\n{text}"),
        )
        .unwrap();
        let made = host.rebuild(&[]).json();
        assert_eq!(made["left_out"], json!([]), "{note}");
        let told = made["vms"][0]["assumed"].to_string();
        assert_eq!(
            !told.contains("note cannot be used"),
            is_used,
            "{note}: {told}"
        );
        let name = note["definition"]["name"].as_str().filter(|_| is_used);
        let short = format!("vm-{}", &vm[..8]);
        assert_eq!(names(&made), [name.unwrap_or(&short)]);
        // Its disks are those of the store.
        let catalog = Catalog::open(&host.catalog(), OnMissing::Refuse).unwrap();
        let rows = catalog.read(|reader| reader.vms()).unwrap();
        let disks = rows[0].definition.data["disks"].clone();
        let bus = if is_used { "sata" } else { "virtio" };
        assert_eq!(disks, json!([{"id": "disk0", "size": 1 << 20, "bus": bus}]));
        assert!(!host.path("etc").exists());
    }
}

#[test]
fn vms_of_one_name_get_names_of_their_own() {
    let host = Host::new();
    for seed in [230, 231] {
        let scene = Scene::with_points(seed, &[1 << 20], 1);
        let folder = host.take(&scene, &scene.shadow.vm.to_string());
        let text = json!({
            "format": 1,
            "definition": {
                "format": 1, "vm": scene.shadow.vm, "name": "web", "memory_mib": 64,
                "processors": 1, "firmware": "bios", "adapters": [],
                "disks": [{"id": "disk0", "size": 1 << 20, "bus": "virtio"}],
            },
            "relationship": null,
        })
        .to_string();
        let digest = blake3::hash(text.as_bytes()).to_hex();
        fs::write(
            folder.join("note"),
            format!("lifeboat-note-1 {digest}\n{text}"),
        )
        .unwrap();
    }
    let made = host.rebuild(&[]).json();
    assert_eq!(names(&made), ["web", "web (2)"]);
    let assumed = made["vms"][1]["assumed"].to_string();
    assert!(assumed.contains("another VM named"), "{assumed}");
}

#[test]
fn no_catalog_is_made_over_another_or_of_nothing() {
    let host = Host::new();
    let storage = host.storage();
    let lock_only = |host: &Host| {
        let left = fs::read_dir(host.path("host/state")).unwrap();
        let mut names: Vec<String> = left
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("catalog"))
            .collect();
        names.sort();
        assert_eq!(names, ["catalog.db.lock"]);
    };
    host.rebuild(&[]).error(5);
    fs::create_dir(storage.join("empty")).unwrap();
    let nothing = host.rebuild(&[]);
    assert!(nothing.stdout.contains("it is no store"), "{nothing:?}");
    nothing.error(5);
    lock_only(&host);
    let missing = host.path("missing");
    host.rebuild(&["--storage", text(&missing)]).error(5);
    lock_only(&host);
    // Nothing to add to.
    host.rebuild(&["--add"]).error(5);

    let scene = Scene::with_points(240, &[1 << 20], 1);
    host.take(&scene, "one");
    host.rebuild(&[]).json();
    let before = fs::read(host.catalog()).unwrap();
    for more in [&[][..], &["--dry-run"]] {
        let error = host.rebuild(more).error(3);
        let because = error["because"][0].as_str().unwrap();
        assert!(because.contains("there is a catalog at"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("--add"), "{error}");
    }
    assert_eq!(fs::read(host.catalog()).unwrap(), before);
    let added = host.rebuild(&["--add"]).json();
    assert_eq!(added["vms"], json!([]));
    assert_eq!(host.counts(), (1, 1));

    let open = Catalog::open(&host.catalog(), OnMissing::Refuse).unwrap();
    host.rebuild(&["--add"]).error(6);
    host.rebuild(&[]).error(3);
    drop(open);
}

#[test]
fn a_rebuild_as_people_read_it() {
    let host = Host::new();
    let scene = Scene::with_points(250, &[1 << 20], 2);
    host.take(&scene, "web1-folder");
    symlink("web1-folder", host.storage().join("web1")).unwrap();
    fs::create_dir(host.storage().join("lost+found")).unwrap();
    let peer = [
        "--peer-host",
        "alpha.test",
        "--peer-address",
        "alpha.test:6440",
        "--trust-group",
        "pair",
    ];
    let folder = host.path("");
    let printed = host.rebuild_as_text(&peer).done();
    let printed = printed.replace(text(&folder), "FOLDER/");
    assert_eq!(
        printed,
        "\
NAME  STATE                  POINTS  OTHER HOST  FOLDER
web1  Replicating (Replica)  2       alpha.test  FOLDER/replicas/web1-folder

web1: it has no note, as stores of before: its name, 1024 MiB of memory and one processor are assumed
web1: its settings are not noted: at most 24 recovery points are kept, each for 24 hours; change them on the primary
web1: its other host is not noted: taken to be alpha.test, as given
left out: FOLDER/replicas/lost+found: it is no store
the catalog FOLDER/host/state/catalog.db was made, VMs: 1; none of them is started

Whom this host lets in is in no store; start the daemon, then:
  lifeboat host settings --recovery-server on --authentication certificate
  lifeboat authorization add alpha.test --storage FOLDER/replicas --trust-group pair
"
    );
    let again = host.rebuild_as_text(&peer);
    assert_eq!(
        (again.code, again.stderr.replace(text(&folder), "FOLDER/")),
        (
            3,
            "\
error: make the catalog again
  because: there is a catalog at FOLDER/host/state/catalog.db already; nothing is made in its place
  hint: give --add to add what it does not know, or move it and the files beside it away if it is not to be used
"
            .to_owned()
        )
    );
}
