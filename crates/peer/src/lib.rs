//! The protocol between hosts.

mod message;
mod port;

pub use message::*;
pub use port::{Host, PeerName};
