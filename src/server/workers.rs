//! Is where connections are served: on the runtime that we were called in, or on threads of our
//! own.
//!
//! With threads of our own each has a runtime of its own that knows no other: a connection stays
//! with the thread that serves it, nothing is stolen, and no thread wakes another but to pass on a
//! connection that it has no time for. `docs/decisions/0017-a-runtime-for-each-thread.md` has the
//! measurements. What is served there is not known here.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::deaths::{Deaths, panic_text};

/// How long the threads may take to end: longer than a call that blocks is left alone.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// What is never sent.
type Never = std::convert::Infallible;

/// Where connections are served.
#[derive(Debug)]
pub struct Workers {
    workers: Arc<[Worker]>,
    /// Ends the threads.
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    /// Ends when the last thread does: each holds a sender.
    running: Mutex<Receiver<Never>>,
    /// What has died of them and of the accept loops that run on them.
    deaths: Deaths,
}

impl Workers {
    /// The runtime that this is called in.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn here() -> Self {
        Self::of([Worker::new("the only worker".into(), Handle::current())].into(), channel().1)
    }

    fn of(workers: Arc<[Worker]>, running: Receiver<Never>) -> Self {
        Self {
            workers,
            stop: CancellationToken::new(),
            threads: Vec::new(),
            running: Mutex::new(running),
            deaths: Deaths::default(),
        }
    }

    /// Starts so many threads. They end, and whatever is served there with them, when this is
    /// dropped. One that hangs then is left behind after a few seconds.
    ///
    /// # Errors
    /// When the system has no thread or no descriptors left.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let build = |_| Builder::new_current_thread().enable_all().build();
        let runtimes = (0..count.get()).map(build).collect::<io::Result<Vec<_>>>()?;
        let named = (1..).zip(&runtimes);
        let named = named.map(|(number, runtime)| {
            Worker::new(format!("worker-{number}"), runtime.handle().clone())
        });
        let (runs, running) = channel();
        let mut workers = Self::of(named.collect(), running);
        for (number, runtime) in runtimes.into_iter().enumerate() {
            let (stop, deaths, all) =
                (workers.stop.clone(), workers.deaths.clone(), Arc::clone(&workers.workers));
            let (name, runs_too) = (all[number].name.clone(), runs.clone());
            let body = move || {
                let _runs = runs_too;
                // A panic here is one of the runtime itself, which catches those of its tasks.
                if let Err(panic) =
                    catch_unwind(AssertUnwindSafe(|| runtime.block_on(stop.cancelled())))
                {
                    all[number].is_dead.store(true, Ordering::Relaxed);
                    deaths.report(all[number].name(), &panic_text(&*panic));
                }
            };
            match std::thread::Builder::new().name(name).spawn(body) {
                Ok(thread) => workers.threads.push(thread),
                Err(error) => {
                    // Before the workers, which wait until the last of these is gone.
                    drop(runs);
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    /// All of them: at least one.
    pub(super) const fn all(&self) -> &Arc<[Worker]> {
        &self.workers
    }

    /// What has died of them.
    pub(super) const fn deaths(&self) -> &Deaths {
        &self.deaths
    }
}

/// One runtime, and how many connections it serves.
#[derive(Debug)]
pub(super) struct Worker {
    name: String,
    handle: Handle,
    load: Arc<AtomicUsize>,
    /// Its thread has ended: it serves nothing any more.
    is_dead: AtomicBool,
}

/// Counts as one connection of a worker for as long as it lives.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

impl Worker {
    fn new(name: String, handle: Handle) -> Self {
        Self { name, handle, load: Arc::default(), is_dead: AtomicBool::new(false) }
    }

    /// Its name, which is that of its thread.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its runtime.
    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// It serves one more.
    pub(super) fn load(&self) -> Load {
        self.load.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(&self.load))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who serves a connection that `own` has accepted: itself, unless another has clearly less to do.
/// Which of the threads that were woken comes first is chance, and connections that stay would stay
/// where chance has put them; but to pass one on is to wake a thread.
pub(super) fn choose(workers: &[Worker], own: usize) -> usize {
    // A dead one has the least to do, and would get all of them.
    let load = |number: usize| match &workers[number] {
        dead if dead.is_dead.load(Ordering::Relaxed) => usize::MAX / 4,
        worker => worker.load.load(Ordering::Relaxed),
    };
    let least = (0..workers.len()).min_by_key(|number| load(*number)).unwrap_or(own);
    let clearly_less = load(least) + load(least) / 8 + 2;
    if load(own) > clearly_less { least } else { own }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        // Nothing is ever sent.
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        if matches!(running.recv_timeout(END_TIMEOUT), Err(RecvTimeoutError::Timeout)) {
            tracing::error!(event = "worker.hung", "a worker hangs, and is left behind");
            return;
        }
        for thread in self.threads.drain(..) {
            // One that has panicked has been reported.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_one_thread_accepts_are_shared_out() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let all = workers.all();
        let mut loads: Vec<Load> = (0..90).map(|_| all[choose(all, 0)].load()).collect();
        let counts =
            || all.iter().map(|worker| worker.load.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(counts().iter().all(|count| (27..=36).contains(count)), "{:?}", counts());
        // One that is not ahead keeps what it accepts.
        assert_eq!((choose(all, 1), choose(all, 2)), (1, 2));
        loads.clear();
        assert_eq!(counts(), [0, 0, 0]);
    }

    #[test]
    fn a_dead_worker_gets_no_connections() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let all = workers.all();
        all[0].is_dead.store(true, Ordering::Relaxed);
        let loads: Vec<Load> = (0..90).map(|_| all[choose(all, 1)].load()).collect();
        assert_eq!(all[0].load.load(Ordering::Relaxed), 0);
        assert_eq!(loads.len(), 90);
        assert_ne!(choose(all, 0), 0);
    }
}
