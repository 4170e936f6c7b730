//! Where a server listens.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::socket::Socket;

/// Connections the system keeps for us until they are accepted.
const BACKLOG: i32 = 64;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket that only its owner may use. A socket left behind by a server that
    /// is gone is replaced; any other file stays, and is an error.
    Unix(PathBuf),
    /// Port 0 takes any free port.
    Tcp(SocketAddr),
}

/// A server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("listen on {path}: another server does")]
    InUse { path: PathBuf },
    #[error("listen on {path}: the file there is no socket, and is left alone")]
    NotASocket { path: PathBuf },
    #[error("listen on {path}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("listen on {address}")]
    Tcp {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("start the thread that accepts connections")]
    Thread { source: io::Error },
}

#[derive(Debug)]
pub(super) enum Listener {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// Device and inode, so that only our own socket is removed.
        identity: (u64, u64),
    },
    Tcp(TcpListener),
}

impl Listener {
    pub(super) fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        match address {
            ListenAddress::Unix(path) => Self::bind_unix(path),
            ListenAddress::Tcp(address) => {
                let bound = || {
                    let listener = TcpListener::bind(address)?;
                    listener.set_nonblocking(true)?;
                    Ok(Self::Tcp(listener))
                };
                bound().map_err(|source| BindError::Tcp {
                    address: *address,
                    source,
                })
            }
        }
    }

    fn bind_unix(path: &Path) -> Result<Self, BindError> {
        let failed = |source| BindError::Unix {
            path: path.to_owned(),
            source,
        };
        remove_stale(path)?;
        let bound = || {
            let fd = socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            bind(&fd, &SocketAddrUnix::new(path)?)?;
            // Nobody can connect before the socket listens.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            let metadata = std::fs::symlink_metadata(path)?;
            listen(&fd, BACKLOG)?;
            Ok(Self::Unix {
                listener: fd.into(),
                path: path.to_owned(),
                identity: (metadata.dev(), metadata.ino()),
            })
        };
        bound().map_err(failed)
    }

    /// Where clients find the server.
    pub(super) fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Unix { path, .. } => Ok(ListenAddress::Unix(path.clone())),
            Self::Tcp(listener) => Ok(ListenAddress::Tcp(listener.local_addr()?)),
        }
    }

    /// A connection that waits, and who it is; `WouldBlock` when there is none.
    pub(super) fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                Ok((Socket::new(stream.into()), "unix".to_owned()))
            }
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Socket::from_tcp(stream)?, peer.to_string()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix { listener, .. } => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, identity, .. } = self
            && let Ok(metadata) = std::fs::symlink_metadata(&*path)
            && (metadata.dev(), metadata.ino()) == *identity
        {
            // Left behind, it is replaced by the next server.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes place at `path` if nothing but a dead socket is there.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let path_owned = || path.to_owned();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            let path = path_owned();
            return Err(BindError::Unix { path, source });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path_owned() });
        }
        Ok(_) => {}
    }
    let removed = match UnixStream::connect(path) {
        Ok(_) => return Err(BindError::InUse { path: path_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    };
    removed.map_err(|source| BindError::Unix {
        path: path_owned(),
        source,
    })
}
