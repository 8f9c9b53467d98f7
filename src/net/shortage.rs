//! This module logs that a listener cannot accept because file descriptors or memory have run out.
//!
//! When a process runs out of descriptors, all its listeners fail at the same time, and this may
//! begin and end many times a second. So after one report, this module reports no other shortage
//! for a while.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum time between two reported shortages, for all listeners together.
const PAUSE: Duration = Duration::from_secs(10);

static LAST_REPORT: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether one listener cannot accept because file descriptors or memory have run out. All accept
/// loops of the listener share this value.
#[derive(Debug, Default)]
pub(super) struct Shortage(Mutex<ShortageState>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ShortageState {
    #[default]
    Over,
    Unreported,
    Reported,
}

impl Shortage {
    /// Records that accepting has failed because file descriptors or memory have run out. Logs only
    /// the first failure of each shortage. Returns whether this is the first failure.
    pub(super) fn begin(&self, listener: &str, error: &io::Error) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *state != ShortageState::Over {
            return false;
        }
        *state = if may_report() { ShortageState::Reported } else { ShortageState::Unreported };
        if *state == ShortageState::Reported {
            tracing::error!(
                event = "accept.failed", listener, reason = %error,
                "cannot accept clients on {listener}, retrying: {error}"
            );
        } else {
            tracing::debug!(
                event = "accept.failed_too",
                listener,
                "cannot accept clients on {listener} (the shortage is logged already): {error}"
            );
        }
        true
    }

    /// Returns whether the listener cannot accept because file descriptors or memory have run out.
    pub(super) fn is_on(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) != ShortageState::Over
    }

    /// Records that the listener has enough descriptors and memory again. Call this function when
    /// the backlog is empty.
    pub(super) fn end(&self, listener: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *state) == ShortageState::Reported {
            tracing::info!(
                event = "accept.resumed",
                listener,
                "accepting clients on {listener} again"
            );
        }
    }
}

fn may_report() -> bool {
    let mut last = LAST_REPORT.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let is_due = is_due(*last, now);
    if is_due {
        *last = Some(now);
    }
    is_due
}

fn is_due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_report_covers_all_shortages_soon_after_it() {
        let now = Instant::now();
        assert!(is_due(None, now));
        assert!(!is_due(Some(now), now + PAUSE / 2));
        assert!(is_due(Some(now), now + PAUSE));
    }

    #[test]
    fn a_shortage_begins_once_until_it_is_over() {
        let (shortage, error) = (Shortage::default(), io::Error::other("test"));
        assert_eq!([(); 2].map(|()| shortage.begin("web", &error)), [true, false]);
        shortage.end("web");
        assert!(shortage.begin("web", &error));
    }
}
