//! Rules of the delta stream, checked from outside.

mod copying;
mod damage;
mod forge;
mod forged;
mod golden;
mod memory;
mod round_trip;
mod sample;
mod writing;
