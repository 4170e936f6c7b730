//! Faults end: what becomes of a world then, by itself and with an operator's help.

use lifeboat_model::relationship::{CriticalCause, Operation, Primary, Record, ReplicaPhase, Role};

use crate::disk::{Store, StoreRole};
use crate::moves::{Fate, Move};
use crate::operator::{self, Command};
use crate::rules::Rule;
use crate::world::{Budget, FORWARDER, MIDDLE, THIRD, World};

/// Rounds of timers in which whatever goes on by itself has come to rest.
const ROUNDS: usize = 12;
/// Effects that one event can lead to before timers have to come.
const EFFECTS: usize = 96;
/// Commands that bring any two sides together.
const COMMANDS: usize = 24;

/// Lets faults end, then does what an operator would, and asks that the two sides replicate and
/// hold the same.
///
/// # Errors
/// When a side never comes to rest, no command helps, or the sides differ in the end.
pub fn becomes_well(world: &World) -> Result<(), Rule> {
    let mut world = world.clone();
    world.budget = Budget {
        crashes: 0,
        lost: [0; 2],
        repeated: [0; 2],
        slow: [0; 2],
        writes: 0,
        commands: u8::MAX,
        cycles: [u8::MAX; 2],
    };
    while !world.late.is_empty() {
        world.make(&Move::Late { index: 0 })?;
    }
    let mut given = Vec::new();
    for _ in 0..COMMANDS {
        rest(&mut world)?;
        if is_well(&world) {
            return Ok(());
        }
        let Some((side, command)) = advice(&world) else {
            break;
        };
        given.push(format!("{side}: {command:?}"));
        world.budget.commands = u8::MAX;
        if !operator::is_accepted(&world, side, command) {
            return Err(stuck(
                &world,
                "the command that should help is refused",
                &given,
            ));
        }
        world.make(&Move::Command { side, command })?;
    }
    rest(&mut world)?;
    if is_well(&world) {
        Ok(())
    } else {
        Err(stuck(&world, "no command helps", &given))
    }
}

fn stuck(world: &World, why: &str, given: &[String]) -> Rule {
    Rule {
        name: "every state has a way to sides that replicate",
        shown: format!("{why}: {} after {given:?}", world.phases().join(" | ")),
    }
}

/// Whether changes reach each replica that there still is, and it lacks none.
fn is_well(world: &World) -> bool {
    if world.has_left() {
        // The first host was left, and must have noticed.
        let first_goes_on = matches!(
            world.sides[0].record.role,
            Role::Primary(
                Primary::Copying(_)
                    | Primary::Replicating { .. }
                    | Primary::Preparing { .. }
                    | Primary::Resyncing(_)
            )
        );
        return !first_goes_on && (replicates(world, MIDDLE) || replicates(world, THIRD));
    }
    let is_first_well = replicates(world, 0) || replicates(world, MIDDLE);
    is_first_well && (!world.is_extended() || replicates(world, FORWARDER) || is_second_over(world))
}

/// Whether a side's changes reach its replica, and it lacks none.
fn replicates(world: &World, at: usize) -> bool {
    let (here, there) = (&world.sides[at], &world.sides[world.peer(at)]);
    let is_sending = matches!(here.record.role, Role::Primary(Primary::Replicating { .. }));
    let is_replica = there.replica_phase() == Some(&ReplicaPhase::Replicating);
    let holds_all = there.store.as_ref().is_some_and(|store| {
        store.role == StoreRole::Replica && store.pending.is_empty() && store.copy.is_none()
    });
    is_sending
        && is_replica
        && holds_all
        && here.record.lineage.id == there.record.lineage.id
        && world.sides[World::host(at)].disk == there.disk
}

/// Whether nothing but the removal of the second relationship, which is not refused on either
/// host, is left: the third host has a history that nobody further up the chain can settle any
/// more, or the first two have changed their roles.
fn is_second_over(world: &World) -> bool {
    let [middle, third, forwarder] = [MIDDLE, THIRD, FORWARDER].map(|at| &world.sides[at].record);
    let has_parted = matches!(
        forwarder.role,
        Role::Primary(Primary::Critical {
            cause: CriticalCause::SplitBrain { .. },
            ..
        })
    );
    let is_over = has_parted
        || matches!(middle.role, Role::Primary(_))
        || matches!(
            world.sides[THIRD].replica_phase(),
            Some(ReplicaPhase::Committed { .. })
        );
    // A resynchronization is paused first.
    let may_be_removed = |record: &Record| {
        [Operation::RemoveReplicationRelationship, Operation::Suspend]
            .into_iter()
            .any(|operation| record.refuse_unless(operation).is_ok())
    };
    is_over && may_be_removed(forwarder) && may_be_removed(third)
}

