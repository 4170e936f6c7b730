//! Chains of sealed segments over the wrapper of a head.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use lifeboat_qcow2::{
    Backing, BackingFormat, Below, Layout, SEGMENT_CLUSTER, SUB_BLOCK, Seal, SealedCluster,
    create_overlay, seal, write_wrapper,
};

use super::overlay::{assert_read_alike, qemu_commands};
use super::tools::{Folder, Oracle, Random};

/// A segment as the store would have filled it: what each cluster holds.
struct Segment {
    clusters: Vec<SealedCluster>,
    /// Data of each cluster, 128 KiB.
    bytes: BTreeMap<u64, Vec<u8>>,
}

/// How clusters are filled.
#[derive(Clone, Copy)]
enum Filling {
    /// Each sub-block by itself.
    Scattered,
    /// Each half of a cluster as a whole.
    Dense,
}

impl Segment {
    fn random(random: &mut Random, size: u64, count: u64, filling: Filling) -> Self {
        let mut segment = Self {
            clusters: Vec::new(),
            bytes: BTreeMap::new(),
        };
        let all = size.div_ceil(SEGMENT_CLUSTER);
        let mut guests: Vec<u64> = (0..count).map(|_| random.below(all)).collect();
        // The end of the disk is where sizes go wrong.
        guests.push(all - 1);
        guests.sort_unstable();
        guests.dedup();
        let mut host = SEGMENT_CLUSTER;
        for guest in guests {
            let (mut data, mut zero) = match filling {
                Filling::Scattered => (random.next() as u32, random.next() as u32),
                Filling::Dense => (halves(random), halves(random)),
            };
            data &= !zero;
            let blocks = (size - guest * SEGMENT_CLUSTER).div_ceil(SUB_BLOCK).min(32);
            let valid = ((1_u64 << blocks) - 1) as u32;
            data &= valid;
            zero &= valid;
            segment.clusters.push(SealedCluster {
                guest,
                host: (data != 0).then_some(host),
                data,
                zero,
            });
            if data != 0 {
                segment
                    .bytes
                    .insert(guest, random.bytes(SEGMENT_CLUSTER as usize));
                host += SEGMENT_CLUSTER;
            }
        }
        segment
    }

    fn seal(&self, folder: &Folder, name: &str, size: u64, backing: &str) -> Layout {
        let file = folder.create(name);
        let mut data_len = 0;
        for cluster in &self.clusters {
            let Some(host) = cluster.host else { continue };
            for block in (0..32).filter(|block| cluster.data & (1 << block) != 0) {
                let at = block * SUB_BLOCK;
                let left = size - (cluster.guest * SEGMENT_CLUSTER + at);
                let len = left.min(SUB_BLOCK);
                let bytes = &self.bytes[&cluster.guest][at as usize..(at + len) as usize];
                file.write_at(bytes, host + at).expect("append data");
                data_len = data_len.max(host + at + len);
            }
        }
        let clusters = || self.clusters.iter().copied();
        let layout = Layout::choose(size, clusters());
        let plan = Seal {
            data_len,
            virtual_size: size,
            layout,
            backing: Backing {
                name: backing,
                format: BackingFormat::Qcow2,
            },
        };
        let info = seal(&*file, &plan, clusters()).expect("seal a segment");
        assert_eq!(info.file_len, file.len().expect("measure"));
        layout
    }

    fn apply(&self, oracle: &Oracle) {
        for cluster in &self.clusters {
            for block in 0..32 {
                let at = block * SUB_BLOCK;
                let offset = cluster.guest * SEGMENT_CLUSTER + at;
                if cluster.data & (1 << block) != 0 {
                    let bytes = &self.bytes[&cluster.guest][at as usize..][..SUB_BLOCK as usize];
                    oracle.write(bytes, offset);
                } else if cluster.zero & (1 << block) != 0 {
                    oracle.write(&[0; SUB_BLOCK as usize], offset);
                }
            }
        }
    }
}

fn halves(random: &mut Random) -> u32 {
    [0, 0xFFFF, 0xFFFF_0000, u32::MAX][random.below(4) as usize]
}

/// Writes pieces of the head; everything else of it is a hole.
fn fill_head(oracle: &Oracle, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..24 {
        let offset = random.below(oracle.size.div_ceil(512)) * 512;
        oracle.write(&random.bytes(40 << 10), offset);
    }
}

/// Three segments over a wrapper: every boundary reads as it should.
fn check_chain(size: u64, per_segment: u64, filling: Filling, seed: u64) -> Vec<Layout> {
    make_chain(&Folder::new(), size, per_segment, filling, seed)
}

/// Makes `1.qcow2` over `2.qcow2` over `3.qcow2` over `disk.qcow2` over `head.raw`, and
/// `expected-0.raw` to `expected-2.raw` with what the segments should read.
fn make_chain(
    folder: &Folder,
    size: u64,
    per_segment: u64,
    filling: Filling,
    seed: u64,
) -> Vec<Layout> {
    let mut random = Random(seed);
    fill_head(&Oracle::create(folder, "head.raw", size), seed);
    let head_path = folder.path("head.raw");
    let head = head_path.to_str().expect("UTF-8");
    write_wrapper(&*folder.create("disk.qcow2"), size, head).expect("write the wrapper");

    let segments: Vec<Segment> = (0..3)
        .map(|_| Segment::random(&mut random, size, per_segment, filling))
        .collect();
    let mut layouts = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let next = match index {
            2 => "disk.qcow2".to_owned(),
            _ => format!("{}.qcow2", index + 2),
        };
        let link = format!("{}.next", index + 1);
        symlink(next, folder.path(&link)).expect("link");
        layouts.push(segment.seal(folder, &format!("{}.qcow2", index + 1), size, &link));
    }
    for oldest in 0..3 {
        let raw = format!("expected-{oldest}.raw");
        let oracle = Oracle::create(folder, &raw, size);
        fill_head(&oracle, seed);
        for segment in segments[oldest..].iter().rev() {
            segment.apply(&oracle);
        }
        let image = format!("{}.qcow2", oldest + 1);
        folder.assert_clean(&image);
        folder.assert_reads_as(&image, &raw);
    }
    layouts
}

