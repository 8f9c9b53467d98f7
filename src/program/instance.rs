//! One process of a program. This module starts the process, watches it, restarts it when it ends,
//! and stops it.
//!
//! Each instance has a task that owns the process. The data plane gives orders to the task and
//! reads its state. If the task is dropped, the process and its group are killed, so no program
//! outlives its generation.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::launch::{Launched, ProgramLaunch};
use super::notify::{Notification, NotifySocket};
use super::output::LastWords;
use super::ready::{Probe, ReadyBy};
use crate::address::Address;
use crate::config::{ProgramConfig, Restart};
use crate::error::Error;
use crate::generation::Generation;
use crate::net::Listener;
use crate::report::ProgramCounters;
use crate::sys::child::Child;

/// The first and the longest pause before a program is restarted. Each pause is twice as long as
/// the previous one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long to wait for the last lines of standard error after a program has ended.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause between two checks whether a process group has ended.
const GROUP_PAUSE: Duration = Duration::from_millis(20);

/// An order from the data plane to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Run the program. If the program fails, the generation fails too, because it is on probation.
    Prove,
    /// Run the program. If the program fails, start it again.
    Run,
    /// Let the program serve its remaining connections. If the program ends, do not start it again.
    Finish,
    /// Ask the program to end, and give it time to do so.
    Stop,
    /// Kill the program at once.
    Kill,
}

impl Order {
    /// Returns whether to start the program if it is not running.
    pub(super) const fn runs(self) -> bool {
        matches!(self, Self::Prove | Self::Run)
    }
}

/// The state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InstanceState {
    Starting,
    Ready(ReadyBy),
    Stopping,
    /// The process has ended and is about to be started again.
    Restarting,
    /// The process has failed and will not be started again.
    Failed,
    /// No process of the instance is left.
    Ended,
}

/// The details of an instance that status reports show.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) pid: Option<u32>,
    pub(super) status: Option<String>,
    pub(super) counters: ProgramCounters,
}

/// The listeners that a program inherits when it starts. The data plane empties the list at the
/// start of a drain, so that no copy keeps a closed listener open.
pub(super) type SharedListeners = Arc<Mutex<Vec<Listener>>>;

/// One process of a program.
pub(super) struct Instance {
    pub(super) config: Arc<ProgramConfig>,
    pub(super) generation: Generation,
    pub(super) number: usize,
    pub(super) listeners: SharedListeners,
    pub(super) private: Option<Address>,
    pub(super) notify: NotifySocket,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) failures: watch::Sender<Option<String>>,
    pub(super) state: watch::Sender<InstanceState>,
    pub(super) facts: Arc<Mutex<Facts>>,
}

/// How one run of the program ended.
enum Lived {
    /// The program was told to stop.
    Stopped,
    /// The program ended by itself, failed its check, or could not be started. The text is the
    /// reason.
    Failed(String),
}

/// A running process. Dropping this value kills the process group.
struct Running {
    child: Child,
    words: LastWords,
    /// A channel that closes when standard error has been read to its end.
    written: oneshot::Receiver<Infallible>,
}

impl Running {
    async fn kill(&self) {
        self.child.signal_group(Signal::SIGKILL);
        let _ = self.child.wait().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.signal_group(Signal::SIGKILL);
    }
}

