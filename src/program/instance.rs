//! One process of a program. This module starts the process, watches it, restarts it when it ends,
//! and stops it.
//!
//! Each instance has a task that owns the process. The module `plane` gives orders to the task and
//! reads its state. If the task is dropped, the process and its group are killed, so no program
//! outlives its generation.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::launch::{Launched, ProgramLaunch};
use super::notify::{Notification, NotifySocket};
use super::observed::{Facts, InstanceState, Order, ProgramFailure};
use super::ready::{Probe, ReadyBy};
use super::running::{Running, exit_code};
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
/// How long a program that no longer answers its watchdog may take to end after SIGABRT.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to check whether all processes of a program have ended.
const GROUP_PAUSE: Duration = Duration::from_millis(20);

/// The listeners that a program inherits when it starts. The list is emptied at the start of a
/// drain, so that no copy keeps a closed listener open.
pub(super) type SharedListeners = Arc<Mutex<Vec<Listener>>>;

/// One process of a program.
pub(super) struct Instance {
    pub(super) config: Arc<ProgramConfig>,
    pub(super) generation: Generation,
    pub(super) number: usize,
    pub(super) listeners: SharedListeners,
    pub(super) private: Option<Address>,
    /// The maximum time between two answers of the program to its watchdog.
    pub(super) watchdog: Option<Duration>,
    pub(super) notify: NotifySocket,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) failures: watch::Sender<Option<ProgramFailure>>,
    pub(super) state: watch::Sender<InstanceState>,
    pub(super) facts: Arc<Mutex<Facts>>,
}

/// How one run of the program ended.
enum Lived {
    /// The program was told to stop.
    Stopped,
    /// The program ended by itself, failed a check, or could not be started.
    Failed(ProgramFailure),
}

