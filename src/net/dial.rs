//! Connects to an address, without waiting longer than whoever asks wants to.

use std::io;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use super::socket_address::TryFromAddress;
use super::stream::Stream;
use crate::address::Address;
use crate::sys;

/// Connects. Cancel safe: what is dropped half-way is closed. Must be called in a tokio runtime.
///
/// # Errors
/// What connect(2) says, and `EMFILE` when only the reserve of descriptors is left. `WouldBlock` is
/// a Unix socket whose queue is full.
pub(crate) async fn dial(address: &Address) -> io::Result<Stream> {
    let peer = SockAddr::try_from_address(address)?;
    let domain = Domain::from(i32::from(peer.family()));
    let new = || Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None);
    let socket = sys::reserve::open(new)?;
    let is_under_way = match socket.connect(&peer) {
        Ok(()) => false,
        // The answer comes later; an interrupted connect(2) goes on as well.
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
    let stream = Stream::new(socket, super::Peer::new(&peer))?;
    if is_under_way {
        stream.connected().await?;
    }
    Ok(stream)
}
