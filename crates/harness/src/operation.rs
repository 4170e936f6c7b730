//! Every operation that changes a store, made repeatable: a store in a state in which the
//! operation has work to do, the operation itself, and what must hold after a fault in it.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use lifeboat_model::contract::PointKind;
use lifeboat_model::{BLOCK_SIZE, Lineage, LineageId, Sequence, Timestamp};
use lifeboat_store::{
    CopyKind, CopyStatus, FailoverTarget, Heads, NewCopy, Reversal, Role, Store, StoreError,
};
use lifeboat_sys::disk::{DiskPort, GuestDisk};

use crate::{
    Activity, Random, ShadowVm, compare_point, compare_points, copy_piece, copy_rest,
    read_failover_disk, read_file,
};

const NOW: Timestamp = Timestamp::from_micros(1);
const LINEAGE: LineageId = LineageId::from_bytes([0xF0; 16]);
const SURVIVOR: LineageId = LineageId::from_bytes([0xF1; 16]);
/// Sectors at any place.
const UNALIGNED: Activity = Activity {
    operations: 4,
    max_sectors: 120,
    alignment: 1,
};
/// Whole blocks, some of them in runs that are long enough to be shared.
const ALIGNED: Activity = Activity {
    operations: 3,
    max_sectors: 300,
    alignment: 8,
};

/// One kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Receive,
    Apply,
    Boundary,
    Seal,
    Merge,
    Drop,
    FailoverNewest,
    FailoverOlder,
    Revert,
    CommitNewest,
    CommitOlder,
    Resize,
    BeginCopy,
    Piece,
    CloseCopy,
    FailoverCopying,
    Flatten,
    Rejoin,
}

/// What is true of a store before and after an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub tip: Sequence,
    pub points: BTreeSet<Sequence>,
    pub role: Role,
    /// The copy of whole disks that is under way.
    pub copy: Option<CopyStatus>,
}

/// How much of what follows a fault is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What was promised is there and right, and what waits is applied.
    Promises,
    /// The store also takes in another delta, is sealed and opened again, and verifies.
    Future,
}

/// A store that waits for an operation.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub operation: Operation,
    pub shadow: ShadowVm,
    /// What the guest sees of its disks, where it was failed over.
    pub guest: Option<Vec<Vec<u8>>>,
    /// The delta that is to be received.
    pub stream: Vec<u8>,
    pub before: Facts,
}

