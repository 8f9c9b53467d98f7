//! Turns signals into events, and answers those that come to nothing.
//!
//! A predecessor blocks SIGHUP across the exec, so that one which comes before our handler waits for it instead of
//! killing us; and whatever a parent had blocked when it started us is still blocked. Once the handlers stand all of ours
//! are let in.

use std::io;

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::machine::{Event, State};

/// The signals that a generation heeds.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    interrupted: Interrupted,
}

#[derive(Clone, Copy, Debug)]
enum Interrupted {
    NotYet,
    Once,
}

impl Signals {
    /// Installs the handlers. Must be called in a tokio runtime.
    pub(super) fn install() -> io::Result<Self> {
        let signals = Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            interrupted: Interrupted::NotYet,
        };
        let ours = [Number::SIGHUP, Number::SIGTERM, Number::SIGINT, Number::SIGQUIT];
        ours.into_iter().collect::<SigSet>().thread_unblock()?;
        Ok(signals)
    }

    /// The next signal. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let (event, signal) = tokio::select! {
            Some(()) = self.hangup.recv() => (Event::Hangup, "SIGHUP"),
            Some(()) = self.terminate.recv() => (Event::Terminate, "SIGTERM"),
            Some(()) = self.interrupt.recv() => match std::mem::replace(&mut self.interrupted, Interrupted::Once) {
                Interrupted::NotYet => (Event::Terminate, "SIGINT"),
                Interrupted::Once => (Event::CutNow, "SIGINT"),
            },
            Some(()) = self.quit.recv() => (Event::CutNow, "SIGQUIT"),
            else => std::future::pending().await,
        };
        tracing::debug!(signal, "signal received");
        event
    }
}

/// Says what becomes of a hangup that starts nothing now: whoever sent it may be waiting for a new generation.
pub(super) fn answer_hangup(state: State) {
    match state {
        State::Starting { .. } | State::Probation { .. } | State::HandingOff { .. } | State::Baking { .. } => {
            tracing::info!("hangup remembered: a handoff follows the present one");
        }
        State::Retiring { .. } => tracing::warn!("hangup ignored: a newer generation serves"),
        State::Stopping => tracing::warn!("hangup ignored: the service is told to stop"),
        State::Serving | State::Stopped => {}
    }
}
