//! This module receives a generation's signals and turns them into events.
//!
//! A predecessor starts its successor with SIGHUP and SIGUSR2 blocked. So a signal that arrives
//! before the successor has installed its handlers stays pending, instead of killing the successor.
//! A parent process may have blocked other signals too. So once the handlers are installed, this
//! process unblocks all signals that it handles.
//!
//! This process logs and ignores every other signal that would kill it, so that a mistyped signal
//! number does not cut connections.

use std::ffi::c_int;
use std::io;
use std::task::{Context, Poll};

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::machine::{Event, State};
use crate::error::Error;
use crate::handoff::SignalUse;
use crate::handoff::signals::{has_handler, stray};

/// The signals that a generation handles.
#[derive(Debug)]
pub(super) struct Signals {
    hangup: Signal,
    /// The stream of received SIGUSR2 signals, or `None` if the program has its own handler for
    /// SIGUSR2.
    user: Option<Signal>,
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    interrupted: Interrupted,
    /// The signals that are only logged, except those for which the program has its own handler.
    stray: Vec<(c_int, Signal)>,
}

#[derive(Clone, Copy, Debug)]
enum Interrupted {
    NotYet,
    Once,
}

impl Signals {
    /// Installs the signal handlers. Returns `None` if the generation runs in a test and leaves the
    /// signals of the process alone.
    ///
    /// # Errors
    /// Fails when the kernel refuses to install a handler.
    pub(super) fn of_process(signal_use: SignalUse) -> Result<Option<Self>, Error> {
        match signal_use {
            SignalUse::Handled => {
                Self::install().map(Some).map_err(Error::system("install signal handlers"))
            }
            SignalUse::LeftAlone => Ok(None),
        }
    }

    /// Installs the signal handlers and unblocks the handled signals. Must be called in a tokio
    /// runtime.
    fn install() -> io::Result<Self> {
        let unhandled = |number: c_int| -> io::Result<Option<Signal>> {
            let is_ours = !has_handler(number)?;
            is_ours.then(|| signal(SignalKind::from_raw(number))).transpose()
        };
        let mut strays = Vec::new();
        for number in stray() {
            strays.extend(unhandled(number)?.map(|signal| (number, signal)));
        }
        let signals = Self {
            hangup: signal(SignalKind::hangup())?,
            user: unhandled(Number::SIGUSR2 as c_int)?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            interrupted: Interrupted::NotYet,
            stray: strays,
        };
        let ours =
            [Number::SIGHUP, Number::SIGUSR2, Number::SIGTERM, Number::SIGINT, Number::SIGQUIT];
        ours.into_iter().collect::<SigSet>().thread_unblock()?;
        Ok(signals)
    }

    /// Waits for the next signal, and returns the event for the state machine. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        let Self { hangup, user, terminate, interrupt, quit, interrupted, stray } = self;
        let (event, signal) = tokio::select! {
            Some(()) = hangup.recv() => (Event::ReloadRequested, "SIGHUP"),
            Some(()) = next_of(user) => (Event::ReloadRequested, "SIGUSR2"),
            Some(()) = terminate.recv() => (Event::Terminate, "SIGTERM"),
            Some(()) = interrupt.recv() => match std::mem::replace(interrupted, Interrupted::Once) {
                Interrupted::NotYet => (Event::Terminate, "SIGINT"),
                Interrupted::Once => (Event::CutNow, "SIGINT"),
            },
            Some(()) = quit.recv() => (Event::CutNow, "SIGQUIT"),
            never = std::future::poll_fn(|context| log_strays(stray, context)) => match never {},
            else => std::future::pending().await,
        };
        tracing::debug!(event = "signal.received", signal, "received {signal}");
        event
    }
}

async fn next_of(signal: &mut Option<Signal>) -> Option<()> {
    signal.as_mut()?.recv().await
}

/// Logs each received signal that this process ignores. Never returns `Poll::Ready`.
fn log_strays(
    stray: &mut [(c_int, Signal)],
    context: &mut Context<'_>,
) -> Poll<std::convert::Infallible> {
    for (number, signal) in stray {
        while let Poll::Ready(Some(())) = signal.poll_recv(context) {
            let signal = name(*number);
            tracing::warn!(
                event = "signal.ignored",
                signal,
                "ignored {signal}: the daemon does not use this signal"
            );
        }
    }
    Poll::Pending
}

fn name(number: c_int) -> String {
    Number::try_from(number).map_or_else(|_| format!("signal {number}"), |named| named.to_string())
}

/// Logs why a reload request does not start a handoff now, because its sender may be waiting for a
/// new generation.
pub(super) fn log_reload_without_effect(state: State) {
    match state {
        State::Starting { .. }
        | State::Probation { .. }
        | State::HandingOff { .. }
        | State::Baking { .. } => {
            tracing::info!(
                event = "reload.pending",
                "the reload is delayed: waiting for the current start or handoff to finish"
            );
        }
        State::Retiring { .. } => ignored("a newer process is serving"),
        State::Stopping => ignored("the service is stopping"),
        State::Serving | State::Stopped => {}
    }
}

fn ignored(reason: &str) {
    tracing::warn!(event = "reload.ignored", reason, "ignored a reload request: {reason}");
}
