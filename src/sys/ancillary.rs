//! This module receives packets with their ancillary data (see unix(7)): passed file descriptors,
//! and the identity of the sender.
//!
//! The kernel itself reports the sender of each packet, so a sender cannot forge its identity.
//! Since Linux 6.5 the report includes a pidfd, a descriptor that refers to the same process even
//! after its pid is reused. This module calls libc directly, because nix and rustix do not support
//! these pidfds (`SCM_PIDFD`) and would leave the descriptors open.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::SockRef;

use super::process::PidFd;
use super::socket::Packet;

/// The maximum number of descriptors in one message (`SCM_MAX_FD`, see unix(7)).
const RIGHTS_MAX: usize = 253;
/// The socket option that asks the kernel to attach a pidfd of the sender to each packet. It exists
/// since Linux 6.5.
const SO_PASSPIDFD: libc::c_int = 76;
/// The socket option that returns a pidfd of the process that created or connected the other end of
/// the socket. It exists since Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// The type of the ancillary data that the socket option `SO_PASSPIDFD` enables.
const SCM_PIDFD: libc::c_int = 4;
/// The size of the buffer for all ancillary data of a packet, in 8-byte words. It has room for the
/// descriptors, the credentials and a pidfd, each with a header.
const SPACE: usize = RIGHTS_MAX / 2 + 32;

/// The file descriptors that came with a packet.
#[derive(Debug)]
pub(crate) enum Rights {
    All(Vec<OwnedFd>),
    /// Some descriptors of the packet did not fit into the buffer, or this process has reached its
    /// descriptor limit. The descriptors that did arrive have been closed.
    Truncated,
}

/// The process that sent a packet, as reported by the kernel.
#[derive(Debug)]
pub(crate) struct Sender {
    /// The pid of the sender. `None` when the sender is in a pid namespace that this process cannot
    /// see.
    pub(crate) pid: Option<u32>,
    /// The pidfd of the sender, or the reason why it is missing.
    pub(crate) process: SenderProcess,
}

/// The pidfd of the sender of a packet, or the reason why it is missing.
#[derive(Debug)]
pub(crate) enum SenderProcess {
    /// A pidfd, which refers to the sender even if the sender's pid is reused.
    Held(PidFd),
    /// The sender had already exited when the packet was received.
    Ended,
    /// The sender is unknown, because the kernel is older than 6.5 or this process has reached its
    /// descriptor limit.
    Unknown,
}

/// The ancillary data of a packet: the passed descriptors and the sender.
#[derive(Debug)]
pub(crate) struct AncillaryData {
    /// The file descriptors that the sender passed with the packet.
    pub(crate) rights: Rights,
    /// The sender of the packet. `None` if [`report_senders`] was not called for the channel.
    pub(crate) sender: Option<Sender>,
}

