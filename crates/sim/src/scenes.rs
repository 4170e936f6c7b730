//! Where explorations begin: places that are far from a relationship that was just made.

use crate::moves::{Fate, Move};
use crate::operator::Command;
use crate::world::{Budget, FORWARDER, MIDDLE, THIRD, World};

/// Nothing goes wrong on the way to a scene.
const UNBOUNDED: Budget = Budget {
    crashes: 0,
    lost: [0; 2],
    repeated: [0; 2],
    slow: [0; 2],
    writes: u8::MAX,
    commands: u8::MAX,
    cycles: [u8::MAX; 2],
};

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

/// A place to begin at with three hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedScene {
    /// Both relationships were just made, the guest runs.
    New,
    /// The first two replicate; the third is to get its first copy.
    Starting,
    /// All three replicate, and hold the same.
    Replicating,
    /// The middle host has moments that the third has not.
    Behind,
    /// A planned failover is prepared on the first two.
    Prepared,
    /// The middle host has failed over to an older point than the third holds, and its guest runs.
    MiddleTakenOver,
    /// That failover is committed, and the guest has written.
    MiddleCommitted,
    /// The middle host protects the VM on the third, and the first is left.
    Left,
    /// The third host has failed over while the first two live; nobody has heard of it.
    ThirdTakenOver,
    /// The same, committed, and all have heard of it.
    ThirdCommitted,
    /// The primary went on without the word of a middle host that had heard that it would stop.
    WentOnAlone,
}

impl ExtendedScene {
    pub const ALL: [Self; 11] = [
        Self::New,
        Self::Starting,
        Self::Replicating,
        Self::Behind,
        Self::Prepared,
        Self::MiddleTakenOver,
        Self::MiddleCommitted,
        Self::Left,
        Self::ThirdTakenOver,
        Self::ThirdCommitted,
        Self::WentOnAlone,
    ];

    /// The world there, with the budget for what follows.
    #[must_use]
    pub fn world(self, budget: Budget) -> World {
        let mut world = World::extended(UNBOUNDED);
        match self {
            Self::New => {}
            Self::Starting => replicate(&mut world),
            Self::Replicating => extend(&mut world),
            Self::Behind => {
                extend(&mut world);
                cycle(&mut world, 0);
            }
            Self::Prepared => {
                extend(&mut world);
                command(&mut world, 0, Command::StopVm);
                command(&mut world, 0, Command::Prepare);
                settle(&mut world);
            }
            Self::MiddleTakenOver => take_over_in_the_middle(&mut world),
            Self::MiddleCommitted => commit_in_the_middle(&mut world),
            Self::Left => {
                commit_in_the_middle(&mut world);
                command(&mut world, FORWARDER, Command::BecomePrimary);
                settle(&mut world);
            }
            Self::ThirdTakenOver => {
                extend(&mut world);
                command(&mut world, THIRD, Command::FailOver);
                run(&mut world, THIRD);
                world.sides[THIRD].queue.clear();
                command(&mut world, THIRD, Command::StartVm);
                write(&mut world, THIRD);
            }
            Self::ThirdCommitted => {
                extend(&mut world);
                command(&mut world, THIRD, Command::FailOver);
                settle(&mut world);
                command(&mut world, THIRD, Command::Commit);
                settle(&mut world);
                command(&mut world, THIRD, Command::StartVm);
                write(&mut world, THIRD);
            }
            Self::WentOnAlone => {
                extend(&mut world);
                command(&mut world, 0, Command::StopVm);
                command(&mut world, 0, Command::Prepare);
                settle(&mut world);
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
        let mut world = World::new(UNBOUNDED);
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
    run(world, 1);
    world.sides[1].queue.clear();
}

/// All three replicate and hold the same: the copy to the third is closed by a moment that comes
/// after it began.
fn extend(world: &mut World) {
    replicate(world);
    command(world, FORWARDER, Command::StartReplication);
    settle(world);
    cycle(world, FORWARDER);
    cycle(world, 0);
    cycle(world, FORWARDER);
    cycle(world, 0);
    cycle(world, FORWARDER);
}

/// A moment of one side is captured and applied by the other.
fn cycle(world: &mut World, side: usize) {
    if side == 0 {
        write(world, 0);
    }
    make(world, &Move::Due { side });
    settle(world);
}

/// The middle host fails over to a point that is older than what the third holds.
fn take_over_in_the_middle(world: &mut World) {
    extend(world);
    let points = &world.sides[MIDDLE]
        .store
        .as_ref()
        .expect("BUG: no store")
        .points;
    let point = points.first().expect("BUG: no point").sequence;
    command(world, MIDDLE, Command::FailOverTo { point });
    settle(world);
    command(world, MIDDLE, Command::StartVm);
    write(world, MIDDLE);
}

fn commit_in_the_middle(world: &mut World) {
    take_over_in_the_middle(world);
    command(world, 0, Command::StopVm);
    command(world, MIDDLE, Command::Commit);
    settle(world);
    write(world, MIDDLE);
}

fn run(world: &mut World, side: usize) {
    let fate = Fate::Done;
    make(world, &Move::Run { side, fate });
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
    world.budget.cycles = [u8::MAX; 2];
    world
        .make(one)
        .unwrap_or_else(|rule| panic!("BUG: a scene breaks a rule: {rule}"));
}
