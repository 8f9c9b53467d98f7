//! Is where connections are served: on the runtime that we were called in, or on threads of our own.
//!
//! With threads of our own each has a runtime of its own that knows no other: a connection stays with the thread that accepted
//! it, nothing is stolen, and no thread wakes another. `docs/decisions/0017-a-runtime-for-each-thread.md` has the measurements.
//! What is served there is not known here.

use std::io;
use std::num::NonZeroUsize;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// Where connections are served.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
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
        Self { handles: vec![Handle::current()], stop: CancellationToken::new(), threads: Vec::new() }
    }

    /// Starts so many threads. They end, and whatever is served there with them, when this is dropped.
    ///
    /// # Errors
    /// When the system has no thread or no descriptors left.
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        let mut workers = Self { handles: Vec::new(), stop: CancellationToken::new(), threads: Vec::new() };
        for number in 1..=count.get() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.handles.push(runtime.handle().clone());
            let stop = workers.stop.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            workers.threads.push(thread.spawn(move || runtime.block_on(stop.cancelled()))?);
        }
        Ok(workers)
    }

    /// The runtimes: at least one.
    pub(super) fn handles(&self) -> &[Handle] {
        &self.handles
    }
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
