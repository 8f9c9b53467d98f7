//! The server of the control socket: reads one request from each connection and writes the replies.
//!
//! Each connection has its own task, so a stalled client delays no other client. Everything is
//! limited: the number of clients (`seats`), the size of a request, and the time for a request or a
//! reply. The kernel tells the user of a client when it is accepted, so the check does not depend
//! on the mode of the path.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::message::{Refusal, Reply, Request};
use super::seats::{Seat, Seats, User};
use crate::net::{Acceptor, Listener, Stream};
use crate::sys;
use crate::text::one_line;

/// How long a request may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reply may take to be read. Also the limit for all unread replies when the server
/// ends.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest request in bytes.
const REQUEST_MAX: u64 = 16 * 1024;
/// How many requests may wait for the driver.
const REQUESTS_MAX: usize = 64;
/// At most how often the log reports refused users.
const WARN_INTERVAL: Duration = Duration::from_secs(1);
/// How often to check whether a client that waits for its reply is still connected.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait before a retry when the kernel is out of memory.
const PAUSE: Duration = Duration::from_millis(10);
/// How many replies to one request may wait to be written: more than a reload has.
const REPLIES_MAX: usize = 8;

/// The daemon's side of the control socket.
#[derive(Debug)]
pub(crate) struct ControlServer {
    asked: mpsc::Receiver<(Request, Answer)>,
    ask: mpsc::Sender<(Request, Answer)>,
    accepting: Option<AbortHandle>,
    clients: TaskTracker,
}

/// The way to reply to a request. Dropping it ends the conversation.
#[derive(Debug)]
pub(crate) struct Answer {
    replies: mpsc::Sender<Reply>,
    /// A copy of the client's socket, held during the conversation if the client asked for a
    /// reload.
    peer: Weak<OwnedFd>,
}

impl Answer {
    /// Returns whether the client has hung up and so given up: its request must not be carried out
    /// later. A client that has only half-closed still waits for its reply.
    pub(crate) fn is_abandoned(&self) -> bool {
        let has_hung_up = |peer: Arc<OwnedFd>| sys::socket::has_hung_up(peer.as_fd());
        self.replies.is_closed() || self.peer.upgrade().is_some_and(has_hung_up)
    }

    /// Sends a reply without waiting. If the client has gone, the reply is dropped.
    pub(crate) fn send(&self, reply: Reply) {
        if self.replies.try_send(reply).is_err() {
            tracing::debug!(
                event = "control.client_gone",
                "cannot reply to a control request: the client has gone"
            );
        }
    }

    /// Refuses the request and ends the conversation.
    pub(crate) fn refuse(self, why: Refusal, reason: impl Into<String>) {
        self.send(Reply::Refused { why, reason: reason.into() });
    }
}

impl ControlServer {
    /// Creates a server that does not listen yet.
    pub(crate) fn new() -> Self {
        let (ask, asked) = mpsc::channel(REQUESTS_MAX);
        Self { asked, ask, accepting: None, clients: TaskTracker::new() }
    }

    /// Starts to listen, as soon as the runtime has registered the socket. Must be called in a
    /// tokio runtime.
    pub(crate) fn open(&mut self, listener: Listener) {
        self.close();
        let accepting =
            self.clients.spawn(accept(listener, self.ask.clone(), self.clients.clone()));
        self.accepting = Some(accepting.abort_handle());
    }

    /// Stops listening. New clients wait in the backlog for the next active generation. Requests
    /// that have already arrived are still answered.
    pub(crate) fn close(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
        }
    }

    /// Waits for the next request. Cancel safe.
    pub(crate) async fn next(&mut self) -> (Request, Answer) {
        match self.asked.recv().await {
            Some(asked) => asked,
            // Never reached, because `self.ask` keeps the channel open.
            None => std::future::pending().await,
        }
    }

    /// Stops listening and waits until every reply is written. Requests that have not been handled
    /// are told to ask again.
    pub(crate) async fn finish(mut self) {
        self.close();
        self.asked.close();
        while let Ok((_, answer)) = self.asked.try_recv() {
            answer.send(Reply::Moved {});
        }
        self.clients.close();
        // A client that does not read had its chance.
        let _ = timeout(REPLY_TIMEOUT, self.clients.wait()).await;
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.close();
    }
}

async fn accept(listener: Listener, ask: mpsc::Sender<(Request, Answer)>, clients: TaskTracker) {
    let mut acceptor = watch(listener).await;
    let mut seats = Seats::new();
    let mut last_warning: Option<Instant> = None;
    loop {
        let (stream, _) = acceptor.accept_here().await;
        let user = match User::of(&stream) {
            Ok(user) => user,
            Err(error) => {
                tracing::debug!(
                    event = "control.peer_unknown", %error,
                    "cannot determine the user of a control connection"
                );
                continue;
            }
        };
        if let User::Stranger(user) = user {
            if last_warning.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
                tracing::warn!(
                    event = "control.denied",
                    user,
                    "rejected a control connection from uid {user}: \
                     only root and the daemon's user may connect"
                );
                last_warning = Some(Instant::now());
            }
        }
        if let Some(seat) = seats.take(user) {
            let ask = ask.clone();
            clients.spawn(async move {
                if let Err(error) = converse(stream, user, seat, ask).await {
                    tracing::debug!(
                        event = "control.conversation_failed", %error,
                        "a control connection failed"
                    );
                }
            });
        } else {
            let (why, reason) = match user {
                User::Stranger(user) => (Refusal::Denied, denied(user)),
                User::Root | User::Owner => {
                    (Refusal::TryAgain, "too many control requests are under way".to_owned())
                }
            };
            refuse_at_once(&stream, &Reply::Refused { why, reason });
        }
        // Let an evicted client leave before the next one is accepted.
        tokio::task::yield_now().await;
    }
}

