//! What must hold after every move, whatever happened.

use std::fmt;

use lifeboat_model::contract::FailoverType;
use lifeboat_model::relationship::{Primary, ReplicaPhase, Role};
use lifeboat_model::{Lineage, LineageId};

use crate::disk::{Delta, Disk, StoreRole, difference};
use crate::moves::Move;
use crate::operator::has_own_history;
use crate::world::{FORWARDER, MIDDLE, THIRD, World};

/// A rule that was broken, with what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub name: &'static str,
    pub shown: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.shown)
    }
}

fn broken<T>(name: &'static str, shown: impl Into<String>) -> Result<T, Rule> {
    Err(Rule {
        name,
        shown: shown.into(),
    })
}

/// The lineage that a guest's write belongs to: no two hosts ever write one.
///
/// # Errors
/// When the other host has written it, or the guest writes where it must not run.
pub fn writer(world: &mut World, at: usize) -> Result<LineageId, Rule> {
    const NAME: &str = "two guests never write one history";
    if !has_own_history(world, at) {
        return broken(
            "a guest writes only where it may run",
            format!("side {at} is {}", world.phases()[at]),
        );
    }
    let lineage = world.sides[at].view().lineage.id;
    let writers = &mut world.ghost.writers;
    match writers.iter().find(|(known, _)| *known == lineage) {
        Some((_, side)) if *side != at => broken(
            NAME,
            format!("lineage {lineage} was written on side {side} and is on side {at}"),
        ),
        Some(_) => Ok(lineage),
        None => {
            writers.push((lineage, at));
            Ok(lineage)
        }
    }
}

/// A delta that is applied makes the head what the primary's disk was.
///
/// # Errors
/// When it does not.
pub fn applied(head: &Disk, delta: &Delta) -> Result<(), Rule> {
    if *head == delta.frozen {
        Ok(())
    } else {
        broken(
            "an applied delta makes the replica what the primary was",
            format!(
                "moment {} was {:?} and the replica holds {head:?}",
                delta.sequence, delta.frozen
            ),
        )
    }
}

/// A failover that is called planned has lost nothing.
///
/// # Errors
/// When the primary holds something else and has not gone on alone.
pub fn failed_over(world: &World, at: usize) -> Result<(), Rule> {
    let Some(ReplicaPhase::FailedOver { failover, .. }) = world.sides[at].replica_phase() else {
        return Ok(());
    };
    let Some(store) = &world.sides[at].store else {
        return Ok(());
    };
    let StoreRole::FailedOver { guest, .. } = &store.role else {
        return Ok(());
    };
    let there = &world.sides[world.peer(at)];
    let went_on_alone = there.record.lineage.id != world.sides[at].record.lineage.id;
    if failover.kind == FailoverType::Planned
        && !went_on_alone
        && (*guest != there.disk || there.is_running)
    {
        return broken(
            "a planned failover loses nothing",
            format!(
                "the primary holds {:?} and the replica {guest:?}",
                there.disk
            ),
        );
    }
    if failover.point.is_none()
        && let Some((_, newest)) = store.applied
        && newest != *guest
    {
        return broken(
            "a failover to the newest moment starts from it",
            format!("{newest:?} is newest, {guest:?} was started"),
        );
    }
    Ok(())
}

/// What a peer is about to overwrite must be its own history, one that it has taken up, or one
/// that an operator gave up.
///
/// # Errors
/// When it is another one.
pub fn overwritten_by(
    world: &World,
    at: usize,
    lineage: LineageId,
    ancestors: &[Lineage],
) -> Result<(), Rule> {
    covered(world, &world.sides[at].disk, lineage, ancestors)
}

/// As [`overwritten_by`], for disks that become a replica's.
///
/// # Errors
/// As [`overwritten_by`].
pub fn overwritten(
    world: &World,
    disk: &Disk,
    lineage: &Lineage,
    ancestors: &[Lineage],
) -> Result<(), Rule> {
    covered(world, disk, lineage.id, ancestors)
}

fn covered(
    world: &World,
    disk: &Disk,
    lineage: LineageId,
    ancestors: &[Lineage],
) -> Result<(), Rule> {
    for write in disk.iter().filter(|write| **write > 0) {
        let history = world.ghost.writes[usize::from(*write) - 1];
        let is_known = history == lineage
            || ancestors.iter().any(|one| one.id == history)
            || world.ghost.given_up.contains(&history);
        if !is_known {
            return broken(
                "a history is overwritten only by its descendants",
                format!("write {write} of lineage {history} would go; {lineage} does not know it"),
            );
        }
    }
    Ok(())
}

/// The rules that compare before and after.
///
/// # Errors
/// The first one that is broken.
pub fn check(before: &World, after: &World, one: &Move) -> Result<(), Rule> {
    for at in 0..after.sides.len() {
        commit_stays(before, after, at)?;
        numbers_grow(before, after, at)?;
        guest_may_run(after, at, one)?;
        fence_holds(before, after, at)?;
        pause_holds(before, after, at, one)?;
        planned_keeps_off(after, at)?;
        nothing_is_lost(after, at)?;
    }
    guests_write_apart(after)?;
    points_agree(after)
}

