//! The duties of the active generation: it notifies the service manager and its watchdog.
//!
//! A generation owns an [`ActiveRole`] while it is active, and handing over consumes it. An old
//! generation therefore cannot send notifications. With `NotifyAccess=main` the service manager
//! would ignore them, and with `NotifyAccess=all` they could stop the unit.

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::net::StoredName;
use crate::notify::Notifier;
use crate::report::Connections;

/// How often to refresh the status text: while a generation drains, and otherwise.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);
/// How much more time a stop gets for each sign of progress.
const EXTENSION: Duration = Duration::from_secs(15);

/// The role of the active generation.
#[derive(Debug)]
pub(super) struct ActiveRole {
    notifier: Notifier,
    watchdog: Option<Watchdog>,
    /// When to refresh the status again.
    next: Instant,
    /// The last status text that was sent.
    said: String,
    /// Whether systemd was told of a reload and waits for its end.
    reload_told: bool,
    /// The connections that remained when a stop last reported its progress.
    progress: Option<Connections>,
}

/// A task that is due for the active generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Report the status of the lineage, and ask the other generations for theirs.
    RefreshStatus,
    /// Check that the accept loops run: give [`ActiveRole::beat`] a heartbeat.
    Beat,
}

/// How often to refresh the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefreshInterval {
    /// Often, because a generation drains.
    Drain,
    /// Rarely, because nothing drains.
    Quiet,
}

/// The service manager's watchdog.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Instant,
    /// The heartbeat in progress. Until it completes, the watchdog is not notified, so that it
    /// detects a hang.
    beat: Option<TaskTracker>,
}

impl ActiveRole {
    /// Takes the role. `limit` is the timeout of the service manager's watchdog.
    pub(super) fn new(notifier: Notifier, limit: Option<Duration>) -> Self {
        let now = Instant::now();
        // Notify at half the limit, as sd_watchdog_enabled(3) recommends. The first notification is
        // due at once, because the predecessor's last one may be old.
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

    /// Waits for the next duty. Cancel safe.
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

    /// Sets the heartbeat to wait for before notifying the watchdog.
    pub(super) fn beat(&mut self, beat: TaskTracker) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.beat = Some(beat);
        }
    }

    /// Schedules the next refresh of the status.
    pub(super) fn look_again(&mut self, pace: RefreshInterval) {
        self.next = Instant::now()
            + match pace {
                RefreshInterval::Drain => SOON,
                RefreshInterval::Quiet => LATER,
            };
    }

    /// Sends the status text, if it has changed.
    pub(super) fn say(&mut self, status: String) {
        if status != self.said {
            self.notifier.status(&status);
            self.said = status;
        }
    }

    /// Reports that the service is up.
    pub(super) fn ready(&mut self, status: String) {
        self.notifier.ready(&status);
        self.said = status;
    }

    /// Reports the start of a handoff that a signal requested.
    pub(super) fn reloading(&mut self, status: String) {
        self.notifier.reloading(&status);
        self.said = status;
        self.reload_told = true;
    }

    /// Reports a failed handoff. Systemd takes READY for success, so READY is sent only if systemd
    /// was told of a reload and waits for its end.
    pub(super) fn not_handed_over(&mut self, status: String) {
        if std::mem::take(&mut self.reload_told) {
            self.ready(status);
        } else {
            self.say(status);
        }
    }

    /// Reports that the successor, process `pid`, is now the main process.
    pub(super) fn hand_over(self, pid: u32, status: &str) {
        self.notifier.handed_over(pid, status);
    }

    /// Reports that the service stops. As long as it makes progress, the stop may take longer than
    /// the unit allows.
    pub(super) fn stopping(&mut self, status: String) {
        self.notifier.stopping(&status);
        self.said = status;
        // This notification also ends a reload in progress.
        self.reload_told = false;
        // The watchdog does not apply to a service that stops, and nothing accepts any more.
        self.watchdog = None;
        self.next = Instant::now();
    }

    /// Records the connections that remain in a stop. Asks for more time if they have become fewer
    /// or more of them were carried.
    pub(super) fn stop_stands(&mut self, now: Connections) {
        let is_further =
            |before: Connections| now.open < before.open || now.transferred > before.transferred;
        if self.progress.replace(now).is_some_and(is_further) {
            self.notifier.extend(EXTENSION);
        }
    }

    /// Stores `socket` with the service manager.
    pub(super) fn store(&self, name: &StoredName, socket: impl AsFd) {
        self.notifier.store(name.as_str(), socket);
    }

    /// Removes a socket from the service manager's store.
    pub(super) fn unstore(&self, name: &StoredName) {
        self.notifier.unstore(name.as_str());
    }
}
