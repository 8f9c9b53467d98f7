//! A message channel between two generations. Each message is one packet, and each end learns when
//! the process at the other end dies.
//!
//! A process descriptor reports the death of the peer (see pidfd_open(2)). End of file alone is not
//! a reliable report, because a child process of the peer may still hold a copy of the peer's end.
//! The kernel reports which process sent a message (`SCM_CREDENTIALS`, see unix(7)), so a sender
//! cannot pretend to be another process.
//!
//! Sending fails if the channel is full. Only [`Channel::with_room`] waits until there is room.
//! Receiving is cancel safe, because one system call takes a whole packet. This module itself
//! replies to messages of an unknown kind.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use super::message::Message;
use super::packet::{PACKET_MAX, Received, take_packet};
use crate::sys;
use crate::sys::ancillary::{Sender, SenderProcess, peer_process, report_senders};
use crate::sys::process::{PidFd, is_in_our_group};
use crate::sys::socket::{retry, send_packet, send_with_descriptors, will_pass};

/// The delay before a retry when the kernel lacks memory to send a message.
const PAUSE: Duration = Duration::from_millis(10);

/// One end of a message channel between two generations.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    /// The process that sent the most recently received message.
    sender: Option<Sender>,
    peer: ChannelPeer,
    ends_with: EndsWith,
}

/// Whether the death of the peer process ends a channel. End of file ends it in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndsWith {
    /// The death of the peer process ends the channel.
    Process,
    /// Only end of file ends the channel. Later generations hold copies of the peer's end, and they
    /// may outlive the peer.
    LastHolder,
}

/// The process at the other end of the channel, as far as this process knows it.
#[derive(Debug)]
enum ChannelPeer {
    /// The peer process is not known yet or cannot be watched, so only end of file reports its
    /// death. The pid is `None` if it is not known or not visible in our pid namespace.
    Unwatched(Option<u32>),
    /// A running process, with its pid and its pidfd. The pid is `None` if the process is not
    /// visible in our pid namespace.
    Process(Option<u32>, AsyncFd<PidFd>),
    /// The peer process has ended.
    Ended,
}

