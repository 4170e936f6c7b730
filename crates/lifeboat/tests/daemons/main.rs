//! Two daemons of the real program: a bad line between them, and deaths at steps of each flow.
//!
//! Daemons are followed by the registers of their processor, and each kind has its own.
#![cfg(target_arch = "x86_64")]

mod cut_line;
mod host;
mod pair;
mod relay;
mod space;
mod steps;
mod tracer;
