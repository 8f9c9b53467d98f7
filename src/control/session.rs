//! This module serves one client of the control socket: it reads the request and writes the
//! replies.
//!
//! Each read and each write has a time limit, so a client that hangs does not stay connected. If
//! the kernel is out of memory, the module tries again. Otherwise the connection would break, and
//! the operator would conclude that the daemon has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;
use tokio::time::{sleep, timeout};

use super::client_limits::{ClientPlace, User};
use super::message::{Refusal, Reply, Request};
use crate::error::Malformed;
use crate::net::Stream;
use crate::sys;
use crate::text::one_line;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may take to read a reply. When the server shuts down, all clients together
/// have this time to read their last replies.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// The maximum length of a request in bytes.
const REQUEST_MAX: u64 = 16 * 1024;
/// How often the server checks whether a client that waits for a reply is still connected.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The time before a retry when the kernel is out of memory.
pub(super) const PAUSE: Duration = Duration::from_millis(10);
/// The maximum number of replies to one request that wait to be sent. News of a later deadline is
/// dropped first, so that there is always room for the two last replies.
const REPLIES_MAX: usize = 8;
/// The number of last replies to a reload: the outcome of the handoff, and the end of the drain.
const LAST_REPLIES: usize = 2;

/// A handle for sending the replies to one request. Dropping it disconnects the client.
#[derive(Debug)]
pub(crate) struct Answer {
    replies: mpsc::Sender<Reply>,
    /// A copy of the client's socket, to check whether the client is still connected. It exists
    /// only while a client waits for the outcome of a reload.
    peer: Weak<OwnedFd>,
}

impl Answer {
    /// Returns whether the client has disconnected. If so, its request must not be executed. A
    /// client that has only half-closed the connection still waits for the reply.
    pub(crate) fn is_abandoned(&self) -> bool {
        let has_hung_up = |peer: Arc<OwnedFd>| sys::socket::has_hung_up(peer.as_fd());
        self.replies.is_closed() || self.peer.upgrade().is_some_and(has_hung_up)
    }

    /// Sends a reply to the client without waiting. If the client has disconnected, the reply is
    /// dropped.
    pub(crate) fn send(&self, reply: Reply) {
        if self.replies.try_send(reply).is_err() {
            tracing::debug!(
                event = "control.client_gone",
                "cannot reply to a control request: the client has disconnected"
            );
        }
    }

    /// Sends a reply that a later one replaces, such as news of a later deadline. Drops it if there
    /// is only room for the last replies.
    pub(crate) fn send_news(&self, reply: Reply) {
        if self.replies.capacity() > LAST_REPLIES {
            self.send(reply);
        }
    }

    /// Refuses the request with a reason and disconnects the client.
    pub(crate) fn refuse(self, why: Refusal, reason: impl Into<String>) {
        self.send(Reply::Refused { why, reason: reason.into() });
    }
}

/// Writes a reply to the client. Retries when the kernel is out of memory, because the reply may be
/// the outcome of a handoff.
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

/// Refuses a client without reading its request. Tries to send the reason, but does not wait for
/// room in the send buffer.
pub(super) fn refuse_at_once(stream: &Stream, reply: &Reply) {
    if let Ok(mut line) = serde_json::to_vec(reply) {
        line.push(b'\n');
        // Ignore an error, because the connection is closed even if the client does not receive
        // this reply.
        let _ = sys::socket::send_packet(stream.as_fd(), &line);
    }
}

pub(super) fn denied(user: u32) -> String {
    format!("uid {user} may not connect: only root and the daemon's user may connect")
}

/// Handles one client: reads the request and writes the replies.
pub(super) async fn converse(
    stream: Stream,
    user: User,
    mut place: ClientPlace,
    ask: mpsc::Sender<(Request, Answer)>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    // Read the request even if the user has no permission. Otherwise the connection would be reset
    // while the client still writes, and the client would not see the reply.
    let mut request = tokio::select! {
        biased;
        request = read(&mut stream) => request?,
        () = place.evicted() => return Ok(()),
    };
    let Some(_place) = place.keep() else { return Ok(()) };
    if let User::Stranger(user) = user {
        request = Err(denied(user).into());
    }
    let (to_write, replies) = mpsc::channel(REPLIES_MAX);
    // Copy the client's socket only for a reload, because a status request is answered at once.
    let peer = match &request {
        // Ignore a failure, for example if no file descriptor is free. `replies.is_closed` then
        // still detects that the client has disconnected, only later.
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
        Err(why) => answer.refuse(Refusal::Denied, why.to_string()),
    }
    drop(ask);
    write_replies(&mut stream, replies).await
}

/// Writes the replies to the client until the last one, and then half-closes the connection.
/// Returns earlier if the client has disconnected.
async fn write_replies(
    stream: &mut BufReader<Stream>,
    mut replies: mpsc::Receiver<Reply>,
) -> io::Result<()> {
    loop {
        match timeout(LOOK_INTERVAL, replies.recv()).await {
            Ok(Some(reply)) => {
                let mut line = serde_json::to_vec(&reply).map_err(io::Error::other)?;
                line.push(b'\n');
                timeout(REPLY_TIMEOUT, write(stream, &line)).await??;
            }
            Ok(None) => break,
            // The client has disconnected. Return, so that another client can take its place.
            Err(_) if sys::socket::has_hung_up(stream.get_ref().as_fd()) => return Ok(()),
            Err(_) => {}
        }
    }
    stream.shutdown().await
}

/// Reads a request. Returns an error text if the request is not valid.
pub(super) async fn read(
    stream: &mut (impl AsyncBufRead + Unpin),
) -> io::Result<Result<Request, Malformed>> {
    let line = timeout(REQUEST_TIMEOUT, read_line(stream)).await??;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line).map_err(|error| {
        let request = String::from_utf8_lossy(&line);
        one_line(&format!("cannot read the request ({error}): {request}")).into()
    }))
}

/// Reads the first line, up to the maximum length of a request. Retries when the kernel is out of
/// memory. Otherwise the connection would close, and the operator would conclude that the daemon
/// has ended.
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

    /// A reader for tests that returns one of the given results for each read.
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

    /// A burst of news leaves room for the outcome and for the end of the drain.
    #[test]
    fn the_last_replies_have_room_after_much_news() {
        let (to_write, mut replies) = mpsc::channel(REPLIES_MAX);
        let answer = Answer { replies: to_write, peer: Weak::new() };
        for _ in 0..40 {
            answer.send_news(Reply::Moved {});
        }
        let refused =
            Reply::Refused { why: Refusal::Failed, reason: "it does not start".to_owned() };
        for _ in 0..LAST_REPLIES {
            answer.send(refused.clone());
        }
        let queued: Vec<Reply> = std::iter::from_fn(|| replies.try_recv().ok()).collect();
        assert_eq!(queued.len(), REPLIES_MAX);
        assert_eq!(queued[REPLIES_MAX - LAST_REPLIES..], [refused.clone(), refused]);
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
