//! Holds what only the head of a line does: it speaks to the service manager, and answers its
//! watchdog.
//!
//! A generation has one of these for as long as it is the head, and to hand over consumes it. So an
//! old generation cannot speak: under `NotifyAccess=main` it would not be heard, under `all` its
//! words would stop the unit.

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;

use crate::net::StoredName;
use crate::notify::Notifier;
use crate::report::Connections;

/// How often what people read is brought up to date: while something comes to its end, and else.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(10);
/// How long a stop may take longer for each sign of progress.
const EXTENSION: Duration = Duration::from_secs(15);

/// The head's duties.
#[derive(Debug)]
pub(super) struct ActiveRole {
    notifier: Notifier,
    watchdog: Option<Watchdog>,
    /// When to say again how the line stands, and ask the others.
    next: Instant,
    /// What was said last.
    said: String,
    /// A reload that systemd was told of and waits for the end of.
    reload_told: bool,
    /// How far a stop had come when it was last seen to make progress.
    progress: Option<Connections>,
}

/// What the head has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Say how the line stands, and ask the others.
    RefreshStatus,
    /// Show that connections are accepted: give [`ActiveRole::beat`] a heartbeat.
    Beat,
}

/// Whether something comes to its end, and people watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefreshInterval {
    /// A generation drains.
    Drain,
    /// All is quiet.
    Quiet,
}

/// The service manager's watchdog.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Instant,
    /// A beat that is not over. While it is not, nothing is said: a hang is a hang.
    beat: Option<TaskTracker>,
}

impl ActiveRole {
    /// From now on; `limit` is the watchdog's.
    pub(super) fn new(notifier: Notifier, limit: Option<Duration>) -> Self {
        let now = Instant::now();
        // Half of the limit, as sd_watchdog_enabled(3) recommends. At once: the predecessor's last
        // word may be old.
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

    /// The next duty. Cancel safe.
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

    /// Waits for this heartbeat, and then tells the watchdog.
    pub(super) fn beat(&mut self, beat: TaskTracker) {
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.beat = Some(beat);
        }
    }

    /// When to look again.
    pub(super) fn look_again(&mut self, pace: RefreshInterval) {
        self.next = Instant::now()
            + match pace {
                RefreshInterval::Drain => SOON,
                RefreshInterval::Quiet => LATER,
            };
    }

    /// Says how the line stands, if that is news.
    pub(super) fn say(&mut self, status: String) {
        if status != self.said {
            self.notifier.status(&status);
            self.said = status;
        }
    }

    /// The service is up.
    pub(super) fn ready(&mut self, status: String) {
        self.notifier.ready(&status);
        self.said = status;
    }

    /// A signal has asked for a handoff, and it begins.
    pub(super) fn reloading(&mut self, status: String) {
        self.notifier.reloading(&status);
        self.said = status;
        self.reload_told = true;
    }

    /// A handoff has failed. Only who was told of a reload is told of its end, for READY says "well
    /// done" to systemd.
    pub(super) fn not_handed_over(&mut self, status: String) {
        if std::mem::take(&mut self.reload_told) {
            self.ready(status);
        } else {
            self.say(status);
        }
    }

    /// The successor is the head.
    pub(super) fn hand_over(self, pid: u32, status: &str) {
        self.notifier.handed_over(pid, status);
    }

    /// The service stops, and may take longer than the unit allows for as long as it makes
    /// progress.
    pub(super) fn stopping(&mut self, status: String) {
        self.notifier.stopping(&status);
        self.said = status;
        // Whoever waits for the end of a reload has this.
        self.reload_told = false;
        // Nobody watches a service that stops, and nothing accepts any more.
        self.watchdog = None;
        self.next = Instant::now();
    }

    /// How far a stop has come; if that is further than before, it gets more time.
    pub(super) fn stop_stands(&mut self, now: Connections) {
        let is_further =
            |before: Connections| now.open < before.open || now.transferred > before.transferred;
        if self.progress.replace(now).is_some_and(is_further) {
            self.notifier.extend(EXTENSION);
        }
    }

    /// Keeps `socket` with the service manager.
    pub(super) fn store(&self, name: &StoredName, socket: impl AsFd) {
        self.notifier.store(name.as_str(), socket);
    }

    /// Has it kept no longer.
    pub(super) fn unstore(&self, name: &StoredName) {
        self.notifier.unstore(name.as_str());
    }
}