impl Channel {
    /// Wraps one end of a socket pair made by [`sys::socket::channel_pair`]. Must be called in a
    /// tokio runtime.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            socket,
            buffer: Vec::new(),
            sender: None,
            peer: ChannelPeer::Unwatched(None),
            ends_with: EndsWith::Process,
        })
    }

    /// Creates the channel to the generation that created the socket pair and passed one end,
    /// `socket`, to this process. The death of that generation ends the channel.
    pub(crate) fn to_its_maker(socket: OwnedFd) -> io::Result<Self> {
        let maker = peer_process(socket.as_fd())?;
        let mut channel = Self::new(socket)?;
        channel.follow(maker);
        Ok(channel)
    }

    /// Creates the channel to a process that has not started yet. Once that process has sent a
    /// message, [`Channel::follow_sender`] makes it the peer.
    pub(crate) fn to_a_new_process(socket: OwnedFd) -> io::Result<Self> {
        report_senders(socket.as_fd())?;
        Self::new(socket)
    }

    /// Makes the sender of the last message the peer of this channel. From then on, this process
    /// sends signals to the peer, and the peer's death ends the channel.
    pub(crate) fn follow_sender(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.follow(sender);
        }
    }

    fn follow(&mut self, Sender { pid, process }: Sender) {
        let held = match process {
            SenderProcess::Held(process) => Ok(process),
            SenderProcess::Ended => Err(io::Error::from(Errno::ESRCH)),
            // The sender may have ended, and another process may have reused the pid. The pid still
            // belongs to the sender if the channel is still open or the process is in our process
            // group.
            SenderProcess::Unknown => {
                let Some(pid) = pid else { return };
                PidFd::open(pid).and_then(|process| {
                    let is_it = !self.has_hung_up() || is_in_our_group(pid);
                    if is_it { Ok(process) } else { Err(Errno::ESRCH.into()) }
                })
            }
        };
        self.peer = match held.and_then(|process| sys::fd::watch(process, Interest::READABLE)) {
            Ok(process) => ChannelPeer::Process(pid, process),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => ChannelPeer::Ended,
            Err(error) => {
                tracing::warn!(
                    event = "process.unwatched", pid, reason = %error,
                    "cannot watch another process of this service, so it can get no signals: \
                    {error}"
                );
                ChannelPeer::Unwatched(pid)
            }
        };
    }

    /// Keeps the channel open after the peer process has died, until every copy of the other end is
    /// closed. A successor that has taken over passes its end to its own successor. So the channel
    /// must survive the death of either process.
    pub(crate) fn outlive_process(&mut self) {
        self.ends_with = EndsWith::LastHolder;
    }

    /// Returns the pid of the peer process. Returns `None` if the peer is unknown or has ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.peer {
            ChannelPeer::Process(pid, _) | ChannelPeer::Unwatched(pid) => *pid,
            ChannelPeer::Ended => None,
        }
    }

    /// Sends a signal to the peer process. Returns `None` if the peer is not watched or has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Option<io::Result<()>> {
        match &self.peer {
            ChannelPeer::Process(_, process) => Some(process.get_ref().signal(signal)),
            ChannelPeer::Unwatched(_) | ChannelPeer::Ended => None,
        }
    }

    /// Waits until the peer process has ended or the instant `until` has passed. Returns the exit
    /// status of the peer if the kernel reports one. The wait is needed because the kernel closes a
    /// process's file descriptors shortly before it reports the exit. Cancel safe.
    pub(crate) async fn exit_status(&self, until: Instant) -> Option<ExitStatus> {
        let ChannelPeer::Process(pid, process) = &self.peer else { return None };
        let _ = tokio::time::timeout_at(until, process.readable()).await;
        process.get_ref().exit_status((*pid)?)
    }

    /// Returns whether the peer process has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.has_hung_up()
            || match &self.peer {
                ChannelPeer::Process(_, process) => process.get_ref().has_ended(),
                ChannelPeer::Unwatched(_) => false,
                ChannelPeer::Ended => true,
            }
    }

    /// Returns whether every copy of the other end is closed, so that no process can answer.
    pub(super) fn has_hung_up(&self) -> bool {
        sys::socket::has_hung_up(self.as_fd())
    }

    /// Sends a message to the peer, and fails instead of waiting if the channel is full.
    ///
    /// The message may have any size. If it is too long for a packet, this function writes it to an
    /// in-memory file and sends the descriptor of that file.
    pub(crate) fn send(&self, message: &Message) -> io::Result<()> {
        let packet = message.encode();
        if packet.len() <= PACKET_MAX {
            return retry(|| send_packet(self.as_fd(), &packet));
        }
        let file = retry(|| sys::memory_file::written(&packet))?;
        retry(|| send_with_descriptors(self.as_fd(), &Message::File.encode(), &[file.as_fd()]))
    }

    /// Sends a message to the peer with a copy of a file descriptor. Fails instead of waiting if
    /// the channel is full.
    pub(crate) fn pass(&self, message: &Message, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        retry(|| send_with_descriptors(self.as_fd(), &message.encode(), &[descriptor]))
    }

    /// Sends with `send`, and waits while the channel is full or the kernel lacks memory, but only
    /// until the given time.
    ///
    /// # Errors
    /// Returns the error of `send`, or `TimedOut` if the channel has stayed full.
    pub(super) async fn with_room(
        &self,
        until: Instant,
        mut send: impl FnMut(&Self) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let sent = self.socket.async_io(Interest::WRITABLE, |_| send(self));
            match tokio::time::timeout_at(until, sent).await {
                Ok(Err(error)) if will_pass(&error) && Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                sent => return sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            }
        }
    }

    /// Receives one message. This function reads the socket even if the tokio runtime has not
    /// reported it as readable yet.
    pub(crate) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        loop {
            // Check whether the peer has died before reading the receive queue. If it has died, the
            // queue already holds everything that the peer sent.
            let has_ended = match &self.peer {
                _ if self.ends_with == EndsWith::LastHolder => false,
                // Ask the kernel, because the tokio runtime may not have reported the death of the
                // peer yet.
                ChannelPeer::Process(_, process) => {
                    process.poll_read_ready(cx).is_ready() || process.get_ref().has_ended()
                }
                ChannelPeer::Unwatched(_) => false,
                ChannelPeer::Ended => true,
            };
            let received = match self.poll_packet(cx) {
                Poll::Ready(Some(received)) => received,
                // Poll again after a temporary error, because the packet is still in the receive
                // queue. It may be the last message of a dead process.
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
                    "ignored a message from another process of this service: its kind {kind} or \
                    its version {version} is unknown"
                );
                let _ = self.send(&Message::Unknown { kind });
                continue;
            }
            return Poll::Ready(received);
        }
    }

    /// Takes the next packet from the socket. Returns `None` after a temporary error.
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

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}