/// Runs everything that goes on by itself until the phases stay the same.
fn rest(world: &mut World) -> Result<(), Rule> {
    let mut before = None;
    let mut same = 0;
    for _ in 0..ROUNDS {
        drain(world)?;
        for side in 0..world.sides.len() {
            world.budget.cycles = [u8::MAX; 2];
            let waits = Move::Due { side };
            if world.moves().contains(&waits) {
                world.make(&waits)?;
            }
            drain(world)?;
        }
        let phases = Some(world.phases());
        same = if phases == before { same + 1 } else { 0 };
        before = phases;
        if same == 2 {
            return Ok(());
        }
    }
    Err(Rule {
        name: "without faults everything comes to rest",
        shown: format!(
            "still moving after {ROUNDS} rounds: {}",
            world.phases().join(" | ")
        ),
    })
}

fn drain(world: &mut World) -> Result<(), Rule> {
    for _ in 0..EFFECTS {
        let next = world.moves().into_iter().find(|one| match one {
            Move::Run { fate, .. } => *fate == Fate::Done,
            Move::Apply { .. } | Move::Answer { .. } => true,
            Move::Crash { .. }
            | Move::PowerLoss { .. }
            | Move::SetLost
            | Move::Due { .. }
            | Move::Late { .. }
            | Move::Write { .. }
            | Move::Command { .. } => false,
        });
        let Some(one) = next else {
            return Ok(());
        };
        world.make(&one)?;
    }
    Err(Rule {
        name: "without faults everything comes to rest",
        shown: format!(
            "effects lead to effects for ever: {}",
            world.phases().join(" | ")
        ),
    })
}

/// What a sensible operator does next, from what `lifeboat health` shows on all hosts.
fn advice(world: &World) -> Option<(usize, Command)> {
    if world.has_left() {
        return for_pair(world, MIDDLE, THIRD);
    }
    let for_third = || {
        world
            .is_extended()
            .then(|| for_pair(world, FORWARDER, THIRD))?
    };
    // What can still be reverted is decided first, the last in the chain before the others.
    let third = world.sides.get(THIRD);
    if third
        .is_some_and(|side| matches!(side.replica_phase(), Some(ReplicaPhase::FailedOver { .. })))
    {
        return for_replica(world, THIRD);
    }
    for_pair(world, 0, MIDDLE).or_else(for_third)
}

fn for_pair(world: &World, one: usize, other: usize) -> Option<(usize, Command)> {
    let is_failed_over = |at: &usize| {
        matches!(
            world.sides[*at].replica_phase(),
            Some(ReplicaPhase::FailedOver { .. })
        )
    };
    // What can still be reverted is decided first.
    let order = if is_failed_over(&other) {
        [other, one]
    } else {
        [one, other]
    };
    order
        .into_iter()
        .find_map(|at| for_replica(world, at))
        .or_else(|| {
            [one, other]
                .into_iter()
                .find_map(|at| for_primary(world, at))
        })
}

fn for_replica(world: &World, at: usize) -> Option<(usize, Command)> {
    let there = &world.sides[world.peer(at)];
    let is_running = world.sides[at].is_running;
    match world.sides[at].replica_phase()? {
        ReplicaPhase::Suspended => Some((at, Command::Resume)),
        // Where the primary stands aside, the failover is kept; else it is given up.
        ReplicaPhase::FailedOver { .. } => {
            let stands_aside = matches!(
                there.record.role,
                Role::Primary(
                    Primary::Fenced { .. }
                        | Primary::Suspended { .. }
                        | Primary::ResyncSuspended(_)
                        | Primary::ResyncRequired { .. }
                        | Primary::Ready { .. }
                )
            );
            let may_commit = operator::is_accepted(world, at, Command::Commit);
            if stands_aside && may_commit {
                Some((at, Command::Commit))
            } else if is_running {
                Some((at, Command::StopVm))
            } else {
                Some((at, Command::Revert))
            }
        }
        // Its history is settled by the first hop's primary, or the relationship is removed.
        ReplicaPhase::Committed { .. } if world.sides[at].is_extended() => None,
        ReplicaPhase::Committed { .. } if at == MIDDLE && world.is_extended() => {
            Some((FORWARDER, Command::BecomePrimary))
        }
        ReplicaPhase::Committed { .. } => {
            let ancestors = &world.sides[at].record.ancestors;
            let is_parted = matches!(there.record.role, Role::Primary(_))
                && !ancestors
                    .iter()
                    .any(|one| one.id == there.record.lineage.id);
            if is_parted {
                return Some((at, Command::Survive));
            }
            if there.is_running {
                return Some((world.peer(at), Command::StopVm));
            }
            Some((at, Command::Reverse))
        }
        ReplicaPhase::WaitingInitial
        | ReplicaPhase::Replicating
        | ReplicaPhase::Critical(_)
        | ReplicaPhase::Resyncing
        | ReplicaPhase::FailingOver(_)
        | ReplicaPhase::Reverting { .. }
        | ReplicaPhase::Committing { .. }
        | ReplicaPhase::Reversing { .. } => None,
    }
}

