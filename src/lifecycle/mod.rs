//! The lifecycle of a generation, from its start until its last connection has ended.
//!
//! The module `machine` only computes: it maps each state and event to the next state and a list of
//! actions. The module `driver` is the event loop: it turns signals, messages and timers into
//! events, and performs the actions. The driver uses the top-level modules `handoff`, `server` and
//! `notify`, which know nothing about each other.
//!
//! A program that implements [`crate::Service`] calls [`run`]. A program with its own server calls
//! [`Builder::serve_with`].

mod actions;
mod active_role;
mod alone_wait;
mod builder;
mod check;
mod drain;
mod driver;
mod embed;
mod handoff;
mod life;
mod machine;
mod messages;
mod pid_file;
mod process;
mod requests;
mod signals;
mod startup;
mod status;
mod timers;
mod unlogged;
mod wakeup;

use crate::config::Config;
use crate::error::Error;
use crate::handoff::Inheritance;
use crate::service::Service;

pub use builder::Builder;
pub use driver::RunReport;
pub use embed::{
    Acceptor, BlockingListener, CarryAcceptor, CarryClient, CarryHandle, CarryOutcome, CarryPermit,
    Handshakes, Tracked,
};
pub use life::{Life, Stop};

/// Runs a generation, that is, one process of the service, and returns when the generation ends.
/// The generation serves clients with `service`. It adopts or binds the listeners, takes over from
/// a predecessor, hands over to a successor, and drains its connections. Must be called in a tokio
/// runtime with I/O and time enabled.
///
/// This function handles SIGHUP, SIGUSR2, SIGTERM, SIGINT and SIGQUIT for the whole process, as the
/// table in the README describes. It logs and ignores every other signal that would end the
/// process. If the program installed its own handler for SIGUSR2 or an ignored signal before this
/// call, that handler stays in place. Another process that shares a listening socket may make it
/// blocking. The library uses SIGURG to interrupt an accept call that blocks for this reason.
///
/// # Errors
/// Fails when this generation cannot start to accept connections, or ends early. A predecessor that
/// has not handed over yet receives the reason and keeps serving.
pub async fn run<S: Service>(
    config: Config,
    inheritance: Inheritance,
    service: S,
) -> Result<RunReport, Error> {
    Builder::new(inheritance).configure(|settings| *settings = config).run(service).await
}
