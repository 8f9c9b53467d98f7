//! This module serves the last clients of a listener that the successor has replaced.
//!
//! When the successor has replaced a listener with another socket, the kernel sends new clients to
//! the new socket. But clients in the middle of their TCP handshake still enter the backlog of the
//! old socket. If this process closed the old socket at once, the kernel would reset these clients.

use std::pin::pin;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::listener::ListenerSlot;
use crate::net::{HANDSHAKE_TIMEOUT, Listener, WatchedListener, pending};
use crate::service::Service;

/// The task that serves the last clients of a listener that the successor has replaced.
pub(super) struct Latecomers<S> {
    pub(super) listener: Listener,
    pub(super) slot: ListenerSlot<S>,
    /// The index of the worker that serves the late clients.
    pub(super) worker: usize,
    pub(super) stop: CancellationToken,
}

impl<S: Service> Latecomers<S> {
    /// Accepts clients for [`HANDSHAKE_TIMEOUT`], because every handshake that has already begun
    /// ends within this time. Stops earlier if `stop` is cancelled.
    pub(super) async fn run(self) {
        let serve = |client| self.slot.serve(self.worker, client, None);
        let mut end = pin!(sleep(HANDSHAKE_TIMEOUT));
        match WatchedListener::new(self.listener.clone()) {
            Ok(mut acceptor) => loop {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    () = &mut end => break,
                    client = acceptor.accept_here(|| {}) => serve(client),
                }
            },
            Err(error) => {
                let listener = self.listener.name();
                tracing::warn!(
                    event = "listener.backlog_unwatched", %listener, reason = %error,
                    "cannot watch the replaced listener {listener}, so its last clients are \
                    accepted only when it is closed: {error}"
                );
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = &mut end => {}
                }
            }
        }
        pending(&self.listener).for_each(serve);
    }
}
