//! Damaged and malicious images: an error or a result within bounds, and never more.

use std::io;
use std::path::Path;
use std::sync::Arc;

use lifeboat_qcow2::{
    Backing, BackingFormat, Below, CreateError, Layout, MapError, OpenError, Overlay,
    SEGMENT_CLUSTER, SUB_BLOCK, Seal, SealError, SealedCluster, create_overlay, seal,
    verify_wrapper, write_wrapper,
};
use lifeboat_sys::disk::{Access, DiskFile, DiskPort, Recorder};
use proptest::prelude::*;

const SIZE: u64 = (1 << 30) + 3 * SEGMENT_CLUSTER + 512;

fn zeroes_below(_: u64, buffer: &mut [u8]) -> io::Result<()> {
    buffer.fill(0);
    Ok(())
}

fn new_file() -> Arc<dyn DiskFile> {
    Recorder::new().create(Path::new("x")).expect("create")
}

/// The clusters of an overlay that the first write made: header, L1 table, refcount table,
/// refcount block, data, L2 table.
const FIRST_TABLE: u64 = 5;

/// An overlay with data and zeroes in two L2 tables.
fn make_overlay() -> Arc<dyn DiskFile> {
    let file = new_file();
    create_overlay(&*file, SIZE, Below::GivenOnOpen).expect("create");
    let overlay = Overlay::open(Arc::clone(&file), Access::ReadWrite).expect("open");
    for offset in [0, 5 * 4096, SEGMENT_CLUSTER + 512, (1 << 30) + 8192] {
        overlay
            .write(offset, &[7; 5000], &zeroes_below)
            .expect("write");
    }
    overlay
        .write_zeroes(SIZE - 70_000, 70_000, &zeroes_below)
        .expect("zero");
    overlay.flush().expect("flush");
    file
}

/// Where the places that mean something lie: the clusters of tables, mostly their beginning.
fn places() -> impl Strategy<Value = u64> {
    let table = |index: u64, len: u64| index * SEGMENT_CLUSTER..index * SEGMENT_CLUSTER + len;
    prop_oneof![
        4 => 0_u64..160,
        1 => table(1, 64),
        1 => table(2, 32),
        1 => table(3, 64),
        3 => table(FIRST_TABLE, 64),
        1 => 0..12 * SEGMENT_CLUSTER,
    ]
}

/// Numbers that are likely to go wrong.
fn words() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u32..64).prop_map(|bit| 1 << bit),
        (0_u32..64).prop_map(|bit| u64::MAX << bit),
        (0_u64..20).prop_map(|cluster| cluster * SEGMENT_CLUSTER),
        (0_u64..20).prop_map(|cluster| (cluster * SEGMENT_CLUSTER) | 1 << 63),
        0_u64..4096,
    ]
}