impl Lived {
    fn failed(what: String) -> Self {
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
                    Lived::Stopped => pause = FIRST_PAUSE,
                    Lived::Failed(failure) if self.is_to_run() => {
                        if began.elapsed() > LONGEST_PAUSE {
                            pause = FIRST_PAUSE;
                        }
                        self.failed(failure, pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                    Lived::Failed(ProgramFailure { what, .. }) => tracing::warn!(
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
        self.orders.borrow().runs()
    }

    /// Reports a failure of the program. If the program is to be started again, waits for `pause`
    /// first. Otherwise waits for the order to stop the program.
    async fn failed(&mut self, mut failure: ProgramFailure, pause: Duration) {
        let is_proving = *self.orders.borrow() == Order::Prove;
        if is_proving || self.config.restart == Restart::Never {
            if is_proving {
                failure.code = None;
            }
            self.state.send_replace(InstanceState::Failed);
            self.failures.send_replace(Some(failure));
            let _ = self.orders.wait_for(|order| !order.runs()).await;
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
        let _ = timeout(pause, self.orders.wait_for(|order| !order.runs())).await;
    }

    /// Starts the program once, and waits until that process has ended.
    async fn live(&self) -> Lived {
        let (mut running, probe, pipe) = match self.start() {
            Ok(started) => started,
            Err(error) => {
                self.count(|counters| counters.failed_starts += 1);
                return Lived::failed(format!("did not start: {error}"));
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
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let launch = ProgramLaunch {
            config: &self.config,
            generation: self.generation,
            instance: self.number,
            listeners: &listeners,
            private: self.private.as_ref(),
            watchdog: self.watchdog,
            notify: self.notify.path(),
        };
        let Launched { child, errors, ready, probe } = launch.start()?;
        let running = Running::new(child, errors).map_err(Error::system("start a thread"))?;
        Ok((running, probe, ready))
    }

    /// Watches a running program until it has ended.
    async fn watch(&self, running: &mut Running, probe: &Probe, pipe: Option<OwnedFd>) -> Lived {
        let mut orders = self.orders.clone();
        let mut ready_by = None;
        let mut ready = Box::pin(probe.ready(pipe));
        let mut failed_check = Box::pin(probe.failure());
        // The deadline for the program's next answer to its watchdog. `None` until the first
        // answer.
        let mut silent_at = None;
        loop {
            tokio::select! {
                biased;
                changed = orders.changed() => {
                    let order = *orders.borrow_and_update();
                    if changed.is_err() || order == Order::Kill {
                        self.count_end(running.kill().await);
                        return Lived::Stopped;
                    }
                    if order == Order::Stop {
                        self.stop(running).await;
                        return Lived::Stopped;
                    }
                }
                // Read notifications before checking whether the process has ended, because a
                // wrapper script may report the pid of the main process and end at once.
                said = self.notify.next(|pid| running.owns(pid)) => {
                    if said.ready && ready_by.is_none() && probe.accepts_report() {
                        ready_by = Some(self.became_ready(probe, ReadyBy::Report).await);
                    }
                    silent_at = self.silent_at(&said, running.pid(), silent_at);
                    self.note(said, running);
                }
                status = running.ended() => {
                    return self.ended(status, running, ready_by.is_some()).await;
                }
                by = &mut ready, if ready_by.is_none() => {
                    ready_by = Some(self.became_ready(probe, by).await);
                }
                why = &mut failed_check, if ready_by.is_some_and(|by| probe.can_repeat(by)) => {
                    self.count_end(running.kill().await);
                    return Lived::failed(format!("failed its health check and was killed: {why}"));
                }
                () = until(silent_at) => {
                    return self.abort(running).await;
                }
            }
        }
    }

    /// Cleans up after the main process has ended by itself, and returns how it ended.
    async fn ended(
        &self,
        status: io::Result<Option<ExitStatus>>,
        running: &mut Running,
        is_ready: bool,
    ) -> Lived {
        let status = status.ok().flatten();
        self.count_end(status);
        let how = running.described(status).await;
        // Kill the processes that the program left behind, because they could accept clients or
        // keep the program's port in use.
        running.kill().await;
        let when = if is_ready { "" } else { " before it was ready," };
        let hint = match status {
            Some(status) if status.success() && !is_ready => {
                "; the program must stay in the foreground, or name its process with MAINPID="
            }
            Some(_) | None => "",
        };
        let what = format!("ended{when} {how}{hint}");
        Lived::Failed(ProgramFailure { what, code: status.and_then(exit_code) })
    }

    /// Ends a program that no longer answers its watchdog. Sends SIGABRT, as systemd does, so that
    /// the program can leave a core dump.
    async fn abort(&self, running: &mut Running) -> Lived {
        self.facts().forget_watchdog();
        running.signal(Signal::SIGABRT);
        let status = timeout(ABORT_TIMEOUT, running.ended()).await.ok().and_then(Result::ok);
        let killed = running.kill().await;
        self.count_end(status.flatten().or(killed));
        Lived::failed("stopped answering its watchdog".to_owned())
    }

    /// Records that the program is ready, and returns what has shown this.
    async fn became_ready(&self, probe: &Probe, by: ReadyBy) -> ReadyBy {
        let by = probe.refined(by).await;
        let pid = self.facts().pid;
        let seen = match by {
            ReadyBy::Report => "it has reported this or passed its readiness check",
            ReadyBy::Connect => "it accepts connections on its private address",
            ReadyBy::Guess => "it has run for a second",
        };
        tracing::info!(
            event = "program.ready",
            instance = self.number,
            program_pid = pid,
            seen,
            "the program is ready: {seen}"
        );
        if by == ReadyBy::Guess {
            tracing::warn!(
                event = "program.ready_guessed",
                instance = self.number,
                "the program counts as ready, because it has run for a second: to be certain, let \
                it send READY=1 or set --ready"
            );
        }
        self.state.send_replace(InstanceState::Ready(by));
        by
    }

    /// Asks the program to end. Kills all its processes if it does not end before the timeout.
    async fn stop(&self, running: &mut Running) {
        let (pid, signal) = (running.pid(), self.config.stop_signal);
        tracing::info!(
            event = "program.stopping", instance = self.number, program_pid = pid, %signal,
            "stopping the program with {signal}"
        );
        self.state.send_replace(InstanceState::Stopping);
        self.facts().forget_watchdog();
        running.signal(signal.0);
        let mut until = Instant::now() + self.config.stop_timeout;
        let (mut has_ended, mut orders) = (false, self.orders.clone());
        loop {
            tokio::select! {
                biased;
                status = running.ended(), if !has_ended => {
                    self.count_end(status.ok().flatten());
                    has_ended = true;
                    // Also send the signal to the processes that the main process left behind.
                    running.signal_all(signal.0);
                }
                () = async { drop(orders.wait_for(|order| *order == Order::Kill).await) } => break,
                () = sleep_until(until) => {
                    tracing::warn!(
                        event = "program.killed", instance = self.number, program_pid = pid,
                        "the program did not end in time: killing it and its children"
                    );
                    break;
                }
                said = self.notify.next(|pid| running.owns(pid)), if !has_ended => {
                    if let Some(extension) = said.extend {
                        until = until.max(Instant::now() + extension);
                    }
                    self.note(said, running);
                }
                () = sleep(GROUP_PAUSE), if has_ended => {
                    if !running.is_left().await {
                        return;
                    }
                }
            }
        }
        running.signal_all(Signal::SIGKILL);
        if !has_ended {
            self.count_end(running.ended().await.ok().flatten());
        }
        running.kill().await;
    }

    /// Records everything in a notification except that the program is ready.
    fn note(&self, said: Notification, running: &mut Running) {
        let mut facts = self.facts();
        if let Some(status) = said.status {
            facts.status = Some(status);
        }
        if said.alive {
            facts.answer();
        }
        if let Some(main) = said.main.filter(|main| running.name_main(*main)) {
            facts.pid = Some(main);
            tracing::info!(
                event = "program.main_process",
                instance = self.number,
                program_pid = main,
                "the program has named process {main} as its main process"
            );
        }
        if said.stopping && matches!(*self.state.borrow(), InstanceState::Ready(_)) {
            drop(facts);
            self.state.send_replace(InstanceState::Stopping);
        }
    }

    /// Returns the deadline for the program's next answer to its watchdog, after the message
    /// `said`.
    fn silent_at(&self, said: &Notification, pid: u32, before: Option<Instant>) -> Option<Instant> {
        let watchdog = self.watchdog.filter(|_| said.alive);
        if watchdog.is_some() && before.is_none() {
            tracing::info!(
                event = "program.watched",
                instance = self.number,
                program_pid = pid,
                "the program sends watchdog notifications (WATCHDOG=1), and is restarted if they \
                stop"
            );
        }
        watchdog.map_or(before, |time| Instant::now().checked_add(time))
    }

    fn count_end(&self, status: Option<ExitStatus>) {
        if let Some(status) = status {
            self.count(|counters| counters.ended(status));
        }
    }

    fn count(&self, count: impl FnOnce(&mut ProgramCounters)) {
        count(&mut self.facts().counters);
    }

    fn facts(&self) -> std::sync::MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until `deadline`, or forever if there is none.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
