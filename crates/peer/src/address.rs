//! Where a peer answers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::pki::checked_host_name;

/// A host by name or IP address, and a port: `replica-1.example:8473`, `[2001:db8::1]:8473`.
/// Without a port, [`PeerAddress::DEFAULT_PORT`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress {
    host: PeerHost,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PeerHost {
    Name(String),
    Address(IpAddr),
}

/// A text that is no [`PeerAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no address of a peer: write HOST, HOST:PORT, an IPv4 address with or without :PORT, or [IPV6]:PORT"
)]
pub struct InvalidPeerAddress {
    text: String,
}

impl PeerAddress {
    /// Where hosts listen unless they are told otherwise.
    pub const DEFAULT_PORT: u16 = 8473;

    /// The name or IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.host {
            PeerHost::Name(name) => name.clone(),
            PeerHost::Address(address) => address.to_string(),
        }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn peer_host(&self) -> &PeerHost {
        &self.host
    }
}

impl FromStr for PeerAddress {
    type Err = InvalidPeerAddress;

    fn from_str(text: &str) -> Result<Self, InvalidPeerAddress> {
        parse(text).ok_or_else(|| InvalidPeerAddress {
            text: text.chars().take(80).collect(),
        })
    }
}

fn parse(text: &str) -> Option<PeerAddress> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(PeerAddress {
            host: PeerHost::Address(address),
            port: PeerAddress::DEFAULT_PORT,
        });
    }
    let (host, port) = match text.rsplit_once(':') {
        // The colon is inside the brackets.
        Some(_) if text.ends_with(']') => (text, PeerAddress::DEFAULT_PORT),
        Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => {
            (host, port.parse().ok().filter(|port| *port != 0)?)
        }
        Some(_) => return None,
        None => (text, PeerAddress::DEFAULT_PORT),
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host = match bracketed {
        Some(inside) => PeerHost::Address(IpAddr::V6(inside.parse().ok()?)),
        None => match host.parse() {
            Ok(address) => PeerHost::Address(IpAddr::V4(address)),
            Err(_) => PeerHost::Name(checked_host_name(host).ok()?),
        },
    };
    Some(PeerAddress { host, port })
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            PeerHost::Name(name) => write!(f, "{name}:{}", self.port),
            PeerHost::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            PeerHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = InvalidPeerAddress;

    fn try_from(text: String) -> Result<Self, InvalidPeerAddress> {
        text.parse()
    }
}

impl From<PeerAddress> for String {
    fn from(address: PeerAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_what_it_wrote() {
        for (text, written) in [
            ("Replica-1.Example", "replica-1.example:8473"),
            ("replica:1", "replica:1"),
            ("10.0.0.1", "10.0.0.1:8473"),
            ("10.0.0.1:65535", "10.0.0.1:65535"),
            ("::1", "[::1]:8473"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[2001:db8::1]", "[2001:db8::1]:8473"),
        ] {
            let address: PeerAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), written);
            assert_eq!(written.parse(), Ok(address));
        }
    }

    #[test]
    fn texts_that_lead_nowhere_are_refused() {
        for text in [
            "",
            ":",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:-1",
            "a:b",
            "a b",
            "a/b",
            "[::1",
            "::1]:80",
            "[10.0.0.1]:80",
            "[a]:80",
            "user@a:80",
            "a:80/path",
            "256.0.0.1:80",
            "http://a",
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text:?}");
        }
    }
}
