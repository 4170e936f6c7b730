//! Volumes through real NBD connections: what views show, what maps mark, what breaks.

mod captured;
mod faults;
mod fixture;
mod hooked;
mod life;
mod maps;
mod moved;
mod races;
mod tools;
mod tracked;
mod tracking_host;
mod views;
