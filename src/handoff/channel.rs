//! Carries messages between two generations, one packet each, and reports the other's death.
//!
//! The death of the other process is what its process descriptor says, pidfd_open(2): any process
//! that it has started may hold a copy of its end of the channel, so the end of file alone may
//! never come. Which process that is, the kernel says (unix(7), `SCM_CREDENTIALS`), never the
//! message.
//!
//! Sending never waits for the other process: a channel that is full belongs to one that does not
//! read, and is an error. Receiving is cancel safe, because a packet is taken whole in one system
//! call. An unknown kind is answered here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::message::Message;
use crate::sys;
use crate::sys::ancillary::{
    Attached, Rights, Sender, SenderProcess, peer_process, receive_with_attachments, report_senders,
};
use crate::sys::process::{PidFd, is_in_our_group};
use crate::sys::socket::{Packet, retry, send_packet, send_with_descriptors, will_pass};

/// Bytes in the largest packet. Less than half of `net.core.wmem_default`, so that two fit into an
/// empty queue.
const PACKET_MAX: usize = 64 * 1024;

/// Bytes in the largest message that is read from a file: a bound on what a broken successor can
/// make us allocate. 10,000 listeners with 10,000 upstreams need about 10 MB.
const FILE_MAX: u64 = 256 * 1024 * 1024;

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    /// The sender of the message that was received last.
    sender: Option<Sender>,
    peer: Peer,
    ends_with: EndsWith,
}

/// What ends a channel, beside the end of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndsWith {
    /// The death of the process at the other end.
    Process,
    /// Nothing: generations after that process hold its end, and live on.
    LastHolder,
}

/// The process at the other end.
#[derive(Debug)]
enum Peer {
    /// Not known yet: only the end of file tells of its death.
    Unknown,
    /// This one, with its number where that can be seen from here.
    Process(Option<u32>, AsyncFd<PidFd>),
    /// One that has ended.
    Ended,
}

/// What was received.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message of a kind that is known here.
    Message(Message),
    /// One with a descriptor.
    Passed(Message, OwnedFd),
    /// What is not a message, and why.
    Garbage(String),
    /// Nobody is left at the other end.
    End,
}

