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
//! `plane` is the data plane, and `instance` runs one process of the program. `launch` starts the
//! process, with the help of `command`, `environment` and `placeholder`. `ready` and `notify` find
//! out when the program is ready, and `output` keeps its last lines of output.

mod command;
mod environment;
mod instance;
mod launch;
mod notify;
mod output;
mod placeholder;
mod plane;
mod private;
mod ready;

pub use crate::config::{Attach, ProgramConfig, Ready, Restart, StopSignal, Umask};
pub use launch::check;
pub(crate) use plane::ProgramPlane;
