//! This module watches one process of a program from its start to its end.
//!
//! While the process runs, the module follows the orders for it, reads its notifications, repeats
//! its health check, and ends it when it must. The module `instance` starts the process, and starts
//! it again after a failure.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::instance::{Instance, RunOutcome};
use super::notify::Notification;
use super::observed::{InstanceState, Order, ProgramFailure};
use super::ready::{Probe, ReadyBy};
use super::running::{Naming, Running, exit_code};

/// How long a program that no longer answers its watchdog may take to end after SIGABRT.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often to check whether all processes of a program have ended.
const GROUP_PAUSE: Duration = Duration::from_millis(20);

impl Instance {
    /// Watches a running program until it has ended.
    pub(super) async fn watch(
        &self,
        running: &mut Running,
        probe: &Probe,
        pipe: Option<OwnedFd>,
    ) -> RunOutcome {
        let mut orders = self.orders.clone();
        let mut ready_by = None;
        let mut ready = Box::pin(probe.ready(pipe));
        let mut failed_check = Box::pin(probe.failure());
        // When the next answer to the watchdog is due. `None` until the first answer.
        let mut silent_at = None;
        loop {
            tokio::select! {
                biased;
                changed = orders.changed() => {
                    let order = *orders.borrow_and_update();
                    if changed.is_err() || order == Order::Kill {
                        self.count_end(running.kill().await);
                        return RunOutcome::Stopped;
                    }
                    if order == Order::Stop {
                        self.stop(running).await;
                        return RunOutcome::Stopped;
                    }
                }
                // Read notifications before checking whether the process has ended, because a
                // wrapper script may report the pid of the main process and end at once.
                said = running.notification() => {
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
                    return self.fail_check(running, &why).await;
                }
                () = until(silent_at) => {
                    return self.abort(running).await;
                }
            }
        }
    }

    /// Kills a program that fails its health check.
    async fn fail_check(&self, running: &mut Running, why: &str) -> RunOutcome {
        self.count_end(running.kill().await);
        RunOutcome::failed(format!("failed its health check and was killed: {why}"))
    }

    /// Cleans up after the main process has ended by itself, and returns how it ended.
    async fn ended(
        &self,
        status: io::Result<Option<ExitStatus>>,
        running: &mut Running,
        is_ready: bool,
    ) -> RunOutcome {
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
        RunOutcome::Failed(ProgramFailure { what, code: status.and_then(exit_code) })
    }

    /// Ends a program that no longer answers its watchdog. Sends SIGABRT, as systemd does, so that
    /// the program can leave a core dump.
    async fn abort(&self, running: &mut Running) -> RunOutcome {
        self.facts().forget_watchdog();
        running.signal(Signal::SIGABRT);
        let status = timeout(ABORT_TIMEOUT, running.ended()).await.ok().and_then(Result::ok);
        let killed = running.kill().await;
        self.count_end(status.flatten().or(killed));
        RunOutcome::failed("stopped answering its watchdog".to_owned())
    }

    /// Records that the program is ready. Returns what has shown this, which may differ from `by`.
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
                said = running.notification(), if !has_ended => {
                    if let Some(extension) = said.extend {
                        until = until.max(Instant::now() + extension);
                    }
                    self.note(said, running);
                }
                () = sleep(GROUP_PAUSE), if has_ended => {
                    if !running.is_left().await {
                        running.last_output().await;
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
        if let Some(main) = said.main {
            match running.name_main(main) {
                Naming::Changed => {
                    facts.pid = Some(main);
                    tracing::info!(
                        event = "program.main_process",
                        instance = self.number,
                        program_pid = main,
                        "the program has named process {main} as its main process"
                    );
                }
                Naming::Ignored => tracing::warn!(
                    event = "program.main_process_ignored",
                    instance = self.number,
                    program_pid = main,
                    "ignored MAINPID={main}: this process has ended, or is not known to belong to \
                    the program"
                ),
                Naming::Unchanged => {}
            }
        }
        if said.stopping && matches!(*self.state.borrow(), InstanceState::Ready(_)) {
            drop(facts);
            self.state.send_replace(InstanceState::Stopping);
        }
    }

    /// Returns the deadline for the program's next answer to its watchdog. `said` is the latest
    /// notification from the program, and `before` is the previous deadline.
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
}

/// Waits until `deadline`, or forever if there is none.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
