//! Captures from QEMU: bitmaps, frozen views, real allocation maps.

use lifeboat_nbd::{Client, ClientOptions};
use lifeboat_stream::Kind;
use serde_json::{Value, json};

use super::peers::{Background, Qmp, run};
use super::replica::{Dice, PATIENCE, pattern, plan, source, take};

const MIB: usize = 1 << 20;

const SIZES: [usize; 2] = [24 * MIB, 9 * MIB + 512];

/// Two qcow2 disks in a storage daemon, written through exports `w0` and `w1`.
struct Host {
    qmp: Qmp,
    server: Background,
    writers: [Client; 2],
    /// What the disks hold, by what was written.
    shadow: [Vec<u8>; 2],
}

impl Host {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (index, size) in SIZES.iter().enumerate() {
            let path = folder.path().join(format!("{index}.qcow2"));
            let path = path.to_str().unwrap();
            run(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", path, &size.to_string()],
            );
        }
        let server = Background::start(
            folder,
            "qemu-storage-daemon",
            &[
                "--daemonize",
                "--pidfile",
                "{}/pid",
                "--chardev",
                "socket,id=q,path={}/q,server=on,wait=off",
                "--monitor",
                "chardev=q",
                "--blockdev",
                "driver=qcow2,node-name=disk0,discard=unmap,file.driver=file,file.filename={}/0.qcow2,file.discard=unmap",
                "--blockdev",
                "driver=qcow2,node-name=disk1,discard=unmap,file.driver=file,file.filename={}/1.qcow2,file.discard=unmap",
                "--nbd-server",
                "addr.type=unix,addr.path={}/s",
                "--export",
                "type=nbd,id=w0,node-name=disk0,name=w0,writable=on",
                "--export",
                "type=nbd,id=w1,node-name=disk1,name=w1,writable=on",
            ],
        );
        let qmp = Qmp::connect(&server.path().join("q"));
        let options = ClientOptions {
            deadline: PATIENCE,
            ..ClientOptions::default()
        };
        let writers =
            ["w0", "w1"].map(|name| Client::connect(&server.uri(name), &options).unwrap());
        Self {
            qmp,
            server,
            writers,
            shadow: SIZES.map(|size| vec![0; size]),
        }
    }

    /// Writes, zeroes and discards at random places.
    fn change(&mut self, dice: &mut Dice) {
        let disk = dice.roll(2) as usize;
        let size = SIZES[disk] as u64;
        let length = match dice.roll(8) {
            0 => 1 + dice.roll(6000),
            1..5 => 1 + dice.roll(200),
            _ => 1 + dice.roll(8),
        } * 512;
        let length = length.min(size / 2);
        let offset = dice.roll((size - length) / 512 + 1) * 512;
        let range = offset as usize..(offset + length) as usize;
        let writer = &self.writers[disk];
        match dice.roll(4) {
            0 => {
                writer.write_zeroes(offset, length).unwrap();
                self.shadow[disk][range].fill(0);
            }
            1 => {
                writer.trim(offset, length).unwrap();
                // What a discard leaves is up to QEMU.
                let now = &mut self.shadow[disk][range];
                writer.read(offset, now).unwrap();
            }
            2 => {
                let data = pattern(dice.next() >> 1, length as usize);
                writer.write(offset, &data).unwrap();
                self.shadow[disk][range].copy_from_slice(&data);
            }
            // Blocks that are written and hold what they held.
            _ => {
                let data = self.shadow[disk][range].to_vec();
                writer.write(offset, &data).unwrap();
            }
        }
    }

    /// Freezes both disks at one instant: bitmaps `cpN` end, `cpN+1` begin, and what is
    /// written from now on is first copied aside.
    fn freeze(&mut self, round: u32) {
        let (old, new) = (format!("cp{round}"), format!("cp{}", round + 1));
        for (disk, size) in SIZES.iter().enumerate() {
            let path = self.server.path().join(format!("fleece{disk}.qcow2"));
            let path = path.to_str().unwrap();
            run(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", path, &size.to_string()],
            );
            self.qmp.ask(
                "blockdev-add",
                &json!({"driver": "qcow2", "node-name": format!("fleece{disk}"),
                    "file": {"driver": "file", "filename": path},
                    "backing": format!("disk{disk}")}),
            );
        }
        let actions: Vec<Value> = (0..SIZES.len())
            .flat_map(|disk| {
                let node = format!("disk{disk}");
                let granularity = bitmap_granularity(disk);
                [
                    json!({"type": "block-dirty-bitmap-disable",
                        "data": {"node": node, "name": old}}),
                    json!({"type": "block-dirty-bitmap-add",
                        "data": {"node": node, "name": new, "granularity": granularity}}),
                    json!({"type": "blockdev-backup",
                        "data": {"job-id": format!("job{disk}"), "device": node,
                            "target": format!("fleece{disk}"), "sync": "none"}}),
                ]
            })
            .collect();
        self.qmp.ask("transaction", &json!({"actions": actions}));
        for disk in 0..SIZES.len() {
            self.qmp.ask(
                "block-export-add",
                &json!({"type": "nbd", "id": format!("r{disk}"), "name": format!("r{disk}"),
                    "node-name": format!("fleece{disk}"),
                    "bitmaps": [{"node": format!("disk{disk}"), "name": old}]}),
            );
        }
    }

    /// Ends the view and forgets its bitmaps.
    fn release(&mut self, round: u32) {
        for disk in 0..SIZES.len() {
            let export = format!("r{disk}");
            self.qmp.ask("block-export-del", &json!({"id": export}));
            self.qmp.event("BLOCK_EXPORT_DELETED", "id", &export);
            let job = format!("job{disk}");
            self.qmp.ask("block-job-cancel", &json!({"device": job}));
            self.qmp.event("BLOCK_JOB_CANCELLED", "device", &job);
            self.qmp.event("JOB_STATUS_CHANGE", "status", "null");
            let node = json!({"node-name": format!("fleece{disk}")});
            self.qmp.ask("blockdev-del", &node);
            let bitmap = json!({"node": format!("disk{disk}"), "name": format!("cp{round}")});
            self.qmp.ask("block-dirty-bitmap-remove", &bitmap);
        }
    }
}

