//! Where a host answers.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of the REST interface where none is given.
const DEFAULT_PORT: u16 = 8443;

/// Where a host answers, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// A socket on this machine.
    Unix(PathBuf),
    /// TLS with certificates on both sides.
    Https { host: String, port: u16 },
}

/// Text that says no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no host: use unix:PATH, or https://HOST:PORT (port {DEFAULT_PORT} unless given)"
)]
pub struct InvalidHostAddress {
    text: String,
}

impl HostAddress {
    /// The value of the header `Host`.
    pub(super) fn host_header(&self) -> String {
        match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Https { host, port } => authority(host, *port),
        }
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https { host, port } => write!(f, "https://{}", authority(host, *port)),
        }
    }
}

impl FromStr for HostAddress {
    type Err = InvalidHostAddress;

    fn from_str(text: &str) -> Result<Self, InvalidHostAddress> {
        parse(text).ok_or_else(|| InvalidHostAddress {
            text: text.chars().take(200).collect(),
        })
    }
}

fn parse(text: &str) -> Option<HostAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        let usable = !path.is_empty() && !path.contains('\0');
        return usable.then(|| HostAddress::Unix(PathBuf::from(path)));
    }
    let authority = text.strip_prefix("https://")?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&port: &u16| port != 0)?,
        None if port.is_empty() => DEFAULT_PORT,
        None => return None,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    let valid = !host.is_empty() && host.len() <= 253 && host.chars().all(plain);
    valid.then(|| HostAddress::Https {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_what_it_wrote() {
        for text in [
            "unix:/run/lifeboat.sock",
            "https://replica.example:8443",
            "https://[2001:db8::1]:443",
            "https://192.0.2.1:9000",
        ] {
            assert_eq!(text.parse::<HostAddress>().unwrap().to_string(), text);
        }
        let short: HostAddress = "https://replica/".parse().unwrap();
        assert_eq!(short.to_string(), "https://replica:8443");
    }

    #[test]
    fn what_says_no_place_is_refused() {
        for text in [
            "",
            "unix:",
            "/run/lifeboat.sock",
            "http://replica:80",
            "https://",
            "https://:443",
            "https://replica:0",
            "https://replica:65536",
            "https://replica:x",
            "https://a b",
            "https://user@replica",
            "https://replica/v1",
            "https://[::1",
            "https://[replica]:443",
            "https://[::1]443",
            "https://a\r\nb",
        ] {
            assert!(text.parse::<HostAddress>().is_err(), "{text:?}");
        }
    }
}
