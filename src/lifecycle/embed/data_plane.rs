//! The driver (event loop) controls every kind of server through the trait [`DataPlane`]. This
//! module implements the trait for a program with its own server, which learns from its [`Life`]
//! when to accept, to drain and to cut.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::carry::Arrivals;
use crate::carry::{AllRegistered, CarryEnd, DepartureTasks, Takeovers};
use crate::data_plane::{CarryPlane, DataPlane};
use crate::drain::DrainReport;
use crate::error::Error;
use crate::lifecycle::life::{Life, Term};
use crate::net::Listener;
use crate::report::{CarryForecast, Connections, Counters};

/// What the driver (event loop) sees of the program's own server.
#[derive(Debug)]
pub(super) struct Embedded {
    life: Life,
    server: watch::Receiver<ServerState>,
    /// The async runtime of the server. The driver runs in a separate runtime.
    runtime: Handle,
    /// The connections that move to the successor.
    departing: DepartureTasks,
    /// The tasks that take over connections from the predecessor.
    taking: Takeovers,
}

/// Whether a call of the program's server function is running.
#[derive(Clone, Debug)]
pub(super) enum ServerState {
    /// A call has not returned yet.
    Running,
    /// All calls have returned, or were dropped. The value is the period of accepting connections
    /// (term) to which the last call belonged.
    Ended(Term),
}

impl Embedded {
    /// Creates the view of a server that runs in `runtime`.
    pub(super) fn new(life: Life, server: watch::Receiver<ServerState>, runtime: Handle) -> Self {
        let moves = &life.state.moves;
        let departing = DepartureTasks::new(Arc::clone(&moves.departures));
        let taking = Takeovers::new(moves.arriving.clone());
        Self { life, server, runtime, departing, taking }
    }
}

impl DataPlane for Embedded {
    /// Lets connections move to a successor again. Does not start the server, because
    /// `ServerCalls` calls the server function whenever the generation begins to accept.
    fn start(&mut self, _listeners: &[Listener]) -> Result<(), Error> {
        self.departing.end();
        self.taking.resume();
        self.life.state.moves.resume();
        Ok(())
    }

    async fn started(&self) -> Result<(), Error> {
        self.life.term().ready().await;
        Ok(())
    }

    fn not_started(&self, limit: Duration) -> Error {
        Error::NotReady { limit }
    }

    /// Sends a heartbeat to the async runtime of the server, because the library cannot check the
    /// accept loops of the server. The heartbeat completes when any thread of the runtime runs a
    /// task.
    fn heartbeat(&self) -> TaskTracker {
        let beat = TaskTracker::new();
        let token = beat.token();
        drop(self.runtime.spawn(async move { drop(token) }));
        beat.close();
        beat
    }

    /// Never resolves, because a failure of the server is reported with `LifeRequest::Failed`.
    async fn died(&self) -> Error {
        std::future::pending().await
    }

    /// Does not wait until the server has stopped, because the server still serves the connections
    /// that it accepts in the meantime.
    async fn stop_accepting(&mut self) {}

    /// Leaves the clients in the backlogs to the server's acceptors, which accept them before they
    /// end. If the drain has already begun, the acceptors may have ended. Then the server function
    /// is called again, only to accept these clients.
    fn accept_backlog(&mut self, listeners: &[Listener]) {
        let Some(served) = self.life.state.served.get() else { return };
        let given_up = served.give_up(listeners);
        if !self.life.term().is_draining() {
            return;
        }
        served.close_unused();
        // Look for clients only now: the listener of a client that has just come is still open.
        let waiting = given_up.iter().filter(|one| one.has_clients());
        let names: Vec<_> = waiting.map(|one| &*one.name).collect();
        if !names.is_empty() {
            tracing::info!(
                event = "backlog.left",
                listeners = names.join(" "),
                "clients still wait on listeners that no other process serves, so this process \
                accepts them: {}",
                names.join(" ")
            );
            self.life.state.term.send_replace(Term::for_backlog());
        }
    }

