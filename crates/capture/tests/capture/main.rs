//! Captures of real servers, of odd ones, and of ones that fail.

mod counts;
mod memory;
mod nbdkit;
mod odd;
mod peers;
mod qemu;
mod refused;
mod replica;
mod shaped;
