//! The protocol between hosts.

mod distrust;
mod message;
pub mod pki;
mod port;
mod tls;

pub use distrust::{Distrust, PeerDistrust, WhyNotTrusted};
pub use message::*;
pub use port::{Host, PeerName};
pub use tls::{PeerTls, ReloadableTls};
