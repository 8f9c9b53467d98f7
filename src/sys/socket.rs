//! System calls on sockets: packets on a channel between processes, and socket queries and options
//! that std and tokio do not offer.

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

/// Creates the two ends of a channel (see unix(7)). The channel preserves the boundaries of
/// packets. When one end is closed, the other end reads end of file.
pub(crate) fn channel_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(Into::into)
}

/// Sends one packet without waiting. The kernel sends a packet whole or not at all.
pub(crate) fn send_packet(channel: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(channel.as_raw_fd(), packet, flags).map(drop).map_err(Into::into)
}

/// Sends one packet with copies of `descriptors` (see unix(7)). The kernel sends a packet whole or
/// not at all.
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

/// How many times [`retry`] tries a system call that fails with a temporary error.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// Returns whether an error is temporary: the kernel is out of memory, a signal interrupted the
/// call, or too many descriptors that this user has sent are still in transit (see unix(7)).
pub(crate) fn will_pass(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOMEM | Errno::ENOBUFS | Errno::ETOOMANYREFS | Errno::EINTR))
}

/// Makes a system call, and retries it while it fails with a temporary error. Tries up to 100
/// times, 1 ms apart, because a temporary error must not make a handoff fail.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match call() {
            Err(error) if will_pass(&error) => pause(),
            done => return done,
        }
    }
    call()
}

/// Blocks the thread until a packet can be sent on `socket`, but at most for the given time.
pub(crate) fn wait_for_room(socket: BorrowedFd<'_>, within: Duration) {
    let within = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    // Ignore an error, because the caller tries to send in any case.
    let _ = nix::poll::poll(&mut [PollFd::new(socket, PollFlags::POLLOUT)], within);
}

/// Blocks the thread for a millisecond before the caller retries a system call.
#[expect(clippy::disallowed_methods, reason = "the kernel does not say when it has memory again")]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}

/// Returns the id of the user whose process connected a Unix socket (see unix(7)).
pub(crate) fn peer_user(socket: &impl AsFd) -> io::Result<u32> {
    getsockopt(socket, sockopt::PeerCredentials).map(|peer| peer.uid()).map_err(Into::into)
}

/// The index of a network interface that does not exist on any machine.
const NO_INTERFACE: libc::c_int = libc::c_int::MAX;

/// Keeps new connections away from a listening socket, by binding it to a network interface that
/// does not exist. Only a process with CAP_NET_RAW can undo this (see socket(7)).
pub(crate) fn bind_to_no_interface(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, option::BindToInterface, &NO_INTERFACE).map_err(Into::into)
}

mod option {
    use nix::{libc, setsockopt_impl, sockopt_impl};

    // Unlike `SO_BINDTODEVICE`, the option `SO_BINDTOIFINDEX` accepts an interface that does not
    // exist.
    sockopt_impl!(BindToInterface, SetOnly, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, libc::c_int);
}

/// The result of receiving one packet from a channel.
pub(crate) enum Packet {
    /// A complete packet with this number of bytes.
    Whole(usize),
    /// A packet that was longer than the buffer. The bytes that did not fit are lost.
    Truncated,
    /// End of file. The other end is closed, and all packets that it sent have been read.
    End,
}

/// Receives one packet from a channel without waiting.
///
/// # Errors
/// `WouldBlock` when no packet has arrived.
pub(crate) fn receive_packet(channel: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    loop {
        // The flag MSG_TRUNC makes the kernel return the full length of the packet, even if it is
        // longer than the buffer (see recv(2)).
        match recv(channel.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(0) => return Ok(Packet::End),
            Ok(length) if length > buffer.len() => return Ok(Packet::Truncated),
            Ok(length) => return Ok(Packet::Whole(length)),
            // Repeat the call after ECONNRESET, because there may be more packets to receive. The
            // kernel reports this error once if the other process closed its end before it had read
            // all our packets.
            Err(Errno::ECONNRESET | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Copies received bytes into `buffer` without consuming them. Returns the number of bytes; 0 means
/// that the peer has half-closed.
#[cfg(feature = "proxy")]
pub(crate) fn peek(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)
        .map_err(Into::into)
}

/// Returns whether `socket` has the type and the address family of a channel between generations.
pub(crate) fn is_channel(socket: BorrowedFd<'_>) -> bool {
    let socket = socket2::SockRef::from(&socket);
    matches!(
        (socket.domain(), socket.r#type()),
        (Ok(socket2::Domain::UNIX), Ok(socket2::Type::SEQPACKET))
    )
}

/// Returns whether the other end of a channel is closed in every process that had it open.
pub(crate) fn has_hung_up(channel: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::new(channel, PollFlags::empty())];
    nix::poll::poll(&mut poll, PollTimeout::ZERO).is_ok()
        && poll[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

mod ioctl {
    nix::ioctl_read_bad!(outq, nix::libc::TIOCOUTQ, nix::libc::c_int);
}

/// Returns the number of written bytes that the peer's kernel has not acknowledged yet (see tcp(7)
/// and unix(7)).
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: SIOCOUTQ writes one int into `count`, which lives until the call returns.
    unsafe { ioctl::outq(socket.as_raw_fd(), &raw mut count) }?;
    usize::try_from(count).map_err(io::Error::other)
}