fn bitmap_granularity(disk: usize) -> u32 {
    [4096, 65_536][disk]
}

#[test]
fn frozen_views_of_two_disks_are_captured_while_the_guest_writes_on() {
    let mut host = Host::start();
    let mut dice = Dice::new(11);
    for _ in 0..40 {
        host.change(&mut dice);
    }
    for disk in 0..SIZES.len() {
        host.qmp.ask(
            "block-dirty-bitmap-add",
            &json!({"node": format!("disk{disk}"), "name": "cp0",
                "granularity": bitmap_granularity(disk)}),
        );
    }
    // The whole disks, while nobody writes: what later deltas build on.
    let sources = vec![
        source("sda", &host.server.uri("w0"), None),
        source("sdb", &host.server.uri("w1"), None),
    ];
    let initial = take(&plan(Kind::Initial, sources)).unwrap();
    let mut replica = SIZES.map(|size| vec![0xee; size]);
    initial.apply(&mut replica);
    assert!(replica == host.shadow);
    assert!(initial.captured.read_bytes < initial.captured.dirty_bytes);

    for round in 0..4 {
        for _ in 0..30 {
            host.change(&mut dice);
        }
        host.freeze(round);
        let expected = host.shadow.clone();
        for _ in 0..30 {
            host.change(&mut dice);
        }
        let bitmap = format!("cp{round}");
        let sources = vec![
            source("sda", &host.server.uri("r0"), Some(&bitmap)),
            source("sdb", &host.server.uri("r1"), Some(&bitmap)),
        ];
        let taken = take(&plan(Kind::Delta, sources)).unwrap();
        taken.apply(&mut replica);
        assert!(replica == expected, "round {round}");
        let all: usize = SIZES.iter().sum();
        assert!(taken.captured.dirty_bytes < all as u64);
        host.release(round);
    }
}

#[test]
fn an_image_at_rest_is_captured_by_its_own_bitmap() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("i.qcow2");
    let image = image.to_str().unwrap();
    let write = |command: &str| run("qemu-io", &["-f", "qcow2", "-c", command, image]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", image, "64M"]);
    write("write -P 1 0 20M");
    run(
        "qemu-img",
        &["bitmap", "--add", "-g", "64k", "-f", "qcow2", image, "b0"],
    );
    write("write -P 2 1M 64k");
    write("write -z 4M 8M");
    write("discard 16M 2M");
    write("write -P 3 60M 100k");
    let own = ["--fork", "-t", "-r", "--pid-file", "{}/pid", "-k", "{}/s"];
    let more = ["-f", "qcow2", "-B", "b0", "{}/i.qcow2"];
    let server = Background::start(folder, "qemu-nbd", &[&own[..], &more[..]].concat());

    let sources = vec![source("a", &server.uri(""), Some("b0"))];
    let taken = take(&plan(Kind::Delta, sources)).unwrap();
    let mut disks = [vec![0; 64 * MIB]];
    disks[0][..20 * MIB].fill(1);
    taken.apply(&mut disks);
    let mut expected = vec![0; 64 * MIB];
    expected[..20 * MIB].fill(1);
    expected[MIB..MIB + 65_536].fill(2);
    expected[4 * MIB..12 * MIB].fill(0);
    expected[16 * MIB..18 * MIB].fill(0);
    expected[60 * MIB..60 * MIB + 102_400].fill(3);
    assert!(disks[0] == expected);
    // The large zeroes and the discarded range were not read.
    assert!(
        taken.captured.read_bytes < MIB as u64,
        "{:?}",
        taken.captured
    );
}
