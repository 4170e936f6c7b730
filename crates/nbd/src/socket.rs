//! Unix and TCP sockets as a [`Wire`].

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, shutdown, socket_with, sockopt,
};

use crate::deadline::Deadline;
use crate::wire::Wire;

/// Large enough that a sender fills a whole request while the receiver copies the
/// last one; the system may grant less.
const SOCKET_BUFFER: usize = 2 << 20;

/// How often a full backlog of a unix listener is tried again.
const BACKLOG_RETRY: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A connected stream socket of either family.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        // Fails where the system forbids the size; the default works too.
        let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER);
        Self { fd }
    }

    pub(crate) fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::new(stream.into()))
    }

    pub(crate) fn connect_unix(path: &Path, deadline: Deadline) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let fd = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        loop {
            match connect(&fd, &address) {
                Ok(()) => return Ok(Self::new(fd)),
                // A unix socket that cannot connect at once has a full backlog.
                Err(Errno::AGAIN) => {
                    if deadline.has_passed() {
                        return Err(Deadline::expired());
                    }
                    std::thread::sleep(BACKLOG_RETRY);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn connect_tcp(address: &SocketAddr, deadline: Deadline) -> io::Result<Self> {
        let stream = match deadline.remaining() {
            None => TcpStream::connect(address)?,
            Some(left) if left.is_zero() => return Err(Deadline::expired()),
            Some(left) => TcpStream::connect_timeout(address, left)?,
        };
        Self::from_tcp(stream)
    }

    fn wait(&self, what: PollFlags, deadline: Deadline) -> io::Result<()> {
        let mut polled = [PollFd::new(&self.fd, what)];
        let timeout = match deadline.remaining() {
            None => None,
            Some(left) if left.is_zero() => return Err(Deadline::expired()),
            Some(left) => Some(Timespec::try_from(left).map_err(io::Error::other)?),
        };
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Wire for Socket {
    fn receive(&self, into: &mut [u8], deadline: Deadline) -> io::Result<usize> {
        loop {
            match recv(&self.fd, &mut *into, RecvFlags::DONTWAIT) {
                Ok((_, received)) => return Ok(received),
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn send(&self, parts: &[IoSlice<'_>], deadline: Deadline) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.fd, parts, &mut SendAncillaryBuffer::default(), flags) {
                Ok(sent) => return Ok(sent),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn finish(&self, _deadline: Deadline) -> io::Result<()> {
        Ok(shutdown(&self.fd, Shutdown::Write)?)
    }

    fn stop_receiving(&self) {
        // Fails only when the peer is gone already, and then receiving ends anyway.
        let _ = shutdown(&self.fd, Shutdown::Read);
    }

    fn close(&self) {
        let _ = shutdown(&self.fd, Shutdown::Both);
    }
}
