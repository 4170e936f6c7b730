//! The name of a host, and where it answers.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invalid::quoted;

/// A DNS name or an IP address; names are kept in lower case, without a final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

/// Text that names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} cannot name a host: use a DNS name of at most 253 characters, such as replica.example.com, or an IP address"
)]
pub struct InvalidHostName {
    name: String,
}

impl HostName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 253;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an address and no name.
    #[must_use]
    pub fn is_address(&self) -> bool {
        self.0.parse::<IpAddr>().is_ok()
    }

    /// What follows the first label: the domain of `a.example.com` is `example.com`. `None` for
    /// a single label and for an address.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        if self.is_address() {
            return None;
        }
        self.0.split_once('.').map(|(_, domain)| domain)
    }
}

impl FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(name: &str) -> Result<Self, InvalidHostName> {
        let invalid = || InvalidHostName { name: quoted(name) };
        // Longer than any address or name: nothing of it is looked at.
        if name.len() > Self::MAX_LEN + 1 {
            return Err(invalid());
        }
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(Self(address.to_string()));
        }
        let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let last = lower.rsplit('.').next().unwrap_or_default();
        let like_an_address = last.bytes().all(|c| c.is_ascii_digit());
        let valid = lower.len() <= Self::MAX_LEN && lower.split('.').all(is_label);
        if valid && !like_an_address {
            Ok(Self(lower))
        } else {
            Err(invalid())
        }
    }
}

fn is_label(label: &str) -> bool {
    let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
    (1..=63).contains(&label.len())
        && label.bytes().all(inside)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl TryFrom<String> for HostName {
    type Error = InvalidHostName;

    fn try_from(name: String) -> Result<Self, InvalidHostName> {
        name.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> String {
        name.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a host answers its peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionPoint {
    pub host: HostName,
    pub port: NonZeroU16,
}

impl fmt::Display for ConnectionPoint {
    /// `host:port`, with brackets around an IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.0.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<String> {
        text.parse::<HostName>().ok().map(String::from)
    }

    #[test]
    fn names_are_compared_without_case_and_final_dot() {
        assert_eq!(name("Alpha.Example.COM."), name("alpha.example.com"));
        assert_eq!(name("alpha").as_deref(), Some("alpha"));
        assert_eq!(name("SRV_1.lan").as_deref(), Some("srv_1.lan"));
        assert_eq!(name("2001:DB8::1").as_deref(), Some("2001:db8::1"));
        assert_eq!(name("192.0.2.1").as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn text_that_names_no_host_is_refused() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = "a.".repeat(127) + "abc";
        for text in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "-a",
            "a-",
            "a b",
            "a/b",
            "a:80",
            "*.example.com",
            "ä.example",
            "a\0",
            "192.0.2.256",
            "1.2.3",
            "12",
            "a..",
            "[::1]",
            long_label.as_str(),
            long_name.as_str(),
        ] {
            assert_eq!(name(text), None, "{text:?}");
        }
    }

    #[test]
    fn an_address_has_no_domain() {
        let domain = |text: &str| {
            let host: HostName = text.parse().unwrap();
            host.domain().map(str::to_owned)
        };
        assert_eq!(domain("a.example.com").as_deref(), Some("example.com"));
        assert_eq!(domain("alpha"), None);
        assert_eq!(domain("192.0.2.1"), None);
    }

    #[test]
    fn a_connection_point_reads_as_a_url_has_it() {
        let at = |host: &str| {
            ConnectionPoint {
                host: host.parse().unwrap(),
                port: NonZeroU16::new(443).unwrap(),
            }
            .to_string()
        };
        assert_eq!(at("replica.example"), "replica.example:443");
        assert_eq!(at("::1"), "[::1]:443");
    }
}
