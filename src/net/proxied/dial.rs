//! Outgoing connections. This module sets no time limit, so the caller must use a timeout.

use std::io;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;

use super::super::peer::Peer;
use super::super::socket_address::TryFromAddress;
use super::super::stream::{Family, Stream};
use crate::address::Address;
use crate::sys;

/// Connects to `address`. Cancel safe: dropping the future closes the socket. Must be called within
/// a tokio runtime.
///
/// # Errors
/// The error of connect(2), or `EMFILE` when only reserved file descriptors are left. `WouldBlock`
/// means that the backlog of a Unix socket is full.
pub(crate) async fn dial(address: &Address) -> io::Result<Stream> {
    let peer = SockAddr::try_from_address(address)?;
    let domain = Domain::from(i32::from(peer.family()));
    let new = || Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None);
    let socket = sys::reserve::open(new)?;
    let is_under_way = match socket.connect(&peer) {
        Ok(()) => false,
        // The kernel is still connecting, so wait for the result below. After a signal has
        // interrupted connect(2), the kernel also continues to connect.
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EINPROGRESS | Errno::EINTR)
            ) =>
        {
            true
        }
        Err(error) => return Err(error),
    };
    let stream = Stream::new(socket, Peer::new(&peer))?;
    if is_under_way {
        stream.connected().await?;
    }
    Ok(stream)
}

impl Stream {
    /// Waits until a connect(2) that is in progress completes.
    async fn connected(&self) -> io::Result<()> {
        let interest = Interest::WRITABLE | Interest::ERROR;
        let ready = match &self.socket {
            Family::Tcp(socket) => socket.ready(interest).await?,
            Family::Unix(socket) => socket.ready(interest).await?,
        };
        // To save a system call, ask the kernel for the error only if the runtime has seen one.
        let error = if ready.is_error() { SockRef::from(self).take_error()? } else { None };
        error.map_or(Ok(()), Err)
    }
}
