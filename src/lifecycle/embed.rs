//! The interface for a program that uses its own server, such as axum or hyper, instead of this
//! library's server.
//!
//! [`Builder::serve_with`] calls the program's `async fn`, and calls it again if the successor dies
//! during the drain. `serve_with` returns when the generation has ended. The program's function
//! accepts connections from an [`Acceptor`], or from a listener of another kind
//! (`embed/listener.rs`).

mod acceptor;
mod blocking;
mod carry;
mod data_plane;
mod driver_thread;
mod handle;
mod handshake;
mod listener;
mod private;
mod server_calls;

use std::convert::Infallible;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::builder::Builder;
use super::driver::{Driver, RunReport};
use super::life::{Life, LifeRequest, ServedListeners, ServedSettings};
use super::unlogged;
use crate::error::Error;
use crate::handoff::SignalUse;
use data_plane::{Embedded, ServerState};
use driver_thread::DriverRuntime;
use server_calls::{CallEvent, ServerCalls};

pub use acceptor::Acceptor;
pub use blocking::{BlockingListener, Tracked};
pub(super) use carry::ArrivalQueue;
pub use carry::{CarryAcceptor, CarryClient};
pub use handle::{CarryHandle, CarryOutcome, CarryPermit};
pub use handshake::Handshakes;

/// How long the process may continue to run after the generation has ended. Then a thread ends the
/// process, because a server could otherwise run forever.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The exit code of a Rust program that has panicked.
const PANIC_CODE: i32 = 101;

/// How long to wait for threads of the server's runtime after the generation has ended.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

impl Builder {
    /// Runs the generation with a server of your own, and returns when the generation has ended.
    /// This function creates a tokio runtime with one worker thread per core. The library handles
    /// signals and deadlines on a separate thread, even if `serve` and its tasks block every worker
    /// thread.
    ///
    /// `serve` accepts connections until [`Life::retired`], and returns when its connections have
    /// ended. If it returns earlier, the service stops. If the successor dies during the drain,
    /// `serve` is called again, even if the earlier call has not returned yet. `serve` is also
    /// called again if clients are left that no other generation accepts. At the drain deadline, a
    /// call that has not returned is dropped. If that does not end the process either, a thread
    /// ends it two seconds later.
    ///
    /// # Errors
    /// Fails if this generation cannot start, or if `serve` returns an error. A predecessor that
    /// has not handed over yet receives the reason and keeps serving.
    ///
    /// Returns [`Error::InsideRuntime`] if a tokio runtime calls this function, as under
    /// `#[tokio::main]`. Such a program starts threads too early: it must take the inherited
    /// sockets while it has only one thread.
    ///
    /// # Panics
    /// Panics if `serve` panics.
    pub fn serve_with<T, E: Display>(
        self,
        serve: impl AsyncFn(Life) -> Result<T, E>,
    ) -> Result<RunReport, Error> {
        if Handle::try_current().is_ok() {
            self.refuse(&Error::InsideRuntime);
            return Err(Error::InsideRuntime);
        }
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(source) => {
                let error = Error::System { doing: "start the threads of the server", source };
                self.refuse(&error);
                return Err(error);
            }
        };
        let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(self.serve_here(serve))));
        // Do not wait for threads that block forever, even after a panic.
        runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs the generation as [`Builder::serve_with`] does, but in the caller's runtime. Use this
    /// function if the runtime needs special settings. Call [`Builder::from_env`] or
    /// [`Inheritance::take`](crate::Inheritance::take) before you create the runtime.
    ///
    /// The returned future is not `Send`, so `tokio::spawn` does not take it. If it is dropped, the
    /// generation ends as a crash would end it: it closes its listeners, and its acceptors return
    /// `None`, but it does not remove the paths of its Unix sockets and its control socket. The
    /// next start of the service replaces them. To remove them, call [`Life::stop`] and wait for
    /// the future.
    ///
    /// # Errors
    /// Returns the same errors as [`Builder::serve_with`].
    ///
    /// # Panics
    /// Panics if `serve` panics, or outside of a tokio runtime with I/O and time enabled. If the
    /// process has not ended two seconds after a panic, a thread ends it, because a runtime would
    /// wait forever for threads that block.
    pub async fn serve_here<T, E: Display>(
        self,
        serve: impl AsyncFn(Life) -> Result<T, E>,
    ) -> Result<RunReport, Error> {
        let Self { inheritance, config, line, life, last, .. } = self;
        let (server, states) = watch::channel(ServerState::Running);
        let plane = Embedded::new(life.clone(), states, Handle::current());
        // In a test, the server must not end the process, because other tests run in it.
        let owns_process = inheritance.signal_use == SignalUse::Handled;
        let _guard = PanicGuard { owns_process };
        let runtime = match DriverRuntime::new() {
            Ok(runtime) => runtime,
            Err(error) => {
                inheritance.refuse(&error);
                return Err(error);
            }
        };
        let settings = ServedSettings::of(&config);
        let driver = runtime.within(|| Driver::start(config, inheritance, plane, line))?;
        let served = ServedListeners::new(driver.listeners(), &last, &settings)
            .inspect_err(|error| driver.refuse(error))?;
        if let Some(forecast) = life.state.expected.get() {
            served.expect_carried(forecast);
        }
        let _ = life.state.served.set(served);
        let (_returned, returns) = sync_channel::<()>(0);
        let mut driver = runtime.run(run(driver, owns_process.then_some(returns)));
        let _cut = CutOnDrop(life.clone());
        let mut unused = pin!(warn_of_unused(&life));
        let mut calls = ServerCalls::new(&life, &serve);
        loop {
            tokio::select! {
                biased;
                ended = driver.ended() => return ended,
                never = &mut unused => match never {},
                ended = calls.next() => match ended {
                    CallEvent::AsTold | CallEvent::Begun => {}
                    CallEvent::Early(term) => life.state.request(LifeRequest::Returned(term)),
                    CallEvent::Failed(term, reason) => {
                        life.state.request(LifeRequest::Failed(term, reason));
                    }
                },
            }
            server.send_replace(calls.state());
        }
    }
}

