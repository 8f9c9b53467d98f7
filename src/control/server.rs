//! The server of the control socket. It reads one request from each connection and writes the
//! replies.
//!
//! Each connection has its own task, so a stalled client delays no other client. The server limits
//! the number of clients (see `client_limits`), the size of a request, and the time to read a
//! request or write a reply. The kernel reports the user of each client, so access control does not
//! depend on the file mode of the socket path.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::client_limits::{ClientLimits, User};
use super::message::{Refusal, Reply, Request};
use super::session::{Answer, PAUSE, REPLY_TIMEOUT, converse, denied, refuse_at_once};
use crate::net::{Listener, WatchedListener};

/// The maximum number of requests that wait until the module `lifecycle` handles them.
const REQUESTS_MAX: usize = 64;
/// The minimum time between two log records about users who have no permission.
const WARN_INTERVAL: Duration = Duration::from_secs(1);

/// The daemon's side of the control socket. It receives the clients' requests, which the module
/// `lifecycle` handles.
#[derive(Debug)]
pub(crate) struct ControlServer {
    asked: mpsc::Receiver<(Request, Answer)>,
    ask: mpsc::Sender<(Request, Answer)>,
    accepting: Option<AbortHandle>,
    clients: TaskTracker,
}

impl ControlServer {
    /// Creates a server for the control socket. It does not listen until [`ControlServer::open`] is
    /// called.
    pub(crate) fn new() -> Self {
        let (ask, asked) = mpsc::channel(REQUESTS_MAX);
        Self { asked, ask, accepting: None, clients: TaskTracker::new() }
    }

    /// Starts a task that registers the socket with the tokio runtime and then accepts clients.
    /// Must be called in a tokio runtime.
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

    /// Waits for the next request from a client. Cancel safe.
    pub(crate) async fn next(&mut self) -> (Request, Answer) {
        match self.asked.recv().await {
            Some(asked) => asked,
            // This case cannot happen, because `self.ask` keeps the channel open.
            None => std::future::pending().await,
        }
    }

    /// Stops listening and waits until every reply is written. If a request was not handled, tells
    /// its client to send the request again.
    pub(crate) async fn finish(mut self) {
        self.close();
        self.asked.close();
        while let Ok((_, answer)) = self.asked.try_recv() {
            answer.send(Reply::Moved {});
        }
        self.clients.close();
        // Ignore a timeout: the shutdown must not wait for a client that does not read its reply.
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
    let mut limits = ClientLimits::new();
    let mut last_warning: Option<Instant> = None;
    loop {
        let (stream, _) = acceptor.accept_here(|| {}).await;
        let user = match User::of(&stream) {
            Ok(user) => user,
            Err(error) => {
                tracing::debug!(
                    event = "control.peer_unknown", %error,
                    "closed a control connection, because its user cannot be determined: {error}"
                );
                continue;
            }
        };
        if let User::Stranger(user) = user {
            warn_of(user, &mut last_warning);
        }
        if let Some(place) = limits.take(user) {
            let ask = ask.clone();
            clients.spawn(async move {
                if let Err(error) = converse(stream, user, place, ask).await {
                    tracing::debug!(
                        event = "control.conversation_failed", %error,
                        "cannot read from or write to a control client: {error}"
                    );
                }
            });
        } else {
            let (why, reason) = match user {
                User::Stranger(user) => (Refusal::Denied, denied(user)),
                User::Root | User::Owner => {
                    (Refusal::TryAgain, "too many control requests are in progress".to_owned())
                }
            };
            refuse_at_once(&stream, &Reply::Refused { why, reason });
        }
        // Yield, so that a client that has lost its place is disconnected before the next client is
        // accepted.
        tokio::task::yield_now().await;
    }
}

/// Logs that a user may not use the control socket, at most once in [`WARN_INTERVAL`].
fn warn_of(user: u32, last_warning: &mut Option<Instant>) {
    if last_warning.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
        tracing::warn!(
            event = "control.denied",
            user,
            "rejected a control connection from uid {user}: only root and the daemon's user may \
            connect"
        );
        *last_warning = Some(Instant::now());
    }
}

/// Registers the control socket with the tokio runtime. Retries while the kernel is out of memory,
/// because without the control socket an operator cannot control this generation.
async fn watch(listener: Listener) -> WatchedListener {
    let mut has_failed = false;
    loop {
        match WatchedListener::new(listener.clone()) {
            Ok(acceptor) => {
                if has_failed {
                    tracing::info!(
                        event = "control.open",
                        "opened the control socket after earlier failures"
                    );
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
