//! Support for programs, in any language, that serve the listeners and are replaced without
//! downtime.
//!
//! A generation starts the program and is ready when the program is. After a commit, the old
//! generation tells its own program to stop. The lifecycle does everything else: bake, rollback,
//! service manager and control socket.
//!
//! A program either inherits the listeners and accepts connections itself, or it listens on a
//! private address and this process forwards connections to it.
//!
//! `plane` is the data plane, and `observed` is its view of the instances. `instance` starts and
//! restarts one instance of the program, and `running` holds the processes of one start. `launch`
//! prepares a start, with the help of `command`, `environment` and `placeholder`. `ready` and
//! `notify` find out when the program is ready, and `output` keeps its last lines of output.
//! `service` serves the connections that this process accepts.

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