/// Runs the driver (event loop) until the generation has ended. The server must then return, which
/// disconnects `returned`. If it does not return within [`EXIT_TIMEOUT`], ends the process. If
/// `returned` is `None`, never ends the process.
async fn run(driver: Driver<Embedded>, returned: Option<Receiver<()>>) -> Result<RunReport, Error> {
    let ended = match driver.live() {
        Ok(driver) => driver.run().await,
        Err(error) => Err(error),
    };
    if let Some(returned) = returned {
        end_process_later(returned, ended.as_ref().err());
    }
    ended
}

/// Ends the process if it does not end by itself after a panic of the server.
struct PanicGuard {
    owns_process: bool,
}

impl Drop for PanicGuard {
    #[expect(clippy::disallowed_methods, reason = "the server prevents the end of the process")]
    fn drop(&mut self) {
        if self.owns_process && std::thread::panicking() {
            start_thread(|| {
                std::thread::sleep(EXIT_TIMEOUT);
                tracing::error!(
                    event = "server.hung",
                    "forced the process to exit: it did not end by itself after the server had \
                    panicked"
                );
                std::process::exit(PANIC_CODE);
            });
        }
    }
}

/// Ends the process if the server does not return within [`EXIT_TIMEOUT`]. A return disconnects
/// `returned`. `error` is the reason why the generation has ended. This function reports it,
/// because `main` does not get it.
#[expect(clippy::disallowed_methods, reason = "the server prevents a return from main")]
fn end_process_later(returned: Receiver<()>, error: Option<&Error>) {
    let code = error.map_or(0, |error| error.exit() as i32);
    let reason = error.map(ToString::to_string);
    start_thread(move || {
        if returned.recv_timeout(EXIT_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!(
                event = "server.hung",
                reason,
                "forced the process to exit, because it had to end but its server did not return: \
                {}",
                reason.as_deref().unwrap_or("the process was told to end")
            );
            if let Some(reason) = reason {
                unlogged::report(&reason);
            }
            std::process::exit(code);
        }
    });
}

/// Runs `end` on another thread, which ends the process if it does not end by itself. Ignores a
/// failure, for example at a thread limit, because the process usually ends by itself.
fn start_thread(end: impl FnOnce() + Send + 'static) {
    let _ = std::thread::Builder::new().name("handoffd-exit".to_owned()).spawn(end);
}

/// Cuts the connections and closes the listeners when this value is dropped. This happens when the
/// server has ended, or when the future that runs it is dropped.
struct CutOnDrop(Life);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        let term = self.0.term();
        term.retire();
        term.retire_last();
        term.drain();
        self.0.state.cut.cancel();
        if let Some(served) = self.0.state.served.get() {
            served.report_lost_clients();
            served.close_all();
        }
    }
}

/// How long a server may take to request all its listeners after it is ready.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Logs a warning that names the listeners that the server has not requested, because their clients
/// would wait forever. Never returns.
async fn warn_of_unused(life: &Life) -> Infallible {
    life.term().ready().await;
    tokio::time::sleep(REQUEST_TIMEOUT).await;
    let unused = life.state.served.get().map(ServedListeners::unused).unwrap_or_default();
    if !unused.is_empty() {
        let listeners = unused.join(" ");
        tracing::warn!(
            event = "listener.unused",
            listeners,
            "the server does not accept connections on some listeners, so their clients wait: \
            {listeners}"
        );
    }
    std::future::pending().await
}