#[test]
fn every_boundary_of_a_scattered_chain_reads_as_it_was() {
    for (seed, size) in [
        (1, 37 * SEGMENT_CLUSTER),
        (2, 37 * SEGMENT_CLUSTER + 5 * 512),
        (3, 5 * SEGMENT_CLUSTER - 512),
        (4, SEGMENT_CLUSTER / 2 + 4096),
        (5, 3 * 4096 + 512),
    ] {
        let layouts = check_chain(size, 12, Filling::Scattered, seed);
        assert!(layouts.contains(&Layout::ExtendedL2), "size {size}");
    }
}

#[test]
fn every_boundary_of_a_dense_chain_reads_as_it_was() {
    for (seed, size) in [
        (1, 37 * SEGMENT_CLUSTER),
        (2, 37 * SEGMENT_CLUSTER + 5 * 512),
        (3, 5 * SEGMENT_CLUSTER - 512),
        (4, SEGMENT_CLUSTER / 2 + 4096),
        (5, 512),
    ] {
        let layouts = check_chain(size, 12, Filling::Dense, seed);
        assert_eq!(layouts, [Layout::Plain64K; 3], "size {size}");
    }
}

#[test]
fn segments_with_many_l2_tables_read_as_they_were() {
    let size = (5 << 30) + 7 * 512;
    check_chain(size, 60, Filling::Scattered, 6);
    check_chain(size, 60, Filling::Dense, 7);
}

#[test]
fn a_guest_on_an_overlay_of_a_point_changes_nothing_below_it() {
    for (seed, filling) in [(11, Filling::Scattered), (12, Filling::Dense)] {
        let folder = Folder::new();
        let size = 17 * SEGMENT_CLUSTER + 3 * 512;
        make_chain(&folder, size, 8, filling, seed);
        let files = ["1.qcow2", "2.qcow2", "3.qcow2", "disk.qcow2", "head.raw"];
        let contents = || files.map(|name| fs::read(folder.path(name)).expect("read an image"));
        let before = contents();
        let below = Below::Named(Backing {
            name: "1.qcow2",
            format: BackingFormat::Qcow2,
        });
        create_overlay(&*folder.create("overlay.qcow2"), size, below).expect("create");
        folder.assert_reads_as("overlay.qcow2", "expected-0.raw");
        let commands = qemu_commands(&mut Random(seed), size, 40);
        folder.qemu_io("overlay.qcow2", &commands);
        assert_read_alike(&folder, "overlay.qcow2", "expected-0.raw");
        folder.assert_clean("overlay.qcow2");
        assert!(
            contents() == before,
            "an image below the overlay was changed"
        );
    }
}

#[test]
fn a_segment_without_clusters_shows_what_is_below() {
    let folder = Folder::new();
    let size = 3 * SEGMENT_CLUSTER + 512;
    fill_head(&Oracle::create(&folder, "head.raw", size), 8);
    let file = folder.create("1.qcow2");
    let plan = Seal {
        data_len: 0,
        virtual_size: size,
        layout: Layout::choose(size, []),
        backing: Backing {
            name: "head.raw",
            format: BackingFormat::Raw,
        },
    };
    seal(&*file, &plan, []).expect("seal");
    folder.assert_clean("1.qcow2");
    folder.assert_reads_as("1.qcow2", "head.raw");
}

#[test]
fn a_segment_larger_than_the_disk_below_reads_zeroes_beyond_it() {
    let folder = Folder::new();
    let (small, large) = (2 * SEGMENT_CLUSTER, 9 * SEGMENT_CLUSTER + 512);
    fill_head(&Oracle::create(&folder, "small.raw", small), 9);
    let expected = Oracle::create(&folder, "expected.raw", large);
    let mut start = vec![0; small as usize];
    Oracle::open(&folder.path("small.raw")).read(0, &mut start);
    expected.write(&start, 0);
    let cluster = SealedCluster {
        guest: 5,
        host: Some(SEGMENT_CLUSTER),
        data: 0b10,
        zero: 0,
    };
    let file = folder.create("1.qcow2");
    let bytes = Random(10).bytes(4096);
    file.write_at(&bytes, SEGMENT_CLUSTER + 4096).expect("data");
    expected.write(&bytes, 5 * SEGMENT_CLUSTER + 4096);
    let plan = Seal {
        data_len: SEGMENT_CLUSTER + 8192,
        virtual_size: large,
        layout: Layout::choose(large, [cluster]),
        backing: Backing {
            name: "small.raw",
            format: BackingFormat::Raw,
        },
    };
    seal(&*file, &plan, [cluster]).expect("seal");
    folder.assert_clean("1.qcow2");
    folder.assert_reads_as("1.qcow2", "expected.raw");
}
