//! Programs in any language that serve the listeners, and are replaced like any other server.
//!
//! A generation starts the program and is ready when the program is. After a commit, the old
//! generation tells its own program to stop. Everything else (bake, rollback, service manager,
//! control socket) is done by the lifecycle.
//!
//! A program either inherits the listeners and accepts by itself, or it listens on a private
//! address, and this process forwards the clients to it. `plane` is the data plane, `instance`
//! runs one instance of the program, `running` has its
//! processes, and `launch` puts together what it is started with, with
//! `command`, `environment` and `placeholder`. `ready` and `notify` find out when it is ready, and
//! `output` keeps its last words. `service` serves the connections that this process accepts.

mod command;
mod environment;
mod instance;
mod launch;
mod notify;
mod observed;
mod output;
mod placeholder;
mod plane;
mod private;
mod ready;
mod running;
mod service;

pub use crate::config::{Attach, ProgramConfig, Ready, Restart, StopSignal, Umask};
pub use launch::check;
pub(crate) use plane::{ProgramHost, ProgramPlane};
