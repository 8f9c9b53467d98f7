//! Sends and receives packets on a channel, and asks sockets what only an ioctl tells.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, recv, send, sendmsg,
    setsockopt, socketpair, sockopt,
};

/// Two ends of a channel: packets keep their bounds, and the end of one side is end of file at the
/// other, unix(7).
pub(crate) fn channel_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(Into::into)
}

/// Sends one packet, whole or not at all, without waiting.
pub(crate) fn send_packet(channel: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(channel.as_raw_fd(), packet, flags).map(drop).map_err(Into::into)
}

/// Sends one packet with copies of descriptors, unix(7): whole or not at all.
pub(crate) fn send_with_descriptors(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(packet)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.map(drop).map_err(Into::into)
}

/// How often and how long after one another a call is repeated whose failure will pass.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// Whether a call may succeed at another time: the kernel had no memory for it, this user has too
/// many descriptors on their way (unix(7)), or a signal came.
pub(crate) fn will_pass(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOMEM | Errno::ENOBUFS | Errno::ETOOMANYREFS | Errno::EINTR))
}

/// Repeats a call whose failure will pass: 100 tries, 1 ms apart. A lost message could cost a
/// handoff.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match call() {
            Err(error) if will_pass(&error) => pause(),
            done => return done,
        }
    }
    call()
}

/// Waits a millisecond, blocking the thread.
#[expect(clippy::disallowed_methods, reason = "the kernel does not say when it has memory again")]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}

/// The user who connected a Unix socket, unix(7).
pub(crate) fn peer_user(socket: &impl AsFd) -> io::Result<u32> {
    getsockopt(socket, sockopt::PeerCredentials).map(|peer| peer.uid()).map_err(Into::into)
}

/// The index of an interface that no machine has.
const NO_INTERFACE: libc::c_int = libc::c_int::MAX;

/// Keeps new connections from a listening socket. Only a process with CAP_NET_RAW can undo that,
/// socket(7).
pub(crate) fn bind_to_no_interface(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, option::BindToInterface, &NO_INTERFACE).map_err(Into::into)
}

mod option {
    use nix::{libc, setsockopt_impl, sockopt_impl};

    // Other than `SO_BINDTODEVICE` it takes an interface that is not there.
    sockopt_impl!(BindToInterface, SetOnly, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, libc::c_int);
}

/// What came in.
pub(crate) enum Packet {
    /// A packet of that many bytes.
    Whole(usize),
    /// A packet that is longer than the buffer; the rest of it is gone.
    Truncated,
    /// The other end is closed, and everything that it sent has been read.
    End,
}

/// Receives one packet without waiting: `WouldBlock` when there is none.
pub(crate) fn receive_packet(channel: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    loop {
        // With MSG_TRUNC the kernel says how long the packet was, recv(2).
        match recv(channel.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(0) => return Ok(Packet::End),
            Ok(length) if length > buffer.len() => return Ok(Packet::Truncated),
            Ok(length) => return Ok(Packet::Whole(length)),
            // The other end was closed with packets of ours unread. That is told once, ahead of
            // what it had sent before: its last words are still to come.
            Err(Errno::ECONNRESET | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Looks at what has arrived without taking it: how many bytes it were, none at the peer's end.
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
        .map_err(Into::into)
}

/// Whether `socket` can be an end of a channel.
pub(crate) fn is_channel(socket: BorrowedFd<'_>) -> bool {
    let socket = socket2::SockRef::from(&socket);
    matches!(
        (socket.domain(), socket.r#type()),
        (Ok(socket2::Domain::UNIX), Ok(socket2::Type::SEQPACKET))
    )
}

/// Whether nobody holds the other end of a channel any more.
pub(crate) fn has_hung_up(channel: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::new(channel, PollFlags::empty())];
    nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok()
        && poll[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

mod ioctl {
    nix::ioctl_read_bad!(outq, nix::libc::TIOCOUTQ, nix::libc::c_int);
}

/// Bytes that were written and that the peer's kernel has not acknowledged yet, tcp(7) and unix(7).
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int, to a place that lives until the call returns.
    unsafe { ioctl::outq(socket.as_raw_fd(), &raw mut count) }?;
    usize::try_from(count).map_err(io::Error::other)
}
