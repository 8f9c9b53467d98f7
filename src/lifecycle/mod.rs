//! Decides: the life of a generation, from its birth to its last connection.
//!
//! `machine` is the pure core: every state, every event, and what is to be done. `driver` is its
//! hands: it turns signals, messages, timers and ends of tasks into events, and actions into calls.
//! The planes that do the work (`handoff`, `server`, `notify`) never meet but here. [`run`] serves
//! a [`crate::Service`]; [`Starting`] is the face for a server of one's own.

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
/// over from a predecessor, hands over to successors, drains. Must be called in a tokio runtime
/// with I/O and time.
///
/// Signals are taken from the whole process: SIGHUP, SIGUSR2, SIGTERM, SIGINT and SIGQUIT, as the
/// README's table has them. Every other signal that would end the process is logged and ignored.
/// SIGUSR2 and those others stay with the program if it has installed a handler for them before
/// this is called. SIGURG is used within the process, to interrupt an accept that blocks although
/// it must not.
///
/// # Errors
/// When this generation cannot begin to serve. A predecessor is told why, and serves on.
pub async fn run<S: Service>(
    config: Config,
    inheritance: Inheritance,
    service: S,
) -> Result<RunReport, Error> {
    run_on(Workers::here(), config, inheritance, service).await
}

/// The same, with the connections on workers of their own; what is decided is decided in the
/// runtime that this is called in.
///
/// # Errors
/// When this generation cannot begin to serve. A predecessor is told why, and serves on.
pub async fn run_on<S: Service>(
    workers: Workers,
    config: Config,
    inheritance: Inheritance,
    service: S,
) -> Result<RunReport, Error> {
    let server = Server::new(service, workers, config.clone());
    driver::Driver::start(config, inheritance, server)?.live()?.run().await
}
