//! The sending side of connection transfer. The predecessor sends open connections to the successor
//! and waits for the answers.
//!
//! The predecessor waits for an answer without a timeout, as long as the successor is alive. If it
//! gave up and served the connection again, both processes might serve the connection. The
//! successor answers before it uses a connection. So if the channel is closed without an answer,
//! the successor has not used the connection.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::packet::{self, CarryAnswer, PACKET_MAX, PacketHead};
use super::state::CarriedState;
use crate::net::{Peer, Stream};
use crate::sys;
use crate::sys::socket::{Packet, will_pass};

/// How many times to retry sending a packet when the kernel has no buffer space. All retries
/// together take only about a second, because no process serves the connection in the meantime.
const TRIES: usize = 100;
/// The delay before a retry when the kernel has no memory to send or receive a packet.
const PAUSE: Duration = Duration::from_millis(10);

/// The predecessor's end of the channel through which connections are sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    /// A token that is cancelled when no more connections may be sent.
    closed: CancellationToken,
}

/// The connections that were sent to the successor and are still waiting for an answer.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<CarryAnswer>>,
}

/// A connection to send to the successor.
#[derive(Debug)]
pub(crate) struct OutgoingConnection<'a> {
    pub(crate) listener: &'a str,
    pub(crate) peer: Peer,
    pub(crate) age: Duration,
    /// The connection limit of the listener, or `None` if it has no limit.
    pub(crate) max_connections: Option<NonZeroUsize>,
    pub(crate) stream: &'a Stream,
    pub(crate) saved_state: &'a CarriedState,
}

impl OutgoingConnection<'_> {
    fn packet(&self, id: u64) -> Vec<u8> {
        let Self { listener, peer, age, max_connections, stream, saved_state } = self;
        let head = PacketHead {
            id,
            listener: (*listener).to_owned(),
            peer: peer.address(),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            received: stream.received(),
            sent: stream.sent(),
            peer_finished: stream.peer_has_finished(),
            max_connections: *max_connections,
            format: saved_state.format.clone(),
        };
        packet::connection(&head, &saved_state.bytes)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [self.stream.as_fd()]
            .into_iter()
            .chain(self.saved_state.descriptors.iter().map(AsFd::as_fd))
            .collect()
    }
}

/// The result of sending a connection to the successor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SendResult {
    /// The connection belongs to the successor from now on.
    Taken,
    /// This process keeps the connection, because the successor refused it or it could not be sent.
    /// The text is the reason.
    Refused(String),
    /// This process keeps the connection, because the successor accepts no more connections or has
    /// died.
    NoReceiver,
}

impl Outgoing {
    /// Creates the predecessor's end of the channel from its socket. Must be called within a tokio
    /// runtime that outlives the returned value.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, waiting: Mutex::default(), closed: CancellationToken::new() })
    }

    /// Stops sending connections. The successor may still answer those that were already sent. All
    /// other connections stay with this process.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Waits until sending has stopped, because [`Outgoing::close`] was called or the successor has
    /// closed the channel. Cancel safe.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Sends a connection to the successor and waits for the answer.
    ///
    /// During the call, the caller must not use the client's stream or the file descriptors in the
    /// saved state. After [`SendResult::Taken`], the caller may only close them.
    ///
    /// Not cancel safe: if the future is dropped, it is unknown which process owns the connection.
    /// After [`Outgoing::close`], the future completes at once, unless the connection has already
    /// been sent.
    pub(crate) async fn hand_over(
        &self,
        outgoing_connection: &OutgoingConnection<'_>,
    ) -> SendResult {
        let Some((id, answer)) = self.expect_answer() else { return SendResult::NoReceiver };
        let (packet, descriptors) =
            (outgoing_connection.packet(id), outgoing_connection.descriptors());
        let sent = tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
            sent = self.send(&packet, &descriptors) => sent,
        };
        match sent {
            Ok(()) => match answer.await {
                Ok(CarryAnswer::Taken) => SendResult::Taken,
                Ok(CarryAnswer::Refused(why)) => SendResult::Refused(why),
                // The successor has closed the channel without an answer, so it does not use the
                // connection.
                Err(_) => SendResult::NoReceiver,
            },
            Err(error) => {
                self.lock().answers.remove(&id);
                let nobody_hears = matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                );
                if nobody_hears {
                    return SendResult::NoReceiver;
                }
                let OutgoingConnection { listener, peer, .. } = outgoing_connection;
                tracing::warn!(
                    event = "carry.send_failed", listener, %peer, reason = %error,
                    "cannot move a client connection to the new process, so it stays in this \
                    process: {error}"
                );
                SendResult::Refused(error.to_string())
            }
        }
    }

    /// Allocates an id for a connection, and creates a channel for its answer. Returns `None` if no
    /// more connections may be sent.
    fn expect_answer(&self) -> Option<(u64, oneshot::Receiver<CarryAnswer>)> {
        let mut waiting = self.lock();
        if self.closed.is_cancelled() {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        let id = waiting.next;
        waiting.next += 1;
        waiting.answers.insert(id, sender);
        Some((id, answer))
    }

    /// Receives the successor's answers, and passes each answer to the task that waits for it.
    /// Returns when the successor closes its end of the channel. Cancel safe.
    pub(crate) async fn answers(&self) {
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    sys::socket::receive_packet(socket.as_fd(), &mut buffer)
                })
                .await;
            let why = match received {
                Ok(Packet::Whole(length)) => match packet::read_answer(&buffer[..length]) {
                    Ok((id, answer)) => {
                        self.pass_on(id, answer);
                        continue;
                    }
                    Err(why) => why.to_string(),
                },
                Ok(Packet::Truncated) => "the packet is too long".to_owned(),
                Ok(Packet::End) => break,
                // Retry after a pause. The answer is not lost, because it is still in the receive
                // queue.
                Err(error) if will_pass(&error) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::error!(
                        event = "carry.answer_failed", reason = %error,
                        "cannot read which client connections the new process has taken over, so \
                        no more connections move to it: {error}"
                    );
                    // Stop sending connections. Tasks that wait for an answer continue to wait,
                    // because the successor may already serve their connections.
                    return self.close();
                }
            };
            // Skip this answer, because its id cannot be read. The task that waits for the answer
            // continues to wait until the successor closes the channel.
            tracing::warn!(
                event = "carry.answer_invalid",
                reason = why,
                "ignored an invalid answer of the new process, which should say whether it took \
                over a client connection: {why}"
            );
        }
        // Close first, so that later calls to `hand_over` return at once. The next line then wakes
        // the earlier calls, which still wait for an answer.
        self.close();
        self.lock().answers.clear();
    }

    fn pass_on(&self, id: u64, answer: CarryAnswer) {
        if let Some(waits) = self.lock().answers.remove(&id) {
            // Ignore an error, because the waiting task may have been aborted in the meantime.
            let _ = waits.send(answer);
        }
    }

    async fn send(&self, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if packet.len() > PACKET_MAX {
            return Err(Errno::EMSGSIZE.into());
        }
        let send = |socket: &OwnedFd| {
            sys::socket::send_with_descriptors(socket.as_fd(), packet, descriptors)
        };
        for _ in 0..TRIES {
            match self.socket.async_io(Interest::WRITABLE, send).await {
                Err(error) if will_pass(&error) => tokio::time::sleep(PAUSE).await,
                sent => return sent,
            }
        }
        self.socket.async_io(Interest::WRITABLE, send).await
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Ignore a poisoned lock, because no code panics while it holds the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