impl Operation {
    pub const ALL: [Self; 18] = [
        Self::Receive,
        Self::Apply,
        Self::Boundary,
        Self::Seal,
        Self::Merge,
        Self::Drop,
        Self::FailoverNewest,
        Self::FailoverOlder,
        Self::Revert,
        Self::CommitNewest,
        Self::CommitOlder,
        Self::Resize,
        Self::BeginCopy,
        Self::Piece,
        Self::CloseCopy,
        Self::FailoverCopying,
        Self::Flatten,
        Self::Rejoin,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Apply => "apply",
            Self::Boundary => "boundary",
            Self::Seal => "seal",
            Self::Merge => "merge",
            Self::Drop => "drop",
            Self::FailoverNewest => "failover-newest",
            Self::FailoverOlder => "failover-older",
            Self::Revert => "revert",
            Self::CommitNewest => "commit-newest",
            Self::CommitOlder => "commit-older",
            Self::Resize => "resize",
            Self::BeginCopy => "begin-copy",
            Self::Piece => "piece",
            Self::CloseCopy => "close-copy",
            Self::FailoverCopying => "failover-copying",
            Self::Flatten => "flatten",
            Self::Rejoin => "rejoin",
        }
    }

    /// Makes a store for which this operation is due, and closes it.
    ///
    /// # Panics
    /// When the store fails without a fault.
    pub fn prepare(self, seed: u64, disk: &Arc<dyn DiskPort>, root: &Path) -> Prepared {
        let mut random = Random::new(seed);
        let sizes = [(40 + random.below(300)) * 512, (8 + random.below(99)) * 512];
        let mut shadow = ShadowVm::new(seed, &sizes[..1 + random.below(2) as usize]);
        let mut store =
            Store::init(Arc::clone(disk), root, &shadow.new_store(), "test").expect("make a store");
        apply_one(&mut store, &mut shadow);
        for _ in 0..3 + random.below(2) {
            store
                .make_point(NOW, PointKind::Standard)
                .expect("make a point");
            if random.one_in(3) {
                store.seal().expect("seal");
            }
            apply_one(&mut store, &mut shadow);
        }
        let older = FailoverTarget::Point(store.points()[1].sequence);
        let mut prepared = Prepared {
            operation: self,
            shadow,
            guest: None,
            stream: Vec::new(),
            before: Facts::of(&store),
        };
        match self {
            Self::Boundary | Self::Seal | Self::Drop => {}
            Self::Receive => prepared.stream = prepared.delta(),
            // Something has to wait in the spool of each of these.
            Self::Apply | Self::FailoverNewest | Self::FailoverOlder => {
                prepared.receive(&mut store);
                prepared.receive(&mut store);
            }
            Self::Resize => {
                for at in 0..prepared.shadow.names().len() {
                    let size = (8 + random.below(400)) * 512;
                    prepared.shadow.resize(at, size);
                }
                prepared.receive(&mut store);
            }
            Self::BeginCopy => {
                // Something waits, and the number is drawn.
                prepared.receive(&mut store);
                prepared.shadow.begin_copy();
            }
            Self::Piece => {
                let copy = prepared.begin_copy(&mut store);
                let range = piece_range(&store);
                prepared.stream = prepared.shadow.capture_piece(copy, 0, range);
            }
            Self::CloseCopy => {
                prepared.begin_copy(&mut store);
                copy_rest(&mut store, &mut prepared.shadow, &mut random).expect("copy");
                prepared.shadow.work(UNALIGNED);
                let closing = prepared.shadow.capture_closing();
                store.receive(&closing[..]).expect("receive");
            }
            Self::FailoverCopying => {
                let copy = prepared.begin_copy(&mut store);
                let range = piece_range(&store);
                copy_piece(&mut store, &mut prepared.shadow, copy, 0, range).expect("copy");
            }
            Self::Flatten => {
                prepared.guest = Some(prepared.shadow.at(store.applied()).to_vec());
                prepared.receive(&mut store);
            }
            Self::Rejoin => {
                prepared.fail_over(&mut store, FailoverTarget::Newest, &mut random);
                store.commit(&mut |_| {}).expect("commit");
                let guest = prepared.guest.clone().expect("BUG: the guest has disks");
                prepared.shadow.change_sides(SURVIVOR, &guest);
            }
            Self::Merge => store.seal().expect("seal"),
            Self::Revert => {
                prepared.receive(&mut store);
                prepared.fail_over(&mut store, older, &mut random);
            }
            Self::CommitNewest => {
                prepared.fail_over(&mut store, FailoverTarget::Newest, &mut random);
            }
            Self::CommitOlder => prepared.fail_over(&mut store, older, &mut random),
        }
        prepared.before = Facts::of(&store);
        prepared
    }

    /// Runs the operation.
    ///
    /// # Errors
    /// What the store says.
    pub fn run(self, store: &mut Store, stream: &[u8]) -> Result<(), StoreError> {
        let fail_over = |store: &mut Store, target| {
            store
                .start_failover(target, LINEAGE, NOW, &mut |_| {})
                .map(|_| ())
        };
        match self {
            Self::Receive => store.receive(stream).map(|_| ()),
            Self::Apply | Self::Resize | Self::CloseCopy => apply_all(store),
            Self::BeginCopy => {
                let new = NewCopy {
                    sequence: store.tip().next().expect("BUG: a test ran out of numbers"),
                    kind: CopyKind::Resync,
                };
                store.begin_copy(new, NOW).map(|_| ())
            }
            Self::Piece => {
                let range = piece_range(store);
                let chunk = crate::decode_piece(store, stream, 0, range);
                store.write_chunk(&chunk.expect("BUG: a valid piece"))
            }
            Self::Boundary => store.make_point(NOW, PointKind::Standard).map(|_| ()),
            Self::Seal => store.seal(),
            Self::Merge => store.remove_point(store.points()[1].sequence),
            Self::Drop => store.remove_point(store.points()[0].sequence),
            Self::FailoverNewest | Self::FailoverCopying => {
                fail_over(store, FailoverTarget::Newest)
            }
            Self::FailoverOlder => {
                let point = store.points()[1].sequence;
                fail_over(store, FailoverTarget::Point(point))
            }
            Self::Revert => store.revert_failover(),
            Self::Flatten => store.flatten(),
            Self::Rejoin => store.rejoin(&reversal_of(store), NOW),
            Self::CommitNewest | Self::CommitOlder => {
                store.commit(&mut |_| {})?;
                store.empty_trash()
            }
        }
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|operation| operation.name() == name)
            .ok_or_else(|| format!("there is no operation {name}"))
    }
}

