//! Streams that somebody has tampered with: refused by name, never a panic, nothing left
//! behind, and the store stays of use. Files and folders: `tampered_files.rs`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use lifeboat_harness::{Activity, Random, ShadowVm, compare_point, compare_points};
use lifeboat_model::contract::PointKind;
use lifeboat_model::{
    Consistency, DeltaId, DiskId, LineageId, RelationshipId, Sequence, Timestamp,
};
use lifeboat_store::{FailoverTarget, Refused, Store, StoreError};
use lifeboat_stream::{Base, Compression, Disk, Encoder, Header, Kind, Layout, Manifest, Options};
use lifeboat_sys::disk::{DiskPort, Recorder};

const ROOT: &str = "/store";
const NOW: Timestamp = Timestamp::from_micros(1);
const SIZE: u64 = 300 * 512;

fn apply_all(store: &mut Store) {
    while store.apply_next(&mut |_| {}).unwrap().is_some() {}
}

/// A replica of one disk in memory, with one point, at moment 2.
fn replica() -> (Recorder, Store, ShadowVm) {
    let disk = Recorder::new();
    let mut shadow = ShadowVm::new(1, &[SIZE]);
    let port: Arc<dyn DiskPort> = Arc::new(disk.clone());
    let mut store = Store::init(port, Path::new(ROOT), &shadow.new_store(), "test").unwrap();
    deliver(&mut store, &mut shadow);
    store.make_point(NOW, PointKind::Standard).unwrap();
    deliver(&mut store, &mut shadow);
    (disk, store, shadow)
}

fn deliver(store: &mut Store, shadow: &mut ShadowVm) {
    shadow.work(Activity::MIXED);
    store.receive(&shadow.capture()[..]).unwrap();
    apply_all(store);
}

/// What a stream says of itself, to be changed by a test.
struct Forged {
    header: Header,
    disks: Vec<(DiskId, u64)>,
}

impl Forged {
    /// The stream that would be right.
    fn next(shadow: &ShadowVm) -> Self {
        let (sequence, id) = shadow.newest().unwrap();
        let header = Header {
            relationship: shadow.relationship,
            lineage: shadow.lineage,
            base: Some(Base { sequence, id }),
            sequence: sequence.next().unwrap(),
            kind: Kind::Delta,
        };
        let disks = vec![(shadow.names()[0].clone(), SIZE)];
        Self { header, disks }
    }

    fn bytes(&self, content: u8) -> Vec<u8> {
        let disks = self.disks.iter().map(|(id, size)| Disk {
            id: id.clone(),
            size: (*size).try_into().unwrap(),
        });
        let manifest = Manifest::new(
            Timestamp::from_micros(9),
            Consistency::Crash,
            disks.collect(),
        );
        let options = Options {
            compression: Compression::None,
            layout: Layout::Compact,
        };
        let mut encoder =
            Encoder::new(Vec::new(), &self.header, &manifest.unwrap(), options).unwrap();
        if self.header.kind == Kind::Initial {
            for (at, (_, size)) in self.disks.iter().enumerate() {
                encoder.zero(at, 0, *size).unwrap();
            }
        } else {
            encoder.data(0, 0, &[content; 512]).unwrap();
        }
        encoder.finish().unwrap().1
    }
}

/// What is refused leaves the spool empty and the store of use.
fn refused(forge: impl FnOnce(&mut Forged)) -> Refused {
    let (disk, mut store, mut shadow) = replica();
    let mut forged = Forged::next(&shadow);
    forge(&mut forged);
    let outcome = store.receive(&forged.bytes(7)[..]);
    let Err(StoreError::Refused(refused)) = outcome else {
        panic!("not refused: {outcome:?}");
    };
    let spool = disk.list(Path::new("/store/spool")).unwrap();
    assert_eq!(spool.len(), 1, "{refused}: left behind: {spool:?}");
    deliver(&mut store, &mut shadow);
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &shadow).unwrap();
    compare_points(&store, &shadow).unwrap();
    refused
}