/// Wherever guests run at a time, each writes a history of its own.
fn guests_write_apart(world: &World) -> Result<(), Rule> {
    let writes = |at: usize| {
        let side = &world.sides[at];
        (side.is_running && has_own_history(world, at)).then(|| side.view().lineage.id)
    };
    for at in 0..world.hosts() {
        for there in 0..at {
            if writes(at).is_some() && writes(at) == writes(there) {
                return broken(
                    "two guests never write one history",
                    format!("sides {there} and {at} both run in one lineage"),
                );
            }
        }
    }
    Ok(())
}

/// A point of the third host is a moment of the primary's: where the middle one has a point of the
/// same number, it holds the same.
fn points_agree(world: &World) -> Result<(), Rule> {
    if !world.is_extended() {
        return Ok(());
    }
    let points = |at: usize| world.sides[at].store.iter().flat_map(|store| &store.points);
    for point in points(THIRD) {
        let differs = points(MIDDLE).any(|held| {
            held.lineage == point.lineage
                && held.sequence == point.sequence
                && held.disk != point.disk
        });
        if differs {
            return broken(
                "points of the third host are points of the primary",
                format!("moment {} is {:?} there", point.sequence, point.disk),
            );
        }
    }
    Ok(())
}

/// Nothing leaves for the third host but what the middle one holds as its primary's.
///
/// # Errors
/// When something else is about to leave.
pub fn forwarded(world: &World, at: usize) -> Result<(), Rule> {
    let middle = &world.sides[MIDDLE];
    if at != FORWARDER || middle.whole_moment().is_some_and(|_| follows(world)) {
        Ok(())
    } else {
        broken(
            "only moments of the primary are forwarded",
            format!("the middle host is {}", world.phases()[MIDDLE]),
        )
    }
}

fn follows(world: &World) -> bool {
    let phase = world.sides[MIDDLE].replica_phase();
    phase.is_some_and(|phase| !phase.has_failed_over())
}

fn is_committed(world: &World, at: usize) -> bool {
    matches!(
        world.sides[at].replica_phase(),
        Some(ReplicaPhase::Committed { .. } | ReplicaPhase::Reversing { .. })
    )
}

/// A commit is final: from then on the side is a primary to be, until it is adopted.
fn commit_stays(before: &World, after: &World, at: usize) -> Result<(), Rule> {
    if !is_committed(before, at) || is_committed(after, at) {
        return Ok(());
    }
    let (old, new) = (&before.sides[at].record, &after.sides[at].record);
    let is_fine = match &new.role {
        Role::Primary(_) => new.lineage == old.lineage,
        Role::Replica(replica) => {
            replica.phase == ReplicaPhase::Resyncing
                && new.lineage != old.lineage
                && new.ancestors.contains(&old.lineage)
        }
    };
    if is_fine {
        Ok(())
    } else {
        broken(
            "a commit is never undone",
            format!("side {at} is {} after a commit", after.phases()[at]),
        )
    }
}

fn numbers_grow(before: &World, after: &World, at: usize) -> Result<(), Rule> {
    let (old, new) = (&before.sides[at].record, &after.sides[at].record);
    if new.drawn < old.drawn {
        return broken(
            "no number is drawn twice",
            format!("side {at} had drawn {} and then {}", old.drawn, new.drawn),
        );
    }
    let lost = old
        .ancestors
        .iter()
        .find(|one| !new.ancestors.contains(one));
    match lost {
        Some(one) => broken(
            "no history is forgotten",
            format!("side {at} forgot lineage {}", one.id),
        ),
        None => Ok(()),
    }
}

/// A guest is started only where the record allows it, and one whose primary is prepared is off.
fn guest_may_run(world: &World, at: usize, one: &Move) -> Result<(), Rule> {
    let side = &world.sides[at];
    let is_locked = match &side.record.role {
        Role::Primary(
            Primary::Preparing { .. } | Primary::Prepared { .. } | Primary::AskingToGoOn { .. },
        ) => true,
        Role::Primary(
            Primary::Ready { .. }
            | Primary::Copying(_)
            | Primary::Replicating { .. }
            | Primary::Suspended { .. }
            | Primary::Critical { .. }
            | Primary::ResyncRequired { .. }
            | Primary::Resyncing(_)
            | Primary::ResyncSuspended(_)
            | Primary::Fenced { .. },
        ) => false,
        Role::Replica(_) => !has_own_history(world, at),
    };
    if is_locked && side.is_running {
        broken(
            "a guest runs only where it may",
            format!("side {at} is {} after {one:?}", world.phases()[at]),
        )
    } else {
        Ok(())
    }
}

