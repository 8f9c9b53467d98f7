//! This module detects when a started program is ready.
//!
//! A check must reach the new program only. So it connects to the private address, or runs a
//! command that gets the new program's pid and address. A connection to a shared listener could
//! reach the old program instead.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::checks::{FailedCheck, is_impossible};
use super::environment::ProgramEnvironment;
use super::output::newline;
use crate::address::Address;
use crate::config::{Attach, ProgramConfig, Ready};
use crate::net::dial;

/// The pause between two checks of a program that is not ready yet.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for a connection that shows where a ready program accepts its clients.
const DETECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a program must run to count as ready if it cannot report anything.
const GUESS: Duration = Duration::from_secs(1);

/// The event from which this process learned that a program is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadyBy {
    /// The program reported that it is ready, a check succeeded, or the configured time passed.
    Report,
    /// The program accepts connections on its private address.
    Connect,
    /// The program has reported nothing, but has run for a second. This is a guess.
    Guess,
}

/// A probe that finds out whether one process of a program is ready. The probe holds no copy of a
/// listener, because a copy would keep a closed listener open.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) config: Arc<ProgramConfig>,
    pub(super) ready: Ready,
    pub(super) private: Option<Address>,
    /// The command that checks the program, with its environment.
    pub(super) command: Option<(Vec<String>, ProgramEnvironment)>,
    /// The pid of the program.
    pub(super) pid: u32,
    /// What the program has not done yet to be ready, as a part of a sentence.
    missing: Missing,
}

/// What a program has not done yet to be ready, as a part of a sentence. Clones share one text.
#[derive(Clone, Debug)]
pub(super) struct Missing(Arc<Mutex<String>>);

impl Missing {
    fn new(ready: &Ready) -> Self {
        let text = match ready {
            Ready::Notify | Ready::NotifyOrConnect => "it has not sent READY=1".to_owned(),
            Ready::Descriptor(number) => {
                format!("it has not written a newline to descriptor {number}")
            }
            Ready::NotifyOrAlive | Ready::After(_) => "it has not run long enough".to_owned(),
            Ready::Connect | Ready::Http(_) | Ready::Command(_) => {
                "its first readiness check has not ended".to_owned()
            }
        };
        Self(Arc::new(Mutex::new(text)))
    }

    fn set(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub(super) fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Probe {
    pub(super) fn new(
        config: Arc<ProgramConfig>,
        ready: Ready,
        private: Option<Address>,
        command: Option<(Vec<String>, ProgramEnvironment)>,
    ) -> Self {
        let missing = Missing::new(&ready);
        Self { config, ready, private, command, pid: 0, missing }
    }

    /// Returns what the program has not done yet to be ready. The text changes with each check.
    pub(super) fn missing(&self) -> &Missing {
        &self.missing
    }

    /// Returns whether a program that became ready through the event `by` can be checked again
    /// later. With [`Ready::NotifyOrConnect`], a check connects to the private address. A program
    /// that has sent `READY=1` may inherit the listeners instead of listening on that address.
    pub(super) fn can_repeat(&self, by: ReadyBy) -> bool {
        self.ready != Ready::NotifyOrConnect || by == ReadyBy::Connect
    }

    /// Returns whether the notification `READY=1` counts as a sign of readiness.
    pub(super) const fn accepts_report(&self) -> bool {
        matches!(self.ready, Ready::Notify | Ready::NotifyOrAlive | Ready::NotifyOrConnect)
    }

    /// Returns the event to note for a program that became ready through the event `by`. If the
    /// program may both inherit the listeners and listen on its private address, a connection to
    /// this address shows which of the two it does.
    pub(super) async fn refined(&self, by: ReadyBy) -> ReadyBy {
        let Some(address) = self.private.as_ref().filter(|_| self.config.attach == Attach::Detect)
        else {
            return by;
        };
        let connected = async {
            loop {
                match dial(address).await {
                    Err(error) if is_impossible(&error) => sleep(PAUSE).await,
                    connected => return connected,
                }
            }
        };
        match timeout(DETECT_TIMEOUT, connected).await {
            Ok(Err(_)) => by,
            // The program accepts connections. A full backlog delays the connection, but proves
            // that the program listens. A lack of descriptors suggests the same: they are taken by
            // clients whose connections this process forwards.
            Ok(Ok(_)) | Err(_) => ReadyBy::Connect,
        }
    }

    /// Waits until a sign other than a notification shows that the program is ready. Never returns
    /// if only a notification counts, or if the program closes `pipe` without writing a newline.
    pub(super) async fn ready(&self, pipe: Option<OwnedFd>) -> ReadyBy {
        match self.ready {
            Ready::Notify => std::future::pending().await,
            Ready::NotifyOrAlive => {
                sleep(GUESS).await;
                ReadyBy::Guess
            }
            Ready::Descriptor(_) => {
                let is_written = match pipe {
                    Some(pipe) => newline(pipe).await,
                    None => false,
                };
                if is_written { ReadyBy::Report } else { std::future::pending().await }
            }
            Ready::After(time) => {
                sleep(time).await;
                ReadyBy::Report
            }
            Ready::NotifyOrConnect | Ready::Connect => {
                self.until_it_succeeds().await;
                ReadyBy::Connect
            }
            Ready::Command(_) | Ready::Http(_) => {
                self.until_it_succeeds().await;
                ReadyBy::Report
            }
        }
    }

    async fn until_it_succeeds(&self) {
        while let Err(failed) = self.check().await {
            let also = if self.ready == Ready::NotifyOrConnect {
                ", and it has not sent READY=1; if it uses the inherited listeners and sends no \
                 READY=1, set --attach inherit"
            } else {
                ""
            };
            self.missing.set(failed.reason() + also);
            sleep(PAUSE).await;
        }
    }

    /// Checks a ready program periodically, and returns when a check fails, with the reason. A
    /// check that cannot be made says nothing about the program, so the program keeps running.
    /// Never returns if no checks are configured.
    pub(super) async fn failure(&self) -> String {
        let Some(interval) = self.config.check_interval else {
            return std::future::pending().await;
        };
        let mut last = Ok(());
        loop {
            sleep(interval).await;
            let checked = self.check().await;
            match &checked {
                Ok(()) => {}
                Err(FailedCheck::NotReady(why)) => return why.clone(),
                // Log only the first of several checks that cannot be made.
                Err(FailedCheck::Impossible(_)) if last.is_err() => {}
                Err(FailedCheck::Impossible(reason)) => tracing::warn!(
                    event = "program.check_impossible",
                    program_pid = self.pid,
                    reason,
                    "cannot check the health of the program, which keeps running: {reason}"
                ),
            }
            last = checked;
        }
    }
}
