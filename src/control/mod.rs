//! The control socket: a Unix socket on which an operator requests a reload or the service's
//! status.
//!
//! Each connection carries one request and its replies. `server` is the daemon's side. [`Control`]
//! is the client's side, with `reload` and `conversation`. `message` defines the messages. A
//! message is one line of JSON, so `nc -U` or a short script in any language can be a client. Only
//! the active generation listens on the control socket. The server passes each request to
//! `lifecycle`, which decides how to handle it.

mod client;
mod client_limits;
mod conversation;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod message;
mod reload;
mod server;
mod session;

pub use client::{Control, default_control_path, runtime_directory};
pub use error::ControlError;
pub use message::ReloadOptions;
pub(crate) use message::{Refusal, Reply, Request};
pub use reload::ReloadNews;
pub(crate) use server::ControlServer;
pub(crate) use session::Answer;