/// A fence falls by itself only after the failover that put it up was reverted.
fn fence_holds(before: &World, after: &World, at: usize) -> Result<(), Rule> {
    let (old, new) = (&before.sides[at].record, &after.sides[at].record);
    let (Role::Primary(Primary::Fenced { by, .. }), Role::Primary(primary)) =
        (&old.role, &new.role)
    else {
        return Ok(());
    };
    let is_fenced = matches!(primary, Primary::Fenced { .. });
    // The first host hears of the third through the middle one.
    let passed_on = after.sides.get(FORWARDER).filter(|_| at == 0);
    let told_by = [Some(&after.sides[after.peer(at)]), passed_on];
    let is_given_up = told_by
        .into_iter()
        .flatten()
        .any(|side| side.record.ancestors.contains(by));
    if is_fenced || old.lineage != new.lineage || is_given_up {
        Ok(())
    } else {
        broken(
            "a fence falls only after the failover is given up",
            format!("side {at} is {}", after.phases()[at]),
        )
    }
}

/// Only a command ends an operator's pause; trouble may take its place.
fn pause_holds(before: &World, after: &World, at: usize, one: &Move) -> Result<(), Rule> {
    let is_paused = matches!(
        before.sides[at].record.role,
        Role::Primary(Primary::Suspended { .. } | Primary::ResyncSuspended(_))
    );
    let goes_on = matches!(
        after.sides[at].record.role,
        Role::Primary(
            Primary::Copying(_)
                | Primary::Replicating { .. }
                | Primary::Preparing { .. }
                | Primary::Prepared { .. }
                | Primary::AskingToGoOn { .. }
                | Primary::Resyncing(_)
        )
    );
    if is_paused && goes_on && !matches!(one, Move::Command { .. }) {
        broken(
            "only an operator ends an operator's pause",
            format!("side {at} is {} after {one:?}", after.phases()[at]),
        )
    } else {
        Ok(())
    }
}

/// Once a planned failover has begun, the primary's guest stays off, unless an operator
/// forces it, which begins another history.
fn planned_keeps_off(world: &World, at: usize) -> Result<(), Rule> {
    let (here, there) = (&world.sides[at].record, &world.sides[world.peer(at)].record);
    let Role::Replica(replica) = &here.role else {
        return Ok(());
    };
    let is_planned = match &replica.phase {
        ReplicaPhase::FailingOver(failover)
        | ReplicaPhase::FailedOver { failover, .. }
        | ReplicaPhase::Committing { failover, .. } => failover.kind == FailoverType::Planned,
        ReplicaPhase::WaitingInitial
        | ReplicaPhase::Replicating
        | ReplicaPhase::Suspended
        | ReplicaPhase::Critical(_)
        | ReplicaPhase::Resyncing
        | ReplicaPhase::Reverting { .. }
        | ReplicaPhase::Committed { .. }
        | ReplicaPhase::Reversing { .. } => false,
    };
    let is_primary = matches!(there.role, Role::Primary(_));
    if is_planned
        && is_primary
        && here.lineage.id == there.lineage.id
        && there.may_start_vm().is_ok()
    {
        broken(
            "after a planned failover the primary's guest stays off",
            format!(
                "side {} is {}",
                world.peer(at),
                world.phases()[world.peer(at)]
            ),
        )
    } else {
        Ok(())
    }
}

/// While a primary replicates to a replica that follows it, whatever the two differ in
/// is marked: what the primary has forgotten is at the replica.
fn nothing_is_lost(world: &World, at: usize) -> Result<(), Rule> {
    let (here, there) = (&world.sides[at], &world.sides[world.peer(at)]);
    let Role::Primary(primary) = &here.record.role else {
        return Ok(());
    };
    let (Some(last), Some(maps), Some(store)) = (primary.last_receipt(), &here.maps, &there.store)
    else {
        return Ok(());
    };
    let lineage = there.record.lineage.id;
    let follows = (lineage == here.record.lineage.id || lineage == last.lineage)
        && there.replica_phase().is_some()
        && store.role == StoreRole::Replica
        && store.open_copy().is_none();
    let is_tracked = maps.first().is_some_and(|first| first <= last.sequence);
    if !follows || !is_tracked {
        return Ok(());
    }
    if store.tip.is_none_or(|(tip, _)| tip < last.sequence) {
        return broken(
            "a delta with a receipt is at the replica",
            format!("moment {} is not there", last.sequence),
        );
    }
    let mut newest = there.disk;
    for delta in &store.pending {
        delta.apply(&mut newest);
    }
    let disk = &world.sides[World::host(at)].disk;
    let unmarked = difference(disk, &newest) & !maps.changed(Some(last.sequence));
    if unmarked == 0 {
        Ok(())
    } else {
        broken(
            "what the replica lacks is marked",
            format!(
                "side {at} holds {disk:?}, its replica {newest:?}, and blocks {unmarked:02b} are not marked"
            ),
        )
    }
}
