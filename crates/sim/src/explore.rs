//! Every order of moves, breadth first.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::heal;
use crate::moves::Move;
use crate::rules::Rule;
use crate::world::World;

/// What was explored without finding anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    pub states: usize,
    pub transitions: usize,
    /// The longest shortest way to a state, in moves.
    pub depth: usize,
    /// States from which faults were ended and operators brought the sides together again.
    pub healed: usize,
}

/// A rule is broken, and the shortest list of moves to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub rule: Rule,
    pub start: Vec<String>,
    /// Each with the phases it leads to; the last one breaks the rule.
    pub trace: Vec<(Move, Vec<String>)>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.rule)?;
        writeln!(f, "   0. start -> {}", self.start.join(" | "))?;
        for (number, (one, phases)) in self.trace.iter().enumerate() {
            writeln!(f, "{:>4}. {one:?} -> {}", number + 1, phases.join(" | "))?;
        }
        Ok(())
    }
}

/// As [`explore`], from several places; prints what came of each and of all together.
///
/// # Errors
/// As [`explore`], with the place.
pub fn explore_from_all<S: fmt::Debug>(
    starts: impl IntoIterator<Item = (S, World)>,
    limit: usize,
    healing: u64,
) -> Result<Explored, String> {
    let mut all = Explored {
        states: 0,
        transitions: 0,
        depth: 0,
        healed: 0,
    };
    for (place, start) in starts {
        let one = explore(&start, limit, healing)
            .map_err(|broken| format!("from {place:?}: {broken}"))?;
        println!("{place:?}: {one:?}");
        all.states += one.states;
        all.transitions += one.transitions;
        all.depth = all.depth.max(one.depth);
        all.healed += one.healed;
    }
    println!("all: {all:?}");
    Ok(all)
}

/// Tries every order of moves from `start`, up to `limit` states. In one state of
/// `healing` it is asked whether all becomes well once faults end.
///
/// # Errors
/// The first broken rule found; no shorter list of moves breaks one.
pub fn explore(start: &World, limit: usize, healing: u64) -> Result<Explored, Box<Broken>> {
    let mut known = HashSet::new();
    // The way back of each state: which one it came from, by which of its moves.
    let mut parents: Vec<(u32, u16)> = vec![(0, 0)];
    let mut level = vec![(0_u32, start.clone())];
    let mut explored = Explored {
        states: 1,
        transitions: 0,
        depth: 0,
        healed: 0,
    };
    known.insert(fingerprint(start));
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for (number, world) in &level {
            for (index, one) in world.moves().iter().enumerate() {
                explored.transitions += 1;
                let mut next = world.clone();
                if let Err(rule) = next.make(one) {
                    return Err(broken(start, &parents, *number, Some(one), rule));
                }
                let print = fingerprint(&next);
                if explored.states >= limit || !known.insert(print) {
                    continue;
                }
                let came_from = (*number, u16::try_from(index).unwrap_or(u16::MAX));
                let number = u32::try_from(parents.len()).expect("BUG: more states than the limit");
                parents.push(came_from);
                explored.states += 1;
                if print.is_multiple_of(healing) {
                    explored.healed += 1;
                    let outcome =
                        heal::becomes_well(&next).and_then(|()| heal::each_survives_alone(&next));
                    if let Err(rule) = outcome {
                        return Err(broken(start, &parents, number, None, rule));
                    }
                }
                next_level.push((number, next));
            }
        }
        explored.depth += usize::from(!next_level.is_empty());
        level = next_level;
    }
    Ok(explored)
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

fn broken(
    start: &World,
    parents: &[(u32, u16)],
    state: u32,
    last: Option<&Move>,
    rule: Rule,
) -> Box<Broken> {
    let mut indexes = Vec::new();
    let mut at = state;
    while at != 0 {
        let (parent, index) = parents[at as usize];
        indexes.push(usize::from(index));
        at = parent;
    }
    let mut world = start.clone();
    let mut trace = Vec::new();
    for index in indexes.into_iter().rev() {
        let one = world.moves().swap_remove(index);
        world
            .make(&one)
            .expect("BUG: a move that broke no rule breaks one when repeated");
        trace.push((one, world.phases()));
    }
    if let Some(one) = last {
        // The phases after a broken rule are what the move had come to.
        let _is_broken = world.make(one);
        trace.push((one.clone(), world.phases()));
    }
    Box::new(Broken {
        rule,
        start: start.phases(),
        trace,
    })
}
