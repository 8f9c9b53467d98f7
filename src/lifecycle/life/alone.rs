//! Tasks that run in only one process of a service at a time, the active generation.
//!
//! A handoff is committed only after these tasks have ended in the old generation, and they begin
//! in the new one only after the commit. A generation that becomes active because another has died
//! begins the tasks when the kernel has reported the death. So two generations never run the tasks
//! at the same time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Life;
use super::state::AloneState;
use super::term::Term;

/// How long to wait until a dropped task is gone. A second is enough, unless the task blocks its
/// thread.
pub(in crate::lifecycle) const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// The tasks that run in this generation and must not run in another generation at the same time.
#[derive(Debug)]
pub(super) struct AloneTasks {
    running: TaskTracker,
    /// Cancelled when the tasks must be dropped, because they did not end in time.
    dropped: CancellationToken,
}

impl Default for AloneTasks {
    fn default() -> Self {
        let running = TaskTracker::new();
        // Close the tracker, because `wait` never resolves on an open one. A closed tracker can
        // still track new tasks.
        running.close();
        Self { running, dropped: CancellationToken::new() }
    }
}

impl AloneTasks {
    /// Returns whether a task that must run in only one generation is running.
    pub(super) fn are_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Waits until no task that must run in only one generation is running. Cancel safe.
    pub(super) async fn ended(&self) {
        self.running.wait().await;
    }

    /// Drops the running tasks, because they did not end within `limit`. The tasks are gone when
    /// [`AloneTasks::ended`] resolves. A task that blocks its thread cannot be dropped.
    pub(super) fn drop_all(&self, limit: Duration) {
        if self.are_running() && !self.dropped.is_cancelled() {
            tracing::warn!(
                event = "alone.dropped",
                "dropped a task that may run in only one process at a time: it did not end within \
                {} s",
                limit.as_secs_f64()
            );
        }
        self.dropped.cancel();
    }
}

/// The request to end a task that runs in only one generation. Clones belong to the same task.
#[derive(Clone, Debug)]
pub struct Stop(CancellationToken);

impl Stop {
    /// Waits until the task must end. Cancel safe.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// Returns whether the task must end.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Runs `task` whenever this generation is active, until the task returns without a request to
/// stop.
pub(super) fn run<T, F>(life: &Life, mut task: T)
where
    T: FnMut(Stop) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let state = Arc::clone(&life.state);
    // Let the task end when this generation stops accepting connections. If it accepts again later,
    // the server function is called again and starts the task again.
    let term = life.term.clone();
    // Keep no handle to this task: it ends when this generation retires, or with the runtime.
    drop(tokio::spawn(async move {
        let mut standing = state.standing.subscribe();
        while becomes_active(&mut standing, term.as_ref()).await {
            // Count the task as running before checking whether this generation is still active.
            // The event loop first changes the standing and then reads the count. So either it sees
            // the running task, or this check sees the change.
            let running = state.alone.running.token();
            if *standing.borrow() != AloneState::Active {
                continue;
            }
            let stop = Stop(CancellationToken::new());
            let work = tokio::spawn(task(stop.clone()));
            let end = run_once(work, stop, &mut standing, &state.alone.dropped).await;
            drop(running);
            if end == RunEnd::ForGood {
                return;
            }
        }
    }));
}

/// Waits until this generation is the active one, and returns `true`. Returns `false` if the
/// generation ends earlier, or if `term`, its period of accepting connections, has ended.
async fn becomes_active(standing: &mut watch::Receiver<AloneState>, term: Option<&Term>) -> bool {
    let term_over = async {
        match term {
            Some(term) => term.retired().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = term_over => false,
        active = standing.wait_for(|now| *now == AloneState::Active) => active.is_ok(),
    }
}

/// How one run of a task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunEnd {
    /// The task has ended because it was told to. It runs again if this generation stays active.
    AsTold,
    /// The task has finished its work, has panicked, or was dropped.
    ForGood,
}

/// Waits until the task has ended once. Tells the task to stop when this generation hands over to
/// its successor, and does not take this back if the handoff then fails.
async fn run_once(
    mut work: JoinHandle<()>,
    stop: Stop,
    standing: &mut watch::Receiver<AloneState>,
    dropped: &CancellationToken,
) -> RunEnd {
    let asked = async {
        let _ = standing.wait_for(|now| *now != AloneState::Active).await;
        stop.0.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = asked => RunEnd::ForGood, // never
        ended = &mut work => match ended {
            Ok(()) if stop.is_requested() => RunEnd::AsTold,
            Err(error) if error.is_panic() => {
                tracing::error!(
                    event = "alone.panicked",
                    "a task that may run in only one process at a time has panicked and does not \
                    start again in this process"
                );
                RunEnd::ForGood
            }
            Ok(()) | Err(_) => RunEnd::ForGood,
        },
        () = dropped.cancelled() => {
            // Wait until the task is dropped, because it counts as running until then.
            work.abort();
            let _ = work.await;
            RunEnd::ForGood
        }
    }
}
