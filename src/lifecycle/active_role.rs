//! The duties of the active generation towards the service manager: status notifications and
//! watchdog heartbeats.
//!
//! A generation has an [`ActiveRole`] while it is active, and drops the value when it commits a
//! handoff. So a generation that is no longer active cannot send notifications. With
//! `NotifyAccess=main`, the service manager would ignore its notifications. With
//! `NotifyAccess=all`, they could stop the unit.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::net::StoredName;
use crate::notify::Notifier;
use crate::report::Connections;

/// The time between two refreshes of the status text: `SOON` while a generation drains, `LATER`
/// otherwise.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);
/// How much more time to request from the service manager whenever the stop of the service makes
/// progress.
const EXTENSION: Duration = Duration::from_secs(15);

/// The active generation's connection to the service manager, and the last status that it sent.
#[derive(Debug)]
pub(super) struct ActiveRole {
    notifier: Notifier,
    watchdog: Option<Watchdog>,
    /// When to send the status text to the service manager again.
    next: Instant,
    /// The last status text that was sent to the service manager.
    said: String,
    /// Whether this process has told systemd that a reload has begun, so that systemd waits for the
    /// end of the reload.
    reload_told: bool,
    /// The open connections and transferred bytes when the progress of a stop was last checked.
    progress: Option<Connections>,
}

/// A periodic task of the active generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Report the status of all generations to the service manager, and ask the other generations
    /// for new reports.
    RefreshStatus,
    /// Check that the accept loops do not hang: send each of them a heartbeat, and pass the
    /// heartbeat to [`ActiveRole::beat`].
    Beat,
}

/// How often the active generation refreshes the status text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefreshInterval {
    /// Refresh the status often while a generation is draining.
    Drain,
    /// Refresh the status rarely while no generation is draining.
    Quiet,
}

/// The state of the service manager's watchdog, which restarts a service that stops sending
/// notifications.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Instant,
    /// The heartbeat that was sent to the accept loops and has not completed yet. The watchdog is
    /// notified only when it completes. So if an accept loop hangs, the service is restarted.
    beat: Option<TaskTracker>,
}

impl ActiveRole {
    /// Creates the role for a process that becomes active. `limit` is the timeout of the service
    /// manager's watchdog.
    pub(super) fn new(notifier: Notifier, limit: Option<Duration>) -> Self {
        let now = Instant::now();
        // Notify the watchdog at half its timeout, as recommended (see sd_watchdog_enabled(3)).
        // Send the first notification at once, because the last notification of the predecessor may
        // be old.
        let watchdog = limit.map(|limit| Watchdog { interval: limit / 2, due: now, beat: None });
        Self {
            notifier,
            watchdog,
            next: now,
            said: String::new(),
            reload_told: false,
            progress: None,
        }
    }

    /// Waits until the next periodic task of the active generation is due. Cancel safe.
    pub(super) async fn next(&mut self) -> Duty {
        loop {
            let Self { notifier, watchdog, next, .. } = self;
            let Some(watchdog) = watchdog else {
                sleep_until(*next).await;
                return Duty::RefreshStatus;
            };
            let beat_over = async {
                match &watchdog.beat {
                    Some(beat) => beat.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = beat_over => {
                    watchdog.beat = None;
                    notifier.alive();
                }
                () = sleep_until(watchdog.due), if watchdog.beat.is_none() => {
                    watchdog.due = Instant::now() + watchdog.interval;
                    return Duty::Beat;
                }
                () = sleep_until(*next) => return Duty::RefreshStatus,
            }
        }
    }

    /// Sets the heartbeat that must complete before the service manager's watchdog is notified.
    pub(super) fn beat(&mut self, beat: TaskTracker) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.beat = Some(beat);
        }
    }

    /// Schedules the next refresh of the status text.
    pub(super) fn look_again(&mut self, pace: RefreshInterval) {
        self.next = Instant::now()
            + match pace {
                RefreshInterval::Drain => SOON,
                RefreshInterval::Quiet => LATER,
            };
    }

    /// Sends the status text to the service manager, if the text has changed.
    pub(super) fn say(&mut self, status: String) {
        if status != self.said {
            self.notifier.status(&status);
            self.said = status;
        }
    }

    /// Reports to the service manager that the service is up.
    pub(super) fn ready(&mut self, status: String) {
        self.notifier.ready(&status);
        self.said = status;
    }

    /// Reports to the service manager that a handoff has started because of a signal.
    pub(super) fn reloading(&mut self, status: String) {
        self.notifier.reloading(&status);
        self.said = status;
        self.reload_told = true;
    }

    /// Sends the status text after a failed handoff. If systemd waits for the end of a reload, also
    /// sends READY, which ends the reload. Otherwise does not send READY, because READY reports
    /// success.
    pub(super) fn not_handed_over(&mut self, status: String) {
        if std::mem::take(&mut self.reload_told) {
            self.ready(status);
        } else {
            self.say(status);
        }
    }

    /// Reports to the service manager that the successor, process `pid`, is now the main process.
    /// After a success, the caller must commit the handoff and drop this value.
    ///
    /// # Errors
    /// Returns the reason why this process is still the main process.
    pub(super) fn hand_over(&self, pid: Option<u32>, status: &str) -> io::Result<()> {
        self.notifier.handed_over(pid, status)
    }

    /// Reports to the service manager that the service stops. The stop may then take longer than
    /// the unit's stop timeout, as long as it makes progress.
    pub(super) fn stopping(&mut self, status: String) {
        self.notifier.stopping(&status);
        self.said = status;
        // Clear the flag, because this notification also ends a reload in progress.
        self.reload_told = false;
        // Stop the heartbeats: the watchdog ignores a service that is stopping, and no accept loop
        // runs any more.
        self.watchdog = None;
        self.next = Instant::now();
    }

    /// Records the open connections and transferred bytes while the service stops. If connections
    /// have ended or bytes were transferred since the last call, asks the service manager for more
    /// time.
    pub(super) fn record_stop_progress(&mut self, now: Connections) {
        let is_further =
            |before: Connections| now.open < before.open || now.transferred > before.transferred;
        if self.progress.replace(now).is_some_and(is_further) {
            self.notifier.extend(EXTENSION);
        }
    }

    /// Stores `socket` with the service manager, which keeps it open if this process dies. Waits
    /// for the service manager, but only until the given time.
    pub(super) fn store(&self, name: &StoredName, socket: impl AsFd, until: std::time::Instant) {
        self.notifier.store(name.as_str(), socket, until);
    }

    /// Tells the service manager to close a socket that it has stored. Waits for the service
    /// manager, but only until the given time.
    pub(super) fn unstore(&self, name: &StoredName, until: std::time::Instant) {
        self.notifier.unstore(name.as_str(), until);
    }
}