/// Registers the control socket with the runtime. Retries when memory is short, because a
/// generation without a control socket could not be replaced.
async fn watch(listener: Listener) -> Acceptor {
    let mut has_failed = false;
    loop {
        match Acceptor::new(listener.clone()) {
            Ok(acceptor) => {
                if has_failed {
                    tracing::info!(event = "control.open", "the control socket is open");
                }
                return acceptor;
            }
            Err(error) => {
                if !has_failed {
                    tracing::error!(
                        event = "control.failed", reason = %error,
                        "cannot open the control socket, retrying: {error}"
                    );
                }
                has_failed = true;
                sleep(PAUSE).await;
            }
        }
    }
}

/// Writes a reply. Retries when the kernel is out of memory, because the reply may be the outcome
/// of a handoff.
async fn write(stream: &mut BufReader<Stream>, line: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < line.len() {
        match stream.write(&line[written..]).await {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(error) if sys::socket::will_pass(&error) => sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Refuses a client without reading its request. Writes only what the socket takes at once.
fn refuse_at_once(stream: &Stream, reply: &Reply) {
    if let Ok(mut line) = serde_json::to_vec(reply) {
        line.push(b'\n');
        // The reply may be lost, because the client is over the limit anyway.
        let _ = sys::socket::send_packet(stream.as_fd(), &line);
    }
}

fn denied(user: u32) -> String {
    format!("user {user} may not ask; root and the user of the daemon may")
}

/// Handles one conversation: a request, its replies, the end.
async fn converse(
    stream: Stream,
    user: User,
    seat: Seat,
    ask: mpsc::Sender<(Request, Answer)>,
) -> io::Result<()> {
    let Seat { evicted, place: _place } = seat;
    let mut stream = BufReader::new(stream);
    // Read the request even if the user will be refused: a client that is still writing would not
    // see the reply.
    let mut request = tokio::select! {
        biased;
        request = read(&mut stream) => request?,
        Ok(()) = evicted => return Ok(()),
    };
    if let User::Stranger(user) = user {
        request = Err(denied(user));
    }
    let (to_write, mut replies) = mpsc::channel(REPLIES_MAX);
    // Only a reload needs a copy of the socket: a status request is answered at once.
    let peer = match &request {
        // If the copy fails because no file descriptor is left, `replies.is_closed` still reports
        // the end of the conversation.
        Ok(Request::Reload(_)) => stream.get_ref().as_fd().try_clone_to_owned().ok().map(Arc::new),
        Ok(Request::Status {}) | Err(_) => None,
    };
    let answer =
        Answer { replies: to_write, peer: peer.as_ref().map_or_else(Weak::new, Arc::downgrade) };
    match request {
        Ok(request) => {
            if let Err(SendError((_, answer))) = ask.send((request, answer)).await {
                answer.send(Reply::Moved {});
            }
        }
        Err(why) => answer.refuse(Refusal::Denied, why),
    }
    drop(ask);
    loop {
        match timeout(LOOK_INTERVAL, replies.recv()).await {
            Ok(Some(reply)) => {
                let mut line = serde_json::to_vec(&reply).map_err(io::Error::other)?;
                line.push(b'\n');
                timeout(REPLY_TIMEOUT, write(&mut stream, &line)).await??;
            }
            Ok(None) => break,
            // The client has disconnected, so free its place for another.
            Err(_) if sys::socket::has_hung_up(stream.get_ref().as_fd()) => return Ok(()),
            Err(_) => {}
        }
    }
    stream.shutdown().await
}

/// Reads a request, or returns what is wrong with it.
pub(super) async fn read(
    stream: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Result<Request, String>> {
    let line = timeout(REQUEST_TIMEOUT, read_line(stream)).await??;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line).map_err(|error| {
        one_line(&format!("cannot read the request ({error}): {}", String::from_utf8_lossy(&line)))
    }))
}

/// Reads the first line, up to the size limit of a request. Retries when the kernel is out of
/// memory, because the operator would take a closed connection for the end of the daemon.
async fn read_line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let (mut stream, mut line) = (stream.take(REQUEST_MAX), Vec::new());
    loop {
        match stream.read_until(b'\n', &mut line).await {
            Err(error) if sys::socket::will_pass(&error) => sleep(PAUSE).await,
            read => return read.map(|_| line),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use nix::errno::Errno;
    use tokio::io::{AsyncRead, ReadBuf};

    use super::*;

    /// A reader with a scripted result for each read.
    struct Script(Vec<Result<&'static str, Errno>>);

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.0.remove(0) {
                Ok(bytes) => buffer.put_slice(bytes.as_bytes()),
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_read_without_memory_is_tried_again() {
        let reads = vec![Ok("{\"sta"), Err(Errno::ENOMEM), Err(Errno::ENOBUFS), Ok("tus\":{}}\n")];
        let request = read(&mut BufReader::new(Script(reads))).await.unwrap();
        assert_eq!(request, Ok(Request::Status {}));
    }

    #[tokio::test]
    async fn a_read_that_fails_for_good_ends_the_conversation() {
        let reads = vec![Ok("{\"sta"), Err(Errno::ECONNRESET)];
        let error = read(&mut BufReader::new(Script(reads))).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
