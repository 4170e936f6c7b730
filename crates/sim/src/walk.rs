//! Long random walks: further than all orders can be followed.

use crate::explore::Broken;
use crate::heal;
use crate::moves::Move;
use crate::world::{Budget, World};

/// A walk of `moves` moves that `seed` chooses; the budget is filled up whenever little is left
/// to happen. Every `healing` moves it is asked whether all becomes well once faults end.
///
/// # Errors
/// The rule that a move broke, with all the moves before it.
pub fn walk(start: &World, seed: u64, moves: usize, healing: usize) -> Result<World, Box<Broken>> {
    let mut random = Random(seed | 1);
    let mut world = start.clone();
    let mut trace: Vec<(Move, Vec<String>)> = Vec::new();
    for number in 0..moves {
        // 250 lineages and writes are what their numbers can tell apart.
        if world.ghost.lineages > 230 || world.ghost.writes.len() > 240 {
            break;
        }
        world.budget = Budget {
            crashes: u8::from(random.below(10) == 0),
            lost: [u8::from(random.below(6) == 0); 2],
            repeated: [u8::from(random.below(10) == 0 && world.late.len() < 3); 2],
            slow: [u8::from(random.below(4) == 0); 2],
            writes: u8::from(random.below(4) == 0),
            commands: u8::from(random.below(4) == 0),
            cycles: [1; 2],
        };
        let possible = world.moves();
        if possible.is_empty() {
            continue;
        }
        let one = possible[random.below(possible.len())].clone();
        let outcome = world.make(&one);
        trace.push((one, world.phases()));
        let outcome = outcome.and_then(|()| {
            if number.is_multiple_of(healing) {
                heal::becomes_well(&world)
            } else {
                Ok(())
            }
        });
        if let Err(rule) = outcome {
            return Err(Box::new(Broken {
                rule,
                start: start.phases(),
                trace,
            }));
        }
    }
    Ok(world)
}

/// A small generator (xorshift64*): walks repeat from their seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let mixed = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(mixed).map_or(0, |mixed| mixed % limit)
    }
}