impl Channel {
    /// Takes an end that [`sys::socket::channel_pair`] made. Must be called in a tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE)?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
            sender: None,
            peer: Peer::Unknown,
            ends_with: EndsWith::Process,
        })
    }

    /// Takes an end whose other end was made by the generation that is to be watched.
    pub(crate) fn to_its_maker(socket: OwnedFd) -> io::Result<Self> {
        let maker = peer_process(socket.as_fd())?;
        let mut channel = Self::new(socket)?;
        channel.follow(maker);
        Ok(channel)
    }

    /// Takes an end whose other end a process will hold that is yet to be started.
    /// [`Channel::follow_sender`] says which one.
    pub(crate) fn to_a_new_process(socket: OwnedFd) -> io::Result<Self> {
        report_senders(socket.as_fd())?;
        Self::new(socket)
    }

    /// From now on the process that has sent the last message is the one that is signalled, and
    /// whose death ends the channel.
    pub(crate) fn follow_sender(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.follow(sender);
        }
    }

    fn follow(&mut self, Sender { pid, process }: Sender) {
        let held = match process {
            SenderProcess::Held(process) => Ok(process),
            SenderProcess::Ended => Err(io::Error::from(Errno::ESRCH)),
            // Its number may have been used again since it sent the message. It was not while the
            // channel is open, and a stranger is not in our process group.
            SenderProcess::Unknown => {
                let Some(pid) = pid else { return };
                PidFd::open(pid).and_then(|process| {
                    let is_it = !self.has_hung_up() || is_in_our_group(pid);
                    if is_it { Ok(process) } else { Err(Errno::ESRCH.into()) }
                })
            }
        };
        self.peer = match held.and_then(|process| sys::fd::watch(process, Interest::READABLE)) {
            Ok(process) => Peer::Process(pid, process),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Peer::Ended,
            Err(error) => {
                tracing::warn!(
                    event = "process.unwatched", pid, reason = %error,
                    "cannot watch the process at the other end: {error}"
                );
                Peer::Unknown
            }
        };
    }

    /// From now on the channel ends when the last process closes the other end. A successor that
    /// has taken over passes its end on to its own successor, and may end before that.
    pub(crate) fn outlive_process(&mut self) {
        self.ends_with = EndsWith::LastHolder;
    }

    /// The number of the process at the other end, if it is known and has not ended when it was
    /// looked at.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.peer {
            Peer::Process(pid, _) => *pid,
            Peer::Unknown | Peer::Ended => None,
        }
    }

    /// Sends a signal to the process at the other end; `None` when that is not known.
    pub(crate) fn signal(&self, signal: Signal) -> Option<io::Result<()>> {
        match &self.peer {
            Peer::Process(_, process) => Some(process.get_ref().signal(signal)),
            Peer::Unknown | Peer::Ended => None,
        }
    }

    /// Waits until the process at the other end has ended, or that time, and returns how it ended
    /// if the kernel tells. A process closes its descriptors a moment before its end. Cancel safe.
    pub(crate) async fn exit_status(&self, until: Instant) -> Option<ExitStatus> {
        let Peer::Process(pid, process) = &self.peer else { return None };
        let _ = tokio::time::timeout_at(until, process.readable()).await;
        process.get_ref().exit_status((*pid)?)
    }

    /// Whether the process at the other end has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.has_hung_up()
            || match &self.peer {
                Peer::Process(_, process) => process.get_ref().has_ended(),
                Peer::Unknown => false,
                Peer::Ended => true,
            }
    }

    fn has_hung_up(&self) -> bool {
        sys::socket::has_hung_up(self.as_fd())
    }

    /// Sends a message without waiting.
    ///
    /// A message has no size limit: one that is too long for a packet is written to a file in
    /// memory, and the packet carries its descriptor.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let packet = message.encode();
        if packet.len() <= PACKET_MAX {
            return retry(|| send_packet(self.as_fd(), &packet));
        }
        let file = retry(|| sys::memory_file::written(&packet))?;
        retry(|| send_with_descriptors(self.as_fd(), &Message::File.encode(), &[file.as_fd()]))
    }

    /// Sends a message with a copy of a descriptor, without waiting.
    pub(crate) fn pass(&self, message: &Message, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        retry(|| send_with_descriptors(self.as_fd(), &message.encode(), &[descriptor]))
    }

    /// Receives one message. What has been sent when this is called is received by it: the channel
    /// itself is asked, because the runtime may not have looked at it yet.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        loop {
            // Before the queue: what a process has sent before its death is there by then.
            let has_ended = match &self.peer {
                _ if self.ends_with == EndsWith::LastHolder => false,
                // The kernel is asked as well, because the runtime may not have looked yet.
                Peer::Process(_, process) => {
                    process.poll_read_ready(cx).is_ready() || process.get_ref().has_ended()
                }
                Peer::Unknown => false,
                Peer::Ended => true,
            };
            let received = match self.poll_packet(cx) {
                Poll::Ready(Some(received)) => received,
                // The packet is still in the queue, and may be the last words of a process that has
                // ended.
                Poll::Ready(None) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Pending if has_ended => return Poll::Ready(Received::End),
                Poll::Pending => return Poll::Pending,
            };
            if let Received::Message(Message::Unrecognised { version, kind })
            | Received::Passed(Message::Unrecognised { version, kind }, _) = received
            {
                tracing::warn!(
                    event = "message.unknown",
                    version,
                    kind,
                    "answered a message that is not known here"
                );
                let _ = self.send(&Message::Unknown { kind });
                continue;
            }
            return Poll::Ready(received);
        }
    }

    /// The next packet, or none when it cannot be taken yet for a reason that will pass.
    fn poll_packet(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let mut received = take_packet(self.socket.get_ref().as_fd(), &mut self.buffer);
        while matches!(&received, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            let mut ready = match ready!(self.socket.poll_read_ready(cx)) {
                Ok(ready) => ready,
                Err(error) => return Poll::Ready(Some(Received::Garbage(error.to_string()))),
            };
            let tried =
                ready.try_io(|socket| take_packet(socket.get_ref().as_fd(), &mut self.buffer));
            received = tried.unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()));
        }
        match received {
            Ok((received, sender)) => {
                self.sender = sender;
                Poll::Ready(Some(received))
            }
            Err(error) if will_pass(&error) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Received::Garbage(error.to_string()))),
        }
    }
}

/// Receives one message without waiting, before there is a runtime.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Received> {
    take_packet(socket, buffer).map(|(received, _)| received)
}

/// Takes one packet, and says which process has sent it.
fn take_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> io::Result<(Received, Option<Sender>)> {
    buffer.resize(PACKET_MAX, 0);
    let (packet, attached) = retry(|| receive_with_attachments(socket, buffer))?;
    let Attached { rights, sender } = attached;
    let received = match packet {
        Packet::End => Received::End,
        Packet::Truncated => Received::Garbage(format!("a packet of more than {PACKET_MAX} bytes")),
        Packet::Whole(length) => match (Message::decode(&buffer[..length]), rights) {
            (Ok(Message::File), rights) => read_file(rights),
            (Ok(message), Rights::All(mut descriptors)) if descriptors.len() == 1 => {
                Received::Passed(message, descriptors.remove(0))
            }
            // What was not asked for is closed.
            (Ok(message), Rights::All(_) | Rights::Truncated) => Received::Message(message),
            (Err(why), _) => Received::Garbage(why),
        },
    };
    *buffer = Vec::new();
    Ok((received, sender))
}