impl Facts {
    #[must_use]
    pub fn of(store: &Store) -> Self {
        Self {
            tip: store.tip(),
            points: store.points().iter().map(|point| point.sequence).collect(),
            role: store.role(),
            copy: store.copy_status(),
        }
    }

    /// Refuses facts that hold neither before nor after the operation, nor on the way.
    fn refuse_unless_between(&self, before: &Self, after: &Self) -> Result<(), String> {
        let kept: BTreeSet<_> = before.points.intersection(&after.points).collect();
        let known: BTreeSet<_> = before.points.union(&after.points).collect();
        let found: BTreeSet<_> = self.points.iter().collect();
        let right = (self.tip == before.tip || self.tip == after.tip)
            && (self.role == before.role || self.role == after.role)
            && (self.copy == before.copy || self.copy == after.copy)
            && kept.is_subset(&found)
            && found.is_subset(&known);
        if right {
            Ok(())
        } else {
            Err(format!(
                "the store says {self:?}, which lies not between {before:?} and {after:?}"
            ))
        }
    }
}

impl Prepared {
    fn delta(&mut self) -> Vec<u8> {
        self.shadow.work(UNALIGNED);
        self.shadow.work(ALIGNED);
        self.shadow.capture()
    }

    fn receive(&mut self, store: &mut Store) {
        let stream = self.delta();
        store.receive(&stream[..]).expect("receive");
    }

    /// A copy of whole disks has begun, and the guest goes on.
    fn begin_copy(&mut self, store: &mut Store) -> Sequence {
        let new = NewCopy {
            sequence: self.shadow.begin_copy(),
            kind: CopyKind::Resync,
        };
        store.begin_copy(new, NOW).expect("begin a copy");
        self.shadow.work(ALIGNED);
        new.sequence
    }

    fn fail_over(&mut self, store: &mut Store, target: FailoverTarget, random: &mut Random) {
        let started = store
            .start_failover(target, LINEAGE, NOW, &mut |_| {})
            .expect("fail over");
        let mut disks = self.shadow.at(started.sequence).to_vec();
        for (name, bytes) in self.shadow.names().iter().zip(&mut disks) {
            let disk = store.failover_disk(name).expect("open the overlay");
            bytes.resize(disk.size() as usize, 0);
            for _ in 0..4 {
                let start = random.below(disk.size() / 512) * 512;
                let end = (start + (1 + random.below(40)) * 512).min(disk.size());
                let range = start as usize..end as usize;
                if random.one_in(4) {
                    bytes[range].fill(0);
                    disk.zero(start, end - start).expect("zero");
                } else {
                    random.fill(&mut bytes[range.clone()]);
                    disk.write_at(&bytes[range], start).expect("write");
                }
            }
            disk.flush().expect("flush");
        }
        self.guest = Some(disks);
    }

    /// Opens the store after a fault and runs the operation again, unless it is done.
    ///
    /// # Errors
    /// When it does not succeed without a fault, or leads elsewhere than `after`.
    pub fn repeat(
        &self,
        disk: &Arc<dyn DiskPort>,
        root: &Path,
        after: &Facts,
    ) -> Result<(), String> {
        let mut store = open(disk, root)?;
        if Facts::of(&store) == self.before {
            self.operation
                .run(&mut store, &self.stream)
                .map_err(|error| in_full("repeat", &error))?;
        }
        let found = Facts::of(&store);
        if found == *after {
            Ok(())
        } else {
            Err(format!("repeated, it leads to {found:?}, not to {after:?}"))
        }
    }