#[test]
fn the_untampered_stream_of_these_tests_is_received() {
    let (_, mut store, shadow) = replica();
    let forged = Forged::next(&shadow);
    assert!(!store.receive(&forged.bytes(7)[..]).unwrap().repeated);
}

#[test]
fn a_stream_of_another_relationship_is_refused() {
    let other = RelationshipId::from_bytes([9; 16]);
    assert!(matches!(
        refused(|forged| forged.header.relationship = other),
        Refused::OtherRelationship { theirs, .. } if theirs == other
    ));
}

#[test]
fn a_stream_of_another_lineage_is_refused() {
    let other = LineageId::from_bytes([9; 16]);
    assert!(matches!(
        refused(|forged| forged.header.lineage = other),
        Refused::OtherLineage { theirs, .. } if theirs == other
    ));
}

#[test]
fn a_stream_with_other_disks_is_refused() {
    let strange: DiskId = "strange".parse().unwrap();
    let renamed = strange.clone();
    let refusals = [
        refused(move |forged| forged.disks[0].0 = renamed),
        refused(move |forged| forged.disks.push((strange, 4096))),
    ];
    for refusal in refusals {
        assert!(matches!(refusal, Refused::OtherDisks { .. }), "{refusal}");
    }
}

#[test]
fn a_stream_on_a_moment_that_was_never_here_is_refused() {
    let base = Base {
        sequence: Sequence::new(77),
        id: DeltaId::from_bytes([7; 32]),
    };
    let refusal = refused(|forged| {
        forged.header.base = Some(base);
        forged.header.sequence = Sequence::new(78);
    });
    assert!(matches!(refusal, Refused::UnknownBase { base, .. } if base == Sequence::new(77)));
}

#[test]
fn a_stream_on_a_moment_that_was_another_one_here_is_refused() {
    let refusal = refused(|forged| {
        if let Some(base) = &mut forged.header.base {
            base.id = DeltaId::from_bytes([7; 32]);
        }
    });
    assert!(matches!(refusal, Refused::OtherBase { .. }), "{refusal}");
}

#[test]
fn whole_disks_under_an_old_number_are_refused() {
    let (_, mut store, shadow) = replica();
    let mut forged = Forged::next(&shadow);
    forged.header.base = None;
    forged.header.kind = Kind::Initial;
    forged.header.sequence = Sequence::new(2);
    assert!(matches!(
        store.receive(&forged.bytes(0)[..]),
        Err(StoreError::Refused(Refused::OtherContent { .. }))
    ));
    forged.header.sequence = Sequence::new(1 << 63);
    store.receive(&forged.bytes(0)[..]).unwrap();
    forged.header.sequence = Sequence::new((1 << 63) - 1);
    assert!(matches!(
        store.receive(&forged.bytes(0)[..]),
        Err(StoreError::Refused(Refused::TooOld { .. }))
    ));
}

#[test]
fn a_number_names_one_content_for_ever() {
    let (_, mut store, shadow) = replica();
    let forged = Forged::next(&shadow);
    let first = store.receive(&forged.bytes(1)[..]).unwrap();
    let again = store.receive(&forged.bytes(1)[..]).unwrap();
    assert_eq!((again.receipt, again.repeated), (first.receipt, true));
    for _ in 0..2 {
        assert!(matches!(
            store.receive(&forged.bytes(2)[..]),
            Err(StoreError::Refused(Refused::OtherContent { ours, .. })) if ours == first.receipt.id
        ));
        apply_all(&mut store);
    }
}

#[test]
fn a_replayed_delta_changes_nothing_however_late_it_comes() {
    let (_, mut store, mut shadow) = replica();
    shadow.work(Activity::MIXED);
    let old = shadow.capture();
    store.receive(&old[..]).unwrap();
    apply_all(&mut store);
    for _ in 0..40 {
        deliver(&mut store, &mut shadow);
        match store.receive(&old[..]) {
            Ok(received) => assert!(received.repeated),
            Err(StoreError::Refused(Refused::TooOld { .. })) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(store.pending().is_empty());
    }
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &shadow).unwrap();
}

