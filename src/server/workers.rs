//! Is where connections are served: on the runtime that we were called in, or on threads of our own.
//!
//! With threads of our own each has a runtime of its own that knows no other: a connection stays with the thread that serves it, nothing is stolen, and no thread wakes another but to
//! pass on a connection that it has no time for. `docs/decisions/0017-a-runtime-for-each-thread.md` has the measurements.
//! What is served there is not known here.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Where connections are served.
#[derive(Debug)]
pub struct Workers {
    workers: Arc<[Worker]>,
    /// Ends the threads.
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// The runtime that this is called in.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn here() -> Self {
        let workers = [Worker::new(Handle::current())].into();
        Self { workers, stop: CancellationToken::new(), threads: Vec::new() }
    }

    /// Starts so many threads. They end, and whatever is served there with them, when this is dropped.
    ///
    /// # Errors
    /// When the system has no thread or no descriptors left.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let build = |_| Builder::new_current_thread().enable_all().build();
        let runtimes = (0..count.get()).map(build).collect::<io::Result<Vec<_>>>()?;
        let workers = runtimes.iter().map(|runtime| Worker::new(runtime.handle().clone())).collect();
        let mut workers = Self { workers, stop: CancellationToken::new(), threads: Vec::new() };
        for (number, runtime) in (1..).zip(runtimes) {
            let stop = workers.stop.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            workers.threads.push(thread.spawn(move || runtime.block_on(stop.cancelled()))?);
        }
        Ok(workers)
    }

    /// All of them: at least one.
    pub(super) const fn all(&self) -> &Arc<[Worker]> {
        &self.workers
    }
}

/// One runtime, and how many connections it serves.
#[derive(Debug)]
pub(super) struct Worker {
    handle: Handle,
    load: Arc<AtomicUsize>,
}

/// Counts as one connection of a worker for as long as it lives.
#[derive(Debug)]
pub(super) struct Load(Arc<AtomicUsize>);

impl Worker {
    fn new(handle: Handle) -> Self {
        Self { handle, load: Arc::default() }
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

/// Who serves a connection that `own` has accepted: itself, unless another has clearly less to do. Which of the threads that were
/// woken comes first is chance, and connections that stay would stay where chance has put them; but to pass one on is to wake a
/// thread.
pub(super) fn choose(workers: &[Worker], own: usize) -> usize {
    let load = |number: usize| workers[number].load.load(Ordering::Relaxed);
    let least = (0..workers.len()).min_by_key(|number| load(*number)).unwrap_or(own);
    let clearly_less = load(least) + load(least) / 8 + 2;
    if load(own) > clearly_less { least } else { own }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // One that has panicked has said so.
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
        let counts = || all.iter().map(|worker| worker.load.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert!(counts().iter().all(|count| (27..=36).contains(count)), "{:?}", counts());
        // One that is not ahead keeps what it accepts.
        assert_eq!((choose(all, 1), choose(all, 2)), (1, 2));
        loads.clear();
        assert_eq!(counts(), [0, 0, 0]);
    }
}