    fn serve_backlogs(&mut self, listeners: &[Listener]) {
        // After a cut, a connection would be dropped as soon as it is accepted.
        if self.life.state.cut.is_cancelled() {
            return self.leave_listeners();
        }
        let term = self.life.term();
        self.accept_backlog(listeners);
        // If the server function is called again, it may need another copy, so keep the sockets.
        if let Some(served) = self.life.state.served.get().filter(|_| term.is(&self.life.term())) {
            served.close_copied();
        }
    }

    fn leave_listeners(&mut self) {
        if let Some(served) = self.life.state.served.get() {
            served.close_inherited();
        }
    }

    /// Does nothing, because [`DataPlane::accept_backlog`] has already told the acceptors that
    /// these listeners are replaced. They accept the late clients too.
    fn accept_late(&mut self, _replaced: Vec<Listener>) {}

    /// Asks the connections that can move to the successor to do so. All other connections learn
    /// from their [`Life`] that the drain has begun.
    fn drain(&mut self, successor: Option<OwnedFd>) {
        let arriving = self.taking.tracker().clone();
        if !successor.is_some_and(|channel| self.departing.begin(channel, arriving, AllRegistered))
        {
            self.drain_uncarried();
        }
    }

    /// Waits until the server function has returned and all connections are closed. After a cut,
    /// does not wait for the connections, because they end with the process.
    async fn drained(&self) {
        let has_ended = |server: &ServerState| match server {
            ServerState::Ended(term) => term.is(&self.life.term()),
            ServerState::Running => false,
        };
        // Ignore an error, which means that the server does not run any more.
        let _ = self.server.clone().wait_for(has_ended).await;
        self.taking.tracker().wait().await;
        if let Some(served) = self.life.state.served.get() {
            tokio::select! {
                () = served.ended() => {}
                () = self.life.cut() => {}
            }
        }
    }

    /// Stops moving connections. Does not close connections, because the server learns from its
    /// [`Life`] that it must drop them.
    fn cut(&mut self) {
        self.taking.stop();
        self.departing.end();
    }

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

impl CarryPlane for Embedded {
    fn forecast(&self) -> Option<CarryForecast> {
        let served = self.life.state.served.get()?;
        served.carries().then(|| served.forecast())
    }

    /// Remembers how many connections the predecessor may move to this process. Before the server
    /// accepts clients, the connection limits of its listeners reserve room for them.
    fn expect_carried(&mut self, forecast: CarryForecast) {
        let _ = self.life.state.expected.set(forecast);
    }

    fn expect_no_more(&mut self) {
        if let Some(served) = self.life.state.served.get() {
            served.release_reserved();
        }
    }

    /// Takes over connections of the predecessor in the runtime of the server, which then handles
    /// the events of their sockets.
    fn take_over(&mut self, channel: OwnedFd) -> Result<(), Error> {
        let _inside = self.runtime.enter();
        self.taking
            .begin(channel, Arrivals(self.life.clone()))
            .map_err(Error::system("receive connections from the old process"))
    }

    fn is_taking_over(&self) -> bool {
        !self.taking.tracker().is_empty()
    }

    async fn taken_over(&self) {
        self.taking.tracker().wait().await;
    }

    async fn carry_ended(&self) -> CarryEnd {
        self.departing.ended().await
    }

    /// Asks the connections that have not moved to the successor to end, and then withdraws the
    /// request to move. In the reverse order, a connection could begin another message in between.
    fn drain_uncarried(&mut self) {
        self.taking.stop();
        self.life.state.moves.drain_uncarried();
        self.departing.end();
    }

    async fn settled(&self) {
        self.departing.departures().settled().await;
    }

    fn lost_with_successor(&mut self) -> u64 {
        self.life.state.served.get().map_or(0, |served| served.lost_with_successor())
    }
}
