//! The client's side of a reload: it sends the request and follows the progress.
//!
//! The client must report the true outcome of a reload. Normally, the generation that receives the
//! request stays alive until it has answered. If that generation crashes first and a service
//! manager watches it, the reload has failed, because the service manager restarts the whole
//! service. If no service manager watches it, the client asks the daemon which generation serves
//! now.

use std::fmt;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::client::{ANSWER_TIMEOUT, Control};
use super::conversation::{Conversation, PAUSE, from_now, pause};
use super::error::ControlError;
use super::message::{ReloadOptions, Reply, Request};
use crate::generation::Generation;

/// How long the client keeps waiting for an answer after the time limit that the daemon has
/// announced.
const GRACE: Duration = Duration::from_secs(5);
/// The beginning of the reason if the generation that received the request has died.
const DIED: &str = "the process that received the request has died";

/// The progress of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReloadNews {
    /// The new generation accepts all new connections, and the old generation finishes its open
    /// connections.
    Serving {
        /// The generation number of the new generation.
        generation: Generation,
        /// The pid of the new generation. `None` if this is not known.
        pid: Option<u32>,
        /// How long the handoff took. `None` if this is not known.
        after: Option<Duration>,
        /// How many connections the old generation still has. `None` if this is not known.
        draining: Option<u64>,
    },
    /// The old generation has no connections left. Each has ended, moved to the new generation, or
    /// been cut.
    Drained {
        /// The generation number of the old generation.
        generation: Generation,
        /// How many connections of the old generation ended normally.
        ended: u64,
        /// How many connections moved to the new generation.
        carried: u64,
        /// How many connections the old generation cut, at the drain deadline or because of a
        /// signal.
        cut: u64,
    },
}

/// Writes the text that the `reload` command prints.
impl fmt::Display for ReloadNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving { generation, pid, after, draining } => {
                write!(f, "generation {generation} serves")?;
                if let Some(pid) = pid {
                    write!(f, ", process {pid}")?;
                }
                if let Some(after) = after {
                    write!(f, ", after {:.3} s", after.as_secs_f64())?;
                }
                if let Some(draining) = draining {
                    write!(f, "; connections left in the old process: {draining}")?;
                }
                Ok(())
            }
            Self::Drained { generation, ended, carried, cut } => write!(
                f,
                "generation {generation} has drained; connections ended: {ended}, moved to the new \
                process: {carried}, cut: {cut}"
            ),
        }
    }
}

impl Control {
    /// Asks the daemon for a reload, which replaces the running generation (process) with a new
    /// one. Waits until the new generation serves. With `wait_drained`, also waits until the old
    /// generation's last connection has ended. Calls `news` after each of these two steps.
    ///
    /// # Errors
    /// [`ControlError::NobodyAnswers`] if no daemon answers on the socket.
    /// [`ControlError::HandoffFailed`] or [`ControlError::RolledBack`] if the new generation does
    /// not take over. [`ControlError::TryAgain`] if another handoff is under way, or if the new
    /// generation does not serve within `timeout_ms`.
    pub fn reload(
        &self,
        options: &ReloadOptions,
        mut news: impl FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        let limit = options.timeout_ms.map(Duration::from_millis);
        let began = Instant::now();
        self.reload_by(options, limit.map(from_now), &mut news).map_err(|error| {
            match (error, limit) {
                (ControlError::TryAgain { reason }, Some(limit))
                    if reason == self.no_answer() && began.elapsed() >= limit =>
                {
                    ControlError::TryAgain {
                        reason: format!(
                            "the reload did not finish within the requested {} s: {reason}",
                            limit.as_secs_f64()
                        ),
                    }
                }
                (error, _) => error,
            }
        })
    }

