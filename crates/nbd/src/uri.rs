//! The address of one export: `nbd://`, `nbds://`, `nbd+unix://`, `nbds+unix://`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::protocol::MAX_STRING;

/// The port that the protocol has registered.
const DEFAULT_PORT: u16 = 10809;

/// Room for the longest export name with every byte escaped, and a socket path.
const MAX_URI: usize = 4 * MAX_STRING;

/// The longest path a unix socket can have, in bytes.
const MAX_SOCKET_PATH: usize = 107;

/// The longest host name that DNS allows.
const MAX_HOST: usize = 255;

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A host name or address, an IPv6 address without brackets, and a port.
    Tcp { host: String, port: u16 },
}

/// One export of one server, and whether TLS is demanded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NbdUri {
    endpoint: Endpoint,
    tls: bool,
    export: String,
}

/// A text that is no [`NbdUri`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUri {
    #[error("the URI is longer than {MAX_URI} bytes")]
    TooLong,
    #[error("unknown scheme {0:?}: use nbd, nbds, nbd+unix or nbds+unix, followed by ://")]
    Scheme(String),
    #[error("the host is empty or too long: use nbd://host[:port]/export")]
    Host,
    #[error("{0:?} is no port: use a number from 1 to 65535")]
    Port(String),
    #[error("a user name in the URI is not supported: authenticate with a TLS certificate")]
    User,
    #[error("a unix socket has no host: use nbd+unix:///export?socket=/path")]
    HostOfUnixSocket,
    #[error("the path of the unix socket is missing: add ?socket=/path")]
    SocketMissing,
    #[error("the path of the unix socket must have 1 to {MAX_SOCKET_PATH} bytes, none of them NUL")]
    SocketPath,
    #[error("unknown parameter {0:?}: only socket= of nbd+unix and nbds+unix is known")]
    Parameter(String),
    #[error("a fragment (#...) means nothing in an NBD URI: escape # as %23")]
    Fragment,
    #[error("% must be followed by two hexadecimal digits")]
    Escape,
    #[error("the export name must be UTF-8 of at most {MAX_STRING} bytes without NUL")]
    Export,
}

impl NbdUri {
    /// The export `export` of the unix socket `path`, without TLS.
    ///
    /// # Errors
    /// When the path or the name cannot be used.
    pub fn unix(path: impl Into<PathBuf>, export: &str) -> Result<Self, InvalidUri> {
        let path = path.into();
        check_socket_path(&path)?;
        check_export(export)?;
        Ok(Self {
            endpoint: Endpoint::Unix(path),
            tls: false,
            export: export.to_owned(),
        })
    }

    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// True for `nbds` and `nbds+unix`: never speak to this server in plain text.
    #[must_use]
    pub fn demands_tls(&self) -> bool {
        self.tls
    }

    /// The name of the export; empty for the default export.
    #[must_use]
    pub fn export(&self) -> &str {
        &self.export
    }
}

impl FromStr for NbdUri {
    type Err = InvalidUri;

    fn from_str(text: &str) -> Result<Self, InvalidUri> {
        if text.len() > MAX_URI {
            return Err(InvalidUri::TooLong);
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| InvalidUri::Scheme(beginning(text)))?;
        let (unix, tls) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return Err(InvalidUri::Scheme(beginning(scheme))),
        };
        if rest.contains('#') {
            return Err(InvalidUri::Fragment);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = String::from_utf8(unescape(path)?).map_err(|_| InvalidUri::Export)?;
        check_export(&export)?;
        let socket = socket_parameter(query)?;
        let endpoint = match (unix, socket) {
            (true, _) if !authority.is_empty() => return Err(InvalidUri::HostOfUnixSocket),
            (true, None) => return Err(InvalidUri::SocketMissing),
            (true, Some(path)) => Endpoint::Unix(path),
            (false, Some(_)) => return Err(InvalidUri::Parameter("socket".to_owned())),
            (false, None) => parse_authority(authority)?,
        };
        Ok(Self {
            endpoint,
            tls,
            export,
        })
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "nbds" } else { "nbd" })?;
        let export = escape(self.export.as_bytes());
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let socket = escape(path.as_os_str().as_bytes());
                write!(f, "+unix:///{export}?socket={socket}")
            }
            Endpoint::Tcp { host, port } if host.contains(':') => {
                write!(f, "://[{host}]:{port}/{export}")
            }
            Endpoint::Tcp { host, port } => write!(f, "://{host}:{port}/{export}"),
        }
    }
}

fn parse_authority(authority: &str) -> Result<Endpoint, InvalidUri> {
    if authority.contains('@') {
        return Err(InvalidUri::User);
    }
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(InvalidUri::Host)?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(InvalidUri::Host);
        }
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err(InvalidUri::Host),
        }
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let usable = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(usable) {
        return Err(InvalidUri::Host);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(text) => text
            .bytes()
            .all(|c| c.is_ascii_digit())
            .then(|| text.parse().ok())
            .flatten()
            .filter(|port| *port > 0)
            .ok_or_else(|| InvalidUri::Port(beginning(text)))?,
    };
    Ok(Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn socket_parameter(query: &str) -> Result<Option<PathBuf>, InvalidUri> {
    let mut socket = None;
    for parameter in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if name != "socket" || socket.is_some() {
            return Err(InvalidUri::Parameter(beginning(name)));
        }
        let path = PathBuf::from(OsString::from_vec(unescape(value)?));
        check_socket_path(&path)?;
        socket = Some(path);
    }
    Ok(socket)
}

