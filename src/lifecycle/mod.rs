//! The lifecycle of a generation, from its start until its last connection has ended.
//!
//! `machine` is the pure core: it maps each state and event to the next state and its actions.
//! `driver` surrounds it: it turns signals, messages, timers and ends of tasks into events, and
//! actions into calls. The modules that do the work (`handoff`, `server`, `notify`) meet only here.
//!
//! [`run`] serves a [`crate::Service`]. [`Starting`] is the entry point for your own server.

mod actions;
mod check;
mod drain;
mod driver;
mod embed;
mod handoff;
mod head;
mod machine;
mod messages;
mod pid_file;
mod plane_events;
mod process;
mod signals;
mod startup;
mod status;
mod timers;
mod wakeup;

use crate::config::Config;
use crate::error::Error;
use crate::handoff::Inheritance;
use crate::server::{Server, Workers};
use crate::service::Service;

pub use check::check;
pub use driver::RunReport;
pub use embed::{Acceptor, AfterDrain, Retirement, Serving, Starting};

/// Serves `service` for the whole life of this generation: adopts or binds the listeners, takes
/// over from a predecessor, hands over to successors, and drains. Must be called in a tokio runtime
/// with I/O and time enabled.
///
/// This function handles SIGHUP, SIGUSR2, SIGTERM, SIGINT and SIGQUIT for the whole process, as the
/// table in the README describes. It logs and ignores every other signal that would end the
/// process. If the program has installed its own handler for SIGUSR2 or for such a signal before
/// this call, that handler stays. SIGURG is used within the process, to interrupt an accept that
/// blocks although the socket is non-blocking.
///
/// # Errors
/// When this generation cannot begin to serve, or ends early. A predecessor that has not handed
/// over yet is told the reason and keeps serving.
pub async fn run<S: Service>(
    config: Config,
    inheritance: Inheritance,
    service: S,
) -> Result<RunReport, Error> {
    run_on(Workers::here(), config, inheritance, service).await
}

/// Like [`run`], but serves the connections on the given workers. The lifecycle itself runs in the
/// runtime of the caller.
///
/// # Errors
/// When this generation cannot begin to serve, or ends early. A predecessor that has not handed
/// over yet is told the reason and keeps serving.
pub async fn run_on<S: Service>(
    workers: Workers,
    config: Config,
    inheritance: Inheritance,
    service: S,
) -> Result<RunReport, Error> {
    let server = Server::new(service, workers, config.clone());
    driver::Driver::start(config, inheritance, server)?.live()?.run().await
}