fn for_primary(world: &World, at: usize) -> Option<(usize, Command)> {
    let Role::Primary(primary) = &world.sides[at].record.role else {
        return None;
    };
    let there = &world.sides[world.peer(at)];
    // Somebody further down the chain may have gone on with the VM.
    let has_passed_on = world.view(world.peer(at)).has_taken_over != there.view().has_taken_over;
    let is_alone = matches!(there.record.role, Role::Primary(_));
    let nobody_reverses = is_alone || there.is_extended() || has_passed_on;
    match primary {
        // Only whoever writes the history can settle it.
        Primary::Fenced { .. }
        | Primary::Critical {
            cause: CriticalCause::SplitBrain { .. },
            ..
        } if at == FORWARDER => None,
        Primary::Ready { .. } => Some((at, Command::StartReplication)),
        Primary::Suspended { .. } | Primary::ResyncSuspended(_) => Some((at, Command::Resume)),
        Primary::Prepared { .. } | Primary::AskingToGoOn { .. } => {
            Some((at, Command::CancelPrepared))
        }
        Primary::ResyncRequired { .. } => Some((at, Command::Resynchronize)),
        Primary::Critical {
            cause: CriticalCause::SplitBrain { .. },
            ..
        } if nobody_reverses => Some((at, Command::Survive)),
        Primary::Critical { .. } => Some((at, Command::Resume)),
        // The other one is the primary now, and asks for this host's disks.
        Primary::Fenced { .. } if is_alone => {
            let other_is_fenced = matches!(
                world.sides[world.peer(at)].record.role,
                Role::Primary(Primary::Fenced { .. })
            );
            if other_is_fenced {
                Some((at, Command::Survive))
            } else if world.sides[at].is_running {
                Some((at, Command::StopVm))
            } else {
                None
            }
        }
        Primary::Fenced { .. } => Some((at, Command::Survive)),
        Primary::Copying(_)
        | Primary::Replicating { .. }
        | Primary::Preparing { .. }
        | Primary::Resyncing(_) => None,
    }
}

/// As [`survives_alone`], for each host.
///
/// # Errors
/// As there.
pub fn each_survives_alone(world: &World) -> Result<(), Rule> {
    (0..world.hosts()).try_for_each(|at| survives_alone(world, at))
}

/// All peers are dead for good: from this state, commands of one side's operator alone lead to a
/// VM that may be started there. A replica that holds no whole moment yet is left out.
///
/// # Errors
/// When there is no such way.
pub fn survives_alone(world: &World, at: usize) -> Result<(), Rule> {
    let holds_nothing = |store: &Store| store.applied.is_none();
    let is_replica = world.sides[at].replica_phase().is_some();
    if is_replica && world.sides[at].store.as_ref().is_none_or(holds_nothing) {
        return Ok(());
    }
    let mut seen = Vec::new();
    let mut level = vec![world.clone()];
    for _ in 0..8 {
        let mut next_level = Vec::new();
        for one in level {
            let mut one = one;
            alone(&mut one, at)?;
            if one.sides[at].record.may_start_vm().is_ok() {
                return Ok(());
            }
            let place = (one.sides[at].record.clone(), one.sides[at].is_running);
            if seen.contains(&place) {
                continue;
            }
            seen.push(place);
            for command in operator::commands(&one, at) {
                let mut next = one.clone();
                next.budget.commands = u8::MAX;
                next.make(&Move::Command { side: at, command })?;
                next_level.push(next);
            }
        }
        level = next_level;
    }
    Err(Rule {
        name: "every state has a legal exit with the peer dead",
        shown: format!("side {at} is {} for ever", world.phases()[at]),
    })
}

/// Runs what waits on one side while nobody answers it.
fn alone(world: &mut World, at: usize) -> Result<(), Rule> {
    for _ in 0..EFFECTS {
        world.budget.lost = [u8::MAX; 2];
        if world.sides[at].answer.is_some() {
            world.make(&Move::Answer { side: at })?;
            continue;
        }
        if world.sides[at].queue.is_empty() {
            return Ok(());
        }
        let lost = Move::Run {
            side: at,
            fate: Fate::RequestLost,
        };
        let done = Move::Run {
            side: at,
            fate: Fate::Done,
        };
        // The other sides' effects are their own; only this one's queue is looked at.
        for (there, side) in world.sides.iter_mut().enumerate() {
            if there != at {
                side.queue.clear();
            }
        }
        let one = if world.moves().contains(&lost) {
            lost
        } else {
            done
        };
        world.make(&one)?;
    }
    Ok(())
}