#[derive(Debug, Clone)]
enum Damage {
    Byte { at: u64, byte: u8 },
    Narrow { at: u64, word: u32 },
    Wide { at: u64, word: u64 },
    Cut { len: u64 },
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = prop_oneof![
        3 => (places(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte { at, byte }),
        3 => (places(), words())
            .prop_map(|(at, word)| Damage::Narrow { at: at / 4 * 4, word: word as u32 }),
        6 => (places(), words()).prop_map(|(at, word)| Damage::Wide { at: at / 8 * 8, word }),
        1 => (0..12 * SEGMENT_CLUSTER).prop_map(|len| Damage::Cut { len }),
    ];
    proptest::collection::vec(damage, 1..4)
}

fn apply(file: &dyn DiskFile, damages: &[Damage]) {
    for damage in damages {
        let outcome = match *damage {
            Damage::Byte { at, byte } => file.write_at(&[byte], at),
            Damage::Narrow { at, word } => file.write_at(&word.to_be_bytes(), at),
            Damage::Wide { at, word } => file.write_at(&word.to_be_bytes(), at),
            Damage::Cut { len } => file.set_len(len),
        };
        outcome.expect("damage a file in memory");
    }
}

/// Walks a bounded part of an image and asserts that the extents have no gaps and end.
fn walk(overlay: &Overlay) {
    let size = overlay.virtual_size();
    for start in [0, size / 2, size.saturating_sub(1 << 20)] {
        let mut next = start;
        for extent in overlay.extents(start..size).take(3000) {
            let Ok(extent) = extent else { return };
            assert_eq!(extent.offset, next, "a gap");
            assert!(extent.len > 0, "an empty extent");
            next += extent.len;
            assert!(next <= size, "an extent beyond the end");
        }
        let mut buffer = vec![0; (size - start).min(1 << 20) as usize];
        let _ = overlay.read(start, &mut buffer, &zeroes_below);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_damaged_overlay_is_refused_or_read_within_bounds(damages in damages()) {
        let file = make_overlay();
        apply(&*file, &damages);
        if let Ok(overlay) = Overlay::open(Arc::clone(&file), Access::ReadOnly) {
            walk(&overlay);
        }
        if let Ok(overlay) = Overlay::open(Arc::clone(&file), Access::ReadWrite) {
            let size = overlay.virtual_size();
            for offset in [0, 512, SEGMENT_CLUSTER, size / 2, size.saturating_sub(9000)] {
                let len = size.saturating_sub(offset).min(9000);
                let _ = overlay.write(offset, &vec![1; len as usize], &zeroes_below);
                let _ = overlay.write_zeroes(offset, len, &zeroes_below);
            }
            let _ = overlay.flush();
            walk(&overlay);
        }
    }

    #[test]
    fn writing_a_damaged_overlay_keeps_its_header_and_first_level(damages in damages()) {
        let file = make_overlay();
        apply(&*file, &damages);
        let len = file.len().expect("len").min(SEGMENT_CLUSTER) as usize;
        let mut before = vec![0; len];
        file.read_at(&mut before, 0).expect("read");
        if let Ok(overlay) = Overlay::open(Arc::clone(&file), Access::ReadWrite) {
            let size = overlay.virtual_size();
            for step in 0..16 {
                let offset = size / 16 * step;
                let len = (size - offset).min(5000);
                let _ = overlay.write(offset, &vec![0xAB; len as usize], &zeroes_below);
            }
            let _ = overlay.flush();
            let mut after = vec![0; len];
            file.read_at(&mut after, 0).expect("read");
            prop_assert_eq!(before, after, "the header was overwritten");
            // What was written found its way back through tables that are still tables.
            prop_assert!(Overlay::open(file, Access::ReadOnly).is_ok());
        }
    }

    #[test]
    fn any_bytes_are_an_image_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let file = new_file();
        file.write_at(&bytes, 0).expect("write");
        file.write_at(b"QFI\xfb\0\0\0\x03", 0).expect("write");
        if let Ok(overlay) = Overlay::open(file, Access::ReadOnly) {
            walk(&overlay);
        }
    }

}

proptest! {
    // A wrapper is large.
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_damaged_wrapper_is_refused_or_maps_everything_to_its_own_place(
        at in prop_oneof![0_u64..200, (2_u64 << 20)..(2 << 20) + 16, (4_u64 << 20)..(4 << 20) + 64],
        byte in any::<u8>(),
    ) {
        let file = new_file();
        write_wrapper(&*file, 9 << 20, "/head.raw").expect("write");
        let mut before = [0];
        file.read_at(&mut before, at).expect("read");
        file.write_at(&[byte], at).expect("damage");
        let outcome = verify_wrapper(&*file, 9 << 20, "/head.raw");
        let maps = (2 << 20..2 << 20 | 8).contains(&at) || (4 << 20..(4 << 20) + 40).contains(&at);
        if maps && before[0] != byte {
            prop_assert!(outcome.is_err());
        }
    }
}

#[test]
fn a_cluster_on_top_of_tables_is_refused() {
    for place in [0, 1, 2, 3, FIRST_TABLE] {
        let file = make_overlay();
        let word = (place * SEGMENT_CLUSTER) | 1 << 63;
        // The entry of the first cluster in the first L2 table.
        file.write_at(&word.to_be_bytes(), FIRST_TABLE * SEGMENT_CLUSTER)
            .expect("damage");
        let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
        let error = overlay.extents(0..4096).next().expect("an extent");
        assert!(
            matches!(error, Err(MapError::Damaged { offset: 0, .. })),
            "{place}: {error:?}"
        );
        overlay
            .write(0, &[1; 512], &zeroes_below)
            .expect_err("a write on top of tables");
    }
}

#[test]
fn one_l2_table_for_two_parts_of_the_disk_is_refused() {
    let file = make_overlay();
    let word = (FIRST_TABLE * SEGMENT_CLUSTER) | 1 << 63;
    file.write_at(&word.to_be_bytes(), SEGMENT_CLUSTER + 8)
        .expect("damage");
    let error = Overlay::open(file, Access::ReadOnly).expect_err("a shared table");
    assert!(matches!(error, OpenError::SharedTable { .. }), "{error:?}");
}

#[test]
fn a_huge_size_is_refused_before_memory_is_taken() {
    for size in [u64::MAX, 1 << 62, 1 << 56] {
        let file = make_overlay();
        file.write_at(&size.to_be_bytes(), 24).expect("damage");
        Overlay::open(file, Access::ReadOnly).expect_err("no table maps that");
    }
}

#[test]
fn a_request_beyond_the_end_is_refused() {
    let file = make_overlay();
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        let bytes = vec![0; len as usize];
        overlay
            .write(offset, &bytes, &zeroes_below)
            .expect_err("a write beyond the end");
        overlay
            .write_zeroes(offset, len, &zeroes_below)
            .expect_err("zeroes beyond the end");
        let mut buffer = bytes;
        overlay
            .read(offset, &mut buffer, &zeroes_below)
            .expect_err("a read beyond the end");
    }
}

