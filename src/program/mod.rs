//! Support for programs, in any language, that serve the listeners and are replaced without
//! downtime.
//!
//! Each generation starts the program, and is ready when its program is ready. After a handoff, the
//! old generation tells its own program to stop. The module `lifecycle` decides when to hand over
//! and when to roll back.
//!
//! A program either inherits the listeners and accepts connections itself, or it listens on a
//! private address and this process forwards connections to it.
//!
//! `plane` controls the program, and `observed` is its view of the instances. `instance` starts and
//! restarts one instance of the program, and `running` holds the processes of one start. `launch`
//! prepares a start, with the help of `command`, `environment` and `placeholder`. `ready`,
//! `checks` and `notify` find out when the program is ready, and `output` keeps its last lines of
//! output. `watch` follows one process of the program until it has ended, and `creation` creates
//! the data plane. `service` serves the connections that this process accepts.

mod checks;
mod command;
mod creation;
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
mod watch;

pub use crate::config::{Attach, ProgramConfig, Ready, Restart, StopSignal, Umask};
// Only for the binary `handoffd`, which reads its configuration file in the same way.
#[doc(hidden)]
pub use crate::sys::settings_file::read as read_settings_file;
pub(crate) use creation::ProgramHost;
pub use launch::{check, check_settings};
pub(crate) use plane::ProgramPlane;
