//! The orders that this process gives to the instances of a program, and what it knows about each
//! instance: its state, and why it has failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::ready::{Missing, ReadyBy};
use crate::config::Restart;
use crate::error::Error;
use crate::report::{ProgramCounters, ProgramReport, ProgramState};

/// An order to an instance, which runs one process of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Run the program while the handoff to this generation can still be rolled back. If the
    /// program fails, the generation fails too.
    Prove,
    /// Run the program. If the program fails, start it again.
    Run,
    /// Let the program serve its remaining connections. If the program fails, start it again,
    /// because a client may still wait for it. With [`Restart::Never`], the program is not started
    /// again.
    Finish,
    /// Ask the program to end, and give it time to do so.
    Stop,
    /// Kill the program at once.
    Kill,
}

impl Order {
    /// Returns whether a running program keeps running.
    pub(super) const fn runs(self) -> bool {
        matches!(self, Self::Prove | Self::Run | Self::Finish)
    }

    /// Returns whether to start the program if it is not running.
    pub(super) const fn starts(self, restart: Restart) -> bool {
        match self {
            Self::Prove | Self::Run => true,
            Self::Finish => matches!(restart, Restart::Always),
            Self::Stop | Self::Kill => false,
        }
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

/// What is known about an instance, for status reports and for the service manager's watchdog.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) pid: Option<u32>,
    pub(super) status: Option<String>,
    pub(super) counters: ProgramCounters,
    /// What the program must still do to be ready. `None` before its first start.
    pub(super) missing: Option<Missing>,
    /// Whether the program has ever answered its watchdog.
    answers: bool,
    /// The heartbeats that complete when the program next answers its watchdog.
    beats: Vec<TaskTrackerToken>,
}

impl Facts {
    /// Makes the heartbeat `beat` wait for the program's next answer to its watchdog. Does nothing
    /// if the program has never answered.
    pub(super) fn ask(&mut self, beat: &TaskTracker) {
        if self.answers {
            self.beats.push(beat.token());
        }
    }

    /// Records that a process of the program has been started.
    pub(super) fn started(&mut self, pid: u32, missing: &Missing) {
        self.pid = Some(pid);
        self.missing = Some(missing.clone());
    }

    pub(super) fn answer(&mut self) {
        self.answers = true;
        self.beats.clear();
    }

    /// Lets all heartbeats complete, because the program has ended or is about to end.
    pub(super) fn forget_watchdog(&mut self) {
        self.answers = false;
        self.beats.clear();
    }
}

/// Why an instance has failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramFailure {
    /// What the program did, as a part of a sentence, such as `stopped answering its watchdog`.
    pub(super) what: String,
    /// The exit code of the program, if the generation is to exit with the same code.
    pub(super) code: Option<u8>,
}

/// What is known about an instance of the program.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) state: watch::Receiver<InstanceState>,
    pub(super) facts: Arc<Mutex<Facts>>,
}

impl Observed {
    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns why the program is not ready, as a part of a sentence. Returns `None` if it is
    /// ready.
    pub(super) fn missing(&self) -> Option<String> {
        match *self.state.borrow() {
            InstanceState::Ready(_) => None,
            InstanceState::Stopping => {
                Some("it has not ended since it was told to stop".to_owned())
            }
            InstanceState::Starting
            | InstanceState::Restarting
            | InstanceState::Failed
            | InstanceState::Ended => self.facts().missing.as_ref().map(Missing::text),
        }
    }

    /// Logs that the program is killed because its generation ends now, if it is running. The task
    /// of the instance may not be able to log this, because the process is about to end.
    pub(super) fn log_kill(&self, number: usize) {
        if let Some(pid) = self.facts().pid {
            tracing::warn!(
                event = "program.killed",
                instance = number,
                program_pid = pid,
                "killing the program and its children, because this process cuts its connections \
                or has reached its drain timeout"
            );
        }
    }

    /// Returns the instance's part of a status report.
    pub(super) fn report(&self) -> ProgramReport {
        let state = match &*self.state.borrow() {
            InstanceState::Starting => ProgramState::Starting,
            InstanceState::Ready(_) => ProgramState::Ready,
            InstanceState::Stopping => ProgramState::Stopping,
            InstanceState::Restarting => ProgramState::Restarting,
            InstanceState::Failed => ProgramState::Failed,
            InstanceState::Ended => ProgramState::Ended,
        };
        let facts = self.facts();
        ProgramReport {
            pid: facts.pid,
            state,
            starts: facts.counters.starts,
            status: facts.status.clone(),
        }
    }
}

/// Waits until an instance has failed and is not started again. Returns the reason.
pub(super) async fn failure(mut failures: watch::Receiver<Option<ProgramFailure>>) -> Error {
    match failures.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
        Some(ProgramFailure { what, code }) => Error::ProgramFailed { what, code },
        // The sender has been dropped, so no caller needs an answer.
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_waits_for_the_answer_of_the_program() {
        let mut facts = Facts::default();
        let ask = |facts: &mut Facts| {
            let beat = TaskTracker::new();
            facts.ask(&beat);
            beat
        };
        assert!(ask(&mut facts).is_empty(), "a program that never answers is not waited for");
        facts.answer();
        let beat = ask(&mut facts);
        assert!(!beat.is_empty());
        facts.answer();
        assert!(beat.is_empty());
        let beat = ask(&mut facts);
        facts.forget_watchdog();
        assert!(beat.is_empty(), "a program that is replaced is not waited for");
    }
}
