//! This module connects to upstreams. It sets no time limit, so the caller must use a timeout.

use std::io;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;

use super::super::peer::Peer;
use super::super::socket_address::TryFromAddress;
use super::super::stream::{Family, Stream};
use super::relay_socket::RelaySocket;
use crate::address::Address;
use crate::sys;
use crate::sys::reserve::DescriptorClaim;

/// Connects to `address`. Cancel safe: dropping the future closes the socket. Must be called within
/// a tokio runtime.
///
/// # Errors
/// The error of connect(2), or `EMFILE` when only reserved file descriptors are left. `WouldBlock`
/// means that the backlog of a Unix socket is full.
pub(crate) async fn dial(address: &Address) -> io::Result<Stream> {
    let (socket, peer) = begin(address)?;
    let stream = Stream::new(socket, peer)?;
    if peer != Peer::Unix {
        stream.connected().await?;
    }
    Ok(stream)
}

/// Begins to connect to `address`. The connection is established when the socket becomes writable
/// (see [`RelaySocket::connected`]).
///
/// # Errors
/// Returns the error of connect(2), or `EMFILE` when only reserved file descriptors are left. If
/// connecting fails later, [`RelaySocket::connected`] returns the error.
pub(crate) fn begin_connect(address: &Address) -> io::Result<RelaySocket> {
    let (socket, peer) = begin(address)?;
    Ok(RelaySocket::new(socket, peer == Peer::Unix))
}

fn begin(address: &Address) -> io::Result<(Socket, Peer)> {
    let peer = SockAddr::try_from_address(address)?;
    let domain = Domain::from(i32::from(peer.family()));
    let new = || Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None);
    let socket = sys::reserve::open(new)?;
    match socket.connect(&peer) {
        Ok(()) => {}
        // The kernel is still connecting. After a signal has interrupted connect(2), the kernel
        // also continues to connect.
        Err(error)
            if matches!(
                error.raw_os_error().map(Errno::from_raw),
                Some(Errno::EINPROGRESS | Errno::EINTR)
            ) => {}
        Err(error) => return Err(error),
    }
    Ok((socket, Peer::new(&peer)))
}

impl Stream {
    /// Claims the file descriptor that this client's upstream connection will need, unless the
    /// client already has a claim.
    pub(crate) fn claim_descriptor(&mut self) {
        self.descriptor_claim.get_or_insert_with(DescriptorClaim::new);
    }

    /// Waits until a connect(2) that is in progress completes.
    async fn connected(&self) -> io::Result<()> {
        let interest = Interest::WRITABLE | Interest::ERROR;
        let ready = match &self.socket {
            Family::Tcp(socket) => socket.ready(interest).await?,
            Family::Unix(socket) => socket.ready(interest).await?,
        };
        // To save a system call, ask the kernel for the error only if the runtime reports an error.
        let error = if ready.is_error() { SockRef::from(self).take_error()? } else { None };
        error.map_or(Ok(()), Err)
    }
}

/// Returns whether a connection failed because this process or this machine has run out of file
/// descriptors or memory.
///
/// This does not include a lack of local ports, because the kernel limits them for each
/// destination.
pub(crate) fn is_local_shortage(error: &io::Error) -> bool {
    // ENOSPC comes from epoll_ctl(2). It means that the user already watches the maximum number of
    // file descriptors.
    let wants = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::ENOSPC];
    error.raw_os_error().is_some_and(|code| wants.contains(&Errno::from_raw(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a lack of file descriptors or memory is a local failure. Every other error counts
    /// against the upstream.
    #[test]
    fn only_a_lack_of_descriptors_or_memory_is_local() {
        let is_local_shortage = |errno: Errno| is_local_shortage(&errno.into());
        for own in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::ENOSPC] {
            assert!(is_local_shortage(own), "{own}");
        }
        for upstream in [
            Errno::EADDRNOTAVAIL,
            Errno::EAFNOSUPPORT,
            Errno::EACCES,
            Errno::EPERM,
            Errno::EAGAIN,
            Errno::EINVAL,
            Errno::ENETUNREACH,
            Errno::EHOSTUNREACH,
            Errno::ENETDOWN,
            Errno::ENODEV,
            Errno::EPROTONOSUPPORT,
            Errno::ECONNREFUSED,
            Errno::ETIMEDOUT,
            Errno::ENOENT,
        ] {
            assert!(!is_local_shortage(upstream), "{upstream}");
        }
    }
}