#[test]
fn a_failing_read_from_below_fails_the_write_and_changes_nothing() {
    let file = make_overlay();
    let overlay = Overlay::open(file, Access::ReadWrite).expect("open");
    let broken = |_: u64, _: &mut [u8]| Err(io::Error::other("a bad sector"));
    let offset = 20 * SEGMENT_CLUSTER;
    overlay
        .write(offset + 512, &[1; 512], &broken)
        .expect_err("nothing to fill up with");
    assert_eq!(overlay.allocated(offset..offset + 4096).count(), 0);
    // The cluster is not claimed for ever.
    overlay
        .write(offset + 512, &[1; 512], &zeroes_below)
        .expect("write");
    assert_eq!(overlay.allocated(offset..offset + 8192).count(), 1);
}

fn plan(data_len: u64, virtual_size: u64, layout: Layout) -> Seal<'static> {
    Seal {
        data_len,
        virtual_size,
        layout,
        backing: Backing {
            name: "2.next",
            format: BackingFormat::Qcow2,
        },
    }
}

fn cluster(guest: u64, host: Option<u64>, data: u32, zero: u32) -> SealedCluster {
    SealedCluster {
        guest,
        host,
        data,
        zero,
    }
}

/// Seals clusters in a file of three clusters for a disk of eight.
fn seal_here(clusters: &[SealedCluster], layout: Layout) -> Result<(), SealError> {
    let file = new_file();
    file.set_len(3 * SEGMENT_CLUSTER).expect("extend");
    let plan = plan(3 * SEGMENT_CLUSTER, 8 * SEGMENT_CLUSTER, layout);
    let outcome = seal(&*file, &plan, clusters.iter().copied());
    if outcome.is_err() {
        let mut magic = [0; 4];
        file.read_at(&mut magic, 0).expect("read");
        assert_eq!(magic, [0; 4], "a header in spite of an error");
    }
    outcome.map(drop)
}

#[test]
fn clusters_that_contradict_each_other_are_not_sealed() {
    const C: u64 = SEGMENT_CLUSTER;
    let extended = |clusters: &[SealedCluster]| seal_here(clusters, Layout::ExtendedL2);

    let order = extended(&[cluster(2, Some(C), 1, 0), cluster(1, Some(2 * C), 1, 0)]);
    assert!(matches!(order, Err(SealError::Order { .. })), "{order:?}");
    let twice = extended(&[cluster(2, Some(C), 1, 0), cluster(2, Some(2 * C), 1, 0)]);
    assert!(matches!(twice, Err(SealError::Order { .. })), "{twice:?}");
    let both = extended(&[cluster(2, Some(C), 3, 2)]);
    assert!(
        matches!(both, Err(SealError::DataAndZero { guest: 2 })),
        "{both:?}"
    );
    let shared = extended(&[cluster(1, Some(C), 1, 0), cluster(2, Some(C), 2, 0)]);
    assert!(
        matches!(shared, Err(SealError::Shared { guest: 2 })),
        "{shared:?}"
    );
    let beyond = extended(&[cluster(8, Some(C), 1, 0)]);
    assert!(
        matches!(beyond, Err(SealError::BeyondEnd { guest: 8 })),
        "{beyond:?}"
    );
    let beyond = extended(&[cluster(u64::MAX, Some(C), 1, 0)]);
    assert!(
        matches!(beyond, Err(SealError::BeyondEnd { .. })),
        "{beyond:?}"
    );
    for host in [
        None,
        Some(0),
        Some(C + 4096),
        Some(3 * C),
        Some(u64::MAX - C + 1),
    ] {
        let host = extended(&[cluster(2, host, 1, 0)]);
        assert!(
            matches!(host, Err(SealError::Host { guest: 2, .. })),
            "{host:?}"
        );
    }
    let mixed = seal_here(&[cluster(2, Some(C), 1, 0)], Layout::Plain64K);
    assert!(
        matches!(mixed, Err(SealError::NotPlain { guest: 2 })),
        "{mixed:?}"
    );
    extended(&[cluster(2, Some(C), 1, 2), cluster(3, None, 0, 1)]).expect("all is well");
}

