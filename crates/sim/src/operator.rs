//! What operators may command, in any state in which it is not refused.

use lifeboat_model::contract::{FailoverType, InitialReplicationType};
use lifeboat_model::relationship::{
    CancelHow, Event, FailoverChoice, Operation, PrimaryGuest, ReplicaPhase, Role,
};
use lifeboat_model::{Lineage, Sequence};

use crate::hosts::power;
use crate::world::{FORWARDER, MIDDLE, NOW, World, lineage_id};

/// A command, without what the host adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    StartVm,
    StopVm,
    StartReplication,
    CancelInitial,
    Suspend,
    Resume,
    Resynchronize,
    CancelResynchronize,
    Prepare,
    CancelPrepared,
    /// Without the replica's word.
    ForceCancelPrepared,
    FailOver,
    FailOverTo {
        point: Sequence,
    },
    Revert,
    Commit,
    Reverse,
    /// The second of two relationships becomes the only one.
    BecomePrimary,
    /// This side's history is kept; the peer was asked for its own.
    Survive,
    /// The peer's history is kept.
    Yield,
}

impl Command {
    /// All but failing over to a point.
    pub const ALL: [Self; 18] = [
        Self::StartVm,
        Self::StopVm,
        Self::StartReplication,
        Self::CancelInitial,
        Self::Suspend,
        Self::Resume,
        Self::Resynchronize,
        Self::CancelResynchronize,
        Self::Prepare,
        Self::CancelPrepared,
        Self::ForceCancelPrepared,
        Self::FailOver,
        Self::Revert,
        Self::Commit,
        Self::Reverse,
        Self::BecomePrimary,
        Self::Survive,
        Self::Yield,
    ];
}

/// The commands that would change something.
#[must_use]
pub fn commands(world: &World, side: usize) -> Vec<Command> {
    let points = world.sides[side]
        .store
        .iter()
        .flat_map(|store| store.points.first())
        .map(|point| Command::FailOverTo {
            point: point.sequence,
        });
    Command::ALL
        .into_iter()
        .chain(points)
        .filter(|command| is_accepted(world, side, *command))
        .collect()
}

/// Whether the command is not refused, and does something.
#[must_use]
pub fn is_accepted(world: &World, side: usize, command: Command) -> bool {
    let here = &world.sides[side];
    match command {
        Command::StartVm => !here.is_running && here.record.may_start_vm().is_ok(),
        Command::StopVm => here.is_running,
        Command::StartReplication
        | Command::CancelInitial
        | Command::Suspend
        | Command::Resume
        | Command::Resynchronize
        | Command::CancelResynchronize
        | Command::Prepare
        | Command::CancelPrepared
        | Command::ForceCancelPrepared
        | Command::FailOver
        | Command::FailOverTo { .. }
        | Command::Revert
        | Command::Commit
        | Command::Reverse
        | Command::BecomePrimary
        | Command::Survive
        | Command::Yield => event(world, side, command).is_some_and(|event| {
            here.record
                .decide(NOW, event)
                .is_ok_and(|step| step.next != here.record || !step.effects.is_empty())
        }),
    }
}

/// Gives a command that [`commands`] has listed.
pub fn give(world: &mut World, side: usize, command: &Command) {
    match command {
        Command::StartVm => world.sides[side].is_running = true,
        Command::StopVm => world.sides[side].is_running = false,
        Command::StartReplication
        | Command::CancelInitial
        | Command::Suspend
        | Command::Resume
        | Command::Resynchronize
        | Command::CancelResynchronize
        | Command::Prepare
        | Command::CancelPrepared
        | Command::ForceCancelPrepared
        | Command::FailOver
        | Command::FailOverTo { .. }
        | Command::Revert
        | Command::Commit
        | Command::Reverse
        | Command::BecomePrimary
        | Command::Survive
        | Command::Yield => {
            let Some(event) = event(world, side, *command) else {
                return;
            };
            note(world, side, *command);
            world
                .decide(side, event)
                .unwrap_or_else(|refused| panic!("BUG: {command:?} was listed: {refused}"));
            if *command == Command::BecomePrimary {
                world.leave_first_hop();
            }
        }
    }
}

