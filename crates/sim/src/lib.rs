//! Test tooling: every order of events that two or three sides of a VM's replication can meet.
//!
//! [`World`] is two hosts with the real [`Record`](lifeboat_model::relationship::Record) each, or
//! three, where the middle one has two: a replica's, and one that forwards. It has
//! abstract disks, maps, spools, stores and messages around them. [`World::moves`] lists what may
//! happen next: an effect is run, a host crashes before or after its result is saved, a message or its
//! answer is lost, or comes a second time much later, a guest writes, an operator gives
//! any command that is not refused. [`explore()`] tries all of them, breadth first, within a
//! [`Budget`]; [`walk()`] follows random ones much further. After each move the rules of [`rules`] are
//! checked, and [`heal`] asks whether faults that end are overcome.
//!
//! What it promises: within the budget no order of events was left out, and a broken rule is shown as
//! the shortest list of moves that breaks it. What it does not do: real bytes, real time, a
//! relationship that is removed. What a record is told of the one beside it is told at
//! once: that the driver does so before any effect is run is promised, not explored.

mod disk;
mod explore;
pub mod heal;
mod hosts;
mod moves;
mod operator;
pub mod rules;
mod scenes;
mod walk;
mod world;

pub use explore::{Broken, Explored, explore, explore_from_all};
pub use moves::{Fate, Move};
pub use operator::Command;
pub use scenes::{ExtendedScene, Scene};
pub use walk::walk;
pub use world::{Budget, Side, World};
