//! A separate thread for the driver (event loop) in a program with its own server.
//!
//! The server may block every thread of its runtime. The driver has its own thread and runtime, so
//! it still handles signals, deadlines and the messages of other generations. The thread sleeps
//! until one of these arrives.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::error::Error;

/// The thread of the driver (event loop) with its async runtime, before the driver runs. Dropping
/// this value ends the thread.
#[derive(Debug)]
pub(super) struct DriverRuntime<D: Future> {
    runtime: Handle,
    /// Passes the driver to the thread.
    driver: Sender<D>,
    thread: DriverThread<D::Output>,
}

/// The running driver. Dropping this value ends the driver, as a crash of the process would.
#[derive(Debug)]
pub(super) struct DriverThread<T> {
    ended: oneshot::Receiver<Result<T, Panic>>,
    _wanted: oneshot::Sender<()>,
}

type Panic = Box<dyn Any + Send>;

impl<D> DriverRuntime<D>
where
    D: Future + Send + 'static,
    D::Output: Send + 'static,
{
    /// Starts the thread. So if the kernel refuses it, no driver exists yet that would have to tell
    /// the predecessor.
    ///
    /// # Errors
    /// Returns the kernel's error if the thread or its runtime cannot be created.
    pub(super) fn new() -> Result<Self, Error> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::system("start the runtime that manages handoffs"))?;
        let handle = runtime.handle().clone();
        let runtime = ThreadRuntime(Some(runtime));
        let (driver, drivers) = channel();
        let (tell, ended) = oneshot::channel();
        let (wanted, unwanted) = oneshot::channel();
        let thread = std::thread::Builder::new().name("handoffd-driver".to_owned());
        let run = move || {
            if let Some(ended) = runtime.run(&drivers, unwanted) {
                // Ignore a failure, which means that the caller no longer waits for the result.
                let _ = tell.send(ended);
            }
        };
        thread.spawn(run).map_err(Error::system("start the thread that manages handoffs"))?;
        let thread = DriverThread { ended, _wanted: wanted };
        Ok(Self { runtime: handle, driver, thread })
    }

    /// Calls `create` inside the runtime, so that the runtime handles the events of the sockets
    /// that `create` opens.
    pub(super) fn within<T>(&self, create: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.enter();
        create()
    }

    /// Runs the driver on the thread.
    pub(super) fn run(self, driver: D) -> DriverThread<D::Output> {
        // The thread waits for the driver, so the channel is open.
        let _ = self.driver.send(driver);
        self.thread
    }
}

/// The async runtime of the thread.
#[derive(Debug)]
struct ThreadRuntime(Option<Runtime>);

impl ThreadRuntime {
    /// Waits for the driver, and runs it until it ends. Returns `None` if there is no driver, or if
    /// it is no longer wanted.
    fn run<D: Future>(
        &self,
        drivers: &Receiver<D>,
        unwanted: oneshot::Receiver<()>,
    ) -> Option<Result<D::Output, Panic>> {
        let (runtime, driver) = (self.0.as_ref()?, drivers.recv().ok()?);
        let until_unwanted = async {
            tokio::select! {
                ended = driver => Some(ended),
                _ = unwanted => None,
            }
        };
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(until_unwanted))).transpose()
    }
}

impl Drop for ThreadRuntime {
    /// Ends the runtime without waiting. If the thread could not be started, the caller drops this
    /// value, and may run in another runtime.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl<T> DriverThread<T> {
    /// Waits until the driver has ended, and returns its result. Cancel safe.
    ///
    /// # Panics
    /// Panics if the driver has panicked.
    pub(super) async fn ended(&mut self) -> T {
        match (&mut self.ended).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(panic)) => resume_unwind(panic),
            // This case cannot happen, because the thread sends a result while this value exists.
            Err(_) => std::future::pending().await,
        }
    }
}
