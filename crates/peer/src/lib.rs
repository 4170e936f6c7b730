//! The protocol between hosts, described in `docs/peer-protocol.md`.
//!
//! A host implements [`Host`]; [`PeerServer`] lets its peers use it over mutual TLS, and
//! [`Links`] finds peers in the other direction. [`pki`] is where certificates come from.
//! Messages are checked for form and size here. What they mean, who may do what, and what a
//! repeated message does is the host's to decide: nothing here knows of relationships.

mod address;
mod cancel;
mod client;
mod distrust;
mod message;
pub mod pki;
mod port;
mod server;
pub mod testing;
mod throttle;
mod tls;
mod wire;

pub use address::{InvalidPeerAddress, PeerAddress};
pub use cancel::Cancel;
pub use client::{Link, LinkError, Links, Patience, TlsLinks};
pub use distrust::{Distrust, PeerDistrust, WhyNotTrusted};
pub use message::*;
pub use port::{Host, PeerName};
pub use server::{Limits, Observer, PeerServer, ServerEvent, StartError};
pub use throttle::{Cancelled, Pace, Rate, SleepingPace, Throttle, ThrottledRead};
pub use tls::{PeerTls, ReloadableTls};
pub use wire::{InvalidDigestQuery, MAX_ANSWER, MAX_MESSAGE};
