//! The daemon of one host: everything named and tied together.

mod alerts;
pub mod config;
mod serve;

pub use config::{Config, DEFAULT_CONFIG};
pub use serve::serve;