    /// Opens the store after a fault in its operation: everything promised is there and right,
    /// and the store goes on. `after` is what holds when the operation has succeeded. A store
    /// that is failed over is committed at depth `Future`, and reverted otherwise.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(
        &self,
        disk: &Arc<dyn DiskPort>,
        root: &Path,
        after: &Facts,
        depth: Depth,
    ) -> Result<(), String> {
        let store = open(disk, root)?;
        let found = Facts::of(&store);
        found.refuse_unless_between(&self.before, after)?;
        compare_points(&store, &self.shadow)?;
        match found.role {
            Role::Replica => self.check_replica(disk, root, store, depth),
            Role::FailedOver => self.check_failed_over(disk, root, store, depth),
            Role::Committed => {
                let guest = self
                    .guest
                    .as_ref()
                    .ok_or("it was committed without a guest")?;
                drop(store);
                self.compare_heads(disk, root, guest)
            }
        }
    }

    /// A replica can repeat the operation, applies what it acknowledged, and goes on.
    fn check_replica(
        &self,
        disk: &Arc<dyn DiskPort>,
        root: &Path,
        mut store: Store,
        depth: Depth,
    ) -> Result<(), String> {
        let said = |what: &'static str| move |error: StoreError| in_full(what, &error);
        if self.operation == Operation::Receive {
            let received = store
                .receive(&self.stream[..])
                .map_err(said("receive again"))?;
            if received.receipt.sequence != store.tip() {
                return Err("a delta received again is not the newest".to_owned());
            }
        }
        apply_all(&mut store).map_err(said("apply"))?;
        if let Heads::Mixed(last) = store.heads() {
            let last = last.ok_or("the last moment before the copy is lost")?;
            return self.check_mixed(disk, root, store, (last, depth));
        }
        let newest = store
            .make_point(NOW, PointKind::Standard)
            .map_err(said("make a point"))?;
        compare_point(&store, newest, &self.shadow)?;
        compare_points(&store, &self.shadow)?;
        if depth == Depth::Promises {
            return Ok(());
        }
        let mut shadow = self.shadow.clone();
        shadow.work(ALIGNED);
        let stream = if shadow.newest().map(|(sequence, _)| sequence) == Some(store.tip()) {
            shadow.capture()
        } else {
            shadow.capture_whole()
        };
        store.receive(&stream[..]).map_err(said("receive"))?;
        apply_all(&mut store).map_err(said("apply"))?;
        let newest = store
            .make_point(NOW, PointKind::Standard)
            .map_err(said("make a point"))?;
        store.seal().map_err(said("seal"))?;
        compare_point(&store, newest, &shadow)?;
        drop(store);
        let store = open(disk, root)?;
        compare_points(&store, &shadow)?;
        refuse_findings(&store)
    }

    /// The last moment before a copy can be started from, and a new copy can be made.
    fn check_mixed(
        &self,
        disk: &Arc<dyn DiskPort>,
        root: &Path,
        mut store: Store,
        (last, depth): (Sequence, Depth),
    ) -> Result<(), String> {
        let said = |what: &'static str| move |error: StoreError| in_full(what, &error);
        refuse_findings(&store)?;
        let started = store
            .start_failover(FailoverTarget::Applied, LINEAGE, NOW, &mut |_| {})
            .map_err(said("fail over while disks are copied"))?;
        if started.sequence != last {
            return Err(format!("it starts from {}, not {last}", started.sequence));
        }
        for (name, expected) in self.shadow.names().iter().zip(self.shadow.at(last)) {
            let bytes = read_failover_disk(&store, name)?;
            refuse_difference(&bytes, expected)
                .map_err(|error| format!("failed-over {name}: {error}"))?;
        }
        store.revert_failover().map_err(said("revert"))?;
        compare_points(&store, &self.shadow)?;
        if depth == Depth::Promises {
            return Ok(());
        }
        let mut shadow = self.shadow.clone();
        let new = NewCopy {
            sequence: shadow.begin_copy(),
            kind: CopyKind::Resync,
        };
        store
            .begin_copy(new, NOW)
            .map_err(said("begin a new copy"))?;
        copy_rest(&mut store, &mut shadow, &mut Random::new(last.number()))?;
        let closing = shadow.capture_closing();
        store.receive(&closing[..]).map_err(said("receive"))?;
        apply_all(&mut store).map_err(said("apply"))?;
        let newest = store
            .make_point(NOW, PointKind::Standard)
            .map_err(said("make a point"))?;
        store.seal().map_err(said("seal"))?;
        compare_point(&store, newest, &shadow)?;
        drop(store);
        let store = open(disk, root)?;
        compare_points(&store, &shadow)?;
        refuse_findings(&store)
    }

    fn check_failed_over(
        &self,
        disk: &Arc<dyn DiskPort>,
        root: &Path,
        mut store: Store,
        depth: Depth,
    ) -> Result<(), String> {
        let started = store
            .started_failover()
            .ok_or("it is failed over, and yet to nothing")?;
        let expected = self
            .guest
            .clone()
            .unwrap_or_else(|| self.shadow.at(started.sequence).to_vec());
        for (name, expected) in self.shadow.names().iter().zip(&expected) {
            let bytes = read_failover_disk(&store, name)?;
            refuse_difference(&bytes, expected)
                .map_err(|error| format!("failed-over {name}: {error}"))?;
        }
        if depth == Depth::Promises {
            store
                .revert_failover()
                .map_err(|error| in_full("revert", &error))?;
            return self.check_replica(disk, root, store, depth);
        }
        store
            .commit(&mut |_| {})
            .map_err(|error| in_full("commit", &error))?;
        self.compare_heads(disk, root, &expected)
    }

    fn compare_heads(
        &self,
        disk: &Arc<dyn DiskPort>,
        root: &Path,
        expected: &[Vec<u8>],
    ) -> Result<(), String> {
        for (name, expected) in self.shadow.names().iter().zip(expected) {
            let head = root.join(format!("disks/{name}/head.raw"));
            let bytes = read_file(disk.as_ref(), &head).map_err(|error| error.to_string())?;
            refuse_difference(&bytes, expected)
                .map_err(|error| format!("committed {name}: {error}"))?;
        }
        Ok(())
    }
}

