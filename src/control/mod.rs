//! Hears an operator and answers: a Unix socket, one request and its replies for each connection.
//!
//! Both halves of the conversation lie side by side: `server` is the daemon's, [`Control`] is that
//! of whoever asks, and `message` is what they say: one line of JSON each, so that `nc -U` and a
//! few lines of any language can ask as well. Only the head of a line listens; what it is asked,
//! the lifecycle decides.

mod client;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod message;
mod seats;
mod server;

pub use client::{Control, ReloadNews, default_control_path};
pub use message::ReloadOptions;
pub(crate) use message::{Refusal, Reply, Request};
pub(crate) use server::{Answer, ControlServer};
