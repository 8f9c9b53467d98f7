//! A separate thread for the driver (event loop) in a program with its own server.
//!
//! The server may block every thread of its runtime. The driver has its own thread and runtime, so
//! it still handles signals, deadlines and the messages of other generations. The thread sleeps
//! until one of these arrives.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::error::Error;

/// The async runtime of the driver (event loop), before the driver runs.
#[derive(Debug)]
pub(super) struct DriverRuntime(Option<Runtime>);

/// The running driver. Dropping this value ends the driver, as a crash of the process would.
#[derive(Debug)]
pub(super) struct DriverThread<T> {
    ended: oneshot::Receiver<Result<T, Panic>>,
    _wanted: oneshot::Sender<()>,
}

type Panic = Box<dyn Any + Send>;

impl DriverRuntime {
    pub(super) fn new() -> Result<Self, Error> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::system("start the runtime that manages handoffs"))?;
        Ok(Self(Some(runtime)))
    }

    /// Calls `create` inside the runtime, so that the runtime handles the events of the sockets
    /// that `create` opens.
    pub(super) fn within<T>(&self, create: impl FnOnce() -> T) -> T {
        let _inside = self.0.as_ref().map(Runtime::enter);
        create()
    }

    /// Runs the driver on a thread of its own.
    ///
    /// # Errors
    /// Returns the kernel's error if the thread cannot be created.
    pub(super) fn run<T: Send + 'static>(
        self,
        driver: impl Future<Output = T> + Send + 'static,
    ) -> Result<DriverThread<T>, Error> {
        let (tell, ended) = oneshot::channel();
        let (wanted, unwanted) = oneshot::channel();
        let thread = std::thread::Builder::new().name("handoffd-driver".to_owned());
        let run = move || {
            let Some(runtime) = &self.0 else { return };
            let until_unwanted = async {
                tokio::select! {
                    ended = driver => Some(ended),
                    _ = unwanted => None,
                }
            };
            let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(until_unwanted)));
            if let Some(ended) = ended.transpose() {
                // Ignore a failure, which means that the caller no longer waits for the result.
                let _ = tell.send(ended);
            }
        };
        thread.spawn(run).map_err(Error::system("start the thread that manages handoffs"))?;
        Ok(DriverThread { ended, _wanted: wanted })
    }
}

impl Drop for DriverRuntime {
    /// Ends the runtime without waiting, because the caller may run in another runtime.
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