/// Asks the kernel to report the sender of each packet that arrives on `channel`.
pub(crate) fn report_senders(channel: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&channel).set_passcred(true)?;
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: setsockopt(2) reads one int, and that int lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            channel.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSPIDFD,
            (&raw const on).cast(),
            length,
        )
    };
    match Errno::result(set) {
        // ENOPROTOOPT is not an error here: kernels before 6.5 report only the sender's pid.
        Ok(_) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Returns the process that created the other end of a channel.
pub(crate) fn peer_process(channel: BorrowedFd<'_>) -> io::Result<Sender> {
    let credentials = getsockopt(&channel, sockopt::PeerCredentials)?;
    let pid = visible_pid(credentials.pid());
    let mut raw: libc::c_int = -1;
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: getsockopt(2) writes at most `length` bytes (one int) into `raw`, which lives until
    // the call returns.
    let got = unsafe {
        let value = (&raw mut raw).cast();
        libc::getsockopt(
            channel.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            value,
            &raw mut length,
        )
    };
    let process = match Errno::result(got) {
        // SAFETY: the kernel has just created this descriptor for this process.
        Ok(_) => SenderProcess::Held(PidFd::from(unsafe { OwnedFd::from_raw_fd(raw) })),
        Err(Errno::ESRCH | Errno::EINVAL) => SenderProcess::Ended,
        // The kernel is older than 6.5, so it cannot report the peer process as a pidfd.
        Err(Errno::ENOPROTOOPT) => SenderProcess::Unknown,
        Err(errno) => return Err(errno.into()),
    };
    Ok(Sender { pid, process })
}

/// Receives one packet with its ancillary data, without waiting. Received descriptors are
/// close-on-exec.
///
/// # Errors
/// `WouldBlock` when no packet has arrived.
pub(crate) fn receive_with_attachments(
    channel: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(Packet, AncillaryData)> {
    let mut space = [0_u64; SPACE];
    let mut text = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    loop {
        // SAFETY: an all-zero message header is valid. It has no name, no data and no ancillary
        // data.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut text;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&space) as _;
        // SAFETY: each pointer in the header refers to a buffer of the stated length, and each
        // buffer lives until the call returns.
        let received = unsafe { libc::recvmsg(channel.as_raw_fd(), &raw mut header, flags) };
        let length = match Errno::result(received) {
            // Repeat the call after ECONNRESET, because there may be more packets to receive. The
            // kernel reports this error once if the other process closed its end before reading all
            // our packets.
            Err(Errno::ECONNRESET | Errno::EINTR) => continue,
            length => usize::try_from(length?).map_err(io::Error::other)?,
        };
        let attached = attachments(&header);
        let packet = match length {
            0 => Packet::End,
            length if length > buffer.len() => Packet::Truncated,
            length => Packet::Whole(length),
        };
        return Ok((packet, attached));
    }
}

/// Extracts the ancillary data from a received packet. Call this function only once for each header
/// that recvmsg(2) has filled in, because it takes ownership of the received descriptors.
fn attachments(header: &libc::msghdr) -> AncillaryData {
    let (mut rights, mut credentials, mut process) = (Vec::new(), None, SenderProcess::Unknown);
    // SAFETY: the kernel has filled in the header and the ancillary-data buffer that the header
    // points to.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return pointers into the ancillary-data buffer.
        let attachment = unsafe { ptr::read_unaligned(next) };
        // SAFETY: `next` points to a header that the kernel wrote, and its data follows the header.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (attachment.cmsg_level, attachment.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for place in 0..descriptors(&attachment) {
                    // SAFETY: the ancillary data holds as many ints as its length says, so `place`
                    // is within it.
                    let passed = unsafe { data.cast::<RawFd>().add(place) };
                    // SAFETY: `passed` points to an int that the kernel wrote into the ancillary
                    // data.
                    let raw = unsafe { ptr::read_unaligned(passed) };
                    // SAFETY: the kernel has just created this descriptor for this process.
                    rights.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // SAFETY: for this type of ancillary data the kernel writes a `ucred`.
                credentials = Some(unsafe { ptr::read_unaligned(data.cast::<libc::ucred>()) });
            }
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                // SAFETY: for this type of ancillary data the kernel writes one int.
                let raw = unsafe { ptr::read_unaligned(data.cast::<RawFd>()) };
                process = match raw {
                    // SAFETY: the kernel has just created this descriptor for this process.
                    0.. => SenderProcess::Held(PidFd::from(unsafe { OwnedFd::from_raw_fd(raw) })),
                    raw if raw == -libc::ESRCH || raw == -libc::EINVAL => SenderProcess::Ended,
                    _ => SenderProcess::Unknown,
                };
            }
            _ => {}
        }
        // SAFETY: `header` is the header that the kernel filled in, and `next` points to an item of
        // its ancillary data.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    let is_truncated = header.msg_flags & libc::MSG_CTRUNC != 0;
    AncillaryData {
        rights: if is_truncated { Rights::Truncated } else { Rights::All(rights) },
        sender: credentials
            .map(|credentials| Sender { pid: visible_pid(credentials.pid), process }),
    }
}

/// Converts a pid from the kernel. Returns `None` for 0, which means that the process is in a pid
/// namespace that this process cannot see.
fn visible_pid(pid: libc::pid_t) -> Option<u32> {
    u32::try_from(pid).ok().filter(|pid| *pid > 0)
}

/// Returns the number of file descriptors in one item of ancillary data.
fn descriptors(attachment: &libc::cmsghdr) -> usize {
    // SAFETY: CMSG_LEN only computes a length and reads no memory.
    let header = unsafe { libc::CMSG_LEN(0) } as usize;
    attachment.cmsg_len.saturating_sub(header) / size_of::<RawFd>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{channel_pair, send_packet, send_with_descriptors};
    use std::os::fd::AsFd;

    #[test]
    fn a_packet_says_which_process_sent_it() {
        let (ours, theirs) = channel_pair().unwrap();
        send_packet(theirs.as_fd(), b"before anybody asked").unwrap();
        report_senders(ours.as_fd()).unwrap();
        send_packet(theirs.as_fd(), b"after").unwrap();
        let mut buffer = [0; 64];
        let (_, first) = receive_with_attachments(ours.as_fd(), &mut buffer).unwrap();
        assert!(matches!(first.rights, Rights::All(ref none) if none.is_empty()));
        let (packet, second) = receive_with_attachments(ours.as_fd(), &mut buffer).unwrap();
        assert!(matches!(packet, Packet::Whole(5)));
        assert_eq!(second.sender.unwrap().pid, Some(std::process::id()));
        let Sender { pid, process } = peer_process(ours.as_fd()).unwrap();
        assert_eq!(pid, Some(std::process::id()));
        assert!(!matches!(process, SenderProcess::Ended));
    }

    #[test]
    fn as_many_descriptors_arrive_as_a_message_may_carry() {
        let (ours, theirs) = channel_pair().unwrap();
        report_senders(ours.as_fd()).unwrap();
        let passed = vec![theirs.as_fd(); RIGHTS_MAX];
        send_with_descriptors(theirs.as_fd(), b"all", &passed).unwrap();
        let (_, attached) = receive_with_attachments(ours.as_fd(), &mut [0; 8]).unwrap();
        assert!(
            matches!(attached.rights, Rights::All(ref all) if all.len() == RIGHTS_MAX),
            "{attached:?}"
        );
        assert_eq!(attached.sender.unwrap().pid, Some(std::process::id()));
    }
}
