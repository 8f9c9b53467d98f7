//! Packets with what the kernel attaches to them: descriptors, and which process sent them,
//! unix(7).
//!
//! The kernel's word for a sender cannot be forged, and a process descriptor stays that of the
//! sender when its number is used again. nix and rustix know neither `SCM_PIDFD` nor how to keep
//! descriptors from leaking around it.

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

/// Descriptors in one message, unix(7): `SCM_MAX_FD`.
const RIGHTS_MAX: usize = 253;
/// `SO_PASSPIDFD`: each packet comes with a descriptor of the process that sent it. Since Linux
/// 6.5.
const SO_PASSPIDFD: libc::c_int = 76;
/// `SO_PEERPIDFD`: a descriptor of the process that made or connected the other end. Since Linux
/// 6.5.
const SO_PEERPIDFD: libc::c_int = 77;
/// `SCM_PIDFD`: the attachment that `SO_PASSPIDFD` asks for.
const SCM_PIDFD: libc::c_int = 4;
/// Words of memory for all attachments together: descriptors, credentials and a process descriptor,
/// each with a header.
const SPACE: usize = RIGHTS_MAX / 2 + 32;

/// The descriptors that came with a packet.
#[derive(Debug)]
pub(crate) enum Rights {
    All(Vec<OwnedFd>),
    /// There were more than this process had room for. Those that it had are closed.
    Truncated,
}

/// The process that sent a packet, by the kernel's word.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Its number; none when it is in a pid namespace that this process cannot see.
    pub(crate) pid: Option<u32>,
    /// The process itself.
    pub(crate) process: SenderProcess,
}

/// What is known of the process that sent a packet, beyond its number.
#[derive(Debug)]
pub(crate) enum SenderProcess {
    /// It is held, and its number cannot be mistaken.
    Held(PidFd),
    /// It had ended when the packet was received.
    Ended,
    /// The kernel is older than 6.5, or this process has no descriptor left.
    Unknown,
}

/// What the kernel attached to a packet.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The descriptors that the sender passed.
    pub(crate) rights: Rights,
    /// Who sent it, if [`report_senders`] asked for it.
    pub(crate) sender: Option<Sender>,
}

/// Has the kernel say with each packet that arrives which process has sent it.
pub(crate) fn report_senders(channel: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&channel).set_passcred(true)?;
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: setsockopt(2) reads one int, which lives until the call returns.
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
        // An older kernel knows only the numbers of processes.
        Ok(_) | Err(Errno::ENOPROTOOPT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The process that made the other end of a channel.
pub(crate) fn peer_process(channel: BorrowedFd<'_>) -> io::Result<Sender> {
    let credentials = getsockopt(&channel, sockopt::PeerCredentials)?;
    let pid = u32::try_from(credentials.pid()).ok().filter(|pid| *pid > 0);
    let mut raw: libc::c_int = -1;
    let mut length =
        libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: getsockopt(2) writes at most `length` bytes, one int, to a place that lives until the
    // call returns.
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
        // SAFETY: the kernel has just made the descriptor, for this process.
        Ok(_) => SenderProcess::Held(PidFd::from(unsafe { OwnedFd::from_raw_fd(raw) })),
        Err(Errno::ESRCH | Errno::EINVAL) => SenderProcess::Ended,
        // An older kernel.
        Err(Errno::ENOPROTOOPT) => SenderProcess::Unknown,
        Err(errno) => return Err(errno.into()),
    };
    Ok(Sender { pid, process })
}

/// Receives one packet with its attachments, without waiting: `WouldBlock` when there is none.
/// Descriptors are close-on-exec.
pub(crate) fn receive_with_attachments(
    channel: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(Packet, Attached)> {
    let mut space = [0_u64; SPACE];
    let mut text = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    loop {
        // SAFETY: a header of zeros is a valid one: no name, no text, no attachments.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut text;
        header.msg_iovlen = 1;
        header.msg_control = space.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&space) as _;
        // SAFETY: the header points to memory of the lengths that it names, which lives until the
        // call returns.
        let received = unsafe { libc::recvmsg(channel.as_raw_fd(), &raw mut header, flags) };
        let length = match Errno::result(received) {
            // The other end was closed with packets of ours unread. The kernel reports that once,
            // ahead of what the other end had sent before.
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

/// Takes what the kernel has attached to a packet. Called once for each header that recvmsg(2) has
/// filled in.
fn attachments(header: &libc::msghdr) -> Attached {
    let (mut rights, mut credentials, mut process) = (Vec::new(), None, SenderProcess::Unknown);
    // SAFETY: the kernel has filled in the header and the memory for attachments that it points to.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR has returned lies within that memory.
        let attachment = unsafe { ptr::read_unaligned(next) };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(next) };
        match (attachment.cmsg_level, attachment.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for place in 0..descriptors(&attachment) {
                    // SAFETY: the kernel wrote as many ints as the length of the attachment says.
                    let passed = unsafe { data.cast::<RawFd>().add(place) };
                    // SAFETY: as above.
                    let raw = unsafe { ptr::read_unaligned(passed) };
                    // SAFETY: the kernel has just made the descriptor, for this process.
                    rights.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                // SAFETY: the kernel wrote a ucred.
                credentials = Some(unsafe { ptr::read_unaligned(data.cast::<libc::ucred>()) });
            }
            (libc::SOL_SOCKET, SCM_PIDFD) => {
                // SAFETY: the kernel wrote one int.
                let raw = unsafe { ptr::read_unaligned(data.cast::<RawFd>()) };
                process = match raw {
                    // SAFETY: the kernel has just made the descriptor, for this process.
                    0.. => SenderProcess::Held(PidFd::from(unsafe { OwnedFd::from_raw_fd(raw) })),
                    raw if raw == -libc::ESRCH || raw == -libc::EINVAL => SenderProcess::Ended,
                    _ => SenderProcess::Unknown,
                };
            }
            _ => {}
        }
        // SAFETY: as for CMSG_FIRSTHDR, and `next` is the attachment before.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    let is_truncated = header.msg_flags & libc::MSG_CTRUNC != 0;
    Attached {
        rights: if is_truncated { Rights::Truncated } else { Rights::All(rights) },
        sender: credentials.map(|credentials| {
            let pid = u32::try_from(credentials.pid).ok().filter(|pid| *pid > 0);
            Sender { pid, process }
        }),
    }
}

/// How many descriptors an attachment holds.
fn descriptors(attachment: &libc::cmsghdr) -> usize {
    // SAFETY: CMSG_LEN only computes a length.
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
