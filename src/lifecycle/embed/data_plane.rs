//! The data plane for a program with its own server. The server learns from its
//! [`Life`] when to accept, to drain and to cut. This module tells the driver
//! what the server does.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::data_plane::{CarryPlane, DataPlane};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::lifecycle::life::{Life, Term};
use crate::net::Listener;
use crate::report::{Connections, Counters};

/// The driver's view of the program's own server.
#[derive(Debug)]
pub(super) struct Embedded {
    life: Life,
    server: watch::Receiver<ServerState>,
}

/// Whether a call of the server function runs.
#[derive(Clone, Debug)]
pub(super) enum ServerState {
    /// A call has not returned yet.
    Running,
    /// All calls have returned, or were dropped. The last one was that of this term.
    Ended(Term),
}

impl Embedded {
    pub(super) fn new(life: Life, server: watch::Receiver<ServerState>) -> Self {
        Self { life, server }
    }
}

impl DataPlane for Embedded {
    /// Does nothing, because the server is called at the beginning of each term.
    fn start(&mut self, _listeners: &[Listener]) -> Result<(), Error> {
        Ok(())
    }

    async fn started(&self) -> Result<(), Error> {
        self.life.term().ready().await;
        Ok(())
    }

    fn not_started(&self, limit: Duration) -> Error {
        Error::NotReady { limit }
    }

    /// Returns a heartbeat that completes at once, because the driver cannot see the server's
    /// accept loops.
    fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        beat.close();
        beat
    }

    /// Never resolves, because the server reports its failure with a request of its
    /// [`Life`].
    async fn died(&self) -> Error {
        std::future::pending().await
    }

    /// Does not wait until the server has stopped, because the server still serves the connections
    /// that it accepts in the meantime.
    async fn stop_accepting(&mut self) {}

    /// Leaves the clients in the backlog to the server's acceptors, which have stopped to wait for
    /// new clients. If the drain has already begun, the acceptors may have ended. Then the server
    /// is called again, in a term in which it accepts only these clients.
    fn accept_backlog(&mut self, listeners: &[Listener]) {
        let Some(served) = self.life.state.served.get() else { return };
        let waiting = served.give_up(listeners);
        if !self.life.term().is_draining() {
            return;
        }
        served.close_unused();
        if !waiting.is_empty() {
            let names: Vec<_> = waiting.iter().map(|one| &*one.name).collect();
            tracing::info!(
                event = "backlog.left",
                listeners = names.join(" "),
                "clients wait in a backlog that no other generation accepts: the server accepts \
                them"
            );
            self.life.state.term.send_replace(Term::for_backlog());
        }
    }

    /// Does nothing, because the server itself accepts its last clients.
    fn accept_late(&mut self, _replaced: Vec<Listener>) {}

    /// Does nothing, because the driver begins the drain of the term.
    fn drain(&mut self, _successor: Option<OwnedFd>) {}

    /// Waits until the server function has returned and all connections are closed. After a cut,
    /// does not wait for the connections, because they end with the process.
    async fn drained(&self) {
        // An error means that nobody waits for the server any more.
        let has_ended = |server: &ServerState| match server {
            ServerState::Ended(term) => term.is(&self.life.term()),
            ServerState::Running => false,
        };
        let _ = self.server.clone().wait_for(has_ended).await;
        if let Some(served) = self.life.state.served.get() {
            tokio::select! {
                () = served.ended() => {}
                () = self.life.cut() => {}
            }
        }
    }

    /// Does nothing, because the driver tells the server to cut its connections.
    fn cut(&mut self) {}

    fn connections(&self) -> Option<Connections> {
        self.life.state.served.get().map(|served| served.connections())
    }

    fn counters(&self) -> Counters {
        self.life.state.served.get().map(|served| served.counters()).unwrap_or_default()
    }

    fn report(&self) -> DrainReport {
        let none = DrainReport { ended: 0, carried: 0, cut: 0 };
        self.life.state.served.get().map_or(none, |served| served.report())
    }
}

/// No connections move to the successor, because only the server knows their state.
impl CarryPlane for Embedded {}
