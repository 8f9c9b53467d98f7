//! The state of a generation that its driver (event loop) shares with the [`super::Life`] handles
//! of its server.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::moves::Moves;
use super::served::ServedListeners;
use super::server_link::LifeRequest;
use super::term::Term;
use crate::carry::CarriedState;
use crate::config::Config;
use crate::generation::Generation;
use crate::report::CarryForecast;

/// The state of a generation, as its server sees it.
#[derive(Debug)]
pub(in crate::lifecycle) struct LifeState {
    pub(in crate::lifecycle) generation: Generation,
    pub(in crate::lifecycle) term: watch::Sender<Term>,
    pub(super) standing: watch::Sender<AloneState>,
    /// Cancelled when this generation has become active for the first time.
    pub(super) committed: CancellationToken,
    /// Cancelled when the remaining connections must be dropped.
    pub(in crate::lifecycle) cut: CancellationToken,
    pub(super) alone: super::alone::AloneTasks,
    requests: mpsc::UnboundedSender<LifeRequest>,
    /// The state that this server offers to the successor.
    offered: Mutex<Option<CarriedState>>,
    /// The state that the predecessor has offered, until the server takes it.
    received: Mutex<Option<CarriedState>>,
    limits: OnceLock<ServerLimits>,
    /// The connections that move to the successor or arrive from the predecessor.
    pub(in crate::lifecycle) moves: Moves,
    /// The listeners of a server that accepts connections itself. Empty if the built-in server
    /// accepts them.
    pub(in crate::lifecycle) served: OnceLock<ServedListeners>,
    /// How many connections may move here from the predecessor.
    pub(in crate::lifecycle) expected: OnceLock<CarryForecast>,
}

/// Whether this generation may run the tasks of [`super::Life::alone`], which run in only one
/// generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AloneState {
    /// The generation is not active yet.
    Waiting,
    /// The generation is active.
    Active,
    /// The generation is still active, but is about to hand over. Its tasks must end first.
    Yielding,
    /// The generation has handed over, or was told to stop.
    Retired,
}

/// The time limits for a server during a drain.
#[derive(Clone, Copy, Debug)]
pub(in crate::lifecycle) struct ServerLimits {
    /// At most a quarter of the drain timeout. The wait for another request comes after this one,
    /// and both must end before the drain does.
    pub(in crate::lifecycle) first_request: Duration,
    keep_alive: Duration,
    /// Half of the drain timeout. The other half is left for the connections to end.
    longest: Duration,
}

impl LifeState {
    pub(super) fn new(
        generation: Generation,
        requests: mpsc::UnboundedSender<LifeRequest>,
    ) -> Self {
        Self {
            generation,
            term: watch::Sender::new(Term::default()),
            standing: watch::Sender::new(AloneState::Waiting),
            committed: CancellationToken::new(),
            cut: CancellationToken::new(),
            alone: super::alone::AloneTasks::default(),
            requests,
            offered: Mutex::default(),
            received: Mutex::default(),
            limits: OnceLock::new(),
            moves: Moves::default(),
            served: OnceLock::new(),
            expected: OnceLock::new(),
        }
    }

    /// Sends a request to the driver. Ignores a failure, because a driver that has ended cannot
    /// fulfill a request.
    pub(in crate::lifecycle) fn request(&self, request: LifeRequest) {
        let _ = self.requests.send(request);
    }

    /// Waits until no task that runs in only one generation is left. Cancel safe.
    pub(in crate::lifecycle) async fn yielded(&self) {
        self.alone.ended().await;
    }

    pub(super) fn configure(&self, config: &Config) {
        let _ = self.limits.set(ServerLimits::of(config));
    }

    pub(in crate::lifecycle) fn limits(&self) -> ServerLimits {
        self.limits.get().copied().unwrap_or_else(|| ServerLimits::of(&Config::default()))
    }

    pub(super) fn offer(&self, state: CarriedState) {
        *self.offered.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// Returns a copy of the state that this server offers to the successor. The state stays
    /// offered, because the successor may die and another one may follow.
    pub(super) fn offered(&self) -> Option<CarriedState> {
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        offered.as_ref().map(|state| CarriedState::new(&state.format, state.bytes.clone()))
    }

    /// Returns whether a task that must run in only one generation is running.
    pub(in crate::lifecycle) fn has_alone_tasks(&self) -> bool {
        self.alone.are_running()
    }

    pub(super) fn receive(&self, state: CarriedState) {
        *self.received.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    pub(super) fn take_received(&self) -> Option<CarriedState> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerLimits {
    fn of(config: &Config) -> Self {
        Self {
            first_request: config.first_request_grace.min(config.drain_timeout / 4),
            keep_alive: config.keep_alive_grace,
            longest: config.drain_timeout / 2,
        }
    }

    /// Returns how long connections may wait for another request, if clients may still arrive on a
    /// moved listener for the time `late`. A server that stopped accepting earlier would lose these
    /// clients.
    pub(in crate::lifecycle) fn idle_time(&self, late: Duration) -> Duration {
        self.keep_alive.max(late).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_client_does_not_use_up_the_drain() {
        let [short, long] = [1, 30].map(|seconds| {
            let (drain_timeout, grace) = (Duration::from_secs(seconds), Duration::from_secs(2));
            let config = Config { drain_timeout, first_request_grace: grace, ..Config::default() };
            ServerLimits::of(&config).first_request.as_millis()
        });
        assert_eq!((short, long), (250, 2000));
    }

    #[test]
    fn idle_connections_are_closed_before_the_drain_deadline() {
        let [short, long] = [2, 30].map(|seconds| {
            let drain_timeout = Duration::from_secs(seconds);
            let limits = ServerLimits::of(&Config { drain_timeout, ..Config::default() });
            [0, 3, 8].map(|late| limits.idle_time(Duration::from_secs(late)).as_secs())
        });
        assert_eq!((short, long), ([1, 1, 1], [5, 5, 8]));
    }
}