    /// Asks the daemon for a reload, like [`Control::reload`], but with a deadline. The client
    /// stops waiting at `limit`, unless the new generation already serves by then.
    fn reload_by(
        &self,
        options: &ReloadOptions,
        limit: Option<Instant>,
        news: &mut dyn FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        let until =
            |time: Duration| limit.map_or(from_now(time), |limit| limit.min(from_now(time)));
        let began = Instant::now();
        let request = || {
            let timeout_ms = options.timeout_ms.map(|limit| left_of(limit, began.elapsed()));
            Request::Reload(ReloadOptions { timeout_ms, ..options.clone() })
        };
        let deadline = until(ANSWER_TIMEOUT);
        let mut conversation = self.ask(request, deadline)?;
        let (successor, within, is_watched) = match conversation.hear(deadline)? {
            Some(Reply::Started { successor, within_ms, is_watched }) => {
                (successor, Duration::from_millis(within_ms), is_watched)
            }
            Some(other) => return Err(self.unexpected(&other)),
            None => return Err(self.broke_off()),
        };
        let mut deadline = until(within.saturating_add(GRACE));
        let mut reply = conversation.hear(deadline)?;
        // The new generation may ask for more time.
        while let Some(Reply::Started { within_ms, .. }) = reply {
            deadline = until(Duration::from_millis(within_ms).saturating_add(GRACE));
            reply = conversation.hear(deadline)?;
        }
        let drain_within = match reply {
            Some(Reply::Serving { generation, pid, after_ms, draining, drain_within_ms }) => {
                let after = Some(Duration::from_millis(after_ms));
                news(ReloadNews::Serving { generation, pid, after, draining });
                Duration::from_millis(drain_within_ms)
            }
            Some(other) => return Err(self.unexpected(&other)),
            // The successor may serve by now, but the service manager is about to end it. systemd
            // waits for the end of the reload command first, so the client must not wait.
            None if is_watched => {
                let reason = format!("{DIED}, so the service manager restarts the service");
                return Err(ControlError::HandoffFailed { reason });
            }
            None => return self.find_out(successor, deadline, news),
        };
        if !options.wait_drained {
            return Ok(());
        }
        self.hear_drained(&mut conversation, drain_within, news)
    }

    /// Waits until the old generation has drained, which takes at most `within`.
    fn hear_drained(
        &self,
        conversation: &mut Conversation<'_>,
        within: Duration,
        news: &mut dyn FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        match conversation.hear(from_now(within.saturating_add(GRACE)))? {
            Some(Reply::Drained { generation, ended, carried, cut }) => {
                news(ReloadNews::Drained { generation, ended, carried, cut });
                Ok(())
            }
            Some(other) => Err(self.unexpected(&other)),
            // Return success, because the old generation has ended and therefore has no connections
            // left.
            None => Ok(()),
        }
    }

    /// Asks the daemon which generation serves now. This is necessary if the generation that
    /// received the reload request died before it answered, and no service manager watches it. Does
    /// not wait if no process listens on the control socket, because a living successor would
    /// listen on it.
    fn find_out(
        &self,
        successor: Generation,
        deadline: Instant,
        news: &mut dyn FnMut(ReloadNews),
    ) -> Result<(), ControlError> {
        loop {
            match self.status_by(deadline.max(from_now(PAUSE))) {
                Ok(status) if status.serving >= successor => {
                    let serving = status
                        .generations
                        .iter()
                        .find(|report| report.generation == status.serving);
                    let pid = serving.and_then(|report| report.pid);
                    news(ReloadNews::Serving {
                        generation: status.serving,
                        pid,
                        after: None,
                        draining: None,
                    });
                    return Ok(());
                }
                Ok(status) => {
                    let reason = format!(
                        "{DIED}, and generation {} serves instead of generation {successor}",
                        status.serving
                    );
                    return Err(ControlError::HandoffFailed { reason });
                }
                Err(error) if Instant::now() < deadline && !is_closed(&error) => pause(),
                Err(error) => {
                    return Err(ControlError::HandoffFailed { reason: format!("{DIED}: {error}") });
                }
            }
        }
    }
}

/// Returns whether an error means that no process listens on the control socket.
fn is_closed(error: &ControlError) -> bool {
    let ControlError::NobodyAnswers { source, .. } = error else { return false };
    matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}

/// Returns how many milliseconds of the time limit are left. If hardly any time has passed, returns
/// `limit` itself, so that the daemon's messages show the limit that the operator gave.
fn left_of(limit: u64, elapsed: Duration) -> u64 {
    let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    if elapsed <= limit / 20 { limit } else { limit.saturating_sub(elapsed) }
}
