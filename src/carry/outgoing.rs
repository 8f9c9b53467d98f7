//! The predecessor's side of a carry: it sends connections to the successor and waits for the
//! answers.
//!
//! It waits for an answer as long as the successor lives, without a timeout. If it took a
//! connection back that the successor may have accepted, two processes would serve it. A connection
//! that is unanswered when the channel ends was not accepted, because the successor answers before
//! it uses a connection.

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

use super::packet::{self, Answer, Head, PACKET_MAX};
use super::parcel::CarriedState;
use crate::net::{Peer, Stream};
use crate::sys;
use crate::sys::socket::{Packet, will_pass};

/// Retries when the kernel has no room for a packet: 100 tries, 10 ms apart. After a second the
/// connection has been paused long enough.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The predecessor's end of the channel.
#[derive(Debug)]
pub(crate) struct Outgoing {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    /// Cancelled when no more connections are sent.
    closed: CancellationToken,
}

/// The connections that wait for an answer.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
}

/// A connection that is sent to the successor.
#[derive(Debug)]
pub(crate) struct OutgoingConnection<'a> {
    pub(crate) listener: &'a str,
    pub(crate) peer: Peer,
    pub(crate) age: Duration,
    /// The connection limit of the listener.
    pub(crate) max_connections: Option<NonZeroUsize>,
    pub(crate) stream: &'a Stream,
    pub(crate) parcel: &'a CarriedState,
}

/// The result of handing over a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The connection belongs to the successor.
    Taken,
    /// The successor refuses the connection for this reason; this process keeps it.
    Refused(String),
    /// This process keeps the connection, because no successor accepts connections any more.
    NoReceiver,
}

impl Outgoing {
    /// Creates the predecessor's end of the channel. Must be called within a tokio runtime that
    /// lives as long as the result.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, waiting: Mutex::default(), closed: CancellationToken::new() })
    }

    /// Stops sending. Connections already sent still wait for their answers; all others stay with
    /// this process.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Waits until nothing is sent any more. Cancel safe.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Hands a connection over to the successor.
    ///
    /// During the call the caller must not use the stream or the descriptors of the state. After
    /// [`Verdict::Taken`] it may only close them.
    ///
    /// Not cancel safe: if the future is dropped, the owner of the connection is unknown. But after
    /// [`Outgoing::close`] the future completes at once, unless the connection has already been
    /// sent.
    pub(crate) async fn hand_over(&self, outgoing_connection: &OutgoingConnection<'_>) -> Verdict {
        let OutgoingConnection { listener, peer, age, max_connections, stream, parcel } =
            outgoing_connection;
        let (id, answer) = {
            let mut waiting = self.lock();
            if self.closed.is_cancelled() {
                return Verdict::NoReceiver;
            }
            let (sender, answer) = oneshot::channel();
            let id = waiting.next;
            waiting.next += 1;
            waiting.answers.insert(id, sender);
            (id, answer)
        };
        let head = Head {
            id,
            listener: (*listener).to_owned(),
            peer: peer.address(),
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            received: stream.received(),
            sent: stream.sent(),
            peer_finished: stream.peer_has_finished(),
            max_connections: *max_connections,
            format: parcel.format.clone(),
        };
        let packet = packet::connection(&head, &parcel.bytes);
        let descriptors: Vec<BorrowedFd<'_>> = [stream.as_fd()]
            .into_iter()
            .chain(parcel.descriptors.iter().map(AsFd::as_fd))
            .collect();
        let sent = tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
            sent = self.send(&packet, &descriptors) => sent,
        };
        match sent {
            Ok(()) => match answer.await {
                Ok(Answer::Taken) => Verdict::Taken,
                Ok(Answer::Refused(why)) => Verdict::Refused(why),
                // The successor has closed its end.
                Err(_) => Verdict::NoReceiver,
            },
            Err(error) => {
                self.lock().answers.remove(&id);
                let nobody_hears = matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                );
                if nobody_hears {
                    return Verdict::NoReceiver;
                }
                tracing::warn!(
                    event = "carry.send_failed", listener, %peer, reason = %error,
                    "cannot send a connection to the successor: {error}"
                );
                Verdict::Refused(error.to_string())
            }
        }
    }

    /// Passes each answer on to the task that waits for it, until the successor closes its end.
    /// Cancel safe.
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
                        if let Some(waits) = self.lock().answers.remove(&id) {
                            // The waiting task may have been cut in the meantime.
                            let _ = waits.send(answer);
                        }
                        continue;
                    }
                    Err(why) => why,
                },
                Ok(Packet::Truncated) => "it is too long".to_owned(),
                Ok(Packet::End) => break,
                // The answer is still in the queue, so retrying loses nothing.
                Err(error) if will_pass(&error) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::error!(
                        event = "carry.answer_failed", reason = %error,
                        "cannot read the successor's answers: {error}"
                    );
                    // The successor may have accepted the connections that still wait. So they go
                    // on waiting, and no more are sent.
                    return self.close();
                }
            };
            // The answer names no connection. The connection that it was meant for waits until the
            // channel ends.
            tracing::warn!(
                event = "carry.answer_invalid",
                reason = why,
                "invalid answer from the successor: {why}"
            );
        }
        // Close first: later callers then return at once, and earlier ones learn below that the
        // channel has ended.
        self.close();
        self.lock().answers.clear();
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
        // Nothing panics while the lock is held, and the data would be consistent even then.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
