//! Where explorations begin: places that are far from a relationship that was just made.

use crate::moves::{Fate, Move};
use crate::operator::Command;
use crate::world::{Budget, World};

/// A place to begin at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// The relationship was just made, the guest runs.
    New,
    /// It replicates, the guest runs.
    Replicating,
    /// A planned failover is prepared, and the replica knows it.
    Prepared,
    /// The replica has failed over and its guest runs; the primary's runs as well and its host
    /// has heard of nothing.
    TakenOver,
    /// The failover is committed, the old primary is fenced.
    Committed,
    /// The primary went on without the word of a replica that then failed over.
    Parted,
}

impl Scene {
    pub const ALL: [Self; 6] = [
        Self::New,
        Self::Replicating,
        Self::Prepared,
        Self::TakenOver,
        Self::Committed,
        Self::Parted,
    ];

    /// The world there, with the budget for what follows.
    #[must_use]
    pub fn world(self, budget: Budget) -> World {
        let mut world = World::new(Budget {
            crashes: 0,
            lost: 0,
            repeated: 0,
            slow: 0,
            writes: u8::MAX,
            commands: u8::MAX,
            cycles: u8::MAX,
        });
        match self {
            Self::New => {}
            Self::Replicating => replicate(&mut world),
            Self::Prepared => prepare(&mut world),
            Self::TakenOver => {
                replicate(&mut world);
                take_over(&mut world);
                command(&mut world, 1, Command::StartVm);
            }
            Self::Committed => {
                replicate(&mut world);
                command(&mut world, 0, Command::StopVm);
                command(&mut world, 1, Command::FailOver);
                settle(&mut world);
                command(&mut world, 1, Command::Commit);
                settle(&mut world);
                command(&mut world, 1, Command::StartVm);
                write(&mut world, 1);
            }
            Self::Parted => {
                prepare(&mut world);
                take_over(&mut world);
                command(&mut world, 0, Command::ForceCancelPrepared);
                world.sides[0].queue.clear();
                command(&mut world, 0, Command::StartVm);
                write(&mut world, 0);
            }
        }
        world.budget = budget;
        world
    }
}

fn replicate(world: &mut World) {
    command(world, 0, Command::StartReplication);
    write(world, 0);
    settle(world);
}

fn prepare(world: &mut World) {
    replicate(world);
    command(world, 0, Command::StopVm);
    command(world, 0, Command::Prepare);
    settle(world);
}

/// The replica fails over, and its announcement never arrives.
fn take_over(world: &mut World) {
    command(world, 1, Command::FailOver);
    make(
        world,
        &Move::Run {
            side: 1,
            fate: Fate::Done,
        },
    );
    world.sides[1].queue.clear();
}

fn settle(world: &mut World) {
    loop {
        let next = world.moves().into_iter().find(|one| {
            matches!(
                one,
                Move::Run {
                    fate: Fate::Done,
                    ..
                } | Move::Apply { .. }
            )
        });
        let Some(one) = next else { return };
        make(world, &one);
    }
}

fn command(world: &mut World, side: usize, command: Command) {
    make(world, &Move::Command { side, command });
}

fn write(world: &mut World, side: usize) {
    make(world, &Move::Write { side });
}

fn make(world: &mut World, one: &Move) {
    world.budget.commands = u8::MAX;
    world.budget.writes = u8::MAX;
    world
        .make(one)
        .unwrap_or_else(|rule| panic!("BUG: a scene breaks a rule: {rule}"));
}