/// Reads the message whose packet carried a file instead of its text.
fn read_file(rights: Rights) -> Received {
    let Rights::All(mut descriptors) = rights else {
        return Received::Garbage("no room for the descriptor of a long message".to_owned());
    };
    if descriptors.len() != 1 {
        return Received::Garbage(format!("a long message with {} descriptors", descriptors.len()));
    }
    let read = sys::memory_file::read(descriptors.remove(0), FILE_MAX);
    match read
        .map_err(|error| format!("a long message: {error}"))
        .and_then(|text| Message::decode(&text))
    {
        Ok(Message::File) => Received::Garbage("a long message within a long message".to_owned()),
        Ok(message) => Received::Message(message),
        Err(why) => Received::Garbage(why),
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn a_process_that_has_died_ends_a_channel_that_another_holds() {
        let (ours, theirs) = sys::socket::channel_pair().unwrap();
        let mut channel = Channel::to_a_new_process(ours).unwrap();
        // It sends a message and ends; its end of the channel stays open, here.
        let mut child = std::process::Command::new("sh");
        child
            .args(["-c", r"env printf 'VERSION=1\nKIND=stopping\n' >&0; exit 7"])
            .stdin(theirs.try_clone().unwrap());
        let mut child = child.spawn().unwrap();
        let first = poll_fn(|cx| channel.poll_receive(cx)).await;
        assert!(matches!(first, Received::Message(Message::Stopping)), "{first:?}");
        channel.follow_sender();
        let second = poll_fn(|cx| channel.poll_receive(cx)).await;
        assert!(matches!(second, Received::End), "{second:?}");
        assert!(channel.is_over());
        child.wait().unwrap();
        drop(theirs);
    }

    fn pair() -> (Channel, Channel) {
        let (one, other) = sys::socket::channel_pair().unwrap();
        (Channel::new(one).unwrap(), Channel::new(other).unwrap())
    }

    #[tokio::test]
    async fn messages_that_were_sent_before_death_are_heard_before_the_end() {
        let (one, mut other) = pair();
        one.send(&Message::Stopping).unwrap();
        drop(one);
        let first = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(first, Received::Message(Message::Stopping)), "{first:?}");
        let second = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(second, Received::End), "{second:?}");
    }

    #[tokio::test]
    async fn what_was_sent_is_received_before_the_runtime_has_looked() {
        let (one, mut other) = pair();
        let poll = |other: &mut Channel| {
            other.poll_receive(&mut Context::from_waker(std::task::Waker::noop()))
        };
        assert!(poll(&mut other).is_pending());
        one.send(&Message::Cut).unwrap();
        assert!(matches!(poll(&mut other), Poll::Ready(Received::Message(Message::Cut))));
    }

    #[tokio::test]
    async fn an_unknown_kind_is_answered_and_the_next_message_is_heard() {
        let (mut one, mut other) = pair();
        send_packet(one.as_fd(), b"VERSION=9\nKIND=novel\n").unwrap();
        one.send(&Message::Cut).unwrap();
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Message(Message::Cut)), "{heard:?}");
        let answer = poll_fn(|cx| one.poll_receive(cx)).await;
        assert!(
            matches!(answer, Received::Message(Message::Unknown { ref kind }) if kind == "novel"),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn a_message_longer_than_any_packet_arrives() {
        let (one, mut other) = pair();
        let sockets: Vec<u64> = (0..1_000_000).collect();
        one.send(&Message::GivenUp { sockets: sockets.clone() }).unwrap();
        one.send(&Message::Cut).unwrap();
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(
            matches!(heard, Received::Message(Message::GivenUp { sockets: ref heard }) if *heard == sockets)
        );
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Message(Message::Cut)), "{heard:?}");
    }

    #[tokio::test]
    async fn a_long_message_without_its_file_is_garbage() {
        let (one, mut other) = pair();
        let folder = std::fs::File::open("/").unwrap();
        send_packet(one.as_fd(), &Message::File.encode()).unwrap();
        send_with_descriptors(one.as_fd(), &Message::File.encode(), &[folder.as_fd()]).unwrap();
        let file = sys::memory_file::written(&Message::File.encode()).unwrap();
        send_with_descriptors(one.as_fd(), &Message::File.encode(), &[file.as_fd()]).unwrap();
        for _ in 0..3 {
            let heard = poll_fn(|cx| other.poll_receive(cx)).await;
            assert!(matches!(heard, Received::Garbage(_)), "{heard:?}");
        }
    }

    #[tokio::test]
    async fn a_packet_that_is_too_long_is_garbage() {
        let (one, mut other) = pair();
        send_packet(one.as_fd(), &vec![b'x'; PACKET_MAX + 1]).unwrap();
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Garbage(_)), "{heard:?}");
    }
}