fn check_socket_path(path: &Path) -> Result<(), InvalidUri> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_SOCKET_PATH || bytes.contains(&0) {
        return Err(InvalidUri::SocketPath);
    }
    Ok(())
}

fn check_export(export: &str) -> Result<(), InvalidUri> {
    if export.len() > MAX_STRING || export.contains('\0') {
        return Err(InvalidUri::Export);
    }
    Ok(())
}

fn unescape(text: &str) -> Result<Vec<u8>, InvalidUri> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|c| char::from(c).to_digit(16))
                .and_then(|value| u8::try_from(value).ok())
                .ok_or(InvalidUri::Escape)
        };
        out.push(digit()? << 4 | digit()?);
    }
    Ok(out)
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn every_kind_of_address_is_understood() {
        let cases = [
            ("nbd://host", tcp("host", 10809), false, ""),
            ("nbd://host/", tcp("host", 10809), false, ""),
            ("nbds://10.0.0.1:99/disk", tcp("10.0.0.1", 99), true, "disk"),
            ("nbd://[::1]:1/a/b", tcp("::1", 1), false, "a/b"),
            ("NBD://[fe80::1]//x", tcp("fe80::1", 10809), false, "/x"),
            (
                "nbd+unix:///?socket=/run/s",
                Endpoint::Unix("/run/s".into()),
                false,
                "",
            ),
            (
                "nbds+unix:///e%20x%3f?socket=rel%23ative",
                Endpoint::Unix("rel#ative".into()),
                true,
                "e x?",
            ),
        ];
        for (text, endpoint, tls, export) in cases {
            let uri: NbdUri = text.parse().unwrap();
            assert_eq!(uri.endpoint(), &endpoint, "{text}");
            assert_eq!(uri.demands_tls(), tls, "{text}");
            assert_eq!(uri.export(), export, "{text}");
            assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_reason() {
        let long_path = format!("nbd+unix:///?socket=/{}", "a".repeat(107));
        let long_name = format!("nbd://h/{}", "a".repeat(4097));
        let very_long = format!("nbd://h/{}", "a".repeat(20000));
        let scheme = |s: &str| InvalidUri::Scheme(s.to_owned());
        let cases = [
            ("", scheme("")),
            ("host:1", scheme("host:1")),
            ("http://h/", scheme("http")),
            ("nbd://", InvalidUri::Host),
            ("nbd:///x", InvalidUri::Host),
            ("nbd://[::1/x", InvalidUri::Host),
            ("nbd://[nonsense]/x", InvalidUri::Host),
            ("nbd://a b/x", InvalidUri::Host),
            ("nbd://h:0/x", InvalidUri::Port("0".to_owned())),
            ("nbd://h:/x", InvalidUri::Port(String::new())),
            ("nbd://h:+5/x", InvalidUri::Port("+5".to_owned())),
            ("nbd://h:65536/x", InvalidUri::Port("65536".to_owned())),
            ("nbd://::1/x", InvalidUri::Host),
            ("nbd://alice@h/x", InvalidUri::User),
            ("nbd+unix://h/x?socket=/s", InvalidUri::HostOfUnixSocket),
            ("nbd+unix:///x", InvalidUri::SocketMissing),
            ("nbd+unix:///x?socket=", InvalidUri::SocketPath),
            ("nbd+unix:///x?socket=/%00", InvalidUri::SocketPath),
            (&long_path, InvalidUri::SocketPath),
            (
                "nbd+unix:///x?socket=/a&socket=/b",
                InvalidUri::Parameter("socket".to_owned()),
            ),
            (
                "nbd://h/x?socket=/a",
                InvalidUri::Parameter("socket".to_owned()),
            ),
            (
                "nbds://h/x?tls-psk-file=/a",
                InvalidUri::Parameter("tls-psk-file".to_owned()),
            ),
            ("nbd://h/x#y", InvalidUri::Fragment),
            ("nbd://h/%", InvalidUri::Escape),
            ("nbd://h/%4", InvalidUri::Escape),
            ("nbd://h/%zz", InvalidUri::Escape),
            ("nbd://h/%00", InvalidUri::Export),
            ("nbd://h/%ff", InvalidUri::Export),
            (&long_name, InvalidUri::Export),
            (&very_long, InvalidUri::TooLong),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<NbdUri>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = text.parse::<NbdUri>();
        }

        #[test]
        fn a_uri_means_the_same_after_it_was_printed(
            export in "[^\\x00]{0,40}",
            path in "[^\\x00]{1,20}",
        ) {
            let uri = NbdUri::unix(path, &export).unwrap();
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }
}
