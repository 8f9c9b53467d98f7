//! The connection between the driver (event loop) and the [`super::Life`] handles of the server.
//! The driver tells the server what happens to the generation, and receives the server's requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::state::{AloneState, LifeState};
use super::term::Term;
use crate::carry::CarriedState;
use crate::config::Config;
use crate::generation::Generation;
use crate::lifecycle::alone_wait::AloneWait;

/// The event loop's end of the connection to the server.
#[derive(Debug)]
pub(in crate::lifecycle) struct ServerLink {
    pub(in crate::lifecycle) state: Arc<LifeState>,
    requests: mpsc::UnboundedReceiver<LifeRequest>,
    /// The reason why the server has rolled the handoff back, so that the predecessor keeps
    /// serving. `None` if it has not.
    pub(in crate::lifecycle) rollback: Option<String>,
    /// The event that is delayed until the tasks that run in only one generation have ended. `None`
    /// if no event is delayed.
    pub(in crate::lifecycle) alone_wait: Option<AloneWait>,
}

/// A request of the server to the event loop.
#[derive(Debug)]
pub(in crate::lifecycle) enum LifeRequest {
    /// Give the server more time to become ready: at least this much from now on.
    ExtendStart(Duration),
    /// Roll the handoff back for this reason, so that the predecessor keeps serving.
    RollBack(String),
    /// The server has failed. The values are its period of accepting connections, and the reason.
    Failed(Term, String),
    /// The server has returned, although nothing has told it to stop. The value is its period of
    /// accepting connections.
    Returned(Term),
    /// Start a handoff.
    Reload,
    /// Stop the service.
    Stop,
}

impl ServerLink {
    pub(super) fn new(generation: Generation) -> (Arc<LifeState>, Self) {
        let (sender, requests) = mpsc::unbounded_channel();
        let state = Arc::new(LifeState::new(generation, sender));
        (Arc::clone(&state), Self { state, requests, rollback: None, alone_wait: None })
    }

    /// Sets the time limits for the server during a drain.
    pub(in crate::lifecycle) fn configure(&self, config: &Config) {
        self.state.configure(config);
    }

    /// Waits for the next request of the server. Cancel safe.
    pub(in crate::lifecycle) async fn next(&mut self) -> LifeRequest {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }

    /// Tells the server that this generation is the active one.
    pub(in crate::lifecycle) fn become_active(&self) {
        self.state.committed.cancel();
        self.state.standing.send_replace(AloneState::Active);
    }

    /// Tells the tasks that run in only one generation to end, before the handoff is committed.
    pub(in crate::lifecycle) fn end_alone_tasks(&self) {
        self.state.standing.send_if_modified(|standing| {
            let yields = *standing == AloneState::Active;
            if yields {
                *standing = AloneState::Yielding;
            }
            yields
        });
    }

    /// Lets the tasks that run in only one generation start again, because the handoff has failed.
    pub(in crate::lifecycle) fn keep_alone_tasks(&self) {
        self.state.standing.send_if_modified(|standing| {
            let keeps = *standing == AloneState::Yielding;
            if keeps {
                *standing = AloneState::Active;
            }
            keeps
        });
    }

    /// Drops the tasks that run in only one generation, which did not end within `limit`.
    pub(in crate::lifecycle) fn drop_alone_tasks(&self, limit: Duration) {
        self.state.alone.drop_all(limit);
    }

    /// Tells the server to stop accepting on all listeners, because another generation accepts.
    pub(in crate::lifecycle) fn retire(&self) {
        self.retire_all_but_last();
        self.state.term.borrow().retire_last();
    }

    /// Tells the server to stop accepting, because the service stops. The server still accepts on
    /// the listeners that stop last.
    pub(in crate::lifecycle) fn retire_all_but_last(&self) {
        self.state.standing.send_replace(AloneState::Retired);
        self.state.term.borrow().retire();
    }

    /// Tells the server that the drain begins.
    pub(in crate::lifecycle) fn drain(&self) {
        if let Some(served) = self.state.served.get() {
            served.begin_drain();
        }
        self.state.term.borrow().drain();
    }

    /// Tells the server to accept again, because the successor has died.
    pub(in crate::lifecycle) fn resume(&self) {
        if let Some(served) = self.state.served.get() {
            served.end_drain();
        }
        self.state.term.send_replace(Term::default());
    }

    /// Tells the server to drop its connections.
    pub(in crate::lifecycle) fn cut(&self) {
        if let Some(served) = self.state.served.get() {
            served.cut();
        }
        self.state.term.borrow().retire_last();
        self.state.cut.cancel();
    }

    /// Returns the state that the server offers to the successor.
    pub(in crate::lifecycle) fn offered(&self) -> Option<CarriedState> {
        self.state.offered()
    }

    /// Stores the state that the predecessor has offered.
    pub(in crate::lifecycle) fn receive(&self, state: CarriedState) {
        self.state.receive(state);
    }
}
