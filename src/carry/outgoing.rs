//! Hands connections to the successor: sends each, and waits for the answer.
//!
//! An answer is waited for as long as the successor lives, and no time makes up for one: whoever
//! took a connection back that the successor may have taken as well would have two processes serve
//! it. What was not answered when the channel ends was not taken, for the successor answers before
//! it touches anything.

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
use super::parcel::Parcel;
use crate::net::{Peer, Stream};
use crate::sys;
use crate::sys::socket::{Packet, will_pass};

/// How often a connection is sent that the kernel has no room for, and how long after one another:
/// a second in all. By then it would have been at a stop for too long.
const TRIES: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The predecessor's end.
#[derive(Debug)]
pub(crate) struct Outgoing {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    /// Nothing more goes out.
    closed: CancellationToken,
}

/// Those that wait for an answer.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
}

/// A connection on its way.
#[derive(Debug)]
pub(crate) struct Departing<'a> {
    pub(crate) listener: &'a str,
    pub(crate) peer: Peer,
    pub(crate) age: Duration,
    /// How many the listener may have at once.
    pub(crate) max_connections: Option<NonZeroUsize>,
    pub(crate) stream: &'a Stream,
    pub(crate) parcel: &'a Parcel,
}

/// What came of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the successor's.
    Taken,
    /// It is not, and will not be; why.
    Refused(String),
    /// It is not: there is no successor any more that could take it, or none that takes any.
    Alone,
}

impl Outgoing {
    /// Must be called in a tokio runtime, which has to live as long as this.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::fd::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, waiting: Mutex::default(), closed: CancellationToken::new() })
    }

    /// Sends nothing any more. What has been sent is waited for; what has not is nobody else's.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// Waits until nothing is sent any more. Cancel safe.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Hands a connection over. The stream must not be touched meanwhile, nor the parcel's
    /// descriptors; nor after [`Verdict::Taken`], other than by closing them. Not cancel safe: when
    /// it is dropped, nobody knows whose it is; but after [`Outgoing::close`] it is over at once,
    /// unless the connection has been sent.
    pub(crate) async fn hand_over(&self, departing: &Departing<'_>) -> Verdict {
        let Departing { listener, peer, age, max_connections, stream, parcel } = departing;
        let (id, answer) = {
            let mut waiting = self.lock();
            if self.closed.is_cancelled() {
                return Verdict::Alone;
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
                // The other end has closed.
                Err(_) => Verdict::Alone,
            },
            Err(error) => {
                self.lock().answers.remove(&id);
                let nobody_hears = matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                );
                if nobody_hears {
                    return Verdict::Alone;
                }
                tracing::warn!(
                    event = "carry.send_failed", listener, %peer, reason = %error,
                    "a connection cannot be sent to the successor: {error}"
                );
                Verdict::Refused(error.to_string())
            }
        }
    }

    /// Passes answers on to those who wait, until the successor's end. Cancel safe.
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
                            // Whoever waited may have been cut.
                            let _ = waits.send(answer);
                        }
                        continue;
                    }
                    Err(why) => why,
                },
                Ok(Packet::Truncated) => "it is too long".to_owned(),
                Ok(Packet::End) => break,
                // The answer is still in the queue.
                Err(error) if will_pass(&error) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::error!(
                        event = "carry.answer_failed", reason = %error,
                        "the successor's answers cannot be read: {error}"
                    );
                    // It may have taken those that wait: they go on waiting, and no others come.
                    return self.close();
                }
            };
            // Whose answer it was is not known; that connection waits for the end.
            tracing::warn!(
                event = "carry.answer_invalid",
                reason = why,
                "the successor's answer to a connection is none: {why}"
            );
        }
        // In this order: whoever is not let in any more is in nobody's way, and whoever was hears
        // it.
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
        // Nothing panics while it is held; if something did, it would still be whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