impl Instance {
    /// Follows the orders of the data plane until the data plane is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.is_to_run() {
                let began = Instant::now();
                self.state.send_replace(InstanceState::Starting);
                match self.live().await {
                    Lived::Stopped => pause = FIRST_PAUSE,
                    Lived::Failed(reason) if self.is_to_run() => {
                        if began.elapsed() > LONGEST_PAUSE {
                            pause = FIRST_PAUSE;
                        }
                        self.failed(reason, pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                    Lived::Failed(reason) => tracing::warn!(
                        event = "program.ended",
                        instance = self.number,
                        reason,
                        "the program {reason}"
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

    /// Reports a failure of the program. Then waits before the next start, or, if there is none,
    /// until the program is told to stop.
    async fn failed(&mut self, reason: String, pause: Duration) {
        let is_final =
            *self.orders.borrow() == Order::Prove || self.config.restart == Restart::Never;
        if is_final {
            self.state.send_replace(InstanceState::Failed);
            self.failures.send_replace(Some(reason));
            let _ = self.orders.wait_for(|order| !order.runs()).await;
            return;
        }
        let seconds = pause.as_secs_f64();
        tracing::error!(
            event = "program.restarting",
            instance = self.number,
            pause = seconds,
            reason,
            "the program {reason}; starting it again in {seconds} s"
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
                return Lived::Failed(format!("did not start: {error}"));
            }
        };
        let pid = running.child.pid();
        self.count(|counters| counters.starts += 1);
        self.facts().pid = Some(pid);
        tracing::info!(
            event = "program.started",
            instance = self.number,
            program_pid = pid,
            program = self.config.command[0],
            "started the program as process {pid}"
        );
        let lived = self.watch(&mut running, &probe, pipe).await;
        self.facts().pid = None;
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
            notify: self.notify.path(),
        };
        let Launched { child, errors, ready, probe } = launch.start()?;
        let words = LastWords::default();
        let written = words.follow(errors).map_err(|source| {
            child.signal_group(Signal::SIGKILL);
            Error::System { doing: "start a thread", source }
        })?;
        Ok((Running { child, words, written }, probe, ready))
    }

    /// Watches a running program until it has ended.
    async fn watch(&self, running: &mut Running, probe: &Probe, pipe: Option<OwnedFd>) -> Lived {
        let (pid, mut orders) = (running.child.pid(), self.orders.clone());
        let mut is_ready = false;
        let mut ready = Box::pin(probe.ready(pipe));
        let mut failed_check = Box::pin(probe.failure());
        loop {
            tokio::select! {
                biased;
                status = running.child.wait() => {
                    let when = if is_ready { "" } else { " before it was ready" };
                    let how = self.end_of(status, running).await;
                    return Lived::Failed(format!("ended{when}, {how}"));
                }
                changed = orders.changed() => {
                    let order = *orders.borrow_and_update();
                    if changed.is_err() || order == Order::Kill {
                        running.kill().await;
                        return Lived::Stopped;
                    }
                    if order == Order::Stop {
                        self.stop(running).await;
                        return Lived::Stopped;
                    }
                }
                by = &mut ready, if !is_ready => {
                    is_ready = true;
                    self.became_ready(by);
                }
                said = self.notify.next(pid) => {
                    if said.ready && !is_ready && probe.accepts_report() {
                        is_ready = true;
                        self.became_ready(ReadyBy::Report);
                    }
                    self.note(said);
                }
                () = &mut failed_check, if is_ready => {
                    running.kill().await;
                    return Lived::Failed("failed its check".to_owned());
                }
            }
        }
    }

    /// Describes how the program ended, with its last lines of output, as a part of a message.
    async fn end_of(&self, status: io::Result<ExitStatus>, running: &mut Running) -> String {
        let status = match status {
            Ok(status) => {
                self.count(|counters| counters.ended(status));
                ended(status)
            }
            Err(error) => error.to_string(),
        };
        let _ = timeout(LAST_WORDS_TIMEOUT, &mut running.written).await;
        format!("with {status}{}", running.words.quoted())
    }

    /// Records that the program is ready.
    fn became_ready(&self, by: ReadyBy) {
        let pid = self.facts().pid;
        tracing::info!(
            event = "program.ready",
            instance = self.number,
            program_pid = pid,
            "the program is ready"
        );
        if by == ReadyBy::Guess {
            tracing::warn!(
                event = "program.ready_guessed",
                instance = self.number,
                "the program has not said that it is ready: this is a guess, because it is alive. \
                Let it send READY=1, or choose another sign with --ready"
            );
        }
        self.state.send_replace(InstanceState::Ready(by));
    }

    /// Asks the program to end. Kills the whole process group if the program does not end before
    /// the timeout.
    async fn stop(&self, running: &mut Running) {
        let (pid, signal) = (running.child.pid(), self.config.stop_signal);
        tracing::info!(
            event = "program.stopping", instance = self.number, program_pid = pid, %signal,
            "telling the program to stop: {signal}"
        );
        self.state.send_replace(InstanceState::Stopping);
        running.child.signal(signal.0);
        let mut until = Instant::now() + self.config.stop_timeout;
        let (mut has_ended, mut orders) = (false, self.orders.clone());
        loop {
            tokio::select! {
                biased;
                status = running.child.wait(), if !has_ended => {
                    if let Ok(status) = status {
                        self.count(|counters| counters.ended(status));
                    }
                    has_ended = true;
                    // Ask the processes that the program has left behind to end too.
                    running.child.signal_group(signal.0);
                }
                _ = orders.wait_for(|order| *order == Order::Kill) => break,
                () = sleep_until(until) => {
                    tracing::warn!(
                        event = "program.killed", instance = self.number, program_pid = pid,
                        "the program did not end in time: killing it and its children"
                    );
                    break;
                }
                said = self.notify.next(pid), if !has_ended => {
                    if let Some(extension) = said.extend {
                        until = until.max(Instant::now() + extension);
                    }
                    self.note(said);
                }
                () = sleep(GROUP_PAUSE), if has_ended => {
                    if !running.child.has_group() {
                        return;
                    }
                }
            }
        }
        running.child.signal_group(Signal::SIGKILL);
        if !has_ended {
            if let Ok(status) = running.child.wait().await {
                self.count(|counters| counters.ended(status));
            }
        }
    }

    fn note(&self, said: Notification) {
        if let Some(status) = said.status {
            self.facts().status = Some(status);
        }
    }

    fn count(&self, count: impl FnOnce(&mut ProgramCounters)) {
        count(&mut self.facts().counters);
    }

    fn facts(&self) -> std::sync::MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Describes how a process ended, as a part of a message.
fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => signal.to_string(),
            Err(_) => format!("signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}
