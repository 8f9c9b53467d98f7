//! The workers that serve connections: the runtime of the caller, or dedicated threads.
//!
//! Each dedicated thread has a separate single-threaded runtime. A connection stays on the thread
//! that serves it, because these runtimes do not share work. A thread that accepts a connection
//! passes it to another thread if that thread has clearly fewer connections.
//! `docs/decisions/0017-a-runtime-for-each-thread.md` contains the measurements.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::deaths::{Deaths, panic_text};

/// How long to wait for the worker threads to end. This process does not wait for threads that run
/// longer.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// The item type of a channel on which nothing is ever sent.
type Never = std::convert::Infallible;

/// The runtimes that serve connections: the runtime of the caller, or dedicated threads.
#[derive(Debug)]
pub struct Workers {
    workers: Arc<[Worker]>,
    /// A token that ends the worker threads when it is cancelled.
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
    /// A channel that closes when the last worker thread has ended, because each thread holds a
    /// sender.
    running: Mutex<Receiver<Never>>,
    /// The first failure of a worker, or of an accept loop or a relay plane that runs on it.
    deaths: Deaths,
}

impl Workers {
    /// Returns a single worker, which is the runtime of the caller.
    ///
    /// # Panics
    /// Panics when called outside of a tokio runtime.
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

    /// Starts `count` worker threads.
    ///
    /// Dropping the returned value ends the threads and all connections on them. The drop waits up
    /// to 3 s for the threads.
    ///
    /// # Errors
    /// Fails when the system has no threads or file descriptors left.
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
                // A panic caught here comes from the runtime itself, because the runtime catches
                // the panics of its tasks.
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
                    // Drop this sender first, because dropping `workers` waits until all senders
                    // are gone.
                    drop(runs);
                    return Err(error);
                }
            }
        }
        Ok(workers)
    }

    /// Returns all workers. There is at least one.
    pub(super) const fn all(&self) -> &Arc<[Worker]> {
        &self.workers
    }

    /// Returns the record of failed workers, accept loops and relay planes.
    pub(super) const fn deaths(&self) -> &Deaths {
        &self.deaths
    }
}

/// One runtime that serves connections, and the number of connections on it.
#[derive(Debug)]
pub(super) struct Worker {
    name: String,
    handle: Handle,
    load: Arc<AtomicUsize>,
    /// Whether the thread of this worker has died. A dead worker serves no connections.
    is_dead: AtomicBool,
}

/// A guard that counts one connection in the load of its worker until it is dropped.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

impl Worker {
    fn new(name: String, handle: Handle) -> Self {
        Self { name, handle, load: Arc::default(), is_dead: AtomicBool::new(false) }
    }

    /// Returns the name of the worker, such as `worker-1`. A dedicated thread has the same name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns a handle to the worker's runtime.
    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns the number of connections on this worker. A dead worker seems to have very many.
    /// Otherwise it would get every connection, because its load is the lowest.
    fn load_or_dead(&self) -> usize {
        if self.is_dead.load(Ordering::Relaxed) {
            return usize::MAX / 4;
        }
        self.load.load(Ordering::Relaxed)
    }

    /// Raises the load of the worker by one connection, until the returned value is dropped.
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

/// If there are more workers than processors, the load of each surplus worker counts as this many
/// connections higher. A surplus worker gets connections only when the other workers have many,
/// because its thread adds no parallelism.
const BEYOND_PROCESSORS: usize = 64;

/// Returns the index of the worker that serves a connection accepted by worker `own`.
///
/// The result is `own`, unless another worker has clearly fewer connections. Without this check,
/// long-lived connections would be spread unevenly, because chance decides which thread wakes up
/// first and accepts. Small differences are ignored, because it takes time to wake another thread.
pub(super) fn choose(workers: &[Worker], own: usize) -> usize {
    choose_among(workers, own, processors(workers))
}

fn choose_among(workers: &[Worker], own: usize, processors: usize) -> usize {
    let load = |number: usize| {
        let beyond = if number < processors { 0 } else { BEYOND_PROCESSORS };
        workers[number].load_or_dead() + beyond
    };
    let least = (0..workers.len()).min_by_key(|number| load(*number)).unwrap_or(own);
    let clearly_less = load(least) + load(least) / 8 + 2;
    if load(own) > clearly_less { least } else { own }
}

/// Returns the index of the worker with the fewest connections. This worker gets the next
/// connection from the predecessor, because such a connection has existed for some time and
/// probably stays.
pub(super) fn least_loaded(workers: &[Worker]) -> usize {
    (0..workers.len()).min_by_key(|number| workers[*number].load_or_dead()).unwrap_or(0)
}

/// Returns how many of the workers can run at the same time.
pub(super) fn processors(workers: &[Worker]) -> usize {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));
    workers.len().min(*PROCESSORS)
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        // Wait until every thread has ended and thereby dropped its sender. No message is ever
        // sent.
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        if matches!(running.recv_timeout(END_TIMEOUT), Err(RecvTimeoutError::Timeout)) {
            tracing::error!(
                event = "worker.hung",
                "a worker thread did not stop in time: the process continues without it"
            );
            return;
        }
        for thread in self.threads.drain(..) {
            // Ignore a panic of the thread, because the thread has already reported it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections that a single thread accepts are spread evenly over all workers.
    #[test]
    fn connections_that_one_thread_accepts_are_shared_out() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let all = workers.all();
        let mut loads: Vec<Load> = (0..90).map(|_| all[choose_among(all, 0, 3)].load()).collect();
        let counts =
            || all.iter().map(|worker| worker.load.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(counts().iter().all(|count| (27..=36).contains(count)), "{:?}", counts());
        // A worker keeps the connections that it accepts if its load is not higher than that of the
        // others.
        assert_eq!((choose_among(all, 1, 3), choose_among(all, 2, 3)), (1, 2));
        loads.clear();
        assert_eq!(counts(), [0, 0, 0]);
    }

    /// A worker without a processor of its own gets accepted connections only when the others have
    /// many. A connection from the predecessor goes to the worker with the fewest connections.
    #[test]
    fn a_worker_without_a_processor_gets_few_connections() {
        let workers = Workers::start(NonZeroUsize::new(3).unwrap()).unwrap();
        let all = workers.all();
        let mut loads = Vec::new();
        let mut accept = |count: usize| {
            loads.extend((0..count).map(|_| all[choose_among(all, 0, 2)].load()));
            [0, 1, 2].map(|number: usize| all[number].load_or_dead())
        };
        assert_eq!(accept(100)[2], 0);
        assert!(accept(400)[2] >= 100);
        assert_eq!(least_loaded(all), 2);
    }

    /// A dead worker is never chosen, although its load is the lowest.
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