#[test]
fn deltas_of_an_abandoned_lineage_are_refused() {
    let (_, mut store, mut shadow) = replica();
    let abandoned = LineageId::from_bytes([0xAB; 16]);
    store
        .start_failover(FailoverTarget::Newest, abandoned, NOW, &mut |_| {})
        .unwrap();
    store.revert_failover().unwrap();
    let mut forged = Forged::next(&shadow);
    forged.header.lineage = abandoned;
    assert!(matches!(
        store.receive(&forged.bytes(1)[..]),
        Err(StoreError::Refused(Refused::OtherLineage { .. }))
    ));
    deliver(&mut store, &mut shadow);
}

/// Counts what it gives, so that a reader that takes in too much is noticed.
struct Counted<'a, R> {
    inner: R,
    given: &'a mut u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        *self.given += count as u64;
        Ok(count)
    }
}

#[test]
fn a_stream_cut_anywhere_or_with_any_byte_changed_leaves_nothing_behind() {
    let (disk, mut store, mut shadow) = replica();
    shadow.work(Activity::MIXED);
    let stream = shadow.capture();
    let mut random = Random::new(4);
    let cuts = (0..stream.len())
        .step_by(97)
        .map(|len| stream[..len].to_vec());
    let mut damaged: Vec<Vec<u8>> = cuts.collect();
    // Every byte of the beginning, where names, sizes and counts stand, and many others.
    let others: Vec<usize> = (0..1500)
        .map(|_| random.below(stream.len() as u64) as usize)
        .collect();
    for at in (0..400.min(stream.len())).chain(others) {
        let mut changed = stream.clone();
        changed[at] ^= 1 << random.below(8);
        damaged.push(changed);
    }
    let mut longer = stream.clone();
    longer.push(0);
    damaged.push(longer);
    let count = damaged.len();
    for (number, bytes) in damaged.into_iter().enumerate() {
        let mut given = 0;
        let reader = Counted {
            inner: &bytes[..],
            given: &mut given,
        };
        match store.receive(reader) {
            Err(StoreError::Delta { .. } | StoreError::Refused(_)) => {}
            other => panic!("damaged stream {number}: {other:?}"),
        }
        let spool = disk.list(Path::new("/store/spool")).unwrap();
        assert_eq!(spool.len(), 1, "damaged stream {number} left {spool:?}");
    }
    println!("{count} damaged streams refused");
    store.receive(&stream[..]).unwrap();
    apply_all(&mut store);
    let newest = store.make_point(NOW, PointKind::Standard).unwrap();
    compare_point(&store, newest, &shadow).unwrap();
}

#[test]
fn names_that_would_leave_the_folder_are_never_used() {
    let (disk, mut store, shadow) = replica();
    let stream = Forged::next(&shadow).bytes(1);
    let at = stream
        .windows(5)
        .position(|window| window == b"disk0")
        .unwrap();
    for name in [
        *b"../d0", *b"a/b/c", *b"d\0sk0", *b"DISK0", *b".....", [0xFF; 5],
    ] {
        let mut forged = stream.clone();
        forged[at..at + 5].copy_from_slice(&name);
        let error = store.receive(&forged[..]).unwrap_err();
        assert!(
            matches!(error, StoreError::Delta { .. }),
            "{name:?}: {error:?}"
        );
    }
    assert_eq!(disk.list(Path::new("/")).unwrap().len(), 1);
}

#[test]
fn an_endless_stream_is_ended_by_the_room_there_is() {
    let (disk, mut store, mut shadow) = replica();
    disk.limit_capacity(Some(disk.occupied() + (1 << 20)));
    let (mut given, start) = (0, Forged::next(&shadow).bytes(1));
    let endless = std::io::Cursor::new(start[..110].to_vec()).chain(std::io::repeat(0));
    let error = store
        .receive(Counted {
            inner: endless,
            given: &mut given,
        })
        .unwrap_err();
    assert!(matches!(
        error,
        StoreError::Delta { .. } | StoreError::DiskFull { .. }
    ));
    assert!(given < 8 << 20, "{given} bytes were taken in");
    disk.limit_capacity(None);
    deliver(&mut store, &mut shadow);
}
