//! Carries messages between two generations, one packet each, and reports the other's death as the end of file.
//!
//! Sending never waits: a channel that is full belongs to a process that does not read, and is an error. Receiving is
//! cancel safe, for a packet is taken whole in one system call. An unknown kind is answered here, for everybody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::message::Message;
use crate::sys;
use crate::sys::socket::{Packet, Rights};

/// Bytes in the largest packet. Less than half of `net.core.wmem_default`, so that two fit into an empty queue.
const PACKET_MAX: usize = 64 * 1024;

/// Bytes in the largest message that is read from a file: a bound on what a broken successor can make us allocate.
/// 10,000 listeners with 10,000 upstreams need about 10 MB.
const FILE_MAX: u64 = 256 * 1024 * 1024;

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
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
        Ok(Self { socket: sys::fd::watch(socket, Interest::READABLE)?, buffer: Vec::new() })
    }

    /// Sends a message without waiting.
    ///
    /// A message has no size limit: one that is too long for a packet is written to a file in memory, and the packet
    /// carries its descriptor.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let packet = message.encode();
        if packet.len() <= PACKET_MAX {
            return sys::socket::send_packet(self.as_fd(), &packet);
        }
        let file = sys::memory_file::written(&packet)?;
        sys::socket::send_with_descriptors(self.as_fd(), &Message::File.encode(), &[file.as_fd()])
    }

    /// Sends a message with a copy of a descriptor, without waiting.
    pub(crate) fn pass(&self, message: &Message, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        sys::socket::send_with_descriptors(self.as_fd(), &message.encode(), &[descriptor])
    }

    /// Receives one message. What has been sent when this is called is received by it: the channel itself is asked, for
    /// the runtime may not have looked at it yet.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        loop {
            let mut received = receive(self.socket.get_ref().as_fd(), &mut self.buffer);
            while matches!(&received, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                let mut ready = match ready!(self.socket.poll_read_ready(cx)) {
                    Ok(ready) => ready,
                    Err(error) => return Poll::Ready(Received::Garbage(error.to_string())),
                };
                let tried = ready.try_io(|socket| receive(socket.get_ref().as_fd(), &mut self.buffer));
                received = tried.unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()));
            }
            let received = received.unwrap_or_else(|error| Received::Garbage(error.to_string()));
            if let Received::Message(Message::Unrecognised { version, kind })
            | Received::Passed(Message::Unrecognised { version, kind }, _) = received
            {
                tracing::warn!(version, kind, "answered a message that is not known here");
                let _ = self.send(&Message::Unknown { kind });
                continue;
            }
            return Poll::Ready(received);
        }
    }
}

/// Receives one message without waiting, before there is a runtime.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Received> {
    buffer.resize(PACKET_MAX, 0);
    let (packet, rights) = sys::socket::receive_with_descriptors(socket, buffer)?;
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
    Ok(received)
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
    match read.map_err(|error| format!("a long message: {error}")).and_then(|text| Message::decode(&text)) {
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
        let poll = |other: &mut Channel| other.poll_receive(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(poll(&mut other).is_pending());
        one.send(&Message::Cut).unwrap();
        assert!(matches!(poll(&mut other), Poll::Ready(Received::Message(Message::Cut))));
    }

    #[tokio::test]
    async fn an_unknown_kind_is_answered_and_the_next_message_is_heard() {
        let (mut one, mut other) = pair();
        sys::socket::send_packet(one.as_fd(), b"VERSION=9\nKIND=novel\n").unwrap();
        one.send(&Message::Cut).unwrap();
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Message(Message::Cut)), "{heard:?}");
        let answer = poll_fn(|cx| one.poll_receive(cx)).await;
        assert!(matches!(answer, Received::Message(Message::Unknown { ref kind }) if kind == "novel"), "{answer:?}");
    }

    #[tokio::test]
    async fn a_message_longer_than_any_packet_arrives() {
        let (one, mut other) = pair();
        let sockets: Vec<u64> = (0..1_000_000).collect();
        one.send(&Message::GivenUp { sockets: sockets.clone() }).unwrap();
        one.send(&Message::Cut).unwrap();
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Message(Message::GivenUp { sockets: ref heard }) if *heard == sockets));
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Message(Message::Cut)), "{heard:?}");
    }

    #[tokio::test]
    async fn a_long_message_without_its_file_is_garbage() {
        let (one, mut other) = pair();
        let folder = std::fs::File::open("/").unwrap();
        sys::socket::send_packet(one.as_fd(), &Message::File.encode()).unwrap();
        sys::socket::send_with_descriptors(one.as_fd(), &Message::File.encode(), &[folder.as_fd()]).unwrap();
        let file = sys::memory_file::written(&Message::File.encode()).unwrap();
        sys::socket::send_with_descriptors(one.as_fd(), &Message::File.encode(), &[file.as_fd()]).unwrap();
        for _ in 0..3 {
            let heard = poll_fn(|cx| other.poll_receive(cx)).await;
            assert!(matches!(heard, Received::Garbage(_)), "{heard:?}");
        }
    }

    #[tokio::test]
    async fn a_packet_that_is_too_long_is_garbage() {
        let (one, mut other) = pair();
        sys::socket::send_packet(one.as_fd(), &vec![b'x'; PACKET_MAX + 1]).unwrap();
        let heard = poll_fn(|cx| other.poll_receive(cx)).await;
        assert!(matches!(heard, Received::Garbage(_)), "{heard:?}");
    }
}