/// What an operator takes upon himself, for the rules.
fn note(world: &mut World, side: usize, command: Command) {
    let given_up = match command {
        Command::Survive => {
            world.fresh_lineage();
            told(world, world.peer(side)).id
        }
        Command::Yield => world.sides[side].record.lineage.id,
        Command::Revert => world.sides[side].view().lineage.id,
        Command::ForceCancelPrepared | Command::FailOver | Command::FailOverTo { .. } => {
            world.fresh_lineage();
            return;
        }
        Command::StartVm
        | Command::StopVm
        | Command::StartReplication
        | Command::CancelInitial
        | Command::Suspend
        | Command::Resume
        | Command::Resynchronize
        | Command::CancelResynchronize
        | Command::Prepare
        | Command::CancelPrepared
        | Command::Commit
        | Command::Reverse
        | Command::BecomePrimary => return,
    };
    if !world.ghost.given_up.contains(&given_up) {
        world.ghost.given_up.push(given_up);
    }
}

fn told(world: &World, side: usize) -> Lineage {
    world.view(side).lineage
}

/// The event that the host makes of a command; none where it makes no sense at all.
fn event(world: &World, side: usize, command: Command) -> Option<Event> {
    let here = &world.sides[side];
    let vm = power(here);
    let fresh = lineage_id(world.ghost.lineages);
    let choice = |point, kind| {
        Event::FailOver(FailoverChoice {
            point,
            kind,
            lineage: fresh,
            primary: PrimaryGuest::Overruled,
        })
    };
    if let Some(forwarder) = world.sides.get(FORWARDER).filter(|_| side == MIDDLE)
        && command == Command::Reverse
    {
        let operation = Operation::ReverseReplicationRelationship;
        forwarder.record.refuse_beside(operation).ok()?;
    }
    let event = match command {
        Command::StartVm | Command::StopVm => return None,
        Command::StartReplication => Event::Start {
            kind: InitialReplicationType::NetworkTransfer,
            at: None,
        },
        Command::CancelInitial => Event::CancelInitial,
        Command::Suspend => Event::Suspend,
        Command::Resume => Event::Resume,
        Command::Resynchronize => Event::Resynchronize { at: None },
        Command::CancelResynchronize => Event::CancelResynchronize,
        Command::Prepare => Event::Prepare { vm },
        Command::CancelPrepared => Event::CancelPrepared {
            how: CancelHow::Asking,
        },
        Command::ForceCancelPrepared => Event::CancelPrepared {
            how: CancelHow::Forced { lineage: fresh },
        },
        Command::FailOver => {
            let is_prepared = match &here.record.role {
                Role::Replica(replica) => replica.prepared.is_some(),
                Role::Primary(_) => false,
            };
            let kind = if is_prepared {
                FailoverType::Planned
            } else {
                FailoverType::Regular
            };
            choice(None, kind)
        }
        Command::FailOverTo { point } => choice(Some(point), FailoverType::Regular),
        Command::Revert => Event::Revert { vm },
        Command::Commit => Event::Commit,
        Command::Reverse => Event::Reverse,
        Command::BecomePrimary => Event::BecomePrimary,
        Command::Survive => {
            let theirs = world.view(world.peer(side));
            Event::Survive {
                over: theirs.lineage,
                ancestors: theirs.ancestors,
                lineage: fresh,
            }
        }
        Command::Yield => Event::Yield {
            to: told(world, world.peer(side)),
        },
    };
    Some(event)
}

/// Whether the side's guest may write a history of its own.
#[must_use]
pub fn has_own_history(world: &World, side: usize) -> bool {
    match world.sides[side].replica_phase() {
        Some(
            ReplicaPhase::FailedOver { .. }
            | ReplicaPhase::Committing { .. }
            | ReplicaPhase::Committed { .. }
            | ReplicaPhase::Reversing { .. },
        )
        | None => true,
        Some(
            ReplicaPhase::WaitingInitial
            | ReplicaPhase::Replicating
            | ReplicaPhase::Suspended
            | ReplicaPhase::Critical(_)
            | ReplicaPhase::Resyncing
            | ReplicaPhase::FailingOver(_)
            | ReplicaPhase::Reverting { .. },
        ) => false,
    }
}
