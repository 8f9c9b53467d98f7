//! The epoll events of the sockets in a relay plane.
//!
//! Events are edge-triggered: the kernel reports a socket once for each change of its state. So the
//! plane watches each socket with a single system call, and a blocked connection costs nothing.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::entry::RelayEntry;
use super::settle::Side;

/// Identifies a connection among all connections of a relay plane.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowKey {
    /// The index of the connection. After its end, another connection may get the same index.
    pub(super) index: usize,
    /// Distinguishes connections with the same index.
    pub(super) number: u32,
}

/// An event of one socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketEvent {
    pub(super) key: RowKey,
    pub(super) side: Side,
    pub(super) flags: EventFlags,
}

/// How many low bits in the data of an event hold the index and the side of the connection. The
/// high bits hold its number.
const PLACE_BITS: u32 = 32;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// Watches both sockets of a connection.
pub(super) fn watch<T>(
    epoll: &OwnedFd,
    entry: &RelayEntry<T>,
    key: RowKey,
) -> rustix::io::Result<()> {
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(epoll, &entry.client, data(key, Side::Client), flags)?;
    epoll::add(epoll, &entry.upstream, data(key, Side::Upstream), flags).inspect_err(|_| {
        // Ignore an error, because the caller is about to close the socket.
        let _ = epoll::delete(epoll, &entry.client);
    })
}

/// Stops watching both sockets, because another process or the tokio runtime is to use them.
pub(super) fn unwatch<T>(epoll: &OwnedFd, entry: &RelayEntry<T>) {
    for socket in [entry.client.as_fd(), entry.upstream.as_fd()] {
        // Ignore an error, because it means that the socket is not watched.
        let _ = epoll::delete(epoll, socket);
    }
}

/// Returns the data that identifies one socket in its events. The index fits into 31 bits, because
/// each connection has two file descriptors, and a process has fewer than 2^31 of them.
const fn data(RowKey { index, number }: RowKey, side: Side) -> EventData {
    let place = ((index as u64) << 1) | matches!(side, Side::Upstream) as u64;
    EventData::new_u64(((number as u64) << PLACE_BITS) | place)
}

impl From<&epoll::Event> for SocketEvent {
    fn from(event: &epoll::Event) -> Self {
        // Copy the fields, because Rust allows no references to the fields of a packed structure.
        let (data, flags) = (event.data.u64(), event.flags);
        let (number, place) = (data >> PLACE_BITS, data & PLACE_MASK);
        let side = if place & 1 == 1 { Side::Upstream } else { Side::Client };
        // Both conversions succeed, because each part has at most 32 bits.
        let index = usize::try_from(place >> 1).unwrap_or(usize::MAX);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Self { key: RowKey { index, number }, side, flags }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_of_an_event_names_its_socket() {
        let last = RowKey { index: (1 << 30) - 1, number: u32::MAX };
        for (key, side) in [
            (RowKey { index: 0, number: 0 }, Side::Client),
            (RowKey { index: 1, number: 1 }, Side::Upstream),
            (last, Side::Upstream),
            (last, Side::Client),
        ] {
            let event = epoll::Event { flags: EventFlags::IN, data: data(key, side) };
            let found = SocketEvent::from(&event);
            assert_eq!((found.key.index, found.key.number), (key.index, key.number));
            assert_eq!((found.side, found.flags), (side, EventFlags::IN));
        }
    }
}
