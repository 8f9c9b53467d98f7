//! One process of a program. This module starts the process, and starts it again when it ends.
//!
//! Each instance has a task that owns the process. The module `plane` gives orders to the task and
//! reads its state. The module `watch` watches the process while it runs. If the task is dropped,
//! the process and its group are killed, so no program outlives its generation.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::launch::{Launched, ProgramLaunch};
use super::notify::NotifySocket;
use super::observed::{Facts, InstanceState, Order, ProgramFailure};
use super::private;
use super::ready::Probe;
use super::running::Running;
use crate::address::Address;
use crate::config::{ProgramConfig, Restart};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Listener;
use crate::report::ProgramCounters;

/// The first and the longest pause before a program is restarted. Each pause is twice as long as
/// the previous one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The listeners of a program.
#[derive(Clone, Debug, Default)]
pub(super) struct ProgramListeners {
    /// The names of all listeners.
    pub(super) names: Vec<String>,
    /// The addresses of all listeners, in the order of `names`.
    pub(super) addresses: Vec<String>,
    /// The listeners that the program inherits when it starts. The list is emptied at the start of
    /// a drain, so that no copy keeps a closed listener open.
    pub(super) open: Vec<Listener>,
}

impl From<Vec<Listener>> for ProgramListeners {
    fn from(open: Vec<Listener>) -> Self {
        Self {
            names: open.iter().map(|listener| listener.name().to_string()).collect(),
            addresses: open.iter().map(|listener| listener.address().to_owned()).collect(),
            open,
        }
    }
}

/// The listeners of a program, which its instances read at each start.
pub(super) type SharedListeners = Arc<Mutex<ProgramListeners>>;

/// One process of a program.
pub(super) struct Instance {
    pub(super) config: Arc<ProgramConfig>,
    pub(super) generation: Generation,
    pub(super) number: usize,
    pub(super) listeners: SharedListeners,
    pub(super) private: Option<Address>,
    /// The maximum time between two answers of the program to its watchdog.
    pub(super) watchdog: Option<Duration>,
    /// The folder of the notification sockets.
    pub(super) folder: PathBuf,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) failures: watch::Sender<Option<ProgramFailure>>,
    pub(super) state: watch::Sender<InstanceState>,
    pub(super) facts: Arc<Mutex<Facts>>,
}

/// How one run of the program ended.
pub(super) enum RunOutcome {
    /// The program was told to stop.
    Stopped,
    /// The program ended by itself, failed a check, or could not be started.
    Failed(ProgramFailure),
}

impl RunOutcome {
    pub(super) fn failed(what: String) -> Self {
        Self::Failed(ProgramFailure { what, code: None })
    }
}

impl Instance {
    /// Follows the orders for this instance until the channel of orders is closed.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.is_to_run() {
                let began = Instant::now();
                self.state.send_replace(InstanceState::Starting);
                match self.live().await {
                    RunOutcome::Stopped => pause = FIRST_PAUSE,
                    RunOutcome::Failed(failure) if self.is_to_run() => {
                        if began.elapsed() > LONGEST_PAUSE {
                            pause = FIRST_PAUSE;
                        }
                        self.failed(failure, pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                    RunOutcome::Failed(ProgramFailure { what, .. }) => tracing::warn!(
                        event = "program.ended",
                        instance = self.number,
                        reason = what,
                        "not starting the program again, because this process drains its last \
                        connections: the program {what}"
                    ),
                }
            }
            self.state.send_replace(InstanceState::Ended);
            if self.orders.changed().await.is_err() {
                return;
            }
        }
    }

    fn is_to_run(&self) -> bool {
        self.orders.borrow().starts(self.config.restart)
    }

    /// Reports a failure of the program. If the program is to be started again, waits for `pause`
    /// first. Otherwise waits for an order with which the program does not run.
    async fn failed(&mut self, mut failure: ProgramFailure, pause: Duration) {
        let restart = self.config.restart;
        let is_proving = *self.orders.borrow() == Order::Prove;
        if is_proving || restart == Restart::Never {
            if is_proving {
                failure.code = None;
            }
            self.state.send_replace(InstanceState::Failed);
            self.failures.send_replace(Some(failure));
            let _ = self.orders.wait_for(|order| !order.starts(restart)).await;
            return;
        }
        let (seconds, reason) = (pause.as_secs_f64(), failure.what);
        tracing::error!(
            event = "program.restarting",
            instance = self.number,
            pause = seconds,
            reason,
            "starting the program again in {seconds} s: the program {reason}"
        );
        self.state.send_replace(InstanceState::Restarting);
        let _ = timeout(pause, self.orders.wait_for(|order| !order.starts(restart))).await;
    }

    /// Starts the program once, and waits until that process has ended.
    async fn live(&self) -> RunOutcome {
        let (mut running, probe, pipe) = match self.start() {
            Ok(started) => started,
            Err(error) => {
                self.count(|counters| counters.failed_starts += 1);
                return RunOutcome::failed(format!("did not start: {error}"));
            }
        };
        let pid = running.pid();
        self.count(|counters| counters.starts += 1);
        self.facts().started(pid, probe.missing());
        tracing::info!(
            event = "program.started",
            instance = self.number,
            program_pid = pid,
            program = self.config.command[0],
            "started the program as process {pid}"
        );
        let lived = self.watch(&mut running, &probe, pipe).await;
        let mut facts = self.facts();
        facts.pid = None;
        facts.forget_watchdog();
        lived
    }

    fn start(&self) -> Result<(Running, Probe, Option<OwnedFd>), Error> {
        let notify = self.notify_socket()?;
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let launch = ProgramLaunch {
            config: &self.config,
            generation: self.generation,
            instance: self.number,
            listeners: &listeners,
            private: self.private.as_ref(),
            watchdog: self.watchdog,
            notify: notify.path(),
        };
        private::clear(self.private.as_ref());
        let Launched { child, errors, ready, probe } = launch.start()?;
        let running = Running::new(child, errors, notify);
        Ok((running.map_err(Error::system("start a thread"))?, probe, ready))
    }

    /// Creates the notification socket for the next start.
    fn notify_socket(&self) -> Result<NotifySocket, Error> {
        let start = self.facts().counters.starts;
        NotifySocket::bind(&self.folder.join(format!("notify-{}-{start}", self.number)))
            .map_err(Error::system("create the program's notification socket"))
    }

    pub(super) fn count_end(&self, status: Option<ExitStatus>) {
        if let Some(status) = status {
            self.count(|counters| counters.ended(status));
        }
    }

    fn count(&self, count: impl FnOnce(&mut ProgramCounters)) {
        count(&mut self.facts().counters);
    }

    pub(super) fn facts(&self) -> std::sync::MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