#[test]
fn sealing_counts_tables_and_clusters_with_data() {
    for (layout, data_clusters) in [(Layout::ExtendedL2, 2), (Layout::Plain64K, 3)] {
        let file = new_file();
        file.set_len(3 * SEGMENT_CLUSTER).expect("extend");
        let clusters = [
            cluster(1, Some(2 * SEGMENT_CLUSTER), u32::MAX, 0),
            cluster(2, None, 0, u32::MAX),
            cluster(9000, Some(SEGMENT_CLUSTER), 0xFFFF, 0),
        ];
        let plan = plan(3 * SEGMENT_CLUSTER, 9001 * SEGMENT_CLUSTER, layout);
        let info = seal(&*file, &plan, clusters).expect("seal");
        assert_eq!(
            (info.l2_tables, info.data_clusters, info.file_len),
            (2, data_clusters, file.len().expect("measure"))
        );
    }
}

#[test]
fn a_file_that_was_not_cut_is_not_sealed() {
    let file = new_file();
    file.set_len(3 * SEGMENT_CLUSTER).expect("extend");
    let plan = plan(2 * SEGMENT_CLUSTER, SEGMENT_CLUSTER, Layout::ExtendedL2);
    let outcome = seal(&*file, &plan, []);
    assert!(
        matches!(outcome, Err(SealError::NotCut { .. })),
        "{outcome:?}"
    );
}

#[test]
fn plain_clusters_are_chosen_exactly_if_every_half_is_whole() {
    let size = 4 * SEGMENT_CLUSTER + 5 * SUB_BLOCK + 512;
    let host = Some(SEGMENT_CLUSTER);
    let choose = |data, zero| Layout::choose(size, [cluster(1, host, data, zero)]);
    assert_eq!(choose(0xFFFF, 0xFFFF_0000), Layout::Plain64K);
    assert_eq!(choose(0xFFFF_0000, 0), Layout::Plain64K);
    assert_eq!(choose(u32::MAX, 0), Layout::Plain64K);
    assert_eq!(choose(0x7FFF, 0), Layout::ExtendedL2);
    assert_eq!(choose(0xFF, 0xFF00), Layout::ExtendedL2);
    assert_eq!(choose(0, 1), Layout::ExtendedL2);
    // At the end of the disk, six sub-blocks are a whole half, whatever the rest claims.
    let last = |data, zero| Layout::choose(size, [cluster(4, host, data, zero)]);
    assert_eq!(last(0x3F, 0), Layout::Plain64K);
    assert_eq!(last(0xFF, 0), Layout::Plain64K);
    assert_eq!(last(0, 0x3F), Layout::Plain64K);
    assert_eq!(last(0x1F, 0), Layout::ExtendedL2);
}

#[test]
fn names_that_qemu_would_misunderstand_are_refused() {
    let long = "x".repeat(1024);
    for name in ["", "nbd:host", "json:{}", "a\0b", &long] {
        let backing = Backing {
            name,
            format: BackingFormat::Qcow2,
        };
        let outcome = create_overlay(&*new_file(), 4096, Below::Named(backing));
        assert!(
            matches!(outcome, Err(CreateError::Backing { .. })),
            "{name:?}: {outcome:?}"
        );
    }
    for name in ["7.next", "./a:b", "/x/a:b", &long[..1023]] {
        let backing = Backing {
            name,
            format: BackingFormat::Qcow2,
        };
        let file = new_file();
        create_overlay(&*file, 4096, Below::Named(backing)).expect(name);
        Overlay::open(file, Access::ReadWrite).expect(name);
    }
}
