//! Volumes through real NBD connections: what views show, what maps mark, what breaks.

mod captured;
mod faults;
mod fixture;
mod life;
mod maps;
mod tools;
mod views;