/// The reversal of a store that was committed: the next number, and a lineage that left its own.
fn reversal_of(store: &Store) -> Reversal {
    let left = store.lineage();
    Reversal {
        relationship: store.relationship(),
        lineage: Lineage {
            counter: left.counter + 1,
            id: SURVIVOR,
            forked_from: Some((left.id, store.applied())),
        },
        ancestors: [store.ancestors(), &[left]].concat(),
        drawn: store.tip().next().expect("BUG: a test ran out of numbers"),
    }
}

/// The piece that is copied: the first half of the first disk, in whole blocks.
fn piece_range(store: &Store) -> std::ops::Range<u64> {
    let size = store.disks()[0].1.bytes();
    0..(size / 2).next_multiple_of(BLOCK_SIZE).min(size)
}

fn refuse_findings(store: &Store) -> Result<(), String> {
    let verified = store
        .verify(&mut |_| {})
        .map_err(|error| in_full("verify", &error))?;
    if verified.findings.is_empty() {
        Ok(())
    } else {
        Err(format!("verify: {:?}", verified.findings))
    }
}

/// An error with its causes.
fn in_full(what: &str, error: &dyn std::error::Error) -> String {
    let mut text = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A disk that is larger today than at the point shows zeroes beyond it.
fn refuse_difference(found: &[u8], expected: &[u8]) -> Result<(), String> {
    let (same, beyond) = found.split_at(expected.len().min(found.len()));
    if same == expected && beyond.iter().all(|&byte| byte == 0) {
        Ok(())
    } else {
        Err("its bytes are wrong".to_owned())
    }
}

fn open(disk: &Arc<dyn DiskPort>, root: &Path) -> Result<Store, String> {
    Store::open(Arc::clone(disk), root, "test").map_err(|error| in_full("open", &error))
}

fn apply_all(store: &mut Store) -> Result<(), StoreError> {
    while store.apply_next(&mut |_| {})?.is_some() {}
    Ok(())
}

fn apply_one(store: &mut Store, shadow: &mut ShadowVm) {
    shadow.work(ALIGNED);
    let stream = shadow.capture();
    store.receive(&stream[..]).expect("receive");
    apply_all(store).expect("apply");
}
